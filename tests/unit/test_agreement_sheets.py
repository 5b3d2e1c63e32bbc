from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preceptor.contracts import OVERALL
from preceptor.evaluation.agreement_sheets import agreement_sheets, change_sheet, terminal_sheets
from preceptor.evaluation.metrics import Interval
from preceptor.evaluation.report import write_report
from preceptor.evaluation.sheets import Sheet
from preceptor.judge.agreement import Cell, cells_to_json
from preceptor.record import Record

CONFUSION = ((1200, 0, 0, 0, 0), (0, 4, 1, 0, 0), (0,) * 5, (0,) * 5, (0, 0, 0, 0, 7))


def cell(dimension: str, slice_: str = "all", *, kappa: float = 0.5, exact: float = 0.75) -> Cell:
    interval = Interval(value=kappa, low=kappa - 0.1, high=kappa + 0.1, num_groups=9)
    return Cell(
        dimension=dimension,
        slice=slice_,
        num=1212,
        linear=replace(interval, value=kappa - 0.05),
        quadratic=interval,
        binarised=replace(interval, value=math.nan, low=math.nan, high=math.nan),
        exact=exact,
        within_one=0.9,
        leniency=-0.25,
        label_mass=0.98,
        confusion=CONFUSION,
    )


def record(cells: list[Cell], version: str = "v1", **metrics: Any) -> Record:
    kept = {"agreement": cells_to_json(cells), **metrics}
    path = Path("runs") / "calibrate" / version
    return Record(stage="calibrate", version=version, fingerprint="0", path=path, config={}, metrics=kept)


CELLS = [cell("role"), cell("role", "local"), cell(OVERALL), cell(OVERALL, "local", kappa=0.4)]


def by_title(sheets: tuple[Sheet, ...]) -> dict[str, Sheet]:
    return {sheet.title: sheet for sheet in sheets}


def test_every_cell_is_a_row_and_every_count_is_shown() -> None:
    found = by_title(agreement_sheets({"calibrate": record(CELLS)}))
    agreement = found["Judge: agreement with golden"]
    assert agreement.rows[0] == (
        *("role", "all", "1,212", "0.500 [0.400, 0.600]", "0.450 [0.400, 0.600]", "undefined"),
        *("0.750", "0.900", "-0.25", "0.980"),
    )
    assert [row[:2] for row in agreement.rows] == [(one.dimension, one.slice) for one in CELLS]
    confusion = found["Judge: confusion with golden"]
    assert [row[0] for row in confusion.rows] == ["role", OVERALL]
    assert confusion.rows[0][1:3] == ("1,200 · 0 · 0 · 0 · 0", "0 · 4 · 1 · 0 · 0")


def test_a_terminal_shows_slices_of_the_overall_grade_and_the_least_steady_dimension() -> None:
    steady = {
        "cells": cells_to_json([cell("role", exact=1.0), cell("pay", exact=0.9)]),
        "prob_shift": {"mean": 0.01, "most": 0.2},
    }
    consistency = {"pair_ids": ["a", "b"], "again": steady}
    records = {"zeroshot": record(CELLS), "calibrate": record(CELLS, consistency=consistency)}
    found = by_title(terminal_sheets(records))
    assert set(found) == {
        "Zero-shot judge: agreement with golden",
        "Relevance teacher as judge: agreement with golden",
        "Relevance teacher as judge: agreement with itself",
    }
    shown = [row[:2] for row in found["Zero-shot judge: agreement with golden"].rows]
    assert shown == [("role", "all"), (OVERALL, "all"), (OVERALL, "local")]
    itself = found["Relevance teacher as judge: agreement with itself"]
    assert [row[:2] for row in itself.rows] == [("the same question again", "pay")]
    assert "2 of the calibration pairs" in itself.caption
    assert "on average and at most: the same question again 0.0100, 0.2000." in itself.caption
    whole = by_title(agreement_sheets(records))["Relevance teacher as judge: agreement with itself"]
    assert [row[1] for row in whole.rows] == ["role", "pay"]


def test_a_change_shows_both_figures_where_they_differ_and_what_was_judged() -> None:
    before = record([cell("role"), cell("pay"), cell(OVERALL)])
    after = record(
        [cell("role"), cell("pay", kappa=0.7, exact=0.8), cell(OVERALL)],
        "v1-abcd",
        asked={"pay": 350},
        reused={"role": 350},
    )
    sheet = change_sheet(before, after, changed=("pay",))
    assert sheet.title == "Agreement with golden, v1 -> v1-abcd"
    rows = {row[0]: row for row in sheet.rows}
    assert list(rows) == [OVERALL, "role", "pay *"]
    assert rows["role"][1] == "0.500 [0.400, 0.600]" and rows["role"][-2:] == ("0", "350")
    assert rows["pay *"][1] == "0.500 [0.400, 0.600] -> 0.700 [0.600, 0.800]"
    assert rows["pay *"][4] == "0.750 -> 0.800" and rows["pay *"][-2:] == ("350", "0")
    assert rows[OVERALL][-2:] == ("derived", "")


def test_a_dimension_that_came_or_went_is_a_row_too() -> None:
    before, after = record([cell("role"), cell("old")]), record([cell("role"), cell("new")], asked={}, reused={})
    rows = {row[0]: row[5] for row in change_sheet(before, after, changed=()).rows}
    assert rows == {OVERALL: "-", "role": "0.900", "new": "- -> 0.900", "old": "0.900 -> -"}


def test_columns_stand_under_their_names() -> None:
    text = Sheet(title="T", caption="C", header=("a", "long name"), rows=(("wide cell", "x"), ("y", "z"))).text()
    assert text.splitlines() == ["T", "C", "a          long name", "wide cell  x", "y          z"]


def test_the_report_shows_them_and_a_record_without_cells_is_left_out(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"gate": None, "plots": None, "notes": [], "examples": [], "title": "t"}
    page = write_report(tmp_path / "r.html", records={"calibrate": record(CELLS)}, **parts).read_text()
    assert "Judge: agreement with golden" in page and "1,200 · 0 · 0 · 0 · 0" in page
    bare = replace(record([]), metrics={})
    assert agreement_sheets({"calibrate": bare}) == () == terminal_sheets({"calibrate": bare})
    assert agreement_sheets({"label": bare}) == ()


@pytest.mark.parametrize("fields", [{"agreement": []}, {"consistency": None}])
def test_nothing_measured_is_no_table(fields: dict[str, Any]) -> None:
    assert agreement_sheets({"calibrate": replace(record([]), metrics=fields)}) == ()
