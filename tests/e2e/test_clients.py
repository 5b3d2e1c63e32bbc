"""Real client libraries over real HTTP, against the edge with a scorer that has no model."""

from __future__ import annotations

import asyncio
import io
import logging
import runpy
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import cohere
import httpx
import openai
import pytest

from preceptor.bundle import DocumentScore
from preceptor_serve.api import make_api
from preceptor_serve.client import (
    ApiError,
    AsyncClient,
    Client,
    Document,
    NoAnswer,
    Query,
    RerankOptions,
    Scores,
    Weights,
)
from preceptor_serve.keys import KeyRing, add_key
from preceptor_serve.schema import Limits
from preceptor_serve.scorer import BadScore, FakeScorer, ThreadedScorer, Unavailable, hashed_score
from tests.unit.serving import SECRET, FailingScorer, serving

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "score_with_http.py"
QUERY = "night nurse"
PROFILE = "Registered nurse, nights."
DOCUMENTS = ["Staff Nurse (nights)", "Baker", "Ingénieur·e logiciel — 50 k€"]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a scorer that wants a key, and the key."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    key = add_key(file, "tests", requests_per_minute=10_000, documents_per_minute=100_000)
    with serving(make_api(ThreadedScorer(FakeScorer()), keys=KeyRing(file)), log_level="error") as url:
        yield url, key


def expected(profile: str = "", documents: list[str] = DOCUMENTS) -> list[tuple[int, float]]:
    scores = [hashed_score(QUERY, profile, text).score for text in documents]
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


# Cohere's


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the environment: it could not reach the loopback."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("direct")
def test_coheres_v2_client_reranks_unchanged(keyed: tuple[str, str]) -> None:
    url, key = keyed
    answer = cohere.ClientV2(api_key=key, base_url=url).rerank(
        model="rerank-v3.5", query=QUERY, documents=DOCUMENTS, top_n=2, max_tokens_per_doc=512
    )
    assert [(item.index, item.relevance_score) for item in answer.results] == expected()[:2]
    assert answer.id and answer.meta is not None and answer.meta.warnings is not None
    assert answer.meta.api_version is not None and answer.meta.api_version.version == "2"
    assert [line.split()[0] for line in answer.meta.warnings] == ["max_tokens_per_doc"]


@pytest.mark.usefixtures("direct")
def test_coheres_v1_client_reranks_objects_and_gets_them_back(keyed: tuple[str, str]) -> None:
    url, key = keyed
    documents: Any = [{"text": text, "id": str(number)} for number, text in enumerate(DOCUMENTS)]
    answer = cohere.Client(api_key=key, base_url=url).rerank(
        query=QUERY, documents=documents, model="rerank-v3.5", return_documents=True
    )
    assert [(item.index, item.relevance_score) for item in answer.results] == expected()
    for item in answer.results:
        assert item.document is not None
        assert (item.document.text, item.document.id) == (DOCUMENTS[item.index], str(item.index))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("direct")
def test_coheres_client_passes_the_profile_as_an_extra_field(keyed: tuple[str, str]) -> None:
    url, key = keyed

    async def run() -> list[tuple[int, float]]:
        client = cohere.AsyncClientV2(api_key=key, base_url=url)
        extra: Any = {"additional_body_parameters": {"profile": PROFILE}}
        answer = await client.rerank(model="any", query=QUERY, documents=DOCUMENTS, request_options=extra)
        return [(item.index, item.relevance_score) for item in answer.results]

    assert asyncio.run(run()) == expected(PROFILE)


@pytest.mark.usefixtures("direct")
def test_coheres_client_knows_our_errors(keyed: tuple[str, str]) -> None:
    url, key = keyed
    with pytest.raises(cohere.errors.UnauthorizedError) as unauthorized:
        cohere.ClientV2(api_key="wrong", base_url=url).rerank(model="any", query=QUERY, documents=DOCUMENTS)
    assert unauthorized.value.body["error"]["code"] == "unauthorized"
    with pytest.raises(cohere.errors.UnprocessableEntityError) as refused:
        cohere.ClientV2(api_key=key, base_url=url).rerank(model="any", query=QUERY, documents=["a", " "])
    assert refused.value.body["error"]["field"] == "documents[1]"


@pytest.mark.usefixtures("direct")
def test_both_lists_of_models_are_read_by_their_clients(keyed: tuple[str, str]) -> None:
    url, key = keyed
    (theirs,) = cohere.Client(api_key=key, base_url=url).models.list().models
    assert (theirs.name, theirs.endpoints) == ("fake-bundle", ["rerank", "score"])
    with openai.OpenAI(api_key=key, base_url=f"{url}/v1") as client:
        assert [model.id for model in client.models.list()] == ["fake-bundle"]


# Our own


