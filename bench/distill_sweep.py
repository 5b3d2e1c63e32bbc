"""The mix of the teachers as a Pareto plot, and what each part of the lesson is worth: students of one finished run.

    make demo && .venv/bin/python -m bench.distill_sweep --root runs/demo --recipe demo

Every point is a student distilled from the run's own stored scores with one thing changed: sweep points in the mix,
ablations in the rest. All have the same steps and batch, and a seed at a time. Students are scored by the stage `score`
and measured by the stage `gate` on the run's holdouts: NDCG@10 of the head 'overall' on held-out golden pairs, AUC and
calibration error of clicks on held-out impressions, what they keep of their teachers, and once more against the
recipe's own student, all with paired bootstrap intervals over queries. The run's own pool and holdouts are small:
``--pool-queries`` teaches on the pool of a market of so many queries instead, ``--queries`` measures on so many of
another that are held out. With ``--steps`` and ``--layers`` the recipe's own is its student with so many of them.
What is finished under ``--work`` is not done again. Each measurement opens the sealed holdout, and says so in
``openings.jsonl`` beside it.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pyarrow.parquet import ParquetFile

from bench.peers.ground import Ground, Pool, Run, own_ground, own_pool, wide_ground, wide_pool
from bench.peers.lessons import RULES, ablations, seeded, sweep, with_layers
from bench.peers.one_line import errors_in_one_line
from bench.peers.pareto import random_ndcg
from bench.peers.points import require_known, slug
from bench.peers.sweep_report import AUC, CHANGE, KEPT, NDCG, OWN, Kind, Row, Values, averaged, plot, summary, tables
from preceptor.contracts import ACTIONS, GATE_REPORT, TEACHER_SCORES, parquet_files, read_table
from preceptor.errors import DriftError, InputError
from preceptor.evaluation.gate import gate
from preceptor.evaluation.holdout import read_holdout
from preceptor.evaluation.metrics import Interval, rows_by_group
from preceptor.golden.opener import open_holdout
from preceptor.local_ray import ray_cluster
from preceptor.logits import sigmoid
from preceptor.ranker.score_stage import ScoreConfig, score
from preceptor.recipe import DistillConfig, GateConfig
from preceptor.recipes import find_recipe
from preceptor.record import DEV, Record, read_record
from preceptor.student.distill import distill, stored_scores

QUICK: Final = ("mix 0.25 : 0.75", "mixing uncertainty", "hard grades", "no warm start", "pairs 1/4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/demo"), help="a finished run (default: runs/demo)")
    parser.add_argument("--recipe", default="demo", help="its recipe (default: demo)")
    parser.add_argument("--version", default="v1", help="its version (default: v1)")
    parser.add_argument("--work", type=Path, help="where students are kept (default: ROOT/distill_sweep)")
    parser.add_argument("--mixes", type=float, nargs="*", default=(0.05, 0.25, 0.5, 0.75, 0.95), metavar="SHARE")
    parser.add_argument("--mixing", nargs="*", default=tuple(RULES), choices=tuple(RULES), help="rules beside them")
    parser.add_argument(
        "--least", type=float, help="of the mask, where the recipe has none (default: the rarest action's median)"
    )
    parser.add_argument("--steps", type=int, help="of every student (default: the recipe's)")
    parser.add_argument("--layers", type=int, help="of every student (default: the recipe's)")
    parser.add_argument("--seeds", type=int, default=1, help="students of each point (default: 1)")
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help="only the points of these names; none: the recipe's own"
    )
    parser.add_argument("--queries", type=int, help="held-out queries of a wider market (default: the run's holdouts)")
    parser.add_argument(
        "--pool-queries", type=int, help="queries of a wider market to learn from (default: the run's pool)"
    )
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples (default: 1000)")
    parser.add_argument("--quick", action="store_true", help="five points, two steps: does it run at all")
    arguments = parser.parse_args()
    with errors_in_one_line():
        run_bench(arguments)


def run_bench(arguments: argparse.Namespace) -> None:
    """Teach and measure what the arguments ask for, print its tables and draw the plot."""
    recipe = find_recipe(arguments.recipe)
    if recipe.distill is None or arguments.seeds < 1:
        raise SystemExit(f"recipe {recipe.name} with {arguments.seeds} seeds: a student and a seed are needed.")
    run = Run(recipe=recipe, root=arguments.root, version=arguments.version)
    steps = 2 if arguments.quick else arguments.steps or recipe.distill.train.num_steps
    own = replace(recipe.distill, train=replace(recipe.distill.train, num_steps=steps))
    if arguments.layers is not None:
        own = with_layers(own, arguments.layers)
    swept = sweep(own, mixes=arguments.mixes, rules=arguments.mixing)
    least = arguments.least or rare_median(run.record("engagement_scores").path / "scores")
    wanted = {**swept, **ablations(recipe, own, least=least)}
    names = (
        [name for name in QUICK if name in wanted]
        if arguments.quick
        else list(wanted)
        if arguments.only is None
        else arguments.only
    )
    require_known(names, wanted)
    chosen = {OWN: own, **{name: wanted[name] for name in names}}
    kinds: dict[str, Kind] = {name: "sweep" if name in swept else "ablation" for name in names}
    work = arguments.work or arguments.root / ("distill_sweep_quick" if arguments.quick else "distill_sweep")
    num_bootstrap = 50 if arguments.quick else arguments.bootstrap
    with ray_cluster():
        num_queries, num_taught = arguments.queries, arguments.pool_queries
        pool = wide_pool(run, num_queries=num_taught, work=work) if num_taught else own_pool(run)
        ground = wide_ground(run, num_queries=num_queries, work=work) if num_queries else own_ground(run)
        lists = held_out_lists(ground, work)
        rows = measure(
            run, pool, ground, chosen, {OWN: "own", **kinds}, work=work, num_seeds=arguments.seeds, num=num_bootstrap
        )
    reference = (0.5, random_ndcg(lists))
    print(f"\n{tables(rows, steps=steps, num_seeds=arguments.seeds, reference=reference)}")
    command = shlex.join(["python", "-m", "bench.distill_sweep", *sys.argv[1:]])
    print(f"\n{summary(rows, command=command, reference=reference)}")
    print(f"\nplot: {plot(rows, work / 'distill_sweep.png', reference=reference)}")


def rare_median(scores: Path) -> float:
    """The median probability of the action that these scores hold rarest, of three digits: a mask of half of it."""
    found: dict[str, list[float]] = {}
    for row in read_table(scores, TEACHER_SCORES).to_pylist():
        if row["head"] in ACTIONS:
            found.setdefault(row["head"], []).append(sigmoid(row["logits"][0]))
    if not found:
        raise InputError(f"{scores}: no logits of {' or '.join(ACTIONS)}. Score the pairs with an engagement teacher.")
    return float(f"{min(map(statistics.median, found.values())):.3g}")


def held_out_lists(ground: Ground, work: Path) -> list[list[int]]:
    """The grades of each held-out list, for the expectation of a random order."""
    opened = open_holdout(
        ground.corpus.path / "golden", policy=ground.policy, log=work / "openings.jsonl", why="NDCG of a random order"
    )
    golden = read_holdout(ground.corpus.path, opened).golden
    if not golden.num_rows:
        raise InputError(f"{ground.corpus.path / 'golden'}: no held-out pair. Measure on a source that has some.")
    requests = [f"{row['query_id']}/{row['profile_id']}" for row in golden.to_pylist()]
    grades = golden["grade"].to_numpy()
    return [grades[rows].tolist() for rows in rows_by_group(requests)]


def measure(
    run: Run,
    pool: Pool,
    ground: Ground,
    chosen: Mapping[str, DistillConfig],
    kinds: Mapping[str, Kind],
    *,
    work: Path,
    num_seeds: int,
    num: int,
) -> list[Row]:
    """A row for each point, after teaching and measuring a student of each seed; the first is the one compared with."""
    rows: list[Row] = []
    own: list[Record] = []
    for number, (name, config) in enumerate(chosen.items(), start=1):
        found = []
        for seed in range(num_seeds):
            print(f"[{number}/{len(chosen)}] {name}, seed {config.train.seed + seed} ...", flush=True)
            started_s = time.monotonic()
            finished = run.root / "distill" / run.version if name == OWN and seed == 0 else None
            place = work / slug(name) / pool.name
            taught = teach(run, pool, seeded(config, seed), place=place, finished=finished)
            scored = score_student(run, ground, taught, place=place / ground.name)
            own += [scored] if name == OWN else []
            values = measured(run, ground, scored, own[seed], place=place / ground.name, num=num)
            found.append(values)
            print(
                f"    NDCG@10 {values[NDCG].value:.4f}, click AUC {values[AUC].value:.4f}, "
                f"{time.monotonic() - started_s:.0f} s",
                flush=True,
            )
        seeds = tuple((values[AUC].value, values[NDCG].value) for values in found)
        # No seed draws pairs or targets: what one student was told, all were.
        row = Row(
            name=name,
            kind=kinds[name],
            num_pairs=taught.num_rows_kept,
            num_targets=count_targets(taught),
            values=averaged(found),
            seeds=seeds,
        )
        rows.append(row)
    return rows


def teach(run: Run, pool: Pool, config: DistillConfig, *, place: Path, finished: Path | None) -> Record:
    """The student of `config`; that of the run itself, in `finished`, where it is the very same work."""
    out = place / "distill" / f"{shape(config)}-seed{config.train.seed}"
    # A stage in version `dev` is rebuilt at every call, and would be here.
    known = [finished] if finished is not None and finished.name != DEV and read_record(finished) is not None else []
    for directory in (*known, out):
        try:
            return distill(
                config,
                corpus=pool.corpus,
                relevance=run.record("relevance_teacher"),
                scores={
                    voice.teacher: stored_scores(voice) if voice.scores else pool.scores[voice.teacher]
                    for voice in config.heard
                },
                storage=run.recipe.storage,
                out=directory,
            )
        except DriftError:
            if directory == out:
                raise
    raise AssertionError("the last directory either gives a record or raises")


def shape(config: DistillConfig) -> str:
    """How long and how deep a student learns, as a name of folders."""
    layers = config.num_layers if config.backbone is None else config.backbone.num_layers
    return f"steps{config.train.num_steps}-layers{layers or 'all'}"


def count_targets(student: Record) -> int:
    """How many heads of pairs it was told something of."""
    files = parquet_files(student.path / "training" / "examples")
    return sum(ParquetFile(file).metadata.num_rows for file in files)


def score_student(run: Run, ground: Ground, student: Record, *, place: Path) -> Record:
    """Its logits on both holdouts of the ground."""
    assert run.recipe.distill is not None
    wanted = ScoreConfig(system="student", sets=("golden holdout", "shown holdout"), scoring=run.recipe.distill.scoring)
    return score(wanted, corpus=ground.corpus, model=student, out=place / "scores" / student.version)


def measured(run: Run, ground: Ground, student: Record, own: Record, *, place: Path, num: int) -> Values:
    """What the gate measures of the student and its teachers; what it kept of the recipe's own student, less 1."""
    config = replace(run.recipe.gate, thresholds={}, num_bootstrap=num)
    teachers = ground.relevance, ground.engagement
    kept = gated(ground, config, student, *teachers, out=place / "gate" / f"{student.version}-b{num}")
    if student is own:
        return kept
    # The own student in the place of both teachers: then what is kept of them is what is kept of it.
    against = gated(ground, config, student, own, own, out=place / "against_own" / f"{student.version}-b{num}")
    changes = {
        CHANGE + name: replace(item, value=item.value - 1, low=item.low - 1, high=item.high - 1)
        for name, item in against.items()
        if name in KEPT
    }
    return {**kept, **changes}


def gated(
    ground: Ground, config: GateConfig, student: Record, relevance: Record, engagement: Record, *, out: Path
) -> dict[str, Interval]:
    """Every interval that the gate measures, by "system head metric"; it has no thresholds and always passes."""
    done = gate(
        config,
        corpus=ground.corpus,
        relevance=relevance,
        engagement=engagement,
        student=student,
        policy=ground.policy,
        out=out,
    )
    found = {}
    for row in read_table(done.path / "gate.parquet", GATE_REPORT).to_pylist():
        low, high = (float("nan") if row[end] is None else row[end] for end in ("low", "high"))
        found[f"{row['system']} {row['head']} {row['metric']}"] = Interval(
            value=row["value"], low=low, high=high, num_groups=row["num_queries"]
        )
    lacking = [name for name in (NDCG, AUC, *KEPT) if name not in found]
    if lacking:
        raise InputError(
            f"{ground.corpus.path}: its holdouts measure no {', '.join(lacking)}. Bring grades and clicks."
        )
    return found


if __name__ == "__main__":
    main()
