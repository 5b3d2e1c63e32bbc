"""NDCG over the whole collection of postings: what retrieval missed counts, and a reranker moves its depth only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preceptor.errors import InputError
from preceptor.recipe import POLICY_DIR
from preceptor.sources.jobmatch import jobmatch
from preceptor.sources.jobmatch_eval import fusion_weight, read_queries, rerank_ndcg, reranked_ndcg
from tests.unit.source_data import (
    config_for,
    word_encoder,
    write_data,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobmatch")
    config = config_for(write_data(folder / "data"))
    return jobmatch(config, policy=POLICY_DIR, out=folder / "out" / "v1", encode=word_encoder).path


def brute_ndcg(ranked: list[int], judged: list[int], k: int = 10) -> float:
    def dcg(grades: list[int]) -> float:
        return sum((2**grade - 1) / np.log2(rank + 2) for rank, grade in enumerate(grades[:k]))

    return dcg(ranked) / dcg(sorted(judged, reverse=True))


def test_the_ideal_ranking_counts_postings_that_retrieval_missed(corpus: Path) -> None:
    queries = [query for query in read_queries(corpus) if query.split == "holdout"]
    assert any(set(query.grades) - set(query.document_keys) for query in queries)
    for query in queries:
        order = [query.grades.get(key, 0) for key in query.document_keys]
        steps = -np.arange(len(order), dtype=np.float64)
        assert reranked_ndcg(query, steps, depth=25) == pytest.approx(brute_ndcg(order, list(query.grades.values())))
        perfect = np.array([query.grades.get(key, 0) for key in query.document_keys], dtype=np.float64)
        best = brute_ndcg(sorted(order, reverse=True), list(query.grades.values()))
        assert reranked_ndcg(query, perfect, depth=25) == pytest.approx(best)


def test_missed_postings_never_move_up_behind_a_short_list(corpus: Path) -> None:
    query = next(query for query in read_queries(corpus) if query.split == "holdout")
    short = replace(query, document_keys=("esco/none",), pair_ids=("p",), similarities=np.array([0.5]))
    assert reranked_ndcg(short, np.array([1.0]), depth=1) == 0.0


def test_a_reranker_moves_its_depth_only_and_ties_count_against_it(corpus: Path) -> None:
    query = next(query for query in read_queries(corpus) if query.split == "holdout")
    grades = [query.grades.get(key, 0) for key in query.document_keys]
    judged = list(query.grades.values())
    reversed_top = reranked_ndcg(query, np.arange(5, dtype=np.float64), depth=5)
    assert reversed_top == pytest.approx(brute_ndcg(grades[:5][::-1] + grades[5:], judged))
    tied = reranked_ndcg(query, np.zeros(20), depth=20)
    assert tied == pytest.approx(brute_ndcg(sorted(grades[:20]) + grades[20:], judged))


def perfect_scores(corpus: Path, *, sign: float = 1.0) -> dict[str, float]:
    return {
        pair_id: sign * query.grades.get(key, 0)
        for query in read_queries(corpus)
        for pair_id, key in zip(query.pair_ids, query.document_keys, strict=True)
    }


def test_rerank_ndcg_reports_baselines_models_and_fusions(corpus: Path) -> None:
    scores = {"good": perfect_scores(corpus), "bad": perfect_scores(corpus, sign=-1.0)}
    rankings = {(item.slice, item.system): item for item in rerank_ndcg(corpus, scores, num_bootstrap=50)}
    assert {slice_ for slice_, _ in rankings} == {"title_description", "reported_title"}
    for slice_ in ("title_description", "reported_title"):
        found = {system: item for (name, system), item in rankings.items() if name == slice_}
        assert set(found) == {"tfidf", "minilm", "good", "good + similarity", "bad", "bad + similarity"}
        assert found["good"].ndcg.value >= found["minilm"].ndcg.value > found["bad"].ndcg.value
        assert (found["bad + similarity"].similarity_weight or 0) > 0
        assert found["bad + similarity"].ndcg.value > found["bad"].ndcg.value
        assert found["good"].similarity_weight is None
        for item in found.values():
            assert item.num_queries == item.ndcg.num_groups == 4
            assert item.ndcg.low <= item.ndcg.value <= item.ndcg.high


def test_a_fusion_weight_comes_from_calibration_and_misses_no_score(corpus: Path) -> None:
    scores = perfect_scores(corpus)
    queries = read_queries(corpus)
    calibration = [query for query in queries if query.split == "calibration"]
    flat = dict.fromkeys(scores, 0.0)
    assert fusion_weight(calibration, flat, name="flat", depth=20) == 1.0
    assert fusion_weight(calibration, scores, name="good", depth=20) < 1.0
    holdout_only = {
        pair_id: scores[pair_id] for query in queries if query.split == "holdout" for pair_id in query.pair_ids
    }
    with pytest.raises(InputError, match=r"student: no score for .* calibration query"):
        rerank_ndcg(corpus, {"student": holdout_only}, num_bootstrap=5)