def check_scores(answer: Scores, *, request_id: str) -> None:
    known = [hashed_score(QUERY, PROFILE, text) for text in DOCUMENTS]
    assert (answer.request_id, answer.bundle_id) == (request_id, "fake-bundle")
    assert answer.blend == Weights(relevance=1.0, click=0.0, apply=0.0)
    assert [result.score for result in answer.results] == [score.score for score in known]
    assert [result.grade_probs for result in answer.results] == [score.grade_probs for score in known]
    assert [dict(result.actions) for result in answer.results] == [dict(score.actions) for score in known]
    assert [result.index for result in answer.ranked] == [index for index, _ in expected(PROFILE)]
    with pytest.raises(FrozenInstanceError):
        answer.bundle_id = "other"  # type: ignore[misc]


def test_our_client_scores_batches_and_reranks(keyed: tuple[str, str]) -> None:
    url, key = keyed
    with Client(url, api_key=key) as client:
        assert client.ready().bundle_id == "fake-bundle"
        check_scores(client.score(QUERY, PROFILE, DOCUMENTS, request_id="r1", deadline_ms=60_000), request_id="r1")
        named = client.score(QUERY, PROFILE, [Document(text="a", id="x"), "b"])
        assert [result.id for result in named.results] == ["x", None]
        query = Query(query=QUERY, profile=PROFILE, documents=DOCUMENTS)
        clicks = replace(query, blend=Weights(relevance=0.0, click=1.0, apply=0.0))
        first, second = client.score_many([query, clicks], request_id="r2")
        check_scores(first, request_id="r2")
        assert [result.score for result in second.results] == [result.actions["click"] for result in second.results]
        ranking = client.rerank(QUERY, DOCUMENTS, RerankOptions(profile=PROFILE, top_n=2, return_documents=True))
        assert [(item.index, item.relevance_score) for item in ranking.results] == expected(PROFILE)[:2]
        assert [item.document for item in ranking.results] == [{"text": DOCUMENTS[i]} for i, _ in expected(PROFILE)[:2]]


def test_our_async_client_does_the_same(keyed: tuple[str, str]) -> None:
    url, key = keyed

    async def run() -> None:
        async with AsyncClient(url, api_key=key) as client:
            assert (await client.ready()).policy_version == "0.0.0+00000000"
            check_scores(await client.score(QUERY, PROFILE, DOCUMENTS, request_id="r1"), request_id="r1")
            query = Query(query=QUERY, profile=PROFILE, documents=DOCUMENTS)
            (only,) = await client.score_many([query], request_id="r2", deadline_ms=60_000)
            check_scores(only, request_id="r2")
            ranking = await client.rerank(QUERY, DOCUMENTS)
            assert [item.index for item in ranking.results] == [index for index, _ in expected()]

    asyncio.run(run())


def test_a_refusal_is_an_error_that_says_what_the_api_says(keyed: tuple[str, str]) -> None:
    url, key = keyed
    with Client(url, api_key=key) as client, pytest.raises(ApiError) as caught:
        client.score(QUERY, PROFILE, ["a", ""], request_id="r9")
    error = caught.value
    assert (error.status, error.code, error.field, error.request_id) == (422, "empty_document", "documents[1]", "r9")
    with Client(url) as client, pytest.raises(ApiError, match="401 unauthorized"):
        client.score(QUERY, PROFILE, DOCUMENTS)


def test_no_answer_and_a_strangers_answer_are_told_apart(keyed: tuple[str, str]) -> None:
    url, key = keyed
    slept: list[float] = []
    with Client("http://127.0.0.1:9", sleep=slept.append) as client, pytest.raises(NoAnswer, match="ConnectError"):
        client.score(QUERY, PROFILE, DOCUMENTS)
    assert len(slept) > 5 and 8 < sum(slept) <= 10, "a port that refuses is looked at again for max_wait_s"
    with Client(f"{url}/metrics?", api_key=key) as client, pytest.raises(ApiError):
        client.ready()


