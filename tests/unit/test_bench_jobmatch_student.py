"""The benchmark of job-matching students: what is kept of teachers, on pairs whose truth is made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench.jobmatch_student import OWN, Ground, Heard, agreement, clicks_kept, lent_means, ndcg_kept, row, students
from preceptor.recipes import jobmatch

# Two queries of an occupation each, four documents a query. Constructed.
GRADES = np.array([3.0, 2.0, 1.0, 0.0, 0.0, 3.0, 1.0, 2.0])
CLICKS = np.array([0.4, 0.3, 0.2, 0.1, 0.05, 0.25, 0.15, 0.2])
TEACHERS = Heard(gains_N=2**GRADES - 1, clicks_N=np.log(CLICKS / (1 - CLICKS)))


@pytest.fixture
def ground() -> Ground:
    pairs = [{"query_id": f"q{number // 4}", "profile_id": "p"} for number in range(8)]
    return Ground(
        pairs=pairs,
        occupations=[f"occupation {number // 4}" for number in range(8)],
        grades_N=GRADES,
        click_probs_N=CLICKS,
        teachers=TEACHERS,
    )


def test_a_teacher_keeps_all_of_itself(ground: Ground) -> None:
    for kept in (ndcg_kept(ground, TEACHERS.gains_N, num=50), clicks_kept(ground, TEACHERS.clicks_N, num=50)):
        assert (kept.value, kept.low, kept.high) == (1, 1, 1)
    assert agreement(ground, TEACHERS.gains_N) == pytest.approx(1)


def test_a_student_that_orders_the_other_way_round_keeps_less(ground: Ground) -> None:
    assert ndcg_kept(ground, -TEACHERS.gains_N, num=0).value < 0.9
    assert agreement(ground, -TEACHERS.gains_N) < 0.9
    # A teacher that knows the probabilities has the best AUC there is, a; the other way round it is 1 - a.
    best = clicks_kept(ground, np.zeros(8), num=0).value
    assert clicks_kept(ground, -TEACHERS.clicks_N, num=0).value == pytest.approx(2 * best - 1)


def test_what_is_lost_between_queries_alone_comes_back_with_the_teachers_means(ground: Ground) -> None:
    shifted_N = TEACHERS.clicks_N + np.repeat([-2.0, 2.0], 4)
    assert clicks_kept(ground, shifted_N, num=0).value < 1
    assert lent_means(ground, shifted_N) == pytest.approx(TEACHERS.clicks_N)
    # And nothing of the order within a query.
    turned_N = TEACHERS.clicks_N[[1, 0, 2, 3, 4, 5, 6, 7]]
    assert lent_means(ground, turned_N + 1) == pytest.approx(turned_N)


def test_a_row_has_a_cell_for_each_column_after_the_seed(ground: Ground) -> None:
    cells = row(ground, TEACHERS, num=20).split(" | ")
    assert len(cells) == 9
    assert cells[0] == "1.000"
    assert cells[1].startswith("1.000 [1.000")


def test_each_student_changes_its_own_lesson_in_its_own_way() -> None:
    own = jobmatch().distill
    assert own is not None
    found = students(own)
    assert found[OWN] == own
    assert all(list(found.values()).count(lesson) == 1 for lesson in found.values())
