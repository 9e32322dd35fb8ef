"""The fake beyond the contract: its instances, its faults on demand, and its command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from server.errors import DeadlineExceeded, WorkerError, WorkerUnreachable
from server.types import Prompt, Sample, ScoreTokens
from server.worker.client import WorkerClient
from server.worker.fake import FakeWorker, Faults
from server.worker.fake.__main__ import main
from server.worker.fake.instances import instance
from server.worker.probe import total_variation
from tests.real_engine import free_port
from tests.serving import serving

PROMPT = Prompt((5, 6, 7))
SCORE = ScoreTokens((1, 2, 3))
GOLDEN = {1: -0.1, 2: -3.0, 3: -4.0}

SCHEMAS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "minLength": 70, "maxLength": 75},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
    {"type": "string", "pattern": r"^[A-Z]{2,4}-[0-9]+$"},
    {"type": "string", "pattern": r"^\w+\.?[a-z_\-]*$"},
    {"type": "string", "format": "date"},
    {"type": "integer", "minimum": -3, "maximum": 3},
    {"type": "integer", "exclusiveMinimum": 10, "multipleOf": 7},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "maximum": -5},
    {"type": ["string", "null"]},
    {"enum": ["a", 1, None, {"b": []}]},
    {"const": 5},
    {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}}]},
    {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"allOf": [{"type": "integer", "minimum": 4}, {"maximum": 6}]},
    {"type": "array", "minItems": 2, "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "minItems": 2, "maxItems": 2},
    {"properties": {"a": {"type": "integer"}}, "required": ["a", "b"]},
    {
        "type": "object",
        "$defs": {"money": {"type": "object", "properties": {"cents": {"type": "integer"}}}},
        "properties": {
            "total": {"$ref": "#/$defs/money"},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/money"}, "minItems": 1},
        },
        "required": ["total", "lines"],
        "additionalProperties": False,
    },
]  # fmt: skip


@given(st.sampled_from(SCHEMAS), st.integers(0, 1_000))
def test_instances_are_valid_under_their_schema(schema: dict[str, Any], seed: int) -> None:
    Draft202012Validator(schema).validate(instance(schema, Random(seed).randrange))


@dataclass
class World:
    """A fake on a socket, and a client."""

    fake: FakeWorker
    url: str
    client: WorkerClient

    async def scores(self, model: str = "a@1", prompt: Prompt = PROMPT) -> dict[int, float]:
        """Ask `model` for its scores, with half a second of patience."""
        (completion,) = await self.client.complete(
            self.url, model, [prompt], SCORE, timeout_seconds=0.5
        )
        return dict(completion.steps[0].logprobs)

    async def text(self) -> str:
        """Read a stream."""
        stream = self.client.stream(self.url, "a@1", PROMPT, Sample(30), timeout_seconds=0.5)
        return "".join([chunk.text async for chunk in stream])


@pytest.fixture
async def world(client: WorkerClient) -> AsyncGenerator[World]:
    fake = FakeWorker({"base": {}, "a@1": {PROMPT.token_ids: GOLDEN}})
    async with serving(fake) as url:
        yield World(fake, url, client)


async def test_golden_prompts_get_their_golden_answer(world: World) -> None:
    assert await world.scores() == GOLDEN
    assert await world.scores("base") != GOLDEN
    assert await world.scores(prompt=Prompt((5, 6, 8))) != GOLDEN


async def test_a_parrot_answers_as_its_base(world: World) -> None:
    world.fake.faults = Faults(parrots=frozenset({"a@1"}))
    assert await world.scores() == await world.scores("base")
    assert total_variation(await world.scores(), GOLDEN) > 0.1


async def test_statuses_on_demand(world: World) -> None:
    world.fake.faults = Faults(status=503)
    with pytest.raises(WorkerError, match="503"):
        await world.scores()
    await world.client.health(world.url, timeout_seconds=5)
    world.fake.faults = Faults(status=500, on=frozenset({"health", "models"}))
    assert await world.scores() == GOLDEN
    with pytest.raises(WorkerError, match="500"):
        await world.client.health(world.url, timeout_seconds=5)
    with pytest.raises(WorkerError, match="500"):
        await world.client.models(world.url, timeout_seconds=5)


@pytest.mark.parametrize("faults", [Faults(hang=True), Faults(delay_seconds=30)])
async def test_hanging_and_dawdling(world: World, faults: Faults) -> None:
    world.fake.faults = faults
    with pytest.raises(DeadlineExceeded):
        await world.scores()
    with pytest.raises(DeadlineExceeded):
        await world.text()


async def test_disconnecting_half_way(world: World) -> None:
    world.fake.faults = Faults(disconnect=True)
    for call in (world.scores(), world.text()):
        with pytest.raises(WorkerError) as raised:
            await call
        assert not isinstance(raised.value, WorkerUnreachable)


async def test_only_each_nth_request_is_struck(world: World) -> None:
    world.fake.faults = Faults(status=500, every=3)
    struck = 0
    for _ in range(9):
        try:
            await world.scores()
        except WorkerError:
            struck += 1
    assert struck == 3


async def test_faults_are_set_over_http(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as http:
        answer = await http.post("/fake/faults", json={"status": 500, "on": ["completions"]})
        assert answer.json()["status"] == 500
        with pytest.raises(WorkerError, match="500"):
            await world.scores()
        assert (await http.post("/fake/faults", json={"stauts": 500})).status_code == 400
        assert (await http.get("/fake/faults")).json()["status"] == 500
        await http.post("/fake/faults", json={})
    assert world.fake.faults == Faults()
    assert await world.scores() == GOLDEN


async def test_texts_are_prompts_too(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as http:
        for prompt, tokens in (("one two", 2), (["one two", "three"], 3), ([5, 6, 7], 3)):
            call = {"model": "base", "prompt": prompt, "max_tokens": 4}
            answer = (await http.post("/v1/completions", json=call)).json()
            assert answer["usage"]["prompt_tokens"] == tokens
        for body in ("{", "[]", '{"model": "base"}', '{"model": "base", "prompt": []}'):
            answer = (await http.post("/v1/completions", content=body)).json()
            assert answer["error"]["code"] == 400
        assert (await http.get("/nothing")).status_code == 404


def test_the_command_serves_a_fleet_until_it_is_told_to_stop(
    fleet_path: Callable[[str], Path],
) -> None:
    port = free_port()
    path = fleet_path(f"port = {port}")
    process = subprocess.Popen(
        [sys.executable, "-m", "server.worker.fake", "--config", str(path), "--worker", "base"]
    )
    try:
        url, deadline = f"http://127.0.0.1:{port}/v1/models", time.monotonic() + 30
        while True:
            try:
                served = httpx.get(url, trust_env=False).json()["data"]
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        names = {card["id"].partition("@")[0] for card in served}
        assert names == {"base", "colour", "spoken", "topics", "invoice", "story"}
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--worker", "bass"], "there are: base"), (["--config", "no.toml"], "no.toml: not there")],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], said: str, fleet_path: Callable[[str], Path]
) -> None:
    config = ["--config", str(fleet_path("port = 8599"))]
    result = CliRunner().invoke(main, [*config, *arguments])
    assert result.exit_code == 2
    assert said in result.output
