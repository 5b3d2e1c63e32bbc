"""Fixtures that stand for real things: a local Ray, the packaged models, a tiny trained teacher and bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the tests out to the processes of ``make test``: what shares a Ray together, every other file for itself.

    Longest first: whoever shares the Ray, then files that start processes of their own, then the hermetic ones.
    """
    items.sort(key=_turn)
    for item in items:
        shared = _turn(item) == 0
        item.add_marker(pytest.mark.xdist_group("local-ray" if shared else item.nodeid.partition("::")[0]))


def _turn(item: pytest.Item) -> int:
    if "local_ray" in getattr(item, "fixturenames", ()):
        return 0
    return 1 if item.get_closest_marker("integration") or item.get_closest_marker("e2e") else 2


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
