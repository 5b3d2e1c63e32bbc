"""How far a long stage is, as plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TextIO

from preceptor.judge.replies import Usage

_EVERY_S: Final = 4.0


@dataclass(kw_only=True)
class Progress:
    """Prints rows done, rows/s, time left and rejects of `stage` to `sink`, at most every few seconds."""

    stage: str
    num_rows: int
    sink: TextIO = field(default_factory=lambda: sys.stderr)
    num_done: int = 0
    num_rejected: int = 0
    _started_s: float = field(default_factory=time.monotonic)
    _first_s: float | None = None
    _num_first: int = 0
    _printed_s: float = field(default_factory=time.monotonic)
    _num_printed: int = -1

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, num_rows: int, rejected: Mapping[str, int], usage: Usage) -> None:
        """Count rows, and print where it is time."""
        now_s = time.monotonic()
        self.num_done += num_rows
        self.num_rejected += sum(rejected.values())
        if self._first_s is None:
            # The rate leaves out the engine's start, or the time left would be far too long at first.
            self._first_s, self._num_first = now_s, self.num_done
        if now_s - self._printed_s >= _EVERY_S:
            self._printed_s = now_s
            self._print(now_s)

    def close(self) -> None:
        """Print the last line, where it is not printed yet."""
        if self._num_printed != self.num_done:
            self._print(time.monotonic())

    def _print(self, now_s: float) -> None:
        self._num_printed = self.num_done
        since_s = now_s - (self._first_s or now_s)
        rate = (self.num_done - self._num_first) / since_s if since_s > 0 else 0.0
        num_left = self.num_rows - self.num_done
        speed = f"{rate:,.1f} rows/s, " if rate else ""
        left = f", {num_left / rate:,.0f} s left" if rate and num_left else ""
        print(
            f"{self.stage}: {self.num_done:,}/{self.num_rows:,} rows, {speed}"
            f"{self.num_rejected:,} rejected, {now_s - self._started_s:,.0f} s{left}",
            file=self.sink,
            flush=True,
        )
