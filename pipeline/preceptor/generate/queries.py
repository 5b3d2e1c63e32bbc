"""Queries: written by rule or by a model, then accepted or rejected with a reason, until each style has its share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import REJECTS, content_id, iter_tables, rows_to_table, split_of, write_table
from preceptor.generate.drafts import DRAFTS, ORIGINS, quotas
from preceptor.generate.screen import PERSONAL, find_personal
from preceptor.generate.templates import spoken_place, spoken_title, write_by_rule
from preceptor.generate.texts import Mapped, write_ipc
from preceptor.recipe import CorporaConfig

QUERIES_PER_PART: Final = 128

QUERIES: Final = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("style", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("asked_title", pa.string(), nullable=False),
        pa.field("asked_place", pa.string(), nullable=False),
    ],
    metadata={b"contract": b"QUERIES"},
)
"""An accepted query: its style, the corpus it was born from and the place of its text there, and the title and
place that it asks for; empty where it names none."""

WRITTEN: Final = pa.schema(
    [
        pa.field("draft", pa.int64(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("fault", pa.string(), nullable=False),
    ],
    metadata={b"contract": b"WRITTEN"},
)

EMPTY: Final = "empty query"
OVER_LONG: Final = "over-long query"
COPIED: Final = "query copied from its text"
REPEATED: Final = "query written before"
OTHER_SPLIT: Final = "query in golden under another split"
NOT_NEEDED: Final = "spare not needed"

_MAX_WORDS: Final = 24
_MAX_CHARACTERS: Final = 160
_COPIED_WORDS: Final = 8
_WORD: Final = re.compile(r"\w+")


def write_queries(config: CorporaConfig, drafts: Mapped, folder: Path) -> dict[str, int]:
    """How many drafts were written, after writing WRITTEN parts to `folder`; drafts written before stay as they are."""
    done = {
        draft
        for file in folder.glob("part-*.parquet")
        for table in iter_tables(file, WRITTEN)
        for draft in table["draft"].to_pylist()
    }
    number = len(list(folder.glob("part-*.parquet")))
    for rows in _written(config, drafts, done):
        write_table(rows_to_table(rows, WRITTEN), folder / f"part-{number:06d}.parquet", WRITTEN)
        number += 1
    return {"written": drafts.num_rows}


def _written(config: CorporaConfig, drafts: Mapped, done: set[int]) -> Iterator[list[dict[str, Any]]]:
    tables = [pa.Table.from_batches([drafts.batch(number)]) for number in range(drafts.num_batches)]
    if config.writer is None:
        for table in tables:
            rows = [row for row in table.to_pylist() if row["draft"] not in done]
            if rows:
                yield [{"draft": row["draft"], "query": write_by_rule(row, config.seed), "fault": ""} for row in rows]
        return
    from preceptor.generate.writer import write_with_model

    whole = pa.concat_tables([DRAFTS.empty_table(), *tables])
    left = whole.filter(pa.array([draft not in done for draft in whole["draft"].to_pylist()], type=pa.bool_()))
    if left.num_rows:
        yield from write_with_model(left, config.writer, seed=config.seed)


def accept(
    config: CorporaConfig, drafts: Mapped, written: Path, *, golden_splits: Mapping[str, str], file: Path, rejects: Path
) -> dict[str, int]:
    """``{style} kept`` and ``{style} dropped {reason}``, after writing QUERIES to `file` in parts of equal size.

    Drafts are taken in their order, so that the result does not depend on which was written first.
    """
    texts: dict[int, tuple[str, str]] = {}
    for table in iter_tables(written, WRITTEN) if drafts.num_rows else ():
        for row in table.to_pylist():
            texts[row["draft"]] = (row["query"], row["fault"])
    left = {(origin, style): num for origin in ORIGINS for style, num in quotas(config, origin).items()}
    seen: set[str] = set()
    tally: Counter[str] = Counter()

    def decided() -> Iterator[tuple[dict[str, Any], str]]:
        for number in range(drafts.num_batches):
            for draft in drafts.batch(number).to_pylist():
                query, fault = texts[draft["draft"]]
                query_id = content_id(query)
                if not left[draft["origin"], draft["style"]]:
                    yield {**draft, "query": query}, NOT_NEEDED
                    continue
                reason = fault or fault_of(query, draft["text"], config.phone_regions)
                if not reason and query_id in seen:
                    reason = REPEATED
                if not reason and golden_splits.get(query_id, split_of(query_id)) != split_of(query_id):
                    reason = OTHER_SPLIT
                if not reason:
                    seen.add(query_id)
                    left[draft["origin"], draft["style"]] -= 1
                yield {**draft, "query": query}, reason

    dropped: list[dict[str, Any]] = []

    def batches() -> Iterator[pa.RecordBatch]:
        kept: list[dict[str, Any]] = []
        for draft, reason in decided():
            tally[f"{draft['style']} dropped {reason}" if reason else f"{draft['style']} kept"] += 1
            if not reason:
                kept.append(_query_row(draft))
            elif reason != NOT_NEEDED:
                dropped.append(_reject_row(draft, reason))
            if len(kept) == QUERIES_PER_PART:
                yield pa.RecordBatch.from_pylist(kept, schema=QUERIES)
                kept = []
        if kept:
            yield pa.RecordBatch.from_pylist(kept, schema=QUERIES)

    write_ipc(batches(), file, QUERIES)
    if dropped:
        write_table(rows_to_table(dropped, REJECTS), rejects / "queries.parquet", REJECTS)
    return dict(tally)


def fault_of(query: str, text: str, regions: tuple[str, ...]) -> str:
    """Why `query` cannot stand for what somebody typed who wants (or is) `text`; empty where it can."""
    words = _WORD.findall(query.casefold())
    if not words:
        return EMPTY
    if len(words) > _MAX_WORDS or len(query) > _MAX_CHARACTERS:
        return OVER_LONG
    if find_personal(query, regions) or "[email]" in query or "[phone]" in query:
        return PERSONAL
    if len(words) >= _COPIED_WORDS and f" {' '.join(words)} " in f" {' '.join(_WORD.findall(text.casefold()))} ":
        return COPIED
    return ""


def _query_row(draft: Mapping[str, Any]) -> dict[str, Any]:
    asked = draft["query"].casefold()
    title, place = spoken_title(draft["title"]), spoken_place(draft["place"])
    return {
        **{name: draft[name] for name in ("query", "style", "origin", "index")},
        "asked_title": title if set(title.split()) & set(_WORD.findall(asked)) else "",
        "asked_place": place if place and place in asked else "",
    }


def _reject_row(draft: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return {
        "id": f"query {draft['draft'] + 1}, {draft['style']}, of {draft['origin']}",
        "stage": "generate queries",
        "reason": reason,
        "raw": None if reason == PERSONAL else draft["query"][:2000],
        "attempt": 1,
    }
