"""What operators look at: health, the fleet's state, metrics, and a page to try the tasks."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from server.api.responses import json_response
from server.fleet import Fleet, Worker
from server.tasks.registry import Task, TaskRegistry
from server.telemetry.cost import Books
from server.telemetry.metrics import Metrics
from server.worker.pool import Pool, Replica

# The page runs its own script and talks to its own server; nothing else.
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def router(
    fleet: Fleet,
    tasks: TaskRegistry,
    pool: Pool,
    metrics: Metrics,
    books: Books,
    draining: Callable[[], bool],
) -> APIRouter:
    """Return the routes of the operators."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/health/live", summary="The process lives")
    async def live() -> Response:
        return json_response({"status": "live"})

    @routes.get("/health/ready", summary="This gateway takes traffic")
    async def ready() -> Response:
        # Workers do not count: one dead worker must not take every gateway out of rotation.
        if draining():
            return json_response({"status": "draining"}, 503)
        return json_response({"status": "ready"})

    @routes.get("/health/tasks", summary="Every task can be answered")
    async def health_of_all() -> Response:
        return _health([_task_health(task, pool) for task in tasks])

    @routes.get("/health/tasks/{task}", summary="That task can be answered")
    async def health_of_one(task: str) -> Response:
        return _health([_task_health(tasks.resolve(task), pool)])

    @routes.get("/v1/fleet", summary="Workers, replicas, variants and their states")
    async def show_fleet() -> Response:
        return json_response(
            {
                "workers": {
                    name: _worker_body(worker, pool) for name, worker in fleet.workers.items()
                },
                "tasks": {task.name: _variants_body(task, pool) for task in tasks},
            }
        )

    @routes.get("/metrics", include_in_schema=False)
    async def scrape() -> Response:
        for worker, dollars in books.take_idle():
            metrics.idle_cost_dollars.labels(worker).inc(dollars)
        body, content_type = metrics.scrape()
        return Response(body, headers={"Content-Type": content_type})

    return routes


def page() -> APIRouter:
    """Return the routes of the page at `/` and its parts."""
    routes = APIRouter(include_in_schema=False)
    here = files("server.api") / "page"
    parts = {
        "page.js": (here / "page.js").read_bytes(),
        "page.css": (here / "page.css").read_bytes(),
    }
    types = {"js": "text/javascript", "css": "text/css"}
    html = (here / "page.html").read_bytes()
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}

    @routes.get("/")
    async def index() -> Response:
        return HTMLResponse(html, headers=headers)

    for name, body in parts.items():
        media_type = types[name.rpartition(".")[2]]
        response = Response(body, headers=headers, media_type=media_type)
        routes.add_api_route(f"/{name}", _always(response), methods=["GET"])
    return routes


def _always(response: Response) -> Callable[[], Response]:
    def respond() -> Response:
        return response

    return respond


def _task_health(task: Task, pool: Pool) -> dict[str, Any]:
    missing = {}
    for variant in task.variants:
        # A variant of weight 0 answers only those who name it: the task does not hang on it.
        worker, one = variant.variant.worker, variant.specialist.id
        if variant.weight > 0 and not pool.serving(worker, one):
            missing[variant.name] = {"worker": worker, "reason": pool.missing(worker, one)}
    return {"task": task.name, "ready": not missing, "missing": missing}


def _health(tasks: list[dict[str, Any]]) -> Response:
    every = all(task["ready"] for task in tasks)
    body = {"status": "ready" if every else "unready", "tasks": tasks}
    return json_response(body, 200 if every else 503)


def _worker_body(worker: Worker, pool: Pool) -> dict[str, Any]:
    return {
        "model": worker.config.model,
        "revision": worker.config.revision,
        "device": worker.config.device,
        "local": worker.config.local,
        "dollars_per_hour": worker.config.dollars_per_hour,
        "specialists": [one.id for one in worker.specialists],
        "replicas": [_replica_body(replica) for replica in pool.replicas(worker.name)],
    }


def _replica_body(replica: Replica) -> dict[str, Any]:
    return {
        "name": replica.name,
        "url": replica.url,
        "state": replica.state,
        "reason": replica.reason,
        "in_flight": replica.in_flight,
        "proven": sorted(replica.proven),
        "refused": dict(replica.refused),
    }


def _variants_body(task: Task, pool: Pool) -> list[dict[str, Any]]:
    return [
        {
            "name": variant.name,
            "specialist": variant.specialist.id,
            "worker": variant.variant.worker,
            "weight": variant.weight,
            "ready_replicas": len(pool.serving(variant.variant.worker, variant.specialist.id)),
        }
        for variant in task.variants
    ]
