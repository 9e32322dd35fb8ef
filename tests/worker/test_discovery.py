"""Names and addresses of replicas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.worker.discovery import look_up, name_replicas, resolve_by_system

urls = st.lists(st.sampled_from([f"http://10.0.0.{n}:8000" for n in range(6)]), unique=True)


@given(st.lists(urls, max_size=8))
def test_names_stay_with_their_address_and_never_outnumber_the_replicas(
    rounds: list[list[str]],
) -> None:
    known: dict[str, str] = {}
    most = 0
    for found in rounds:
        before, known = known, name_replicas("base", found, known)
        most = max(most, len(found))
        assert list(known) == found
        assert len(set(known.values())) == len(found)
        assert all(known[url] == before[url] for url in found if url in before)
        assert set(known.values()) <= {f"base-{n}" for n in range(most)}


async def test_every_address_behind_a_name_is_a_replica() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("workers.svc", 8000)
        return ["10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.1"]

    assert await look_up("workers.svc:8000", resolve) == (
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
        "http://[fd00::1]:8000",
    )


@pytest.mark.parametrize("port", [0, 65_536, 99_999])
async def test_a_port_that_cannot_be_is_not_looked_up(port: int) -> None:
    with pytest.raises(OSError, match="no port"):
        await look_up(f"localhost:{port}", resolve_by_system)


async def test_the_system_knows_localhost() -> None:
    assert "127.0.0.1" in await resolve_by_system("localhost", 80)
