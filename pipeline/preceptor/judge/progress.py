"""How far a long stage is: a live bar on a terminal, plain lines elsewhere, and the same figures for Prometheus."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from preceptor.judge.replies import Usage
from preceptor.tally import SAY_EVERY_S, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from preceptor.judge.watch import Watch

_WINDOW_S: Final = 60.0
_SAMPLE_S: Final = 1.0
_NUM_SHOWN: Final = 3
_MAX_REASON: Final = 60

MAX_REASONS: Final = 20
OTHER: Final = "other"
"""What reasons count as once there are `MAX_REASONS`: a reason may quote what was seen, and rows are many."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a stage has done by one moment.

    `rate` is in rows/s over about the last minute, and sinks while nothing comes in; `mean_rate` is since the first
    answer. Both are 0 where there is nothing to tell them from.
    """

    stage: str
    num_rows: int
    num_done: int
    rejected: Mapping[str, int]
    usage: Usage
    elapsed_s: float
    rate: float
    mean_rate: float

    @property
    def num_left(self) -> int:
        """Rows that are still to come."""
        return max(self.num_rows - self.num_done, 0)

    @property
    def seconds_left(self) -> float | None:
        """What they take at the recent rate; None where there is none."""
        return self.num_left / self.rate if self.rate else None


class View(Protocol):
    """Where a user sees it."""

    def show(self, standing: Standing) -> None:
        """Called whenever rows were counted."""

    def close(self, standing: Standing) -> None:
        """Called once, at the end."""


@dataclass(kw_only=True)
class Progress:
    """Counts the rows of `stage` and shows them on `sink`: live on a terminal, otherwise a line every few seconds.

    The same is counted in `watch`, where there is one. Use it as a context manager, or close it: the terminal is only
    then given back. `clock` is in seconds.
    """

    stage: str
    num_rows: int
    judge: str = ""
    sink: TextIO = field(default_factory=lambda: sys.stderr)
    watch: Watch | None = None
    clock: Callable[[], float] = time.monotonic
    num_done: int = 0
    usage: Usage = field(default_factory=Usage)
    rejected: Counter[str] = field(default_factory=Counter)
    _started_s: float = field(init=False)
    # Samples of (seconds, rows done), the first of all and those of the last minute. The rate leaves out the engine's
    # start, and with it the rows of the first answer, or the time left would be far too long at first.
    _first: tuple[float, int] | None = field(init=False, default=None)
    _recent: deque[tuple[float, int]] = field(init=False, default_factory=deque)
    _view: View | None = field(init=False)

    def __post_init__(self) -> None:
        self._started_s = self.clock()
        self._view = _view_on(self.sink, self.standing)
        if self.watch is not None:
            self.watch.follow(self.stage, self.standing)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, num_rows: int, rejected: Mapping[str, int], usage: Usage) -> None:
        """Count `num_rows` answered rows, those `rejected` among them by reason, and what they took."""
        self.num_done += num_rows
        self.usage += usage
        counted = bounded(rejected, self.rejected)
        # Replaced, never changed in place: `standing` may be reading in another thread.
        self.rejected = self.rejected + Counter(counted)
        self._sample(self.clock())
        if self.watch is not None:
            self.watch.count(stage=self.stage, judge=self.judge, num_rows=num_rows, rejected=counted, usage=usage)
        if self._view is not None:
            self._view.show(self.standing())

    def close(self) -> None:
        """Show where it ended and give the terminal back; a second call does nothing."""
        view, self._view = self._view, None
        if view is None:
            return
        if self.watch is not None:
            self.watch.leave(self.stage)
        view.close(self.standing())

    def standing(self) -> Standing:
        """What is done by now; safe to call from another thread."""
        now_s = self.clock()
        oldest = self._recent[0] if self._recent else (now_s, 0)
        return Standing(
            stage=self.stage,
            num_rows=self.num_rows,
            num_done=self.num_done,
            rejected=dict(self.rejected.most_common()),
            usage=self.usage,
            elapsed_s=now_s - self._started_s,
            rate=_rate(oldest, now_s, self.num_done),
            mean_rate=_rate(self._first or (now_s, 0), now_s, self.num_done),
        )

    def _sample(self, now_s: float) -> None:
        sample = (now_s, self.num_done)
        if self._first is None:
            self._first = sample
        # Appended before old ones go: another thread always finds a first one.
        if not self._recent or now_s - self._recent[-1][0] >= _SAMPLE_S:
            self._recent.append(sample)
        while len(self._recent) > 1 and self._recent[1][0] <= now_s - _WINDOW_S:
            self._recent.popleft()


def bounded(rejected: Mapping[str, int], known: Mapping[str, int]) -> dict[str, int]:
    """`rejected` with reasons cut to one short line, and as `OTHER` those that would make `known` too many."""
    counted: Counter[str] = Counter()
    for reason, num in rejected.items():
        short = " ".join(reason.split())[:_MAX_REASON]
        room = len(known.keys() | counted.keys() | {OTHER}) < MAX_REASONS
        counted[short if short in known or short in counted or room else OTHER] += num
    return dict(counted)


def _rate(since: tuple[float, int], now_s: float, num_done: int) -> float:
    since_s, num_before = since
    return (num_done - num_before) / (now_s - since_s) if now_s > since_s else 0.0


def _view_on(sink: TextIO, standing: Callable[[], Standing]) -> View:
    if not sink.isatty():
        return PlainLines(sink=sink)
    from rich.console import Console

    console = Console(file=sink)
    # Emacs shells and the like: a terminal whose cursor cannot be moved.
    return PlainLines(sink=sink) if console.is_dumb_terminal else Bar(console=console, standing=standing)


@dataclass(kw_only=True)
class PlainLines:
    """A line every few seconds, and one at the end."""

    sink: TextIO
    _printed_s: float = 0.0

    def show(self, standing: Standing) -> None:
        """Print a line where it is time."""
        if standing.elapsed_s - self._printed_s >= SAY_EVERY_S:
            self._printed_s = standing.elapsed_s
            print(line(standing), file=self.sink, flush=True)

    def close(self, standing: Standing) -> None:
        """Print the last line."""
        print(last_line(standing), file=self.sink, flush=True)


class Bar:
    """A bar that redraws itself a few times a second, so that a stall shows, and gives way to one line at the end."""

    def __init__(self, *, console: Console, standing: Callable[[], Standing]) -> None:
        from rich.live import Live

        self._console = console
        # What other code prints to stderr meanwhile appears above the bar.
        self._live = Live(
            get_renderable=lambda: drawn(standing()), console=console, refresh_per_second=4, transient=True
        )
        self._live.start()

    def show(self, standing: Standing) -> None:
        """Nothing: the bar asks for itself."""

    def close(self, standing: Standing) -> None:
        """Take the bar away and print the last line."""
        self._live.stop()
        self._console.print(last_line(standing), markup=False, highlight=False, soft_wrap=True)


def drawn(standing: Standing) -> RenderableType:
    """A bar with rows, rate and time left; below it rejects, tokens and cost, where there are any."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, 1, None):
        grid.add_column(ratio=ratio, no_wrap=True)
    # Before the first answer there is an engine to start, of which nobody knows how long it takes.
    waiting = standing.num_done == 0
    bar = ProgressBar(total=max(standing.num_rows, 1), completed=standing.num_done, pulse=waiting)
    grid.add_row(standing.stage, bar, ", ".join([_rows(standing), *_pace(standing)]))
    below = ", ".join([*_rejects(standing), *_tokens(standing.usage)])
    return Group(grid, *([Text(f"  {below}", no_wrap=True, overflow="ellipsis")] if below else []))


