"""A port is free or not; a server answers /health or does not."""

from __future__ import annotations

import asyncio
import socket

import pytest

from server.supervisor import probe


def test_a_port_is_free_until_someone_listens() -> None:
    with socket.socket() as server:
        server.bind((probe.HOST, 0))
        port = server.getsockname()[1]
        server.listen()
        assert not probe.is_free(port)
    assert probe.is_free(port)


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"", False),
        (b"\xff\xfe\r\n", False),
    ],
)
async def test_only_a_200_is_healthy(answer: bytes, healthy: bool) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, probe.HOST, 0)
    async with server:
        assert await probe.answers(server.sockets[0].getsockname()[1]) is healthy
    assert asked == [b"GET /health HTTP/1.1\r\n"]


async def test_a_server_that_listens_and_keeps_silent_is_not_healthy() -> None:
    # As vLLM does while it loads its model.
    with socket.socket() as server:
        server.bind((probe.HOST, 0))
        server.listen()
        assert not await probe.answers(server.getsockname()[1], timeout_seconds=0.05)


async def test_nobody_there_is_not_healthy() -> None:
    with socket.socket() as server:
        server.bind((probe.HOST, 0))
        port = server.getsockname()[1]
    assert not await probe.answers(port)
