"""The parts of the matching teacher: its folds, its adapter, its signals and their sum, on vectors made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preceptor.errors import InputError
from preceptor.evaluation.holdout import expected_gain
from preceptor.evaluation.metrics import ndcg_at
from preceptor.recipe import MatchConfig, Signal
from preceptor.sources.signals import Asked, Collection, best_name, soft_names
from preceptor.teachers.match_adapter import Adapter, Lesson, lesson_chances, misplaced, train_adapter
from preceptor.teachers.match_fusion import Fusion, fit_fusion
from preceptor.teachers.match_lessons import AskedFor, Title, folds_of, without_fold
from preceptor.teachers.match_signals import signals_of

SMALL = MatchConfig(num_steps=8, pairs_per_step=16, num_folds=2)


def unit(matrix: Any) -> np.ndarray:
    array = np.asarray(matrix, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


# folds


def asked_for(occupation: str) -> AskedFor:
    return AskedFor(
        group=(occupation, ""), occupation=occupation, slice="s", split="train", text="t", typed="t", grades={0: 3}
    )


def test_a_fold_sees_nothing_of_the_occupations_it_is_asked_about() -> None:
    def title(text: str, row: int, occupation: str) -> Title:
        return Title(text=text, gains={row: 7.0}, source="weak", occupation=occupation)

    seen, named, shared = title("own", 0, "11-1"), title("other", 1, "12-1"), title("SHARED  title", 1, "12-1")
    unseen, posting, theirs = title("shared title", 0, "11-2"), title("weak", 4, ""), title("Shared Title", 4, "")
    kept = without_fold([seen, named, shared, unseen, posting, theirs], frozenset({"11-2"}))
    assert kept == [seen, named, posting]


def test_folds_hold_whole_minor_groups_and_every_occupation_once() -> None:
    codes = [f"{major}-{minor}0{last}.00" for major in (11, 13, 15) for minor in (1, 2) for last in (1, 2)]
    parts = folds_of([asked_for(code) for code in codes], 3)
    assert sorted(code for part in parts for code in part) == sorted(codes)
    assert all(
        len({index for index, part in enumerate(parts) for code in part if code[:4] == group}) == 1
        for group in {code[:4] for code in codes}
    )
    assert all(parts)


# adapter


def planted(num_postings: int = 12, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(postings, titles): a title is a posting with its dimensions in reverse order, so that cosines mislead."""
    postings = unit(np.random.default_rng(3).normal(size=(num_postings, width)))
    return postings, np.ascontiguousarray(postings[:, ::-1])


def test_the_adapter_learns_what_cosines_do_not_show() -> None:
    postings, titles = planted()
    lessons = [Lesson(row=row, gains={row: 7.0}, source="judged") for row in range(len(titles))]
    config = replace(SMALL, num_steps=150, learning_rate=2e-2, weight_decay=0.0, rounds=1)
    adapter, losses = train_adapter(lessons, titles_XH=titles, texts_NH=postings, names_NH=postings, config=config)
    before, after = titles @ postings.T, adapter.queries(titles) @ adapter.postings(postings).T
    right = np.arange(len(titles))
    assert (before.argmax(1) == right).mean() < 0.5 and (after.argmax(1) == right).all()
    assert losses[-1] < losses[0]


def test_a_posting_that_no_title_asks_for_has_no_part_not_even_as_a_negative() -> None:
    postings, titles = planted()
    lessons = [Lesson(row=row, gains={row: 7.0}, source="judged") for row in range(8)]
    changed = postings.copy()
    changed[8:] = unit(np.ones_like(changed[8:]))
    found = [
        train_adapter(lessons, titles_XH=titles, texts_NH=texts, names_NH=texts, config=SMALL)[0]
        for texts in (postings, changed)
    ]
    np.testing.assert_array_equal(found[0].posting_HH, found[1].posting_HH)
    with pytest.raises(InputError, match="no title to learn from"):
        train_adapter([], titles_XH=titles, texts_NH=postings, names_NH=postings, config=SMALL)


