"""The report of a run: one HTML file that opens without a network, and the same headline figures for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from preceptor.evaluation.agreement_sheets import agreement_sheets, judges_of
from preceptor.evaluation.calibration_sheet import calibration_sheets
from preceptor.evaluation.gate import AT_MOST, NDCG
from preceptor.evaluation.sheets import sheets_of, write_text
from preceptor.record import Record

if TYPE_CHECKING:
    from rich.table import Table

_TEMPLATE: Final = "report.html.j2"
_MEASURED: Final = (
    ("TF-IDF NDCG@10", f"tfidf overall {NDCG}"),
    ("Popularity NDCG@10", f"popularity overall {NDCG}"),
    ("Relevance teacher NDCG@10", f"relevance_teacher overall {NDCG}"),
    ("Student NDCG@10", f"student overall {NDCG}"),
    ("Student retention of NDCG@10", f"student overall retention {NDCG}"),
    ("Engagement teacher click AUC", "engagement_teacher click auc"),
    ("Student click AUC", "student click auc"),
    ("Student retention of click AUC", "student click retention auc"),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One headline number: what it is, its value in words, and what qualifies it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """An inline SVG with its caption and the words that stand for it where it is not seen."""

    caption: str
    alt: str
    svg: str


def headline(records: Mapping[str, Record], gate: pa.Table | None) -> tuple[Figure, ...]:
    """The run's headline figures, in the order of the pipeline; those of stages that did not run are left out."""
    figures = [
        _judge_figure(name, records[stage]) for stage, name in judges_of(records).items() if _kappa(records.get(stage))
    ]
    if "label" in records:
        record = records["label"]
        mass = record.metrics.get("label_mass")
        note = f"mean label mass {mass:.3f}" if mass is not None else ""
        figures.append(Figure(name="Rows labelled", value=f"{record.num_rows_kept:,}", note=note))
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in record.rejected.items())
        figures.append(Figure(name="Rows rejected", value=f"{sum(record.rejected.values()):,}", note=reasons))
    figures += [_pruned_figure(records)] if "prune" in records else []
    rows = {f"{row['system']} {row['head']} {row['metric']}": row for row in _rows(gate)}
    figures += [
        Figure(name=name, value=_number(rows[key]["value"]), note=_interval(rows[key]))
        for name, key in _MEASURED
        if key in rows
    ]
    return tuple(figures)


def _pruned_figure(records: Mapping[str, Record]) -> Figure:
    """The parameters outside the embeddings that all rounds of pruning left, and what there were before the first."""
    first, last = records.get("prune_1", records["prune"]), records["prune"]
    before = first.metrics["parameters"]["before"]["outside_embeddings"]
    after = last.metrics["parameters"]["after"]["outside_embeddings"]
    note = f"of {before:,} before pruning ({after / before:.0%}), by {last.metrics['importance']}"
    return Figure(name="Student parameters outside embeddings", value=f"{after:,}", note=note)


def summary_table(records: Mapping[str, Record], gate: pa.Table | None) -> Table:
    """The headline figures and the seconds of each stage as a rich table for the terminal."""
    from rich.table import Table

    table = Table("figure", "value", "interval or note", title="Preceptor run")
    table.columns[1].justify = "right"
    for figure in headline(records, gate):
        table.add_row(figure.name, figure.value, figure.note)
    table.add_section()
    for stage, seconds in _seconds(records).items():
        table.add_row(f"{stage}, seconds", f"{seconds:,.1f}")
    return table


