"""How well a worklist tells its three causes apart: faults put into the shipped golden set, with known truth.

    .venv/bin/python bench/worklist_sorting.py

Golden is constructed (market-truth); the judge is simulated, right but for what is put in: on the first dimension
golden and judge pick grade 2 or 3 by chance where either is true, and the judge wavers (policy unclear); on the third
it is 2 too low in one slice, and sure (judge wrong); of the rest 2 in 100 golden labels are redrawn (label wrong), and
on a share of the others the judge is one off and less sure than usual (judge wrong). Chance is a cause's share of all.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

import pyarrow as pa

from preceptor.contracts import GOLDEN, LABELS, OVERALL, rows_to_table
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR
from preceptor.refine import Cause, worklist
from preceptor.refine.neighbours import embedding
from preceptor.refine.sample import load_calibration

Key = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="draws of the faults (default: 5)")
    parser.add_argument("--noise", type=float, nargs="+", default=(0.0, 0.05, 0.12), help="shares of near misses")
    parser.add_argument("--embedding", choices=("minilm", "tfidf"), default="tfidf")
    arguments = parser.parse_args()
    policy = load_policy(POLICY_DIR)
    golden = load_calibration(policy)
    _, embed = embedding(arguments.embedding)
    print("| near misses | probabilities | cause | precision | recall | chance | cases |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    started_s = time.monotonic()
    for noise in arguments.noise:
        for kind in ("soft", "one-hot"):
            counts: Counter[tuple[Cause, Cause]] = Counter()
            for seed in range(arguments.seeds):
                faulty, labels, causes = with_faults(golden, policy.rubric.names, seed=seed, noise=noise, kind=kind)
                tasks = worklist(faulty, labels, policy.rubric, embed=embed)
                counts.update(
                    (causes[task.disagreement.pair["pair_id"], task.disagreement.dimension], task.cause)
                    for task in tasks
                )
            for cause in Cause:
                num_true = sum(num for (true, _), num in counts.items() if true is cause)
                num_said = sum(num for (_, said), num in counts.items() if said is cause)
                hits = counts[cause, cause]
                print(
                    f"| {noise:.0%} | {kind} | {cause} | {hits / max(num_said, 1):.2f} | {hits / max(num_true, 1):.2f} "
                    f"| {num_true / counts.total():.2f} | {num_true} |"
                )
    print(f"{time.monotonic() - started_s:.0f} s, embedding {arguments.embedding}")


def with_faults(
    golden: pa.Table, names: tuple[str, ...], *, seed: int, noise: float, kind: str
) -> tuple[pa.Table, pa.Table, dict[Key, Cause]]:
    """Golden and a judge's labels with faults put in, and what each disagreement comes from."""
    rng = random.Random(seed)
    blurred, broken = names[0], names[2 % len(names)]
    rows = [row for row in golden.to_pylist() if row["dimension"] != OVERALL]
    slice_ = min(row["slice"] for row in rows)
    graded, labels, causes = [], [], {}
    for row in rows:
        truth = row["grade"]
        given, judged, confidence, cause = truth, truth, rng.uniform(0.75, 0.98), None
        if row["dimension"] == blurred and truth in (2, 3):
            given, judged, cause = rng.choice((2, 3)), rng.choice((2, 3)), Cause.POLICY
            confidence = rng.uniform(0.5, 0.62)
        elif row["dimension"] == broken and row["slice"] == slice_ and truth >= 2:
            judged, cause = truth - 2, Cause.JUDGE
        elif rng.random() < 0.02:
            given, cause = rng.choice([grade for grade in range(5) if grade != truth]), Cause.LABEL
        elif rng.random() < noise:
            judged, cause, confidence = truth + (1 if truth < 4 else -1), Cause.JUDGE, rng.uniform(0.45, 0.8)
        probs = [(1 - confidence) / 4] * 5
        if cause is Cause.POLICY:
            probs = [0.01] * 5
            probs[5 - judged] = 0.97 - confidence
        probs[judged] = confidence
        if kind == "one-hot":
            probs = [float(grade == judged) for grade in range(5)]
        graded.append({**row, "grade": given})
        labels.append(
            {
                **{"pair_id": row["pair_id"], "dimension": row["dimension"], "grade": judged, "label_mass": 1.0},
                **{"rationale": None, "judge_id": "simulated", "policy_version": "", "prompt_hash": ""},
                "probs": [prob / sum(probs) for prob in probs],
            }
        )
        if given != judged and cause is not None:
            causes[row["pair_id"], row["dimension"]] = cause
    return rows_to_table(graded, GOLDEN), rows_to_table(labels, LABELS), causes


if __name__ == "__main__":
    main()
