"""The commands `preceptor batch export` and `import`: a judge asked through files, days apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from preceptor.errors import InputError, RecipeError
from preceptor.recipe import JudgeConfig, Recipe
from preceptor.record import Record, read_record

if TYPE_CHECKING:
    import pyarrow as pa

    from preceptor.judge.batch_files import BatchFileJudge

BatchStage = Literal["calibrate", "label"]
STAGES: Final[tuple[BatchStage, ...]] = ("calibrate", "label")
TRAIN: Final = ("train",)

Wanted = Callable[["pa.Table"], "pa.Table"]
"""Of PAIRS, those that still have a dimension to ask, with these dimensions in the column `replies.ASK`."""


def everything(pairs: pa.Table) -> pa.Table:
    """All of `pairs`, all dimensions."""
    return pairs


def batch_export(
    recipe: Recipe, *, root: Path, out: Path, stage: BatchStage, top_logprobs: int, wanted: Wanted = everything
) -> str:
    """What was written, in words: request files for all rows of `stage` that are `wanted`.

    Raises RecipeError where the recipe's judge is no endpoint, InputError where the corpus is not there yet or `out` is.
    """
    from preceptor.judge.batch_requests import batch_dialect, rows_of, write_requests
    from preceptor.judge.judges import openai_judge
    from preceptor.policy import load_policy

    judge = openai_judge(_endpoint_of(recipe), load_policy(recipe.policy))
    pairs = wanted(_pairs(recipe, stage, root=root))
    written = write_requests(
        judge, rows_of(pairs, judge.dimensions), out=out, dialect=batch_dialect(top_logprobs=top_logprobs)
    )
    where = ", ".join(map(str, written.files)) or "nothing to ask"
    return f"batch export: {written.num_requests:,} requests for {judge.judge_id}: {where}"


def batch_import(
    recipe: Recipe,
    *,
    root: Path,
    results: Sequence[Path],
    retry: Path | None,
    stage: BatchStage,
    top_logprobs: int,
    wanted: Wanted = everything,
) -> str:
    """What became of the rows, in words.

    With `retry`, rows that another try may cure are written there as requests, and the stage waits for their answers.
    Without it, or where there is none left, the stage runs on what the files say, and rows without an answer are its
    rejects. Raises what the stage raises, and InputError where no line speaks of this recipe.
    """
    from preceptor.judge.batch_files import BatchFileJudge, rows_to_ask_again, sort_rows
    from preceptor.judge.batch_requests import batch_dialect, write_requests
    from preceptor.judge.judges import openai_judge
    from preceptor.policy import load_policy

    config = _endpoint_of(recipe)
    online = openai_judge(config, load_policy(recipe.policy))
    judge = BatchFileJudge(online=online, results=tuple(results), price_share=config.batch_price_share)
    grader = judge.open()
    pairs = wanted(_pairs(recipe, stage, root=root))
    found = sort_rows(grader, pairs, max_attempts=config.max_attempts)
    if found.num_rows and len(grader.index.keys) and not found.num_found:
        raise InputError(
            f"none of {len(grader.index.keys):,} lines answers what {online.judge_id} is asked by recipe {recipe.name} "
            "now. Give the recipe, policy, model and --base-url of the export."
        )
    told = (
        f"batch import: {found.num_graded:,} rows graded, {_counted(found.again)} to ask again, "
        f"{_counted(found.given_up)} given up, {grader.index.num_unreadable:,} lines unreadable"
    )
    if retry is not None and found.again:
        again = rows_to_ask_again(grader, pairs, max_attempts=config.max_attempts)
        written = write_requests(online, again, out=retry, dialect=batch_dialect(top_logprobs=top_logprobs))
        where = ", ".join(map(str, written.files))
        return f"{told}; {where} asks again: import its results together with these files. Nothing was labelled yet"
    record = _run(recipe, stage, judge, root=root)
    return f"{told}; {record.path}"


def _endpoint_of(recipe: Recipe) -> JudgeConfig:
    if recipe.judge is None or recipe.judge.kind != "openai" or recipe.labeller != "judge":
        raise RecipeError(
            f"recipe {recipe.name}: batch files are for an OpenAI-compatible judge that labels. "
            "Add --judge openai --base-url URL --judge-model NAME."
        )
    return recipe.judge


def _pairs(recipe: Recipe, stage: BatchStage, *, root: Path) -> pa.Table:
    from preceptor.judge.blocks import only_pairs, ordered
    from preceptor.judge.calibrate import calibration_rows
    from preceptor.judge.label import pool_pairs

    corpus = _finished(root / "corpus" / recipe.version)
    if stage == "label":
        return pool_pairs(corpus.path / "pairs", TRAIN)
    num_pairs = _endpoint_of(recipe).num_calibration_pairs
    return ordered(only_pairs(calibration_rows(corpus.path / "golden", num_pairs=num_pairs)))


def _run(recipe: Recipe, stage: BatchStage, judge: BatchFileJudge, *, root: Path) -> Record:
    """The record of the very stage that `preceptor run` would run, its judge replaced by the files."""
    from preceptor.judge import calibrate, label

    config, out = _endpoint_of(recipe), root / stage / recipe.version
    corpus = _finished(root / "corpus" / recipe.version)
    if stage == "calibrate":
        return calibrate(config, policy=recipe.policy, corpus=corpus, judge=judge, out=out)
    calibration = _finished(root / "calibrate" / recipe.version)
    return label(config, policy=recipe.policy, corpus=corpus, calibration=calibration, judge=judge, out=out)


def _finished(path: Path) -> Record:
    record = read_record(path)
    if record is None:
        raise InputError(f"{path}: stage '{path.parent.name}' is not finished. Run it first.")
    return record


def _counted(reasons: Counter[str]) -> str:
    detail = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
    return f"{reasons.total():,}" + (f" ({detail})" if detail else "")
