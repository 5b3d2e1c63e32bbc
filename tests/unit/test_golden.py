"""Pairs to people and back: what graders get, what is refused of what they send, and what may be called golden."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score

from preceptor.cli import main
from preceptor.contracts import OVERALL, SPLITS, read_parquet, split_of
from preceptor.errors import InputError, PolicyError
from preceptor.golden.adjudicate import read_decisions
from preceptor.golden.agreement import EVERY_SLICE, agreement_of, shortfalls
from preceptor.golden.census import README, fresh
from preceptor.golden.draft import Draft, Graded, read_draft
from preceptor.golden.graders import choose_graders, declared_graders
from preceptor.golden.rounds import find_round
from preceptor.golden.sealing import seal_draft
from preceptor.policy import lint, load_golden, load_policy
from preceptor.policy.seal import read_seal, seal_of
from tests.unit.grading import (
    DECIDER,
    GRADERS,
    SHIPPED,
    SLICES,
    Grader,
    export_of,
    golden_train,
    pairs,
    policy_folder,
    read_csv,
    slips,
    truth,
    users_of,
    write_csv,
    write_pairs,
)

DIMENSIONS = load_policy(SHIPPED).rubric.names
FIRST = DIMENSIONS[0]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A policy with a round that was exported for Label Studio."""

    policy: Path
    tasks: Path
    right: Grader
    said: pytest.CaptureFixture[str]

    def run(self, *arguments: object) -> int:
        return main(["golden", *map(str, arguments)])

    def refused(self, *arguments: object, code: int = 2) -> str:
        """What the command says on stderr when it stops with `code`."""
        self.said.readouterr()
        assert self.run(*arguments) == code
        return self.said.readouterr().err

    def graded(self, **people: Grader) -> Path:
        """The draft of what `people` graded."""
        file = self.tasks.with_name("export.json")
        file.write_text(json.dumps(export_of(self.tasks, people, DIMENSIONS)))
        assert self.run("import", "--policy", self.policy, file, "--users", users_of(people)) == 0
        (draft,) = (self.policy / "golden" / "drafts").glob("*.jsonl")
        return draft

    def export(self) -> list[dict[str, Any]]:
        """What the three right graders' Label Studio exports, to be spoilt."""
        return export_of(self.tasks, dict.fromkeys(GRADERS, self.right), DIMENSIONS)

    def send(self, tasks: object) -> tuple[Path, Path]:
        """An export's file, and the draft it should not become."""
        file = self.tasks.with_name("sent.json")
        file.write_text(json.dumps(tasks))
        return file, self.policy / "golden" / "drafts" / "sent.jsonl"


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    policy = policy_folder(tmp_path)
    tasks = tmp_path / "tasks.json"
    found = Desk(policy=policy, tasks=tasks, right=truth(golden_train(policy)), said=capsys)
    assert found.run(*export_arguments(found, write_pairs(tmp_path), tasks)) == 0
    return found


def export_arguments(desk: Desk, pairs_file: Path, out: Path, *more: object) -> tuple[object, ...]:
    where = ("export", "--policy", desk.policy, "--pairs", pairs_file, "--out", out, "--graders", ",".join(GRADERS))
    return (*where, "--per-stratum", 9, *(more if "--format" in more else ("--format", "labelstudio", *more)))


# Export


def test_each_pair_goes_to_two_and_everybody_gets_the_same_share(desk: Desk) -> None:
    graders = [task["data"]["graders"].split(", ") for task in json.loads(desk.tasks.read_text())]
    assert all(len(set(two)) == 2 and set(two) <= set(GRADERS) for two in graders)
    load = Counter(name for two in graders for name in two)
    assert max(load.values()) - min(load.values()) <= 2, load


def test_known_pairs_cannot_be_told_from_the_others(desk: Desk) -> None:
    (file,) = (desk.policy / "golden" / "rounds").glob("*.json")
    round_ = find_round(desk.policy, file.stem)
    assert round_ is not None
    known = {task.id for task in round_.tasks if task.known is not None}
    assert len(known) == round(0.1 / 0.9 * (len(round_.tasks) - len(known)))
    train = golden_train(desk.policy)
    assert all(task.known == train[task.pair["document"]] for task in round_.tasks if task.id in known)
    tasks = json.loads(desk.tasks.read_text())
    assert {tuple(task) for task in tasks} == {("data",)}
    assert {tuple(task["data"]) for task in tasks} == {("task", "graders", "query", "profile", "document")}
    places = [number for number, task in enumerate(tasks) if task["data"]["task"] in known]
    assert places[0] < len(tasks) / 2 < places[-1], "mixed in, not put together"
    for name in GRADERS:
        assert any(name in task.graders for task in round_.tasks if task.id in known)


