"""Faults behind the edge, and what must never leak because of them or of a request."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import traceback
from dataclasses import replace

import pytest

from preceptor.bundle import DocumentScore
from preceptor.errors import StageFailed
from preceptor_serve.scorer import (
    BadScore,
    Broken,
    FakeScorer,
    Overloaded,
    ThreadedScorer,
    TimedOut,
    Unavailable,
    probe,
    without_texts,
)
from tests.unit.serving import BODY, GOOD, SECRET, FailingScorer, FixedScorer, assert_refused, client, samples

# Faults behind the edge


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (Overloaded("full", retry_after_s=3), 429, "overloaded", "3"),
        (Unavailable("none"), 503, "unavailable", "1"),
        (TimedOut("late"), 504, "timeout", None),
        (BadScore("nan"), 500, "bad_score", None),
        (RuntimeError("broken"), 500, "internal", None),
    ],
)
def test_a_fault_of_the_scorer_has_its_own_code(error, status, code, retry_after):
    session = client(FailingScorer(error))
    for response in (session.post("/v1/score", json=BODY), session.get("/readyz")):
        assert_refused(response, status, code)
        assert response.headers.get("retry-after") == retry_after


@pytest.mark.parametrize(
    "scores",
    [
        (replace(GOOD, score=math.nan), GOOD),
        (GOOD, replace(GOOD, expected_grade=math.inf)),
        (GOOD, replace(GOOD, actions={"click": math.nan})),
        (GOOD, replace(GOOD, actions={"click": 1.5})),
        (GOOD, replace(GOOD, grade_probs=(math.nan,) * 5)),
        (GOOD, replace(GOOD, grade_probs=(0.5, 0.5, 0.5, 0.0, -0.5))),
        (GOOD, replace(GOOD, grade_probs=(0.9, 0.9, 0.0, 0.0, 0.0))),
        (GOOD, replace(GOOD, grade_probs=(0.5, 0.5))),
        (GOOD,),
        (GOOD, GOOD, GOOD),
    ],
)
def test_a_score_that_cannot_be_trusted_is_never_sent(scores):
    session = client(FixedScorer(scores))
    assert_refused(session.post("/v1/score", json=BODY), 500, "bad_score")
    assert samples(session)[("preceptor_documents_scored_total", None, None)] == 0


def test_a_bundle_with_bad_scores_fails_its_probe():
    with pytest.raises(StageFailed, match="fails its probe"):
        probe(FakeScorer(rule=lambda *texts: replace(GOOD, score=math.nan)))
    probe(FakeScorer())


def test_a_defect_in_a_scorer_is_named_by_its_type_and_place_alone():
    def broken_rule(query: str, profile: str, document: str) -> DocumentScore:
        raise ValueError(f"cannot tokenize {query}")

    with pytest.raises(Broken) as caught, without_texts():
        asyncio.run(ThreadedScorer(FakeScorer(rule=broken_rule)).score(SECRET, "p", ["d"]))
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown and "ValueError in test_serve_faults.py:" in str(caught.value)
    with pytest.raises(Unavailable), without_texts():
        raise Unavailable("an error of the house says what it says")


def test_a_hung_scorer_is_unhealthy_until_it_answers():
    entered, release = threading.Event(), threading.Event()

    def blocking_rule(query: str, profile: str, document: str) -> DocumentScore:
        entered.set()
        assert release.wait(timeout=30)
        return GOOD

    async def run() -> None:
        scorer = ThreadedScorer(FakeScorer(rule=blocking_rule), hang_after_s=0.0)
        scorer.check_health()
        pending = asyncio.create_task(scorer.score("q", "p", ["d"]))
        assert await asyncio.to_thread(entered.wait, 30)
        with pytest.raises(Unavailable):
            scorer.check_health()
        release.set()
        await pending
        scorer.check_health()

    asyncio.run(run())


# What must not leak


@pytest.mark.parametrize(
    "body",
    [
        {"query": SECRET},
        BODY | {"query": SECRET * 100},
        BODY | {SECRET: 1},
        BODY | {"request_id": f"{SECRET} !"},
        BODY | {"query": {SECRET: SECRET}},
        BODY | {"documents": [{SECRET: SECRET}]},
        BODY | {"documents": [[SECRET]]},
        BODY | {"documents": SECRET},
        SECRET,
    ],
)
def test_errors_never_repeat_the_request(body):
    response = client().post("/v1/score", json=body)
    assert 400 <= response.status_code < 500
    assert SECRET not in response.text


def test_a_defect_is_logged_without_the_members_words(caplog):
    with caplog.at_level(logging.DEBUG):
        response = client(FailingScorer(RuntimeError(f"cannot tokenize {SECRET}"))).post("/v1/score", json=BODY)
    assert response.status_code == 500
    assert SECRET not in response.text + caplog.text
    assert "RuntimeError" in caplog.text and response.json()["error"]["request_id"] in caplog.text
