"""Adaptive depth: which documents are scored where not all can be, and how every answer says so."""

from __future__ import annotations

import asyncio
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor_serve.api import make_api
from preceptor_serve.client import Client, Query
from preceptor_serve.depth import Cost, DepthOptions, depths
from preceptor_serve.pace import Pace
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import Answer, FakeScorer, Identity, Overloaded
from preceptor_serve.served_log import LogOptions
from tests.unit.serving import Clock, Session, assert_refused

DOCUMENTS = [f"posting {number:02d}" for number in range(10)]
BODY: dict[str, Any] = {"query": "nurse", "profile": "ward", "documents": DOCUMENTS}
OVERLOAD = DepthOptions(over_wait_s=1.0, least_documents=2)

# The choice of k

costs = st.builds(
    Cost,
    once=st.floats(0, 1000),
    documents=st.lists(st.floats(1, 1000), min_size=1, max_size=8),
    least=st.integers(1, 8),
).map(lambda cost: Cost(once=cost.once, documents=cost.documents, least=min(cost.least, len(cost.documents))))


def work(asked: Sequence[Cost], chosen: Sequence[int]) -> float:
    return sum(cost.once + sum(cost.documents[:depth]) for cost, depth in zip(asked, chosen, strict=True))


@settings(max_examples=50)
@given(asked=st.lists(costs, min_size=1, max_size=4), room=st.floats(0, 10_000), share=st.floats(0.01, 1))
def test_as_many_as_fit_and_never_fewer_than_the_least(asked: list[Cost], room: float, share: float):
    chosen = depths(asked, room=room, share=share)
    least = [cost.least for cost in asked]
    tops = [max(cost.least, math.ceil(share * len(cost.documents))) for cost in asked]
    assert all(low <= depth <= top for low, depth, top in zip(least, chosen, tops, strict=True))
    assert chosen == least or work(asked, chosen) <= room
    # One more for all would not fit, unless nothing is left out.
    level = max(chosen)
    more = [min(top, max(low, level + 1)) for top, low in zip(tops, least, strict=True)]
    assert more == chosen or work(asked, more) > room or max(tops) == level


@settings(max_examples=50)
@given(asked=st.lists(costs, min_size=1, max_size=4))
def test_without_want_of_time_requests_stay_whole(asked: list[Cost]):
    assert depths(asked, room=math.inf, share=1.0) == [len(cost.documents) for cost in asked]


@settings(max_examples=50)
@given(num=st.integers(1, 300), waiting_s=st.floats(0, 1000), more_s=st.floats(0, 100))
def test_what_waits_cuts_by_its_measure(num: int, waiting_s: float, more_s: float):
    options = DepthOptions(over_wait_s=2.0, least_documents=5, least_share=0.1)
    assert options.share_at(2.0) == 1
    assert options.share_at(8.0) == 0.25
    assert options.share_at(waiting_s + more_s) <= options.share_at(waiting_s)
    assert 1 <= options.least_of(num) <= num
    assert options.least_of(num) == num or options.least_of(num) >= max(5, num / 10)


@pytest.mark.parametrize(
    "wrong",
    [{"over_wait_s": 0}, {"over_wait_s": math.nan}, {"least_documents": 0}, {"least_share": 1.5}],
)
def test_an_operators_wrong_numbers_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DepthOptions(**{"over_wait_s": 1.0, "least_documents": 1, **wrong})  # type: ignore[arg-type]


# Over the API


@dataclass
class Slow:
    """An AsyncScorer that takes a second for each `per_s` characters and notes how many documents it was given.

    It is full with `most` requests.
    """

    clock: Clock
    per_s: float = 100.0
    given: list[int] = field(default_factory=list)
    gate: asyncio.Event | None = None
    most: int = 1000

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        self.given.append(len(documents))
        if len(self.given) > self.most:
            raise Overloaded("every replica's queue is full")
        if self.gate is not None:
            await self.gate.wait()
        self.clock.pass_s((len(query) + len(profile) + sum(map(len, documents))) / self.per_s)
        scores = FakeScorer().score(query, profile, documents)
        return Answer(identity=await self.identity(), scores=tuple(scores))

    async def identity(self) -> Identity:
        return Identity(bundle_id="fake-bundle", policy_version="v")


