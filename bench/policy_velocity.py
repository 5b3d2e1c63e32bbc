"""How long from changing one anchor to the new agreement table, on a finished run, and what is judged again for it.

    .venv/bin/python bench/policy_velocity.py demo --root runs/demo

It copies the run's policy, adds a sentence to one anchor, and runs `preceptor calibrate` in a process of its own, from
nothing: the time is what a person waits. Each round edits another grade's anchor of the same dimension, because the
same edit is measured once. The run itself is left as it is; the new calibrations stand beside its own.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.policy import load_policy
from preceptor.recipes import find_recipe
from preceptor.record import Record, read_record

TARGET_S = 180.0


@dataclass(frozen=True, kw_only=True)
class Round:
    """One edit: how long the command took, and the calibration it left."""

    seconds: float
    record: Record
    printed: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="demo", help="the recipe of the finished run (default: demo)")
    parser.add_argument("--root", type=Path, default=Path("runs/demo"), help="the finished run (default: runs/demo)")
    parser.add_argument("--dimension", help="the dimension to reword (default: the rubric's last)")
    parser.add_argument("--rounds", type=int, default=3, help="edits, one after the other (default: 3)")
    arguments = parser.parse_args()
    if not 1 <= arguments.rounds <= NUM_GRADES:
        parser.error(f"--rounds is 1 to {NUM_GRADES}: each edits another grade's anchor")
    recipe = find_recipe(arguments.recipe)
    dimension = arguments.dimension or load_policy(recipe.policy).rubric.names[-1]
    with tempfile.TemporaryDirectory(prefix="preceptor-velocity-") as folder:
        policy = Path(shutil.copytree(recipe.policy, Path(folder) / "policy"))
        rounds = []
        for grade in range(arguments.rounds):
            reword(policy, dimension, grade)
            rounds.append(measured(arguments.recipe, arguments.root.resolve(), policy))
            print(f"round {grade + 1}: {rounds[-1].seconds:.1f} s", flush=True)
    print(f"\n{rounds[-1].printed}\n")
    table(rounds, dimension)
    print(row(arguments.recipe, rounds, dimension))


def reword(policy: Path, dimension: str, grade: int) -> None:
    """Add a sentence to one anchor in rubric.toml, and in the document where it says the same."""
    anchor = load_policy(policy).rubric.dimension(dimension).anchors[grade]
    for name in ("rubric.toml", "policy.md"):
        file = policy / name
        text = file.read_text()
        if name == "rubric.toml" and anchor not in text:
            sys.exit(f"{file}: the anchor '{anchor}' is not written on one line; choose another --dimension")
        file.write_text(text.replace(anchor, f"{anchor} In doubt, the grade below."))


def measured(recipe: str, root: Path, policy: Path) -> Round:
    """The command's time, from its start to its end, and the record it left."""
    before = {path.name for path in (root / "calibrate").iterdir()}
    command = [sys.executable, "-m", "preceptor", "calibrate", recipe, "--root", str(root), "--policy", str(policy)]
    started_s = time.monotonic()
    ran = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - started_s
    made = sorted({path.name for path in (root / "calibrate").iterdir()} - before)
    # A judge under its floor is a finding, not a fault: the table is there.
    if ran.returncode not in (0, 1) or len(made) != 1:
        sys.exit(f"{' '.join(command)} ended with {ran.returncode}, new calibrations: {made}\n{ran.stderr}")
    record = read_record(root / "calibrate" / made[0])
    if record is None:
        sys.exit(f"{root / 'calibrate' / made[0]}: not finished\n{ran.stderr}")
    return Round(seconds=seconds, record=record, printed=ran.stdout.strip())


def table(rounds: list[Round], dimension: str) -> None:
    """Rows judged and taken over by dimension, of each round; SystemExit where another dimension was judged."""
    names = [*rounds[0].record.metrics["per_dimension"], OVERALL]
    width = max(map(len, names))
    print(f"{'dimension':<{width}}  " + "  ".join(f"{'judged':>7} {'reused':>7}" for _ in rounds))
    for name in names:
        counts = [(of(found, "asked", name), of(found, "reused", name)) for found in rounds]
        print(f"{name:<{width}}  " + "  ".join(f"{asked:>7,} {reused:>7,}" for asked, reused in counts))
    wrong = sorted({name for found in rounds for name in found.record.metrics["asked"]} - {dimension, OVERALL})
    if wrong:
        sys.exit(f"only '{dimension}' was worded anew, but {', '.join(wrong)} was judged again")
    print(f"the overall grade, where the judge gives one itself, follows from '{dimension}' and is judged with it\n")


def of(found: Round, kind: str, name: str) -> int:
    """How many rows of dimension `name` were 'asked' or 'reused'."""
    counts: Mapping[str, int] = found.record.metrics[kind]
    return counts.get(name, 0)


def row(recipe: str, rounds: list[Round], dimension: str) -> str:
    """The line for bench/RESULTS.md."""
    seconds = [found.seconds for found in rounds]
    metrics = rounds[-1].record.metrics
    middle = statistics.median(seconds)
    asked = ", ".join(f"{name} {num:,}" for name, num in metrics["asked"].items())
    tuned = metrics["judge_id"].startswith("teacher:")
    unread = "; the teacher has not read the new words: it would have to be tuned again" if tuned else ""
    verdict = "held" if middle <= TARGET_S else "**missed**"
    return (
        f"| {datetime.date.today()} | from changing one anchor of '{dimension}' to the new agreement table, judge "
        f"{metrics['judge_id'].partition(':')[0]} | `python bench/policy_velocity.py {recipe} --root runs/{recipe}` | "
        f"{os.cpu_count()} cores, no GPU | {', '.join(f'{value:.1f}' for value in seconds)} s, median {middle:.1f} s "
        f"(target {TARGET_S:.0f}: {verdict}); {metrics['num_pairs']:,} golden pairs; rows judged again: {asked}; taken "
        f"over: {metrics['num_rows_reused']:,}; kappa {metrics['kappa']:.3f} [{metrics['kappa_low']:.3f}, "
        f"{metrics['kappa_high']:.3f}]{unread} |"
    )


if __name__ == "__main__":
    main()
