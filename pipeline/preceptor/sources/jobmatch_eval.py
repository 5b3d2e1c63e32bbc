"""NDCG@10 of job matching over the whole collection: baselines, and models that rerank what MiniLM retrieved.

The ideal ranking of a query is made of all its judged postings, so that a posting which retrieval missed costs
every reranker what it costs a member. Intervals resample occupations, the unit of the splits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preceptor.contracts import read_table
from preceptor.errors import InputError
from preceptor.evaluation.metrics import Interval, bootstrap, ndcg_at
from preceptor.sources.retrieval import tfidf_similarities
from preceptor.sources.tables import CANDIDATES, DOCUMENTS, JUDGEMENTS, QUERIES

CUT: Final = 10
"""The k of NDCG@k."""

FUSION_WEIGHTS: Final = tuple(step / 10 for step in range(10, -1, -1))
"""Shares of the similarity tried in a fusion; the first of equals wins, so a tie keeps the retriever's order."""

_Floats = npt.NDArray[np.float64]
Group = tuple[str, str]
_NONE_RANKED: Final[Mapping[str, Mapping[Group, Sequence[str]]]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """NDCG@10 of one system on one slice; `num_groups` of `ndcg` counts occupations.

    `gain` is what it has over MiniLM's own order, paired: on the same queries and the same resampled occupations.
    `similarity_weight` is the share of the retrieval similarity in the score: None where none was mixed in.
    """

    system: str
    slice: str
    ndcg: Interval
    gain: Interval
    num_queries: int
    similarity_weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class RankedQuery:
    """One query with its candidates, best similarity first, and all its judged grades by document key."""

    group: Group
    occupation: str
    slice: str
    split: str
    text: str
    grades: Mapping[str, int]
    pair_ids: tuple[str, ...]
    document_keys: tuple[str, ...]
    similarities: _Floats


def rerank_ndcg(
    corpus: Path,
    scores: Mapping[str, Mapping[str, float]],
    *,
    ranked: Mapping[str, Mapping[Group, Sequence[str]]] = _NONE_RANKED,
    depth: int = 20,
    num_bootstrap: int = 1000,
    seed: int = 11,
) -> tuple[Ranking, ...]:
    """For each holdout slice: ``tfidf`` and ``minilm`` over all postings, then two rankings for each model.

    `corpus` is what the jobmatch stage wrote. `scores` maps a model's name to its score of each pair_id; it must cover
    the first `depth` candidates of every holdout and calibration query. A model reorders those and leaves the rest as
    MiniLM had them; ``NAME`` orders by the model alone, ``NAME + similarity`` by a weighted sum of the two,
    each standardised within the query, with the weight that does best on the calibration split of the same slice.
    `ranked` maps a model's name to the best postings of the whole collection it gives each holdout query, in order:
    ``NAME, all postings``.
    """
    queries = read_queries(corpus)
    documents = read_table(corpus / "documents", DOCUMENTS)
    rankings: list[Ranking] = []
    for slice_ in sorted({query.slice for query in queries if query.split == "holdout"}):
        held_out = [query for query in queries if (query.slice, query.split) == (slice_, "holdout")]
        calibration = [query for query in queries if (query.slice, query.split) == (slice_, "calibration")]
        values: list[tuple[str, list[float], float | None]] = [
            ("tfidf", tfidf_ndcg(held_out, documents), None),
            ("minilm", [reranked_ndcg(query, query.similarities, depth=depth) for query in held_out], None),
        ]
        for name, model in scores.items():
            weight = fusion_weight(calibration, model, name=name, depth=depth)
            for label, share in ((name, 0.0), (f"{name} + similarity", weight)):
                fused = [
                    reranked_ndcg(query, fuse(query, model, share, name=name, depth=depth), depth=depth)
                    for query in held_out
                ]
                values.append((label, fused, None if label == name else share))
        for name, orders in ranked.items():
            values.append((f"{name}, all postings", [ordered_ndcg(q, orders, name=name) for q in held_out], None))
        base = values[1][1]
        rankings.extend(
            Ranking(
                system=system,
                slice=slice_,
                ndcg=occupation_interval(held_out, ndcgs, num_bootstrap=num_bootstrap, seed=seed),
                gain=occupation_interval(
                    held_out,
                    [value - other for value, other in zip(ndcgs, base, strict=True)],
                    num_bootstrap=num_bootstrap,
                    seed=seed,
                ),
                num_queries=len(held_out),
                similarity_weight=share,
            )
            for system, ndcgs, share in values
        )
    return tuple(rankings)


def read_queries(corpus: Path) -> tuple[RankedQuery, ...]:
    """Every query of the jobmatch stage's directory `corpus`, with its candidates and judgements."""
    grades: dict[Group, dict[str, int]] = defaultdict(dict)
    for row in read_table(corpus / "judgements", JUDGEMENTS).to_pylist():
        grades[row["query_id"], row["profile_id"]][row["document_key"]] = row["grade"]
    candidates = defaultdict(list)
    for row in read_table(corpus / "candidates", CANDIDATES).to_pylist():
        candidates[row["query_id"], row["profile_id"]].append(row)
    queries = []
    for row in read_table(corpus / "queries", QUERIES).to_pylist():
        group = (row["query_id"], row["profile_id"])
        ranked = sorted(candidates[group], key=lambda candidate: candidate["rank"])
        queries.append(
            RankedQuery(
                group=group,
                occupation=row["occupation"],
                slice=row["slice"],
                split=row["split"],
                text=row["text"],
                grades=grades[group],
                pair_ids=tuple(candidate["pair_id"] for candidate in ranked),
                document_keys=tuple(candidate["document_key"] for candidate in ranked),
                similarities=np.array([candidate["similarity"] for candidate in ranked], dtype=np.float64),
            )
        )
    return tuple(queries)


def reranked_ndcg(query: RankedQuery, scores: _Floats, *, depth: int, k: int = CUT) -> float:
    """NDCG@k of `query` with its first `depth` candidates ordered by `scores`, [at least depth].

    The other candidates follow in MiniLM's order, and judged postings that are no candidate come last, where they
    count in the ideal ranking alone. Ties are broken against the system.
    """
    top = np.asarray(scores[:depth], dtype=np.float64)
    missed = [grade for key, grade in query.grades.items() if key not in set(query.document_keys)]
    # Irrelevant postings stand between: behind fewer than k candidates, a missed posting must not move up into the top.
    grades = [query.grades.get(key, 0) for key in query.document_keys] + [0] * k + missed
    below = top.min(initial=0.0) - 1 - np.arange(len(grades) - len(top))
    return ndcg_at(grades, np.concatenate([top, below]), k=k)


def ordered_ndcg(query: RankedQuery, orders: Mapping[Group, Sequence[str]], *, name: str, k: int = CUT) -> float:
    """NDCG@k of the postings that `orders` gives `query`, best first: those it leaves out stand below the k-th place.

    Raises InputError where a model (called `name`) ranked fewer than `k` for the query.
    """
    order = orders.get(query.group, ())
    if len(order) < k:
        raise InputError(
            f"{name}: {len(order)} postings ranked for a {query.split} query, {k} at least. Score it again."
        )
    missed = [grade for key, grade in query.grades.items() if key not in set(order)]
    grades = [query.grades.get(key, 0) for key in order] + missed
    return ndcg_at(grades, -np.arange(len(grades), dtype=np.float64), k=k)


def fuse(query: RankedQuery, model: Mapping[str, float], weight: float, *, name: str, depth: int) -> _Floats:
    """(1 - weight) * model + weight * similarity for the first `depth` candidates, each standardised among them.

    Raises InputError where `model` (called `name`) lacks a pair.
    """
    pair_ids = query.pair_ids[:depth]
    missing = [pair_id for pair_id in pair_ids if pair_id not in model]
    if missing:
        raise InputError(
            f"{name}: no score for {len(missing)} of the first {len(pair_ids)} candidates of a {query.split} query "
            f"(pair {missing[0]}). Score these pairs, or rerank fewer with a smaller depth."
        )
    judged = _standardised(np.array([model[pair_id] for pair_id in pair_ids], dtype=np.float64))
    return (1 - weight) * judged + weight * _standardised(query.similarities[:depth])


def fusion_weight(queries: Sequence[RankedQuery], model: Mapping[str, float], *, name: str, depth: int) -> float:
    """The share of FUSION_WEIGHTS with the best mean NDCG@10 on `queries`: pass calibration queries, never holdout."""
    if not queries:
        raise InputError(f"{name}: no calibration query to choose a fusion weight on. Add train occupations.")

    def mean(weight: float) -> float:
        return float(
            np.mean(
                [
                    reranked_ndcg(item, fuse(item, model, weight, name=name, depth=depth), depth=depth)
                    for item in queries
                ]
            )
        )

    return max(FUSION_WEIGHTS, key=mean)


def tfidf_ndcg(queries: Sequence[RankedQuery], documents: pa.Table) -> list[float]:
    """NDCG@10 of each query with all `documents` (DOCUMENTS) ranked by word overlap."""
    keys = documents["document_key"].to_pylist()
    similarities = tfidf_similarities([query.text for query in queries], documents["text"].to_pylist())
    return [
        ndcg_at([query.grades.get(key, 0) for key in keys], row, k=CUT)
        for query, row in zip(queries, similarities, strict=True)
    ]


def occupation_interval(
    queries: Sequence[RankedQuery], values: Sequence[float], *, num_bootstrap: int, seed: int
) -> Interval:
    """Mean of `values`, one per query, with a 95 % interval over resampled occupations.

    All queries of an occupation are drawn together, because they share its judgements.
    """
    by_occupation: dict[str, list[float]] = defaultdict(list)
    for query, value in zip(queries, values, strict=True):
        by_occupation[query.occupation].append(value)

    def mean(groups: Sequence[list[float]]) -> float:
        return float(np.mean([value for group in groups for value in group]))

    return bootstrap(mean, list(by_occupation.values()), num=num_bootstrap, seed=seed)


def _standardised(values: _Floats) -> _Floats:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
