"""The written-in start copies better than chance before it has learned anything."""

from __future__ import annotations

import torch

from server.tuning.copying import install_copying
from server.tuning.dataset import copying_rows
from server.tuning.evaluate import perplexity
from server.tuning.model import Architecture, new_model
from server.tuning.objectives import WriteText
from server.tuning.progress import silent
from server.tuning.tokenizer import train_tokenizer
from server.tuning.train import Schedule, fit

SHAPE = Architecture(hidden=96, layers=2, heads=1, kv_heads=1, head_dim=32, intermediate=96)


def test_copying_is_learned_within_sixty_steps_from_that_start_alone() -> None:
    tokenizer = train_tokenizer(["one two three"], 300)
    taught = copying_rows(tokenizer, 600, 24, seed=1)
    asked = copying_rows(tokenizer, 60, 24, seed=2)
    schedule = Schedule(60, 3e-3, 768, warmup_steps=5)
    reached = []
    for installed in (False, True):
        model = new_model(SHAPE, tokenizer, seed=1)
        if installed:
            install_copying(model)
        fit(model, taught, WriteText(), schedule, seed=1, stage="", progress=silent)
        reached.append(perplexity(model, asked))
    plain, installed_one = reached
    assert installed_one < 0.5 * plain
    assert torch.isfinite(torch.tensor(reached)).all()
