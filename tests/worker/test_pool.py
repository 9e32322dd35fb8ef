"""The pool against fake workers on real sockets: who serves, who does not, and why."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from server import config
from server.config import GatewayConfig
from server.errors import DeadlineExceeded, WorkerError, WorkerRefused, WorkerUnreachable
from server.fleet import Fleet, resolve
from server.prompt import PromptTemplate, plain_text_tokenizer
from server.worker import pool as pool_module
from server.worker.client import WorkerClient
from server.worker.fake import FakeWorker, Faults
from server.worker.fake.__main__ import fake_of
from server.worker.pool import Pool, Replica
from server.worker.probe import GoldenProbe, golden_probes
from server.worker.standing import FIRST_RETRY_SECONDS, MISSES_TO_LEAVE, ReplicaState
from tests.real_engine import free_port
from tests.serving import serving


class Recorder:
    """Remembers what the pool told it."""

    def __init__(self) -> None:
        self.ready: dict[str, bool] = {}
        self.in_flight: dict[str, int] = {}
        self.gone: list[str] = []

    def replica_ready(self, worker: str, replica: str, ready: bool) -> None:
        self.ready[replica] = ready

    def replica_in_flight(self, worker: str, replica: str, n: int) -> None:
        self.in_flight[replica] = n

    def replica_gone(self, worker: str, replica: str) -> None:
        self.gone.append(replica)
        del self.ready[replica], self.in_flight[replica]


class World:
    """A fleet with one fake worker, a pool that looks at it, and a clock that stands still."""

    def __init__(self, fleet: Fleet, client: WorkerClient, port: int) -> None:
        self.fleet = fleet
        self.port = port
        self.now = 0.0
        self.observer = Recorder()
        self.addresses: list[str] | Exception = []
        self.fake = fake_of(fleet, fleet.workers["base"])
        self.ids = tuple(sorted(one.id for one in fleet.workers["base"].specialists))
        self.pool = Pool(
            fleet,
            client,
            probes_of(fleet),
            observer=self.observer,
            clock=lambda: self.now,
            resolve=self.resolve,
        )

    @property
    def replica(self) -> Replica:
        """The first replica."""
        return self.pool.replicas("base")[0]

    def serves(self, specialist: str) -> bool:
        """Whether anybody may be asked for `specialist`."""
        serving = bool(self.pool.serving("base", specialist))
        assert serving == (self.pool.missing("base", specialist) == "")
        return serving

    async def probe(self) -> None:
        """Probe the first replica once."""
        await self.pool.probe(self.replica)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Answer as the DNS would."""
        if isinstance(self.addresses, Exception):
            raise self.addresses
        return self.addresses


def probes_of(fleet: Fleet) -> dict[str, tuple[GoldenProbe, ...]]:
    """Return every specialist's golden probes, as the gateway makes them."""
    probes = {}
    for variant in (one for arms in fleet.variants.values() for one in arms):
        file = fleet.tokenizer_file(variant)
        assert file is not None
        tokenizer = plain_text_tokenizer(file.read_text(encoding="utf-8"))
        card = variant.specialist.card
        encode = PromptTemplate(card.prompt, tokenizer).encode
        probes[variant.specialist.id] = golden_probes(card, encode)
    return probes


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def world(fleet_path: Callable[[str], Path], client: WorkerClient, port: int) -> World:
    path = fleet_path(f"urls = ['http://127.0.0.1:{port}']")
    return World(resolve(config.load(path, {})), client, port)


@pytest.fixture
def dns_world(fleet_path: Callable[[str], Path], client: WorkerClient, port: int) -> World:
    path = fleet_path(f"dns = 'workers.svc:{port}'")
    return World(resolve(config.load(path, {})), client, port)


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; fail after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody sets an event for a test
            await asyncio.sleep(0.005)


async def test_nobody_serves_before_a_probe(world: World) -> None:
    assert not world.serves(world.ids[0])
    assert world.replica.state is ReplicaState.UNREACHABLE
    assert "not probed yet" in world.pool.missing("base", world.ids[0])
    assert world.observer.ready == {"base-0": False}


