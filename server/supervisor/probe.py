"""Two questions about a local port: is it free, and does the server behind it serve?"""

from __future__ import annotations

import asyncio
import socket

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Return whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier run that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


async def answers(port: int, *, timeout_seconds: float = 10.0) -> bool:
    """Return whether `GET /health` is answered with 200 in time.

    vLLM listens long before it is ready, so a connection alone means nothing.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(
                    b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split()[1:2] == [b"200"]
