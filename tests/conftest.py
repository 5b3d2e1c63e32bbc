"""Fixtures that stand for real things: a local Ray, the packaged models, a tiny trained teacher and bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Hermetic: a user's running cluster must not be joined.
os.environ.pop("RAY_ADDRESS", None)
# No test times what it tests: a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# Files of tests/integration whose tests want the finished run of `tiny`, as those of tests/e2e do.
_ON_THE_TINY_RUN = ("test_judge_vllm.py", "test_lineage.py", "test_prune_path.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first: what starts Rays and engines before what is hermetic, so that `make test` ends evenly."""
    items.sort(key=lambda item: (_scope(item.nodeid).startswith("tests/unit"), _scope(item.nodeid) != "tiny run"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal the tests out to the processes of `make test` by `_scope`.

    xdist's own groups (--dist loadgroup) do not work with pytest 9.2, which keeps the ids of tests elsewhere.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return ByScope(config, log)


def _scope(nodeid: str) -> str:
    """What one process takes: all on the tiny run, which takes a minute to make; what starts Rays; any other file."""
    file = nodeid.partition("::")[0]
    if file.startswith("tests/e2e/") or file.endswith(_ON_THE_TINY_RUN):
        return "tiny run"
    return "tests/integration" if file.startswith("tests/integration/") else file


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray of eight logical CPUs that ends with the tests."""
    from preceptor.local_ray import ray_cluster

    with ray_cluster():
        yield


@pytest.fixture(scope="session")
def smollm_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory."""
    from preceptor.ranker.backbones import resolve_backbone

    return Path(resolve_backbone("smollm2-135m"))


@pytest.fixture(scope="session")
def tiny_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished run of the recipe `tiny`: every stage, random weights, no vLLM."""
    from preceptor.plan import make_plan
    from preceptor.recipes import tiny
    from preceptor.running import run_steps

    root = tmp_path_factory.mktemp("tiny")
    recipe = tiny()
    run_steps(recipe, make_plan(recipe), root=root)
    return root


@pytest.fixture(scope="session")
def tiny_teacher(tiny_run: Path) -> object:
    """The record of a relevance teacher with random weights; its checkpoint is ``path / 'model'``."""
    from preceptor.record import read_record

    return read_record(tiny_run / "relevance_teacher" / "v1")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path) -> Path:
    """A bundle with random weights."""
    return tiny_run / "export" / "v1" / "bundle"
