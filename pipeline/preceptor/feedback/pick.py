"""The stage `pick`: out of a served log, the pairs worth labelling next, and why each."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from preceptor.contracts import (
    ACTIONS,
    GOLDEN,
    PAIRS,
    SERVED,
    SERVED_SLICE,
    conform,
    iter_tables,
    parquet_files,
    read_parquet,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError, RecipeError
from preceptor.feedback.choose import Choice, Floats, Kind, choose, disagreements, nearest_known
from preceptor.feedback.files import digest_of, pairs_of
from preceptor.record import Record, begin, to_jsonable
from preceptor.refine.neighbours import embedding

STAGE: Final = "pick"

PICKS: Final = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("value", pa.float32(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
        pa.field("disagreement", pa.float32(), nullable=False),
        pa.field("novelty", pa.float32(), nullable=False),
        pa.field("nearest_pair_id", pa.string(), nullable=True),
        pa.field("slice", pa.string(), nullable=False),
        pa.field("slice_from", pa.string(), nullable=False),
        pa.field("num_served", pa.int64(), nullable=False),
        pa.field("expected_grade", pa.float32(), nullable=False),
        pa.field("bundle_id", pa.string(), nullable=False),
    ],
    metadata={b"contract": b"PICKS"},
)
"""Why a pair was chosen: as what, its place there, what decided and in words; how far apart the heads rank it, how far
it is from the nearest labelled pair (1 - cosine), whether its slice is its own or that pair's, and what was served."""


