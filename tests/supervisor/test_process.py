"""The state machine of one replica, on a clock that no test waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from server.supervisor.process import LaunchRefused, Patience, Process, State
from server.supervisor.restart import RestartPolicy


class FakeClock:
    """Passes time at once, but stands still after so many naps, or in one too long."""

    def __init__(self, naps: int = 40, longest_seconds: float = 1e9) -> None:
        self.time = 0.0
        self.naps = naps
        self.longest_seconds = longest_seconds

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.naps -= 1
        await asyncio.sleep(0)
        if self.naps <= 0 or seconds > self.longest_seconds:
            await asyncio.Event().wait()


@dataclass
class FakeChild:
    """Lives for so many looks at it, then ends with `code`; None: it lives on."""

    code: int | None
    looks: int = 0
    stopped: bool = False
    pid: int = 4711

    async def wait(self) -> int:
        for _ in range(self.looks):
            await asyncio.sleep(0)
        if self.code is None:
            await asyncio.Event().wait()
        assert self.code is not None
        return self.code

    async def stop(self) -> None:
        self.stopped = True


@dataclass
class FakeLauncher:
    """Hands out the children of a script, then one that stays healthy for ever."""

    script: list[FakeChild | Exception] = field(default_factory=list)
    health: Iterator[bool] = field(default_factory=lambda: iter(()))
    afterwards: bool = True
    words: str = ""
    children: list[FakeChild] = field(default_factory=list)

    async def launch(self) -> FakeChild:
        child = self.script.pop(0) if self.script else FakeChild(None)
        if isinstance(child, Exception):
            raise child
        self.children.append(child)
        return child

    async def healthy(self) -> bool:
        return next(self.health, self.afterwards)

    def last_words(self) -> str:
        return self.words


Seen = list[tuple[State, str]]


async def run(launcher: FakeLauncher, *, until: State, times: int = 1) -> tuple[Process, Seen]:
    """Run a process until it has entered `until` so often; return it, stopped, and its history."""
    seen: Seen = []
    reached = asyncio.Event()

    def report(state: State, reason: str) -> None:
        seen.append((state, reason))
        if [one for one, _ in seen].count(until) == times:
            reached.set()

    process = Process(
        launcher,
        report=report,
        patience=Patience(startup_timeout_seconds=10.0),
        policy=RestartPolicy(jitter=0.0),
        clock=FakeClock(),
        random=lambda: 0.5,
    )
    task = asyncio.create_task(process.run())
    async with asyncio.timeout(5):
        await reached.wait()
    task.cancel()
    await asyncio.wait({task})
    return process, seen


def states(seen: Seen) -> list[State]:
    return [state for state, _ in seen]


async def test_a_replica_starts_runs_and_stops() -> None:
    launcher = FakeLauncher(health=iter([False, False]))
    process, seen = await run(launcher, until=State.RUNNING)
    assert states(seen) == [State.STARTING, State.RUNNING, State.STOPPED]
    assert launcher.children[0].stopped
    assert (process.pid, process.starts) == (None, 1)


async def test_a_crash_is_followed_by_a_restart_and_told_with_the_logs_last_words() -> None:
    launcher = FakeLauncher([FakeChild(132, looks=4)], health=iter([True]), words="SIGILL it was")
    process, seen = await run(launcher, until=State.RUNNING, times=2)
    assert seen[2] == (State.BACKING_OFF, "killed by signal 4: SIGILL it was")
    assert states(seen)[3:5] == [State.STARTING, State.RUNNING]
    assert process.starts == 2
    assert all(child.stopped for child in launcher.children)


async def test_a_crash_loop_fails_and_is_tried_again() -> None:
    launcher = FakeLauncher(
        [FakeChild(1) for _ in range(3)], health=iter([False] * 3), words="ValueError: no"
    )
    _, seen = await run(launcher, until=State.RUNNING)
    assert states(seen)[:6] == [State.STARTING, State.BACKING_OFF] * 2 + [
        State.STARTING,
        State.FAILED,
    ]
    assert "3 times in a row before it was ready: exited with code 1: ValueError: no" in seen[5][1]
    assert states(seen)[6:8] == [State.STARTING, State.RUNNING]


async def test_a_slow_start_is_told_from_a_crash_loop() -> None:
    launcher = FakeLauncher(afterwards=False, words="Loading weights")
    _, seen = await run(launcher, until=State.FAILED)
    assert seen[1] == (
        State.FAILED,
        "alive, but not ready after 10 s (startup_timeout_seconds): Loading weights",
    )
    assert launcher.children[0].stopped


async def test_a_server_that_lingers_without_its_engine_is_started_anew() -> None:
    # Ready; then it misses one poll, which is no reason; then three in a row.
    launcher = FakeLauncher(health=iter([True, False, True, False, False, False]))
    _, seen = await run(launcher, until=State.RUNNING, times=2)
    assert seen[2] == (State.BACKING_OFF, "alive, but did not answer 3 health checks in a row")
    assert launcher.children[0].stopped


async def test_a_refused_launch_says_why() -> None:
    launcher = FakeLauncher([LaunchRefused("port 8100 is taken")])
    _, seen = await run(launcher, until=State.RUNNING)
    assert seen[1] == (State.BACKING_OFF, "port 8100 is taken")


async def test_a_fault_of_the_supervisor_is_logged_and_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    launcher = FakeLauncher([OSError("out of processes")])
    _, seen = await run(launcher, until=State.RUNNING)
    assert "out of processes" in seen[1][1]
    assert "Traceback" in caplog.text


async def test_replicas_that_share_a_turn_start_one_after_another() -> None:
    turn = asyncio.Lock()
    starting: set[int] = set()
    most = 0
    running = asyncio.Event()

    def process(number: int) -> Process:
        def report(state: State, reason: str) -> None:
            nonlocal most
            starting.add(number) if state is State.STARTING else starting.discard(number)
            most = max(most, len(starting))
            if all(one.state is State.RUNNING for one in processes):
                running.set()

        return Process(
            FakeLauncher(health=iter([False, False, False])),
            report=report,
            patience=Patience(),
            policy=RestartPolicy(),
            clock=FakeClock(),
            random=lambda: 0.5,
            turn=turn,
        )

    processes = [process(number) for number in range(3)]
    tasks = [asyncio.create_task(one.run()) for one in processes]
    async with asyncio.timeout(5):
        await running.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert most == 1
