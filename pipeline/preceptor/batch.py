"""The commands `preceptor batch export` and `import`: a judge asked through files, days apart."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from preceptor.errors import InputError, RecipeError
from preceptor.recipe import JudgeConfig, Recipe
from preceptor.record import Record, read_record

if TYPE_CHECKING:
    from preceptor.judge.batch_files import BatchFileJudge
    from preceptor.judge.batch_requests import Row
    from preceptor.judge.openai_judge import OpenAIJudge
    from preceptor.judge.pool import Pool

BatchStage = Literal["calibrate", "label"]
TRAIN: Final = ("train",)


def batch_export(recipe: Recipe, *, root: Path, out: Path, stage: BatchStage, top_logprobs: int) -> str:
    """What was written, in words: request files for all rows of `stage` that no label answers yet.

    Raises RecipeError where the recipe's judge is no endpoint, InputError without a corpus or where `out` exists.
    """
    from preceptor.judge.batch_requests import batch_dialect, write_requests

    judge = _judge(recipe)
    with _pool(recipe, stage, root=root) as pool:
        rows = _open_rows(pool, judge, out=root / stage / recipe.version)
        written = write_requests(judge, rows, out=out, dialect=batch_dialect(top_logprobs=top_logprobs))
    where = ", ".join(map(str, written.files)) or "nothing to ask"
    return f"batch export: {written.num_requests:,} requests for {judge.judge_id}: {where}"


def batch_import(
    recipe: Recipe, *, root: Path, results: Sequence[Path], retry: Path | None, stage: BatchStage, top_logprobs: int
) -> str:
    """What became of the rows, in words.

    With `retry`, rows that another try may cure are written there as requests, and the stage waits for their answers.
    Without it, or where there is none left, the stage runs on what the files say, and rows without an answer are its
    rejects. Raises what the stage raises, and InputError where no line speaks of this recipe.
    """
    from preceptor.judge.batch_files import BatchFileJudge, rows_to_ask_again, sort_rows
    from preceptor.judge.batch_requests import batch_dialect, write_requests

    config, online = _config(recipe), _judge(recipe)
    judge = BatchFileJudge(online=online, results=tuple(results), price_share=config.batch_price_share)
    grader, out = judge.open(), root / stage / recipe.version
    with _pool(recipe, stage, root=root) as pool:
        found = sort_rows(grader, _open_rows(pool, online, out=out), max_attempts=config.max_attempts)
        if found.num_rows and not found.num_found:
            raise InputError(
                f"none of {grader.index.num_lines:,} lines answers what {online.judge_id} is asked by recipe "
                f"{recipe.name} now. Give the recipe, policy, model and --base-url of the export."
            )
        told = (
            f"batch import: {found.num_graded:,} rows graded, {_counted(found.again, 'to ask again')}, "
            f"{_counted(found.given_up, 'given up')}, {grader.index.num_unreadable:,} lines unreadable"
        )
        if retry is not None and found.again:
            rows = rows_to_ask_again(grader, _open_rows(pool, online, out=out), max_attempts=config.max_attempts)
            written = write_requests(online, rows, out=retry, dialect=batch_dialect(top_logprobs=top_logprobs))
            where = ", ".join(map(str, written.files))
            return f"{told}; {where} asks again: import its results together with these files. Nothing was labelled"
    return f"{told}; {_run(recipe, stage, judge, root=root).path}"


def _config(recipe: Recipe) -> JudgeConfig:
    if recipe.judge is None or recipe.judge.kind != "openai" or recipe.labeller != "judge":
        raise RecipeError(
            f"recipe {recipe.name}: batch files are for an OpenAI-compatible judge that labels. "
            "Add --judge openai --base-url URL --judge-model NAME."
        )
    return recipe.judge


def _judge(recipe: Recipe) -> OpenAIJudge:
    from preceptor.judge.judges import openai_judge
    from preceptor.policy import load_policy

    return openai_judge(_config(recipe), load_policy(recipe.policy))


@contextmanager
def _pool(recipe: Recipe, stage: BatchStage, *, root: Path) -> Iterator[Pool]:
    """The pairs that `stage` asks about, laid out in a folder that is deleted again."""
    from preceptor.contracts import PAIRS
    from preceptor.judge.calibrate import calibration_rows
    from preceptor.judge.label import open_pool
    from preceptor.judge.pool import PAIRS_PER_BLOCK, PAIRS_PER_SHARD, lay_pool

    corpus, num_pairs = _finished(root / "corpus" / recipe.version), _config(recipe).num_calibration_pairs
    with tempfile.TemporaryDirectory(prefix="preceptor-pool-") as folder:
        if stage == "calibrate":
            golden = calibration_rows(corpus.path / "golden", num_pairs=num_pairs)
            yield lay_pool([golden.select(PAIRS.names)], Path(folder), num_pairs=num_pairs)
        else:
            sizes = {"pairs_per_block": PAIRS_PER_BLOCK, "pairs_per_shard": PAIRS_PER_SHARD}
            yield open_pool(corpus, TRAIN, Path(folder), **sizes)


def _open_rows(pool: Pool, judge: OpenAIJudge, *, out: Path) -> Iterator[Row]:
    """The rows of `pool` that no label of this or another version answers, shard by shard."""
    from preceptor.judge.batch_requests import rows_of
    from preceptor.judge.pool import read_blocks
    from preceptor.judge.reuse import earlier_labels

    hashes = judge.prompt_hashes
    for shard in pool.shards:
        known = earlier_labels(out, shard, judge_id=judge.judge_id, prompt_hashes=hashes).replies
        for pairs in read_blocks(pool, shard):
            for pair, dimension in rows_of(pairs, judge.dimensions):
                if (pair["pair_id"], dimension) not in known:
                    yield pair, dimension


def _run(recipe: Recipe, stage: BatchStage, judge: BatchFileJudge, *, root: Path) -> Record:
    """The record of the very stage that `preceptor run` would run, its judge replaced by the files."""
    from preceptor.judge import calibrate, label

    # Files answer the same however often they are asked, and are paid for.
    config = replace(_config(recipe), max_attempts=1, max_cost_usd=None)
    out = root / stage / recipe.version
    corpus = _finished(root / "corpus" / recipe.version)
    if stage == "calibrate":
        return calibrate(config, policy=recipe.policy, corpus=corpus, judge=judge, out=out)
    return label(
        config,
        policy=recipe.policy,
        corpus=corpus,
        calibration=_finished(root / "calibrate" / recipe.version),
        judge=judge,
        out=out,
    )


def _finished(path: Path) -> Record:
    record = read_record(path)
    if record is None:
        raise InputError(f"{path}: stage '{path.parent.name}' is not finished. Run it first.")
    return record


def _counted(reasons: Counter[str], what: str) -> str:
    detail = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
    return f"{reasons.total():,} {what}" + (f" ({detail})" if detail else "")
