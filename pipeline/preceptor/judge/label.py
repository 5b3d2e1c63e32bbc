"""The `label` stage: a calibrated judge grades the corpus pool, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import PAIRS, read_table
from preceptor.errors import InputError, JudgeRefused
from preceptor.judge.blocks import blocks_of, forecast, judge_blocks, ordered
from preceptor.judge.judges import open_judge
from preceptor.judge.replies import Judge
from preceptor.judge.reuse import Forecast
from preceptor.judge.watch import Watch
from preceptor.policy import Policy, load_policy
from preceptor.recipe import JudgeConfig
from preceptor.record import Record, begin

PAIRS_PER_BLOCK: Final = 256
"""What a killed run computes again is at most the blocks in flight, of this many pairs each."""


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """All that decides which labels a run gives and how its parts are cut."""

    judge: JudgeConfig
    splits: tuple[str, ...]
    pairs_per_block: int


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
    judge: Judge | None = None,
    watch: Watch | None = None,
    out: Path,
) -> Record:
    """The record of labelling the corpus pairs of `splits`: each (pair, dimension) once, as a label or as a reject.

    A label that another version in `out`'s folder gave, and that still holds (`preceptor.judge.reuse`), is taken over.
    A hosted teacher also leaves the raw logits of all its heads in ``scores/``. A rerun after a crash computes only
    blocks that are not whole, and blocks with rejects that another try may cure. `judge` stands in for the one
    `config` names. Raises JudgeRefused unless `calibration` passed for this very judge and policy, RejectCeilingError
    above `config.max_reject_share`, InputError where `splits` hold no pair, StageFailed where the engine gives up.
    """
    loaded = load_policy(policy)
    device = judge if judge is not None else open_judge(config, loaded, teacher=teacher, model=model)
    require_calibrated(device, calibration, loaded)
    inputs = {"corpus": corpus, "calibration": calibration}
    run = begin(
        "label",
        LabelPlan(judge=config, splits=tuple(splits), pairs_per_block=pairs_per_block),
        out=out,
        inputs=inputs if teacher is None else {**inputs, "teacher": teacher},
        policy_version=loaded.version,
    )
    if run.record is not None:
        return run.record
    pairs = pool_pairs(corpus.path / "pairs", splits)
    blocks = blocks_of(pairs, pairs_per_block=pairs_per_block)
    tally = judge_blocks(device, blocks, run=run, policy=loaded, max_reject_share=config.max_reject_share, watch=watch)
    return run.finish(
        num_rows_in=tally.num_labels + sum(tally.rejected.values()),
        num_rows_kept=tally.num_labels,
        rejected=tally.rejected,
        metrics={
            "judge_id": device.judge_id,
            "num_pairs": pairs.num_rows,
            "label_mass": tally.label_mass,
            "num_one_hot": tally.num_one_hot,
            "overall_grades": tally.overall_grades,
            "num_blocks": len(blocks),
            "num_blocks_computed": tally.num_blocks_computed,
            "num_rows_reused": tally.num_rows_reused,
        },
    )


def label_forecast(
    judge: Judge,
    *,
    policy: Path,
    corpus: Record,
    splits: Sequence[str] = ("train",),
    pairs_per_block: int = PAIRS_PER_BLOCK,
    out: Path,
) -> Forecast:
    """What `label` would ask, reuse and ask again, had it the same arguments; nothing is asked or written."""
    blocks = blocks_of(pool_pairs(corpus.path / "pairs", splits), pairs_per_block=pairs_per_block)
    return forecast(judge, blocks, out=out, policy=load_policy(policy))


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
    by_dimension = metrics["per_dimension"]
    worst = min(by_dimension, key=by_dimension.__getitem__) if by_dimension else None
    weakest = f"; worst dimension '{worst}' ({by_dimension[worst]:.3f})" if worst is not None else ""
    raise JudgeRefused(
        f"judge {judge.judge_id} may not label: kappa {metrics['kappa']:.3f} "
        f"[{metrics['kappa_low']:.3f}, {metrics['kappa_high']:.3f}], the lower end is "
        f"{metrics['floor'] - metrics['kappa_low']:.3f} under the floor {metrics['floor']:.3f}{weakest}. "
        "Tune a teacher on golden, sharpen that dimension's anchors, or choose a stronger judge."
    )


def pool_pairs(path: Path, splits: Sequence[str]) -> pa.Table:
    """The PAIRS of `splits`, each pair once, in the order they are judged in; InputError where there is none."""
    pool = read_table(path, PAIRS)
    chosen = pool.filter(pc.is_in(pool.column("split"), value_set=pa.array(list(splits))))
    if not chosen.num_rows:
        have = ", ".join(sorted(set(pool.column("split").to_pylist()))) or "none"
        raise InputError(f"{path}: no pair in splits {', '.join(splits)}; splits there: {have}. Ask for one of those.")
    return ordered(chosen)
