"""Rankers that know nothing of the policy: word overlap and popularity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preceptor.evaluation.metrics import Floats

MAX_FIT_TEXTS: Final = 200_000
"""TF-IDF weights settle long before this many distinct texts; more would only cost memory."""


def tfidf_scores(train: Iterable[pa.Table], pairs: pa.Table) -> Floats:
    """Cosine of query + profile with the document of each row of `pairs`, 0 to 1, in TF-IDF space.

    `train` yields tables with the text columns of PAIRS, all of them train rows; their distinct texts (at most
    MAX_FIT_TEXTS) give vocabulary and weights. At least one of them must hold a word. One-letter words count: R and C
    are skills.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    vectorizer.fit(_distinct_texts(train))
    asked, ask_of = np.unique(_requests(pairs), return_inverse=True)
    documents, document_of = np.unique(pairs["document"].to_pylist(), return_inverse=True)
    left = vectorizer.transform(asked)[ask_of]
    right = vectorizer.transform(documents)[document_of]
    return np.asarray(left.multiply(right).sum(axis=1), dtype=np.float64).ravel()


def knows_any(impressions: pa.Table, document_ids: pa.ChunkedArray) -> bool:
    """Whether `impressions` show any of `document_ids`; where texts hold numbers of their request they show none, and
    popularity would rank nothing."""
    return bool(pc.any(pc.is_in(document_ids, value_set=impressions["document_id"].combine_chunks())).as_py())


def popularity_scores(
    impressions: pa.Table, document_ids: pa.ChunkedArray, *, action: str = "click", prior: float = 10.0
) -> Floats:
    """Smoothed `action` rate of each of `document_ids` in `impressions` (IMPRESSIONS, train rows, at least one).

    The rate is (actions + prior * mean rate) / (shown + prior): a document shown `prior` times stands halfway between
    its own rate and the mean; one never shown gets the mean.
    """
    counts = pa.table(
        {"document_id": impressions["document_id"], "acted": pc.cast(impressions[action], pa.int64())}
    ).group_by("document_id")
    totals = counts.aggregate([("acted", "sum"), ("acted", "count")])
    acted = totals["acted_sum"].to_numpy().astype(np.float64)
    shown = totals["acted_count"].to_numpy().astype(np.float64)
    mean = acted.sum() / shown.sum()
    rates = np.append((acted + prior * mean) / (shown + prior), mean)
    found = pc.index_in(document_ids, value_set=totals["document_id"].combine_chunks())
    return rates[pc.fill_null(found, len(rates) - 1).to_numpy()]


def _requests(pairs: pa.Table) -> list[str]:
    return pc.binary_join_element_wise(pairs["query"], pairs["profile"], "\n").to_pylist()


def _distinct_texts(tables: Iterable[pa.Table]) -> list[str]:
    texts: dict[str, None] = {}
    for table in tables:
        texts.update(dict.fromkeys(_requests(table)))
        texts.update(dict.fromkeys(table["document"].to_pylist()))
        if len(texts) >= MAX_FIT_TEXTS:
            break
    return list(texts)[:MAX_FIT_TEXTS]
