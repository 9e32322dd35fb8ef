"""What health and the fleet's state say, as workers come and go."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gatewayed import (
    COLOUR_V2,
    INPUTS,
    House,
    canary,
    error_of,
    fake_workers,
    gateway_of,
    gatewayed,
    tiny_fleet,
    total,
    until,
)
from tests.serving import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

TASKS = list(INPUTS)


def _missing(response: httpx.Response) -> dict[str, Any]:
    """Return what is missing, by task."""
    body = response.json()
    assert set(body) == {"status", "tasks"}
    assert (response.status_code == 200) == (body["status"] == "ready")
    for task in body["tasks"]:
        assert set(task) == {"task", "ready", "missing"}
        assert task["ready"] == (not task["missing"])
    return {task["task"]: task["missing"] for task in body["tasks"]}


async def test_all_is_well(house: House) -> None:
    for path, status in (("live", "live"), ("ready", "ready")):
        response = await house.http.get(f"/health/{path}")
        assert (response.status_code, response.json()) == (200, {"status": status})
    response = await house.http.get("/health/tasks")
    assert response.status_code == 200
    assert _missing(response) == {task: {} for task in TASKS}
    for task in TASKS:
        response = await house.http.get(f"/health/tasks/{task}")
        assert response.status_code == 200
        assert _missing(response) == {task: {}}
    error_of(await house.http.get("/health/tasks/color"), 404, "unknown_task")


async def test_the_fleet_is_shown(house: House) -> None:
    body = (await house.http.get("/v1/fleet")).json()
    assert set(body) == {"workers", "tasks"}
    (replica,) = body["workers"]["base"]["replicas"]
    specialists = {task: arms[0].specialist.id for task, arms in house.fleet.variants.items()}
    assert replica["name"] == "base-0"
    assert replica["state"] == "ready"
    assert replica["in_flight"] == 0
    assert replica["refused"] == {}
    assert set(replica["proven"]) == set(specialists.values())
    assert set(body["workers"]["base"]["specialists"]) == set(specialists.values())
    for task in TASKS:
        assert body["tasks"][task] == [
            {
                "name": "stable",
                "specialist": specialists[task],
                "worker": "base",
                "weight": 100,
                "ready_replicas": 1,
            }
        ]


async def test_a_sick_worker_takes_its_tasks_down_but_not_the_gateway(house: House) -> None:
    house.worker.fail(status=503, on=["health"])
    await until(lambda: _tasks_are(house, ready=False))
    response = await house.http.get("/health/tasks")
    missing = _missing(response)
    assert list(missing) == TASKS
    for arms in missing.values():
        assert arms["stable"]["worker"] == "base"
        assert "base-0 is unreachable" in arms["stable"]["reason"]
        assert "503" in arms["stable"]["reason"]
    assert (await house.http.get("/health/tasks/story")).status_code == 503
    for path in ("live", "ready"):
        assert (await house.http.get(f"/health/{path}")).status_code == 200
    found = await house.scrape()
    assert total(found, "fleet_replica_ready", worker="base", replica="base-0") == 0
    house.worker.fail()
    await until(lambda: _tasks_are(house, ready=True))
    assert (await house.ask("story")).status_code == 200
    found = await house.scrape()
    assert total(found, "fleet_replica_ready", worker="base", replica="base-0") == 1


async def _tasks_are(house: House, *, ready: bool) -> bool:
    return await house.tasks_ready() is ready


async def test_a_worker_that_dies_is_missed_at_once_and_comes_back(root: Path) -> None:
    workers = fake_workers(tiny_fleet(root, {"base": ["http://127.0.0.1:1"]}), {"base": 1})
    (worker,) = workers["base"]
    dying = AsyncExitStack()
    url = await dying.enter_async_context(serving(worker))
    # Probed so rarely that only the failing call itself can tell.
    fleet = tiny_fleet(root, {"base": [url]}, gateway="probe_interval_seconds = 60")
    async with dying, gateway_of(fleet, workers) as house:
        await until(house.tasks_ready)
        await dying.aclose()
        error_of(await house.ask("colour"), 502, "worker_error")
        response = await house.ask("colour")
        error = error_of(response, 503, "no_ready_replica")
        assert "base-0 is unreachable" in error["message"]
        assert int(response.headers["retry-after"]) >= 1
        assert not await house.tasks_ready()
        assert (await house.http.get("/health/ready")).status_code == 200
    fleet = tiny_fleet(root, {"base": [url]})
    async with gateway_of(fleet, workers) as house:
        assert not await house.tasks_ready()
        async with serving(worker, httpx.URL(url).port or 0):
            await until(house.tasks_ready)
            assert (await house.ask("colour")).status_code == 200


async def test_a_draining_gateway_is_not_ready_but_answers(root: Path) -> None:
    async with gatewayed(root) as house:
        house.draining.begun = True
        response = await house.http.get("/health/ready")
        assert (response.status_code, response.json()) == (503, {"status": "draining"})
        assert (await house.http.get("/health/live")).status_code == 200
        assert (await house.ask("colour")).status_code == 200


async def test_an_adapter_that_is_not_applied_takes_down_its_task_alone(root: Path) -> None:
    plain = tiny_fleet(root, {"base": ["http://127.0.0.1:1"]})
    parrot = plain.variants["topics"][0].specialist.id

    def prepare(workers: Any) -> None:
        workers["base"][0].fail(parrots=[parrot])

    async with gatewayed(root, prepare=prepare) as house:
        (replica,) = (await house.http.get("/v1/fleet")).json()["workers"]["base"]["replicas"]
        assert replica["state"] == "degraded"
        assert list(replica["refused"]) == [parrot]
        assert "answers like its base 'base'" in replica["refused"][parrot]
        assert parrot not in replica["proven"]
        missing = _missing(await house.http.get("/health/tasks"))
        assert {task for task, arms in missing.items() if arms} == {"topics"}
        assert parrot in missing["topics"]["stable"]["reason"]
        error = error_of(await house.ask("topics"), 503, "no_ready_replica")
        assert "golden probe" in error["message"]
        for task in TASKS:
            if task != "topics":
                assert (await house.ask(task)).status_code == 200
                assert (await house.http.get(f"/health/tasks/{task}")).status_code == 200


@pytest.mark.parametrize(("weight", "status"), [(0, 200), (10, 503)])
async def test_a_task_hangs_on_a_variant_that_takes_traffic_alone(
    root: Path, weight: int, status: int
) -> None:
    """A canary on a worker that is away."""
    extra = canary(weight, "other")
    replicas = {"base": 1, "other": 1}

    def prepare(workers: Any) -> None:
        workers["other"][0].fail(status=500, on=["health"])

    nowhere = {"base": ["http://127.0.0.1:1"], "other": ["http://127.0.0.1:2"]}
    assert tiny_fleet(root, nowhere, extra=extra).variants["colour"][1].specialist.path == (
        root / COLOUR_V2
    )
    async with gatewayed(
        root, replicas=replicas, prepare=prepare, extra=extra, settle=["base"]
    ) as house:
        response = await house.http.get("/health/tasks/colour")
        assert response.status_code == status
        missing = _missing(response)["colour"]
        if weight:
            assert missing["canary"]["worker"] == "other"
            assert "stable" not in missing
        answered = await house.ask("colour", variant="stable")
        assert answered.status_code == 200
        error_of(await house.ask("colour", variant="canary"), 503, "no_ready_replica")
