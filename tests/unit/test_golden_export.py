"""Pairs to people: what graders get, what is left out, and exports that cannot be."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from preceptor.contracts import read_parquet
from preceptor.golden.graders import declared_graders
from preceptor.golden.rounds import find_round
from preceptor.policy import load_golden, load_policy
from tests.unit.desk import (
    DIMENSIONS,
    Desk,
    export_arguments,
)
from tests.unit.grading import GRADERS, SLICES, golden_train, pairs, read_csv, write_pairs


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
