"""From queries to PAIRS: each query's pool out of the index and a chance sample, its profile, the documents chosen."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from preceptor.contracts import PAIRS, make_pair, rows_to_table, write_table
from preceptor.generate.index import nearest, open_index
from preceptor.generate.select import HARD, HARD_RANKS, Choice, Pool, Scale, choose, kind_of_difference, scale_of
from preceptor.generate.templates import spoken_place, spoken_title
from preceptor.generate.texts import Indices, Mapped, Vectors, open_vectors
from preceptor.recipe import CorporaConfig

CANDIDATES: Final = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("predicted_grade", pa.int8(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=True),
        pa.field("origin", pa.string(), nullable=False),
    ],
    metadata={b"contract": b"CANDIDATES"},
)
"""Why a pair was chosen: the grade predicted from its similarity (not judged), what it was chosen as, its rank in the
search (null where it came by chance), and the corpus its query was born from."""

SEARCH_DEPTH: Final = 200
CHANCE_ROWS: Final = 4096
"""Documents drawn by chance for each part of queries: they fill the strata below what search finds."""

SCALE_QUERIES: Final = 256
"""Queries of each style that its scale is measured on."""

NEAR_PROFILES: Final = 5
"""A posting-born query gets one of so many nearest profiles: with the nearest alone, a few profiles would ask most."""


@dataclass(frozen=True, kw_only=True)
class MineWork:
    """Where everything lies that mining reads, and where it writes. `scales` are by style."""

    config: CorporaConfig
    work: Path
    out: Path
    scales: Mapping[str, Scale]

    def open(self) -> Callable[[int], Mapping[str, int]]:
        """Mines part `number` of the queries."""
        return partial(mine_part, job=self, shelf=Shelf.open(self.work, with_profiles=self.config.profiles is not None))


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The open, memory-mapped files of a run."""

    queries: Mapped
    postings: Mapped
    profiles: Mapped | None
    query_vectors: Vectors
    posting_vectors: Vectors
    posting_index: Any
    profile_index: Any

    @staticmethod
    def open(work: Path, *, with_profiles: bool) -> Shelf:
        """The shelf of the run whose files lie in `work`."""
        vectors = work / "vectors"
        return Shelf(
            queries=Mapped(work / "queries.arrow"),
            postings=Mapped(work / "texts" / "postings.arrow"),
            profiles=Mapped(work / "texts" / "profiles.arrow") if with_profiles else None,
            query_vectors=open_vectors(vectors / "queries.npy"),
            posting_vectors=open_vectors(vectors / "postings.npy"),
            posting_index=open_index(vectors / "postings.npy"),
            profile_index=open_index(vectors / "profiles.npy") if with_profiles else None,
        )


def measure_scales(shelf: Shelf, seed: int) -> dict[str, dict[str, float]]:
    """For each style the `low` and `high` of its Scale, from a seeded sample of its queries."""
    styles: dict[str, list[int]] = {}
    for number in range(shelf.queries.num_batches):
        for offset, style in enumerate(shelf.queries.batch(number)["style"].to_pylist()):
            styles.setdefault(style, []).append(shelf.queries.start(number) + offset)
    chance = np.asarray(shelf.posting_vectors[_by_chance(shelf.posting_vectors, [seed])])
    found = {}
    for style, rows in sorted(styles.items()):
        chosen = sorted(random.Random(f"{seed} {style}").sample(rows, min(len(rows), SCALE_QUERIES)))
        asked = np.asarray(shelf.query_vectors[chosen])
        _, best = nearest(shelf.posting_index, asked, 1)
        scale = scale_of(best[:, 0].tolist(), (asked @ chance.T).mean(axis=1).tolist())
        found[style] = {"low": round(scale.low, 4), "high": round(scale.high, 4)}
    return found


def mine_part(number: int, *, job: MineWork, shelf: Shelf) -> Counter[str]:
    """Counts of part `number` of the queries, after writing its pairs/ and candidates/."""
    queries = shelf.queries.batch(number).to_pylist()
    start = shelf.queries.start(number)
    asked = np.asarray(shelf.query_vectors[start : start + len(queries)])
    profiles = _profiles(queries, shelf, asked, job.config.seed)
    tally: Counter[str] = Counter({"rows": len(queries)})
    pairs: list[dict[str, str]] = []
    reasons: list[dict[str, Any]] = []
    seen: set[str] = set()
    for query, profile, pool, source in zip(
        queries, profiles, *_pools(queries, shelf, asked, number, job), strict=True
    ):
        rng = random.Random(f"{job.config.seed} choose {query['query']}")
        choices = choose(
            pool,
            num=job.config.candidates_per_query,
            strata=job.config.strata,
            hard_share=job.config.hard_negatives,
            source=source,
            rng=rng,
        )
        documents = shelf.postings.take(pool.documents[[choice.place for choice in choices]], ["text"])
        tally[f"{query['style']} short"] += job.config.candidates_per_query - len(choices)
        for choice, document in zip(choices, documents, strict=True):
            pair = make_pair(query["query"], profile, document["text"], slice=query["style"])
            if pair["pair_id"] in seen:
                tally[f"{query['style']} repeated"] += 1
                continue
            seen.add(pair["pair_id"])
            pairs.append(pair)
            reasons.append(_reason(pair, choice, pool, query["origin"]))
            tally.update(_counts(query["style"], pair["split"], reasons[-1]))
    name = f"part-{number:06d}.parquet"
    write_table(rows_to_table(reasons, CANDIDATES), job.out / "candidates" / name, CANDIDATES)
    write_table(rows_to_table(pairs, PAIRS), job.out / "pairs" / name, PAIRS)
    return tally


