"""A call of a replica: which one, what it took, what it cost, and who hears of its failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from server.dispatch.dispatcher import Dispatcher
from server.errors import (
    DeadlineExceeded,
    NoReadyReplica,
    RequestError,
    WorkerError,
    WorkerRefused,
    WorkerUnreachable,
)
from server.fleet import Variant
from server.telemetry.cost import Books
from server.telemetry.metrics import Metrics
from server.telemetry.replicas import ReplicaRecorder
from server.types import Decoding, Prompt, Sample, ScoreTokens
from server.worker.client import WorkerClient, http_client
from server.worker.pool import Pool, Replica
from server.worker.standing import ReplicaState
from tests.gatewayed import Worker, fake_workers, samples, tiny_fleet, total, until
from tests.serving import serving
from tests.tiny_model import LABEL_IDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = Prompt((2, 20, 21, 22))
SCORE = ScoreTokens(LABEL_IDS[:3])
WRITE = Sample(max_tokens=24)
DOLLARS_PER_HOUR = 3600.0


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """Make these tests run on the event loop of production."""
    return uvloop.EventLoopPolicy()


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@dataclass(frozen=True)
class Parts:
    """A dispatcher, and all that it speaks to."""

    dispatcher: Dispatcher
    pool: Pool
    metrics: Metrics
    books: Books
    clock: Clock
    workers: list[Worker]
    variant: Variant

    @property
    def replica(self) -> Replica:
        """The first replica."""
        return self.pool.replicas("base")[0]

    async def complete(self, decoding: Decoding = SCORE, seconds: float = 10.0) -> Any:
        """Call the variant, with so much time left."""
        deadline = self.clock.now + seconds
        return await self.dispatcher.complete(self.variant, PROMPT, decoding, deadline, "id-1")

    def stream(self, seconds: float = 10.0) -> AsyncGenerator[Any]:
        """Stream from the variant."""
        deadline = self.clock.now + seconds
        return self.dispatcher.stream(self.variant, PROMPT, WRITE, deadline, "id-1")

    def spent(self, name: str, **labels: str) -> float:
        """Return a counter's value for the variant's task."""
        found = samples(self.metrics.scrape()[0].decode())
        return total(found, name, task=self.variant.task, **labels)


@asynccontextmanager
async def _parts(root: Path, count: int = 1) -> AsyncGenerator[Parts]:
    nowhere = {"base": [f"http://127.0.0.1:{n + 1}" for n in range(count)]}
    workers = fake_workers(tiny_fleet(root, nowhere), {"base": count})["base"]
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(worker)) for worker in workers]
        http = await stack.enter_async_context(http_client())
        fleet = tiny_fleet(root, {"base": urls}, dollars_per_hour=DOLLARS_PER_HOUR)
        clock, client, metrics = Clock(), WorkerClient(http), Metrics(fleet)
        books = Books(clock)
        observer = ReplicaRecorder(metrics, books, {"base": DOLLARS_PER_HOUR})
        pool = Pool(fleet, client, {}, observer=observer)
        for replica in pool.replicas():
            await pool.probe(replica)
            assert replica.state is ReplicaState.READY
        dispatcher = Dispatcher(pool, client, books, metrics, clock=clock)
        (variant,) = fleet.variants["story"]
        yield Parts(dispatcher, pool, metrics, books, clock, workers, variant)


@pytest_asyncio.fixture(loop_scope="module")
async def parts(root: Path) -> AsyncGenerator[Parts]:
    """Yield a dispatcher over one replica, on a clock that stands still."""
    async with _parts(root) as parts:
        yield parts


async def test_a_call_returns_the_completion_and_what_it_took(parts: Parts) -> None:
    def edit(body: dict[str, Any]) -> Any:
        parts.clock.now += 3
        return body

    (worker,) = parts.workers
    worker.edits.append(edit)
    completion, call = await parts.complete()
    assert set(completion.steps[0].logprobs) == set(SCORE.token_ids)
    assert worker.asked[-1]["model"] == parts.variant.specialist.id
    assert worker.asked[-1]["prompt"] == [list(PROMPT.token_ids)]
    assert call.seconds == 3
    # Alone on the replica, it pays for all of these three seconds: a dollar each.
    assert call.usage.cost_dollars == pytest.approx(3)
    assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (4, 1)
    assert parts.spent("fleet_tokens_total", direction="in") == 4
    assert parts.spent("fleet_tokens_total", direction="out") == 1
    assert parts.spent("fleet_cost_dollars_total") == pytest.approx(3)
    assert dict(parts.books.take_idle())["base"] == 0


async def test_calls_at_once_share_the_price_by_their_tokens(parts: Parts) -> None:
    (worker,) = parts.workers
    worker.gate.clear()
    small = asyncio.create_task(parts.complete(SCORE))
    large = asyncio.create_task(parts.complete(Sample(max_tokens=16)))
    await until(lambda: worker.open == 2)
    assert parts.replica.in_flight == 2
    parts.clock.now += 5
    worker.gate.set()
    costs = [(await one)[1].usage.cost_dollars for one in (small, large)]
    assert sum(costs) == pytest.approx(5)
    assert costs[0] / costs[1] == pytest.approx((4 + 1) / (4 + 16))
    assert parts.replica.in_flight == 0
    parts.clock.now += 7
    assert dict(parts.books.take_idle())["base"] == pytest.approx(7)


async def test_a_stream_ends_with_the_whole_of_what_it_took(parts: Parts) -> None:
    chunks, calls = [], []
    async with aclosing(parts.stream()) as stream:
        async for chunk, call in stream:
            assert parts.replica.in_flight == (chunk.finish_reason is None)
            chunks.append(chunk)
            calls.append(call)
            parts.clock.now += 1
    completion, alone = await parts.complete(WRITE)
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert chunks[-1].finish_reason == completion.finish_reason
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    call = calls[-1]
    assert all(one is call for one in calls)
    assert call.usage.completion_tokens == alone.usage.completion_tokens
    # The last piece comes when the books are closed: what the caller does then is not charged.
    assert call.seconds == len(chunks) - 1
    assert call.usage.cost_dollars == pytest.approx(len(chunks) - 1)


async def test_leaving_a_stream_ends_and_books_the_call(parts: Parts) -> None:
    (worker,) = parts.workers
    worker.pieces = 2
    async with aclosing(parts.stream()) as stream:
        await anext(stream)
        parts.clock.now += 2
        assert worker.open == 1
    await until(lambda: worker.open == 0)
    assert parts.replica.in_flight == 0
    assert parts.spent("fleet_tokens_total", direction="in") == 4
    assert parts.spent("fleet_tokens_total", direction="out") == 1
    assert parts.spent("fleet_cost_dollars_total") == pytest.approx(2)
    assert parts.replica.state is ReplicaState.READY


async def test_a_cancelled_call_ends_and_is_booked(parts: Parts) -> None:
    (worker,) = parts.workers
    worker.fail(hang=True)
    asking = asyncio.create_task(parts.complete())
    await until(lambda: worker.open == 1)
    parts.clock.now += 4
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: worker.open == 0)
    assert parts.replica.in_flight == 0
    assert parts.spent("fleet_cost_dollars_total") == pytest.approx(4)
    assert parts.spent("fleet_tokens_total", direction="out") == 0
    assert parts.replica.state is ReplicaState.READY


async def test_time_that_ran_out_before_the_call_asks_nobody(parts: Parts) -> None:
    (worker,) = parts.workers
    for seconds in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            await parts.complete(seconds=seconds)
        with pytest.raises(DeadlineExceeded):
            await anext(parts.stream(seconds=seconds))
    assert worker.asked == []
    assert parts.replica.state is ReplicaState.READY


async def test_time_that_runs_out_during_the_call_says_nothing_of_the_replica(
    parts: Parts,
) -> None:
    (worker,) = parts.workers
    worker.fail(hang=True)
    with pytest.raises(DeadlineExceeded):
        await parts.complete(seconds=0.05)
    assert parts.replica.state is ReplicaState.READY
    assert not parts.replica.suspect
    await until(lambda: worker.open == 0)


@pytest.mark.parametrize(
    ("faults", "error", "suspect"),
    [
        ({"status": 500}, WorkerError, True),
        ({"status": 404}, WorkerError, True),
        ({"disconnect": True}, WorkerError, True),
        ({"status": 400}, WorkerRefused, False),
        ({"status": 422}, WorkerRefused, False),
    ],
)
async def test_the_pool_hears_of_failures_that_are_the_replicas(
    parts: Parts, faults: dict[str, Any], error: type[RequestError], suspect: bool
) -> None:
    (worker,) = parts.workers
    worker.fail(**faults)
    for call in (parts.complete(), anext(parts.stream()) if "status" in faults else None):
        if call is None:
            continue
        with pytest.raises(error) as caught:
            await call
        assert type(caught.value) is error
    assert parts.replica.suspect is suspect
    assert parts.replica.state is ReplicaState.READY
    assert parts.replica.in_flight == 0


async def test_a_replica_that_is_gone_leaves_at_once(root: Path) -> None:
    async with _parts(root, count=2) as parts:
        first, second = parts.pool.replicas("base")
        parts.pool.report(first, WorkerUnreachable("it is gone"))
        for _ in range(10):
            await parts.complete()
        assert [len(worker.asked) for worker in parts.workers] == [0, 10]
        parts.pool.report(second, WorkerUnreachable("it is gone, too"))
        with pytest.raises(NoReadyReplica, match="it is gone, too") as caught:
            await parts.complete()
        assert caught.value.retry_after_seconds == 2
        with pytest.raises(NoReadyReplica):
            await anext(parts.stream())
        # Nobody was asked, so nothing was spent.
        assert parts.spent("fleet_tokens_total", direction="in") == 10 * len(PROMPT.token_ids)


async def test_calls_go_where_the_fewest_are(root: Path) -> None:
    async with _parts(root, count=3) as parts:
        for worker in parts.workers:
            worker.gate.clear()
        asking = []
        for count in range(1, 10):
            asking.append(asyncio.create_task(parts.complete()))
            await until(lambda count=count: sum(w.open for w in parts.workers) == count)
            opened = [worker.open for worker in parts.workers]
            assert max(opened) - min(opened) <= 1
        for worker in parts.workers:
            worker.gate.set()
        await asyncio.gather(*asking)
        assert {replica.in_flight for replica in parts.pool.replicas()} == {0}
