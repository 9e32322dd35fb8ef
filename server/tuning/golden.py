"""Golden probes: inputs whose first token tells a loaded specialist from its bare base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Gemma3ForCausalLM

from server.specialist import Golden
from server.tuning.dataset import Row
from server.tuning.decode import next_logits
from server.types import Input

LEAST_DISTANCE = 0.2
"""Total variation distance below which a probe would prove nothing."""

TOP = 5
PROBES = 4


class IndistinctError(Exception):
    """Too few inputs on which a specialist answers otherwise than its base."""


def golden_probes(
    model: Gemma3ForCausalLM,
    base: Gemma3ForCausalLM | None,
    inputs: Sequence[Input],
    prompts: Sequence[Row],
    label_ids: Sequence[int],
    least: int = 3,
) -> tuple[Golden, ...]:
    """Return up to four probes, those first that differ most from `base`.

    The tokens listed are the label tokens and the likeliest one of the base, or the likeliest
    ones of both models for a specialist that writes. Without a base there is nothing to differ
    from, and the first inputs are taken.

    Raises:
        IndistinctError: fewer than `least` inputs lie `LEAST_DISTANCE` from the base.
    """
    mine = next_logits(model, prompts).log_softmax(-1)
    if base is None:
        return tuple(
            _golden(value, line, label_ids or _top(line))
            for value, line in list(zip(inputs, mine, strict=True))[:PROBES]
        )
    found = []
    theirs = next_logits(base, prompts).log_softmax(-1)
    for value, own, other in zip(inputs, mine, theirs, strict=True):
        ids = sorted({*(label_ids or _top(own)), *_top(other, 1 if label_ids else TOP)})
        distance = total_variation(own[ids], other[ids])
        if distance >= LEAST_DISTANCE:
            found.append((distance, _golden(value, own, ids)))
    if len(found) < least:
        raise IndistinctError(
            f"only {len(found)} of {len(inputs)} inputs tell the specialist from its base"
        )
    found.sort(key=lambda pair: -pair[0])
    return tuple(golden for _, golden in found[:PROBES])


def total_variation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return half the sum of absolute differences of two renormalised distributions."""
    return 0.5 * float((one.softmax(-1) - other.softmax(-1)).abs().sum())


def _top(logprobs: torch.Tensor, count: int = TOP) -> list[int]:
    return sorted(logprobs.topk(count).indices.tolist())


def _golden(value: Input, logprobs: torch.Tensor, ids: Sequence[int]) -> Golden:
    kept = {i: round(logprobs[i].item(), 4) for i in ids}
    return Golden(input=value if isinstance(value, str) else dict(value), logprobs=kept)
