"""The holdout cannot be opened while it is sealed, by any door Python knows; the gate opens only what was sealed."""

from __future__ import annotations

import ast
import io
import json
import linecache
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from preceptor.contracts import GOLDEN, iter_batches, parquet_files, read_table, write_table
from preceptor.errors import PolicyError, SealedError, StageFailed
from preceptor.golden import tuning_rows
from preceptor.golden.opener import open_holdout
from preceptor.judge import FakeJudge, Reply, calibrate
from preceptor.policy import lint, load_golden, load_policy, show
from preceptor.policy.seal import read_seal, seal_of
from preceptor.policy.sealed import is_sealed, sealed
from preceptor.record import Record
from tests.unit.labelling import GOOD_FAKE, POLICY, judge_config
from tests.unit.test_architecture import PIPELINE, modules, name_of, project_imports

SHIPPED = Path(__file__).resolve().parents[2] / "policy" / "job_match"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "policy"))
    (folder / "golden" / "drafts").mkdir()
    (folder / "golden" / "drafts" / "round.jsonl").write_text('{"kind": "draft"}\n')
    return folder


def opened(file: str | bytes | Path | int) -> str:
    with open(file) as handle:
        return handle.read()


def by_file_io(file: Path) -> bytes:
    with io.FileIO(str(file)) as handle:
        return handle.read()


def by_descriptor(file: Path) -> object:
    handle = os.open(file.parent, os.O_RDONLY)
    try:
        return opened(os.open(file.name, os.O_RDONLY, dir_fd=handle))
    finally:
        os.close(handle)


def by_symlink(file: Path) -> str:
    link = file.parents[2] / "innocent.txt"
    link.symlink_to(file)
    return link.read_text()


def by_hard_link(file: Path) -> str:
    link = file.parents[2] / "hard.txt"
    link.hardlink_to(file)
    return link.read_text()


def by_linked_folder(file: Path) -> str:
    link = file.parents[2] / "elsewhere"
    link.symlink_to(file.parent, target_is_directory=True)
    return (link / file.name).read_text()


def moved(file: Path) -> str:
    return file.rename(file.parents[2] / "moved.txt").read_text()


