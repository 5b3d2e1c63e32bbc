"""A bundle behind a real Ray Serve application, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from preceptor.bundle import TOLERANCE, Bundle, load_bundle
from preceptor.errors import InputError
from preceptor.running import free_port

pytestmark = pytest.mark.e2e

JSON = {"content-type": "application/json"}
QUERY = "night shift nurse"
PROFILE = "Registered nurse, six years on surgical wards, wants nights."
DOCUMENTS = [
    "Staff Nurse (nights), surgical ward. NMC registration required.",
    "Ingénieur·e logiciel, télétravail — 50 k€",
    "Baker, early shifts, no experience needed.",
]


def body(**changes: object) -> dict[str, Any]:
    return {"json": {"query": QUERY, "profile": PROFILE, "documents": DOCUMENTS} | changes}


@pytest.fixture(scope="module")
def session(local_ray: object, tiny_bundle: Path) -> Iterator[httpx.Client]:
    from ray import serve

    from preceptor_serve.app import run_app

    url = run_app(tiny_bundle, port=free_port(), block=False)
    # trust_env: a proxy named in the environment could not reach the loopback.
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client
    serve.shutdown()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def test_served_scores_are_the_bundles_own(session: httpx.Client, bundle: Bundle) -> None:
    response = session.post("/v1/score", **body(request_id="e2e-1"))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["request_id"] == "e2e-1"
    assert answer["bundle_id"] == bundle.bundle_id
    assert answer["policy_version"] == bundle.policy_version
    expected = bundle.score(QUERY, PROFILE, DOCUMENTS)
    assert [result["index"] for result in answer["results"]] == [0, 1, 2]
    for result, score in zip(answer["results"], expected, strict=True):
        assert result["grade_probs"] == pytest.approx(score.grade_probs, abs=1e-4)
        assert result["actions"] == pytest.approx(dict(score.actions), abs=1e-4)
        assert result["expected_grade"] == pytest.approx(score.expected_grade, abs=1e-4)
        assert result["score"] == pytest.approx(score.score, abs=1e-4)


def test_a_document_scores_the_same_whatever_stands_beside_it(session: httpx.Client) -> None:
    def scores(documents: list[str]) -> list[float]:
        answer = session.post("/v1/score", **body(documents=documents)).json()
        return [result["score"] for result in answer["results"]]

    # In bfloat16 another batch shape may round otherwise, up to the tolerance that a bundle is exported under.
    together = scores(DOCUMENTS)
    assert scores(DOCUMENTS[::-1])[::-1] == pytest.approx(together, abs=TOLERANCE)
    assert scores(DOCUMENTS[1:2]) == pytest.approx(together[1:2], abs=TOLERANCE)


def test_healthz_names_the_bundle(session: httpx.Client, bundle: Bundle) -> None:
    response = session.get("/healthz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "bundle_id": bundle.bundle_id,
        "policy_version": bundle.policy_version,
    }


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("POST", "/v1/score", {"content": b"{", "headers": JSON}, 400, "malformed_json"),
        ("POST", "/v1/score", {"content": b"a=b"}, 415, "unsupported_media_type"),
        ("POST", "/v1/score", body(documents=[]), 422, "empty_documents"),
        ("POST", "/v1/score", body(documents=["d"] * 251), 422, "too_many_documents"),
        ("POST", "/v1/score", body(query="q" * 3_000_000), 413, "body_too_large"),
        ("GET", "/v1/score", {}, 405, "method_not_allowed"),
        ("GET", "/v2/score", {}, 404, "not_found"),
    ],
)
def test_refusals_keep_their_body_through_serve(
    session: httpx.Client, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    response = session.request(method, path, **options)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message", "field", "request_id"}
    assert response.json()["error"]["code"] == code


def test_a_chunked_body_over_the_limit_is_refused_through_serve(session: httpx.Client) -> None:
    chunks = (b" " * 65_536 for _ in range(64))
    response = session.post("/v1/score", content=chunks, headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_metrics_are_prometheus_text_that_counts_this_traffic(session: httpx.Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def num_scored() -> float:
        families = text_string_to_metric_families(session.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == "preceptor_documents_scored_total")

    before = num_scored()
    session.post("/v1/score", **body())
    assert num_scored() == before + len(DOCUMENTS)


def test_a_bundle_that_is_not_there_is_one_line_and_starts_nothing(session: httpx.Client, tmp_path: Path) -> None:
    from preceptor_serve.app import run_app

    with pytest.raises(InputError) as caught:
        run_app(tmp_path / "nowhere", port=free_port(), block=False)
    assert "\n" not in str(caught.value) and "nowhere" in str(caught.value)


def test_a_port_in_use_is_refused_by_name(session: httpx.Client, tiny_bundle: Path) -> None:
    from preceptor_serve.app import run_app

    with pytest.raises(InputError, match=str(session.base_url.port)):
        run_app(tiny_bundle, port=session.base_url.port or 0, block=False)
    assert session.get("/healthz").status_code == 200
