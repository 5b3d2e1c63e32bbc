"""The whole path of the recipe `tiny`: a first and a second run, drift, a failed gate, a refused judge, and `score`."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor.bundle import TOLERANCE, load_bundle
from preceptor.cli import main
from preceptor.contracts import GATE_REPORT, LABELS, OVERALL, REJECTS, SCORES, read_table
from preceptor.plan import make_plan
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR, TeacherConfig, Voice
from preceptor.recipes import tiny
from preceptor.record import Record, read_record
from preceptor.running import forecast

pytestmark = pytest.mark.e2e

STAGES = tuple(step.name for step in make_plan(tiny()))

RECIPES = """
from dataclasses import replace
from preceptor.recipes import tiny

def more_layers():
    recipe = tiny()
    return replace(recipe, distill=replace(recipe.distill, num_layers=3))

def impossible():
    recipe = tiny()
    return replace(recipe, gate=replace(recipe.gate, thresholds={"student overall ndcg@10": 1.01}))

def strict():
    recipe = tiny()
    return replace(recipe, judge=replace(recipe.judge, floor=0.99))

def few_pairs():
    recipe = tiny()
    return replace(recipe, judge=replace(recipe.judge, num_calibration_pairs=10), num_tuned_pairs=10)
"""


class Stages(Protocol):
    def __call__(self, *names: str) -> Path: ...


class Refused(Protocol):
    def __call__(self, *arguments: object, exit_code: int) -> str: ...


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    file = tmp_path / "recipes.py"
    file.write_text(RECIPES)
    return file


def record_of(root: Path, stage: str) -> Record:
    record = read_record(root / stage / "v1")
    assert record is not None, f"{stage} is not finished"
    return record


def record_times(root: Path) -> dict[str, int]:
    return {file.parent.parent.name: file.stat().st_mtime_ns for file in root.glob("*/*/record.json")}


def test_every_stage_of_the_plan_has_a_record_and_nothing_is_left_half_done(tiny_run: Path) -> None:
    assert set(record_times(tiny_run)) == set(STAGES)
    assert not list(tiny_run.rglob("pending.json"))
    assert not list(tiny_run.rglob("*.partial"))
    page = (tiny_run / "report.html").read_text()
    assert "constructed" in page
    assert all(stage in page for stage in STAGES)


def test_records_say_what_they_are_made_of(tiny_run: Path) -> None:
    records = {stage: record_of(tiny_run, stage) for stage in STAGES}
    policy = load_policy(POLICY_DIR).version
    for name in ("corpus", "calibrate", "label", "relevance_teacher", "distill", "export"):
        assert records[name].policy_version == policy, name
    assert records["label"].inputs["calibration"] == records["calibrate"].fingerprint
    assert records["export"].inputs == {
        "student": records["distill"].fingerprint,
        "gate": records["gate"].fingerprint,
    }


def test_a_second_run_does_nothing_and_starts_no_ray(tiny_run: Path) -> None:
    program = """
