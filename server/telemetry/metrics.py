"""Every instrument, declared once; label values come from fleet.toml alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from server.errors import RequestError
from server.fleet import Fleet
from server.types import Answer, Classified

# Names in fleet.toml have no parentheses, so these can never be a task's or a variant's.
NO_TASK = "(unknown)"
NO_VARIANT = "(none)"

SECONDS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30,
)  # fmt: skip
STAGE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, *SECONDS)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
STAGES = ("prompt", "queue", "worker", "answer")


@dataclass(slots=True)
class Record:
    """The facts of one request as it goes its way."""

    task: str = NO_TASK
    variant: str = NO_VARIANT
    answer: Answer | None = None
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    _clock: Callable[[], float] = time.perf_counter

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage, failed or not; a stage that runs twice adds up."""
        started = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - started)

    def add(self, name: str, seconds: float) -> None:
        """Book seconds on a stage."""
        self.stages[name] = self.stages.get(name, 0.0) + seconds


class Metrics:
    """The gateway's instruments over a registry of its own."""

    def __init__(self, fleet: Fleet) -> None:
        # `_created` would double the series, and nobody asks a dashboard for it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        arm = ("task", "variant")
        self.requests = Counter(
            "fleet_requests", "Requests by how they ended: ok, or the error's code.",
            (*arm, "outcome"), registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "fleet_request_seconds", "From the parsed request to its answer or error.",
            arm, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "fleet_stage_seconds", "Where the time of answered requests went.",
            ("stage",), buckets=STAGE_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "fleet_in_flight", "Requests being answered.", ("task",), registry=registry
        )
        self.tokens = Counter(
            "fleet_tokens", "Tokens through the engine, in (prompt) and out (completion).",
            (*arm, "direction"), registry=registry,
        )  # fmt: skip
        self.cost_dollars = Counter(
            "fleet_cost_dollars", "The requests' shares of their replicas' dollars_per_hour.",
            arm, registry=registry,
        )  # fmt: skip
        self.idle_cost_dollars = Counter(
            "fleet_idle_cost_dollars", "What replicas cost while nothing of ours was in flight.",
            ("worker",), registry=registry,
        )  # fmt: skip
        self.confidence = Histogram(
            "fleet_confidence", "Calibrated probability of the label answered.",
            arm, buckets=CONFIDENCE, registry=registry,
        )  # fmt: skip
        replica = ("worker", "replica")
        self.replica_ready = Gauge(
            "fleet_replica_ready", "1 when every specialist on the replica is proven.",
            replica, registry=registry,
        )  # fmt: skip
        self.replica_in_flight = Gauge(
            "fleet_replica_in_flight", "Prompts that the replica is working on for this gateway.",
            replica, registry=registry,
        )  # fmt: skip
        self.worker_restarts = Counter(
            "fleet_worker_restarts", "Times that a local worker's process was started again.",
            ("worker",), registry=registry,
        )  # fmt: skip
        self._show_zeros(fleet)

    def _show_zeros(self, fleet: Fleet) -> None:
        """Create the series up front: a rate over a counter that appears at 1 misses the 1."""
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for name, worker in fleet.workers.items():
            self.idle_cost_dollars.labels(name)
            if worker.config.local:
                self.worker_restarts.labels(name)
        for task, variants in fleet.variants.items():
            self.in_flight.labels(task)
            for variant in variants:
                self.requests.labels(task, variant.name, "ok")
                self.request_seconds.labels(task, variant.name)
                self.cost_dollars.labels(task, variant.name)
                if variant.specialist.card.kind == "classify":
                    self.confidence.labels(task, variant.name)
                for direction in ("in", "out"):
                    self.tokens.labels(task, variant.name, direction)

    @contextmanager
    def request(self) -> Iterator[Record]:
        """Count and time one request, whatever becomes of it.

        An outcome is `ok`, an error's code, `abandoned` (the caller left) or `internal_error`.
        """
        record = Record()
        started = time.perf_counter()
        outcome = "internal_error"
        try:
            yield record
            outcome = "ok"
        except RequestError as error:
            outcome = error.code
            raise
        except BaseException as error:
            if not isinstance(error, Exception):  # cancelled, or its stream closed
                outcome = "abandoned"
            raise
        finally:
            arm = (record.task, record.variant)
            self.requests.labels(*arm, outcome).inc()
            self.request_seconds.labels(*arm).observe(time.perf_counter() - started)
            if record.answer is not None:
                self._answered(record, record.answer)

    @contextmanager
    def working_on(self, task: str) -> Iterator[None]:
        """Show a request of a known task as in flight."""
        gauge = self.in_flight.labels(task)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def _answered(self, record: Record, answer: Answer) -> None:
        arm = (record.task, record.variant)
        for stage, seconds in record.stages.items():
            self.stage_seconds.labels(stage).observe(seconds)
        if isinstance(answer.output, Classified):
            self.confidence.labels(*arm).observe(answer.output.confidence)

    def spent(
        self, task: str, variant: str, prompt_tokens: int, completion_tokens: int, dollars: float
    ) -> None:
        """Count what one engine call took, whether or not its answer was of use."""
        self.tokens.labels(task, variant, "in").inc(prompt_tokens)
        self.tokens.labels(task, variant, "out").inc(completion_tokens)
        self.cost_dollars.labels(task, variant).inc(dollars)

    def scrape(self) -> tuple[bytes, str]:
        """Return the exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
