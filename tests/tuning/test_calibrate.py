"""A fitted temperature undoes over-confidence, and the error is what the paper defines."""

from __future__ import annotations

import pytest
import torch

from server.tuning.calibrate import calibrate, expected_calibration_error, fit_temperature


def _drawn(sharpness: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits `sharpness` times too sure of truths drawn from their softmax."""
    torch.manual_seed(seed)
    logits = torch.randn(4000, 4)
    truth = torch.multinomial(logits.softmax(-1), 1).squeeze(1)
    return logits * sharpness, truth


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_is_how_much_too_sharp_the_logits_are(sharpness: float) -> None:
    assert fit_temperature(*_drawn(sharpness, 1)) == pytest.approx(sharpness, rel=0.1)


def test_calibration_lowers_the_error_on_other_rows() -> None:
    made = calibrate(*_drawn(3.0, 1), *_drawn(3.0, 2))
    assert made.ece_before is not None
    assert made.ece_after is not None
    assert made.ece_before > 0.1
    assert made.ece_after < 0.03


def test_being_always_right_gives_a_finite_temperature() -> None:
    assert 0 < fit_temperature(torch.eye(3) * 9, torch.arange(3)) < 1


def test_the_error_is_the_gap_of_confidence_and_accuracy() -> None:
    sure = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
    truth = torch.tensor([0] * 6 + [1] * 4)
    assert expected_calibration_error(sure, truth) == pytest.approx(0.3, abs=1e-6)
