"""The books of one replica: every dollar goes to a request in flight, or to idleness.

A replica costs `dollars_per_hour` whether it works or not. While requests are in flight, its
rate is shared among them by weight; while none is, it is booked as idle. So the requests' costs
and the idle cost add up to the bill.

One event costs O(1) by virtual time, as in fair queueing (Demers, Keshav and Shenker, 1989): the
virtual clock advances at `rate / total weight`, and a request that was in flight from virtual
time a to b owes `weight * (b - a)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A request in flight: its weight, and the virtual time when it came."""

    weight: float
    since: float


@dataclass(slots=True)
class Charge:
    """What a call cost, known when it has ended."""

    dollars: float = 0.0


class ReplicaBook:
    """Shares one replica's price among what it works on; times are seconds on a steady clock."""

    def __init__(self, dollars_per_hour: float, now: float) -> None:
        self._rate = dollars_per_hour / 3600
        self._now = now
        self._weight = 0.0
        self._entries = 0
        self._virtual = 0.0
        self._idle_dollars = 0.0

    def open(self, weight: float, now: float) -> Entry:
        """Begin to charge a request; `weight` is its tokens and greater than 0."""
        self._advance(now)
        self._weight += weight
        self._entries += 1
        return Entry(weight, self._virtual)

    def close(self, entry: Entry, now: float) -> float:
        """End a request, answered or not, and return what it cost in dollars."""
        self._advance(now)
        dollars = entry.weight * (self._virtual - entry.since)
        self._entries -= 1
        if self._entries:
            self._weight -= entry.weight
        else:
            # Start afresh while nobody is owed anything, so that rounding never adds up.
            self._weight = self._virtual = 0.0
        return dollars

    def take_idle(self, now: float) -> float:
        """Return the idle dollars since the last call of this."""
        self._advance(now)
        dollars, self._idle_dollars = self._idle_dollars, 0.0
        return dollars

    def _advance(self, now: float) -> None:
        dollars = self._rate * max(0.0, now - self._now)
        self._now = max(self._now, now)
        if self._entries:
            self._virtual += dollars / self._weight
        else:
            self._idle_dollars += dollars


class Books:
    """The books of every replica that this gateway has seen, by worker and replica name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._books: dict[tuple[str, str], ReplicaBook] = {}

    def begin(self, worker: str, replica: str, dollars_per_hour: float) -> None:
        """Start to keep a replica's book, unless that is done already."""
        key = (worker, replica)
        if key not in self._books:
            self._books[key] = ReplicaBook(dollars_per_hour, self._clock())

    @contextmanager
    def charge(self, worker: str, replica: str, weight: float) -> Iterator[Charge]:
        """Charge the replica's time to one call for as long as the block runs."""
        book = self._books[worker, replica]
        entry = book.open(weight, self._clock())
        charge = Charge()
        try:
            yield charge
        finally:
            charge.dollars = book.close(entry, self._clock())

    def take_idle(self) -> Iterator[tuple[str, float]]:
        """Yield each worker and its idle dollars since the last call of this."""
        for (worker, _), book in self._books.items():
            yield worker, book.take_idle(self._clock())

    def end(self, worker: str, replica: str) -> float:
        """Close the book of a replica that is gone and return its last idle dollars."""
        book = self._books.pop((worker, replica), None)
        return book.take_idle(self._clock()) if book else 0.0
