from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preceptor.contracts import (
    GOLDEN,
    LABELS,
    OVERALL,
    PAIRS,
    REJECTS,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError, JudgeRefused, RejectCeilingError, SpendCeilingError
from preceptor.evaluation.metrics import Interval
from preceptor.judge import Answers, FakeJudge, label
from preceptor.judge.agreement import Cell, cells_of_json, cells_to_json
from preceptor.judge.calibrate import calibration_rows
from preceptor.judge.label import require_calibrated
from preceptor.judge.pool import lay_pool
from preceptor.judge.replies import (
    INCOMPLETE,
    NO_GRADE,
    TIMEOUT,
    Usage,
)
from preceptor.recipe import POLICY_DIR
from preceptor.record import Record
from tests.unit.labelling import (
    GOOD_FAKE,
    NUM_ASKED,
    POLICY,
    Counting,
    Flaky,
    calibrated,
    contrarian,
    judge_config,
    pool,
)


def test_a_judge_that_agrees_passes_and_the_record_says_how_well(corpus: Record, tmp_path: Path) -> None:
    record = calibrated(corpus, tmp_path, GOOD_FAKE)
    metrics = record.metrics
    assert set(metrics) == {
        "kappa",
        "kappa_low",
        "kappa_high",
        "floor",
        "passed",
        "num_pairs",
        "confusion",
        "per_dimension",
        "label_mass",
        "judge_id",
        "agreement",
        "consistency",
        "asked",
        "reused",
        "num_rows_asked",
        "num_rows_reused",
    }
    assert metrics["passed"] is True
    assert metrics["num_pairs"] == 28, "whole groups of four, at most 30"
    assert np.sum(metrics["confusion"]) == 28
    assert metrics["per_dimension"] == pytest.approx(dict.fromkeys(POLICY.rubric.names, 1.0))
    assert metrics["kappa_low"] <= metrics["kappa"] <= metrics["kappa_high"]
    cells = {(cell.dimension, cell.slice): cell for cell in cells_of_json(metrics["agreement"])}
    assert set(cells) == {(name, scope) for name in (*POLICY.rubric.names, OVERALL) for scope in ("all", "s")}
    assert cells[OVERALL, "all"].quadratic.low == pytest.approx(metrics["kappa_low"])
    assert cells[OVERALL, "all"].label_mass == pytest.approx(0.95 ** len(POLICY.rubric.names))
    assert metrics["asked"] == dict.fromkeys(POLICY.rubric.names, 28)


def test_a_judge_under_the_floor_is_recorded_and_then_refused(corpus: Record, tmp_path: Path) -> None:
    judge = contrarian()
    record = calibrated(corpus, tmp_path, judge)
    assert record.metrics["passed"] is False
    out = tmp_path / "label" / "v1"
    with pytest.raises(JudgeRefused) as refusal:
        label(judge_config(), policy=POLICY_DIR, corpus=corpus, calibration=record, judge=judge, out=out)
    message = str(refusal.value)
    assert "\n" not in message
    assert "contrarian" in message and "0.600" in message and f"{record.metrics['kappa']:.3f}" in message
    assert "'role'" in message or "'pay'" in message
    worst = min(record.metrics["per_dimension"].values())
    assert f"({worst:.3f}" in message
    assert f"{0.6 - record.metrics['kappa_low']:.3f} under the floor" in message
    assert not out.exists()


def test_a_refusal_says_which_way_the_worst_dimension_errs_and_where(corpus: Record, tmp_path: Path) -> None:
    def cell(slice_: str, kappa: float) -> Cell:
        interval = Interval(value=kappa, low=kappa, high=kappa, num_groups=9)
        return Cell(
            dimension="pay",
            slice=slice_,
            num=9,
            linear=interval,
            quadratic=interval,
            binarised=interval,
            exact=0.5,
            within_one=0.9,
            leniency=0.75,
            label_mass=1.0,
            confusion=((0,) * 5,) * 5,
        )

    record = calibrated(corpus, tmp_path, contrarian())
    measured = {
        **record.metrics,
        "per_dimension": {"role": 0.5, "pay": 0.2},
        "agreement": cells_to_json([cell("all", 0.2), cell("local", 0.3), cell("aspiring", 0.1)]),
    }
    with pytest.raises(JudgeRefused) as refusal:
        require_calibrated(contrarian(), replace(record, metrics=measured), POLICY)
    said = "worst dimension 'pay' (0.200, on average 0.75 grades too lenient, lowest in slice 'aspiring' (0.100))"
    assert said in str(refusal.value)


def test_a_calibration_of_another_judge_or_policy_does_not_count(corpus: Record, tmp_path: Path) -> None:
    record = calibrated(corpus, tmp_path, GOOD_FAKE)
    out = tmp_path / "label" / "v1"
    with pytest.raises(JudgeRefused, match="Calibrate this judge first"):
        label(judge_config(), policy=POLICY_DIR, corpus=corpus, calibration=record, judge=contrarian(), out=out)
    stale = replace(record, policy_version="0.9.0+00000000")
    with pytest.raises(JudgeRefused, match=r"0\.9\.0"):
        label(judge_config(), policy=POLICY_DIR, corpus=corpus, calibration=stale, judge=GOOD_FAKE, out=out)


def test_labelling_accounts_for_every_row_and_skips_when_done(corpus: Record, tmp_path: Path) -> None:
    poisoned = pool(40)[5]["pair_id"]
    judge = replace(GOOD_FAKE, poison=frozenset({poisoned}))
    calibration = calibrated(corpus, tmp_path, judge)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration, "judge": judge}
    out = tmp_path / "label" / "v1"
    record = label(judge_config(), **args, pairs_per_block=8, out=out)
    labels, rejects = read_table(out / "labels", LABELS), read_table(out / "rejects", REJECTS)
    keys = [f"{row['pair_id']}/{row['dimension']}" for row in labels.to_pylist()] + rejects.column("id").to_pylist()
    wanted = {f"{pair['pair_id']}/{name}" for pair in pool(40) for name in (*POLICY.rubric.names, OVERALL)}
    assert sorted(keys) == sorted(wanted)
    assert {key.split("/")[0] for key in rejects.column("id").to_pylist()} == {poisoned}
    assert (record.num_rows_in, record.num_rows_kept) == (len(wanted), labels.num_rows)
    assert record.rejected == {NO_GRADE: NUM_ASKED, INCOMPLETE: 1}
    assert label(judge_config(), **args, pairs_per_block=8, out=out) == replace(record, path=out)


