"""The replica's state machine, as properties over any course of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.worker.standing import (
    FIRST_RETRY_SECONDS,
    LAST_RETRY_SECONDS,
    MISSES_TO_LEAVE,
    Down,
    Event,
    Healthy,
    Missed,
    Proved,
    Refused,
    ReplicaState,
    Standing,
    due,
    retry_delay_seconds,
    transition,
)

WANTED = frozenset({"a@1", "b@2", "c@3"})

specialists = st.sampled_from([*sorted(WANTED), "stranger@9"])
events: st.SearchStrategy[Event] = st.one_of(
    st.just(Healthy()),
    st.just(Missed()),
    st.builds(Down, st.just("connection refused")),
    st.builds(Proved, specialists),
    st.builds(Refused, specialists, st.just("another answer")),
)
courses = st.lists(st.tuples(events, st.floats(0, 100)), max_size=40)


def play(course: list[tuple[Event, float]]) -> tuple[Standing, float]:
    """Return the standing after a course of events, each so many seconds after the one before."""
    standing, now = Standing(WANTED), 0.0
    for event, seconds in course:
        now += seconds
        standing = transition(standing, event, now)
    return standing, now


def after(*course: Event) -> Standing:
    return play([(event, 0.0) for event in course])[0]


@given(courses)
def test_state_follows_from_what_is_proven_and_refused(course: list[tuple[Event, float]]) -> None:
    standing, now = play(course)
    settled = standing.proven | standing.refused.keys()
    assert not standing.proven & standing.refused.keys()
    assert settled <= WANTED
    match standing.state:
        case ReplicaState.UNREACHABLE:
            assert not settled
            assert due(standing, now) == ()
        case ReplicaState.PROBING:
            assert settled < WANTED
            assert due(standing, now)
        case ReplicaState.READY:
            assert standing.proven == WANTED
        case ReplicaState.DEGRADED:
            assert settled == WANTED
            assert standing.refused
    assert standing.reason or standing.state is ReplicaState.READY
    assert standing.misses < MISSES_TO_LEAVE


@given(courses)
def test_a_replica_that_was_down_proves_everything_anew(course: list[tuple[Event, float]]) -> None:
    standing, now = play([*course, (Down("gone"), 0.0), (Healthy(), 0.0)])
    assert standing.state is ReplicaState.PROBING
    assert set(due(standing, now)) == WANTED


@given(courses, specialists)
def test_a_proof_from_before_it_went_down_comes_too_late(
    course: list[tuple[Event, float]], specialist: str
) -> None:
    down, now = play([*course, (Down("gone"), 0.0)])
    assert transition(down, Proved(specialist), now) == down


@given(courses)
def test_only_a_third_miss_in_a_row_takes_it_out(course: list[tuple[Event, float]]) -> None:
    up, now = play([*course, (Healthy(), 0.0)])
    once = transition(up, Missed(), now)
    twice = transition(once, Missed(), now)
    assert once.state is twice.state is up.state
    assert transition(twice, Healthy(), now) == up
    assert transition(twice, Missed(), now).state is ReplicaState.UNREACHABLE


def test_refusals_are_tried_again_ever_more_rarely() -> None:
    delays = [retry_delay_seconds(attempts) for attempts in range(1, 60)]
    assert delays[0] == FIRST_RETRY_SECONDS
    assert delays == sorted(delays)
    assert delays[-1] == LAST_RETRY_SECONDS


def test_a_refused_specialist_is_due_after_its_delay_and_not_before() -> None:
    standing = after(Healthy(), Proved("a@1"), Proved("b@2"), Refused("c@3", "another answer"))
    assert standing.state is ReplicaState.DEGRADED
    assert due(standing, FIRST_RETRY_SECONDS - 0.1) == ()
    assert due(standing, FIRST_RETRY_SECONDS) == ("c@3",)
    assert transition(standing, Proved("c@3"), 9.0).state is ReplicaState.READY


def test_a_worker_without_specialists_is_ready_when_it_is_up() -> None:
    standing = transition(Standing(frozenset()), Healthy(), 0.0)
    assert standing.state is ReplicaState.READY
