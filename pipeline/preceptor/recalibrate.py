"""The command `preceptor calibrate`: the labelling judge of a finished run, measured again under an edited policy.

Only what the edit touches is asked: a label is taken over where pair, judge and the wording of its dimension are the
same. The new calibration stands beside the run's own, which is left as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow.compute as pc

from preceptor.contracts import GOLDEN, LABELS, OVERALL, content_id, read_table, write_table
from preceptor.errors import InputError, RecipeError
from preceptor.local_ray import ray_cluster
from preceptor.recipe import JudgeConfig, MarketConfig, Recipe
from preceptor.record import Record, begin, fingerprint_of, read_record, to_jsonable
from preceptor.running import say

if TYPE_CHECKING:
    from preceptor.judge.replies import Judge
    from preceptor.judge.watch import Watch
    from preceptor.policy import Policy

_DIGEST_LENGTH: Final = 8


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """Two calibrations of the labelling judge. `changed` are the dimensions whose wording differs between them;
    `golden_versions` the policies that golden was graded under."""

    before: Record
    after: Record
    judge: Judge
    policy: Policy
    changed: tuple[str, ...]
    golden_versions: tuple[str, ...]
    seconds: float

    def words(self) -> str:
        """The agreement before and after, how many rows were judged for it, and what a reader must know of it."""
        from preceptor.evaluation.agreement_sheets import change_sheet

        metrics = self.after.metrics
        asked = ", ".join(f"{name} {num:,}" for name, num in metrics["asked"].items()) or "none"
        table = change_sheet(self.before, self.after, changed=self.changed).text()
        done = (
            f"calibrate: judged {metrics['num_rows_asked']:,} rows ({asked}), reused {metrics['num_rows_reused']:,}, "
            f"in {self.seconds:.1f} s; {self.after.path}"
        )
        return "\n".join([table, *_notes(self), done])


@dataclass(frozen=True, kw_only=True)
class GoldenCopy:
    """Which golden rows a copy holds."""

    digest: str


def recalibrate(recipe: Recipe, *, root: Path, against: str | None = None, watch: Watch | None = None) -> Recalibration:
    """The labelling judge of the finished run in `root`, calibrated again under `recipe.policy`.

    It is compared with the calibration `against`, by default the run's own. The new one is named by a hash of the
    policy, the judge and golden, so that the same edit is measured once. Ray starts where a model has to. Raises
    RecipeError where no judge labels, InputError where the run is not finished, and what `calibrate` raises.
    """
    from preceptor.policy.sealed import sealed

    started_s = time.monotonic()
    before = _finished(root / "calibrate" / (against or recipe.version))
    corpus = _finished(root / "corpus" / recipe.version)
    with sealed(recipe.policy, corpus.path):
        return _recalibrated(recipe, corpus, before, root=root, watch=watch, started_s=started_s)


def _recalibrated(
    recipe: Recipe, corpus: Record, before: Record, *, root: Path, watch: Watch | None, started_s: float
) -> Recalibration:
    from preceptor.judge import calibrate
    from preceptor.policy import load_policy

    policy = load_policy(recipe.policy)
    config, judge, teacher = _labelling_judge(recipe, policy, root=root)
    golden = _golden(recipe, policy, corpus, root=root)
    changed = _worded_anew(judge, policy, before)
    inputs = {"corpus": golden} if teacher is None else {"corpus": golden, "teacher": teacher}
    out = root / "calibrate" / _version(recipe, config, inputs, policy)
    say(f"{judge.judge_id} under policy {policy.version}: worded anew: {', '.join(changed) or 'nothing'}")
    cluster = ray_cluster() if judge.workers is not None and read_record(out) is None else nullcontext()
    with cluster:
        after = calibrate(
            config, policy=recipe.policy, corpus=golden, teacher=teacher, judge=judge, watch=watch, out=out
        )
    return Recalibration(
        before=before,
        after=after,
        judge=judge,
        policy=policy,
        changed=changed,
        golden_versions=_graded_under(golden),
        seconds=time.monotonic() - started_s,
    )


def _labelling_judge(recipe: Recipe, policy: Policy, *, root: Path) -> tuple[JudgeConfig, Judge, Record | None]:
    """Who labels: how it is calibrated, the judge that answers now, and the teacher it is, if it is one."""
    from preceptor.judge.judges import live_teacher, open_judge

    if recipe.judge is None:
        raise RecipeError(f"recipe {recipe.name} has no judge to calibrate. Use one that labels, as demo does.")
    if recipe.labeller == "judge":
        return recipe.judge, open_judge(recipe.judge, policy, teacher=None, model=None), None
    teacher = _finished(root / "relevance_teacher" / recipe.version)
    config = replace(recipe.judge, num_calibration_pairs=recipe.num_tuned_pairs)
    return config, live_teacher(config, policy, teacher), teacher


def _golden(recipe: Recipe, policy: Policy, corpus: Record, *, root: Path) -> Record:
    """Whose ``golden/`` to measure with: the corpus', or, where golden is the policy's and was edited, a copy of it.

    A copy holds the pairs that calibrate and no sealed ones.
    """
    from preceptor.golden import tuning_rows
    from preceptor.judge.calibrate import SPLIT
    from preceptor.policy import load_golden

    if not isinstance(recipe.source, MarketConfig):
        return corpus
    loaded = load_golden(recipe.policy / "golden", policy)
    edited = loaded.filter(pc.equal(loaded.column("split"), SPLIT))
    if edited.equals(tuning_rows(corpus.path / "golden", split=SPLIT)):
        return corpus
    digest = content_id(json.dumps(edited.to_pylist()))
    run = begin("golden", GoldenCopy(digest=digest), out=root / "golden" / digest[:_DIGEST_LENGTH])
    if run.record is not None:
        return run.record
    write_table(edited, run.out / "golden" / "part-000000.parquet", GOLDEN)
    return run.finish(num_rows_in=edited.num_rows, num_rows_kept=edited.num_rows)


def _graded_under(golden: Record) -> tuple[str, ...]:
    from preceptor.golden import tuning_rows
    from preceptor.judge.calibrate import SPLIT

    rows = tuning_rows(golden.path / "golden", split=SPLIT)
    return tuple(sorted(set(rows.column("policy_version").to_pylist())))


def _version(recipe: Recipe, config: JudgeConfig, inputs: Mapping[str, Record], policy: Policy) -> str:
    """The name of this run's calibration under this config, policy and golden: the same work has the same name."""
    fingerprints = {name: record.fingerprint for name, record in inputs.items()}
    work = fingerprint_of("calibrate", to_jsonable(config.deciding), fingerprints, policy.version)
    return f"{recipe.version}-{work[:_DIGEST_LENGTH]}"


def _worded_anew(judge: Judge, policy: Policy, before: Record) -> tuple[str, ...]:
    """The dimensions of `judge` that `before` labelled under other words, or not at all."""
    from preceptor.judge.judges import prompt_hashes

    labels = read_table(before.path / "labels", LABELS).select(["dimension", "prompt_hash"]).to_pylist()
    known = {(row["dimension"], row["prompt_hash"]) for row in labels}
    return tuple(name for name, wording in prompt_hashes(judge, policy).items() if (name, wording) not in known)


def _notes(found: Recalibration) -> list[str]:
    """What the figures do not say."""
    notes = []
    if OVERALL in found.changed:
        notes.append("The overall grade follows from every dimension: it is judged again with any of them.")
    if not found.judge.asking and found.changed:
        notes.append(
            f"{found.judge.judge_id} reads no policy: it was tuned before these words and has not read them. Its "
            "grades follow them only once it is tuned again, on golden graded under them."
        )
    notes.append(f"Golden was graded under policy {', '.join(found.golden_versions)}.")
    return notes


def _finished(path: Path) -> Record:
    record = read_record(path)
    if record is None:
        raise InputError(f"{path}: stage '{path.parent.name}' is not finished. Run the recipe first.")
    return record
