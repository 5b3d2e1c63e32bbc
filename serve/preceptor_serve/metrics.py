"""Prometheus series of one edge process. Labels come from closed lists: no text, key or path of a caller is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from preceptor_serve.engine_series import EngineSeries

ROUTES: Final = (
    "/v1/score",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/models",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
)
Lost = Literal["full", "closed", "defect", "disk"]
"""Why a sampled document is not in the served log: the queue was full, the log closed, or a row or part failed."""

LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What one edge process counts. `replica` tells its series from those of its siblings."""

    def __init__(self, *, replica: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.engines = EngineSeries(clock)
        self.registry.register(self.engines)
        self._replica = replica
        self._requests = Counter(
            "preceptor_requests_total", "Answered requests.", ("route", "status", "replica"), registry=self.registry
        )
        self._refusals = Counter(
            "preceptor_refusals_total", "Errors by their code.", ("code", "replica"), registry=self.registry
        )
        self._documents = Counter(
            "preceptor_documents_scored_total", "Documents scored.", ("replica",), registry=self.registry
        )
        self._unscored = Counter(
            "preceptor_documents_unscored_total",
            "Documents of answered requests that were left out for want of time.",
            ("replica",),
            registry=self.registry,
        )
        self._cut = Counter(
            "preceptor_requests_cut_total",
            "Answered requests that lack scores of some documents.",
            ("replica",),
            registry=self.registry,
        )
        self._under_way = Gauge(
            "preceptor_documents_under_way", "Documents sent to the scorers.", ("replica",), registry=self.registry
        )
        self._seconds = Histogram(
            "preceptor_request_seconds",
            "From the request's head to the answer's last byte.",
            ("route", "replica"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._kept = Counter(
            "preceptor_served_log_rows_total",
            "Documents written to the served log.",
            ("replica",),
            registry=self.registry,
        )
        self._lost = Counter(
            "preceptor_served_log_dropped_rows_total",
            "Documents of sampled requests that the served log does not hold, by why.",
            ("reason", "replica"),
            registry=self.registry,
        )
        self._waiting = Gauge(
            "preceptor_served_log_waiting_rows", "Documents not written yet.", ("replica",), registry=self.registry
        )
        self._documents.labels(replica)
        self._unscored.labels(replica)
        self._cut.labels(replica)
        self._under_way.labels(replica)

    def answered(self, *, path: str, status: int, seconds: float) -> None:
        # Unknown paths share one label: a scanner must not be able to grow the series.
        route = path if path in ROUTES else "other"
        self._requests.labels(route, str(status), self._replica).inc()
        self._seconds.labels(route, self._replica).observe(seconds)

    def refused(self, code: str) -> None:
        self._refusals.labels(code, self._replica).inc()

    def sent(self, num_documents: int) -> None:
        self._under_way.labels(self._replica).inc(num_documents)

    def came_back(self, num_documents: int) -> None:
        self._under_way.labels(self._replica).dec(num_documents)

    def scored(self, num_documents: int) -> None:
        self._documents.labels(self._replica).inc(num_documents)

    def left_out(self, num_documents: int) -> None:
        self._cut.labels(self._replica).inc()
        self._unscored.labels(self._replica).inc(num_documents)

    def kept(self, num_documents: int) -> None:
        self._kept.labels(self._replica).inc(num_documents)

    def lost(self, num_documents: int, *, reason: Lost) -> None:
        self._lost.labels(reason, self._replica).inc(num_documents)

    def waiting(self, num_documents: int) -> None:
        self._waiting.labels(self._replica).set(num_documents)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)
