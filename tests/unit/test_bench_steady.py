"""How the benchmarks of failures and of the soak count: what is lost, when all was well again, what has grown."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Response

from bench.peers.steady import Sent, Steady, outcome, usual_p99_s
from bench.serve_soak import Sample, growth, repeating
from preceptor_serve.api import make_api
from preceptor_serve.scorer import FakeScorer, ThreadedScorer
from tests.unit.serving import serving

REQUEST: Any = SimpleNamespace(query="nurse", profile="ward", documents=("Staff Nurse", "Baker"))


def sent(due_s: float, took_s: float, **fields: Any) -> Sent:
    return Sent(due_s=due_s, done_s=due_s + took_s, **fields)


def test_only_what_met_the_fault_counts():
    requests = [
        sent(0.0, 0.1, error="early"),
        sent(9.9, 0.2),
        sent(10.5, 0.1, num_failed=1),
        sent(11.0, 2.0, num_refused=3),
        sent(14.0, 0.1, error="503 unavailable", num_failed=2),
        sent(15.0, 0.9),
        sent(20.0, 0.1, is_wrong=True),
    ]
    found = outcome(requests, fault_s=10.0, slow_s=0.5)
    assert (found.num_sent, found.num_lost, found.num_wrong) == (6, 1, 1)
    assert (found.num_failed_first, found.num_refused) == (2, 1)
    assert found.errors == {"503 unavailable": 1}
    assert found.recovered_s == pytest.approx(5.9), "the slow request of second 15 was the last disturbed one"
    assert found.longest_s == pytest.approx(2.0)


def test_nothing_disturbed_is_recovered_at_once():
    found = outcome([sent(1.0, 0.1), sent(2.0, 0.1)], fault_s=1.0, slow_s=0.5)
    assert (found.recovered_s, found.num_lost) == (0.0, 0)


def test_the_usual_time_is_that_before_the_fault():
    assert usual_p99_s([sent(0.0, 0.1), sent(0.5, 0.2), sent(0.9, 5.0)], before_s=1.0) == pytest.approx(0.2)


def test_requests_are_answered_judged_and_their_failed_tries_counted():
    inner = make_api(ThreadedScorer(FakeScorer()))
    outer = FastAPI()
    failures = iter([True, False, False])

    @outer.middleware("http")
    async def fail_first(request: Any, call_next: Any) -> Response:
        failing = next(failures, False)
        return Response("Internal Server Error", 500) if failing else await call_next(request)

    outer.mount("/", inner)
    with serving(outer, log_level="error") as url:
        judged: list[int] = []

        def is_right(request: Any, scores: Any) -> bool:
            judged.append(len(scores.results))
            return len(judged) > 1

        load = Steady(url=url, rate=50.0, stream=itertools.repeat(REQUEST), is_right=is_right)

        async def run() -> None:
            running = asyncio.create_task(load.run(seed=1))
            while len(load.sent) < 5:
                await asyncio.sleep(0.01)
            load.end()
            await running

        asyncio.run(run())
    assert [one.error for one in load.sent] == [None] * len(load.sent)
    assert sum(one.num_failed for one in load.sent) == 1
    assert sum(one.is_wrong for one in load.sent) == 1
    assert judged == [2] * len(load.sent)


def test_growth_compares_the_last_quarter_with_the_second():
    samples = [Sample(at_s=60.0 * minute, mib={"a": 100.0, "b": 100.0 + minute}) for minute in range(20)]
    flat, grown, whole = (growth(name, samples) for name in ("a", "b", "all"))
    assert (flat.share, flat.slope_mib_per_hour) == (0.0, pytest.approx(0.0))
    assert (grown.second_mib, grown.last_mib) == (107.0, 117.0)
    assert grown.slope_mib_per_hour == pytest.approx(60.0)
    assert whole.share == pytest.approx(217 / 207 - 1)


def test_some_requests_come_twice_and_all_come_in_order():
    given = list(itertools.islice(repeating(itertools.count(), seed=1), 1000))
    counts = {number: given.count(number) for number in given}
    assert list(dict.fromkeys(given)) == sorted(counts)
    assert set(counts.values()) == {1, 2}
    assert 0.2 < sum(num == 2 for num in counts.values()) / len(counts) < 0.4
