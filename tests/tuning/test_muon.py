"""Muon's steps are orthogonal, of AdamW's size, and lead downhill."""

from __future__ import annotations

import pytest
import torch

from server.tuning.muon import Muon, orthogonalised


def test_every_direction_comes_out_about_the_same() -> None:
    torch.manual_seed(1)
    skewed = torch.randn(2, 16, 40) * torch.logspace(0, -1.5, 16)[:, None]
    values = torch.linalg.svdvals(orthogonalised(skewed).float())
    assert values.min() > 0.4
    assert values.max() < 1.4


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_it_finds_a_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    target = torch.randn(shape)
    matrix = torch.nn.Parameter(torch.zeros(shape))
    muon = Muon([matrix], rate=0.05, weight_decay=0.0)
    for step in range(300):
        muon.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        matrix.grad = matrix.detach() - target
        muon.step()
    assert (matrix - target).norm() < 0.2 * target.norm()
