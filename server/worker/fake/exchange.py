"""One HTTP exchange of the fake worker, and the faults that may befall it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Faults(BaseModel):
    """What goes wrong; by default nothing does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay_seconds: float = Field(default=0.0, ge=0)
    """Before each answer."""
    token_delay_seconds: float = Field(default=0.0, ge=0)
    """Before each token of a stream."""
    status: int | None = Field(default=None, ge=400, le=599)
    """Answer this instead."""
    hang: bool = False
    """Never answer."""
    disconnect: bool = False
    """Close the connection half-way through the body, or through the stream."""
    every: int = Field(default=1, ge=1)
    """The faults strike each n-th request that they could strike."""
    on: frozenset[Literal["completions", "health", "models"]] = frozenset({"completions"})
    parrots: frozenset[str] = frozenset()
    """Adapters that are not applied: they answer as the base does, and fail their probes."""


class Exchange:
    """One request and its response, with the faults that befall it."""

    def __init__(self, receive: Receive, send: Send, faults: Faults) -> None:
        self.faults = faults
        self._receive = receive
        self._send = send

    async def body(self) -> bytes:
        """Return the whole body of the request."""
        parts = []
        more = True
        while more:
            message = await self._receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    @asynccontextmanager
    async def until_hung_up(self) -> AsyncIterator[None]:
        """End the block when the client closes the connection."""
        block = asyncio.current_task()
        hung_up = False

        async def watch() -> None:
            nonlocal hung_up
            while (await self._receive())["type"] != "http.disconnect":
                pass
            hung_up = True
            if block is not None:
                block.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not hung_up:
                raise
            if block is not None:
                block.uncancel()
        finally:
            watcher.cancel()

    async def answer(self, status: int, body: Mapping[str, Any] | str | None) -> None:
        """Send a whole response, or half of one if that is the fault."""
        data = b"" if body is None else body.encode() if isinstance(body, str) else to_json(body)
        length = (b"content-length", str(len(data)).encode())
        await self.start(status, b"application/json", length)
        if self.faults.disconnect:
            await self.write(data[: len(data) // 2])
        else:
            await self.end(data)

    async def start(self, status: int, type_: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Send the head of the response."""
        all_headers = [(b"content-type", type_), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})

    async def write(self, data: bytes) -> None:
        """Send a part of the body; returning without `end` makes the server hang up."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last part of the body."""
        await self._send({"type": "http.response.body", "body": data})


def to_json(value: Any) -> bytes:
    """Return `value` as compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()
