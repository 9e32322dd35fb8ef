"""The request's id and its timing, on every response there is."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.api.test_errors import httpx_headers
from tests.gatewayed import STORY, House

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = [
    ("GET", "/", None),
    ("GET", "/page.js", None),
    ("GET", "/health/live", None),
    ("GET", "/health/tasks", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
    ("GET", "/nothing", None),
    ("HEAD", "/nothing", None),
    ("PUT", "/v1/tasks", None),
    ("POST", "/v1/tasks/color", b"{}"),
    ("POST", "/v1/tasks/colour", b"{"),
    ("POST", "/v1/tasks/colour", b'{"input": "a"}'),
    ("POST", "/v1/tasks/colour", b" " * 2_000_000),
    ("POST", "/v1/tasks/story", b'{"input": {"hero": "a fox", "place": "a hill"}, "stream": true}'),
]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_the_callers_id_comes_back(
    house: House, method: str, path: str, body: bytes | None
) -> None:
    given = "!trace-7~"
    response = await house.http.request(method, path, content=body, headers={"X-Request-Id": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert len(response.headers.get_list("server-timing")) == 1


@pytest.mark.parametrize("length", [1, 128])
async def test_an_id_may_have_up_to_128_characters(house: House, length: int) -> None:
    given = "x" * length
    response = await house.http.get("/health/live", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given", [b"", b"x" * 129, b"two words", b"tab\there", b"caf\xc3\xa9", b"caf\xe9"]
)
async def test_a_hostile_id_is_replaced(house: House, given: bytes) -> None:
    request = house.http.build_request("GET", "/health/live")
    request.headers = type(request.headers)([*request.headers.raw, (b"x-request-id", given)])
    response = await house.http.send(request)
    assert re.fullmatch(r"req_[0-9a-f]{24}", response.headers["x-request-id"])


async def test_an_id_cannot_split_the_response(house: House) -> None:
    reader, writer = await asyncio.open_connection(*house.address)
    writer.write(
        b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-request-id: a%0d%0aset-cookie:b\r\n"
        b"connection: close\r\n\r\n"
    )
    headers = httpx_headers((await reader.read()).partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    writer.close()
    assert headers["x-request-id"] == "a%0d%0aset-cookie:b"
    assert "set-cookie" not in headers


async def test_ids_that_nobody_gave_differ(house: House) -> None:
    ids = {(await house.http.get("/health/live")).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


async def test_an_answers_timing_names_its_stages(house: House) -> None:
    response = await house.ask("colour")
    stages = re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"])
    assert [name for name, _ in stages] == ["queue", "worker", "total"]
    timing = response.json()["timing_ms"]
    for name, milliseconds in stages[:2]:
        assert float(milliseconds) == pytest.approx(timing[name], abs=0.006)
    assert 0 < timing["worker"] <= timing["total"] <= float(stages[2][1])


async def test_a_stream_has_both_before_its_first_event(house: House) -> None:
    body = {"input": STORY, "stream": True}
    async with house.http.stream("POST", "/v1/tasks/story", json=body) as response:
        assert response.status_code == 200
        assert response.headers["x-request-id"]
        assert "total;dur=" in response.headers["server-timing"]
        await response.aread()
