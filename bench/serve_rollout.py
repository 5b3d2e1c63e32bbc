"""What members notice of a new bundle: each step of a rollout under steady load, on a real local Serve.

    .venv/bin/python -m bench.serve_rollout

Open loop: requests leave at a steady rate, whether or not earlier ones have come back, over HTTP and without a second
try. One step after the other: a candidate is staged, shadows every request, gets a fifth of the members, loses it, is
promoted, is rolled back; then the application itself is deployed again, with a corrupt bundle, which must not come up,
and with the new one (Serve's rolling update). For each: how long the step took, requests and failures from its start
to the end of the calm after it, their latency, and for how long after the step's start requests still left that the
bundle answered which the step took off.

Exit code 1 where a request failed, or a bundle answered a request that left after the step that took it off was done.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.peers.load import percentile
from bench.peers.student import RequestShape, body, make_bundle, requests
from preceptor.bundle import load_bundle
from preceptor.local_ray import ray_cluster
from preceptor.running import free_port

OLD, NEW = "old", "new"
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request: when it left, how long it took, its status (0: no answer at all), and which bundle answered."""

    left_s: float
    took_s: float
    status: int
    bundle: str | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: what is done, and which bundle must not answer what leaves after it."""

    name: str
    run: Callable[[], object]
    ends: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one step came to; `last_s` is from its start to the last departure that the bundle it ended answered."""

    name: str
    step_s: float
    sent: tuple[Sent, ...]
    last_s: float | None
    num_late: int

    @property
    def num_failed(self) -> int:
        return sum(one.status != 200 for one in self.sent)

    def latency_ms(self, share: float) -> float:
        return 1000 * percentile([one.took_s for one in self.sent], share)


@dataclass
class Load:
    """A steady load on `url`, while its thread runs; `sent` grows."""

    url: str
    rate: float
    bodies: Iterator[bytes]
    sent: list[Sent] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Load]:
        done = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._run(done)), name="load")
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    async def _run(self, done: threading.Event) -> None:
        begun_s = time.monotonic()
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in itertools.count():
                due_s = begun_s + number / self.rate
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if done.is_set():
                    return
                group.create_task(self._send(session, next(self.bodies)))

    async def _send(self, session: aiohttp.ClientSession, wanted: bytes) -> None:
        left_s = time.monotonic()
        status, bundle = 0, None
        try:
            async with session.post(f"{self.url}/v1/score", data=wanted, headers=JSON) as response:
                found = await response.json()
                status, bundle = response.status, found.get("bundle_id")
        except (aiohttp.ClientError, TimeoutError, ValueError):
            pass
        self.sent.append(Sent(left_s=left_s, took_s=time.monotonic() - left_s, status=status, bundle=bundle))


