"""The workbench over HTTP: what it shows, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from preceptor.cli import main
from preceptor.contracts import OVERALL
from preceptor.errors import SealedError, StageFailed
from preceptor.policy import load_policy
from preceptor.policy.sealed import sealed
from preceptor.recipe import POLICY_DIR
from preceptor.recipes import tiny
from preceptor.record import Record
from preceptor.refine.worklist import Cause, Task
from preceptor.refine.worklist_files import write_worklist
from preceptor.workbench import Asked, make_workbench, recalibration_of
from preceptor.workbench.session import open_board
from tests.unit.deciding import Room, errors_of, lay_room, lines_of

ORIGIN = "http://127.0.0.1:8100"
PAGE = {"x-preceptor": "workbench", "origin": ORIGIN}


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """A room that no test changes: they take copies."""
    return lay_room(tmp_path_factory.mktemp("workbench"))


@pytest.fixture
def room(laid: Room, tmp_path: Path) -> Room:
    shutil.copytree(laid.session.policy.parent, tmp_path / "room")
    session = replace(laid.session, policy=tmp_path / "room" / "policy", root=tmp_path / "room" / "root")
    return replace(laid, session=session)


@pytest.fixture
def page(room: Room) -> Iterator[TestClient]:
    app = make_workbench(room.session, recalibrate=room.recalibrate)
    with TestClient(app, base_url=ORIGIN, headers=PAGE) as client:
        yield client


def first_card(page: TestClient, **wanted: Any) -> dict[str, Any]:
    """The first card whose brief has these values and that is not of the overall grade, whole."""
    cards = [card for card in page.get("/api/cards").json() if wanted.items() <= card.items()]
    found = next(card for card in cards if "dimension" in wanted or card["dimension"] != OVERALL)
    card: dict[str, Any] = page.get(f"/api/cards/{found['pair_id']}/{found['dimension']}").json()
    return card


def decide(page: TestClient, card: dict[str, Any], kind: str, **content: Any) -> Any:
    return page.post(
        "/api/decisions",
        json={
            "kind": kind,
            **{name: card[name] for name in ("pair_id", "dimension", "revision", "num_log")},
            "decider": "Ana Ortiz",
            "why": "The words leave it open.",
            **content,
        },
    )


def settled(page: TestClient) -> dict[str, Any]:
    """The state of recalibrations once none is at work."""
    for thread in threading.enumerate():
        if "-workbench-" in thread.name:
            thread.join()
    found: dict[str, Any] = page.get("/api/recalibrations").json()
    return found


def texts(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


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


def test_no_text_of_another_split_leaves_the_server(page: TestClient, room: Room) -> None:
    golden = room.session.policy / "golden"
    broken = lines_of(golden / "holdout.jsonl")
    broken[0]["grades"][OVERALL] = (broken[0]["grades"][OVERALL] + 2) % 5
    (golden / "holdout.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in broken))
    paths = ["/api/state", "/api/agreement", "/api/cards", "/api/policy", "/api/decisions", "/api/recalibrations"]
    cards = [f"/api/cards/{card['pair_id']}/{card['dimension']}" for card in page.get("/api/cards").json()]
    said = "".join(page.get(path).text for path in [*paths, *cards])
    calibration = {line["document"] for line in lines_of(golden / "calibration.jsonl")}
    assert any(document in said for document in calibration)
    for split in ("holdout", "train"):
        for line in lines_of(golden / f"{split}.jsonl"):
            assert json.dumps(line["document"])[1:-1] not in said
    policy = page.get("/api/policy").json()
    assert policy["num_hidden"] == 1
    assert not [finding for finding in policy["findings"] if "holdout" in finding["file"]]


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


def test_recalibrating_judges_the_amended_dimension_alone(page: TestClient, room: Room) -> None:
    card = first_card(page)
    assert decide(page, card, "amend anchor", grade=card["golden"], anchor="Other words.").status_code == 200
    assert page.post("/api/recalibrations", json={}).json()["job"]["state"] == "running"
    found = settled(page)
    assert found["job"]["state"] == "done", found["job"]
    (result,) = found["results"]
    assert (result["dimensions"], result["num_judged"], result["num_kept"]) == ([card["dimension"]], 40, 120)

    def kappas(cells: list[dict[str, Any]]) -> dict[str, float]:
        return {cell["dimension"]: cell["quadratic"]["value"] for cell in cells if cell["slice"] == "all"}

    before, after = kappas(result["before"]), kappas(result["after"])
    assert {name for name in before if before[name] != after[name]} <= {card["dimension"], OVERALL}
    assert before[card["dimension"]] != after[card["dimension"]]
    assert kappas(page.get("/api/agreement").json()) == after
    state = page.get("/api/state").json()
    assert (state["stale"], state["waiting"], state["calibration"]["version"]) == ([], [], "v1-workbench-1")


def test_a_corrected_label_is_counted_again_without_asking_the_judge(page: TestClient) -> None:
    card = first_card(page)
    assert decide(page, card, "correct label", grade=card["judge"]).status_code == 200
    page.post("/api/recalibrations", json={})
    (result,) = settled(page)["results"]
    assert (result["num_judged"], result["num_kept"], result["dimensions"]) == (0, 160, [])
    assert result["num_settled"] >= 1

    def exact(cells: list[dict[str, Any]]) -> float:
        return next(c["exact"] for c in cells if c["dimension"] == card["dimension"] and c["slice"] == "all")

    assert exact(result["after"]) == pytest.approx(exact(result["before"]) + 1 / 40)


def test_recalibrations_outlive_the_server_and_follow_each_other(page: TestClient, room: Room) -> None:
    for number in (1, 2):
        card = first_card(page)
        assert decide(page, card, "amend anchor", grade=0, anchor=f"Words of round {number}.").status_code == 200
        page.post("/api/recalibrations", json={})
        settled(page)
    again = TestClient(make_workbench(room.session, recalibrate=room.recalibrate), base_url=ORIGIN, headers=PAGE)
    results = again.get("/api/recalibrations").json()["results"]
    assert [(one["earlier"], one["version"]) for one in results] == [
        ("v1-workbench-1", "v1-workbench-2"),
        ("v1", "v1-workbench-1"),
    ]
    assert results[0]["before"] == results[1]["after"]


def test_a_decision_taken_while_the_judge_works_waits_for_the_next(page: TestClient, room: Room) -> None:
    asked, go = threading.Event(), threading.Event()

    def held(task: Asked) -> Record:
        asked.set()
        go.wait()
        return room.recalibrate(task)

    client = TestClient(make_workbench(room.session, recalibrate=held), base_url=ORIGIN, headers=PAGE)
    first = first_card(client)
    assert decide(client, first, "amend anchor", grade=0, anchor="First words.").status_code == 200
    client.post("/api/recalibrations", json={})
    asked.wait()
    assert client.get("/api/state").json()["job"]["state"] == "running"
    second = next(c for c in client.get("/api/cards").json() if c["dimension"] not in (first["dimension"], OVERALL))
    card = client.get(f"/api/cards/{second['pair_id']}/{second['dimension']}").json()
    assert decide(client, card, "amend anchor", grade=0, anchor="Second words.").status_code == 200
    go.set()
    assert settled(client)["results"][0]["dimensions"] == [first["dimension"]]
    state = client.get("/api/state").json()
    assert state["stale"] == [card["dimension"]]
    assert [entry["after"] for entry in state["waiting"]] == ["Second words."]


def test_a_judge_that_fails_is_said_and_the_next_try_goes_on(room: Room) -> None:
    def failing(task: Asked) -> Record:
        raise StageFailed("the engine would not start. Mend it.")

    client = TestClient(make_workbench(room.session, recalibrate=failing), base_url=ORIGIN, headers=PAGE)
    client.post("/api/recalibrations", json={})
    job = settled(client)["job"]
    assert (job["state"], job["error"]) == ("failed", "the engine would not start. Mend it.")
    mended = TestClient(make_workbench(room.session, recalibrate=room.recalibrate), base_url=ORIGIN, headers=PAGE)
    mended.post("/api/recalibrations", json={})
    assert settled(mended)["results"][0]["version"] == "v1-workbench-1"


def test_the_recipes_own_judge_judges_again(room: Room) -> None:
    recalibrate = recalibration_of(tiny(), room.session.root)
    client = TestClient(make_workbench(room.session, recalibrate=recalibrate), base_url=ORIGIN, headers=PAGE)
    client.post("/api/recalibrations", json={})
    found = settled(client)
    assert found["job"]["state"] == "done", found["job"]
    assert client.get("/api/state").json()["calibration"]["judge_id"] == "fake:fake"


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


def test_the_document_cannot_bring_markup_or_pictures(page: TestClient, room: Room) -> None:
    file = room.session.policy / "policy.md"
    file.write_text(f"{file.read_text()}\n<script>x</script> [a](javascript:b) ![c](https://elsewhere.example/d.png)\n")
    html = page.get("/api/policy").json()["html"]
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:8100", "origin": "http://evil.example:8100"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:8100"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_another_sites_page_changes_nothing(headers: dict[str, str], status: int, page: TestClient, room: Room) -> None:
    before = texts(room.session.policy)
    answer = page.post("/api/recalibrations", content="{}", headers={"content-type": "application/json", **headers})
    assert answer.status_code == status
    assert page.get("/api/recalibrations").json()["job"]["state"] == "idle"
    assert texts(room.session.policy) == before


def test_a_change_needs_the_pages_header_and_origin(room: Room) -> None:
    app = make_workbench(room.session, recalibrate=room.recalibrate)
    bare = TestClient(app, base_url=ORIGIN)
    for headers in ({}, {"origin": ORIGIN}, {"x-preceptor": "workbench"}):
        assert bare.post("/api/recalibrations", json={}, headers=headers).status_code == 403
    assert bare.get("/api/state", headers={"host": "rebound.example"}).status_code == 403
    assert bare.get("/api/state", headers={"host": "[::1]:9000"}).status_code == 200
    assert (
        bare.post(
            "/api/decisions", content=b"x" * 70_000, headers={**PAGE, "content-type": "application/json"}
        ).status_code
        == 413
    )


def test_every_answer_forbids_what_the_page_does_not_need(page: TestClient) -> None:
    for path in ("/", "/static/main.js", "/api/state", "/nowhere"):
        headers = page.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_origin() -> None:
    static = POLICY_DIR.parents[1] / "pipeline" / "preceptor" / "workbench" / "static"
    for file in static.iterdir():
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, file.name


def test_the_command_serves_until_it_is_interrupted(room: Room) -> None:
    arguments = ["tiny", "--root", room.session.root, "--policy", room.session.policy, "--port", "0"]
    command = [sys.executable, "-m", "preceptor", "workbench", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        # trust_env: a proxy named in the environment could not reach the loopback.
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
            assert "Preceptor workbench" in client.get("/").text
            assert client.get("/api/state").json()["name"] == load_policy(room.session.policy).rubric.name
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_while_the_command_serves_nothing_in_its_process_opens_the_holdout(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    holdout = room.session.policy / "golden" / "holdout.jsonl"
    tried: list[str] = []

    def serve_and_peek(server: uvicorn.Server, **_: Any) -> None:
        with pytest.raises(SealedError) as refused:
            holdout.read_text()
        tried.append(str(refused.value))

    monkeypatch.setattr(uvicorn.Server, "run", serve_and_peek)
    given = ["--root", str(room.session.root), "--policy", str(room.session.policy), "--port", "0"]
    assert main(["workbench", "tiny", *given]) == 0
    assert len(tried) == 1 and "holdout" in tried[0]
    assert holdout.read_text(), "what is sealed is the time in which it serves"


def test_every_decision_is_written_while_the_holdout_is_sealed(room: Room) -> None:
    policy = room.session.policy
    (policy / "golden" / "rounds").mkdir()
    (policy / "golden" / "rounds" / "r.json").write_text("{}")
    sealed_before = texts(policy / "golden")
    with sealed(policy, room.session.corpus):
        app = make_workbench(room.session, recalibrate=room.recalibrate)
        with TestClient(app, base_url=ORIGIN, headers=PAGE) as page:
            card = first_card(page)
            answers = [decide(page, card, "amend anchor", grade=3, anchor="Nearly all of it, and no more.")]
            card = first_card(page)
            answers.append(decide(page, card, "correct label", grade=card["judge"]))
            card = first_card(page)
            grades = {name: grade for name, grade in card["golden_grades"].items() if name != OVERALL}
            answers.append(decide(page, card, "add precedent", id="a-new-case", grades=grades, shown=False))
            page.post("/api/recalibrations", json={})
            assert settled(page)["job"]["state"] == "done"
    assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
    after = texts(policy / "golden")
    assert {name for name in after if after[name] != sealed_before[name]} == {"calibration.jsonl"}
    assert errors_of(policy) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--root", "nowhere"], "no finished calibration"),
        (["--host", "0.0.0.0"], "the workbench has no login"),
        (["--port", "99999"], "cannot be bound"),
        (["--policy", "nowhere"], "nowhere"),
    ],
)
def test_the_command_refuses_in_one_line(
    options: list[str], message: str, room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--root", str(room.session.root), "--policy", str(room.session.policy)]
    assert main(["workbench", "tiny", *given, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