@dataclass(frozen=True, kw_only=True)
class Refusing(FakeJudge):
    """A judge that must not be asked."""

    async def grade(self, pairs: pa.Table) -> Answers:
        raise AssertionError(f"asked again for {pairs.num_rows} pairs")


@dataclass(frozen=True, kw_only=True)
class Quitting(FakeJudge):
    """A judge that breaks down in its third block."""

    blocks: list[int] = field(default_factory=list)

    async def grade(self, pairs: pa.Table) -> Answers:
        self.blocks.append(pairs.num_rows)
        if len(self.blocks) == 3:
            raise RuntimeError("broken")
        return await super().grade(pairs)


def test_a_judge_that_breaks_down_leaves_whole_blocks_that_a_rerun_keeps(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration, "pairs_per_block": 8}
    out = tmp_path / "label" / "v1"
    with pytest.raises(RuntimeError, match="broken"):
        label(judge_config(), **args, judge=Quitting(dimensions=POLICY.rubric.names, judge_id="good"), out=out)
    assert len(list(out.glob("open/*/done-*.json"))) == 2
    judge = Counting(dimensions=POLICY.rubric.names, judge_id="good")
    record = label(judge_config(), **args, judge=judge, out=out)
    assert len({pair_id for pair_id, _ in judge.asked}) == 40 - 2 * 8
    assert record.num_rows_kept == 40 * (NUM_ASKED + 1) and not (out / "open").exists() and not (out / "pool").exists()


def test_too_many_rejects_stop_the_stage_and_a_rerun_asks_nothing_again(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration}
    out = tmp_path / "label" / "v1"
    poisoned = replace(GOOD_FAKE, poison_share=1.0)
    with pytest.raises(RejectCeilingError, match=f"{NO_GRADE}: {40 * NUM_ASKED}"):
        label(judge_config(), **args, judge=poisoned, out=out)
    assert not (out / "record.json").exists()
    with pytest.raises(RejectCeilingError):
        label(judge_config(), **args, judge=Refusing(dimensions=POLICY.rubric.names, judge_id="good"), out=out)


def test_a_row_that_fails_for_the_moment_is_tried_again_within_bounds(
    corpus: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.judge.blocks._RETRY_WAIT_S", 0.0)
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration}
    judge = Flaky(dimensions=POLICY.rubric.names, judge_id="good", num_faults=2)
    assert label(judge_config(), **args, judge=judge, out=tmp_path / "label" / "v1").rejected == {}

    broken = Flaky(dimensions=POLICY.rubric.names, judge_id="good", num_faults=99)
    with pytest.raises(RejectCeilingError, match=f"{TIMEOUT}: {40 * NUM_ASKED}"):
        label(judge_config(), **args, judge=broken, out=tmp_path / "other" / "v1")
    assert set(broken.tries.values()) == {judge_config().max_attempts}