def line(standing: Standing) -> str:
    """All figures in one line, with the recent rate and the time left."""
    said = [_rows(standing), *_pace(standing), *_rejects(standing), *_tokens(standing.usage)]
    return f"{standing.stage}: {', '.join(said)}, after {duration(standing.elapsed_s)}"


def last_line(standing: Standing) -> str:
    """All figures in one line, with the mean rate."""
    rate = [f"{standing.mean_rate:,.1f} rows/s"] if standing.mean_rate else []
    said = [_rows(standing), *rate, *(_rejects(standing) or ["0 rejected"]), *_tokens(standing.usage)]
    return f"{standing.stage}: {', '.join(said)}, in {duration(standing.elapsed_s)}"


def _rows(standing: Standing) -> str:
    return f"{standing.num_done:,}/{standing.num_rows:,} rows"


def _pace(standing: Standing) -> list[str]:
    if standing.seconds_left is None:
        return []
    left = [f"{duration(standing.seconds_left)} left"] if standing.num_left else []
    return [f"{standing.rate:,.1f} rows/s", *left]


def _rejects(standing: Standing) -> list[str]:
    if not standing.rejected:
        return []
    first = sorted(standing.rejected.items(), key=lambda found: -found[1])[:_NUM_SHOWN]
    more = ["..."] if len(standing.rejected) > _NUM_SHOWN else []
    reasons = ", ".join([*(f"{reason} {num:,}" for reason, num in first), *more])
    return [f"{sum(standing.rejected.values()):,} rejected ({reasons})"]


def _tokens(usage: Usage) -> list[str]:
    said = []
    if usage.num_prompt_tokens:
        cached = f" ({100 * usage.num_cached_tokens / usage.num_prompt_tokens:.0f} % cached)"
        said.append(f"{_short(usage.num_prompt_tokens)} tokens read{cached if usage.num_cached_tokens else ''}")
    if usage.num_generated_tokens:
        said.append(f"{_short(usage.num_generated_tokens)} written")
    if usage.cost_usd:
        said.append(f"${usage.cost_usd:,.2f}" if usage.cost_usd >= 0.01 else f"${usage.cost_usd:.2g}")
    return said


def _short(num: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if num >= 10 * size:
            return f"{num / size:,.1f} {unit}"
    return f"{num:,}"
