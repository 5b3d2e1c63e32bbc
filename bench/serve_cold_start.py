"""How long `preceptor serve` takes to its first answer, and where the time goes.

    .venv/bin/python -m bench.serve_cold_start

Starts the command as a user does, asks until a score comes back, stops it, and does so again: --runs times, with files
in the page cache after the first. A stage begins when its process is first seen (looked for every 0.2 s); the last one
is the scorer's own: Python, torch, weights, probe, first request. Prints a table and a row for
bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from bench.peers.student import RequestShape, make_bundle
from preceptor.running import free_port

TARGET_S = 30.0
GIVE_UP_S = 300.0
STAGES = {
    "raylet": "raylet",
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
    "edge": "ray::ServeReplica:preceptor:Edge",
    "scorer": "ray::ServeReplica:preceptor:Scorer",
}
"""What a stage's process is called, among those that the command started."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Seconds from the command's start."""

    seen_s: dict[str, float]
    answered_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how often (default: 5)")
    parser.add_argument("--layers", type=int, default=10, help="layers of the student (default: 10)")
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "preceptor-serve-latency")
    arguments = parser.parse_args()
    shape = RequestShape(prefix_tokens=96, document_tokens=160, num_documents=4)
    bundle = make_bundle(arguments.root, num_layers=arguments.layers, shape=shape)
    runs = []
    for number in range(1, arguments.runs + 1):
        runs.append(_started(bundle))
        print(f"run {number}: {_told(runs[-1])}", flush=True)
    answered = sorted(run.answered_s for run in runs)
    middle = statistics.median(answered)
    figures = (
        f"first answer after {middle:.1f} s (median of {len(runs)}; {answered[0]:.1f} to {answered[-1]:.1f}; target "
        f"{TARGET_S:g}: {'met' if middle <= TARGET_S else '**missed**'}); median run: "
        + _told(min(runs, key=lambda run: abs(run.answered_s - middle)))
    )
    command = f"python -m bench.serve_cold_start {' '.join(sys.argv[1:])}".strip()
    machine = f"{len(os.sched_getaffinity(0))} cores, no GPU"
    today = datetime.date.today().isoformat()
    print(f"| {today} | cold start, student of {arguments.layers} layers | `{command}` | {machine} | {figures} |")


def _started(bundle: Path) -> Run:
    port = free_port()
    command = [sys.executable, "-m", "preceptor", "serve", "--bundle", str(bundle), "--port", str(port)]
    log = bundle.parent / "cold_start.log"
    started_s = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
    seen: dict[str, float] = {}
    children: list[psutil.Process] = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5, trust_env=False) as client:
            while not _answers(client):
                elapsed_s = time.monotonic() - started_s
                if process.poll() is not None or elapsed_s > GIVE_UP_S:
                    raise SystemExit(f"no answer after {elapsed_s:.0f} s: see {log}")
                children = psutil.Process(process.pid).children(recursive=True)
                for stage in _stages_of(children):
                    seen.setdefault(stage, elapsed_s)
                time.sleep(0.2)
        return Run(seen_s=seen, answered_s=time.monotonic() - started_s)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        _, left = psutil.wait_procs(children, timeout=10)
        for child in left:
            child.kill()


def _answers(client: httpx.Client) -> bool:
    body = {"query": "night nurse", "profile": "Registered nurse.", "documents": ["Staff Nurse (nights)"]}
    try:
        return client.post("/v1/score", json=body).status_code == 200
    except httpx.TransportError:
        return False


def _stages_of(children: list[psutil.Process]) -> set[str]:
    found = set()
    for child in children:
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        name = Path(title.split(" ", 1)[0]).name
        found |= {stage for stage, known in STAGES.items() if name.startswith(known)}
    return found


def _told(run: Run) -> str:
    """When each stage began, and the answer."""
    stages = sorted(run.seen_s.items(), key=lambda item: item[1])
    return ", ".join([*(f"{stage} {at_s:.1f} s" for stage, at_s in stages), f"answer {run.answered_s:.1f} s"])


if __name__ == "__main__":
    main()