def _counts(style: str, split: str, reason: Mapping[str, Any]) -> Iterator[str]:
    yield f"pairs {style}"
    yield f"split {split}"
    yield f"kind {reason['kind']}"
    yield f"grade {style} {reason['predicted_grade']}"
    if reason["kind"] not in HARD:
        yield f"stratum {reason['predicted_grade']}"


def _reason(pair: Mapping[str, str], choice: Choice, pool: Pool, origin: str) -> dict[str, Any]:
    return {
        "pair_id": pair["pair_id"],
        "predicted_grade": int(pool.grades[choice.place]),
        "kind": choice.kind,
        "similarity": float(pool.similarities[choice.place]),
        "rank": int(pool.ranks[choice.place]) or None,
        "origin": origin,
    }


def _profiles(queries: list[dict[str, Any]], shelf: Shelf, asked: Vectors, seed: int) -> list[str]:
    """The profile text of each query: its own where it was born from one, else one near its posting, else none."""
    if shelf.profiles is None:
        return [""] * len(queries)
    born = np.array([query["index"] if query["origin"] == "profiles" else -1 for query in queries], dtype=np.int64)
    missing = np.flatnonzero(born < 0)
    if len(missing):
        found, _ = nearest(
            shelf.profile_index, shelf.posting_vectors[[queries[at]["index"] for at in missing]], NEAR_PROFILES
        )
        for at, near in zip(missing.tolist(), found, strict=True):
            rng = random.Random(f"{seed} profile {queries[at]['query']}")
            born[at] = rng.choice([place for place in near.tolist() if place >= 0])
    return [row["text"] for row in shelf.profiles.take(born, ["text"])]


def _pools(
    queries: list[dict[str, Any]], shelf: Shelf, asked: Vectors, number: int, job: MineWork
) -> tuple[list[Pool], list[int | None]]:
    """The pool of each query, and the place in it of the posting that the query was born from."""
    chance = _by_chance(shelf.posting_vectors, [job.config.seed, number])
    by_chance = asked @ np.asarray(shelf.posting_vectors[chance]).T
    found, similar = nearest(shelf.posting_index, asked, SEARCH_DEPTH)
    fields = _fields_of(found[:, :HARD_RANKS], shelf.postings)
    pools, sources = [], []
    for at, query in enumerate(queries):
        hits = found[at][found[at] >= 0]
        extra = ~np.isin(chance, hits)
        documents = np.concatenate([hits, chance[extra]])
        similarities = np.concatenate([similar[at][: len(hits)], by_chance[at][extra]])
        ranks = np.concatenate([np.arange(1, len(hits) + 1), np.zeros(extra.sum(), dtype=np.int64)])
        own = query["index"] if query["origin"] == "postings" else -1
        if own >= 0 and own not in documents:
            documents = np.append(documents, own)
            similarities = np.append(similarities, asked[at] @ shelf.posting_vectors[own])
            ranks = np.append(ranks, 0)
        kinds = {
            place: kind
            for place, document in enumerate(hits[:HARD_RANKS].tolist())
            if (kind := kind_of_difference(query["asked_title"], query["asked_place"], *fields[document])) is not None
        }
        grades = job.scales[query["style"]].predicted(similarities)
        pools.append(Pool(documents=documents, similarities=similarities, grades=grades, ranks=ranks, kinds=kinds))
        sources.append(int(np.flatnonzero(documents == own)[0]) if own >= 0 else None)
    return pools, sources


def _fields_of(found: Indices, postings: Mapped) -> dict[int, tuple[str, str]]:
    """The title and the place of each document in `found`, as they are typed."""
    documents = [document for document in np.unique(found).tolist() if document >= 0]
    rows = postings.take(documents, ["title", "place"])
    return {
        document: (spoken_title(row["title"]), spoken_place(row["place"]))
        for document, row in zip(documents, rows, strict=True)
    }


def _by_chance(vectors: Vectors, seed: list[int]) -> Indices:
    num = min(CHANCE_ROWS, len(vectors))
    return np.sort(np.random.default_rng(seed).choice(len(vectors), num, replace=False)).astype(np.int64)
