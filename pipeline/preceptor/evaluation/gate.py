"""The gate: baselines, teachers and student on the sealed holdouts, and the thresholds the student must meet.

Two holdouts, both of split 'holdout': golden pairs (graded) for ranking and agreement, impressions (clicked or not)
for the action heads. A source may lack either; what cannot be measured has no row, and a threshold on it is an error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from preceptor.contracts import (
    ACTIONS,
    GATE_REPORT,
    OVERALL,
    PAIRS,
    iter_tables,
    rows_to_table,
    write_table,
)
from preceptor.errors import GateFailed, RecipeError
from preceptor.evaluation.baselines import knows_any, popularity_scores, tfidf_scores
from preceptor.evaluation.holdout import (
    Holdout,
    Predictions,
    action_prob,
    cheapest_grade,
    expected_gain,
    read_holdout,
    softmax,
)
from preceptor.evaluation.metrics import (
    Floats,
    Interval,
    auc,
    bootstrap,
    confusion,
    ece,
    graded_ece,
    log_loss,
    ndcg_at,
    quadratic_kappa,
    reliability,
    retention,
    rows_by_group,
)
from preceptor.golden.opener import open_holdout
from preceptor.policy.seal import seal_of
from preceptor.recipe import GateConfig
from preceptor.record import Record, begin, write_json

Draw = Sequence[int]
Statistic = Callable[[Draw], float]

NDCG: Final = "ndcg@10"
AT_MOST: Final = frozenset({"log_loss", "ece"})
"""Metrics of which less is better: their thresholds are upper bounds."""

KNOWN: Final = (
    *(f"{system} overall {NDCG}" for system in ("tfidf", "popularity", "relevance_teacher", "student")),
    f"engagement_teacher click {NDCG}",
    *(f"{system} overall {metric}" for system in ("relevance_teacher", "student") for metric in ("kappa", "ece")),
    *(f"popularity {action} auc" for action in ACTIONS),
    *(
        f"{system} {action} {metric}"
        for system in ("engagement_teacher", "student")
        for action in ACTIONS
        for metric in ("auc", "log_loss", "ece")
    ),
    f"student overall retention {NDCG}",
    "student click retention auc",
)
"""Every "system head metric" the gate can measure: what a threshold may name."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of one system on one head."""

    system: str
    head: str
    metric: str
    interval: Interval

    @property
    def name(self) -> str:
        return f"{self.system} {self.head} {self.metric}"


def gate(
    config: GateConfig,
    *,
    corpus: Record,
    relevance: Record | None,
    engagement: Record | None,
    student: Record | None,
    policy: Path | None = None,
    out: Path,
) -> Record:
    """The record of a passed gate, after writing GATE_REPORT to `{out}/gate.parquet` and `{out}/plots.json`.

    `relevance`, `engagement` and `student` are prediction stages with TEACHER_SCORES in `scores/`; rows of a missing
    one are left out, and so is the engagement teacher's NDCG, information only, where it did not score golden pairs.
    Raises GateFailed naming every missed threshold, at once on a rerun of the same work; the record is written all the
    same, with ``metrics["passed"]`` False. With `policy`, the folder whose golden the corpus carries, its holdout must
    be the one that folder sealed (PolicyError); each opening is a line of ``openings.jsonl`` beside `out`, which a
    rebuild of `out` does not delete. Raises RecipeError for a threshold on something unknown or unmeasured, InputError
    for holdout pairs without predictions.
    """
    _check_known(config.thresholds, KNOWN, "gate thresholds know no")
    given = {"relevance_teacher": relevance, "engagement_teacher": engagement, "student": student}
    inputs = {name: record for name, record in given.items() if record is not None}
    run = begin("gate", config, out=out, inputs={"corpus": corpus, **inputs}, policy_version=corpus.policy_version)
    if run.record is not None:
        return _verdict(run.record)
    golden = open_holdout(
        corpus.path / "golden",
        policy=policy,
        log=out.parent / "openings.jsonl",
        why=f"gate {out.name} of {run.fingerprint}, corpus {corpus.fingerprint}",
    )
    holdout = read_holdout(corpus.path, golden)
    systems = {name: Predictions(file=record.path / "scores") for name, record in inputs.items()}
    of_golden, golden_plots = _measure_golden(config, holdout, systems)
    of_clicks, click_plots = _measure_actions(config, holdout, systems)
    measured = [*of_golden, *of_clicks]
    _check_known(config.thresholds, [item.name for item in measured], "this run measures no")

    rows = [_row(item, config.thresholds.get(item.name)) for item in measured]
    write_table(rows_to_table(rows, GATE_REPORT), out / "gate.parquet", GATE_REPORT)
    write_json(out / "plots.json", {**golden_plots, **click_plots})
    failures = [_failure(row) for row in rows if row["passed"] is False]
    num_rows = holdout.golden.num_rows + holdout.impressions.num_rows
    record = run.finish(
        num_rows_in=num_rows,
        num_rows_kept=num_rows,
        metrics={
            "passed": not failures,
            "failures": failures,
            "num_thresholds": len(config.thresholds),
            "num_golden_pairs": holdout.golden.num_rows,
            "num_impressions": holdout.impressions.num_rows,
            "holdout_rows": seal_of(golden).rows,
            "values": {item.name: _or_none(item.interval.value) for item in measured},
        },
    )
    return _verdict(record)


