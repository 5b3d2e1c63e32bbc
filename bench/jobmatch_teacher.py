"""How good the matching teacher is on occupations it never saw, against MiniLM, TF-IDF and a tuned cross-encoder.

    python -m bench.jobmatch_teacher --data DIR [--out DIR] [--quick]

Every system ranks all postings for every dev query; NDCG@10 with 95 % intervals over resampled occupations, and the
paired difference to MiniLM and to the cross-encoder. The cross-encoder starts from the same MiniLM, learns from the
same judged train queries by sentence-transformers' ListNet loss, for as long as the teacher took to embed and to learn,
and reorders MiniLM's best 20; the others follow in MiniLM's order. Nothing is chosen on dev: settings were, out of
fold, on train occupations.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers import cross_encoder
from preceptor.contracts import read_table
from preceptor.evaluation.metrics import Interval, bootstrap, ndcg_at
from preceptor.recipe import POLICY_DIR, JobmatchConfig, MatchConfig
from preceptor.record import Record
from preceptor.sources.jobmatch import jobmatch
from preceptor.sources.occupations import read_occupations, read_postings
from preceptor.sources.retrieval import embed_texts, encoder_dir, open_encoder, tfidf_similarities
from preceptor.sources.signals import Asked, Collection, best_name, embed_collection
from preceptor.sources.tables import CANDIDATES
from preceptor.teachers.match import load_matcher, match_teacher, to_asked
from preceptor.teachers.match_lessons import AskedFor, grade_matrix, read_asked, read_documents

DEPTH = 20
OURS = MatchConfig()
KIN = ("near", "group", "best_of_group", "minor_group")
VARIANTS: Mapping[str, MatchConfig] = {
    "teacher": OURS,
    "teacher, no weak pairs": replace(OURS, shares={"judged": 1.0}),
    "teacher, no second round": replace(OURS, rounds=1, num_steps=OURS.rounds * OURS.num_steps),
    "teacher, no adapter": replace(OURS, signals=tuple(name for name in OURS.signals if not name.startswith("tuned"))),
    "teacher, tuned signals alone": replace(OURS, signals=("tuned_text", "tuned_names")),
    "teacher, no tasks": replace(OURS, signals=tuple(name for name in OURS.signals if name != "tasks")),
    "teacher, no kin": replace(OURS, signals=tuple(name for name in OURS.signals if name not in KIN)),
    "teacher, no names": replace(OURS, signals=("text", "title_text", "tuned_text")),
}


@dataclass(frozen=True, kw_only=True)
class Dev:
    """Dev queries with the embeddings of what they say, and the grade of every posting for each."""

    queries: tuple[AskedFor, ...]
    asked: Asked
    grades: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of O*NET, ESCO and crosswalk files")
    parser.add_argument("--out", type=Path, default=Path("runs/jobmatch_teacher"))
    parser.add_argument("--seconds", type=float, help="the cross-encoder's budget (default: what the teacher took)")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="few steps and queries: shows that it runs, no figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spent: dict[str, float] = {}
    memory = Memory()
    config = JobmatchConfig(
        data=arguments.data,
        num_train_candidates=8,
        num_candidates=50,
        # The teacher embeds the postings itself: its time is the cross-encoder's budget.
        shown=(),
        num_past_requests=0,
        weak=("occupation_title", "posting_title"),
    )
    corpus = jobmatch(config, policy=POLICY_DIR, encode=memory.encode, out=arguments.out / "corpus" / "v1")
    documents = read_documents(corpus.path)
    rows = {document["document_key"]: row for row, document in enumerate(documents)}
    dev = dev_queries(arguments.data, corpus, rows, memory.encode, num=8 if arguments.quick else None)
    systems: dict[str, np.ndarray] = {}
    for name in arguments.variants:
        wanted = replace(VARIANTS[name], num_steps=3) if arguments.quick else VARIANTS[name]
        folder = arguments.out / name.replace(",", "").replace(" ", "_") / ("quick" if arguments.quick else "v1")
        # It embeds anew what another variant has read.
        fresh = Memory() if name == "teacher" and not arguments.quick else memory
        record = match_teacher(wanted, policy=POLICY_DIR, corpus=corpus, encode=fresh.encode, out=folder)
        spent[name] = record.cost["wall_s"]
        print(f"{name}: {spent[name]:.0f} s; out of fold: {record.metrics['out_of_fold_ndcg@10']}", flush=True)
        collection = embed_collection(documents, memory.encode)
        matcher = load_matcher(record.path / "model")
        systems[name] = matcher.judge(dev.asked, [query.described for query in dev.queries], collection)[0]
    collection = embed_collection(documents, memory.encode)
    systems["minilm"] = dev.asked.texts_QH @ collection.texts_NH.T
    systems["minilm, best name"] = names_too(dev, collection)
    systems["minilm, tasks too"] = systems["minilm"] + dev.asked.tasks_QH @ collection.texts_NH.T
    systems["tfidf"] = tfidf_similarities(dev.asked.texts, collection.texts)
    budget = arguments.seconds or (5.0 if arguments.quick else spent.get("teacher", 300.0))
    systems["cross-encoder"] = cross_encoded(
        corpus, documents, rows, dev, systems["minilm"], seconds=budget, out=arguments.out / "cross_encoder"
    )
    print(f"\ncross-encoder: {budget:.0f} s of training\n")
    print(table(dev, systems, num=100 if arguments.quick else 2000))


class Memory:
    """MiniLM, in bfloat16 where the machine has it, that embeds each text once."""

    def __init__(self) -> None:
        self._encode: Callable[[Sequence[str]], np.ndarray] | None = None
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of `texts`, in order."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._encode = self._encode or open_encoder(encoder_dir(), precision="bfloat16")
            self._known.update(zip(new, self._encode(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def dev_queries(
    data: Path, corpus: Record, rows: Mapping[str, int], encode: Callable[[Sequence[str]], np.ndarray], num: int | None
) -> Dev:
    """The corpus' holdout queries by title and description, and every reported title of their occupations."""
    described = [item for item in read_asked(corpus.path, rows, ["holdout"]) if item.slice == "title_description"]
    described = described[:num]
    occupations = {item.code: item for item in read_occupations(data, read_postings(data)) if item.split == "holdout"}
    typed = [
        replace(query, slice="reported_title", text=title, typed=title, tasks=(), group=(title, query.occupation))
        for query in described
        for title in occupations[query.occupation].reported_titles
    ]
    queries = (*described, *typed)
    row_of, vectors = embed_texts([text for query in queries for text in query.texts], encode)
    asked = to_asked(queries, row_of, vectors)
    return Dev(queries=queries, asked=asked, grades=grade_matrix(queries, len(rows)))


