"""The stage of own corpora on a local Ray: what it writes, that it resumes, and that a seed decides everything.

All texts are synthetic; phone numbers and addresses are from ranges kept for fiction.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor.contracts import GOLDEN, PAIRS, REJECTS, make_pair, read_table, rows_to_table, split_of, write_table
from preceptor.errors import InputError
from preceptor.generate import generate, queries
from preceptor.generate import stage as generate_stage
from preceptor.generate.drafts import draw
from preceptor.generate.mine import CANDIDATES
from preceptor.generate.parts import in_parts
from preceptor.generate.screen import ScreenWork
from preceptor.generate.texts import TEXTS, Mapped, write_ipc
from preceptor.generate.writer import write_with_model
from preceptor.recipe import POLICY_DIR, CorporaConfig, CorpusFile, EncoderConfig, EngineConfig, WriterConfig
from preceptor.record import Record, read_record

pytestmark = pytest.mark.integration

TITLES = ("Staff nurse", "Welder", "Line cook", "Data engineer", "Truck driver", "Maths teacher", "Electrician")
PLACES = ("Leeds", "York", "Cardiff", "Derby")
SKILLS = ("triage", "welding", "grilling", "sql", "driving", "algebra", "wiring")
WORDS = (
    "team",
    "shift",
    "client",
    "quality",
    "safety",
    "training",
    "report",
    "plan",
    "deliver",
    "lead",
    "learn",
    "build",
)
COLUMNS = {"text": "body", "title": "job", "place": "town", "skills": "tags"}
SECRET = "ann.smith@example.org"


def rows(num: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for _ in range(num):
        kind = rng.randrange(len(TITLES))
        body = f"{TITLES[kind]}: {' '.join(rng.choices(WORDS, k=20))}, {SKILLS[kind]}."
        tags = [SKILLS[kind], rng.choice(SKILLS)]
        found.append({"body": body, "job": TITLES[kind], "town": rng.choice(PLACES), "tags": tags})
    return found


def postings() -> list[dict[str, Any]]:
    found = rows(180, seed=1)
    found[10]["body"] += f" Write to {SECRET} or call 020 7946 0018."
    found[11]["body"] = None
    return [*found, dict(found[3]), {**found[4], "body": found[4]["body"].replace(",", " and more,")}]


def golden() -> pa.Table:
    pair = make_pair("staff nurse", "", "Staff nurse in Leeds.", slice="title")
    grade = {"dimension": "overall", "grade": 4, "grader_id": "test", "reason": None, "policy_version": "v"}
    return rows_to_table([{**pair, **grade}], GOLDEN)


def config_in(folder: Path) -> CorporaConfig:
    pq.write_table(pa.Table.from_pylist(postings()), folder / "postings.parquet")
    (folder / "profiles.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows(40, seed=2)))
    write_table(golden(), folder / "golden.parquet", GOLDEN)
    return CorporaConfig(
        postings=CorpusFile(source=str(folder / "postings.parquet"), columns=COLUMNS),
        profiles=CorpusFile(source=str(folder / "profiles.jsonl"), columns=COLUMNS),
        golden=folder / "golden.parquet",
        num_queries=30,
        encoder=EncoderConfig(num_actors=1),
        num_workers=1,
    )


class Killed(BaseException):
    """What no code of the stage catches."""


def killed(*_: object) -> None:
    raise Killed


@pytest.mark.usefixtures("local_ray")
def test_corpora_become_pairs_and_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_stage, "PART_ROWS", 64)
    monkeypatch.setattr(queries, "QUERIES_PER_PART", 16)
    config, out, other = config_in(tmp_path), tmp_path / "corpus" / "v1", tmp_path / "corpus" / "v2"
    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(generate_stage, "_mine", killed)
        generate(config, policy=POLICY_DIR, out=out)
    assert read_record(out) is None
    assert not (out / "work" / "read").exists(), "texts that are not screened are not kept"
    shutil.copytree(out, other)

    # The first goes on at the step's boundary, the second in the middle of it: part 0 was done, part 1 was not.
    record = generate(config, policy=POLICY_DIR, out=out)
    check_output(out, config)
    check_counts(record)
    for name in ("pairs", "candidates"):
        (other / name).mkdir()
        shutil.copy2(out / name / "part-000000.parquet", other / name)
    (other / "work" / "steps" / "mine").mkdir()
    (other / "work" / "steps" / "mine" / "000000.json").write_text('{"rows": 16, "pairs title": 1000}')
    done = [*(other / "rejects").iterdir(), other / "pairs" / "part-000000.parquet"]
    times = [file.stat().st_mtime_ns for file in done]
    again = generate(config, policy=POLICY_DIR, out=other)
    assert [file.stat().st_mtime_ns for file in done] == times, "what was done is not done again"
    assert again.metrics["num_pairs_by_style"]["title"] >= 1000, "the counts of part 0 come from where it was done"
    for name in ("pairs", "candidates"):
        assert read_bytes(other / name) == read_bytes(out / name)
        assert len(read_bytes(out / name)) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_one_seed_gives_one_corpus_from_the_start_and_another_gives_another(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    found = [
        generate(replace(config, seed=seed, num_workers=workers), policy=POLICY_DIR, out=tmp_path / name / "v1").path
        for name, seed, workers in (("a", 7, 1), ("b", 7, 2), ("c", 8, 1))
    ]
    same, again, other = (read_bytes(path / "pairs") for path in found)
    assert same == again != other


def check_counts(record: Record) -> None:
    assert record.num_rows_in == record.num_rows_kept + sum(record.rejected.values())
    assert record.rejected["postings: equal text"] == 1
    assert record.rejected["postings: near duplicate"] >= 1
    assert record.rejected["postings: empty text"] == 1
    assert record.metrics["personal_data"]["postings"] == {"emails found": 1, "phones found": 1, "texts masked": 1}


@pytest.mark.usefixtures("local_ray")
def test_what_a_part_finds_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    work = ScreenWork(
        parts=(("postings", "a.parquet"),),
        source=tmp_path / "read",
        target=tmp_path / "screened",
        rejects=tmp_path / "rejects",
        action="mask",
        regions=("US",),
    )
    with pytest.raises(InputError, match=r"a.parquet.*does not exist") as caught:
        in_parts(work, 1, num_rows=1, out=tmp_path, step="screen", num_actors=1)
    assert "\n" not in str(caught.value)


def check_output(out: Path, config: CorporaConfig) -> None:
    pairs = read_table(out / "pairs", PAIRS).to_pylist()
    assert len(pairs) == config.num_queries * config.candidates_per_query
    assert len({pair["pair_id"] for pair in pairs}) == len(pairs)
    assert all(pair["split"] == split_of(pair["query_id"]) for pair in pairs)
    assert all(pair["profile"] for pair in pairs)
    groups = {pair["query_id"]: pair["profile_id"] for pair in pairs}
    assert all(groups[pair["query_id"]] == pair["profile_id"] for pair in pairs), "one profile asks one query"
    by_style = Counter(style for style, _ in {(pair["slice"], pair["query_id"]) for pair in pairs})
    assert by_style == dict.fromkeys(("title", "title_place", "skills", "sentence", "aspirational"), 6)
    reasons = read_table(out / "candidates", CANDIDATES).to_pylist()
    assert [reason["pair_id"] for reason in reasons] == [pair["pair_id"] for pair in pairs]
    assert {reason["predicted_grade"] for reason in reasons} == set(range(5)), "every grade is represented"
    assert sum(reason["kind"].startswith("hard") for reason in reasons) == pytest.approx(0.25 * len(pairs), rel=0.15)
    assert read_table(out / "golden", GOLDEN).equals(golden())
    assert not (out / "work").exists()
    everything = [*pairs, *read_table(out / "rejects", REJECTS).to_pylist()]
    assert not [row for row in everything if SECRET in str(row) or "7946" in str(row)]
    table = (out / "table.md").read_text()
    assert "1 emails found, 1 phones found" in table and "1 equal text" in table and "1 empty text" in table


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    out = tmp_path / "corpus" / "v1"
    wrong = replace(config.postings, columns={**COLUMNS, "title": "headline"})
    with pytest.raises(InputError, match=r"column 'headline'"):
        generate(replace(config, postings=wrong), policy=POLICY_DIR, out=out)
    pq.write_table(golden().drop(["grade"]), tmp_path / "golden.parquet")
    with pytest.raises(InputError, match=r"golden.parquet: column 'grade'"):
        generate(config, policy=POLICY_DIR, out=out)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.usefixtures("local_ray")
def test_a_language_model_writes_queries(tmp_path: Path, smollm_dir: Path) -> None:
    texts = [
        {"row": n, "title": row["job"], "place": row["town"], "skills": row["tags"], "text": row["body"]}
        for n, row in enumerate(rows(6, seed=3))
    ]
    file = write_ipc([pa.RecordBatch.from_pylist(texts, schema=TEXTS)], tmp_path / "postings.arrow", TEXTS)
    config = replace(config_in(tmp_path), num_queries=10, profiles=None)
    draw(config, {"postings": Mapped(file)}, tmp_path / "drafts.arrow")
    drafts = pa.Table.from_batches([Mapped(tmp_path / "drafts.arrow").batch(0)])
    writer = WriterConfig(model=str(smollm_dir), engine=EngineConfig(batch_size=8), max_new_tokens=16)
    written = [row for batch in write_with_model(drafts, writer, seed=5) for row in batch]
    assert sorted(row["draft"] for row in written) == drafts["draft"].to_pylist()
    assert all("\n" not in row["query"] for row in written)
    assert any(row["query"] for row in written)
    assert not any(row["fault"] for row in written)
