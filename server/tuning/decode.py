"""Asking a model in memory what the engine will be asked: label logits, or text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM

from server.specialist import Sampling
from server.tuning.dataset import Row, in_order
from server.tuning.objectives import last_logits
from server.tuning.progress import Progress, silent
from server.tuning.tokenizer import END_OF_TURN, PAD, control_id

READ_TOKENS = 8192
WRITE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Written:
    """One generated text."""

    text: str
    ended: bool
    """Whether the model ended its turn within its budget of tokens."""


@torch.inference_mode()  # type: ignore[untyped-decorator]
def next_logits(model: Gemma3ForCausalLM, rows: Sequence[Row]) -> torch.Tensor:
    """Return the logits after each row over the vocabulary: (rows, vocabulary), float32."""
    logits = torch.empty((len(rows), model.config.vocab_size))
    for positions, batch in in_order(rows, READ_TOKENS):
        logits[positions] = last_logits(model, batch)
    return logits


def write(
    model: Gemma3ForCausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    *,
    seed: int = 0,
    stage: str = "write",
    progress: Progress = silent,
) -> list[Written]:
    """Return what the model writes after each prompt, decoded as `sampling` says."""
    torch.manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: dict[int, Written] = {}
    progress(stage, 0, len(order))
    for start in range(0, len(order), WRITE_ROWS):
        chosen = order[start : start + WRITE_ROWS]
        written = _write_batch(model, tokenizer, [prompts[i] for i in chosen], sampling)
        texts.update(zip(chosen, written, strict=True))
        progress(stage, len(texts), len(order))
    return [texts[i] for i in range(len(prompts))]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _write_batch(
    model: Gemma3ForCausalLM,
    tokenizer: Tokenizer,
    prompts: list[tuple[int, ...]],
    sampling: Sampling,
) -> list[Written]:
    end, filler = control_id(tokenizer, END_OF_TURN), control_id(tokenizer, PAD)
    longest = max(len(prompt) for prompt in prompts)
    # Padded on the left, so that every row goes on from its own last token.
    ids = torch.full((len(prompts), longest), filler)
    read = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        read[i, longest - len(prompt) :] = 1
    how: dict[str, object] = {"do_sample": False}
    if sampling.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    output = model.generate(
        input_ids=ids,
        attention_mask=read,
        max_new_tokens=sampling.max_tokens,
        repetition_penalty=sampling.repetition_penalty,
        use_cache=True,
        **how,
    )
    return [_cut(line, tokenizer, end) for line in output[:, longest:].tolist()]


def _cut(ids: list[int], tokenizer: Tokenizer, end: int) -> Written:
    ended = end in ids
    return Written(tokenizer.decode(ids[: ids.index(end)] if ended else ids), ended)
