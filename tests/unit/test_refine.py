"""Refinement: the real optimiser between two scripted models, and a test that tells a gain from noise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from preceptor.errors import PreceptorError
from preceptor.policy import load_policy
from preceptor.record import Record
from preceptor.refine import refine
from preceptor.refine.candidates import Verdict
from tests.unit.refinement import (
    GOOD,
    HARSH,
    OVERFITTED,
    TREACHEROUS,
    Models,
    models,
    refine_config,
    write_policy,
)

SCRIPT = {"instructions": [HARSH, OVERFITTED, TREACHEROUS, GOOD], "precedents": ["no-such-case", "far-case"]}


@dataclass(frozen=True, kw_only=True)
class Run:
    record: Record
    policy: Path
    models: Models

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.record.path)

    def row(self, text: str) -> dict[str, Any]:
        return next(row for row in self.rows if text in row["texts"].values())


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("refined")
    policy = write_policy(folder / "small")
    with models(SCRIPT) as served:
        record = refine(refine_config(served.url), policy=policy, out=folder / "refine" / "v1")
        yield Run(record=record, policy=policy, models=served)


def test_show(run: Run) -> None:
    print((run.record.path / "candidates.md").read_text())
    print(run.models.num_requests, run.record)
    print((run.record.path / "search.log").read_text()[-3000:])
    print((run.record.path / "change.diff").read_text())
    print(run.models.reflected[1])