def main() -> int:
    arguments = _arguments()
    shape = RequestShape(prefix_tokens=32, document_tokens=32, num_documents=arguments.documents)
    made = make_bundle(arguments.root, num_layers=arguments.layers, shape=shape)
    old, new = (_named(made, arguments.root / name, bundle_id=name) for name in (OLD, NEW))
    corrupt = _corrupted(made, arguments.root / "corrupt")
    pool = list(itertools.islice(requests(shape, load_bundle(made).tokenizer, seed=1), 256))
    bodies = itertools.cycle([body(request) for request in pool])
    with ray_cluster():
        from ray import serve

        from preceptor_serve.start import run_app

        url = run_app(old, port=free_port(), block=False)
        load = Load(url=url, rate=arguments.rate, bodies=bodies)
        with load.running():
            results = [_measured(step, load, calm_s=arguments.calm_s) for step in _steps(old, new, corrupt, arguments)]
        serve.shutdown()
    _print(results)
    print(_row(results, arguments))
    return int(any(result.num_failed or result.num_late for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second (default: 10)")
    parser.add_argument("--documents", type=int, default=10, help="documents of a request (default: 10)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the student (default: 4)")
    parser.add_argument("--calm-s", type=float, default=15.0, help="seconds of load after each step (default: 15)")
    parser.add_argument("--quick", action="store_true", help="2 layers, 3 s after each step: whether it runs at all")
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "preceptor-serve-rollout")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.calm_s, arguments.layers, arguments.documents = 3.0, 2, 4
    return arguments


def _named(bundle: Path, to: Path, **changes: object) -> Path:
    """A copy of `bundle` at `to` whose bundle.json has these `changes`."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(bundle, to)
    file = to / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return to


def _corrupted(bundle: Path, to: Path) -> Path:
    """A copy of `bundle` that loads, and does not give its known answers."""
    known = json.loads((bundle / "bundle.json").read_text())["known_answers"]
    wrong = [
        answer | {"logits": [3.0 + logit * (-1) ** i for i, logit in enumerate(answer["logits"])]} for answer in known
    ]
    return _named(bundle, to, bundle_id="corrupt", known_answers=wrong)


def _steps(old: Path, new: Path, corrupt: Path, arguments: argparse.Namespace) -> list[Step]:
    from ray import serve

    from preceptor.errors import StageFailed
    from preceptor_serve.app import AppArgs, build
    from preceptor_serve.engine.options import EngineOptions
    from preceptor_serve.rollout import Running
    from preceptor_serve.start import APP_NAME, num_cores

    running = Running(app=APP_NAME)
    shadows = str(arguments.root / "shadow")

    def deploy(bundle: Path) -> None:
        engine = EngineOptions(threads=num_cores())
        args = AppArgs(bundle=str(bundle), engine=engine, max_replicas=1, num_cpus=num_cores())
        serve.run(build(args), name=APP_NAME, route_prefix="/", logging_config={"log_level": "ERROR"})

    def refused(act: Callable[[Path], object]) -> None:
        try:
            act(corrupt)
        except (RuntimeError, StageFailed):
            return
        sys.exit("a corrupt bundle came up")

    return [
        Step(name="nothing", run=lambda: None, ends=NEW),
        Step(name="stage", run=lambda: running.stage(new), ends=NEW),
        Step(name="shadow 1", run=lambda: running.shadow(1.0, shadows), ends=NEW),
        Step(name="shadow 0", run=lambda: running.shadow(0.0, None), ends=NEW),
        Step(name="share 0.2", run=lambda: running.share(0.2)),
        Step(name="rollback of the share", run=running.rollback, ends=NEW),
        Step(name="promote", run=running.promote, ends=OLD),
        Step(name="rollback of the promotion", run=running.rollback, ends=NEW),
        Step(name="stage a corrupt bundle", run=lambda: refused(running.stage), ends=NEW),
        Step(name="retire", run=running.retire, ends=NEW),
        Step(name="deploy a corrupt bundle", run=lambda: refused(deploy), ends=NEW),
        Step(name="deploy the new bundle", run=lambda: deploy(new), ends=OLD),
    ]


def _measured(step: Step, load: Load, *, calm_s: float) -> Result:
    """`step` under `load`, and the calm after it."""
    started_s, first = time.monotonic(), len(load.sent)
    step.run()
    done_s = time.monotonic()
    time.sleep(calm_s)
    sent = tuple(load.sent[first:])
    ended = [one.left_s for one in sent if step.ends is not None and one.bundle == step.ends]
    result = Result(
        name=step.name,
        step_s=done_s - started_s,
        sent=sent,
        last_s=max(ended) - started_s if ended else None,
        num_late=sum(left_s > done_s for left_s in ended),
    )
    print(f"{step.name}: {result.step_s:.1f} s", file=sys.stderr, flush=True)
    return result


def _print(results: list[Result]) -> None:
    print(f"{'step':<28}{'took s':>8}{'requests':>10}{'failed':>8}{'p50 ms':>8}{'p99 ms':>8}{'last s':>8}{'late':>6}")
    for found in results:
        last = "-" if found.last_s is None else f"{max(0.0, found.last_s):.2f}"
        print(
            f"{found.name:<28}{found.step_s:>8.2f}{len(found.sent):>10,}{found.num_failed:>8}"
            f"{found.latency_ms(0.5):>8.0f}{found.latency_ms(0.99):>8.0f}{last:>8}{found.num_late:>6}"
        )
    print(
        "last: from the step's start to the last departure that the bundle it took off answered; late: after its end\n"
    )


def _row(results: list[Result], arguments: argparse.Namespace) -> str:
    """The line for bench/RESULTS.md."""
    of = {found.name: found for found in results}
    num_sent, num_failed = sum(len(found.sent) for found in results), sum(found.num_failed for found in results)

    def said(name: str) -> str:
        found = of[name]
        last = "" if found.last_s is None else f", last old answer {max(0.0, found.last_s):.2f} s"
        return f"{name} {found.step_s:.2f} s{last}, p99 {found.latency_ms(0.99):.0f} ms"

    names = [name for name in of if name not in ("nothing", "retire", "shadow 0")]
    calm = of["nothing"]
    verdict = "held" if not num_failed and not any(found.num_late for found in results) else "**missed**"
    return (
        f"| {datetime.date.today()} | each step of a rollout under {arguments.rate:g} requests/s of "
        f"{arguments.documents} documents, student of {arguments.layers} layers, one replica each | "
        f"`python -m bench.serve_rollout{' --quick' if arguments.quick else ''}` | {os.cpu_count()} cores, no GPU | "
        f"{num_sent:,} requests, {num_failed} failed, none tried twice (target 0: {verdict}); at rest p50 "
        f"{calm.latency_ms(0.5):.0f} ms, p99 {calm.latency_ms(0.99):.0f} ms; {'; '.join(map(said, names))} |"
    )


if __name__ == "__main__":
    sys.exit(main())
