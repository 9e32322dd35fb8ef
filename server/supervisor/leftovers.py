"""Finds and kills what is left of a replica whose guardian was killed.

Every process of a replica carries the replica's mark in its environment: it is inherited whatever
a process does to its parent, group or session.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from server.supervisor import guardian

MARK = "FLEET_REPLICA_MARK"


def sweep(mark: str, *, sparing: bool = False) -> list[int]:
    """Kill every process that carries `mark`; return those that were there.

    With `sparing`, one that tidies up after the others is left to do so.
    """
    found = find(mark)
    for pid in found:
        if sparing and guardian.tidies_up(pid):
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def find(mark: str) -> list[int]:
    """Return the ids of the processes that carry `mark`; one that is dead already is none."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:  # another user's, or gone
            continue
        if entry in environment.split(b"\0"):
            found.append(int(process.name))
    return found
