"""The two workers that the contract suite runs against, and a client to talk to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.worker.client import WorkerClient, http_client
from server.worker.fake import FakeWorker, Faults
from tests.real_engine import Engine, running_engine
from tests.serving import serving
from tests.tiny_model import VOCABULARY_SIZE, write_tiny_adapter, write_tiny_base

MAX_MODEL_LEN = 256


@dataclass(frozen=True)
class Subject:
    """A worker under test: a base, two adapters, 256 tokens of context, 512 tokens in all."""

    url: str
    base: str
    adapters: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Every name that it serves."""
        return (self.base, *self.adapters)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Run a real vLLM with a tiny model, set up as the supervisor does it."""
    root = tmp_path_factory.mktemp("engine")
    base = write_tiny_base(root / "base")
    adapters = {
        name: write_tiny_adapter(root / name, base, seed)
        for seed, name in enumerate(("one@00000001", "two@00000002"), start=1)
    }
    config = '{"backend": "xgrammar", "disable_any_whitespace": true}'
    args = ["--structured-outputs-config", config]
    with running_engine(base, root / "engine.log", adapters=adapters, args=args) as engine:
        yield engine


@pytest.fixture(params=["fake", pytest.param("engine", marks=pytest.mark.engine)])
async def subject(request: pytest.FixtureRequest) -> AsyncGenerator[Subject]:
    """Yield each worker in turn: the fake must behave as the engine does."""
    if request.param == "engine":
        engine = request.getfixturevalue("engine")
        yield Subject(engine.url, engine.base, engine.adapters)
        return
    names = ("base", "one@00000001", "two@00000002")
    fake = FakeWorker(
        {name: {} for name in names},
        faults=Faults(token_delay_seconds=0.002),
        max_model_len=MAX_MODEL_LEN,
        vocabulary=VOCABULARY_SIZE,
    )
    async with serving(fake) as url:
        yield Subject(url, names[0], names[1:])


@pytest.fixture
async def client() -> AsyncGenerator[WorkerClient]:
    """Yield a client with connections of its own."""
    async with http_client() as http:
        yield WorkerClient(http)


@pytest.fixture
def fleet_path(tmp_path: Path) -> Callable[[str], Path]:
    """Return a writer of whole fleets: the body of `[workers.base]` -> fleet.toml."""
    from tests.tiny_fleet import write_fleet

    return lambda worker: write_fleet(tmp_path, worker, gateway="probe_interval_seconds = 0.02")