@dataclass(frozen=True, kw_only=True)
class PickConfig:
    """What to pick from, and how many of each kind.

    `texts` are PAIRS folders with the texts of what was served; `golden` are GOLDEN folders, whose grades do not count
    here, and `labelled` PAIRS folders of what is labelled already. A slice is short of golden under `golden_per_slice`
    pairs. Of more than `max_pool` candidates a seeded sample is looked at. `embedding` None: MiniLM where it is
    installed, TF-IDF where not.
    """

    served: Path
    texts: tuple[Path, ...]
    golden: tuple[Path, ...]
    labelled: tuple[Path, ...]
    num_golden: int
    num_disagreement: int
    num_novelty: int
    golden_per_slice: int
    max_per_query: int = 2
    max_pool: int = 20_000
    embedding: Literal["minilm", "tfidf"] | None = None
    seed: int = 17

    def __post_init__(self) -> None:
        if not self.texts:
            raise RecipeError("pairs to label need their texts: give folders of PAIRS, such as the log's texts.")
        if min(self.budget.values()) < 0 or not sum(self.budget.values()):
            raise RecipeError(f"the budget needs a number above 0 and none below, got {dict(self.budget)}.")
        for name in ("golden_per_slice", "max_per_query", "max_pool"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def budget(self) -> dict[Kind, int]:
        """How many pairs of each kind at most."""
        return {"golden": self.num_golden, "disagreement": self.num_disagreement, "novelty": self.num_novelty}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is labelled: texts, ids and slices of the same pairs, and golden pairs by slice."""

    pair_ids: list[str]
    texts: list[str]
    slices: list[str]
    golden: Mapping[str, int]


def pick(config: PickConfig, *, out: Path) -> Record:
    """The record of ``pairs/`` (PAIRS) and ``picks/`` (PICKS), one row for each pair in both.

    Rows in are the pairs served; rejected says why others could not be chosen. The slice of a pair that only the log
    knows is that of the nearest labelled pair. InputError where nothing that was served is left to label.
    """
    run = begin(STAGE, _with_content(config), out=out)
    if run.record is not None:
        return run.record
    served = latest_served(config.served)
    known = _known(config)
    texts, rejected = _candidates(config, served, known)
    method, embed = embedding(config.embedding)
    vectors = embed([_text(row) for row in texts] + known.texts)
    ours, theirs = vectors[: len(texts)], vectors[len(texts) :]
    cosines, nearest = nearest_known(ours, theirs)
    pairs = _with_slices(texts, known, ours, theirs)
    gaps, names = disagreements(*_heads([served[row["pair_id"]] for row in texts]))
    short = _short(pairs, known, config)
    choices = choose(
        pairs,
        gaps=gaps,
        vectors=ours,
        cosines=cosines,
        short=short,
        budget=config.budget,
        max_per_query=config.max_per_query,
        seed=config.seed,
    )
    rows = []
    for choice in choices:
        pair, at = pairs[choice.index], int(nearest[choice.index])
        rows.append(
            {
                **served[pair["pair_id"]],
                "kind": choice.kind,
                "rank": choice.rank,
                "value": choice.value,
                "why": _why(choice, pair["slice"], names[choice.index], known, config),
                "disagreement": gaps[choice.index],
                "novelty": 1 - max(cosines[choice.index], 0.0),
                "nearest_pair_id": known.pair_ids[at] if at >= 0 else None,
                "slice": pair["slice"],
                "slice_from": "pair" if texts[choice.index]["slice"] == pair["slice"] else "nearest",
            }
        )
    write_table(rows_to_table((pairs[one.index] for one in choices), PAIRS), out / "pairs" / "part-0.parquet", PAIRS)
    write_table(rows_to_table(rows, PICKS), out / "picks" / "part-0.parquet", PICKS)
    return run.finish(
        num_rows_in=len(served),
        num_rows_kept=len(rows),
        rejected=rejected | {"not chosen": len(texts) - len(rows)},
        metrics={
            "picked": dict(Counter(choice.kind for choice in choices)),
            "budget": config.budget,
            "embedding": method,
            "num_candidates": len(texts),
            "num_labelled": len(known.pair_ids),
            "golden_by_slice": dict(known.golden),
            "short_of_golden": short,
        },
    )


def _with_content(config: PickConfig) -> dict[str, Any]:
    """`config` for a record, with what the files hold in the place of where they are."""
    given: dict[str, Any] = to_jsonable(config)
    for name in ("texts", "golden", "labelled"):
        given[name] = digest_of(file for folder in getattr(config, name) for file in parquet_files(folder))
    return {**given, "served": digest_of(parquet_files(config.served))}


def latest_served(folder: Path) -> dict[str, dict[str, Any]]:
    """By pair_id, what the log last said of each pair: expected_grade, actions, bundle_id; and num_served, its rows."""
    found: dict[str, dict[str, Any]] = {}
    columns = ["pair_id", "served_at", "expected_grade", "actions", "bundle_id"]
    for file in parquet_files(folder):
        table = conform(read_parquet(file), SERVED, where=file).select(columns)
        counts = table.group_by("pair_id").aggregate([("served_at", "max"), ("served_at", "count")]).to_pylist()
        for row in counts:
            before = found.get(row["pair_id"], {"num_served": 0})
            found[row["pair_id"]] = before | {"num_served": before["num_served"] + row["served_at_count"]}
        # Stable: of rows of the same time the last stays.
        for row in table.sort_by("served_at").to_pylist():
            if row["served_at"] >= found[row["pair_id"]].get("served_at", row["served_at"]):
                found[row["pair_id"]] |= row
    return found


def _known(config: PickConfig) -> Known:
    golden: Counter[str] = Counter()
    found: dict[str, Mapping[str, Any]] = {}
    for folder in config.golden:
        for table in iter_tables(folder, GOLDEN):
            for row in table.select(PAIRS.names).to_pylist():
                if row["pair_id"] not in found:
                    golden[row["slice"]] += 1
                    found[row["pair_id"]] = row
    for folder in config.labelled:
        for table in iter_tables(folder, PAIRS):
            for row in table.to_pylist():
                found.setdefault(row["pair_id"], row)
    return Known(
        pair_ids=list(found),
        texts=[_text(row) for row in found.values()],
        slices=[row["slice"] for row in found.values()],
        golden=golden,
    )


def _candidates(
    config: PickConfig, served: Mapping[str, Any], known: Known
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """PAIRS rows to choose among, by pair_id, and why other served pairs are none."""
    wanted = set(served) - set(known.pair_ids)
    rows = [row for table in pairs_of(config.texts, wanted) for row in table.to_pylist()]
    rejected = {"labelled already": len(served) - len(wanted), "no text": len(wanted) - len(rows)}
    if not rows:
        raise InputError(
            f"{config.served}: none of {len(served):,} served pairs is left to label ({rejected['labelled already']:,} "
            f"labelled already, {rejected['no text']:,} without a text). Give the folder of the log's texts."
        )
    rows.sort(key=lambda row: row["pair_id"])
    if len(rows) > config.max_pool:
        rejected["over max_pool"] = len(rows) - config.max_pool
        rows = random.Random(f"{config.seed} pool").sample(rows, config.max_pool)
    return rows, rejected


def _heads(rows: Sequence[Mapping[str, Any]]) -> tuple[Floats, dict[str, Floats]]:
    """Expected grade and the probability of each action, [num] each; NaN where a bundle does not predict it."""
    given = [dict(row["actions"]) for row in rows]
    actions = {action: np.array([one.get(action, np.nan) for one in given], dtype=np.float64) for action in ACTIONS}
    return np.array([row["expected_grade"] for row in rows], dtype=np.float64), actions


def _short(pairs: Iterable[Mapping[str, Any]], known: Known, config: PickConfig) -> dict[str, int]:
    """How many golden pairs each slice of the traffic, of golden or of labels lacks; slices that lack none are out."""
    slices = {pair["slice"] for pair in pairs} | (set(known.slices) - {SERVED_SLICE})
    lacking = {name: config.golden_per_slice - known.golden.get(name, 0) for name in sorted(slices)}
    return {name: num for name, num in lacking.items() if num > 0}


def _with_slices(
    rows: Sequence[dict[str, Any]], known: Known, vectors: Floats, known_vectors: Floats
) -> list[dict[str, Any]]:
    """`rows`, where only the log knows one with the slice of the nearest labelled pair that has one of its own."""
    sliced = [index for index, slice_ in enumerate(known.slices) if slice_ != SERVED_SLICE]
    if not sliced:
        return list(rows)
    _, nearest = nearest_known(vectors, known_vectors[sliced])
    return [
        row if row["slice"] != SERVED_SLICE else {**row, "slice": known.slices[sliced[at]]}
        for row, at in zip(rows, nearest.tolist(), strict=True)
    ]


def _why(choice: Choice, slice_: str, action: str, known: Known, config: PickConfig) -> str:
    if choice.kind == "golden":
        return f"slice {slice_} has {known.golden.get(slice_, 0)} golden pairs of {config.golden_per_slice}"
    if choice.kind == "disagreement":
        return f"relevance and {action} rank it {choice.value:.0%} of the pairs apart"
    return f"cosine {1 - choice.value:.2f} to the nearest pair that is labelled or chosen"


def _text(row: Mapping[str, Any]) -> str:
    return f"{row['query']}\n{row['profile']}\n{row['document']}"