def test_the_second_round_weighs_titles_by_the_place_of_their_best_posting() -> None:
    identity = Adapter(query_HH=np.zeros((2, 2), np.float32), posting_HH=np.zeros((2, 2), np.float32))
    postings = unit([[1, 0], [1, 1], [0, 1]])
    titles = unit([[1, 0.1], [1, 0.1]])
    lessons = [Lesson(row=0, gains={5: 7.0, 7: 1.0}, source="a"), Lesson(row=1, gains={7: 3.0, 5: 1.0}, source="a")]
    column = {5: 0, 6: 1, 7: 2}
    found = misplaced(identity, lessons, titles_XH=titles, texts_NH=postings, column=column)
    np.testing.assert_allclose(found, [1.0, 2.0])
    postings_, titles_ = planted()
    lessons = [Lesson(row=row, gains={row: 7.0}, source="judged") for row in range(len(titles_))]
    kwargs: dict[str, Any] = {"titles_XH": titles_, "texts_NH": postings_, "names_NH": postings_}
    one, two = (train_adapter(lessons, config=replace(SMALL, rounds=rounds), **kwargs) for rounds in (1, 2))
    assert two[1][: len(one[1])] == one[1] and len(two[1]) == 2 * len(one[1])


def test_a_sources_share_does_not_depend_on_how_many_titles_it_has() -> None:
    lessons = [Lesson(row=0, gains={0: 1.0}, source=name) for name in ("judged", *["vacancy"] * 9)]
    chances = lesson_chances(lessons, replace(SMALL, shares={"judged": 1.0, "vacancy": 1.0}))
    np.testing.assert_allclose(chances, [0.5, *[0.5 / 9] * 9])
    with pytest.raises(InputError, match="no title has a share above 0"):
        lesson_chances(lessons, replace(SMALL, shares={"posting_title": 1.0}))


# signals and their sum


def test_names_are_taken_together_and_closest_as_a_loop_would() -> None:
    cosines = np.random.default_rng(0).uniform(-1, 1, size=(3, 6)).astype(np.float32)
    starts, parts = [0, 1, 4], [slice(0, 1), slice(1, 4), slice(4, 6)]
    soft = [[0.05 * np.log(np.mean(np.exp(row[part].astype(float) / 0.05))) for part in parts] for row in cosines]
    np.testing.assert_allclose(soft_names(cosines, starts), soft, atol=1e-5)
    np.testing.assert_array_equal(best_name(cosines, starts), [[row[part].max() for part in parts] for row in cosines])


def test_an_untrained_adapter_tunes_nothing_and_chunks_change_nothing() -> None:
    generator = np.random.default_rng(1)
    texts, names, queries = (unit(generator.normal(size=(num, 4))) for num in (5, 10, 7))
    collection = Collection(
        keys=tuple("abcde"),
        texts=tuple(f"work {index}" for index in range(5)),
        names=tuple((f"name {index}", f"other {index}") for index in range(5)),
        groups=("1111", "1111", "1112", "2111", "2111"),
        texts_NH=texts,
        names_KH=names,
    )
    asked = Asked(
        texts=tuple(f"work {index} name" for index in range(7)), texts_QH=queries, titles_QH=queries, tasks_QH=queries
    )
    identity = Adapter(query_HH=np.zeros((4, 4), np.float32), posting_HH=np.zeros((4, 4), np.float32))
    wanted: tuple[Signal, ...] = ("text", "tuned_text", "names", "tuned_names", "words")
    found = signals_of(asked, collection, identity, wanted)
    np.testing.assert_allclose(found[..., 0], queries @ texts.T, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], found[..., 0], atol=1e-6)
    np.testing.assert_allclose(found[..., 3], found[..., 2], atol=1e-5)
    np.testing.assert_allclose(signals_of(asked, collection, identity, wanted, chunk=2), found, atol=1e-6)


