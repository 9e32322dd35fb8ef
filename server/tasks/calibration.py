"""From the engine's log-probabilities to scores that mean what they say. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from server.types import Step

# What the engine reports for a token that its mask forbids may be -inf: that is a logit of "no".
_FLOOR = -1e4


def softmax(logprobs: Sequence[float], temperature: float) -> list[float]:
    """Return softmax(logprobs / temperature), which sums to 1.

    Log-probabilities over the whole vocabulary are logits up to a constant, so this renormalises
    over the given ones. Temperature scaling: Guo et al., "On Calibration of Modern Neural
    Networks", 2017, section 4.2.
    """
    scaled = [max(value, _FLOOR) / temperature for value in logprobs]
    highest = max(scaled)
    weights = [math.exp(value - highest) for value in scaled]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def sigmoid_against(logprob: float, reference: float, temperature: float) -> float:
    """Return sigmoid((logprob - reference) / temperature): one label against "none of them"."""
    logit = (max(logprob, _FLOOR) - max(reference, _FLOOR)) / temperature
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def choice_logprobs(
    choices: Sequence[str], steps: Sequence[Step], decode: Callable[[Sequence[int]], str]
) -> list[float]:
    """Return the log-probability of each choice (natural log) from one constrained generation.

    `steps` are the tokens generated under a mask that allows only the choices, each with the
    log-probabilities, after the mask, of the likeliest tokens there. Walking along the generated
    text, a token not taken gives its mass to the choices that begin so. That is exact for the
    choice generated and for every other one told apart by a token in view; choices that share a
    branch not taken share its mass evenly, since nobody looked inside. A choice that was never
    in view has -inf. No choice may begin another one.
    """
    mass = dict.fromkeys(choices, 0.0)
    ahead = 1.0
    taken: list[int] = []
    for step in steps:
        for token_id, logprob in step.logprobs.items():
            if token_id == step.token_id:
                continue
            branch = _readable(decode([*taken, token_id]))
            reached = [choice for choice in choices if choice.startswith(branch)]
            for choice in reached:
                mass[choice] += ahead * math.exp(logprob) / len(reached)
        ahead *= math.exp(step.logprobs.get(step.token_id, 0.0))
        taken.append(step.token_id)
    said = _readable(decode(taken))
    for choice in choices:
        if said.startswith(choice):
            mass[choice] += ahead
    return [math.log(mass[choice]) if mass[choice] > 0 else -math.inf for choice in choices]


def _readable(text: str) -> str:
    # A token can end inside a character; decoders show the torn bytes as U+FFFD.
    return text.rstrip("\ufffd")


def by_label(labels: Sequence[str], values: Sequence[float]) -> Mapping[str, float]:
    """Return the values under their labels, in the card's order."""
    return dict(zip(labels, values, strict=True))
