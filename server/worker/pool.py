"""The replicas of every worker, and which specialists each has proven.

One writer: the pool. Everyone else reads, and a read is advice: the replica may be gone by the
time it is called, which the caller then reports.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from server.errors import (
    DeadlineExceeded,
    RequestError,
    WorkerError,
    WorkerRefused,
    WorkerUnreachable,
)
from server.fleet import Fleet, Worker
from server.worker.client import WorkerClient
from server.worker.discovery import (
    Resolve,
    fixed_urls,
    look_up,
    name_replicas,
    resolve_by_system,
)
from server.worker.probe import GoldenProbe, prove
from server.worker.replica import PoolObserver, Replica
from server.worker.standing import (
    Down,
    Event,
    Healthy,
    Missed,
    Proved,
    Refused,
    ReplicaState,
    due,
    transition,
)

__all__ = ["Pool", "PoolObserver", "Replica"]

logger = logging.getLogger(__name__)

HEALTH_TIMEOUT_SECONDS = 1.2
"""Three of these and one interval of a second make a dead replica leave within five seconds."""
LOOK_UP_INTERVAL_SECONDS = 5.0


class Pool:
    """Knows every replica by probing it; `run` keeps that knowledge fresh."""

    def __init__(
        self,
        fleet: Fleet,
        client: WorkerClient,
        probes: Mapping[str, tuple[GoldenProbe, ...]],
        *,
        observer: PoolObserver,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = resolve_by_system,
    ) -> None:
        """Know the fixed replicas, all unreachable so far; `probes` go by specialist id."""
        self._workers = fleet.workers
        self._interval_seconds = fleet.config.gateway.probe_interval_seconds
        self._client = client
        self._probes = probes
        self._observer = observer
        self._clock = clock
        self._resolve = resolve
        self._wanted = {
            name: frozenset(one.id for one in worker.specialists)
            for name, worker in fleet.workers.items()
        }
        self._replicas: dict[str, tuple[Replica, ...]] = {}
        for worker in fleet.workers.values():
            self._replicas[worker.name] = ()
            self._place(worker, fixed_urls(worker))

    async def run(self) -> None:
        """Look up and probe replicas for ever, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for worker in self._workers.values():
                if worker.config.dns is not None:
                    group.create_task(self._keep_looking_up(worker, group))
                for replica in self._replicas[worker.name]:
                    group.create_task(self._keep_probing(replica))

    def replicas(self, worker: str | None = None) -> Sequence[Replica]:
        """Return the replicas of one worker, or of all."""
        if worker is not None:
            return self._replicas[worker]
        return tuple(replica for replicas in self._replicas.values() for replica in replicas)

    def serving(self, worker: str, specialist_id: str) -> Sequence[Replica]:
        """Return the worker's replicas that are up and have proven that specialist."""
        return [r for r in self._replicas[worker] if specialist_id in r.standing.proven]

    def missing(self, worker: str, specialist_id: str) -> str:
        """Return one sentence on why nobody serves that specialist; empty when somebody does."""
        replicas = self._replicas[worker]
        if any(specialist_id in replica.proven for replica in replicas):
            return ""
        if specialist_id not in self._wanted[worker]:
            return f"the worker {worker!r} is not meant to serve {specialist_id}"
        if not replicas:
            where = self._workers[worker].config.dns
            return f"no replica of the worker {worker!r} is found behind {where!r}"
        whys = "; ".join(_why_not(replica, specialist_id) for replica in replicas)
        return f"no replica of the worker {worker!r} serves {specialist_id}: {whys}"

    def report(self, replica: Replica, error: RequestError) -> None:
        """Take note that a call to `replica` ended in `error`.

        An unreachable replica leaves at once and is probed at once; one that fails otherwise is
        asked again which models it serves. Refused prompts and spent deadlines say nothing.
        """
        if isinstance(error, WorkerUnreachable):
            self._apply(replica, Down(error.message))
            replica.wake.set()
        elif isinstance(error, WorkerError) and not isinstance(error, WorkerRefused):
            replica.suspect = True

    @contextmanager
    def carry(self, replica: Replica, prompts: int = 1) -> Iterator[None]:
        """Count `prompts` as being with `replica` for as long as the block runs."""
        self._count(replica, prompts)
        try:
            yield
        finally:
            self._count(replica, -prompts)

    async def look_up(self, worker: str) -> None:
        """Look up a worker's `dns` name once; without an answer, the known addresses stay."""
        name = self._workers[worker].config.dns
        if name is None:
            return
        try:
            urls = await look_up(name, self._resolve)
        except (OSError, UnicodeError) as error:  # the latter: no name at all, such as "a..b"
            # Addresses that are really gone fail their probes; a resolver's hiccup must not
            # take out replicas that work.
            logger.warning("worker %s: %s cannot be looked up: %s", worker, name, error)
            return
        self._place(self._workers[worker], urls)

    async def probe(self, replica: Replica) -> None:
        """Probe a replica's health once, and let it prove what it has not proven."""
        self._apply(replica, await self._health(replica))
        specialists = due(replica.standing, self._clock())
        if specialists or (replica.suspect and replica.state is not ReplicaState.UNREACHABLE):
            replica.suspect = False
            await self._prove(replica, specialists)

    async def _health(self, replica: Replica) -> Event:
        try:
            await self._client.health(replica.url, timeout_seconds=HEALTH_TIMEOUT_SECONDS)
        except DeadlineExceeded:
            return Missed()
        except RequestError as error:
            return Down(error.message)
        return Healthy()

    async def _prove(self, replica: Replica, specialists: Sequence[str]) -> None:
        try:
            names = await self._client.models(replica.url, timeout_seconds=HEALTH_TIMEOUT_SECONDS)
        except DeadlineExceeded:
            self._apply(replica, Missed())
            return
        except RequestError as error:
            self._apply(replica, Down(error.message))
            return
        for specialist in sorted(replica.proven - names):
            self._apply(replica, Refused(specialist, _not_among(specialist, names)))
        for specialist in specialists:
            if replica.state is ReplicaState.UNREACHABLE:
                return  # a call reported it down meanwhile: it starts anew
            self._apply(replica, await self._proof(replica, specialist, names))

    async def _proof(self, replica: Replica, specialist: str, names: frozenset[str]) -> Event:
        if specialist not in names:
            return Refused(specialist, _not_among(specialist, names))
        probes = self._probes.get(specialist, ())
        if not probes:
            logger.info(
                "%s: %s has no golden probes: its name is trusted", replica.name, specialist
            )
            return Proved(specialist)
        base = self._base_name(replica.worker, names)
        return await prove(self._client, replica.url, specialist, probes, base=base)

    def _base_name(self, worker: str, names: frozenset[str]) -> str | None:
        known = (worker, *(one.id for one in self._workers[worker].full))
        return next((name for name in known if name in names), None)

    def _apply(self, replica: Replica, event: Event) -> None:
        """Move a replica to its next standing and tell whoever listens what changed."""
        before, was_ready = replica.standing, replica.ready
        after = replica.standing = transition(before, event, self._clock())
        if replica.gone:
            return
        for specialist in after.refused.keys() - before.refused.keys():
            reason = after.refused[specialist].reason
            logger.error("%s: %s is refused: %s", replica.name, specialist, reason)
        if after.state is not before.state:
            level = logging.INFO if replica.ready or not was_ready else logging.WARNING
            logger.log(level, "%s: %s %s", replica.name, after.state, after.reason)
        if replica.ready is not was_ready:
            self._observer.replica_ready(replica.worker, replica.name, replica.ready)

    def _count(self, replica: Replica, more: int) -> None:
        replica.in_flight += more
        if not replica.gone:
            self._observer.replica_in_flight(replica.worker, replica.name, replica.in_flight)

    def _place(self, worker: Worker, urls: Sequence[str]) -> None:
        """Make the worker's replicas those at `urls`: keep the known, drop the vanished."""
        known = {replica.url: replica for replica in self._replicas[worker.name]}
        names = name_replicas(worker.name, urls, {url: r.name for url, r in known.items()})
        for url, replica in known.items():
            if url not in names:
                replica.gone = True
                replica.wake.set()
                logger.info("%s: its address %s is gone", replica.name, url)
                self._observer.replica_gone(worker.name, replica.name)
        wanted = self._wanted[worker.name]
        self._replicas[worker.name] = tuple(
            known.get(url) or self._new(Replica(worker.name, name, url, wanted))
            for url, name in names.items()
        )

    def _new(self, replica: Replica) -> Replica:
        self._observer.replica_ready(replica.worker, replica.name, False)
        self._observer.replica_in_flight(replica.worker, replica.name, 0)
        return replica

    async def _keep_looking_up(self, worker: Worker, group: asyncio.TaskGroup) -> None:
        probed: tuple[Replica, ...] = ()
        while True:
            await self.look_up(worker.name)
            for replica in self._replicas[worker.name]:
                if replica not in probed:
                    group.create_task(self._keep_probing(replica))
            probed = self._replicas[worker.name]
            await asyncio.sleep(LOOK_UP_INTERVAL_SECONDS)

    async def _keep_probing(self, replica: Replica) -> None:
        while not replica.gone:
            replica.wake.clear()
            await self.probe(replica)
            if replica.standing.misses == 0:  # a missed probe has waited long enough
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_seconds):
                        await replica.wake.wait()


def _why_not(replica: Replica, specialist_id: str) -> str:
    refused = replica.refused.get(specialist_id)
    if refused is not None:
        return f"{replica.name} refuses it: {refused}"
    return f"{replica.name} is {replica.state} ({replica.reason})"


def _not_among(specialist: str, names: frozenset[str]) -> str:
    return f"the replica serves {sorted(names)} but not {specialist}"
