"""What callers of a real vLLM see when it is killed under them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from server.errors import WorkerError, WorkerUnreachable
from server.types import Prompt, Sample, ScoreTokens
from server.worker.client import WorkerClient, http_client
from tests.real_engine import members, reap, running_engine
from tests.tiny_model import LABEL_IDS, write_tiny_base

PROMPT = Prompt((2, 300, 301, 302))


@pytest.mark.engine
async def test_a_killed_engine_fails_its_callers_at_once(tmp_path: Path) -> None:
    base = await asyncio.to_thread(write_tiny_base, tmp_path / "base")
    decoding = Sample(max_tokens=200, schema={"type": "string", "minLength": 190})
    with running_engine(base, tmp_path / "log") as engine:
        async with http_client() as http:
            client = WorkerClient(http)
            stream = client.stream(engine.url, engine.base, PROMPT, decoding, timeout_seconds=60)
            async with aclosing(stream):
                assert (await anext(stream)).finish_reason is None
                engine.process.kill()
                with pytest.raises(WorkerError):
                    async for _ in stream:
                        pass
            score = ScoreTokens(LABEL_IDS[:2])
            with pytest.raises(WorkerUnreachable):
                await client.complete(engine.url, engine.base, [PROMPT], score, timeout_seconds=60)
            with pytest.raises(WorkerUnreachable):
                await client.health(engine.url, timeout_seconds=60)
            await asyncio.to_thread(reap, engine.process)
            assert members(engine.process.pid) == []
