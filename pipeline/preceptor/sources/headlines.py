"""Headline A/B tests: real clicks under randomised exposure, with neither query nor member.

A test's headlines form one group. A group's query_id is the hash of its test, not of its query text, which is empty
for all of them; splits go by test.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import (
    COUNTS,
    GOLDEN,
    IMPRESSIONS,
    PAIRS,
    REJECTS,
    content_id,
    make_pair,
    rows_to_table,
    split_of,
    write_table,
)
from preceptor.errors import InputError, located
from preceptor.recipe import HeadlinesConfig
from preceptor.record import Record, begin
from preceptor.sources.tables import config_of_content, read_source

SLICE: Final = "headline"
CALIBRATION_SHARE: Final = 0.1

_PART: Final = "part-00000.parquet"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A headline in one test: how often it was shown and clicked there, over all its variants."""

    test_id: str
    text: str
    split: str
    num_shown: int
    num_clicks: int


def headlines(config: HeadlinesConfig, *, out: Path) -> Record:
    """The record of the headline corpus in `out`: ``pairs``, ``counts`` (COUNTS) and ``rejects``.

    ``golden`` and ``impressions`` are there and empty: nobody graded headlines, and exposure is known as counts only.
    Raises InputError where the file is missing or wrong.
    """
    file = config.data / "headline_tests.parquet"
    run = begin("headlines", config_of_content(config, [file]), out=out)
    if run.record is not None:
        return run.record
    rows = read_source(
        file,
        {"test_id": "text", "headline": "text", "impressions": "integer", "clicks": "integer", "split": "text"},
    )
    kept, rejects = merge_headlines(rows, file)
    pairs = [_pair(headline) for headline in kept]
    counts = [
        {
            "pair_id": pair["pair_id"],
            "num_shown": headline.num_shown,
            "num_clicks": headline.num_clicks,
            "split": headline.split,
        }
        for headline, pair in zip(kept, pairs, strict=True)
    ]
    write_table(rows_to_table((dict(pair) for pair in pairs), PAIRS), out / "pairs" / _PART, PAIRS)
    write_table(rows_to_table(counts, COUNTS), out / "counts" / _PART, COUNTS)
    write_table(rows_to_table(rejects, REJECTS), out / "rejects" / _PART, REJECTS)
    for name, schema in (("golden", GOLDEN), ("impressions", IMPRESSIONS)):
        write_table(schema.empty_table(), out / name / _PART, schema)
    return run.finish(
        num_rows_in=len(rows),
        num_rows_kept=len(kept),
        rejected=Counter(row["reason"] for row in rejects),
        metrics=_metrics(kept, num_rows=len(rows), num_rejects=len(rejects)),
    )


def merge_headlines(rows: list[dict[str, Any]], file: Path) -> tuple[list[Headline], list[dict[str, Any]]]:
    """(headlines, REJECTS rows): equal headlines of one test are one, with their counts added up.

    The file's dev tests become holdout; a hashed tenth of its train tests becomes calibration. Rejected are blank
    headlines, impossible counts, and train or calibration headlines that a holdout test also shows. Raises InputError
    where a test has two splits or an unknown one.
    """
    splits = _splits(rows, file)
    held_out = {_squeeze(row["headline"]) for row in rows if splits[row["test_id"]] == "holdout"}
    merged: dict[tuple[str, str], Headline] = {}
    rejects = []
    for number, row in enumerate(rows, start=1):
        text, split = _squeeze(row["headline"]), splits[row["test_id"]]
        reason = _fault(row, text)
        if reason is None and split != "holdout" and text in held_out:
            reason = "headline of a holdout test"
        if reason is not None:
            rejects.append(_reject(row, number, reason))
            continue
        key = (row["test_id"], text)
        before = merged.get(key) or Headline(test_id=row["test_id"], text=text, split=split, num_shown=0, num_clicks=0)
        merged[key] = replace(
            before, num_shown=before.num_shown + row["impressions"], num_clicks=before.num_clicks + row["clicks"]
        )
    return list(merged.values()), rejects


def _splits(rows: list[dict[str, Any]], file: Path) -> dict[str, str]:
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        test_id, split = row["test_id"], row["split"]
        if split not in ("train", "dev"):
            message = f"row {number}: a split is train or dev, got '{split}'. Mend it."
            raise InputError(located(message, file=file, column="split"))
        if seen.setdefault(test_id, split) != split:
            message = f"row {number}: test {test_id} stands in train and in dev. Keep each test in one split."
            raise InputError(located(message, file=file, column="split"))
    return {
        test_id: "holdout"
        if split == "dev"
        else split_of(content_id("test", test_id), calibration=CALIBRATION_SHARE, holdout=0.0)
        for test_id, split in seen.items()
    }


def _fault(row: dict[str, Any], text: str) -> str | None:
    if not text:
        return "blank headline"
    if row["impressions"] <= 0:
        return "never shown"
    return None if 0 <= row["clicks"] <= row["impressions"] else "clicks outside 0 to impressions"


def _reject(row: dict[str, Any], number: int, reason: str) -> dict[str, Any]:
    return {
        "id": f"{row['test_id']} row {number}",
        "stage": "headlines",
        "reason": reason,
        "raw": f"{row['headline']} ({row['clicks']} of {row['impressions']})"[:2000],
        "attempt": 1,
    }


def _pair(headline: Headline) -> dict[str, str]:
    pair = make_pair("", "", headline.text, slice=SLICE, split=headline.split)
    query_id = content_id("test", headline.test_id)
    return {
        **pair,
        "query_id": query_id,
        "pair_id": content_id(query_id, pair["profile_id"], pair["document_id"]),
    }


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _metrics(kept: list[Headline], *, num_rows: int, num_rejects: int) -> dict[str, Any]:
    num_shown = sum(headline.num_shown for headline in kept)
    num_words = sum(len(headline.text.split()) for headline in kept)
    return {
        "num_pairs": dict(sorted(Counter(headline.split for headline in kept).items())),
        "num_tests": dict(sorted(Counter(dict({item.test_id: item.split for item in kept}).values()).items())),
        "num_merged": num_rows - num_rejects - len(kept),
        "num_shown": num_shown,
        "click_rate": round(sum(headline.num_clicks for headline in kept) / max(num_shown, 1), 5),
        "mean_words": round(num_words / max(len(kept), 1), 1),
        "truth": "real clicks, randomised exposure, aggregated per headline",
    }
