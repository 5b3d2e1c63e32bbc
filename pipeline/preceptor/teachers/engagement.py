"""The engagement teacher: learns what members do with a document, corrected for where it was shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import (
    ACTIONS,
    COUNTS,
    EXAMPLES,
    IMPRESSIONS,
    PAIRS,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError
from preceptor.recipe import TeacherConfig
from preceptor.record import Record, begin
from preceptor.teachers.relevance import train_teacher

MIN_PROPENSITY: Final = 0.05
"""Rarely examined positions count at least this much, so that one click there cannot dominate."""


def engagement_teacher(config: TeacherConfig, *, corpus: Record, storage: str | None = None, out: Path) -> Record:
    """The record of the teacher in ``model/`` with one action head for each action that was ever taken."""
    run = begin("engagement_teacher", config, out=out, inputs={"corpus": corpus})
    if run.record is not None:
        return run.record
    shown = [row for row in exposures(corpus) if row["split"] == "train"]
    if not shown:
        raise InputError(
            f"{corpus.path}: no impression of split 'train'. An engagement teacher needs impressions/ or counts/."
        )
    examples = list(click_examples(shown))
    wanted = {row["pair_id"] for row in examples}
    pairs = {row["pair_id"]: row for row in read_table(corpus.path / "pairs", PAIRS).to_pylist()}
    kept = [pairs[pair_id] for pair_id in sorted(wanted & pairs.keys())]
    write_table(rows_to_table(kept, PAIRS), out / "training" / "pairs" / "part-0.parquet", PAIRS)
    write_table(rows_to_table(examples, EXAMPLES), out / "training" / "examples" / "part-0.parquet", EXAMPLES)
    heads = [action for action in ACTIONS if any(row["head"] == action for row in examples)]
    return train_teacher(run, config, head_names=heads, kind="action", num_pairs=len(kept), storage=storage)


def exposures(corpus: Record) -> Iterator[Mapping[str, Any]]:
    """Rows {pair_id, split, shown, examined, click, apply}: one an impression, or one a headline's counts.

    `examined` is the expected number of times the document was looked at: the propensity of an impression, or the
    number shown where exposure was randomised and counts are all there is.
    """
    counts = corpus.path / "counts"
    if counts.is_dir():
        for row in read_table(counts, COUNTS).to_pylist():
            shown = float(row["num_shown"])
            yield {**row, "shown": shown, "examined": shown, "click": float(row["num_clicks"]), "apply": None}
        return
    for row in read_table(corpus.path / "impressions", IMPRESSIONS).to_pylist():
        examined = max(row["propensity"], MIN_PROPENSITY)
        yield {**row, "shown": 1.0, "examined": examined, "click": float(row["click"]), "apply": float(row["apply"])}


def click_examples(shown: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """EXAMPLES rows for each pair and action: the rate given examination, weighted by expected examinations.

    Under the position-based model P(action) = examination * attraction (Richardson et al. 2007), so actions divided by
    the sum of propensities is an unbiased estimate of attraction, and cross-entropy weighted by that sum has its
    minimum there. Rates above 1, possible by chance, are cut to 1.
    """
    totals: dict[str, dict[str, float]] = {}
    for row in shown:
        total = totals.setdefault(row["pair_id"], {"examined": 0.0})
        total["examined"] += row["examined"]
        for action in ACTIONS:
            if row[action] is not None:
                total[action] = total.get(action, 0.0) + row[action]
    taken = {action for total in totals.values() for action in ACTIONS if total.get(action, 0.0) > 0}
    for pair_id, total in totals.items():
        for action in ACTIONS:
            if action in taken and action in total:
                rate = min(total[action] / total["examined"], 1.0)
                yield {"pair_id": pair_id, "head": action, "target": [rate], "weight": total["examined"]}
