"""Tables of words that a stage reports: kept in its record's metrics, shown in report.html, written as Markdown."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from preceptor.errors import StageFailed
from preceptor.evaluation.metrics import Interval
from preceptor.record import Record

METRIC: Final = "sheet"
"""The name under which a record's metrics keep the stage's table."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of words. `caption` says what is measured, and which of it is real, simulated or assumed."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_metric(self) -> dict[str, Any]:
        """The table in plain JSON types, for a record's metrics."""
        return {**asdict(self), "header": list(self.header), "rows": [list(row) for row in self.rows]}

    def markdown(self) -> str:
        """The table as a page of Markdown: title, caption, and a pipe table."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"# {self.title}\n\n{self.caption}\n\n{table}\n"

    def text(self) -> str:
        """The table for a terminal: title, caption, and columns that stand under their names."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (self.header, *self.rows)
        ]
        return "\n".join([self.title, self.caption, *lines])


def sheets_of(records: Mapping[str, Record]) -> tuple[Sheet, ...]:
    """The tables that the stages of `records` report, in their order."""
    kept = [record.metrics[METRIC] for record in records.values() if METRIC in record.metrics]
    return tuple(
        Sheet(
            title=sheet["title"],
            caption=sheet["caption"],
            header=tuple(sheet["header"]),
            rows=tuple(tuple(row) for row in sheet["rows"]),
        )
        for sheet in kept
    )


def interval_words(interval: Interval) -> tuple[str, str]:
    """The estimate and its interval, to three digits: ``("0.742", "[0.691, 0.788]")``; NaN is 'undefined'."""
    if math.isnan(interval.value):
        return "undefined", ""
    if math.isnan(interval.low):
        return f"{interval.value:.3f}", ""
    return f"{interval.value:.3f}", f"[{interval.low:.3f}, {interval.high:.3f}]"


def write_text(file: Path, text: str) -> Path:
    """`file`, holding `text`, written whole or not at all; StageFailed where the disk refuses."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as sink:
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(file)
    except OSError as error:
        raise StageFailed(
            f"{file}: could not be written ({error}). Free some space or choose another --root."
        ) from error
    return file
