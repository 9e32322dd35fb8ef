"""Where a worker's replicas are: fixed by fleet.toml, or behind a DNS name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

from server.fleet import Worker

Resolve: TypeAlias = Callable[[str, int], Awaitable[Iterable[str]]]
"""Host and port -> the addresses behind them; raises OSError when the name cannot be looked up."""


def fixed_urls(worker: Worker) -> tuple[str, ...]:
    """Return the URLs that fleet.toml itself implies; none for a worker found by DNS."""
    return worker.config.urls or tuple(f"http://127.0.0.1:{port}" for port in worker.ports)


async def look_up(name: str, resolve: Resolve) -> tuple[str, ...]:
    """Return the URL of every address behind `name` ("host:port"), in a stable order.

    Raises:
        OSError: the name cannot be looked up, or has no address just now.
    """
    host, _, port = name.rpartition(":")
    if not 0 < int(port) < 65_536:
        raise OSError(f"{port} is no port")
    addresses = sorted(set(await resolve(host, int(port))))
    return tuple(
        f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        for address in addresses
    )


async def resolve_by_system(host: str, port: int) -> list[str]:
    """Ask the system's resolver, outside the event loop's thread."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def name_replicas(worker: str, urls: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return URL -> name (`base-0`); `known` URLs keep theirs, new ones take the lowest free.

    Names are labels of metrics: pods that come and go must not make ever more of them.
    """
    urls = tuple(dict.fromkeys(urls))
    names = {url: known[url] for url in urls if url in known}
    taken = set(names.values())
    free = (name for n in range(len(urls)) if (name := f"{worker}-{n}") not in taken)
    return {url: names.get(url) or next(free) for url in urls}
