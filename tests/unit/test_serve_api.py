"""The HTTP edge over a scorer without a model: shapes, refusals, faults, and what must never leak."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import math
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.bundle import DocumentScore
from preceptor.errors import PreceptorError, StageFailed
from preceptor_serve.api import make_api
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import (
    Answer,
    AsyncScorer,
    BadScore,
    FakeScorer,
    Identity,
    Overloaded,
    ThreadedScorer,
    TimedOut,
    Unavailable,
    hashed_score,
    probe,
)

SERVE_YAML = Path(__file__).resolve().parents[2] / "serve" / "serve.yaml"
JSON = {"content-type": "application/json"}
SECRET = "zq-private-words"
SMALL = Limits(max_documents=3, max_query_chars=10, max_profile_chars=20, max_document_chars=30, max_body_bytes=2000)
BODY: dict[str, Any] = {"query": "nurse", "profile": "ward, 6 years", "documents": ["Staff Nurse", "Baker"]}


@dataclass(frozen=True)
class Session:
    """Requests to `app` in this process, as a client sends them."""

    app: FastAPI

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as session:
                return await session.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


def client(scorer: AsyncScorer | None = None, *, limits: Limits | None = None) -> Session:
    return Session(make_api(scorer or ThreadedScorer(FakeScorer()), limits=limits))


@functools.cache
def shared_client() -> Session:
    return client(limits=SMALL)


def assert_refused(response: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"code", "message", "field", "request_id"}
    assert (error["code"], error["field"]) == (code, field)
    assert error["message"] and error["request_id"]


@dataclass(frozen=True)
class FailingScorer:
    """An AsyncScorer that always raises `error`."""

    error: Exception

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        raise self.error

    async def identity(self) -> Identity:
        raise self.error


@dataclass(frozen=True)
class FixedScorer:
    """An AsyncScorer that answers every request with the same `scores`."""

    scores: tuple[DocumentScore, ...]

    async def score(self, query: str, profile: str, documents: Sequence[str]) -> Answer:
        return Answer(identity=await self.identity(), scores=self.scores)

    async def identity(self) -> Identity:
        return Identity(bundle_id="fixed", policy_version="1.0.0+fixed")


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


async def exchange(app: Any, messages: list[dict[str, Any]], headers: dict[str, str]) -> tuple[list[dict], int]:
    """What `app` sent for a POST /v1/score, and how many of `messages` it took."""
    sent: list[dict[str, Any]] = []
    taken = iter(messages)
    num_taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal num_taken
        num_taken += 1
        return next(taken)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (JSON | headers).items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "headers": raw}
    await app(scope, receive, send)
    return sent, num_taken


def chunks(count: int) -> list[dict[str, Any]]:
    return [{"type": "http.request", "body": b" " * 500, "more_body": True} for _ in range(count)]


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
    for response in (session.post("/v1/score", json=BODY), session.get("/healthz")):
        assert_refused(response, status, code)
        assert response.headers.get("retry-after") == retry_after


GOOD = hashed_score("a", "b", "c")


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


# Health, metrics, description


def test_healthz_says_which_bundle_answers():
    assert client().get("/healthz").json() == {
        "status": "ok",
        "bundle_id": "fake-bundle",
        "policy_version": "0.0.0+00000000",
    }


def samples(session: Session) -> dict[tuple[str, str | None, str | None], float]:
    """Every sample of /metrics without buckets, by name, route and status."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(session.get("/metrics").text)
    return {
        (sample.name, sample.labels.get("route"), sample.labels.get("status")): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_metrics_count_requests_by_status_and_documents():
    session = client()
    session.post("/v1/score", json=BODY)
    session.post("/v1/score", json=BODY | {"documents": ["a"]})
    session.post("/v1/score", json={})
    session.get("/scan/1")
    session.get("/scan/2")
    seen = samples(session)
    assert seen[("preceptor_requests_total", "/v1/score", "200")] == 2
    assert seen[("preceptor_requests_total", "/v1/score", "422")] == 1
    assert seen[("preceptor_requests_total", "other", "404")] == 2
    assert seen[("preceptor_documents_scored_total", None, None)] == 3
    assert seen[("preceptor_request_seconds_count", "/v1/score", None)] == 3


def test_openapi_describes_the_request_and_its_example_is_accepted():
    document = client().get("/openapi.json").json()
    operation = document["paths"]["/v1/score"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert set(schema["required"]) == {"query", "profile", "documents"}
    assert client().post("/v1/score", json=schema["example"]).status_code == 200
    assert {"400", "413", "415", "422", "429", "500", "503", "504"} <= set(operation["responses"])


# The application around it


def test_serve_yaml_is_valid_and_fits_the_application():
    from ray.serve.schema import ServeDeploySchema

    from preceptor_serve.app import AppArgs, build

    config = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_YAML.read_text()))
    assert config.http_options.host == "127.0.0.1"
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is build
    args = AppArgs.model_validate(application.args)
    assert args.limits == Limits()
    build(args)
    scorer = next(deployment for deployment in application.deployments if deployment.name == "Scorer")
    assert {deployment.name for deployment in application.deployments} == {"Edge", "Scorer"}
    assert isinstance(scorer.autoscaling_config, dict)
    assert scorer.autoscaling_config["max_replicas"] >= 2
    assert scorer.max_queued_requests >= 0


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"bundle": "b", "max_replica": 3},
        {"bundle": "b", "limits": {"max_document": 3}},
        {"bundle": "b", "limits": {"max_documents": 0}},
        {"bundle": "b", "min_replicas": 3, "max_replicas": 2},
        {"bundle": "b", "target_ongoing_requests": 9, "max_ongoing_requests": 8},
    ],
)
def test_arguments_that_cannot_work_are_refused(args):
    from preceptor_serve.app import AppArgs

    with pytest.raises(ValueError):
        AppArgs.model_validate(args)


@dataclass
class FakeHandle:
    """A deployment handle whose every method answers `outcome`, or raises it."""

    outcome: object
    num_calls: int = 0

    @property
    def score(self) -> FakeHandle:
        return self

    @property
    def identity(self) -> FakeHandle:
        return self

    def remote(self, *texts: object) -> Coroutine[Any, Any, object]:
        self.num_calls += 1
        return self._resolve()

    async def _resolve(self) -> object:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            await asyncio.Event().wait()
        return self.outcome


def remote_scorer(handle: FakeHandle) -> AsyncScorer:
    from ray.serve.handle import DeploymentHandle

    from preceptor_serve.app import RemoteScorer

    return RemoteScorer(cast(DeploymentHandle, handle), timeout_s=0.01)


def test_serves_own_errors_become_the_apis():
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    outcomes: list[tuple[object, type[PreceptorError]]] = [
        (BackPressureError(9, 9), Overloaded),
        (RayActorError(), Unavailable),
        (None, TimedOut),
    ]
    for outcome, kind in outcomes:
        with pytest.raises(kind):
            asyncio.run(remote_scorer(FakeHandle(outcome)).score("q", "p", ["d"]))


def test_health_under_load_is_the_last_answers_and_asks_no_one():
    async def run() -> None:
        handle = FakeHandle(Answer(identity=Identity(bundle_id="b1", policy_version="v1"), scores=(GOOD,)))
        scorer = remote_scorer(handle)
        await scorer.score("q", "p", ["d"])
        assert (await scorer.identity()).bundle_id == "b1"
        assert handle.num_calls == 1

    asyncio.run(run())
