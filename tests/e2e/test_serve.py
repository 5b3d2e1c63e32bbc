"""A bundle behind a real Ray Serve application, over real HTTP."""

from __future__ import annotations

import importlib
import itertools
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from preceptor.bundle import TOLERANCE, Bundle, load_bundle
from preceptor.errors import InputError
from preceptor.running import free_port
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.keys import add_key

pytestmark = pytest.mark.e2e

JSON = {"content-type": "application/json"}
# The replica's kernels are not those of transformers: in bfloat16 their probabilities differ by a few in 10,000.
ENGINE = 5e-3
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
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def session(local_ray: object, random_bundle: Path, keys_file: Path) -> Iterator[httpx.Client]:
    """Speaks to a scorer that wants a key, with one."""
    from ray import serve

    from preceptor_serve.start import run_app

    key = add_key(keys_file, "tests", requests_per_minute=10_000, documents_per_minute=100_000)
    url = run_app(random_bundle, port=free_port(), keys=keys_file, block=False)
    headers = {"authorization": f"Bearer {key}"}
    # trust_env: a proxy named in the environment could not reach the loopback.
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        yield client
    serve.shutdown()


@pytest.fixture(scope="module")
def bundle(random_bundle: Path) -> Bundle:
    return load_bundle(random_bundle)


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
        assert result["grade_probs"] == pytest.approx(score.grade_probs, abs=ENGINE)
        assert result["actions"] == pytest.approx(dict(score.actions), abs=ENGINE)
        assert result["expected_grade"] == pytest.approx(score.expected_grade, abs=ENGINE)
        assert result["score"] == pytest.approx(score.score, abs=ENGINE)


def test_a_document_scores_the_same_whatever_stands_beside_it(session: httpx.Client) -> None:
    def scores(documents: list[str]) -> list[float]:
        answer = session.post("/v1/score", **body(documents=documents)).json()
        return [result["score"] for result in answer["results"]]

    # In bfloat16 another batch shape may round otherwise, up to the tolerance that a bundle is exported under.
    together = scores(DOCUMENTS)
    assert scores(DOCUMENTS[::-1])[::-1] == pytest.approx(together, abs=TOLERANCE)
    assert scores(DOCUMENTS[1:2]) == pytest.approx(together[1:2], abs=TOLERANCE)


def test_a_batch_and_a_reranking_are_the_same_scores(session: httpx.Client, bundle: Bundle) -> None:
    part = body()["json"]
    both = session.post("/v1/score", json={"requests": [part, part | {"documents": DOCUMENTS[:1]}]}).json()["answers"]
    assert [len(answer["results"]) for answer in both] == [3, 1]
    assert {answer["bundle_id"] for answer in both} == {bundle.bundle_id}
    scores = [score.score for score in bundle.score(QUERY, PROFILE, DOCUMENTS)]
    assert [result["score"] for result in both[0]["results"]] == pytest.approx(scores, abs=TOLERANCE)
    weights = asdict(bundle.blend)
    assert both[0]["blend"] == weights
    ranked = session.post("/v2/rerank", json={"query": QUERY, "profile": PROFILE, "documents": DOCUMENTS}).json()
    given = {result["index"]: result["relevance_score"] for result in ranked["results"]}
    total = sum(weights.values())
    assert [given[index] for index in range(3)] == pytest.approx([score / total for score in scores], abs=TOLERANCE)


def test_the_engine_computes_and_remembers_behind_serve(session: httpx.Client) -> None:
    def series() -> dict[str, float]:
        lines = [line for line in session.get("/metrics").text.splitlines() if line.startswith("preceptor_engine_")]
        return {re.sub(r'scorer="\w+",?', "", line.split()[0]): float(line.split()[1]) for line in lines}

    documents = ["A posting that no other test asks for.", "And another."]
    assert session.post("/v1/score", **body(documents=documents)).status_code == 200
    before = series()
    assert before["preceptor_engine_tokens_total{}"] > 0
    assert before["preceptor_engine_padding_tokens_total{}"] == 0
    assert session.post("/v1/score", **body(documents=documents[::-1])).status_code == 200
    after = series()
    assert after["preceptor_engine_tokens_total{}"] == before["preceptor_engine_tokens_total{}"]
    hits = [found for found in after if "cache_hits_total" in found and "score" in found]
    assert [after[name] - before[name] for name in hits] == [2]


