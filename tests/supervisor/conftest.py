"""Workers and fleets that no engine need be started for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.config import FleetConfig, TaskConfig, WorkerConfig
from server.fleet import Fleet, Worker
from server.specialist import Specialist, SpecialistCard
from tests.tiny_fleet import card, labels

MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(tmp_path: Path) -> MakeWorker:
    """Return a function that makes a worker with adapters of given ranks."""

    def make(
        *, ranks: tuple[Any, ...] = (), full: bool = False, model: str = "", **section: Any
    ) -> Worker:
        base = tmp_path / "base"
        base.mkdir(exist_ok=True)
        config = WorkerConfig.model_validate({"model": model or "base", **section})
        return Worker(
            name="base",
            config=config,
            model=model or str(base),
            ports=tuple(range(8400, 8400 + config.replicas)),
            adapters=tuple(_adapter(tmp_path, n, rank) for n, rank in enumerate(ranks)),
            full=(_specialist(base, "base", "full"),) if full else (),
        )

    return make


@pytest.fixture
def make_fleet(tmp_path: Path) -> Callable[[Worker], Fleet]:
    """Return a function that makes a fleet of one worker."""

    def make(worker: Worker) -> Fleet:
        config = FleetConfig(
            path=tmp_path / "fleet.toml",
            workers={worker.name: worker.config},
            tasks={"a": TaskConfig(specialist="a", worker=worker.name)},
        )
        return Fleet(config, {}, {worker.name: worker})

    return make


def _adapter(root: Path, number: int, rank: Any) -> Specialist:
    path = root / f"adapter-{number}"
    path.mkdir(exist_ok=True)
    document = {"r": rank} if isinstance(rank, int) else rank
    (path / "adapter_config.json").write_text(json.dumps(document))
    return _specialist(path, f"task-{number}", "adapter")


def _specialist(path: Path, task: str, form: str) -> Specialist:
    document = card(task, "classify", labels=labels("a", "b", "c"), form=form)
    return Specialist(path, SpecialistCard.model_validate(document), f"{task}@01234567")
