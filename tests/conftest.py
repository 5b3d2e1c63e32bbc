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
# Idle threads of OpenMP sleep at once. They would spin, on cores that the other process of `make test` wants: beside
# two busy processes on two cores, the tests of the ranker took 104 s so and take 16 s now; alone, 20 s and 18 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Hermetic: a user's running cluster must not be joined.
os.environ.pop("RAY_ADDRESS", None)
# No test times what it tests: a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# Files whose tests want the finished run of `tiny`, the first of which makes it: one process takes them all.
_ON_THE_TINY_RUN = (
    "e2e/test_bad_input.py",
    "e2e/test_path.py",
    "e2e/test_vllm_bundle.py",
    "integration/test_judge_vllm.py",
    "integration/test_lineage.py",
    "integration/test_prune_path.py",
)
# The longest of the others, longest first.
_LONG = (
    "integration/test_fit.py",
    "e2e/test_rollout.py",
    "e2e/test_serve.py",
    "integration/test_label_resume.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest first, and what starts Rays and engines before what is hermetic, so that `make test` ends evenly."""
    items.sort(key=lambda item: _turn(_scope(item.nodeid)))


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
    """What one process takes: all on the tiny run, or a file. A process starts its Ray once for all it takes."""
    file = nodeid.partition("::")[0]
    return "tiny run" if file.endswith(_ON_THE_TINY_RUN) else file


def _turn(scope: str) -> tuple[int, int]:
    """What comes first: the tiny run, the long files, others that start something, hermetic ones."""
    if scope == "tiny run":
        return 0, 0
    place = next((place for place, file in enumerate(_LONG) if scope.endswith(file)), None)
    return (1, place) if place is not None else (2, int(scope.startswith("tests/unit")))


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
    """The bundle of the run `tiny`: random weights."""
    return tiny_run / "export" / "v1" / "bundle"


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights and no run behind it, for who serves one: it is there in a second."""
    from tests.unit.exporting import random_bundle

    return random_bundle(tmp_path_factory.mktemp("random"))
