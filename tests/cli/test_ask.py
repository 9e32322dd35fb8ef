"""`fleet ask`: what goes to the gateway, what is printed, and how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from server.cli import main
from tests.serving import serving
from tests.tiny_fleet import write_fleet

OUTPUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "colour": ("classify", {"label": "red", "confidence": 0.934, "scores": {"red": 0.934}}),
    "topics": ("tag", {"labels": ["art", "sport"], "scores": {"art": 0.9, "sport": 0.8}}),
    "nothing": ("tag", {"labels": [], "scores": {"art": 0.1}}),
    "invoice": ("extract", {"data": {"vendor": "Müller"}}),
    "story": ("generate", {"text": "Once, é.", "finish_reason": "stop"}),
    "a/b c": ("classify", {"label": "odd", "confidence": 1.0, "scores": {}}),
}
DELTAS = ["Once ", "upon\u2028a", "\x85\ntime, ", "é", "🦔."]


@dataclass
class Gateway:
    """Speaks just enough of the contract to be asked, and remembers what it was asked."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    broken: str = ""
    """How streams go wrong: "" (they do not), "error" or "cut"."""
    other: Response | None = None
    """What to answer instead of anything, as some other server would."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self.other is not None:
            return self.other
        task = request.scope["path"].removeprefix("/v1/tasks/")
        if task not in OUTPUTS:
            message = f"there is no task {task!r}; did you mean 'story'?"
            error = {"code": "unknown_task", "message": message}
            return JSONResponse({"error": error}, 404)
        kind, output = OUTPUTS[task]
        if request.method == "GET":
            return JSONResponse({"name": task, "kind": kind})
        body = await request.json()
        self.bodies.append(body)
        if body.get("stream"):
            return StreamingResponse(self._events(), media_type="text/event-stream")
        return JSONResponse({"task": task, "output": output})

    async def _events(self) -> AsyncGenerator[bytes]:
        whole = b""
        for delta in DELTAS:
            data = json.dumps({"text": delta}, ensure_ascii=False)
            whole += f"event: delta\ndata: {data}\n\n".encode()
        # In pieces that end anywhere, characters and lines included.
        for start in range(0, len(whole), 7):
            yield whole[start : start + 7]
        if self.broken == "error":
            error = {"error": {"code": "worker_error", "message": "it broke"}}
            yield f"event: error\ndata: {json.dumps(error)}\n\n".encode()
        elif not self.broken:
            yield b'event: answer\ndata: {"output": {}}\n\n'


@contextmanager
def in_a_thread(app: Any) -> Iterator[str]:
    """Serve `app` beside a test that blocks; yield its URL."""
    loop = asyncio.new_event_loop()
    url: list[str] = []
    serves, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        try:
            async with serving(app) as where:
                url.append(where)
                serves.set()
                await stop.wait()
        finally:
            serves.set()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        serves.wait()
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    gateway = Gateway()
    with in_a_thread(gateway) as gateway.url:
        yield gateway


@pytest.fixture
def gateway(served: Gateway) -> Gateway:
    """Return the gateway as good as new."""
    served.bodies, served.broken, served.other = [], "", None
    return served


@pytest.fixture
def ask(gateway: Gateway) -> Callable[..., Result]:
    """Return a runner of `fleet ask` that asks the gateway."""

    def run(*arguments: str, stdin: str | bytes | None = None, **environ: str) -> Result:
        env = {"FLEET_URL": gateway.url, "NO_PROXY": "*", **environ}
        return CliRunner().invoke(main, ["ask", *arguments], input=stdin, env=env)

    return run


def refusal(result: Result, code: int) -> str:
    """Return what a failed command says."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), "no traceback"
    return result.stderr


@pytest.mark.parametrize(
    ("task", "printed"),
    [
        ("colour", "red (93.4%)\n"),
        ("topics", "art, sport\n"),
        ("nothing", "(none)\n"),
        ("invoice", '{\n  "vendor": "Müller"\n}\n'),
    ],
)
def test_an_answer_is_printed_by_its_kind(
    ask: Callable[..., Result], gateway: Gateway, task: str, printed: str
) -> None:
    result = ask(task, "A red kettle.")
    assert (result.exit_code, result.stdout) == (0, printed)
    assert gateway.bodies == [{"input": "A red kettle."}]


def test_a_text_is_printed_as_it_is_streamed(ask: Callable[..., Result], gateway: Gateway) -> None:
    result = ask("story", "a hare")
    assert (result.exit_code, result.stdout) == (0, "".join(DELTAS) + "\n")
    assert gateway.bodies == [{"input": "a hare", "stream": True}]


def test_json_is_the_whole_answer_and_no_stream(
    ask: Callable[..., Result], gateway: Gateway
) -> None:
    result = ask("story", "a hare", "--json")
    assert json.loads(result.stdout) == {"task": "story", "output": OUTPUTS["story"][1]}
    assert "é" in result.stdout, "for people, too"
    assert gateway.bodies == [{"input": "a hare"}]


