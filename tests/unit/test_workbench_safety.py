"""What the workbench keeps out and in: other sites' pages, markup, other origins, and the sealed holdout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from preceptor.cli import main
from preceptor.contracts import OVERALL
from preceptor.errors import SealedError
from preceptor.policy import load_policy
from preceptor.policy.sealed import sealed
from preceptor.recipe import POLICY_DIR
from preceptor.workbench import make_workbench
from tests.unit.deciding import Room, errors_of, lines_of
from tests.unit.workbench_page import ORIGIN, PAGE, decide, first_card, settled, texts


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
