"""From a recipe to its steps: what runs, in which order, on whose output.

A step names the steps it reads. Its directory is ``{root}/{step}/{version}``; the stage function in it decides whether
it is finished, to be resumed, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from preceptor.contracts import parquet_files
from preceptor.errors import DriftError, InputError, RecipeError
from preceptor.recipe import (
    CorporaConfig,
    DistillConfig,
    HeadlinesConfig,
    JobmatchConfig,
    JudgeConfig,
    LinearConfig,
    MarketConfig,
    PairSet,
    Recipe,
    TeacherConfig,
)
from preceptor.record import DEV, Record, read_record

if TYPE_CHECKING:
    from preceptor.judge.watch import Watch

Records = Mapping[str, Record]
Run = Callable[[Records, Path], Record]
Status = Literal["done", "based", "resume", "run"]

HOSTED_SETS: Final[tuple[PairSet, ...]] = ("golden calibration", "pool", "golden holdout")
ENGAGEMENT_SETS: Final[tuple[PairSet, ...]] = ("pool", "shown holdout")
STUDENT_SETS: Final[tuple[PairSet, ...]] = ("golden calibration", "golden holdout", "shown holdout")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a plan: `run(records, out)` calls it. `rows` says in words how much it works on."""

    name: str
    needs: tuple[str, ...]
    rows: str
    run: Run


def make_plan(recipe: Recipe, *, watch: Watch | None = None) -> tuple[Step, ...]:
    """The steps of `recipe`, each after all it needs. Those that ask a judge count their rows in `watch`."""
    steps = [_corpus(recipe)]
    if recipe.relevance is not None:
        steps += _judge_first(recipe, watch) if recipe.labeller == "judge" else _teacher_first(recipe, watch)
    if recipe.engagement is not None:
        steps += _engagement(recipe, recipe.engagement)
    if recipe.distill is not None:
        steps += _student(recipe, recipe.distill)
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


def execute(step: Step, records: dict[str, Record], *, root: Path, version: str, base: str | None = None) -> Record:
    """The step's record, after running it or finding it finished; it is added to `records`.

    With `base`, an earlier version, the very same work is not done again: where the step is finished there with the
    same config and inputs, that record is taken. So a replaced teacher costs its own stages and those that read it.
    What the step needs is taken from `records` or from finished directories; InputError where it is neither.
    """
    gather(step, records, root=root, version=version, base=base)
    record = base_record(step, records, root=root, version=version, base=base)
    records[step.name] = step.run(records, root / step.name / version) if record is None else record
    return records[step.name]


def gather(step: Step, records: dict[str, Record], *, root: Path, version: str, base: str | None = None) -> None:
    """Add to `records` what the step needs and is finished in `version`, or else in `base`; InputError for the rest."""
    for name in step.needs:
        if name not in records:
            found = read_record(root / name / version)
            if found is None and base is not None:
                found = read_record(root / name / base)
            if found is None:
                raise InputError(f"stage '{step.name}' needs '{name}', which is not finished in {root}. Run it first.")
            records[name] = found


def base_record(step: Step, records: Records, *, root: Path, version: str, base: str | None) -> Record | None:
    """The step's record in `base`, where `version` has not begun it and it would be the same work on `records`."""
    if status(step, root=root, version=version, base=base) != "based" or not set(step.needs) <= records.keys():
        return None
    assert base is not None
    try:
        # A finished stage does no work: it answers with its record or a DriftError.
        return step.run(records, root / step.name / base)
    except DriftError:
        return None


def status(step: Step, *, root: Path, version: str, base: str | None = None) -> Status:
    """Whether the step's directory is finished, half done, or not there; ``based`` where `base` has one to look at."""
    out = root / step.name / version
    if version == DEV:
        return "run"
    if read_record(out) is not None:
        return "done"
    if (out / "pending.json").is_file():
        return "resume"
    return "based" if base is not None and read_record(root / step.name / base) is not None else "run"


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

    return Step(name="corpus", needs=(), rows=_corpus_rows(recipe), run=run)