def test_fields_make_an_object(ask: Callable[..., Result], gateway: Gateway) -> None:
    assert ask("story", "-f", "hero=a hare", "-f", "place=x=y", "--json").exit_code == 0
    assert gateway.bodies == [{"input": {"hero": "a hare", "place": "x=y"}}]


def test_a_dash_is_standard_input(ask: Callable[..., Result], gateway: Gateway) -> None:
    assert ask("colour", "-", stdin="two\nlines é\n").exit_code == 0
    assert gateway.bodies == [{"input": "two\nlines é\n"}]


def test_variant_and_deadline_go_along(ask: Callable[..., Result], gateway: Gateway) -> None:
    assert ask("colour", "x", "--variant", "canary", "--deadline-ms", "250").exit_code == 0
    assert gateway.bodies == [{"input": "x", "variant": "canary", "deadline_ms": 250.0}]


def test_a_tasks_name_is_one_segment_whatever_is_in_it(ask: Callable[..., Result]) -> None:
    assert ask("a/b c", "x").stdout == "odd (100.0%)\n"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_an_unknown_task_is_said_with_its_near_misses(
    ask: Callable[..., Result], arguments: list[str]
) -> None:
    assert refusal(ask("storry", "x", *arguments), 1) == (
        "Error: unknown_task: there is no task 'storry'; did you mean 'story'?\n"
    )


@pytest.mark.parametrize(("how", "said"), [("error", "it broke"), ("cut", "broke off")])
def test_a_stream_that_breaks_off_is_an_error_after_what_came(
    ask: Callable[..., Result], gateway: Gateway, how: str, said: str
) -> None:
    gateway.broken = how
    result = ask("story", "x")
    assert said in refusal(result, 1)
    assert result.stdout.startswith("".join(DELTAS))


@pytest.mark.parametrize(
    "other",
    [
        Response("<h1>hello</h1>", media_type="text/html"),
        JSONResponse([1]),
        JSONResponse({"ok": True}),
        JSONResponse({"detail": "Not Found"}, 404),
        JSONResponse({"error": "no"}, 500),
        Response(status_code=204),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_some_other_server_is_not_taken_for_the_gateway(
    ask: Callable[..., Result], gateway: Gateway, other: Response, arguments: list[str]
) -> None:
    gateway.other = other
    assert f"is {gateway.url}/ the gateway?" in refusal(ask("story", "x", *arguments), 1)


def test_where_no_gateway_answers_the_way_to_start_one_is_said(ask: Callable[..., Result]) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        said = refusal(ask("colour", "x", "--url", url), 1)
    assert said.startswith(f"Error: no gateway answers at {url} (")
    assert said.endswith("start one with `fleet up`\n")


def test_without_a_url_fleet_toml_says_where_the_gateway_is(
    ask: Callable[..., Result], gateway: Gateway, tmp_path: Path
) -> None:
    port = gateway.url.rpartition(":")[2]
    path = write_fleet(tmp_path, "", gateway=f"host = '0.0.0.0'\nport = {port}")
    result = ask("colour", "x", "--config", str(path), FLEET_URL="")
    assert (result.exit_code, result.stdout) == (0, "red (93.4%)\n")


def test_a_wrong_fleet_toml_is_refused_as_everywhere(
    ask: Callable[..., Result], tmp_path: Path
) -> None:
    missing = tmp_path / "fleet.toml"
    said = refusal(ask("colour", "x", "--config", str(missing), FLEET_URL=""), 2)
    assert said.startswith(f"error: {missing}: not there")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["colour"], "give either TEXT or one -f"),
        (["colour", "x", "-f", "a=b"], "give either TEXT or one -f"),
        (["colour", "-f", "hero"], "write NAME=VALUE"),
        (["colour", "x", "--deadline-ms", "soon"], "not a valid float"),
        (["colour", "x", "--deadline-ms", "nan"], "write a number of milliseconds"),
        (["colour", "x", "--url", "http://127.0.0.1:x"], "is no URL"),
        (["colour", "\udcff"], "TEXT is not UTF-8"),
        (["\udcff", "x"], "TASK is not UTF-8"),
        (["colour", "-f", "a=\udcff"], "-f is not UTF-8"),
        (["colour", "x", "--variant", "\udcff"], "--variant is not UTF-8"),
        ([], "Missing argument 'TASK'"),
    ],
)
def test_a_wrong_argument_is_said_with_exit_code_2(
    ask: Callable[..., Result], gateway: Gateway, arguments: list[str], said: str
) -> None:
    assert said in refusal(ask(*arguments), 2)
    assert gateway.bodies == []


def test_standard_input_that_is_no_text_is_said(ask: Callable[..., Result]) -> None:
    assert "TEXT is not UTF-8" in refusal(ask("colour", "-", stdin=b"\xff\xfe"), 2)
