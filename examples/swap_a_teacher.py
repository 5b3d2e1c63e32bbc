"""One teacher is replaced: its own stages and those that read its scores run, everything else stays as it is.

``python examples/swap_a_teacher.py --root runs/swap`` finishes the recipe `tiny` there as version v1 (a minute, unless
it is finished), replaces its engagement teacher by one with fewer layers as version v2, and prints which stages ran.
``--dry-run`` prints the same of a finished run without running anything. The same from the command line:

    preceptor run examples/swap_a_teacher.py:recipe --root runs/swap --version v2 --base v1
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from preceptor.plan import make_plan
from preceptor.recipe import Recipe, TeacherConfig
from preceptor.recipes import tiny
from preceptor.running import forecast, run_steps

NUM_LAYERS = 3


def recipe() -> Recipe:
    """The recipe `tiny` with an engagement teacher of fewer layers; the relevance teacher is not touched."""
    start = tiny()
    assert isinstance(start.engagement, TeacherConfig)
    backbone = replace(start.engagement.backbone, num_layers=NUM_LAYERS)
    return replace(start, engagement=replace(start.engagement, backbone=backbone))


def main() -> None:
    """Print a line for each stage: which version made it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/swap"))
    parser.add_argument("--dry-run", action="store_true", help="of a finished run: print what would run")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    before = tiny()
    after = replace(recipe(), version="v2", base=before.version)
    steps = make_plan(after)
    if arguments.dry_run:
        for step, doing in forecast(after, steps, root=root).items():
            print(f"{step.name:<20} {doing}")
        return
    run_steps(before, make_plan(before), root=root)
    records = run_steps(after, steps, root=root)
    made = {step.name: records[step.name].version for step in steps}
    for name, version in made.items():
        print(f"{name:<20} {'ran' if version == after.version else f'kept, as {version} made it'}")
    num_ran = sum(version == after.version for version in made.values())
    print(f"{num_ran} of {len(made)} stages ran")


if __name__ == "__main__":
    main()
