"""LoRA on a linear layer of the CPU build: two matrix products an adapter, not two a token.

It stands in for `PunicaWrapperCPU.add_lora_linear`. Rows are gathered once for all of a layer's
projections, and scattered back once: adding to scattered rows in place is what is slow on a CPU.

Rounding: vLLM multiplies by A in float32 and rounds to the output's dtype before it multiplies by
B. Here the first product is taken in that dtype, whose kernels sum in float32, so what B is given
is rounded as often.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from server.engine.order import Order, order_of_rows, order_of_runs


class Metadata(Protocol):
    """What a PunicaWrapper knows of its batch."""

    is_prefill: bool
    no_lora: bool

    @property
    def prefill_metadata(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
        """Starts, lengths and slots of runs; their number; the longest; the number of rows."""

    @property
    def token_lora_indices(self) -> torch.Tensor:
        """The slot of each row."""


def add_lora_linear(
    self: Metadata,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    *,
    buffer: tuple[torch.Tensor, ...] | None = None,  # noqa: ARG001
    **kwargs: Any,  # noqa: ARG001
) -> None:
    """Add `scale * x @ A.T @ B.T` to `y` in place, slice by slice of its columns.

    Shapes: y [..., >= sum(output_slices)], x [..., in], A [slots, 1, rank, in],
    B [slots, 1, out, rank].
    """
    if self.is_prefill and self.no_lora:
        return
    y, x = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]).to(y.dtype)
    order = _order(self)
    columns = y[:, : sum(output_slices)]
    if order.as_it_is:
        columns.add_(_deltas(x, lora_a_stacked, lora_b_stacked, scale, output_slices, order)[:-1])
    elif order.spans:
        gathered = x.index_select(0, order.rows)
        deltas = _deltas(gathered, lora_a_stacked, lora_b_stacked, scale, output_slices, order)
        columns.add_(deltas.index_select(0, order.back))


def _order(batch: Metadata) -> Order:
    if not batch.is_prefill:
        return order_of_rows(batch.token_lora_indices)
    _, lengths, slots, *_ = batch.prefill_metadata
    return order_of_runs(slots, lengths)


def _deltas(
    x: torch.Tensor,
    a: tuple[torch.Tensor, ...],
    b: tuple[torch.Tensor, ...],
    scale: float,
    widths: tuple[int, ...],
    order: Order,
) -> torch.Tensor:
    """Return what each of the sorted rows adds, and below them a row of zeros for all others."""
    deltas = x.new_empty(len(x) + 1, sum(widths))
    deltas[-1] = 0
    for span in order.spans:
        rows, start = x[span.start : span.end], 0
        for a_of, b_of, width in zip(a, b, widths, strict=True):
            low = rows @ a_of[span.slot, 0].to(x.dtype).T
            place = deltas[span.start : span.end, start : start + width]
            torch.mm(low.mul_(scale), b_of[span.slot, 0].to(x.dtype).T, out=place)
            start += width
    return deltas
