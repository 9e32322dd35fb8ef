"""A gateway in front of fake workers, all over real sockets, with every response checked."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server import config
from server.app import Draining, create_app
from server.fleet import Fleet, resolve
from server.worker.fake import FakeWorker, Faults
from server.worker.fake.__main__ import fake_of
from tests.serving import serving
from tests.tiny_fleet import card, cards, write_fleet, write_specialist

PROBE_SECONDS = 0.05
STORY = {"hero": "a fox", "place": "a hill"}
INPUTS: Mapping[str, Any] = {
    "colour": "the sky", "spoken": "well done", "topics": "a match", "invoice": "pay",
    "story": STORY,
}  # fmt: skip
"""A right input for each task of the tiny fleet."""
COLOUR_V2 = "specialists/colour-v2"

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Edit: TypeAlias = Callable[[dict[str, Any]], Any]
"""The body of a worker's answer -> what is sent instead: JSON, or bytes as they are."""


class Worker:
    """A fake worker whose calls a test can edit, hold back and count."""

    def __init__(self, fake: FakeWorker) -> None:
        self.fake = fake
        self.edits: deque[Edit] = deque()
        """Each is used on the answer of one further call."""
        self.open = 0
        """Completion calls that are being answered, hanging ones included."""
        self.asked: list[dict[str, Any]] = []
        """The body of every completion call, golden probes included."""
        self.pieces: int | None = None
        """How many events of a stream are sent before it hangs; by default all."""
        self.gate = asyncio.Event()
        """While it is not set, calls wait."""
        self.gate.set()

    def fail(self, **faults: Any) -> None:
        """Set the fake's faults; none heals it."""
        self.fake.faults = Faults.model_validate(faults)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != "/v1/completions":
            await self.fake(scope, receive, send)
            return
        self.open += 1
        edit = self.edits.popleft() if self.edits else None
        try:
            await self.gate.wait()
            send = _edited(send, edit) if edit else self._held(send)
            await self.fake(scope, self._noted(receive), send)
        finally:
            self.open -= 1

    def _held(self, send: Send) -> Send:
        sent = 0

        async def held(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.body" and self.pieces is not None:
                sent += 1
                if sent > self.pieces:
                    await asyncio.Event().wait()
            await send(message)

        return held

    def _noted(self, receive: Receive) -> Receive:
        parts: list[bytes] = []

        async def noted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    self.asked.append(json.loads(b"".join(parts)))
            return message

        return noted


def say(text: str, finish_reason: str = "stop") -> Edit:
    """Return the edit that makes a worker say `text`; the tokens stay as they were."""

    def edit(body: dict[str, Any]) -> Any:
        for choice in body["choices"]:
            choice |= {"text": text, "finish_reason": finish_reason}
        return body

    return edit


def _edited(send: Send, edit: Edit) -> Send:
    head: Message = {}
    parts: list[bytes] = []

    async def edited(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
            return
        parts.append(message["body"])
        if message.get("more_body"):
            return
        said = edit(json.loads(b"".join(parts)))
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers = [(b"content-type", b"application/json")]
        headers.append((b"content-length", str(len(data)).encode()))
        await send({**head, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    return edited


@dataclass(frozen=True)
class House:
    """A running gateway, the fakes behind it, and a client of its callers."""

    fleet: Fleet
    url: str
    http: httpx.AsyncClient
    workers: Mapping[str, Sequence[Worker]]
    draining: Draining

    @property
    def worker(self) -> Worker:
        """The first replica of the worker `base`."""
        return self.workers["base"][0]

    @property
    def address(self) -> tuple[str, int]:
        """Where the gateway listens, for callers that do not speak HTTP as they should."""
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    async def ask(self, task: str, value: Any = None, **more: Any) -> httpx.Response:
        """Ask a task about `value`, or about a right input of the tiny fleet."""
        value = INPUTS[task] if value is None else value
        return await self.http.post(f"/v1/tasks/{task}", json={"input": value, **more})

    async def heal(self) -> None:
        """End every fault of the workers, and return when all tasks can be answered again."""
        workers = [worker for replicas in self.workers.values() for worker in replicas]
        for worker in workers:
            worker.fail()
            worker.edits.clear()
            worker.pieces = None
            worker.gate.set()
        await until(lambda: all(worker.open == 0 for worker in workers))
        await until(self.tasks_ready)

    async def settled(self, worker: str = "base") -> None:
        """Return when a worker's replicas have been probed, each specialist proven or refused."""

        async def is_settled() -> bool:
            return set(await self.states(worker)) <= {"ready", "degraded"}

        await until(is_settled)

    async def states(self, worker: str = "base") -> list[str]:
        """Return the states of a worker's replicas."""
        fleet = (await self.http.get("/v1/fleet")).json()
        return [replica["state"] for replica in fleet["workers"][worker]["replicas"]]

    async def tasks_ready(self) -> bool:
        """Return whether every task can be answered."""
        return (await self.http.get("/health/tasks")).status_code == 200

    async def scrape(self) -> Samples:
        """Return the samples of `/metrics`."""
        return samples((await self.http.get("/metrics")).text)


Samples: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(exposition: str) -> Samples:
    """Parse an exposition; the same series twice is an error."""
    found: Samples = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def total(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples of that name that have those labels."""
    wanted = labels.items()
    return sum(value for (n, has), value in found.items() if n == name and wanted <= has)


async def until(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 10.0
) -> None:
    """Return as soon as `condition` holds; fail when it never does."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if await holds if isinstance(holds, Awaitable) else holds:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


async def check_frame(response: httpx.Response) -> None:
    """Fail unless a response is framed as the contract says, and errors in their envelope."""
    assert re.fullmatch(r"[!-~]{1,128}", response.headers["x-request-id"])
    assert re.search(r"(^|, )total;dur=\d+\.\d\d$", response.headers["server-timing"])
    if response.status_code >= 400 and not response.request.url.path.startswith("/health"):
        await response.aread()
        check_error(response)


def check_error(response: httpx.Response) -> dict[str, Any]:
    """Fail unless the body is the error envelope; return what it says."""
    if response.request.method == "HEAD":
        return {}
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "type", "param", "request_id"}
    assert error["message"].strip()
    assert error["request_id"] == response.headers["x-request-id"]
    return error


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Fail unless the response is that error; return what it says."""
    assert response.status_code == status, response.text
    error = check_error(response)
    assert error["code"] == code
    return error


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and data of each server-sent event."""
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert text.endswith("\n\n")
    return found


def tiny_fleet(
    root: Path,
    urls: Mapping[str, Sequence[str]],
    *,
    gateway: str = "",
    extra: str = "",
    dollars_per_hour: float = 0.0,
) -> Fleet:
    """Return the tiny fleet with workers at `urls`; `base` is one of them."""
    write_specialist(root / COLOUR_V2, colour_v2())
    price = f"dollars_per_hour = {float(dollars_per_hour)!r}"
    for name in urls.keys() - {"base"}:
        extra += f"\n[workers.{name}]\nmodel = 'specialists/base'\nurls = {list(urls[name])}\n"
    if "probe_interval_seconds" not in gateway:
        gateway += f"\nprobe_interval_seconds = {PROBE_SECONDS}"
    path = write_fleet(
        root, f"urls = {list(urls['base'])}\n{price}", gateway=gateway, variants=extra
    )
    return resolve(config.load(path, {}))


def colour_v2() -> dict[str, Any]:
    """Return the card of a second specialist for the colour task."""
    return card("colour", "classify", labels=cards()["colour"]["labels"])


def canary(weight: int, worker: str = "base") -> str:
    """Return the part of fleet.toml that gives the colour task a canary."""
    return (
        f"[tasks.colour.variants.canary]\nspecialist = '{COLOUR_V2}'\n"
        f"weight = {weight}\nworker = '{worker}'\n"
    )


def fake_workers(fleet: Fleet, replicas: Mapping[str, int]) -> dict[str, list[Worker]]:
    """Return fakes of every worker of a fleet."""
    return {
        name: [Worker(fake_of(fleet, fleet.workers[name])) for _ in range(count)]
        for name, count in replicas.items()
    }


@asynccontextmanager
async def gatewayed(
    root: Path,
    *,
    replicas: Mapping[str, int] | None = None,
    prepare: Callable[[Mapping[str, Sequence[Worker]]], None] = lambda _: None,
    settle: Sequence[str] | None = None,
    **of_fleet: Any,
) -> AsyncGenerator[House]:
    """Run so many fake replicas of each worker and a gateway in front of them.

    `prepare` may set faults before the gateway probes for the first time; the block runs when
    the workers `settle`, or all of them, have settled.
    """
    replicas = replicas or {"base": 1}
    nowhere = {
        name: [f"http://127.0.0.1:{n + 1}" for n in range(k)] for name, k in replicas.items()
    }
    workers = fake_workers(tiny_fleet(root, nowhere, **of_fleet), replicas)
    prepare(workers)
    async with AsyncExitStack() as stack:
        urls = {
            name: [await stack.enter_async_context(serving(one)) for one in ones]
            for name, ones in workers.items()
        }
        house = await stack.enter_async_context(
            gateway_of(tiny_fleet(root, urls, **of_fleet), workers)
        )
        for name in workers if settle is None else settle:
            await house.settled(name)
        yield house


@asynccontextmanager
async def gateway_of(
    fleet: Fleet, workers: Mapping[str, Sequence[Worker]]
) -> AsyncGenerator[House]:
    """Run a gateway of a fleet whose workers run already."""
    draining = Draining()
    async with (
        serving(create_app(fleet, draining=draining)) as url,
        httpx.AsyncClient(
            base_url=url, timeout=30, event_hooks={"response": [check_frame]}, trust_env=False
        ) as http,
    ):
        yield House(fleet, url, http, workers, draining)
