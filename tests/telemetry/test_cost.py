"""The books balance: what requests pay and what idles is the bill, whatever happens in between."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.telemetry.cost import Books, Entry, ReplicaBook

HOUR = 3600.0
weights = st.one_of(
    st.integers(1, 10_000).map(float), st.floats(1, 10_000, allow_nan=False, allow_infinity=False)
)
waits = st.one_of(st.just(0.0), st.floats(1e-4, 500))
events = st.lists(
    st.tuples(waits, st.sampled_from(["open", "open", "close", "idle"]), weights, st.integers(0)),
    max_size=60,
)
prices = st.floats(0.01, 100)


@given(prices, events, st.floats(0, 1e6))
def test_requests_and_idleness_together_pay_the_bill(
    price: float, events: list[tuple[float, str, float, int]], start: float
) -> None:
    now = start
    book = ReplicaBook(price, now)
    entries: list[Entry] = []
    paid: list[float] = []
    for wait, event, weight, pick in events:
        now += wait
        if event == "open":
            entries.append(book.open(weight, now))
        elif event == "idle":
            paid.append(book.take_idle(now))
        elif entries:
            paid.append(book.close(entries.pop(pick % len(entries)), now))
    paid += [book.close(entry, now) for entry in entries]
    paid.append(book.take_idle(now))
    assert all(one >= 0 for one in paid)
    assert math.fsum(paid) == pytest.approx(price * (now - start) / HOUR, rel=1e-9, abs=1e-15)


@given(prices, weights, weights, st.floats(0.1, 100))
def test_two_requests_at_once_share_by_weight(
    price: float, one: float, other: float, seconds: float
) -> None:
    book = ReplicaBook(price, 0)
    first, second = book.open(one, 0), book.open(other, 0)
    shares = book.close(first, seconds), book.close(second, seconds)
    assert shares[0] / shares[1] == pytest.approx(one / other)


def test_a_request_pays_its_own_share_of_every_stretch() -> None:
    book = ReplicaBook(HOUR, 0)  # a dollar a second
    long = book.open(1, 10)  # idle till 10
    short = book.open(3, 14)  # alone till 14
    assert book.close(short, 18) == pytest.approx(3)  # 3/4 of four seconds
    assert book.close(long, 20) == pytest.approx(4 + 1 + 2)
    assert book.take_idle(25) == pytest.approx(10 + 5)
    assert book.take_idle(25) == 0


def test_a_request_that_took_no_time_costs_nothing() -> None:
    book = ReplicaBook(HOUR, 5)
    assert book.close(book.open(7, 5), 5) == 0


def test_a_clock_that_steps_back_charges_nobody_twice() -> None:
    book = ReplicaBook(HOUR, 10)
    entry = book.open(1, 12)
    assert book.take_idle(11) == pytest.approx(2)
    assert book.close(entry, 13) == pytest.approx(1)
    assert book.take_idle(13) == 0


def test_rounding_does_not_add_up_over_many_requests() -> None:
    book = ReplicaBook(HOUR, 0)
    for n in range(20_000):
        entry = book.open(0.1, n)
        assert book.close(entry, n + 0.5) == pytest.approx(0.5, rel=1e-12)
    assert book.take_idle(20_000) == pytest.approx(10_000, rel=1e-9)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def books(clock: Callable[[], float]) -> Books:
    """Keep the book of one replica that costs a dollar a second."""
    books = Books(clock)
    books.begin("base", "one", HOUR)
    return books


def idle(books: Books) -> dict[str, float]:
    """Return the idle dollars by worker, rounded to what is no accident of floats."""
    return {worker: round(dollars, 9) for worker, dollars in books.take_idle()}


def test_a_call_is_charged_for_as_long_as_it_runs(books: Books, clock: Clock) -> None:
    clock.now = 3
    with books.charge("base", "one", 10) as charge:
        clock.now = 5
        assert charge.dollars == 0, "what it costs is known when it has ended"
    assert charge.dollars == pytest.approx(2)
    assert idle(books) == {"base": 3}


def test_a_call_that_fails_is_charged_all_the_same(books: Books, clock: Clock) -> None:
    with contextlib.suppress(TimeoutError), books.charge("base", "one", 10) as charge:
        clock.now = 4
        raise TimeoutError
    assert charge.dollars == pytest.approx(4)


def test_a_replica_that_is_seen_again_keeps_its_book(books: Books, clock: Clock) -> None:
    clock.now = 6
    books.begin("base", "one", 99 * HOUR)
    clock.now = 7
    assert idle(books) == {"base": 7}


def test_replicas_have_books_of_their_own(books: Books, clock: Clock) -> None:
    books.begin("base", "two", 2 * HOUR)
    with books.charge("base", "one", 1) as charge:
        clock.now = 5
    assert charge.dollars == pytest.approx(5)
    assert [dollars for _, dollars in books.take_idle()] == pytest.approx([0, 10])


def test_a_replica_that_is_gone_leaves_its_last_idle_dollars(books: Books, clock: Clock) -> None:
    clock.now = 9
    assert books.end("base", "one") == pytest.approx(9)
    assert books.end("base", "one") == 0
    assert idle(books) == {}


def test_a_call_on_a_replica_that_is_gone_is_charged_to_its_end(books: Books, clock: Clock) -> None:
    with books.charge("base", "one", 1) as charge:
        clock.now = 2
        assert books.end("base", "one") == 0
        clock.now = 3
    assert charge.dollars == pytest.approx(3)
