"""The relevance teacher that matches: it compares a query and its profile's tasks with the texts and names of postings
and of their kin, and scores with that.

It reads tasks and all names of a posting, of which a student is shown numbers at most, and computes in seconds over a
whole collection.
Like any teacher it leaves TEACHER_SCORES: five logits of head 'overall' for each pair, which students learn from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from preceptor.contracts import OVERALL, REJECTS, TEACHER_SCORES, read_table, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.evaluation.metrics import ndcg_at
from preceptor.generate.embed import encoder_source
from preceptor.policy import load_policy
from preceptor.ranker.score_stage import collect_pairs
from preceptor.recipe import MatchConfig, PairSet
from preceptor.record import Record, begin, write_json
from preceptor.sources.retrieval import Encoder, embed_texts, open_encoder
from preceptor.sources.signals import (
    VECTORS_FILE,
    Asked,
    Collection,
    Matrix,
    embed_collection,
    load_collection,
    mean_tasks,
    save_collection,
)
from preceptor.sources.tables import CANDIDATES, RANKED
from preceptor.teachers.match_adapter import Adapter, Lesson, train_adapter
from preceptor.teachers.match_fusion import Fusion, fit_fusion
from preceptor.teachers.match_lessons import (
    AskedFor,
    folds_of,
    grade_matrix,
    read_asked,
    read_documents,
    read_titles,
    to_lessons,
    without_fold,
)
from preceptor.teachers.match_signals import signals_of

NUM_RANKED: Final = 100
"""Places of the whole collection that are kept for each held-out query."""

_MATRICES: Final = "adapter.npz"
_ALIKE: Final = 0.98
"""A cosine that bfloat16 and half precision stay above, and another encoder does not."""
_KINDS: Final = ("described", "typed")
_CUT: Final = 10


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """A trained matching teacher: a fusion for queries with a profile and one for those without."""

    config: MatchConfig
    adapter: Adapter | None
    fusions: Mapping[str, Fusion]

    def judge(self, asked: Asked, described: Sequence[bool], collection: Collection) -> tuple[Matrix, Matrix]:
        """(scores [Q, N], grade logits [Q, N, 5]) of every query and posting."""
        signals = signals_of(asked, collection, self.adapter, self.config.signals)
        scores = np.empty(signals.shape[:2], dtype=np.float32)
        logits = np.empty((*signals.shape[:2], 5), dtype=np.float32)
        for number, has_profile in enumerate(described):
            fusion = self.fusions[_KINDS[0] if has_profile else _KINDS[1]]
            scores[number] = fusion.scores(signals[number : number + 1])[0]
            logits[number] = fusion.logits(scores[number])
        return scores, logits


@dataclass(frozen=True, kw_only=True)
class MatchScoreConfig:
    """Whose logits (`system` names them in the table), and on which pairs."""

    system: str
    sets: tuple[PairSet, ...]


def match_teacher(
    config: MatchConfig, *, policy: Path, corpus: Record, encode: Encoder | None = None, out: Path
) -> Record:
    """The record of the matching teacher in ``model/``; `corpus` is a finished jobmatch stage.

    It learns from train queries, their judgements and the corpus' weak pairs. The metrics hold the mean NDCG@10 over
    the whole collection on train queries by signals that never saw their occupations: of each signal alone and of the
    sum, whose few weights are fitted on these very queries. `encode` stands in for the config's encoder.
    """
    run = begin("match_teacher", config, out=out, inputs={"corpus": corpus}, policy_version=load_policy(policy).version)
    if run.record is not None:
        return run.record
    encode = encode or open_encoder(encoder_source(config.encoder), precision="bfloat16", label="embedding")
    documents = read_documents(corpus.path)
    rows = {document["document_key"]: row for row, document in enumerate(documents)}
    queries = [query for query in read_asked(corpus.path, rows, ["train"]) if query.grades]
    if not queries:
        raise InputError(f"{corpus.path / 'queries'}: no judged query of split 'train'. A matching teacher needs some.")
    titles = read_titles(corpus.path, rows, queries)
    collection = _collection(corpus, documents, encode, out)
    row_of, vectors = embed_texts(
        [*(title.text for title in titles), *(text for query in queries for text in query.texts)], encode
    )
    asked = to_asked(queries, row_of, vectors)
    signals = np.empty((len(queries), len(documents), len(config.signals)), dtype=np.float32)
    for unseen in folds_of(queries, config.num_folds):
        lessons = to_lessons(without_fold(titles, unseen), row_of)
        adapter = _adapter(config, lessons, vectors, collection)[0]
        chosen = [index for index, query in enumerate(queries) if query.occupation in unseen]
        signals[chosen] = signals_of(asked.rows(chosen), collection, adapter, config.signals)
    grades = grade_matrix(queries, len(documents))
    fusions = fit_kinds(signals, grades, [query.described for query in queries], ridge=config.ridge)
    adapter, losses = _adapter(config, to_lessons(titles, row_of), vectors, collection)
    matcher = Matcher(config=config, adapter=adapter, fusions=fusions)
    save_matcher(matcher, out / "model", policy_version=run.policy_version)
    return run.finish(
        num_rows_in=len(titles),
        num_rows_kept=len(titles),
        metrics={
            "losses": [{"step": step + 1, "loss": loss} for step, loss in enumerate(losses)],
            "num_parameters": 0 if adapter is None else 2 * adapter.query_HH.size,
            "heads": [OVERALL],
            "out_of_fold_ndcg@10": out_of_fold(signals, grades, queries, fusions, config),
            "weights": {kind: dict(zip(config.signals, item.weights, strict=True)) for kind, item in fusions.items()},
        },
    )


def match_scores(
    config: MatchScoreConfig, *, corpus: Record, teacher: Record, encode: Encoder | None = None, out: Path
) -> Record:
    """The record of the teacher's logits in ``scores/`` (TEACHER_SCORES) for each pair of the sets, and of the best
    postings of the whole collection for each held-out and calibration query in ``ranked/`` (RANKED).

    Train pairs are scored with the adapter that learnt from them, as any teacher's are; the weights of its signals are
    fitted by adapters that did not. InputError where the teacher learnt from another corpus.
    """
    run = begin("match_scores", config, out=out, inputs={"corpus": corpus, "teacher": teacher})
    if run.record is not None:
        return run.record
    if teacher.inputs.get("corpus") != corpus.fingerprint:
        raise InputError(f"{teacher.path}: learnt from another corpus than {corpus.path}. Train the teacher again.")
    matcher = load_matcher(teacher.path / "model")
    encode = encode or open_encoder(encoder_source(matcher.config.encoder), precision="bfloat16", label="embedding")
    documents = read_documents(corpus.path)
    rows = {document["document_key"]: row for row, document in enumerate(documents)}
    own = teacher.path / VECTORS_FILE
    collection = load_collection(documents, own if own.is_file() else corpus.path / VECTORS_FILE)
    wanted = {pair["pair_id"] for pair in collect_pairs(corpus, config.sets)}
    candidates: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for row in read_table(corpus.path / "candidates", CANDIDATES).to_pylist():
        if row["pair_id"] in wanted:
            group = (row["query_id"], row["profile_id"])
            candidates.setdefault(group, []).append((row["pair_id"], rows[row["document_key"]]))
    queries = [
        query
        for query in read_asked(corpus.path, rows, ["train", "calibration", "holdout"])
        if query.group in candidates
    ]
    row_of, vectors = embed_texts([text for query in queries for text in query.texts], encode)
    scored, ranked = [], []
    for start in range(0, len(queries), 128):
        part = queries[start : start + 128]
        scores, logits = matcher.judge(to_asked(part, row_of, vectors), [query.described for query in part], collection)
        for number, query in enumerate(part):
            for pair_id, row in candidates[query.group]:
                found = logits[number, row].tolist()
                scored.append({"pair_id": pair_id, "teacher": config.system, "head": OVERALL, "logits": found})
            if query.split != "train":
                ranked += _ranked(query, scores[number], collection.keys)
    write_table(rows_to_table(scored, TEACHER_SCORES), out / "scores" / "part-00000.parquet", TEACHER_SCORES)
    write_table(REJECTS.empty_table(), out / "rejects" / "part-00000.parquet", REJECTS)
    write_table(rows_to_table(ranked, RANKED), out / "ranked" / "part-00000.parquet", RANKED)
    return run.finish(
        num_rows_in=len(wanted),
        num_rows_kept=len(scored),
        metrics={"system": config.system, "num_queries_ranked": len(ranked) // min(NUM_RANKED, len(rows))},
    )


def fit_kinds(signals: Matrix, grades: Any, described: Sequence[bool], *, ridge: float) -> dict[str, Fusion]:
    """A fusion for each kind of query; a kind that has none takes the other's."""
    found = {}
    for kind, has_profile in zip(_KINDS, (True, False), strict=True):
        chosen = [index for index, value in enumerate(described) if value == has_profile]
        if chosen:
            found[kind] = fit_fusion(signals[chosen], grades[chosen], ridge=ridge)
    return {kind: found.get(kind) or next(iter(found.values())) for kind in _KINDS}