def _measure_golden(
    config: GateConfig, holdout: Holdout, systems: Mapping[str, Predictions]
) -> tuple[list[Measurement], dict[str, Any]]:
    golden = holdout.golden
    if not golden.num_rows:
        return [], {}
    grades = golden["grade"].to_numpy().astype(np.int64)
    overall = {
        name: systems[name].of(OVERALL, golden["pair_id"])
        for name in ("relevance_teacher", "student")
        if name in systems
    }
    scores: dict[tuple[str, str], Floats] = dict(_baseline_scores(holdout))
    scores |= {(name, OVERALL): expected_gain(logits) for name, logits in overall.items()}
    engagement = systems.get("engagement_teacher")
    if engagement is not None and engagement.covers("click", golden["pair_id"]):
        scores["engagement_teacher", "click"] = engagement.of("click", golden["pair_id"])[:, 0]

    queries = _numbered(golden["query_id"])
    ndcg_queries, ndcg = _ndcg_statistics(golden, grades, scores)
    measured = [
        _measure(config, ndcg_queries, system, head, NDCG, statistic) for (system, head), statistic in ndcg.items()
    ]
    for name, logits in overall.items():
        agreement = _weighted(queries, quadratic_kappa, grades, cheapest_grade(logits))
        measured.append(_measure(config, queries, name, OVERALL, "kappa", agreement))
        errors = _weighted(queries, graded_ece, grades, softmax(logits))
        measured.append(_measure(config, queries, name, OVERALL, "ece", errors))
    student, teacher = ndcg.get(("student", OVERALL)), ndcg.get(("relevance_teacher", OVERALL))
    if student is not None and teacher is not None:
        measured.append(_measure_retention(config, ndcg_queries, OVERALL, NDCG, student, teacher))
    return measured, {
        "confusion": {name: confusion(grades, cheapest_grade(logits)).tolist() for name, logits in overall.items()}
    }


def _ndcg_statistics(
    golden: pa.Table, grades: NDArray[np.int64], scores: Mapping[tuple[str, str], Floats]
) -> tuple[NDArray[np.int64], dict[tuple[str, str], Statistic]]:
    """The query number of each (query, profile) group with a positive grade, and each system's mean NDCG over them."""
    groups = rows_by_group(pc.binary_join_element_wise(golden["query_id"], golden["profile_id"], "\n").to_numpy())
    ranked = [rows for rows in groups if grades[rows].max() > 0]
    if not ranked:
        return np.empty(0, dtype=np.int64), {}
    queries = _numbered(golden["query_id"].take(pa.array([rows[0] for rows in ranked])))
    statistics = {}
    for key, score in scores.items():
        values = np.array([ndcg_at(grades[rows], score[rows]) for rows in ranked])
        statistics[key] = _weighted(queries, _mean, values)
    return queries, statistics


