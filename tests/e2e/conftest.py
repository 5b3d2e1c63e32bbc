"""What the tests of the whole path share: roots to work on, and the one line a refusal may say."""

from __future__ import annotations

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
