"""What autoscaling does under a load that rises and falls, on one machine: replicas, waiting work, latency, refusals.

    .venv/bin/python -m bench.serve_scaling

Open-loop load in three parts: low, high, low, as multiples of what one replica can answer. The application is the
product's, autoscaled by queued tokens. So that four replicas fit on two cores and each adds capacity, as it would with
cores of its own, a replica gets a share of one core: after each forward pass it rests until the pass's CPU time is that
share of the time gone by. Nothing else is changed. Every request has to be answered or, while replicas are still
coming, refused 429; any other end is a failure, and a refusal outside the high part is one too. Exit code 1 then.

Prints what happened, a row for bench/RESULTS.md, and draws --plot.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.peers.load import percentile
from bench.peers.student import RequestShape, ScoreRequest, body, make_bundle, requests
from preceptor.bundle import load_bundle
from preceptor.local_ray import ray_cluster
from preceptor.running import free_port
from preceptor_serve.engine.loading import load_engine
from preceptor_serve.engine.options import EngineOptions

SHAPE = RequestShape(prefix_tokens=48, document_tokens=64, num_documents=10)
APP = "scaling"
SAMPLE_S = 0.5
ABANDON_S = 120.0
BUCKET_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of the load: `load` times what one replica can answer, for `seconds`."""

    name: str
    load: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A request: when it was due, in which part, and what came of it after how long; status 0: no answer."""

    part: str
    due_s: float
    took_s: float
    status: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The application at one moment."""

    at_s: float
    running: int
    target: int
    documents: float
    queued_tokens: float


@dataclass(kw_only=True)
class Seen:
    """What came of a run."""

    capacity: float
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def main() -> None:
    arguments = _arguments()
    parts = [
        Part(name="low", load=arguments.low, seconds=arguments.seconds[0]),
        Part(name="high", load=arguments.high, seconds=arguments.seconds[1]),
        Part(name="after", load=arguments.low, seconds=arguments.seconds[2]),
    ]
    bundle = make_bundle(arguments.root, num_layers=arguments.layers, shape=SHAPE)
    stream = requests(SHAPE, load_bundle(bundle).tokenizer, seed=arguments.seed)
    capacity = _capacity(bundle, stream, share=arguments.share, seconds=min(5.0, parts[0].seconds))
    print(f"one replica, {arguments.share:g} of a core: {capacity:.2f} requests/s of {SHAPE.num_documents} documents")
    with ray_cluster(), _application(bundle, arguments) as url:
        seen = asyncio.run(_run(url, parts, stream, capacity=capacity, seed=arguments.seed))
    _print(seen, parts)
    _draw(seen, parts, arguments.plot)
    failures = failed(seen.outcomes)
    _row(seen, parts, arguments, num_failed=len(failures))
    if failures:
        sys.exit(f"{len(failures)} requests failed, the first: {failures[0]}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--low", type=float, default=0.4, help="load of the first and last part (default: 0.4)")
    parser.add_argument("--high", type=float, default=2.8, help="load of the part between (default: 2.8)")
    parser.add_argument("--seconds", type=float, nargs=3, default=(45, 150, 150), metavar="S", help="of each part")
    parser.add_argument("--replicas", type=int, default=4, help="replicas at most (default: 4)")
    parser.add_argument("--share", type=float, default=0.35, help="of a core for each replica (default: 0.35)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the student (default: 4)")
    parser.add_argument("--downscale-delay-s", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true", help="two replicas and 40 s: whether it runs at all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path("serve_scaling.png"))
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "preceptor-serve-scaling")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.replicas, arguments.high, arguments.downscale_delay_s = (3, 16, 16), 2, 1.5, 2.0
    return arguments


def _capacity(bundle: Path, stream: Iterator[ScoreRequest], *, share: float, seconds: float) -> float:
    """Requests a second that one replica answers with its share of a core: the engine's, undisturbed, times that."""
    with closing(load_engine(bundle, EngineOptions(threads=1))) as engine:
        # The first ones also warm what is made once.
        for _ in range(3):
            request = next(stream)
            engine.score(request.query, request.profile, request.documents)
        started_s, before = time.monotonic(), engine.counts()
        done = 0
        while time.monotonic() - started_s < seconds:
            request = next(stream)
            engine.score(request.query, request.profile, request.documents)
            done += 1
        busy_s = engine.counts().busy_s - before.busy_s
    return done / busy_s * share


