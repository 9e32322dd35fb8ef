"""Whole gateways: several before one worker, several replicas behind one, and how they start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from huggingface_hub.errors import LocalEntryNotFoundError

from server import app as composition
from server import config
from server.app import create_app
from server.errors import ConfigError
from server.fleet import Fleet, resolve
from server.worker.pool import Pool
from tests.gatewayed import (
    House,
    Worker,
    error_of,
    fake_workers,
    gateway_of,
    gatewayed,
    tiny_fleet,
    until,
)
from tests.serving import serving
from tests.tiny_fleet import write_fleet

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Make these tests run on the event loop of production."""
    return uvloop.EventLoopPolicy()


async def test_two_gateways_before_one_worker_agree(house: House) -> None:
    async with gateway_of(house.fleet, house.workers) as other:
        await other.settled()
        bodies = [(await one.ask("colour")).json() for one in (house, other)]
        assert bodies[0]["output"] == bodies[1]["output"]
        # Each counts its own.
        before = await house.scrape()
        assert (await other.ask("story")).status_code == 200
        after = await house.scrape()
        key = (
            "fleet_requests_total",
            frozenset({("task", "story"), ("variant", "stable"), ("outcome", "ok")}),
        )
        assert after[key] == before[key]
        assert (await other.scrape())[key] == 1
        # One that drains or stops takes nothing from the other.
        other.draining.begun = True
        assert (await other.http.get("/health/ready")).status_code == 503
        assert (await house.http.get("/health/ready")).status_code == 200
    assert (await house.ask("colour")).status_code == 200


async def test_both_gateways_notice_a_worker_that_is_sick(house: House) -> None:
    async with gateway_of(house.fleet, house.workers) as other:
        await other.settled()
        house.worker.fail(status=500, on=["health"])
        for one in (house, other):
            await until(partial(_down, one))
        house.worker.fail()
        for one in (house, other):
            await until(one.tasks_ready)


async def _down(house: House) -> bool:
    return not await house.tasks_ready()


async def test_requests_spread_over_replicas(root: Path) -> None:
    async with gatewayed(root, replicas={"base": 2}) as house:
        one, two = house.workers["base"]
        for worker in (one, two):
            worker.gate.clear()
        asking = [asyncio.create_task(house.ask("colour", f"text {n}")) for n in range(10)]
        await until(lambda: one.open + two.open == 10)
        assert one.open == two.open == 5  # each goes where the fewest are
        for worker in (one, two):
            worker.gate.set()
        assert {done.status_code for done in await asyncio.gather(*asking)} == {200}
        # One at a time, they are drawn by lot: both get some (all alike: once in 2**39).
        before = [worker.fake.calls for worker in (one, two)]
        for _ in range(40):
            assert (await house.ask("colour")).status_code == 200
        assert all(worker.fake.calls > n for worker, n in zip((one, two), before, strict=True))


async def test_a_busy_replica_is_left_alone(root: Path) -> None:
    async with gatewayed(root, replicas={"base": 2}) as house:
        one, two = house.workers["base"]
        for worker in (one, two):
            worker.gate.clear()
        first = asyncio.create_task(house.ask("colour"))
        await until(lambda: one.open + two.open == 1)
        busy, free = (one, two) if one.open else (two, one)
        free.gate.set()
        for _ in range(20):
            assert (await house.ask("colour")).status_code == 200
        assert busy.open == 1
        busy.gate.set()
        assert (await first).status_code == 200


@asynccontextmanager
async def _two_replicas(root: Path, gateway: str) -> AsyncGenerator[tuple[House, AsyncExitStack]]:
    """Yield a house of two replicas, and the stack that stops the second when closed."""
    nowhere = {"base": ["http://127.0.0.1:1", "http://127.0.0.1:2"]}
    workers = fake_workers(tiny_fleet(root, nowhere), {"base": 2})
    stable, dying = workers["base"]
    async with serving(stable) as url, AsyncExitStack() as death:
        urls = [url, await death.enter_async_context(serving(dying))]
        fleet = tiny_fleet(root, {"base": urls}, gateway=gateway)
        async with gateway_of(fleet, workers) as house:
            await house.settled()
            yield house, death


async def test_a_dead_replica_of_two_loses_nothing_once_it_is_noticed(root: Path) -> None:
    async with _two_replicas(root, "") as (house, death):
        await death.aclose()
        await until(lambda: _states_are(house, ["ready", "unreachable"]))
        for _ in range(30):
            assert (await house.ask("colour")).status_code == 200
        assert await house.tasks_ready()


async def _states_are(house: House, states: list[str]) -> bool:
    return await house.states() == states


