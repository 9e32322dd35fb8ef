"""The fused linear layer equals vLLM's own for rows with an adapter, and leaves the others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.linear import add_lora_linear
from server.engine.order import NO_ADAPTER

punica_cpu = pytest.importorskip("vllm.lora.punica_wrapper.punica_cpu")
STOCK = punica_cpu.PunicaWrapperCPU.add_lora_linear
SLOTS = 3


@dataclass(frozen=True)
class Layer:
    """A batch and the stacked weights of one linear layer with several projections."""

    wrapper: object
    slots: torch.Tensor
    y: torch.Tensor
    x: torch.Tensor
    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    widths: tuple[int, ...]

    def after(self, method: object) -> torch.Tensor:
        """Return the layer's output once `method` has added the adapters to it."""
        assert callable(method)
        y = self.y.clone()
        method(self.wrapper, y, self.x, self.a, self.b, 2.0, self.widths)
        return y


@st.composite
def layers(draw: st.DrawFn, lowest_slot: int = NO_ADAPTER) -> Layer:
    """Draw a layer; rows come in runs, as the tokens of prompts do."""
    runs = draw(
        st.lists(
            st.tuples(st.integers(lowest_slot, SLOTS - 1), st.integers(1, 5)),
            min_size=1,
            max_size=6,
        )
    )
    slots = torch.tensor([slot for slot, length in runs for _ in range(length)])
    widths = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    rank, size = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    return Layer(
        _wrapper(slots, is_prefill=draw(st.booleans())),
        slots,
        tensor(len(slots), sum(widths)),
        tensor(len(slots), size),
        tuple(tensor(SLOTS, 1, rank, size) for _ in widths),
        tuple(tensor(SLOTS, 1, width, rank) for width in widths),
        widths,
    )


def _wrapper(slots: torch.Tensor, *, is_prefill: bool) -> object:
    wrapper = punica_cpu.PunicaWrapperCPU(len(slots), len(slots), "cpu")
    wrapper._token_lora_indices[: len(slots)] = slots
    wrapper.indices_len[0] = len(slots)
    wrapper.is_prefill = is_prefill
    wrapper._update_prefill_metadata(wrapper.token_lora_indices)
    return wrapper


@given(layer=layers(lowest_slot=0))
@settings(max_examples=150, deadline=None)
def test_equals_vllm_where_every_row_has_an_adapter(layer: Layer) -> None:
    torch.testing.assert_close(
        layer.after(add_lora_linear), layer.after(STOCK), rtol=0.03, atol=0.15
    )


@given(layer=layers())
@settings(max_examples=150, deadline=None)
def test_rows_without_an_adapter_stay_as_they_are(layer: Layer) -> None:
    ours, bare = layer.after(add_lora_linear), layer.slots == NO_ADAPTER
    assert torch.equal(ours[bare], layer.y[bare])
    torch.testing.assert_close(ours[~bare], layer.after(STOCK)[~bare], rtol=0.03, atol=0.15)


def test_it_rounds_no_more_than_vllm_does() -> None:
    generator = torch.Generator().manual_seed(0)
    slots = torch.arange(96) // 8 % SLOTS
    x, y = torch.randn(96, 64, generator=generator), torch.zeros(96, 32, dtype=torch.bfloat16)
    a = torch.randn(SLOTS, 1, 8, 64, generator=generator).to(torch.bfloat16)
    b = torch.randn(SLOTS, 1, 32, 8, generator=generator).to(torch.bfloat16)
    x = x.to(torch.bfloat16)
    layer = Layer(_wrapper(slots, is_prefill=True), slots, y, x, (a,), (b,), (32,))
    exact = torch.stack(
        [
            2 * b[slot, 0].double() @ (a[slot, 0].double() @ row.double())
            for slot, row in zip(slots, x, strict=True)
        ]
    )
    ours, theirs = ((layer.after(way).double() - exact).norm() for way in (add_lora_linear, STOCK))
    assert ours <= 1.05 * theirs
