"""How far graders agree: kappa against scikit-learn's, the bars, and who is named under them."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
from sklearn.metrics import cohen_kappa_score

from preceptor.contracts import OVERALL
from preceptor.golden.agreement import EVERY_SLICE, agreement_of, shortfalls
from preceptor.golden.draft import Draft, Graded, read_draft
from tests.unit.desk import (
    DIMENSIONS,
    FIRST,
    Desk,
)
from tests.unit.grading import Grader, slips


def two(desk: Desk, other: Grader) -> Draft:
    return read_draft(desk.graded(ann=desk.right, kim=other, lee=other))


def test_kappa_equals_scikit_learns_on_both_orders_of_each_two(desk: Desk) -> None:
    draft = two(desk, slips(desk.right, share=0.3, by=2))
    found = agreement_of(draft)
    assert [cell.dimension for cell in found.cells if cell.slice == EVERY_SLICE] == [OVERALL, *DIMENSIONS]
    tasks = {task.id: task for task in draft.tasks}
    for cell in found.cells:
        both: list[tuple[int, int]] = []
        for id, answers in draft.by_task().items():
            if tasks[id].known is None and cell.slice in (EVERY_SLICE, tasks[id].pair["slice"]):
                one, other = (answer.grades[cell.dimension] for answer in answers)
                both += [(one, other), (other, one)]
        first, second = zip(*both, strict=True)
        assert len(both) == 2 * cell.num_pairs
        assert cell.linear.value == pytest.approx(cohen_kappa_score(first, second, weights="linear"))
        assert cell.quadratic.value == pytest.approx(cohen_kappa_score(first, second, weights="quadratic"))
        assert cell.linear.low <= cell.linear.value <= cell.linear.high
        assert cell.exact == pytest.approx(sum(a == b for a, b in both) / len(both))


def test_names_decide_nothing(desk: Desk) -> None:
    draft = two(desk, slips(desk.right, share=0.3))
    turned = replace(draft, graded=tuple(reversed(draft.graded)))
    cells = [[cell.linear.value for cell in agreement_of(one).cells] for one in (draft, turned)]
    assert cells[0] == pytest.approx(cells[1])


def test_good_graders_pass_and_the_worst_dimension_of_others_is_named(desk: Desk) -> None:
    assert shortfalls(agreement_of(two(desk, slips(desk.right, share=0.02))), DIMENSIONS) == ()
    worst, bad = DIMENSIONS[3], DIMENSIONS[1]
    other = slips(slips(desk.right, share=0.5, dimensions=[bad]), share=0.9, dimensions=[worst], by=2)
    shutil.rmtree(desk.policy / "golden" / "drafts")
    draft = desk.graded(ann=desk.right, kim=other, lee=other)
    desk.said.readouterr()
    assert desk.run("agree", draft) == 1
    said = desk.said.readouterr().out
    missed = shortfalls(agreement_of(read_draft(draft)), DIMENSIONS)
    assert [one.dimension for one in missed if one.dimension != OVERALL] == [worst, bad]
    low = missed[-2]
    assert f"the worst dimension is {worst} at {low.value:.3f}, {0.8 - low.value:.3f} under the bar of 0.80" in said
    assert f"also under it: {bad} " in said


def test_a_lucky_handful_is_not_enough_overall(desk: Desk) -> None:
    draft = two(desk, desk.right)
    few = [task.id for task in draft.tasks if task.known is None][:10]

    def overall(item: Graded) -> int:
        """Ten pairs over all grades, one of them two grades apart."""
        place = few.index(item.task)
        return place % 5 + 2 * (place == 0 and item.grader == draft.by_task()[item.task][0].grader)

    graded = [replace(g, grades={**g.grades, OVERALL: overall(g)}) for g in draft.graded if g.task in few]
    found = agreement_of(replace(draft, graded=tuple(graded)))
    cell = found.cell(OVERALL)
    assert cell is not None and cell.num_pairs == 10
    assert cell.linear.value > 0.8 > cell.linear.low
    assert shortfalls(found, DIMENSIONS)[0].value == cell.linear.low


def test_agreement_on_one_grade_alone_shows_nothing(desk: Desk) -> None:
    draft = two(desk, desk.right)
    same = tuple(replace(item, grades={**item.grades, FIRST: 4}) for item in draft.graded)
    (missed,) = shortfalls(agreement_of(replace(draft, graded=same)), DIMENSIONS)
    assert missed.dimension == FIRST and math.isnan(missed.value) and missed.short_by == pytest.approx(0.8)
    assert shortfalls(agreement_of(replace(draft, graded=())), DIMENSIONS)[0].dimension == OVERALL


def test_a_careless_grader_is_named_by_the_known_pairs(desk: Desk) -> None:
    draft = desk.graded(ann=desk.right, kim=desk.right, lee=slips(desk.right, share=0.6))
    desk.said.readouterr()
    assert desk.run("agree", draft) == 1
    found = {one.grader: one for one in agreement_of(read_draft(draft)).vigilance}
    assert found["ann"].right == found["kim"].right == 1.0
    assert found["lee"].right < 0.7 and found["lee"].within_one == 1.0
    said = desk.said.readouterr().out
    assert (
        f"under the vigilance bar of 0.70: lee ({found['lee'].right:.2f} of {found['lee'].num_grades} grades)" in said
    )
    desk.run("agree", draft, "--vigilance-bar", "0.1")
    assert "vigilance bar" not in desk.said.readouterr().out
    assert "must be a share from 0 to 1" in desk.refused("agree", draft, "--vigilance-bar", "7")
