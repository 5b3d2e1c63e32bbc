"""What a shadow request showed: the live bundle's scores beside the candidate's, as Parquet parts without texts.

A request hands its comparison over and goes on; one thread writes. What does not fit the queue is dropped and counted.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.bundle import DocumentScore
from preceptor.contracts import content_id, rows_to_table, write_table
from preceptor.errors import InputError, PreceptorError
from preceptor_serve.scorer import Answer, Identity

MAX_WAITING: Final = 2_000
PART_ROWS: Final = 2_000
PART_S: Final = 5.0
_LOG: Final = logging.getLogger(__name__)

_SIDE: Final = pa.struct(
    [
        pa.field("score", pa.list_(pa.float64()), nullable=False),
        pa.field("expected_grade", pa.list_(pa.float64()), nullable=False),
        pa.field("grade", pa.list_(pa.int8()), nullable=False),
        pa.field("actions", pa.map_(pa.string(), pa.list_(pa.float64())), nullable=False),
    ]
)
COMPARED: Final = pa.schema(
    [
        pa.field("compared_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("live_bundle", pa.string(), nullable=False),
        pa.field("live_policy", pa.string(), nullable=False),
        pa.field("candidate_bundle", pa.string()),
        pa.field("candidate_policy", pa.string()),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("profile_id", pa.string(), nullable=False),
        pa.field("document_ids", pa.list_(pa.string()), nullable=False),
        pa.field("live_ms", pa.float64(), nullable=False),
        pa.field("candidate_ms", pa.float64(), nullable=False),
        pa.field("failure", pa.string()),
        pa.field("live", _SIDE, nullable=False),
        pa.field("candidate", _SIDE),
    ],
    metadata={"contract": "COMPARED"},
)
"""One row for each shadow request; lists are in the request's order, `grade` is the likeliest one."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One request as both bundles scored it; `failure` says why the candidate did not."""

    query: str
    profile: str
    documents: tuple[str, ...]
    live: Answer
    live_ms: float
    candidate: Answer | None = None
    candidate_ms: float = 0.0
    failure: str | None = None

    @classmethod
    def of(cls, query: str, profile: str, documents: tuple[str, ...], live: Answer, live_ms: float) -> Compared:
        """What the live bundle said, to be compared."""
        return cls(query=query, profile=profile, documents=documents, live=live, live_ms=live_ms)

    def beside(self, candidate: Answer, *, took_ms: float) -> Compared:
        """With what the candidate said."""
        return replace(self, candidate=candidate, candidate_ms=took_ms)

    def failed(self, reason: str, *, took_ms: float) -> Compared:
        """With why the candidate said nothing."""
        return replace(self, failure=reason, candidate_ms=took_ms)


def row_of(seen: Compared, at: datetime.datetime) -> dict[str, Any]:
    """The COMPARED row of `seen`: ids in the place of texts."""
    candidate: Identity | None = None if seen.candidate is None else seen.candidate.identity
    return {
        "compared_at": at,
        "live_bundle": seen.live.identity.bundle_id,
        "live_policy": seen.live.identity.policy_version,
        "candidate_bundle": None if candidate is None else candidate.bundle_id,
        "candidate_policy": None if candidate is None else candidate.policy_version,
        "query_id": content_id(seen.query),
        "profile_id": content_id(seen.profile),
        "document_ids": [content_id(document) for document in seen.documents],
        "live_ms": seen.live_ms,
        "candidate_ms": seen.candidate_ms,
        "failure": seen.failure,
        "live": _side(seen.live.scores),
        "candidate": None if seen.candidate is None else _side(seen.candidate.scores),
    }


def _side(scores: Sequence[DocumentScore]) -> Mapping[str, Any]:
    heads = sorted(set().union(*(score.actions for score in scores)))
    return {
        "score": [score.score for score in scores],
        "expected_grade": [score.expected_grade for score in scores],
        "grade": [max(range(len(s.grade_probs)), key=s.grade_probs.__getitem__) for s in scores],
        "actions": [(head, [score.actions[head] for score in scores]) for head in heads],
    }


class Comparisons:
    """Writes comparisons of one edge to `folder`; InputError where it cannot be made. `replica` names its files."""

    def __init__(self, folder: Path, *, replica: str, part_s: float = PART_S, max_waiting: int = MAX_WAITING) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror}). Choose another folder.") from error
        self._folder = folder
        self._name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', replica)}-{time.time_ns()}"
        self._part_s = part_s
        self._num_parts = 0
        self._queue: queue.Queue[tuple[datetime.datetime, Compared] | None] = queue.Queue(max_waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="comparisons", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def offer(self, seen: Compared) -> bool:
        """Whether `seen` is queued; never waits."""
        if self._closing.is_set():
            return False
        try:
            self._queue.put_nowait((datetime.datetime.now(datetime.UTC), seen))
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Returns once everything queued is written, or the disk refused it."""
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        rows: list[dict[str, Any]] = []
        ends_s: float | None = None
        while True:
            try:
                found = self._queue.get(timeout=None if ends_s is None else max(0.0, ends_s - time.monotonic()))
            except queue.Empty:
                self._write(rows)
                rows, ends_s = [], None
                continue
            if found is None:
                break
            try:
                rows.append(row_of(found[1], found[0]))
            except Exception as error:
                # The thread must not end, and what a defect says must not quote a member.
                _LOG.error("comparisons: a request could not be turned into a row (%s)", type(error).__name__)
                continue
            ends_s = ends_s or time.monotonic() + self._part_s
            if len(rows) >= PART_ROWS:
                self._write(rows)
                rows, ends_s = [], None
        self._write(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        try:
            file = self._folder / f"{self._name}-{self._num_parts:06d}.parquet"
            write_table(rows_to_table(rows, COMPARED), file, COMPARED)
            self._num_parts += 1
        except (PreceptorError, OSError, pa.ArrowException) as error:
            _LOG.error("comparisons: %d requests are lost (%s)", len(rows), type(error).__name__)
