"""Which pairs are alike, and groups of them: sentence embeddings where the encoder is installed, TF-IDF where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from preceptor.errors import InputError
from preceptor.sources.retrieval import embed, encoder_dir

Vectors = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], Vectors]
Method = Literal["minilm", "tfidf"]

NUM_FACTORS: Final = 64

_GROUP_SIZE: Final = 8
_NUM_TERMS: Final = 4
_NUM_TFIDF: Final = 20_000


def embedding(method: Method | None = None) -> tuple[Method, Embed]:
    """The embedding of `method`, by name; without one MiniLM where it is installed and TF-IDF where not.

    InputError where MiniLM is asked for and not installed.
    """
    if method is None:
        try:
            encoder_dir()
            method = "minilm"
        except InputError:
            method = "tfidf"
    return (method, _minilm) if method == "minilm" else (method, tfidf)


def tfidf(texts: Sequence[str]) -> Vectors:
    """Unit-length TF-IDF vectors of `texts`, of words and pairs of words, in their `NUM_FACTORS` strongest directions.

    Latent semantic analysis (Deerwester et al. 1990): k-means over tens of thousands of columns takes seconds.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), max_features=_NUM_TFIDF, token_pattern=r"(?u)\b\w+\b"
    )
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:
        # No text has a word.
        return np.ones((len(texts), 1))
    if min(weights.shape) > NUM_FACTORS:
        with _one_thread():
            weights = TruncatedSVD(NUM_FACTORS, n_iter=2, random_state=0).fit_transform(weights)
    else:
        weights = weights.toarray()
    return np.asarray(normalize(weights), dtype=np.float64)


def similarities(vectors: Vectors) -> Vectors:
    """Cosines of all pairs of rows, each row's own set to -1 so that nobody is its own neighbour."""
    found = vectors @ vectors.T
    np.fill_diagonal(found, -1.0)
    return found


def groups_of(vectors: Vectors, *, seed: int) -> list[int]:
    """The group of each row: k-means, with a group for about every 8 rows; rows that are alike share one."""
    from sklearn.cluster import KMeans

    num = max(1, round(len(vectors) / _GROUP_SIZE))
    if num == 1:
        return [0] * len(vectors)
    # No more groups than different rows, which k-means would warn of.
    num = min(num, len(np.unique(np.round(vectors, 6), axis=0)))
    with _one_thread():
        return [int(group) for group in KMeans(n_clusters=num, n_init=4, random_state=seed).fit_predict(vectors)]


def terms_of(texts: Sequence[str], groups: Sequence[int]) -> dict[int, str]:
    """By group, the words that mark its texts among the others."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(stop_words="english", sublinear_tf=True, token_pattern=r"(?u)\b[^\W\d]{3,}\b")
    try:
        weights = np.asarray(vectorizer.fit_transform(texts).toarray())
    except ValueError:
        return dict.fromkeys(groups, "")
    words, mean = vectorizer.get_feature_names_out(), weights.mean(axis=0)
    members = np.array(groups)
    found = {}
    for group in dict.fromkeys(groups):
        own = weights[members == group].mean(axis=0)
        # Where there is one group alone, what is common in it marks it.
        marks = own - mean if (members != group).any() else own
        order = np.argsort(-marks, kind="stable")[:_NUM_TERMS]
        found[group] = " ".join(str(words[number]) for number in order if marks[number] > 0)
    return found


def _one_thread() -> AbstractContextManager[object]:
    """These matrices are small: beside other work, threads that wait for each other took 40 s instead of 2."""
    from threadpoolctl import threadpool_limits

    return cast(AbstractContextManager[object], threadpool_limits(limits=1))


def _minilm(texts: Sequence[str]) -> Vectors:
    return np.asarray(embed(texts), dtype=np.float64)
