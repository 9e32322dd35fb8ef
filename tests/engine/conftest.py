"""A fleet of one CPU worker that serves tiny random adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.config import FleetConfig, TaskConfig, WorkerConfig
from server.fleet import Fleet, Worker
from server.specialist import Specialist, SpecialistCard
from tests.real_engine import free_port
from tests.tiny_fleet import card, labels
from tests.tiny_model import write_tiny_adapter, write_tiny_base

ADAPTERS = 3


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a model `base` and adapters `adapter-0` and on."""
    root = tmp_path_factory.mktemp("tiny")
    base = write_tiny_base(root / "base")
    for number in range(ADAPTERS):
        write_tiny_adapter(root / f"adapter-{number}", base, seed=number + 1)
    return root


@pytest.fixture(scope="session")
def tiny_fleet(tiny_directory: Path) -> Fleet:
    """Return a fleet whose one worker has as many adapter slots as adapters."""
    adapters = tuple(
        Specialist(
            tiny_directory / f"adapter-{number}",
            SpecialistCard.model_validate(
                card(f"tiny-{number}", "classify", labels=labels("a", "b", "c"))
            ),
            f"tiny-{number}@{number:08x}",
        )
        for number in range(ADAPTERS)
    )
    section = WorkerConfig(model="base", port=free_port(), args={"max-model-len": 256})
    config = FleetConfig(
        path=tiny_directory / "fleet.toml",
        workers={"base": section},
        tasks={"tiny-0": TaskConfig(specialist="adapter-0", worker="base")},
    )
    model = str(tiny_directory / "base")
    worker = Worker("base", section, model, config.ports()["base"], adapters, ())
    return Fleet(config, {}, {"base": worker})
