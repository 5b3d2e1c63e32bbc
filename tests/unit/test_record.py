"""Records: a finished stage is skipped, an unfinished one resumed, a different one refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from preceptor.errors import DriftError, InputError, StageFailed
from preceptor.record import Record, begin, fingerprint_of, read_record, to_jsonable, write_json


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Config:
    num_rows: int = 10
    path: Path = Path("data")
    names: tuple[str, ...] = ("a", "b")
    optimizer: Optimizer = Optimizer()


def finish(out: Path, config: Config | None = None, **begin_options: object) -> Record:
    run = begin("label", config or Config(), out=out, **begin_options)  # type: ignore[arg-type]
    assert run.record is None
    (out / "part.parquet").write_text("rows")
    return run.finish(num_rows_in=10, num_rows_kept=9, rejected={"empty": 1}, metrics={"kappa": 0.5})


def test_the_record_read_back_is_the_record_written(tmp_path: Path) -> None:
    record = finish(tmp_path / "v1", policy_version="1.0.0+abc")
    assert read_record(tmp_path / "v1") == record
    assert (record.stage, record.version, record.policy_version) == ("label", "v1", "1.0.0+abc")
    assert (record.num_rows_in, record.num_rows_kept, record.rejected) == (10, 9, {"empty": 1})
    assert record.config["optimizer"]["learning_rate"] == 0.1
    assert record.cost["wall_s"] >= 0
    assert record.packages["pyarrow"]


def test_a_finished_stage_is_skipped_and_left_alone(tmp_path: Path) -> None:
    record = finish(tmp_path / "v1")
    again = begin("label", Config(), out=tmp_path / "v1")
    assert again.record == record
    assert (tmp_path / "v1" / "part.parquet").read_text() == "rows"


def test_an_unfinished_stage_has_no_record_and_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "v1"
    assert not begin("label", Config(), out=out).resumed
    (out / "part.parquet").write_text("rows")
    assert read_record(out) is None
    again = begin("label", Config(), out=out)
    assert again.resumed
    assert again.record is None
    assert (out / "part.parquet").read_text() == "rows"


def test_an_unfinished_stage_of_other_work_starts_clean(tmp_path: Path) -> None:
    out = tmp_path / "v1"
    begin("label", Config(), out=out)
    (out / "part.parquet").write_text("rows of another config")
    again = begin("label", Config(num_rows=20), out=out)
    assert not again.resumed
    assert not (out / "part.parquet").exists()


def test_finishing_clears_the_pending_mark(tmp_path: Path) -> None:
    finish(tmp_path / "v1")
    assert sorted(file.name for file in (tmp_path / "v1").iterdir()) == ["part.parquet", "record.json"]


def test_drift_names_the_fields_that_differ_and_the_way_out(tmp_path: Path) -> None:
    finish(tmp_path / "v1")
    other = Config(num_rows=20, optimizer=Optimizer(learning_rate=0.2))
    with pytest.raises(DriftError) as caught:
        begin("label", other, out=tmp_path / "v1")
    message = str(caught.value).removeprefix(str(tmp_path))
    assert "num_rows: 10 -> 20" in message
    assert "optimizer.learning_rate: 0.1 -> 0.2" in message
    assert "names" not in message
    assert "--version" in message
    assert "\n" not in message
    assert (tmp_path / "v1" / "part.parquet").exists()


def test_a_changed_input_or_policy_is_drift(tmp_path: Path) -> None:
    before = finish(tmp_path / "corpus" / "v1")
    after = finish(tmp_path / "corpus" / "v2", Config(num_rows=20))
    finish(tmp_path / "label" / "v1", inputs={"corpus": before}, policy_version="1.0.0+aa")
    out = tmp_path / "label" / "v1"
    with pytest.raises(DriftError, match=rf"input corpus: '{before.fingerprint}' -> '{after.fingerprint}'"):
        begin("label", Config(), out=out, inputs={"corpus": after}, policy_version="1.0.0+aa")
    with pytest.raises(DriftError, match=r"policy_version: '1\.0\.0\+aa' -> '1\.0\.1\+bb'"):
        begin("label", Config(), out=out, inputs={"corpus": before}, policy_version="1.0.1+bb")


def test_dev_is_always_rebuilt(tmp_path: Path) -> None:
    out = tmp_path / "dev"
    finish(out)
    again = begin("label", Config(), out=out)
    assert again.record is None
    assert not again.resumed
    assert not (out / "part.parquet").exists()


@pytest.mark.parametrize("version", ["v1", "dev"])
def test_files_that_no_stage_wrote_are_never_deleted(version: str, tmp_path: Path) -> None:
    (tmp_path / version).mkdir()
    (tmp_path / version / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not made by Preceptor") as caught:
        begin("label", Config(), out=tmp_path / version)
    assert "--root" in str(caught.value)
    assert [(file.name, file.read_text()) for file in (tmp_path / version).iterdir()] == [
        ("thesis.tex", "years of work")
    ]


@pytest.mark.parametrize("version", ["v1", "dev"])
def test_an_empty_directory_is_free(version: str, tmp_path: Path) -> None:
    (tmp_path / version).mkdir()
    assert not begin("label", Config(), out=tmp_path / version).resumed


def test_clearing_follows_no_link_out_of_the_directory(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.parquet").write_text("rows")
    out = tmp_path / "dev"
    begin("label", Config(), out=out)
    (out / "linked").symlink_to(elsewhere)
    (out / "parts").mkdir()
    begin("label", Config(), out=out)
    assert (elsewhere / "precious.parquet").exists()
    assert sorted(file.name for file in out.iterdir()) == ["pending.json"]


def test_a_broken_record_is_refused_by_name(tmp_path: Path) -> None:
    finish(tmp_path / "v1")
    file = tmp_path / "v1" / "record.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(InputError, match=r"record\.json: not a record"):
        begin("label", Config(), out=tmp_path / "v1")


def test_a_record_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "v1")
    file = tmp_path / "v1" / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "colour": "red"}))
    with pytest.raises(InputError, match="colour"):
        read_record(tmp_path / "v1")


def test_the_fingerprint_depends_on_every_part() -> None:
    config = to_jsonable(Config())
    other = to_jsonable(replace(Config(), names=("a",)))
    variants = [
        ("label", config, {}, None),
        ("score", config, {}, None),
        ("label", other, {}, None),
        ("label", config, {"corpus": "1"}, None),
        ("label", config, {}, "1.0.0+aa"),
    ]
    assert len({fingerprint_of(*variant) for variant in variants}) == len(variants)


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    program = "from preceptor.record import fingerprint_of; print(fingerprint_of('label', {'b': 1, 'a': 2}, {}, None))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == fingerprint_of("label", {"a": 2, "b": 1}, {}, None)


def test_configs_of_different_kinds_with_equal_fields_differ() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other:
        learning_rate: float = 0.1

    assert to_jsonable(Other()) != to_jsonable(Optimizer())


def test_json_that_cannot_be_written_keeps_the_older_file(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": {1, 2}})
    assert json.loads(file.read_text()) == {"a": 1}


# A process may write files of 4 KiB at most: what a full disk does, without filling one.
_FINISH_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from preceptor.errors import StageFailed
from preceptor.record import begin

run = begin("label", {"rows": 1}, out=Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    run.finish(metrics={str(key): key for key in range(2000)})
except StageFailed as error:
    print(error)
"""


def test_a_disk_that_fills_at_the_record_leaves_the_stage_unfinished(tmp_path: Path) -> None:
    out = tmp_path / "v1"
    command = [sys.executable, "-c", _FINISH_UNDER_A_LIMIT, str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "record.json: could not be written" in finished.stdout
    assert [file.name for file in out.iterdir()] == ["pending.json"]
    assert read_record(out) is None
    assert begin("label", {"rows": 1}, out=out).resumed


def test_a_root_that_is_a_file_is_a_stage_failure(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StageFailed, match="could not be written"):
        begin("label", Config(), out=tmp_path / "runs" / "label" / "v1")
