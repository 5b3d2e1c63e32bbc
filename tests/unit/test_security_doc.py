"""docs/security.md: each threat names what holds it and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "security.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][2:]


def names_of_tests(file: Path) -> set[str]:
    functions = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def test_there_are_threats() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_each_threat_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 3 and all(row)
    named = re.findall(r"`([^`]+)`", row[2])
    assert named
    for name in named:
        file, _, test = name.partition("::")
        assert (REPOSITORY / file).is_file(), file
        assert test in names_of_tests(REPOSITORY / file), name
