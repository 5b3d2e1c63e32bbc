"""Quality against parameters and served speed of a pruned student: cuts of a finished run's student, each recovered.

    make demo && .venv/bin/python -m bench.prune_curve --root runs/demo --recipe demo

Every point is cut by the stage `prune` and recovers by the stage `recover` on the run's own stored scores; what is
finished under ``--work`` is not done again. NDCG@10 of the head 'overall' is on the held-out golden pairs, or with
``--queries`` on as many held-out queries of a wider market. Changes are against the student as it was distilled, with
paired bootstrap intervals over queries. "recovery alone" trains the whole student on for as many steps: what the steps
give without a cut. Speed is of the serving engine, its caches off, medians of rounds in which every point takes its
turn.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.ground import wide_market
from bench.peers.held_out import documents_per_s, held_out_rows, sealed_by
from bench.peers.one_line import errors_in_one_line
from bench.peers.points import require_known, slug
from bench.peers.sweep_report import percent
from preceptor.bundle import Reader
from preceptor.contracts import OVERALL
from preceptor.errors import InputError
from preceptor.evaluation.holdout import expected_gain
from preceptor.evaluation.metrics import Interval, bootstrap, ndcg_at
from preceptor.local_ray import ray_cluster
from preceptor.ranker.batches import Request, group_requests
from preceptor.ranker.model import Ranker, load_ranker
from preceptor.ranker.score_stage import logit_rows
from preceptor.recipe import DistillConfig, PruneConfig, Recipe
from preceptor.recipes import find_recipe
from preceptor.record import Record, read_record
from preceptor.student.prune import prune
from preceptor.student.recover import recover
from preceptor.student.shapes import parameters_of
from preceptor_serve.engine.engine import Engine
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.student import make_student

UNPRUNED = "unpruned"
CONTROL = "recovery alone"


@dataclass(frozen=True, kw_only=True)
class Student:
    """A student's checkpoint, and the one of the same cut before it recovered."""

    name: str
    model: Path
    cut: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one student."""

    name: str
    outside_embeddings: int
    total: int
    ndcg: float
    change: Interval
    """Of NDCG@10 after recovery, as a share of the unpruned student's."""
    change_before: Interval | None
    """The same, before recovery."""
    documents_per_s: float


def points(num_layers: int, *, steps: int, num_pairs: int) -> dict[str, PruneConfig]:
    """The cuts to compare, by name; those of layers that the student has too few for are left out."""
    half = PruneConfig(mlp=0.5, recovery_steps=steps, num_pairs=num_pairs)
    nothing = replace(half, mlp=0.0, vocabulary="seen")
    third = round(num_layers / 3) / num_layers
    found = {
        "vocabulary": nothing,
        "mlp 25 %": replace(half, mlp=0.25),
        "mlp 50 %": half,
        "mlp 75 %": replace(half, mlp=0.75),
        "mlp 50 %, activation": replace(half, importance="activation"),
        "mlp 50 %, activation, uncorrected": replace(half, importance="activation", correction="none"),
        "mlp 50 %, random, uncorrected": replace(half, importance="random", correction="none"),
        "groups 1/3": replace(half, mlp=0.0, groups=1 / 3),
        "heads 1/3": replace(half, mlp=0.0, heads=1 / 3),
    }
    for gone in (1, 3):
        if gone < num_layers:
            only = replace(half, mlp=0.0, layers=gone / num_layers)
            found[f"layers -{gone}"] = only
            found[f"layers -{gone}, ablation"] = replace(only, layer_importance="ablation")
    if third:
        both = replace(half, layers=third)
        found["both: mlp 50 %, 1/3 of layers"] = both
        found["both, 3 rounds"] = replace(both, num_rounds=3)
        found["both, vocabulary too"] = replace(both, vocabulary="seen")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/demo"), help="a finished run (default: runs/demo)")
    parser.add_argument("--recipe", default="demo", help="its recipe (default: demo)")
    parser.add_argument("--version", default="v1", help="its version (default: v1)")
    parser.add_argument("--work", type=Path, help="where cuts are kept (default: ROOT/prune_curve)")
    parser.add_argument("--steps", type=int, help="recovery steps of each point (default: half of the student's)")
    parser.add_argument("--learning-rate", type=float, help="of recovery (default: a tenth of the student's)")
    parser.add_argument("--queries", type=int, help="held-out queries of a wider market (default: the run's golden)")
    parser.add_argument("--pairs", type=int, default=1024, help="calibration pairs (default: 1024)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only the points of these names")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the speed measurement (default: 7)")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples (default: 2000)")
    parser.add_argument("--quick", action="store_true", help="three points, three steps, one round: does it run at all")
    arguments = parser.parse_args()
    with errors_in_one_line():
        run_bench(arguments)


