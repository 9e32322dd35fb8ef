"""The composition root: every part is made here, once, and handed on by arguments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from server import __version__
from server.api import ops
from server.api import tasks as tasks_api
from server.api.middleware import RequestFrame
from server.api.responses import error_response
from server.api.schemas import add_tasks
from server.dispatch.dispatcher import Dispatcher
from server.errors import ConfigError, MethodNotAllowed, NotFound, RequestError
from server.fleet import Fleet
from server.gateway import Gateway
from server.tasks import registry
from server.tasks.registry import TaskRegistry
from server.telemetry.cost import Books
from server.telemetry.metrics import Metrics
from server.telemetry.replicas import ReplicaRecorder
from server.worker.client import WorkerClient, http_client
from server.worker.pool import Pool
from server.worker.probe import GoldenProbe, golden_probes


@dataclass(slots=True)
class Draining:
    """Whether this gateway has stopped taking new traffic."""

    begun: bool = False

    def __call__(self) -> bool:
        return self.begun


def create_app(
    fleet: Fleet, *, metrics: Metrics | None = None, draining: Draining | None = None
) -> FastAPI:
    """Return the gateway of a fleet as an ASGI app; its lifespan probes the workers.

    Raises:
        ConfigError: a tokenizer is missing, or does not fit a specialist's card.
    """
    config = fleet.config.gateway
    tasks = registry.build(fleet, tokenizer_from_hub)
    metrics = metrics or Metrics(fleet)
    books = Books(time.monotonic)
    http = http_client()
    client = WorkerClient(http)
    prices = {name: worker.config.dollars_per_hour for name, worker in fleet.workers.items()}
    pool = Pool(fleet, client, _probes(tasks), observer=ReplicaRecorder(metrics, books, prices))
    dispatcher = Dispatcher(pool, client, books, metrics)
    gateway = Gateway(tasks, dispatcher, metrics, max_in_flight=config.max_in_flight)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        probing = asyncio.create_task(pool.run())
        try:
            yield
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
            await http.aclose()

    # FastAPI's own pages load scripts from elsewhere; ours at `/` does not.
    app = FastAPI(
        title="Specialist fleet",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a path that is not there is a 404, in the envelope
    )
    app.include_router(tasks_api.router(gateway, tasks, config))
    app.include_router(ops.router(fleet, tasks, pool, metrics, books, draining or Draining()))
    app.include_router(ops.page())
    app.add_exception_handler(RequestError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_unrouted)
    app.add_middleware(RequestFrame, max_body_bytes=config.max_body_bytes)
    document = add_tasks(
        get_openapi(title=app.title, version=app.version, routes=app.routes), tasks
    )
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


def tokenizer_from_hub(model: str, revision: str | None) -> Path:
    """Return the `tokenizer.json` of a hub model, downloaded at most once.

    Raises:
        ConfigError: the hub does not give it.
    """
    try:
        return Path(hf_hub_download(model, "tokenizer.json", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            [
                f"the tokenizer of {model!r} cannot be had from the hub ({first_line}): put its "
                "tokenizer.json beside the specialist's card, or set HF_TOKEN after accepting "
                "the model's licence"
            ]
        ) from None


def _probes(tasks: TaskRegistry) -> dict[str, tuple[GoldenProbe, ...]]:
    return {
        served.specialist.id: golden_probes(served.specialist.card, served.encode)
        for served in tasks.served()
    }


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error, request.state.request_id)


async def _answer_unrouted(request: Request, error: Exception) -> Response:
    """Put the framework's own 404 and 405 into the error envelope."""
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        lost = NotFound("there is nothing at this path; GET /openapi.json lists what there is")
        return error_response(lost, request.state.request_id)
    allowed = ", ".join(sorted(_methods(request)))
    fault = MethodNotAllowed(f"{request.method} is not for this path: {allowed} is")
    response = error_response(fault, request.state.request_id)
    response.headers["Allow"] = allowed
    return response


def _methods(request: Request) -> set[str]:
    """Return every method of the request's path; the framework names its first route's alone."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching for method in route.methods or ()}
