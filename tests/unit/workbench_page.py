"""What the tests of the workbench over HTTP share: where its page is, and what a person does on it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from preceptor.contracts import OVERALL

ORIGIN = "http://127.0.0.1:8100"
PAGE = {"x-preceptor": "workbench", "origin": ORIGIN}


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
