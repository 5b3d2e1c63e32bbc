"""Fixtures of the unit tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from preceptor.contracts import GOLDEN, PAIRS, rows_to_table, write_table
from preceptor.record import Record
from tests.unit.deciding import Room, lay_room
from tests.unit.desk import Desk, lay_desk
from tests.unit.labelling import pool, truth_of

if TYPE_CHECKING:
    from starlette.testclient import TestClient


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes on one thread: sums as small as these tests' are slower on two."""
    # Here, for a second of imports would be every unit test's.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path: Path) -> Record:
    """A corpus whose constructed truth is what FakeJudge says."""
    out = tmp_path / "corpus" / "v1"
    write_table(rows_to_table(pool(40), PAIRS), out / "pairs" / "a.parquet", PAIRS)
    rows = [
        {**pair, "dimension": name, "grade": grade, "grader_id": "test", "reason": None, "policy_version": "v"}
        for pair in pool(40, split="calibration")
        for name, grade in truth_of(pair["pair_id"]).items()
    ]
    write_table(rows_to_table(rows, GOLDEN), out / "golden" / "a.parquet", GOLDEN)
    return Record(stage="market", version="v1", fingerprint="c0", path=out, config={})


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """A workbench's room that no test changes: they take copies."""
    return lay_room(tmp_path_factory.mktemp("workbench"))


@pytest.fixture
def room(laid: Room, tmp_path: Path) -> Room:
    shutil.copytree(laid.session.policy.parent, tmp_path / "room")
    session = replace(laid.session, policy=tmp_path / "room" / "policy", root=tmp_path / "room" / "root")
    return replace(laid, session=session)


@pytest.fixture
def page(room: Room) -> Iterator[TestClient]:
    # Here, for a second of imports would be every unit test's.
    from starlette.testclient import TestClient

    from preceptor.workbench import make_workbench
    from tests.unit.workbench_page import ORIGIN, PAGE

    app = make_workbench(room.session, recalibrate=room.recalibrate)
    with TestClient(app, base_url=ORIGIN, headers=PAGE) as client:
        yield client


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """A golden round on its way to its graders."""
    return lay_desk(tmp_path, capsys)
