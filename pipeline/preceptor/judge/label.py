"""The `label` stage: a calibrated judge grades the corpus pool, block by block."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.capacity import PAIRS_PER_BLOCK, PAIRS_PER_SHARD
from preceptor.contracts import PAIRS, iter_batches, parquet_files, read_parquet
from preceptor.errors import InputError, JudgeRefused
from preceptor.judge.agreement import EVERY_SLICE, cells_of_json
from preceptor.judge.judges import open_judge
from preceptor.judge.pool import Pool, lay_pool
from preceptor.judge.replies import Judge
from preceptor.judge.reuse import Forecast
from preceptor.judge.shards import forecast, judge_pool
from preceptor.judge.tally import usage_metrics
from preceptor.judge.watch import Watch
from preceptor.policy import Policy, load_policy
from preceptor.recipe import JudgeConfig
from preceptor.record import Record, begin

_TOLD_LENIENCY: Final = 0.1
"""A mean difference of fewer grades than this is no direction."""


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """All that decides which labels a run gives and how its parts are cut."""

    judge: JudgeConfig
    splits: tuple[str, ...]
    pairs_per_block: int
    pairs_per_shard: int


def label(
    config: JudgeConfig,
    *,
    policy: Path,
    corpus: Record,
    calibration: Record,
    teacher: Record | None = None,
    model: str | None = None,
    splits: Sequence[str] = ("train",),
    pairs_per_block: int = PAIRS_PER_BLOCK,
    pairs_per_shard: int = PAIRS_PER_SHARD,
    judge: Judge | None = None,
    watch: Watch | None = None,
    out: Path,
) -> Record:
    """The record of labelling the corpus pairs of `splits`: each (pair, dimension) once, as a label or as a reject.

    A label that another version in `out`'s folder gave, and that still holds (`preceptor.judge.reuse`), is taken over.
    A hosted teacher also leaves the raw logits of all its heads in ``scores/``. A rerun after a crash computes only
    blocks that are not whole, and blocks with rejects that another try may cure. `judge` stands in for the one
    `config` names. Raises JudgeRefused unless `calibration` passed for this very judge and policy, RejectCeilingError
    above `config.max_reject_share`, SpendCeilingError at `config.max_cost_usd`, InputError where `splits` hold no pair,
    StageFailed where the engine gives up.
    """
    loaded = load_policy(policy)
    device = judge if judge is not None else open_judge(config, loaded, teacher=teacher, model=model)
    require_calibrated(device, calibration, loaded)
    inputs = {"corpus": corpus, "calibration": calibration}
    run = begin(
        "label",
        LabelPlan(
            judge=config.deciding,
            splits=tuple(splits),
            pairs_per_block=pairs_per_block,
            pairs_per_shard=pairs_per_shard,
        ),
        out=out,
        inputs=inputs if teacher is None else {**inputs, "teacher": teacher},
        policy_version=loaded.version,
    )
    if run.record is not None:
        return run.record
    pool = open_pool(corpus, splits, out / "pool", pairs_per_block=pairs_per_block, pairs_per_shard=pairs_per_shard)
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
    # The corpus holds these texts already.
    shutil.rmtree(pool.path)
    return run.finish(
        num_rows_in=tally.num_labels + tally.num_rejected,
        num_rows_kept=tally.num_labels,
        rejected=tally.rejected,
        metrics={
            "judge_id": device.judge_id,
            "num_pairs": tally.num_pairs,
            "num_shards": len(pool.shards),
            "label_mass": tally.label_mass / tally.num_labels if tally.num_labels else 0.0,
            "num_one_hot": tally.num_one_hot,
            "overall_grades": list(tally.overall_grades),
            "asked": dict(tally.asked),
            "reused": dict(tally.reused),
            "num_rows_asked": tally.num_asked,
            "num_rows_reused": tally.num_reused,
            **usage_metrics(tally),
        },
    )


def label_forecast(
    judge: Judge,
    *,
    policy: Path,
    corpus: Record,
    splits: Sequence[str] = ("train",),
    pairs_per_block: int = PAIRS_PER_BLOCK,
    pairs_per_shard: int = PAIRS_PER_SHARD,
    out: Path,
) -> Forecast:
    """What `label` would ask, reuse and ask again, had it the same arguments; nothing is asked.

    The pool is laid out in a folder that is deleted again, unless a run has left its own.
    """
    with tempfile.TemporaryDirectory(prefix="preceptor-pool-") as folder:
        path = out / "pool" if (out / "pool" / "pool.json").is_file() else Path(folder)
        pool = open_pool(corpus, splits, path, pairs_per_block=pairs_per_block, pairs_per_shard=pairs_per_shard)
        return forecast(judge, pool, out=out, stage="label", policy=load_policy(policy))


def require_calibrated(judge: Judge, calibration: Record, policy: Policy) -> None:
    """Nothing, where `calibration` passed for this judge and policy; JudgeRefused otherwise."""
    metrics = calibration.metrics
    if metrics["judge_id"] != judge.judge_id:
        raise JudgeRefused(
            f"judge {judge.judge_id} has no calibration: {calibration.path} measured {metrics['judge_id']}. "
            "Calibrate this judge first."
        )
    if calibration.policy_version != policy.version:
        raise JudgeRefused(
            f"judge {judge.judge_id} was calibrated under policy {calibration.policy_version}, "
            f"the policy is {policy.version} now. Calibrate it again."
        )
    if metrics["passed"]:
        return
    raise JudgeRefused(
        f"judge {judge.judge_id} may not label: kappa {metrics['kappa']:.3f} "
        f"[{metrics['kappa_low']:.3f}, {metrics['kappa_high']:.3f}], the lower end is "
        f"{metrics['floor'] - metrics['kappa_low']:.3f} under the floor {metrics['floor']:.3f}{_weakest(metrics)}. "
        "Tune a teacher on golden, sharpen that dimension's anchors, or choose a stronger judge."
    )


def _weakest(metrics: Mapping[str, Any]) -> str:
    """Which dimension agrees least, by how much, in which direction and in which slice, as far as it is measured."""
    by_dimension = metrics["per_dimension"]
    if not by_dimension:
        return ""
    worst = min(by_dimension, key=by_dimension.__getitem__)
    said = f"; worst dimension '{worst}' ({by_dimension[worst]:.3f}"
    cells = [cell for cell in cells_of_json(metrics.get("agreement", ())) if cell.dimension == worst]
    for cell in cells:
        if cell.slice == EVERY_SLICE and abs(cell.leniency) >= _TOLD_LENIENCY:
            said += f", on average {abs(cell.leniency):.2f} grades too {'lenient' if cell.leniency > 0 else 'strict'}"
    slices = [cell for cell in cells if cell.slice != EVERY_SLICE and math.isfinite(cell.quadratic.value)]
    if len(slices) > 1:
        lowest = min(slices, key=lambda cell: cell.quadratic.value)
        said += f", lowest in slice '{lowest.slice}' ({lowest.quadratic.value:.3f})"
    return f"{said})"


def open_pool(corpus: Record, splits: Sequence[str], path: Path, *, pairs_per_block: int, pairs_per_shard: int) -> Pool:
    """The corpus pairs of `splits`, laid out in `path`; InputError where there is none."""
    folder = corpus.path / "pairs"
    have = Counter[str]()
    for file in parquet_files(folder):
        for split in read_parquet(file, columns=["split"]).column("split").value_counts().to_pylist():
            have[split["values"]] += split["counts"]
    num_pairs = sum(have[split] for split in splits)
    if not num_pairs:
        there = ", ".join(sorted(have)) or "none"
        raise InputError(
            f"{folder}: no pair in splits {', '.join(splits)}; splits there: {there}. Ask for one of those."
        )
    chosen = (
        table.filter(pc.is_in(table.column("split"), value_set=pa.array(list(splits))))
        for table in iter_batches(folder, PAIRS)
    )
    return lay_pool(chosen, path, num_pairs=num_pairs, pairs_per_block=pairs_per_block, pairs_per_shard=pairs_per_shard)
