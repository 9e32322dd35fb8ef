"""Temperature scaling (Guo et al. 2017) and the error that it is to remove."""

from __future__ import annotations

import torch
from torch.nn import functional

from server.specialist import Calibration

BINS = 15
_GRID_STEPS = 241
_LOWEST, _HIGHEST = 0.2, 5.0


def fit_temperature(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the temperature under which `truth` is likeliest, to about one per cent.

    A grid over the logarithm suffices for one number, and cannot diverge where a model is right
    on every row. (rows, labels) logits, (rows,) indices.
    """
    grid = torch.logspace(
        torch.log10(torch.tensor(_LOWEST)).item(),
        torch.log10(torch.tensor(_HIGHEST)).item(),
        _GRID_STEPS,
    )
    losses = torch.stack([functional.cross_entropy(logits / t, truth) for t in grid])
    return round(float(grid[losses.argmin()]), 4)


def expected_calibration_error(probabilities: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean gap of confidence and accuracy over 15 bins of equal width."""
    confidence, chosen = probabilities.max(dim=-1)
    right = (chosen == truth).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gap = 0.0
    for one in range(BINS):
        inside = bins == one
        if inside.any():
            share = inside.float().mean().item()
            gap += share * abs(confidence[inside].mean() - right[inside].mean()).item()
    return gap


def calibrate(
    fitted_on: torch.Tensor,
    fitted_truth: torch.Tensor,
    measured_on: torch.Tensor,
    measured_truth: torch.Tensor,
) -> Calibration:
    """Fit a temperature on one set of label logits and measure the error on another."""
    temperature = fit_temperature(fitted_on, fitted_truth)
    before = expected_calibration_error(measured_on.softmax(-1), measured_truth)
    after = expected_calibration_error((measured_on / temperature).softmax(-1), measured_truth)
    return Calibration(
        method="temperature",
        temperature=temperature,
        ece_before=round(before, 4),
        ece_after=round(after, 4),
    )