@contextmanager
def _application(bundle: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """The URL of the product's application with replicas of `arguments.share` of a core, until the body has run."""
    from ray import serve

    import preceptor_serve.app as product
    from preceptor_serve.schema import Limits

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    product.SCORER = serve.deployment(name="Scorer")(_share_of_a_core(arguments.share))
    args = product.AppArgs(
        bundle=str(bundle),
        engine=EngineOptions(threads=1, score_cache_mib=0, prefix_cache_mib=0),
        # What waits while replicas come is part of what is shown: it is not refused.
        limits=Limits(max_wait_s=60.0),
        max_queued_requests=2000,
        timeout_s=ABANDON_S,
        max_replicas=arguments.replicas,
        num_cpus=0.4,
        target_wait_s=0.5,
        report_s=1.0,
        look_back_s=5.0,
        upscale_delay_s=2.0,
        downscale_delay_s=arguments.downscale_delay_s,
    )
    try:
        serve.run(product.build(args), name=APP, route_prefix="/", logging_config=quiet)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def _share_of_a_core(share: float) -> Any:
    """The product's replica, whose forward passes take the CPU for `share` of the time."""
    from preceptor_serve.replica import ScorerReplica

    class Replica(ScorerReplica):
        def __init__(self, bundle: str, options: EngineOptions, *rest: Any) -> None:
            import preceptor_serve.engine.engine as engine
            from preceptor_serve.engine.forward import Forwarded
            from preceptor_serve.engine.packing import Packed
            from preceptor_serve.engine.student import Student

            forward = engine.forward

            def rested(student: Student, packed: Packed) -> Forwarded:
                # Of this thread alone: with one thread nobody else computes the pass.
                started_s, cpu_s = time.monotonic(), time.thread_time()
                done = forward(student, packed)
                time.sleep(max(0.0, started_s + (time.thread_time() - cpu_s) / share - time.monotonic()))
                return done

            engine.forward = rested
            super().__init__(bundle, options, *rest)

    return Replica


async def _run(url: str, parts: Sequence[Part], stream: Iterator[ScoreRequest], *, capacity: float, seed: int) -> Seen:
    seen = Seen(capacity=capacity)
    due = arrivals(parts, capacity=capacity, seed=seed)
    sent = [body(next(stream)) for _ in due]
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        async with session.get(f"{url}/readyz") as response:
            response.raise_for_status()
        started_s = time.monotonic()

        async def one(part: str, due_s: float, content: bytes) -> None:
            await asyncio.sleep(max(0.0, started_s + due_s - time.monotonic()))
            status = 0
            try:
                async with asyncio.timeout(ABANDON_S), session.post(f"{url}/v1/score", data=content) as response:
                    await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError):
                pass
            took_s = time.monotonic() - started_s - due_s
            seen.outcomes.append(Outcome(part=part, due_s=due_s, took_s=took_s, status=status))

        async def watch() -> None:
            while True:
                seen.samples.append(await _sample(session, url, started_s))
                await asyncio.sleep(SAMPLE_S)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(*request, content) for request, content in zip(due, sent, strict=True)))
        left_s = started_s + sum(part.seconds for part in parts) - time.monotonic()
        await asyncio.sleep(max(0.0, left_s))
        watching.cancel()
    return seen


def arrivals(parts: Sequence[Part], *, capacity: float, seed: int) -> list[tuple[str, float]]:
    """When requests are due, by a Poisson process whose rate is that of the part."""
    source = random.Random(seed)
    due: list[tuple[str, float]] = []
    begins_s = 0.0
    for part in parts:
        at_s = begins_s + source.expovariate(capacity * part.load)
        while at_s < begins_s + part.seconds:
            due.append((part.name, at_s))
            at_s += source.expovariate(capacity * part.load)
        begins_s += part.seconds
    return due


async def _sample(session: aiohttp.ClientSession, url: str, started_s: float) -> Sample:
    from ray import serve

    async with session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    status = await asyncio.to_thread(serve.status)
    scorers = status.applications[APP].deployments["Scorer"]
    states = {str(getattr(state, "value", state)): num for state, num in scorers.replica_states.items()}

    def total(name: str) -> float:
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    return Sample(
        at_s=time.monotonic() - started_s,
        running=states.get("RUNNING", 0),
        target=sum(states.get(name, 0) for name in ("RUNNING", "STARTING", "UPDATING")),
        documents=total("preceptor_documents_under_way"),
        queued_tokens=total("preceptor_engine_queued_tokens"),
    )


