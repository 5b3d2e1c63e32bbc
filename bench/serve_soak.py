"""Whether memory stays flat: minutes of steady load with texts that change, and the size of every process meanwhile.

    .venv/bin/python -m bench.serve_soak

A real local Serve with 2 scorers and 2 edges, caches as in serve.yaml but smaller (--cache-mib), and requests at a
steady rate through the product's client; a third of them come twice, the second time soon after, so that caches are
used and not only filled. First --fill minutes fill caches, allocators' arenas and Serve's own buffers, and count for
nothing. Then resident memory is sampled every 5 s. Flat: the mean of the last quarter is at most 2 % above that of the
second, for each kind of process and for all together. The slope is a least-squares line over all samples.

Draws --plot, prints a table and a row for bench/RESULTS.md. Exit code 1 where memory grew by more or a request was
lost.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, get_args

import psutil

from bench.peers.serve_cluster import Cluster, Kind, Shape, serving
from bench.peers.steady import Steady
from preceptor.bundle import load_bundle

T = TypeVar("T")

MAX_GROWTH: Final = 0.02
MIB: Final = 2**20
REPEATED: Final = 3
"""One request in so many is asked again."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Resident MiB of each process, by its kind and pid, at a time."""

    at_s: float
    mib: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the size of one process, or of all, went."""

    name: str
    second_mib: float
    last_mib: float
    slope_mib_per_hour: float

    @property
    def share(self) -> float:
        return self.last_mib / self.second_mib - 1


def main() -> int:
    from bench.peers.student import RequestShape, make_bundle, requests

    arguments = _arguments()
    shape = RequestShape(prefix_tokens=32, document_tokens=32, num_documents=4)
    bundle = make_bundle(arguments.root, num_layers=2, shape=shape)
    tokenizer = load_bundle(bundle).tokenizer
    with serving(bundle, Shape(cache_mib=arguments.cache_mib)) as cluster:
        stream = repeating(requests(shape, tokenizer, seed=1), seed=2)
        load = Steady(url=cluster.url, rate=arguments.rate, stream=stream)
        samples = asyncio.run(
            _sampled(cluster, load, fill_s=60 * arguments.fill, minutes=arguments.minutes, every_s=arguments.every_s)
        )
    names = sorted({name for sample in samples for name in sample.mib})
    grown = [growth(name, samples) for name in (*names, "all")]
    for found in grown:
        print(
            f"{found.name:>20}: {found.second_mib:8.1f} MiB in the second quarter, {found.last_mib:8.1f} in the last: "
            f"{found.share:+.2%}; {found.slope_mib_per_hour:+.1f} MiB/h"
        )
    num_lost = sum(sent.error is not None for sent in load.sent)
    _draw(samples, names, arguments.plot)
    print(_row(grown, num_sent=len(load.sent), num_lost=num_lost, arguments=arguments))
    return int(num_lost > 0 or any(found.share > MAX_GROWTH for found in grown))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="of load that counts (default: 20)")
    parser.add_argument("--fill", type=float, default=5.0, help="minutes of load before (default: 5)")
    parser.add_argument("--rate", type=float, default=15.0, help="requests a second (default: 15)")
    parser.add_argument("--cache-mib", type=int, default=4, help="of each cache of a scorer (default: 4)")
    parser.add_argument("--every-s", type=float, default=5.0, help="between two samples (default: 5)")
    parser.add_argument("--plot", type=Path, default=Path("serve_soak.png"))
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "preceptor-serve-failures")
    arguments = parser.parse_args()
    if arguments.minutes * 60 < 8 * arguments.every_s:
        parser.error(f"--minutes {arguments.minutes:g}: fewer than 8 samples. Allow more, or lower --every-s.")
    return arguments


def repeating(stream: Iterator[T], *, seed: int) -> Iterator[T]:
    """`stream`, with one request in REPEATED once more among the next."""
    source = random.Random(seed)
    again: list[T] = []
    for request in stream:
        yield request
        if source.random() < 1 / REPEATED:
            again.append(request)
        if again and source.random() < 1 / REPEATED:
            yield again.pop(0)


async def _sampled(cluster: Cluster, load: Steady, *, fill_s: float, minutes: float, every_s: float) -> list[Sample]:
    """Samples of the minutes that count. What was sent is kept, a few hundred bytes each, and is this process's own."""
    running = asyncio.create_task(load.run(seed=1))
    try:
        await asyncio.sleep(fill_s)
        samples: list[Sample] = []
        begun_s = load.now_s()
        while load.now_s() - begun_s < 60 * minutes:
            sizes = await asyncio.to_thread(_sizes, cluster)
            samples.append(Sample(at_s=load.now_s() - begun_s, mib=sizes))
            await asyncio.sleep(every_s)
        return samples
    finally:
        load.end()
        await running


def _sizes(cluster: Cluster) -> dict[str, float]:
    kinds: tuple[Kind, ...] = get_args(Kind)
    found = {f"{kind} {pid}": pid for kind in kinds for pid in cluster.pids(kind).values()} | {"client": os.getpid()}
    return {name: psutil.Process(pid).memory_info().rss / MIB for name, pid in found.items()}


def growth(name: str, samples: list[Sample]) -> Growth:
    """How `name`, or 'all', grew. A process that was replaced meanwhile is an error of the run: KeyError."""
    sizes = [sum(sample.mib.values()) if name == "all" else sample.mib[name] for sample in samples]
    quarter = len(sizes) // 4
    slope, _ = statistics.linear_regression([sample.at_s for sample in samples], sizes)
    return Growth(
        name=name,
        second_mib=statistics.mean(sizes[quarter : 2 * quarter]),
        last_mib=statistics.mean(sizes[-quarter:]),
        slope_mib_per_hour=slope * 3600,
    )


def _draw(samples: list[Sample], names: list[str], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in names:
        axes.plot([sample.at_s / 60 for sample in samples], [sample.mib[name] for sample in samples], label=name)
    axes.set(xlabel="minutes", ylabel="resident MiB", ylim=(0, None))
    axes.legend(fontsize="small")
    part = file.with_name(f"{file.stem}.part.png")
    figure.savefig(part, dpi=120, bbox_inches="tight")
    part.rename(file)
    print(f"sizes: {file}")


def _row(grown: list[Growth], *, num_sent: int, num_lost: int, arguments: argparse.Namespace) -> str:
    """The row for bench/RESULTS.md."""
    whole = next(found for found in grown if found.name == "all")
    worst = max(grown, key=lambda found: found.share)
    verdict = "met" if worst.share <= MAX_GROWTH else "**missed**"
    figures = (
        f"{num_sent} requests, {num_lost} lost; all processes {whole.second_mib:.0f} to {whole.last_mib:.0f} MiB "
        f"({whole.share:+.2%}, {whole.slope_mib_per_hour:+.1f} MiB/h), most {worst.name.split()[0]} {worst.share:+.2%} "
        f"(target 2 %: {verdict}); "
        + ", ".join(f"{found.name.split()[0]} {found.last_mib:.0f} MiB {found.share:+.2%}" for found in grown[:-1])
    )
    command = f"python -m bench.serve_soak {' '.join(sys.argv[1:])}".strip()
    machine = f"{len(os.sched_getaffinity(0))} cores, no GPU"
    what = f"memory over {arguments.minutes:g} minutes, {arguments.rate:g} requests/s, 2 scorers, 2 edges"
    return f"| {datetime.date.today().isoformat()} | {what} | `{command}` | {machine} | {figures} |"


if __name__ == "__main__":
    sys.exit(main())