def out_of_fold(
    signals: Matrix, grades: Any, queries: Sequence[AskedFor], fusions: Mapping[str, Fusion], config: MatchConfig
) -> dict[str, float]:
    """The mean NDCG@10 of each signal and of their sum, by slice: ``{"reported_title text": 0.5}``."""
    values: dict[str, list[float]] = {}
    for number, query in enumerate(queries):
        fusion = fusions[_KINDS[0] if query.described else _KINDS[1]]
        ways: dict[str, Matrix] = {str(name): signals[number, :, index] for index, name in enumerate(config.signals)}
        ways["sum"] = fusion.scores(signals[number : number + 1])[0]
        for name, scores in ways.items():
            values.setdefault(f"{query.slice} {name}", []).append(ndcg_at(grades[number], scores, k=_CUT))
    return {name: round(float(np.mean(found)), 4) for name, found in sorted(values.items())}


def save_matcher(matcher: Matcher, folder: Path, *, policy_version: str | None) -> None:
    """Write the matcher into `folder`; config.json, which says what it is, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    if matcher.adapter is not None:
        np.savez(folder / _MATRICES, query_HH=matcher.adapter.query_HH, posting_HH=matcher.adapter.posting_HH)
    described = {
        "preceptor_heads": [{"name": OVERALL, "kind": "grade"}],
        "preceptor_max_prefix_tokens": 256,
        "preceptor_max_document_tokens": 256,
        "preceptor_policy_version": policy_version,
        "preceptor_match": asdict(matcher.config),
        "preceptor_fusions": {kind: asdict(fusion) for kind, fusion in matcher.fusions.items()},
    }
    write_json(folder / "config.json", described)


def load_matcher(folder: Path) -> Matcher:
    """The matcher that `save_matcher` wrote; InputError where `folder` holds another kind of model."""
    file = folder / "config.json"
    try:
        described = json.loads(file.read_text())
        wanted, fusions = described["preceptor_match"], described["preceptor_fusions"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{file}: no matching teacher ({error}). Point at a match_teacher stage's model/.") from error
    config = MatchConfig(**{**wanted, "signals": tuple(wanted["signals"])})
    adapter = None
    if config.tunes:
        with np.load(folder / _MATRICES) as matrices:
            adapter = Adapter(query_HH=matrices["query_HH"], posting_HH=matrices["posting_HH"])
    return Matcher(
        config=config,
        adapter=adapter,
        fusions={
            kind: Fusion(weights=tuple(row["weights"]), slope=row["slope"], offsets=tuple(row["offsets"]))
            for kind, row in fusions.items()
        },
    )


def _collection(corpus: Record, documents: Sequence[Mapping[str, Any]], encode: Encoder, out: Path) -> Collection:
    """The corpus' embeddings of its postings, where it has any by this encoder; others are made, and kept in `out`."""
    theirs = corpus.path / VECTORS_FILE
    if theirs.is_file():
        collection = load_collection(documents, theirs)
        if _embeds_alike(encode, collection):
            return collection
    collection = embed_collection(documents, encode)
    save_collection(collection, out / VECTORS_FILE)
    return collection