def _corpus_rows(recipe: Recipe) -> str:
    source = recipe.source
    if isinstance(source, MarketConfig):
        num_pairs = source.num_queries * source.documents_per_query
        num_shown = (source.num_requests + source.num_holdout_requests) * source.documents_per_request
        return f"{num_pairs:,} pairs, {num_shown:,} impressions (synthetic)"
    if isinstance(source, CorporaConfig):
        files = [file.source for file in (source.postings, source.profiles) if file is not None]
        return f"{source.num_queries:,} queries of {source.candidates_per_query} candidates from {' and '.join(files)}"
    if not source.data.exists():
        return f"files in {source.data} (not found)"
    import pyarrow.parquet as pq

    num_rows = sum(pq.read_metadata(file).num_rows for file in parquet_files(source.data))
    return f"{num_rows:,} rows in {source.data} (real)"


def _judge_first(recipe: Recipe, watch: Watch | None) -> list[Step]:
    judge, teacher = recipe.judge, recipe.relevance
    assert judge is not None and teacher is not None

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
        _score("relevance_scores", "relevance_teacher", teacher, ("pool", "golden holdout")),
    ]


def _teacher_first(recipe: Recipe, watch: Watch | None) -> list[Step]:
    judge, teacher = recipe.judge, recipe.relevance
    assert judge is not None and teacher is not None

    def scores(records: Records, out: Path) -> Record:
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
            rows=f"{', '.join(HOSTED_SETS)}, hosted in vLLM",
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


def _relevance_teacher(recipe: Recipe, teacher: TeacherConfig, *, needs: tuple[str, ...]) -> Step:
    """Trained on golden-train, and on the labels too where the step needs `label`."""

    def run(records: Records, out: Path) -> Record:
        from preceptor.teachers.relevance import relevance_teacher

        return relevance_teacher(
            teacher,
            policy=recipe.policy,
            corpus=records["corpus"],
            labels=records["label"] if "label" in needs else None,
            storage=recipe.storage,
            out=out,
        )

    return Step(name="relevance_teacher", needs=needs, rows=_training_rows(teacher), run=run)


def _engagement(recipe: Recipe, teacher: TeacherConfig | LinearConfig) -> list[Step]:
    def train(records: Records, out: Path) -> Record:
        from preceptor.teachers.engagement import engagement_teacher

        return engagement_teacher(teacher, corpus=records["corpus"], storage=recipe.storage, out=out)

    sets: tuple[PairSet, ...] = ENGAGEMENT_SETS if recipe.distill is not None else ("shown holdout",)
    if isinstance(teacher, LinearConfig):
        rows, scores = "every train impression", _score_linear(sets)
    else:
        rows, scores = _training_rows(teacher), _score("engagement_scores", "engagement_teacher", teacher, sets)
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

    student = replace(recipe.relevance, train=config.train, scoring=config.scoring)
    return [
        Step(
            name="distill",
            needs=("corpus", "relevance_teacher", "label", "relevance_scores", "engagement_scores"),
            rows=_training_rows(student),
            run=train,
        ),
        _score("student_scores", "distill", student, STUDENT_SETS),
    ]


def _release(recipe: Recipe, config: DistillConfig) -> list[Step]:
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

        assert recipe.relevance is not None
        source = recipe.relevance.backbone.source
        wanted = ExportConfig(backbone=source, blend=config.blend, check_vllm=recipe.check_vllm)
        return export(wanted, student=records["distill"], gate=records["gate"], out=out)

    return [
        Step(
            name="gate",
            needs=("corpus", "relevance_scores", "engagement_scores", "student_scores"),
            rows="holdout pairs and impressions",
            run=gate,
        ),
        Step(name="export", needs=("distill", "gate"), rows="one bundle", run=export),
    ]


def _score(name: str, model: str, teacher: TeacherConfig, sets: tuple[PairSet, ...]) -> Step:
    def run(records: Records, out: Path) -> Record:
        from preceptor.ranker.score_stage import ScoreConfig, score

        wanted = ScoreConfig(system=name.removesuffix("_scores"), sets=sets, scoring=teacher.scoring)
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


def _training_rows(teacher: TeacherConfig) -> str:
    train = teacher.train
    num_pairs = train.num_steps * train.groups_per_step * train.documents_per_group
    return f"{train.num_steps:,} steps, at most {num_pairs:,} pairs, {train.num_workers} workers"
