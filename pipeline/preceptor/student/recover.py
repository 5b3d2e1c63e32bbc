"""The `recover` stage: a pruned student learns again from the very lesson that it was distilled with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preceptor.recipe import DistillConfig, PruneConfig
from preceptor.record import Record, begin
from preceptor.student.distill import fit_lesson


def recover(
    config: PruneConfig,
    lesson: DistillConfig,
    *,
    student: Record,
    pruned: Record,
    round: int = 1,
    storage: str | None = None,
    out: Path,
) -> Record:
    """The record of the student in ``model/`` after recovery: the pruned one trained on, from the same stored scores.

    `student` is the distilled one, whose training pairs and examples in ``training/`` are read again; `lesson` is what
    it was told, and the loss is its loss. How long, and how fast, is what `config` says of `round`.
    """
    wanted = replace(lesson, train=config.recovery(lesson.train, round=round))
    inputs = {"student": student, "pruned": pruned}
    run = begin("recover", wanted, out=out, inputs=inputs, policy_version=student.policy_version)
    if run.record is not None:
        return run.record
    result = fit_lesson(run, wanted, initial=pruned.path / "model", training=student.path / "training", storage=storage)
    return run.finish(
        num_rows_in=student.num_rows_in,
        num_rows_kept=student.num_rows_kept,
        metrics={"losses": result.losses, "parameters": pruned.metrics["parameters"]["after"]},
        cost={"train_s": result.seconds},
    )
