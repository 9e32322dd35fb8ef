"""Restarts back off, and crash loops are told from single misfortunes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.supervisor.restart import Life, RestartPolicy

POLICY = RestartPolicy(jitter=0.0)


def lives(*ended: float, was_ready: bool = True) -> list[Life]:
    return [Life(at, was_ready, f"died at {at:g}") for at in ended]


def middle() -> float:
    return 0.5


def test_delays_double_up_to_the_longest() -> None:
    policy = RestartPolicy(jitter=0.0, exits_in_window=9, longest_delay_seconds=5.0)
    died = lives(10, 20, 30, 40)
    delays = [policy.after(died[:n], middle).delay_seconds for n in (1, 2, 3, 4)]
    assert delays == [1.0, 2.0, 4.0, 5.0]


def test_exits_before_readiness_in_a_row_are_a_crash_loop() -> None:
    then = POLICY.after(lives(1, 2, 3, was_ready=False), middle)
    assert then.failed
    assert then.delay_seconds == POLICY.failed_delay_seconds
    assert then.reason == "ended 3 times in a row before it was ready: died at 3"


def test_one_ready_life_between_breaks_the_row() -> None:
    died = [Life(1, False, ""), Life(2, True, ""), Life(3, False, "")]
    assert not POLICY.after(died, middle).failed


def test_many_exits_within_the_window_are_a_crash_loop() -> None:
    then = POLICY.after(lives(100, 200, 300, 350, 399), middle)
    assert then.failed
    assert "5 times within 300 s: died at 399" in then.reason


def test_exits_far_apart_are_single_misfortunes() -> None:
    then = POLICY.after(lives(0, 1000, 2000, 3000, 4000), middle)
    assert (then.failed, then.delay_seconds) == (False, 1.0)


def test_a_slow_start_fails_at_once_and_is_tried_again_seldom() -> None:
    then = POLICY.after([Life(300, False, "not ready after 300 s", slow=True)], middle)
    assert (then.failed, then.reason) == (True, "not ready after 300 s")


@given(
    ended=st.lists(st.floats(0, 1e6), min_size=1, max_size=8).map(sorted),
    was_ready=st.booleans(),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_never_a_spin_and_never_given_up(ended: list[float], was_ready: bool, draw: float) -> None:
    policy = RestartPolicy()
    then = policy.after(lives(*ended, was_ready=was_ready), lambda: draw)
    shortest = policy.first_delay_seconds * (1 - policy.jitter)
    longest = policy.failed_delay_seconds * (1 + policy.jitter)
    assert shortest <= then.delay_seconds <= longest
    assert then.reason
