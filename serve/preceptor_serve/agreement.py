"""How far a candidate's answers are from the live bundle's, out of the comparisons that shadow requests left.

Per pair of bundles and policies, over requests with an answer from both: rank agreement, overlap of the first places,
differences by head, and what the candidate took. Intervals are percentile bootstraps over requests, since the
documents of one request are not independent.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preceptor.contracts import iter_tables, whole_file
from preceptor.errors import InputError
from preceptor_serve.comparing import COMPARED

NUM_RESAMPLES: Final = 1_000
NUM_BINS: Final = 20

Floats = NDArray[np.float64]
Sides = tuple[str, str, str | None, str | None]
"""Live bundle and policy, candidate bundle and policy; the candidate's None where it never answered."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over requests with its 95 % interval; `num` requests had a value."""

    mean: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the comparisons of two bundles say; `measures` by name, `taus` of each request for a picture."""

    sides: Sides
    num_compared: int
    num_documents: int
    failures: Mapping[str, int]
    measures: Mapping[str, Estimate]
    live_ms: Mapping[str, float]
    candidate_ms: Mapping[str, float]
    taus: tuple[float, ...]


def agreements(folder: Path, *, seed: int = 17) -> list[Agreement]:
    """One Agreement for each pair of bundles in `folder`, most compared first; InputError where nothing is there."""
    groups: dict[Sides, list[dict[str, Any]]] = {}
    failures: Counter[tuple[str, str]] = Counter()
    reasons: dict[tuple[str, str], Counter[str]] = {}
    for table in iter_tables(folder, COMPARED):
        for row in table.to_pylist(maps_as_pydicts="strict"):
            live = (row["live_bundle"], row["live_policy"])
            if row["failure"] is None:
                groups.setdefault((*live, row["candidate_bundle"], row["candidate_policy"]), []).append(row)
            else:
                failures[live] += 1
                reasons.setdefault(live, Counter())[row["failure"]] += 1
    if not groups and not failures:
        raise InputError(f"{folder}: no comparisons. Give requests a shadow first: preceptor rollout shadow.")
    # A candidate that fails does not say who it is: where the same live bundle met one that did, it is that one's.
    for live in failures:
        if not any(sides[:2] == live for sides in groups):
            groups[(*live, None, None)] = []
    last = {sides[:2]: sides for sides in groups}
    found = [
        _agreement(sides, rows, reasons.get(sides[:2], Counter()) if last[sides[:2]] == sides else {}, seed=seed)
        for sides, rows in groups.items()
    ]
    return sorted(found, key=lambda agreement: -agreement.num_compared)


def _agreement(sides: Sides, rows: Sequence[Mapping[str, Any]], failures: Mapping[str, int], *, seed: int) -> Agreement:
    values: dict[str, list[float]] = {name: [_of(row) for row in rows] for name, _of in _MEASURES.items()}
    heads = sorted({head for row in rows for head in row["live"]["actions"] if head in row["candidate"]["actions"]})
    for head in heads:
        values[f"mean difference of P({head})"] = [_head_gap(row, head) for row in rows]
    rng = np.random.default_rng(seed)
    return Agreement(
        sides=sides,
        num_compared=len(rows),
        num_documents=sum(len(row["document_ids"]) for row in rows),
        failures=dict(sorted(failures.items())),
        measures={name: estimate(found, rng) for name, found in values.items()},
        live_ms=_times([row["live_ms"] for row in rows]),
        candidate_ms=_times([row["candidate_ms"] for row in rows]),
        taus=tuple(tau for tau in values["Kendall tau-b"] if math.isfinite(tau)),
    )


def kendall_tau_b(left: ArrayLike, right: ArrayLike) -> float:
    """Kendall's tau-b of two aligned rows of scores; NaN where one of them does not rank at all (Kendall 1945)."""
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (np.asarray(left, float), np.asarray(right, float)))
    scale = math.sqrt(float(np.sum(x * x)) * float(np.sum(y * y)))
    return float(np.sum(x * y)) / scale if scale else math.nan


def top_overlap(left: Sequence[float], right: Sequence[float], *, k: int) -> float:
    """The share of the first `k` that both orders have in common; NaN where there are not more than `k` to order."""
    if len(left) <= k:
        return math.nan
    return len(set(_order(left)[:k]) & set(_order(right)[:k])) / k


def ndcg_against(live: Sequence[float], candidate: Sequence[float], *, k: int) -> float:
    """NDCG@k of the candidate's order with the live scores as gains, from 0 where one would be negative.

    1 where the order is worth as much to the live bundle as its own; NaN where no document has a gain.
    """
    gains = np.maximum(np.asarray(live, float), 0.0)
    discounts = 1 / np.log2(np.arange(2, min(k, len(gains)) + 2))
    ideal = float(np.sort(gains)[::-1][: len(discounts)] @ discounts)
    return float(gains[_order(candidate)[: len(discounts)]] @ discounts) / ideal if ideal > 0 else math.nan


