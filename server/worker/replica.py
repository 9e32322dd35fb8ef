"""A replica as everyone but the pool sees it, and whom the pool tells what changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from server.worker.standing import ReplicaState, Standing


class PoolObserver(Protocol):
    """Is told what changes; telemetry implements it."""

    def replica_ready(self, worker: str, replica: str, ready: bool) -> None:
        """A replica began or ceased to serve."""

    def replica_in_flight(self, worker: str, replica: str, n: int) -> None:
        """So many prompts are with the replica now."""

    def replica_gone(self, worker: str, replica: str) -> None:
        """The replica is no longer part of the fleet: forget its figures."""


class Replica:
    """One running copy of a worker, as the pool sees it; only the pool writes to it."""

    def __init__(self, worker: str, name: str, url: str, wanted: frozenset[str]) -> None:
        self.worker = worker
        self.name = name
        self.url = url
        self.standing = Standing(wanted)
        self.in_flight = 0
        self.gone = False
        self.suspect = False
        """A call failed there: it should be asked again which models it serves."""
        self.wake = asyncio.Event()
        """Ends the pause before the next probe."""

    @property
    def state(self) -> ReplicaState:
        """What the pool thinks of it."""
        return self.standing.state

    @property
    def reason(self) -> str:
        """Why it is in that state; empty when it is simply ready."""
        return self.standing.reason

    @property
    def proven(self) -> frozenset[str]:
        """The ids of the specialists that it may be asked."""
        return self.standing.proven

    @property
    def refused(self) -> Mapping[str, str]:
        """The ids of the specialists that it may not be asked, and why."""
        return {name: refusal.reason for name, refusal in self.standing.refused.items()}

    @property
    def ready(self) -> bool:
        """Whether it serves: nothing is left to prove for the first time, and something is."""
        if self.state is ReplicaState.DEGRADED:
            return bool(self.proven)
        return self.state is ReplicaState.READY

    def __repr__(self) -> str:
        return f"<{self.name} {self.url} {self.state}>"
