"""What `/metrics` counts, and what it never shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gatewayed import INPUTS, STORY, House, Samples, gatewayed, samples, say, total

pytestmark = pytest.mark.asyncio(loop_scope="module")

LABELS = {
    "fleet_requests": {"task", "variant", "outcome"},
    "fleet_request_seconds": {"task", "variant"},
    "fleet_stage_seconds": {"stage"},
    "fleet_in_flight": {"task"},
    "fleet_tokens": {"task", "variant", "direction"},
    "fleet_cost_dollars": {"task", "variant"},
    "fleet_idle_cost_dollars": {"worker"},
    "fleet_confidence": {"task", "variant"},
    "fleet_replica_ready": {"worker", "replica"},
    "fleet_replica_in_flight": {"worker", "replica"},
}
"""The contract's instruments that exist so far, as the parser names their families."""


async def test_names_and_labels_are_the_contracts(house: House) -> None:
    assert (await house.ask("colour")).status_code == 200
    response = await house.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(response.text):
        if family.name.startswith("fleet_"):
            found[family.name] = set().union(*(one.labels for one in family.samples)) - {"le"}
            assert family.documentation
            assert family.samples or family.name == "fleet_worker_restarts"
    assert LABELS.items() <= found.items()
    assert not any("_created" in name for name, _ in samples(response.text))


async def test_label_values_come_from_the_fleet_alone(house: House) -> None:
    await _odd_requests(house, 10)
    known = {
        "task": {*INPUTS, "(unknown)"},
        "variant": {"stable", "(none)"},
        "worker": {"base"},
        "replica": {"base-0"},
        "direction": {"in", "out"},
        "stage": {"prompt", "queue", "worker", "answer"},
    }
    for name, labels in await house.scrape():
        if name.startswith("fleet_"):
            for label, value in labels:
                assert label in {"outcome", "le"} or value in known[label]


async def _odd_requests(house: House, count: int) -> None:
    for number in range(count):
        for path in (f"/v1/tasks/odd-{number}", f"/health/tasks/odd-{number}", f"/odd-{number}"):
            assert (await house.http.get(path)).status_code == 404
        name = f"odd-{number}"
        assert (await house.http.post(f"/v1/tasks/{name}", json={})).status_code == 404
        assert (await house.ask("colour", variant=name, subject=name)).status_code == 404


async def test_odd_names_leave_no_series_behind(house: House) -> None:
    await _odd_requests(house, 1)
    before = set(await house.scrape())
    await _odd_requests(house, 200)
    assert set(await house.scrape()) == before


def _grown(after: Samples, before: Samples, name: str, **labels: str) -> float:
    return total(after, name, **labels) - total(before, name, **labels)


@pytest.mark.parametrize(
    ("faults", "task", "more", "outcome"),
    [
        ({}, "colour", {}, "ok"),
        ({}, "story", {"stream": True}, "ok"),
        ({}, "colour", {"stream": True}, "invalid_request"),
        ({}, "story", {"value": "a"}, "invalid_request"),
        ({}, "colour", {"value": "q" * 5000}, "input_too_long"),
        ({}, "colour", {"variant": "canary"}, "unknown_variant"),
        ({"status": 500}, "colour", {}, "worker_error"),
        ({"disconnect": True}, "story", {"stream": True}, "worker_error"),
        ({"hang": True}, "colour", {"deadline_ms": 20}, "deadline_exceeded"),
    ],
)
async def test_a_request_is_counted_once_by_how_it_ended(
    house: House, faults: dict[str, Any], task: str, more: dict[str, Any], outcome: str
) -> None:
    before = await house.scrape()
    house.worker.fail(**faults)
    await house.ask(task, more.pop("value", None), **more)
    after = await house.scrape()
    assert _grown(after, before, "fleet_requests_total", task=task, outcome=outcome) == 1
    assert _grown(after, before, "fleet_requests_total") == 1
    assert _grown(after, before, "fleet_request_seconds_count", task=task) == 1
    assert _grown(after, before, "fleet_request_seconds_count") == 1
    worked = outcome == "ok"
    assert _grown(after, before, "fleet_stage_seconds_count", stage="worker") == worked
    confident = worked and task == "colour"
    assert _grown(after, before, "fleet_confidence_count", task=task) == confident