def replies(*responses: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport that gives `responses` one after the other, and what it was asked."""
    left, asked = iter(responses), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        response = next(left)
        if isinstance(response, Exception):
            raise response
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

    return httpx.MockTransport(answer), asked


def busy(status: int = 429, after: str = "2") -> httpx.Response:
    error = {"code": "overloaded", "message": "m", "field": None, "request_id": "r"}
    return httpx.Response(status, json={"error": error}, headers={"Retry-After": after})


READY = httpx.Response(200, json={"status": "ok", "bundle_id": "b", "policy_version": "v", "new": "field"})


@pytest.mark.parametrize(
    ("first", "waits"),
    [(busy(), [2.0]), (busy(503, "1"), [1.0]), (httpx.ReadError("cut"), [0.2]), (httpx.ConnectError("gone"), [0.2])],
)
def test_a_call_is_tried_once_more_when_told_to(first: Any, waits: list[float]) -> None:
    slept: list[float] = []
    transport, asked = replies(first, READY)
    with Client(transport=transport, sleep=slept.append) as client:
        assert client.ready().bundle_id == "b"
    assert (slept, len(asked)) == (waits, 2)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run() -> None:
        transport, _ = replies(first, READY)
        async with AsyncClient(transport=transport, sleep=sleep) as client:
            assert (await client.ready()).bundle_id == "b"

    asyncio.run(run())
    assert slept == waits * 2


@pytest.mark.parametrize(
    ("responses", "num_asked"),
    [
        ([busy(), busy()], 2),
        ([busy(after="11")], 1),
        ([busy(after="soon")], 1),
        ([busy(500), busy(500)], 2),
        ([httpx.ReadError("gone"), httpx.ReadError("gone")], 2),
        ([httpx.ConnectError("refused"), busy(), httpx.ConnectError("refused"), busy()], 4),
        ([busy(504)], 1),
        ([httpx.ReadTimeout("late")], 1),
        ([httpx.Response(200, text="not json")], 1),
    ],
)
def test_a_call_is_not_tried_more_often_than_that(responses: list[Any], num_asked: int) -> None:
    transport, asked = replies(*responses)
    with Client(transport=transport, sleep=lambda seconds: None) as client, pytest.raises((ApiError, NoAnswer)):
        client.ready()
    assert len(asked) == num_asked


def test_a_second_try_has_what_is_left_of_the_deadline() -> None:
    transport, asked = replies(busy(after="1"))
    with Client(transport=transport, sleep=lambda seconds: None) as client, pytest.raises(ApiError):
        client.score(QUERY, PROFILE, DOCUMENTS, deadline_ms=900)
    assert len(asked) == 1, "after the wait nothing would be left"


def test_a_call_with_a_deadline_is_not_waited_for_much_longer() -> None:
    transport, asked = replies(busy(422), busy(422), busy(422))
    with Client(transport=transport, timeout_s=7) as client:
        for deadline_ms in (900, 60_000, None):
            with pytest.raises(ApiError):
                client.score(QUERY, PROFILE, DOCUMENTS, deadline_ms=deadline_ms)
    waits = [request.extensions["timeout"]["read"] for request in asked]
    assert 0.9 < waits[0] <= 1.4
    assert waits[1:] == [7, 7]


# What is logged


def nan_rule(query: str, profile: str, document: str) -> DocumentScore:
    return replace(hashed_score(query, profile, document), score=float("nan"))


def broken_rule(query: str, profile: str, document: str) -> DocumentScore:
    raise RuntimeError(f"cannot tokenize {query} {profile} {document}")


def body_of(word: str) -> dict[str, Any]:
    return {"query": word, "profile": word, "documents": [word, {"id": word, "text": word}]}


@pytest.mark.parametrize(
    ("scorer", "status"),
    [
        (lambda: ThreadedScorer(FakeScorer()), 200),
        (lambda: ThreadedScorer(FakeScorer(rule=nan_rule)), 500),
        (lambda: ThreadedScorer(FakeScorer(rule=broken_rule)), 500),
        (lambda: FailingScorer(Unavailable(SECRET)), 503),
        (lambda: FailingScorer(BadScore("document 0: a score that is not finite")), 500),
    ],
    ids=["scored", "not finite", "broken", "unavailable", "bad"],
)
def test_no_log_holds_a_members_words_whatever_happens(
    scorer: Callable[[], Any], status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = io.StringIO()
    handler = logging.StreamHandler(seen)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        app = make_api(scorer(), limits=Limits(max_query_chars=100))
        with serving(app, log_level="trace") as url, httpx.Client(base_url=url, trust_env=False) as session:
            assert session.post("/v1/score", json=body_of(SECRET)).status_code == status
            rerank = {"query": SECRET, "documents": [SECRET], "profile": SECRET}
            assert session.post("/v2/rerank", json=rerank).status_code == status
            for wrong in (body_of(SECRET * 50), {SECRET: SECRET}, body_of(SECRET) | {"blend": SECRET}, SECRET):
                assert session.post("/v1/score", json=wrong).status_code == 422
            assert session.post("/v1/score", content=f'{{"query": "{SECRET}'.encode()).status_code == 415
            headers = {"content-type": "application/json"}
            cut = session.post("/v1/score", content=f'{{"query": "{SECRET}'.encode(), headers=headers)
            assert cut.status_code == 400
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    shown = capfd.readouterr()
    logs = seen.getvalue() + shown.out + shown.err
    assert "/v1/score" in logs, "the logs were seen"
    assert SECRET not in logs


# The example


def test_the_example_prints_the_postings_best_first(keyed: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    url, key = keyed
    example = runpy.run_path(str(EXAMPLE))
    assert example["main"](url, key) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "fake-bundle" in first and len(lines) == 3
    assert sorted(lines, reverse=True) == lines
    assert example["main"](url, None) == 1
    assert "401 unauthorized" in capsys.readouterr().err
