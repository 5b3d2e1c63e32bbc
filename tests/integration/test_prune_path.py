"""From a distilled student to a pruned bundle: what was finished stays, the bundle is the recovered one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from preceptor.bundle import load_bundle
from preceptor.plan import make_plan
from preceptor.recipe import PruneConfig
from preceptor.recipes import tiny
from preceptor.record import Record, read_record
from preceptor.running import run_steps

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

AFTER = ("student_scores", "gate", "export", "served", "report.html")


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Record]]:
    """The root and the records of the finished run `tiny`, gone on from its student with half the neurons cut."""
    root = tmp_path_factory.mktemp("pruned") / "run"
    root.mkdir()
    for stage in tiny_run.iterdir():
        if stage.name not in AFTER:
            shutil.copytree(stage, root / stage.name)
    recipe = replace(tiny(), prune=PruneConfig(mlp=0.5, vocabulary="seen", num_pairs=32, recovery_steps=2))
    return root, run_steps(recipe, make_plan(recipe), root=root)


def test_what_comes_before_pruning_is_not_done_again(run: tuple[Path, dict[str, Record]], tiny_run: Path) -> None:
    _, records = run
    for name in ("corpus", "label", "relevance_scores", "engagement_scores", "distill"):
        assert records[name] == replace(read_record(tiny_run / name / "v1"), path=records[name].path)  # type: ignore[type-var]


def test_the_bundle_is_the_recovered_student(run: tuple[Path, dict[str, Record]], tiny_run: Path) -> None:
    root, records = run
    bundle = load_bundle(root / "export" / "v1" / "bundle")
    whole = load_bundle(tiny_run / "export" / "v1" / "bundle")
    sizes = [item.ranker.classifier.config for item in (bundle, whole)]
    assert [item.intermediate_size for item in sizes] == [128, 256]
    assert sizes[0].vocab_size < sizes[1].vocab_size / 10
    assert bundle.bundle_id.startswith("recover-") and bundle.probe() < 0.02
    assert bundle.policy_version == whole.policy_version
    assert len(records["recover"].metrics["losses"]) == 2
    assert records["gate"].inputs["student"] == records["student_scores"].fingerprint
    assert records["student_scores"].inputs["model"] == records["recover"].fingerprint
    assert "Student parameters outside embeddings" in (root / "report.html").read_text()
