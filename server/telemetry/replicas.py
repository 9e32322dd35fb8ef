"""Turns what the pool learns about replicas into gauges and books."""

from __future__ import annotations

from collections.abc import Mapping

from server.telemetry.cost import Books
from server.telemetry.metrics import Metrics


class ReplicaRecorder:
    """The pool's observer."""

    def __init__(
        self, metrics: Metrics, books: Books, dollars_per_hour: Mapping[str, float]
    ) -> None:
        """`dollars_per_hour` is one replica's price, by worker."""
        self._metrics = metrics
        self._books = books
        self._dollars_per_hour = dollars_per_hour

    def replica_ready(self, worker: str, replica: str, ready: bool) -> None:
        """Show whether every specialist on the replica is proven; its book begins here."""
        self._books.begin(worker, replica, self._dollars_per_hour[worker])
        self._metrics.replica_ready.labels(worker, replica).set(ready)

    def replica_in_flight(self, worker: str, replica: str, in_flight: int) -> None:
        """Show the prompts that the replica is working on for this gateway."""
        self._metrics.replica_in_flight.labels(worker, replica).set(in_flight)

    def replica_gone(self, worker: str, replica: str) -> None:
        """Forget a replica that discovery no longer finds: its series and its book."""
        self._metrics.idle_cost_dollars.labels(worker).inc(self._books.end(worker, replica))
        for gauge in (self._metrics.replica_ready, self._metrics.replica_in_flight):
            gauge.remove(worker, replica)
