"""The sources: real-data layouts brought to the contracts, on small files that each test writes itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor.contracts import GOLDEN, IMPRESSIONS, PAIRS, REJECTS, read_table
from preceptor.errors import DriftError, InputError, RecipeError
from preceptor.ranker.text import split_features
from preceptor.recipe import POLICY_DIR
from preceptor.recipe.sources import SHOWN
from preceptor.sources.jobmatch import CALIBRATION_DEPTH, GRADER_ID, WEAK_GRADER_ID, jobmatch
from preceptor.sources.jobmatch_eval import read_queries
from preceptor.sources.occupations import (
    cut_words,
    fold,
    occupation_profile,
    posting_document,
    read_occupations,
    read_postings,
    split_occupations,
)
from preceptor.sources.signals import VECTORS_FILE, Asked, embed_collection, measure
from preceptor.sources.tables import CANDIDATES, DOCUMENTS, JUDGEMENTS, QUERIES
from tests.unit.source_data import (
    NUM_POSTINGS,
    SHARED_TITLE,
    config_for,
    crosswalk_rows,
    occupation_rows,
    word_encoder,
    write_data,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobmatch")
    config = config_for(write_data(folder / "data"))
    return jobmatch(config, policy=POLICY_DIR, out=folder / "out" / "v1", encode=word_encoder).path


def rewrite(file: Path, change: Any) -> None:
    pq.write_table(change(pq.read_table(file)), file)


# reading the real-data layouts


@pytest.mark.parametrize(
    ("file", "column", "change", "said"),
    [
        ("esco_occupations", "title", lambda table: table.drop_columns(["title"]), "Add or rename it"),
        (
            "onet_occupations",
            "reported_titles",
            lambda table: table.set_column(4, "reported_titles", table["title"]),
            "must be list of text, got string",
        ),
        (
            "onet_occupations",
            "description",
            lambda table: table.set_column(2, "description", pa.array([None] + ["text"] * 19)),
            "row 1 is (1 rows in all)",
        ),
        (
            "crosswalk",
            "grade",
            lambda table: table.set_column(3, "grade", table["grade"].cast(pa.string())),
            "must be integer, got string",
        ),
    ],
)
def test_a_column_that_is_missing_mistyped_or_null_is_named(
    tmp_path: Path, file: str, column: str, change: Any, said: str
) -> None:
    data = write_data(tmp_path)
    rewrite(data / f"{file}.parquet", change)
    with pytest.raises(InputError) as caught:
        read_occupations(data, read_postings(data))
    message = str(caught.value)
    assert f"{file}.parquet" in message and f"'{column}'" in message and said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "column", "said"),
    [
        ({"soc": "99-9999.00"}, "soc", "99-9999.00 is not in onet_occupations.parquet"),
        ({"esco_uri": "esco/none"}, "esco_uri", "esco/none is not in esco_occupations.parquet"),
        ({"grade": 7}, "grade", "got 7"),
        ({"grade": 0}, "grade", "got 0"),
        ({"split": "test"}, "split", "got 'test'"),
        ({"split": "dev"}, "split", "stands in train and in dev"),
    ],
)
def test_a_crosswalk_row_that_cannot_hold_is_named(
    tmp_path: Path, change: dict[str, Any], column: str, said: str
) -> None:
    rows = crosswalk_rows()
    rows[2] = {**rows[2], **change}
    data = write_data(tmp_path, crosswalk=rows)
    with pytest.raises(InputError, match=f"column '{column}': row 3: ") as caught:
        read_occupations(data, read_postings(data))
    assert said in str(caught.value)


def test_a_job_zone_out_of_range_is_refused(tmp_path: Path) -> None:
    rows = occupation_rows()
    rows[5]["job_zone"] = 6
    data = write_data(tmp_path, onet_occupations=rows)
    with pytest.raises(InputError, match=r"column 'job_zone'.*got 6"):
        read_occupations(data, read_postings(data))


def test_a_truncated_or_missing_file_is_named(tmp_path: Path) -> None:
    data = write_data(tmp_path / "cut")
    file = data / "esco_occupations.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"esco_occupations.parquet: not readable as Parquet"):
        read_postings(data)
    with pytest.raises(InputError, match=r"esco_occupations.parquet: no such file"):
        read_postings(tmp_path / "nowhere")


def test_nothing_half_written_is_trusted_after_bad_input(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "crosswalk.parquet").unlink()
    out = tmp_path / "out" / "v1"
    with pytest.raises(InputError):
        jobmatch(config_for(data), policy=POLICY_DIR, out=out, encode=word_encoder)
    assert not (out / "record.json").exists()
    write_data(data)
    record = jobmatch(config_for(data), policy=POLICY_DIR, out=out, encode=word_encoder)
    assert read_table(out / "pairs", PAIRS).num_rows == sum(record.metrics["num_pairs"].values())


def test_moved_data_is_the_same_work_and_changed_data_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out" / "v1"
    record = jobmatch(config_for(write_data(tmp_path / "here")), policy=POLICY_DIR, out=out, encode=word_encoder)
    assert str(tmp_path) not in json.dumps(record.config)
    (tmp_path / "here").rename(tmp_path / "there")
    again = jobmatch(config_for(tmp_path / "there"), policy=POLICY_DIR, out=out, encode=word_encoder)
    assert again.fingerprint == record.fingerprint
    rewrite(tmp_path / "there" / "esco_occupations.parquet", lambda table: table.slice(1))
    with pytest.raises(DriftError, match=r"data\.esco_occupations\.parquet: '\w+' -> '\w+'"):
        jobmatch(config_for(tmp_path / "there"), policy=POLICY_DIR, out=out, encode=word_encoder)


# texts


def test_texts_are_cut_by_words_and_filled_where_short() -> None:
    assert cut_words("one two three", 3) == "one two three"
    assert cut_words("one two three", 2) == "one two …"
    assert posting_document("baker", "Bakes.", ["cook", "chef", "boy", "girl"]) == (
        "baker — Bakes. Also called: cook, chef, boy."
    )
    long = posting_document("baker", "word " * 200, ["cook"])
    assert len(long.split()) < 60 and "cook" not in long
    assert occupation_profile("Bakes bread.", 2) == "Bakes bread. Preparation: some (job zone 2 of 5)."
    assert occupation_profile("Bakes bread.", None) == "Bakes bread."


def test_no_description_leaks_into_a_reported_title_query(corpus: Path) -> None:
    for row in read_table(corpus / "pairs", PAIRS).to_pylist():
        assert (row["profile"] != "") == (row["slice"] == "title_description")
    for row in read_table(corpus / "queries", QUERIES).to_pylist():
        assert ("Work as a" in row["text"]) == (row["slice"] == "title_description")


# splits


def test_splits_go_by_whole_minor_groups() -> None:
    codes = {f"{group}-1{number:03d}.00": "train" for group in range(11, 61) for number in range(4)}
    splits = split_occupations({**codes, "99-1000.00": "dev"})
    assert splits["99-1000.00"] == "holdout"
    by_group = defaultdict(set)
    for code in codes:
        by_group[code[:4]].add(splits[code])
    assert all(len(found) == 1 for found in by_group.values())
    num_calibration = sum(splits[code] == "calibration" for code in codes)
    assert 0.1 * len(codes) <= num_calibration < 0.1 * len(codes) + 4


def test_an_occupation_and_a_query_stand_in_one_split_only(corpus: Path) -> None:
    queries = read_table(corpus / "queries", QUERIES).to_pylist()
    splits, by_query = defaultdict(set), defaultdict(set)
    for row in queries:
        splits[row["occupation"]].add(row["split"])
        by_query[row["query_id"]].add((row["occupation"], row["split"]))
    assert {split for found in splits.values() for split in found} == {"train", "calibration", "holdout"}
    assert all(len(found) == 1 for found in splits.values())
    assert all(len(found) == 1 for found in by_query.values())
    holdout_codes = {row["soc"] for row in crosswalk_rows() if row["split"] == "dev"}
    assert {code for code, found in splits.items() if found == {"holdout"}} == holdout_codes
    pair_splits = {(row["query_id"], row["split"]) for row in read_table(corpus / "pairs", PAIRS).to_pylist()}
    assert pair_splits == {(row["query_id"], row["split"]) for row in queries}


def test_titles_of_held_out_occupations_never_train(corpus: Path) -> None:
    queries = read_table(corpus / "queries", QUERIES).to_pylist()
    texts = {fold(row["text"]) for row in queries if row["split"] == "train"}
    assert fold(SHARED_TITLE) not in texts
    rejects = read_table(corpus / "rejects", REJECTS).to_pylist()
    reasons = {row["id"]: row["reason"] for row in rejects}
    assert reasons["11-1000.00 reported_title"] == "titles of other occupations"
    assert reasons["13-1000.00 reported_title"] == "no title"


# candidates, grades


def test_holdout_candidates_are_the_retrievers_and_missed_postings_stay_judged(corpus: Path) -> None:
    num_missed = 0
    for query in read_queries(corpus):
        if query.split == "train":
            continue
        assert len(query.pair_ids) == (25 if query.split == "holdout" else CALIBRATION_DEPTH)
        assert (np.diff(query.similarities) <= 0).all()
        assert sorted(query.grades.values()) == [1, 1, 2, 3]
        num_missed += len(set(query.grades) - set(query.document_keys))
    assert num_missed > 0
    ranks = [row["rank"] for row in read_table(corpus / "candidates", CANDIDATES).to_pylist()]
    assert min(ranks) == 1 and max(ranks) <= NUM_POSTINGS


def test_train_candidates_are_drawn_by_rank_and_hold_a_relevant_one(corpus: Path) -> None:
    train = [query for query in read_queries(corpus) if query.split == "train"]
    assert train
    for query in train:
        assert len(set(query.document_keys)) == len(query.document_keys) == 8
        assert any(query.grades.get(key) for key in query.document_keys)
    pairs = {row["pair_id"] for row in read_table(corpus / "pairs", PAIRS).to_pylist() if row["split"] == "train"}
    ranks = [
        row["rank"] for row in read_table(corpus / "candidates", CANDIDATES).to_pylist() if row["pair_id"] in pairs
    ]
    share = {rank: ranks.count(rank) / len(train) for rank in range(1, 26)}
    assert share[1] > 0.9 > share[5] > share[25] > 0, "a posting is drawn the likelier the higher its rank"


def test_golden_keeps_the_crosswalks_grades_and_says_which_are_weak(corpus: Path) -> None:
    golden = read_table(corpus / "golden", GOLDEN).to_pylist()
    keys = {row["pair_id"]: row["document_key"] for row in read_table(corpus / "candidates", CANDIDATES).to_pylist()}
    judged = {
        (row["query_id"], row["profile_id"], row["document_key"]): row["grade"]
        for row in read_table(corpus / "judgements", JUDGEMENTS).to_pylist()
    }
    assert len(golden) == read_table(corpus / "pairs", PAIRS).num_rows
    for row in golden:
        assert row["grade"] == judged.get((row["query_id"], row["profile_id"], keys[row["pair_id"]]), 0)
        assert row["dimension"] == "overall"
        assert row["grader_id"] == (WEAK_GRADER_ID if row["slice"] == "alternate_title" else GRADER_ID)
    assert {row["split"] for row in golden if row["slice"] == "alternate_title"} == {"train"}


def test_signals_are_the_last_words_of_a_document_to_two_digits_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data")
    monkeypatch.setattr("preceptor.sources.jobmatch._CHUNK", 7)
    config = config_for(data, num_past_requests=0)
    corpus = jobmatch(config, policy=POLICY_DIR, out=tmp_path / "shown" / "v1", encode=word_encoder).path
    documents = {row["document_key"]: row for row in read_table(corpus / "documents", DOCUMENTS).to_pylist()}
    queries = {(row["query_id"], row["profile_id"]): row for row in read_table(corpus / "queries", QUERIES).to_pylist()}
    assert len(queries) > 3 * 7
    pairs = {row["pair_id"]: row["document"] for row in read_table(corpus / "pairs", PAIRS).to_pylist()}
    by_group: dict[str, list[str]] = {}
    for document in documents.values():
        by_group.setdefault(document["group"], []).append(document["text"])
    collection = embed_collection(list(documents.values()), word_encoder)
    for row in read_table(corpus / "candidates", CANDIDATES).to_pylist()[::37]:
        numbers = dict(item.rsplit(" ", 1) for item in pairs[row["pair_id"]].rsplit(" [", 1)[1][:-1].split(" | "))
        query, document = queries[row["query_id"], row["profile_id"]], documents[row["document_key"]]
        asked, tasks = word_encoder([query["text"]]), word_encoder(query["tasks"])
        assert list(numbers) == sorted(name.replace("_", " ") for name in SHOWN)
        assert all(len(number) == 2 for number in numbers.values())
        one = Asked(
            texts=(query["text"],),
            texts_QH=asked,
            titles_QH=asked,
            tasks_QH=tasks.mean(axis=0, keepdims=True) if len(tasks) else 0 * asked,
        )
        place = collection.keys.index(row["document_key"])
        wanted = {name.replace("_", " "): measure(name, one, collection)[0, place] for name in SHOWN}
        by_hand = {
            "text": row["similarity"],
            "best name": max(word_encoder(document["names"]) @ asked[0]),
            "group": (word_encoder(by_group[document["group"]]) @ asked[0]).mean(),
            "tasks": (tasks @ word_encoder([document["text"]])[0]).mean() if len(tasks) else 0,
        }
        for name, value in [*wanted.items(), *by_hand.items()]:
            assert abs(int(numbers[name]) - min(100 * value, 99)) < 1, name
    plain = jobmatch(
        config_for(data, shown=(), num_past_requests=0),
        policy=POLICY_DIR,
        out=tmp_path / "plain" / "v1",
        encode=word_encoder,
    ).path
    found = read_table(plain / "pairs", PAIRS)
    assert len(set(found["document_id"].to_pylist())) <= NUM_POSTINGS
    assert not any("]" in text for text in found["document"].to_pylist())
    assert (corpus / VECTORS_FILE).is_file() and not (plain / VECTORS_FILE).exists()


def test_a_signal_that_only_a_teacher_has_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no signal tuned_text without a teacher"):
        config_for(tmp_path, shown=("text", "tuned_text"))


def test_the_same_seed_writes_the_same_rows_and_another_seed_others(corpus: Path, tmp_path: Path) -> None:
    config = config_for(write_data(tmp_path / "data"))
    again = jobmatch(config, policy=POLICY_DIR, out=tmp_path / "again" / "v1", encode=word_encoder).path
    other = jobmatch(
        replace(config, seed=8), policy=POLICY_DIR, out=tmp_path / "other" / "v1", encode=word_encoder
    ).path
    for name, schema in (("pairs", PAIRS), ("golden", GOLDEN), ("impressions", IMPRESSIONS)):
        assert read_table(corpus / name, schema).equals(read_table(again / name, schema))
        assert not read_table(corpus / name, schema).equals(read_table(other / name, schema))


def test_a_finished_corpus_is_not_built_again(tmp_path: Path) -> None:
    config = config_for(write_data(tmp_path / "data"))
    out = tmp_path / "out" / "v1"
    first = jobmatch(config, policy=POLICY_DIR, out=out, encode=word_encoder)

    def refuse(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("encoded again")

    second = jobmatch(config, policy=POLICY_DIR, out=out, encode=refuse)
    assert second.fingerprint == first.fingerprint and second.metrics == dict(first.metrics)
    assert first.num_rows_in == first.num_rows_kept + sum(first.rejected.values())


# clicks of the corpus


def test_a_document_says_how_often_its_posting_was_clicked_before(corpus: Path, tmp_path: Path) -> None:
    config = config_for(write_data(tmp_path / "data"))
    silent = jobmatch(
        replace(config, num_past_requests=0), policy=POLICY_DIR, out=tmp_path / "out" / "v1", encode=word_encoder
    ).path
    said = [split_features(row["document"]) for row in read_table(corpus / "pairs", PAIRS).to_pylist()]
    unsaid = [split_features(row["document"]) for row in read_table(silent / "pairs", PAIRS).to_pylist()]
    assert all("clicked" in numbers for _, numbers in said)
    assert len({numbers["clicked"] for _, numbers in said}) > 3
    kept = [(text, {name: value for name, value in numbers.items() if name != "clicked"}) for text, numbers in said]
    assert kept == unsaid


def test_train_lists_follow_prominence_and_holdout_lists_do_not(corpus: Path) -> None:
    similarity = {
        row["pair_id"]: row["similarity"] for row in read_table(corpus / "candidates", CANDIDATES).to_pylist()
    }
    correlation = {}
    impressions = read_table(corpus / "impressions", IMPRESSIONS).to_pylist()
    for held_out in (False, True):
        rows = [row for row in impressions if (row["split"] == "holdout") == held_out]
        assert len({row["request_id"] for row in rows}) == (100 if held_out else 300)
        correlation[held_out] = np.corrcoef(
            [row["position"] for row in rows], [similarity[row["pair_id"]] for row in rows]
        )[0, 1]
    assert correlation[False] < -0.4
    assert abs(correlation[True]) < 0.1


def test_the_sources_import_no_heavy_package() -> None:
    code = (
        "import sys, preceptor.sources.jobmatch, preceptor.sources.headlines, preceptor.sources.pairs, "
        "preceptor.sources.jobmatch_eval; "
        "print([name for name in ('torch', 'transformers', 'sklearn', 'datasets', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
