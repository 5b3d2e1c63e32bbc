"""Prometheus series of the engines behind an edge, as their answers told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from preceptor_serve.scorer import Standing

FORGOTTEN_AFTER_S: Final = 300.0
"""A replica that has not answered for so long is gone or idle; its series end."""

_TOTALS: Final = (
    ("passes", "num_passes", "Forward passes."),
    ("tokens", "num_tokens", "Tokens computed."),
    ("padding_tokens", "num_padding_tokens", "Tokens computed that meant nothing."),
    ("documents", "num_documents", "Documents computed; those whose score was known are not."),
    ("busy_seconds", "busy_s", "Time in forward passes: its rate is the busy share."),
)
_CACHES: Final = (("score", "score"), ("prefix", "prefix"), ("tokens", "token"))


class EngineSeries(Collector):
    """Collects what engines said last. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[float, Standing]] = {}

    def heard(self, standing: Standing) -> None:
        """Note how an engine stands; answers may overtake each other, and its counts only grow."""
        known = self._heard.get(standing.name)
        if known is None:
            # Where nobody scrapes, replicas that come and go would add up.
            self._forget()
        if known is None or known[1].counts.num_passes <= standing.counts.num_passes:
            self._heard[standing.name] = (self._clock(), standing)

    def collect(self) -> Iterator[Metric]:
        """The series of every engine heard of lately."""
        self._forget()
        standings = [standing for _, standing in self._heard.values()]
        for name, field, text in _TOTALS:
            total = CounterMetricFamily(f"preceptor_engine_{name}", text, labels=("scorer",))
            for standing in standings:
                total.add_metric((standing.name,), getattr(standing.counts, field))
            yield total
        for kind in ("hits", "misses"):
            total = CounterMetricFamily(f"preceptor_engine_cache_{kind}", f"Cache {kind}.", labels=("scorer", "cache"))
            for standing in standings:
                for cache, field in _CACHES:
                    total.add_metric((standing.name, cache), getattr(standing.counts, f"{field}_{kind}"))
            yield total
        waiting = GaugeMetricFamily("preceptor_engine_queued_tokens", "Tokens that wait.", labels=("scorer",))
        for standing in standings:
            waiting.add_metric((standing.name,), standing.load.num_tokens)
        yield waiting

    def _forget(self) -> None:
        now_s = self._clock()
        self._heard = {
            name: (then_s, standing)
            for name, (then_s, standing) in self._heard.items()
            if now_s - then_s <= FORGOTTEN_AFTER_S
        }
