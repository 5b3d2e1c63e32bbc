"""Deadlines: what cannot be done in time is refused before it is sent, judged by what is under way and was measured."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.types import Message

from preceptor_serve.api import make_api
from preceptor_serve.pace import RELEARN_S, Pace
from preceptor_serve.schema import Limits, Refusal
from preceptor_serve.scorer import Answer, FakeScorer, Identity, ThreadedScorer, TooLate
from tests.unit.serving import BODY, JSON, Clock, Session, assert_refused, client, exchange, samples

WORK = 100.0


def begin(pace: Pace) -> AbstractContextManager[None]:
    under_way = pace.under_way(WORK)
    under_way.__enter__()
    return under_way


def end(under_way: AbstractContextManager[None]) -> None:
    under_way.__exit__(None, None, None)


def alone(pace: Pace, clock: Clock, seconds: float) -> None:
    with pace.under_way(WORK):
        clock.pass_s(seconds)


def test_nothing_is_refused_before_anything_was_measured():
    pace = Pace(Clock())
    first = begin(pace)
    assert pace.expected(WORK).total_s == 0
    pace.require(WORK, left_s=0.0)
    end(first)


def test_time_follows_the_work():
    clock = Clock()
    pace = Pace(clock)
    alone(pace, clock, 1.0)
    assert pace.expected(WORK).total_s == pytest.approx(1.0)
    assert pace.expected(3 * WORK).total_s == pytest.approx(3.0)
    with pytest.raises(Refusal) as refused:
        pace.require(3 * WORK, left_s=2.0)
    assert (refused.value.status, refused.value.code) == (429, "deadline_unreachable")
    assert refused.value.retry_after_s == 1
    pace.require(3 * WORK, left_s=3.1)


def test_one_replica_in_turn_is_found_out_and_its_queue_counts():
    clock = Clock()
    pace = Pace(clock)
    alone(pace, clock, 1.0)
    first, second = begin(pace), begin(pace)
    clock.pass_s(1.0)
    end(first)
    clock.pass_s(1.0)
    end(second)
    queue = [begin(pace) for _ in range(3)]
    expected = pace.expected(WORK)
    assert (expected.total_s, expected.waiting_s) == (pytest.approx(4.0), pytest.approx(3.0))
    with pytest.raises(Refusal, match="4000 ms, 3000 of them waiting, and 2000 ms are left") as refused:
        pace.require(WORK, left_s=2.0)
    assert refused.value.retry_after_s == 2
    for under_way in queue:
        end(under_way)
    pace.require(WORK, left_s=2.0)


def test_replicas_side_by_side_are_not_taken_for_a_queue():
    clock = Clock()
    pace = Pace(clock)
    alone(pace, clock, 1.0)
    for _ in range(5):
        together = [begin(pace) for _ in range(4)]
        clock.pass_s(1.0)
        for under_way in together:
            end(under_way)
    busy = [begin(pace) for _ in range(3)]
    assert pace.expected(WORK).total_s == pytest.approx(1.0)
    for under_way in busy:
        end(under_way)


def test_replicas_added_are_noticed_by_what_gets_faster():
    clock = Clock()
    pace = Pace(clock)
    alone(pace, clock, 1.0)
    for seconds in (4.0, *[1.0] * 20):
        together = [begin(pace) for _ in range(4)]
        clock.pass_s(seconds)
        for under_way in together:
            end(under_way)
    busy = [begin(pace) for _ in range(3)]
    assert pace.expected(WORK).total_s < 1.5
    for under_way in busy:
        end(under_way)


def test_what_was_not_confirmed_for_long_refuses_no_one():
    clock = Clock()
    pace = Pace(clock)
    alone(pace, clock, 5.0)
    with pytest.raises(Refusal):
        pace.require(WORK, left_s=1.0)
    clock.pass_s(RELEARN_S + 0.1)
    pace.require(WORK, left_s=1.0)


def test_what_ran_out_of_time_is_measured_too():
    clock = Clock()
    pace = Pace(clock)
    with pytest.raises(TooLate), pace.under_way(WORK):
        clock.pass_s(2.0)
        raise TooLate("late")
    assert pace.expected(WORK).total_s == pytest.approx(2.0)


def test_what_failed_at_once_says_nothing_of_the_pace():
    pace = Pace(Clock())
    with pytest.raises(RuntimeError), pace.under_way(WORK):
        raise RuntimeError
    assert pace.expected(WORK).total_s == 0


# Over the API


@dataclass
class SlowScorer:
    """An AsyncScorer that takes 100 s of `clock` for each request, and stays on it where the query is 'stay'."""

    clock: Clock
    num_asked: int = 0
    staying: asyncio.Event = field(default_factory=asyncio.Event)

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        self.num_asked += 1
        if query == "stay":
            self.staying.set()
            await asyncio.Event().wait()
        self.clock.pass_s(100.0)
        return await ThreadedScorer(FakeScorer()).score(query, profile, documents)

    async def identity(self) -> Identity:
        return Identity(bundle_id="slow", policy_version="v")


def test_a_request_that_cannot_make_its_deadline_is_never_sent():
    clock = Clock()
    scorer = SlowScorer(clock)
    session = Session(make_api(scorer, clock=clock))
    assert session.post("/v1/score", json=BODY).status_code == 200
    refused = session.post("/v1/score", json=BODY | {"deadline_ms": 50_000})
    assert_refused(refused, 429, "deadline_unreachable", "deadline_ms")
    assert refused.headers["retry-after"] == "50"
    rerank = {"query": BODY["query"], "profile": BODY["profile"], "documents": BODY["documents"]}
    for path, body in (("/v1/rerank", rerank), ("/v1/score", {"requests": [BODY]}), ("/v1/score", BODY)):
        response = session.post(path, json=body, headers={"x-deadline-ms": "50000"})
        assert_refused(response, 429, "deadline_unreachable", "deadline_ms")
    assert scorer.num_asked == 1
    assert session.post("/v1/score", json=BODY | {"deadline_ms": 150_000}).status_code == 200
    assert session.post("/v1/score", json=BODY).status_code == 200


def test_the_bodys_deadline_counts_before_the_headers():
    clock = Clock()
    session = Session(make_api(SlowScorer(clock), clock=clock))
    session.post("/v1/score", json=BODY)
    body = BODY | {"deadline_ms": 150_000}
    assert session.post("/v1/score", json=body, headers={"x-deadline-ms": "50000"}).status_code == 200


def test_a_deadline_that_passes_meanwhile_is_504_and_calls_the_work_off():
    scorer = SlowScorer(Clock())
    session = Session(make_api(scorer))
    response = session.post("/v1/score", json=BODY | {"query": "stay", "deadline_ms": 20})
    assert_refused(response, 504, "deadline_exceeded", "deadline_ms")
    assert samples(session)[("preceptor_documents_under_way", None, None)] == 0


def test_a_request_behind_another_is_refused_at_once_not_after():
    async def run() -> None:
        clock = Clock()
        scorer = SlowScorer(clock)
        transport = httpx.ASGITransport(make_api(scorer, clock=clock))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:

            async def ask(**changes: object) -> httpx.Response:
                return await session.post("/v1/score", json=BODY | changes)

            await ask()
            # Two in turn: the second one's time tells that they share.
            await asyncio.gather(ask(), ask())
            ahead = asyncio.create_task(ask(query="stay"))
            await scorer.staying.wait()
            num_asked = scorer.num_asked
            assert_refused(await ask(deadline_ms=150_000), 429, "deadline_unreachable", "deadline_ms")
            assert scorer.num_asked == num_asked and not ahead.done()
            ahead.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("value", ["", "0", "-5", "1.5", "soon", "600001", "9" * 400, "١٢"])
def test_a_deadline_header_that_is_none_is_422_even_beside_a_good_one_in_the_body(value):
    for body in (BODY, BODY | {"deadline_ms": 60_000}):
        response = client().post("/v1/score", json=body, headers={"x-deadline-ms": value.encode()})
        assert_refused(response, 422, "invalid_field", "deadline_ms")


@pytest.mark.parametrize("value", [0, -1, 1.5, "500", True, 600_001])
def test_a_deadline_that_is_none_is_422(value):
    response = client().post("/v1/score", json=BODY | {"deadline_ms": value})
    assert_refused(response, 422, "invalid_field", "deadline_ms")


def test_a_body_that_does_not_arrive_is_408():
    async def run() -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            message: Message = await asyncio.get_running_loop().create_future()
            return message

        async def send(message: Message) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in JSON.items()]
        scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "headers": raw}
        await client(limits=Limits(body_timeout_s=0.01)).app(scope, receive, send)
        return sent

    sent = asyncio.run(run())
    assert sent[0]["status"] == 408 and b"body_timeout" in sent[1]["body"]
    whole = [{"type": "http.request", "body": b"{}", "more_body": False}]
    assert asyncio.run(exchange(client().app, whole, {}))[0][0]["status"] == 422
