"""Blends of a request's own, and several requests in one body."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.bundle import Blend, DocumentScore, to_score
from preceptor.ranker.model import Head
from preceptor_serve.blending import BlendBounds, blended
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import Answer, FakeScorer, Identity, Overloaded, ThreadedScorer, hashed_score
from tests.unit.serving import BODY, GOOD, SMALL, FixedScorer, assert_refused, client

HEADS = (Head(name="overall", kind="grade"), Head(name="click", kind="action"), Head(name="apply", kind="action"))
weights = st.floats(0, 1)
logits = st.floats(-20, 20)


@given(st.lists(logits, min_size=7, max_size=7), weights, weights, weights)
def test_a_blend_scores_as_a_bundle_that_has_it_as_its_own(row, relevance, click, apply):
    blend = Blend(relevance=relevance, click=click, apply=apply)
    own = to_score(row, HEADS, blend)
    other = to_score(row, HEADS, Blend(relevance=1.0, click=0.0, apply=0.0))
    assert blended(other, blend) == pytest.approx(own.score, abs=1e-12)


def test_a_request_ranks_by_its_own_blend_and_the_answer_says_which():
    blend = {"relevance": 0.0, "click": 0.25, "apply": 1.0}
    body = client().post("/v1/score", json=BODY | {"blend": blend}).json()
    assert body["blend"] == blend
    for text, result in zip(BODY["documents"], body["results"], strict=True):
        known = hashed_score(BODY["query"], BODY["profile"], text)
        assert result["score"] == pytest.approx(0.25 * known.actions["click"] + known.actions["apply"])
        assert result["expected_grade"] == known.expected_grade
    without = client().post("/v1/score", json=BODY).json()
    assert without["blend"] == {"relevance": 1.0, "click": 0.0, "apply": 0.0}


BOUNDED = Limits(blend=BlendBounds(relevance=(0.5, 1.0), click=(0.0, 0.2), apply=(0.0, 0.0)))


@pytest.mark.parametrize(
    ("blend", "field"),
    [
        ({"relevance": 0.4, "click": 0.1, "apply": 0.0}, "blend.relevance"),
        ({"relevance": 0.5, "click": 0.21, "apply": 0.0}, "blend.click"),
        ({"relevance": 0.5, "click": 0.2, "apply": 0.01}, "blend.apply"),
    ],
)
def test_a_blend_beyond_the_operators_bounds_is_422_and_named(blend, field):
    session = client(limits=BOUNDED)
    assert_refused(session.post("/v1/score", json=BODY | {"blend": blend}), 422, "blend_out_of_bounds", field)
    documents = {"query": "q", "documents": ["d"], "blend": blend}
    assert_refused(session.post("/v2/rerank", json=documents), 422, "blend_out_of_bounds", field)
    within = {"relevance": 0.5, "click": 0.2, "apply": 0.0}
    assert session.post("/v1/score", json=BODY | {"blend": within}).status_code == 200


@pytest.mark.parametrize(
    ("blend", "code", "field"),
    [
        ({"relevance": 0, "click": 0, "apply": 0}, "blend_out_of_bounds", "blend"),
        ({"relevance": 1, "click": 0}, "invalid_field", "blend.apply"),
        ({"relevance": -1, "click": 0, "apply": 0}, "invalid_field", "blend.relevance"),
        ({"relevance": "1", "click": 0, "apply": 0}, "invalid_field", "blend.relevance"),
        ({"relevance": True, "click": 0, "apply": 0}, "invalid_field", "blend.relevance"),
        ({"relevance": 1, "click": 0, "apply": 0, "save": 1}, "invalid_field", "blend"),
        ([1, 0, 0], "invalid_field", "blend"),
    ],
)
def test_a_blend_that_is_none_is_422_and_named(blend, code, field):
    assert_refused(client().post("/v1/score", json=BODY | {"blend": blend}), 422, code, field)


def test_a_weight_that_is_not_finite_is_refused():
    content = b'{"query": "a", "profile": "", "documents": ["a"], "blend": {"relevance": NaN, "click": 0, "apply": 0}}'
    response = client().post("/v1/score", content=content, headers={"content-type": "application/json"})
    assert_refused(response, 422, "invalid_field", "blend.relevance")


def test_a_weight_on_an_action_that_the_bundle_does_not_predict_is_refused():
    score = DocumentScore(
        grade_probs=GOOD.grade_probs, expected_grade=GOOD.expected_grade, actions={"click": 0.5}, score=GOOD.score
    )
    session = client(FixedScorer((score, score)))
    wanted = BODY | {"blend": {"relevance": 1, "click": 0, "apply": 0.5}}
    assert_refused(session.post("/v1/score", json=wanted), 422, "blend_out_of_bounds", "blend.apply")
    batch = {"requests": [BODY, wanted]}
    assert_refused(session.post("/v1/score", json=batch), 422, "blend_out_of_bounds", "requests[1].blend.apply")
    assert session.post("/v1/score", json=BODY).status_code == 200


@pytest.mark.parametrize("bounds", [{"click": (0.5, 0.2)}, {"apply": (-0.1, 0.2)}, {"relevance": (0, float("inf"))}])
def test_bounds_that_cannot_hold_are_refused(bounds):
    with pytest.raises(ValueError, match=next(iter(bounds))):
        BlendBounds(**bounds)


# Several requests in one body


def test_a_batch_is_answered_as_its_parts_would_be():
    parts = [BODY, BODY | {"query": "baker", "documents": [{"id": "x", "text": "Baker"}]}]
    body = client().post("/v1/score", json={"requests": parts, "request_id": "b1"}).json()
    assert body["request_id"] == "b1"
    alone = [client().post("/v1/score", json=part).json() for part in parts]
    assert body["answers"] == [{name: one[name] for name in one if name != "request_id"} for one in alone]


def test_a_batchs_blend_is_for_the_parts_without_their_own():
    own, shared = ({"relevance": 0, "click": 1, "apply": 0}, {"relevance": 0, "click": 0, "apply": 1})
    body = client().post("/v1/score", json={"requests": [BODY, BODY | {"blend": own}], "blend": shared}).json()
    assert [answer["blend"] for answer in body["answers"]] == [shared, own]


@pytest.mark.parametrize(
    ("parts", "code", "field"),
    [
        ([], "invalid_field", "requests"),
        ([BODY, BODY | {"documents": []}], "empty_documents", "requests[1].documents"),
        ([BODY, BODY | {"documents": ["a", " "]}], "empty_document", "requests[1].documents[1]"),
        ([BODY | {"query": "a" * 11}], "text_too_long", "requests[0].query"),
        ([BODY | {"query": "", "profile": " "}], "empty_query", "requests[0].query"),
        ([BODY | {"documents": ["a"] * 4}], "too_many_documents", "requests[0].documents"),
        ([BODY] * 3, "too_many_documents", "requests"),
        ([BODY] * 5, "too_many_requests", "requests"),
        ([BODY, BODY | {"request_id": "r"}], "invalid_field", "requests[1].request_id"),
        ([BODY, "text"], "invalid_field", "requests[1]"),
    ],
)
def test_a_wrong_part_is_422_and_named(parts, code, field):
    limits = Limits(
        max_batch_requests=4,
        max_batch_documents=5,
        **{name: getattr(SMALL, name) for name in ("max_documents", "max_query_chars", "max_profile_chars")},
    )
    assert_refused(client(limits=limits).post("/v1/score", json={"requests": parts}), 422, code, field)


@dataclass
class SideBySide:
    """An AsyncScorer that answers once `num_expected` requests are with it, and fails those that say so."""

    num_expected: int
    waiting: list[str] = field(default_factory=list)
    called_off: list[str] = field(default_factory=list)
    everyone: asyncio.Event = field(default_factory=asyncio.Event)

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        self.waiting.append(query)
        if len(self.waiting) == self.num_expected:
            self.everyone.set()
        try:
            await self.everyone.wait()
            if query == "full":
                raise Overloaded("full", retry_after_s=7)
            if "full" in self.waiting:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.called_off.append(query)
            raise
        return await ThreadedScorer(FakeScorer()).score(query, profile, documents)

    async def identity(self) -> Identity:
        return Identity(bundle_id="b", policy_version="v")


def test_the_parts_of_a_batch_are_worked_on_side_by_side():
    scorer = SideBySide(num_expected=3)
    parts = [BODY | {"query": f"q{number}"} for number in range(3)]
    assert client(scorer).post("/v1/score", json={"requests": parts}).status_code == 200


def test_a_batch_is_answered_whole_or_not_at_all():
    scorer = SideBySide(num_expected=3)
    parts = [BODY | {"query": query} for query in ("a", "full", "b")]
    response = client(scorer).post("/v1/score", json={"requests": parts})
    assert_refused(response, 429, "overloaded")
    assert response.headers["retry-after"] == "7"
    assert sorted(scorer.called_off) == ["a", "b"]
