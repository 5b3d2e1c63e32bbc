"""Which postings and profiles queries are born from, in which style: a seeded draw from those that have the fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from preceptor.generate.texts import Indices, Mapped, write_ipc
from preceptor.recipe import STYLE_NEEDS, CorporaConfig, QueryStyle

DRAFTS: Final = pa.schema(
    [
        pa.field("draft", pa.int64(), nullable=False),
        pa.field("style", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("skills", pa.list_(pa.string()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ],
    metadata={b"contract": b"DRAFTS"},
)
"""A query to be written: its style, the corpus it is born from and its text's place there, and the text's fields."""

ORIGINS: Final = ("postings", "profiles")

# Titles repeat, and a repeated query is dropped: without spares a style would fall short of its share. A model's words
# repeat less and cost more.
_SPARE_TEMPLATES: Final = 2.0
_SPARE_MODEL: Final = 1.25
_DRAFTS_PER_BATCH: Final = 256


def quotas(config: CorporaConfig, origin: str) -> dict[QueryStyle, int]:
    """How many queries of each style are to be born from `origin`; they add up to its share of all queries."""
    total = config.num_of_origin(origin)
    exact = {style: total * share for style, share in config.styles.items()}
    counts = {style: math.floor(value) for style, value in exact.items()}
    rest = sorted(exact, key=lambda style: counts[style] - exact[style])
    for style in rest[: total - sum(counts.values())]:
        counts[style] += 1
    return counts


def draw(config: CorporaConfig, corpora: Mapping[str, Mapped], file: Path) -> dict[str, int]:
    """How many drafts each origin and style got, as ``{origin} {style}``, after writing them to `file`."""
    spare = _SPARE_TEMPLATES if config.writer is None else _SPARE_MODEL
    plan: list[tuple[str, QueryStyle, int]] = []
    for origin in ORIGINS:
        if origin not in corpora:
            continue
        able = _able(corpora[origin])
        for style, quota in quotas(config, origin).items():
            chosen = _choose(
                able[style], math.ceil(quota * spare), seed=[config.seed, ORIGINS.index(origin), *style.encode()]
            )
            plan += [(origin, style, int(index)) for index in chosen]
    write_ipc(_batches(plan, corpora), file, DRAFTS)
    counts: dict[str, int] = {}
    for origin, style, _ in plan:
        counts[f"{origin} {style}"] = counts.get(f"{origin} {style}", 0) + 1
    return counts


def _able(texts: Mapped) -> dict[QueryStyle, Indices]:
    """The places of the texts that have what each style needs."""
    masks: dict[str, list[np.ndarray]] = {name: [] for name in ("title", "place", "skills")}
    for number in range(texts.num_batches):
        batch = texts.batch(number)
        masks["title"].append(np.array([bool(value) for value in batch["title"].to_pylist()], dtype=bool))
        masks["place"].append(np.array([bool(value) for value in batch["place"].to_pylist()], dtype=bool))
        masks["skills"].append(batch["skills"].value_lengths().to_numpy(zero_copy_only=False) > 0)
    has = {name: np.concatenate([np.empty(0, dtype=bool), *parts]) for name, parts in masks.items()}
    return {
        style: np.flatnonzero(np.logical_and.reduce([has[name] for name in needs])).astype(np.int64)
        for style, needs in STYLE_NEEDS.items()
    }


def _choose(able: Indices, num: int, *, seed: list[int]) -> Indices:
    return np.random.default_rng(seed).permutation(able)[:num]


def _batches(plan: list[tuple[str, QueryStyle, int]], corpora: Mapping[str, Mapped]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(plan), _DRAFTS_PER_BATCH):
        part = list(enumerate(plan[start : start + _DRAFTS_PER_BATCH], start=start))
        rows: list[dict[str, Any]] = []
        for name, texts in corpora.items():
            of_corpus = [(draft, style, index) for draft, (origin, style, index) in part if origin == name]
            fields = texts.take([index for _, _, index in of_corpus], ["title", "place", "skills", "text"])
            rows += [
                {"draft": draft, "style": style, "origin": name, "index": index, **found}
                for (draft, style, index), found in zip(of_corpus, fields, strict=True)
            ]
        yield pa.RecordBatch.from_pylist(sorted(rows, key=lambda row: row["draft"]), schema=DRAFTS)