async def test_a_replica_serves_what_it_has_proven(world: World) -> None:
    async with serving(world.fake, world.port):
        await world.probe()
    assert world.replica.state is ReplicaState.READY
    assert world.replica.proven == set(world.ids)
    assert all(world.serves(one) for one in world.ids)
    assert world.observer.ready == {"base-0": True}
    assert "not meant to serve" in world.pool.missing("base", "stranger@9")


async def test_it_is_proven_once_and_not_again(world: World) -> None:
    async with serving(world.fake, world.port):
        await world.probe()
        calls = world.fake.calls
        assert calls >= len(world.ids)
        await world.probe()
    assert world.fake.calls == calls


async def test_an_unreachable_replica_leaves_at_once(world: World) -> None:
    async with serving(world.fake, world.port):
        await world.probe()
    world.pool.report(world.replica, WorkerUnreachable("connection refused"))
    assert not world.serves(world.ids[0])
    assert "connection refused" in world.pool.missing("base", world.ids[0])
    assert world.observer.ready == {"base-0": False}


async def test_a_dead_replica_leaves_with_its_next_probe(world: World) -> None:
    async with serving(world.fake, world.port):
        await world.probe()
    await world.probe()
    assert world.replica.state is ReplicaState.UNREACHABLE


async def test_it_comes_back_only_after_proof(world: World) -> None:
    async with serving(world.fake, world.port):
        await world.probe()
    await world.probe()
    # The same names, healthy again, but nothing behind them works yet.
    world.fake.faults = Faults(status=500)
    async with serving(world.fake, world.port):
        await world.probe()
        assert not any(world.serves(one) for one in world.ids)
        assert world.observer.ready == {"base-0": False}
        world.fake.faults = Faults()
        world.now += FIRST_RETRY_SECONDS
        await world.probe()
    assert all(world.serves(one) for one in world.ids)


async def test_an_adapter_that_answers_like_its_base_is_refused_and_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    parrot, *others = world.ids
    world.fake.faults = Faults(parrots=frozenset({parrot}))
    async with serving(world.fake, world.port):
        await world.probe()
        assert world.replica.state is ReplicaState.DEGRADED
        assert list(world.replica.refused) == [parrot]
        reason = world.replica.refused[parrot]
        assert "golden probe 1" in reason
        assert "answers like its base 'base'" in reason
        assert reason in world.pool.missing("base", parrot)
        assert all(world.serves(one) for one in others)

        calls = world.fake.calls
        await world.probe()
        assert world.fake.calls == calls  # tried again later, not every second
        world.now += FIRST_RETRY_SECONDS
        await world.probe()
        assert world.fake.calls > calls
        errors = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
        assert [parrot in entry.getMessage() for entry in errors] == [True]  # said once

        world.fake.faults = Faults()
        world.now += 1000
        await world.probe()
    assert world.serves(parrot)
    assert not world.replica.refused


async def test_a_name_that_is_not_served_is_refused(world: World) -> None:
    absent, *others = world.ids
    models = {name: golden for name, golden in world.fake.models.items() if name != absent}
    async with serving(FakeWorker(models), world.port):
        await world.probe()
    assert all(world.serves(one) for one in others)
    assert f"but not {absent}" in world.pool.missing("base", absent)
    assert f"'{others[0]}'" in world.pool.missing("base", absent)


async def test_a_specialist_without_probes_is_trusted_by_its_name(
    world: World, client: WorkerClient
) -> None:
    pool = Pool(world.fleet, client, {}, observer=world.observer)
    async with serving(world.fake, world.port):
        await pool.probe(pool.replicas("base")[0])
    assert pool.serving("base", world.ids[0])
    assert world.fake.calls == 0


async def test_a_503_takes_a_replica_out_at_once(world: World) -> None:
    async with serving(world.fake, world.port):
        await world.probe()
        world.fake.faults = Faults(status=503, on=frozenset({"health"}))
        await world.probe()
    assert "503" in world.pool.missing("base", world.ids[0])


