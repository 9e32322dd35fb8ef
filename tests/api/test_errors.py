"""Every row of the contract's table of errors, each made by a request that earns it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import errors
from server.api.errors import STATUS
from tests.gatewayed import (
    STORY,
    Edit,
    House,
    check_frame,
    error_of,
    gatewayed,
    say,
    total,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

COLOUR = "/v1/tasks/colour"
RIGHT = '{"vendor":"amber","currency":"EUR"}'


async def test_every_error_of_a_request_has_a_status() -> None:
    def below(kind: type[errors.RequestError]) -> set[type[errors.RequestError]]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    ours = {one for one in below(errors.RequestError) if one.__module__ == errors.__name__}
    assert set(STATUS) == ours - {errors.RequestError}


@pytest.mark.parametrize("body", ["", "{", "nonsense", '{"input": "a"', "{\"input\": 'a'}"])
async def test_a_body_that_is_no_json_is_a_400(house: House, body: str) -> None:
    response = await house.http.post(COLOUR, content=body)
    error = error_of(response, 400, "invalid_request")
    assert "no JSON" in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_a_body_declared_too_large_is_refused_unread(house: House) -> None:
    sent = 0

    async def body() -> AsyncGenerator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield b" " * 65_536

    headers = {"content-length": str(64 * 65_536)}
    response = await house.http.post(COLOUR, content=body(), headers=headers)
    error = error_of(response, 413, "invalid_request")
    assert "1048576 bytes" in error["message"]


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(house: House) -> None:
    reader, writer = await asyncio.open_connection(*house.address)
    writer.write(b"POST /v1/tasks/colour HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(17):  # one more than fits, and the body does not end
        writer.write(b"10000\r\n" + b" " * 65_536 + b"\r\n")
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        length = int(httpx_headers(head)["content-length"])
        body = json.loads(await reader.readexactly(length))
    assert body["error"]["code"] == "invalid_request"
    writer.close()


def httpx_headers(head: bytes) -> httpx.Headers:
    """Return the headers in the head of a response."""
    lines = head.decode().split("\r\n")[1:-2]
    return httpx.Headers([(name, value) for name, _, value in (x.partition(": ") for x in lines)])


async def test_a_body_as_large_as_allowed_is_read(house: House) -> None:
    body = b'{"input": "a"}'
    response = await house.http.post(COLOUR, content=body + b" " * (1_048_576 - len(body)))
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"input": "a", "inputs": ["a"]}, None),
        ({"input": 3}, "input"),
        ({"input": ""}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"inputs": []}, "inputs"),
        ({"inputs": "a"}, "inputs"),
        ({"input": "a", "colour": "red"}, "colour"),
        ({"input": "a", "deadline_ms": 0}, "deadline_ms"),
        ({"input": "a", "deadline_ms": "1"}, "deadline_ms"),
        ({"input": "a", "subject": ""}, "subject"),
        ({"input": "a", "stream": "yes"}, "stream"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "variant": 1}, "variant"),
        ([], None),
    ],
)
async def test_a_body_against_the_contract_is_a_422(
    house: House, body: Any, param: str | None
) -> None:
    error = error_of(await house.http.post(COLOUR, json=body), 422, "invalid_request")
    assert error["param"] == param


async def test_the_field_at_fault_is_named(house: House) -> None:
    response = await house.ask("story", {**STORY, "hero": "a wolf"})
    error = error_of(response, 422, "invalid_request")
    assert error["param"] == "input.hero"
    assert "a hare" in error["message"]


@pytest.mark.parametrize("characters", [400, 20_000, 1_000_000])
async def test_an_input_of_too_many_tokens_is_refused(house: House, characters: int) -> None:
    before = house.worker.fake.calls
    error = error_of(await house.ask("colour", "q" * characters), 422, "input_too_long")
    assert error["param"] == "input"
    assert "200" in error["message"]
    assert house.worker.fake.calls == before


async def test_an_unknown_task_is_told_its_near_misses(house: House) -> None:
    error = error_of(await house.http.post("/v1/tasks/color", json={}), 404, "unknown_task")
    assert "'colour'" in error["message"]
    error = error_of(await house.http.get("/v1/tasks/zzzzzz"), 404, "unknown_task")
    assert "GET /v1/tasks" in error["message"]


async def test_an_unknown_variant_is_told_the_known_ones(house: House) -> None:
    error = error_of(await house.ask("colour", variant="canary"), 404, "unknown_variant")
    assert error["param"] == "variant"
    assert "stable" in error["message"]


async def test_too_many_at_once_are_refused_and_come_again(root: Path) -> None:
    async with gatewayed(root, gateway="max_in_flight = 1") as house:
        house.worker.gate.clear()
        first = asyncio.create_task(house.ask("colour"))
        await until(lambda: house.worker.open == 1)
        refused = await house.ask("colour")
        error = error_of(refused, 429, "overloaded")
        assert error["type"] == "server_error"
        assert int(refused.headers["retry-after"]) >= 1
        house.worker.gate.set()
        assert (await first).status_code == 200
        assert (await house.ask("colour")).status_code == 200


@pytest.mark.parametrize(
    "faults", [{"status": 500}, {"status": 404}, {"status": 429}, {"disconnect": True}]
)
async def test_a_worker_that_fails_is_a_502(house: House, faults: dict[str, Any]) -> None:
    house.worker.fail(**faults)
    error = error_of(await house.ask("colour"), 502, "worker_error")
    assert error["type"] == "server_error"
    house.worker.fail()
    assert (await house.ask("colour")).status_code == 200


async def test_a_worker_that_refuses_the_prompt_is_a_502_and_stays(house: House) -> None:
    house.worker.fail(status=400)
    error_of(await house.ask("colour"), 502, "worker_error")
    assert await house.states() == ["ready"]


def _other_tokens(body: dict[str, Any]) -> Any:
    body["choices"][0]["logprobs"]["top_logprobs"] = [{"token_id:3": -1.0}]
    return body


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: b"no json",
        lambda body: b"",
        lambda body: [],
        lambda body: {},
        lambda body: {**body, "choices": []},
        lambda body: {**body, "choices": body["choices"] * 2},
        _other_tokens,
    ],
)
async def test_a_malformed_answer_is_a_502(house: House, edit: Edit) -> None:
    house.worker.edits.append(edit)
    error_of(await house.ask("colour"), 502, "worker_error")


@pytest.mark.parametrize(
    "broken",
    [
        say("{"),
        say('{"vendor": "amber"}'),
        say('{"vendor": "amber", "currency": "GBP"}'),
        say('{"vendor": NaN, "currency": "EUR"}'),
        say(RIGHT, "length"),
        say("[" * 100_000),
    ],
)
async def test_a_schema_broken_twice_is_a_502(house: House, broken: Edit) -> None:
    house.worker.edits += [broken, broken]
    before = house.worker.fake.calls
    error_of(await house.ask("invoice"), 502, "invalid_output")
    assert house.worker.fake.calls == before + 2


async def test_a_schema_broken_once_is_asked_again_and_both_are_paid(house: House) -> None:
    found = await house.scrape()
    house.worker.edits += [say('{"vendor": 3}'), say(RIGHT)]
    before = len(house.worker.asked)
    response = await house.ask("invoice")
    assert response.status_code == 200
    body = response.json()
    assert body["output"] == {"data": json.loads(RIGHT)}
    first, second = house.worker.asked[before:]
    assert first["prompt"] == second["prompt"]
    sampled = [(one["temperature"], one.get("seed")) for one in (first, second)]
    assert sampled[0] != sampled[1]
    assert body["usage"]["prompt_tokens"] == 2 * len(first["prompt"][0])
    now = await house.scrape()
    for direction, key in (("in", "prompt_tokens"), ("out", "completion_tokens")):
        labels = {"task": "invoice", "variant": "stable", "direction": direction}
        more = total(now, "fleet_tokens_total", **labels) - total(
            found, "fleet_tokens_total", **labels
        )
        assert more == body["usage"][key]


async def test_a_label_that_is_none_is_not_asked_for_again(house: House) -> None:
    house.worker.edits.append(say("perhaps"))
    before = house.worker.fake.calls
    error_of(await house.ask("spoken"), 502, "invalid_output")
    assert house.worker.fake.calls == before + 1


async def test_nobody_ready_is_a_503_that_says_why_and_when(house: House) -> None:
    house.worker.fail(status=503, on=["health"])
    await until(lambda: _unreachable(house))
    response = await house.ask("colour")
    error = error_of(response, 503, "no_ready_replica")
    assert "base" in error["message"]
    assert int(response.headers["retry-after"]) >= 1


async def _unreachable(house: House) -> bool:
    return await house.states() == ["unreachable"]


async def test_a_deadline_that_passes_is_a_504(house: House) -> None:
    house.worker.fail(hang=True)
    response = await house.ask("colour", deadline_ms=50)
    error = error_of(response, 504, "deadline_exceeded")
    assert error["type"] == "server_error"
    await until(lambda: house.worker.open == 0)


async def test_a_deadline_that_has_passed_asks_nobody(house: House) -> None:
    before = house.worker.fake.calls
    error_of(await house.ask("colour", deadline_ms=1e-9), 504, "deadline_exceeded")
    assert house.worker.fake.calls == before


async def test_the_configuration_caps_the_deadline(root: Path) -> None:
    async with gatewayed(root, gateway="request_timeout_seconds = 0.1") as house:
        house.worker.fail(hang=True)
        for more in ({"deadline_ms": 600_000}, {}):
            error_of(await house.ask("colour", **more), 504, "deadline_exceeded")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health/live/x"),
        ("POST", "/v1/tasks/colour/more"),
        ("POST", "/v1/tasks/colour/"),
        ("GET", "/v1/tasks/"),
        ("GET", "/nothing"),
        ("GET", "/docs"),
        ("HEAD", "/nothing"),
        ("GET", "/page.css/"),
    ],
)
async def test_nothing_at_a_path_is_a_404(house: House, method: str, path: str) -> None:
    response = await house.http.request(method, path)
    assert response.status_code == 404
    if method != "HEAD":
        error_of(response, 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", COLOUR),
        ("PUT", COLOUR),
        ("PROPFIND", COLOUR),
        ("OPTIONS", COLOUR),
        ("POST", "/v1/tasks"),
        ("POST", "/health/live"),
        ("POST", "/metrics"),
    ],
)
async def test_another_method_is_a_405_that_names_the_right_one(
    house: House, method: str, path: str
) -> None:
    response = await house.http.request(method, path)
    error = error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == ("GET, POST" if path == COLOUR else "GET")
    assert response.headers["allow"] in error["message"]


SECRET = "the sky over Zanzibar"


async def test_a_fault_of_ours_is_a_500_with_a_traceback_in_the_log(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def planted(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("server.rollout.assignment.choose", planted)
    before = total(await house.scrape(), "fleet_requests_total", outcome="internal_error")
    with caplog.at_level(logging.DEBUG):
        response = await house.ask("colour", SECRET)
    error = error_of(response, 500, "internal_error")
    assert "planted" not in error["message"]
    (record,) = (one for one in caplog.records if one.levelno >= logging.ERROR)
    assert error["request_id"] in record.getMessage()
    assert record.exc_info is not None
    assert "planted" in caplog.text
    assert SECRET not in caplog.text
    after = total(await house.scrape(), "fleet_requests_total", outcome="internal_error")
    assert after == before + 1


async def test_a_fault_of_ours_in_a_list_is_a_500(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def planted(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("server.rollout.assignment.choose", planted)
    response = await house.http.post(COLOUR, json={"inputs": ["a", "b"]})
    error = error_of(response, 500, "internal_error")
    assert error["request_id"] in caplog.text
    assert "planted" in caplog.text


async def test_no_prompt_is_logged_whatever_happens(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert (await house.ask("colour", SECRET)).status_code == 200
        assert (await house.ask("colour", SECRET * 100)).status_code == 422
        assert (await house.ask("colour", {"text": SECRET})).status_code == 422
        for faults in ({"status": 500}, {"status": 400}, {"disconnect": True}):
            house.worker.fail(**faults)
            assert (await house.ask("colour", SECRET)).status_code == 502
        house.worker.fail()
        house.worker.edits += [say(SECRET), say(SECRET)]
        response = await house.ask("invoice", SECRET)
        assert response.status_code == 502
        assert SECRET not in response.text
    assert caplog.records
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("headers", "says"),
    [({}, "x-request-id"), ({"x-request-id": "a"}, "server-timing")],
)
async def test_the_check_of_every_response_can_fail(headers: dict[str, str], says: str) -> None:
    request = httpx.Request("GET", "http://x/")
    with pytest.raises(KeyError, match=says):
        await check_frame(httpx.Response(200, headers=headers, request=request))
