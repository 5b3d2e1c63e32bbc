"""The `calibrate` stage: how far a judge agrees with golden, and whether that is enough to label."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import LABELS, NUM_GRADES, OVERALL, PAIRS, content_id, read_table
from preceptor.errors import InputError
from preceptor.golden import tuning_rows, without_holdout
from preceptor.judge.agreement import EVERY_SLICE, Cell, agreement_table, cells_to_json
from preceptor.judge.consistency import examined, sample_pairs, self_agreement
from preceptor.judge.judges import open_judge
from preceptor.judge.pool import lay_pool
from preceptor.judge.replies import Judge
from preceptor.judge.shards import judge_pool
from preceptor.judge.watch import Watch
from preceptor.policy import load_policy
from preceptor.recipe import JudgeConfig
from preceptor.record import Record, begin

SPLIT: Final = "calibration"


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
    is undefined. ``metrics["agreement"]`` holds every cell (`agreement_table`), ``metrics["consistency"]`` the judge's
    agreement with itself. Labels that another version in `out`'s folder gave, and that still hold, are taken over;
    ``metrics["reused"]`` and ``["asked"]`` count both by dimension. With `teacher` the judge is that stage's
    ``model/``; `judge` stands in for the one `config` names.
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
        examined(device, loaded, sample=sample_pairs(golden), out=out),
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
            "consistency": self_agreement(golden, labels, out),
            "num_pairs": tally.num_pairs,
            "asked": dict(tally.asked),
            "reused": dict(tally.reused),
            "num_rows_asked": tally.num_asked,
            "num_rows_reused": tally.num_reused,
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
    """Every cell of agreement, and of the overall grade: kappa with its interval, the verdict against `floor`, the
    confusion (truth down) and, beside it, quadratic kappa by dimension."""
    cells = agreement_table(golden, labels)
    whole = {cell.dimension: cell for cell in cells if cell.slice == EVERY_SLICE}
    return {
        **_verdict(whole.get(OVERALL), floor=floor),
        "per_dimension": {name: _defined(cell.quadratic.value) for name, cell in whole.items() if name != OVERALL},
        "agreement": cells_to_json(cells),
    }


def _verdict(overall: Cell | None, *, floor: float) -> dict[str, Any]:
    if overall is None:
        nothing = [[0] * NUM_GRADES for _ in range(NUM_GRADES)]
        kappas = {"kappa": 0.0, "kappa_low": 0.0, "kappa_high": 0.0}
        return {**kappas, "floor": floor, "passed": floor <= 0.0, "confusion": nothing}
    low = _defined(overall.quadratic.low)
    return {
        "kappa": _defined(overall.quadratic.value),
        "kappa_low": low,
        "kappa_high": _defined(overall.quadratic.high),
        "floor": floor,
        "passed": low >= floor,
        "confusion": [list(line) for line in overall.confusion],
    }


def _defined(value: float) -> float:
    return value if math.isfinite(value) else 0.0