def _measure_actions(
    config: GateConfig, holdout: Holdout, systems: Mapping[str, Predictions]
) -> tuple[list[Measurement], dict[str, Any]]:
    """Measurements and reliability curves of each action that anybody took in the holdout."""
    shown = holdout.impressions
    models = [name for name in ("engagement_teacher", "student") if name in systems]
    measured: list[Measurement] = []
    curves: dict[str, dict[str, Any]] = {}
    for action in ACTIONS:
        labels = shown[action].to_numpy().astype(np.float64)
        if not labels.any():
            continue
        queries = _numbered(shown["query_id"])
        if knows_any(holdout.train_impressions, shown["document_id"]):
            popular = popularity_scores(holdout.train_impressions, shown["document_id"], action=action)
            ranking = _weighted(queries, auc, labels, popular)
            measured.append(_measure(config, queries, "popularity", action, "auc", ranking))
        logits = {name: systems[name].of(action, shown["pair_id"])[:, 0] for name in models}
        probs = {name: action_prob(logits[name], shown["propensity"].to_numpy()) for name in models}
        rankings = {name: _weighted(queries, auc, labels, logits[name]) for name in models}
        for name in models:
            losses = _weighted(queries, log_loss, labels, probs[name])
            errors = _weighted(queries, ece, labels, probs[name])
            for metric, statistic in (("auc", rankings[name]), ("log_loss", losses), ("ece", errors)):
                measured.append(_measure(config, queries, name, action, metric, statistic))
        curves[action] = {name: np.transpose(reliability(labels, probs[name])).tolist() for name in models}
        if action == "click" and len(models) == 2:
            pair = rankings["student"], rankings["engagement_teacher"]
            measured.append(_measure_retention(config, queries, action, "auc", *pair))
    return measured, {"reliability": curves}


def _baseline_scores(holdout: Holdout) -> Iterator[tuple[tuple[str, str], Floats]]:
    tables = (table.filter(pc.equal(table["split"], "train")) for table in iter_tables(holdout.pairs, PAIRS))
    train = (table for table in tables if table.num_rows)
    first = next(train, None)
    if first is not None:
        yield ("tfidf", OVERALL), tfidf_scores(itertools.chain([first], train), holdout.golden)
    if knows_any(holdout.train_impressions, holdout.golden["document_id"]):
        yield ("popularity", OVERALL), popularity_scores(holdout.train_impressions, holdout.golden["document_id"])


def _measure(
    config: GateConfig, queries: NDArray[np.int64], system: str, head: str, metric: str, statistic: Statistic
) -> Measurement:
    drawn_from = range(int(queries.max()) + 1)
    interval = bootstrap(statistic, drawn_from, num=config.num_bootstrap, seed=config.seed)
    return Measurement(system=system, head=head, metric=metric, interval=interval)


def _measure_retention(
    config: GateConfig, queries: NDArray[np.int64], head: str, metric: str, student: Statistic, teacher: Statistic
) -> Measurement:
    drawn_from = range(int(queries.max()) + 1)
    interval = retention(student, teacher, drawn_from, num=config.num_bootstrap, seed=config.seed)
    return Measurement(system="student", head=head, metric=f"retention {metric}", interval=interval)


def _weighted(queries: NDArray[np.int64], metric: Callable[..., float], *columns: NDArray[Any]) -> Statistic:
    """`metric(*columns, weights)` of a draw of query numbers, where a row weighs as often as its query was drawn."""
    num_queries = int(queries.max()) + 1

    def statistic(drawn: Draw) -> float:
        return metric(*columns, np.bincount(drawn, minlength=num_queries)[queries])

    return statistic


def _mean(values: Floats, weights: Floats) -> float:
    return float(np.average(values, weights=weights))


def _numbered(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    return ids.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _check_known(thresholds: Mapping[str, float], known: Sequence[str], rule: str) -> None:
    unknown = sorted(set(thresholds) - set(known))
    if unknown:
        named = ", ".join(repr(name) for name in unknown)
        raise RecipeError(f"gate: {rule} {named}. Name one of: {', '.join(known) or 'nothing, no holdout has rows'}.")


def _row(item: Measurement, threshold: float | None) -> dict[str, Any]:
    """A GATE_REPORT row; a NaN value misses every threshold."""
    interval = item.interval
    met = None
    if threshold is not None:
        met = interval.value <= threshold if item.metric in AT_MOST else interval.value >= threshold
    return {
        "system": item.system,
        "metric": item.metric,
        "head": item.head,
        "value": interval.value,
        "low": _or_none(interval.low),
        "high": _or_none(interval.high),
        "num_queries": interval.num_groups,
        "threshold": threshold,
        "passed": met,
    }


def _failure(row: Mapping[str, Any]) -> str:
    bound = "at most" if row["metric"] in AT_MOST else "at least"
    return (
        f"{row['system']} {row['head']} {row['metric']} is {row['value']:.4f}, must be {bound} {row['threshold']:.4f}"
    )


def _verdict(record: Record) -> Record:
    failures = record.metrics["failures"]
    if failures:
        raise GateFailed(
            f"gate: {len(failures)} of {record.metrics['num_thresholds']} thresholds missed: {'; '.join(failures)}. "
            f"Nothing is exported; see {record.path / 'gate.parquet'}."
        )
    return record


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
