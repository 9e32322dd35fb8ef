"""How a replica stands: a pure state machine over what its probes found.

    UNREACHABLE --healthy--> PROBING --every specialist settled--> READY | DEGRADED
         ^                      |                                        |
         +------- down, or the third health probe missed in a row -------+

A specialist is *proven* (its probes passed), *refused* (they did not; tried again later) or
neither yet. Going down forgets both: whatever comes back up is a new process until it has proven
otherwise. Events that come too late, from before the replica went down, change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

MISSES_TO_LEAVE = 3
"""Health probes without an answer in a row until a replica is out: a busy one misses some."""
FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0


class ReplicaState(StrEnum):
    """What the pool thinks of a replica."""

    UNREACHABLE = "unreachable"
    PROBING = "probing"
    READY = "ready"
    DEGRADED = "degraded"
    """Up, but some specialist is refused there."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a specialist is not served by a replica, and when it is tried again."""

    reason: str
    attempts: int
    retry_at: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one replica; `wanted` are the specialists that it must prove."""

    wanted: frozenset[str]
    state: ReplicaState = ReplicaState.UNREACHABLE
    reason: str = "not probed yet"
    misses: int = 0
    proven: frozenset[str] = frozenset()
    refused: Mapping[str, Refusal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Healthy:
    """The replica answered its health probe."""


@dataclass(frozen=True, slots=True)
class Missed:
    """The health probe had no answer in time."""


@dataclass(frozen=True, slots=True)
class Down:
    """The replica cannot be reached, or says itself that it cannot serve."""

    reason: str


@dataclass(frozen=True, slots=True)
class Proved:
    """A specialist passed its probes."""

    specialist: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A specialist failed its probes, or the replica does not know its name."""

    specialist: str
    reason: str


Event: TypeAlias = Healthy | Missed | Down | Proved | Refused


def transition(standing: Standing, event: Event, now: float) -> Standing:
    """Return how the replica stands after `event`."""
    down = standing.state is ReplicaState.UNREACHABLE
    match event:
        case Down(reason):
            return Standing(standing.wanted, reason=reason)
        case Missed() if down:
            return replace(standing, reason="its health probe has no answer")
        case Missed():
            misses = standing.misses + 1
            if misses >= MISSES_TO_LEAVE:
                return Standing(
                    standing.wanted, reason=f"{misses} health probes in a row had no answer"
                )
            return replace(standing, misses=misses)
        case Healthy() if down:
            return _settled(Standing(standing.wanted, state=ReplicaState.PROBING))
        case Healthy():
            return replace(standing, misses=0)
        case _ if down or event.specialist not in standing.wanted:
            return standing
        case Proved(specialist):
            refused = {k: v for k, v in standing.refused.items() if k != specialist}
            proven = standing.proven | {specialist}
            return _settled(replace(standing, proven=proven, refused=refused))
        case Refused(specialist, reason):
            earlier = standing.refused.get(specialist)
            attempts = earlier.attempts + 1 if earlier else 1
            refusal = Refusal(reason, attempts, now + retry_delay_seconds(attempts))
            return _settled(
                replace(
                    standing,
                    proven=standing.proven - {specialist},
                    refused={**standing.refused, specialist: refusal},
                )
            )


def due(standing: Standing, now: float) -> tuple[str, ...]:
    """Return the specialists that the replica should prove now."""
    if standing.state is ReplicaState.UNREACHABLE:
        return ()
    new = standing.wanted - standing.proven - standing.refused.keys()
    again = {name for name, refusal in standing.refused.items() if refusal.retry_at <= now}
    return tuple(sorted(new | again))


def retry_delay_seconds(attempts: int) -> float:
    """Return how long after its n-th refusal a specialist is tried again."""
    return float(min(FIRST_RETRY_SECONDS * 2 ** min(attempts - 1, 30), LAST_RETRY_SECONDS))


def _settled(standing: Standing) -> Standing:
    if standing.wanted - standing.proven - standing.refused.keys():
        return replace(standing, state=ReplicaState.PROBING, reason="proving its specialists")
    if standing.refused:
        named = ", ".join(sorted(standing.refused))
        return replace(standing, state=ReplicaState.DEGRADED, reason=f"refused: {named}")
    return replace(standing, state=ReplicaState.READY, reason="")
