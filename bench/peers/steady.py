"""Steady open-loop load through the product's own client, and what became of each request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from bench.peers.load import percentile
from preceptor_serve.client import ApiError, AsyncClient, NoAnswer, Scores

if TYPE_CHECKING:
    from bench.peers.student import ScoreRequest


@dataclass(kw_only=True)
class Sent:
    """One request; times count from the start of the load. `num_failed` and `num_refused` are tries."""

    due_s: float
    done_s: float | None = None
    error: str | None = None
    num_failed: int = 0
    num_refused: int = 0
    is_wrong: bool = False

    @property
    def took_s(self) -> float:
        assert self.done_s is not None
        return self.done_s - self.due_s


_current: ContextVar[Sent] = ContextVar("current")


class Counting(httpx.AsyncBaseTransport):
    """Sends requests, and counts the tries of each that failed."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.ConnectError:
            _current.get().num_refused += 1
            raise
        except httpx.TransportError:
            _current.get().num_failed += 1
            raise
        if response.status_code >= 400:
            _current.get().num_failed += 1
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(kw_only=True)
class Steady:
    """Requests at `rate` a second from `stream`, until told to end; `is_right` judges answers."""

    url: str
    rate: float
    stream: Iterator[ScoreRequest]
    is_right: Callable[[ScoreRequest, Scores], bool] = lambda request, scores: True
    sent: list[Sent] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)
    _ending: bool = False

    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    def end(self) -> None:
        """No more requests leave."""
        self._ending = True

    async def run(self, *, seed: int) -> None:
        """Sends until `end`, and returns when all are answered or lost."""
        source = random.Random(seed)
        tasks: set[asyncio.Task[None]] = set()
        due_s = self.now_s()
        async with AsyncClient(self.url, transport=Counting()) as client:
            while not self._ending:
                due_s += source.expovariate(self.rate)
                await asyncio.sleep(max(0.0, due_s - self.now_s()))
                sent = Sent(due_s=due_s)
                self.sent.append(sent)
                task = asyncio.create_task(self._one(client, sent))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _one(self, client: AsyncClient, sent: Sent) -> None:
        _current.set(sent)
        request = next(self.stream)
        try:
            scores = await client.score(request.query, request.profile, request.documents)
            sent.is_wrong = not self.is_right(request, scores)
        except ApiError as error:
            sent.error = f"{error.status} {error.code}"
        except NoAnswer as error:
            sent.error = str(error).split(". ")[0]
        sent.done_s = self.now_s()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the requests due in a stretch of the load."""

    num_sent: int
    num_lost: int
    num_wrong: int
    num_failed_first: int
    num_refused: int
    p50_s: float
    p99_s: float
    longest_s: float
    recovered_s: float
    errors: dict[str, int]


def usual_p99_s(sent: list[Sent], *, before_s: float) -> float:
    """The 99th percentile of what was answered before `before_s`."""
    return percentile([one.took_s for one in sent if one.done_s is not None and one.done_s <= before_s], 0.99)


def is_disturbed(sent: Sent, *, slow_s: float) -> bool:
    """Whether `sent` was lost, failed at first, or took longer than `slow_s`."""
    return sent.error is not None or sent.num_failed + sent.num_refused > 0 or sent.took_s > slow_s


def outcome(sent: list[Sent], *, fault_s: float, slow_s: float) -> Outcome:
    """Of the requests under way at `fault_s` or due after it. Recovered: when the last disturbed one ended."""
    met = [one for one in sent if one.done_s is not None and one.done_s >= fault_s]
    disturbed = [one for one in met if is_disturbed(one, slow_s=slow_s)]
    took = [one.took_s for one in met]
    errors: dict[str, int] = {}
    for one in met:
        if one.error is not None:
            errors[one.error] = errors.get(one.error, 0) + 1
    return Outcome(
        num_sent=len(met),
        num_lost=sum(one.error is not None for one in met),
        num_wrong=sum(one.is_wrong for one in met),
        num_failed_first=sum(one.num_failed > 0 for one in met),
        num_refused=sum(one.num_refused > 0 for one in met),
        p50_s=percentile(took, 0.5),
        p99_s=percentile(took, 0.99),
        longest_s=max(took),
        recovered_s=max((one.done_s or 0.0 for one in disturbed), default=fault_s) - fault_s,
        errors=errors,
    )
