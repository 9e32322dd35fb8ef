"""Who answers: variants by weight, by subject, by name, and on other workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.gatewayed import House, canary, error_of, gatewayed, total, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Make these tests run on the event loop of production."""
    return uvloop.EventLoopPolicy()


def _arms(house: House) -> dict[str, str]:
    """Return the specialist of each of the colour task's variants."""
    return {one.name: one.specialist.id for one in house.fleet.variants["colour"]}


async def _who(house: House, **more: Any) -> str:
    response = await house.ask("colour", **more)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["specialist"] == _arms(house)[body["variant"]]
    return str(body["variant"])


async def test_subjects_stick_and_fall_by_weight(root: Path) -> None:
    async with gatewayed(root, extra=canary(30)) as house:
        subjects = [f"subject-{number}" for number in range(300)]
        first = {one: await _who(house, subject=one) for one in subjects}
        # Binomial(300, 0.3): beyond five standard deviations lies less than one in a million.
        assert 50 <= Counter(first.values())["canary"] <= 130
        for one in subjects[:50]:
            assert await _who(house, subject=one) == first[one]
        found = await house.scrape()
        for variant in ("stable", "canary"):
            counted = total(
                found, "fleet_requests_total", task="colour", variant=variant, outcome="ok"
            )
            again = sum(first[one] == variant for one in subjects[:50])
            assert counted == Counter(first.values())[variant] + again
        specialists = _arms(house)
        asked = Counter(one["model"] for one in house.worker.asked)
        for name, specialist in specialists.items():
            assert asked[specialist] > 0, name

    # Another gateway, with a heavier canary: whoever had it keeps it.
    async with gatewayed(root, extra=canary(60)) as house:
        for one in subjects[:100]:
            assert await _who(house, subject=one) == "canary" or first[one] == "stable"
            assert first[one] == "stable" or await _who(house, subject=one) == "canary"


async def test_without_a_subject_each_request_is_drawn_anew(root: Path) -> None:
    async with gatewayed(root, extra=canary(50)) as house:
        drawn = Counter([await _who(house) for _ in range(60)])
        assert set(drawn) == {"stable", "canary"}  # all alike: once in 2**59
        body = {"inputs": ["a"] * 60}
        listed = (await house.http.post("/v1/tasks/colour", json=body)).json()["results"]
        assert {one["variant"] for one in listed} == {"stable", "canary"}
        stuck = {"inputs": ["a"] * 60, "subject": "ann"}
        listed = (await house.http.post("/v1/tasks/colour", json=stuck)).json()["results"]
        assert len({one["variant"] for one in listed}) == 1


async def test_a_variant_can_be_forced(root: Path) -> None:
    async with gatewayed(root, extra=canary(0)) as house:
        for name, specialist in _arms(house).items():
            before = len(house.worker.asked)
            assert {await _who(house, variant=name, subject=str(n)) for n in range(5)} == {name}
            assert {one["model"] for one in house.worker.asked[before:]} == {specialist}
        # Of weight 0, it answers nobody else.
        assert {await _who(house, subject=str(n)) for n in range(50)} == {"stable"}
        error = error_of(await house.ask("colour", variant="beta"), 404, "unknown_variant")
        assert "stable, canary" in error["message"]
        # Its card has no temperature: its scores are not the stable one's.
        answers = [
            (await house.ask("colour", variant=name)).json()["output"] for name in _arms(house)
        ]
        assert answers[0] != answers[1]


async def test_all_the_traffic_can_go_to_a_variant(root: Path) -> None:
    async with gatewayed(root, extra=canary(100)) as house:
        assert {await _who(house, subject=str(n)) for n in range(50)} == {"canary"}
        assert await _who(house, variant="stable") == "stable"


async def test_a_variant_may_live_on_another_worker(root: Path) -> None:
    extra = canary(50, "other")
    async with gatewayed(root, replicas={"base": 1, "other": 1}, extra=extra) as house:
        (other,) = house.workers["other"]
        specialists = _arms(house)
        proofs = len(other.asked)
        assert {one["model"] for one in other.asked} == {specialists["canary"]}
        assert await _who(house, variant="canary") == "canary"
        assert len(other.asked) == proofs + 1
        assert await _who(house, variant="stable") == "stable"
        assert len(other.asked) == proofs + 1
        shown = (await house.http.get("/v1/fleet")).json()["tasks"]["colour"]
        assert [one["worker"] for one in shown] == ["base", "other"]
        # Who falls to the canary is told when its worker is sick; the others never notice.
        other.fail(status=500)
        error_of(await house.ask("colour", variant="canary"), 502, "worker_error")
        assert await _who(house, variant="stable") == "stable"
        found = await house.scrape()
        failed = total(found, "fleet_requests_total", variant="canary", outcome="worker_error")
        assert failed == 1


async def test_requests_in_flight_are_shown(house: House) -> None:
    house.worker.gate.clear()
    asking = [asyncio.create_task(house.ask("colour")) for _ in range(3)]
    await until(lambda: house.worker.open == 3)
    found = await house.scrape()
    assert total(found, "fleet_in_flight", task="colour") == 3
    assert total(found, "fleet_replica_in_flight", worker="base", replica="base-0") == 3
    (replica,) = (await house.http.get("/v1/fleet")).json()["workers"]["base"]["replicas"]
    assert replica["in_flight"] == 3
    house.worker.gate.set()
    assert {one.status_code for one in await asyncio.gather(*asking)} == {200}
    found = await house.scrape()
    assert total(found, "fleet_in_flight") == 0
    assert total(found, "fleet_replica_in_flight") == 0


async def test_one_deadline_covers_both_attempts(house: House) -> None:
    """The first answer breaks its schema at once; the second never comes."""
    broken = asyncio.Event()

    def edit(body: dict[str, Any]) -> Any:
        house.worker.fail(hang=True)
        broken.set()
        return {**body, "choices": [{**body["choices"][0], "text": "{"}]}

    house.worker.edits.append(edit)
    error_of(await house.ask("invoice", deadline_ms=500), 504, "deadline_exceeded")
    assert broken.is_set()
    await until(lambda: house.worker.open == 0)


async def test_a_list_holds_a_place_for_each_of_its_inputs(root: Path) -> None:
    async with gatewayed(root, gateway="max_in_flight = 2") as house:
        house.worker.gate.clear()
        body = {"inputs": ["a", "b", "c"]}
        asking = asyncio.create_task(house.http.post("/v1/tasks/colour", json=body))
        await until(lambda: house.worker.open == 2)
        error_of(await house.ask("colour"), 429, "overloaded")
        house.worker.gate.set()
        results = (await asking).json()["results"]
        assert [one.get("error", {}).get("code") for one in results] == [None, None, "overloaded"]
