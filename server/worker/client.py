"""Calls to a worker over HTTP: the only home of httpx.

Its errors are translated here, and nowhere else:

    connection failed, or closed before a byte of the answer   WorkerUnreachable
    400, 413, 422: the prompts are at fault                    WorkerRefused
    any other status, an answer broken off or malformed        WorkerError
    no answer in time                                          DeadlineExceeded

A 404 (the replica lacks the model), 429 or 401 is not about the prompts: another replica may
well answer, so these are a WorkerError and may be tried elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

import httpx

from server.errors import DeadlineExceeded, WorkerError, WorkerRefused, WorkerUnreachable
from server.types import Chunk, Completion, Decoding, Prompt, Sample
from server.worker import wire

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""More than the largest honest answer: 1024 prompts with 20 log-probabilities a step."""
MAX_LINE_BYTES = 1024 * 1024
"""Of a stream; one event holds one token or a few."""
_MAX_ERROR_BYTES = 64 * 1024

_REFUSES_THE_PROMPTS = frozenset({400, 413, 422})
_SENDABLE_ID = re.compile(r"[!-~]{1,256}")


def http_client(*, max_connections: int = 1024) -> httpx.AsyncClient:
    """Return an httpx client as `WorkerClient` wants it; the caller closes it.

    No proxies from the environment: workers are neighbours. No timeouts: each call has its own.
    """
    limits = httpx.Limits(
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        # Below vLLM's five seconds, so that we never write into a connection it is closing.
        keepalive_expiry=4.0,
    )
    return httpx.AsyncClient(limits=limits, timeout=None, trust_env=False)  # noqa: S113 (see above)


class WorkerClient:
    """Speaks vLLM's protocol with any replica, named by its URL."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def complete(
        self,
        url: str,
        model: str,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        timeout_seconds: float,
        request_id: str | None = None,
    ) -> tuple[Completion, ...]:
        """Complete all `prompts` in one call; the completions are in their order."""
        if not prompts:
            return ()
        content = wire.request_body(model, prompts, decoding)
        body = await self._exchange(
            "POST", f"{url}/v1/completions", timeout_seconds, content=content, request_id=request_id
        )
        return wire.completions(body, prompts, decoding)

    async def stream(
        self,
        url: str,
        model: str,
        prompt: Prompt,
        decoding: Sample,
        *,
        timeout_seconds: float,
        request_id: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the completion piece by piece; the last chunk has the reason and the counts.

        Close the generator (`contextlib.aclosing`) to leave early: that closes the connection,
        and the engine stops. A stream that ends in any other way than whole raises.
        """
        content = wire.request_body(model, [prompt], decoding, stream=True)
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        reader = wire.StreamReader()
        lines = self._lines(f"{url}/v1/completions", content, request_id)
        try:
            while True:
                # A timeout must not stay armed across a yield: it would strike our caller.
                async with asyncio.timeout_at(deadline):
                    line = await anext(lines, None)
                if line is None:
                    break
                if text := reader.feed(line):
                    yield Chunk(text)
        except TimeoutError:
            raise _too_late(timeout_seconds) from None
        finally:
            await lines.aclose()
        finish_reason, completion_tokens = reader.outcome()
        yield Chunk("", finish_reason, len(prompt.token_ids), completion_tokens)

    async def health(self, url: str, *, timeout_seconds: float) -> None:
        """Return when the replica says that it is healthy; raise otherwise."""
        await self._exchange("GET", f"{url}/health", timeout_seconds)

    async def models(self, url: str, *, timeout_seconds: float) -> frozenset[str]:
        """Return the model names that the replica serves, adapters included."""
        return wire.model_names(await self._exchange("GET", f"{url}/v1/models", timeout_seconds))

    async def _exchange(
        self,
        method: str,
        url: str,
        timeout_seconds: float,
        *,
        content: bytes | None = None,
        request_id: str | None = None,
    ) -> bytes:
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self._open(method, url, content, request_id) as response,
            ):
                return await _read(response, MAX_RESPONSE_BYTES)
        except TimeoutError:
            raise _too_late(timeout_seconds) from None

    async def _lines(
        self, url: str, content: bytes, request_id: str | None
    ) -> AsyncGenerator[bytes, None]:
        buffer = b""
        async with (
            self._open("POST", url, content, request_id) as response,
            aclosing(_pieces(response, MAX_RESPONSE_BYTES)) as pieces,
        ):
            async for piece in pieces:
                *whole, buffer = (buffer + piece).split(b"\n")
                for line in whole:
                    yield line
                if len(buffer) > MAX_LINE_BYTES:
                    raise wire.malformed(f"a line of more than {MAX_LINE_BYTES} bytes")

    @asynccontextmanager
    async def _open(
        self, method: str, url: str, content: bytes | None, request_id: str | None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request and hold its response open; only a 200 gets through."""
        response = await self._send(method, url, content, request_id)
        try:
            if response.status_code != 200:
                raise _refusal(response.status_code, await _excerpt(response))
            yield response
        finally:
            await response.aclose()

    async def _send(
        self, method: str, url: str, content: bytes | None, request_id: str | None
    ) -> httpx.Response:
        headers = {"accept-encoding": "identity"}
        if content is not None:
            headers["content-type"] = "application/json"
        if request_id is not None and _SENDABLE_ID.fullmatch(request_id):
            headers["x-request-id"] = request_id
        try:
            request = self._http.build_request(method, url, content=content, headers=headers)
            return await self._http.send(request, stream=True)
        except httpx.InvalidURL as error:  # an address that the DNS gave and no URL can hold
            raise WorkerUnreachable(f"the worker's address is no URL: {error}") from error
        except httpx.TimeoutException:
            raise DeadlineExceeded("the worker did not answer in time") from None
        except httpx.NetworkError as error:
            raise WorkerUnreachable(f"the worker cannot be reached: {_cause(error)}") from error
        except httpx.RemoteProtocolError as error:
            if "disconnected" in str(error):
                raise WorkerUnreachable("the worker closed the connection") from error
            raise wire.malformed("no HTTP") from error


async def _read(response: httpx.Response, limit: int) -> bytes:
    return b"".join([piece async for piece in _pieces(response, limit)])


async def _excerpt(response: httpx.Response) -> bytes:
    """Read the beginning of an error's body; the status counts, even if the rest never comes."""
    body = b""
    with suppress(WorkerError):
        async with aclosing(_pieces(response, MAX_RESPONSE_BYTES)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > _MAX_ERROR_BYTES:
                    break
    return body


async def _pieces(response: httpx.Response, limit: int) -> AsyncGenerator[bytes, None]:
    seen = 0
    try:
        async for piece in response.aiter_bytes():
            seen += len(piece)
            if seen > limit:
                raise wire.malformed(f"more than {limit} bytes")
            yield piece
    except httpx.TimeoutException:
        raise DeadlineExceeded("the worker did not answer in time") from None
    except httpx.HTTPError as error:
        raise WorkerError(f"the worker broke off: {_cause(error)}") from error


def _refusal(status: int, body: bytes) -> WorkerError:
    message = wire.refusal(body)
    if status in _REFUSES_THE_PROMPTS:
        return WorkerRefused(f"the worker refuses: {message or status}")
    return WorkerError(f"the worker answered {status}" + (f": {message}" if message else ""))


def _too_late(timeout_seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"the worker did not answer within {max(timeout_seconds, 0):.3g} s")


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
