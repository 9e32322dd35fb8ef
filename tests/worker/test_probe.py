"""The distance by which golden probes judge."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.worker.probe import total_variation

logprobs = st.fixed_dictionaries({n: st.floats(-9999, 0) for n in range(4)})


@given(logprobs, logprobs)
def test_it_is_a_distance_between_distributions(
    one: dict[int, float], other: dict[int, float]
) -> None:
    distance = total_variation(one, other)
    assert 0 <= distance <= 1 + 1e-9
    assert distance == pytest.approx(total_variation(other, one))
    assert total_variation(one, one) == 0


@given(st.fixed_dictionaries({n: st.floats(-20, 0) for n in range(4)}), st.floats(-50, 0))
def test_mass_outside_the_listed_tokens_does_not_matter(
    one: dict[int, float], shift: float
) -> None:
    shifted = {token_id: value + shift for token_id, value in one.items()}
    assert total_variation(one, shifted) == pytest.approx(0, abs=1e-9)


def test_it_is_half_the_sum_of_the_differences() -> None:
    one = {1: math.log(0.7), 2: math.log(0.3)}
    other = {1: math.log(0.3), 2: math.log(0.7)}
    assert total_variation(one, other) == pytest.approx(0.4)
