"""The served log: what was answered to sampled requests, as Parquet parts in the SERVED contract.

A request hands its answer over and goes on. One thread turns answers into rows, and a part is written under a hidden
name, synced and renamed when it has enough rows or is old enough; closing writes what is left. What does not fit the
queue is counted and dropped. Texts go to a folder of their own, as PAIRS, and only where the operator names one.
"""

from __future__ import annotations

import asyncio
import atexit
import datetime
import logging
import os
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import ConfigDict

from preceptor.contracts import (
    PAIRS,
    SERVED,
    SERVED_SLICE,
    content_id,
    is_sampled,
    make_pair,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError, PreceptorError
from preceptor_serve.blending import blended
from preceptor_serve.metrics import Metrics
from preceptor_serve.reading import Ask
from preceptor_serve.scorer import Answer

_RETRY_S: Final = 1.0
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Where the log goes and how much of the traffic it keeps.

    `texts` None keeps no text. `rate` is the share of requests kept, chosen by a hash of the request's id. The queue
    holds at most `max_waiting_rows` documents and `max_waiting_chars` characters. A part is closed with `part_rows`
    rows, or `part_s` seconds after its first: what a killed process loses.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    folder: Path
    rate: float
    texts: Path | None = None
    max_waiting_rows: int = 50_000
    max_waiting_chars: int = 64 * 1024 * 1024
    part_rows: int = 50_000
    part_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"the log's rate is a share of requests above 0 and at most 1, got {self.rate:g}")
        for name in ("max_waiting_rows", "max_waiting_chars", "part_rows", "part_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"the log's {name} must be above 0, got {getattr(self, name):g}")
        if self.texts is not None and self.texts.resolve() == self.folder.resolve():
            raise ValueError("the log's texts need a folder of their own, apart from folder")


def log_of(folder: Path | None, *, rate: float | None, texts: Path | None) -> LogOptions | None:
    """The log of these options of a command line, None where they name no folder; InputError where they do not fit."""
    if folder is None:
        if rate is not None or texts is not None:
            raise InputError("--log-rate and --log-texts go with --log FOLDER.")
        return None
    if rate is None:
        raise InputError("--log needs --log-rate: the share of requests to keep, such as 0.1.")
    try:
        return LogOptions(folder=folder.resolve(), rate=rate, texts=None if texts is None else texts.resolve())
    except ValueError as error:
        raise InputError(f"{error}. Change --log-rate or --log-texts.") from error


@dataclass(frozen=True, kw_only=True)
class Part:
    """One query of an answered request; `top_n` is how many of its documents the answer named, None for all."""

    ask: Ask
    names: Sequence[str | None]
    answer: Answer
    top_n: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    request_id: str
    served_at: datetime.datetime
    parts: tuple[Part, ...]
    num_rows: int
    num_chars: int


@dataclass
class _Open:
    """The part in the making."""

    served: list[pa.Table] = field(default_factory=list)
    pairs: list[pa.Table] = field(default_factory=list)
    pair_ids: set[str] = field(default_factory=set)
    num_rows: int = 0
    num_chars: int = 0
    ends_s: float | None = None


class ServedLog:
    """The log of one edge process; `replica` keeps its files apart from its siblings'. Raises InputError where a folder
    cannot be made or written to."""

    def __init__(self, options: LogOptions, *, metrics: Metrics, replica: str) -> None:
        self._options = options
        self._metrics = metrics
        for folder in (options.folder, options.texts):
            if folder is not None:
                _make_private(folder)
        self._name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', replica)}-{time.time_ns()}"
        self._num_parts = 0
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        # Each is counted up by one thread alone, so that neither side ever waits for a lock of the other.
        self._rows_in = self._chars_in = 0
        self._rows_out = self._chars_out = 0
        self._open = _Open()
        self._retry_s = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()
        # Where no server shuts the application down, the interpreter's end does.
        atexit.register(self.close)

    def wants(self, request_id: str) -> bool:
        """Whether the request is sampled."""
        return is_sampled(request_id, self._options.rate)

    def offer(self, request_id: str, parts: tuple[Part, ...]) -> None:
        """Queue an answered request, or count its documents as dropped; to be called from one thread."""
        num_rows = sum(len(part.ask.documents) for part in parts)
        num_chars = sum(part.ask.num_chars for part in parts)
        if self._closing.is_set():
            self._metrics.lost(num_rows, reason="closed")
            return
        rows = self._rows_in - self._rows_out + num_rows
        chars = self._chars_in - self._chars_out + num_chars
        if rows > self._options.max_waiting_rows or chars > self._options.max_waiting_chars:
            self._metrics.lost(num_rows, reason="full")
            return
        self._rows_in += num_rows
        self._chars_in += num_chars
        self._metrics.waiting(rows)
        now = datetime.datetime.now(datetime.UTC)
        self._queue.put(
            _Entry(request_id=request_id, served_at=now, parts=parts, num_rows=num_rows, num_chars=num_chars)
        )

    def close(self) -> None:
        """Returns once everything queued is written; what is offered from now on is dropped."""
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        self._thread.join()
        atexit.unregister(self.close)

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """An ASGI application's lifespan: the log is closed when the last request has been answered."""
        yield
        await asyncio.to_thread(self.close)

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            if isinstance(entry, _Entry):
                self._take(entry)
            if self._is_due() and not self._write() and not self._closing.is_set():
                # The rows stay: the queue fills up behind them and drops, counted.
                self._closing.wait(_RETRY_S)
        if self._open.num_rows and not self._write():
            self._metrics.lost(self._open.num_rows, reason="disk")
            self._done()

    def _next(self) -> _Entry | Literal[False] | None:
        """The next entry, False where the open part grew old first, None at the end."""
        ends_s = self._open.ends_s
        wait_s = None if ends_s is None else max(ends_s - time.monotonic(), self._retry_s - time.monotonic(), 0)
        try:
            return self._queue.get(timeout=wait_s)
        except queue.Empty:
            return False

    def _is_due(self) -> bool:
        """Whether the open part is to be written: it is full or old, or takes half the room that may be taken."""
        part, options, now_s = self._open, self._options, time.monotonic()
        if part.ends_s is None or now_s < self._retry_s:
            return False
        is_full = part.num_rows >= min(options.part_rows, options.max_waiting_rows / 2)
        return is_full or part.num_chars >= options.max_waiting_chars / 2 or now_s >= part.ends_s

    def _take(self, entry: _Entry) -> None:
        try:
            rows = list(rows_of(entry.request_id, entry.served_at, entry.parts, rate=self._options.rate))
            served = rows_to_table(rows, SERVED)
            fresh = {} if self._options.texts is None else self._unseen(entry.parts)
            pairs = rows_to_table(fresh.values(), PAIRS)
        except Exception as error:
            # The log must not end, and what it says must not quote a member.
            _LOG.error("served log: a request could not be turned into rows (%s)", type(error).__name__)
            self._metrics.lost(entry.num_rows, reason="defect")
            self._rows_out += entry.num_rows
            self._chars_out += entry.num_chars
            return
        self._open.served.append(served)
        self._open.pairs.append(pairs)
        self._open.pair_ids |= fresh.keys()
        self._open.num_rows += entry.num_rows
        if self._options.texts is None:
            self._chars_out += entry.num_chars
        else:
            self._open.num_chars += entry.num_chars
        if self._open.ends_s is None:
            self._open.ends_s = time.monotonic() + self._options.part_s

    def _unseen(self, parts: Iterable[Part]) -> dict[str, Mapping[str, str]]:
        """The PAIRS rows of `parts` that the open part does not hold yet, by pair_id."""
        found: dict[str, Mapping[str, str]] = {}
        for part in parts:
            for document in part.ask.documents:
                pair = make_pair(part.ask.query, part.ask.profile, document, slice=SERVED_SLICE)
                if pair["pair_id"] not in self._open.pair_ids:
                    found[pair["pair_id"]] = pair
        return found

    def _write(self) -> bool:
        """Whether the open part is written; where the disk refuses, it stays and may be tried again in a second."""
        part = self._open
        name = f"{self._name}-{self._num_parts:06d}.parquet"
        try:
            # Texts first: a row of the log never stands without the text it was to have.
            if self._options.texts is not None:
                write_table(pa.concat_tables(part.pairs), self._options.texts / name, PAIRS)
            write_table(pa.concat_tables(part.served), self._options.folder / name, SERVED)
        except (PreceptorError, OSError, pa.ArrowException) as error:
            _LOG.error("served log: %s", error)
            self._retry_s = time.monotonic() + _RETRY_S
            return False
        self._num_parts += 1
        self._metrics.kept(sum(table.num_rows for table in part.served))
        self._done()
        return True

    def _done(self) -> None:
        self._rows_out += self._open.num_rows
        self._chars_out += self._open.num_chars
        self._metrics.waiting(self._rows_in - self._rows_out)
        self._open = _Open()


def rows_of(
    request_id: str, served_at: datetime.datetime, parts: Sequence[Part], *, rate: float
) -> Iterable[dict[str, Any]]:
    """The SERVED rows of an answered request, for each of its queries by position; ties in the request's order."""
    for number, part in enumerate(parts):
        ask, identity = part.ask, part.answer.identity
        values = [score.score if ask.blend is None else blended(score, ask.blend) for score in part.answer.scores]
        order = sorted(range(len(values)), key=lambda index: (-values[index], index))[: part.top_n]
        query_id, profile_id = content_id(ask.query), content_id(ask.profile)
        for position, index in enumerate(order, start=1):
            document_id = content_id(ask.documents[index])
            yield {
                "request_id": request_id,
                "part": number,
                "served_at": served_at,
                "pair_id": content_id(query_id, profile_id, document_id),
                "query_id": query_id,
                "profile_id": profile_id,
                "document_id": document_id,
                "document_name": part.names[index],
                "position": position,
                "score": values[index],
                "expected_grade": part.answer.scores[index].expected_grade,
                "actions": dict(part.answer.scores[index].actions),
                "rate": rate,
                "bundle_id": identity.bundle_id,
                "policy_version": identity.policy_version,
            }


def _make_private(folder: Path) -> None:
    """`folder`, made for its owner alone where it is not there; InputError where it cannot be written to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}). Choose another folder for the log.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: not writable. Choose another folder for the log, or mend its permissions.")
