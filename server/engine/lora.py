"""LoRA operators for the CPU that group a batch's rows by adapter.

vLLM's own (`vllm.lora.ops.torch_ops`) copy a whole weight matrix for every token, and take the
index -1 of a row without an adapter for Python's "last one". Here each adapter in the batch costs
one matrix product per operator, and a row without an adapter is left alone. Names, arguments and
rounding (products in the output's dtype) are those of vLLM.

Shapes: inputs [rows, in], weights [slots, 1, out, in] or [slots, out, in], output [rows, >= out].
"""
# ruff: noqa: ARG001  # the arguments without a use are vLLM's

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

NO_ADAPTER = -1


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of a batch that belong to one adapter."""

    slot: int
    rows: slice | torch.Tensor
    """A slice where they are neighbours: it costs no copy."""


def sgmv_shrink(
    inputs: torch.Tensor,
    lora_a_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """Write `scaling * inputs @ A.T` for runs of rows that share an adapter."""
    groups = _groups_of_runs(lora_indices_tensor, seq_len_tensor)
    _shrink(inputs, lora_a_weights, output_tensor, groups, scaling)


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """Write `scaling * inputs @ A.T` for rows that each name their adapter."""
    groups = _groups_of_rows(lora_indices_tensor)
    _shrink(inputs, lora_b_weights, output_tensor, groups, scaling)


def sgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    add_inputs: bool = False,
) -> None:
    """Write or add `inputs @ B.T` for runs of rows that share an adapter."""
    groups = _groups_of_runs(lora_indices_tensor, seq_len_tensor)
    _expand(inputs, lora_b_weights, output_tensor, groups, add_inputs)


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """Write or add `inputs @ B.T` for rows that each name their adapter."""
    groups = _groups_of_rows(lora_indices_tensor)
    _expand(inputs, lora_b_weights, output_tensor, groups, add_inputs)


def sgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """Do what `sgmv_expand` does to some columns of the output."""
    groups = _groups_of_runs(lora_indices_tensor, seq_len_tensor)
    columns = output_tensor[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, lora_b_weights, columns, groups, add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Do what `bgmv_expand` does to some columns of the output."""
    groups = _groups_of_rows(lora_indices_tensor)
    columns = output_tensor[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, lora_b_weights, columns, groups, add_inputs)


OPERATORS = (
    sgmv_shrink,
    bgmv_shrink,
    sgmv_expand,
    bgmv_expand,
    sgmv_expand_slice,
    bgmv_expand_slice,
)


def _shrink(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    groups: Iterable[Group],
    scaling: float,
) -> None:
    for group in groups:
        product = _product(inputs, weights, output.dtype, group)
        output[group.rows, : product.shape[1]] = product.mul_(scaling)


def _expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    groups: Iterable[Group],
    add_inputs: bool,
) -> None:
    for group in groups:
        product = _product(inputs, weights, output.dtype, group)
        # The adapter and the model may pad their outputs differently.
        width = min(product.shape[1], output.shape[1])
        product, columns = product[:, :width], output[:, :width]
        if not add_inputs:
            columns[group.rows] = product
        elif isinstance(group.rows, slice):
            columns[group.rows] += product
        else:
            columns.index_add_(0, group.rows, product)


def _product(
    inputs: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype, group: Group
) -> torch.Tensor:
    weight = weights[group.slot].to(dtype)
    return inputs[group.rows].to(dtype) @ weight.view(weight.shape[-2:]).T


def _groups_of_runs(slots: torch.Tensor, lengths: torch.Tensor) -> tuple[Group, ...]:
    return _groups(tuple(slots.tolist()), tuple(lengths.tolist()))


def _groups_of_rows(slots: torch.Tensor) -> tuple[Group, ...]:
    runs, lengths = torch.unique_consecutive(slots, return_counts=True)
    return _groups_of_runs(runs, lengths)


# Every operator of every layer asks again for the same batch.
@lru_cache(maxsize=8)
def _groups(slots: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[Group, ...]:
    runs: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for slot, length in zip(slots, lengths, strict=True):
        if slot != NO_ADAPTER and length:
            runs.setdefault(slot, []).append((start, start + length))
        start += length
    return tuple(Group(slot, _rows(spans)) for slot, spans in runs.items())


def _rows(spans: list[tuple[int, int]]) -> slice | torch.Tensor:
    if len(spans) == 1:
        return slice(*spans[0])
    return torch.cat([torch.arange(start, end) for start, end in spans])
