"""Limits of an endpoint: kept in every minute, shared by its actors, and nothing waits for ever because of them."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.judge.judges import openai_judge
from preceptor.judge.pacing import Bucket, pace_of
from tests.unit.endpoints import GOOD, POLICY, FakeTime, config, endpoint, graded_by, grader_of, pool, send


@settings(max_examples=60)
@given(
    per_minute=st.integers(1, 400),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0.0, 90.0)), min_size=1, max_size=120),
)
def test_no_minute_sees_more_requests_than_its_limit(per_minute: int, gaps: list[float]) -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=per_minute, tokens_per_minute=None, clock=time.clock())
    sent: list[float] = []

    async def run() -> None:
        for gap in gaps:
            time.now += gap
            await pace.enter(1.0)
            sent.append(time.now)

    asyncio.run(run())
    assert max(sum(start <= each < start + 60.0 for each in sent) for start in sent) <= per_minute


@settings(max_examples=60)
@given(sizes=st.lists(st.floats(1.0, 3000.0), min_size=1, max_size=150), per_minute=st.integers(1000, 50_000))
def test_no_minute_sees_more_tokens_than_its_limit_and_what_one_request_is_over_the_burst(
    sizes: list[float], per_minute: int
) -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=None, tokens_per_minute=per_minute, clock=time.clock())
    sent: list[tuple[float, float]] = []

    async def run() -> None:
        for size in sizes:
            await pace.enter(size)
            sent.append((time.now, size))

    asyncio.run(run())
    over = max(max(sizes) - per_minute / 10, 0.0)
    most = max(sum(size for at, size in sent if start <= at < start + 60.0) for start, _ in sent)
    assert most <= (per_minute + over) * (1 + 1e-6)


def test_a_limit_is_used_up_to_its_last_four_percent() -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=600, tokens_per_minute=None, clock=time.clock())

    async def run() -> None:
        for _ in range(3000):
            await pace.enter(1.0)

    asyncio.run(run())
    assert time.now <= 3000 / 600 * 60 * 1.04


def test_waiters_enter_in_the_order_they_came_even_past_a_small_one() -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=None, tokens_per_minute=1000, clock=time.clock())
    entered: list[int] = []

    async def one(number: int, size: float) -> None:
        await pace.enter(size)
        entered.append(number)

    async def run() -> None:
        await asyncio.gather(*(one(number, size) for number, size in enumerate((90.0, 90.0, 1.0, 1.0))))

    asyncio.run(run())
    assert entered == [0, 1, 2, 3]


def test_an_estimate_that_was_wrong_is_made_good_and_learnt_from() -> None:
    time = FakeTime()
    pace = pace_of(requests_per_minute=None, tokens_per_minute=6000, clock=time.clock())
    assert pace.tokens is not None
    taken = pace.estimate(400)
    assert taken == 100
    asyncio.run(pace.enter(taken))
    pace.settle(num_bytes=400, num_prompt_tokens=199, num_generated_tokens=1, taken=taken)
    assert pace.tokens.level == pytest.approx(600 - 200)
    assert pace.estimate(400) == 199
    pace.settle(num_bytes=400, num_prompt_tokens=0, num_generated_tokens=0, taken=199)
    assert pace.estimate(400) == 199, "a server that reports nothing teaches nothing"


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = Bucket(per_minute=60, burst=1.0)
    bucket.take(-50)
    assert bucket.level == 1.0
    assert bucket.wait_s(1.0, 1000.0) == 0.0


@dataclass(kw_only=True)
class Counting:
    """A server with a limit per minute of the fake clock: it answers 429 to whatever goes beyond."""

    time: FakeTime
    per_minute: int
    at: list[float] = field(default_factory=list)
    num_refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            recent = [at for at in self.at if at > self.time.now - 60.0]
            refused = len(recent) >= self.per_minute
            self.num_refused += refused
            self.at += [] if refused else [self.time.now]
        (send(b"{}", 429, retry_after="1") if refused else GOOD)(handler, body)


@pytest.mark.parametrize(("limit", "refuses"), [(10, False), (None, True)], ids=["paced", "unpaced"])
def test_a_server_with_a_limit_never_has_to_refuse_what_is_paced(limit: int | None, refuses: bool) -> None:
    time = FakeTime()
    server = Counting(time=time, per_minute=10)
    # One at a time: only then no request is on its way while the clock is moved.
    with endpoint(server, max_requests_per_minute=limit, max_concurrency=1) as (where, _):
        blocks = [pool(12)[start : start + 6] for start in (0, 6)]
        answers = graded_by(grader_of(where, time=time, dimensions=("role", "pay")), *blocks)
    assert (server.num_refused > 0) is refuses
    assert refuses or [reply.attempt for each in answers for reply in each.replies] == [1] * 24


def test_a_row_waits_its_turn_for_as_long_as_the_server_answers_others() -> None:
    time = FakeTime()
    lock, served_at = threading.Lock(), [-1.0]

    def one_a_second(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        # The lock holds until the answer is out: whoever is refused is refused after it.
        with lock:
            busy = time.now < served_at[0] + 1.0
            served_at[0] = served_at[0] if busy else time.now
            (send(b"{}", 429, retry_after="1") if busy else GOOD)(handler, body)
            handler.wfile.flush()

    with endpoint(one_a_second, max_concurrency=6, max_attempts=3) as (where, seen):
        (answers,) = graded_by(grader_of(where, time=time, dimensions=("role", "pay")), pool(6))
    assert [reply.reason for reply in answers.replies] == [None] * 12
    assert len(seen) > 12


def test_a_server_that_answers_nobody_is_given_up() -> None:
    with endpoint(send(b"{}", 429, retry_after="1"), max_concurrency=2, max_attempts=2) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role",)), pool(3))
    assert [(reply.reason, reply.attempt) for reply in answers.replies] == [("http 429", 2)] * 3
    assert len(seen) == 6


def test_a_request_that_is_larger_than_the_limit_does_not_wait_for_ever() -> None:
    def by_size(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        too_large = "posting 0" in body["messages"][-1]["content"]
        (send(b"{}", 429, retry_after="1") if too_large else GOOD)(handler, body)

    with endpoint(by_size, max_concurrency=2, max_attempts=2) as (where, seen):
        (answers,) = graded_by(grader_of(where, dimensions=("role",)), pool(40))
    refused = [reply for reply in answers.replies if reply.reason is not None]
    assert [(reply.pair_id, reply.reason) for reply in refused] == [(pool(1)[0]["pair_id"], "http 429")]
    assert 39 + 2 <= len(seen) <= 39 + 2 + 20


def test_a_slow_limit_is_not_taken_for_silence() -> None:
    def give_up_s(**limits: int) -> float:
        return openai_judge(config(**limits), POLICY).workers.give_up_s

    assert give_up_s() == give_up_s(max_requests_per_minute=10_000) == 1800.0
    minutes_per_block = 256 * len(POLICY.rubric.names) / 10
    assert give_up_s(max_requests_per_minute=10) >= 2 * 60 * minutes_per_block
    assert give_up_s(max_tokens_per_minute=10_000) > give_up_s(max_tokens_per_minute=20_000) > 1800.0


def test_actors_share_the_limits_between_them() -> None:
    with endpoint(GOOD, max_requests_per_minute=100, max_tokens_per_minute=9000, num_actors=4) as (where, _):
        pace = grader_of(where, dimensions=("role",)).pace
    assert pace.requests is not None and pace.tokens is not None
    assert (pace.requests.burst, pace.tokens.burst) == pytest.approx((25 / 60, 225))
