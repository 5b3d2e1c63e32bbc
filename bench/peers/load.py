"""Open-loop load: requests leave when a Poisson process says, whether or not earlier ones have come back."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Ask = Callable[[], Awaitable[None]]
"""Sends the next request and returns with its answer; raises where there is none."""

ABANDON_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one arrival rate came to. Latency counts from when a request was due; one that failed took for ever."""

    rate: float
    num_requests: int
    num_failed: int
    p50_s: float
    p99_s: float
    throughput: float

    def keeps(self, bound_s: float) -> bool:
        """Whether 99 of 100 requests were answered within `bound_s`, at the rate at which they came."""
        return self.p99_s <= bound_s


def percentile(values: list[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def at_rate(ask: Ask, rate: float, *, seconds: float, seed: int) -> Point:
    """What `rate` requests a second for about `seconds`, and 20 at least, come to."""
    source = random.Random(seed)
    due: list[float] = []
    while len(due) < 20 or due[-1] < seconds:
        due.append((due[-1] if due else 0.0) + source.expovariate(rate))
    started_s = time.monotonic()

    async def one(due_s: float) -> float:
        await asyncio.sleep(max(0.0, started_s + due_s - time.monotonic()))
        try:
            async with asyncio.timeout(ABANDON_S):
                await ask()
        except Exception:
            return math.inf
        return time.monotonic() - started_s - due_s

    latencies = list(await asyncio.gather(*(one(due_s) for due_s in due)))
    took_s = time.monotonic() - started_s
    answered = [latency for latency in latencies if math.isfinite(latency)]
    return Point(
        rate=rate,
        num_requests=len(latencies),
        num_failed=len(latencies) - len(answered),
        p50_s=statistics.median(latencies),
        p99_s=percentile(latencies, 0.99),
        throughput=len(answered) / took_s,
    )


async def alone(ask: Ask, *, num: int) -> float:
    """Median seconds of a request that finds nothing under way."""
    took = []
    for _ in range(num):
        started_s = time.monotonic()
        await ask()
        took.append(time.monotonic() - started_s)
    return statistics.median(took)


async def saturated(ask: Ask, *, seconds: float, callers: int = 6) -> float:
    """Requests a second when `callers` each send the next as soon as they have an answer."""
    started_s = time.monotonic()
    done = 0

    async def call() -> None:
        nonlocal done
        while time.monotonic() - started_s < seconds:
            await ask()
            done += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (time.monotonic() - started_s)


async def curve(ask: Ask, *, top: float, bound_s: float, seconds: float, seed: int, steps: int) -> list[Point]:
    """Points from light load up to the first rate that breaks `bound_s`, then `steps` halvings of what lies between.

    `top`: requests a second of the saturated server.
    """
    points: list[Point] = []
    low, high = 0.0, top * 1.3
    for share in (0.1, 0.2, 0.3, 0.5, 0.65, 0.8, 0.9, 1.0, 1.15):
        point = await at_rate(ask, top * share, seconds=seconds, seed=seed + len(points))
        points.append(point)
        if not point.keeps(bound_s):
            high = point.rate
            break
        low = point.rate
    for _ in range(steps if low else 0):
        point = await at_rate(ask, (low + high) / 2, seconds=seconds, seed=seed + len(points))
        points.append(point)
        low, high = (point.rate, high) if point.keeps(bound_s) else (low, point.rate)
    return sorted(points, key=lambda point: point.rate)


def best(points: list[Point], bound_s: float) -> Point | None:
    """The highest rate that keeps `bound_s`; None where none does."""
    return max((point for point in points if point.keeps(bound_s)), key=lambda point: point.rate, default=None)
