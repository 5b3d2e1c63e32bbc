"""Bad input, a full disk and a killed run: one line that names the place, and nothing that a later run would trust."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor.cli import main
from preceptor.plan import make_plan
from preceptor.recipe import POLICY_DIR
from preceptor.recipes import tiny
from preceptor.record import read_record

pytestmark = pytest.mark.e2e

STAGES = tuple(step.name for step in make_plan(tiny()))
ROWS: dict[str, Any] = {"query": ["welder", "cook"], "profile": ["TIG", "pastry"], "document": ["Welder", "Chef"]}


class Stages(Protocol):
    def __call__(self, *names: str) -> Path: ...


class Refused(Protocol):
    def __call__(self, *arguments: object, exit_code: int) -> str: ...


def write_rows(file: Path, **changes: Any) -> Path:
    columns = {name: values for name, values in (ROWS | changes).items() if values is not None}
    pq.write_table(pa.table(columns), file)
    return file


def cut_short(file: Path) -> bytes:
    """The whole content of `file`, which keeps its first half alone."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return content


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "preceptor", *map(str, arguments)]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A copy of the shipped policy, to be broken."""
    return Path(shutil.copytree(POLICY_DIR, tmp_path / "policy"))


# Pairs that a user brings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"document": None}, ["column 'document'", "found: query, profile"]),
        ({"query": ["welder", None]}, ["row 2", "column 'query'", "null"]),
        ({"profile": [1, 2]}, ["column 'profile'", "int64"]),
        ({"document": ["Welder", " "]}, ["row 2", "column 'document'", "empty"]),
    ],
    ids=["column", "null", "type", "empty"],
)
def test_pairs_that_break_their_contract_are_named(
    refused: Refused, tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    pairs, out = write_rows(tmp_path / "pairs.parquet", **changes), tmp_path / "scores.parquet"
    line = refused("score", "--bundle", tmp_path, "--pairs", pairs, "--out", out, exit_code=2)
    assert all(part in line for part in ["InputError", str(pairs), *said]), line
    assert not out.exists()


def test_files_that_are_missing_or_cut_short_are_named(refused: Refused, tiny_bundle: Path, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "scores.parquet"
    line = refused("score", "--bundle", tiny_bundle, "--pairs", pairs, "--out", out, exit_code=2)
    assert str(pairs) in line and "does not exist" in line
    whole = write_rows(pairs).read_bytes()
    cut_short(pairs)
    line = refused("score", "--bundle", tiny_bundle, "--pairs", pairs, "--out", out, exit_code=2)
    assert str(pairs) in line and "cut short" in line
    pairs.write_bytes(whole)
    line = refused("score", "--bundle", tmp_path / "nothing", "--pairs", pairs, "--out", out, exit_code=2)
    assert str(tmp_path / "nothing") in line
    assert not out.exists()
    assert main(["score", "--bundle", str(tiny_bundle), "--pairs", str(pairs), "--out", str(out)]) == 0
    assert pq.read_metadata(out).num_rows == 2


def test_a_bundle_with_other_weights_scores_nothing(refused: Refused, tiny_bundle: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    weights = load_file(bundle / "model.safetensors")
    weights["score.weight"] = weights["score.weight"].flip(0).contiguous()
    save_file(weights, bundle / "model.safetensors", metadata={"format": "pt"})
    pairs, out = write_rows(tmp_path / "pairs.parquet"), tmp_path / "scores.parquet"
    line = refused("score", "--bundle", bundle, "--pairs", pairs, "--out", out, exit_code=1)
    assert "ParityError" in line and str(bundle) in line
    assert not out.exists()


# A policy that breaks its rules


def break_golden(policy: Path) -> tuple[Path, int]:
    file = policy / "golden" / "train.jsonl"
    lines = file.read_text().splitlines()
    row = json.loads(lines[4])
    row["grades"]["skills"] = 7
    lines[4] = json.dumps(row)
    file.write_text("\n".join(lines) + "\n")
    return file, 5


def break_rubric(policy: Path) -> tuple[Path, int]:
    """Take the anchor of grade 3 out of the first dimension."""
    file = policy / "rubric.toml"
    lines = file.read_text().splitlines()
    start = lines.index("[[dimension]]")
    anchor = next(n for n, line in enumerate(lines) if n > start and line.startswith("3 = "))
    del lines[anchor]
    file.write_text("\n".join(lines) + "\n")
    return file, start + 1


@pytest.mark.parametrize(
    ("damage", "said"), [(break_golden, "7"), (break_rubric, "3")], ids=["unknown grade", "missing anchor"]
)
def test_a_broken_policy_stops_the_run_at_its_line(
    tiny_run: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
    policy: Path,
    tmp_path: Path,
    damage: Callable[[Path], tuple[Path, int]],
    said: str,
) -> None:
    whole = Path(shutil.copytree(policy, tmp_path / "whole"))
    file, at = damage(policy)
    root = tmp_path / "root"
    arguments = ("run", "tiny", "--root", root, "--policy", policy, "--only", "corpus")
    line = refused(*arguments, exit_code=2)
    assert "PolicyError" in line and said in line
    found = line.split(f"{file}:")[1].split(":")[0]
    assert int(found) >= at
    assert not (root / "corpus" / "v1" / "record.json").exists()
    assert not (root / "report.html").exists()

    assert main(["policy", "lint", str(policy)]) == 1
    assert f"{file}:{found}" in capsys.readouterr().out
    shutil.rmtree(policy)
    shutil.copytree(whole, policy)
    assert main([str(argument) for argument in arguments]) == 0
    assert read_record(root / "corpus" / "v1") is not None


# Stages whose inputs were damaged


def test_a_truncated_corpus_stops_the_stage_and_not_the_one_after_mending(stages: Stages, refused: Refused) -> None:
    root = stages("corpus", "calibrate")
    (part,) = (root / "corpus" / "v1" / "pairs").glob("*.parquet")
    whole = cut_short(part)
    arguments = ("run", "tiny", "--root", root, "--only", "label")
    line = refused(*arguments, exit_code=2)
    assert "InputError" in line and str(part) in line
    assert not (root / "label" / "v1" / "record.json").exists()
    part.write_bytes(whole)
    assert main([str(argument) for argument in arguments]) == 0
    assert read_record(root / "label" / "v1") is not None


def test_a_corpus_without_its_column_is_named(stages: Stages, refused: Refused) -> None:
    root = stages("corpus", "calibrate")
    (part,) = (root / "corpus" / "v1" / "pairs").glob("*.parquet")
    table = pq.read_table(part)
    for broken, said in (
        (table.drop_columns(["profile"]), "column 'profile'"),
        (table.set_column(0, "pair_id", pa.nulls(table.num_rows, pa.string())), "no null"),
    ):
        pq.write_table(broken, part)
        line = refused("run", "tiny", "--root", root, "--only", "label", exit_code=2)
        assert "InputError" in line and str(part) in line and said in line
    assert not (root / "label" / "v1" / "record.json").exists()


def test_a_damaged_record_is_named_and_not_overwritten(stages: Stages, refused: Refused) -> None:
    root = stages("corpus", "calibrate")
    record = root / "calibrate" / "v1" / "record.json"
    cut_short(record)
    before = record.read_bytes()
    line = refused("run", "tiny", "--root", root, "--only", "label", exit_code=2)
    assert "InputError" in line and str(record) in line
    assert record.read_bytes() == before
    assert not (root / "label").exists()


# A full disk


def run_on_full_disk(arguments: list[str], *, limit: int, environment: dict[str, str]) -> str:
    """The refusal of a command whose every file may grow to `limit` bytes: the kernel refuses like a full disk."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        arguments, capture_output=True, text=True, env=os.environ | environment, preexec_fn=limited, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("preceptor: ")]
    return line


