"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor.contracts import GOLDEN, PAIRS, rows_to_table, write_table
from preceptor.record import Record
from tests.unit.labelling import pool, truth_of


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