async def test_a_busy_replica_may_miss_two_probes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(world.fake, world.port):
        await world.probe()
        world.fake.faults = Faults(hang=True, on=frozenset({"health"}))
        monkeypatch.setattr(pool_module, "HEALTH_TIMEOUT_SECONDS", 0.02)
        await world.probe()
        await world.probe()
        assert world.serves(world.ids[0])
        await world.probe()
        assert not world.serves(world.ids[0])


async def test_a_replica_that_fails_is_asked_what_it_serves(world: World) -> None:
    lost = world.ids[0]
    async with serving(world.fake, world.port):
        await world.probe()
        models = {name: golden for name, golden in world.fake.models.items() if name != lost}
        world.fake.models = models
        world.pool.report(world.replica, DeadlineExceeded("too late"))
        world.pool.report(world.replica, WorkerRefused("too long"))
        await world.probe()
        assert world.serves(lost)  # neither says anything about the replica
        world.pool.report(world.replica, WorkerError("the worker answered 404"))
        await world.probe()
        assert not world.serves(lost)
        assert world.serves(world.ids[1])


async def test_calls_in_flight_are_counted(world: World) -> None:
    with world.pool.carry(world.replica), world.pool.carry(world.replica, 7):
        assert world.replica.in_flight == 8
        assert world.observer.in_flight == {"base-0": 8}
    with pytest.raises(WorkerError), world.pool.carry(world.replica):
        raise WorkerError("it failed")
    assert world.replica.in_flight == 0
    assert world.observer.in_flight == {"base-0": 0}


async def test_addresses_come_and_go_with_the_name(dns_world: World) -> None:
    world = dns_world
    assert "is found behind 'workers.svc:" in world.pool.missing("base", world.ids[0])
    world.addresses = ["127.0.0.1", "127.0.0.2"]
    await world.pool.look_up("base")
    first, second = world.pool.replicas("base")
    assert (first.name, second.name) == ("base-0", "base-1")

    async with serving(world.fake, world.port):
        await world.pool.probe(first)
    world.addresses = ["127.0.0.1", "127.0.0.3"]
    await world.pool.look_up("base")
    assert world.pool.replicas("base")[0] is first  # it keeps what it has proven
    assert [replica.name for replica in world.pool.replicas()] == ["base-0", "base-1"]
    assert world.observer.gone == ["base-1"]
    with world.pool.carry(second):
        assert second.in_flight == 1
    assert world.observer.in_flight == {"base-0": 0, "base-1": 0}  # the new one's


@pytest.mark.parametrize("error", [socket.gaierror("temporary failure"), UnicodeError("no label")])
async def test_a_name_that_cannot_be_looked_up_takes_nobody_out(
    dns_world: World, error: Exception
) -> None:
    dns_world.addresses = ["127.0.0.1"]
    await dns_world.pool.look_up("base")
    known = dns_world.pool.replicas("base")
    dns_world.addresses = error
    await dns_world.pool.look_up("base")
    assert dns_world.pool.replicas("base") == known


async def comes_goes_and_comes_back(world: World) -> None:
    watching = asyncio.create_task(world.pool.run())
    for _ in range(2):
        async with serving(world.fake, world.port):
            await until(lambda: world.serves(world.ids[-1]))
        await until(lambda: not world.serves(world.ids[-1]))
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_it_watches_fixed_replicas_until_cancelled(world: World) -> None:
    await comes_goes_and_comes_back(world)


async def test_it_watches_looked_up_replicas_until_cancelled(dns_world: World) -> None:
    dns_world.addresses = ["127.0.0.1"]
    await comes_goes_and_comes_back(dns_world)


async def test_a_reported_replica_is_probed_without_waiting_for_its_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.pool, "_interval_seconds", 3600.0)
    async with serving(world.fake, world.port):
        watching = asyncio.create_task(world.pool.run())
        await until(lambda: world.serves(world.ids[-1]))
        world.pool.report(world.replica, WorkerUnreachable("reset"))
        assert not world.serves(world.ids[-1])
        await until(lambda: world.serves(world.ids[-1]))
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


def test_a_replica_that_does_not_answer_is_out_within_five_seconds() -> None:
    interval = GatewayConfig().probe_interval_seconds
    assert interval + MISSES_TO_LEAVE * pool_module.HEALTH_TIMEOUT_SECONDS < 5
