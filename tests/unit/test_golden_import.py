"""Grades back from people: what is read, what is counted as left out, and what is refused with its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from preceptor.contracts import OVERALL
from preceptor.golden.draft import read_draft
from preceptor.policy import load_golden, load_policy
from tests.unit.desk import (
    DIMENSIONS,
    FIRST,
    Desk,
    export_arguments,
)
from tests.unit.grading import GRADERS, Grader, read_csv, slips, write_csv


def spoil_choice(tasks: list[dict[str, Any]], value: object) -> None:
    tasks[0]["annotations"][0]["result"][0]["value"] = value


def task_id(tasks: list[dict[str, Any]]) -> str:
    return str(tasks[0]["data"]["task"])


SPOILT: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "unknown grader": (
        lambda t: t[0]["annotations"][0].update(completed_by=9),
        "Say who that is: --users 9=NAME.",
    ),
    "nobody": (lambda t: t[0]["annotations"][0].update(completed_by=None), "unknown grader 'nobody'"),
    "unknown dimension": (
        lambda t: t[0]["annotations"][0]["result"][0].update(from_name="charm"),
        "unknown dimension 'charm'. The round has: ",
    ),
    "grade": (lambda t: spoil_choice(t, {"choices": ["5"]}), f"unknown grade '5' for '{FIRST}'"),
    "two choices": (lambda t: spoil_choice(t, {"choices": ["1", "2"]}), f"'{FIRST}' must be one choice"),
    "no choice": (lambda t: spoil_choice(t, {"rating": 3}), f"'{FIRST}' must be one choice"),
    "missing": (lambda t: t[0]["annotations"][0]["result"].pop(0), f"no grade for {FIRST}"),
    "graded twice": (
        lambda t: t[0]["annotations"][0]["result"].append(t[0]["annotations"][0]["result"][0]),
        f"'{FIRST}' is graded twice",
    ),
    "unknown pair": (lambda t: t[0]["data"].update(task=task_id(t)[:-1] + "x"), "unknown pair: round"),
    "no task": (lambda t: t[0]["data"].pop("task"), "its data has no 'task'"),
    "duplicate": (
        lambda t: t[0]["annotations"].append(t[0]["annotations"][0] | {"id": 77}),
        "at sent.json, task 1, annotation",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_a_wrong_annotation_is_refused_with_its_task(
    desk: Desk, spoil: Callable[[list[dict[str, Any]]], object], message: str
) -> None:
    tasks = desk.export()
    spoil(tasks)
    sent, draft = desk.send(tasks)
    said = desk.refused("import", "--policy", desk.policy, sent, "--out", draft, "--users", "1=ann,2=kim,3=lee")
    assert any(line.startswith(f"{sent}: error: task 1, annotation ") and message in line for line in said.splitlines())
    assert "rows are refused, listed above; nothing is written" in said
    assert not draft.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"tasks": []}', "an export is a list of tasks, got dict"),
        ('[{"id": 1, "role": "4", "annotator": 1}]', "item 1 is no task with 'data' and a list 'annotations'"),
        ('[{"id": 1, "data": {}, "annotations": [3]}]', "item 1 is no task"),
        ("[]", "no pair is graded there yet"),
    ],
)
def test_a_file_that_is_no_export_is_refused(desk: Desk, content: str, message: str) -> None:
    file = desk.tasks.with_name("sent.json")
    file.write_text(content)
    said = desk.refused("import", "--policy", desk.policy, file)
    assert message in said and str(file) in said and said.count("\n") == 1


def test_users_are_known_by_id_by_mail_or_as_an_object(desk: Desk) -> None:
    tasks = desk.export()
    for task in tasks:
        for note in task["annotations"]:
            if note["completed_by"] == 1:
                note["completed_by"] = {"id": 1, "email": "ann@example.org", "first_name": "Ann"}
            elif note["completed_by"] == 2:
                note["completed_by"] = {"email": "kim"}
    sent, draft = desk.send(tasks)
    assert (
        desk.run("import", "--policy", desk.policy, sent, "--out", draft, "--users", "ann@example.org=ann,3=lee") == 0
    )
    assert {item.grader for item in read_draft(draft).graded} == set(GRADERS)


@pytest.mark.parametrize("users", ["1", "1=", "=kim", "1=kim,1=lee"])
def test_users_that_are_no_pairs_are_refused(desk: Desk, users: str) -> None:
    sent, _ = desk.send(desk.export())
    assert "Write: 1=kim,2=lee" in desk.refused("import", "--policy", desk.policy, sent, "--users", users)


def test_what_was_skipped_or_not_graded_is_counted_not_refused(desk: Desk) -> None:
    tasks = desk.export()
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[1]["annotations"] = []
    reason = {"type": "textarea", "from_name": "Reason", "to_name": "Posting", "value": {"text": ["no level stated"]}}
    tasks[2]["annotations"][0]["result"].append(reason)
    sent, draft = desk.send(tasks)
    desk.said.readouterr()
    assert desk.run("import", "--policy", desk.policy, sent, "--out", draft, "--users", "1=ann,2=kim,3=lee") == 0
    said = desk.said.readouterr().out
    assert "left out: 1 skipped by the grader" in said and "left out: 1 not annotated" in said
    found = read_draft(draft)
    assert len(found.graded) == 2 * len(tasks) - 3
    (reasoned,) = [item for item in found.graded if item.reason]
    assert reasoned.reason == "no level stated" and reasoned.source.startswith("sent.json, task 3, annotation ")


def test_a_draft_is_kept_where_tuning_cannot_read_and_never_overwritten(desk: Desk) -> None:
    sent, _ = desk.send(desk.export())
    arguments = ("import", "--policy", desk.policy, sent, "--users", "1=ann,2=kim,3=lee", "--out")
    said = desk.refused(*arguments, desk.policy / "golden" / "round.jsonl")
    assert "is kept where what tunes a judge cannot read it" in said
    draft = desk.graded(ann=desk.right, kim=desk.right)
    before = draft.read_bytes()
    assert "exists and holds something else" in desk.refused(*arguments, draft)
    assert draft.read_bytes() == before
    assert load_golden(desk.policy / "golden", load_policy(desk.policy)).num_rows, "a draft is no golden file"


def fill(file: Path, people: Mapping[str, Grader]) -> list[dict[str, str]]:
    rows = read_csv(file)
    for row in rows:
        document = row["document"].removeprefix("'")
        row |= {name: str(people[row["grader"]](document, name)) for name in DIMENSIONS}
    return rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_spreadsheets_come_back_as_they_were_sent(desk: Desk, tmp_path: Path, delimiter: str) -> None:
    out = tmp_path / "tasks.csv"
    assert desk.run(*export_arguments(desk, tmp_path / "pairs.parquet", out, "--format", "csv")) == 0
    people = {"ann": desk.right, "kim": desk.right, "lee": slips(desk.right, share=0.5)}
    rows = fill(out, people)
    rows[0] |= {name: "" for name in DIMENSIONS}
    halves = [[row for row in rows if (row["grader"] == "ann") == mine] for mine in (True, False)]
    files = [write_csv(tmp_path / f"back{n}.csv", half, delimiter=delimiter) for n, half in enumerate(halves)]
    assert desk.run("import", "--policy", desk.policy, *files) == 0
    (file,) = (desk.policy / "golden" / "drafts").glob("*.jsonl")
    draft = read_draft(file)
    texts = {task.id: task.pair["document"] for task in draft.tasks}
    assert len(draft.graded) == len(rows) - 1
    for item in draft.graded:
        assert item.grades[FIRST] == people[item.grader](texts[item.task], FIRST)
        grades = {name: item.grades[name] for name in DIMENSIONS}
        assert item.grades[OVERALL] == load_policy(desk.policy).rubric.aggregate(grades)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FIRST: "7"}, f"unknown grade '7' for '{FIRST}'"),
        ({FIRST: "3.0"}, f"unknown grade '3.0' for '{FIRST}'"),
        ({FIRST: ""}, f"no grade for {FIRST}"),
        ({"grader": "zoe"}, "unknown grader 'zoe'"),
        ({"task": "0-0"}, "unknown pair"),
        ({"task": None}, "has graded task"),
    ],
)
def test_a_wrong_row_is_refused_at_its_line(
    desk: Desk, tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    out = tmp_path / "tasks.csv"
    assert desk.run(*export_arguments(desk, tmp_path / "pairs.parquet", out, "--format", "csv")) == 0
    rows = fill(out, dict.fromkeys(GRADERS, desk.right))
    rows[3] |= {name: rows[2]["task"] if value is None else value for name, value in change.items()}
    rows[1]["document"] = "one\ntwo\nthree"
    sent = write_csv(tmp_path / "back.csv", rows)
    said = desk.refused("import", "--policy", desk.policy, sent)
    assert any(line.startswith(f"{sent}:7: error: ") and message in line for line in said.splitlines()), said
    assert not list((desk.policy / "golden").glob("drafts/*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task,grader\n", ":1: no column 'reason'"),
        ("task,grader,reason,role,role\n", ":1: the column 'role' stands twice"),
        ("task,grader,reason,role\na,b,c\n", ":2: a row of 3 cells under 4 columns"),
        ("", ":1: no column 'task'"),
        ('task,grader,reason,role\n"a,b,c,d\n', "not valid CSV"),
    ],
)
def test_a_file_that_is_no_spreadsheet_of_ours_is_refused(
    desk: Desk, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "back.csv"
    file.write_text(content)
    said = desk.refused("import", "--policy", desk.policy, file)
    assert f"{file}" in said and message in said and said.count("\n") == 1


def test_answers_of_another_policys_round_are_unknown_pairs(desk: Desk) -> None:
    sent, _ = desk.send(desk.export())
    shutil.rmtree(desk.policy / "golden" / "rounds")
    said = desk.refused("import", "--policy", desk.policy, sent, "--users", "1=ann,2=kim,3=lee")
    assert "sent.json, task 1, annotation" in said and "unknown pair" in said