def test_a_postings_kin_and_the_profiles_tasks_are_taken_as_a_loop_would() -> None:
    generator = np.random.default_rng(2)
    texts, queries, tasks = unit(generator.normal(size=(12, 4))), unit(generator.normal(size=(3, 4))), np.zeros((3, 4))
    tasks[1] = unit(generator.normal(size=(5, 4))).mean(axis=0)
    groups = [f"{major}{minor}1{unit_}" for major in (1, 2) for minor in (0, 1) for unit_ in (1, 1, 2)]
    collection = Collection(
        keys=tuple("abcdefghijkl"),
        texts=tuple("abcdefghijkl"),
        names=tuple(("n",) for _ in range(12)),
        groups=tuple(groups),
        texts_NH=texts,
        names_KH=texts,
    )
    asked = Asked(texts=("a", "b", "c"), texts_QH=queries, titles_QH=queries, tasks_QH=tasks.astype(np.float32))
    wanted: tuple[Signal, ...] = ("tasks", "near", "group", "best_of_group", "minor_group")
    found = signals_of(asked, collection, None, wanted)

    cosines, between = queries @ texts.T, texts @ texts.T
    for number in range(12):
        others = sorted((row for row in range(12) if row != number), key=lambda row: -between[number, row])
        unit_group = [row for row in range(12) if groups[row] == groups[number]]
        minor_group = [row for row in range(12) if groups[row][:3] == groups[number][:3]]
        expected = [
            tasks @ texts[number],
            cosines[:, others[:8]].mean(axis=1),
            cosines[:, unit_group].mean(axis=1),
            cosines[:, unit_group].max(axis=1),
            cosines[:, minor_group].mean(axis=1),
        ]
        np.testing.assert_allclose(found[:, number], np.transpose(expected), atol=1e-5)
    assert not found[[0, 2], :, 0].any(), "no tasks, no signal"


def test_the_sum_follows_the_signal_that_tells_grades_and_its_logits_rank_alike() -> None:
    generator = np.random.default_rng(5)
    grades = generator.choice([0, 0, 0, 1, 2, 3], size=(40, 30)).astype(np.int8)
    grades[:, 0] = 3
    noise = generator.normal(size=grades.shape)
    telling = grades * 0.2 + generator.normal(scale=0.1, size=grades.shape)
    signals = np.stack([noise, telling], axis=-1).astype(np.float32)
    fusion = fit_fusion(signals, grades, ridge=1e-3)
    assert fusion.weights[1] > 10 * abs(fusion.weights[0]) and fusion.slope > 0
    scores = fusion.scores(signals)
    fused, alone = (
        np.mean([ndcg_at(row, values) for row, values in zip(grades, found, strict=True)]) for found in (scores, noise)
    )
    assert fused > 0.9 > alone
    for row in scores[:5]:
        np.testing.assert_array_equal(np.argsort(expected_gain(fusion.logits(row).astype(np.float64))), np.argsort(row))
    probs = np.exp(fusion.logits(scores))
    probs /= probs.sum(-1, keepdims=True)
    assert abs((probs @ np.arange(5)).mean() - grades.mean()) < 0.1


def test_grades_of_two_queries_are_told_by_shares_and_not_by_scores() -> None:
    """A query whose scores are all higher has the same grades, and what many postings share is worth less."""
    fusion = Fusion(weights=(1.0,), slope=0.7, offsets=(2.0, 0.5, 0.0, -0.5, -3.0))
    alone = np.array([5.0, 0.0, 0.0, 0.0], dtype=np.float32)
    np.testing.assert_allclose(fusion.logits(alone + 40), fusion.logits(alone), atol=1e-3)
    among_equals = np.array([5.0, 5.0, 5.0, 0.0], dtype=np.float32)
    gains = [expected_gain(fusion.logits(row).astype(np.float64))[0] for row in (alone, among_equals)]
    assert gains[0] > gains[1]
