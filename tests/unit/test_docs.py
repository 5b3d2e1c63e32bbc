"""Pages that name tests: every test they name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions_of(file: Path) -> set[str]:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)}


@pytest.mark.parametrize("page", ["complaints.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    rows = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        named = NAMED.findall(row)
        assert named, f"no test in the row: {row}"
        for file, test in named:
            assert test in functions_of(ROOT / file), f"{file} has no {test}"
