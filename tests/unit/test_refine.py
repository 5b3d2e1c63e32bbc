"""Refinement from end to end: the real optimiser between two scripted models, over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from preceptor.cli import main
from preceptor.contracts import LABELS, read_table
from preceptor.errors import InputError, PolicyError, PreceptorError, RecipeError, RejectCeilingError, StageFailed
from preceptor.policy import load_policy
from preceptor.recipe import Budget, RefineConfig, ReflectionConfig
from preceptor.record import Record, read_record
from preceptor.refine import refine
from preceptor.refine.candidates import Verdict
from preceptor.refine.change import apply_change
from preceptor.refine.ledger import open_ledger
from tests.unit.refinement import (
    GOOD,
    HARSH,
    OVERFITTED,
    TREACHEROUS,
    Models,
    golden_rows,
    models,
    refine_config,
    write_policy,
)

SCRIPT = {"instructions": [HARSH, OVERFITTED, TREACHEROUS, GOOD], "precedents": ["no-such-case", "far-case"]}
SHORT = {"instructions": [HARSH], "precedents": ["- night-case\n- plain-case"]}
NUM_JUDGED = 44
"""Pairs of all three parts."""


@dataclass(frozen=True, kw_only=True)
class Run:
    record: Record
    policy: Path
    models: Models

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.record.path)

    def row(self, text: str) -> dict[str, Any]:
        return next(row for row in self.rows if text in row["texts"].values())


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("refined")
    policy = write_policy(folder / "small")
    with models(SCRIPT) as served:
        record = refine(refine_config(served.url), policy=policy, out=folder / "refine" / "v1")
        yield Run(record=record, policy=policy, models=served)


def short_command(url: str, policy: Path, root: Path, *more: str) -> list[str]:
    return [
        *("refine", "--policy", str(policy), "--root", str(root), "--judge-url", url, "--judge-model", "j"),
        *("--reflect-model", "r", "--budget", "calls=200", "proposals=2", *more),
    ]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A search of two proposals, of which the precedent is good, through the command line."""
    folder = tmp_path_factory.mktemp("short")
    policy = write_policy(folder / "small")
    with models(SHORT) as served:
        assert main(short_command(served.url, policy, folder)) == 0
        record = read_record(folder / "refine" / "v1")
        assert record is not None
        yield Run(record=record, policy=policy, models=served)


# ---------------------------------------------------------------- which candidates are accepted


def test_a_good_wording_is_accepted_and_named_the_winner(run: Run) -> None:
    row = run.row(GOOD)
    assert row["verdict"] == Verdict.ACCEPTED
    assert run.record.metrics["winner"] == row["number"]
    assert all(found["overall"]["gain"]["low"] > 0 for found in row["measurements"])
    assert len(row["measurements"]) == 2


def test_a_wording_that_fits_only_what_it_was_made_from_is_noise(run: Run) -> None:
    row = run.row(OVERFITTED)
    assert row["score"] > run.row(GOOD)["score"], "it was the search's favourite"
    assert row["verdict"] == Verdict.NOISE
    assert len(row["measurements"]) == 1, "the second measurement could not change the verdict and was not paid for"


def test_a_wording_that_harms_unseen_pairs_is_refused_as_harmful(run: Run) -> None:
    row = run.row(TREACHEROUS)
    assert row["verdict"] == Verdict.HARMFUL
    assert row["measurements"][0]["overall"]["gain"]["high"] < 0


def test_a_wording_that_harms_at_once_costs_one_minibatch(run: Run) -> None:
    row = run.row(HARSH)
    assert row["verdict"] == Verdict.MINIBATCH
    assert row["minibatch"][1] < row["minibatch"][0]
    assert row["spend"]["num_metric_calls"] == 8


def test_precedents_that_do_not_exist_are_refused_before_the_judge_is_asked(run: Run) -> None:
    row = run.row("no-such-case")
    assert row["verdict"] == Verdict.UNUSABLE
    assert "no-such-case" in row["reason"]
    assert row["spend"]["num_metric_calls"] == 0


