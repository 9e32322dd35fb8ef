"""The grouped operators equal vLLM's wherever those are right, and leave the rest alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import operators
from server.engine.order import NO_ADAPTER

stock = pytest.importorskip("vllm.lora.ops.torch_ops")

SLOTS = 3


@dataclass(frozen=True)
class Batch:
    """One call's tensors; `slots` names the adapter of each row, -1 for none."""

    slots: list[int]
    inputs: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    output: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        return torch.tensor(self.slots, dtype=torch.long)

    @property
    def bare(self) -> torch.Tensor:
        """Which rows have no adapter."""
        return self.rows == NO_ADAPTER

    @property
    def runs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
        """What vLLM hands to the sgmv operators between their tensors and their scalars."""
        slots, lengths = torch.unique_consecutive(self.rows, return_counts=True)
        starts = torch.cumsum(lengths, 0) - lengths
        longest = int(lengths.max()) if len(lengths) else 0
        return starts, lengths, slots, len(slots), longest, len(self.slots)


@st.composite
def batches(draw: st.DrawFn, lowest_slot: int = NO_ADAPTER, min_rows: int = 0) -> Batch:
    """Draw a batch in bfloat16 with a float32 buffer, as vLLM calls the operators."""
    slots = draw(st.lists(st.integers(lowest_slot, SLOTS - 1), min_size=min_rows, max_size=12))
    width, rank, out = (draw(st.integers(1, 9)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    flat = draw(st.booleans())
    return Batch(
        slots,
        tensor(len(slots), width),
        tensor(SLOTS, rank, width) if flat else tensor(SLOTS, 1, rank, width),
        tensor(SLOTS, out, rank) if flat else tensor(SLOTS, 1, out, rank),
        tensor(len(slots), out + draw(st.integers(0, 2))),
    )


class Untouched:
    """Operators that do nothing at all."""

    bgmv_shrink = sgmv_shrink = staticmethod(lambda *_: None)
    bgmv_expand = sgmv_expand = bgmv_expand_slice = sgmv_expand_slice = bgmv_shrink


Call = Callable[[Any, Batch], torch.Tensor]


def shrunk(module: Any, batch: Batch, *, form: str) -> torch.Tensor:
    buffer = torch.full((len(batch.slots), batch.a.shape[-2]), 7.0)
    if form == "bgmv":
        module.bgmv_shrink(batch.inputs, batch.a, buffer, batch.rows, 0.5)
    else:
        module.sgmv_shrink(batch.inputs, batch.a, buffer, *batch.runs, 0.5)
    return buffer


def expanded(module: Any, batch: Batch, *, form: str, add_inputs: bool) -> torch.Tensor:
    buffer = torch.linspace(-1, 1, len(batch.slots) * batch.b.shape[-1])
    buffer = buffer.view(len(batch.slots), batch.b.shape[-1])
    output = batch.output.clone()
    if form == "bgmv":
        module.bgmv_expand(buffer, batch.b, output, batch.rows, add_inputs)
    else:
        module.sgmv_expand(buffer, batch.b, output, *batch.runs, add_inputs)
    return output


def sliced(module: Any, batch: Batch, *, form: str, add_inputs: bool) -> torch.Tensor:
    size, offset = batch.b.shape[-2], 3
    buffer = torch.linspace(-1, 1, len(batch.slots) * batch.b.shape[-1])
    buffer = buffer.view(len(batch.slots), batch.b.shape[-1])
    output = torch.ones(len(batch.slots), offset + size + 2, dtype=torch.bfloat16)
    if form == "bgmv":
        module.bgmv_expand_slice(buffer, batch.b, output, batch.rows, offset, size, add_inputs)
    else:
        module.sgmv_expand_slice(buffer, batch.b, output, *batch.runs, offset, size, add_inputs)
    return output


CALLS: dict[str, Call] = {
    f"{name}-{form}-{'add' if add else 'write'}": partial(call, form=form, add_inputs=add)
    for name, call in (("expand", expanded), ("slice", sliced))
    for form in ("bgmv", "sgmv")
    for add in (True, False)
}
CALLS |= {f"shrink-{form}": partial(shrunk, form=form) for form in ("bgmv", "sgmv")}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@every_call
@given(batch=batches(lowest_slot=0, min_rows=1))
@settings(max_examples=40, deadline=None)
def test_equals_vllm_where_every_row_has_an_adapter(call: Call, batch: Batch) -> None:
    torch.testing.assert_close(call(operators, batch), call(stock, batch))


@every_call
@given(batch=batches(min_rows=1))
@settings(max_examples=40, deadline=None)
def test_rows_with_an_adapter_do_not_depend_on_rows_without(call: Call, batch: Batch) -> None:
    mixed, expected = call(operators, batch), call(stock, batch)
    torch.testing.assert_close(mixed[~batch.bare], expected[~batch.bare])


@every_call
@given(batch=batches(min_rows=1))
@settings(max_examples=40, deadline=None)
def test_rows_without_an_adapter_keep_their_output(call: Call, batch: Batch) -> None:
    without = [NO_ADAPTER] * len(batch.slots)
    untouched = call(Untouched, Batch(without, batch.inputs, batch.a, batch.b, batch.output))
    assert torch.equal(call(operators, batch)[batch.bare], untouched[batch.bare])


@every_call
def test_an_empty_batch_is_left_alone(call: Call) -> None:
    empty = Batch(
        [],
        torch.empty(0, 4, dtype=torch.bfloat16),
        torch.ones(SLOTS, 1, 2, 4, dtype=torch.bfloat16),
        torch.ones(SLOTS, 1, 5, 2, dtype=torch.bfloat16),
        torch.empty(0, 5, dtype=torch.bfloat16),
    )
    assert len(call(operators, empty)) == 0


def test_vllm_takes_a_row_without_an_adapter_for_the_last_slot() -> None:
    # The fault that the grouped operators cure: should this fail, vLLM has cured it itself.
    batch = Batch(
        [NO_ADAPTER],
        torch.ones(1, 4, dtype=torch.bfloat16),
        torch.ones(SLOTS, 1, 2, 4, dtype=torch.bfloat16),
        torch.ones(SLOTS, 1, 5, 2, dtype=torch.bfloat16),
        torch.zeros(1, 5, dtype=torch.bfloat16),
    )
    assert shrunk(stock, batch, form="bgmv").ne(7.0).all()
    assert shrunk(operators, batch, form="bgmv").eq(7.0).all()
