"""Reasons before a grade: how they are asked for, and where in the reply the grade is read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.contracts import OVERALL
from preceptor.judge.completions import read_reasoned, split_reasoned
from preceptor.judge.replies import NO_GRADE
from preceptor.policy import REASONED_ANSWER, messages, prompt_hash, reasoned_messages
from tests.unit.endpoints import POLICY, chat, endpoint, graded_by, grader_of, pool, send


def spelled(*texts: str, tops: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """Tokens of a reply; `tops` gives the logprobs at the positions that matter."""
    return [
        {
            "token": text,
            "logprob": -0.01,
            "bytes": list(text.encode()),
            "top_logprobs": [{"token": top, "logprob": value} for top, value in tops.get(n, {text: -0.01}).items()],
        }
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ("Same", " work", ".", "\n", "Grade", ":", " 3"),
        ("Same", " work", ".", "\n", "Grade", ": ", "3"),
        ("Same", " work", ".\n", "Grade:", " ", "3", "\n"),
        ("Grade", ": 1 said one.", " Same work.\n", "**", "Grade", ":", " 3", "**"),
        ("Grade: 0\n", "Same work.", "\n", "grade", ":", "3"),
    ],
    ids=["space-with-digit", "space-before", "space-alone", "bold-and-an-earlier-one", "none"],
)
def test_the_grade_after_the_reasons_is_read_where_its_digit_is(texts: tuple[str, ...]) -> None:
    (at,) = (n for n, text in enumerate(texts) if text.strip() == "3")
    listed = spelled(*texts, tops={at: {"3": -0.5, " 3": -2.0, " 2": -1.5, "x": -3.0}})
    verdict = read_reasoned(json.loads(chat("".join(texts), tokens=listed)))
    assert verdict.masses == pytest.approx((0, 0, math.exp(-1.5), math.exp(-0.5) + math.exp(-2.0), 0))
    assert verdict.rationale is not None and "ame work." in verdict.rationale
    assert not verdict.rationale.endswith(("Grade", "\n", "**"))


def test_a_character_cut_into_two_tokens_does_not_move_the_digit() -> None:
    halves = [{"token": "\ufffd", "logprob": -1.0, "bytes": [part], "top_logprobs": []} for part in "é".encode()]
    listed = [*halves, *spelled("\n", "Grade:", " 2", tops={2: {" 2": -0.5}})]
    verdict = read_reasoned(json.loads(chat("é\nGrade: 2", tokens=listed)))
    assert verdict.masses == pytest.approx((0, 0, math.exp(-0.5), 0, 0))
    assert verdict.rationale == "é"


@given(st.text(), st.text(alphabet="aé\n :Grade034*", max_size=40))
def test_reasons_that_end_in_a_grade_are_split_there_and_anything_else_is_none(before: str, after: str) -> None:
    reasons, grade = split_reasoned(f"{before}\nGrade: 4\n")
    assert grade == 4 and reasons == before.encode(errors="replace").decode().strip()
    split_reasoned(before + after)


@pytest.mark.parametrize("text", ["", "No idea.", "Grade: 5", "Grade: 3\nGrade: 33", "Grade:", "So a Grade: 3", "3"])
def test_reasons_without_a_grade_line_are_rejected_with_what_was_seen(text: str) -> None:
    verdict = read_reasoned(json.loads(chat(text)))
    assert (verdict.masses, verdict.reason, verdict.raw) == (None, NO_GRADE, text)


def test_reasons_are_asked_for_and_kept() -> None:
    texts = ("Same work", ".", "\n", "Grade", ":", " 3")
    reply = send(chat("".join(texts), tokens=spelled(*texts, tops={5: {" 3": -0.2, " 4": -2.0}})))
    with endpoint(reply, send(chat("Same work.\nGrade: 1")), rationale_tokens=50) as (where, seen):
        grader = grader_of(replace(where, max_concurrency=1), dimensions=("role", OVERALL))
        (answers,) = graded_by(grader, pool(1))
    first, second = answers.replies
    assert (first.rationale, second.rationale) == ("Same work.", "Same work.")
    assert first.label_mass == pytest.approx(math.exp(-0.2) + math.exp(-2.0))
    assert second.probs == (0, 1, 0, 0, 0)
    assert seen[0]["max_tokens"] > 50
    assert seen[0]["messages"][-1]["content"].endswith(REASONED_ANSWER)


def test_asking_for_reasons_changes_the_end_of_the_prompt_and_its_hash() -> None:
    pair = {"query": "q", "profile": "p", "document": "d"}
    plain, reasoned = messages(POLICY, "role", **pair), reasoned_messages(POLICY, "role", **pair)
    assert plain[0] == reasoned[0]
    assert plain[1]["content"].rpartition("\n")[0] == reasoned[1]["content"].rpartition("\n")[0]
    for name in ("role", OVERALL):
        assert prompt_hash(POLICY, name) != prompt_hash(POLICY, name, asking=REASONED_ANSWER)