def test_the_same_export_twice_is_the_same_and_another_seed_another(desk: Desk, tmp_path: Path) -> None:
    before = desk.tasks.read_bytes()
    assert desk.run(*export_arguments(desk, tmp_path / "pairs.parquet", desk.tasks)) == 0
    assert desk.tasks.read_bytes() == before
    said = desk.refused(*export_arguments(desk, tmp_path / "pairs.parquet", desk.tasks, "--seed", 1))
    assert f"{desk.tasks}: exists and holds something else" in said
    assert desk.tasks.read_bytes() == before
    assert len(list((desk.policy / "golden" / "rounds").iterdir())) == 1, "a refused export leaves no round"


def test_strata_are_filled_over_many_queries_and_what_lacks_is_said(desk: Desk, tmp_path: Path) -> None:
    few = [pair for pair in pairs() if pair["slice"] != "skills" or pair["query"] == "query 1"]
    desk.said.readouterr()
    arguments = export_arguments(desk, write_pairs(tmp_path, few), tmp_path / "few.json", "--strata", "slice")
    assert desk.run(*arguments) == 0
    said = desk.said.readouterr().out.splitlines()
    assert said[0].split() == ["slice", "available", "asked", "got", "lacks"]
    rows = {line.split()[0]: line.split()[1:] for line in said[1:4]}
    assert rows == {"sentence": ["60", "9", "9"], "skills": ["3", "9", "3", "6"], "title": ["60", "9", "9"]}
    arguments = export_arguments(desk, write_pairs(tmp_path, [pairs(2)[0], pairs(2)[3]]), tmp_path / "two.json")
    assert desk.run(*arguments) == 0
    lacking = [line.split() for line in desk.said.readouterr().out.splitlines() if line.split()[-1] in ("8", "9")]
    assert len(lacking) == 6, "two pairs of two slices: four strata have none at all"
    queries = Counter(
        task["data"]["query"]
        for task in json.loads((tmp_path / "few.json").read_text())
        if task["data"]["document"].startswith("posting")
    )
    assert queries.pop("query 1") == 3 and set(queries.values()) == {1}


