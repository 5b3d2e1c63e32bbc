"""A recipe for corpora of your own: pairs out of postings and profiles, labelled by a judge, a relevance teacher.

Name your files and columns, then ``preceptor generate examples/own_corpora.py:recipe`` makes the pairs, into
``runs/own_corpora/``; ``preceptor run`` with the same recipe goes on to labels and teacher once `golden` is given.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preceptor.recipe import CorporaConfig, CorpusFile, EngineConfig, Recipe, WriterConfig
from preceptor.recipes import demo

DATA = Path("data")


def recipe() -> Recipe:
    """Queries from templates, no model needed; only the sentence encoder runs."""
    golden = DATA / "golden.parquet"
    return replace(
        demo(),
        name="own_corpora",
        source=CorporaConfig(
            postings=CorpusFile(
                source=str(DATA / "postings.parquet"),
                columns={"text": "description", "title": "title", "place": "city", "skills": "skills"},
            ),
            profiles=CorpusFile(
                source=str(DATA / "profiles.jsonl"),
                columns={"text": "about", "title": "headline", "place": "location", "skills": "skills"},
            ),
            golden=golden if golden.exists() else None,
            num_queries=2000,
        ),
        labeller="judge",
        # No clicks: the engagement teacher, and the student that listens to both, wait for impressions.
        engagement=None,
        distill=None,
    )


def written_by_a_model() -> Recipe:
    """The same with queries that a language model writes under vLLM."""
    start = recipe()
    assert isinstance(start.source, CorporaConfig)
    writer = WriterConfig(model="Qwen/Qwen2.5-7B-Instruct", engine=EngineConfig(gpus_per_replica=1))
    return replace(start, name="own_corpora_model", source=replace(start.source, writer=writer))
