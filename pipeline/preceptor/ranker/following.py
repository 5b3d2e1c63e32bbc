"""A training run's progress, read from the losses file that its first worker writes."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from preceptor.tally import SAY_EVERY_S


@contextmanager
def following(file: Path, *, total: int, label: str, sink: TextIO | None = None) -> Iterator[None]:
    """While the body runs, print step, loss and pairs/s of the run that appends to `file`, every few seconds."""
    stop = threading.Event()
    thread = threading.Thread(
        target=_follow, args=(file, total, label, sink or sys.stderr, stop), daemon=True, name=f"follow-{label}"
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(file: Path, total: int, label: str, sink: TextIO, stop: threading.Event) -> None:
    started_s = time.monotonic()
    num_first: int | None = None
    first_s, last = 0.0, -1
    while not stop.wait(SAY_EVERY_S):
        rows = _rows(file)
        if num_first is None:
            num_first, first_s = len(rows), time.monotonic()
        if len(rows) in (0, last):
            print(f"{label}: {time.monotonic() - started_s:.0f} s, step {len(rows)}/{total}", file=sink, flush=True)
            continue
        last = len(rows)
        num_pairs = sum(row["pairs"] for row in rows[num_first:])
        seconds = max(time.monotonic() - first_s, 1e-9)
        print(
            f"{label}: step {last}/{total}, loss {rows[-1]['loss']:.4f}, {num_pairs / seconds:.1f} pairs/s",
            file=sink,
            flush=True,
        )


def _rows(file: Path) -> list[dict[str, float]]:
    try:
        # The last line may be half written; only lines that ended count.
        return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    except FileNotFoundError:
        return []
