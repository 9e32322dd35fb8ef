"""The rows of a batch, sorted by the adapter that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

NO_ADAPTER = -1


@dataclass(frozen=True, slots=True)
class Span:
    """The sorted rows from `start` to `end`, which belong to the adapter in `slot`."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Order:
    """How rows are gathered so that each adapter's are neighbours, and how they go back."""

    rows: torch.Tensor
    """The batch's rows that have an adapter, sorted by it."""
    spans: tuple[Span, ...]
    back: torch.Tensor
    """Where each row of the batch stands among `rows`; `len(rows)` for one without an adapter."""
    as_it_is: bool
    """Every row has an adapter and stands in its place: nothing need be gathered."""


def order_of_rows(slots: torch.Tensor) -> Order:
    """Return the order of a batch whose rows each name their adapter."""
    return order_of_runs(*torch.unique_consecutive(slots, return_counts=True))


def order_of_runs(slots: torch.Tensor, lengths: torch.Tensor) -> Order:
    """Return the order of a batch in which runs of rows share an adapter."""
    return _order(tuple(slots.tolist()), tuple(lengths.tolist()))


# Every layer asks again about the same batch.
@lru_cache(maxsize=8)
def _order(slots: tuple[int, ...], lengths: tuple[int, ...]) -> Order:
    runs: dict[int, list[torch.Tensor]] = {}
    total = 0
    for slot, length in zip(slots, lengths, strict=True):
        if slot != NO_ADAPTER and length:
            runs.setdefault(slot, []).append(torch.arange(total, total + length))
        total += length
    spans, start = [], 0
    for slot, pieces in runs.items():
        end = start + sum(map(len, pieces))
        spans.append(Span(slot, start, end))
        start = end
    gathered = [piece for pieces in runs.values() for piece in pieces]
    rows = torch.cat(gathered) if gathered else torch.empty(0, dtype=torch.long)
    back = torch.full((total,), len(rows))
    back[rows] = torch.arange(len(rows))
    return Order(rows, tuple(spans), back, torch.equal(rows, torch.arange(total)))
