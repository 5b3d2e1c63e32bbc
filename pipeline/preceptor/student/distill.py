"""Distillation: one small student learns from the stored scores of both teachers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preceptor.contracts import (
    EXAMPLES,
    NUM_GRADES,
    OVERALL,
    PAIRS,
    TEACHER_SCORES,
    iter_tables,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError
from preceptor.logits import sigmoid, softmax
from preceptor.recipe import DistillConfig
from preceptor.record import Record, StageRun, begin


def distill(
    config: DistillConfig,
    *,
    corpus: Record,
    relevance: Record,
    relevance_scores: Record,
    engagement_scores: Record,
    storage: str | None = None,
    out: Path,
) -> Record:
    """The record of the student in ``model/``: head 'overall' and one for each action, in fewer layers.

    It starts from evenly spaced layers of the relevance teacher, or from a backbone of its own. Its loss is the graded
    KL to the relevance teacher's distribution at `config.temperature` and the cross-entropy to the engagement
    teacher's probabilities, mixed by `config.mix`. A pair with one teacher's scores alone is learnt from that one (the
    other head is masked).
    """
    inputs = {
        "corpus": corpus,
        "relevance": relevance,
        "relevance_scores": relevance_scores,
        "engagement_scores": engagement_scores,
    }
    run = begin("distill", config, out=out, inputs=inputs, policy_version=relevance.policy_version)
    if run.record is not None:
        return run.record
    pool = {row["pair_id"]: row for row in read_table(corpus.path / "pairs", PAIRS).to_pylist()}
    train = {pair_id for pair_id, row in pool.items() if row["split"] == "train"}
    examples = [
        row
        for scores in (relevance_scores, engagement_scores)
        for row in score_examples(scores.path / "scores", temperature=config.temperature)
        if row["pair_id"] in train
    ]
    if not examples:
        raise InputError(f"{relevance_scores.path}: no score of a train pair. Score the pool with both teachers first.")
    used = sorted({row["pair_id"] for row in examples})
    write_table(rows_to_table((pool[i] for i in used), PAIRS), out / "training" / "pairs" / "part-0.parquet", PAIRS)
    write_table(rows_to_table(examples, EXAMPLES), out / "training" / "examples" / "part-0.parquet", EXAMPLES)
    actions = sorted({row["head"] for row in examples} - {OVERALL}, reverse=True)
    return _train(run, config, relevance=relevance, actions=actions, num_pairs=len(used), storage=storage)


def score_examples(scores: Path, *, temperature: float) -> Iterator[dict[str, Any]]:
    """EXAMPLES rows from TEACHER_SCORES: 'overall' grades and actions as probabilities; dimensions are left out."""
    for table in iter_tables(scores, TEACHER_SCORES):
        for row in table.to_pylist():
            if not all(map(math.isfinite, row["logits"])):
                raise InputError(
                    f"{scores}: head '{row['head']}' of pair {row['pair_id']} has logits {row['logits']}, not finite. "
                    "The teacher diverged: lower its learning rate and train it again."
                )
            if row["head"] == OVERALL:
                if len(row["logits"]) != NUM_GRADES:
                    raise InputError(
                        f"{scores}: head '{OVERALL}' of pair {row['pair_id']}: expected {NUM_GRADES} logits, "
                        f"got {len(row['logits'])}. Score the pairs again with this version."
                    )
                target = list(softmax([logit / temperature for logit in row["logits"]]))
            elif len(row["logits"]) == 1:
                target = [sigmoid(row["logits"][0])]
            else:
                continue
            yield {"pair_id": row["pair_id"], "head": row["head"], "target": target, "weight": 1.0}


def _train(
    run: StageRun, config: DistillConfig, *, relevance: Record, actions: list[str], num_pairs: int, storage: str | None
) -> Record:
    from preceptor.ranker.fit import FitJob, fit
    from preceptor.ranker.losses import Objective
    from preceptor.ranker.model import action_heads, grade_heads, load_ranker

    teacher, _ = load_ranker(relevance.path / "model")
    num_teacher = _layer_parameters(teacher)
    student, tokenizer = _start(config, teacher, relevance, (*grade_heads([OVERALL]), *action_heads(actions)))
    num_student = _layer_parameters(student)
    initial = run.out / "initial"
    student.set_policy_version(run.policy_version)
    student.save(initial, tokenizer)
    del teacher, student
    result = fit(
        FitJob(
            initial=initial.resolve(),
            pairs=(run.out / "training" / "pairs").resolve(),
            examples=(run.out / "training" / "examples").resolve(),
            out=run.out.resolve(),
            config=config.train,
            objective=Objective(
                grade=config.mix.relevance,
                action=config.mix.engagement,
                listwise=config.mix.relevance * config.listwise,
            ),
        ),
        name=run.work_name,
        storage=storage,
    )
    shutil.rmtree(initial)
    return run.finish(
        num_rows_in=num_pairs,
        num_rows_kept=num_pairs,
        metrics={
            "losses": result.losses,
            "num_layer_parameters": num_student,
            "share_of_teacher": num_student / num_teacher,
        },
        cost={"train_s": result.seconds},
    )


def _start(config: DistillConfig, teacher: Any, relevance: Record, heads: Any) -> tuple[Any, Any]:
    """The student before its first step, and its tokenizer."""
    from preceptor.ranker.backbones import resolve_backbone
    from preceptor.ranker.model import init_ranker, load_tokenizer, spaced_layers, with_heads

    if config.backbone is not None:
        return init_ranker(config.backbone, resolve_backbone(config.backbone.source), heads)
    assert config.num_layers is not None
    tokenizer = load_tokenizer(relevance.path / "model")
    return spaced_layers(with_heads(teacher, heads, tokenizer), config.num_layers), tokenizer


def _layer_parameters(ranker: Any) -> int:
    return sum(weight.numel() for weight in ranker.classifier.model.layers.parameters())