DOORS: dict[str, Callable[[Path], object]] = {
    "open": opened,
    "bytes": lambda file: opened(os.fsencode(file)),
    "pathlib": lambda file: file.read_text(),
    "os.open": lambda file: os.open(file, os.O_RDONLY),
    "FileIO": by_file_io,
    "relative": lambda file: opened(os.path.relpath(file)),
    "dotted": lambda file: (file.parent / ".." / file.parent.name / file.name).read_text(),
    "folder descriptor": by_descriptor,
    "symbolic link": by_symlink,
    "hard link": by_hard_link,
    "linked folder": by_linked_folder,
    "moved": moved,
    "linecache": lambda file: linecache.updatecache(str(file)) or linecache.getline(str(file), 1),
    "pandas": lambda file: pd.read_json(file, lines=True),
    "numpy": lambda file: np.loadtxt(file, dtype=str),
    "copy": lambda file: shutil.copyfile(file, file.parents[2] / "copy.jsonl"),
    "command": lambda file: subprocess.run(["cat", str(file)], capture_output=True),
    "shell": lambda file: os.system(f"cat {file.name}"),
    "write": lambda file: file.write_text(""),
    "load_golden": lambda file: load_golden(file, POLICY),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("name", ["holdout.jsonl", "drafts/round.jsonl"])
def test_no_door_leads_to_the_holdout(policy: Path, door: Callable[[Path], object], name: str) -> None:
    file = policy / "golden" / name
    inode, before = file.stat().st_ino, file.read_bytes()
    with sealed(policy), pytest.raises(SealedError) as caught:
        door(file)
    assert "\n" not in str(caught.value) and "holdout, sealed from whatever tunes a judge" in str(caught.value)
    (left, *_) = (found for found in policy.parent.rglob("*") if found.stat().st_ino == inode)
    assert left.read_bytes() == before


def test_a_sealed_file_that_is_replaced_meanwhile_stays_sealed(policy: Path) -> None:
    file = policy / "golden" / "holdout.jsonl"
    with sealed(policy):
        fresh = file.with_name(".fresh")
        fresh.write_text("{}\n")
        fresh.replace(file)
        with pytest.raises(SealedError):
            file.read_text()


def test_what_may_be_read_is_read_and_the_seal_comes_off(policy: Path, tmp_path: Path) -> None:
    golden = policy / "golden"
    with sealed(policy):
        assert (golden / "train.jsonl").read_text() and (golden / "calibration.jsonl").read_text()
        assert (tmp_path / "holdout.jsonl").write_text("mine") and (tmp_path / "holdout.jsonl").read_text() == "mine"
        assert is_sealed(golden / "holdout.jsonl") and not is_sealed(golden / "train.jsonl")
        rows = load_golden(golden, POLICY)
        assert set(rows["split"].to_pylist()) == {"train", "calibration"}
        said = subprocess.run(["echo", "ground.jsonl my-holdout.jsonl"], capture_output=True, text=True)
        assert said.stdout == "ground.jsonl my-holdout.jsonl\n", "another name that ends in a sealed one is none"
        assert "holdout 0" in show(load_policy(policy))
        assert [finding for finding in lint(policy) if finding.severity == "error"] == []
    assert not is_sealed(golden / "holdout.jsonl")
    assert "holdout" in load_golden(golden, POLICY)["split"].to_pylist()


def test_seals_nest_and_hold_for_every_thread(policy: Path) -> None:
    file, caught = policy / "golden" / "holdout.jsonl", []

    def read() -> None:
        try:
            file.read_text()
        except SealedError as error:
            caught.append(error)

    with sealed(policy):
        with sealed(policy):
            pass
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert len(caught) == 1
    assert file.read_text()


def test_a_seal_put_on_inside_another_outlives_it(policy: Path) -> None:
    outer, inner = sealed(policy), sealed(policy)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    with pytest.raises(SealedError):
        (policy / "golden" / "holdout.jsonl").read_text()
    inner.__exit__(None, None, None)


def test_a_file_that_mixes_splits_cannot_be_sealed(policy: Path) -> None:
    file = policy / "golden" / "pairs.jsonl"
    lines = [(policy / "golden" / f"{split}.jsonl").read_text().splitlines()[0] for split in ("train", "holdout")]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(PolicyError) as caught, sealed(policy):
        pass
    assert str(caught.value).startswith(f"{file}:2: a holdout pair in a file with pairs of other splits")
    assert (policy / "golden" / "holdout.jsonl").read_text(), "nothing stays sealed"


def test_a_forked_child_stays_behind_the_seal(policy: Path) -> None:
    # In a process of its own: this one has threads, and forking those is undefined.
    program = (
        "import os, sys, pathlib\n"
        "from preceptor.policy.sealed import sealed\n"
        "with sealed(pathlib.Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        try:\n"
        "            open(sys.argv[1] + '/golden/holdout.jsonl')\n"
        "        except Exception as error:\n"
        "            os._exit(7 if type(error).__name__ == 'SealedError' else 1)\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(policy)], capture_output=True, text=True)
    assert done.stdout == "7\n", done.stderr


# The corpus


@pytest.fixture
def corpus_golden(tmp_path: Path) -> Path:
    """A corpus's golden folder as the market stage writes it: a file a split."""
    golden = load_golden(SHIPPED / "golden", POLICY)
    for split in ("train", "calibration", "holdout"):
        rows = golden.filter([value == split for value in golden["split"].to_pylist()])
        write_table(rows, tmp_path / "v1" / "golden" / f"{split}.parquet", GOLDEN)
    return tmp_path / "v1" / "golden"


def test_our_parquet_readers_do_not_open_a_sealed_corpus(corpus_golden: Path) -> None:
    with sealed(corpus_golden.parent):
        for read in (
            lambda: read_table(corpus_golden, GOLDEN),
            lambda: read_table(corpus_golden / "holdout.parquet", GOLDEN),
            lambda: list(iter_batches(corpus_golden, GOLDEN)),
        ):
            with pytest.raises(SealedError, match=r"holdout\.parquet"):
                read()
        assert set(tuning_rows(corpus_golden, split="calibration")["split"].to_pylist()) == {"calibration"}
    assert read_table(corpus_golden, GOLDEN).equals(load_golden(SHIPPED / "golden", POLICY))


def test_tuning_rows_hold_no_holdout_even_where_a_file_mixes_the_splits(corpus_golden: Path, tmp_path: Path) -> None:
    whole = read_table(corpus_golden, GOLDEN)
    write_table(whole, tmp_path / "mixed" / "golden" / "part-0.parquet", GOLDEN)
    for folder in (corpus_golden, tmp_path / "mixed" / "golden"):
        for split in ("train", "calibration"):
            rows = tuning_rows(folder, split=split)
            assert set(rows["split"].to_pylist()) == {split}
            assert rows.num_rows == whole["split"].to_pylist().count(split)
        with pytest.raises(SealedError, match="split 'holdout' is not for tuning"):
            tuning_rows(folder, split="holdout")  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Peeking(FakeJudge):
    """A judge that looks its answers up in a file."""

    file: Path

    def answer(self, pair_id: str, dimension: str) -> Reply:
        return super().answer(pair_id, self.file.read_text() and dimension)


@pytest.mark.parametrize("place", ["policy", "corpus"])
def test_calibration_cannot_read_the_holdout(corpus: Record, policy: Path, tmp_path: Path, place: str) -> None:
    golden = {"policy": policy / "golden" / "holdout.jsonl", "corpus": corpus.path / "golden" / "holdout.parquet"}
    (part,) = parquet_files(corpus.path / "golden")
    rows = read_table(part, GOLDEN)
    held = rows.set_column(rows.column_names.index("split"), GOLDEN.field("split"), [["holdout"] * rows.num_rows])
    write_table(held, golden["corpus"], GOLDEN)
    judge = Peeking(dimensions=POLICY.rubric.names, judge_id="peeking", file=golden[place])
    out = tmp_path / "calibrate"
    with pytest.raises((SealedError, StageFailed), match="sealed from whatever tunes a judge") as caught:
        calibrate(judge_config(), policy=policy, corpus=corpus, judge=judge, out=out)
    assert "\n" not in str(caught.value)
    assert not (out / "record.json").exists()
    honest = calibrate(judge_config(), policy=policy, corpus=corpus, judge=GOOD_FAKE, out=tmp_path / "honest")
    assert honest.metrics["passed"]


# The seal and the opener


def test_the_gate_opens_what_was_sealed_and_writes_it_down(corpus_golden: Path, tmp_path: Path) -> None:
    log = tmp_path / "gate" / "openings.jsonl"
    for number in range(2):
        rows = open_holdout(corpus_golden, policy=SHIPPED, log=log, why=f"gate {number}")
        assert set(rows["split"].to_pylist()) == {"holdout"}
    first, second = map(json.loads, log.read_text().splitlines())
    assert first.keys() == {"when", "who", "why", "rows", "num_pairs", "seal"}
    assert (first["why"], second["why"], first["seal"]) == ("gate 0", "gate 1", "verified")
    assert first["rows"] == read_seal(SHIPPED).rows and first["num_pairs"] == read_seal(SHIPPED).num_pairs


def test_another_holdout_than_the_sealed_one_is_not_opened(corpus_golden: Path, tmp_path: Path) -> None:
    rows = read_table(corpus_golden / "holdout.parquet", GOLDEN)
    grades = rows["grade"].to_pylist()
    grades[0] = (grades[0] + 1) % 5
    column = rows.column_names.index("grade")
    changed = rows.set_column(column, GOLDEN.field("grade"), [np.array(grades, dtype=np.int8)])
    write_table(changed, corpus_golden / "holdout.parquet", GOLDEN)
    with pytest.raises(PolicyError, match=r"seal.json: the holdout is not the one that was sealed") as caught:
        open_holdout(corpus_golden, policy=SHIPPED, log=tmp_path / "log", why="gate")
    assert "golden census" in str(caught.value) and not (tmp_path / "log").exists()
    write_table(rows.slice(0, 800), corpus_golden / "holdout.parquet", GOLDEN)
    with pytest.raises(PolicyError, match=r"num_grades \d+ -> 800"):
        open_holdout(corpus_golden, policy=SHIPPED, log=tmp_path / "log", why="gate")


def test_a_policy_without_a_seal_opens_nothing(corpus_golden: Path, policy: Path, tmp_path: Path) -> None:
    seal = policy / "golden" / "seal.json"
    seal.write_text("{}")
    with pytest.raises(PolicyError, match=r"seal.json: not a seal"):
        open_holdout(corpus_golden, policy=policy, log=tmp_path / "log", why="gate")
    seal.unlink()
    with pytest.raises(PolicyError, match="the holdout has no seal to compare with"):
        open_holdout(corpus_golden, policy=policy, log=tmp_path / "log", why="gate")
    assert open_holdout(corpus_golden, policy=None, log=tmp_path / "log", why="gate").num_rows
    assert json.loads((tmp_path / "log").read_text())["seal"] == "none"


def test_an_opening_that_cannot_be_written_down_does_not_happen(corpus_golden: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageFailed, match="cannot be written down"):
        open_holdout(corpus_golden, policy=SHIPPED, log=tmp_path / "file" / "log", why="gate")


def test_the_seal_does_not_depend_on_the_order_of_rows(corpus_golden: Path) -> None:
    rows = read_table(corpus_golden, GOLDEN)
    assert seal_of(rows) == seal_of(rows.take(list(range(rows.num_rows))[::-1])) == read_seal(SHIPPED)


# Who may know the opener

TUNING_ROOMS = ("judge", "refine", "refinement", "workbench", "cli_refine", "cli_workbench")
TUNERS = [
    file for file in modules(PIPELINE) if name_of(file).split(".")[1:2] and name_of(file).split(".")[1] in TUNING_ROOMS
]
OPENS_HOLDOUT = ("preceptor.golden.opener", "preceptor.evaluation.holdout", "preceptor.evaluation.gate")
BELOW_PYTHON = {"json", "csv", "dataset", "feather", "fs", "orc", "parquet"}
OWN_POOL = "preceptor.judge.pool"
"""Reads back the pool of pairs it laid itself, block by block."""


@pytest.mark.parametrize("file", TUNERS, ids=name_of)
def test_what_tunes_a_judge_does_not_know_the_opener(file: Path) -> None:
    wrong = [f"{name}:{line}" for name, line in project_imports(file) if name.startswith(OPENS_HOLDOUT)]
    assert not wrong


@pytest.mark.parametrize("file", TUNERS, ids=name_of)
def test_what_tunes_a_judge_reads_files_where_the_seal_sees_it(file: Path) -> None:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    native = {name for name in names if name.startswith("pyarrow.") and name.split(".")[1] in BELOW_PYTHON}
    assert not native or name_of(file) == OWN_POOL, f"{native} open files without telling Python: use contracts"


def test_the_room_itself_does_not_hand_out_the_opener() -> None:
    import preceptor.golden

    assert not [name for name in preceptor.golden.__all__ if "open" in name or "holdout_rows" in name]
    handed = [name for name, _ in project_imports(PIPELINE / "golden" / "__init__.py") if "opener" in name]
    assert handed == []
