"""Distillation: one small student learns from the stored scores of any number of teachers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor.contracts import (
    EXAMPLES,
    NUM_GRADES,
    OVERALL,
    PAIRS,
    TEACHER_SCORES,
    content_id,
    iter_tables,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError
from preceptor.logits import sigmoid, softmax
from preceptor.recipe import DistillConfig, Voice
from preceptor.record import Record, StageRun, begin, read_record

if TYPE_CHECKING:
    from preceptor.ranker.fit import FitResult
    from preceptor.ranker.losses import Objective


def distill(
    config: DistillConfig,
    *,
    corpus: Record,
    relevance: Record,
    scores: Mapping[str, Record],
    storage: str | None = None,
    out: Path,
) -> Record:
    """The record of the student in ``model/``: head 'overall' and one for each action, in fewer layers.

    It starts from evenly spaced layers of the relevance teacher, or from a backbone of its own. `scores` holds the
    stored scores of each of `config.heard`, by the teacher's name. Its loss is the graded KL to the distributions of
    grades and the cross-entropy to the probabilities of actions, and what `config` adds, mixed by `config.mix`. A pair
    is learnt from those that scored it and are heard on it (a head that none speaks for is masked).
    """
    heard = {voice: scores[voice.teacher] for voice in config.heard}
    inputs = {"corpus": corpus, "relevance": relevance}
    inputs |= {f"{voice.teacher}_scores": record for voice, record in heard.items()}
    run = begin("distill", config, out=out, inputs=inputs, policy_version=relevance.policy_version)
    if run.record is not None:
        return run.record
    pool = {row["pair_id"]: row for row in read_table(corpus.path / "pairs", PAIRS).to_pylist()}
    slices = learnable(pool.values(), share=config.share)
    if not slices:
        raise InputError(f"{corpus.path}: no train query in a share of {config.share}. Raise the student's share.")
    examples = merged(
        row for voice, record in heard.items() for row in voice_examples(record.path / "scores", voice, slices)
    )
    if not examples:
        places = ", ".join(str(record.path) for record in heard.values())
        raise InputError(f"{places}: no score of a train pair. Score the pool with all teachers first.")
    used = sorted({row["pair_id"] for row in examples})
    write_table(rows_to_table((pool[i] for i in used), PAIRS), out / "training" / "pairs" / "part-0.parquet", PAIRS)
    write_table(rows_to_table(examples, EXAMPLES), out / "training" / "examples" / "part-0.parquet", EXAMPLES)
    actions = sorted({row["head"] for row in examples} - {OVERALL}, reverse=True)
    return _train(run, config, relevance=relevance, actions=actions, num_pairs=len(used), storage=storage)


def learnable(pool: Iterable[Mapping[str, Any]], *, share: float) -> dict[str, str]:
    """The slice of each train pair in `pool` (PAIRS rows) whose query is drawn into `share`."""
    return {
        row["pair_id"]: row["slice"] for row in pool if row["split"] == "train" and is_drawn(row["query_id"], share)
    }


def is_drawn(query_id: str, share: float) -> bool:
    """Whether a student of this `share` of the queries learns from the query; what a smaller share draws, it draws."""
    return int(content_id("share", query_id), 16) < share * 2**64


def stored_scores(voice: Voice) -> Record:
    """The record of the scores that a voice from another run names; InputError where they are not finished."""
    assert voice.scores is not None
    record = read_record(voice.scores)
    if record is None:
        raise InputError(
            f"{voice.scores}: no finished scores stage for voice '{voice.teacher}'. "
            "Name the directory that holds its record.json, such as runs/other/relevance_scores/v1."
        )
    return record


def voice_examples(scores: Path, voice: Voice, slices: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """EXAMPLES rows of what `voice` says of the pairs in `slices`: 'overall' grades and actions as targets.

    `slices` names the slice of each pair that may be learnt. Other heads, dimensions among them, are left out.
    """
    for table in iter_tables(scores, TEACHER_SCORES):
        for row in table.to_pylist():
            head, pair_id = row["head"], row["pair_id"]
            if not all(map(math.isfinite, row["logits"])):
                raise InputError(
                    f"{scores}: head '{head}' of pair {pair_id} has logits {row['logits']}, not finite. "
                    "The teacher diverged: lower its learning rate and train it again."
                )
            masked = voice.slices and slices.get(pair_id) not in voice.slices
            if pair_id not in slices or masked or (voice.heads and head not in voice.heads):
                continue
            target = _target(row, scores, voice.temperature)
            if target is None or (head != OVERALL and target[0] < voice.least):
                continue
            target = hardened(target) if voice.targets == "hard" else target
            yield {"pair_id": pair_id, "head": head, "target": target, "weight": voice.weight}


def hardened(target: Sequence[float]) -> list[float]:
    """All of the probability on the most probable grade, the lower of equals; of an action 1 from one half on, or 0."""
    if len(target) == 1:
        return [float(target[0] >= 0.5)]
    top = max(range(len(target)), key=lambda grade: target[grade])
    return [float(grade == top) for grade in range(len(target))]


def _target(row: Mapping[str, Any], scores: Path, temperature: float) -> list[float] | None:
    """The row's probabilities at `temperature`, None for a head that the student lacks."""
    logits = row["logits"]
    if row["head"] == OVERALL:
        if len(logits) != NUM_GRADES:
            raise InputError(
                f"{scores}: head '{OVERALL}' of pair {row['pair_id']}: expected {NUM_GRADES} logits, "
                f"got {len(logits)}. Score the pairs again with this version."
            )
        return list(softmax([logit / temperature for logit in logits]))
    return [sigmoid(logits[0] / temperature)] if len(logits) == 1 else None


