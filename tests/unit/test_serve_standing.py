"""Health, readiness, models, metrics, and the OpenAPI document."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from preceptor_serve.metrics import ROUTES
from preceptor_serve.scorer import Unavailable
from tests.unit.serving import BODY, SECRET, FailingScorer, client, samples


def test_healthz_says_that_the_edge_lives_even_where_no_scorer_does():
    response = client(FailingScorer(Unavailable("none"))).get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_readyz_says_which_bundle_answers():
    assert client().get("/readyz").json() == {
        "status": "ok",
        "bundle_id": "fake-bundle",
        "policy_version": "0.0.0+00000000",
    }


def test_models_lists_the_bundle_in_both_shapes():
    body = client().get("/v1/models").json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert (model["id"], model["object"], model["policy_version"]) == ("fake-bundle", "model", "0.0.0+00000000")
    assert model["blend"] == {"relevance": 1.0, "click": 0.0, "apply": 0.0}
    assert body["models"] == [{"name": "fake-bundle", "endpoints": ["rerank", "score"]}]


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
    assert seen[("preceptor_documents_under_way", None, None)] == 0
    assert seen[("preceptor_request_seconds_count", "/v1/score", None)] == 3


def test_metrics_hold_no_text_path_or_id_of_a_caller():
    session = client()
    session.post("/v1/score", json=BODY | {"query": SECRET, "request_id": SECRET, "documents": [SECRET]})
    session.post("/v1/score", json=BODY | {SECRET: SECRET}, headers={"x-request-id": SECRET})
    session.post("/v1/rerank", json={"query": SECRET, "documents": [SECRET], "model": SECRET})
    session.get(f"/{SECRET}?{SECRET}={SECRET}")
    text = session.get("/metrics").text
    assert 'preceptor_refusals_total{code="invalid_field"' in text
    assert SECRET not in text


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation of the OpenAPI document, its references resolved, by path and method."""
    document = client().get("/openapi.json").json()

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolved(document["components"]["schemas"][value["$ref"].rpartition("/")[2]])
        return {name: resolved(item) for name, item in value.items()}

    return {
        (path, method): resolved(operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def examples(content: dict[str, Any]) -> list[Any]:
    return [content["example"]] if "example" in content else [one["value"] for one in content["examples"].values()]


def test_every_route_is_described():
    assert {path for path, _ in operations()} == set(ROUTES) - {"/openapi.json"}


@pytest.mark.parametrize(("path", "method"), list(operations()))
def test_every_answer_has_an_example_that_fits_its_schema(path: str, method: str):
    for status, answer in operations()[path, method]["responses"].items():
        for kind, content in answer["content"].items():
            assert examples(content), (status, kind)
            for example in examples(content):
                jsonschema.validate(example, content["schema"])


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rerank", "/v2/rerank"])
def test_every_request_example_is_answered_in_the_described_shape(path: str):
    operation = operations()[path, "post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert len(examples(content)) == (2 if path == "/v1/score" else 1)
    for example in examples(content):
        jsonschema.validate(example, content["schema"])
        response = client().post(path, json=example)
        assert response.status_code == 200, response.text
        jsonschema.validate(response.json(), operation["responses"]["200"]["content"]["application/json"]["schema"])
    statuses = {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert set(operation["responses"]) == statuses


def test_every_answer_names_its_request_in_a_header():
    session = client()
    for response in (session.get("/healthz", headers={"x-request-id": "r1"}), session.get("/nowhere")):
        assert response.headers["x-request-id"]
    assert session.get("/healthz", headers={"x-request-id": "r1"}).headers["x-request-id"] == "r1"
    response = session.post("/v1/score", json=BODY | {"request_id": "r2"}, headers={"x-request-id": "r1"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "r2"
    assert session.get("/healthz", headers={"x-request-id": "r1\nx"}).headers["x-request-id"] != "r1\nx"