def test_precedents_that_teach_nothing_gain_nothing(run: Run) -> None:
    assert run.row("far-case")["verdict"] == Verdict.MINIBATCH


def test_precedents_that_teach_are_accepted(short: Run) -> None:
    row = short.row("night-case\nplain-case")
    assert (row["verdict"], row["component"]) == (Verdict.ACCEPTED, "precedents")


def test_the_search_sees_only_the_pairs_it_may_optimise_on(run: Run) -> None:
    shown = "\n".join(run.models.reflected)
    assert "shift optimise" in shown
    assert "shift first" not in shown and "shift second" not in shown
    assert not [user for _, user in run.models.judged if "held out" in user]


def test_reflection_reads_verdict_golden_reason_and_rule(run: Run) -> None:
    first = run.models.reflected[0]
    assert "Grade the pair. The pair is evidence." in first, "the text to improve"
    assert "weights work 3, place 1, an exact half down; then the limits: work 0 or less makes overall" in first
    shown = next(prompt for prompt in run.models.reflected if "night shift optimise 2.0 W2 P1" in prompt)
    assert "Grade 0 (probabilities 0: 0.97" in shown
    assert (
        "Golden is 2, because: as constructed. Grade 2 means: Neighbouring work. Grade 0 means: Other work. "
        "Limits on overall: work 0 or less makes overall at most 0. Overall golden is 2, the judge 0."
    ) in shown


# ---------------------------------------------------------------- what is kept


def test_every_candidate_has_its_parent_and_its_cost_and_they_add_up(run: Run) -> None:
    rows = run.rows
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert all(row["parent"] < row["number"] for row in rows[1:])
    spends = [row["spend"] for row in rows]
    assert spends[0]["num_metric_calls"] == NUM_JUDGED
    assert sum(spend["num_metric_calls"] for spend in spends) == run.record.metrics["num_metric_calls"]
    tokens = sum(spend["usage"]["num_prompt_tokens"] + spend["usage"]["num_generated_tokens"] for spend in spends)
    assert tokens == run.record.cost["tokens"]
    assert sum(spend["num_proposals"] for spend in spends) == run.record.metrics["num_proposals"] == 8


def test_the_table_shows_every_candidate(run: Run) -> None:
    table = (run.record.path / "candidates.md").read_text()
    assert [line for line in table.splitlines() if line.startswith(("| 0 |", "| 7 |"))][1].endswith(
        "accepted: gains in both measurements |"
    )
    assert GOOD in table


def test_labels_before_and_after_are_kept_for_a_worklist(run: Run) -> None:
    before = read_table(run.record.path / "labels" / "before.parquet", LABELS)
    after = pq.read_table(run.record.path / "labels" / "after.parquet")
    assert before.num_rows == after.num_rows == NUM_JUDGED * 3
    assert set(before["prompt_hash"].to_pylist()).isdisjoint(set(after["prompt_hash"].to_pylist()) - {""})


def test_the_same_run_again_asks_nothing(run: Run) -> None:
    num = run.models.num_requests
    again = refine(refine_config(run.models.url), policy=run.policy, out=run.record.path)
    assert (again, run.models.num_requests) == (run.record, num)


def test_a_larger_budget_goes_on_from_what_was_paid_for(short: Run) -> None:
    num, asked = short.models.num_requests, set(short.models.judged)
    config = refine_config(short.models.url, budget=Budget(max_metric_calls=220, max_proposals=3), num_bootstrap=50)
    config = replace(
        config,
        judge=replace(config.judge, model="j"),
        reflection=ReflectionConfig(base_url=short.models.url, model="r"),
    )
    out = short.record.path.parent / "v2"
    record = refine(config, policy=short.policy, out=out)
    assert record.metrics["num_proposals"] == 3
    assert [row["texts"] for row in rows_of(out)][:3] == [row["texts"] for row in short.rows]
    assert record.metrics["num_asked_now"] == short.models.num_requests - num > 0
    assert asked.isdisjoint(short.models.judged[len(asked) :]), "no question was asked twice"


# ---------------------------------------------------------------- the winner as a change


