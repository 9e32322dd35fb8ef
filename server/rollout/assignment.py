"""Which variant answers: sticky by subject, in proportion to the weights. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Arm(Protocol):
    """Anything with a name and a weight in per cent."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> int: ...


A = TypeVar("A", bound=Arm)


def choose(task: str, arms: Sequence[A], subject: str) -> A:
    """Return the arm of `subject`: the same one every time, in every gateway process.

    `arms` begins with the one that takes the rest; weights sum to 100. The others own the low
    end of the hash, in order, so a growing canary keeps the subjects that it has.
    """
    digest = hashlib.blake2b(f"{task}\0{subject}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest) / 2**64 * 100
    for arm in arms[1:]:
        if point < arm.weight:
            return arm
        point -= arm.weight
    return arms[0]
