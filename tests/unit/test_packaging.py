"""What is shipped and what a newcomer touches: wheel, pins, commands, the README's tree, the cluster file."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINS = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
README = (REPOSITORY / "README.md").read_text()
CLUSTER = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from what the build needs alone, so that stray files of a checkout cannot help or hurt."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("pipeline", "serve"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(file)


def read(wheel: zipfile.ZipFile, name: str) -> str:
    (member,) = (found for found in wheel.namelist() if found.endswith(f".dist-info/{name}"))
    return wheel.read(member).decode()


def test_the_wheel_holds_exactly_two_packages(wheel: zipfile.ZipFile) -> None:
    top_level = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"preceptor", "preceptor_serve"}


def test_the_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    sources = {
        file.relative_to(REPOSITORY / root).as_posix()
        for root in ("pipeline", "serve")
        for file in (REPOSITORY / root).rglob("*.py")
    }
    assert sources == {name for name in wheel.namelist() if name.endswith(".py")}


def test_the_wheel_carries_its_command_and_its_licence(wheel: zipfile.ZipFile) -> None:
    assert "preceptor = preceptor.cli:main" in read(wheel, "entry_points.txt")
    assert "Apache License" in read(wheel, "licenses/LICENSE")
    assert {"cpu", "gpu", "dev"} <= set(re.findall(r"^Provides-Extra: (.+)$", read(wheel, "METADATA"), re.MULTILINE))


def canonical(requirement: str) -> str:
    return re.split(r"[\[=<>]", requirement)[0].lower().replace("_", "-")


def test_every_pin_is_exact_and_comes_from_an_index() -> None:
    assert [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", pin)] == []
    assert len({canonical(pin) for pin in PINS}) == len(PINS)


def test_the_pins_leave_out_what_a_text_system_does_not_need() -> None:
    assert {"torchvision", "torchaudio", "torchcodec"}.isdisjoint(map(canonical, PINS))


def test_torch_is_pinned_to_its_cpu_build() -> None:
    (pin,) = (pin for pin in PINS if canonical(pin) == "torch")
    assert pin.endswith("+cpu")


def test_the_pins_cover_everything_that_is_installed_on_a_cpu_machine() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["cpu"], *extras["dev"], "hatchling", "editables"]
    assert {canonical(requirement) for requirement in asked} - {canonical(pin) for pin in PINS} == set()


def test_every_package_that_the_code_imports_is_declared() -> None:
    trees = [
        ast.parse(file.read_text()) for root in ("pipeline", "serve") for file in (REPOSITORY / root).rglob("*.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imports = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    names = {name.split(".")[0] for name in imports} - {"preceptor", "preceptor_serve"} - set(sys.stdlib_module_names)
    extras = PROJECT["optional-dependencies"]
    declared = set(map(canonical, [*PROJECT["dependencies"], *extras["cpu"], *extras["gpu"]]))
    providers = importlib.metadata.packages_distributions()
    undeclared = {name for name in names if declared.isdisjoint(map(canonical, providers.get(name, [name])))}
    assert undeclared == set()


def test_every_dependency_has_an_upper_bound() -> None:
    extras = [requirement for group in PROJECT["optional-dependencies"].values() for requirement in group]
    assert [found for found in [*PROJECT["dependencies"], *extras] if not re.search(r"<|==", found)] == []


@pytest.mark.parametrize("target", ["setup", "demo", "test", "check", "bench", "contracts", "clean", "help"])
def test_make_knows_its_targets(target: str) -> None:
    found = subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_make_help_names_what_the_readme_promises() -> None:
    found = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    promised = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert promised <= set(re.findall(r"^make ([a-z]+)", found.stdout, re.MULTILINE))


def test_setup_without_the_right_python_says_so_and_builds_nothing(tmp_path: Path) -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    command = ["make", "setup", "PYTHON=/nonexistent/python3.11"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode != 0
    assert "'/nonexistent/python3.11' is not a Python 3.11" in found.stdout
    assert not (tmp_path / ".venv").exists()


# Stands for .venv/bin/python and .venv/bin/uv: writes down how it is called, and finds torch or does not.
_PYTHON = """#!/bin/sh
echo "pip $@" >> calls
case "$*" in
  *"config list"*) echo "global.extra-index-url='https://one.example https://two.example'";;
  *"-r constraints.txt"*) case "$*" in *mirror.example*) ;; *) exit {torch_missing};; esac;;
