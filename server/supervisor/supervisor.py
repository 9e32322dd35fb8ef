"""Desired against running: every local replica of the fleet, kept alive until told to stop.

Replicas on the CPU start together: they spend their start on imports, which overlap well.
Replicas on CUDA start one after another, because vLLM sizes its KV cache by what it finds free on
the GPU, and two that measure at once take each other's memory for their own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from server.fleet import Fleet, Worker
from server.supervisor import vllm
from server.supervisor.child import ReplicaLauncher
from server.supervisor.process import Clock, Launcher, Patience, Process, State, SystemClock
from server.supervisor.restart import RestartPolicy

LOG_DIRECTORY = Path(".fleet/logs")


class Observer(Protocol):
    """Who wants to know: progress lines, metrics."""

    def on_state(self, worker: str, replica: int, state: State, reason: str) -> None:
        """A replica entered `state`; every `starting` after its first is a restart."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica as it is just now."""

    worker: str
    replica: int
    url: str
    state: State
    reason: str
    restarts: int
    pid: int | None
    """Its process group and session; None when nothing runs."""
    log: Path


class _Silent:
    def on_state(self, worker: str, replica: int, state: State, reason: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Replica:
    worker: str
    index: int
    url: str
    log: Path
    process: Process


def replica_launcher(fleet: Fleet, worker: Worker, replica: int, log: Path) -> Launcher:
    """Return the launcher of a real vLLM server."""
    return ReplicaLauncher(
        command=vllm.command(worker, replica),
        environment=vllm.environment(worker),
        port=worker.ports[replica],
        port_key=f"workers.{worker.name}.port",
        log=log,
        directory=fleet.config.root,
    )


class Supervisor:
    """Starts every local replica on entry, keeps it alive, and ends all of it on exit.

    Even SIGKILL of this process leaves nothing behind: see `guardian.py`.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        observer: Observer | None = None,
        log_dir: Path | None = None,
        policy: RestartPolicy | None = None,
        clock: Clock | None = None,
        launcher: Callable[[Fleet, Worker, int, Path], Launcher] = replica_launcher,
    ) -> None:
        """Prepare; `log_dir` is by default `.fleet/logs` beside fleet.toml."""
        self._observer = observer or _Silent()
        self._log_dir = log_dir or fleet.config.root / LOG_DIRECTORY
        self._policy = policy or RestartPolicy()
        self._clock = clock or SystemClock()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        gpu = asyncio.Lock()
        self._replicas = [
            self._replica(
                worker, index, launcher(fleet, worker, index, self._log(worker, index)), gpu
            )
            for worker in fleet.workers.values()
            for index in range(len(worker.ports))
        ]

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """Every local replica, in the order of fleet.toml."""
        return tuple(
            ReplicaStatus(
                worker=one.worker,
                replica=one.index,
                url=one.url,
                state=one.process.state,
                reason=one.process.reason,
                restarts=max(0, one.process.starts - 1),
                pid=one.process.pid,
                log=one.log,
            )
            for one in self._replicas
        )

    async def __aenter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._tasks = [asyncio.create_task(one.process.run()) for one in self._replicas]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def wait_ready(self) -> tuple[ReplicaStatus, ...]:
        """Wait until every replica runs or has failed; return those that failed."""
        while not all(one.state in (State.RUNNING, State.FAILED) for one in self.replicas):
            self._changed.clear()
            await self._wait_for(self._changed)
        return tuple(one for one in self.replicas if one.state is State.FAILED)

    async def run_until(self, stop: asyncio.Event) -> None:
        """Keep the replicas alive until `stop` is set."""
        await self._wait_for(stop)

    async def _wait_for(self, event: asyncio.Event) -> None:
        waiting = asyncio.create_task(event.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, *self._tasks}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        for task in done - {waiting}:
            task.result()  # a replica's task never ends by itself: this raises its fault

    def _log(self, worker: Worker, index: int) -> Path:
        return self._log_dir / f"{worker.name}-{index}.log"

    def _replica(
        self, worker: Worker, index: int, launcher: Launcher, gpu: asyncio.Lock
    ) -> _Replica:
        def report(state: State, reason: str) -> None:
            self._observer.on_state(worker.name, index, state, reason)
            self._changed.set()

        process = Process(
            launcher,
            report=report,
            patience=Patience(worker.config.startup_timeout_seconds),
            policy=self._policy,
            clock=self._clock,
            random=random.random,
            turn=gpu if worker.config.device == "cuda" else None,
        )
        url = f"http://{vllm.HOST}:{worker.ports[index]}"
        return _Replica(worker.name, index, url, self._log(worker, index), process)
