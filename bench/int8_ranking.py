"""How a finished run's bundle ranks in int8 beside bfloat16: on its held-out golden pairs, and in the gate's own eyes.

    make demo && .venv/bin/python -m bench.int8_ranking --root runs/demo

NDCG@10 is of the head 'overall', as grades 0 to 4 expect it, over each query's list; the change is paired, with a
bootstrap interval over queries. "told apart" are pairs of one list whose scores differ by more than engines may. Speed
is of the engine, its caches off, medians of rounds in turn.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.peers.held_out import documents_per_s, held_out_rows, sealed_by
from bench.peers.one_line import errors_in_one_line
from bench.peers.sweep_report import percent
from bench.prune_curve import change
from preceptor.evaluation.metrics import gain, ndcg_at
from preceptor.ranker.batches import group_requests
from preceptor.recipes import find_recipe
from preceptor.record import read_record
from preceptor_serve.engine.engine import Engine
from preceptor_serve.engine.gate import RankedRequest, RankingGap, probe_requests, ranking_gap
from preceptor_serve.engine.loading import load_parts, make_engine
from preceptor_serve.engine.options import EngineOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/demo"), help="a finished run (default: runs/demo)")
    parser.add_argument("--recipe", default="demo", help="its recipe (default: demo)")
    parser.add_argument("--version", default="v1", help="its version (default: v1)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed measurement (default: 5)")
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples (default: 2000)")
    arguments = parser.parse_args()
    with errors_in_one_line():
        run_bench(arguments)


def run_bench(arguments: argparse.Namespace) -> None:
    """Rank the held-out lists in both precisions and print how they differ."""
    corpus, exported = (read_record(arguments.root / name / arguments.version) for name in ("corpus", "export"))
    if corpus is None or exported is None:
        raise SystemExit(f"{arguments.root}: no finished bundle of version {arguments.version}. Run its recipe first.")
    policy = sealed_by(find_recipe(arguments.recipe))
    lists = held_out_lists(corpus.path / "golden", policy=policy, log=arguments.root / "openings.jsonl")
    requests = [request for request, _, _ in lists]
    reader, weights = load_parts(exported.path / "bundle")
    options = EngineOptions(
        threads=os.cpu_count() or 1, score_cache_mib=0, prefix_cache_mib=0, token_cache_mib=0, precision="bfloat16"
    )
    with (
        closing(make_engine(reader, weights, options)) as bfloat16,
        closing(make_engine(reader, weights, replace(options, precision="int8"))) as int8,
    ):
        gate = ranking_gap(bfloat16, int8, probe_requests())
        print(f"gate, {told(gate)}: {'passed' if gate.within_bounds else 'refused'}")
        print(f"held out, {told(ranking_gap(bfloat16, int8, requests))}")
        found = {name: ndcg(engine, lists) for name, engine in (("bfloat16", bfloat16), ("int8", int8))}
        means = {name: float(np.concatenate([*values.values()]).mean()) for name, values in found.items()}
        lost = change(found["int8"], found["bfloat16"], num=arguments.bootstrap)
        print(
            f"NDCG@10 of {len(lists)} lists of {len(found['int8'])} queries: bfloat16 {means['bfloat16']:.4f}, "
            f"int8 {means['int8']:.4f}: {percent(lost, '{:+.2%}')}"
        )
        speeds = documents_per_s({"bfloat16": bfloat16, "int8": int8}, requests, rounds=arguments.rounds)
        print(", ".join(f"{name} {documents:,.0f} documents/s" for name, documents in speeds.items()))


def held_out_lists(golden: Path, *, policy: Path | None, log: Path) -> list[tuple[RankedRequest, str, list[int]]]:
    """Each held-out (query, profile) list with a positive grade: its request, its query's id, its grades."""
    rows = held_out_rows(golden, policy=policy, log=log, why="int8 beside bfloat16")
    row_of = {row["pair_id"]: row for row in rows}
    found = []
    for request, pair_ids in group_requests(rows):
        grades = [row_of[pair_id]["grade"] for pair_id in pair_ids]
        if max(grades) > 0:
            ranked = RankedRequest(query=request.query, profile=request.profile, documents=request.documents)
            found.append((ranked, row_of[pair_ids[0]]["query_id"], grades))
    return found


def told(gap: RankingGap) -> str:
    """`gap` in words."""
    return (
        f"{gap.num_swapped} of {gap.num_pairs:,} pairs ({gap.swapped:.2%}) the other way round, of those told apart "
        f"{gap.num_telling_swapped} of {gap.num_telling:,} ({gap.telling_swapped:.2%}); scores differ by "
        f"{gap.largest_score_gap:.4f} at most"
    )


def ndcg(engine: Engine, lists: Sequence[tuple[RankedRequest, str, list[int]]]) -> Mapping[str, NDArray[np.float64]]:
    """By query the NDCG@10 of each of its lists."""
    found: dict[str, list[float]] = {}
    for request, query, grades in lists:
        scores = engine.score_afresh(request.query, request.profile, request.documents)
        expected = np.array([score.grade_probs for score in scores]) @ gain(np.arange(len(scores[0].grade_probs)))
        found.setdefault(query, []).append(ndcg_at(grades, expected))
    return {query: np.array(values) for query, values in found.items()}


if __name__ == "__main__":
    main()