def test_a_stratum_may_be_any_text_column_and_nothing_else(desk: Desk, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = read_parquet(tmp_path / "pairs.parquet")
    file = tmp_path / "more.parquet"
    kinds = ["trade" if number % 2 else "care" for number in range(table.num_rows)]
    pq.write_table(
        table.append_column("category", pa.array(kinds)).append_column("year", pa.array([1] * len(kinds))), file
    )
    desk.said.readouterr()
    assert desk.run(*export_arguments(desk, file, tmp_path / "a.json", "--strata", "category,slice")) == 0
    said = desk.said.readouterr().out
    assert said.count("care") == said.count("trade") == len(SLICES)
    assert "column 'year': a stratum needs text" in desk.refused(
        *export_arguments(desk, file, tmp_path / "b.json", "--strata", "year")
    )
    assert "column 'kind': no such column" in desk.refused(
        *export_arguments(desk, file, tmp_path / "b.json", "--strata", "kind")
    )
    assert not (tmp_path / "b.json").exists()


def test_golden_and_precedents_are_not_asked_again(desk: Desk, tmp_path: Path) -> None:
    policy = load_policy(desk.policy)
    case = policy.precedents[0]
    golden = load_golden(desk.policy / "golden", policy).slice(0, 1).to_pylist()[0]
    rows = [
        *pairs(3),
        {name: golden[name] for name in pairs(1)[0]},
        {
            **pairs(1)[0],
            "pair_id": "p",
            "query": case.query.upper(),
            "profile": case.profile,
            "document": case.document,
        },
    ]
    desk.said.readouterr()
    assert desk.run(*export_arguments(desk, write_pairs(tmp_path, rows), tmp_path / "a.json")) == 0
    said = desk.said.readouterr().out
    assert "left out: 1 golden already" in said and "left out: 1 precedent" in said


def test_the_interface_asks_each_dimension_with_its_five_anchors(desk: Desk) -> None:
    view = xml.parse(desk.tasks.with_name("tasks.labeling.xml")).getroot()
    shown = {text.get("name"): text.get("value") for text in view.iter("Text")}
    assert shown == {"Query": "$query", "Member": "$profile", "Posting": "$document"}
    rubric = load_policy(desk.policy).rubric
    asked = list(view.iter("Choices"))
    assert [choices.get("name") for choices in asked] == list(rubric.names)
    for choices, dimension in zip(asked, rubric.dimensions, strict=True):
        assert (choices.get("toName"), choices.get("choice"), choices.get("required")) == (
            "Posting",
            "single-radio",
            "true",
        )
        options = [(choice.get("alias"), choice.get("value")) for choice in choices.iter("Choice")]
        assert options == [(str(grade), f"{grade}  {anchor}") for grade, anchor in enumerate(dimension.anchors)]


def test_a_spreadsheet_runs_no_formula_and_has_a_row_for_each_grader(desk: Desk, tmp_path: Path) -> None:
    rows = [{**pairs(1)[0], "document": '=HYPERLINK("http://x","pay")'}]
    out = tmp_path / "tasks.csv"
    assert desk.run(*export_arguments(desk, write_pairs(tmp_path, rows), out, "--format", "csv")) == 0
    found = read_csv(out)
    assert [row["document"] for row in found if "HYPERLINK" in row["document"]] == [
        '\'=HYPERLINK("http://x","pay")'
    ] * 2
    assert len({(row["task"], row["grader"]) for row in found}) == len(found) == 4
    assert all(row[name] == "" for row in found for name in DIMENSIONS)
    page = out.with_name("tasks.anchors.md").read_text()
    assert all(anchor in page for item in load_policy(desk.policy).rubric.dimensions for anchor in item.anchors)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--graders", "ann"), "every pair is graded by two people, got 1 (ann)"),
        (("--graders", "ann,ann"), "graders must be different names"),
        (("--graders", "ann,a+b"), "graders must be different names"),
        (("--per-stratum", 0), "--per-stratum must be at least 1, got 0"),
        (("--vigilance-share", 1.0), "the vigilance share must be at least 0 and under 1"),
        (("--vigilance-share", 0.99), "vigilance items need as many golden pairs of split train"),
        (("--pairs", "none.parquet"), "none.parquet"),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    desk: Desk, tmp_path: Path, more: tuple[object, ...], message: str
) -> None:
    if load_policy(desk.policy) and declared_graders(desk.policy) and "a+b" in str(more):
        message = "unknown grader 'a+b'"
    out = tmp_path / "refused.json"
    said = desk.refused(*export_arguments(desk, tmp_path / "pairs.parquet", out), *more)
    assert message in said and said.count("\n") == 1
    assert not out.exists()


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


# Import


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


# Agreement


def two(desk: Desk, other: Grader) -> Draft:
    return read_draft(desk.graded(ann=desk.right, kim=other, lee=other))


def test_kappa_equals_scikit_learns_on_both_orders_of_each_two(desk: Desk) -> None:
    draft = two(desk, slips(desk.right, share=0.3, by=2))
    found = agreement_of(draft)
    assert [cell.dimension for cell in found.cells if cell.slice == EVERY_SLICE] == [OVERALL, *DIMENSIONS]
    tasks = {task.id: task for task in draft.tasks}
    for cell in found.cells:
        both: list[tuple[int, int]] = []
        for id, answers in draft.by_task().items():
            if tasks[id].known is None and cell.slice in (EVERY_SLICE, tasks[id].pair["slice"]):
                one, other = (answer.grades[cell.dimension] for answer in answers)
                both += [(one, other), (other, one)]
        first, second = zip(*both, strict=True)
        assert len(both) == 2 * cell.num_pairs
        assert cell.linear.value == pytest.approx(cohen_kappa_score(first, second, weights="linear"))
        assert cell.quadratic.value == pytest.approx(cohen_kappa_score(first, second, weights="quadratic"))
        assert cell.linear.low <= cell.linear.value <= cell.linear.high
        assert cell.exact == pytest.approx(sum(a == b for a, b in both) / len(both))


def test_names_decide_nothing(desk: Desk) -> None:
    draft = two(desk, slips(desk.right, share=0.3))
    turned = replace(draft, graded=tuple(reversed(draft.graded)))
    cells = [[cell.linear.value for cell in agreement_of(one).cells] for one in (draft, turned)]
    assert cells[0] == pytest.approx(cells[1])