def test_the_winner_is_a_policy_of_its_own_and_the_old_one_is_untouched(run: Run) -> None:
    changed = load_policy(run.record.path / "policy")
    assert (changed.rubric.version, changed.rubric.instructions) == ("1.0.1", GOOD)
    old = load_policy(run.policy)
    assert old.version == run.record.policy_version
    assert changed.rubric.dimensions == old.rubric.dimensions
    assert "# Why the instructions are so short." in (run.record.path / "policy" / "rubric.toml").read_text()
    assert "- **1.0.1.** " in changed.document and "Version 1.0.1." in changed.document


def test_other_precedents_are_a_minor_version(short: Run) -> None:
    changed = load_policy(short.record.path / "policy")
    assert (changed.rubric.version, changed.rubric.shown) == ("1.1.0", ("night-case", "plain-case"))


def test_the_patch_applied_to_the_policy_gives_the_new_one(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.policy, tmp_path / "small")
    subprocess.run(["git", "apply", "-p1", run.record.path / "change.diff"], cwd=copy, check=True)
    assert load_policy(copy).version == load_policy(run.record.path / "policy").version


def test_writing_puts_the_change_into_the_policy_once(short: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(short.policy, tmp_path / "small")
    version = short.record.policy_version or ""
    assert "1.1.0+" in apply_change(short.record.path, copy, policy_version=version)
    assert load_policy(copy).version == load_policy(short.record.path / "policy").version
    assert "already" in apply_change(short.record.path, copy, policy_version=version)


def test_a_policy_that_moved_on_is_not_overwritten(short: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(short.policy, tmp_path / "small")
    document = copy / "policy.md"
    document.write_text(document.read_text() + "\nA word more.\n")
    before = content(copy)
    with pytest.raises(PolicyError, match=r"by now.*change\.diff"):
        apply_change(short.record.path, copy, policy_version=short.record.policy_version or "")
    assert content(copy) == before


def test_the_command_with_write_changes_the_policy(short: Run, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(short.policy, short.record.path / "copy")
    root = short.record.path.parent.parent
    assert main(short_command(short.models.url, copy, root, "--write")) == 0
    assert load_policy(copy).rubric.version == "1.1.0"
    assert "candidate 2 accepted" in capsys.readouterr().out


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (Budget(max_metric_calls=125), "num_metric_calls"),
        (Budget(max_tokens=33_000), "tokens"),
        (Budget(max_usd=0.033), "usd"),
    ],
    ids=["calls", "tokens", "usd"],
)
def test_a_search_ends_where_its_budget_does(budget: Budget, spent: str, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "small")
    with models({"instructions": [HARSH, OVERFITTED], "precedents": ["far-case"]}) as served:
        config = _priced(refine_config(served.url), budget)
        record = refine(config, policy=policy, out=tmp_path / "refine" / "v1")
    limit = next(each for each in (budget.max_metric_calls, budget.max_tokens, budget.max_usd) if each is not None)
    took = {**record.metrics, **record.cost}[spent]
    # Tokens and money are reckoned ahead from the mean so far, so that the last step may miss by a little.
    assert took <= limit * (1.0 if spent == "num_metric_calls" else 1.05)
    assert took > limit / 2
    assert {row["verdict"] for row in rows_of(tmp_path / "refine" / "v1")} <= set(Verdict) - {Verdict.OPEN}


def _priced(config: RefineConfig, budget: Budget) -> RefineConfig:
    judge = replace(config.judge, usd_per_million_prompt_tokens=1.0, usd_per_million_generated_tokens=1.0)
    reflection = replace(config.reflection, usd_per_million_prompt_tokens=1.0, usd_per_million_generated_tokens=1.0)
    return replace(config, judge=judge, reflection=reflection, budget=budget)


def test_a_budget_for_less_than_one_candidate_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "small")
    with models() as served, pytest.raises(RecipeError, match=r"takes 88 metric calls.*budget is 87.*calls=88"):
        refine(refine_config(served.url, budget=Budget(max_metric_calls=87)), policy=policy, out=tmp_path / "r" / "v1")
    assert served.num_requests == 0


