"""One part of the served log joined with the events of its requests. No files."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import ACTIONS, IMPRESSIONS, split_of
from preceptor.feedback.events import Event

JOINED: Final = pa.schema(
    [field for field in IMPRESSIONS if field.name != "propensity"]
    + [pa.field("num_events", pa.int32(), nullable=False)],
    metadata={b"contract": b"JOINED"},
)
"""IMPRESSIONS before it is known how likely the position was examined, and how many events made its actions."""

REASONS: Final = (
    "joined",
    "duplicate",
    "late",
    "before it was served",
    "position out of range",
    "unknown document",
    "document in several places",
    "document and position disagree",
    "no propensity at its position",
    "request not sampled",
    "unknown request",
)
"""What can become of an event, in the order of the table."""


def join_part(
    served: Sequence[Mapping[str, Any]],
    events: Mapping[str, Sequence[Event]],
    *,
    splits: Mapping[str, str],
    late_after_s: float,
    clock_skew_s: float,
    skip: frozenset[str],
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """JOINED rows of `served` (SERVED rows), a request's together, and what became of the events of its requests.

    Requests in `skip` are left out. Of a request that was answered twice the first answer counts. `splits` are known
    splits by query_id; others follow from the id.
    """
    joined: list[dict[str, Any]] = []
    outcomes: Counter[str] = Counter()
    requests: dict[str, list[Mapping[str, Any]]] = {}
    for row in served:
        requests.setdefault(row["request_id"], []).append(row)
    for request_id, answers in requests.items():
        if request_id in skip:
            continue
        rows = [row for row in answers if row["served_at"] == answers[0]["served_at"]]
        found = _actions(rows, events.get(request_id, ()), outcomes, late_after_s, clock_skew_s)
        joined += [_joined(row, found.get(index, frozenset()), splits) for index, row in enumerate(rows)]
    return joined, outcomes


def _actions(
    rows: Sequence[Mapping[str, Any]],
    events: Sequence[Event],
    outcomes: Counter[str],
    late_after_s: float,
    clock_skew_s: float,
) -> dict[int, frozenset[str]]:
    """The actions on each of `rows`, by index; `outcomes` is counted up by what became of each event."""
    found: dict[int, frozenset[str]] = {}
    for event in events:
        index, reason = _row_of(event, rows)
        if index is not None:
            reason = _untimely(event, rows[index]["served_at"], late_after_s, clock_skew_s) or (
                "duplicate" if event.action in found.get(index, ()) else "joined"
            )
        outcomes[reason] += 1
        if index is not None and reason == "joined":
            found[index] = found.get(index, frozenset()) | {event.action}
    return found


def _row_of(event: Event, rows: Sequence[Mapping[str, Any]]) -> tuple[int | None, str]:
    """The index of the row that `event` speaks of, or None and why there is none."""
    asked = [index for index, row in enumerate(rows) if event.part is None or row["part"] == event.part]
    at = [index for index in asked if rows[index]["position"] == event.position]
    named = [index for index in asked if event.document in (rows[index]["document_name"], rows[index]["document_id"])]
    if event.document is None:
        found, none = at, "position out of range"
    elif event.position is None:
        found, none = named, "unknown document"
    else:
        found = [index for index in named if index in at]
        none = "unknown document" if not named else "document and position disagree" if at else "position out of range"
    if not found:
        return None, none
    return (found[0], "") if len(found) == 1 else (None, "document in several places")


def _untimely(event: Event, served_at: datetime.datetime, late_after_s: float, clock_skew_s: float) -> str | None:
    if event.at is None:
        return None
    after_s = (event.at - served_at).total_seconds()
    if after_s > late_after_s:
        return "late"
    return "before it was served" if after_s < -clock_skew_s else None


def _joined(row: Mapping[str, Any], actions: frozenset[str], splits: Mapping[str, str]) -> dict[str, Any]:
    same = ("pair_id", "query_id", "profile_id", "document_id", "position")
    part = f"/{row['part']}" if row["part"] else ""
    return {
        # Parts of one body are requests of their own: each has its first position.
        "request_id": f"{row['request_id']}{part}",
        **{name: row[name] for name in same},
        "shown_at": row["served_at"],
        **{action: action in actions for action in ACTIONS},
        "split": splits.get(row["query_id"]) or split_of(row["query_id"]),
        "num_events": len(actions),
    }
