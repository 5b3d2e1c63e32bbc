"""How far a long step of one process is: a line every few seconds, and none for what is done sooner."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TextIO

SAY_EVERY_S: Final = 4.0
"""How often a long step says how far it is, where nothing can be redrawn."""


@dataclass(kw_only=True)
class Tally:
    """Counts what is done of `total` and says so on `sink`: ``student scores: 512/13,400 pairs, 30.1/s, 7 min left``.

    The rate is since the first count, which leaves out what had to start before it. `clock` is in seconds.
    """

    label: str
    total: int
    unit: str
    sink: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    num_done: int = 0
    _said_s: float = field(init=False)
    _first: tuple[float, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._said_s = self.clock()

    def add(self, num: int) -> None:
        """Count `num` more, and print a line where the last one is some seconds ago."""
        self.num_done += num
        now_s = self.clock()
        if now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            said = [f"{self.num_done:,}/{self.total:,} {self.unit}", *self._rate(now_s)]
            print(f"{self.label}: {', '.join(said)}", file=self.sink, flush=True)
        if self._first is None:
            self._first = (now_s, self.num_done)

    def _rate(self, now_s: float) -> list[str]:
        first_s, num_before = self._first or (now_s, 0)
        if self.num_done <= num_before or now_s <= first_s:
            return []
        rate = (self.num_done - num_before) / (now_s - first_s)
        return [f"{rate:,.1f}/s", f"{duration(max(self.total - self.num_done, 0) / rate)} left"]


def duration(seconds: float) -> str:
    """`seconds` in the two largest units that matter: ``42 s``, ``3 min 20 s``, ``5 h 10 min``, ``2 d 4 h``."""
    whole = round(seconds)
    for size, unit, lower_size, lower_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // lower_size} {lower_unit}"
    return f"{whole} s"