async def test_a_call_that_finds_a_replica_dead_is_the_last_to_find_it_so(root: Path) -> None:
    async with _two_replicas(root, "probe_interval_seconds = 60") as (house, death):
        await death.aclose()
        statuses = [(await house.ask("colour")).status_code for _ in range(40)]
        # Drawn by lot: the dead one is found out by one of 40, but for once in 2**40.
        assert statuses.count(200) >= 39
        assert set(statuses) <= {200, 502}
        assert await house.states() == ["ready", "unreachable"]


async def test_replicas_behind_a_name_come_and_go(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is looked up again and again; two loopback addresses stand for two pods."""
    addresses = ["127.0.0.1"]
    monkeypatch.setattr("server.worker.pool.LOOK_UP_INTERVAL_SECONDS", 0.02)

    async def resolve_name(host: str, port: int) -> list[str]:
        assert host == "fleet.test"
        return addresses

    monkeypatch.setattr(composition, "Pool", partial(Pool, resolve=resolve_name))
    workers = fake_workers(tiny_fleet(root, {"base": ["http://127.0.0.1:1"]}), {"base": 1})
    async with serving(workers["base"][0]) as url:
        fleet = _behind_a_name(root, f"fleet.test:{httpx.URL(url).port}")
        async with gateway_of(fleet, workers) as house:
            await until(lambda: _states_are(house, ["ready"]))
            addresses.append("127.0.0.2")  # nobody listens there
            await until(lambda: _states_are(house, ["ready", "unreachable"]))
            for _ in range(10):
                assert (await house.ask("colour")).status_code == 200
            addresses.remove("127.0.0.1")
            await until(lambda: _states_are(house, ["unreachable"]))
            error_of(await house.ask("colour"), 503, "no_ready_replica")
            addresses[:] = ["127.0.0.1"]
            await until(lambda: _states_are(house, ["ready"]))
            assert (await house.ask("colour")).status_code == 200
            replicas = {
                dict(labels)["replica"]
                for name, labels in await house.scrape()
                if name == "fleet_replica_ready"
            }
            assert len(replicas) == 1  # those that left took their series along


def _behind_a_name(root: Path, name: str) -> Fleet:
    path = write_fleet(root, f"dns = '{name}'", gateway="probe_interval_seconds = 0.02")
    return resolve(config.load(path, {}))


async def test_a_gateway_starts_without_any_worker(root: Path) -> None:
    fleet = tiny_fleet(root, {"base": ["http://127.0.0.1:1"]})
    async with gateway_of(fleet, _nobody()) as house:
        assert (await house.http.get("/health/ready")).status_code == 200
        assert (await house.http.get("/health/tasks")).status_code == 503
        error = error_of(await house.ask("colour"), 503, "no_ready_replica")
        assert "base-0" in error["message"]
        assert (await house.http.get("/openapi.json")).status_code == 200


def _nobody() -> Mapping[str, Sequence[Worker]]:
    return {"base": []}


async def test_making_an_app_touches_no_worker(root: Path) -> None:
    workers = fake_workers(tiny_fleet(root, {"base": ["http://127.0.0.1:1"]}), {"base": 1})
    async with serving(workers["base"][0]) as url:
        create_app(tiny_fleet(root, {"base": [url]}))
        assert workers["base"][0].asked == []


async def test_stopping_a_gateway_ends_what_it_asked(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workers = fake_workers(tiny_fleet(root, {"base": ["http://127.0.0.1:1"]}), {"base": 1})
    (worker,) = workers["base"]
    async with serving(worker) as url:
        async with gateway_of(tiny_fleet(root, {"base": [url]}), workers) as house:
            await until(house.tasks_ready)
            worker.fail(hang=True)
            asking = asyncio.create_task(house.ask("colour"))
            await until(lambda: worker.open == 1)
            asking.cancel()
        await until(lambda: worker.open == 0)
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_a_tokenizer_that_the_hub_does_not_give_is_a_readable_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("the hub is away\nand more lines")

    monkeypatch.setattr(composition, "hf_hub_download", refuse)
    with pytest.raises(ConfigError) as caught:
        composition.tokenizer_from_hub("google/gemma-3-270m-it", None)
    (fault,) = caught.value.faults
    assert "'google/gemma-3-270m-it'" in fault
    assert "the hub is away" in fault
    assert "\n" not in fault


async def test_a_tokenizer_from_the_hub_is_asked_for_by_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def give(model: str, name: str, *, revision: str | None) -> str:
        asked.append((model, name, revision))
        return "/cache/tokenizer.json"

    monkeypatch.setattr(composition, "hf_hub_download", give)
    assert composition.tokenizer_from_hub("a/b", "f" * 40) == Path("/cache/tokenizer.json")
    assert asked == [("a/b", "tokenizer.json", "f" * 40)]
