"""What was joined and what was not, as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_WHY: Final = {
    "joined": "an action of an impression",
    "duplicate": "the same action on the same document of the same request came before",
    "late": "longer after the answer than late_after_s",
    "before it was served": "longer before the answer than clock_skew_s",
    "position out of range": "the answer has no such position",
    "unknown document": "the answer has no such document",
    "document in several places": "several rows of the answer fit; give part and position",
    "document and position disagree": "another document stood there",
    "no propensity at its position": "the curve of propensities ends above it",
    "request not sampled": "the log's rate leaves this request out",
    "unknown request": "the log should hold this request and does not: dropped, lost, or not from this scorer",
}


def table_of(metrics: Mapping[str, Any], bad: Mapping[str, int]) -> str:
    """table.md as one string: events by what became of them, bad rows by rule, impressions, and propensities."""
    events = metrics["events"]
    total = sum(events.values()) + sum(bad.values())
    lines = ["# Feedback", "", "| event rows | number | share | what that means |", "| --- | ---: | ---: | --- |"]
    lines += [_row(reason, num, total, _WHY[reason]) for reason, num in events.items()]
    lines += [_row(f"bad row: {reason}", num, total, "rejects/ has file and line") for reason, num in bad.items()]
    lines += [_row("all", total, total, ""), ""]
    if metrics["num_events_without_time"]:
        lines += [f"{metrics['num_events_without_time']:,} events bring no time, so none of them can be late.", ""]
    lines += [
        "| log | number |",
        "| --- | ---: |",
        f"| requests | {metrics['num_requests']:,} |",
        f"| answered again later under the same id, left out | {metrics['num_requests_answered_again']:,} |",
        f"| impressions | {metrics['num_impressions']:,} |",
        f"| rows below the last position with a propensity, left out | {metrics['num_rows_without_propensity']:,} |",
        f"| clicks | {metrics['num_click']:,} |",
        f"| applications | {metrics['num_apply']:,} |",
        f"| pairs | {metrics['num_pairs']:,} |",
        f"| pairs with a text | {metrics['num_pairs_with_text']:,} |",
        "",
        *_curve(metrics["propensity"]),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, num: int, total: int, why: str) -> str:
    return f"| {name} | {num:,} | {num / total if total else 0:.1%} | {why} |"


def _curve(curve: Mapping[str, Any]) -> list[str]:
    if curve["source"] == "file":
        head = "Propensities were given in a file."
        rows = [f"| {number} | {value:.4f} | |" for number, value in enumerate(curve["values"], start=1)]
    else:
        head = (
            "Propensities were estimated from pairs shown at neighbouring positions; position 1 is set to 1. "
            f"{curve['num_clipped']} came out above 1 and were cut."
        )
        numbered = enumerate(zip(curve["values"], curve["clicks"], strict=True), start=1)
        rows = [f"| {number} | {value:.4f} | {clicks:,} |" for number, (value, clicks) in numbered]
    return [head, "", "| position | propensity | clicks it rests on |", "| --- | ---: | ---: |", *rows]
