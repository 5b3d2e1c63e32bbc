from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from preceptor.contracts import GOLDEN, LABELS, make_pair, rows_to_table
from preceptor.evaluation.metrics import bootstrap, quadratic_kappa
from preceptor.judge.agreement import EVERY_SLICE, Cell, agreement_table, disagreements

Graded = tuple[int, str, str, int, int]
"""Number of the query, slice, dimension, golden grade, judge's grade."""

LISTS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from("xyz"),
        st.sampled_from(["role", "pay"]),
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=25,
)


def tables(rows: Iterable[Graded], *, confidence: Sequence[float] = ()) -> tuple[pa.Table, pa.Table]:
    golden, labels = [], []
    for number, (query, slice_, dimension, truth, judged) in enumerate(rows):
        pair = make_pair(f"query {query}", "a nurse", f"posting {number}", slice=slice_, split="calibration")
        sure = confidence[number] if confidence else 0.6
        probs = [sure if grade == judged else (1 - sure) / 4 for grade in range(5)]
        golden.append(
            {
                **pair,
                "dimension": dimension,
                "grade": truth,
                "grader_id": "ann",
                "reason": f"reason {number}",
                "policy_version": "v",
            }
        )
        labels.append(
            {
                "pair_id": pair["pair_id"],
                "dimension": dimension,
                "grade": judged,
                "probs": probs,
                "label_mass": 0.5 + number / 100,
                "rationale": f"because {number}",
                "judge_id": "j",
                "policy_version": "v",
                "prompt_hash": "h",
            }
        )
    return rows_to_table(golden, GOLDEN), rows_to_table(labels, LABELS)


def cells(rows: Iterable[Graded], **arguments: int) -> dict[tuple[str, str], Cell]:
    table = agreement_table(*tables(rows), **arguments)
    return {(cell.dimension, cell.slice): cell for cell in table}


@settings(max_examples=40)
@given(LISTS)
def test_every_cell_equals_scikit_learn_and_a_count_by_hand(rows: list[Graded]) -> None:
    found = cells(rows, num_bootstrap=5)
    assert set(found) == {(row[2], scope) for row in rows for scope in (row[1], EVERY_SLICE)}
    for (dimension, slice_), cell in found.items():
        mine = [row for row in rows if row[2] == dimension and slice_ in (EVERY_SLICE, row[1])]
        truth, judged = [row[3] for row in mine], [row[4] for row in mine]
        both = list(zip(truth, judged, strict=True))
        assert cell.num == len(mine)
        assert cell.linear.value == expected_kappa(truth, judged, weights="linear")
        assert cell.quadratic.value == expected_kappa(truth, judged, weights="quadratic")
        assert cell.binarised.value == expected_kappa([g >= 3 for g in truth], [g >= 3 for g in judged], weights=None)
        assert cell.exact == pytest.approx(sum(t == j for t, j in both) / len(both))
        assert cell.within_one == pytest.approx(sum(abs(t - j) <= 1 for t, j in both) / len(both))
        assert cell.leniency == pytest.approx(sum(j - t for t, j in both) / len(both))
        assert cell.confusion == tuple(tuple(both.count((t, j)) for j in range(5)) for t in range(5))
        assert cell.quadratic.num_groups == len({row[0] for row in mine})
        mass = [0.5 + number / 100 for number, row in enumerate(rows) if row in mine]
        if len(set(rows)) == len(rows):
            assert cell.label_mass == pytest.approx(float(np.mean(mass)))


def expected_kappa(truth: Sequence[int], judged: Sequence[int], *, weights: str | None) -> object:
    """What scikit-learn says; NaN where both are one constant."""
    labels = [0, 1, 2, 3, 4] if weights else [False, True]
    if len({*truth, *judged}) == 1:
        return pytest.approx(math.nan, nan_ok=True)
    return pytest.approx(cohen_kappa_score(truth, judged, weights=weights, labels=labels))


@settings(max_examples=15)
@given(LISTS, st.integers(0, 99))
def test_the_interval_is_that_of_resampling_whole_queries_one_by_one(rows: list[Graded], seed: int) -> None:
    for (dimension, slice_), cell in cells(rows, num_bootstrap=30, seed=seed).items():
        queries: dict[int, list[Graded]] = {}
        for row in rows:
            if row[2] == dimension and slice_ in (EVERY_SLICE, row[1]):
                queries.setdefault(row[0], []).append(row)

        def kappa(drawn: Sequence[list[Graded]]) -> float:
            graded = [row for query in drawn for row in query]
            return quadratic_kappa([row[3] for row in graded], [row[4] for row in graded])

        expected = bootstrap(kappa, list(queries.values()), num=30, seed=seed)
        found = cell.quadratic
        assert [found.low, found.high] == pytest.approx([expected.low, expected.high], nan_ok=True)


def test_a_grade_that_only_one_of_them_has_is_left_out() -> None:
    golden, labels = tables([(0, "x", "role", 4, 4), (0, "x", "role", 0, 4), (1, "y", "pay", 2, 2)])
    found = agreement_table(golden, labels.slice(0, 1), num_bootstrap=3)
    assert [(cell.dimension, cell.slice, cell.num) for cell in found] == [("role", "all", 1), ("role", "x", 1)]
    assert agreement_table(golden, labels.slice(0, 0)) == ()
    assert disagreements(golden, labels.slice(0, 0)) == ()


def test_cells_come_in_goldens_order_and_the_whole_before_its_slices() -> None:
    found = agreement_table(
        *tables([(0, "y", "role", 4, 4), (1, "x", "role", 0, 4), (1, "all", "pay", 2, 2)]), num_bootstrap=3
    )
    names = [(cell.dimension, cell.slice) for cell in found]
    assert names == [("role", "all"), ("role", "x"), ("role", "y"), ("pay", "all")]


def test_disagreements_come_worst_first_and_say_what_both_sides_say() -> None:
    rows = [
        (0, "x", "role", 4, 4),
        (0, "x", "role", 4, 3),
        (1, "x", "role", 0, 4),
        (2, "x", "pay", 3, 2),
        (2, "x", "pay", 2, 1),
    ]
    found = disagreements(*tables(rows, confidence=[0.9, 0.5, 0.4, 0.75, 0.75]))
    assert [(one.golden_grade, one.judge_grade) for one in found[:1]] == [(0, 4)]
    assert [one.distance for one in found] == [4, 1, 1, 1]
    assert [round(one.confidence, 2) for one in found] == [0.4, 0.75, 0.75, 0.5]
    assert found[1].pair["pair_id"] < found[2].pair["pair_id"], "ties in the order of their ids"
    worst = found[0]
    assert (worst.dimension, worst.golden_reason, worst.rationale, worst.grader_id) == (
        "role",
        "reason 2",
        "because 2",
        "ann",
    )
    assert worst.pair["query"] == "query 1" and worst.pair["document"] == "posting 2"
    assert sum(worst.probs) == pytest.approx(1)
