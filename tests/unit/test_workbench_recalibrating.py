"""The workbench's recalibrations: what is judged again after a decision, and what waits, fails or outlives it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from starlette.testclient import TestClient

from preceptor.contracts import OVERALL
from preceptor.errors import StageFailed
from preceptor.recipes import tiny
from preceptor.record import Record
from preceptor.workbench import Asked, make_workbench, recalibration_of
from tests.unit.deciding import Room
from tests.unit.workbench_page import ORIGIN, PAGE, decide, first_card, settled


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
