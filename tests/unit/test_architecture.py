"""The house rules a reader relies on: which way imports point, what stays light, how long a module gets."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PIPELINE = REPOSITORY / "pipeline" / "preceptor"
SERVE = REPOSITORY / "serve" / "preceptor_serve"
JOBS = REPOSITORY / "jobs"

# A room imports itself and rooms of the layers above it in this list; rooms of one layer do not know each other.
LAYERS = (
    ("errors", "logits", "precedence", "precision", "tally"),
    ("contracts", "local_ray"),
    ("record", "recipe"),
    ("policy", "evaluation.metrics", "contracts_doc"),
    ("golden", "capacity", "plan_rows"),
    ("capacity_table", "training_memory"),
    ("market", "ranker"),
    ("sources", "judge"),
    ("generate", "refine"),
    ("teachers", "student"),
    ("evaluation", "bundle", "feedback"),
    ("sources.rerank_report", "sources.headline_report", "parity"),
    ("export", "recipes"),
    ("steps",),
    ("plan",),
    ("running", "batch", "cli_plan", "cli_policy", "cli_golden", "cli_refine", "cli_feedback"),
    ("recalibrate", "workbench"),
    ("cli_workbench", "cli_serve"),
    ("cli",),
)
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
SERVE_MAY_IMPORT = {
    "preceptor.contracts",
    "preceptor.errors",
    "preceptor.bundle",
    "preceptor.precedence",
    "preceptor.precision",
}
LIGHT = (
    "errors",
    "logits",
    "precedence",
    "precision",
    "tally",
    "local_ray",
    "contracts",
    "contracts_doc",
    "record",
    "recipe",
    "recipes",
    "policy",
    "golden",
    "capacity",
    "capacity_table",
    "training_memory",
    "steps",
    "plan",
    "plan_rows",
    "cli_plan",
    "cli_policy",
    "cli_golden",
    "cli_refine",
    "cli_feedback",
    "cli_serve",
    "cli_workbench",
    "batch",
    "cli",
)
HEAVY = ("torch", "ray", "vllm", "transformers", "sklearn", "matplotlib", "openai", "datasets")
MAX_LINES = 400


def modules(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def name_of(file: Path) -> str:
    source_root = next(room.parent for room in (PIPELINE, SERVE, JOBS) if file.is_relative_to(room))
    return ".".join(file.relative_to(source_root).with_suffix("").parts).removesuffix(".__init__")


def is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def imported(tree: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Every module of this project that `tree` imports, with its line; `package` resolves relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def project_imports(file: Path) -> list[tuple[str, int]]:
    package = name_of(file) if file.name == "__init__.py" else name_of(file).rpartition(".")[0]
    tree = ast.parse(file.read_text())
    return [(name, line) for name, line in imported(tree, package) if name.split(".")[0].startswith("preceptor")]


def room_of(name: str) -> str | None:
    """The room of LAYERS that a dotted name of the package `preceptor` lies in; None for the package itself."""
    parts = name.split(".")[1:]
    if not parts or parts[0].startswith("__"):
        return None
    return ".".join(parts[:2]) if ".".join(parts[:2]) in LAYER_OF else parts[0]


@pytest.mark.parametrize("file", modules(PIPELINE), ids=name_of)
def test_every_module_belongs_to_a_room(file: Path) -> None:
    room = room_of(name_of(file))
    assert room is None or room in LAYER_OF, f"{room} has no layer: give it one in LAYERS and a line in README's tree"


@pytest.mark.parametrize("file", modules(PIPELINE), ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    room = room_of(name_of(file))
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{line}: {room} imports {name}"
        for name, line in project_imports(file)
        if room is not None
        and name.startswith("preceptor.")
        and (target := room_of(name)) is not None
        and target != room
        and target in LAYER_OF
        and LAYER_OF[target] >= LAYER_OF[room]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", modules(SERVE), ids=name_of)
def test_serving_needs_only_the_bundle(file: Path) -> None:
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{line}: imports {name}"
        for name, line in project_imports(file)
        if name.startswith("preceptor.") and ".".join(name.split(".")[:2]) not in SERVE_MAY_IMPORT
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_knows_the_server_and_only_when_asked() -> None:
    knows = {
        name_of(file)
        for file in [*modules(PIPELINE), *modules(JOBS)]
        if any(name.startswith("preceptor_serve") for name, _ in project_imports(file))
    }
    assert knows <= {"preceptor.cli", "preceptor.cli_serve", "preceptor.running"}
    files = [PIPELINE / "cli.py", PIPELINE / "cli_serve.py", PIPELINE / "running.py"]
    eager = [node for file in files for node in ast.parse(file.read_text()).body if is_import(node)]
    names = [name for node in eager for name, _ in imported(node, "preceptor")]
    assert not [name for name in names if name.startswith("preceptor_serve")]


@pytest.mark.parametrize("file", modules(JOBS), ids=name_of)
def test_jobs_only_call_the_command_line(file: Path) -> None:
    rooms = {room_of(name) for name, _ in project_imports(file)}
    assert rooms <= {"cli", "recipe", "recipes"}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module: str) -> None:
    program = f"import sys, preceptor.{module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert not found.stdout.split(), f"preceptor.{module} imports {found.stdout.strip()}"


@pytest.mark.parametrize("file", [*modules(PIPELINE), *modules(SERVE), *modules(JOBS)], ids=name_of)
def test_no_module_outgrows_a_reader(file: Path) -> None:
    num_lines = len(file.read_text().splitlines())
    assert num_lines <= MAX_LINES, (
        f"{file.relative_to(REPOSITORY)} has {num_lines} lines, {MAX_LINES} at most: split it"
    )
