"""Own corpora: what is read and refused, what counts as personal data or a repeat, and which pairs are chosen.

All texts here are synthetic; phone numbers are from the ranges that regulators keep for fiction.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from preceptor.cli import main
from preceptor.contracts import REJECTS, read_table, write_table
from preceptor.errors import InputError, RecipeError
from preceptor.generate.corpora import config_of_content, open_corpus, open_data_set
from preceptor.generate.duplicates import EQUAL, NEAR, Seen
from preceptor.generate.screen import PERSONAL, ScreenWork, find_personal, mask, screen_row
from preceptor.generate.texts import TEXTS
from preceptor.plan import make_plan
from preceptor.recipe import CorporaConfig, CorpusFile
from preceptor.recipes import find_recipe
from preceptor.running import notes

REGIONS = ("US", "GB")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROWS: list[dict[str, Any]] = [
    {
        "body": "Nights on a medical ward.",
        "job": "Staff Nurse - Nights",
        "town": "Leeds, UK",
        "tags": ["triage", "care"],
    },
    {"body": "Line cook for a busy kitchen in York.", "job": "Line cook", "town": "York", "tags": ["grill"]},
    {"body": None, "job": "Welder", "town": "Derby", "tags": []},
]
COLUMNS = {"text": "body", "title": "job", "place": "town", "skills": "tags"}


def config_for(source: Path, **changes: Any) -> CorporaConfig:
    config = CorporaConfig(postings=CorpusFile(source=str(source), columns=COLUMNS), num_queries=10)
    return replace(config, **changes)


# Reading


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    return folder / "a.parquet"


def as_folder(folder: Path) -> Path:
    (folder / "parts").mkdir()
    for number, row in enumerate(ROWS):
        schema = pa.schema(
            {"body": pa.large_string(), "job": pa.string(), "town": pa.string(), "tags": pa.list_(pa.string())}
        )
        pq.write_table(pa.Table.from_pylist([row], schema=schema), folder / "parts" / f"{number}.parquet")
    return folder / "parts"


def as_lines(folder: Path) -> Path:
    (folder / "a.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)) + "\n")
    return folder / "a.jsonl"


def as_saved(folder: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("write", [as_parquet, as_folder, as_lines, as_saved])
def test_every_format_gives_the_same_texts(write: Callable[[Path], Path], tmp_path: Path) -> None:
    corpus = open_corpus(CorpusFile(source=str(write(tmp_path)), columns=COLUMNS))
    texts = list(corpus.texts())
    assert texts[0] == {
        "row": 0,
        "title": "Staff Nurse - Nights",
        "place": "Leeds, UK",
        "skills": ["triage", "care"],
        "text": "Staff Nurse - Nights, Leeds, UK\nNights on a medical ward.",
    }
    assert texts[1]["text"] == ROWS[1]["body"], "title and place are said once"
    assert texts[2]["text"] == ""
    assert list(corpus.texts()) == texts, "a corpus is read anew each time"


def test_a_split_of_a_saved_data_set_has_to_be_named(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(
        str(tmp_path / "d")
    )
    file = CorpusFile(source=str(tmp_path / "d"), columns=COLUMNS)
    with pytest.raises(InputError, match="splits: test, train"):
        open_corpus(file)
    assert len(list(open_corpus(replace(file, split="test")).texts())) == 1


def test_a_data_set_by_name_is_streamed(tmp_path: Path) -> None:
    """A folder in place of a name on the hub, which a hermetic test cannot reach: datasets opens both alike."""
    as_parquet(tmp_path)
    file = CorpusFile(source=str(tmp_path), columns=COLUMNS)
    assert list(open_data_set(file).texts()) == list(open_corpus(file).texts())
    with pytest.raises(InputError, match=r"column 'city'.*field place.*found: body, job"):
        open_data_set(replace(file, columns={**COLUMNS, "place": "city"}))
    with pytest.raises(InputError, match=r"data set owner/none: not readable"):
        open_corpus(replace(file, source="owner/none"))


@pytest.mark.parametrize(
    ("write", "columns", "said"),
    [
        (as_parquet, {**COLUMNS, "title": "headline"}, "column 'headline'.*field title.*found: body, job, town, tags"),
        (as_lines, {**COLUMNS, "title": "headline"}, r"a.jsonl:1: column 'headline'.*found: body, job, town, tags"),
        (as_saved, {**COLUMNS, "title": "headline"}, "column 'headline'.*found: body"),
        (lambda folder: folder / "none.parquet", COLUMNS, "no such file"),
        (lambda folder: folder, COLUMNS, "empty directory"),
    ],
    ids=["parquet", "jsonl", "saved", "missing", "empty"],
)
def test_a_wrong_mapping_is_refused_before_anything_is_read(
    write: Callable[[Path], Path], columns: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        open_corpus(CorpusFile(source=str(write(tmp_path)), columns=columns))
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: column 'body'.*got int64"):
        open_corpus(CorpusFile(source=str(tmp_path / "a.parquet"), columns={"text": "body"}))
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"body": 5}\n')
    with pytest.raises(InputError, match=r"a.jsonl: row 2: column 'body'.*got int 5"):
        list(open_corpus(CorpusFile(source=str(tmp_path / "a.jsonl"), columns={"text": "body"})).texts())
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"body\n')
    with pytest.raises(InputError, match=r"a.jsonl:2: not JSON"):
        list(open_corpus(CorpusFile(source=str(tmp_path / "a.jsonl"), columns={"text": "body"})).texts())


def test_moved_data_is_the_same_work_and_changed_data_is_not(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        as_parquet(folder)
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), folders[2] / "a.parquet")
    first, moved, changed = (config_of_content(config_for(folder / "a.parquet")) for folder in folders)
    assert first == moved != changed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_queries": 0}, "num_queries"),
        ({"profile_share": 1.5}, "1.5"),
        ({"strata": {4: 0.5}}, "add up to 1, got 0.5"),
        ({"strata": {5: 1.0}}, "grades 0 to 4"),
        ({"styles": {"haiku": 1.0}}, "haiku"),
        ({"hard_negatives": 1.0}, "hard_negatives"),
        ({"near_duplicate": 0.0}, "near_duplicate"),
        ({"postings": CorpusFile(source="a.parquet", columns={"text": "body"})}, "style title needs title of postings"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        config_for(Path("a.parquet"), **changes)
    assert "\n" not in str(caught.value)


def test_a_mapping_names_known_fields_and_the_text() -> None:
    with pytest.raises(RecipeError, match="no field salary"):
        CorpusFile(source="a.parquet", columns={"text": "body", "salary": "pay"})
    with pytest.raises(RecipeError, match="column of the field text"):
        CorpusFile(source="a.parquet", columns={"title": "job"})


# Personal data


@pytest.mark.parametrize(
    "text",
    [
        "jo.o'neil+jobs@mail.example.co.uk",
        "jo (at) example (dot) org",
        "jo[at]example.org",
        "020 7946 0018",
        "+44 20 7946 0018",
        "(212) 555-0123",
        "415.555.0132",
        "+1-415-555-0132",
        "+49 30 23125 000",
    ],
)
def test_personal_data_is_found_wherever_it_stands(text: str) -> None:
    for around in ("{}", "Write to {}, or come by.", "Contact:{};\nno agencies"):
        whole = around.format(text)
        (found,) = find_personal(whole, REGIONS)
        assert whole[found.start : found.stop] == text
        assert mask(whole, [found]) == around.format(f"[{found.kind}]")


@pytest.mark.parametrize(
    "text",
    [
        "£31,000-35,000 a year",
        "salary 31000 - 35000",
        "$45,000 to $55,000 per annum",
        "25 000 - 30 000 EUR",
        "2019-2023, then 2024/2025",
        "founded in 1998, 1200 staff",
        "Ref: 7345123456",
        "reference number 2125550123",
        "Job ID 2125550123",
        "REQ-2025-001234",
        "SOC 29-1141.00",
        "ISBN 978-3-16-148410-0",
        "12/05/2021, 09:00 - 17:30",
        "ZIP 90210-1234",
        "20-25 hours, 3:1, C++20, ISO 9001:2015",
        "follow @example or meet @ 10",
        "1,000,000 users",
    ],
)
def test_salaries_years_and_references_are_no_personal_data(text: str) -> None:
    assert find_personal(text, REGIONS) == []


def test_every_field_is_masked_and_counted_once() -> None:
    row = {"row": 0, "title": "Nurse 020 7946 0018", "place": "", "skills": ["a@example.org"], "text": "Call Ann."}
    clean, kinds = screen_row(row, REGIONS)
    assert clean["title"] == "Nurse [phone]" and clean["skills"] == ["[email]"]
    assert kinds, "a text with personal data in another field alone counts as well"
    clean, kinds = screen_row({**row, "text": "Ask a@example.org or b@example.org, 020 7946 0018."}, REGIONS)
    assert clean["text"] == "Ask [email] or [email], [phone]." and kinds == {"email": 2, "phone": 1}


def test_texts_with_personal_data_are_dropped_where_that_is_asked(tmp_path: Path) -> None:
    texts = ["Call 020 7946 0018.", "No data.", "Write to a@example.org."]
    rows = [{"row": n, "title": "", "place": "", "skills": [], "text": text} for n, text in enumerate(texts)]
    write_table(pa.Table.from_pylist(rows, schema=TEXTS), tmp_path / "read" / "postings" / "a.parquet", TEXTS)
    work = ScreenWork(
        parts=(("postings", "a.parquet"),),
        source=tmp_path / "read",
        target=tmp_path / "screened",
        rejects=tmp_path / "rejects",
        action="drop",
        regions=REGIONS,
    )
    tally = work.open()(0)
    assert tally["postings kept"] == 1 and tally[f"postings dropped {PERSONAL}"] == 2
    assert read_table(tmp_path / "screened" / "postings", TEXTS)["text"].to_pylist() == ["No data."]
    rejects = read_table(tmp_path / "rejects", REJECTS).to_pylist()
    assert [(row["id"], row["raw"]) for row in rejects] == [
        ("postings row 1", "Call [phone]."),
        ("postings row 3", "Write to [email]."),
    ], "a reject must not keep what it was rejected for"


# Repeats


def test_the_first_of_equal_and_of_near_duplicates_stays() -> None:
    rng = random.Random(0)
    words = [f"word{number}" for number in range(400)]
    texts = [" ".join(rng.choices(words, k=120)) for _ in range(40)]
    seen = Seen(threshold=0.8, seed=1)
    assert [seen.repeat_of(number, text) for number, text in enumerate(texts)] == [None] * len(texts)
    assert seen.repeat_of(90, texts[3]) == (EQUAL, 3)
    assert seen.repeat_of(91, texts[5].replace(texts[5].split()[9], "other", 1).upper()) == (NEAR, 5)
    halves = texts[7].split()[:60] + texts[8].split()[60:]
    assert seen.repeat_of(92, " ".join(halves)) is None


def test_texts_too_short_for_a_shingle_are_told_apart() -> None:
    seen = Seen(threshold=0.8, seed=1)
    assert seen.repeat_of(0, "Line cook") is None
    assert seen.repeat_of(1, "Staff nurse") is None
    assert seen.repeat_of(2, "line cook!") == (NEAR, 0)


# Recipe and command


def test_the_example_recipe_plans_from_corpora_to_a_relevance_teacher() -> None:
    recipe = find_recipe(f"{EXAMPLES / 'own_corpora.py'}:recipe")
    steps = {step.name: step.rows for step in make_plan(recipe)}
    assert list(steps) == ["corpus", "calibrate", "label", "relevance_teacher", "relevance_scores"]
    assert steps["corpus"].startswith("2,000 queries of 12 candidates from data/postings.parquet and")
    assert "templates" in " ".join(notes(recipe))
    assert "Qwen" in " ".join(notes(find_recipe(f"{EXAMPLES / 'own_corpora.py'}:written_by_a_model")))


def test_the_command_takes_recipes_with_corpora_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = f"{EXAMPLES / 'own_corpora.py'}:recipe"
    assert main(["generate", own, "--root", str(tmp_path), "--dry-run"]) == 0
    assert "corpus" in capsys.readouterr().out
    assert main(["generate", "tiny", "--root", str(tmp_path)]) == 2
    assert "examples/own_corpora.py" in capsys.readouterr().err
    assert main(["generate", own, "--root", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert "names its corpora itself" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
