"""/v1/rerank and /v2/rerank: order, shapes, refusals. tests/e2e/test_clients.py asks them with real clients."""

from __future__ import annotations

import math

import pytest

from preceptor.bundle import Blend
from preceptor_serve.scorer import FakeScorer, ThreadedScorer, hashed_score
from tests.unit.serving import SECRET, SMALL, Session, assert_refused, client

DOCUMENTS = ["Staff Nurse", {"text": "Baker", "id": "b", "pay": 3}, "Driver", {"title": "Cook", "text": "Days"}]
RERANK = {"query": "nurse", "documents": DOCUMENTS}


def scored(session: Session, documents: list, **fields: object) -> list[float]:
    body = {"query": "nurse", "profile": "", "documents": documents} | fields
    return [result["score"] for result in session.post("/v1/score", json=body).json()["results"]]


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_order_is_that_of_the_scores(version):
    body = client().post(f"/v{version}/rerank", json=RERANK | {"request_id": "r-1", "model": "rerank-v3.5"}).json()
    scores = scored(client(), ["Staff Nurse", "Baker", "Driver", "Days"])
    best = sorted(range(4), key=lambda index: -scores[index])
    assert [result["index"] for result in body["results"]] == best
    assert [result["relevance_score"] for result in body["results"]] == [scores[index] for index in best]
    assert (body["id"], body["model"], body["policy_version"]) == ("r-1", "fake-bundle", "0.0.0+00000000")
    assert body["meta"] == {"api_version": {"version": version}}
    assert all(set(result) == {"index", "relevance_score"} for result in body["results"])


@pytest.mark.parametrize("top_n", [1, 2, 4, 99])
def test_top_n_keeps_the_best(top_n):
    whole = client().post("/v2/rerank", json=RERANK).json()["results"]
    assert client().post("/v2/rerank", json=RERANK | {"top_n": top_n}).json()["results"] == whole[:top_n]


def test_documents_come_back_as_they_were_given():
    results = client().post("/v1/rerank", json=RERANK | {"return_documents": True}).json()["results"]
    returned = {result["index"]: result["document"] for result in results}
    assert returned == {0: {"text": "Staff Nurse"}, 1: DOCUMENTS[1], 2: {"text": "Driver"}, 3: DOCUMENTS[3]}


def test_rank_fields_are_read_in_their_order():
    documents = [{"title": "Cook", "text": "Days", "place": "Leeds"}, {"text": "Nights"}]
    wanted = {"query": "nurse", "documents": documents, "rank_fields": ["place", "title", "text"]}
    results = client().post("/v1/rerank", json=wanted).json()["results"]
    expected = scored(client(), ["Leeds\nCook\nDays", "Nights"])
    assert {result["index"]: result["relevance_score"] for result in results} == dict(enumerate(expected))


def test_the_profile_counts_and_may_stand_alone():
    def first(**fields: object) -> float:
        return client().post("/v2/rerank", json=RERANK | fields).json()["results"][0]["relevance_score"]

    assert first(profile="Registered nurse") != first()
    assert first() == first(profile="") == first(profile=None)
    assert client().post("/v2/rerank", json=RERANK | {"query": "", "profile": "Registered nurse"}).status_code == 200


def test_ties_stay_in_the_requests_order():
    same = hashed_score("a", "b", "c")
    session = client(ThreadedScorer(FakeScorer(rule=lambda *texts: same)))
    results = session.post("/v2/rerank", json={"query": "q", "documents": ["a", "b", "c"]}).json()["results"]
    assert [result["index"] for result in results] == [0, 1, 2]


def test_a_relevance_score_is_never_above_one_and_keeps_the_blends_order():
    blend = {"relevance": 1.0, "click": 1.0, "apply": 1.0}
    results = client().post("/v2/rerank", json=RERANK | {"blend": blend}).json()["results"]
    scores = scored(client(), ["Staff Nurse", "Baker", "Driver", "Days"], blend=blend)
    assert {result["index"]: result["relevance_score"] for result in results} == {
        index: pytest.approx(score / 3) for index, score in enumerate(scores)
    }
    own = FakeScorer(blend=Blend(relevance=0.0, click=0.0, apply=0.0))
    results = client(ThreadedScorer(own)).post("/v2/rerank", json=RERANK).json()["results"]
    assert all(math.isfinite(result["relevance_score"]) for result in results)


def test_fields_of_other_apis_without_use_here_are_named_and_not_obeyed():
    fields = {"max_tokens_per_doc": 10, "priority": 3, "truncation": True, "relevant_spans": {"enabled": True}}
    body = client().post("/v2/rerank", json=RERANK | fields | {"max_chunks_per_doc": None}).json()
    assert sorted(line.split()[0] for line in body["meta"]["warnings"]) == sorted(fields)
    assert body["results"] == client().post("/v2/rerank", json=RERANK).json()["results"]


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"query": None}, "invalid_field", "query"),
        ({"documents": []}, "empty_documents", "documents"),
        ({"documents": ["a", 3]}, "invalid_field", "documents[1]"),
        ({"documents": [{"body": "a"}]}, "invalid_field", "documents[0]"),
        ({"documents": [{"text": 3}]}, "invalid_field", "documents[0]"),
        ({"documents": ["a", {"text": " "}]}, "empty_document", "documents[1]"),
        ({"documents": ["a" * 31]}, "text_too_long", "documents[0]"),
        ({"documents": ["a"] * 4}, "too_many_documents", "documents"),
        ({"query": " "}, "empty_query", "query"),
        ({"top_n": 0}, "invalid_field", "top_n"),
        ({"top_n": 1.5}, "invalid_field", "top_n"),
        ({"return_documents": "yes"}, "invalid_field", "return_documents"),
        ({"rank_fields": []}, "invalid_field", "rank_fields"),
        ({"profil": "a"}, "invalid_field", None),
        ({"profile": "a" * 21}, "text_too_long", "profile"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_a_wrong_field_is_422_and_named(path, changes, code, field):
    body = {"query": "nurse", "documents": ["a", {"text": "b"}]} | changes
    assert_refused(client(limits=SMALL).post(path, json=body), 422, code, field)


@pytest.mark.parametrize(
    "changes", [{SECRET: 1}, {"documents": [{SECRET: SECRET}]}, {"model": [SECRET]}, {"rank_fields": [SECRET]}]
)
def test_errors_never_repeat_the_request(changes):
    body = {"query": SECRET, "documents": [{"text": SECRET}]} | changes
    response = client().post("/v2/rerank", json=body)
    assert response.status_code == 422 and SECRET not in response.text