def test_only_holders_of_a_key_are_answered_through_serve(session: httpx.Client, keys_file: Path) -> None:
    nobody = {"authorization": "Bearer pcp_00000000_" + "a" * 43}
    assert session.post("/v1/score", **body(), headers=nobody).status_code == 401
    other = add_key(keys_file, "other", requests_per_minute=1, documents_per_minute=100)
    headers = {"authorization": f"Bearer {other}"}
    assert [session.post("/v1/score", **body(), headers=headers).status_code for _ in range(2)] == [200, 429]


def test_a_deadline_that_cannot_be_kept_is_refused_through_serve(session: httpx.Client) -> None:
    assert session.post("/v1/score", **body()).status_code == 200
    response = session.post("/v1/score", **body(documents=DOCUMENTS * 20), headers={"x-deadline-ms": "1"})
    assert (response.status_code, response.json()["error"]["code"]) == (429, "deadline_unreachable")


def test_readyz_names_the_bundle(session: httpx.Client, bundle: Bundle) -> None:
    assert session.get("/healthz").json() == {"status": "ok"}
    response = session.get("/readyz")
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


def test_rays_own_logs_hold_no_words_of_a_member(session: httpx.Client) -> None:
    import ray

    word = "zq-private-words"
    assert session.post("/v1/score", **body(query=word, profile=word, documents=[word])).status_code == 200
    assert session.post("/v2/rerank", json={"query": word, "documents": [word]}).status_code == 200
    assert session.post("/v1/score", **body(query=word * 100)).status_code == 422
    node: Any = ray._private.worker._global_node
    logs = Path(node.get_session_dir_path()) / "logs"
    files = [file for file in logs.rglob("*") if file.is_file()]
    assert any("replica" in file.name for file in files), "the replicas' logs were seen"
    assert [str(file) for file in files if word.encode() in file.read_bytes()] == []


def test_no_dashboard_runs_and_http_is_answered_on_the_loopback_alone(session: httpx.Client) -> None:
    import psutil
    import ray

    node: Any = ray._private.worker._global_node
    assert not node.webui_url
    port = session.base_url.port
    listening = [found for found in psutil.net_connections("inet") if found.status == psutil.CONN_LISTEN]
    assert {found.laddr.ip for found in listening if found.laddr.port == port} == {"127.0.0.1"}


def test_rays_own_ports_want_a_token(local_ray: object) -> None:
    raylet = importlib.import_module("ray._raylet")
    assert raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN


def ports_of_scorers() -> list[int]:
    """Every port that a scorer of this process's Ray listens on."""
    import psutil

    ports = []
    for process in psutil.Process().children(recursive=True):
        # Ray's other processes come and go while they are listed.
        with suppress(psutil.NoSuchProcess):
            if any("ServeReplica" in part and "Scorer" in part for part in process.cmdline()):
                connections = process.net_connections("inet")
                ports += [found.laddr.port for found in connections if found.status == psutil.CONN_LISTEN]
    return ports


def test_a_scorers_own_port_wants_a_token(session: httpx.Client) -> None:
    import grpc

    answered = set()
    for port in ports_of_scorers():
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                ask(b"", timeout=10)
            answered.add(refused.value.code())
    # Ray's core listens as well, and knows no such service.
    assert answered == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}


