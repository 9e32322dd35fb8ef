"""A real vLLM under the supervisor: it answers rightly, comes back, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.fleet import Fleet
from server.supervisor import vllm
from server.supervisor.process import State
from server.supervisor.supervisor import Supervisor
from tests.real_engine import free_port
from tests.tiny_model import LABEL_IDS, VOCABULARY_SIZE

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="guardians are for Linux"),
    pytest.mark.asyncio(loop_scope="module"),
]

READY_SECONDS = 240.0
MANY_LABELS = list(range(150, 150 + 140))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def supervisor(
    tiny_fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Supervisor]:
    """Return a supervisor whose one replica runs; at the end, nothing of it may stay."""
    logs = tmp_path_factory.mktemp("logs")
    async with Supervisor(tiny_fleet, log_dir=logs) as supervisor:
        async with asyncio.timeout(READY_SECONDS):
            failed = await supervisor.wait_ready()
        assert not failed, failed
        yield supervisor
        log = supervisor.replicas[0].log
    assert living(log) == []


def living(log: Path) -> list[int]:
    """Return the processes that write to a replica's log, or wrote to an earlier one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd" / "1").readlink().name.startswith(log.name):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def named(log: Path, name: str) -> list[int]:
    """Return the processes of a replica, its guardian aside, whose command line holds `name`."""
    found = []
    for pid in living(log):
        line = Path(f"/proc/{pid}/cmdline").read_text("latin-1")
        if name in line and "guardian" not in line:
            found.append(pid)
    return found


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition on real processes, but not for ever."""
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.05)


def body(model: str, number: int, labels: list[int]) -> dict[str, Any]:
    """Return a one-token request as the gateway sends it; its prompt follows from `number`."""
    prompt = [(7 * number + 13 * place) % VOCABULARY_SIZE for place in range(5 + number % 40)]
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "logprob_token_ids": labels,
        "allowed_token_ids": labels,
        "return_tokens_as_token_ids": True,
    }


async def logprobs(
    client: httpx.AsyncClient, model: str, number: int, labels: list[int] | None = None
) -> dict[str, float]:
    """Return what the engine answers."""
    answer = await client.post("/v1/completions", json=body(model, number, labels or [*LABEL_IDS]))
    assert answer.status_code == 200, answer.text
    found: dict[str, float] = answer.json()["choices"][0]["logprobs"]["top_logprobs"][0]
    return found


def distance(one: dict[str, float], other: dict[str, float]) -> float:
    return max(abs(one[token] - other[token]) for token in one)


async def test_base_answers_do_not_change_beside_requests_for_adapters(
    supervisor: Supervisor, tiny_fleet: Fleet
) -> None:
    # Every slot is taken: the last one is what stock operators would take for "no adapter".
    adapters = [one.id for one in tiny_fleet.workers["base"].adapters]
    url = supervisor.replicas[0].url
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        alone = [await logprobs(client, "base", number) for number in range(24)]
        loaded = [await logprobs(client, adapters[-1], number) for number in range(24)]
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(logprobs(client, "base", n)) for n in range(24)]
            noise = [
                group.create_task(logprobs(client, adapters[n % len(adapters)], n // 4))
                for n in range(96)
            ]
    assert len(noise) == 96
    effects = [distance(one, other) for one, other in zip(alone, loaded, strict=True)]
    assert min(effects) > 0.5, "adapters change answers"
    changes = [distance(one, task.result()) for one, task in zip(alone, beside, strict=True)]
    assert max(changes) < 0.2


async def test_an_adapter_answers_the_same_alone_and_in_company(
    supervisor: Supervisor, tiny_fleet: Fleet
) -> None:
    adapters = [one.id for one in tiny_fleet.workers["base"].adapters]
    url = supervisor.replicas[0].url
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        alone = [await logprobs(client, adapters[n % 3], n) for n in range(12)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(logprobs(client, adapters[n % 3], n)) for n in range(12)]
    changes = [distance(one, task.result()) for one, task in zip(alone, tasks, strict=True)]
    assert max(changes) < 0.2


async def test_a_task_may_have_more_labels_than_vllm_grants(supervisor: Supervisor) -> None:
    url = supervisor.replicas[0].url
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        answer = await logprobs(client, "base", 1, MANY_LABELS)
    assert set(answer) == {f"token_id:{label}" for label in MANY_LABELS}


async def test_json_comes_without_free_white_space(supervisor: Supervisor) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    request = {
        "model": "base",
        "prompt": [20, 21, 22],
        "max_tokens": 64,
        "temperature": 0,
        "structured_outputs": {"json": schema},
    }
    url = supervisor.replicas[0].url
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        text = (await client.post("/v1/completions", json=request)).json()["choices"][0]["text"]
    tight = json.dumps(json.loads(text), separators=(",", ":"))
    # The backend may write one blank after a comma or colon, and never more.
    assert len(text) <= len(tight) + tight.count(",") + tight.count(":")


async def test_no_prompt_is_logged(supervisor: Supervisor) -> None:
    url, secret = supervisor.replicas[0].url, "the-secret-that-a-caller-wrote"
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        await client.post(
            "/v1/completions", json={"model": "base", "prompt": secret, "max_tokens": 1}
        )
        await client.post("/v1/completions", json={"model": secret, "prompt": secret})
    assert secret not in supervisor.replicas[0].log.read_text(errors="replace")


@pytest.mark.timeout(2 * READY_SECONDS)
@pytest.mark.parametrize("victim", ["api_server", "VLLM::EngineCore"])
async def test_a_killed_process_brings_the_whole_replica_down_and_up_again(
    victim: str, supervisor: Supervisor
) -> None:
    log, restarts = supervisor.replicas[0].log, supervisor.replicas[0].restarts
    before = set(living(log))
    (found,) = named(log, victim)
    os.kill(found, signal.SIGKILL)
    await until(lambda: supervisor.replicas[0].restarts > restarts, "a restart")
    assert not before & set(living(log)), "nothing of the old replica lives beside the new one"
    await until(lambda: supervisor.replicas[0].state is State.RUNNING, "running again")
    async with httpx.AsyncClient(base_url=supervisor.replicas[0].url, trust_env=False) as client:
        assert await logprobs(client, "base", 1)


SUPERVISOR = """
import asyncio, json, sys
from pathlib import Path
from server.supervisor.child import ReplicaLauncher

async def main():
    command, environment, log = json.loads(sys.argv[1])
    port = int(command[command.index("--port") + 1])
    await ReplicaLauncher(command, environment, port, "", Path(log), Path(log).parent).launch()
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_supervisor_leaves_no_engine(tiny_fleet: Fleet, tmp_path: Path) -> None:
    worker, log = tiny_fleet.workers["base"], tmp_path / "orphan-0.log"
    worker = dataclasses.replace(worker, ports=(free_port(),))
    told = json.dumps([vllm.command(worker, 0), vllm.environment(worker), str(log)])
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SUPERVISOR, told)
    try:
        await until(lambda: named(log, "VLLM::Worker") != [], "an engine and its worker")
    finally:
        process.kill()
        await process.wait()
    await until(lambda: living(log) == [], "everything ends with its supervisor")