esac
"""
_UV = """#!/bin/sh
echo "uv $@ UV_INDEX=$UV_INDEX" >> calls
case "$UV_INDEX" in *mirror.example*) exit {uv_broken};; esac
test {torch_missing} = 0 -a {uv_broken} = 0
"""


@pytest.mark.parametrize("torch_missing", [0, 1], ids=["torch found", "torch missing"])
@pytest.mark.parametrize("uv_broken", [0, 1], ids=["uv", "pip alone"])
def test_setup_adds_pytorchs_index_only_where_torch_is_not_found(
    uv_broken: int, torch_missing: int, tmp_path: Path
) -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, script in (("python", _PYTHON), ("uv", _UV)):
        (folder / name).write_text(script.format(torch_missing=torch_missing, uv_broken=uv_broken))
        (folder / name).chmod(0o755)
    command = ["make", "setup", f"PYTHON={sys.executable}", "TORCH_INDEX=https://mirror.example/cpu"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    installs = [call for call in (tmp_path / "calls").read_text().splitlines() if "-r constraints.txt" in call]
    assert installs[-1].startswith("pip" if uv_broken else "uv")
    assert ("https://mirror.example/cpu" in installs[-1]) == bool(torch_missing)
    assert all("--no-deps" in install for install in installs)
    assert all("https://one.example https://two.example" in install for install in installs if install.startswith("uv"))

    (tmp_path / "calls").unlink()
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert not (tmp_path / "calls").exists(), "a finished set-up was done again"


def test_continuous_integration_runs_the_same_targets() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "check test" in script.read_text()
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def tree_of_readme() -> set[Path]:
    """The paths that the README's tree names, relative to the repository."""
    block = README.partition("## Files")[2].split("```")[1]
    paths: set[Path] = set()
    parents: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], line.split()[0]]
        paths.add(Path(*parents))
    return paths


def shown(folder: Path) -> set[Path]:
    """What a reader sees in `folder`: neither hidden nor ignored files."""
    ignored = {line.strip("/\n") for line in (REPOSITORY / ".gitignore").read_text().splitlines()}
    found = (file for file in folder.iterdir() if file.name not in ignored and file.name[0] not in "._")
    return {file.relative_to(REPOSITORY) for file in found if not file.match("*.egg-info")}


def stands(path: Path) -> bool:
    """Whether a clone would have `path`: git keeps no empty directory."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def test_the_readme_tree_names_only_what_exists() -> None:
    assert {str(path) for path in tree_of_readme() if not stands(REPOSITORY / path)} == set()


@pytest.mark.parametrize("folder", [".", "pipeline", "pipeline/preceptor", "serve"])
def test_the_readme_tree_is_complete(folder: str) -> None:
    assert {str(path) for path in shown(REPOSITORY / folder) - tree_of_readme()} == set()


def test_the_first_screen_has_the_two_commands_and_the_diagram() -> None:
    screen = "\n".join(README.splitlines()[:40])
    assert "make demo" in screen
    assert "make test" in screen
    assert "─►" in screen
    assert "What you get" in screen


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(f"docs/{file.name}" for file in (REPOSITORY / "docs").glob("*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert [target for target in targets if not ((REPOSITORY / page).parent / target).exists()] == []


def test_the_cluster_file_is_valid_against_rays_schema() -> None:
    (ray,) = {Path(path) / "ray" for path in sys.path if (Path(path) / "ray" / "autoscaler").is_dir()}
    jsonschema.validate(CLUSTER, json.loads((ray / "autoscaler" / "ray-schema.json").read_text()))


def test_the_cluster_has_its_five_groups_and_a_head_among_them() -> None:
    groups = CLUSTER["available_node_types"]
    assert set(groups) == {"head", "cpu", "gpu-label", "gpu-train", "gpu-serve"}
    assert CLUSTER["head_node_type"] in groups
    workers = [group for name, group in groups.items() if name != CLUSTER["head_node_type"]]
    assert all(0 <= group["min_workers"] <= group["max_workers"] for group in workers)
    assert sum(group["max_workers"] for group in workers) <= CLUSTER["max_workers"]
    assert all(("GPU" in group["resources"]) == name.startswith("gpu-") for name, group in groups.items())


def test_the_cluster_takes_jobs_only_with_a_token() -> None:
    assert any("RAY_AUTH_MODE=token" in command for command in CLUSTER["setup_commands"])
    assert any("--dashboard-host=127.0.0.1" in command for command in CLUSTER["head_start_ray_commands"])