def names_too(dev: Dev, collection: Collection) -> np.ndarray:
    """MiniLM with the same names as the teacher and nothing learnt: the larger of both cosines."""
    text = dev.asked.texts_QH @ collection.texts_NH.T
    return np.maximum(text, best_name(dev.asked.texts_QH @ collection.names_KH.T, collection.starts))


def cross_encoded(
    corpus: Record,
    documents: Sequence[Mapping[str, Any]],
    rows: Mapping[str, int],
    dev: Dev,
    minilm: np.ndarray,
    *,
    seconds: float,
    out: Path,
) -> np.ndarray:
    """Scores of a cross-encoder for MiniLM's best postings of each dev query; the others follow in MiniLM's order."""
    texts = [cross_encoder.pair_text(item["names"], item["text"]) for item in documents]
    model = cross_encoder.tune(train_lists(corpus, rows, texts), backbone=encoder_dir(), seconds=seconds, out=out)
    found = minilm.astype(np.float64) - 1e6
    best = np.argsort(-minilm, axis=1)[:, :DEPTH]
    pairs = [(query.text, texts[row]) for query, chosen in zip(dev.queries, best, strict=True) for row in chosen]
    np.put_along_axis(found, best, cross_encoder.scores(model, pairs).reshape(best.shape), axis=1)
    return found


def train_lists(corpus: Record, rows: Mapping[str, int], texts: Sequence[str]) -> list[dict[str, object]]:
    """Each judged train query with its best postings and MiniLM's candidates, at most twelve, a third of them
    candidates that nobody listed where there are so many."""
    candidates: dict[tuple[str, str], list[int]] = {}
    for row in read_table(corpus.path / "candidates", CANDIDATES).to_pylist():
        candidates.setdefault((row["query_id"], row["profile_id"]), []).append(rows[row["document_key"]])
    lists: list[dict[str, object]] = []
    for query in read_asked(corpus.path, rows, ["train"]):
        others = [row for row in dict.fromkeys(candidates.get(query.group, [])) if row not in query.grades]
        room = cross_encoder.DOCUMENTS_PER_QUERY - min(len(others), cross_encoder.DOCUMENTS_PER_QUERY // 3)
        best = sorted(query.grades, key=lambda row: -query.grades[row])[:room]
        drawn = [*best, *others][: cross_encoder.DOCUMENTS_PER_QUERY]
        gains = [2.0 ** query.grades.get(row, 0) - 1 for row in drawn]
        lists.append(
            {"query": query.text, "docs": [texts[row] for row in drawn], "labels": cross_encoder.labels(gains)}
        )
    random.Random(17).shuffle(lists)
    return lists


def table(dev: Dev, systems: Mapping[str, np.ndarray], *, num: int) -> str:
    """The systems as lines: NDCG@10, less MiniLM's, less the cross-encoder's, each with an interval."""
    lines = []
    for slice_ in ("title_description", "reported_title"):
        chosen = [number for number, query in enumerate(dev.queries) if query.slice == slice_]
        values = {
            name: np.array([ndcg_at(dev.grades[row], scores[row]) for row in chosen])
            for name, scores in systems.items()
        }
        codes = [dev.queries[row].occupation for row in chosen]
        lines.append(f"{slice_}, {len(chosen):,} queries of {len(set(codes))} occupations")
        for name, found in values.items():
            parts = [over_occupations(found, codes, num=num)]
            parts += [over_occupations(found - values[peer], codes, num=num) for peer in ("minilm", "cross-encoder")]
            labels = (("", ""), ("over minilm ", "+"), ("over cross-encoder ", "+"))
            shown = "; ".join(
                f"{label}{part.value:{sign}.3f} [{part.low:{sign}.3f}, {part.high:{sign}.3f}]"
                for (label, sign), part in zip(labels, parts, strict=True)
            )
            lines.append(f"  {name:<30} {shown}")
    return "\n".join(lines)


def over_occupations(values: np.ndarray, codes: Sequence[str], *, num: int) -> Interval:
    """The mean of `values` with a 95 % interval over resampled occupations."""
    groups: dict[str, list[float]] = {}
    for value, code in zip(values.tolist(), codes, strict=True):
        groups.setdefault(code, []).append(value)
    return bootstrap(
        lambda drawn: float(np.mean([value for group in drawn for value in group])),
        list(groups.values()),
        num=num,
        seed=11,
    )


if __name__ == "__main__":
    main()
