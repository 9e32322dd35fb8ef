"""Text piece by piece, and callers who leave."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gatewayed import (
    INPUTS,
    STORY,
    House,
    error_of,
    events_of,
    gatewayed,
    samples,
    total,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _abandoned(house: House, task: str) -> float:
    return total(await house.scrape(), "fleet_requests_total", task=task, outcome="abandoned")


async def test_the_pieces_join_to_the_answer(house: House) -> None:
    before = await house.scrape()
    response = await house.ask("story", stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert response.headers["cache-control"] == "no-store"
    *deltas, (last, answer) = events_of(response.text)
    assert last == "answer"
    assert len(deltas) > 1
    assert {name for name, _ in deltas} == {"delta"}
    assert all(set(data) == {"text"} and data["text"] for _, data in deltas)
    assert "".join(data["text"] for _, data in deltas) == answer["output"]["text"]
    # The whole answer is that of a request without `stream`: the fake says the same.
    whole = (await house.ask("story")).json()
    assert answer.keys() == whole.keys()
    for key in ("task", "variant", "specialist", "output"):
        assert answer[key] == whole[key]
    for key in ("prompt_tokens", "completion_tokens"):
        assert answer["usage"][key] == whole["usage"][key]
    now = await house.scrape()
    for direction, key in (("in", "prompt_tokens"), ("out", "completion_tokens")):
        series: Any = {"name": "fleet_tokens_total", "task": "story", "direction": direction}
        assert total(now, **series) - total(before, **series) == 2 * answer["usage"][key]


@pytest.mark.parametrize("task", [task for task in INPUTS if task != "story"])
async def test_only_text_is_streamed(house: House, task: str) -> None:
    before = house.worker.fake.calls
    error = error_of(await house.ask(task, stream=True), 422, "invalid_request")
    assert error["param"] == "stream"
    assert house.worker.fake.calls == before


@pytest.mark.parametrize(
    ("faults", "more", "status", "code"),
    [
        ({"status": 500}, {}, 502, "worker_error"),
        ({"status": 400}, {}, 502, "worker_error"),
        ({"hang": True}, {"deadline_ms": 50}, 504, "deadline_exceeded"),
        ({}, {"variant": "canary"}, 404, "unknown_variant"),
        ({}, {"input": {"hero": "a fox"}}, 422, "invalid_request"),
        ({}, {"inputs": [STORY], "input": STORY}, 422, "invalid_request"),
    ],
)
async def test_what_fails_before_the_first_piece_is_an_ordinary_error(
    house: House, faults: dict[str, Any], more: dict[str, Any], status: int, code: str
) -> None:
    house.worker.fail(**faults)
    body = {"input": STORY, "stream": True, **more}
    error_of(await house.http.post("/v1/tasks/story", json=body), status, code)


async def test_a_list_cannot_be_streamed(house: House) -> None:
    body = {"inputs": [STORY], "stream": True}
    error = error_of(await house.http.post("/v1/tasks/story", json=body), 422, "invalid_request")
    assert "stream" in error["message"]


async def test_what_breaks_off_midway_ends_in_an_error_event(house: House) -> None:
    house.worker.fail(disconnect=True)
    response = await house.ask("story", stream=True)
    assert response.status_code == 200
    *deltas, (last, data) = events_of(response.text)
    assert deltas
    assert {name for name, _ in deltas} == {"delta"}
    assert last == "error"
    assert data["error"]["code"] == "worker_error"
    assert data["error"]["request_id"] == response.headers["x-request-id"]
    failed = total(
        await house.scrape(), "fleet_requests_total", task="story", outcome="worker_error"
    )
    assert failed >= 1


async def test_a_deadline_that_passes_midway_ends_in_an_error_event(house: House) -> None:
    house.worker.pieces = 2
    response = await house.ask("story", stream=True, deadline_ms=1000)
    *deltas, (last, data) = events_of(response.text)
    assert len(deltas) == 2
    assert (last, data["error"]["code"]) == ("error", "deadline_exceeded")
    await until(lambda: house.worker.fake.running == 0)


async def test_a_fault_of_ours_midway_cuts_the_stream(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def planted(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("server.gateway.Gateway._answer", planted)
    with pytest.raises(httpx.RemoteProtocolError):
        await house.http.post(
            "/v1/tasks/story",
            json={"input": STORY, "stream": True},
            headers={"x-request-id": "the-broken-one"},
        )
    assert "the-broken-one" in caplog.text
    assert "planted" in caplog.text


async def test_leaving_a_stream_ends_the_workers_call(house: House) -> None:
    before = await _abandoned(house, "story")
    house.worker.pieces = 2
    body = {"input": STORY, "stream": True}
    async with house.http.stream("POST", "/v1/tasks/story", json=body) as response:
        await anext(response.aiter_bytes())
        assert house.worker.fake.running == 1
    await until(lambda: house.worker.fake.running == 0)
    await until(lambda: _counted(house, "story", before + 1))
    await until(lambda: _idle(house))


async def test_leaving_before_the_first_piece_ends_the_workers_call(house: House) -> None:
    before = await _abandoned(house, "story")
    house.worker.fail(hang=True)
    asking = asyncio.create_task(house.ask("story", stream=True))
    await until(lambda: house.worker.open == 1)
    asking.cancel()
    await until(lambda: house.worker.open == 0)
    await until(lambda: _counted(house, "story", before + 1))
    await until(lambda: _idle(house))


@pytest.mark.parametrize("body", [{"input": "a"}, {"inputs": ["a", "b", "c"]}])
async def test_leaving_ends_every_call_of_the_worker(house: House, body: dict[str, Any]) -> None:
    count = len(body.get("inputs", "a"))
    before = await _abandoned(house, "colour")
    house.worker.fail(hang=True)
    asking = asyncio.create_task(house.http.post("/v1/tasks/colour", json=body))
    await until(lambda: house.worker.open == count)
    asking.cancel()
    await until(lambda: house.worker.open == 0)
    await until(lambda: _counted(house, "colour", before + count))
    await until(lambda: _idle(house))


async def test_leaving_while_sending_is_nobodys_fault(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    before = house.worker.fake.calls
    reader, writer = await asyncio.open_connection(*house.address)
    writer.write(
        b"POST /v1/tasks/colour HTTP/1.1\r\nhost: x\r\nx-request-id: the-departed\r\n"
        b'content-length: 1000\r\nexpect: 100-continue\r\n\r\n{"input": '
    )
    assert await reader.readuntil(b"\r\n\r\n")  # it reads the body now
    writer.close()
    await writer.wait_closed()
    for _ in range(5):  # the gateway has heard of it long before these are answered
        assert (await house.ask("colour")).status_code == 200
    assert house.worker.fake.calls == before + 5
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_the_departed_free_their_places(root: Path) -> None:
    async with gatewayed(root, gateway="max_in_flight = 2") as house:
        house.worker.fail(hang=True)
        asking = [asyncio.create_task(house.ask(task)) for task in ("colour", "spoken")]
        await until(lambda: house.worker.open == 2)
        error_of(await house.ask("colour"), 429, "overloaded")
        for one in asking:
            one.cancel()
        await until(lambda: house.worker.open == 0)
        house.worker.fail()
        for _ in range(3):
            assert (await house.ask("colour")).status_code == 200


async def _counted(house: House, task: str, wanted: float) -> bool:
    return await _abandoned(house, task) == wanted


async def _idle(house: House) -> bool:
    found = samples((await house.http.get("/metrics")).text)
    return total(found, "fleet_in_flight") == total(found, "fleet_replica_in_flight") == 0
