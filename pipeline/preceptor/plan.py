"""From a recipe to its steps: what runs, in which order, on whose output.

A step names the steps it reads. Its directory is ``{root}/{step}/{version}``; the stage function in it decides whether
it is finished, to be resumed, or refused (steps.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from preceptor.errors import RecipeError
from preceptor.plan_rows import corpus_rows, training_rows
from preceptor.recipe import (
    CorporaConfig,
    DistillConfig,
    HeadlinesConfig,
    JobmatchConfig,
    JudgeConfig,
    LinearConfig,
    MarketConfig,
    MatchConfig,
    PairSet,
    PruneConfig,
    Recipe,
    ScoringConfig,
    TeacherConfig,
)
from preceptor.record import Record
from preceptor.steps import Records, Step

if TYPE_CHECKING:
    from preceptor.judge.watch import Watch

HOSTED_SETS: Final[tuple[PairSet, ...]] = ("golden calibration", "pool", "golden holdout")
ENGAGEMENT_SETS: Final[tuple[PairSet, ...]] = ("pool", "shown holdout")
STUDENT_SETS: Final[tuple[PairSet, ...]] = ("golden calibration", "golden holdout", "shown holdout")


def make_plan(recipe: Recipe, *, watch: Watch | None = None) -> tuple[Step, ...]:
    """The steps of `recipe`, each after all it needs. Those that ask a judge count their rows in `watch`."""
    steps = [_corpus(recipe)]
    if recipe.relevance is not None:
        steps += _judge_first(recipe, watch) if recipe.labeller == "judge" else _teacher_first(recipe, watch)
    if recipe.engagement is not None:
        steps += _engagement(recipe, recipe.engagement)
    if recipe.distill is not None:
        steps += _student(recipe, recipe.distill)
        steps += _pruning(recipe, recipe.distill, recipe.prune) if recipe.prune is not None else []
        steps.append(_student_scores(recipe, recipe.distill))
    # Reports come before the gate, so that a student that misses it is reported as well.
    if isinstance(recipe.source, JobmatchConfig):
        steps.append(_rerank())
    if isinstance(recipe.source, HeadlinesConfig):
        steps.append(_within_tests())
    if recipe.distill is not None:
        steps += _release(recipe, recipe.distill)
    return tuple(steps)


def choose(steps: Sequence[Step], *, only: str | None, start: str | None) -> tuple[Step, ...]:
    """The steps to run: `only` that one, or from `start` on; RecipeError for a name the plan lacks."""
    names = [step.name for step in steps]
    for name in (only, start):
        if name is not None and name not in names:
            raise RecipeError(f"no stage '{name}' in this plan; its stages: {', '.join(names)}.")
    if only is not None:
        return tuple(step for step in steps if step.name == only)
    return tuple(steps[names.index(start) :]) if start is not None else tuple(steps)


def _corpus(recipe: Recipe) -> Step:
    source = recipe.source

    def run(records: Records, out: Path) -> Record:
        if isinstance(source, MarketConfig):
            from preceptor.market.stage import market

            return market(source, policy=recipe.policy, out=out)
        if isinstance(source, JobmatchConfig):
            from preceptor.sources.jobmatch import jobmatch

            return jobmatch(source, policy=recipe.policy, out=out)
        if isinstance(source, CorporaConfig):
            from preceptor.generate import generate

            return generate(source, policy=recipe.policy, out=out)
        from preceptor.sources.headlines import headlines

        return headlines(source, out=out)

    return Step(name="corpus", needs=(), rows=corpus_rows(recipe), run=run)


def _judge_first(recipe: Recipe, watch: Watch | None) -> list[Step]:
    judge, teacher = recipe.judge, recipe.relevance
    assert judge is not None and isinstance(teacher, TeacherConfig)

    def label(records: Records, out: Path) -> Record:
        from preceptor.judge import label

        return label(
            judge,
            policy=recipe.policy,
            corpus=records["corpus"],
            calibration=records["calibrate"],
            watch=watch,
            out=out,
        )

    return [
        _calibrate_configured("calibrate", recipe, judge, watch),
        Step(name="label", needs=("corpus", "calibrate"), rows="pool pairs of split train", run=label),
        _relevance_teacher(recipe, teacher, needs=("corpus", "label")),
        _score("relevance_scores", "relevance_teacher", teacher.scoring, ("pool", "golden holdout")),
    ]


def _teacher_first(recipe: Recipe, watch: Watch | None) -> list[Step]:
    judge, teacher = recipe.judge, recipe.relevance
    assert judge is not None and teacher is not None

    def scores(records: Records, out: Path) -> Record:
        if isinstance(teacher, MatchConfig):
            from preceptor.teachers.match import MatchScoreConfig, match_scores

            sets = MatchScoreConfig(system="relevance", sets=HOSTED_SETS)
            return match_scores(sets, corpus=records["corpus"], teacher=records["relevance_teacher"], out=out)
        from preceptor.judge import HostConfig, host

        wanted = HostConfig(sets=HOSTED_SETS, engine=judge.engine, max_reject_share=judge.max_reject_share)
        return host(wanted, corpus=records["corpus"], teacher=records["relevance_teacher"], watch=watch, out=out)

    def calibrate(records: Records, out: Path) -> Record:
        from preceptor.judge import calibrate, stored_judge

        return calibrate(
            replace(judge, num_calibration_pairs=recipe.num_tuned_pairs),
            policy=recipe.policy,
            corpus=records["corpus"],
            teacher=records["relevance_scores"],
            judge=stored_judge(records["relevance_scores"], records["relevance_teacher"]),
            watch=watch,
            out=out,
        )

    def label(records: Records, out: Path) -> Record:
        from preceptor.judge import label, stored_judge

        return label(
            judge,
            policy=recipe.policy,
            corpus=records["corpus"],
            calibration=records["calibrate"],
            teacher=records["relevance_scores"],
            judge=stored_judge(records["relevance_scores"], records["relevance_teacher"]),
            watch=watch,
            out=out,
        )

    judged = ("corpus", "relevance_teacher", "relevance_scores")
    return [
        _calibrate_configured("zeroshot", recipe, judge, watch),
        _relevance_teacher(recipe, teacher, needs=("corpus",)),
        Step(
            name="relevance_scores",
            needs=("corpus", "relevance_teacher"),
            rows=", ".join(HOSTED_SETS) + ("" if isinstance(teacher, MatchConfig) else ", hosted in vLLM"),
            run=scores,
        ),
        Step(name="calibrate", needs=judged, rows=f"{recipe.num_tuned_pairs:,} golden pairs", run=calibrate),
        Step(name="label", needs=(*judged, "calibrate"), rows="pool pairs of split train", run=label),
    ]


def _calibrate_configured(name: str, recipe: Recipe, judge: JudgeConfig, watch: Watch | None) -> Step:
    def run(records: Records, out: Path) -> Record:
        from preceptor.judge import calibrate

        return calibrate(judge, policy=recipe.policy, corpus=records["corpus"], watch=watch, out=out)

    return Step(name=name, needs=("corpus",), rows=f"about {judge.num_calibration_pairs:,} golden pairs", run=run)


def _relevance_teacher(recipe: Recipe, teacher: TeacherConfig | MatchConfig, *, needs: tuple[str, ...]) -> Step:
    """Trained on golden-train, and on the labels too where the step needs `label`."""

    def run(records: Records, out: Path) -> Record:
        if isinstance(teacher, MatchConfig):
            from preceptor.teachers.match import match_teacher

            return match_teacher(teacher, policy=recipe.policy, corpus=records["corpus"], out=out)
        from preceptor.teachers.relevance import relevance_teacher

        return relevance_teacher(
            teacher,
            policy=recipe.policy,
            corpus=records["corpus"],
            labels=records["label"] if "label" in needs else None,
            storage=recipe.storage,
            out=out,
        )

    training = teacher if isinstance(teacher, MatchConfig) else teacher.train
    return Step(name="relevance_teacher", needs=needs, rows=training_rows(training), run=run)


def _engagement(recipe: Recipe, teacher: TeacherConfig | LinearConfig) -> list[Step]:
    def train(records: Records, out: Path) -> Record:
        from preceptor.teachers.engagement import engagement_teacher

        return engagement_teacher(teacher, corpus=records["corpus"], storage=recipe.storage, out=out)

    sets: tuple[PairSet, ...] = ENGAGEMENT_SETS if recipe.distill is not None else ("shown holdout",)
    if isinstance(teacher, LinearConfig):
        rows, scores = "every train impression", _score_linear(sets)
    else:
        rows, scores = (
            training_rows(teacher.train),
            _score("engagement_scores", "engagement_teacher", teacher.scoring, sets),
        )
    return [Step(name="engagement_teacher", needs=("corpus",), rows=rows, run=train), scores]


def _score_linear(sets: tuple[PairSet, ...]) -> Step:
    def run(records: Records, out: Path) -> Record:
        from preceptor.teachers.linear_stage import LinearScores, score_linear

        wanted = LinearScores(system="engagement", sets=sets)
        return score_linear(wanted, corpus=records["corpus"], model=records["engagement_teacher"], out=out)

    return Step(name="engagement_scores", needs=("corpus", "engagement_teacher"), rows=" and ".join(sets), run=run)


def _student(recipe: Recipe, config: DistillConfig) -> list[Step]:
    assert recipe.relevance is not None

    def train(records: Records, out: Path) -> Record:
        from preceptor.student.distill import distill, stored_scores

        return distill(
            config,
            corpus=records["corpus"],
            relevance=records["relevance_teacher"],
            scores={
                voice.teacher: stored_scores(voice) if voice.scores else records[f"{voice.teacher}_scores"]
                for voice in config.heard
            },
            storage=recipe.storage,
            out=out,
        )

    return [
        Step(
            name="distill",
            needs=("corpus", "relevance_teacher", "label", "relevance_scores", "engagement_scores"),
            rows=training_rows(config.train),
            run=train,
        )
    ]


def _pruning(recipe: Recipe, lesson: DistillConfig, config: PruneConfig) -> list[Step]:
    """A cut and a recovery for each round; the last ones are named plainly, for what reads them."""
    steps: list[Step] = []
    before = "distill"
    for number in range(1, config.num_rounds + 1):
        ending = f"_{number}" if number < config.num_rounds else ""
        steps += _round(recipe, lesson, config, number=number, before=before, ending=ending)
        before = steps[-1].name
    return steps


def _round(
    recipe: Recipe, lesson: DistillConfig, config: PruneConfig, *, number: int, before: str, ending: str
) -> list[Step]:
    def cut(records: Records, out: Path) -> Record:
        from preceptor.student.prune import prune

        return prune(config, student=records["distill"], model=records[before], round=number, out=out)

    def train(records: Records, out: Path) -> Record:
        from preceptor.student.recover import recover

        return recover(
            config,
            lesson,
            student=records["distill"],
            pruned=records[f"prune{ending}"],
            round=number,
            storage=recipe.storage,
            out=out,
        )

    return [
        Step(
            name=f"prune{ending}",
            needs=tuple(dict.fromkeys(("distill", before))),
            rows=f"importance from {config.num_pairs:,} pairs, round {number} of {config.num_rounds}",
            run=cut,
        ),
        Step(
            name=f"recover{ending}",
            needs=("distill", f"prune{ending}"),
            rows=training_rows(config.recovery(lesson.train, round=number)),
            run=train,
        ),
    ]


def _student_scores(recipe: Recipe, config: DistillConfig) -> Step:
    return _score("student_scores", _last_student(recipe), config.scoring, STUDENT_SETS)


def _last_student(recipe: Recipe) -> str:
    """The step whose student is scored, gated and exported."""
    return "distill" if recipe.prune is None else "recover"


def _release(recipe: Recipe, config: DistillConfig) -> list[Step]:
    student = _last_student(recipe)

    def gate(records: Records, out: Path) -> Record:
        from preceptor.evaluation.gate import gate

        return gate(
            recipe.gate,
            corpus=records["corpus"],
            relevance=records["relevance_scores"],
            engagement=records["engagement_scores"],
            student=records["student_scores"],
            # Other sources grade their own pairs; the market's corpus carries the policy's golden.
            policy=recipe.policy if isinstance(recipe.source, MarketConfig) else None,
            out=out,
        )

    def export(records: Records, out: Path) -> Record:
        from preceptor.export import ExportConfig, export

        wanted = ExportConfig(backbone=_origin(recipe, config), blend=config.blend, check_vllm=recipe.check_vllm)
        return export(wanted, student=records[student], gate=records["gate"], out=out)

    return [
        Step(
            name="gate",
            needs=("corpus", "relevance_scores", "engagement_scores", "student_scores"),
            rows="holdout pairs and impressions",
            run=gate,
        ),
        Step(name="export", needs=(student, "gate"), rows="one bundle", run=export),
    ]


def _origin(recipe: Recipe, config: DistillConfig) -> str:
    """The language model that a student's weights derive from."""
    if isinstance(recipe.relevance, TeacherConfig):
        return recipe.relevance.backbone.source
    assert config.backbone is not None
    return config.backbone.source


def _score(name: str, model: str, scoring: ScoringConfig, sets: tuple[PairSet, ...]) -> Step:
    def run(records: Records, out: Path) -> Record:
        from preceptor.ranker.score_stage import ScoreConfig, score

        wanted = ScoreConfig(system=name.removesuffix("_scores"), sets=sets, scoring=scoring)
        return score(wanted, corpus=records["corpus"], model=records[model], out=out)

    return Step(name=name, needs=("corpus", model), rows=" and ".join(sets), run=run)


def _rerank() -> Step:
    def run(records: Records, out: Path) -> Record:
        from preceptor.sources.rerank_report import rerank_report

        return rerank_report(
            corpus=records["corpus"], teacher=records["relevance_scores"], student=records["student_scores"], out=out
        )

    return Step(
        name="rerank_report",
        needs=("corpus", "relevance_scores", "student_scores"),
        rows="dev queries over all postings",
        run=run,
    )


def _within_tests() -> Step:
    def run(records: Records, out: Path) -> Record:
        from preceptor.sources.headline_report import headline_report

        return headline_report(corpus=records["corpus"], scores=records["engagement_scores"], out=out)

    return Step(name="headline_report", needs=("corpus", "engagement_scores"), rows="dev headlines", run=run)