def run_bench(arguments: argparse.Namespace) -> None:
    """Cut, recover and measure what the arguments ask for, print the table and draw the plot."""
    recipe = find_recipe(arguments.recipe)
    lesson = recipe.distill
    student, corpus = (read_record(arguments.root / name / arguments.version) for name in ("distill", "corpus"))
    if student is None or corpus is None or lesson is None:
        raise SystemExit(f"{arguments.root}: no finished student of version {arguments.version}. Run its recipe first.")
    ranker, _ = load_ranker(student.path / "model")
    steps = 3 if arguments.quick else arguments.steps or max(lesson.train.num_steps // 2, 3)
    pairs = 64 if arguments.quick else arguments.pairs
    wanted = points(len(ranker.classifier.model.layers), steps=steps, num_pairs=pairs)
    wanted = {name: replace(config, learning_rate=arguments.learning_rate) for name, config in wanted.items()}
    names = ["mlp 50 %", "groups 1/3", "vocabulary"] if arguments.quick else arguments.only or list(wanted)
    require_known(names, wanted)
    chosen = {name: wanted[name] for name in names if possible(ranker, wanted[name])}
    if not chosen:
        raise InputError(f"{', '.join(names)}: this student has only one of what is cut there. Choose other points.")
    work = arguments.work or arguments.root / ("prune_curve_quick" if arguments.quick else "prune_curve")
    policy = sealed_by(recipe)
    if arguments.queries:
        with ray_cluster():
            corpus, policy = wide_market(recipe, num_queries=arguments.queries, work=work)
    golden = corpus.path / "golden"
    held_out = held_out_rows(golden, policy=policy, log=work / "openings.jsonl", why="students before and after a cut")
    students = make_students(chosen, lesson, student, work=work, recipe=recipe)
    num_bootstrap, rounds = (100, 1) if arguments.quick else (arguments.bootstrap, arguments.rounds)
    rows = measure(students, held_out, recipe, num_bootstrap=num_bootstrap, rounds=rounds)
    print(table(rows, steps=steps, num_pairs=pairs))
    print(f"\nplot: {plot(rows, work / 'prune_curve.png')}")


def possible(ranker: Ranker, config: PruneConfig) -> bool:
    """Whether the student has more than one of what is cut."""
    sizes = ranker.classifier.config
    groups = sizes.num_key_value_heads
    return not ((config.groups and groups == 1) or (config.heads and sizes.num_attention_heads == groups))


def make_students(
    chosen: Mapping[str, PruneConfig], lesson: DistillConfig, student: Record, *, work: Path, recipe: Recipe
) -> list[Student]:
    """The student as it is, trained on, and at every point."""
    some = next(iter(chosen.values()))
    ranker, _ = load_ranker(student.path / "model")
    whole = replace(student, metrics={"parameters": {"after": parameters_of(ranker)}})
    made = [Student(name=UNPRUNED, model=student.path / "model")]
    with ray_cluster():
        control = recover(
            replace(some, num_rounds=1),
            lesson,
            student=student,
            pruned=whole,
            storage=recipe.storage,
            out=place(work, CONTROL, "recover"),
        )
        made.append(Student(name=CONTROL, model=control.path / "model"))
        for name, config in chosen.items():
            print(f"{name} ...", flush=True)
            model = student
            for number in range(1, config.num_rounds + 1):
                pruned = prune(
                    config, student=student, model=model, round=number, out=place(work, name, f"prune_{number}")
                )
                model = recover(
                    config,
                    lesson,
                    student=student,
                    pruned=pruned,
                    round=number,
                    storage=recipe.storage,
                    out=place(work, name, f"recover_{number}"),
                )
            cut = pruned.path / "model" if config.num_rounds == 1 else None
            made.append(Student(name=name, model=model.path / "model", cut=cut))
    return made


def place(work: Path, name: str, stage: str) -> Path:
    """The directory of one stage of a point."""
    return work / slug(name) / stage / "v1"


def measure(
    students: Sequence[Student],
    held_out: Sequence[dict[str, Any]],
    recipe: Recipe,
    *,
    num_bootstrap: int,
    rounds: int,
) -> list[Row]:
    """A row for each student, the unpruned one first, on the GOLDEN rows `held_out`."""
    print(f"{len(held_out)} held-out pairs ...", flush=True)
    found = {student.name: list_ndcg(student.model, held_out) for student in students}
    before = {student.name: list_ndcg(student.cut, held_out) for student in students if student.cut is not None}
    base = found[UNPRUNED]
    speeds = measure_speed(students, [request for request, _ in group_requests(held_out)][:40], recipe, rounds=rounds)
    rows = []
    for student in students:
        sizes = parameters_of(load_ranker(student.model)[0])
        earlier = before.get(student.name)
        rows.append(
            Row(
                name=student.name,
                outside_embeddings=sizes["outside_embeddings"],
                total=sizes["total"],
                ndcg=float(np.concatenate([*found[student.name].values()]).mean()),
                change=change(found[student.name], base, num=num_bootstrap),
                change_before=change(earlier, base, num=num_bootstrap) if earlier is not None else None,
                documents_per_s=speeds[student.name],
            )
        )
    return rows


def list_ndcg(model: Path, held_out: Sequence[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """By query the NDCG@10 of each of its lists that hold a positive grade."""
    ranker, tokenizer = load_ranker(model)
    logits = {
        row["pair_id"]: row["logits"]
        for row in logit_rows(ranker, tokenizer, held_out, block="")
        if row["head"] == OVERALL
    }
    lists: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for row in held_out:
        lists.setdefault((row["query_id"], row["profile_id"]), []).append((row["grade"], row["pair_id"]))
    found: dict[str, list[float]] = {}
    for (query, _), rows in lists.items():
        grades = [grade for grade, _ in rows]
        if max(grades) > 0:
            scores = expected_gain(np.array([logits[pair_id] for _, pair_id in rows], dtype=np.float64))
            found.setdefault(query, []).append(ndcg_at(grades, scores))
    return {query: np.array(values) for query, values in found.items()}


def change(
    after: Mapping[str, NDArray[np.float64]], before: Mapping[str, NDArray[np.float64]], *, num: int
) -> Interval:
    """Mean NDCG of `after` over that of `before`, less 1: both see the same resamples of queries."""

    def share(drawn: Sequence[str]) -> float:
        means = [float(np.concatenate([system[query] for query in drawn]).mean()) for system in (after, before)]
        return means[0] / means[1] - 1

    return bootstrap(share, sorted(before), num=num, seed=11)


def measure_speed(
    students: Sequence[Student], requests: Sequence[Request], recipe: Recipe, *, rounds: int
) -> dict[str, float]:
    """Documents a second of each student's engine, one request after the other: medians over `rounds`, taking turns."""
    options = EngineOptions(
        threads=os.cpu_count() or 1, score_cache_mib=0, prefix_cache_mib=0, token_cache_mib=0, precision="bfloat16"
    )
    engines = {student.name: engine_of(student.model, recipe, options) for student in students}
    try:
        return documents_per_s(engines, requests, rounds=rounds)
    finally:
        for engine in engines.values():
            engine.close()


def engine_of(model: Path, recipe: Recipe, options: EngineOptions) -> Engine:
    """The serving engine around a checkpoint that is not in a bundle yet."""
    assert recipe.distill is not None
    ranker, tokenizer = load_ranker(model)
    limits = ranker.limits
    reader = Reader(
        path=model,
        bundle_id=str(model),
        policy_version=ranker.policy_version or "none",
        blend=recipe.distill.blend,
        known_answers=(),
        heads=ranker.heads,
        max_prefix_tokens=limits.max_prefix_tokens,
        max_document_tokens=limits.max_document_tokens,
        tokenizer=tokenizer,
    )
    longest = limits.max_prefix_tokens + limits.max_document_tokens
    return Engine(reader, make_student(ranker.classifier, precision=options.precision, max_tokens=longest), options)


def table(rows: Sequence[Row], *, steps: int, num_pairs: int) -> str:
    """The rows as a Markdown table."""
    first = rows[0]
    lines = [
        f"{num_pairs} calibration pairs, {steps} recovery steps, {first.change.num_groups} held-out queries",
        "",
        "| student | parameters outside embeddings | share | in all, share | NDCG@10 | change after recovery "
        "| before it | documents/s | times |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = (
            row.name,
            f"{row.outside_embeddings / 1e6:.2f} M",
            f"{row.outside_embeddings / first.outside_embeddings:.0%}",
            f"{row.total / first.total:.0%}",
            f"{row.ndcg:.4f}",
            percent(row.change, "{:+.1%}"),
            percent(row.change_before, "{:+.1%}"),
            f"{row.documents_per_s:,.0f}",
            f"{row.documents_per_s / first.documents_per_s:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], file: Path) -> Path:
    """`file`, after drawing the change of NDCG against parameters and against speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    sides = (
        (axes[0], [row.outside_embeddings / 1e6 for row in rows], "parameters outside embeddings, millions"),
        (axes[1], [row.documents_per_s for row in rows], "documents/s, serving engine, bfloat16"),
    )
    for axis, places, label in sides:
        for row, place_x in zip(rows, places, strict=True):
            value, low, high = (100 * part for part in (row.change.value, row.change.low, row.change.high))
            axis.errorbar(place_x, value, [[max(value - low, 0)], [max(high - value, 0)]], fmt="o", capsize=3)
            axis.annotate(row.name, (place_x, value), (5, 4), textcoords="offset points", fontsize=7)
        axis.axhline(-1, linestyle=":", color="grey")
        axis.set_xlabel(label)
    axes[0].set_ylabel("NDCG@10, % of the unpruned student's, change")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file


if __name__ == "__main__":
    main()