def estimate(values: Iterable[float], rng: np.random.Generator) -> Estimate:
    """The mean of the finite ones of `values` with a 95 % percentile bootstrap; NaN without any."""
    found = np.asarray([value for value in values if math.isfinite(value)], float)
    if not len(found):
        return Estimate(mean=math.nan, low=math.nan, high=math.nan, num=0)
    # One after the other: 1,000 resamples of 100,000 requests at once would be 0.8 GB.
    means = [found[rng.integers(0, len(found), len(found))].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(mean=float(found.mean()), low=float(low), high=float(high), num=len(found))


def _order(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; ties in the request's order, as an answer has them."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def _mean_gap(left: Sequence[float], right: Sequence[float]) -> float:
    return float(np.mean(np.abs(np.subtract(left, right)))) if len(left) else math.nan


def _head_gap(row: Mapping[str, Any], head: str) -> float:
    sides = [row[side]["actions"].get(head) for side in ("live", "candidate")]
    return math.nan if None in sides else _mean_gap(*sides)


def _sided(measure: Callable[[Any, Any], float], name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: measure(row["live"][name], row["candidate"][name])


_MEASURES: Final[Mapping[str, Callable[[Mapping[str, Any]], float]]] = {
    "Kendall tau-b": _sided(kendall_tau_b, "score"),
    "same first document": _sided(lambda a, b: float(_order(a)[0] == _order(b)[0]), "score"),
    "overlap of the first 10": _sided(lambda a, b: top_overlap(a, b, k=10), "score"),
    "NDCG@10 by live scores": _sided(lambda a, b: ndcg_against(a, b, k=10), "score"),
    "mean difference of score": _sided(_mean_gap, "score"),
    "mean difference of expected grade": _sided(_mean_gap, "expected_grade"),
    "documents of another grade": _sided(lambda a, b: float(np.mean(np.not_equal(a, b))), "grade"),
}


def _times(taken_ms: Sequence[float]) -> dict[str, float]:
    if not taken_ms:
        return {}
    middle, late = np.quantile(taken_ms, (0.5, 0.99))
    return {"median": float(middle), "p99": float(late), "slowest": float(max(taken_ms))}


def words_of(agreement: Agreement) -> str:
    """`agreement` as a Markdown section."""
    live, live_policy, candidate, candidate_policy = agreement.sides
    other = f"{candidate} ({candidate_policy})" if candidate else "a candidate that never answered"
    lines = [
        f"## {live} ({live_policy}) live, {other} beside it",
        "",
        f"{agreement.num_compared:,} requests compared, {agreement.num_documents:,} documents. "
        f"Candidate failed: {_counted(agreement.failures)}.",
    ]
    if not agreement.num_compared:
        return "\n".join([*lines, ""])
    lines += ["", "| measure | mean | 95 % | requests |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {' | '.join(_cells(found))} |" for name, found in agreement.measures.items()]
    lines += ["", "| time (ms) | median | p99 | slowest |", "| --- | --- | --- | --- |"]
    for side, times in (("live", agreement.live_ms), ("candidate", agreement.candidate_ms)):
        lines.append(f"| {side} | {' | '.join(f'{value:.1f}' for value in times.values())} |")
    return "\n".join([*lines, ""])


def _cells(found: Estimate) -> tuple[str, str, str]:
    if not found.num:
        return "-", "-", "0"
    return f"{found.mean:.4f}", f"{found.low:.4f} to {found.high:.4f}", f"{found.num:,}"


def _counted(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in failures.items()) or "never"


def write_page(found: Sequence[Agreement], file: Path) -> Path:
    """`file`, an HTML page of its own with each agreement's tables and how tau-b spreads over requests."""
    parts = [
        "<!doctype html><meta charset='utf-8'><title>Agreement</title><style>body{font:15px sans-serif;margin:2em}"
        "pre{font:13px monospace}</style><h1>Live and candidate</h1>"
    ]
    for agreement in found:
        parts += [f"<pre>{html.escape(words_of(agreement))}</pre>", _histogram(agreement.taus)]
    with whole_file(file) as sink:
        sink.write("\n".join(parts).encode())
    return file


def _histogram(taus: Sequence[float]) -> str:
    if not taus:
        return ""
    counts, _ = np.histogram(taus, bins=NUM_BINS, range=(-1, 1))
    width, height = 24, 120
    bars = "".join(
        f"<rect x='{i * width}' y='{height - height * n / max(counts)}' width='{width - 2}' "
        f"height='{height * n / max(counts)}' fill='#47a'><title>{n} requests</title></rect>"
        for i, n in enumerate(counts)
    )
    axis = "".join(
        f"<text x='{x * width}' y='{height + 16}' font-size='12'>{label}</text>"
        for x, label in ((0, "-1"), (NUM_BINS / 2, "0"), (NUM_BINS - 1, "1"))
    )
    size = f"width='{NUM_BINS * width}' height='{height + 20}'"
    return f"<p>Kendall tau-b of each request</p><svg {size} role='img'>{bars}{axis}</svg>"
