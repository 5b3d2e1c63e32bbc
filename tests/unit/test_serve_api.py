"""/v1/score over a scorer without a model: shapes, refusals, and any JSON or bytes at all."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor_serve.api import make_api
from preceptor_serve.scorer import FakeScorer, ThreadedScorer, hashed_score
from tests.unit.serving import BODY, JSON, Session, assert_refused, chunks, client, exchange, samples, shared_client

# What an answer holds


def test_an_answer_has_every_part_in_the_documents_order():
    documents = ["third", {"id": "b", "text": "first"}, {"text": "second"}]
    response = client().post("/v1/score", json=BODY | {"documents": documents, "request_id": "r-1"})
    assert response.status_code == 200
    answer = response.json()
    assert {name: answer[name] for name in ("request_id", "bundle_id", "policy_version")} == {
        "request_id": "r-1",
        "bundle_id": "fake-bundle",
        "policy_version": "0.0.0+00000000",
    }
    assert [(result["index"], result["id"]) for result in answer["results"]] == [(0, None), (1, "b"), (2, None)]
    for text, result in zip(("third", "first", "second"), answer["results"], strict=True):
        expected = hashed_score(BODY["query"], BODY["profile"], text)
        assert result["grade_probs"] == list(expected.grade_probs)
        assert result["expected_grade"] == expected.expected_grade
        assert result["actions"] == dict(expected.actions)
        assert result["score"] == expected.score


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=8)
)
def test_any_text_is_scored_as_it_was_written(documents: list[str]):
    response = client().post("/v1/score", json=BODY | {"documents": documents})
    assert response.status_code == 200
    expected = [hashed_score(BODY["query"], BODY["profile"], text).score for text in documents]
    assert [result["score"] for result in response.json()["results"]] == expected


def test_concurrent_requests_get_their_own_answers():
    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(make_api(ThreadedScorer(FakeScorer())))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:
            bodies = [BODY | {"query": f"query {i}", "request_id": f"r{i}"} for i in range(20)]
            return await asyncio.gather(*(session.post("/v1/score", json=body) for body in bodies))

    for i, response in enumerate(asyncio.run(ask_all())):
        assert response.json()["request_id"] == f"r{i}"
        expected = [hashed_score(f"query {i}", BODY["profile"], text).score for text in BODY["documents"]]
        assert [result["score"] for result in response.json()["results"]] == expected


@pytest.mark.parametrize(
    ("header", "in_body", "expected"),
    [("from-header", None, "from-header"), ("from-header", "from-body", "from-body"), ("not an id!", None, None)],
)
def test_the_request_id_is_the_bodys_then_the_headers_then_a_new_one(header, in_body, expected):
    body = BODY if in_body is None else BODY | {"request_id": in_body}
    request_id = client().post("/v1/score", json=body, headers={"x-request-id": header}).json()["request_id"]
    assert request_id == expected if expected else (request_id and request_id != header)


# What is refused


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"query": "a"} trailing', "malformed_json"),
        (b'"\xff\xfe"', "malformed_json"),
        (b'{"query": "\\ud800", "profile": "", "documents": ["a"]}', "malformed_json"),
        (b"[" * 1900, "malformed_json"),
    ],
    ids=["empty", "cut short", "trailing", "not utf-8", "lone surrogate", "deep"],
)
def test_a_body_that_is_not_json_is_400(content, code):
    assert_refused(shared_client().post("/v1/score", content=content, headers=JSON), 400, code)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"query": None}, "invalid_field", "query"),
        ({"query": 3}, "invalid_field", "query"),
        ({"profile": ["a"]}, "invalid_field", "profile"),
        ({"documents": "one"}, "invalid_field", "documents"),
        ({"documents": None}, "invalid_field", "documents"),
        ({"documents": ["a", 7]}, "invalid_field", "documents[1]"),
        ({"documents": ["a", None]}, "invalid_field", "documents[1]"),
        ({"documents": [{"id": "x"}]}, "invalid_field", "documents[0].text"),
        ({"documents": [{"text": "a", "id": 3}]}, "invalid_field", "documents[0].id"),
        ({"documents": [{"text": "a", "id": "x" * 257}]}, "invalid_field", "documents[0].id"),
        ({"documents": [{"text": "a", "title": "b"}]}, "invalid_field", "documents[0]"),
        ({"request_id": "two words"}, "invalid_field", "request_id"),
        ({"profil": "a"}, "invalid_field", None),
        ({"documents": []}, "empty_documents", "documents"),
        ({"documents": ["a", " \n"]}, "empty_document", "documents[1]"),
        ({"query": " ", "profile": ""}, "empty_query", "query"),
        ({"documents": ["a"] * 4}, "too_many_documents", "documents"),
        ({"query": "a" * 11}, "text_too_long", "query"),
        ({"profile": "a" * 21}, "text_too_long", "profile"),
        ({"documents": ["a", {"text": "b" * 31}]}, "text_too_long", "documents[1]"),
    ],
)
def test_a_wrong_field_is_422_and_named(changes, code, field):
    assert_refused(shared_client().post("/v1/score", json=BODY | changes), 422, code, field)


@pytest.mark.parametrize("missing", ["query", "profile", "documents"])
def test_a_missing_field_is_422_and_named(missing):
    body = {name: value for name, value in BODY.items() if name != missing}
    assert_refused(shared_client().post("/v1/score", json=body), 422, "invalid_field", missing)


@pytest.mark.parametrize("body", [[], 3, "text", None, True])
def test_json_that_is_not_an_object_is_422(body):
    content = json.dumps(body).encode()
    assert_refused(shared_client().post("/v1/score", content=content, headers=JSON), 422, "invalid_field")


def test_what_is_just_within_the_limits_is_scored():
    body = {"query": "é" * 10, "profile": "漢" * 20, "documents": ["𝄞" * 30] * 3}
    assert shared_client().post("/v1/score", json=body).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_another_content_type_is_415(kind):
    response = shared_client().post("/v1/score", content=json.dumps(BODY), headers={"content-type": kind})
    assert_refused(response, 415, "unsupported_media_type")


def test_a_charset_beside_the_content_type_is_fine():
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert shared_client().post("/v1/score", content=json.dumps(BODY), headers=headers).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/score"), ("PUT", "/v1/score"), ("POST", "/healthz")])
def test_a_wrong_method_is_405_and_says_which_is_right(method, path):
    response = shared_client().request(method, path)
    assert_refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == ("POST" if path == "/v1/score" else "GET")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/score/", "/docs", "/v1/score%00"])
def test_an_unknown_path_is_404(path):
    assert_refused(shared_client().get(path), 404, "not_found")


# The body limit, while reading


@pytest.mark.parametrize(
    ("headers", "at_most"),
    [({"content-length": "50000"}, 0), ({}, 5), ({"content-length": "10"}, 5), ({"content-length": "-1"}, 5)],
    ids=["declared", "chunked", "declared too low", "declared nonsense"],
)
def test_an_oversized_body_is_413_before_it_is_read(headers, at_most):
    sent, num_taken = asyncio.run(exchange(shared_client().app, chunks(100), headers))
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["error"]["code"] == "body_too_large"
    assert num_taken <= at_most


def test_a_client_that_leaves_while_sending_is_counted_and_not_answered():
    app = make_api(ThreadedScorer(FakeScorer()))
    sent, _ = asyncio.run(exchange(app, [*chunks(1), {"type": "http.disconnect"}], {}))
    assert sent == []
    assert samples(Session(app))[("preceptor_requests_total", "/v1/score", "499")] == 1


# Fuzz


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=12,
)
near_requests = st.fixed_dictionaries(
    {"query": st.text(max_size=12) | json_values, "profile": st.text(max_size=22) | json_values},
    optional={
        "documents": st.lists(st.text(max_size=32) | st.fixed_dictionaries({"text": json_values}) | json_values)
        | json_values,
        "request_id": json_values,
        "extra": json_values,
    },
)


@settings(max_examples=250, deadline=None)
@given(near_requests | json_values)
def test_no_json_makes_the_edge_fail(value):
    response = shared_client().post("/v1/score", content=json.dumps(value), headers=JSON)
    assert response.status_code in {200, 400, 413, 422}, response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"code", "message", "field", "request_id"}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_edge_fail(content):
    assert shared_client().post("/v1/score", content=content, headers=JSON).status_code in {400, 422}
