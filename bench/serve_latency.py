"""How many documents a second a server scores while 99 of 100 requests are answered within 500 ms.

    .venv/bin/python -m bench.serve_latency --documents 4

Open-loop load: Poisson arrivals, the same student, the same requests for every server, no text twice, one server after
the other on this machine. `engine` is ours in this process, without HTTP and Ray Serve; `warm` is ours over HTTP with
requests whose scores it knows, which no peer is compared with. Servers are tuned first: each is started in a few
settings (bench/peers/settings.py), and goes on with the one in which callers that never let it rest get most and with
the one whose 99th percentile is lowest at half of what the first one does; of the two, the one that does more within
the bound counts. The rate is searched for: the server's rate with such callers, shares of it, halvings. Choose
--documents so that the slowest server can answer a request alone within the bound. Prints a table, a row for
bench/RESULTS.md, and draws the curves to --plot.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.peers.arithmetic import matmul_rate, request_flops
from bench.peers.load import Ask, Point, alone, at_rate, best, curve, saturated
from bench.peers.servers import ANSWERS_AT, NAMES
from bench.peers.settings import Setting, candidates
from bench.peers.student import RequestShape, ScoreRequest, body, classify_body, make_bundle, requests
from preceptor.bundle import load_bundle
from preceptor.precision import computed_in
from preceptor.running import free_port
from preceptor_serve.engine.counts import Counts
from preceptor_serve.engine.loading import load_engine
from preceptor_serve.engine.options import EngineOptions
from preceptor_serve.engine.threads import on_passing_thread

SERVERS = ("engine", *NAMES, "warm")
START_S = 300.0
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every server is asked."""

    bundle: Path
    tokenizer: Any
    shape: RequestShape
    precision: Any
    bound_s: float
    seconds: float
    steps: int
    seed: int
    calibrate_s: float

    def stream(self) -> Iterator[ScoreRequest]:
        return requests(self.shape, self.tokenizer, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one server. Throughputs are documents a second."""

    name: str
    alone_s: float
    saturated: float
    points: list[Point]
    setting: str
    cold_start_s: float
    replica_mib: float
    all_mib: float
    counts: Counts | None = None


def main() -> None:
    arguments = _arguments()
    # As a replica, this process keeps no team of threads but its engine's.
    plan, limit = on_passing_thread(partial(_planned, arguments))
    results = []
    for name in arguments.servers:
        results.append(asyncio.run(_measured(name, plan)))
        _print_result(results[-1], plan, limit=limit)
    _compare(results, plan, limit=limit, command=" ".join(sys.argv[1:]))
    _draw(results, plan, arguments.plot)


def _planned(arguments: argparse.Namespace) -> tuple[Plan, float]:
    """What every server is asked, and the documents a second that arithmetic allows, which it prints."""
    shape = RequestShape(prefix_tokens=96, document_tokens=160, num_documents=arguments.documents)
    bundle = make_bundle(arguments.root, num_layers=arguments.layers, shape=shape)
    loaded = load_bundle(bundle)
    config = loaded.ranker.classifier.config
    plan = Plan(
        bundle=bundle,
        tokenizer=loaded.tokenizer,
        shape=shape,
        precision=arguments.precision,
        bound_s=arguments.bound_ms / 1000,
        seconds=arguments.seconds,
        steps=arguments.steps,
        seed=arguments.seed,
        calibrate_s=arguments.calibrate_s,
    )
    flops, rate = request_flops(config, shape), matmul_rate(config)
    limit = shape.num_documents * rate / flops
    print(
        f"{shape.num_documents} documents of {shape.document_tokens} tokens on a prefix of {shape.prefix_tokens}, "
        f"{config.num_hidden_layers} layers: {flops / 1e9:.1f} GFLOP a request; {computed_in('bfloat16')} products at "
        f"{rate / 1e9:.0f} GFLOP/s: at most {limit:.1f} documents/s",
        flush=True,
    )
    return plan, limit


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=_names, default=SERVERS, help=f"which, with commas ({','.join(SERVERS)})")
    parser.add_argument("--documents", type=int, default=50, help="documents of a request (default: 50)")
    parser.add_argument("--layers", type=int, default=10, help="layers of the student (default: 10)")
    parser.add_argument("--precision", default="bfloat16", help="of ours: float32, bfloat16 or int8")
    parser.add_argument("--bound-ms", type=float, default=500, help="bound on the 99th percentile (default: 500)")
    parser.add_argument("--seconds", type=float, default=30, help="length of each rate's load (default: 30)")
    parser.add_argument("--steps", type=int, default=4, help="halvings of the search (default: 4)")
    parser.add_argument(
        "--calibrate-s", type=float, default=10, help="load in each setting of a peer; 0: its first (default: 10)"
    )
    parser.add_argument("--quick", action="store_true", help="2 s a rate, 1 s a setting, no halvings: does it run?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path("serve_latency.png"))
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "preceptor-serve-latency")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.steps, arguments.calibrate_s = 2.0, 0, min(1.0, arguments.calibrate_s)
    return arguments


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SERVERS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(SERVERS)}")
    return names


async def _measured(name: str, plan: Plan) -> Result:
    return await (_measure_engine(plan) if name == "engine" else _measure_server(name, plan))


async def _measure_engine(plan: Plan) -> Result:
    before = psutil.Process().memory_info().rss
    started_s = time.monotonic()
    # No cache of scores or prefixes would find anything: no text comes twice.
    options = EngineOptions(precision=plan.precision, threads=len(os.sched_getaffinity(0)))
    with closing(load_engine(plan.bundle, options)) as engine:
        stream = plan.stream()

        async def ask() -> None:
            request = next(stream)
            await asyncio.wrap_future(engine.submit(request.query, request.profile, request.documents))

        await ask()
        cold_s = time.monotonic() - started_s
        mib = (psutil.Process().memory_info().rss - before) / MIB
        return await _result(
            "engine", ask, plan, setting="defaults", cold_s=cold_s, memory=lambda: (mib, mib), counts=engine.counts
        )


async def _measure_server(name: str, plan: Plan) -> Result:
    server = "ours" if name == "warm" else name
    busiest, *soonest = await _tuned(server, plan)
    found = [await _measure_setting(name, server, plan, busiest)]
    if name != "warm":
        found += [await _measure_setting(name, server, plan, setting) for setting in soonest]
    if len(found) > 1:
        for result in found:
            print(f"{name:>22}: {result.setting}: {_kept(result, plan):.1f} documents/s within the bound", flush=True)
    # Which keeps the bound at most is one question, what callers that never rest get another: the best of each.
    kept = max(found, key=lambda result: (_kept(result, plan), result.saturated))
    return replace(kept, saturated=max(result.saturated for result in found))


async def _measure_setting(name: str, server: str, plan: Plan, setting: Setting) -> Result:
    stream = plan.stream()
    if name == "warm":
        stream = itertools.cycle(itertools.islice(stream, 16))
    async with _asked(server, plan, setting, stream) as (ask, process, cold_s):
        for _ in range(16 if name == "warm" else 0):
            await ask()
        told = setting.told(server)
        return await _result(name, ask, plan, setting=told, cold_s=cold_s, memory=lambda: _memory(process.pid))


async def _tuned(server: str, plan: Plan) -> tuple[Setting, ...]:
    """The setting in which `server` answers most requests a second of callers that never let it rest, and, where it is
    another, the one with the lowest 99th percentile at half of the first one's rate."""
    tried = candidates(server, cores=len(os.sched_getaffinity(0)))
    if len(tried) == 1 or not plan.calibrate_s:
        return tried[:1]
    rates: list[float] = []
    late: list[float] = []
    for setting in tried:
        async with _asked(server, plan, setting, plan.stream()) as (ask, _, _):
            await alone(ask, num=2)
            rates.append(await saturated(ask, seconds=plan.calibrate_s))
            half = await at_rate(ask, rates[0] / 2, seconds=plan.calibrate_s, seed=plan.seed)
            late.append(half.p99_s)
        rate = rates[-1] * plan.shape.num_documents
        told = f"{rate:.1f} documents/s saturated, p99 {late[-1] * 1000:.0f} ms"
        print(f"{server:>22}: {setting.told(server)}: {told}", flush=True)
    chosen = (rates.index(max(rates)), late.index(min(late)))
    return tuple(tried[number] for number in dict.fromkeys(chosen))


@asynccontextmanager
async def _asked(
    server: str, plan: Plan, setting: Setting, stream: Iterator[ScoreRequest]
) -> AsyncIterator[tuple[Ask, subprocess.Popen[bytes], float]]:
    """A running server: what sends it the next of `stream`, its process, and seconds to its first answer."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{ANSWERS_AT.get(server, '/v1/score')}"
    headers = {"Content-Type": "application/json"}
    started_s = time.monotonic()
    with _running(server, plan, port, setting) as process:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def ask() -> None:
                request = next(stream)
                sent = classify_body(request, "student") if server == "vllm" else body(request)
                async with session.post(url, data=sent) as response:
                    await response.read()
                    response.raise_for_status()

            yield ask, process, await _first_answer(ask, process, started_s)


async def _result(
    name: str, ask: Ask, plan: Plan, *, setting: str, cold_s: float, memory: Any, counts: Any = None
) -> Result:
    took_s = await alone(ask, num=3 if plan.steps == 0 else 10)
    count = plan.shape.num_documents
    top = await saturated(ask, seconds=plan.seconds)
    points = await curve(ask, top=top, bound_s=plan.bound_s, seconds=plan.seconds, seed=plan.seed, steps=plan.steps)
    replica, everything = memory()
    return Result(
        name=name,
        alone_s=took_s,
        saturated=top * count,
        points=points,
        setting=setting,
        cold_start_s=cold_s,
        replica_mib=replica,
        all_mib=everything,
        counts=counts() if counts else None,
    )


@contextmanager
def _running(server: str, plan: Plan, port: int, setting: Setting) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process; it and what it started have ended afterwards."""
    command = [sys.executable, "-m", "bench.peers.servers", server, str(plan.bundle), str(port)]
    log = plan.bundle.parent / f"{server}.log"
    with log.open("wb") as sink:
        options = ["--precision", plan.precision, "--setting", setting.to_json()]
        process = subprocess.Popen([*command, *options], stdout=sink, stderr=sink)
    try:
        yield process
    finally:
        started = _tree(process.pid)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        _, left = psutil.wait_procs(started, timeout=10)
        for child in left:
            child.kill()


async def _first_answer(ask: Ask, process: subprocess.Popen[bytes], started_s: float) -> float:
    while True:
        if process.poll() is not None:
            raise SystemExit("the server ended before it answered. See its log beside the bundle.")
        if time.monotonic() - started_s > START_S:
            raise SystemExit(f"no answer within {START_S:g} s. See the server's log beside the bundle.")
        try:
            await ask()
            return time.monotonic() - started_s
        except aiohttp.ClientError:
            await asyncio.sleep(0.1)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(pid: int) -> tuple[float, float]:
    """Resident MiB of the process that computes (the largest), and of all that the server started."""
    sizes = []
    for process in _tree(pid):
        try:
            sizes.append(process.memory_info().rss / MIB)
        except psutil.NoSuchProcess:
            continue
    return max(sizes, default=0.0), sum(sizes)


def _kept(result: Result, plan: Plan) -> float:
    """Documents a second within the bound; 0 where no rate was."""
    found = best(result.points, plan.bound_s)
    return found.rate * plan.shape.num_documents if found else 0.0


def _print_result(result: Result, plan: Plan, *, limit: float) -> None:
    print(
        f"{result.name:>22}: {_kept(result, plan):7.1f} documents/s within the bound, {result.saturated:7.1f} "
        f"saturated ({result.saturated / limit:.0%} of the arithmetic limit); alone {result.alone_s * 1000:.0f} ms; "
        f"first answer {result.cold_start_s:.1f} s; {result.replica_mib:.0f} MiB a replica, "
        f"{result.all_mib:.0f} in all; {result.setting}"
    )
    for point in result.points:
        print(
            f"{'':>24}{point.rate * plan.shape.num_documents:7.1f} offered, {point.num_requests} requests: "
            f"p50 {point.p50_s * 1000:.0f} ms, p99 {point.p99_s * 1000:.0f} ms, {point.num_failed} failed"
        )
    if result.counts is not None:
        share = result.counts.num_padding_tokens / max(result.counts.num_tokens, 1)
        print(f"{'':>24}padding: {share:.1%} of {result.counts.num_tokens:,} tokens")
    sys.stdout.flush()


def _compare(results: list[Result], plan: Plan, *, limit: float, command: str) -> None:
    """The ratios, and the row for RESULTS.md."""
    by_name = {result.name: result for result in results}
    peers = [result for result in results if result.name in NAMES and result.name != "ours"]
    figures = [f"{result.name} {_kept(result, plan):.1f} ({result.setting})" for result in results]
    if (ours := by_name.get("ours")) is not None:
        if peers:
            peer = max(peers, key=lambda result: _kept(result, plan))
            rate = _kept(peer, plan)
            ratio = f"{_kept(ours, plan) / rate:.2f}" if rate else "no peer keeps the bound: lower --documents"
            figures.append(f"ours / best peer ({peer.name}) {ratio}")
            figures.append(f"saturated {ours.saturated / max(result.saturated for result in peers):.2f}")
        figures.append(f"{ours.saturated / limit:.0%} of the arithmetic limit")
        figures.append(f"first answer {ours.cold_start_s:.1f} s, replica {ours.replica_mib:.0f} MiB")
        if (engine := by_name.get("engine")) is not None:
            figures.append(f"HTTP and Serve cost {1 - ours.saturated / engine.saturated:.1%} at saturation")
    today = datetime.date.today().isoformat()
    what = f"documents/s at p99 <= {plan.bound_s * 1000:.0f} ms, {plan.shape.num_documents} documents, {plan.precision}"
    machine = f"{len(os.sched_getaffinity(0))} cores, no GPU"
    print(f"| {today} | {what} | `python -m bench.serve_latency {command}` | {machine} | {'; '.join(figures)} |")


def _draw(results: list[Result], plan: Plan, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for result in results:
        shown = [point for point in result.points if point.p99_s < 20 * plan.bound_s]
        rates = [point.rate * plan.shape.num_documents for point in shown]
        axes.plot(rates, [point.p99_s * 1000 for point in shown], marker="o", label=result.name)
    axes.axhline(plan.bound_s * 1000, linestyle="--", color="grey")
    axes.set(xlabel="documents/s offered", ylabel="99th percentile, ms", yscale="log")
    axes.legend()
    part = file.with_name(f"{file.stem}.part.png")
    figure.savefig(part, dpi=120, bbox_inches="tight")
    part.rename(file)
    print(f"curves: {file}")


if __name__ == "__main__":
    main()
