"""An AsyncScorer over a live bundle and a candidate: a share of members, or a shadow, for the candidate. No Ray.

What the candidate does wrong never reaches a caller: its share of a request falls back to the live bundle, and what it
scores in the shadow is compared after the answer has gone, or dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from preceptor.errors import PreceptorError
from preceptor_serve.comparing import Compared
from preceptor_serve.routing import Routing, is_canary
from preceptor_serve.scorer import Answer, AsyncScorer, BadScore, Identity, Overloaded, TimedOut, Unavailable, checked

MAX_SHADOWS: Final = 8
"""Shadow requests of one edge under way at once: as many as a replica takes. More are dropped, and counted."""

CANARY_S: Final = 10.0
"""How long the candidate may take for a member's request before the live bundle is asked in its place."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A routing and the scorers behind its slots; `keep` takes what shadow requests showed, None keeps nothing."""

    routing: Routing
    live: AsyncScorer
    candidate: AsyncScorer | None = None
    keep: Callable[[Compared], bool] | None = None


@runtime_checkable
class Several(Protocol):
    """An AsyncScorer in which more than one bundle may answer."""

    async def identities(self) -> list[Identity]: ...


async def identities_of(scorer: AsyncScorer) -> list[Identity]:
    """Every bundle that answers requests, the live one first."""
    return await scorer.identities() if isinstance(scorer, Several) else [await scorer.identity()]


class SplitScorer:
    """Answers by the table it follows, which may change between any two requests.

    `draw` gives numbers from 0 to 1 that choose shadow requests; `clock` counts seconds.
    """

    def __init__(
        self,
        table: Table,
        *,
        replica: str = "local",
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.perf_counter,
        max_shadows: int = MAX_SHADOWS,
        canary_s: float = CANARY_S,
    ) -> None:
        self._table = table
        self._draw = draw
        self._clock = clock
        self._max_shadows = max_shadows
        self._canary_s = canary_s
        self._shadows: set[asyncio.Task[None]] = set()
        self.series = RolloutSeries(replica)
        self.series.routing = table.routing

    def follow(self, table: Table) -> None:
        """Answer by `table` from the next request on. May be called from any thread."""
        self._table = table
        self.series.routing = table.routing

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        table = self._table
        if table.candidate is not None and is_canary(table.routing, query, profile):
            try:
                async with asyncio.timeout(self._canary_s):
                    answer = await _sound(table.candidate, query, profile, documents)
            except Exception as error:
                # Whatever it is, the member's request is not what the candidate is to be tried at.
                self.series.fallbacks[reason_of(error)] += 1
                return await table.live.score(query, profile, documents)
            self.series.canaries += 1
            return answer
        started_s = self._clock()
        answer = await table.live.score(query, profile, documents)
        if table.candidate is not None and table.routing.shadow and self._draw() < table.routing.shadow:
            took_ms = 1000 * (self._clock() - started_s)
            self._start_shadow(table, table.candidate, Compared.of(query, profile, tuple(documents), answer, took_ms))
        return answer

    async def identity(self) -> Identity:
        return await self._table.live.identity()

    async def identities(self) -> list[Identity]:
        """The live bundle, and the candidate where it answers anybody and says who it is."""
        table = self._table
        found = [await table.live.identity()]
        if table.candidate is not None and table.routing.share:
            with contextlib.suppress(PreceptorError):
                found.append(await table.candidate.identity())
        return found

    async def settled(self) -> None:
        """Returns once no shadow request is under way."""
        while self._shadows:
            await asyncio.wait(self._shadows)

    def _start_shadow(self, table: Table, candidate: AsyncScorer, seen: Compared) -> None:
        if len(self._shadows) >= self._max_shadows:
            self.series.shadows["dropped"] += 1
            return
        task = asyncio.create_task(self._shadow(table, candidate, seen))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _shadow(self, table: Table, candidate: AsyncScorer, seen: Compared) -> None:
        started_s = self._clock()
        try:
            answer = await _sound(candidate, seen.query, seen.profile, seen.documents)
            compared, outcome = seen.beside(answer, took_ms=1000 * (self._clock() - started_s)), "compared"
        except Exception as error:
            compared, outcome = seen.failed(reason_of(error), took_ms=1000 * (self._clock() - started_s)), "failed"
        kept = table.keep is None or table.keep(compared)
        self.series.shadows[outcome if kept else "lost"] += 1


async def _sound(scorer: AsyncScorer, query: str, profile: str, documents: Sequence[str]) -> Answer:
    answer = await scorer.score(query, profile, documents)
    checked(answer.scores, num_documents=len(documents))
    return answer


def reason_of(error: Exception) -> str:
    """Why a candidate did not answer, in one of five words: what an error says may quote a member."""
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, Unavailable):
        return "unavailable"
    if isinstance(error, (TimedOut, TimeoutError)):
        return "timeout"
    return "bad_score" if isinstance(error, BadScore) else "defect"


class RolloutSeries(Collector):
    """What a SplitScorer did, as Prometheus series; `replica` tells them from those of sibling edges."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.routing: Routing | None = None
        self.canaries = 0
        self.fallbacks: Counter[str] = Counter()
        self.shadows: Counter[str] = Counter()

    def collect(self) -> Iterator[Metric]:
        """The series; those of outcomes that never were are left out."""
        canaries = CounterMetricFamily(
            "preceptor_canary_answers", "Queries answered by the candidate.", labels=("replica",)
        )
        canaries.add_metric((self._replica,), self.canaries)
        yield canaries
        for name, text, label, counts in (
            ("canary_fallbacks", "Queries of the candidate's that the live bundle answered, by why.", "reason",
             self.fallbacks),
            ("shadow_requests", "Queries scored by the candidate besides, or dropped.", "outcome", self.shadows),
        ):  # fmt: skip
            family = CounterMetricFamily(f"preceptor_{name}", text, labels=(label, "replica"))
            for value, count in sorted(counts.items()):
                family.add_metric((value, self._replica), count)
            yield family
        routing = self.routing
        for name, text, level in (
            ("canary_share", "Share of members whom the candidate answers.", routing.share if routing else 0),
            ("shadow_share", "Share of requests that it scores besides.", routing.shadow if routing else 0),
            ("rollout_revision", "The rollout's state that this edge follows.", routing.revision if routing else 0),
        ):
            gauge = GaugeMetricFamily(f"preceptor_{name}", text, labels=("replica",))
            gauge.add_metric((self._replica,), level)
            yield gauge
