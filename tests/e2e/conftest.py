"""What the tests of the whole path share: roots to work on, and the one line a refusal may say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from preceptor.cli import main

Stages = Callable[..., Path]
Refused = Callable[..., str]


@pytest.fixture
def stages(tiny_run: Path, tmp_path: Path) -> Stages:
    """A function of stage names: a root of its own with just these finished stages of `tiny_run` (none named: all)."""

    def copy(*names: str) -> Path:
        root = tmp_path / "root"
        for stage in tiny_run.iterdir():
            if stage.is_dir() and (not names or stage.name in names):
                shutil.copytree(stage, root / stage.name)
        return root

    return copy


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function of arguments: the one line that `preceptor` refuses them with, after checking its exit code."""

    def run(*arguments: object, exit_code: int) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == exit_code
        return only_line(capsys.readouterr().err)

    return run


def only_line(stderr: str) -> str:
    """The line of `stderr` that is preceptor's refusal; there must be exactly one, and no traceback."""
    assert "Traceback" not in stderr, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("preceptor: ")]
    return line


def copied(bundle: Path, to: Path, **changes: object) -> Path:
    """A copy of `bundle` whose bundle.json has these `changes`."""
    shutil.copytree(bundle, to)
    file = to / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return to


@pytest.fixture(scope="module")
def old(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(random_bundle, tmp_path_factory.mktemp("old") / "bundle", bundle_id="old")


@pytest.fixture(scope="module")
def new(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights under another name, ranking by clicks alone."""
    blend = {"relevance": 0.0, "click": 1.0, "apply": 0.0}
    return copied(random_bundle, tmp_path_factory.mktemp("new") / "bundle", bundle_id="new", blend=blend)


@pytest.fixture(scope="module")
def corrupt(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that loads and scores, and does not give its known answers."""
    known = json.loads((random_bundle / "bundle.json").read_text())["known_answers"]
    wrong = [answer | {"logits": [logit + (3.0 if i == 0 else 0.0) for i, logit in enumerate(answer["logits"])]}
             for answer in known]  # fmt: skip
    folder = tmp_path_factory.mktemp("corrupt") / "bundle"
    return copied(random_bundle, folder, bundle_id="corrupt", known_answers=wrong)
