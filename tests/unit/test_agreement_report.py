"""`preceptor compare`: each measure against a brute-force reference, and what a report of known answers says."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score

from preceptor.bundle import DocumentScore
from preceptor.cli import main
from preceptor.contracts import rows_to_table, write_table
from preceptor_serve.agreement import agreements, estimate, kendall_tau_b, ndcg_against, top_overlap
from preceptor_serve.comparing import COMPARED, Compared, row_of
from preceptor_serve.scorer import Answer, Identity

SCORES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12)
AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@given(SCORES)
def test_tau_b_is_scipys(pairs):
    left, right = zip(*pairs, strict=True)
    expected = kendalltau(left, right).statistic
    found = kendall_tau_b(left, right)
    assert (math.isnan(found) and math.isnan(expected)) or found == pytest.approx(expected)


@given(st.permutations(range(12)), st.integers(1, 11))
def test_ndcg_is_scikit_learns(order, k):
    live = [float(value) for value in range(12)]
    candidate = [float(value) for value in order]
    assert ndcg_against(live, candidate, k=k) == pytest.approx(ndcg_score([live], [candidate], k=k))
    assert ndcg_against(live, live, k=k) == pytest.approx(1.0)


def test_overlap_counts_what_both_place_first():
    assert top_overlap([3, 2, 1, 0], [2, 3, 0, 1], k=2) == 1.0
    assert top_overlap([3, 2, 1, 0], [3, 0, 2, 1], k=2) == 0.5
    assert math.isnan(top_overlap([1, 2], [2, 1], k=2)), "two documents of two say nothing"
    assert math.isnan(ndcg_against([0.0, 0.0], [1.0, 2.0], k=2))


def test_an_interval_holds_the_mean_of_what_it_was_drawn_from():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(20):
        found = estimate(rng.normal(1.0, 1.0, 60), rng)
        assert found.low <= found.mean <= found.high
        hits += found.low <= 1.0 <= found.high
    assert hits >= 15
    assert estimate([math.nan], rng).num == 0


def score(value: float, grade: int) -> DocumentScore:
    probs = tuple(1.0 if g == grade else 0.0 for g in range(5))
    return DocumentScore(grade_probs=probs, expected_grade=float(grade), actions={"click": value}, score=value)


def answer(name: str, scores: Sequence[tuple[float, int]]) -> Answer:
    return Answer(
        identity=Identity(bundle_id=name, policy_version=f"1.0.0+{name}"),
        scores=tuple(itertools.starmap(score, scores)),
    )


def kept(folder: Path, *seen: Compared) -> Path:
    write_table(rows_to_table([row_of(one, AT) for one in seen], COMPARED), folder / "part.parquet", COMPARED)
    return folder


def seen(live: Sequence[tuple[float, int]], candidate: Sequence[tuple[float, int]] | None, *, by: str) -> Compared:
    documents = tuple(f"d{index}" for index in range(len(live)))
    begun = Compared.of("q", "p", documents, answer("old", live), 10.0)
    return (
        begun.failed("timeout", took_ms=99.0)
        if candidate is None
        else begun.beside(answer(by, candidate), took_ms=20.0)
    )


LIVE = [(0.9, 4), (0.5, 2), (0.1, 0)]


def test_a_report_says_how_far_two_bundles_are_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    reverse = [(0.1, 4), (0.5, 2), (0.9, 3)]
    same, other = seen(LIVE, LIVE, by="new"), seen(LIVE, reverse, by="new")
    folder = kept(tmp_path / "shadow", same, other, seen(LIVE, None, by="new"))
    (found,) = agreements(folder)
    assert found.sides == ("old", "1.0.0+old", "new", "1.0.0+new")
    assert (found.num_compared, found.num_documents, dict(found.failures)) == (2, 6, {"timeout": 1})
    measures = {name: one.mean for name, one in found.measures.items()}
    assert measures["Kendall tau-b"] == pytest.approx(0.0)
    assert measures["same first document"] == 0.5
    assert measures["mean difference of score"] == pytest.approx((0.8 + 0.8) / 3 / 2)
    assert measures["mean difference of P(click)"] == pytest.approx(measures["mean difference of score"])
    assert measures["documents of another grade"] == pytest.approx(1 / 6)
    assert measures["mean difference of expected grade"] == pytest.approx(3 / 3 / 2)
    assert found.measures["overlap of the first 10"].num == 0
    assert found.candidate_ms["slowest"] == 20.0
    page = tmp_path / "page.html"
    assert main(["compare", str(folder), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "2 requests compared, 6 documents. Candidate failed: timeout 1." in said
    assert "| documents of another grade | 0.1667 |" in said
    assert "<svg" in page.read_text() and "0.1667" in page.read_text()


def test_each_pair_of_bundles_has_its_own_section(tmp_path: Path):
    first, second = seen(LIVE, LIVE, by="new"), seen(LIVE, LIVE, by="newer")
    found = agreements(kept(tmp_path / "shadow", first, second, second))
    assert [(one.sides[2], one.num_compared) for one in found] == [("newer", 2), ("new", 1)]


def test_a_candidate_that_never_answered_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(kept(tmp_path / "shadow", seen(LIVE, None, by="new")))]) == 0
    assert "never answered" in capsys.readouterr().out


def test_a_folder_without_comparisons_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
