"""The figures of running stages as Prometheus series, and the address where they are scraped."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

from preceptor.errors import InputError
from preceptor.judge.progress import Standing, bounded
from preceptor.judge.replies import Usage

_NAN = float("nan")


class Watch:
    """The series of the stages that one process runs, in a registry of their own.

    Counters add up over the stages; a gauge is there while its stage runs. The process's own memory and CPU time are
    among the series: it is the driver's.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._reasons: Tally[str] = Tally()
        ProcessCollector(registry=self.registry)
        self._rows = Counter(
            "preceptor_label_rows_total",
            "Rows (pair and dimension) answered, rejected ones too.",
            ("stage", "judge"),
            registry=self.registry,
        )
        self._rejected = Counter(
            "preceptor_label_rejected_rows_total",
            "Rows answered without a grade. Reasons beyond the first few count as 'other'.",
            ("reason",),
            registry=self.registry,
        )
        self._tokens = Counter(
            "preceptor_label_tokens_total",
            "Tokens: 'prompt' all that were read, 'cached' those of them found in a prefix cache, 'generated' written.",
            ("kind",),
            registry=self.registry,
        )
        self._cost = Counter("preceptor_label_cost_usd_total", "Money paid to an endpoint.", registry=self.registry)
        self._left = Gauge("preceptor_label_rows_left", "Rows still to come.", ("stage",), registry=self.registry)
        self._rate = Gauge(
            "preceptor_label_rows_per_second",
            "Rows/s over about the last minute; sinks while nothing comes in.",
            ("stage",),
            registry=self.registry,
        )
        self._seconds = Gauge(
            "preceptor_label_seconds_left",
            "What the rows left take at that rate; NaN before there is one.",
            ("stage",),
            registry=self.registry,
        )
        # There from the first scrape, so that a rate over them has a start.
        for kind in ("prompt", "cached", "generated"):
            self._tokens.labels(kind)

    def follow(self, stage: str, standing: Callable[[], Standing]) -> None:
        """Ask `standing` for the gauges of `stage` at every scrape, until `leave`."""
        self._left.labels(stage).set_function(lambda: standing().num_left)
        self._rate.labels(stage).set_function(lambda: standing().rate)
        self._seconds.labels(stage).set_function(lambda: _or_nan(standing().seconds_left))

    def leave(self, stage: str) -> None:
        """Take the gauges of `stage` away."""
        for gauge in (self._left, self._rate, self._seconds):
            with suppress(KeyError):
                gauge.remove(stage)

    def count(self, *, stage: str, judge: str, num_rows: int, rejected: Mapping[str, int], usage: Usage) -> None:
        """Add what came in."""
        self._rows.labels(stage, judge).inc(num_rows)
        for reason, num in bounded(rejected, self._reasons).items():
            self._reasons[reason] += num
            self._rejected.labels(reason).inc(num)
        self._tokens.labels("prompt").inc(usage.num_prompt_tokens)
        self._tokens.labels("cached").inc(usage.num_cached_tokens)
        self._tokens.labels("generated").inc(usage.num_generated_tokens)
        self._cost.inc(usage.cost_usd)


def _or_nan(value: float | None) -> float:
    return _NAN if value is None else value


@contextmanager
def served(watch: Watch, *, host: str, port: int) -> Iterator[str]:
    """The address at which `watch` is scraped while the body runs; port 0 takes a free one.

    InputError where the port cannot be bound.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=watch.registry)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be bound ({error}). Choose another --metrics-port.") from error
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
