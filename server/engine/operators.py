"""LoRA operators for the CPU that group a batch's rows by adapter.

vLLM's own (`vllm.lora.ops.torch_ops`) copy a whole weight matrix for every token, and take the
index -1 of a row without an adapter for Python's "last one". Here each adapter in the batch costs
one matrix product per operator, and a row without an adapter is left alone. Names, arguments and
rounding (products in the output's dtype) are those of vLLM. The layers that most adapters change
go a faster way still: `linear.py`.

Shapes: inputs [rows, in], weights [slots, 1, out, in] or [slots, out, in], output [rows, >= out].
"""
# ruff: noqa: ARG001  # the arguments without a use are vLLM's

from __future__ import annotations

import torch

from server.engine.order import Order, Span, order_of_rows, order_of_runs


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
    order = order_of_runs(lora_indices_tensor, seq_len_tensor)
    _shrink(inputs, lora_a_weights, output_tensor, order, scaling)


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """Write `scaling * inputs @ A.T` for rows that each name their adapter."""
    order = order_of_rows(lora_indices_tensor)
    _shrink(inputs, lora_b_weights, output_tensor, order, scaling)


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
    order = order_of_runs(lora_indices_tensor, seq_len_tensor)
    _expand(inputs, lora_b_weights, output_tensor, order, add_inputs)


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """Write or add `inputs @ B.T` for rows that each name their adapter."""
    order = order_of_rows(lora_indices_tensor)
    _expand(inputs, lora_b_weights, output_tensor, order, add_inputs)


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
    order = order_of_runs(lora_indices_tensor, seq_len_tensor)
    columns = output_tensor[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, lora_b_weights, columns, order, add_inputs)


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
    order = order_of_rows(lora_indices_tensor)
    columns = output_tensor[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, lora_b_weights, columns, order, add_inputs)


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
    order: Order,
    scaling: float,
) -> None:
    for span in order.spans:
        rows, product = _product(inputs, weights, output.dtype, order, span)
        output[rows, : product.shape[1]] = product.mul_(scaling)


def _expand(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    order: Order,
    add_inputs: bool,
) -> None:
    for span in order.spans:
        rows, product = _product(inputs, weights, output.dtype, order, span)
        # The adapter and the model may pad their outputs differently.
        width = min(product.shape[1], output.shape[1])
        old = output[rows, :width] if add_inputs else 0
        output[rows, :width] = product[:, :width] + old


def _product(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    dtype: torch.dtype,
    order: Order,
    span: Span,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = order.rows[span.start : span.end]
    weight = weights[span.slot].to(dtype)
    return rows, inputs[rows].to(dtype) @ weight.view(weight.shape[-2:]).T
