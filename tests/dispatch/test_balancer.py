"""Which replica takes the next call."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.dispatch.balancer import choose


@dataclass(frozen=True)
class Busy:
    """A replica, as the balancer sees it."""

    name: str
    in_flight: int


def replicas(*in_flight: int) -> list[Busy]:
    return [Busy(f"r{n}", one) for n, one in enumerate(in_flight)]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers())
def test_nobody_is_less_busy_than_the_one_chosen(in_flight: list[int], seed: int) -> None:
    every = replicas(*in_flight)
    chosen = choose(every, Random(seed))
    assert chosen in every
    assert chosen.in_flight == min(in_flight)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers())
def test_the_same_lot_draws_the_same_replica(in_flight: list[int], seed: int) -> None:
    every = replicas(*in_flight)
    assert choose(every, Random(seed)) == choose(every, Random(seed))


def test_equals_are_drawn_evenly_and_the_busy_never() -> None:
    # Always taking the first would send every gateway's first call to the same replica.
    random = Random(7)
    drawn = Counter(choose(replicas(0, 3, 0, 0), random).name for _ in range(3000))
    assert set(drawn) == {"r0", "r2", "r3"}
    assert all(abs(count - 1000) < 4 * 26 for count in drawn.values())


def test_without_a_replica_there_is_no_choice() -> None:
    with pytest.raises(ValueError, match="empty"):
        choose([], Random(0))
