"""The relevance teacher: a language model tuned to give the policy's grades."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from preceptor.contracts import (
    EXAMPLES,
    LABELS,
    NUM_GRADES,
    OVERALL,
    PAIRS,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError
from preceptor.golden import tuning_rows
from preceptor.policy import load_policy
from preceptor.recipe import ClicksConfig, TeacherConfig
from preceptor.record import Record, StageRun, begin

if TYPE_CHECKING:
    from preceptor.ranker.losses import Objective


def relevance_teacher(
    config: TeacherConfig,
    *,
    policy: Path,
    corpus: Record,
    labels: Record | None = None,
    storage: str | None = None,
    out: Path,
) -> Record:
    """The record of the teacher in ``model/``: heads 'overall' and each dimension that its examples grade.

    It learns golden-train grades and, where `labels` are given, the judge's distributions. The heads start as the
    language model's own rows for the digits 0 to 4.
    """
    loaded = load_policy(policy)
    inputs = {"corpus": corpus} | ({"labels": labels} if labels else {})
    run = begin("relevance_teacher", config, out=out, inputs=inputs, policy_version=loaded.version)
    if run.record is not None:
        return run.record
    golden = _golden_rows(corpus.path / "golden")
    if not golden and labels is None:
        raise InputError(f"{corpus.path / 'golden'}: no row of split 'train'. A relevance teacher needs graded pairs.")
    examples = list(golden_examples(golden))
    pairs = {row["pair_id"]: {name: row[name] for name in PAIRS.names} for row in golden}
    if labels is not None:
        examples += label_examples(read_table(labels.path / "labels", LABELS))
        pool = read_table(corpus.path / "pairs", PAIRS).to_pylist()
        pairs = {row["pair_id"]: row for row in pool if row["split"] == "train"} | pairs
        examples = [example for example in examples if example["pair_id"] in pairs]
    graded = {example["head"] for example in examples}
    names = [OVERALL, *(item.name for item in loaded.rubric.dimensions if item.name in graded)]
    write_table(rows_to_table(pairs.values(), PAIRS), out / "training" / "pairs" / "part-0.parquet", PAIRS)
    write_table(rows_to_table(examples, EXAMPLES), out / "training" / "examples" / "part-0.parquet", EXAMPLES)
    return train_teacher(run, config, head_names=names, kind="grade", num_pairs=len(pairs), storage=storage)


def golden_examples(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """EXAMPLES rows with a one-hot target for each GOLDEN row."""
    for row in rows:
        target = [float(grade == row["grade"]) for grade in range(NUM_GRADES)]
        yield {"pair_id": row["pair_id"], "head": row["dimension"], "target": target, "weight": 1.0}


def label_examples(labels: pa.Table) -> list[dict[str, Any]]:
    """EXAMPLES rows with the judge's distribution as the target, weighted by its label mass."""
    return [
        {"pair_id": row["pair_id"], "head": row["dimension"], "target": row["probs"], "weight": row["label_mass"]}
        for row in labels.to_pylist()
        if row["label_mass"] > 0
    ]


def train_teacher(
    run: StageRun,
    config: TeacherConfig,
    *,
    head_names: list[str],
    kind: str,
    num_pairs: int,
    storage: str | None,
    finishing: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Record:
    """The finished record of a teacher trained on ``{run.out}/training``; `finishing` may add to the model's
    directory, and to the metrics, before the record is written."""
    from preceptor.ranker.backbones import resolve_backbone
    from preceptor.ranker.fit import FitJob, fit
    from preceptor.ranker.losses import Objective
    from preceptor.ranker.model import action_heads, grade_heads, init_ranker

    initial = run.out / "initial"
    heads = grade_heads(head_names) if kind == "grade" else action_heads(head_names)
    ranker, tokenizer = init_ranker(config.backbone, resolve_backbone(config.backbone.source), heads)
    num_parameters = sum(weight.numel() for weight in ranker.parameters())
    ranker.set_policy_version(run.policy_version)
    ranker.save(initial, tokenizer)
    del ranker
    objective = (
        Objective(grade=1.0, action=0.0, listwise=config.listwise)
        if kind == "grade"
        else _action_objective(config.clicks)
    )
    result = fit(
        FitJob(
            initial=initial.resolve(),
            pairs=(run.out / "training" / "pairs").resolve(),
            examples=(run.out / "training" / "examples").resolve(),
            out=run.out.resolve(),
            config=config.train,
            objective=objective,
        ),
        name=run.work_name,
        storage=storage,
    )
    shutil.rmtree(initial)
    more = finishing(result.model) if finishing is not None else {}
    return run.finish(
        num_rows_in=num_pairs,
        num_rows_kept=num_pairs,
        metrics={"losses": result.losses, "num_parameters": num_parameters, "heads": head_names, **more},
        cost={"train_s": result.seconds},
    )


def _action_objective(clicks: ClicksConfig) -> Objective:
    from preceptor.ranker.losses import Objective

    if clicks.loss == "within":
        return Objective(grade=0.0, action=0.0, listwise=0.0, action_within=1.0)
    return Objective(grade=0.0, action=1.0, listwise=0.0)


def _golden_rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tuning_rows(folder, split="train").to_pylist()
    return rows