def failed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Requests that came to a bad end: neither answered nor refused while replicas were still coming."""
    return [found for found in outcomes if found.status != 200 and not (found.status == 429 and found.part == "high")]


def changes(samples: Sequence[Sample]) -> list[tuple[float, int]]:
    """When the number of running replicas became what."""
    found: list[tuple[float, int]] = []
    for sample in samples:
        if not found or found[-1][1] != sample.running:
            found.append((sample.at_s, sample.running))
    return found


def _line(seen: Seen, part: Part) -> str:
    outcomes = [found for found in seen.outcomes if found.part == part.name]
    took = [found.took_s for found in outcomes if found.status == 200] or [float("nan")]
    refused = sum(found.status == 429 for found in outcomes)
    return (
        f"{part.name} ({part.load:g} x, {part.seconds:g} s): {len(outcomes)} requests, p50 "
        f"{percentile(took, 0.5):.2f} s, p99 {percentile(took, 0.99):.2f} s, {refused} refused"
    )


def _print(seen: Seen, parts: Sequence[Part]) -> None:
    for part in parts:
        print(_line(seen, part))
    print("replicas: " + ", ".join(f"{num} at {at_s:.0f} s" for at_s, num in changes(seen.samples)))
    print(f"most documents under way: {max(sample.documents for sample in seen.samples):.0f}", flush=True)


def _row(seen: Seen, parts: Sequence[Part], arguments: argparse.Namespace, *, num_failed: int) -> None:
    steps = " ".join(f"{num} ({at_s:.0f} s)" for at_s, num in changes(seen.samples))
    figures = "; ".join([*(_line(seen, part) for part in parts), f"replicas {steps}; {num_failed} failed"])
    what = f"autoscaling on queued tokens, 1 to {arguments.replicas} replicas of {arguments.share:g} core each"
    command = " ".join(["python -m bench.serve_scaling", *sys.argv[1:]])
    machine = f"{len(os.sched_getaffinity(0))} cores, no GPU"
    print(f"| {datetime.date.today().isoformat()} | {what} | `{command}` | {machine} | {figures} |")


def _draw(seen: Seen, parts: Sequence[Part], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (load, replicas, queue, latency) = pyplot.subplots(4, 1, figsize=(9, 10), sharex=True)
    end_s = max([sum(part.seconds for part in parts), *(found.due_s + found.took_s for found in seen.outcomes)])
    edges = [number * BUCKET_S for number in range(int(end_s / BUCKET_S) + 2)]
    good = [found for found in seen.outcomes if found.status == 200]
    for times, label in (
        ([found.due_s for found in seen.outcomes], "offered"),
        ([found.due_s + found.took_s for found in good], "answered"),
        ([found.due_s for found in seen.outcomes if found.status == 429], "refused"),
    ):
        counts = [sum(low <= at_s < low + BUCKET_S for at_s in times) / BUCKET_S for low in edges]
        load.step(edges, counts, where="post", label=label)
    load.axhline(seen.capacity, linestyle=":", color="grey", label="one replica's capacity")
    load.set(ylabel="requests/s")
    at = [sample.at_s for sample in seen.samples]
    replicas.step(at, [sample.target for sample in seen.samples], where="post", linestyle="--", label="wanted")
    replicas.step(at, [sample.running for sample in seen.samples], where="post", label="running")
    replicas.set(ylabel="replicas", ylim=(0, None))
    queue.plot(at, [sample.documents for sample in seen.samples], label="documents under way")
    queue.plot(
        at,
        [sample.queued_tokens / SHAPE.document_tokens for sample in seen.samples],
        label="of them at replicas, as last told",
    )
    queue.set(ylabel="documents")
    for share in (0.5, 0.95):
        buckets = [(low, [f.took_s for f in good if low <= f.due_s < low + BUCKET_S]) for low in edges]
        shown = [(low, percentile(took, share)) for low, took in buckets if took]
        latency.plot([low for low, _ in shown], [took for _, took in shown], marker=".", label=f"p{share * 100:.0f}")
    latency.set(ylabel="seconds, by when due", xlabel="seconds", yscale="log")
    for axes in (load, replicas, queue, latency):
        axes.legend(loc="upper right")
    part = file.with_name(f"{file.stem}.part.png")
    figure.savefig(part, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    part.rename(file)
    print(f"plot: {file}")


if __name__ == "__main__":
    main()
