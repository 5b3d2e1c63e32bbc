"""Whether labelling stays as fast, and its driver as small, from 10^4 to 10^6 rows: a stub engine of fixed latency.

    .venv/bin/python bench/label_scale.py

Each size runs in a process of its own, smallest first, round after round. A row is a pair and a dimension; "steady" is
the second half of the rows, when all actors are there. Pairs are synthetic, the stub's grades come from a hash.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import preceptor  # noqa: F401  # Before pyarrow, whose allocator it chooses, as every command does.

# isort: split
import pyarrow as pa

from preceptor.contracts import PAIRS, make_pair, rows_to_table
from preceptor.judge import FakeJudge
from preceptor.judge.pool import lay_pool
from preceptor.judge.replies import Usage, Workers
from preceptor.judge.shards import judge_pool
from preceptor.judge.watch import Watch
from preceptor.local_ray import ray_cluster
from preceptor.policy import load_policy
from preceptor.recipe import POLICY_DIR
from preceptor.record import begin

DIMENSIONS = ("role", "skills", "place", "pay")
SIZES = (10_000, 100_000, 1_000_000)


class Clock:
    """Stands where a Watch does and notes when how many rows had come in."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def follow(self, stage: str, standing: object) -> None:
        return

    def leave(self, stage: str) -> None:
        return

    def count(self, *, stage: str, judge: str, num_rows: int, rejected: Mapping[str, int], usage: Usage) -> None:
        before = self.seen[-1][1] if self.seen else 0
        self.seen.append((time.monotonic(), before + num_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="sizes (default: 10^4, 10^5, 10^6 rows)")
    parser.add_argument("--latency-s", type=float, default=0.1, help="seconds a block takes the stub (default: 0.1)")
    parser.add_argument("--pairs-per-block", type=int, default=64)
    parser.add_argument("--actors", type=int, default=4, help="stub engines (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the medians are over them (default: 3)")
    parser.add_argument("--one", type=int, metavar="ROWS", help="measure this size here and print JSON")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measured(arguments.one, arguments)))
        return
    found: dict[int, list[dict[str, float]]] = {size: [] for size in arguments.rows}
    for number in range(arguments.rounds):
        for size, runs in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", str(size)]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                sys.exit(ran.stderr)
            runs.append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {size:,} rows: {runs[-1]}", flush=True)
    print(f"\nmedian of {arguments.rounds} rounds")
    first = statistics.median(run["rows_per_s"] for run in found[arguments.rows[0]])
    for size, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{size:>9,} rows: {middle['rows_per_s']:,.0f} rows/s steady ({middle['rows_per_s'] / first:.3f} of the "
            f"smallest), driver {middle['driver_gib']:.2f} GiB at most, pool laid out in {middle['lay_s']:.1f} s, "
            f"{middle['total_s']:.1f} s in all, {middle['num_shards']:.0f} shards"
        )


def measured(num_rows: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Figures of labelling `num_rows` rows."""
    num_pairs = num_rows // len(DIMENSIONS)
    policy = load_policy(POLICY_DIR)
    judge = FakeJudge(
        dimensions=DIMENSIONS,
        workers=Workers(num_actors=arguments.actors, cpus=0.1),
        latency_s=arguments.latency_s,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        out = Path(folder) / "label" / "v1"
        run = begin("label", {"num_rows": num_rows}, out=out)
        started_s = time.monotonic()
        pool = lay_pool(pairs(num_pairs), out / "pool", num_pairs=num_pairs, pairs_per_block=arguments.pairs_per_block)
        laid_s, laid_gib = time.monotonic(), peak_gib()
        tally = judge_pool(judge, pool, run=run, policy=policy, max_reject_share=0.0, watch=cast(Watch, clock))
        ended_s = time.monotonic()
    assert tally.num_asked == num_pairs * len(DIMENSIONS), tally
    num_last = clock.seen[-1][1]
    half_s, num_half = next(seen for seen in clock.seen if seen[1] >= num_last / 2)
    return {
        "rows_per_s": (num_last - num_half) / (ended_s - half_s),
        "rows_per_s_with_start": num_last / (ended_s - laid_s),
        "driver_gib": peak_gib(),
        "driver_gib_laid": laid_gib,
        "lay_s": laid_s - started_s,
        "total_s": ended_s - started_s,
        "num_shards": len(pool.shards),
    }


def peak_gib() -> float:
    """The most memory this process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def pairs(num: int) -> Iterator[pa.Table]:
    """PAIRS of about 700 characters, eight documents to a query."""
    profile, posting = "A welder of ten years' standing in Leeds. " * 6, "Welds pressure vessels on site. " * 12
    for start in range(0, num, 8192):
        rows = (
            make_pair(f"welder {n // 8}", profile, f"Posting {n}. {posting}", slice="stub", split="train")
            for n in range(start, min(start + 8192, num))
        )
        yield rows_to_table(rows, PAIRS)


if __name__ == "__main__":
    main()