def merged(examples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each pair and head: where several voices speak, their weighted mean target and their summed weight.

    For graded KL and cross-entropy this is the same as a loss term for each voice, but for a constant: both are linear
    in the target. Losses of order see the mean teacher.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for new in examples:
        old = rows.setdefault((new["pair_id"], new["head"]), new)
        if old is new:
            continue
        weight = old["weight"] + new["weight"]
        share = new["weight"] / weight
        target = [(1 - share) * a + share * b for a, b in zip(old["target"], new["target"], strict=True)]
        rows[new["pair_id"], new["head"]] = {**old, "target": target, "weight": weight}
    return list(rows.values())


def _train(
    run: StageRun, config: DistillConfig, *, relevance: Record, actions: list[str], num_pairs: int, storage: str | None
) -> Record:
    from preceptor.ranker.model import action_heads, grade_heads

    teacher = _rankers_own(relevance)
    num_teacher = _layer_parameters(teacher) if teacher else None
    student, tokenizer = _start(config, teacher, relevance, (*grade_heads([OVERALL]), *action_heads(actions)))
    num_student = _layer_parameters(student)
    initial = run.out / "initial"
    student.set_policy_version(run.policy_version)
    student.save(initial, tokenizer)
    del teacher, student
    result = fit_lesson(run, config, initial=initial, training=run.out / "training", storage=storage)
    shutil.rmtree(initial)
    return run.finish(
        num_rows_in=num_pairs,
        num_rows_kept=num_pairs,
        metrics={"losses": result.losses, "num_layer_parameters": num_student}
        | ({"share_of_teacher": num_student / num_teacher} if num_teacher else {}),
        cost={"train_s": result.seconds},
    )


def fit_lesson(
    run: StageRun, config: DistillConfig, *, initial: Path, training: Path, storage: str | None
) -> FitResult:
    """What training on the pairs and examples in `training` came to, from the student in `initial`, for stage `run`."""
    from preceptor.ranker.fit import FitJob, fit

    return fit(
        FitJob(
            initial=initial.resolve(),
            pairs=(training / "pairs").resolve(),
            examples=(training / "examples").resolve(),
            out=run.out.resolve(),
            config=config.train,
            objective=objective_of(config),
            mixing=config.mixing,
        ),
        name=run.work_name,
        storage=storage,
    )


def objective_of(config: DistillConfig) -> Objective:
    """The shares of the loss terms that `config` asks for."""
    from preceptor.ranker.losses import Objective

    grades, acts = config.mix.relevance, config.mix.engagement
    return Objective(
        grade=grades,
        action=acts,
        listwise=grades * config.listwise,
        grade_margin=grades * config.margin,
        grade_listnet=grades * config.listnet,
        action_margin=acts * (config.margin + config.action_margin),
        action_listnet=acts * config.listnet,
        action_mse=acts * config.action_mse,
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


def _rankers_own(relevance: Record) -> Any:
    """The relevance teacher's ranker, or None where the teacher is none and a student has nothing to start from."""
    if relevance.stage == "match_teacher":
        return None
    from preceptor.ranker.model import load_ranker

    return load_ranker(relevance.path / "model")[0]


def _layer_parameters(ranker: Any) -> int:
    return sum(weight.numel() for weight in ranker.classifier.model.layers.parameters())
