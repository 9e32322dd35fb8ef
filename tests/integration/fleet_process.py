"""Runs the real `fleet up` for tests, and looks at what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

FLEET = Path(sys.executable).with_name("fleet")
READY_SECONDS = 240.0

T = TypeVar("T")


@dataclass(frozen=True)
class RunningFleet:
    """A `fleet up` and the client of its gateway."""

    process: subprocess.Popen[str]
    http: httpx.Client
    log: Path

    def descendants(self) -> dict[int, str]:
        """Return every living process under it: id -> command line."""
        return descendants(self.process.pid)

    def await_health(self, status: int, seconds: float) -> httpx.Response:
        """Return the first `/health/tasks` that answers `status`."""

        def asked() -> httpx.Response | None:
            try:
                response = self.http.get("/health/tasks")
            except httpx.TransportError:
                return None
            return response if response.status_code == status else None

        return await_that(asked, seconds, lambda: self.log.read_text()[-4000:])


@contextmanager
def running_fleet(
    config: Path, ports: tuple[int, int], log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[RunningFleet]:
    """Run `fleet up` with the gateway and the first worker on `ports`; reap it in the end."""
    overrides = {"FLEET__GATEWAY__PORT": str(ports[0]), "FLEET__WORKERS__BASE__PORT": str(ports[1])}
    with log.open("w") as file:
        process = subprocess.Popen(
            [FLEET, "up", "--config", config, "--log-level", "info"],
            env={**os.environ, **overrides, **(environ or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            yield RunningFleet(process, http, log)
    finally:
        left = descendants(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        await_that(lambda: True if not living(left) else None, 30, lambda: str(left))


def await_that(check: Callable[[], T | None], seconds: float, why: Callable[[], str]) -> T:
    """Return the first result of `check` that is not None; fail with `why` after `seconds`."""
    deadline = time.monotonic() + seconds
    while (found := check()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {why()}")
        time.sleep(0.05)
    return found


def living(pids: Mapping[int, str]) -> dict[int, str]:
    """Return those of `pids` that still are the processes they were."""
    return {pid: line for pid, line in pids.items() if _command_line(pid) == line}


def descendants(root: int) -> dict[int, str]:
    """Return every living process under `root`, with its command line."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        waiting += children
        found |= {child: _command_line(child) for child in children}
    return found


def _command_line(pid: int) -> str:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return "" if state in "ZX" else line.replace(b"\0", b" ").decode(errors="replace")
