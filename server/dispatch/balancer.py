"""Which replica takes the next call. Pure: a snapshot and a random source in, a choice out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol, TypeVar


class Loaded(Protocol):
    """Anything with prompts in flight."""

    @property
    def in_flight(self) -> int: ...


R = TypeVar("R", bound=Loaded)


def choose(replicas: Sequence[R], random: Random) -> R:
    """Return a replica with the fewest prompts in flight; equals are drawn by lot."""
    fewest = min(replica.in_flight for replica in replicas)
    return random.choice([replica for replica in replicas if replica.in_flight == fewest])
