"""docs/serving.md: its requests are answered, and its tables name every path, code and limit there is."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from preceptor.local_ray import SERVE_ENV
from preceptor_serve.blending import BlendBounds
from preceptor_serve.metrics import ROUTES
from preceptor_serve.schema import Limits
from tests.unit.serving import client

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "serving.md").read_text()
CURLS = re.findall(r"curl -s http://127.0.0.1:8000(/\S+).*? -d '(\{.*?\})'\n", PAGE, re.DOTALL)


def test_there_are_requests_to_copy() -> None:
    assert {path for path, _ in CURLS} == {"/v1/score", "/v2/rerank"}


@pytest.mark.parametrize(("path", "body"), CURLS)
def test_each_request_is_answered(path: str, body: str) -> None:
    response = client().post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text


def test_the_batch_is_answered() -> None:
    body = re.search(r'^(\{"requests": .*\})$', PAGE, re.MULTILINE)
    assert body
    assert client().post("/v1/score", json=json.loads(body[1])).status_code == 200


def codes_in(file: Path) -> set[str]:
    """The codes of every Refusal that `file` makes."""
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    made = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Refusal")
    return {
        call.args[1].value
        for call in made
        if isinstance(call.args[1], ast.Constant) and isinstance(call.args[1].value, str)
    }


def test_every_code_is_in_the_table() -> None:
    made = set().union(*(codes_in(file) for file in (REPOSITORY / "serve" / "preceptor_serve").glob("*.py")))
    assert len(made) > 10
    table = PAGE[PAGE.index("| status | code |") : PAGE.index("## Python")]
    listed = set(re.findall(r"`([a-z_]+)`", table)) - {"field"}
    assert made <= listed
    assert listed - made <= {"empty_documents", "not_found", "method_not_allowed"}, "codes that are put together"


def test_every_path_and_limit_is_in_the_tables() -> None:
    assert [path for path in ROUTES if f"{path}`" not in PAGE] == []
    bounds = [f"blend.{part.name}" for part in fields(BlendBounds)]
    names = [part.name for part in fields(Limits) if part.name != "blend"] + bounds
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_what_serve_is_told_is_in_the_table_and_the_same_on_a_cluster() -> None:
    assert dict(re.findall(r"^\| `(RAY_SERVE_\w+)` \| (\S+) \|", PAGE, re.MULTILINE)) == SERVE_ENV
    assert dict(re.findall(r"\b(RAY_SERVE_\w+)=(\S+?)[\s']", (REPOSITORY / "cluster.yaml").read_text())) == SERVE_ENV
