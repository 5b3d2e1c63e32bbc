"""The `rerank_report` stage: NDCG@10 of job matching for baselines, relevance teacher and student, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from preceptor.contracts import OVERALL, read_table, rows_to_table, write_table
from preceptor.evaluation.holdout import Predictions, expected_gain
from preceptor.evaluation.sheets import METRIC, Sheet, interval_words, write_text
from preceptor.record import Record, begin
from preceptor.sources.jobmatch_eval import Group, Ranking, rerank_ndcg
from preceptor.sources.tables import RANKED, RANKINGS

_QUERIES: Final = {"title_description": "title + description", "reported_title": "one reported title"}
_CAPTION: Final = (
    "Over all postings, with 95 % bootstrap intervals over occupations. Occupations, postings and their judgements are "
    "real (O*NET, ESCO and their crosswalk); a posting that the crosswalk does not list counts as grade 0, which is an "
    "assumption. Models reorder the first {depth} postings of MiniLM; '+ similarity' adds its similarity to the "
    "model's score, with a weight chosen on calibration queries; 'all postings' is the teacher's own order of all. "
    "The clicks that the student also learned from are simulated."
)


@dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """How many candidates of a query the models reorder, and how intervals are drawn."""

    depth: int = 20
    num_bootstrap: int = 1000
    seed: int = 11


DEFAULTS: Final = RerankConfig()


def rerank_report(
    *, corpus: Record, teacher: Record, student: Record, config: RerankConfig = DEFAULTS, out: Path
) -> Record:
    """The record of the table of NDCG@10 in `out`: ``rerank.parquet`` (RANKINGS) and ``table.md``.

    `corpus` is a finished jobmatch stage. `teacher` and `student` are prediction stages whose TEACHER_SCORES hold the
    head 'overall' for the first `config.depth` candidates of every holdout and calibration query; InputError where
    some lack. A model ranks by the expected gain of its grades.
    """
    run = begin("rerank_report", config, out=out, inputs={"corpus": corpus, "teacher": teacher, "student": student})
    if run.record is not None:
        return run.record
    rankings = rerank_ndcg(
        corpus.path,
        {"relevance_teacher": expected_gains(teacher), "student": expected_gains(student)},
        ranked={"relevance_teacher": orders} if (orders := ranked_postings(teacher)) else {},
        depth=config.depth,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
    )
    write_table(rows_to_table(map(_row, rankings), RANKINGS), out / "rerank.parquet", RANKINGS)
    sheet = rerank_sheet(rankings, depth=config.depth)
    write_text(out / "table.md", sheet.markdown())
    num_queries = sum({item.slice: item.num_queries for item in rankings}.values())
    return run.finish(
        num_rows_in=num_queries,
        num_rows_kept=num_queries,
        metrics={
            METRIC: sheet.as_metric(),
            "values": {f"{item.slice} {item.system}": item.ndcg.value for item in rankings},
        },
    )


def expected_gains(scores: Record) -> dict[str, float]:
    """The expected gain of every pair that `scores` grades, by pair_id; InputError where logits are unsound."""
    predictions = Predictions(file=scores.path / "scores")
    pair_ids = predictions.table.filter(pc.equal(predictions.table["head"], OVERALL))["pair_id"]
    if not len(pair_ids):
        return {}
    gains = expected_gain(predictions.of(OVERALL, pair_ids))
    return dict(zip(pair_ids.to_pylist(), gains.tolist(), strict=True))


def ranked_postings(scores: Record) -> dict[Group, list[str]]:
    """The postings of each held-out query in the order `scores` keeps; empty where it keeps none (RANKED)."""
    orders: dict[Group, list[str]] = {}
    if (scores.path / "ranked").is_dir():
        table = read_table(scores.path / "ranked", RANKED).sort_by("rank")
        for row in table.to_pylist():
            orders.setdefault((row["query_id"], row["profile_id"]), []).append(row["document_key"])
    return orders


def rerank_sheet(rankings: Sequence[Ranking], *, depth: int) -> Sheet:
    """The rankings in words, slice by slice, title + description first."""
    order = list(_QUERIES)
    rows = []
    for item in sorted(rankings, key=lambda item: order.index(item.slice)):
        value, interval = interval_words(item.ndcg)
        weighted = "" if item.similarity_weight is None else f" (weight {item.similarity_weight:.1f})"
        more = f"{item.gain.value:+.3f} [{item.gain.low:+.3f}, {item.gain.high:+.3f}]"
        rows.append((_QUERIES[item.slice], f"{item.system}{weighted}", value, interval, more, f"{item.num_queries:,}"))
    return Sheet(
        title="Job matching: NDCG@10 on held-out occupations",
        caption=_CAPTION.format(depth=depth),
        header=("query", "system", "NDCG@10", "interval", "over MiniLM, paired", "queries"),
        rows=tuple(rows),
    )


def _row(item: Ranking) -> dict[str, object]:
    return {
        "slice": item.slice,
        "system": item.system,
        "ndcg": item.ndcg.value,
        "low": item.ndcg.low,
        "high": item.ndcg.high,
        "gain": item.gain.value,
        "gain_low": item.gain.low,
        "gain_high": item.gain.high,
        "num_queries": item.num_queries,
        "similarity_weight": item.similarity_weight or 0.0,
    }
