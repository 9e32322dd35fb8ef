"""Brings a prompt to a replica that has proven the specialist, inside the request's deadline."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from random import Random

from server.dispatch import balancer
from server.errors import DeadlineExceeded, NoReadyReplica, RequestError
from server.fleet import Variant
from server.telemetry.cost import Books, Charge
from server.telemetry.metrics import Metrics
from server.types import Chunk, Completion, Decoding, Prompt, Sample, Usage
from server.worker.client import WorkerClient
from server.worker.pool import Pool, Replica

# A replica that went away is probed every second or so: that is when asking again may help.
RETRY_AFTER_SECONDS = 2.0


@dataclass(slots=True)
class Call:
    """One call of a replica as it happens: what it yields, took and cost."""

    started: float = 0.0
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    charge: Charge = field(default_factory=Charge)

    @property
    def usage(self) -> Usage:
        """The call's tokens and its share of the replica's price."""
        return Usage(self.prompt_tokens, self.completion_tokens, self.charge.dollars)


class Dispatcher:
    """Chooses a replica, calls it, and keeps its books."""

    def __init__(
        self,
        pool: Pool,
        client: WorkerClient,
        books: Books,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        """`clock` is the one that deadlines are on."""
        self._pool = pool
        self._client = client
        self._books = books
        self._metrics = metrics
        self._clock = clock
        self._random = random or Random()

    async def complete(
        self, variant: Variant, prompt: Prompt, decoding: Decoding, deadline: float, request_id: str
    ) -> tuple[Completion, Call]:
        """Return one prompt's completion and what the call took.

        Raises:
            NoReadyReplica: nobody has proven the specialist just now.
            DeadlineExceeded: the time ran out before or during the call.
            WorkerError: the replica failed; the pool is told.
        """
        with self._call(variant, prompt, decoding) as (replica, call):
            (completion,) = await self._client.complete(
                replica.url,
                variant.specialist.id,
                [prompt],
                decoding,
                timeout_seconds=self._left(deadline),
                request_id=request_id,
            )
            call.completion_tokens = completion.completion_tokens
        return completion, call

    async def stream(
        self, variant: Variant, prompt: Prompt, decoding: Sample, deadline: float, request_id: str
    ) -> AsyncGenerator[tuple[Chunk, Call]]:
        """Yield a completion piece by piece; leaving early ends the engine's work, too."""
        with self._call(variant, prompt, decoding) as (replica, call):
            chunks = self._client.stream(
                replica.url,
                variant.specialist.id,
                prompt,
                decoding,
                timeout_seconds=self._left(deadline),
                request_id=request_id,
            )
            last = Chunk("", finish_reason="stop")
            async with aclosing(chunks):
                async for chunk in chunks:
                    if chunk.finish_reason is None:
                        call.completion_tokens += 1  # at least: the last chunk has the true count
                        yield chunk, call
                    else:
                        call.completion_tokens = chunk.completion_tokens
                        last = chunk
        # The last piece goes out when the books are closed, so that its usage is whole.
        yield last, call

    @contextmanager
    def _call(
        self, variant: Variant, prompt: Prompt, decoding: Decoding
    ) -> Iterator[tuple[Replica, Call]]:
        replicas = self._pool.serving(variant.worker, variant.specialist.id)
        if not replicas:
            raise NoReadyReplica(
                self._pool.missing(variant.worker, variant.specialist.id),
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        replica = balancer.choose(replicas, self._random)
        call = Call(started=self._clock(), prompt_tokens=len(prompt.token_ids))
        weight = float(len(prompt.token_ids) + getattr(decoding, "max_tokens", 1))
        try:
            with (
                self._pool.carry(replica),
                self._books.charge(replica.worker, replica.name, weight) as call.charge,
            ):
                yield replica, call
        except RequestError as error:
            self._pool.report(replica, error)
            raise
        finally:
            call.seconds = self._clock() - call.started
            self._metrics.spent(
                variant.task,
                variant.name,
                call.prompt_tokens,
                call.completion_tokens,
                call.charge.dollars,
            )

    def _left(self, deadline: float) -> float:
        left = deadline - self._clock()
        if left <= 0:
            raise DeadlineExceeded("the request's time ran out before a worker was asked")
        return left
