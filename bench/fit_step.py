"""Pairs a second of our training step against sentence-transformers' CrossEncoder trainer, in turn, in rounds.

    .venv/bin/python -m bench.fit_step

The same weights, pairs, order, batch, loss and precision; one process a trainer and round, so that none warms another's
caches. "padded" is our loop with a padded row for each pair, "recomputed" ours with activations computed again. Prints
a table, with the share of the machine's best matrix-multiply rate, and rows for bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from bench.peers.arithmetic import matmul_rate
from bench.peers.fitting import TRAINERS, Timed, Work, make_groups
from preceptor.contracts import OVERALL
from preceptor.precision import computed_in
from preceptor.ranker.backbones import resolve_backbone
from preceptor.ranker.batches import EncodedRequest, Request, encode
from preceptor.ranker.model import grade_heads, init_ranker
from preceptor.recipe import BackboneConfig

PEER = "sentence-transformers"
MOST_APART = 0.02
"""Of two first losses, as a share of the larger."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--layers", type=int, default=10, help="lowest layers (default: 10, of 30)")
    parser.add_argument("--prefix-tokens", type=int, default=96)
    parser.add_argument("--document-tokens", type=int, nargs=2, default=(64, 160), metavar=("LEAST", "MOST"))
    parser.add_argument("--documents", type=int, default=8, help="documents a group (default: 8)")
    parser.add_argument("--groups", type=int, default=2, help="groups a step (default: 2)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a trainer in a round (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the medians are over them (default: 3)")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=("shared", "padded", PEER))
    parser.add_argument("--quick", action="store_true", help="a smoke test: the tiny random model, 2 steps, 1 round")
    given = parser.parse_args()
    if given.quick:
        given.backbone, given.layers, given.steps, given.rounds = "random-tiny", 4, 2, 1
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Times every trainer in every round and prints what came of it."""
    num_warm = 2
    limits = BackboneConfig(
        source=given.backbone, num_layers=given.layers, max_prefix_tokens=4096, max_document_tokens=4096
    )
    ranker, tokenizer = init_ranker(limits, resolve_backbone(given.backbone), grade_heads([OVERALL]))
    ranker.save(folder / "model", tokenizer)
    rows = make_groups(
        given.groups * (num_warm + given.steps),
        prefix_tokens=given.prefix_tokens,
        document_tokens=tuple(given.document_tokens),
        documents_per_group=given.documents,
        seed=7,
    )
    (folder / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = AutoConfig.from_pretrained(folder / "model")
    rate = matmul_rate(config, rows=2048)
    timed = [encode(_request(row), tokenizer, limits) for row in rows[num_warm * given.groups :]]
    flops = {name: _step_flops(timed, config, name, num_steps=given.steps) for name in given.trainers}
    found: dict[str, list[Timed]] = {name: [] for name in given.trainers}
    for number in range(given.rounds):
        for name in given.trainers:
            work = Work(
                trainer=name,
                model=str(folder / "model"),
                groups=str(folder / "groups.jsonl"),
                groups_per_step=given.groups,
                documents_per_group=given.documents,
                num_warm=num_warm,
                num_timed=given.steps,
                precision=given.precision,
            )
            found[name].append(_timed(work, folder / "work.json"))
            seconds = found[name][-1].seconds / given.steps
            print(f"round {number + 1}: {name}: {seconds:.3f} s a step, first loss {found[name][-1].first_loss:.4f}")
    _require_same(found)
    _print(given, found, flops, rate)


def _require_same(found: dict[str, list[Timed]]) -> None:
    """Ends the bench where trainers' first losses differ by more than bfloat16 rounds: they would not do the same."""
    losses = {name: timed[0].first_loss for name, timed in found.items()}
    if max(losses.values()) - min(losses.values()) > MOST_APART * max(losses.values()):
        said = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        sys.exit(f"first losses of the same weights and pairs differ by more than {MOST_APART:.0%}: {said}.")


def _request(row: dict[str, Any]) -> Request:
    return Request(query=row["query"], profile=row["profile"], documents=tuple(row["documents"]))


def _timed(work: Work, file: Path) -> Timed:
    file.write_text(json.dumps(asdict(work)))
    command = [sys.executable, "-m", "bench.peers.fitting", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "TQDM_DISABLE": "1"})
    if done.returncode:
        sys.exit(f"{work.trainer}: ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Timed(**json.loads(file.with_suffix(".out").read_text()))


def _step_flops(requests: Sequence[EncodedRequest], config: Any, name: str, *, num_steps: int) -> float:
    """Operations of a mean timed step: of the prefix once where it is shared, else of every pair; padding is none."""
    if name in ("padded", PEER):
        requests = [EncodedRequest(prefix=item.prefix, documents=(one,)) for item in requests for one in item.documents]
    # Backward multiplies twice for every product of forward. Recomputed products are none of the model's.
    return 3 * sum(forward_flops(config, item) for item in requests) / num_steps


def forward_flops(config: Any, request: EncodedRequest) -> float:
    """Floating-point operations of a request through every layer, two for a multiply-add, the prefix computed once.

    Embedding, norms, rotation, softmax and the few score rows count as nothing.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    width = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    linear = 2 * hidden * (2 * queries + 2 * keys + 3 * inner)
    prefix, lengths = len(request.prefix), [len(document) for document in request.documents]
    seen = prefix * (prefix + 1) / 2 + sum(length * prefix + length * (length + 1) / 2 for length in lengths)
    return float(config.num_hidden_layers * (request.num_tokens * linear + 4 * queries * seen))


def _print(given: argparse.Namespace, found: dict[str, list[Timed]], flops: dict[str, float], rate: float) -> None:
    num_pairs = given.groups * given.documents
    speeds = {name: [given.steps * num_pairs / one.seconds for one in timed] for name, timed in found.items()}
    medians = {name: statistics.median(speed) for name, speed in speeds.items()}
    first = next(iter(medians))
    print(
        f"\nmedians of {given.rounds} rounds of {given.steps} steps of {num_pairs} pairs, {given.backbone}, lowest "
        f"{given.layers} layers, {given.precision}; best matrix multiplication {rate / 1e9:,.0f} GFLOP/s in "
        f"{computed_in('bfloat16')}"
    )
    print("| trainer | pairs/s (lowest, highest) | our speed over it | FLOPs utilisation |\n| --- | --- | --- | --- |")
    today = datetime.date.today().isoformat()
    results = []
    for name, median in medians.items():
        share = median / num_pairs * flops[name] / rate
        cells = f"{median:.2f} ({min(speeds[name]):.2f}, {max(speeds[name]):.2f}) | {medians[first] / median:.2f}"
        print(f"| {name} | {cells} | {100 * share:.0f} % |")
        results.append(f"| {today} | {name} | `{_command()}` | {_machine()} | {cells} | {100 * share:.0f} % |")
    print("\nfor bench/RESULTS.md:")
    print("\n".join(results))


def _command(arguments: Sequence[str] = ()) -> str:
    return " ".join(("python -m bench.fit_step", *(arguments or sys.argv[1:])))


def _machine() -> str:
    return f"{os.cpu_count()} cores, no GPU"


if __name__ == "__main__":
    main()
