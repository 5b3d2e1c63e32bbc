"""The matching teacher: what it may learn from, what its adapter and its sum of signals do, on tiny corpora."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from preceptor.contracts import PAIRS, TEACHER_SCORES, read_table
from preceptor.errors import InputError, RecipeError
from preceptor.evaluation.metrics import ndcg_at
from preceptor.plan import HOSTED_SETS, make_plan
from preceptor.ranker.score_stage import collect_pairs
from preceptor.recipe import POLICY_DIR, JobmatchConfig, MatchConfig
from preceptor.recipes import find_recipe
from preceptor.record import Record, read_record
from preceptor.sources.jobmatch import jobmatch
from preceptor.sources.jobmatch_eval import ordered_ndcg, read_queries, rerank_ndcg
from preceptor.sources.occupations import fold, read_occupations, read_postings
from preceptor.sources.rerank_report import expected_gains, ranked_postings
from preceptor.sources.signals import VECTORS_FILE
from preceptor.sources.tables import JUDGEMENTS, QUERIES, RANKED, WEAK_PAIRS
from preceptor.teachers.match import MatchScoreConfig, load_matcher, match_scores, match_teacher
from tests.unit import source_data as builders

ALL_WEAK = ("occupation_title", "posting_title", "vacancy")
SMALL = MatchConfig(num_steps=8, pairs_per_step=16, num_folds=2)
SCORES = MatchScoreConfig(system="relevance", sets=HOSTED_SETS)


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


def test_a_teacher_takes_the_corpus_embeddings_of_its_encoder_and_makes_others(corpus: Record, tmp_path: Path) -> None:
    asked: list[str] = []

    def counting(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return builders.word_encoder(texts)

    names = {row["title"] for row in builders.posting_rows()}
    taken = match_teacher(SMALL, policy=POLICY_DIR, corpus=corpus, encode=counting, out=tmp_path / "taken" / "v1")
    assert not names & set(asked) and not (taken.path / VECTORS_FILE).exists()

    def wider(texts: Sequence[str]) -> np.ndarray:
        return np.pad(counting(texts), ((0, 0), (0, 8)))

    made = match_teacher(SMALL, policy=POLICY_DIR, corpus=corpus, encode=wider, out=tmp_path / "made" / "v1")
    assert names <= set(asked) and (made.path / VECTORS_FILE).is_file()
    rows = [
        match_scores(SCORES, corpus=corpus, teacher=teacher, encode=encode, out=tmp_path / teacher.stage / name)
        for name, teacher, encode in (("v1", taken, counting), ("v2", made, wider))
    ]
    first, second = (read_table(record.path / "scores", TEACHER_SCORES) for record in rows)
    assert first["pair_id"] == second["pair_id"]
    # Cosines are the same in both spaces, but for half precision, which moves a training on so few texts a little.
    logits = [np.concatenate(table["logits"].to_numpy()) for table in (first, second)]
    assert np.corrcoef(*logits)[0, 1] > 0.999


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
