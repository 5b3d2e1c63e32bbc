"""What breaks when a process of the application dies, hangs or is given something bad, under steady load.

    .venv/bin/python -m bench.serve_failures

A real local Serve with 2 scorers and 2 edges, and requests at a steady rate, open loop, through the product's client,
which tries a call twice at most. One fault after the other: kill -9 of a scorer, an edge, the proxy, HAProxy and the
controller; an object store that spills; a scorer and an edge that hang (SIGSTOP); a bundle with worthless weights
offered by a redeployment. Every answer is compared with what the bundle says. Lost: failed after the second try.
Recovered: from the fault to the end of the last request that failed at first or took more than four times the usual
99th percentile (at least 0.5 s). Whole: until every process is there again. Killing the raylet or the head is not
tried: on one machine nothing would be left.

Prints a table and a row for bench/RESULTS.md; --json FILE keeps the numbers. Exit code 1 where a request was lost or
answered wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.peers.serve_cluster import Cluster, Kind, Shape, corrupted, serving, wait_until
from bench.peers.steady import Outcome, Steady, outcome, usual_p99_s
from bench.peers.student import RequestShape, ScoreRequest, make_bundle, requests
from preceptor.bundle import load_bundle
from preceptor_serve.client import Scores
from preceptor_serve.ingress import coming_in_by

POOL = 64
TOLERANCE = 2e-2
MIN_SLOW_S = 0.5
WHOLE_WITHIN_S = 150.0

Begun = Callable[[], bool]
"""Whether the cluster is whole again after a fault."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one fault came to."""

    fault: str
    outcome: Outcome
    whole_s: float | None
    usual_p99_s: float


def main() -> int:
    arguments = _arguments()
    shape = RequestShape(prefix_tokens=32, document_tokens=32, num_documents=4)
    bundle = make_bundle(arguments.root, num_layers=2, shape=shape)
    pool, expected = _pool(bundle, shape)

    def is_right(request: ScoreRequest, scores: Scores) -> bool:
        known = expected[request.profile]
        return all(abs(got.score - want) <= TOLERANCE for got, want in zip(scores.results, known, strict=True))

    results = []
    with coming_in_by(arguments.ingress), serving(bundle, Shape()) as cluster:
        for name in arguments.only:
            load = Steady(url=cluster.url, rate=arguments.rate, stream=itertools.cycle(pool), is_right=is_right)
            results.append(asyncio.run(_suffered(name, cluster, load, calm_s=arguments.calm_s)))
            _print(results[-1])
    print(_row(results, arguments))
    if arguments.json is not None:
        part = arguments.json.with_name(f"{arguments.json.name}.part")
        part.write_text(json.dumps([asdict(result) for result in results], indent=1))
        part.rename(arguments.json)
    return int(any(result.outcome.num_lost or result.outcome.num_wrong for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names, default=tuple(FAULTS), help=f"which, with commas ({','.join(FAULTS)})")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second (default: 10)")
    parser.add_argument("--calm-s", type=float, default=15.0, help="seconds of load before and after (default: 15)")
    parser.add_argument(
        "--ingress",
        choices=("haproxy", "python"),
        default="haproxy",
        help="what takes requests in (default: haproxy, as with `preceptor serve`; its proxy is what watches it)",
    )
    parser.add_argument("--quick", action="store_true", help="5 s before and after: whether it runs at all")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "preceptor-serve-failures")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.calm_s = 5.0
    if arguments.ingress == "python":
        # There is none to kill, and a row that says it was would be false.
        arguments.only = tuple(name for name in arguments.only if name != "haproxy-killed")
    return arguments


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(FAULTS)}")
    return names


def _pool(bundle: Path, shape: RequestShape) -> tuple[list[ScoreRequest], dict[str, list[float]]]:
    """Requests, and what the bundle's own code says of each, by its profile."""
    loaded = load_bundle(bundle)
    pool = list(itertools.islice(requests(shape, loaded.tokenizer, seed=1), POOL))
    expected = {
        request.profile: [score.score for score in loaded.score(request.query, request.profile, request.documents)]
        for request in pool
    }
    return pool, expected


async def _suffered(name: str, cluster: Cluster, load: Steady, *, calm_s: float) -> Result:
    """What the fault `name` did to `load`, which began before it and ended after all was whole again."""
    running = asyncio.create_task(load.run(seed=1))
    try:
        # The first requests find cold caches, and warm the edges' idea of the usual time.
        await asyncio.sleep(2 * calm_s)
        fault_s = load.now_s()
        usual_s = usual_p99_s(load.sent, before_s=fault_s)
        with contextlib.ExitStack() as stack:
            begun = await asyncio.to_thread(FAULTS[name], cluster, stack)
            try:
                await asyncio.to_thread(wait_until, begun, within_s=WHOLE_WITHIN_S)
                whole_s: float | None = load.now_s() - fault_s
            except TimeoutError:
                whole_s = None
            await asyncio.sleep(calm_s)
    finally:
        load.end()
        await running
    found = outcome(load.sent, fault_s=fault_s, slow_s=max(MIN_SLOW_S, 4 * usual_s))
    return Result(fault=name, outcome=found, whole_s=whole_s, usual_p99_s=usual_s)


