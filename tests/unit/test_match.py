"""The matching teacher: what it may learn from, what its adapter and its sum of signals do, on tiny corpora."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from preceptor.contracts import PAIRS, TEACHER_SCORES, read_table
from preceptor.errors import InputError, RecipeError
from preceptor.evaluation.holdout import expected_gain
from preceptor.evaluation.metrics import ndcg_at
from preceptor.plan import HOSTED_SETS, make_plan
from preceptor.ranker.score_stage import collect_pairs
from preceptor.recipe import POLICY_DIR, JobmatchConfig, MatchConfig, Signal
from preceptor.recipes import find_recipe
from preceptor.record import Record, read_record
from preceptor.sources.jobmatch import jobmatch
from preceptor.sources.jobmatch_eval import ordered_ndcg, read_queries, rerank_ndcg
from preceptor.sources.occupations import fold, read_occupations, read_postings
from preceptor.sources.rerank_report import expected_gains, ranked_postings
from preceptor.sources.tables import JUDGEMENTS, QUERIES, RANKED, WEAK_PAIRS
from preceptor.teachers.match import MatchScoreConfig, load_matcher, match_scores, match_teacher
from preceptor.teachers.match_adapter import Adapter, Lesson, lesson_chances, misplaced, train_adapter
from preceptor.teachers.match_fusion import fit_fusion
from preceptor.teachers.match_lessons import AskedFor, Title, folds_of, without_fold
from preceptor.teachers.match_signals import Asked, Collection, best_name, signals_of, soft_names
from tests.unit import source_data as builders

ALL_WEAK = ("occupation_title", "posting_title", "vacancy")
SMALL = MatchConfig(num_steps=8, pairs_per_step=16, num_folds=2)
SCORES = MatchScoreConfig(system="relevance", sets=HOSTED_SETS)


def unit(matrix: Any) -> np.ndarray:
    array = np.asarray(matrix, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def write_data(folder: Path) -> Path:
    """The builders' data with vacancies: two for every posting, and one that goes by a held-out occupation's title."""
    data: Path = builders.write_data(folder)
    rows = [
        {"vacancy_title": f"wanted: {word} {row['title']}", "esco_title": row["title"]}
        for row in builders.posting_rows()
        for word in ("senior", "junior")
    ]
    rows.append({"vacancy_title": "Miners, Class 12", "esco_title": builders.posting_rows()[40]["title"]})
    rows.append({"vacancy_title": held_titles(data)[0].upper(), "esco_title": builders.posting_rows()[41]["title"]})
    rows.append({"vacancy_title": "of no posting", "esco_title": "unknown"})
    pq.write_table(pa.Table.from_pylist(rows), data / "vacancy_titles.parquet")
    return data


def held_titles(data: Path) -> list[str]:
    occupations = read_occupations(data, read_postings(data))
    return sorted(title for occupation in occupations if occupation.split != "train" for title in occupation.titles)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("match")
    config = builders.config_for(write_data(folder / "data"), weak=ALL_WEAK)
    return jobmatch(config, policy=POLICY_DIR, out=folder / "corpus" / "v1", encode=builders.word_encoder)


@pytest.fixture(scope="module")
def teacher(corpus: Record, tmp_path_factory: pytest.TempPathFactory) -> Record:
    out = tmp_path_factory.mktemp("teacher") / "relevance_teacher" / "v1"
    return match_teacher(SMALL, policy=POLICY_DIR, corpus=corpus, encode=builders.word_encoder, out=out)


@pytest.fixture(scope="module")
def scores(corpus: Record, teacher: Record, tmp_path_factory: pytest.TempPathFactory) -> Record:
    out = tmp_path_factory.mktemp("scores") / "relevance_scores" / "v1"
    return match_scores(SCORES, corpus=corpus, teacher=teacher, encode=builders.word_encoder, out=out)


# weak pairs


def test_no_held_out_occupation_has_a_part_in_weak_pairs(corpus: Record) -> None:
    data = corpus.path.parents[1] / "data"
    occupations = read_occupations(data, read_postings(data))
    held = [occupation for occupation in occupations if occupation.split != "train"]
    titles = {title for occupation in held for title in occupation.titles}
    rows = read_table(corpus.path / "weak_pairs", WEAK_PAIRS).to_pylist()
    assert {row["source"] for row in rows} == set(ALL_WEAK)
    assert not titles & {fold(row["query"]) for row in rows}
    assert {row["occupation"] for row in rows if row["occupation"]} == {
        occupation.code for occupation in occupations if occupation.split == "train"
    }


def test_what_is_left_out_of_weak_pairs_was_there_to_be_taken(corpus: Record) -> None:
    data = corpus.path.parents[1] / "data"
    occupations = read_occupations(data, read_postings(data))
    held = [occupation for occupation in occupations if occupation.split != "train"]
    train_titles = {title for item in occupations if item.split == "train" for title in item.titles}
    vacancies = pq.read_table(data / "vacancy_titles.parquet").to_pylist()
    assert {fold(row["vacancy_title"]) for row in vacancies} & {title for item in held for title in item.titles}
    # A title that both sides go by is the held-out side's.
    shared = train_titles & {title for item in held for title in item.titles}
    assert shared
    weak = {fold(row["query"]) for row in read_table(corpus.path / "weak_pairs", WEAK_PAIRS).to_pylist()}
    assert not shared & weak and train_titles & weak


def test_weak_pairs_come_once_and_only_for_known_postings(corpus: Record) -> None:
    rows = read_table(corpus.path / "weak_pairs", WEAK_PAIRS).to_pylist()
    pairs = [(fold(row["query"]), row["document_key"], row["occupation"]) for row in rows]
    assert len(pairs) == len(set(pairs))
    assert {row["document_key"] for row in rows} <= {row["uri"] for row in builders.posting_rows()}
    assert not any("of no posting" in row["query"] for row in rows)


def test_a_corpus_without_weak_sources_is_the_same_work_as_before(tmp_path: Path) -> None:
    data = builders.write_data(tmp_path / "data")
    plain = jobmatch(builders.config_for(data), policy=POLICY_DIR, out=tmp_path / "v1", encode=builders.word_encoder)
    assert "weak" not in plain.config and not (plain.path / "weak_pairs").exists()
    with pytest.raises(InputError, match=r"vacancy_titles.parquet: no such file"):
        config = builders.config_for(data, weak=("vacancy",))
        jobmatch(config, policy=POLICY_DIR, out=tmp_path / "v2", encode=builders.word_encoder)


# folds


def asked_for(occupation: str, *rows: int) -> AskedFor:
    grades = {row: 3 for row in rows}
    return AskedFor(
        group=(occupation, ""), occupation=occupation, slice="s", split="train", text="t", typed="t", grades=grades
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
    parts = folds_of([asked_for(code, 0) for code in codes], 3)
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


# stages


def test_every_pair_of_the_sets_has_five_logits_and_held_out_queries_are_ranked(
    corpus: Record, teacher: Record, scores: Record
) -> None:
    table = read_table(scores.path / "scores", TEACHER_SCORES)
    assert sorted(table["pair_id"].to_pylist()) == sorted(row["pair_id"] for row in collect_pairs(corpus, HOSTED_SETS))
    assert {len(row) for row in table["logits"].to_pylist()} == {5}
    assert teacher.metrics["heads"] == ["overall"] and len(teacher.metrics["losses"]) == 16
    ranked = read_table(scores.path / "ranked", RANKED)
    queries = read_table(corpus.path / "queries", QUERIES)
    held = queries.filter(pc.not_equal(queries["split"], "train"))
    assert ranked.num_rows == held.num_rows * builders.NUM_POSTINGS
    orders, gains = ranked_postings(scores), expected_gains(scores)
    query = next(item for item in read_queries(corpus.path) if item.split == "holdout")
    by_teacher = sorted(
        zip(query.document_keys, query.pair_ids, strict=True), key=lambda item: orders[query.group].index(item[0])
    )
    found = [gains[pair_id] for _, pair_id in by_teacher]
    np.testing.assert_allclose(found, sorted(found, reverse=True), atol=1e-6)


def test_what_is_known_of_the_holdout_does_not_reach_the_teacher(
    corpus: Record, teacher: Record, tmp_path: Path
) -> None:
    copied = tmp_path / "corpus" / "v1"
    shutil.copytree(corpus.path, copied)
    queries = copied / "queries" / "part-00000.parquet"
    table = read_table(copied / "queries", QUERIES)
    held = pc.not_equal(table["split"], "train")
    for column in ("text", "query"):
        said = pc.if_else(held, pc.utf8_upper(table[column]), table[column])
        table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), said)
    pq.write_table(table, queries)
    groups = set(zip(*(table.filter(held)[name].to_pylist() for name in ("query_id", "profile_id")), strict=True))
    judged = pq.read_table(copied / "judgements" / "part-00000.parquet")
    kept = [(row["query_id"], row["profile_id"]) not in groups for row in judged.to_pylist()]
    assert not all(kept)
    pq.write_table(judged.filter(pa.array(kept)), copied / "judgements" / "part-00000.parquet")
    other = read_record(copied)
    assert other is not None
    again = match_teacher(
        SMALL, policy=POLICY_DIR, corpus=other, encode=builders.word_encoder, out=tmp_path / "teacher" / "v1"
    )
    assert same_matcher(teacher, again)


def test_which_postings_are_relevant_to_held_out_occupations_does_not_reach_the_teacher(
    corpus: Record, teacher: Record, tmp_path: Path
) -> None:
    data = shutil.copytree(corpus.path.parents[1] / "data", tmp_path / "data")
    listed = pq.read_table(data / "crosswalk.parquet").to_pylist()
    held = [row for row in listed if row["split"] == "dev"]
    others = [row["esco_uri"] for row in held][::-1]
    assert others != [row["esco_uri"] for row in held]
    for row, uri in zip(held, others, strict=True):
        row["esco_uri"] = uri
    pq.write_table(pa.Table.from_pylist(listed), data / "crosswalk.parquet")
    config = builders.config_for(data, weak=ALL_WEAK)
    other = jobmatch(config, policy=POLICY_DIR, out=tmp_path / "corpus" / "v1", encode=builders.word_encoder)
    assert read_table(other.path / "judgements", JUDGEMENTS) != read_table(corpus.path / "judgements", JUDGEMENTS)
    again = match_teacher(
        SMALL, policy=POLICY_DIR, corpus=other, encode=builders.word_encoder, out=tmp_path / "teacher" / "v1"
    )
    assert same_matcher(teacher, again)


def same_matcher(one: Record, other: Record) -> bool:
    first, second = (load_matcher(record.path / "model") for record in (one, other))
    assert first.adapter is not None and second.adapter is not None
    return first.fusions == second.fusions and np.array_equal(first.adapter.query_HH, second.adapter.query_HH)


def test_scores_of_another_corpus_than_the_teachers_are_refused(
    corpus: Record, teacher: Record, tmp_path: Path
) -> None:
    other = replace(corpus, fingerprint="0" * 16)
    with pytest.raises(InputError, match="learnt from another corpus"):
        match_scores(SCORES, corpus=other, teacher=teacher, encode=builders.word_encoder, out=tmp_path / "v1")


def test_without_tuned_signals_there_is_no_adapter(corpus: Record, tmp_path: Path) -> None:
    config = replace(SMALL, signals=("text", "words"))
    record = match_teacher(
        config, policy=POLICY_DIR, corpus=corpus, encode=builders.word_encoder, out=tmp_path / "teacher" / "v1"
    )
    assert record.metrics["losses"] == [] and load_matcher(record.path / "model").config == config
    with pytest.raises(InputError, match="no matching teacher"):
        load_matcher(tmp_path)


def test_the_report_pairs_each_system_with_minilm(corpus: Record, scores: Record) -> None:
    gains, orders = expected_gains(scores), ranked_postings(scores)
    found = rerank_ndcg(corpus.path, {"t": gains}, ranked={"t": orders}, num_bootstrap=50)
    rows = {(item.slice, item.system): item for item in found}
    for slice_ in ("title_description", "reported_title"):
        base = rows[slice_, "minilm"]
        assert (base.gain.value, base.gain.low, base.gain.high) == (0.0, 0.0, 0.0)
        ours = rows[slice_, "t, all postings"]
        assert ours.gain.value == pytest.approx(ours.ndcg.value - base.ndcg.value)
        assert ours.gain.low <= ours.gain.value <= ours.gain.high
        held = [item for item in read_queries(corpus.path) if (item.slice, item.split) == (slice_, "holdout")]
        brute = np.mean(
            [
                ndcg_at([query.grades.get(key, 0) for key in orders[query.group]], -np.arange(builders.NUM_POSTINGS))
                for query in held
            ]
        )
        assert ours.ndcg.value == pytest.approx(brute)
    query = held[0]
    with pytest.raises(InputError, match="t: 3 postings ranked for a holdout query, 10"):
        ordered_ndcg(query, {query.group: ["a", "b", "c"]}, name="t")


def test_pairs_of_the_corpus_did_not_change_with_weak_sources(corpus: Record, tmp_path: Path) -> None:
    data = corpus.path.parents[1] / "data"
    plain = jobmatch(builders.config_for(data), policy=POLICY_DIR, out=tmp_path / "v1", encode=builders.word_encoder)
    assert read_table(plain.path / "pairs", PAIRS) == read_table(corpus.path / "pairs", PAIRS)


# recipes


def test_the_jobmatch_recipe_matches_and_hosts_no_teacher() -> None:
    recipe = find_recipe("jobmatch")
    assert isinstance(recipe.relevance, MatchConfig) and isinstance(recipe.source, JobmatchConfig)
    rows = {step.name: step.rows for step in make_plan(recipe)}
    assert "vLLM" not in rows["relevance_scores"] and "4 adapters of 80 steps" in rows["relevance_teacher"]
    assert recipe.distill is not None and recipe.distill.backbone is not None


def test_a_recipe_that_cannot_match_is_refused() -> None:
    recipe, demo = find_recipe("jobmatch"), find_recipe("demo")
    with pytest.raises(RecipeError, match="needs a jobmatch source"):
        replace(recipe, source=demo.source)
    assert recipe.distill is not None
    with pytest.raises(RecipeError, match="no layers to start a student from"):
        replace(recipe, distill=replace(recipe.distill, backbone=None, num_layers=2))
    for changes, said in (
        ({"signals": ()}, "signals must name"),
        ({"signals": ("shoe size",)}, "no signal shoe size"),
        ({"num_folds": 1}, "num_folds"),
        ({"rounds": 0}, "rounds"),
        ({"temperature": 0.0}, "temperature"),
        ({"shares": {"judged": 0.0}}, "shares"),
        ({"shares": {"judged": 0.3, "ocupation_title": 0.7}}, "no source ocupation_title"),
    ):
        with pytest.raises(RecipeError, match=said):
            MatchConfig(**changes)
