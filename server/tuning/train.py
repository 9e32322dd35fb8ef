"""The training loop: Muon and AdamW, a cosine after a warm-up, batches of like length."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch.optim import AdamW
from transformers import Gemma3ForCausalLM

from server.tuning.dataset import Row, batches
from server.tuning.muon import Muon
from server.tuning.objectives import Objective
from server.tuning.progress import Progress

THREADS = 2
FINAL_SHARE = 0.05
"""The learning rate's last value, as a share of its highest."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int
    learning_rate: float
    tokens_per_batch: int = 3072
    warmup_steps: int = 40
    weight_decay: float = 0.05
    clip: float = 1.0


def fit(
    model: Gemma3ForCausalLM,
    rows: Sequence[Row],
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int,
    stage: str,
    progress: Progress,
) -> float:
    """Train the parameters that want gradients, in place; return the loss at the end.

    The same seed gives the same weights on one machine.
    """
    prepare(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizers = _optimizers(model, schedule)
    precise = not bf16_is_fast()
    smooth = math.nan
    model.train()
    progress(stage, 0, schedule.steps)
    supply = batches(rows, schedule.tokens_per_batch, seed)
    for step, batch in enumerate(islice(supply, schedule.steps)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
            loss = objective(model, batch)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
        for optimizer in optimizers:
            optimizer.step()
        smooth = loss.item() if math.isnan(smooth) else 0.95 * smooth + 0.05 * loss.item()
        progress(stage, step + 1, schedule.steps, f"loss {smooth:.3f}")
    model.eval()
    return smooth


def learning_rate(schedule: Schedule, step: int) -> float:
    """Return the rate of one step: up in a line, then down along a cosine."""
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    share = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done))
    return schedule.learning_rate * share


def prepare(seed: int) -> None:
    """Fix what makes a run repeatable: the threads and the random state."""
    torch.set_num_threads(THREADS)
    random.seed(seed)
    torch.manual_seed(seed)


def bf16_is_fast() -> bool:
    """Say whether this CPU multiplies bf16 in hardware; elsewhere float32 is quicker."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def _optimizers(model: Gemma3ForCausalLM, schedule: Schedule) -> tuple[Muon | AdamW, ...]:
    """Return Muon for the layers' whole matrices, and AdamW for all else.

    Muon needs about half the steps; on the thin matrices of an adapter it gains nothing.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    whole = [p for name, p in wanted.items() if name.endswith("_proj.weight")]
    others = [p for name, p in wanted.items() if not name.endswith("_proj.weight")]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    if not whole:
        return (adamw,)
    precision = torch.bfloat16 if bf16_is_fast() else torch.float32
    return Muon(whole, rate, decay, precision), adamw
