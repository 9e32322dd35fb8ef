"""Who answers a subject: always the same variant, and each variant its share of the subjects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rollout.assignment import choose

SUBJECTS = [f"subject-{n}" for n in range(20_000)]
FEWER = SUBJECTS[:3000]


@dataclass(frozen=True)
class Arm:
    """A variant by name and weight."""

    name: str
    weight: int


def arms(*weights: int) -> list[Arm]:
    """Return stable, which takes the rest, and one arm for each weight."""
    names = [f"arm-{n}" for n in range(len(weights))]
    others = [Arm(name, weight) for name, weight in zip(names, weights, strict=True)]
    return [Arm("stable", 100 - sum(weights)), *others]


@given(st.text(), st.lists(st.integers(0, 25), max_size=4))
def test_a_subject_always_falls_to_the_same_variant(subject: str, weights: list[int]) -> None:
    first = choose("colour", arms(*weights), subject)
    assert choose("colour", arms(*weights), subject) == first
    assert first.weight > 0, "who takes nothing is never chosen"


def test_subjects_fall_where_they_fell_in_every_earlier_release() -> None:
    # Another hash would move every subject to another variant amid a rollout.
    fallen = [choose("colour", arms(50), f"s{n}").name == "arm-0" for n in range(12)]
    assert "".join("01"[one] for one in fallen) == "011001110010"


@pytest.mark.parametrize("weights", [(5,), (1,), (50,), (10, 20, 30), (33, 67)])
def test_each_variant_gets_its_share(weights: tuple[int, ...]) -> None:
    every = arms(*weights)
    counts = Counter(choose("colour", every, subject).name for subject in SUBJECTS)
    for arm in every:
        share = arm.weight / 100
        spread = sqrt(share * (1 - share) * len(SUBJECTS))
        assert abs(counts[arm.name] - share * len(SUBJECTS)) <= 4 * spread


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_growing_canary_keeps_the_subjects_that_it_has(one: int, other: int) -> None:
    less, more = sorted((one, other))
    for subject in FEWER[:300]:
        if choose("colour", arms(less), subject).name == "arm-0":
            assert choose("colour", arms(more), subject).name == "arm-0"


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_the_last_canary_may_grow_without_moving_anyone_elses_subjects(
    first: int, second: int, grown: int
) -> None:
    for subject in FEWER[:300]:
        before = choose("colour", arms(first, second), subject).name
        after = choose("colour", arms(first, max(second, grown)), subject).name
        assert after == before or (before, after) == ("stable", "arm-1")


def test_weight_nought_gets_nobody_and_a_hundred_everybody() -> None:
    assert {choose("colour", arms(0), subject).name for subject in FEWER} == {"stable"}
    assert {choose("colour", arms(100), subject).name for subject in FEWER} == {"arm-0"}
    assert {choose("colour", arms(0, 100), subject).name for subject in FEWER} == {"arm-1"}


def test_a_task_without_variants_answers_itself() -> None:
    assert {choose("colour", arms(), subject).name for subject in FEWER} == {"stable"}


def test_the_canaries_of_two_tasks_fall_to_different_subjects() -> None:
    of_colour = {s for s in SUBJECTS if choose("colour", arms(20), s).name == "arm-0"}
    of_story = {s for s in SUBJECTS if choose("story", arms(20), s).name == "arm-0"}
    both = len(of_colour & of_story)
    assert abs(both - 0.04 * len(SUBJECTS)) <= 4 * sqrt(0.04 * 0.96 * len(SUBJECTS))


def test_a_task_and_a_subject_do_not_run_together() -> None:
    halves = [(choose("a", arms(50), f"b{s}").name, choose("ab", arms(50), s).name) for s in FEWER]
    assert any(one != other for one, other in halves)