def test_another_interface_without_keys_is_refused(session: httpx.Client, random_bundle: Path) -> None:
    from preceptor_serve.start import run_app

    with pytest.raises(InputError, match="lets others in"):
        run_app(random_bundle, host="0.0.0.0", port=free_port(), block=False)


def test_a_file_without_a_key_is_refused(session: httpx.Client, random_bundle: Path, tmp_path: Path) -> None:
    from preceptor_serve.start import run_app

    (tmp_path / "keys.json").write_text('{"keys": []}')
    with pytest.raises(InputError, match="no key"):
        run_app(random_bundle, port=free_port(), keys=tmp_path / "keys.json", block=False)


def test_more_replicas_than_cores_are_refused(session: httpx.Client, random_bundle: Path) -> None:
    from preceptor_serve.start import num_cores, run_app

    for replicas in (0, num_cores() + 1):
        with pytest.raises(InputError, match=f"--replicas must be 1 to .* got {replicas}"):
            run_app(random_bundle, port=free_port(), replicas=replicas, block=False)


def test_a_bundle_that_is_not_there_is_one_line_and_starts_nothing(session: httpx.Client, tmp_path: Path) -> None:
    from preceptor_serve.start import run_app

    with pytest.raises(InputError) as caught:
        run_app(tmp_path / "nowhere", port=free_port(), block=False)
    assert "\n" not in str(caught.value) and "nowhere" in str(caught.value)


def test_a_port_in_use_is_refused_by_name(session: httpx.Client, random_bundle: Path) -> None:
    from preceptor_serve.start import run_app

    with pytest.raises(InputError, match=str(session.base_url.port)):
        run_app(random_bundle, port=session.base_url.port or 0, block=False)
    assert session.get("/readyz").status_code == 200


class Callers:
    """Threads that each send the next request, of texts never sent before, as soon as they have an answer."""

    def __init__(self, session: httpx.Client, path: str) -> None:
        self._session = session
        self._path = path
        self._numbers = itertools.count()
        self._wanted = 0
        self._threads: list[threading.Thread] = []
        self.statuses: list[int] = []

    def keep(self, num: int) -> None:
        """`num` of them call from now on."""
        self._wanted = num
        for number in range(len(self._threads), num):
            self._threads.append(threading.Thread(target=self._call, args=(number,)))
            self._threads[-1].start()

    def end(self) -> None:
        self.keep(0)
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        while number < self._wanted:
            documents = [f"Posting {next(self._numbers)} of a ward." for _ in range(40)]
            response = self._session.post(self._path, **body(documents=documents))
            self.statuses.append(response.status_code)


def test_replicas_come_with_waiting_tokens_and_go_again_without_a_lost_request(
    session: httpx.Client, random_bundle: Path
) -> None:
    from ray import serve

    from preceptor_serve.app import AppArgs, build

    args = AppArgs(
        bundle=str(random_bundle),
        engine=EngineOptions(threads=1),
        num_cpus=0.5,
        target_wait_s=0.001,
        max_busy=1.0,
        report_s=0.3,
        look_back_s=1.0,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
    )
    serve.run(build(args), name="scaled", route_prefix="/scaled", logging_config={"enable_access_log": False})

    def reaches(num_replicas: int) -> None:
        end_s = time.monotonic() + 240
        while time.monotonic() < end_s:
            states = serve.status().applications["scaled"].deployments["Scorer"].replica_states
            if {str(state): num for state, num in states.items()} == {"RUNNING": num_replicas}:
                return
            time.sleep(0.1)
        raise AssertionError(f"not {num_replicas} replicas within 240 s but {states}")

    callers = Callers(session, "/scaled/v1/score")
    try:
        reaches(1)
        callers.keep(8)
        reaches(2)
        # One caller keeps one replica busy, however long its requests.
        callers.keep(1)
        reaches(1)
        before = len(callers.statuses)
    finally:
        callers.end()
        serve.delete("scaled")
    assert len(callers.statuses) >= before > 20
    assert set(callers.statuses) == {200}
