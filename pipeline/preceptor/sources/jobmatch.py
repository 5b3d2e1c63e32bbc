"""Job matching on real text: O*NET occupations ask, ESCO postings answer, and their crosswalk judges.

Texts and grades are real; profiles are O*NET descriptions, not people; impressions are simulated. The crosswalk's
candidates were proposed by a model and validated by experts. Grades are exactMatch 3, closeMatch 2, broadMatch and
narrowMatch 1, and stay so on the 0-4 scale, where 4 goes unused: the gain 2^grade - 1 then gives the NDCG that other
work on this crosswalk reports. A posting that the crosswalk does not list counts as 0, which is an assumption.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preceptor.contracts import GOLDEN, IMPRESSIONS, OVERALL, PAIRS, REJECTS, make_pair, rows_to_table, write_table
from preceptor.policy import load_policy
from preceptor.ranker.text import with_hundredths
from preceptor.recipe import JobmatchConfig, PlainSignal
from preceptor.record import Record, begin
from preceptor.sources.occupations import (
    CROSSWALK_FILE,
    OCCUPATIONS_FILE,
    POSTINGS_FILE,
    Posting,
    Query,
    build_queries,
    read_occupations,
    read_postings,
)
from preceptor.sources.retrieval import Encoder, embed_texts, encoder_dir, open_encoder
from preceptor.sources.signals import (
    VECTORS_FILE,
    Asked,
    Matrix,
    embed_collection,
    mean_tasks,
    measure,
    save_collection,
)
from preceptor.sources.simulated_clicks import Shown, past_clicks, simulate
from preceptor.sources.tables import CANDIDATES, DOCUMENTS, JUDGEMENTS, QUERIES, WEAK_PAIRS, config_of_content
from preceptor.sources.weak_pairs import NEEDED_FILES, weak_pairs

GRADER_ID: Final = "esco-onet-crosswalk"
WEAK_GRADER_ID: Final = "esco-onet-crosswalk/alternate-title"
"""The grades of an occupation applied to one of its alternate titles, which may mean a speciality only."""

CLICKED: Final = "clicked"
"""The number that says how often a posting was clicked before, as a share of its examinations."""

CALIBRATION_DEPTH: Final = 20
"""Candidates of a calibration query: deep enough to choose a fusion weight on, and cheap enough to score."""


_CHUNK: Final = 128
"""Queries whose signals are computed at a time."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One posting chosen for one query: its grade, its place among all postings by similarity, and the numbers between
    0 and 1 that its document ends with."""

    query: Query
    posting: Posting
    grade: int
    similarity: float
    rank: int
    numbers: Mapping[str, float]

    @cached_property
    def pair(self) -> dict[str, str]:
        """Its PAIRS row."""
        asked, document = self.query, with_hundredths(self.posting.document, self.numbers)
        return make_pair(asked.query, asked.profile, document, slice=asked.slice, split=asked.occupation.split)


def jobmatch(config: JobmatchConfig, *, policy: Path, out: Path, encode: Encoder | None = None) -> Record:
    """The record of the job-matching corpus in `out`.

    Beside ``pairs``, ``golden`` and ``impressions`` it holds what a measurement over the whole collection needs:
    ``queries``, ``documents``, ``candidates`` and ``judgements`` (schemas in `preceptor.sources.tables`),
    ``weak_pairs`` where the config names sources of them, and ``rejects``, the titles that became no query; rows in and
    kept count queries. Where signals are shown, the embeddings of the postings stay too. `encode` stands in for
    MiniLM: unit-length embeddings, [num_texts, num_dimensions]. Raises InputError where a file of `config.data` is
    missing or wrong.
    """
    policy_version = load_policy(policy).version
    more = [name for source in config.weak for name in NEEDED_FILES.get(source, ())]
    files = [config.data / name for name in (POSTINGS_FILE, OCCUPATIONS_FILE, CROSSWALK_FILE, *more)]
    run = begin("jobmatch", config_of_content(config, files), out=out, policy_version=policy_version)
    if run.record is not None:
        return run.record
    postings = read_postings(config.data)
    occupations = read_occupations(config.data, postings)
    queries, rejects = build_queries(occupations, seed=config.seed)
    documents = [_document_row(posting) for posting in postings]
    # In float32 on every machine: two digits of a cosine stand in texts, and ids follow from these.
    exact = encode or open_encoder(encoder_dir(), label="embedding")
    texts_QH, texts_NH = exact([query.text for query in queries]), exact([posting.text for posting in postings])
    signals = _shown_signals(config, queries, documents, texts_QH, texts_NH, encode=exact, out=out)
    candidates = [
        candidate
        for query, row, shown in zip(queries, texts_QH @ texts_NH.T, signals, strict=True)
        for candidate in choose_candidates(query, postings, row, config, shown=shown)
    ]
    if config.num_past_requests:
        candidates = _with_past_clicks(candidates, config)
    impressions = rows_to_table(_impressions(candidates, config), IMPRESSIONS)
    tables = {
        "pairs": rows_to_table((dict(item.pair) for item in candidates), PAIRS),
        "golden": rows_to_table((_golden_row(item, policy_version) for item in candidates), GOLDEN),
        "impressions": impressions,
        "queries": rows_to_table((_query_row(query) for query in queries), QUERIES),
        "documents": rows_to_table(documents, DOCUMENTS),
        "candidates": rows_to_table((_candidate_row(item) for item in candidates), CANDIDATES),
        "judgements": rows_to_table(_judgement_rows(queries), JUDGEMENTS),
        "rejects": rows_to_table(rejects, REJECTS),
    }
    if config.weak:
        weak = weak_pairs(config.weak, data=config.data, occupations=occupations)
        tables["weak_pairs"] = rows_to_table(weak, WEAK_PAIRS)
    for name, table in tables.items():
        write_table(table, out / name / "part-00000.parquet", table.schema)
    return run.finish(
        num_rows_in=len(queries) + len(rejects),
        num_rows_kept=len(queries),
        rejected=Counter(row["reason"] for row in rejects),
        metrics=_metrics(queries, candidates, impressions),
    )


def _shown_signals(
    config: JobmatchConfig,
    queries: Sequence[Query],
    documents: Sequence[Mapping[str, Any]],
    texts_QH: Matrix,
    texts_NH: Matrix,
    *,
    encode: Encoder,
    out: Path,
) -> Iterator[dict[PlainSignal, Matrix]]:
    """For each query its shown signals, [num_postings] each; the embeddings of the postings go to `out`."""
    if not config.shown:
        yield from ({} for _ in queries)
        return
    collection = embed_collection(documents, encode, texts_NH=texts_NH)
    save_collection(collection, out / VECTORS_FILE)
    row_of, vectors = embed_texts([text for query in queries for text in (query.query, *query.tasks)], encode)
    asked = Asked(
        texts=tuple(query.text for query in queries),
        texts_QH=texts_QH,
        titles_QH=vectors[[row_of[query.query] for query in queries]],
        tasks_QH=mean_tasks([query.tasks for query in queries], row_of, vectors),
    )
    for start in range(0, len(queries), _CHUNK):
        part = asked.rows(range(start, min(start + _CHUNK, len(queries))))
        found = {name: measure(name, part, collection) for name in config.shown}
        yield from ({name: values[number] for name, values in found.items()} for number in range(len(part.texts)))


def choose_candidates(
    query: Query,
    postings: Sequence[Posting],
    similarities: npt.NDArray[np.float32],
    config: JobmatchConfig,
    *,
    shown: Mapping[PlainSignal, Matrix],
) -> list[Candidate]:
    """The postings paired with `query`, by falling similarity; `similarities` [num_postings] are its own, as are the
    `shown` signals that stand at the end of a document, to two digits, where a causal model reads them just before it
    grades. A text, and with it the document_id, then belongs to one query; CANDIDATES.document_key tells the posting.

    Holdout and calibration queries get the retriever's top ranks and nothing else (`config.num_candidates`, at most
    CALIBRATION_DEPTH for calibration): what retrieval missed stays missed. Train queries get `num_train_candidates` of
    the same ranks, the higher the likelier. Grades have no say in that, so a similarity means the same in training as
    in use: with half of the places kept for relevant postings, found or not, the similarity said nothing there, and
    models learnt to ignore it. Only where none is relevant, the best graded posting takes the last place.
    """
    order = np.argsort(-similarities, kind="stable")
    grades = np.array([query.occupation.grades.get(posting.key, 0) for posting in postings])
    split = query.occupation.split
    if split == "train":
        rng = random.Random(f"{config.seed} candidates {query.slice} {query.query}")
        chosen = _train_choice(order, grades, config, rng)
    else:
        depth = config.num_candidates if split == "holdout" else min(config.num_candidates, CALIBRATION_DEPTH)
        chosen = set(order[:depth].tolist())
    found = []
    for rank, index in enumerate(order.tolist(), start=1):
        if index not in chosen:
            continue
        similarity = float(similarities[index])
        found.append(
            Candidate(
                query=query,
                posting=postings[index],
                grade=int(grades[index]),
                similarity=similarity,
                rank=rank,
                numbers={str(name): float(values[index]) for name, values in shown.items()},
            )
        )
    return found


def _train_choice(
    order: npt.NDArray[np.int64], grades: npt.NDArray[np.int64], config: JobmatchConfig, rng: random.Random
) -> set[int]:
    ranked = order.tolist()
    found = ranked[: config.num_candidates]
    # Efraimidis and Spirakis (2006): the largest u^(1/weight) are a weighted sample without replacement; weight 1/rank.
    keys = {index: rng.random() ** rank for rank, index in enumerate(found, start=1)}
    chosen = sorted(found, key=lambda index: -keys[index])[: config.num_train_candidates]
    best = max(ranked, key=lambda index: int(grades[index]))
    if grades[best] > 0 and not any(grades[index] for index in chosen):
        chosen[-1] = best
    return set(chosen)


def _with_past_clicks(candidates: Sequence[Candidate], config: JobmatchConfig) -> list[Candidate]:
    past = past_clicks([_shown(item) for item in candidates], num_requests=config.num_past_requests, seed=config.seed)
    return [
        replace(
            item,
            numbers={**item.numbers, CLICKED: past.rate(item.posting.key, topic=item.query.occupation.code)},
        )
        for item in candidates
    ]


def _shown(item: Candidate) -> Shown:
    return Shown(
        pair=item.pair,
        grade=item.grade,
        prominence=item.similarity,
        appeal_key=item.posting.key,
        topic=item.query.occupation.code,
    )


def _impressions(candidates: Sequence[Candidate], config: JobmatchConfig) -> Iterator[dict[str, Any]]:
    return simulate(
        [_shown(item) for item in candidates],
        num_requests=config.num_requests,
        num_holdout_requests=config.num_holdout_requests,
        seed=config.seed,
    )


def _golden_row(item: Candidate, policy_version: str) -> dict[str, Any]:
    return {
        **item.pair,
        "dimension": OVERALL,
        "grade": item.grade,
        "grader_id": WEAK_GRADER_ID if item.query.slice == "alternate_title" else GRADER_ID,
        "reason": None,
        "policy_version": policy_version,
    }


def _document_row(item: Posting) -> dict[str, Any]:
    return {"document_key": item.key, "text": item.text, "names": list(item.names), "group": item.group}


def _candidate_row(item: Candidate) -> dict[str, Any]:
    return {
        **{name: item.pair[name] for name in ("pair_id", "query_id", "profile_id")},
        "document_key": item.posting.key,
        "similarity": item.similarity,
        "rank": item.rank,
    }


def _group_ids(query: Query) -> dict[str, str]:
    pair = make_pair(query.query, query.profile, "", slice=query.slice)
    return {name: pair[name] for name in ("query_id", "profile_id")}


def _query_row(query: Query) -> dict[str, Any]:
    return {
        **_group_ids(query),
        "occupation": query.occupation.code,
        "slice": query.slice,
        "split": query.occupation.split,
        "text": query.text,
        "query": query.query,
        "tasks": list(query.tasks),
    }


def _judgement_rows(queries: Sequence[Query]) -> Iterator[dict[str, Any]]:
    for query in queries:
        ids = _group_ids(query)
        for key, grade in query.occupation.grades.items():
            yield {**ids, "document_key": key, "grade": grade}


def _metrics(queries: Sequence[Query], candidates: Sequence[Candidate], impressions: pa.Table) -> dict[str, Any]:
    num_words = [len(item.pair["document"].split()) for item in candidates]
    return {
        "num_queries": _counted(f"{query.occupation.split} {query.slice}" for query in queries),
        "num_pairs": _counted(f"{item.pair['split']} {item.pair['slice']}" for item in candidates),
        "num_pairs_by_grade": _counted(f"{item.pair['split']} {item.grade}" for item in candidates),
        "mean_document_words": round(sum(num_words) / max(len(num_words), 1), 1),
        "num_impressions": impressions.num_rows,
        "click_rate": round(sum(impressions["click"].to_pylist()) / max(impressions.num_rows, 1), 4),
        "truth": "grades real (expert-validated crosswalk), profiles assembled, impressions simulated",
    }


def _counted(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
