"""What lesson the job-matching student keeps most by, on calibration queries alone: dev is not looked at.

    python -m bench.jobmatch_student --root DIR [--students NAME ...] [--seeds N]
    python -m bench.jobmatch_student --root DIR --dev

DIR holds a finished `preceptor run jobmatch`. Every student is distilled from the run's own stored scores, with one
thing of its lesson changed (--students; default: the recipe's own and all others), and reads the calibration queries'
first candidates. Measured beside both teachers:

- NDCG@10 of the real judgements, and what is kept of the relevance teacher's;
- AUC of clicks, and what is kept of the engagement teacher's. The simulation knows each pair's probability of a click,
  and the AUC is over these, as over infinitely many requests: no draw of clicks blurs it. `within` is of the pairs of
  one query alone, `lent` what would be kept if each query's mean log-odds were the teacher's;
- agreement, which needs no truth: NDCG@10 of the teacher's expected gains in the student's order, and the rank
  correlation of both teachers' scores with the student's.

Intervals of 95 %, over occupations. What is finished under --work is not done again. With --dev nothing is taught or
chosen: the run's own student is measured once more, on its held-out queries, without the draw of clicks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import spearmanr

from bench.distill_sweep import teach
from bench.peers.ground import Run, own_pool
from bench.peers.lessons import seeded
from bench.peers.one_line import errors_in_one_line
from bench.peers.points import require_known, slug
from preceptor.contracts import GOLDEN, OVERALL, read_table
from preceptor.evaluation.holdout import Predictions, expected_gain
from preceptor.evaluation.metrics import Floats, Interval, auc, mean_ndcg, ndcg_at, retention, rows_by_group, within_auc
from preceptor.evaluation.sheets import interval_words
from preceptor.local_ray import ray_cluster
from preceptor.ranker.model import load_ranker
from preceptor.ranker.score_stage import collect_pairs, logit_rows
from preceptor.recipe import DistillConfig, PairSet
from preceptor.recipes import jobmatch
from preceptor.record import Record
from preceptor.sources.simulated_clicks import appeal, click_prob
from preceptor.sources.tables import CANDIDATES, QUERIES
from preceptor.teachers.linear_stage import calibrated_logits

OWN: Final = "own"


def students(own: DistillConfig) -> dict[str, DistillConfig]:
    """The lessons that can be compared, by name: the recipe's own, and `own` with one thing changed."""

    def steps(num: int) -> DistillConfig:
        return replace(own, train=replace(own.train, num_steps=num))

    slower = replace(
        own.train,
        learning_rate=own.train.learning_rate / 2,
        head_learning_rate=own.train.head_learning_rate / 2,
    )
    return {
        OWN: own,
        "no differences": replace(own, margin=0.0, action_margin=0.0, action_mse=0.0),
        "margin 0.3": replace(own, margin=0.3),
        "action_margin 0": replace(own, action_margin=0.0),
        "action_margin 2": replace(own, action_margin=2.0),
        "action_mse 0": replace(own, action_mse=0.0),
        "action_mse 1": replace(own, action_mse=1.0),
        "action_mse 3": replace(own, action_mse=3.0),
        "listnet 0.3": replace(own, listnet=0.3),
        "half the steps": steps(own.train.num_steps // 2),
        "twice the steps": steps(own.train.num_steps * 2),
        "half the rate": replace(own, train=slower),
        "twice the requests": replace(own, train=replace(own.train, groups_per_step=own.train.groups_per_step * 2)),
    }


Metric = Callable[[np.ndarray], float]
"""What is measured with a weight for each pair."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a model says of N pairs: the expected gain of its grades, and its log-odds of a click."""

    gains_N: Floats
    clicks_N: Floats


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The pairs of one split with what is known of them: real grades, the simulation's click probabilities, and what
    the teachers say."""

    pairs: Sequence[dict[str, str]]
    occupations: Sequence[str]
    grades_N: Floats
    click_probs_N: Floats
    teachers: Heard

    @cached_property
    def queries_N(self) -> np.ndarray:
        """A number for the query of each pair."""
        names = [f"{pair['query_id']}/{pair['profile_id']}" for pair in self.pairs]
        return np.unique(names, return_inverse=True)[1]

    @cached_property
    def occupations_N(self) -> np.ndarray:
        """A number for the occupation of each pair."""
        return np.unique(self.occupations, return_inverse=True)[1]

    def kept(self, ours: Metric, theirs: Metric, *, num: int) -> Interval:
        """One metric over the other, each of the weights that a draw of occupations gives the pairs."""
        num_occupations = int(self.occupations_N.max()) + 1

        def drawn(metric: Metric) -> Callable[[Sequence[int]], float]:
            return lambda picks: metric(np.bincount(picks, minlength=num_occupations)[self.occupations_N])

        return retention(drawn(ours), drawn(theirs), range(num_occupations), num=num, seed=11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a finished run of the recipe jobmatch")
    parser.add_argument("--version", default="v1", help="its version (default: v1)")
    parser.add_argument("--work", type=Path, help="where students are kept (default: ROOT/jobmatch_student)")
    parser.add_argument("--students", nargs="*", metavar="NAME", help="of these names (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="students of each lesson (default: 1)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples (default: 1000)")
    parser.add_argument("--dev", action="store_true", help="the run's own student on held-out queries, to report it")
    parser.add_argument("--quick", action="store_true", help="two steps, own alone: shows that it runs, no figure")
    arguments = parser.parse_args()
    with errors_in_one_line():
        run_bench(arguments)


def run_bench(arguments: argparse.Namespace) -> None:
    """Teach and measure what the arguments ask for, a line of the table as soon as it is known."""
    recipe = jobmatch()
    assert recipe.distill is not None
    own = recipe.distill
    if arguments.quick:
        own = replace(own, train=replace(own.train, num_steps=2))
    lessons = students(own)
    names = [OWN] if arguments.quick else arguments.students or list(lessons)
    require_known(names, lessons)
    run = Run(recipe=recipe, root=arguments.root, version=arguments.version)
    work = arguments.work or arguments.root / ("jobmatch_student_quick" if arguments.quick else "jobmatch_student")
    num = 50 if arguments.quick else arguments.bootstrap
    ground = ground_of(run, "golden holdout" if arguments.dev else "golden calibration")
    print("| student | seed | NDCG@10 | kept | click AUC | kept | within | lent | agreement | grades | clicks |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print(f"| both teachers | | {row(ground, ground.teachers, num=num)} |", flush=True)
    if arguments.dev:
        student = run.record("distill")
        print(f"| {OWN} | {own.train.seed} | {row(ground, hear_student(student, ground.pairs), num=num)} |")
        return
    pool = own_pool(run)
    with ray_cluster():
        for name in names:
            for seed in range(arguments.seeds):
                config = seeded(lessons[name], seed)
                finished = run.root / "distill" / run.version if name == OWN and seed == 0 else None
                student = teach(run, pool, config, place=work / slug(name), finished=finished)
                heard = hear_student(student, ground.pairs)
                print(f"| {name} | {config.train.seed} | {row(ground, heard, num=num)} |", flush=True)


def ground_of(run: Run, split: PairSet) -> Ground:
    """The run's pairs of `split`."""
    pairs = collect_pairs(run.corpus, [split])
    golden = read_table(run.corpus.path / "golden", GOLDEN).to_pylist()
    grades = {item["pair_id"]: item["grade"] for item in golden if item["dimension"] == OVERALL}
    candidates = read_table(run.corpus.path / "candidates", CANDIDATES).to_pylist()
    postings = {item["pair_id"]: item["document_key"] for item in candidates}
    queries = read_table(run.corpus.path / "queries", QUERIES).to_pylist()
    occupations = {item["query_id"]: item["occupation"] for item in queries}
    ids = [pair["pair_id"] for pair in pairs]
    return Ground(
        pairs=pairs,
        occupations=[occupations[pair["query_id"]] for pair in pairs],
        grades_N=np.array([grades[name] for name in ids], dtype=np.float64),
        click_probs_N=np.array([click_prob(grades[name], appeal(postings[name])) for name in ids]),
        teachers=hear_teachers(run, pairs),
    )


def hear_teachers(run: Run, pairs: Sequence[dict[str, str]]) -> Heard:
    """What the run's relevance teacher has stored of `pairs`, and what its linear engagement teacher says of them."""
    stored = Predictions(file=run.record("relevance_scores").path / "scores")
    grades = stored.of(OVERALL, pa.chunked_array([[pair["pair_id"] for pair in pairs]]))
    clicks = calibrated_logits(run.record("engagement_teacher").path / "model", pairs)
    return Heard(gains_N=expected_gain(grades), clicks_N=clicks["click"])


def hear_student(student: Record, pairs: Sequence[dict[str, str]]) -> Heard:
    """What the student says of `pairs`, computed in float32 in this process."""
    ranker, tokenizer = load_ranker(student.path / "model", dtype=torch.float32)
    logits: dict[tuple[str, str], list[float]] = {}
    for found in logit_rows(ranker, tokenizer, pairs, block=""):
        logits[found["pair_id"], found["head"]] = found["logits"]
    ids = [pair["pair_id"] for pair in pairs]
    return Heard(
        gains_N=expected_gain(np.array([logits[name, OVERALL] for name in ids])),
        clicks_N=np.array([logits[name, "click"][0] for name in ids]),
    )


def row(ground: Ground, heard: Heard, *, num: int) -> str:
    """The cells of the table for what one model says."""
    teachers = ground.teachers
    clicks = clicks_kept(ground, heard.clicks_N, num=num)
    cells = (
        f"{mean_ndcg(_lists(ground, ground.grades_N, heard.gains_N)):.3f}",
        " ".join(interval_words(ndcg_kept(ground, heard.gains_N, num=num))),
        f"{auc(ground.click_probs_N, heard.clicks_N):.4f}",
        " ".join(interval_words(clicks)),
        f"{within_auc(ground.click_probs_N, heard.clicks_N, ground.queries_N):.4f}",
        f"{clicks_kept(ground, lent_means(ground, heard.clicks_N), num=0).value:.3f}",
        f"{agreement(ground, heard.gains_N):.3f}",
        f"{spearmanr(teachers.gains_N, heard.gains_N).statistic:.3f}",
        f"{spearmanr(teachers.clicks_N, heard.clicks_N).statistic:.3f}",
    )
    return " | ".join(cells)


def ndcg_kept(ground: Ground, gains_N: Floats, *, num: int) -> Interval:
    """NDCG@10 over the relevance teacher's, over the same queries."""
    firsts = [rows[0] for rows in rows_by_group(ground.queries_N)]
    ours, theirs = (
        np.array([ndcg_at(*each) for each in _lists(ground, ground.grades_N, found)])
        for found in (gains_N, ground.teachers.gains_N)
    )
    judged = ~np.isnan(theirs)

    def mean(values_Q: Floats) -> Metric:
        return lambda weights_N: float(np.average(values_Q[judged], weights=weights_N[firsts][judged]))

    return ground.kept(mean(ours), mean(theirs), num=num)


def agreement(ground: Ground, gains_N: Floats) -> float:
    """NDCG@10 where the truth is what the relevance teacher expects to gain."""
    # ndcg_at takes grades, and a gain is 2^grade - 1.
    return mean_ndcg(_lists(ground, np.log2(1 + ground.teachers.gains_N), gains_N))


def clicks_kept(ground: Ground, clicks_N: Floats, *, num: int) -> Interval:
    """AUC over click probabilities, over the engagement teacher's."""

    def measured(logits_N: Floats) -> Metric:
        return lambda weights_N: auc(ground.click_probs_N, logits_N, weights_N)

    return ground.kept(measured(clicks_N), measured(ground.teachers.clicks_N), num=num)


def lent_means(ground: Ground, clicks_N: Floats) -> Floats:
    """The log-odds, each query's moved to have the engagement teacher's mean."""
    moved_N = clicks_N.copy()
    for rows in rows_by_group(ground.queries_N):
        moved_N[rows] += ground.teachers.clicks_N[rows].mean() - clicks_N[rows].mean()
    return moved_N


def _lists(ground: Ground, grades_N: Floats, scores_N: Floats) -> Iterator[tuple[Floats, Floats]]:
    """The grades and scores of each query."""
    return ((grades_N[rows], scores_N[rows]) for rows in rows_by_group(ground.queries_N))


if __name__ == "__main__":
    main()
