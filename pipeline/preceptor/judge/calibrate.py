"""The `calibrate` stage: how far a judge agrees with golden, and whether that is enough to label."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import LABELS, NUM_GRADES, OVERALL, PAIRS, content_id, read_table
from preceptor.errors import InputError
from preceptor.evaluation.metrics import bootstrap, confusion, quadratic_kappa
from preceptor.golden import tuning_rows, without_holdout
from preceptor.judge.judges import open_judge
from preceptor.judge.pool import lay_pool
from preceptor.judge.replies import Judge
from preceptor.judge.shards import judge_pool
from preceptor.judge.watch import Watch
from preceptor.policy import load_policy
from preceptor.recipe import JudgeConfig
from preceptor.record import Record, begin

SPLIT: Final = "calibration"

_NUM_BOOTSTRAP: Final = 1000
_SEED: Final = 17

Grades = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Truth and judgement of one dimension, as (truth, predicted) grades of each query."""

    dimension: str
    by_query: Sequence[Grades]

    @property
    def truth(self) -> npt.NDArray[np.int64]:
        """All true grades."""
        return _joined([truth for truth, _ in self.by_query])

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """All judged grades, aligned with `truth`."""
        return _joined([predicted for _, predicted in self.by_query])


@without_holdout
def calibrate(
    config: JudgeConfig,
    *,
    policy: Path,
    corpus: Record,
    teacher: Record | None = None,
    model: str | None = None,
    judge: Judge | None = None,
    watch: Watch | None = None,
    out: Path,
) -> Record:
    """The record of judging golden's calibration pairs; `metrics["passed"]` says whether the judge may label.

    It passes where the lower end of the 95 % interval of the overall quadratic-weighted kappa, bootstrapped by query,
    reaches `config.floor`; the record is written either way. Kappa is over the pairs that got a grade, and 0 where it
    is undefined. With `teacher` the judge is that stage's ``model/``; `judge` stands in for the one `config` names.
    Raises InputError without calibration pairs, RejectCeilingError where too many replies hold no grade.
    """
    loaded = load_policy(policy)
    inputs = {"corpus": corpus} if teacher is None else {"corpus": corpus, "teacher": teacher}
    run = begin("calibrate", config.deciding, out=out, inputs=inputs, policy_version=loaded.version)
    if run.record is not None:
        return run.record
    golden = calibration_rows(corpus.path / "golden", num_pairs=config.num_calibration_pairs)
    device = judge if judge is not None else open_judge(config, loaded, teacher=teacher, model=model)
    pool = lay_pool([golden.select(PAIRS.names)], out / "pool", num_pairs=config.num_calibration_pairs)
    tally = judge_pool(
        device,
        pool,
        run=run,
        policy=loaded,
        max_reject_share=config.max_reject_share,
        max_attempts=config.max_attempts,
        max_cost_usd=config.max_cost_usd,
        watch=watch,
    )
    shutil.rmtree(pool.path)
    labels = read_table(out / "labels", LABELS)
    return run.finish(
        num_rows_in=tally.num_labels + tally.num_rejected,
        num_rows_kept=tally.num_labels,
        rejected=tally.rejected,
        metrics={
            **agreement_metrics(golden, labels, floor=config.floor),
            "num_pairs": tally.num_pairs,
            "label_mass": tally.label_mass / tally.num_labels if tally.num_labels else 0.0,
            "judge_id": device.judge_id,
        },
    )


def calibration_rows(path: Path, *, num_pairs: int) -> pa.Table:
    """GOLDEN rows of the first about `num_pairs` calibration pairs, in whole (query, profile) groups.

    Groups come in the order of a hash, so that a larger number extends the choice and any number samples all slices.
    The first group is always taken. InputError where golden has no calibration pair.
    """
    rows = tuning_rows(path, split=SPLIT)
    if not rows.num_rows:
        raise InputError(f"{path}: no golden pair in split '{SPLIT}'. Add queries to golden.")
    groups: dict[tuple[str, str], set[str]] = {}
    for pair in rows.select(["query_id", "profile_id", "pair_id"]).to_pylist():
        groups.setdefault((pair["query_id"], pair["profile_id"]), set()).add(pair["pair_id"])
    chosen: set[str] = set()
    for group in sorted(groups, key=lambda ids: content_id("calibration", *ids)):
        if chosen and len(chosen) + len(groups[group]) > num_pairs:
            break
        chosen |= groups[group]
    return rows.filter(pc.is_in(rows.column("pair_id"), value_set=pa.array(sorted(chosen))))


def agreement_metrics(golden: pa.Table, labels: pa.Table, *, floor: float) -> dict[str, Any]:
    """Kappa with its interval, the verdict against `floor`, the 5 x 5 confusion (truth down) and kappa by dimension."""
    found = {agreement.dimension: agreement for agreement in agreements(golden, labels)}
    overall = found.get(OVERALL, Agreement(dimension=OVERALL, by_query=[]))
    interval = bootstrap(_kappa, overall.by_query, num=_NUM_BOOTSTRAP, seed=_SEED)
    low = _defined(interval.low)
    counts = confusion(overall.truth, overall.predicted, num_grades=NUM_GRADES)
    return {
        "kappa": _defined(interval.value),
        "kappa_low": low,
        "kappa_high": _defined(interval.high),
        "floor": floor,
        "passed": low >= floor,
        "confusion": counts.astype(int).tolist(),
        "per_dimension": {
            name: _defined(_kappa(agreement.by_query)) for name, agreement in found.items() if name != OVERALL
        },
    }


def agreements(golden: pa.Table, labels: pa.Table) -> list[Agreement]:
    """Golden and judged grades of each dimension that both have, paired by pair and gathered by query."""
    judged = {
        (row["pair_id"], row["dimension"]): row["grade"]
        for row in labels.select(["pair_id", "dimension", "grade"]).to_pylist()
    }
    gathered: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for row in golden.select(["pair_id", "query_id", "dimension", "grade"]).to_pylist():
        grade = judged.get((row["pair_id"], row["dimension"]))
        if grade is not None:
            gathered.setdefault(row["dimension"], {}).setdefault(row["query_id"], []).append((row["grade"], grade))
    return [
        Agreement(
            dimension=dimension,
            by_query=[(np.array([t for t, _ in rows]), np.array([p for _, p in rows])) for rows in queries.values()],
        )
        for dimension, queries in gathered.items()
    ]


def _kappa(by_query: Sequence[Grades]) -> float:
    truth = _joined([truth for truth, _ in by_query])
    return quadratic_kappa(truth, _joined([predicted for _, predicted in by_query]), num_grades=NUM_GRADES)


def _joined(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _defined(value: float) -> float:
    return value if math.isfinite(value) else 0.0