def slow_session(**limits: Any) -> tuple[Session, Slow]:
    """A session whose scorer was measured once, over the whole of BODY: 1.09 s."""
    clock = Clock()
    scorer = Slow(clock)
    session = Session(make_api(scorer, limits=Limits(**limits), clock=clock))
    assert session.post("/v1/score", json=BODY).status_code == 200
    scorer.given.clear()
    return session, scorer


def test_a_deadline_cuts_who_agrees_to_it_and_the_answer_says_so():
    session, scorer = slow_session()
    asked = {**BODY, "documents": [*DOCUMENTS[:9], {"id": "last", "text": DOCUMENTS[9]}], "deadline_ms": 600}
    assert_refused(session.post("/v1/score", json=asked), 429, "deadline_unreachable", "deadline_ms")
    response = session.post("/v1/score", json={**asked, "min_documents": 3})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["depth"] == {"asked": 10, "scored": 5}
    assert scorer.given == [5]
    assert [result["index"] for result in answer["results"]] == list(range(10))
    assert all("score" in result for result in answer["results"][:5])
    assert answer["results"][5:] == [
        {"index": index, "id": "last" if index == 9 else None, "scored": False} for index in range(5, 10)
    ]
    too_deep = {**asked, "min_documents": 7}
    assert_refused(session.post("/v1/score", json=too_deep), 429, "deadline_unreachable", "deadline_ms")
    assert 'preceptor_documents_unscored_total{replica="local"} 5.0' in session.get("/metrics").text
    assert 'preceptor_requests_cut_total{replica="local"} 1.0' in session.get("/metrics").text


def test_without_a_deadline_or_an_operators_word_nothing_is_cut():
    session, scorer = slow_session()
    answer = session.post("/v1/score", json={**BODY, "min_documents": 1}).json()
    assert (answer["depth"], scorer.given) == (None, [10])


def test_a_batch_is_cut_evenly_and_each_part_keeps_its_least():
    session, scorer = slow_session()
    parts = [BODY, {**BODY, "min_documents": 1}, {**BODY, "documents": DOCUMENTS[:2], "min_documents": 1}]
    answers = session.post("/v1/score", json={"requests": parts, "deadline_ms": 1800}).json()["answers"]
    assert sorted(scorer.given) == [2, 3, 10]
    assert [answer["depth"] for answer in answers] == [None, {"asked": 10, "scored": 3}, None]


def test_a_reranking_lists_the_others_behind_in_the_order_they_came():
    session, _ = slow_session()
    asked = {**BODY, "min_documents": 2, "return_documents": True}
    whole = session.post("/v2/rerank", json={**asked, "documents": DOCUMENTS[:5]}).json()
    answer = session.post("/v2/rerank", json=asked, headers={"x-deadline-ms": "600"}).json()
    assert answer["results"][:5] == whole["results"]
    assert [result["index"] for result in answer["results"][5:]] == [5, 6, 7, 8, 9]
    assert {(result["relevance_score"], result["scored"]) for result in answer["results"][5:]} == {(0.0, False)}
    assert answer["results"][9]["document"] == {"text": DOCUMENTS[9]}
    assert "first 5 of 10" in answer["meta"]["warnings"][0]
    few = session.post("/v2/rerank", json={**asked, "top_n": 6}, headers={"x-deadline-ms": "600"}).json()
    assert [result["index"] for result in few["results"]][5:] == [5]


async def overloaded(
    limits: Limits, bodies: Sequence[dict[str, Any]], *, num_waiting: int, most: int = 1000
) -> list[httpx.Response]:
    """The answers to `bodies`, sent one after the other while `num_waiting` requests of 1.09 s each wait."""
    clock = Clock()
    scorer = Slow(clock)
    app = make_api(scorer, limits=limits, clock=clock)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:

        async def post(body: dict[str, Any]) -> httpx.Response:
            return await session.post("/v1/score", json=body)

        async def together(bodies: Sequence[dict[str, Any]]) -> list[httpx.Response]:
            scorer.gate = asyncio.Event()
            scorer.given.clear()
            sent: list[asyncio.Task[httpx.Response]] = []
            for body in bodies:
                sent.append(asyncio.create_task(post(body)))
                # In this order: each is with the scorer, or refused, before the next is sent.
                while len(scorer.given) + sum(task.done() for task in sent) < len(sent):
                    await asyncio.sleep(0)
            scorer.gate.set()
            return [await task for task in sent]

        # One alone, and two that met each other: how fast they go together is measured.
        await post(BODY)
        await together([BODY, BODY])
        scorer.most = most
        answers = await together([*[BODY] * num_waiting, *bodies])
        return answers[num_waiting:]