def test_good_graders_pass_and_the_worst_dimension_of_others_is_named(desk: Desk) -> None:
    assert shortfalls(agreement_of(two(desk, slips(desk.right, share=0.02))), DIMENSIONS) == ()
    worst, bad = DIMENSIONS[3], DIMENSIONS[1]
    other = slips(slips(desk.right, share=0.5, dimensions=[bad]), share=0.9, dimensions=[worst], by=2)
    shutil.rmtree(desk.policy / "golden" / "drafts")
    draft = desk.graded(ann=desk.right, kim=other, lee=other)
    desk.said.readouterr()
    assert desk.run("agree", draft) == 1
    said = desk.said.readouterr().out
    missed = shortfalls(agreement_of(read_draft(draft)), DIMENSIONS)
    assert [one.dimension for one in missed if one.dimension != OVERALL] == [worst, bad]
    low = missed[-2]
    assert f"the worst dimension is {worst} at {low.value:.3f}, {0.8 - low.value:.3f} under the bar of 0.80" in said
    assert f"also under it: {bad} " in said


def test_a_lucky_handful_is_not_enough_overall(desk: Desk) -> None:
    draft = two(desk, desk.right)
    few = [task.id for task in draft.tasks if task.known is None][:10]

    def overall(item: Graded) -> int:
        """Ten pairs over all grades, one of them two grades apart."""
        place = few.index(item.task)
        return place % 5 + 2 * (place == 0 and item.grader == draft.by_task()[item.task][0].grader)

    graded = [replace(g, grades={**g.grades, OVERALL: overall(g)}) for g in draft.graded if g.task in few]
    found = agreement_of(replace(draft, graded=tuple(graded)))
    cell = found.cell(OVERALL)
    assert cell is not None and cell.num_pairs == 10
    assert cell.linear.value > 0.8 > cell.linear.low
    assert shortfalls(found, DIMENSIONS)[0].value == cell.linear.low


def test_agreement_on_one_grade_alone_shows_nothing(desk: Desk) -> None:
    draft = two(desk, desk.right)
    same = tuple(replace(item, grades={**item.grades, FIRST: 4}) for item in draft.graded)
    (missed,) = shortfalls(agreement_of(replace(draft, graded=same)), DIMENSIONS)
    assert missed.dimension == FIRST and math.isnan(missed.value) and missed.short_by == pytest.approx(0.8)
    assert shortfalls(agreement_of(replace(draft, graded=())), DIMENSIONS)[0].dimension == OVERALL


def test_a_careless_grader_is_named_by_the_known_pairs(desk: Desk) -> None:
    draft = desk.graded(ann=desk.right, kim=desk.right, lee=slips(desk.right, share=0.6))
    desk.said.readouterr()
    assert desk.run("agree", draft) == 1
    found = {one.grader: one for one in agreement_of(read_draft(draft)).vigilance}
    assert found["ann"].right == found["kim"].right == 1.0
    assert found["lee"].right < 0.7 and found["lee"].within_one == 1.0
    said = desk.said.readouterr().out
    assert (
        f"under the vigilance bar of 0.70: lee ({found['lee'].right:.2f} of {found['lee'].num_grades} grades)" in said
    )
    desk.run("agree", draft, "--vigilance-bar", "0.1")
    assert "vigilance bar" not in desk.said.readouterr().out
    assert "must be a share from 0 to 1" in desk.refused("agree", draft, "--vigilance-bar", "7")


# Decisions and golden files


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


# The shipped golden set


def test_shipped_counts_and_seal_are_those_of_the_files() -> None:
    for file, text in fresh(load_policy(SHIPPED)).items():
        assert file.read_text() == text, f"{file.name} is out of date. Run: preceptor golden census"


def test_shipped_golden_says_that_it_is_constructed() -> None:
    readme = (SHIPPED / "golden" / README).read_text()
    assert "Constructed with known truth. No person graded these pairs." in readme
    pairs_ = load_golden(SHIPPED / "golden", load_policy(SHIPPED))
    assert len(set(pairs_["pair_id"].to_pylist())) >= 2000
    assert set(pairs_["grader_id"].to_pylist()) == {"market-truth"}


def test_a_census_without_its_marks_changes_nothing(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path)
    readme = folder / "golden" / README
    readme.write_text("# Golden\n")
    assert main(["golden", "census", "--policy", str(folder)]) == 2
    assert readme.read_text() == "# Golden\n"
    readme.unlink()
    assert main(["golden", "census", "--policy", str(folder)]) == 0
    assert "| **holdout** | all |" in readme.read_text()