def _embeds_alike(encode: Encoder, collection: Collection) -> bool:
    """Whether `encode` gives the collection's own embeddings, but for rounding, of its first and last text."""
    ends = [0, len(collection.texts) - 1]
    found, known = encode([collection.texts[end] for end in ends]), collection.texts_NH[ends]
    return found.shape == known.shape and bool(((found * known).sum(axis=1) > _ALIKE).all())


def _adapter(
    config: MatchConfig, lessons: Sequence[Lesson], vectors: Matrix, collection: Collection
) -> tuple[Adapter | None, list[float]]:
    if not config.tunes:
        return None, []
    return train_adapter(
        lessons, titles_XH=vectors, texts_NH=collection.texts_NH, names_NH=collection.titles_NH, config=config
    )


def to_asked(queries: Sequence[AskedFor], row_of: Mapping[str, int], vectors: Matrix) -> Asked:
    """`queries` with the embeddings of all their texts; `row_of` maps a text to its row in `vectors`."""
    return Asked(
        texts=tuple(query.text for query in queries),
        texts_QH=vectors[[row_of[query.text] for query in queries]],
        titles_QH=vectors[[row_of[query.typed] for query in queries]],
        tasks_QH=mean_tasks([query.tasks for query in queries], row_of, vectors),
    )


def _ranked(query: AskedFor, scores: Matrix, keys: Sequence[str]) -> list[dict[str, Any]]:
    order = np.argsort(-scores, kind="stable")[:NUM_RANKED]
    return [
        {
            "query_id": query.group[0],
            "profile_id": query.group[1],
            "document_key": keys[row],
            "rank": rank,
            "score": float(scores[row]),
        }
        for rank, row in enumerate(order.tolist(), start=1)
    ]