def write_report(
    file: Path,
    *,
    title: str,
    records: Mapping[str, Record],
    gate: pa.Table | None,
    plots: Mapping[str, Any] | None,
    notes: Sequence[str],
    examples: Sequence[Mapping[str, Any]],
) -> Path:
    """`file`, one self-contained HTML page, written whole or not at all.

    `records` are keyed by stage; the Sheets in their metrics are shown. `gate` is a GATE_REPORT table and `plots` the
    gate's plots.json; `notes` are sentences for the top of the page, such as which truth is constructed; `examples` are
    scored pairs, each shown with whatever fields it has. Parts whose input is missing are left out. Raises
    StageFailed where the disk refuses.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    gate_rows = [_gate_row(row) for row in _rows(gate)]
    page = environment.get_template(_TEMPLATE).render(
        title=title,
        notes=notes,
        policies=list(dict.fromkeys(record.policy_version for record in records.values() if record.policy_version)),
        verdict=_verdict(records.get("gate")),
        figures=headline(records, gate),
        sheets=[*sheets_of(records), *agreement_sheets(records), *calibration_sheets(_rows(gate))],
        charts=list(_charts(records, gate, plots or {})),
        thresholds=[row for row in gate_rows if row["threshold"]],
        measurements=gate_rows,
        example_fields=list(dict.fromkeys(name for example in examples for name in example)),
        examples=[{name: _words(value) for name, value in example.items()} for example in examples],
        stages=[_stage_row(name, record) for name, record in records.items()],
    )
    return write_text(file, page)


def _charts(records: Mapping[str, Record], gate: pa.Table | None, plots: Mapping[str, Any]) -> Iterator[Chart]:
    from preceptor.evaluation import charts

    ranked = {row["system"]: (row["value"], row["low"], row["high"]) for row in _rows(gate) if row["metric"] == NDCG}
    ranked = {system: values for system, values in ranked.items() if math.isfinite(values[0])}
    if ranked:
        yield Chart(
            caption="NDCG@10 on the golden holdout, with 95 % bootstrap intervals over queries.",
            alt="NDCG@10: " + ", ".join(f"{system} {value:.3f}" for system, (value, _, _) in ranked.items()) + ".",
            svg=charts.interval_chart(ranked, name="ndcg", label=NDCG),
        )
    for action, curves in plots.get("reliability", {}).items():
        if curves:
            yield Chart(
                caption=f"Reliability of the {action} head on holdout impressions, bins of equal mass.",
                alt=f"Observed {action} rate over predicted probability for {', '.join(curves)}; "
                f"their calibration errors stand in the table of measurements.",
                svg=charts.reliability_chart(curves, name=f"reliability-{action}", action=action),
            )
    for stage, judge in judges_of(records).items():
        counts = records[stage].metrics.get("confusion") if stage in records else None
        if counts:
            yield Chart(
                caption=f"{judge}: golden grade against its grade, in calibration pairs.",
                alt=f"{judge} grades as golden: {_agreement(counts)}.",
                svg=charts.confusion_chart(counts, name=f"confusion-{stage}"),
            )
    losses = {stage: record.metrics["losses"] for stage, record in records.items() if record.metrics.get("losses")}
    if losses:
        ends = ", ".join(
            f"{stage} {points[0]['loss']:.3f} to {points[-1]['loss']:.3f}" for stage, points in losses.items()
        )
        yield Chart(
            caption="Training loss by step. The losses of different stages are not comparable.",
            alt=f"Training loss from first to last step: {ends}.",
            svg=charts.loss_chart(losses, name="losses"),
        )
    seconds = _seconds(records)
    if seconds:
        yield Chart(
            caption="Wall time of each stage when it last ran.",
            alt="Seconds: " + ", ".join(f"{stage} {value:,.1f}" for stage, value in seconds.items()) + ".",
            svg=charts.seconds_chart(seconds, name="seconds"),
        )


def _agreement(counts: Sequence[Sequence[float]]) -> str:
    total = sum(map(sum, counts))
    agreed = sum(row[grade] for grade, row in enumerate(counts))
    return f"{agreed:g} of {total:g} pairs"


def _kappa(record: Record | None) -> bool:
    return record is not None and record.metrics.get("kappa") is not None


def _judge_figure(name: str, record: Record) -> Figure:
    found = record.metrics
    parts = []
    if found.get("kappa_low") is not None and found.get("kappa_high") is not None:
        parts.append(f"{_number(found['kappa_low'])} to {_number(found['kappa_high'])}")
    if found.get("floor") is not None:
        parts.append(f"floor {_number(found['floor'])}: {'may label' if found.get('passed') else 'refused to label'}")
    return Figure(name=f"{name}, kappa", value=_number(found["kappa"]), note=", ".join(parts))


def _gate_row(row: Mapping[str, Any]) -> dict[str, str]:
    bound = "at most" if row["metric"] in AT_MOST else "at least"
    return {
        "name": f"{row['system']} {row['head']} {row['metric']}",
        "value": _number(row["value"]),
        "interval": _interval(row),
        "num_queries": f"{row['num_queries']:,}",
        "threshold": f"{bound} {_number(row['threshold'])}" if row["threshold"] is not None else "",
        "result": {True: "pass", False: "FAIL", None: ""}[row["passed"]],
    }


def _stage_row(name: str, record: Record) -> dict[str, str]:
    return {
        "stage": name,
        "version": record.version,
        "fingerprint": record.fingerprint,
        "policy": record.policy_version or "",
        "rows_in": f"{record.num_rows_in:,}",
        "rows_kept": f"{record.num_rows_kept:,}",
        "rows_rejected": f"{sum(record.rejected.values()):,}",
        "seconds": f"{record.cost['wall_s']:,.1f}" if "wall_s" in record.cost else "",
    }


def _verdict(record: Record | None) -> str:
    if record is None or "passed" not in record.metrics:
        return "The gate did not run."
    if record.metrics.get("num_thresholds") == 0:
        return "The gate measured only: the recipe sets no threshold."
    if record.metrics["passed"]:
        return "The gate passed."
    return f"The gate failed; nothing was exported: {'; '.join(record.metrics.get('failures', ()))}."


def _seconds(records: Mapping[str, Record]) -> dict[str, float]:
    return {stage: record.cost["wall_s"] for stage, record in records.items() if "wall_s" in record.cost}


def _rows(gate: pa.Table | None) -> list[dict[str, Any]]:
    return gate.to_pylist() if gate is not None else []


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_number(row['low'])} to {_number(row['high'])}" if row["low"] is not None else ""


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def _words(value: object) -> str:
    """`value` for a table cell: floats to three digits, sequences and mappings spelled out."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