def _signalled(kind: Kind, number: signal.Signals) -> Callable[[Cluster, contextlib.ExitStack], Begun]:
    """The fault of a process of `kind` that gets signal `number`."""

    def fault(cluster: Cluster, stack: contextlib.ExitStack) -> Begun:
        before = cluster.pids(kind)
        actor, pid = sorted(before.items())[0]
        os.kill(pid, number)

        def replaced() -> bool:
            now = cluster.pids(kind)
            # The controller keeps its actor id and gets another process.
            return len(now) == len(before) and now.get(actor) != pid and cluster.is_whole()

        return replaced

    return fault


def _haproxy_killed(cluster: Cluster, stack: contextlib.ExitStack) -> Begun:
    """The fault of the process that takes requests in, where that is HAProxy."""
    before = _haproxies()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    return lambda: len(_haproxies() - before) == len(before) and cluster.is_whole()


def _haproxies() -> set[int]:
    """Process ids of the living HAProxies that this process has started."""
    started = psutil.Process().children(recursive=True)
    return {one.pid for one in started if one.name() == "haproxy" and one.status() != psutil.STATUS_ZOMBIE}


def _spilling(cluster: Cluster, stack: contextlib.ExitStack) -> Begun:
    """Objects of twice what the store holds, kept until the fault is over."""
    import numpy as np
    import ray

    before = cluster.num_spilled()
    block = np.random.default_rng(0).bytes(8 * 2**20)
    held = [ray.put(np.frombuffer(block, dtype=np.uint8)) for _ in range(2 * cluster.shape.store_mib // 8)]
    stack.callback(held.clear)

    def spilled() -> bool:
        return cluster.num_spilled() > before and cluster.is_whole()

    return spilled


def _corrupt(cluster: Cluster, stack: contextlib.ExitStack) -> Begun:
    """A redeployment with a bundle that fails its probe, then one with the bundle that was served."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="preceptor-corrupt-"))
    offered_s = time.monotonic()
    try:
        cluster.deploy(corrupted(cluster.bundle, Path(folder) / "bundle"))
    except RuntimeError:
        print(f"  corrupt bundle refused after {time.monotonic() - offered_s:.1f} s", flush=True)
    else:
        raise SystemExit("a corrupt bundle was deployed")
    cluster.deploy(cluster.bundle)
    return cluster.is_whole


FAULTS: dict[str, Callable[[Cluster, contextlib.ExitStack], Begun]] = {
    "scorer-killed": _signalled("scorer", signal.SIGKILL),
    "edge-killed": _signalled("edge", signal.SIGKILL),
    "proxy-killed": _signalled("proxy", signal.SIGKILL),
    "haproxy-killed": _haproxy_killed,
    "controller-killed": _signalled("controller", signal.SIGKILL),
    "store-spills": _spilling,
    "scorer-hangs": _signalled("scorer", signal.SIGSTOP),
    "edge-hangs": _signalled("edge", signal.SIGSTOP),
    "corrupt-bundle": _corrupt,
}


def _print(result: Result) -> None:
    found = result.outcome
    whole = f"not within {WHOLE_WITHIN_S:g} s" if result.whole_s is None else f"{result.whole_s:.1f} s"
    print(
        f"{result.fault:>18}: {found.num_sent} requests, {found.num_lost} lost, {found.num_wrong} wrong, "
        f"{found.num_failed_first} failed before the second try, {found.num_refused} found the port shut; "
        f"recovered after {found.recovered_s:.1f} s, whole after {whole}; p50 {found.p50_s * 1000:.0f} ms, "
        f"p99 {found.p99_s * 1000:.0f} ms (before: {result.usual_p99_s * 1000:.0f}), longest {found.longest_s:.1f} s"
        + (f"; {found.errors}" if found.errors else ""),
        flush=True,
    )


def _row(results: list[Result], arguments: Any) -> str:
    """The row for bench/RESULTS.md."""
    figures = [
        f"{result.fault} {result.outcome.num_sent} / {result.outcome.num_lost} / {result.outcome.num_failed_first} / "
        f"{result.outcome.num_refused}, {result.outcome.recovered_s:.1f} s, "
        + ("never" if result.whole_s is None else f"{result.whole_s:.1f} s")
        for result in results
    ]
    what = (
        f"faults under {arguments.rate:g} requests/s, 2 scorers, 2 edges: requests / lost / failed at first / "
        "found the port shut, recovered, whole"
    )
    command = f"`python -m bench.serve_failures {' '.join(sys.argv[1:])}`".replace(" `", "`")
    machine = f"{len(os.sched_getaffinity(0))} cores, no GPU"
    wrong = sum(result.outcome.num_wrong for result in results)
    today = datetime.date.today().isoformat()
    return f"| {today} | {what} | {command} | {machine} | {'; '.join(figures)}; {wrong} wrong answers |"


if __name__ == "__main__":
    sys.exit(main())