def test_overload_cuts_every_request_where_the_operator_says_so():
    whole = {**BODY, "min_documents": 10}
    few = {**BODY, "min_documents": 1}
    # Whoever waits was taken whole only as long as the queue was short.
    limits = Limits(depth=DepthOptions(over_wait_s=2.0, least_documents=4))
    answers = asyncio.run(overloaded(limits, [BODY, whole, few], num_waiting=6))
    scored = [(response.json()["depth"] or {"scored": 10})["scored"] for response in answers]
    assert 4 <= scored[0] < 10
    assert scored[1] == 10, "who needs all gets all"
    assert 1 <= scored[2] <= scored[0]


def test_what_would_wait_too_long_is_refused_until_the_queue_has_drained():
    (answer,) = asyncio.run(overloaded(Limits(max_wait_s=2.0), [BODY], num_waiting=3))
    assert_refused(answer, 429, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    (taken,) = asyncio.run(overloaded(Limits(max_wait_s=20.0), [BODY], num_waiting=3))
    assert taken.status_code == 200


def test_full_replicas_are_to_be_asked_again_when_the_queue_has_drained():
    (answer,) = asyncio.run(overloaded(Limits(), [BODY], num_waiting=5, most=5))
    assert_refused(answer, 429, "overloaded")
    # Five requests of 1.09 s, or as long as two together were measured to take.
    assert 4 <= int(answer.headers["retry-after"]) <= 12


def test_what_is_under_way_says_when_it_will_be_done_and_what_fits_beside_it():
    clock = Clock()
    pace = Pace(clock)
    assert pace.drain_s() == 0
    with pace.under_way(100.0):
        clock.pass_s(1.0)
    assert (pace.room(2.0), pace.room(-1.0)) == (pytest.approx(200.0), 0.0)
    first, second = pace.under_way(100.0), pace.under_way(100.0)
    first.__enter__()
    second.__enter__()
    clock.pass_s(4.0)
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    with pace.under_way(300.0):
        assert pace.drain_s() == pytest.approx(6.0)
        assert pace.room(8.0) == pytest.approx(100.0)
        with pytest.raises(Exception, match="6 s of work wait"):
            pace.require_short(5.0)
        pace.require_short(6.1)


# What is kept, and what a client sees


def test_the_served_log_holds_what_was_scored_and_no_more(tmp_path: Path):
    clock = Clock()
    options = LogOptions(folder=tmp_path / "served", rate=1.0, texts=tmp_path / "texts")
    app = make_api(Slow(clock), log=options, clock=clock)
    session = Session(app)
    assert session.post("/v1/score", json=BODY).status_code == 200
    asked = {**BODY, "min_documents": 2, "deadline_ms": 600, "request_id": "cut"}
    assert session.post("/v1/score", json=asked).json()["depth"] == {"asked": 10, "scored": 5}
    reranked = {**asked, "request_id": "ranked", "top_n": 7}
    assert len(session.post("/v2/rerank", json=reranked).json()["results"]) == 7

    async def shut_down() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(shut_down())
    rows = [row for file in (tmp_path / "served").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    for request_id in ("cut", "ranked"):
        kept = [row for row in rows if row["request_id"] == request_id]
        assert [row["position"] for row in sorted(kept, key=lambda row: row["position"])] == [1, 2, 3, 4, 5]
        assert all(isinstance(row["served_at"], datetime.datetime) for row in kept)
    assert len(rows) == 20


def test_the_client_tells_scored_documents_from_the_others():
    session, _ = slow_session()

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"content-type": "application/json"}
        found = session.post(request.url.path, content=request.content, headers=headers)
        return httpx.Response(found.status_code, content=found.content)

    with Client("http://test", transport=httpx.MockTransport(answer)) as client:
        scores = client.score("nurse", "ward", DOCUMENTS, deadline_ms=600, min_documents=2)
        assert [result.index for result in scores.results] == [0, 1, 2, 3, 4]
        assert [left.index for left in scores.unscored] == [5, 6, 7, 8, 9]
        assert {result.index for result in scores.ranked} == {0, 1, 2, 3, 4}
        query = Query(query="nurse", profile="ward", documents=DOCUMENTS, min_documents=2)
        (many,) = client.score_many([query], deadline_ms=600)
        assert len(many.unscored) == 5