def test_rejects_that_a_new_try_may_cure_are_tried_again_by_the_next_run(
    corpus: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.judge.blocks._RETRY_WAIT_S", 0.0)
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration}
    out = tmp_path / "label" / "v1"
    with pytest.raises(RejectCeilingError, match=TIMEOUT):
        label(
            judge_config(),
            **args,
            judge=Flaky(dimensions=POLICY.rubric.names, judge_id="good", num_faults=99),
            out=out,
        )
    assert label(judge_config(), **args, judge=GOOD_FAKE, out=out).rejected == {}


def test_calibration_needs_calibration_pairs_and_takes_whole_groups(corpus: Record, tmp_path: Path) -> None:
    fewer = calibration_rows(corpus.path / "golden", num_pairs=9)
    more = calibration_rows(corpus.path / "golden", num_pairs=20)
    ids, larger = set(fewer.column("pair_id").to_pylist()), set(more.column("pair_id").to_pylist())
    assert (len(ids), len(larger)) == (8, 20)
    assert ids < larger, "a larger number extends the choice"
    train = fewer.set_column(fewer.column_names.index("split"), GOLDEN.field("split"), pa.array(["train"] * len(fewer)))
    write_table(train, tmp_path / "golden" / "a.parquet", GOLDEN)
    with pytest.raises(InputError, match="no golden pair in split 'calibration'"):
        calibration_rows(tmp_path / "golden", num_pairs=9)


def test_labelling_a_split_that_is_not_there_names_those_that_are(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    with pytest.raises(InputError, match="splits there: train"):
        label(
            judge_config(),
            policy=POLICY_DIR,
            corpus=corpus,
            calibration=calibration,
            judge=GOOD_FAKE,
            splits=("holdout",),
            out=tmp_path / "label" / "v1",
        )


@dataclass(frozen=True, kw_only=True)
class Forgetful(FakeJudge):
    """A judge that answers all but one row of a block, and one row twice."""

    async def grade(self, pairs: pa.Table) -> Answers:
        answers = await super().grade(pairs)
        return replace(answers, replies=(*answers.replies[1:], answers.replies[-1]))


def test_a_row_without_an_answer_is_a_reject_and_one_answered_twice_is_one_label(
    corpus: Record, tmp_path: Path
) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    judge = Forgetful(dimensions=POLICY.rubric.names, judge_id="good")
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration, "judge": judge}
    record = label(judge_config(max_attempts=1), **args, out=tmp_path / "label" / "v1")
    assert record.rejected == {"engine error: no answer": 1, INCOMPLETE: 1}
    assert record.num_rows_in == 40 * (NUM_ASKED + 1)


def test_what_the_driver_keeps_of_a_shard_does_not_grow_with_its_pairs(corpus: Record, tmp_path: Path) -> None:
    pools = [lay_pool([rows_to_table(pool(num), PAIRS)], tmp_path / f"{num}", num_pairs=num) for num in (200, 2000)]
    small, large = (len(pickle.dumps(pool)) for pool in pools)
    assert large - small < 50, "a pool is counts: no ids, no texts"
    out = tmp_path / "label" / "v1"
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    label(judge_config(), policy=POLICY_DIR, corpus=corpus, calibration=calibration, judge=GOOD_FAKE, out=out)
    (record,) = (out / "shards").iterdir()
    assert not any(pair["pair_id"] in record.read_text() for pair in pool(40))


@dataclass(frozen=True, kw_only=True)
class Costly(FakeJudge):
    """A judge that takes a dollar for each block."""

    async def grade(self, pairs: pa.Table) -> Answers:
        return replace(await super().grade(pairs), usage=Usage(num_prompt_tokens=10, cost_usd=1.0))


def test_the_spend_ceiling_stops_between_blocks_and_more_money_goes_on(corpus: Record, tmp_path: Path) -> None:
    calibration = calibrated(corpus, tmp_path, GOOD_FAKE)
    judge = Costly(dimensions=POLICY.rubric.names, judge_id="good")
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "calibration": calibration, "pairs_per_block": 8}
    out = tmp_path / "label" / "v1"
    prices = {"usd_per_million_prompt_tokens": 1.0}
    with pytest.raises(SpendCeilingError, match=r"2\.00 USD spent of max_cost_usd 2\.00.*16 pairs") as stop:
        label(judge_config(max_cost_usd=2.0, **prices), **args, judge=judge, out=out)
    assert "\n" not in str(stop.value)
    counting = Counting(dimensions=POLICY.rubric.names, judge_id="good")
    record = label(judge_config(max_cost_usd=9.0, **prices), **args, judge=counting, out=out)
    assert len({pair_id for pair_id, _ in counting.asked}) == 40 - 16
    assert record.metrics["cost_usd"] == 2.0 and record.rejected == {}
