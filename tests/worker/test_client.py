"""What the client makes of workers that fail, lie, dawdle or vanish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import DeadlineExceeded, WorkerError, WorkerRefused, WorkerUnreachable
from server.types import Choose, Completion, Decoding, Prompt, Sample, ScoreTokens
from server.worker import client as client_module
from server.worker import wire
from server.worker.client import WorkerClient, http_client
from tests.real_engine import free_port

PROMPT = Prompt((2, 3))
SCORE = ScoreTokens((6, 7))
TOKENS = ("token_id:6", "token_id:7")
SECRET = "4111-1111-1111-1111"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncGenerator[str]:
    """Yield the URL of a server that reads each request's head and then follows `script`."""
    asked = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def sending(*parts: bytes, then_reset: bool = False) -> Script:
    """Return a script that sends `parts` and closes the connection."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then_reset:
            writer.transport.abort()

    return script


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Read on until the client leaves, and say nothing."""
    while await reader.read(65_536):
        pass


def answering(status: int, body: bytes = b"", **headers: str) -> WorkerClient:
    """Return a client whose every call gets this answer."""

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=body, headers=headers)

    return WorkerClient(httpx.AsyncClient(transport=httpx.MockTransport(answer)))


async def complete(
    client: WorkerClient, url: str = "http://worker", decoding: Decoding = SCORE
) -> Completion:
    (completion,) = await client.complete(url, "a@1", [PROMPT], decoding, timeout_seconds=5)
    return completion


async def drain(client: WorkerClient, url: str = "http://worker") -> str:
    stream = client.stream(url, "a@1", PROMPT, Sample(8), timeout_seconds=5)
    return "".join([chunk.text async for chunk in stream])


def choice(**changes: Any) -> dict[str, Any]:
    """Return a choice that answers `SCORE`, with changes."""
    logprobs = {
        "tokens": ["token_id:6"],
        "top_logprobs": [{"token_id:6": -0.1, "token_id:7": -2.0}],
    }
    return {
        "index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs, **changes
    }  # fmt: skip


def body(*choices: dict[str, Any]) -> bytes:
    return json.dumps({"choices": choices}).encode()


def logprobs(tokens: list[Any], *tops: dict[Any, Any]) -> dict[str, Any]:
    return {"tokens": tokens, "top_logprobs": tops}


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


PIECE = event({"choices": [{"text": "hi", "finish_reason": None}]})
FINISH = event({"choices": [{"text": "!", "finish_reason": "stop"}]})
USAGE = event({"choices": [], "usage": {"completion_tokens": 2}})
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


# --- connections


async def test_nobody_listens(client: WorkerClient) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for call in (complete(client, url), drain(client, url), client.models(url, timeout_seconds=5)):
        with pytest.raises(WorkerUnreachable) as raised:
            await call
        assert raised.value.retryable


async def test_an_address_that_cannot_be(client: WorkerClient) -> None:
    with pytest.raises(WorkerUnreachable):
        await complete(client, "http://127.0.0.1:port")


@pytest.mark.parametrize("script", [sending(), sending(then_reset=True)])
async def test_closed_before_a_byte_of_the_answer(client: WorkerClient, script: Script) -> None:
    async with scripted(script) as url:
        with pytest.raises(WorkerUnreachable):
            await complete(client, url)
        with pytest.raises(WorkerUnreachable):
            await drain(client, url)


