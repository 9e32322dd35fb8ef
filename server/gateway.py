"""The spine: the way of a request, shown once. Nothing else decides its order."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

from server.dispatch.dispatcher import Dispatcher
from server.errors import InvalidOutput, InvalidRequest, Overloaded, RequestError
from server.rollout import assignment
from server.tasks.registry import ServedVariant, Task, TaskRegistry
from server.telemetry.metrics import Metrics, Record
from server.types import Answer, Generated, Output, Prompt, Request, Sample, Timing, Usage


class Gateway:
    """Answers requests with the specialists of the fleet."""

    def __init__(
        self,
        tasks: TaskRegistry,
        dispatcher: Dispatcher,
        metrics: Metrics,
        *,
        max_in_flight: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`max_in_flight` bounds the requests being answered at once."""
        self._tasks = tasks
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._clock = clock

    async def infer(self, request: Request) -> Answer:
        """Answer one request with the specialist of its task."""
        started = self._clock()
        with self._metrics.request() as record:  # every outcome is counted, failures too
            task = self._resolve(request, record)
            with self._permit(task):
                variant = self._assign(task, request, record)
                with record.stage("prompt"):
                    prompt = await variant.prompt(request.input)
                output, usage = await self._ask(variant, prompt, request, record)
                record.answer = self._answer(request, variant, output, usage, record, started)
        return record.answer

    async def stream(self, request: Request) -> AsyncGenerator[str | Answer]:
        """Yield a text task's answer piece by piece, and last the whole answer."""
        started = self._clock()
        with self._metrics.request() as record:
            task = self._resolve(request, record)
            with self._permit(task):
                variant = self._assign(task, request, record)
                decoding = variant.reader.decoding
                if task.card.kind != "generate" or not isinstance(decoding, Sample):
                    raise InvalidRequest(
                        f"`stream` is for text tasks, and {task.name!r} is of kind "
                        f"{task.card.kind!r}: leave it out",
                        param="stream",
                    )
                with record.stage("prompt"):
                    prompt = await variant.prompt(request.input)
                chunks = self._dispatcher.stream(
                    variant.variant, prompt, decoding, request.deadline, request.id
                )
                output, usage = Generated("", "stop"), Usage()
                async with aclosing(chunks):
                    async for chunk, call in chunks:
                        output = Generated(output.text + chunk.text, chunk.finish_reason or "stop")
                        record.stages["worker"], usage = call.seconds, call.usage
                        if chunk.text:
                            yield chunk.text
                record.answer = self._answer(request, variant, output, usage, record, started)
        yield record.answer

    def refused(self, task: str, error: RequestError) -> None:
        """Count what was refused before it became a request: an unknown task, a wrong body."""
        with suppress(RequestError), self._metrics.request() as record:
            record.task = self._tasks.resolve(task).name
            raise error

    def _resolve(self, request: Request, record: Record) -> Task:
        task = self._tasks.resolve(request.task)
        record.task = task.name
        return task

    @contextmanager
    def _permit(self, task: Task) -> Iterator[None]:
        if self._in_flight >= self._max_in_flight:
            raise Overloaded(
                f"{self._in_flight} requests are being answered: ask again in a moment",
                retry_after_seconds=1.0,
            )
        self._in_flight += 1
        try:
            with self._metrics.working_on(task.name):
                yield
        finally:
            self._in_flight -= 1

    def _assign(self, task: Task, request: Request, record: Record) -> ServedVariant:
        if request.variant is not None:
            variant = task.variant(request.variant)
        else:
            variant = assignment.choose(task.name, task.variants, request.subject or request.id)
        record.variant = variant.name
        return variant

    async def _ask(
        self, variant: ServedVariant, prompt: Prompt, request: Request, record: Record
    ) -> tuple[Output, Usage]:
        """Ask the specialist, and once more if its first answer breaks its own schema."""
        reader = variant.reader
        usage = Usage()
        for decoding in (reader.decoding, reader.second_decoding):
            if decoding is None:
                break
            completion, call = await self._dispatcher.complete(
                variant.variant, prompt, decoding, request.deadline, request.id
            )
            record.add("worker", call.seconds)
            usage += call.usage
            try:
                with record.stage("answer"):
                    return reader.read(completion), usage
            except InvalidOutput as error:
                broken = error
        raise broken

    def _answer(
        self,
        request: Request,
        variant: ServedVariant,
        output: Output,
        usage: Usage,
        record: Record,
        started: float,
    ) -> Answer:
        total = self._clock() - started
        worker = record.stages.get("worker", 0.0)
        queue = max(0.0, total - sum(record.stages.values()))
        record.add("queue", queue)
        return Answer(
            id=request.id,
            task=record.task,
            variant=variant.name,
            specialist=variant.specialist.id,
            output=output,
            usage=usage,
            timing=Timing(total=total * 1000, queue=queue * 1000, worker=worker * 1000),
        )
