"""How likely each position is examined: given by its owner, or estimated from the log. Never made up."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from preceptor.errors import InputError, located

MIN_CLICKS: Final = 50
"""Clicks that each of two neighbouring positions needs, on pairs shown at both: their ratio is then good to a fifth."""

_COLUMNS: Final = ["position", "propensity"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The propensity of positions 1, 2, ..., and where it is from. Positions beyond have none.

    `clicks` are those the estimate of each position rests on; none where a file gave it.
    """

    source: Literal["file", "estimated"]
    values: tuple[float, ...]
    clicks: tuple[int, ...] = ()
    num_clipped: int = 0


def read_curve(file: Path) -> Curve:
    """The curve in the CSV `file`, with the header ``position,propensity`` and positions from 1 on without a gap.

    InputError naming the line where a propensity is not above 0 and at most 1, or a position is not the next.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not readable as text ({error}). Check --propensities.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if [name.strip() for name in reader.fieldnames or ()] != _COLUMNS:
        raise InputError(located(f"the header must be {','.join(_COLUMNS)}. Write it so.", file=file, line=1))
    values: list[float] = []
    for row in reader:
        position, propensity = (row.get(name) for name in reader.fieldnames or ())
        wanted = len(values) + 1
        if (position or "").strip() != str(wanted):
            message = f"must be {wanted}, got '{position}'. Name every position once, from 1 on."
            raise InputError(located(message, file=file, line=reader.line_num, column="position"))
        values.append(_propensity(propensity, file, reader.line_num))
    if not values:
        raise InputError(f"{file}: no position. Add a line for each position that is shown.")
    return Curve(source="file", values=tuple(values))


def _propensity(text: str | None, file: Path, line: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        message = f"must be a number above 0 and at most 1, got '{text}'. Mend it."
        raise InputError(located(message, file=file, line=line, column="propensity"))
    return value


def estimate_curve(joined: Iterable[pa.Table], *, min_clicks: int = MIN_CLICKS) -> Curve:
    """The curve that the log itself shows, with position 1 set to 1.

    A pair that was shown at both of two neighbouring positions is equally attractive at both, so the ratio of its click
    rates is the ratio of their propensities (Agarwal et al., "Estimating Position Bias without Intrusive
    Interventions", WSDM 2019, the adjacent chain). Pairs count by n1 * n2 / (n1 + n2) of their impressions. The curve
    ends before the first position with fewer than `min_clicks`; ratios that bring it over 1 are cut and counted.

    `joined` are tables with pair_id, position, click and split, of which the train rows count. InputError where not
    even position 2 can be estimated.
    """
    seen: dict[int, dict[str, tuple[int, int]]] = {}
    for row in _counts(joined):
        seen.setdefault(row["position"], {})[row["pair_id"]] = (row["num_shown"], row["num_clicks"])
    values, clicks, num_clipped = [1.0], [0], 0
    while True:
        ratio, support = _ratio(seen.get(len(values), {}), seen.get(len(values) + 1, {}))
        if support < min_clicks or ratio <= 0:
            break
        num_clipped += values[-1] * ratio > 1
        values.append(min(values[-1] * ratio, 1.0))
        clicks.append(support)
    if len(values) == 1:
        raise InputError(
            f"propensities cannot be estimated: {support} clicks on pairs shown both at position 1 and 2, {min_clicks} "
            "are needed. Log more traffic, or give --propensities a CSV file."
        )
    clicks[0] = clicks[1]
    return Curve(source="estimated", values=tuple(values), clicks=tuple(clicks), num_clipped=num_clipped)


def _counts(joined: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """{pair_id, position, num_shown, num_clicks} of the train rows."""
    import pyarrow.compute as pc

    parts = [
        table.filter(pc.equal(table["split"], "train")).select(["pair_id", "position", "click"]) for table in joined
    ]
    if not parts:
        return []
    table = pa.concat_tables(parts)
    table = table.set_column(2, "click", table["click"].cast(pa.int64()))
    grouped = table.group_by(["pair_id", "position"]).aggregate([("click", "count"), ("click", "sum")])
    return grouped.rename_columns({"click_count": "num_shown", "click_sum": "num_clicks"}).to_pylist()


def _ratio(upper: dict[str, tuple[int, int]], lower: dict[str, tuple[int, int]]) -> tuple[float, int]:
    """Propensity of the lower position over the upper's, and the clicks of the one that has fewer."""
    sums, clicks = [0.0, 0.0], [0, 0]
    # Sorted, so that the sum does not depend on the order of the files.
    for pair_id in sorted(upper.keys() & lower.keys()):
        sides = (upper[pair_id], lower[pair_id])
        weight = 1 / sum(1 / num_shown for num_shown, _ in sides)
        for side, (num_shown, num_clicks) in enumerate(sides):
            sums[side] += weight * num_clicks / num_shown
            clicks[side] += num_clicks
    return (sums[1] / sums[0] if sums[0] > 0 else 0.0), min(clicks)
