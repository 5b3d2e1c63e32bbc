"""The `refine` stage: a search for a better prompt, the test its finalists must pass, and the winner as a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import LABELS, content_id, rows_to_table, write_table
from preceptor.errors import RecipeError
from preceptor.judge.endpoint import Endpoint
from preceptor.judge.judges import openai_judge
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.replies import label_rows
from preceptor.policy import Policy, load_policy
from preceptor.policy.sealed import sealed
from preceptor.recipe import RefineConfig
from preceptor.record import Record, StageRun, begin
from preceptor.refine.acceptance import Measurement, measure
from preceptor.refine.asking import open_asker, reflection_endpoint
from preceptor.refine.candidate import Texts, policy_with, texts_of
from preceptor.refine.candidates import Candidate, Journal, Verdict
from preceptor.refine.change import change_of, entry_text, write_change
from preceptor.refine.ledger import open_ledger
from preceptor.refine.measuring import BudgetSpent, Judged, Measurer, refuse_prose
from preceptor.refine.sample import Item, Parts, items_of, load_calibration, parts_of
from preceptor.refine.search import Searcher, search

ANSWERS: Final = "answers.jsonl"
LABELS_DIR: Final = "labels"

_NUM_PROBES: Final = 4


def refine(
    config: RefineConfig, *, policy: Path, golden: Path | None = None, reflection_key: str = "none", out: Path
) -> Record:
    """The record of refining `policy`; `metrics["winner"]` is the accepted candidate's number, or None.

    Every candidate stands in ``candidates.jsonl`` and ``candidates.md``; a winner also as ``policy/`` and
    ``change.diff``. Answers are kept in ``answers.jsonl`` beside `out`, for this and later runs: a run that was killed,
    or has a larger budget, asks only what is missing. The policy's own files are not touched. Raises RecipeError where
    the budget cannot pay for one candidate, InputError for too few queries, RejectCeilingError where the judge answers
    prose, StageFailed where a model cannot be asked.
    """
    with sealed(policy):
        loaded = load_policy(policy)
        table = load_calibration(loaded, golden)
        work = {**config.deciding, "golden": _hash_of(table)}
        run = begin("refine", work, out=out, policy_version=loaded.version)
        if run.record is not None:
            return run.record
        judge = openai_judge(config.judge, loaded)
        parts = parts_of(items_of(table))
        _check_budget(config, parts)
        reflection = reflection_endpoint(config.reflection, api_key=reflection_key)
        with (
            open_ledger(out.parent / ANSWERS) as ledger,
            open_asker(
                _in_one_process(judge.endpoint), reflection, temperature=config.reflection.temperature, ledger=ledger
            ) as asker,
        ):
            measurer = Measurer(
                policy=loaded,
                dimensions=judge.dimensions,
                asker=asker,
                budget=config.budget,
                reserve=2 * _num_unseen(parts),
            )
            return _refined(config, measurer, judge, parts, run)


def _refined(config: RefineConfig, measurer: Measurer, judge: OpenAIJudge, parts: Parts, run: StageRun) -> Record:
    seed = texts_of(measurer.policy, measurer.dimensions)
    journal = Journal(folder=run.out)
    journal.add(parent=None, component=None, texts=seed, verdict=Verdict.AS_IT_IS)
    for items in (parts.optimise[:_NUM_PROBES], parts.optimise):
        refuse_prose(
            measurer.judged(seed, items),
            measurer.dimensions,
            judge_id=judge.judge_id,
            max_reject_share=config.judge.max_reject_share,
        )
    searcher = Searcher(
        measurer=measurer, journal=journal, items=parts.optimise, max_proposals=config.budget.max_proposals
    )
    search(config, seed, parts.optimise, searcher=searcher, log=run.out / "search.log")
    measurer.reserve = 0
    winner = _tested(config, journal, measurer, parts)
    for row in list(journal.rows):
        if row.verdict is Verdict.OPEN:
            why = "the budget ended first" if row.score is None else "another was the better bet"
            row = journal.update(row.number, verdict=Verdict.NOT_MEASURED, reason=row.reason or why)
        if row.verdict is not Verdict.UNUSABLE:
            journal.update(row.number, spend=measurer.spent_by.get(row.id, row.spend))
    _write_labels(measurer, judge, run.out, "before", seed)
    if winner is not None:
        _write_labels(measurer, judge, run.out, "after", winner.texts)
        write_change(_change(config, measurer.policy, judge, winner), run.out)
    return _finish(run, journal, measurer, parts, winner)


def _tested(config: RefineConfig, journal: Journal, measurer: Measurer, parts: Parts) -> Candidate | None:
    """The best finalist that gains on both measurements; what the others did is in the journal."""
    seed = journal.rows[0]
    better = [row for row in journal.rows[1:] if row.score is not None and row.score > (seed.score or 0.0)]
    finalists = sorted(better, key=lambda row: (-(row.score or 0.0), row.number))[: config.num_finalists]
    for row in finalists:
        try:
            measurements = _measured(config, measurer, seed.texts, row.texts, parts)
        except BudgetSpent:
            journal.update(row.number, verdict=Verdict.NOT_MEASURED, reason="the budget ended before its test")
            continue
        verdict, reason = _verdict(measurements)
        row = journal.update(row.number, measurements=measurements, verdict=verdict, reason=reason)
        if verdict is Verdict.ACCEPTED:
            return row
    return None


def _measured(
    config: RefineConfig, measurer: Measurer, before: Texts, after: Texts, parts: Parts
) -> tuple[Measurement, ...]:
    """Both measurements, or the first alone where it shows no gain: the second could not change the verdict."""
    found: list[Measurement] = []
    for number, items in enumerate((parts.first, parts.second)):
        old, new = _both(measurer, before, after, items)
        found.append(measure(old, new, statistic=config.statistic, num=config.num_bootstrap, seed=config.seed + number))
        if not found[-1].is_gain:
            break
    return tuple(found)


def _both(measurer: Measurer, before: Texts, after: Texts, items: Sequence[Item]) -> tuple[list[Judged], list[Judged]]:
    return measurer.judged(before, items), measurer.judged(after, items)


def _verdict(measurements: Sequence[Measurement]) -> tuple[Verdict, str]:
    """What two measurements, or the first that showed no gain, come to."""
    harmed = [gain for measurement in measurements for gain in measurement.harmed]
    if not measurements[-1].is_gain:
        gain = measurements[-1].overall.gain
        if gain.high < 0:
            return Verdict.HARMFUL, f"overall loses at least {-gain.high:.3f}"
        which = "first" if len(measurements) == 1 else "second"
        return Verdict.NOISE, f"the {which} measurement's interval holds 0"
    twice = {gain.dimension for gain in harmed if sum(other.dimension == gain.dimension for other in harmed) > 1}
    if twice:
        return Verdict.HARMFUL, f"loses on {', '.join(sorted(twice))} in both measurements"
    return Verdict.ACCEPTED, "gains in both measurements"


def _check_budget(config: RefineConfig, parts: Parts) -> None:
    """Nothing, or RecipeError where the metric calls do not pay for the policy as it is and one candidate."""
    least = 2 * len(parts.optimise) + 2 * _num_unseen(parts)
    limit = config.budget.max_metric_calls
    if limit is not None and limit < least:
        raise RecipeError(
            f"one candidate takes {least:,} metric calls: the policy as it is and the candidate, each on "
            f"{len(parts.optimise)} pairs to optimise on and {_num_unseen(parts)} to measure on; the budget is "
            f"{limit:,}. Give calls={least} or more."
        )


def _num_unseen(parts: Parts) -> int:
    return len(parts.first) + len(parts.second)


def _change(config: RefineConfig, policy: Policy, judge: OpenAIJudge, winner: Candidate) -> Any:
    before = texts_of(policy, judge.dimensions)
    changed = [name.replace("_", " ") for name in before if winner.texts[name] != before[name]]
    statistic = {"kappa": "quadratic-weighted kappa", "agreement": "expected agreement"}[config.statistic]
    gains = "; ".join(str(measurement.overall) for measurement in winner.measurements)
    what = f"{' and '.join(changed)} refined"
    return change_of(
        policy, winner.texts, why=entry_text(judge.endpoint.model, changed=what, statistic=statistic, gains=gains)
    )


def _write_labels(measurer: Measurer, judge: OpenAIJudge, out: Path, name: str, texts: Texts) -> None:
    """The judge's grades with the prompts that say `texts`, as LABELS: what a worklist is made of."""
    policy = policy_with(measurer.policy, texts)
    replies = [reply for judged in measurer.all_judged(texts) for reply in judged.replies.values()]
    labels, _ = label_rows(
        replies,
        stage="refine",
        judge_id=judge.judge_id,
        policy_version=policy.version,
        prompt_hashes=replace(judge, policy=policy).prompt_hashes,
    )
    write_table(rows_to_table(labels, LABELS), out / LABELS_DIR / f"{name}.parquet", LABELS)


def _finish(run: StageRun, journal: Journal, measurer: Measurer, parts: Parts, winner: Candidate | None) -> Record:
    spent = measurer.spent
    verdicts = [str(row.verdict) for row in journal.rows[1:]]
    return run.finish(
        num_rows_in=len(verdicts),
        num_rows_kept=int(winner is not None),
        rejected={verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts) if verdict != "accepted"},
        metrics={
            "winner": None if winner is None else winner.number,
            "gains": [] if winner is None else [str(found.overall) for found in winner.measurements],
            "num_pairs": {name: len(getattr(parts, name)) for name in ("optimise", "first", "second")},
            "num_metric_calls": spent.num_metric_calls,
            "num_proposals": spent.num_proposals,
            "num_asked_now": measurer.asker.num_asked,
        },
        cost={"tokens": float(spent.num_tokens), "usd": spent.usage.cost_usd},
    )


def _in_one_process(endpoint: Endpoint) -> Endpoint:
    """`endpoint` for one process that asks it: all of its rates are this one's."""
    return replace(endpoint, num_actors=1)


def _hash_of(golden: pa.Table) -> str:
    return content_id(*(str(row) for row in golden.to_pylist()))
