from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preceptor.contracts import (
    GATE_REPORT,
    GOLDEN,
    IMPRESSIONS,
    PAIRS,
    TEACHER_SCORES,
    make_pair,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import GateFailed, InputError, PolicyError, RecipeError
from preceptor.evaluation.baselines import knows_any, popularity_scores, tfidf_scores
from preceptor.evaluation.gate import gate
from preceptor.evaluation.holdout import cheapest_grade, expected_gain, softmax
from preceptor.evaluation.metrics import auc, ece, graded_ece, log_loss, ndcg_at, quadratic_kappa
from preceptor.policy.seal import seal_of
from preceptor.recipe import GateConfig
from preceptor.record import Record, begin, write_json

TRADES = ("welder", "nurse", "cook", "driver", "tiler", "clerk")
CONFIG = GateConfig(thresholds={}, num_bootstrap=40)


@dataclass(frozen=True, kw_only=True)
class Market:
    """A constructed corpus: six queries, each with one document per grade."""

    pairs: Sequence[Mapping[str, str]]
    grades: Sequence[int]

    def of(self, split: str) -> list[tuple[Mapping[str, str], int]]:
        return [(pair, grade) for pair, grade in zip(self.pairs, self.grades, strict=True) if pair["split"] == split]


@pytest.fixture
def market() -> Market:
    pairs, grades = [], []
    for number, trade in enumerate(TRADES):
        for grade in range(5):
            words = " ".join([trade] * (grade == 4) + [f"advert {grade} {number}"])
            split = "train" if number < 2 else "holdout"
            pairs.append(make_pair(f"{trade} work", f"trained {trade}", words, slice="plain", split=split))
            grades.append(grade)
    return Market(pairs=pairs, grades=grades)


def stage(name: str, out: Path) -> Record:
    run = begin(name, CONFIG, out=out, policy_version="1.0.0+00000000")
    return run.finish() if run.record is None else run.record


def impression(pair: Mapping[str, str], grade: int, round_: int) -> dict[str, Any]:
    position = 1 + (grade + round_) % 5
    click = (grade * 3 + round_ * 5 + position) % 7 < grade
    ids = {key: pair[key] for key in ("pair_id", "query_id", "profile_id", "document_id", "split")}
    shown_at = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    return {
        **ids,
        "request_id": f"{pair['query_id']}-{round_}",
        "position": position,
        "shown_at": shown_at,
        "click": click,
        "apply": click and grade == 4,
        "propensity": 1 / position,
    }


def write_rows(rows: Sequence[Mapping[str, object]], file: Path, schema: pa.Schema) -> None:
    write_table(rows_to_table([dict(row) for row in rows], schema), file, schema)


def write_corpus(market: Market, out: Path, *, golden: bool = True, impressions: bool = True) -> Record:
    write_rows(market.pairs, out / "pairs" / "0.parquet", PAIRS)
    graded = [
        {**pair, "dimension": name, "grade": grade, "grader_id": "market-truth", "reason": None, "policy_version": "1"}
        for pair, grade in zip(market.pairs, market.grades, strict=True)
        for name in ("role", "overall")
    ]
    write_rows(graded if golden else [], out / "golden" / "0.parquet", GOLDEN)
    shown = [
        impression(pair, grade, round_)
        for pair, grade in zip(market.pairs, market.grades, strict=True)
        for round_ in range(4)
    ]
    write_table(
        rows_to_table(shown if impressions else [], IMPRESSIONS), out / "impressions" / "0.parquet", IMPRESSIONS
    )
    # `begin` starts clean in a directory without a record, so the record is made elsewhere and pointed here.
    return replace(stage("corpus", out.with_name(f"{out.name}-record")), path=out)


def write_scores(out: Path, rows: Sequence[Mapping[str, object]]) -> Record:
    write_table(
        rows_to_table([dict(row) for row in rows], TEACHER_SCORES), out / "scores" / "0.parquet", TEACHER_SCORES
    )
    return replace(stage(out.name, out.with_name(f"{out.name}-record")), path=out)


def grade_logits(grade: int, noise: int = 0) -> list[float]:
    return [-((grade - level) ** 2) + 0.1 * ((noise + level) % 3) for level in range(5)]


def overall(market: Market, *, shift: int = 0) -> list[dict[str, object]]:
    return [
        {
            "pair_id": pair["pair_id"],
            "teacher": "relevance",
            "head": "overall",
            "logits": grade_logits((grade + shift) % 5, number),
        }
        for number, (pair, grade) in enumerate(market.of("holdout"))
    ]


def actions(market: Market, *, slope: float = 1.0) -> list[dict[str, object]]:
    return [
        {"pair_id": pair["pair_id"], "teacher": "engagement", "head": head, "logits": [slope * (grade - 2) + bias]}
        for pair, grade in market.of("holdout")
        for head, bias in (("click", 0.0), ("apply", -1.0))
    ]


@pytest.fixture
def corpus(market: Market, tmp_path: Path) -> Record:
    return write_corpus(market, tmp_path / "corpus")


@pytest.fixture
def models(market: Market, tmp_path: Path) -> dict[str, Record]:
    return {
        "relevance": write_scores(tmp_path / "relevance", overall(market)),
        "engagement": write_scores(tmp_path / "engagement", actions(market)),
        "student": write_scores(tmp_path / "student", overall(market, shift=1) + actions(market, slope=0.5)),
    }


def values(out: Path) -> dict[str, float]:
    rows = read_table(out / "gate.parquet", GATE_REPORT).to_pylist()
    return {f"{row['system']} {row['head']} {row['metric']}": row["value"] for row in rows}


def test_each_value_equals_its_metric_on_the_holdout(market, corpus, models, tmp_path) -> None:
    record = gate(CONFIG, corpus=corpus, **models, out=tmp_path / "gate")
    found = values(tmp_path / "gate")

    logits = {"relevance_teacher": overall(market), "student": overall(market, shift=1)}
    graded = market.of("holdout")
    grades = [grade for _, grade in graded]
    for system, rows in logits.items():
        raw = np.array([row["logits"] for row in rows])
        by_query: dict[str, list[tuple[int, float]]] = {}
        for (pair, grade), gain in zip(graded, expected_gain(raw), strict=True):
            by_query.setdefault(pair["query_id"], []).append((grade, gain))
        ndcgs = [ndcg_at(*zip(*group, strict=True)) for group in by_query.values()]
        assert found[f"{system} overall ndcg@10"] == pytest.approx(np.mean(ndcgs))
        assert found[f"{system} overall kappa"] == pytest.approx(quadratic_kappa(grades, cheapest_grade(raw)))
        assert found[f"{system} overall ece"] == pytest.approx(graded_ece(grades, softmax(raw)))
    assert found["student overall ece"] > found["relevance_teacher overall ece"], "it is a grade off"
    assert found["student overall retention ndcg@10"] == pytest.approx(
        found["student overall ndcg@10"] / found["relevance_teacher overall ndcg@10"]
    )

    shown = [(impression(pair, grade, round_), grade) for pair, grade in graded for round_ in range(4)]
    clicks = [row["click"] for row, _ in shown]
    for system, slope in (("engagement_teacher", 1.0), ("student", 0.5)):
        raw = np.array([slope * (grade - 2) for _, grade in shown])
        probs = [row["propensity"] / (1 + math.exp(-logit)) for (row, _), logit in zip(shown, raw, strict=True)]
        assert found[f"{system} click auc"] == pytest.approx(auc(clicks, raw))
        assert found[f"{system} click log_loss"] == pytest.approx(log_loss(clicks, probs), rel=1e-6)
        assert found[f"{system} click ece"] == pytest.approx(ece(clicks, probs), rel=1e-6)
    assert found["student click retention auc"] == pytest.approx(1.0)
    assert record.metrics["passed"] and record.metrics["values"] == pytest.approx(found)


def test_intervals_enclose_their_values_and_count_queries(corpus, models, tmp_path) -> None:
    gate(CONFIG, corpus=corpus, **models, out=tmp_path / "gate")
    for row in read_table(tmp_path / "gate" / "gate.parquet", GATE_REPORT).to_pylist():
        assert row["num_queries"] == 4
        assert row["low"] - 1e-9 <= row["high"]
        if row["metric"] != "ece":  # ECE of a resample is biased upwards: its interval may lie above the estimate.
            assert row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9


def test_plots_hold_reliability_and_confusion(corpus, models, tmp_path) -> None:
    gate(CONFIG, corpus=corpus, **models, out=tmp_path / "gate")
    plots = json.loads((tmp_path / "gate" / "plots.json").read_text())
    assert np.sum(plots["confusion"]["relevance_teacher"]) == 20
    for prob, rate, share in plots["reliability"]["click"]["student"]:
        assert 0 <= prob <= 1 >= rate >= 0 < share


@pytest.mark.parametrize(
    ("name", "met", "missed", "bound"),
    [
        ("student overall ndcg@10", 0.1, 1.01, "at least 1.0100"),
        ("student overall retention ndcg@10", 0.1, 2.0, "at least 2.0000"),
        ("student click auc", 0.5, 0.999, "at least 0.9990"),
        ("student click ece", 0.9, 0.0001, "at most 0.0001"),
        ("student overall ece", 0.9, 0.0001, "at most 0.0001"),
        ("student click log_loss", 5.0, 0.01, "at most 0.0100"),
    ],
)
def test_a_threshold_is_met_or_missed(name, met, missed, bound, corpus, models, tmp_path) -> None:
    passed = gate(replace(CONFIG, thresholds={name: met}), corpus=corpus, **models, out=tmp_path / "met")
    assert passed.metrics["passed"]
    with pytest.raises(GateFailed, match="1 of 1 thresholds missed") as failure:
        gate(replace(CONFIG, thresholds={name: missed}), corpus=corpus, **models, out=tmp_path / "missed")
    line = str(failure.value)
    assert name in line and bound in line and f"{values(tmp_path / 'missed')[name]:.4f}" in line and "\n" not in line
    row = next(
        row
        for row in read_table(tmp_path / "missed" / "gate.parquet", GATE_REPORT).to_pylist()
        if row["threshold"] is not None
    )
    assert row["passed"] is False


def test_a_failed_gate_fails_again_without_its_inputs(corpus, models, tmp_path) -> None:
    config = replace(CONFIG, thresholds={"student overall ndcg@10": 1.01, "student overall kappa": 1.01})
    with pytest.raises(GateFailed) as first:
        gate(config, corpus=corpus, **models, out=tmp_path / "gate")
    (models["student"].path / "scores" / "0.parquet").unlink()
    with pytest.raises(GateFailed) as second:
        gate(config, corpus=corpus, **models, out=tmp_path / "gate")
    assert str(first.value) == str(second.value)
    assert "student overall ndcg@10" in str(first.value) and "student overall kappa" in str(first.value)


def test_a_passed_gate_is_not_measured_again(corpus, models, tmp_path) -> None:
    first = gate(CONFIG, corpus=corpus, **models, out=tmp_path / "gate")
    (models["student"].path / "scores" / "0.parquet").unlink()
    assert gate(CONFIG, corpus=corpus, **models, out=tmp_path / "gate") == first


def test_an_unknown_threshold_is_refused_before_anything_is_written(corpus, models, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"'student overall ndgc'.*student overall ndcg@10"):
        gate(replace(CONFIG, thresholds={"student overall ndgc": 0.5}), corpus=corpus, **models, out=tmp_path / "gate")
    assert not (tmp_path / "gate").exists()


def test_a_threshold_on_something_unmeasured_is_refused(corpus, models, tmp_path) -> None:
    config = replace(CONFIG, thresholds={"student overall ndcg@10": 0.5})
    with pytest.raises(RecipeError, match="this run measures no 'student overall ndcg@10'"):
        gate(config, corpus=corpus, **{**models, "student": None}, out=tmp_path / "gate")
    assert not (tmp_path / "gate" / "record.json").exists()


def test_an_engagement_teacher_without_golden_scores_has_no_ndcg_row(market, corpus, models, tmp_path) -> None:
    gate(CONFIG, corpus=corpus, **models, out=tmp_path / "all")
    shown = {pair["pair_id"] for pair, grade in market.of("holdout") if grade != 4}
    few = [row for row in actions(market) if row["pair_id"] in shown]
    impressions = [
        impression(pair, grade, round_) for pair, grade in market.of("holdout") for round_ in range(4) if grade != 4
    ]
    write_rows(impressions, corpus.path / "impressions" / "0.parquet", IMPRESSIONS)
    short = write_scores(tmp_path / "few", few)
    gate(CONFIG, corpus=corpus, **{**models, "engagement": short}, out=tmp_path / "gate")
    assert "engagement_teacher click ndcg@10" in values(tmp_path / "all")
    found = values(tmp_path / "gate")
    assert "engagement_teacher click ndcg@10" not in found and "engagement_teacher click auc" in found


def test_missing_predictions_are_counted_and_located(market, corpus, models, tmp_path) -> None:
    short = write_scores(tmp_path / "short", overall(market)[3:])
    with pytest.raises(InputError, match=r"short/scores: no 'overall' logits for 3 of 20 holdout pairs"):
        gate(CONFIG, corpus=corpus, **{**models, "relevance": short}, out=tmp_path / "gate")


@pytest.mark.parametrize("logits", [[0.0] * 4, [0.0, 0.0, math.nan, 0.0, 0.0], [0.0] * 6])
def test_unsound_logits_are_refused(logits, market, corpus, models, tmp_path) -> None:
    rows = overall(market)
    rows[2]["logits"] = logits
    unsound = write_scores(tmp_path / "unsound", rows)
    with pytest.raises(InputError, match=r"unsound/scores: column 'logits': head 'overall' needs 5 finite"):
        gate(CONFIG, corpus=corpus, **{**models, "relevance": unsound}, out=tmp_path / "gate")


def test_without_golden_only_actions_are_measured(market, models, tmp_path) -> None:
    corpus = write_corpus(market, tmp_path / "clicks-only", golden=False)
    gate(CONFIG, corpus=corpus, **{**models, "relevance": None}, out=tmp_path / "gate")
    assert {name.split()[1] for name in values(tmp_path / "gate")} == {"click", "apply"}


def test_without_impressions_only_grades_are_measured(market, models, tmp_path) -> None:
    corpus = write_corpus(market, tmp_path / "graded-only", impressions=False)
    gate(CONFIG, corpus=corpus, **{**models, "engagement": None}, out=tmp_path / "gate")
    assert set(values(tmp_path / "gate")) == {
        "tfidf overall ndcg@10",
        "relevance_teacher overall ndcg@10",
        "student overall ndcg@10",
        "relevance_teacher overall kappa",
        "student overall kappa",
        "relevance_teacher overall ece",
        "student overall ece",
        "student overall retention ndcg@10",
    }


def test_without_any_holdout_nothing_is_measured(market, tmp_path) -> None:
    corpus = write_corpus(market, tmp_path / "bare", golden=False, impressions=False)
    none = {"relevance": None, "engagement": None, "student": None}
    record = gate(CONFIG, corpus=corpus, **none, out=tmp_path / "gate")
    assert record.metrics["values"] == {} == values(tmp_path / "gate")
    asking = replace(CONFIG, thresholds={"student click auc": 0.5})
    with pytest.raises(RecipeError, match="nothing, no holdout has rows"):
        gate(asking, corpus=corpus, **none, out=tmp_path / "asking")


def test_systems_that_were_not_given_have_no_rows(market, corpus, tmp_path) -> None:
    gate(CONFIG, corpus=corpus, relevance=None, engagement=None, student=None, out=tmp_path / "gate")
    assert {name.split()[0] for name in values(tmp_path / "gate")} == {"tfidf"}
    # Popularity speaks where a held-out document was shown in training too.
    train, held = market.of("train")[0][0], market.of("holdout")[0][0]
    again = [{**pair, "document_id": train["document_id"]} if pair is held else pair for pair in market.pairs]
    shared = write_corpus(replace(market, pairs=again), tmp_path / "shared")
    gate(CONFIG, corpus=shared, relevance=None, engagement=None, student=None, out=tmp_path / "again")
    found = values(tmp_path / "again").keys()
    assert {name for name in found if name.startswith("popularity")} >= {
        "popularity overall ndcg@10",
        "popularity click auc",
    }


def test_predicted_grade_is_the_cheapest_under_quadratic_cost() -> None:
    logits = np.random.default_rng(3).normal(size=(200, 5)) * 2
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cost = (np.arange(5)[:, None] - np.arange(5)[None, :]) ** 2
    assert list(cheapest_grade(logits)) == list((probs @ cost).argmin(axis=1))


def test_expected_gain_prefers_a_chance_of_the_best_over_a_sure_middle() -> None:
    sure, chance = [-50.0, -50.0, 9.0, -50.0, -50.0], [9.0, -50.0, -50.0, -50.0, 9.0]
    found = expected_gain(np.array([sure, chance]))
    assert found == pytest.approx([3.0, 7.5])


def test_tfidf_ranks_shared_words_first(market) -> None:
    train = rows_to_table([dict(pair) for pair, _ in market.of("train")], PAIRS)
    first_query = rows_to_table([dict(pair) for pair in market.pairs[:5]], PAIRS)
    scores = tfidf_scores([train], first_query)
    assert scores.argmax() == 4
    assert scores[:4] == pytest.approx(np.zeros(4))


def test_popularity_is_smoothed_towards_the_mean(market) -> None:
    pair = market.pairs[0]
    other = market.pairs[5]
    rows = [{**impression(pair, 0, 0), "click": True}] * 10 + [{**impression(other, 0, 0), "click": False}] * 30
    table = rows_to_table(rows, IMPRESSIONS)
    asked = rows_to_table([dict(pair), dict(other), dict(market.pairs[10])], PAIRS)["document_id"]
    assert popularity_scores(table, asked, prior=10) == pytest.approx([12.5 / 20, 2.5 / 40, 0.25])


def test_popularity_is_silent_where_no_document_was_shown_before(market) -> None:
    shown = rows_to_table([impression(pair, 0, 0) for pair in market.pairs[:2]], IMPRESSIONS)
    asked = rows_to_table([dict(pair) for pair in market.pairs[1:4]], PAIRS)["document_id"]
    assert knows_any(shown, asked)
    assert not knows_any(shown.slice(0, 1), asked) and not knows_any(shown.slice(0, 0), asked)


def test_the_gate_measures_on_the_sealed_holdout_alone_and_says_that_it_looked(
    market, corpus, models, tmp_path
) -> None:
    golden = read_table(corpus.path / "golden", GOLDEN)
    seal = tmp_path / "policy" / "golden" / "seal.json"
    write_json(seal, dataclasses.asdict(replace(seal_of(golden), rows="0" * 64)))
    with pytest.raises(PolicyError, match="the holdout is not the one that was sealed: rows 00000000 -> "):
        gate(CONFIG, corpus=corpus, **models, policy=tmp_path / "policy", out=tmp_path / "gate" / "v1")
    assert not (tmp_path / "gate" / "v1" / "record.json").exists()

    write_json(seal, dataclasses.asdict(seal_of(golden)))
    for _ in range(2):  # A finished gate is not run again, and opens nothing.
        record = gate(CONFIG, corpus=corpus, **models, policy=tmp_path / "policy", out=tmp_path / "gate" / "v1")
    assert record.metrics["holdout_rows"] == seal_of(golden).rows
    (line,) = (tmp_path / "gate" / "openings.jsonl").read_text().splitlines()
    assert json.loads(line)["why"].startswith("gate v1 of ") and json.loads(line)["seal"] == "verified"
