"""Charts of the report as inline SVG: no raster, no reference to anything outside, legible on light and dark pages.

Text and axes take the page's own colour (currentColor); backgrounds stay transparent.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Interval = tuple[float, float | None, float | None]

_INK: Final = "#010203"  # Stands for currentColor until the SVG is written: matplotlib knows no such colour.
_COLORS: Final = ("#2f7fc1", "#d0762a", "#2f9a6e", "#9a6cc9")  # Above 3:1 against white and against near-black.


def interval_chart(values: Mapping[str, Interval], *, name: str, label: str) -> str:
    """SVG of one dot for each system with its (value, low, high) interval, best on top."""
    figure, axes = _figure(height=0.8 + 0.42 * len(values))
    ordered = sorted(values.items(), key=lambda item: item[1][0])
    for row, (_, (value, low, high)) in enumerate(ordered):
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color=_COLORS[0], linewidth=2.5, solid_capstyle="butt")
        axes.plot([value], [row], "o", color=_COLORS[0], markersize=7)
        axes.annotate(f"{value:.3f}", (value, row), (0, 8), textcoords="offset points", ha="center", color=_INK)
    axes.set_yticks(range(len(ordered)), [system for system, _ in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.2)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(label)
    return _svg(figure, name)


def reliability_chart(curves: Mapping[str, Sequence[Sequence[float]]], *, name: str, action: str) -> str:
    """SVG of observed rate over predicted probability for each system; `curves` hold (prob, rate, share) points."""
    figure, axes = _figure(height=3.6)
    top = max((max(prob, rate) for points in curves.values() for prob, rate, _ in points), default=1.0) * 1.08
    axes.plot([0, top], [0, top], linestyle=":", color=_INK, linewidth=1, label="perfect")
    for number, (system, points) in enumerate(curves.items()):
        probs, rates = [point[0] for point in points], [point[1] for point in points]
        axes.plot(probs, rates, marker="os^D"[number % 4], color=_COLORS[number % 4], label=system)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel(f"predicted {action} probability")
    axes.set_ylabel(f"observed {action} rate")
    _legend(axes)
    return _svg(figure, name)


def confusion_chart(counts: Sequence[Sequence[float]], *, name: str) -> str:
    """SVG of a square matrix, true grade down, predicted grade across; shade is the share within the true grade."""
    figure, axes = _figure(height=3.4, width=3.8)
    for truth, row in enumerate(counts):
        total = sum(row) or 1
        for predicted, count in enumerate(row):
            axes.fill_between(
                [predicted - 0.5, predicted + 0.5],
                truth - 0.5,
                truth + 0.5,
                color=_COLORS[0],
                alpha=0.75 * count / total,
            )
            axes.text(predicted, truth, f"{count:g}", ha="center", va="center", color=_INK)
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.set_ylim(len(counts) - 0.5, -0.5)
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    axes.set_xlabel("judge's grade")
    axes.set_ylabel("golden grade")
    return _svg(figure, name)


def loss_chart(losses: Mapping[str, Sequence[Mapping[str, float]]], *, name: str) -> str:
    """SVG of one small panel for each stage: loss over steps, from ``[{"step": 1, "loss": 0.9}, ...]``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    panels = figure.subplots(1, len(losses), squeeze=False)[0]
    for axes, (stage, points) in zip(panels, losses.items(), strict=True):
        _bare(axes)
        axes.plot([point["step"] for point in points], [point["loss"] for point in points], color=_COLORS[0])
        axes.set_title(stage, color=_INK, fontsize=10)
        axes.set_xlabel("step")
    panels[0].set_ylabel("training loss")
    return _svg(figure, name)


def seconds_chart(seconds: Mapping[str, float], *, name: str) -> str:
    """SVG of one horizontal bar for each stage, in the given order from the top."""
    figure, axes = _figure(height=0.8 + 0.3 * len(seconds))
    bars = axes.barh(range(len(seconds)), list(seconds.values()), color=_COLORS[0], height=0.65)
    axes.bar_label(bars, [f"{value:,.1f} s" for value in seconds.values()], padding=4, color=_INK)
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xlabel("seconds of wall time")
    return _svg(figure, name)


def _figure(*, height: float, width: float = 7.2) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=_INK, loc="upper left")


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element; ids start with `name`, so that several share one page."""
    import matplotlib

    sink = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(_INK, "currentColor")
