"""`/v1/tasks`: ask a task one thing, a list of things, or for a stream; and read about tasks."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import JsonValue
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from server.api.errors import body_of
from server.api.responses import answer_body, json_response, timing_header, usage_body
from server.api.schemas import TaskRequest, as_input, input_schema, output_schema, parse
from server.config import GatewayConfig
from server.errors import RequestError
from server.gateway import Gateway
from server.tasks.registry import Task, TaskRegistry
from server.types import Answer, Request, Usage

# How many inputs of one list are asked about at once.
LIST_CONCURRENCY = 32
# The status that nginx made up for a caller who hung up; nobody reads it.
CLIENT_CLOSED_REQUEST = 499

T = TypeVar("T")


def router(gateway: Gateway, tasks: TaskRegistry, config: GatewayConfig) -> APIRouter:
    """Return the routes under `/v1/tasks`."""
    routes = APIRouter(tags=["tasks"])

    # Described task by task in the OpenAPI document: see `schemas.add_tasks`.
    @routes.post("/v1/tasks/{task}", include_in_schema=False)
    async def ask(task: str, http: HttpRequest) -> Response:
        try:
            with _counted(gateway, task):
                tasks.resolve(task)  # before the body is looked at
                body = parse(await http.body(), config.max_inputs)
            asked = _Asked(gateway, task, body, time.monotonic() + _seconds(body, config))
            if body.stream:
                return await _stream(asked, http)
            work = _list(asked, http) if body.inputs else _one(asked)
            return await _unless_gone(http, work)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    @routes.get("/v1/tasks", summary="Every task of this fleet")
    async def list_tasks() -> Response:
        return json_response({"tasks": [describe(task) for task in tasks]})

    @routes.get("/v1/tasks/{task}", summary="One task: schemas, labels, specialist, quality")
    async def get_task(task: str) -> Response:
        return json_response(describe(tasks.resolve(task)))

    return routes


@dataclass(frozen=True, slots=True)
class _Asked:
    """One HTTP request as the requests that it holds."""

    gateway: Gateway
    task: str
    body: TaskRequest
    deadline: float

    def request(self, value: JsonValue) -> Request:
        """Return the request about one of the inputs."""
        with _counted(self.gateway, self.task):
            about = as_input(value)
        return Request(
            id=f"inf_{secrets.token_hex(12)}",
            task=self.task,
            input=about,
            deadline=self.deadline,
            subject=self.body.subject,
            variant=self.body.variant,
        )


@contextmanager
def _counted(gateway: Gateway, task: str) -> Iterator[None]:
    """Have the gateway count what is refused on the way to it."""
    try:
        yield
    except RequestError as error:
        gateway.refused(task, error)
        raise


async def _one(asked: _Asked) -> Response:
    answer = await asked.gateway.infer(asked.request(asked.body.input))
    return json_response(answer_body(answer), headers={"Server-Timing": timing_header(answer)})


async def _list(asked: _Asked, http: HttpRequest) -> Response:
    """Answer a list in order; an input that fails fails alone."""
    inputs = asked.body.inputs or []
    slots = asyncio.Semaphore(LIST_CONCURRENCY)
    results: list[dict[str, Any]] = [{}] * len(inputs)
    usage = Usage()

    async def answer(index: int, value: JsonValue) -> None:
        nonlocal usage
        async with slots:
            try:
                one = await asked.gateway.infer(asked.request(value))
            except RequestError as error:
                results[index] = body_of(error, http.state.request_id)
            else:
                results[index] = answer_body(one)
                usage += one.usage

    async with asyncio.TaskGroup() as group:
        for index, value in enumerate(inputs):
            group.create_task(answer(index, value))
    return json_response({"task": asked.task, "results": results, "usage": usage_body(usage)})


async def _stream(asked: _Asked, http: HttpRequest) -> Response:
    """Stream server-sent events: `delta` {"text"}, then `answer`, or `error` if it breaks off."""
    pieces = asked.gateway.stream(asked.request(asked.body.input))
    # The first piece decides the status: what fails before it is an ordinary error.
    first = await _unless_gone(http, anext(pieces))

    async def events() -> AsyncGenerator[bytes]:
        async with aclosing(pieces):
            try:
                yield _event(first)
                async for piece in pieces:
                    yield _event(piece)
            except RequestError as error:
                yield _sse("error", body_of(error, http.state.request_id))

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


def _event(piece: str | Answer) -> bytes:
    if isinstance(piece, str):
        return _sse("delta", {"text": piece})
    return _sse("answer", answer_body(piece))


def _sse(event: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.encode(), to_json(data))


async def _unless_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """Return what `work` returns, or end it and raise ClientDisconnect when the caller leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(http.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _seconds(body: TaskRequest, config: GatewayConfig) -> float:
    if body.deadline_ms is None:
        return config.request_timeout_seconds
    return min(body.deadline_ms / 1000, config.request_timeout_seconds)


def describe(task: Task) -> dict[str, Any]:
    """Return what `/v1/tasks/{task}` says of a task."""
    card = task.card
    quality = card.quality.model_dump(mode="json") if card.quality else None
    return {
        "name": task.name,
        "description": task.description,
        "kind": card.kind,
        "labels": [label.label for label in card.labels] or None,
        "input_schema": input_schema(card),
        "output_schema": output_schema(card),
        "specialist": task.stable.specialist.id,
        "base_model": card.base_model.name,
        "max_prompt_tokens": card.max_prompt_tokens,
        "calibration": card.calibration.model_dump(mode="json"),
        "quality": quality,
        "variants": [
            {"name": variant.name, "specialist": variant.specialist.id, "weight": variant.weight}
            for variant in task.variants
        ],
    }