@pytest.mark.parametrize(
    "script",
    [
        sending(b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n" + body(choice())[:40]),
        sending(b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n{", then_reset=True),
        sending(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"),
        sending(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    ],
)
async def test_broken_off_half_way(client: WorkerClient, script: Script) -> None:
    async with scripted(script) as url:
        for call in (complete(client, url), drain(client, url)):
            with pytest.raises(WorkerError) as raised:
                await call
            assert not isinstance(raised.value, WorkerUnreachable | WorkerRefused)
            assert raised.value.retryable


async def test_no_answer_in_time(client: WorkerClient) -> None:
    async with scripted(silent) as url:
        with pytest.raises(DeadlineExceeded):
            await client.complete(url, "a@1", [PROMPT], SCORE, timeout_seconds=0.05)
        with pytest.raises(DeadlineExceeded):
            await client.health(url, timeout_seconds=0.05)
        with pytest.raises(DeadlineExceeded):
            await anext(client.stream(url, "a@1", PROMPT, Sample(8), timeout_seconds=0.05))


async def test_a_trickle_does_not_stretch_the_deadline(client: WorkerClient) -> None:
    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while not writer.is_closing():
            writer.write(PIECE)
            await writer.drain()
            await asyncio.sleep(0)

    async with scripted(trickle) as url:
        stream = client.stream(url, "a@1", PROMPT, Sample(8), timeout_seconds=0.1)
        with pytest.raises(DeadlineExceeded):
            async for _ in stream:
                pass


async def test_leaving_early_closes_the_connection(client: WorkerClient) -> None:
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + PIECE)
        await silent(reader, writer)
        left.set()

    async with scripted(script) as url:
        stream = client.stream(url, "a@1", PROMPT, Sample(8), timeout_seconds=5)
        async with aclosing(stream):
            assert (await anext(stream)).text == "hi"
        async with asyncio.timeout(5):
            await left.wait()


async def test_a_cancelled_call_closes_the_connection(client: WorkerClient) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await silent(reader, writer)
        left.set()

    async with scripted(script) as url:
        call = asyncio.create_task(complete(client, url))
        async with asyncio.timeout(5):
            await asked.wait()
            call.cancel()
            await left.wait()


async def test_the_timeout_does_not_strike_while_the_caller_is_busy() -> None:
    client = answering(200, PIECE + FINISH + USAGE + DONE)
    stream = client.stream("http://worker", "a@1", PROMPT, Sample(8), timeout_seconds=0.05)
    assert (await anext(stream)).text == "hi"
    async with asyncio.timeout(5):
        await asyncio.sleep(0.1)  # longer than the worker's time; nothing may cancel it
    assert "".join([chunk.text async for chunk in stream]) == "!"


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    script = sending(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    async with scripted(script) as url, http_client() as http:
        await WorkerClient(http).health(url, timeout_seconds=5)


# --- statuses


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_prompts_at_fault_are_refused(status: int) -> None:
    error = json.dumps({"error": {"message": "too long", "type": "BadRequestError"}}).encode()
    with pytest.raises(WorkerRefused, match="too long") as raised:
        await complete(answering(status, error))
    assert not raised.value.retryable


@pytest.mark.parametrize("status", [204, 302, 401, 403, 404, 408, 429, 500, 502, 503])
@pytest.mark.parametrize("error", [b"", b"<html>", b"\xff", b'{"error": "no"}', b"[" * 100_000])
async def test_every_other_status_may_be_tried_elsewhere(status: int, error: bytes) -> None:
    for call in (complete(answering(status, error)), drain(answering(status, error))):
        with pytest.raises(WorkerError, match=str(status)) as raised:
            await call
        assert raised.value.retryable
        assert not isinstance(raised.value, WorkerUnreachable)


# --- bodies


async def test_a_whole_answer_is_read() -> None:
    completion = await complete(answering(200, body(choice())))
    assert completion.steps[0].logprobs == {6: -0.1, 7: -2.0}
    assert (completion.prompt_tokens, completion.completion_tokens) == (2, 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"choices": null}',
        body(),
        body(choice(), choice()),
        body(choice(), choice(index=1)),
        body(choice(index=1)),
        body(choice(index="0")),
        body(choice(text=None)),
        body(choice(text=5)),
        body(choice(finish_reason=None)),
        body(choice(finish_reason="abort")),
        body(choice(logprobs=None)),
        body(choice(logprobs=logprobs([]))),
        body(choice(logprobs=logprobs(["token_id:6"]))),
        body(choice(logprobs=logprobs(["token_id:6"], {"token_id:6": -0.1}))),
        body(choice(logprobs=logprobs(["token_id:6"], {"token_id:6": -1, "token_id:8": -1}))),
        body(choice(logprobs=logprobs(["a"], {"a": -0.1, "token_id:7": -2.0}))),
        body(choice(logprobs=logprobs([6], {"token_id:6": -0.1, "token_id:7": -2.0}))),
        body(choice(logprobs=logprobs(["token_id:6"], {"token_id:6": None, "token_id:7": -2}))),
        body(choice()).replace(b"-2.0", b"NaN"),
        body(choice()).replace(b"-2.0", b"-Infinity"),
        body(choice()).replace(b"token_id:7", "token_id:٧".encode()),
        body(choice(logprobs=logprobs(["token_id:6"] * 2, *[dict.fromkeys(TOKENS, 0)] * 2))),
    ],
)  # fmt: skip
async def test_a_malformed_answer_is_the_workers_fault(answer: bytes) -> None:
    with pytest.raises(WorkerError, match="malformed") as raised:
        await complete(answering(200, answer))
    assert not isinstance(raised.value, WorkerUnreachable | WorkerRefused)


async def test_free_text_without_its_token_ids_cannot_be_counted() -> None:
    with pytest.raises(WorkerError, match="token_ids"):
        await complete(answering(200, body(choice())), decoding=Sample(8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "index", "text", "finish_reason", "logprobs", "tokens", "top_logprobs"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
bodies = st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode())


@given(bodies, st.sampled_from([SCORE, Choose(("a", "b"), 4), Sample(4)]))
def test_any_body_is_read_or_is_the_workers_fault(answer: bytes, decoding: Decoding) -> None:
    try:
        completions = wire.completions(answer, [PROMPT], decoding)
    except WorkerError:
        return
    assert len(completions) == 1


@given(st.lists(bodies.map(lambda data: b"data: " + data) | st.binary(max_size=20), max_size=6))
def test_any_stream_is_read_or_is_the_workers_fault(lines: list[bytes]) -> None:
    reader = wire.StreamReader()
    try:
        for line in lines:
            reader.feed(line)
        reader.outcome()
    except WorkerError:
        return


async def test_an_error_never_repeats_what_the_worker_said_of_the_input() -> None:
    answer = body(choice(index=SECRET, text=SECRET, finish_reason=SECRET))
    with pytest.raises(WorkerError) as raised:
        await complete(answering(200, answer))
    assert SECRET not in str(raised.value)


async def test_more_than_we_read_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 1000)
    monkeypatch.setattr(client_module, "MAX_LINE_BYTES", 100)
    with pytest.raises(WorkerError, match="1000 bytes"):
        await complete(answering(200, b" " * 1001))
    with pytest.raises(WorkerError, match="100 bytes"):
        await drain(answering(200, b"data: " + b"x" * 200))


# --- streams


async def test_a_whole_stream_is_read() -> None:
    keep_alive = b": still here\n\n"
    client = answering(200, PIECE + keep_alive + FINISH + USAGE + DONE)
    stream = client.stream("http://worker", "a@1", PROMPT, Sample(8), timeout_seconds=5)
    chunks = [chunk async for chunk in stream]
    assert [chunk.text for chunk in chunks] == ["hi", "!", ""]
    assert chunks[-1].finish_reason == "stop"
    assert (chunks[-1].prompt_tokens, chunks[-1].completion_tokens) == (2, 2)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_pieces_of_the_network_are_not_pieces_of_the_stream(
    client: WorkerClient, newline: bytes
) -> None:
    text = (PIECE + FINISH + USAGE + DONE).replace(b"\n", newline)
    async with scripted(sending(HEAD, *(text[n : n + 1] for n in range(len(text))))) as url:
        assert await drain(client, url) == "hi!"


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        PIECE,
        PIECE + FINISH,
        PIECE + FINISH + USAGE,
        PIECE + FINISH + DONE,
        PIECE + USAGE + DONE,
        PIECE + event({"error": {"message": "Internal server error", "code": 500}}) + DONE,
        PIECE + event({"choices": [{"text": "", "finish_reason": "abort"}]}) + USAGE + DONE,
        PIECE + b"data: {\n\n" + FINISH + USAGE + DONE,
        PIECE + event([]) + FINISH + USAGE + DONE,
    ],
)
async def test_a_stream_that_is_not_whole_is_an_error(stream: bytes) -> None:
    with pytest.raises(WorkerError):
        await drain(answering(200, stream))
