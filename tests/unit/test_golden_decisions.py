"""Who may grade and decide, and which grades may be called golden."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from preceptor.contracts import OVERALL, SPLITS, split_of
from preceptor.errors import InputError, PolicyError
from preceptor.golden.adjudicate import read_decisions
from preceptor.golden.census import README
from preceptor.golden.draft import read_draft
from preceptor.golden.graders import choose_graders, declared_graders
from preceptor.golden.sealing import seal_draft
from preceptor.policy import lint, load_golden, load_policy
from preceptor.policy.seal import read_seal, seal_of
from tests.unit.desk import (
    DIMENSIONS,
    FIRST,
    Desk,
    export_arguments,
)
from tests.unit.grading import DECIDER, GRADERS, SHIPPED, read_csv, slips, write_csv


def agreed(desk: Desk) -> Path:
    other = slips(desk.right, share=0.03)
    return desk.graded(ann=desk.right, kim=other, lee=desk.right)


def decide(desk: Desk, draft: Path, **changes: str) -> Path:
    """A worklist in which everything is decided as the truth is, with `changes` to its first row."""
    file = desk.tasks.with_name("worklist.csv")
    assert desk.run("adjudicate", draft, "--policy", desk.policy, "--out", file) == 0
    rows = read_csv(file)
    for row in rows:
        row |= {
            "decision": str(desk.right(row["document"], row["dimension"])),
            "decided_by": DECIDER,
            "why": "the anchor",
        }
    rows[0] |= changes
    return write_csv(desk.tasks.with_name("decided.csv"), rows)


# Who may grade


def test_the_declared_graders_are_read_from_the_rubric_alone(tmp_path: Path) -> None:
    file = tmp_path / "rubric.toml"
    file.write_text('[golden]\ngraders = ["market-truth", "kim", "lee"]\n')
    assert declared_graders(tmp_path) == ("kim", "lee")
    assert choose_graders(tmp_path, None) == ("kim", "lee")
    with pytest.raises(PolicyError, match="unknown grader 'max'"):
        choose_graders(tmp_path, ["kim", "max"])
    file.write_text("version = 1\n")
    assert declared_graders(tmp_path) == ()
    with pytest.raises(PolicyError, match=r"got 0 \(nobody\)"):
        choose_graders(tmp_path, None)
    file.write_text('[golden]\ngraders = ["market-truth"]\n')
    with pytest.raises(PolicyError, match=r"'kim'\. .*rubric.toml declares: market-truth\. Mend it, or"):
        choose_graders(tmp_path, ["kim", "lee"])
    for broken in ('graders = "kim"', "graders = [1]", 'graders = ["a+b"]'):
        file.write_text(f"[golden]\n{broken}\n")
        with pytest.raises(PolicyError, match=r"\[golden\] graders"):
            declared_graders(tmp_path)


def test_a_declared_list_is_what_deciders_and_golden_are_held_to(desk: Desk) -> None:
    draft = read_draft(agreed(desk))
    rows = decide(desk, draft.file, decided_by="zoe+max")
    _, findings, _ = read_decisions(rows, draft, graders=[*GRADERS, DECIDER])
    assert [finding.message for finding in findings] == ["unknown grader 'zoe'. Declared are: ann, kim, lee, max."]
    decisions, findings, _ = read_decisions(rows, draft, graders=[])
    assert findings == () and decisions[0].decided_by == "zoe+max"

    policy = load_policy(desk.policy)
    rubric = desk.policy / "rubric.toml"
    rubric.write_text(rubric.read_text().partition("\n[golden]")[0] + '\n[golden]\ngraders = ["ann", "kim", "lee"]\n')
    before = sorted((desk.policy / "golden").rglob("*"))
    with pytest.raises(PolicyError, match=r"unknown grader '(zoe|max)', declared are ann, kim, lee"):
        seal_draft(replace(draft, decisions=decisions), policy, out=desk.policy / "golden", bar=0)
    assert sorted((desk.policy / "golden").rglob("*")) == before


def test_a_declared_list_is_what_answers_are_held_to(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    file = desk.policy / "rubric.toml"
    declared = file.read_text().partition("\n[golden]")[0] + '\n[golden]\ngraders = ["market-truth", "ann", "kim"]\n'
    sent, draft = desk.send(desk.export())
    file.write_text(declared)
    try:
        load_policy(desk.policy)
    except PolicyError:
        pytest.skip("this rubric does not know [golden]")
    said = desk.refused("import", "--policy", desk.policy, sent, "--out", draft, "--users", "1=ann,2=kim,3=lee")
    assert "unknown grader 'lee'. Declared are: ann, kim." in said


# Decisions and golden files


def test_differences_are_listed_decided_and_become_golden(desk: Desk) -> None:
    draft = agreed(desk)
    before = draft.read_bytes()
    rows = decide(desk, draft)
    said = desk.refused("seal", draft, "--policy", desk.policy, code=1)
    assert f"{len(read_csv(rows))} differences nobody has decided" in said and "adjudicate" in said
    assert desk.run("adjudicate", draft, "--policy", desk.policy, "--decisions", rows) == 0
    assert draft.read_bytes().startswith(before), "each grader's rows stay as they were"

    assert desk.run("seal", draft, "--policy", desk.policy) == 0
    policy = load_policy(desk.policy)
    files = {split: desk.policy / "golden" / f"{draft.stem}.{split}.jsonl" for split in SPLITS}
    lines = {split: list(map(json.loads, file.read_text().splitlines())) for split, file in files.items()}
    round_ = read_draft(draft)
    asked = {task.pair["document"]: task for task in round_.tasks if task.known is None}
    assert {row["document"] for rows in lines.values() for row in rows} == set(asked)
    for split, found in lines.items():
        for row in found:
            task = asked[row["document"]]
            assert row["split"] == split == split_of(task.pair["query_id"])
            right = {name: desk.right(row["document"], name) for name in DIMENSIONS}
            assert row["grades"] == {**right, OVERALL: policy.rubric.aggregate(right)}
            assert row["grader_id"].split("+")[:2] == sorted(task.graders)
            assert row["policy_version"] == policy.version
    decided = [row for rows in lines.values() for row in rows if row["grader_id"].endswith("+max")]
    assert decided and all("the anchor" in row["reason"] for row in decided)


def test_a_sealed_round_is_golden_counted_and_under_the_seal(desk: Desk) -> None:
    draft = agreed(desk)
    known = load_golden(desk.policy / "golden", load_policy(desk.policy)).num_rows
    assert desk.run("adjudicate", draft, "--policy", desk.policy, "--decisions", decide(desk, draft)) == 0
    assert desk.run("seal", draft, "--policy", desk.policy) == 0
    policy = load_policy(desk.policy)
    golden = load_golden(desk.policy / "golden", policy)
    assert golden.num_rows > known
    assert [finding for finding in lint(desk.policy) if finding.severity == "error"] == []
    assert read_seal(desk.policy) == seal_of(golden) != read_seal(SHIPPED)
    readme = (desk.policy / "golden" / README).read_text()
    assert "graded by `ann+kim` (people)" in readme and "`market-truth` (constructed" in readme
    desk.said.readouterr()
    tasks = desk.tasks.with_name("next.json")
    assert desk.run(*export_arguments(desk, desk.tasks.with_name("pairs.parquet"), tasks)) == 0
    assert "golden already" in desk.said.readouterr().out, "people are not asked twice"


def test_pairs_that_one_person_graded_are_left_out_and_counted(desk: Desk) -> None:
    draft = desk.graded(ann=desk.right, kim=desk.right)
    desk.said.readouterr()
    assert desk.run("seal", draft, "--policy", desk.policy) == 0
    said = desk.said.readouterr().out
    num = sum("lee" in task.graders and task.known is None for task in read_draft(draft).tasks)
    assert f"left out: {num} graded by one person" in said and "vigilance item" in said


def test_grades_under_the_bar_do_not_become_golden(desk: Desk) -> None:
    worst = DIMENSIONS[2]
    other = slips(desk.right, share=0.5, dimensions=[worst], by=2)
    draft = desk.graded(ann=desk.right, kim=other, lee=other)
    before = sorted((desk.policy / "golden").rglob("*"))
    said = desk.refused("seal", draft, "--policy", desk.policy, "--vigilance-bar", "0", code=1)
    assert "GoldenRefused" in said and f"the worst dimension is {worst} at " in said and "under the bar of 0.80" in said
    assert said.count("\n") == 1
    assert sorted((desk.policy / "golden").rglob("*")) == before


def test_a_careless_graders_grades_do_not_become_golden(desk: Desk) -> None:
    draft = desk.graded(ann=desk.right, kim=desk.right, lee=slips(desk.right, share=0.6))
    said = desk.refused("seal", draft, "--policy", desk.policy, code=1)
    assert "under the vigilance bar of 0.70: lee" in said


def test_a_pair_that_is_golden_meanwhile_is_refused(desk: Desk) -> None:
    draft = desk.graded(ann=desk.right, kim=desk.right, lee=desk.right)
    assert desk.run("seal", draft, "--policy", desk.policy) == 0
    again = draft.with_name("again.jsonl")
    shutil.copy(draft, again)
    said = desk.refused("seal", again, "--policy", desk.policy)
    assert "again.train.jsonl:1: the pair is golden already, at " in said
    assert not list((desk.policy / "golden").glob("again.*"))
    assert desk.run("seal", draft, "--policy", desk.policy) == 0, "the same again changes nothing"


def test_a_pair_that_is_a_precedent_meanwhile_is_refused(desk: Desk) -> None:
    draft = read_draft(desk.graded(ann=desk.right, kim=desk.right, lee=desk.right))
    policy = load_policy(desk.policy)
    pair = next(task.pair for task in draft.tasks if task.known is None)
    case = replace(
        policy.precedents[0], query=pair["query"].upper(), profile=pair["profile"], document=pair["document"]
    )
    with pytest.raises(PolicyError, match=f"precedent '{case.id}'"):
        seal_draft(draft, replace(policy, precedents=(case,)), out=desk.policy / "golden", bar=0)
    assert not list((desk.policy / "golden").glob(f"{draft.file.stem}.*"))


def test_golden_files_are_never_overwritten(desk: Desk, tmp_path: Path) -> None:
    draft = desk.graded(ann=desk.right, kim=desk.right, lee=desk.right)
    taken = tmp_path / "out" / f"{draft.stem}.train.jsonl"
    taken.parent.mkdir()
    taken.write_text("mine\n")
    said = desk.refused("seal", draft, "--policy", desk.policy, "--out", taken.parent)
    assert f"{taken}: exists and holds something else" in said
    assert list(taken.parent.iterdir()) == [taken] and taken.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decision": "9"}, "unknown grade '9'"),
        ({"decided_by": ""}, "'decided_by' is empty"),
        ({"decided_by": "kim"}, "'kim' is one of the two who differ"),
        ({"dimension": "charm"}, "has no difference on 'charm' to decide"),
    ],
)
def test_a_wrong_decision_is_refused_at_its_line(desk: Desk, changes: dict[str, str], message: str) -> None:
    draft = agreed(desk)
    before = draft.read_bytes()
    file = decide(desk, draft, **changes)
    said = desk.refused("adjudicate", draft, "--policy", desk.policy, "--decisions", file)
    assert any(line.startswith(f"{file}:2: error: ") and message in line for line in said.splitlines())
    assert draft.read_bytes() == before


def test_a_decision_is_made_once_and_the_two_may_make_it_together(desk: Desk) -> None:
    draft = agreed(desk)
    first = decide(desk, draft, decided_by="ann+kim")
    rows = read_csv(first)
    both = write_csv(first.with_name("twice.csv"), [*rows, rows[0]])
    said = desk.refused("adjudicate", draft, "--policy", desk.policy, "--decisions", both)
    assert "the same is decided on line 2" in said
    assert desk.run("adjudicate", draft, "--policy", desk.policy, "--decisions", first) == 0
    whole = draft.read_bytes()
    assert desk.run("adjudicate", draft, "--policy", desk.policy, "--decisions", first) == 0
    assert draft.read_bytes() == whole, "read again, nothing is added"
    rows[0]["decision"] = str((int(rows[0]["decision"]) + 1) % 5)
    other = write_csv(first.with_name("other.csv"), rows)
    said = desk.refused("adjudicate", draft, "--policy", desk.policy, "--decisions", other)
    assert "ann+kim has decided on" in said and draft.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[1:], ":1: not a line of a draft (the first line must say"),
        (lambda lines: [*lines, "{"], "not valid JSON"),
        (lambda lines: [lines[0], '{"kind": "graded", "task": "t"}'], ":2: not a line of a draft"),
        (lambda lines: [lines[0], '{"kind": "gossip"}'], ":2: not a line of a draft"),
        (lambda lines: [line.replace(f'"{FIRST}": 4', f'"{FIRST}": 9') for line in lines], "unknown grade 9"),
        (lambda lines: [], "an empty file is no draft"),
    ],
)
def test_a_damaged_draft_is_refused_at_its_line(
    desk: Desk, damage: Callable[[Sequence[str]], Sequence[str]], message: str
) -> None:
    draft = desk.graded(ann=desk.right, kim=desk.right, lee=desk.right)
    draft.write_text("".join(f"{line}\n" for line in damage(draft.read_text().splitlines())))
    said = desk.refused("agree", draft)
    assert message in said and str(draft) in said and said.count("\n") == 1


def test_a_draft_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such draft"):
        read_draft(tmp_path / "none.jsonl")
