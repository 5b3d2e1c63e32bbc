"""The worklist: faults that were put in must come out sorted, and every case says why."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from preceptor.cli import main
from preceptor.contracts import GOLDEN, LABELS, OVERALL, make_pair, rows_to_table, write_table
from preceptor.policy import load_policy
from preceptor.policy.rubric import Rubric
from preceptor.refine import Cause, Task, worklist
from preceptor.refine.neighbours import groups_of, terms_of, tfidf
from preceptor.refine.worklist_files import row_of, text_of_worklist, write_worklist
from tests.unit.refinement import write_policy

TRADES = {
    "kitchen": "cook chef kitchen restaurant menu grill",
    "wards": "nurse ward hospital care patient night",
    "roads": "driver lorry road freight tacho depot",
    "offices": "clerk ledger invoice office payroll desk",
}
BROKEN_SLICE = "short"
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Faulty:
    golden: pa.Table
    labels: pa.Table
    causes: Mapping[Key, Cause]


def golden_row(pair: Mapping[str, str], dimension: str, grade: int, **changes: Any) -> dict[str, Any]:
    row = {**pair, "dimension": dimension, "grade": grade, "grader_id": "market-truth", "reason": "as constructed"}
    return {**row, "policy_version": "1.0.0", **changes}


def label_row(pair: Mapping[str, str], dimension: str, probs: list[float]) -> dict[str, Any]:
    total = sum(probs)
    return {
        "pair_id": pair["pair_id"],
        "dimension": dimension,
        "grade": int(np.argmax(probs)),
        "probs": [prob / total for prob in probs],
        "label_mass": 0.99,
        "rationale": None,
        "judge_id": "scripted",
        "policy_version": "1.0.0",
        "prompt_hash": "",
    }


def sure(grade: int, confidence: float) -> list[float]:
    return [confidence if each == grade else (1 - confidence) / 4 for each in range(5)]


def pairs(num: int, rng: random.Random) -> list[dict[str, str]]:
    found = []
    for number in range(num):
        words = TRADES[list(TRADES)[number % len(TRADES)]].split()
        said = [" ".join(rng.sample(words, 4)) for _ in range(3)]
        texts = f"{said[0]} {number // 4}", f"{said[1]} {number}", f"{said[2]} {number}"
        slice_ = (BROKEN_SLICE, "long", "place", "title")[(number // 4) % 4]
        found.append(make_pair(*texts, slice=slice_, split="calibration"))
    return found


def with_faults(seed: int, *, num: int = 240, noise: float = 0.05) -> Faulty:
    """A judge that is right but for four things.

    On `work`, nobody tells grade 2 from 3: golden and the judge pick one, and the judge wavers. On `place`, the judge
    is 2 too low in one slice, and sure of it. 3 in 100 golden labels are wrong. And the judge is one off, less sure
    than usual, on `noise` of the rest.
    """
    rng = random.Random(seed)
    golden, labels, causes = [], [], {}
    for pair in pairs(num, rng):
        for name in ("work", "place"):
            truth = rng.randrange(5)
            given, judged, probs, cause = truth, truth, sure(truth, rng.uniform(0.8, 0.97)), None
            if name == "work" and truth in (2, 3):
                given, judged, cause = rng.choice((2, 3)), rng.choice((2, 3)), Cause.POLICY
                probs = [0.02, 0.02, 0.38, 0.38, 0.02]
                probs[judged] = 0.56
            elif name == "place" and pair["slice"] == BROKEN_SLICE and truth >= 2:
                judged, cause = truth - 2, Cause.JUDGE
                probs = sure(judged, rng.uniform(0.8, 0.97))
            elif rng.random() < 0.03:
                given, cause = rng.choice([grade for grade in range(5) if grade != truth]), Cause.LABEL
            elif rng.random() < noise:
                judged, cause = truth + (1 if truth < 4 else -1), Cause.JUDGE
                probs = sure(judged, rng.uniform(0.45, 0.75))
            golden.append(golden_row(pair, name, given))
            labels.append(label_row(pair, name, probs))
            if given != judged and cause is not None:
                causes[pair["pair_id"], name] = cause
    return Faulty(golden=rows_to_table(golden, GOLDEN), labels=rows_to_table(labels, LABELS), causes=causes)


def key_of(task: Task) -> Key:
    return task.disagreement.pair["pair_id"], task.disagreement.dimension


@pytest.fixture(scope="module")
def rubric(tmp_path_factory: pytest.TempPathFactory) -> Rubric:
    return load_policy(write_policy(tmp_path_factory.mktemp("policy") / "small")).rubric


def test_faults_that_were_put_in_are_told_apart(rubric: Rubric) -> None:
    counts: Counter[tuple[Cause, Cause]] = Counter()
    for seed in range(3):
        faulty = with_faults(seed)
        tasks = worklist(faulty.golden, faulty.labels, rubric, embed=tfidf)
        assert {key_of(task) for task in tasks} == set(faulty.causes)
        counts.update((faulty.causes[key_of(task)], task.cause) for task in tasks)
    for cause in Cause:
        hits = counts[cause, cause]
        num_true = sum(num for (true, _), num in counts.items() if true is cause)
        num_said = sum(num for (_, said), num in counts.items() if said is cause)
        chance = num_true / counts.total()
        print(f"{cause}: precision {hits / num_said:.2f}, recall {hits / num_true:.2f}, by chance {chance:.2f}")
        assert num_true > 20
        assert hits / num_said >= 0.8
        # A wrong label on a grade that nobody can tell from its neighbour has no neighbours to contradict it.
        assert hits / num_true >= 0.6 > chance + 0.1


def test_without_faults_in_golden_few_labels_are_suspected(rubric: Rubric) -> None:
    """A judge that is just noisy must not make golden look wrong."""
    rng = random.Random(5)
    golden, labels = [], []
    for pair in pairs(240, rng):
        truth = rng.randrange(5)
        is_off = rng.random() < 0.15
        judged = truth + (1 if truth < 4 else -1) if is_off else truth
        golden.append(golden_row(pair, "work", truth))
        labels.append(label_row(pair, "work", sure(judged, rng.uniform(0.45, 0.7) if is_off else rng.uniform(0.8, 1))))
    tasks = worklist(rows_to_table(golden, GOLDEN), rows_to_table(labels, LABELS), rubric, embed=tfidf)
    assert len(tasks) > 20
    assert Counter(task.cause for task in tasks)[Cause.LABEL] == 0


def one_case(probs: list[float], rubric: Rubric, *, golden: int = 1, **seen: Any) -> Task:
    """The task of one pair among forty that golden and a sure judge agree on."""
    rows = pairs(41, random.Random(1))
    truth = [golden_row(pair, "work", number % 5) for number, pair in enumerate(rows[1:])]
    told = [label_row(pair, "work", sure(number % 5, 0.9)) for number, pair in enumerate(rows[1:])]
    found = worklist(
        rows_to_table([golden_row(rows[0], "work", golden), *truth], GOLDEN),
        rows_to_table([label_row(rows[0], "work", probs), *told], LABELS),
        rubric,
        embed=tfidf,
        **{name: table(rows[0]) for name, table in seen.items()},
    )
    assert len(found) == 1
    return found[0]


def test_a_lone_grade_against_a_sure_judge_is_a_wrong_label(rubric: Rubric) -> None:
    task = one_case(sure(4, 0.92), rubric)
    assert task.cause is Cause.LABEL
    assert "golden agrees with" in task.evidence[-1]


def test_a_judge_that_is_less_sure_than_usual_is_wrong_itself(rubric: Rubric) -> None:
    assert one_case(sure(4, 0.6), rubric).cause is Cause.JUDGE


def test_a_wavering_judge_points_at_the_policy(rubric: Rubric) -> None:
    task = one_case([0.02, 0.4, 0.5, 0.05, 0.03], rubric)
    assert task.cause is Cause.POLICY
    assert "half as probable" in task.evidence[-1]


def test_a_judge_that_answers_otherwise_when_asked_again_points_at_the_policy(rubric: Rubric) -> None:
    again = one_case(
        sure(4, 0.92), rubric, again=lambda pair: rows_to_table([label_row(pair, "work", sure(2, 0.9))], LABELS)
    )
    assert again.cause is Cause.POLICY
    assert "asked again, the judge said 2" in again.evidence


def test_graders_who_differ_point_at_the_policy(rubric: Rubric) -> None:
    def both(pair: Mapping[str, str]) -> pa.Table:
        rows = [golden_row(pair, "work", grade, grader_id=who) for who, grade in (("ada", 1), ("ben", 4))]
        return rows_to_table(rows, GOLDEN)

    task = one_case(sure(4, 0.92), rubric, gradings=both)
    assert task.cause is Cause.POLICY
    assert "graders gave 1, 4" in task.evidence


def test_an_overall_that_does_not_follow_is_a_wrong_label_and_others_are_explained(rubric: Rubric) -> None:
    rows = pairs(3, random.Random(2))
    golden, labels = [], []
    # The first breaks the rule; in the second a dimension differs, which explains overall; in the third none does.
    for pair, work, overall, judged_work in ((rows[0], 4, 1, 4), (rows[1], 4, 4, 0), (rows[2], 4, 4, 4)):
        golden += [golden_row(pair, "work", work), golden_row(pair, "place", 4), golden_row(pair, OVERALL, overall)]
        labels += [label_row(pair, "work", sure(judged_work, 0.9)), label_row(pair, "place", sure(4, 0.9))]
        labels.append(label_row(pair, OVERALL, sure(0 if pair is rows[1] else 3, 0.9)))
    tasks = worklist(rows_to_table(golden, GOLDEN), rows_to_table(labels, LABELS), rubric, embed=tfidf)
    found = {key_of(task): (task.cause, task.evidence[-1]) for task in tasks}
    assert found[rows[0]["pair_id"], OVERALL] == (Cause.LABEL, "golden's own grades aggregate to 4")
    assert (rows[1]["pair_id"], OVERALL) not in found
    assert found[rows[2]["pair_id"], OVERALL] == (Cause.JUDGE, "no dimension of the pair differs")


def test_nothing_to_do_is_no_fault(rubric: Rubric) -> None:
    pair = pairs(1, random.Random(3))[0]
    golden = rows_to_table([golden_row(pair, "work", 2)], GOLDEN)
    labels = rows_to_table([label_row(pair, "work", sure(2, 0.9))], LABELS)
    assert worklist(golden, labels, rubric, embed=tfidf) == ()
    assert text_of_worklist((), num_groups=3).startswith("0 disagreements")


# ---------------------------------------------------------------- groups and files


def test_pairs_that_are_alike_share_a_group_named_by_their_words() -> None:
    texts = [f"{words} {number}" for words in list(TRADES.values())[:2] for number in range(8)]
    groups = groups_of(tfidf(texts), seed=1)
    assert len(set(groups[:8])) == len(set(groups[8:])) == 1 and groups[0] != groups[8]
    assert set(terms_of(texts, groups)[groups[0]].split()) <= set(TRADES["kitchen"].split())


def test_texts_without_words_or_all_alike_make_one_group() -> None:
    assert groups_of(tfidf(["", "!"]), seed=1) == [0, 0]
    assert len(set(groups_of(tfidf(["same text"] * 40), seed=1))) == 1
    assert terms_of(["", ""], [0, 0]) == {0: ""}


def test_files_hold_every_case_and_no_formula(rubric: Rubric, tmp_path: Path) -> None:
    pair = make_pair('=HYPERLINK("http://x")', "-", "@cook", slice="s", split="calibration")
    golden = rows_to_table([golden_row(pair, "work", 1)], GOLDEN)
    labels = rows_to_table([label_row(pair, "work", sure(4, 0.9))], LABELS)
    tasks = worklist(golden, labels, rubric, embed=tfidf)
    jsonl, table = write_worklist(tasks, rubric, tmp_path)
    row = json.loads(jsonl.read_text())
    assert (row["golden_anchor"], row["judge_anchor"]) == ("Same field.", "The very work.")
    assert row["query"] == pair["query"] and row == row_of(tasks[0], rubric)
    with table.open(newline="") as source:
        cells = next(csv.DictReader(source))
    assert [cells[name][:2] for name in ("query", "profile", "document")] == ["'=", "'-", "'@"]
    assert cells["cause"] == "judge wrong" and cells["evidence"].startswith("judge 4 (90%), golden 1")


def write_lines(file: Path, golden: pa.Table, policy: Path, *, grader: str = "market-truth", off: int = 0) -> Path:
    """`golden` as a golden file of `grader`, who grades `off` higher."""
    lines: dict[str, dict[str, Any]] = {}
    for row in golden.to_pylist():
        names = ("query", "profile", "document", "slice", "split", "reason", "policy_version")
        line = {**{name: row[name] for name in names}, "grades": {}, "grader_id": grader}
        lines.setdefault(row["pair_id"], line)["grades"][row["dimension"]] = min(row["grade"] + off, 4)
    aggregate = load_policy(policy).rubric.aggregate
    for line in lines.values():
        line["grades"][OVERALL] = aggregate(line["grades"])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    return file


def test_the_command_prints_the_groups_and_writes_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty, policy = with_faults(1), write_policy(tmp_path / "small")
    golden = write_lines(tmp_path / "golden.jsonl", faulty.golden, policy)
    write_table(faulty.labels, tmp_path / "labels.parquet", LABELS)
    options = ["--policy", str(policy), "--golden", str(golden), "--labels", str(tmp_path / "labels.parquet")]
    assert main(["worklist", *options, "--embedding", "tfidf", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"{len(faulty.causes)} disagreements: " in said and "amend the anchor" in said
    rows = [json.loads(line) for line in (tmp_path / "out" / "worklist.jsonl").read_text().splitlines()]
    assert {(row["pair_id"], row["dimension"]) for row in rows} == set(faulty.causes)
    assert [row["cause"] for row in rows] == sorted(
        (row["cause"] for row in rows), key=[str(cause) for cause in Cause].index
    )


def test_the_command_needs_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worklist"]) == 2
    assert "give --labels FILE" in capsys.readouterr().err


def test_labels_of_other_pairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = write_policy(tmp_path / "small")
    write_table(with_faults(1, num=4).labels, tmp_path / "labels.parquet", LABELS)
    assert main(["worklist", "--policy", str(policy), "--labels", str(tmp_path / "labels.parquet")]) == 2
    assert "labels.parquet: no label of a golden calibration pair" in capsys.readouterr().err


def test_a_recipes_worklist_is_of_its_own_golden_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulty = with_faults(2, num=60)
    write_table(faulty.golden, tmp_path / "corpus" / "v1" / "golden" / "a.parquet", GOLDEN)
    write_table(faulty.labels, tmp_path / "calibrate" / "v1" / "labels" / "a.parquet", LABELS)
    policy = write_policy(tmp_path / "small")
    options = ["tiny", "--policy", str(policy), "--root", str(tmp_path), "--embedding", "tfidf"]
    assert main(["worklist", *options]) == 0
    assert f"{len(faulty.causes)} cases" in capsys.readouterr().out
    assert len((tmp_path / "worklist" / "worklist.jsonl").read_text().splitlines()) == len(faulty.causes)


def test_the_command_reads_a_file_of_each_grader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulty, policy = with_faults(3, num=60), write_policy(tmp_path / "small")
    golden = write_lines(tmp_path / "golden.jsonl", faulty.golden, policy)
    graders = [
        write_lines(tmp_path / f"{who}.jsonl", faulty.golden, policy, grader=who, off=off)
        for who, off in (("ada", 0), ("ben", 1))
    ]
    write_table(faulty.labels, tmp_path / "labels.parquet", LABELS)
    options = ["--policy", str(policy), "--golden", str(golden), "--labels", str(tmp_path / "labels.parquet")]
    options += ["--gradings", *map(str, graders), "--embedding", "tfidf", "--out", str(tmp_path / "out")]
    assert main(["worklist", *options]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "worklist.jsonl").read_text().splitlines()]
    assert {row["cause"] for row in rows if row["golden_grade"] < 4} == {"policy unclear"}
