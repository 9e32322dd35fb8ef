"""Golden probes: prompts whose answers are known, which prove that a specialist is loaded.

An adapter whose module names do not match gives the base model's output without a word (vLLM
#34186). So nothing is believed by its name: before a replica gets a specialist's traffic, it must
answer the probes of the specialist's card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from server.errors import DeadlineExceeded, RequestError, WorkerUnreachable
from server.specialist import SpecialistCard
from server.types import Completion, Input, Prompt, ScoreTokens
from server.worker.client import WorkerClient
from server.worker.standing import Down, Event, Missed, Proved, Refused

MAX_TOTAL_VARIATION = 0.1
"""How far a probe's answer may lie from the card's: half the sum of |p - q| over its tokens.

Two machines that compute the same checkpoint in bf16 differ by a few hundredths at most; an
adapter that is not applied differs by several tenths, or its probes are badly chosen.
"""
PROOF_TIMEOUT_SECONDS = 30.0
"""For one call of a proof: the first one after a start may have to warm the engine up."""


@dataclass(frozen=True, slots=True)
class GoldenProbe:
    """A prompt and the natural-log probabilities of its next token, over some tokens."""

    prompt: Prompt
    expected: Mapping[int, float]


def golden_probes(
    card: SpecialistCard, encode: Callable[[Input], Prompt]
) -> tuple[GoldenProbe, ...]:
    """Return a card's probes, their inputs encoded as the specialist's prompts are."""
    return tuple(GoldenProbe(encode(golden.input), golden.logprobs) for golden in card.golden)


def total_variation(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Return the distance (0 to 1) of two distributions, given as natural-log probabilities.

    Each is renormalised over its own tokens first; both list the same ones.
    """
    p, q = _normalised(one), _normalised(other)
    return sum(abs(p[token_id] - q[token_id]) for token_id in p) / 2


def _normalised(logprobs: Mapping[int, float]) -> dict[int, float]:
    top = max(logprobs.values())
    weights = {token_id: math.exp(value - top) for token_id, value in logprobs.items()}
    total = sum(weights.values())
    return {token_id: weight / total for token_id, weight in weights.items()}


async def prove(
    client: WorkerClient,
    url: str,
    specialist: str,
    probes: Sequence[GoldenProbe],
    *,
    base: str | None,
) -> Event:
    """Ask the replica at `url` every probe of `specialist` and return what that showed.

    `base` is the name of the model under the adapters, if the replica serves it by one: with it,
    a failing adapter that answers like its base is named as such.
    """
    try:
        for number, probe in enumerate(probes, start=1):
            answer = await _ask(client, url, specialist, probe)
            distance = total_variation(answer, probe.expected)
            if distance > MAX_TOTAL_VARIATION:
                reason = (
                    f"its answer lies {distance:.2f} (total variation; at most "
                    f"{MAX_TOTAL_VARIATION} is noise) from the card's golden probe {number}"
                )
                if base is not None and base != specialist:
                    of_base = await _ask(client, url, base, probe)
                    reason += _likeness(total_variation(answer, of_base), base)
                return Refused(specialist, reason)
    except WorkerUnreachable as error:
        return Down(error.message)
    except DeadlineExceeded:
        return Missed()
    except RequestError as error:
        return Refused(specialist, f"its golden probes fail: {error.message}")
    return Proved(specialist)


async def _ask(
    client: WorkerClient, url: str, model: str, probe: GoldenProbe
) -> Mapping[int, float]:
    completions: tuple[Completion, ...] = await client.complete(
        url,
        model,
        [probe.prompt],
        ScoreTokens(tuple(sorted(probe.expected))),
        timeout_seconds=PROOF_TIMEOUT_SECONDS,
    )
    return completions[0].steps[0].logprobs


def _likeness(distance: float, base: str) -> str:
    if distance <= MAX_TOTAL_VARIATION:
        return (
            f"; it answers like its base {base!r} ({distance:.2f} apart): the adapter is not "
            "applied; do its module names match the base's?"
        )
    return f"; it is not its base {base!r} either ({distance:.2f} apart): is it another build?"
