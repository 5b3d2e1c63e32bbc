"""Headline tests, read from their layout: merged, counted, split by test, refused where they break it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from preceptor.contracts import COUNTS, GOLDEN, IMPRESSIONS, PAIRS, REJECTS, content_id, read_table
from preceptor.errors import DriftError, InputError
from preceptor.recipe import HeadlinesConfig
from preceptor.sources.headlines import headlines
from tests.unit.source_data import (
    headline_row,
    write_headlines,
)


def test_headlines_are_merged_counted_and_split_by_test(tmp_path: Path) -> None:
    rows = [headline_row(f"t{test}", f"Story {test} {arm}", 100, arm, "train") for test in range(200) for arm in (1, 2)]
    rows += [headline_row("t0", "  Story  0 1", 50, 9, "train"), headline_row("d0", "Held out", 80, 8, "dev")]
    rows += [headline_row("d0", "Held out too", 80, 0, "dev"), headline_row("t1", "Held out", 70, 7, "train")]
    rows += [headline_row("t2", " ", 10, 1, "train"), headline_row("t3", "Never", 0, 0, "train")]
    rows += [headline_row("t4", "Too many", 5, 6, "train")]
    data = write_headlines(tmp_path / "data", rows)
    record = headlines(HeadlinesConfig(data=data), out=tmp_path / "out" / "v1")
    pairs = read_table(record.path / "pairs", PAIRS).to_pylist()
    counts = {row["pair_id"]: row for row in read_table(record.path / "counts", COUNTS).to_pylist()}
    assert len(pairs) == len(counts) == 402
    assert record.num_rows_in == record.num_rows_kept + sum(record.rejected.values()) + record.metrics["num_merged"]
    assert dict(record.rejected) == {
        "headline of a holdout test": 1,
        "blank headline": 1,
        "never shown": 1,
        "clicks outside 0 to impressions": 1,
    }
    assert read_table(record.path / "rejects", REJECTS).num_rows == 4
    of_first = [pair for pair in pairs if pair["query_id"] == content_id("test", "t0")]
    assert sorted(pair["document"] for pair in of_first) == ["Story 0 1", "Story 0 2"]
    merged = next(counts[pair["pair_id"]] for pair in of_first if pair["document"] == "Story 0 1")
    assert (merged["num_shown"], merged["num_clicks"]) == (150, 10)
    splits = defaultdict(set)
    for pair in pairs:
        assert (pair["query"], pair["profile"]) == ("", "")
        assert counts[pair["pair_id"]]["split"] == pair["split"]
        splits[pair["query_id"]].add(pair["split"])
    assert len(splits) == 201 and all(len(found) == 1 for found in splits.values())
    assert splits[content_id("test", "d0")] == {"holdout"}
    assert 8 <= sum(found == {"calibration"} for found in splits.values()) <= 35
    assert read_table(record.path / "golden", GOLDEN).num_rows == 0
    assert read_table(record.path / "impressions", IMPRESSIONS).num_rows == 0


def test_headline_tests_with_one_more_click_are_other_data(tmp_path: Path) -> None:
    rows = [headline_row("a", "Story", 100, 3, "train")]
    record = headlines(HeadlinesConfig(data=write_headlines(tmp_path / "a", rows)), out=tmp_path / "out" / "v1")
    moved = HeadlinesConfig(data=write_headlines(tmp_path / "b", rows))
    assert headlines(moved, out=tmp_path / "out" / "v1") == record
    changed = HeadlinesConfig(data=write_headlines(tmp_path / "c", [{**rows[0], "clicks": 4}]))
    with pytest.raises(DriftError, match=r"data\.headline_tests\.parquet"):
        headlines(changed, out=tmp_path / "out" / "v1")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([headline_row("a", "x", 1, 0, "holdout")], "row 1: a split is train or dev, got 'holdout'"),
        (
            [headline_row("a", "x", 1, 0, "train"), headline_row("a", "y", 1, 0, "dev")],
            "row 2: test a stands in train and in dev",
        ),
        ([{"test_id": "a", "headline": "x", "clicks": 0, "split": "dev"}], "column 'impressions'"),
        ([{**headline_row("a", "x", 1, 0, "dev"), "clicks": 0.5}], "must be integer, got double"),
    ],
)
def test_headline_files_that_break_the_layout_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    data = write_headlines(tmp_path / "data", rows)
    with pytest.raises(InputError, match=r"headline_tests\.parquet") as caught:
        headlines(HeadlinesConfig(data=data), out=tmp_path / "out" / "v1")
    assert said in str(caught.value)
    assert not (tmp_path / "out" / "v1" / "record.json").exists()
