"""Every candidate of a search, usable or not: its texts, its parent, what it scored and took, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import whole_file
from preceptor.refine.acceptance import Measurement
from preceptor.refine.candidate import candidate_id
from preceptor.refine.measuring import Spend

CANDIDATES: Final = "candidates.jsonl"
TABLE: Final = "candidates.md"


class Verdict(StrEnum):
    """What became of a candidate."""

    AS_IT_IS = "as it is"
    UNUSABLE = "unusable"
    MINIBATCH = "no gain on its minibatch"
    OPEN = "in the search"
    NOT_MEASURED = "not measured"
    HARMFUL = "harmful"
    NOISE = "within the noise"
    ACCEPTED = "accepted"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row: number 0 is the policy as it is.

    `score` is its mean agreement on the pairs it was optimised on; `minibatch` that of parent and candidate on the few
    pairs it was proposed from; `measurements` are on pairs the search never saw.
    """

    number: int
    parent: int | None
    component: str | None
    texts: Mapping[str, str]
    verdict: Verdict
    reason: str = ""
    minibatch: tuple[float, float] | None = None
    score: float | None = None
    measurements: tuple[Measurement, ...] = ()
    spend: Spend = field(default_factory=Spend)

    @property
    def id(self) -> str:
        """A hash of its texts; an unusable proposal's is that of what it would have been."""
        return candidate_id(self.texts)


@dataclass(kw_only=True)
class Journal:
    """The candidates so far, in the order of their proposal, written out whole after every change."""

    folder: Path
    rows: list[Candidate] = field(default_factory=list)

    def add(self, **values: Any) -> Candidate:
        """A new row."""
        row = Candidate(number=len(self.rows), **values)
        self.rows.append(row)
        self._write()
        return row

    def update(self, number: int, **values: Any) -> Candidate:
        """Row `number` with `values`."""
        self.rows[number] = replace(self.rows[number], **values)
        self._write()
        return self.rows[number]

    def of(self, texts: Mapping[str, str]) -> Candidate | None:
        """The usable row that says `texts`."""
        wanted = candidate_id(texts)
        return next((row for row in self.rows if row.id == wanted and row.verdict is not Verdict.UNUSABLE), None)

    def _write(self) -> None:
        with whole_file(self.folder / CANDIDATES) as sink:
            for row in self.rows:
                sink.write(f"{json.dumps(_plain(row), ensure_ascii=False)}\n".encode())
        with whole_file(self.folder / TABLE) as sink:
            sink.write(table_of(self.rows).encode())


def table_of(rows: Sequence[Candidate]) -> str:
    """A Markdown table of the candidates, and the texts of those that were measured or accepted."""
    head = (
        "| # | parent | changes | minibatch | optimised on | first measurement | second measurement | calls | tokens | "
        "USD | verdict |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *map(_line, rows), "", *(_said(row) for row in rows if row.component)]) + "\n"


def _line(row: Candidate) -> str:
    measured = [str(measurement.overall) for measurement in row.measurements] + ["", ""]
    cells = [
        str(row.number),
        "" if row.parent is None else str(row.parent),
        row.component or "",
        "" if row.minibatch is None else f"{row.minibatch[0]:.3f} to {row.minibatch[1]:.3f}",
        "" if row.score is None else f"{row.score:.4f}",
        *measured[:2],
        f"{row.spend.num_metric_calls:,}",
        f"{row.spend.num_tokens:,}",
        f"{row.spend.usage.cost_usd:.4f}",
        f"{row.verdict}: {row.reason}" if row.reason else str(row.verdict),
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _said(row: Candidate) -> str:
    text = row.texts[row.component or ""]
    return f"**{row.number}, {row.component}:** " + " / ".join(text.splitlines())


def _plain(row: Candidate) -> dict[str, Any]:
    content = asdict(row)
    return {"id": row.id, **content, "texts": dict(row.texts), "verdict": str(row.verdict)}