@pytest.mark.parametrize(
    ("path", "body", "task", "outcome"),
    [
        ("colour", b"{", "colour", "invalid_request"),
        ("colour", b"{}", "colour", "invalid_request"),
        ("colour", b'{"input": 3}', "colour", "invalid_request"),
        ("story", b'{"input": 3, "stream": true}', "story", "invalid_request"),
        ("colour", b" " * 2_000_000, "colour", "invalid_request"),
        ("color", b'{"input": "a"}', "(unknown)", "unknown_task"),
        ("x" * 1000, b"{", "(unknown)", "unknown_task"),
    ],
)
async def test_what_is_refused_at_the_door_is_counted_too(
    house: House, path: str, body: bytes, task: str, outcome: str
) -> None:
    before = await house.scrape()
    await house.http.post(f"/v1/tasks/{path}", content=body)
    after = await house.scrape()
    series = {"task": task, "variant": "(none)", "outcome": outcome}
    assert _grown(after, before, "fleet_requests_total", **series) == 1
    assert _grown(after, before, "fleet_requests_total") == 1


async def test_each_input_of_a_list_is_a_request(house: House) -> None:
    before = await house.scrape()
    await house.http.post("/v1/tasks/colour", json={"inputs": ["a", "", "b", 3]})
    after = await house.scrape()
    series: dict[str, Any] = {"name": "fleet_requests_total", "task": "colour"}
    assert _grown(after, before, **series, outcome="ok") == 2
    assert _grown(after, before, **series, outcome="invalid_request") == 2


async def test_a_broken_schema_is_counted_with_the_tokens_it_took(house: House) -> None:
    before = await house.scrape()
    house.worker.edits += [say("{"), say("{")]
    assert (await house.ask("invoice")).status_code == 502
    after = await house.scrape()
    assert _grown(after, before, "fleet_requests_total", outcome="invalid_output") == 1
    prompt = len(house.worker.asked[-1]["prompt"][0])
    series: dict[str, Any] = {"name": "fleet_tokens_total", "task": "invoice"}
    assert _grown(after, before, **series, direction="in") == 2 * prompt
    assert _grown(after, before, **series, direction="out") > 2


async def test_buckets_begin_at_a_millisecond(house: House) -> None:
    bounds = {
        float(dict(labels)["le"])
        for name, labels in await house.scrape()
        if name == "fleet_request_seconds_bucket"
    }
    assert min(bounds) == 0.001
    assert max(bounds) == float("inf")


async def test_series_are_there_before_the_first_request(root: Path) -> None:
    async with gatewayed(root) as house:
        found = await house.scrape()
    for task in INPUTS:
        arm = frozenset({("task", task), ("variant", "stable")})
        assert found["fleet_requests_total", arm | {("outcome", "ok")}] == 0
        assert found["fleet_cost_dollars_total", arm] == 0
        assert found["fleet_tokens_total", arm | {("direction", "in")}] == 0
        assert found["fleet_in_flight", frozenset({("task", task)})] == 0
    base = frozenset({("worker", "base"), ("replica", "base-0")})
    assert found["fleet_replica_ready", base] == 1
    assert found["fleet_replica_in_flight", base] == 0


async def test_the_costs_of_all_tasks_and_of_idleness_are_the_bill(root: Path) -> None:
    """At 3600 dollars an hour, a replica costs a dollar a second, whatever it does."""
    first = time.monotonic()
    async with gatewayed(root, dollars_per_hour=3600) as house:
        opened = time.monotonic()
        answers = [await house.ask(task) for task in INPUTS]
        house.worker.fail(status=500)
        await house.ask("colour")
        house.worker.fail(hang=True)
        await house.ask("colour", deadline_ms=100)
        house.worker.fail()
        listed = await house.http.post("/v1/tasks/colour", json={"inputs": ["a", "b", "c"]})
        asked = time.monotonic()
        found = await house.scrape()
        scraped = time.monotonic()
    tasks = total(found, "fleet_cost_dollars_total")
    idle = total(found, "fleet_idle_cost_dollars_total", worker="base")
    assert asked - opened <= tasks + idle <= scraped - first
    assert tasks >= 0.1  # the call that hung was paid for, though nobody got an answer
    charged = [one.json()["usage"]["cost_dollars"] for one in (*answers, listed)]
    assert all(dollars > 0 for dollars in charged)
    assert sum(charged) < tasks
    story = answers[list(INPUTS).index("story")].json()["usage"]["cost_dollars"]
    assert total(found, "fleet_cost_dollars_total", task="story") == pytest.approx(story)


async def test_a_stream_says_what_it_cost(root: Path) -> None:
    async with gatewayed(root, dollars_per_hour=3600) as house:
        response = await house.ask("story", STORY, stream=True)
        found = await house.scrape()
    (cost,) = (
        line.partition('"cost_dollars":')[2].partition("}")[0]
        for line in response.text.splitlines()
        if '"cost_dollars"' in line
    )
    assert float(cost) > 0
    assert total(found, "fleet_cost_dollars_total", task="story") == pytest.approx(float(cost))
