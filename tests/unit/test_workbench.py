"""The workbench over HTTP: what it shows, what it writes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from preceptor.contracts import OVERALL
from preceptor.policy import load_policy
from preceptor.refine.worklist import Cause, Task
from preceptor.refine.worklist_files import write_worklist
from preceptor.workbench.session import open_board
from tests.unit.deciding import Room, errors_of, lines_of
from tests.unit.workbench_page import decide, first_card, texts


def test_the_board_shows_every_dimension_that_was_judged_and_every_slice(page: TestClient, room: Room) -> None:
    cells = page.get("/api/agreement").json()
    judged = {*load_policy(room.session.policy).rubric.names[:4], OVERALL}
    assert {cell["dimension"] for cell in cells} == judged
    assert {"all", *{card["slice"] for card in page.get("/api/cards").json()}} <= {cell["slice"] for cell in cells}
    whole = next(cell for cell in cells if cell["dimension"] == OVERALL and cell["slice"] == "all")
    assert whole["num"] == 40
    assert sum(map(sum, whole["confusion"])) == 40
    assert whole["quadratic"]["low"] <= whole["quadratic"]["value"] <= whole["quadratic"]["high"]


def test_a_card_holds_all_that_it_is_decided_by(page: TestClient, room: Room) -> None:
    card = first_card(page)
    dimension = load_policy(room.session.policy).rubric.dimension(card["dimension"])
    assert card["anchors"] == list(dimension.anchors)
    (line,) = [
        line
        for line in lines_of(room.session.policy / "golden" / "calibration.jsonl")
        if (line["query"], line["profile"], line["document"]) == (card["query"], card["profile"], card["document"])
    ]
    assert line["grades"][card["dimension"]] == card["golden"] != card["judge"]
    assert card["golden_reason"] == line["reason"]
    assert max(range(5), key=card["probs"].__getitem__) == card["judge"]


def test_an_anchor_is_amended_in_both_files_and_in_the_log(page: TestClient, room: Room) -> None:
    before, card = texts(room.session.policy), first_card(page)
    errors = errors_of(room.session.policy)
    answer = decide(page, card, "amend anchor", grade=card["golden"], anchor="  Quite\nanother text. ")
    assert answer.status_code == 200, answer.text
    after = texts(room.session.policy)
    assert {name for name in after if after[name] != before.get(name)} == {
        "rubric.toml",
        "policy.md",
        "decisions.jsonl",
    }
    anchors = load_policy(room.session.policy).rubric.dimension(card["dimension"]).anchors
    assert anchors[card["golden"]] == "Quite another text."
    assert errors_of(room.session.policy) == errors
    (entry,) = lines_of(room.session.policy / "decisions.jsonl")
    assert entry["decider"] == "Ana Ortiz"
    assert (entry["kind"], entry["before"], entry["after"], entry["why"]) == (
        "amend anchor",
        card["anchors"][card["golden"]],
        "Quite another text.",
        "The words leave it open.",
    )
    assert page.get("/api/state").json()["stale"] == [card["dimension"]]


def test_a_corrected_label_names_its_decider_and_keeps_the_rule(page: TestClient, room: Room) -> None:
    file = room.session.policy / "golden" / "calibration.jsonl"
    before, card = file.read_text(), first_card(page)
    version = load_policy(room.session.policy).version
    assert decide(page, card, "correct label", grade=card["judge"]).status_code == 200
    changed = [
        (old, new) for old, new in zip(before.split("\n"), file.read_text().split("\n"), strict=True) if old != new
    ]
    ((old, new),) = [(json.loads(was), json.loads(now)) for was, now in changed]
    assert new["grades"][card["dimension"]] == card["judge"]
    rubric = load_policy(room.session.policy).rubric
    assert new["grades"][OVERALL] == rubric.aggregate(new["grades"])
    assert new["grader_id"] == "Ana Ortiz"
    assert new["policy_version"] == version
    assert new["reason"] == f"{card['dimension']}: The words leave it open.; {old['reason']}"
    (entry,) = lines_of(room.session.policy / "decisions.jsonl")
    assert entry["before"][f"grades.{card['dimension']}"] == card["golden"]
    assert entry["before"]["grader_id"] == old["grader_id"]
    assert page.get(f"/api/cards/{card['pair_id']}/{card['dimension']}").status_code == 404


def test_a_precedent_leaves_golden_and_may_be_shown(page: TestClient, room: Room) -> None:
    card, errors = first_card(page), errors_of(room.session.policy)
    num_before = len(lines_of(room.session.policy / "golden" / "calibration.jsonl"))
    grades = {name: grade for name, grade in card["golden_grades"].items() if name != OVERALL}
    answer = decide(page, card, "add precedent", id="decided-here", grades=grades, shown=True)
    assert answer.status_code == 200, answer.text
    policy = load_policy(room.session.policy)
    precedent = policy.precedents[-1]
    assert (precedent.id, precedent.document, precedent.reason) == (
        "decided-here",
        card["document"],
        "The words leave it open.",
    )
    assert precedent.grades[OVERALL] == policy.rubric.aggregate(grades)
    assert policy.rubric.shown[-1] == "decided-here"
    assert errors_of(room.session.policy) == errors
    left = lines_of(room.session.policy / "golden" / "calibration.jsonl")
    assert len(left) == num_before - 1
    assert card["document"] not in {line["document"] for line in left if line["query"] == card["query"]}
    assert all(other["pair_id"] != card["pair_id"] for other in page.get("/api/cards").json())
    # A shown precedent stands in every prompt, so every dimension is to be judged again.
    assert set(page.get("/api/state").json()["stale"]) == set(policy.rubric.names[:4])


def test_a_stale_card_is_shown_and_not_written_over(page: TestClient, room: Room) -> None:
    card = first_card(page)
    other = first_card(page, dimension=card["dimension"])
    assert decide(page, other, "amend anchor", grade=1, anchor="By another tab.", decider="Ben").status_code == 200
    before = texts(room.session.policy)
    answer = decide(page, card, "amend anchor", grade=1, anchor="By this tab.")
    assert answer.status_code == 409
    assert texts(room.session.policy) == before
    body = answer.json()
    assert body["card"]["anchors"][1] == "By another tab."
    assert [(entry["decider"], entry["after"]) for entry in body["log"]] == [("Ben", "By another tab.")]
    assert decide(page, body["card"], "amend anchor", grade=1, anchor="By this tab.").status_code == 200


def test_a_file_edited_by_hand_makes_its_cards_stale_too(page: TestClient, room: Room) -> None:
    card = first_card(page)
    file = room.session.policy / "golden" / "calibration.jsonl"
    document = json.dumps(card["document"], ensure_ascii=False)
    lines = [
        line.replace('"reason": "', '"reason": "seen again; ') if document in line else line
        for line in file.read_text().split("\n")
    ]
    file.write_text("\n".join(lines))
    assert decide(page, card, "correct label", grade=card["judge"]).status_code == 409


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("amend anchor", {"grade": 1, "anchor": "   "}, "an anchor is empty"),
        ("amend anchor", {"grade": 1, "anchor": "a | b"}, "may not hold"),
        ("amend anchor", {"grade": 1, "anchor": "x\x00y"}, "control characters"),
        ("amend anchor", {"grade": 1, "anchor": "x" * 3000}, "2000 at most"),
        ("amend anchor", {"grade": 5, "anchor": "x"}, "grade"),
        ("amend anchor", {"grade": 1, "anchor": "x", "decider": " "}, "the decider's name is empty"),
        ("amend anchor", {"grade": 1, "anchor": "x", "why": ""}, "the reason is empty"),
        ("correct label", {"grade": True}, "grade"),
        ("add precedent", {"id": "x", "grades": {}, "shown": False}, "no grade for"),
        ("drop everything", {}, "kind"),
    ],
)
def test_a_decision_that_may_not_be_is_refused_and_nothing_written(
    kind: str, content: dict[str, Any], message: str, page: TestClient, room: Room
) -> None:
    before = texts(room.session.policy)
    answer = decide(page, first_card(page), kind, **content)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]
    assert texts(room.session.policy) == before


def test_what_lint_calls_an_error_is_refused(page: TestClient, room: Room) -> None:
    card, before = first_card(page), texts(room.session.policy)
    twice = decide(page, card, "amend anchor", grade=1, anchor=card["anchors"][0])
    assert twice.status_code == 422
    assert "same anchor as a lower grade" in twice.json()["error"]["message"]
    assert "rubric.toml:" in twice.json()["error"]["message"]
    taken = load_policy(room.session.policy).precedents[0].id
    grades = {name: grade for name, grade in card["golden_grades"].items() if name != OVERALL}
    assert decide(page, card, "add precedent", id=taken, grades=grades, shown=False).status_code == 422
    assert texts(room.session.policy) == before


def test_the_overall_grade_is_decided_through_its_dimensions(page: TestClient) -> None:
    card = first_card(page, dimension=OVERALL)
    assert set(card["refusals"]) == {"amend", "correct"}
    assert decide(page, card, "amend anchor", grade=1, anchor="x").status_code == 422
    assert "follows from the dimensions" in decide(page, card, "correct label", grade=0).json()["error"]["message"]


def test_the_worklist_of_refinement_stands_on_its_cards(page: TestClient, room: Room) -> None:
    card = first_card(page)
    assert card["task"] is None
    board = open_board(room.session)
    task = Task(
        disagreement=board.disagreements[card["pair_id"], card["dimension"]],
        cause=Cause.LABEL,
        evidence=("judge 3 (90%)", "7 of 8"),
    )
    file, _ = write_worklist([task], board.policy.rubric, room.session.root / "worklist")
    assert first_card(page, kind="label wrong")["task"] == {"kind": "label wrong", "evidence": "judge 3 (90%); 7 of 8"}
    write_worklist([replace(task, cause=Cause.JUDGE)], board.policy.rubric, room.session.calibration(0))
    assert first_card(page, kind="judge wrong")["pair_id"] == card["pair_id"]
    file.write_text("{}\n")
    refused = page.get("/api/cards")
    assert refused.status_code == 422
    assert "worklist.jsonl:1: a line needs pair_id, dimension, cause and evidence" in refused.json()["error"]["message"]


def test_a_broken_rubric_is_said_and_the_policy_still_read(page: TestClient, room: Room) -> None:
    file = room.session.policy / "rubric.toml"
    file.write_text(file.read_text().replace("[aggregation]", "[aggregation", 1))
    refused = page.get("/api/state")
    assert refused.status_code == 422
    assert "rubric.toml:" in refused.json()["error"]["message"]
    policy = page.get("/api/policy").json()
    assert [finding["file"] for finding in policy["findings"]] == ["rubric.toml"]
    assert "<h1" in policy["html"]


def test_findings_stand_at_the_lines_of_the_rendered_document(page: TestClient, room: Room) -> None:
    file = room.session.policy / "policy.md"
    anchor = load_policy(room.session.policy).rubric.dimensions[0].anchors[3]
    file.write_text(file.read_text().replace(f"| 3 | {anchor} |", "| 3 | Something else. |", 1))
    policy = page.get("/api/policy").json()
    (finding,) = [finding for finding in policy["findings"] if finding["severity"] == "error"]
    assert finding["file"] == "policy.md"
    assert f'<tr data-line="{finding["line"]}">' in policy["html"]
    assert "Something else." in file.read_text().splitlines()[finding["line"] - 1]
