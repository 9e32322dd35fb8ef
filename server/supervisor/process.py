"""One replica's state machine: `Process.run` is the only writer of its state.

    stopped -> starting -> running
                  |           |
                  v           v
            backing_off or failed -> starting ...

`failed` is a crash loop or a start that took too long: said with its cause, tried again seldom.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from server.supervisor.restart import Life, RestartPolicy

logger = logging.getLogger(__name__)


class State(StrEnum):
    """Where a replica is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    FAILED = "failed"


class LaunchRefused(Exception):
    """The replica cannot be started just now; the message says why and what to do."""


class Child(Protocol):
    """A started replica and every process under it."""

    @property
    def pid(self) -> int:
        """The id of its process group and session."""

    async def wait(self) -> int:
        """Return the exit code once it has ended (128 + n: killed by signal n)."""

    async def stop(self) -> None:
        """End it and all its descendants; does nothing to what has ended already."""


class Launcher(Protocol):
    """How one replica is started, asked and explained."""

    async def launch(self) -> Child:
        """Start it; raises LaunchRefused."""

    async def healthy(self) -> bool:
        """Ask it once whether it serves."""

    def last_words(self) -> str:
        """Return the line of its log that best says what went wrong, or nothing."""


class Clock(Protocol):
    """Time as the state machine sees it, so that no unit test sleeps."""

    def now(self) -> float:
        """Return monotonic seconds."""

    async def sleep(self, seconds: float) -> None:
        """Let so much time pass."""


class SystemClock:
    """The real clock."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a replica is looked at, and how long it may keep silent."""

    startup_timeout_seconds: float = 300.0
    poll_seconds: float = 1.0
    missed_polls: int = 3
    """So many unanswered polls in a row mean that a running replica hangs."""


class Process:
    """Keeps one replica alive."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        report: Callable[[State, str], None],
        patience: Patience,
        policy: RestartPolicy,
        clock: Clock,
        random: Callable[[], float],
        turn: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        """Prepare; `turn` is held from launch to readiness, for replicas that start one by one."""
        self._launcher = launcher
        self._report = report
        self._patience = patience
        self._policy = policy
        self._clock = clock
        self._random = random
        self._turn = turn or contextlib.nullcontext()
        self._lives: deque[Life] = deque(maxlen=policy.memory)
        self.state = State.STOPPED
        self.reason = ""
        self.starts = 0
        self.pid: int | None = None

    async def run(self) -> None:
        """Start the replica, and again whenever it ends, until cancelled; then stop it."""
        try:
            while True:
                self._lives.append(await self._life())
                then = self._policy.after(self._lives_seen(), self._random)
                self._enter(State.FAILED if then.failed else State.BACKING_OFF, then.reason)
                await self._clock.sleep(then.delay_seconds)
        finally:
            self._enter(State.STOPPED, "")

    def _lives_seen(self) -> tuple[Life, ...]:
        return tuple(self._lives)

    async def _life(self) -> Life:
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with self._turn:
                    ended, watched = await self._start(stack)
                if ended is None:
                    self._enter(State.RUNNING, "")
                    ended = await self._watch(watched)
            return ended
        except LaunchRefused as refusal:
            return self._ended(str(refusal), was_ready=False)
        except Exception as error:
            # A fault of ours must not leave the other replicas without their supervisor.
            logger.exception("the supervisor failed at a replica; it will be started again")
            return self._ended(f"supervisor fault: {error!r}", was_ready=False)
        finally:
            self.pid = None

    async def _start(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[Life | None, asyncio.Task[int]]:
        """Launch and wait for readiness; a Life is returned if it ended before."""
        self.starts += 1
        self._enter(State.STARTING, "")
        deadline = self._clock.now() + self._patience.startup_timeout_seconds
        child = await self._launcher.launch()
        stack.push_async_callback(child.stop)
        self.pid = child.pid
        watched = asyncio.create_task(child.wait())
        stack.callback(watched.cancel)
        while not await self._launcher.healthy():
            if await self._ends_within(watched, self._patience.poll_seconds):
                return self._ended(self._obituary(watched.result()), was_ready=False), watched
            if self._clock.now() >= deadline:
                return self._ended(self._impatience(), was_ready=False, slow=True), watched
        return None, watched

    async def _watch(self, watched: asyncio.Task[int]) -> Life:
        """Return how a running replica ended."""
        missed = 0
        while missed < self._patience.missed_polls:
            if await self._ends_within(watched, self._patience.poll_seconds):
                return self._ended(self._obituary(watched.result()), was_ready=True)
            missed = 0 if await self._launcher.healthy() else missed + 1
        reason = f"alive, but did not answer {missed} health checks in a row"
        return self._ended(self._with_last_words(reason), was_ready=True)

    async def _ends_within(self, watched: asyncio.Task[int], seconds: float) -> bool:
        nap = asyncio.create_task(self._clock.sleep(seconds))
        try:
            await asyncio.wait({watched, nap}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nap.cancel()
        return watched.done()

    def _enter(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._report(state, reason)

    def _ended(self, reason: str, *, was_ready: bool, slow: bool = False) -> Life:
        return Life(self._clock.now(), was_ready, reason, slow)

    def _obituary(self, code: int) -> str:
        return self._with_last_words(
            f"killed by signal {code - 128}" if code > 128 else f"exited with code {code}"
        )

    def _impatience(self) -> str:
        seconds = self._patience.startup_timeout_seconds
        return self._with_last_words(
            f"alive, but not ready after {seconds:g} s (startup_timeout_seconds)"
        )

    def _with_last_words(self, reason: str) -> str:
        words = self._launcher.last_words()
        return f"{reason}: {words}" if words else reason