# ---------------------------------------------------------------- models that misbehave


def refused(tmp_path: Path, kind: type[PreceptorError], match: str, **behaviour: Any) -> Models:
    policy = write_policy(tmp_path / "small")
    before = content(policy)
    out = tmp_path / "refine" / "v1"
    with models(SHORT, **behaviour) as served, pytest.raises(kind, match=match):
        refine(refine_config(served.url), policy=policy, out=out)
    assert content(policy) == before
    assert read_record(out) is None
    assert not (out / "policy").exists() and not (out / "change.diff").exists()
    return served


def test_a_judge_that_answers_prose_is_named_after_a_few_questions(tmp_path: Path) -> None:
    match = r"openai:small-judge@127.*8 of 8 answers.*'A fine match, I should say\.'"
    served = refused(tmp_path, RejectCeilingError, match, judge_says=lambda *_: "A fine match, I should say.")
    assert served.num_requests == 8


def test_a_reflection_model_that_answers_prose_is_named(tmp_path: Path) -> None:
    match = r"openai:large-model@127.*first 5 proposals.*'You could be clearer\.'"
    served = refused(tmp_path, StageFailed, match, reflect_says="You could be clearer.")
    assert len(served.reflected) == 5


def test_an_endpoint_that_is_not_there_is_no_fault_of_the_prompt(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "small")
    with models() as served:
        pass
    with pytest.raises(StageFailed, match=r"connection lost.*run the same command again"):
        refine(refine_config(served.url), policy=policy, out=tmp_path / "refine" / "v1")
    assert (tmp_path / "refine" / "answers.jsonl").read_text() == ""


def test_a_killed_search_is_taken_up_where_it_was(short: Run, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "small")
    processes: list[subprocess.Popen[bytes]] = []

    def kill(num: int) -> None:
        if num == 120:
            os.kill(processes[0].pid, signal.SIGKILL)

    with models(SHORT, on_request=kill) as served:
        command = [sys.executable, "-m", "preceptor", *short_command(served.url, policy, tmp_path)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        assert processes[0].wait() == -signal.SIGKILL
        num_before = served.num_requests
        assert read_record(tmp_path / "refine" / "v1") is None
        assert main(command[3:]) == 0
        num_open = 17
        assert num_before < served.num_requests <= short.record.metrics["num_asked_now"] + num_open
    assert rows_of(tmp_path / "refine" / "v1") == short.rows


# ---------------------------------------------------------------- golden, and the ledger


def test_a_golden_file_with_pairs_of_the_holdout_is_refused(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "small")
    file = tmp_path / "mixed.jsonl"
    file.write_text(json.dumps({**golden_rows()[0], "split": "holdout"}) + "\n")
    with pytest.raises(InputError, match=r"mixed\.jsonl: holds pairs of split holdout"):
        refine(refine_config("http://127.0.0.1:9/v1"), policy=policy, golden=file, out=tmp_path / "refine" / "v1")


def test_too_few_queries_are_refused_with_their_numbers(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "small", num_rows=30)
    with pytest.raises(InputError, match=r"6 calibration queries.*optimise 8, first 7, second 0"):
        refine(refine_config("http://127.0.0.1:9/v1"), policy=policy, out=tmp_path / "refine" / "v1")


def test_a_line_that_a_kill_cut_short_is_dropped(short: Run, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    whole = (short.record.path.parent / "answers.jsonl").read_bytes().splitlines(keepends=True)[:3]
    file.write_bytes(b"".join(whole) + b'{"key": "abc", "mass')
    with open_ledger(file) as ledger:
        assert len(ledger.answers) == 3
    assert file.read_bytes() == b"".join(whole)


def test_a_broken_line_and_a_second_process_are_told_of(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"key": "a"}\n')
    with pytest.raises(InputError, match=r"answers\.jsonl:1: not an answer"), open_ledger(file):
        pass
    file.unlink()
    with open_ledger(file), pytest.raises(InputError, match="another refinement is at work"), open_ledger(file):
        pass