import sys
from preceptor.cli import main
code = main(sys.argv[1:])
ray = sys.modules.get("ray")
print("ray started" if ray is not None and ray.is_initialized() else "no ray")
sys.exit(code)
"""
    before = record_times(tiny_run)
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "tiny", "--root", str(tiny_run)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"tiny: ok {tiny_run / 'report.html'}", "no ray"]
    assert done.stderr.count("finished before") == len(STAGES)
    assert record_times(tiny_run) == before


def test_a_changed_recipe_is_drift_that_names_the_field(stages: Stages, recipes: Path, refused: Refused) -> None:
    root = stages()
    before = record_times(root)
    line = refused("run", f"{recipes}:more_layers", "--root", root, exit_code=2)
    assert "DriftError" in line
    assert "num_layers: 2 -> 3" in line and str(root / "distill" / "v1") in line and "--version" in line
    assert record_times(root) == before


def test_a_failing_gate_exports_nothing_and_still_reports(stages: Stages, recipes: Path, refused: Refused) -> None:
    root = stages(*STAGES[: STAGES.index("gate")])
    line = refused("run", f"{recipes}:impossible", "--root", root, exit_code=1)
    assert "GateFailed" in line and "student overall ndcg@10" in line and "1.0100" in line
    assert not (root / "export").exists()
    (missed,) = [row for row in read_table(root / "gate" / "v1", GATE_REPORT).to_pylist() if row["passed"] is False]
    assert missed["value"] < missed["threshold"] == 1.01
    assert "student overall ndcg@10" in (root / "report.html").read_text()

    again = refused("run", f"{recipes}:impossible", "--root", root, exit_code=1)
    assert again == line
    assert "GateFailed" in refused("run", f"{recipes}:impossible", "--root", root, "--only", "export", exit_code=1)
    assert not (root / "export").exists()


def test_a_judge_under_its_floor_labels_nothing(stages: Stages, recipes: Path, refused: Refused) -> None:
    root = stages("corpus")
    line = refused("run", f"{recipes}:strict", "--root", root, exit_code=1)
    assert "JudgeRefused" in line and "0.990" in line
    assert record_of(root, "calibrate").metrics["passed"] is False
    assert sorted(path.name for path in root.iterdir()) == ["calibrate", "corpus", "report.html"]
    assert "refused to label" in (root / "report.html").read_text()


def test_score_takes_any_pairs_with_three_columns(tiny_bundle: Path, tmp_path: Path) -> None:
    texts = [
        ("welder", "TIG, shipyards", "Welder, days"),
        ("", "", "Pastry chef — Île-de-France"),
        ("welder", "TIG, shipyards", "Lasser (m/v)"),
        ("welder", "TIG, shipyards", "Welder, days"),
    ]
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "out" / "scores.parquet"
    columns = dict(zip(("query", "profile", "document"), zip(*texts, strict=True), strict=True))
    pq.write_table(pa.table({**{name: list(values) for name, values in columns.items()}, "mine": [1, 2, 3, 4]}), pairs)
    assert main(["score", "--bundle", str(tiny_bundle), "--pairs", str(pairs), "--out", str(out)]) == 0
    scores = read_table(out, SCORES).to_pylist()
    bundle = load_bundle(tiny_bundle)
    expected = [bundle.score(query, profile, [document])[0].score for query, profile, document in texts]
    assert [row["score"] for row in scores] == pytest.approx(expected, abs=TOLERANCE)
    assert scores[0] == scores[3]
    assert {row["bundle_id"] for row in scores} == {bundle.bundle_id}


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    stages: Stages, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = stages("corpus", "calibrate")
    (root / "label" / "v1").mkdir(parents=True)
    (root / "label" / "v1" / "pending.json").write_text("{}")
    before = sorted(root.rglob("*"))
    assert main(["run", "tiny", "--root", str(root), "--dry-run"]) == 0
    planned = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()}
    assert list(planned) == list(STAGES)
    assert "skip" in planned["corpus"] and "96 pairs" in planned["corpus"]
    assert "skip" in planned["calibrate"]
    assert "resume" in planned["label"]
    assert all("skip" not in planned[stage] and " run " in planned[stage] for stage in STAGES[3:])
    assert sorted(root.rglob("*")) == before

    nowhere = tmp_path / "nowhere"
    assert main(["run", "tiny", "--root", str(nowhere), "--dry-run"]) == 0
    assert "skip" not in capsys.readouterr().out.rpartition("nothing was run")[0]
    assert not nowhere.exists()


READS_SCORES = ["distill", "student_scores", "gate", "export"]


@pytest.mark.parametrize("teacher", ["relevance", "engagement"])
def test_a_replaced_teacher_is_scored_and_distilled_anew_and_nothing_else(teacher: str, tiny_run: Path) -> None:
    start = tiny()
    assert isinstance(start.relevance, TeacherConfig) and start.engagement is not None
    # Both teachers of `tiny` are the same but for what they learn.
    new = replace(start.relevance, backbone=replace(start.relevance.backbone, num_layers=3))
    changed = {"relevance": replace(start, relevance=new), "engagement": replace(start, engagement=new)}[teacher]
    recipe = replace(changed, version="v2", base="v1")
    before = sorted(tiny_run.rglob("*"))
    found = {step.name: doing for step, doing in forecast(recipe, make_plan(recipe), root=tiny_run).items()}
    ran = [name for name, doing in found.items() if doing == "run"]
    assert ran == [f"{teacher}_teacher", f"{teacher}_scores", *READS_SCORES]
    assert {doing for name, doing in found.items() if name not in ran} == {"skip: v1"}
    assert sorted(tiny_run.rglob("*")) == before

    unchanged = replace(start, version="v2", base="v1")
    assert set(forecast(unchanged, make_plan(unchanged), root=tiny_run).values()) == {"skip: v1"}


def test_a_voice_of_another_run_is_an_input_of_the_student_and_of_nothing_else(tiny_run: Path) -> None:
    start = tiny()
    assert start.distill is not None
    second = Voice(teacher="second", scores=tiny_run / "relevance_scores" / "v1", weight=0.5)
    voices = (Voice(teacher="relevance"), second, Voice(teacher="engagement"))
    recipe = replace(start, distill=replace(start.distill, voices=voices))
    found = {step.name: doing for step, doing in forecast(recipe, make_plan(recipe), root=tiny_run).items()}
    assert f"input second_scores: None -> '{record_of(tiny_run, 'relevance_scores').fingerprint}'" in found["distill"]
    assert [name for name, doing in found.items() if doing.startswith("drift")] == READS_SCORES
    assert all("input" not in found[name] for name in READS_SCORES[1:]), "what follows names the stage it follows from"
    others = replace(recipe, version="v2", base="v1")
    heard = {step.name: doing for step, doing in forecast(others, make_plan(others), root=tiny_run).items()}
    assert [name for name, doing in heard.items() if doing == "run"] == READS_SCORES


def test_a_student_is_distilled_anew_from_the_scores_that_are_stored(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    root = stages(*STAGES[: STAGES.index("distill")])
    assert main(["run", "tiny", "--root", str(root), "--dry-run"]) == 0
    planned = [line for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    skipped = [line.split()[1] for line in planned if "skip" in line]
    assert skipped == list(STAGES[: STAGES.index("distill")]), "what the teachers said is not asked again"
    assert {"relevance_scores", "engagement_scores"} <= set(skipped)


def test_examples_are_served_over_http_once_and_shown_in_the_report(
    local_ray: None, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    root = stages()
    command = ["run", "tiny", "--root", str(root), "--serve-examples"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("served over HTTP: score") == 3
    rows = json.loads((root / "served" / "v1" / "examples.json").read_text())
    bundle = load_bundle(root / "export" / "v1" / "bundle")
    assert {row["bundle_id"] for row in rows} == {bundle.bundle_id}
    assert len({row["document"] for row in rows}) == 3
    assert all(math.isfinite(row["score"]) for row in rows)
    assert rows[0]["document"] in (root / "report.html").read_text()

    assert main(command) == 0
    again = capsys.readouterr().err
    assert again.count("served before: score") == 3 and "served over HTTP" not in again


def test_a_reworded_dimension_is_what_label_would_ask(
    local_ray: None, stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = stages("corpus", "calibrate", "label")
    asked = ["tiny", "--root", str(root)]
    assert main(["label", *asked, "--dry-run"]) == 0
    labels = record_of(root, "label")
    num_rows = len(load_policy(POLICY_DIR).rubric.names) * labels.metrics["num_pairs"]
    assert f"0 rows new, {num_rows:,} reused, 0 stale" in capsys.readouterr().out

    policy = tmp_path / "policy"
    shutil.copytree(POLICY_DIR, policy)
    text = (policy / "rubric.toml").read_text()
    anchor = load_policy(POLICY_DIR).rubric.dimension("pay").anchors[0]
    (policy / "rubric.toml").write_text(text.replace(anchor, f"{anchor} Reworded."))
    asked += ["--policy", str(policy), "--version", "v2"]
    assert main(["label", *asked, "--dry-run"]) == 2
    assert "--only corpus" in capsys.readouterr().err
    for stage in ("corpus", "calibrate"):
        assert main(["run", *asked, "--only", stage]) == 0
    capsys.readouterr()
    assert main(["label", *asked, "--dry-run"]) == 0
    num_stale = labels.metrics["num_pairs"]
    assert f"0 rows new, {num_rows - num_stale:,} reused, {num_stale:,} stale" in capsys.readouterr().out
    assert main(["label", *asked]) == 0
    again = read_record(root / "label" / "v2")
    assert again is not None and again.metrics["num_rows_reused"] == num_rows - num_stale


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("label", "demo", "--dry-run"), "asks no judge"),
        (("run", "tinny"), "shipped: tiny, demo"),
        (("run", "tiny", "--only", "labels"), "'labels'"),
        (("run", "tiny", "--from", "nowhere"), "'nowhere'"),
        (("run", "tiny", "--data", "."), "--data"),
        (("run", "tiny", "--base-url", "http://127.0.0.1:1/v1"), "--judge openai"),
        (("run", "tiny", "--judge", "openai"), "--base-url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_run_is_refused_by_name(
    refused: Refused, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    line = refused(*arguments, "--root", tmp_path / "root", exit_code=2)
    assert "RecipeError" in line and said in line
    assert not (tmp_path / "root").exists()


def test_a_stage_whose_inputs_are_missing_names_them(local_ray: None, refused: Refused, tmp_path: Path) -> None:
    line = refused("run", "tiny", "--root", tmp_path / "root", "--only", "gate", exit_code=2)
    assert "'gate' needs 'corpus'" in line
    assert not (tmp_path / "root" / "gate").exists()


def test_the_shipped_policy_is_clean_and_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "lint"]) == 0
    assert "error" not in capsys.readouterr().out.replace("0 errors", "")
    assert main(["policy", "show", str(POLICY_DIR)]) == 0
    shown = capsys.readouterr().out
    policy = load_policy(POLICY_DIR)
    assert policy.version in shown
    assert all(name in shown for name in policy.rubric.names)
    assert all(anchor in shown for anchor in policy.rubric.dimensions[0].anchors)


class Endpoint(ThreadingHTTPServer):
    """An OpenAI-compatible server on the loopback that answers every question with the same distribution."""

    daemon_threads = True
    masses: ClassVar = {"4": 0.6, "3": 0.3, "x": 0.1}

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Answering(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append({**asked, "path": self.path})
        top = [{"token": token, "logprob": math.log(mass)} for token, mass in self.server.masses.items()]
        choice = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": "4"},
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        answer = {"id": "a", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests read stderr."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_openai_compatible_endpoint_is_the_judge(stages: Stages, recipes: Path, endpoint: Endpoint) -> None:
    root = stages("corpus")
    arguments = ["--judge", "openai", "--base-url", endpoint.url, "--judge-model", "grader-9b", "--only", "calibrate"]
    assert main(["run", f"{recipes}:few_pairs", "--root", str(root), *arguments]) == 0

    record = record_of(root, "calibrate")
    assert record.metrics["judge_id"] == f"openai:grader-9b@127.0.0.1:{endpoint.server_port}/v1"
    names = load_policy(POLICY_DIR).rubric.names
    # Some pairs are asked again, and in reverse order: the judge's agreement with itself.
    answered = [read_table(record.path / kind, LABELS) for kind in ("labels", "again", "reordered")]
    num_asked = [sum(name != OVERALL for name in rows.column("dimension").to_pylist()) for rows in answered]
    assert num_asked[0] == record.metrics["num_pairs"] * len(names) and 0 < num_asked[1] == num_asked[2]
    assert len(endpoint.asked) == sum(num_asked)
    assert {(asked["path"], asked["model"]) for asked in endpoint.asked} == {("/v1/chat/completions", "grader-9b")}
    labels = [row for row in read_table(record.path / "labels", LABELS).to_pylist() if row["dimension"] != OVERALL]
    assert {row["dimension"] for row in labels} == set(names)
    for row in labels:
        assert row["grade"] == 4
        assert row["probs"] == pytest.approx([0, 0, 0, 1 / 3, 2 / 3], abs=1e-6)
        assert row["label_mass"] == pytest.approx(0.9)
    assert read_table(record.path / "rejects", REJECTS).num_rows == 0


def test_an_endpoint_that_is_gone_is_one_line(stages: Stages, recipes: Path, refused: Refused) -> None:
    root = stages("corpus")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/v1"
    arguments = ("--judge", "openai", "--base-url", url, "--only", "calibrate")
    line = refused("run", f"{recipes}:few_pairs", "--root", root, *arguments, exit_code=1)
    assert "RejectCeilingError" in line and "connection lost" in line
    assert not (root / "calibrate" / "v1" / "record.json").exists()
