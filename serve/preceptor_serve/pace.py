"""How long a request would take now, judged by what is under way and how fast work of its kind has been done.

Work is counted in characters to be read, query and profile once: what tokens and arithmetic follow, known without a
tokenizer. Two rates are measured: `alone`, of requests that found nothing under way, and `shared`, of those that did,
with all work under way at their start counted. A request then takes its own work at the first rate or all work at the
second, whichever is longer: true of one replica that works in turn, of several side by side and of one that batches.

Nothing unknown refuses: an unmeasured rate counts as infinite, and a rate not confirmed for RELEARN_S is forgotten,
since a refused request measures nothing and a scorer that has become faster would never be found out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from preceptor_serve.rates import retry_after
from preceptor_serve.schema import Refusal
from preceptor_serve.scorer import TimedOut

RELEARN_S: Final = 10.0
FORGET: Final = 0.9
"""Weight of what was measured before at each new measurement: about the last ten count."""
MAX_RETRY_S: Final = 60.0
"""Nobody is told to stay away for longer: the rates behind it may change."""
QUEUED: Final = 1.2
"""A request that took this many times its time alone has waited for others."""


class Rate:
    """Work a second, over about the last ten measurements."""

    def __init__(self) -> None:
        self._work = 0.0
        self._seconds = 0.0
        self._seen_s = -math.inf

    def measure(self, work: float, seconds: float, *, now_s: float) -> None:
        kept = FORGET if now_s - self._seen_s <= RELEARN_S else 0.0
        self._work = kept * self._work + work
        self._seconds = kept * self._seconds + seconds
        self._seen_s = now_s

    def at(self, now_s: float) -> float:
        """The rate; infinite where it is unknown or was not measured for RELEARN_S."""
        known = self._seconds > 0 and now_s - self._seen_s <= RELEARN_S
        return self._work / self._seconds if known else math.inf


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Seconds a request would take, and how many of them it would wait for others."""

    total_s: float
    waiting_s: float


class Pace:
    """What is under way in this process, and how fast it has been going."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._under_way = 0.0
        self._alone = Rate()
        self._shared = Rate()

    def expected(self, work: float) -> Expected:
        """How long `work` would take if it were sent now."""
        now_s = self._clock()
        own_s = work / self._alone.at(now_s)
        all_s = (self._under_way + work) / self._shared.at(now_s) if self._under_way else 0.0
        return Expected(total_s=max(own_s, all_s), waiting_s=max(0.0, all_s - own_s))

    def drain_s(self) -> float:
        """Seconds until everything now under way is done; 0 where that is unknown."""
        return self._under_way / self._shared.at(self._clock())

    def room(self, left_s: float) -> float:
        """The most work that would be done in `left_s` if it were sent now."""
        if left_s <= 0:
            return 0.0
        now_s = self._clock()
        own, shared = self._alone.at(now_s) * left_s, self._shared.at(now_s) * left_s
        return min(own, shared - self._under_way) if self._under_way else own

    def require_short(self, max_wait_s: float) -> None:
        """Nothing; Refusal 429 where more than `max_wait_s` of work is under way."""
        drain_s = self.drain_s()
        if drain_s > max_wait_s:
            message = f"About {drain_s:.0f} s of work wait already, and at most {max_wait_s:g} s may. Retry later."
            wait = retry_after(min(drain_s - max_wait_s, MAX_RETRY_S))
            raise Refusal(429, "overloaded", message, retry_after_s=wait)

    def require(self, work: float, *, left_s: float) -> None:
        """Nothing; Refusal 429 where `work` would not be done in `left_s`."""
        expected = self.expected(work)
        if expected.total_s <= left_s:
            return
        message = (
            f"The answer would take about {expected.total_s * 1000:.0f} ms, {expected.waiting_s * 1000:.0f} of them "
            f"waiting, and {max(left_s, 0) * 1000:.0f} ms are left. Retry later, send fewer documents, or allow more."
        )
        wait = retry_after(min(expected.total_s - left_s, MAX_RETRY_S))
        raise Refusal(429, "deadline_unreachable", message, field="deadline_ms", retry_after_s=wait)

    @contextmanager
    def under_way(self, work: float) -> Iterator[None]:
        """Counts `work` as under way while the body runs, and measures it where it was done or ran out of time."""
        ahead, started_s = self._under_way, self._clock()
        self._under_way += work
        try:
            yield
        except TimedOut:
            # Else only what is fast enough would be measured, and a scorer that has become slow never noticed.
            self._measure(ahead, work, started_s)
            raise
        else:
            self._measure(ahead, work, started_s)
        finally:
            self._under_way -= work

    def _measure(self, ahead: float, own: float, started_s: float) -> None:
        now_s = self._clock()
        elapsed_s = now_s - started_s
        if not ahead:
            self._alone.measure(own, elapsed_s, now_s=now_s)
        elif self._shared.at(now_s) < math.inf or elapsed_s > QUEUED * own / self._alone.at(now_s):
            # Without a sign of waiting, work beside others says nothing yet of how much fits side by side.
            self._shared.measure(ahead + own, elapsed_s, now_s=now_s)