def test_scores_that_do_not_fit_the_disk_leave_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    pairs, out = write_rows(tmp_path / "pairs.parquet"), tmp_path / "out" / "scores.parquet"
    arguments = command("score", "--bundle", tiny_bundle, "--pairs", pairs, "--out", out)
    line = run_on_full_disk(arguments, limit=512, environment={"PYTHONDONTWRITEBYTECODE": "1"})
    assert "StageFailed" in line and str(out) in line and "space" in line
    assert list(out.parent.iterdir()) == []


def test_a_bundle_that_does_not_fit_the_disk_leaves_nothing(stages: Stages) -> None:
    import ray

    root = stages(*(stage for stage in STAGES if stage != "export"))
    # The cluster is there already: only this command's own files are limited.
    environment = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = command("run", "tiny", "--root", root, "--only", "export")
    line = run_on_full_disk(arguments, limit=2**20, environment=environment)
    assert "StageFailed" in line and str(root / "export" / "v1") in line and "space" in line
    assert [file.name for file in (root / "export" / "v1").iterdir()] == ["pending.json"]
    assert main(arguments[3:]) == 0
    assert (root / "export" / "v1" / "bundle" / "bundle.json").is_file()


# A killed run


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder with a short path, as Ray's sockets need, that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pk"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_killed_run_is_finished_by_the_same_command(stages: Stages, short_tmp: Path) -> None:
    root = stages(*STAGES[: STAGES.index("student_scores")])
    before = {stage: read_record(root / stage / "v1") for stage in STAGES}
    arguments = command("run", "tiny", "--root", root)
    killed = root / "student_scores" / "v1"
    child = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(short_tmp)})
    while not (killed / "pending.json").is_file():
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (killed / "record.json").exists()

    assert main(arguments[3:]) == 0
    after = {stage: read_record(root / stage / "v1") for stage in STAGES}
    assert all(after.values())
    assert all(after[stage] == record for stage, record in before.items() if record is not None)
    assert not list(root.rglob("pending.json"))
