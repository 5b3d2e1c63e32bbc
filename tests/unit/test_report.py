from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from preceptor.contracts import GATE_REPORT, rows_to_table
from preceptor.errors import StageFailed
from preceptor.evaluation.calibration_sheet import calibration_sheets
from preceptor.evaluation.report import headline, summary_table, write_report
from preceptor.record import Record

VOID = {"meta", "br", "hr", "img", "link", "input"}
NOTE = "The truth of this market is constructed, not human."


class Page(HTMLParser):
    """What a reader gets: words, links, ids and labels; `open` is empty where every element was closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]


def record(stage: str, *, seconds: float = 1.0, **fields: Any) -> Record:
    return Record(
        stage=stage,
        version="v1",
        fingerprint=f"{stage:0<16}"[:16],
        path=Path("runs") / stage,
        config={},
        policy_version="1.0.0+abcdef01",
        cost={"wall_s": seconds},
        **fields,
    )


def calibration(kappa: float, *, passed: bool) -> dict[str, Any]:
    return {
        "kappa": kappa,
        "kappa_low": kappa - 0.05,
        "kappa_high": kappa + 0.05,
        "floor": 0.6,
        "passed": passed,
        "num_pairs": 50,
        "confusion": [[10 if row == column else 1 for column in range(5)] for row in range(5)],
        "per_dimension": {"role": kappa},
        "label_mass": 0.9,
    }


@pytest.fixture
def records() -> dict[str, Record]:
    losses = [{"step": step, "loss": 2.5 / step} for step in range(1, 20)]
    return {
        "corpus": record("corpus", num_rows_in=1200, num_rows_kept=1200, seconds=3.25),
        "zeroshot": record("zeroshot", metrics=calibration(0.071, passed=False)),
        "relevance_teacher": record("relevance_teacher", metrics={"losses": losses}, seconds=98.7),
        "calibrate": record("calibrate", metrics=calibration(0.764, passed=True)),
        "label": record("label", num_rows_in=1234, num_rows_kept=1231, rejected={"no digit": 2, "too long": 1}),
        "distill": record("distill", metrics={"losses": losses}),
        "gate": record("gate", metrics={"passed": True, "failures": []}),
    }


@pytest.fixture
def gate() -> pa.Table:
    rows = [
        ("tfidf", "overall", "ndcg@10", 0.612, None),
        ("relevance_teacher", "overall", "ndcg@10", 0.871, None),
        ("student", "overall", "ndcg@10", 0.853, 0.7),
        ("student", "overall", "retention ndcg@10", 0.979, 0.99),
        ("student", "click", "auc", 0.688, 0.6),
        ("student", "click", "ece", 0.021, 0.05),
    ]
    return rows_to_table(
        (
            {
                "system": system,
                "head": head,
                "metric": metric,
                "value": value,
                "low": value - 0.03,
                "high": value + 0.03,
                "num_queries": 40,
                "threshold": threshold,
                "passed": None if threshold is None else metric != "retention ndcg@10",
            }
            for system, head, metric, value, threshold in rows
        ),
        GATE_REPORT,
    )


PLOTS = {"reliability": {"click": {"student": [[0.1, 0.12, 0.5], [0.3, 0.28, 0.5]]}}, "confusion": {}}
EXAMPLES: list[dict[str, Any]] = [
    {"query": "welder <nights>", "document": "Welder, night shift", "score": 0.91234, "actions": {"click": 0.25}},
    {"query": "nurse", "document": "Cook", "grade_probs": [0.5, 0.5, 0.0, 0.0, 0.0]},
]


@pytest.fixture
def page(records, gate, tmp_path) -> Page:
    file = write_report(
        tmp_path / "report.html",
        title="Demo run",
        records=records,
        gate=gate,
        plots=PLOTS,
        notes=[NOTE],
        examples=EXAMPLES,
    )
    return Page(file)


def test_the_page_says_every_number(page) -> None:
    assert page.open == []
    for words in (
        "Zero-shot judge, kappa 0.071 0.021 to 0.121, floor 0.600: refused to label",
        "Relevance teacher as judge, kappa 0.764 0.714 to 0.814, floor 0.600: may label",
        "Rows labelled 1,231",
        "Rows rejected 3 no digit 2, too long 1",
        "Student NDCG@10 0.853 0.823 to 0.883",
        "Student retention of NDCG@10 0.979",
        "student overall retention ndcg@10 0.979 at least 0.990 FAIL",
        "student click ece 0.021 at most 0.050 pass",
        "corpus v1 corpus0000000000 1.0.0+abcdef01 1,200 1,200 0 3.2",
        "1.0.0+abcdef01",
        "The gate passed.",
        NOTE,
        "welder <nights> Welder, night shift 0.912 click 0.250",
        "0.500, 0.500, 0.000",
    ):
        assert words in page.text


def test_the_page_needs_no_network(page) -> None:
    for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
        assert all(value.startswith("#") for value in page.values(name))
    style = " ".join(page.words) + " ".join(page.values("style"))
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", style)
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _, _ in page.attributes)


def test_plots_are_labelled_and_their_ids_unique(page) -> None:
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label")]
    assert len(labels) == 6
    assert "NDCG@10: tfidf 0.612, relevance_teacher 0.871, student 0.853." in labels
    assert any("50 of 70 pairs" in label for label in labels)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in page.values("xlink:href")]
    targets += [value[5:-1] for value in page.values("clip-path")]
    assert targets and set(targets) <= set(ids)


def test_plots_are_well_formed_and_follow_the_page_colour(page, tmp_path) -> None:
    svgs = re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    assert len(svgs) == 6
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "currentColor" in svg and "#010203" not in svg


@pytest.mark.parametrize("kept", [(), ("corpus",), ("zeroshot", "label"), ("gate",)])
def test_missing_parts_are_left_out(kept, records, tmp_path) -> None:
    some = {name: records[name] for name in kept}
    file = write_report(
        tmp_path / "report.html", title="Part", records=some, gate=None, plots=None, notes=[], examples=[]
    )
    page = Page(file)
    assert page.open == [] and "undefined" not in page.text.lower()
    assert ("The gate did not run." in page.text) == ("gate" not in kept)
    assert "Student NDCG@10" not in page.text


def test_a_stage_without_metrics_or_cost_is_shown(tmp_path) -> None:
    bare = {
        name: Record(stage=name, version="v1", fingerprint="0", path=tmp_path, config={})
        for name in ("calibrate", "gate")
    }
    file = write_report(tmp_path / "r.html", title="Bare", records=bare, gate=None, plots={}, notes=[], examples=[])
    assert "calibrate v1 0 0 0 0" in Page(file).text


def test_calibration_before_and_after_is_a_table_of_the_heads_measured_of_both() -> None:
    def row(system: str, head: str, value: float, low: float | None = None) -> dict[str, Any]:
        end = None if low is None else 2 * value - low
        measured = {"metric": "ece", "value": value, "low": low, "high": end, "num_queries": 9}
        return {"system": system, "head": head, **measured}

    rows = [
        row("relevance_teacher", "overall", 0.02, 0.01),
        row("student", "overall", 0.05, 0.04),
        row("engagement_teacher", "click", 0.04),
        row("student", "click", 0.03),
        row("student", "apply", 0.5),
        {**row("student", "click", 0.7), "metric": "log_loss"},
    ]
    (sheet,) = calibration_sheets(rows)
    assert sheet.rows == (
        ("overall", "0.020 [0.010, 0.030]", "0.050 [0.040, 0.060]", "+0.030"),
        ("click", "0.040", "0.030", "-0.010"),
    )
    assert calibration_sheets(rows[1:2]) == ()


def test_a_page_with_both_errors_says_what_became_of_calibration(gate, records, tmp_path) -> None:
    more = [{**gate.to_pylist()[-1], "system": "engagement_teacher", "value": 0.011, "threshold": None, "passed": None}]
    both = rows_to_table([*gate.to_pylist(), *more], GATE_REPORT)
    parts: dict[str, Any] = {"records": records, "plots": None, "notes": [], "examples": []}
    page = Page(write_report(tmp_path / "r.html", title="t", gate=both, **parts))
    assert "Calibration kept" in page.text and "+0.010" in page.text


def test_a_failed_gate_is_said_first(records, tmp_path) -> None:
    records["gate"] = record("gate", metrics={"passed": False, "failures": ["student overall ndcg@10 is 0.1"]})
    file = write_report(
        tmp_path / "r.html", title="Failed", records=records, gate=None, plots=None, notes=[], examples=[]
    )
    assert "The gate failed; nothing was exported: student overall ndcg@10 is 0.1." in Page(file).text


def test_a_gate_without_thresholds_is_not_called_passed(tmp_path) -> None:
    some = {"gate": record("gate", metrics={"passed": True, "failures": [], "num_thresholds": 0})}
    file = write_report(tmp_path / "r.html", title="t", records=some, gate=None, plots=None, notes=[], examples=[])
    assert "The gate measured only" in Page(file).text and "passed" not in Page(file).text


def test_a_refused_write_leaves_the_old_page(tmp_path) -> None:
    file = tmp_path / "report.html"
    parts: dict[str, Any] = {"records": {}, "gate": None, "plots": None, "notes": [], "examples": []}
    write_report(file, title="Old", **parts)
    (tmp_path / ".report.html.partial").mkdir()
    with pytest.raises(StageFailed, match=r"report\.html: could not be written"):
        write_report(file, title="New", **parts)
    assert "Old" in Page(file).text


def test_the_terminal_table_has_the_same_figures(records, gate) -> None:
    sink = io.StringIO()
    Console(file=sink, width=140).print(summary_table(records, gate))
    lines = [" ".join(re.sub(r"[^\w\s@.,:-]", " ", line).split()) for line in sink.getvalue().splitlines()]
    assert "Student NDCG@10 0.853 0.823 to 0.883" in lines
    assert "relevance_teacher, seconds 98.7" in lines
    assert "Rows rejected 3 no digit 2, too long 1" in lines


def test_an_empty_terminal_table_prints() -> None:
    sink = io.StringIO()
    Console(file=sink).print(summary_table({}, None))
    assert "figure" in sink.getvalue()


def test_a_pruned_student_is_reported_with_what_it_had_before_the_first_round(records: dict[str, Record]) -> None:
    def cut(before: int, after: int) -> dict[str, Any]:
        sizes = {"before": before, "after": after}
        return {
            "parameters": {when: {"outside_embeddings": num, "total": 9 * num} for when, num in sizes.items()},
            "importance": "osscar",
        }

    assert "Student parameters outside embeddings" not in [figure.name for figure in headline(records, None)]
    rounds = {"prune_1": record("prune", metrics=cut(2000, 1500)), "prune": record("prune", metrics=cut(1500, 1000))}
    found = {figure.name: figure for figure in headline({**records, **rounds}, None)}
    figure = found["Student parameters outside embeddings"]
    assert (figure.value, figure.note) == ("1,000", "of 2,000 before pruning (50%), by osscar")
