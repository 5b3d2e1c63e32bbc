from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from preceptor.contracts import GOLDEN, LABELS, OVERALL, read_table
from preceptor.judge import Answers, FakeJudge, Reply, calibrate
from preceptor.judge.agreement import Cell, cells_of_json
from preceptor.judge.consistency import MOST_PAIRS, examined, reordered, sample_pairs
from preceptor.judge.host import StoredJudge
from preceptor.judge.judges import openai_judge
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.replies import graded
from preceptor.policy import ANSWER, prompt_hash
from preceptor.policy.prompts import system_prompt
from preceptor.recipe import POLICY_DIR
from preceptor.record import Record
from tests.unit.labelling import GOOD_FAKE, POLICY, calibrated, judge_config, pool


def shifted(reply: Reply) -> Reply:
    """The same reply one grade up, and the highest where it was."""
    probs = reply.probs or ()
    grade = min(max(range(5), key=probs.__getitem__) + 1, 4)
    return graded(reply.pair_id, reply.dimension, [0.8 if n == grade else 0.05 for n in range(5)])


@dataclass(frozen=True, kw_only=True)
class Swayed(FakeJudge):
    """A judge that grades its last dimension a grade higher where it comes first."""

    swayed: str = POLICY.rubric.names[-1]

    def answer(self, pair_id: str, dimension: str) -> Reply:
        reply = super().answer(pair_id, dimension)
        return shifted(reply) if dimension == self.swayed == self.dimensions[0] else reply


@dataclass(frozen=True, kw_only=True)
class Forgetful(FakeJudge):
    """A judge that says something else whenever it is asked for only some of a block."""

    async def grade(self, pairs: pa.Table) -> Answers:
        answers = await super().grade(pairs)
        if pairs.num_rows > MOST_PAIRS:
            return answers
        return replace(answers, replies=tuple(map(shifted, answers.replies)))


def cells(record: Record, kind: str) -> dict[str, Cell]:
    return {cell.dimension: cell for cell in cells_of_json(record.metrics["consistency"][kind]["cells"])}


def test_a_steady_judge_agrees_with_itself_on_a_stated_sample(corpus: Record, tmp_path: Path) -> None:
    record = calibrated(corpus, tmp_path, GOOD_FAKE)
    found = record.metrics["consistency"]
    labels = read_table(record.path / "labels", LABELS)
    assert len(found["pair_ids"]) == 14, "half of 28"
    assert set(found["pair_ids"]) <= set(labels.column("pair_id").to_pylist())
    for kind in ("again", "reordered"):
        assert {name: cell.num for name, cell in cells(record, kind).items()} == dict.fromkeys(POLICY.rubric.names, 14)
        assert all(cell.exact == 1.0 for cell in cells(record, kind).values())
        assert found[kind]["prob_shift"] == {"mean": pytest.approx(0, abs=1e-6), "most": pytest.approx(0, abs=1e-6)}


def test_what_the_order_of_dimensions_changes_is_told_from_what_asking_again_changes(
    corpus: Record, tmp_path: Path
) -> None:
    judge = Swayed(dimensions=POLICY.rubric.names, judge_id="swayed")
    record = calibrated(corpus, tmp_path, judge)
    swayed = cells(record, "reordered").pop(judge.swayed)
    assert swayed.exact < 1 and swayed.leniency > 0
    others = [cell for name, cell in cells(record, "reordered").items() if name != judge.swayed]
    assert all(cell.exact == 1 for cell in [*others, *cells(record, "again").values()])
    assert record.metrics["consistency"]["reordered"]["prob_shift"]["most"] > 0.5


def test_the_second_answers_are_no_labels_and_are_counted_nowhere_else(corpus: Record, tmp_path: Path) -> None:
    steady = calibrated(corpus, tmp_path, GOOD_FAKE)
    forgetful = calibrated(corpus, tmp_path, Forgetful(dimensions=POLICY.rubric.names, judge_id="forgetful"))
    assert cells(forgetful, "again")["role"].exact < 1
    for name in ("per_dimension", "num_pairs", "num_rows_asked"):
        assert forgetful.metrics[name] == steady.metrics[name]
    assert (forgetful.num_rows_in, forgetful.num_rows_kept) == (steady.num_rows_in, steady.num_rows_kept)
    said = [read_table(record.path / "labels", LABELS).column("grade") for record in (steady, forgetful)]
    assert said[0] == said[1]


def test_rows_taken_over_are_not_asked_again(corpus: Record, tmp_path: Path) -> None:
    args: dict[str, Any] = {"policy": POLICY_DIR, "corpus": corpus, "judge": GOOD_FAKE}
    calibrate(judge_config(), **args, out=tmp_path / "calibrate" / "v1")
    second = calibrate(judge_config(floor=0.1), **args, out=tmp_path / "calibrate" / "v2")
    assert second.metrics["consistency"] is None
    assert (second.metrics["num_rows_asked"], second.metrics["asked"]) == (0, {})
    assert second.metrics["num_rows_reused"] == 28 * len(POLICY.rubric.names)


def test_a_prompted_judge_is_asked_from_the_policy_turned_round() -> None:
    config = replace(judge_config(), kind="openai", base_url="http://127.0.0.1:1/v1")
    judge = openai_judge(config, POLICY)
    turned = reordered(judge, POLICY)
    assert isinstance(turned, OpenAIJudge)
    before, after = system_prompt(judge.policy), system_prompt(turned.policy)
    places = [after.index(f"\n\n{name}: ") for name in POLICY.rubric.names]
    assert places == sorted(places, reverse=True)
    assert {*before.split()} == {*after.split()} and len(before) == len(after), "the same words"
    hashes = [{name: prompt_hash(policy, name) for name in POLICY.rubric.names} for policy in (POLICY, turned.policy)]
    assert turned.judge_id == judge.judge_id and hashes[0] == hashes[1]
    assert turned.chat(pool(1)[0], "role")[1] == judge.chat(pool(1)[0], "role")[1]
    assert turned.asking == ANSWER


def test_a_judge_that_looks_its_answers_up_is_not_asked_twice(tmp_path: Path) -> None:
    stored = StoredJudge(judge_id="teacher:x", dimensions=(OVERALL,), scores=tmp_path)
    assert examined(stored, POLICY, sample=frozenset("a"), out=tmp_path) is stored


def test_the_sample_is_the_same_whatever_the_order_of_golden(corpus: Record) -> None:
    golden = read_table(corpus.path / "golden", GOLDEN)
    assert sample_pairs(golden) == sample_pairs(golden.take(list(reversed(range(golden.num_rows)))))
    assert len(sample_pairs(golden)) == MOST_PAIRS
    assert len(sample_pairs(golden.slice(0, 1))) == 1
