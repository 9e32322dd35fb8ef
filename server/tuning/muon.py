"""Muon: momentum whose every direction counts the same, for the whole matrices of layers.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale
that lets it share AdamW's learning rate is from Liu et al., "Muon is Scalable for LLM Training",
2025. torch's own goes through the matrices one by one, which on a CPU takes three times as long.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RMS_OF_ADAMW = 0.2


class Muon:
    """Moves matrices by their orthogonalised momentum, those of one shape together."""

    def __init__(
        self,
        matrices: Sequence[torch.nn.Parameter],
        rate: float,
        weight_decay: float,
        precision: torch.dtype = torch.float32,
    ) -> None:
        by_shape = defaultdict(list)
        for matrix in matrices:
            by_shape[tuple(sorted(matrix.shape))].append(matrix)
        self._groups = [
            (group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()
        ]
        self._weight_decay = weight_decay
        self._precision = precision
        # Named as torch's optimizers name it, for the one loop that sets the rate of all.
        self.param_groups: list[dict[str, float]] = [{"lr": rate}]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        """Move every matrix once, along the gradients that it holds."""
        rate = self.param_groups[0]["lr"]
        for matrices, momentum in self._groups:
            gradients = torch.stack([_wide(matrix.grad) for matrix in matrices])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            wanted = gradients.lerp(momentum, MOMENTUM)
            moves = orthogonalised(wanted.to(self._precision)).float()
            size = rate * RMS_OF_ADAMW * math.sqrt(max(matrices[0].shape))
            for matrix, move in zip(matrices, moves, strict=True):
                matrix.mul_(1 - rate * self._weight_decay)
                _wide(matrix).sub_(move, alpha=size)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Return wide matrices with all singular values near 1, by Newton and Schulz.

    bf16 is precise enough, and quicker where the CPU multiplies it.
    """
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
