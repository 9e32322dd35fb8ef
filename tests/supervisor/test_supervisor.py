"""What fleet.toml wants is what runs; those who care are told of every change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.fleet import Fleet, Worker
from server.supervisor.process import State
from server.supervisor.supervisor import Supervisor
from tests.supervisor.conftest import MakeWorker
from tests.supervisor.test_process import FakeChild, FakeClock, FakeLauncher


@dataclass
class Notes:
    """An observer that writes everything down."""

    seen: list[tuple[str, int, State, str]] = field(default_factory=list)

    def on_state(self, worker: str, replica: int, state: State, reason: str) -> None:
        self.seen.append((worker, replica, state, reason))


MakeFleet = Callable[[Worker], Fleet]


def supervisor(
    fleet: Fleet, launchers: dict[int, FakeLauncher], notes: Notes, log_dir: Path | None = None
) -> Supervisor:
    """Return a supervisor whose replicas start from these launchers."""
    return Supervisor(
        fleet,
        observer=notes,
        log_dir=log_dir,
        clock=FakeClock(naps=200, longest_seconds=30.0),
        launcher=lambda fleet, worker, replica, log: launchers[replica],
    )


async def test_every_replica_is_started_and_stopped(
    make_worker: MakeWorker, make_fleet: MakeFleet, tmp_path: Path
) -> None:
    launchers, notes = {0: FakeLauncher(), 1: FakeLauncher()}, Notes()
    async with supervisor(make_fleet(make_worker(replicas=2)), launchers, notes) as running:
        assert await running.wait_ready() == ()
        assert [one.state for one in running.replicas] == [State.RUNNING] * 2
        first, second = running.replicas
        assert (first.url, second.url) == ("http://127.0.0.1:8400", "http://127.0.0.1:8401")
        assert first.log == tmp_path / ".fleet/logs/base-0.log"
        assert first.pid == 4711
    assert [one.state for one in running.replicas] == [State.STOPPED] * 2
    assert all(child.stopped for one in launchers.values() for child in one.children)
    told = [state for _, replica, state, _ in notes.seen if replica == 1]
    assert told == [State.STARTING, State.RUNNING, State.STOPPED]


async def test_waiting_ends_with_those_that_failed_and_their_reasons(
    make_worker: MakeWorker, make_fleet: MakeFleet, tmp_path: Path
) -> None:
    broken = FakeLauncher([FakeChild(1) for _ in range(3)], iter([False] * 3), words="No memory")
    launchers = {0: FakeLauncher(), 1: broken}
    fleet = make_fleet(make_worker(replicas=2))
    async with supervisor(fleet, launchers, Notes(), tmp_path / "logs") as running:
        async with asyncio.timeout(5):
            (failed,) = await running.wait_ready()
        assert (failed.worker, failed.replica, failed.restarts) == ("base", 1, 2)
        assert "No memory" in failed.reason
        assert failed.log == tmp_path / "logs" / "base-1.log"


async def test_a_worker_that_runs_elsewhere_is_left_alone(
    make_worker: MakeWorker, make_fleet: MakeFleet
) -> None:
    worker = Worker("far", make_worker().config, "m", (), (), ())
    async with supervisor(make_fleet(worker), {}, Notes()) as running:
        assert await running.wait_ready() == ()
        assert running.replicas == ()


async def test_it_runs_until_told_to_stop(make_worker: MakeWorker, make_fleet: MakeFleet) -> None:
    stop = asyncio.Event()
    async with supervisor(make_fleet(make_worker()), {0: FakeLauncher()}, Notes()) as running:
        waiting = asyncio.create_task(running.run_until(stop))
        await running.wait_ready()
        assert not waiting.done()
        stop.set()
        await waiting


async def test_an_error_inside_still_stops_everything(
    make_worker: MakeWorker, make_fleet: MakeFleet
) -> None:
    launcher = FakeLauncher()
    running = supervisor(make_fleet(make_worker()), {0: launcher}, Notes())

    async def serve() -> None:
        async with running:
            await running.wait_ready()
            raise RuntimeError("the gateway fell over")

    with pytest.raises(RuntimeError, match="the gateway fell over"):
        await serve()
    assert launcher.children[0].stopped


async def test_an_observer_that_fails_is_not_waited_for_in_vain(
    make_worker: MakeWorker, make_fleet: MakeFleet
) -> None:
    class Deaf(Notes):
        def on_state(self, worker: str, replica: int, state: State, reason: str) -> None:
            if state is State.BACKING_OFF:
                raise ValueError("cannot hear you")

    launcher = FakeLauncher([FakeChild(1)], iter([False]))
    async with supervisor(make_fleet(make_worker()), {0: launcher}, Deaf()) as running:
        with pytest.raises(ValueError, match="cannot hear you"):
            await running.run_until(asyncio.Event())
