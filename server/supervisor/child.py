"""Starts one replica under its guardian, and ends all of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.supervisor import guardian, leftovers, log, probe
from server.supervisor.process import Child, LaunchRefused

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""How long a replica may take to finish its requests and go."""
MARGIN_SECONDS = 5.0
"""How much longer its guardian may take before it is killed, too."""
LOOK_SECONDS = 0.02
OWN_VARIABLES = "FLEET_"
KEPT_VARIABLES = frozenset({"FLEET_ENGINE_PLUGIN"})


@dataclass(frozen=True, slots=True)
class ReplicaLauncher:
    """How one replica of a worker is started, asked and explained."""

    command: Sequence[str]
    environment: Mapping[str, str]
    port: int
    port_key: str
    """The key of fleet.toml that decides the port, for the message when it is taken."""
    log: Path
    directory: Path
    """Where relative paths in the worker's flags start from."""
    grace_seconds: float = GRACE_SECONDS

    async def launch(self) -> Child:
        """Start it; raises LaunchRefused when its port is taken."""
        if not probe.is_free(self.port):
            raise LaunchRefused(
                f"port {self.port} is taken by another process: end that one, or write another "
                f"port at {self.port_key}"
            )
        mark = secrets.token_hex(16)
        log.rotate(self.log)
        held, given = os.pipe()[::-1]
        try:
            with self.log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", guardian.__file__),
                    *(str(os.getpid()), str(self.grace_seconds), *self.command),
                    stdin=given,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    cwd=self.directory,
                    env=self._environment(mark),
                    start_new_session=True,
                )
        except BaseException:
            os.close(held)
            leftovers.sweep(mark)
            raise
        finally:
            os.close(given)
        return GuardedChild(process, held, mark, self.grace_seconds)

    async def healthy(self) -> bool:
        """Ask it once whether it serves."""
        return await probe.answers(self.port)

    def last_words(self) -> str:
        """Return the line of its log that best says what went wrong, or nothing."""
        return log.last_words(self.log)

    def _environment(self, mark: str) -> dict[str, str]:
        # The gateway's own variables, secrets among them, are none of the engine's business.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(OWN_VARIABLES) or name in KEPT_VARIABLES
        }
        return {**inherited, **self.environment, leftovers.MARK: mark}


class GuardedChild:
    """A running guardian with its replica; its mark is on every process under it."""

    def __init__(
        self, process: asyncio.subprocess.Process, pipe: int, mark: str, grace_seconds: float
    ) -> None:
        self._process = process
        self._pipe: int | None = pipe
        self._mark = mark
        self._grace_seconds = grace_seconds

    @property
    def pid(self) -> int:
        """The guardian's id, which is that of its process group and session."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit code once it has ended (128 + n: killed by signal n)."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    async def stop(self) -> None:
        """End it and all its descendants; sweeps up even if it has ended already."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._grace_seconds + MARGIN_SECONDS):
                    await self._process.wait()
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        await self._sweep()
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    async def _sweep(self) -> None:
        # A process that is just being forked can escape one look, never all of them.
        for look in range(int(MARGIN_SECONDS / LOOK_SECONDS)):
            sparing = look * LOOK_SECONDS < guardian.TIDY_SECONDS
            if not leftovers.sweep(self._mark, sparing=sparing):
                return
            await asyncio.sleep(LOOK_SECONDS)
        logger.error("processes that cannot be killed: %s", leftovers.find(self._mark))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
