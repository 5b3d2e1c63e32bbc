"""What is picked to be labelled next, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preceptor.cli import main
from preceptor.cli_feedback import budget_of
from preceptor.contracts import GOLDEN, PAIRS, SERVED, make_pair, read_table, rows_to_table, write_table
from preceptor.errors import InputError, RecipeError
from preceptor.feedback import PickConfig, pick
from preceptor.feedback.choose import choose, disagreements, nearest_known, percentiles, shares
from preceptor.feedback.pick import PICKS, latest_served
from tests.unit.test_feedback import NOON, answer

WORDS = ("nurse ward hospital night", "baker bread oven early", "driver lorry licence motorway")

ODD = next(
    pair["pair_id"]
    for pair in (make_pair(f"{WORDS[2]} {n}", "ward", f"{WORDS[2]} posting {n} a", slice="") for n in range(2, 30, 3))
    if pair["split"] == "train"
)


def unit(rows: list[list[float]]) -> np.ndarray:
    found = np.array(rows, dtype=float)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


# Choosing


def test_percentiles_are_those_of_counting() -> None:
    values = np.array([3.0, 1.0, 1.0, 2.0, 9.0])
    brute = [
        (sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2) / 4
        for value in values
    ]
    assert percentiles(values).tolist() == brute
    assert percentiles(np.array([5.0])).tolist() == [0.5]


def test_heads_disagree_by_rank_whatever_their_scales() -> None:
    grades = np.array([0.0, 1.0, 2.0, 4.0])
    same = {"click": grades / 1000, "apply": grades / 7}
    assert disagreements(grades, same)[0].tolist() == [0, 0, 0, 0]
    turned = {"click": np.array([0.9, 0.2, 0.3, 0.1]), "apply": np.array([np.nan] * 4)}
    gaps, names = disagreements(grades, turned)
    assert gaps.tolist() == pytest.approx([1, 0, 0, 1]) and names == ["click", "", "", "click"]


def test_an_action_counts_for_the_pairs_it_is_known_of() -> None:
    gaps, _ = disagreements(np.array([0.0, 1.0]), {"click": np.array([np.nan, 0.5]), "apply": np.array([np.nan] * 2)})
    assert gaps.tolist() == [0, 0.5]


def test_the_nearest_known_is_that_of_all_cosines() -> None:
    rng = np.random.default_rng(1)
    ours, known = unit(rng.normal(size=(30, 5)).tolist()), unit(rng.normal(size=(7, 5)).tolist())
    best, index = nearest_known(ours, known)
    assert best.tolist() == pytest.approx((ours @ known.T).max(axis=1).tolist())
    assert index.tolist() == (ours @ known.T).argmax(axis=1).tolist()
    assert nearest_known(ours, known[:0])[1].tolist() == [-1] * 30


@pytest.mark.parametrize(
    ("short", "budget", "available", "expected"),
    [
        ({"a": 10, "b": 5}, 6, {"a": 99, "b": 99}, {"a": 4, "b": 2}),
        ({"a": 10, "b": 5}, 6, {"a": 1, "b": 99}, {"a": 1, "b": 5}),
        ({"a": 2, "b": 1}, 50, {"a": 99, "b": 99}, {"a": 2, "b": 1}),
        ({"a": 2, "b": 0}, 50, {"a": 0, "b": 9}, {"a": 0}),
    ],
)
def test_golden_goes_where_it_lacks(short: dict, budget: int, available: dict, expected: dict) -> None:
    assert shares(short, budget, available=available) == expected


def candidates(num: int, **options: Any) -> list[dict[str, Any]]:
    return [{"query_id": f"q{number}", "slice": "s", "split": "train"} | options for number in range(num)]


def chosen(pairs: list[dict[str, Any]], vectors: np.ndarray, **options: Any) -> list[tuple[int, str]]:
    defaults: dict[str, Any] = {
        "gaps": np.zeros(len(pairs)),
        "cosines": np.full(len(pairs), -1.0),
        "short": {},
        "budget": {"golden": 0, "disagreement": 0, "novelty": 0},
        "max_per_query": 9,
        "seed": 1,
    }
    found = choose(pairs, vectors=vectors, **(defaults | options))
    return [(one.index, one.kind) for one in found]


def test_novelty_does_not_choose_the_same_thing_twice() -> None:
    vectors = unit([[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1]])
    known = nearest_known(vectors, unit([[0, 0, 1]]))[0]
    found = chosen(candidates(4), vectors, cosines=known, budget={"golden": 0, "disagreement": 0, "novelty": 2})
    # One of the twins, the other direction, and not what is labelled.
    assert 2 in {index for index, _ in found} and len({index for index, _ in found} & {0, 1}) == 1


def test_what_the_heads_agree_on_is_never_a_disagreement() -> None:
    budget = {"golden": 0, "disagreement": 3, "novelty": 0}
    found = chosen(candidates(3), np.eye(3), gaps=np.array([0.2, 0.0, 0.7]), budget=budget)
    assert found == [(2, "disagreement"), (0, "disagreement")]


def test_only_golden_takes_pairs_that_are_not_to_train_on() -> None:
    pairs = candidates(3, split="holdout")
    budget = {"golden": 1, "disagreement": 3, "novelty": 3}
    found = chosen(pairs, np.eye(3), gaps=np.ones(3), short={"s": 5}, budget=budget)
    assert [kind for _, kind in found] == ["golden"]


def test_one_query_does_not_take_the_budget() -> None:
    pairs = candidates(6, query_id="q")
    budget = {"golden": 2, "disagreement": 2, "novelty": 2}
    assert len(chosen(pairs, np.eye(6), gaps=np.ones(6), short={"s": 9}, budget=budget, max_per_query=2)) == 2


# The stage


@pytest.fixture
def config(tmp_path: Path) -> PickConfig:
    """Traffic of three trades, with golden for nurses alone, and one served pair labelled already."""
    rows, texts = [], []
    for number in range(30):
        query = WORDS[number % 3]
        documents = [f"{query} posting {number} {place}" for place in "ab"]
        rows += answer(f"r{number}", documents, query=f"{query} {number}")
        texts += [make_pair(f"{query} {number}", "ward", text, slice="served") for text in documents]
    # In one pair to train on the heads are at odds: top grade, no click.
    next(row for row in rows if row["pair_id"] == ODD).update(expected_grade=4.0, actions={"click": 0.0, "apply": 0.1})
    write_table(rows_to_table(rows, SERVED), tmp_path / "log" / "a.parquet", SERVED)
    write_table(rows_to_table(texts, PAIRS), tmp_path / "texts" / "a.parquet", PAIRS)
    golden = [
        make_pair(WORDS[0], "ward", f"{WORDS[0]} old {number}", slice="nursing", split="calibration")
        for number in range(3)
    ] + [make_pair(WORDS[1], "ward", f"{WORDS[1]} old", slice="baking", split="calibration")]
    grade = {"dimension": "overall", "grade": 3, "grader_id": "test", "reason": None, "policy_version": "v"}
    write_table(rows_to_table([row | grade for row in golden], GOLDEN), tmp_path / "golden" / "a.parquet", GOLDEN)
    write_table(rows_to_table(texts[:1], PAIRS), tmp_path / "labelled" / "a.parquet", PAIRS)
    return PickConfig(
        served=tmp_path / "log",
        texts=(tmp_path / "texts",),
        golden=(tmp_path / "golden",),
        labelled=(tmp_path / "labelled",),
        num_golden=4,
        num_disagreement=3,
        num_novelty=5,
        golden_per_slice=3,
        embedding="tfidf",
    )


def test_the_stage_writes_pairs_and_why_each(config: PickConfig, tmp_path: Path) -> None:
    record = pick(config, out=tmp_path / "out" / "v1")
    pairs = {row["pair_id"]: row for row in read_table(record.path / "pairs", PAIRS).to_pylist()}
    picks = read_table(record.path / "picks", PICKS).to_pylist()
    assert set(pairs) == {row["pair_id"] for row in picks} and len(picks) == len(pairs)
    kinds = Counter(row["kind"] for row in picks)
    # Nursing has its three golden pairs, and baking lacks two.
    assert record.metrics["short_of_golden"] == {"baking": 2}
    assert kinds == {"golden": 2, "disagreement": 3, "novelty": 5}
    baking = [row for row in picks if row["kind"] == "golden" and row["slice"] == "baking"]
    assert len(baking) == 2 and all("baker" in pairs[row["pair_id"]]["document"] for row in baking)
    assert baking[0]["why"] == "slice baking has 1 golden pairs of 3" and baking[0]["slice_from"] == "nearest"
    top = max(picks, key=lambda row: row["disagreement"])
    assert top["pair_id"] == ODD and top["kind"] == "disagreement" and top["rank"] == 1 and "click" in top["why"]
    labelled = read_table(config.labelled[0], PAIRS)["pair_id"][0].as_py()
    assert labelled not in pairs and record.rejected["labelled already"] == 1
    assert record.num_rows_in == 60 == record.num_rows_kept + sum(record.rejected.values())
    trained = {pairs[row["pair_id"]]["split"] for row in picks if row["kind"] != "golden"}
    assert trained == {"train"}


def test_the_same_seed_picks_the_same_and_another_one_not(config: PickConfig, tmp_path: Path) -> None:
    def picked(seed: int, version: str) -> list[str]:
        record = pick(replace(config, seed=seed), out=tmp_path / "out" / version)
        return list(read_table(record.path / "picks", PICKS)["pair_id"].to_pylist())

    assert picked(1, "a") == picked(1, "b")
    assert len({tuple(picked(seed, f"s{seed}")) for seed in range(3)}) > 1


def test_a_rerun_is_skipped(config: PickConfig, tmp_path: Path) -> None:
    first = pick(config, out=tmp_path / "out" / "v1")
    assert pick(config, out=tmp_path / "out" / "v1").finished_at == first.finished_at


def test_a_large_pool_is_sampled_and_said_so(config: PickConfig, tmp_path: Path) -> None:
    record = pick(replace(config, max_pool=10), out=tmp_path / "out" / "v1")
    assert record.rejected["over max_pool"] == 49 and record.metrics["num_candidates"] == 10


def test_the_latest_scores_count_over_all_parts(tmp_path: Path) -> None:
    later = NOON.replace(hour=13)
    old, new = answer("a", "x")[0], answer("b", "x", at=later)[0] | {"expected_grade": 1.0, "bundle_id": "new"}
    write_table(rows_to_table([new], SERVED), tmp_path / "a.parquet", SERVED)
    write_table(rows_to_table([old, old], SERVED), tmp_path / "b.parquet", SERVED)
    (row,) = latest_served(tmp_path).values()
    assert (row["bundle_id"], row["expected_grade"], row["num_served"]) == ("new", 1.0, 3)


def test_nothing_left_to_label_is_said(config: PickConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of 60 served pairs is left to label \(60 labelled already, 0 without"):
        pick(replace(config, labelled=config.texts), out=tmp_path / "out" / "v1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"texts": ()}, "need their texts"),
        ({"num_golden": 0, "num_disagreement": 0, "num_novelty": 0}, "budget"),
        ({"num_golden": -1}, "budget"),
        ({"golden_per_slice": 0}, "golden_per_slice"),
        ({"max_pool": 0}, "max_pool"),
    ],
)
def test_wrong_configs_are_refused(config: PickConfig, change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        replace(config, **change)


@pytest.mark.parametrize("limit", ["clicks=3", "golden", "golden=-1", "golden=1.5", "golden="])
def test_a_budget_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(RecipeError, match="--budget takes golden=N"):
        budget_of([limit])


def test_the_command_picks(config: PickConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["feedback", "pick", "--served", config.served, "--texts", *config.texts, "--golden", *config.golden]
    asked += ["--budget", "disagreement=2", "novelty=1", "--golden-per-slice", 3, "--embedding", "tfidf"]
    assert main([str(word) for word in [*asked, "--root", tmp_path / "live"]]) == 0
    assert "pick: 3 of 60 served pairs (golden 0 of 0, disagreement 2 of 2, novelty 1 of 1)" in capsys.readouterr().out


def test_without_golden_all_traffic_is_short_of_it(config: PickConfig, tmp_path: Path) -> None:
    record = pick(replace(config, golden=(), labelled=()), out=tmp_path / "out" / "v1")
    assert record.metrics["short_of_golden"] == {"served": 3} and record.metrics["picked"]["golden"] == 3
    picks = read_table(record.path / "picks", PICKS).to_pylist()
    assert {row["nearest_pair_id"] for row in picks} == {None} and {row["slice_from"] for row in picks} == {"pair"}
