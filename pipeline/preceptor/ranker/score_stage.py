"""The `score` stage: a trained ranker's raw logits for whole sets of pairs, through Ray Data actors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import (
    COUNTS,
    GOLDEN,
    IMPRESSIONS,
    PAIRS,
    TEACHER_SCORES,
    content_id,
    iter_tables,
    read_table,
    rows_to_table,
    write_table,
)
from preceptor.errors import InputError, StageFailed, reason_of
from preceptor.precision import computed_in
from preceptor.ranker.isotonic import Isotonic, load_calibration
from preceptor.recipe import PairSet, ScoringConfig
from preceptor.record import Record, begin
from preceptor.tally import Tally

REQUESTS_PER_BLOCK: Final = 64
"""A killed run computes at most the blocks in flight again; one part file is one block."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Whose logits (`system` names them in the table), on which pairs, with which resources."""

    system: str
    sets: tuple[PairSet, ...]
    scoring: ScoringConfig


def score(config: ScoreConfig, *, corpus: Record, model: Record, out: Path) -> Record:
    """The record of the raw logits of every head, in ``scores/`` (TEACHER_SCORES), for each pair of the sets once."""
    run = begin("score", config, out=out, inputs={"corpus": corpus, "model": model})
    if run.record is not None:
        return run.record
    pairs = pairs_to_score(corpus, config.sets)
    blocks = {f"part-{content_id(*(row['pair_id'] for row in block))}.parquet": block for block in block_up(pairs)}
    missing = {name: block for name, block in blocks.items() if not (out / "scores" / name).is_file()}
    tally = Tally(label=f"{config.system} scores", total=sum(map(len, missing.values())), unit="pairs")
    try:
        for name, rows in _logits_of_blocks(missing, model.path / "model", config.scoring, tally):
            named = ({**row, "teacher": config.system} for row in rows)
            write_table(rows_to_table(named, TEACHER_SCORES), out / "scores" / name, TEACHER_SCORES)
    except RuntimeError as error:
        raise StageFailed(f"{out}: scoring stopped ({reason_of(error)}). Run again to go on.") from error
    return run.finish(num_rows_in=len(pairs), num_rows_kept=len(pairs), metrics={"system": config.system})


def pairs_to_score(corpus: Record, sets: Sequence[PairSet]) -> list[dict[str, str]]:
    """As `collect_pairs`; InputError where the sets hold none."""
    pairs = collect_pairs(corpus, sets)
    if not pairs:
        raise InputError(f"{corpus.path}: no pair in {', '.join(sets)}. Nothing to score; check the corpus.")
    return pairs


def collect_pairs(corpus: Record, sets: Sequence[PairSet]) -> list[dict[str, str]]:
    """The PAIRS rows of the sets, each pair once, requests together."""
    found: dict[str, dict[str, str]] = {}
    for name in sets:
        for row in _rows_of(corpus, name):
            found.setdefault(row["pair_id"], {field: row[field] for field in PAIRS.names})
    return sorted(found.values(), key=lambda row: (row["query_id"], row["profile_id"], row["pair_id"]))


def block_up(pairs: Iterable[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    """The pairs in blocks of REQUESTS_PER_BLOCK whole requests; `pairs` has requests together."""
    block: list[dict[str, str]] = []
    for number, (_, group) in enumerate(groupby(pairs, key=lambda row: (row["query_id"], row["profile_id"]))):
        if number and number % REQUESTS_PER_BLOCK == 0:
            yield block
            block = []
        block.extend(group)
    if block:
        yield block


def _rows_of(corpus: Record, name: PairSet) -> Iterator[dict[str, str]]:
    if name in ("golden calibration", "golden holdout"):
        split = name.removeprefix("golden ")
        yield from (row for row in read_table(corpus.path / "golden", GOLDEN).to_pylist() if row["split"] == split)
        return
    shown = frozenset() if name == "pool" else _shown(corpus, name.removeprefix("shown "))
    for table in iter_tables(corpus.path / "pairs", PAIRS):
        for row in table.to_pylist():
            if row["split"] == "train" if name == "pool" else row["pair_id"] in shown:
                yield row


def _shown(corpus: Record, split: str) -> frozenset[str]:
    """The pairs that impressions of `split` show, or its counts where the source knows no more."""
    counts = corpus.path / "counts"
    exposed = read_table(counts, COUNTS) if counts.is_dir() else read_table(corpus.path / "impressions", IMPRESSIONS)
    return frozenset(exposed.filter(pc.equal(exposed["split"], split))["pair_id"].to_pylist())


class _Scorer:
    """A Ray Data actor: PAIRS rows of whole requests in, TEACHER_SCORES-like rows out."""

    def __init__(self, model: str, scoring: ScoringConfig) -> None:
        import torch

        from preceptor.ranker.model import load_ranker

        if scoring.gpus_per_actor:
            device = torch.device("cuda")
        else:
            device = torch.device("cpu")
            torch.set_num_threads(max((os.cpu_count() or 1) // scoring.num_actors, 1))
        precision = computed_in(scoring.precision, num_gpus=scoring.gpus_per_actor)
        ranker, self._tokenizer = load_ranker(Path(model), dtype=getattr(torch, precision))
        self._ranker = ranker.to(device)
        self._maps = load_calibration(Path(model))

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        done: list[dict[str, Any]] = []
        for row in rows:
            done += logit_rows(self._ranker, self._tokenizer, row["pairs"], block=row["block"], maps=self._maps)
        return pa.Table.from_pylist(done, schema=_LOGITS)


_LOGITS: Final = pa.schema(
    [
        ("block", pa.string()),
        ("pair_id", pa.string()),
        ("head", pa.string()),
        ("logits", pa.list_(pa.float32())),
    ]
)
_REQUESTS: Final = pa.schema([("block", pa.string()), ("pairs", pa.list_(pa.struct([*PAIRS])))])


def logit_rows(
    ranker: Any,
    tokenizer: Any,
    pairs: Sequence[dict[str, str]],
    *,
    block: str,
    maps: Mapping[str, Isotonic] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One row {block, pair_id, head, logits} for each pair and head of the ranker; `maps` calibrates action heads."""
    from preceptor.ranker.batches import group_requests
    from preceptor.ranker.model import head_slices
    from preceptor.ranker.scoring import score_requests

    grouped = group_requests(pairs)
    slices = head_slices(ranker.heads)
    logits = score_requests(ranker, tokenizer, [request for request, _ in grouped])
    return [
        {
            "block": block,
            "pair_id": pair_id,
            "head": head,
            "logits": _mapped(logits_NR[index, rows], maps.get(head)),
        }
        for (_, pair_ids), logits_NR in zip(grouped, logits, strict=True)
        for index, pair_id in enumerate(pair_ids)
        for head, rows in slices.items()
    ]


def _mapped(logits_R: Any, calibration: Isotonic | None) -> list[float]:
    logits = [float(value) for value in logits_R]
    return logits if calibration is None else [float(value) for value in calibration(logits)]


def _logits_of_blocks(
    blocks: dict[str, list[dict[str, str]]], model: Path, scoring: ScoringConfig, tally: Tally
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each block's name and rows as soon as it is whole; one pipeline, so actors start once."""
    import ray.data

    if not blocks:
        return
    per_row = scoring.requests_per_batch
    requests = [
        {"block": name, "pairs": part} for name, block in blocks.items() for part in _request_batches(block, per_row)
    ]
    wanted = {name: len(block) for name, block in blocks.items()}
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_arrow(pa.Table.from_pylist(requests, schema=_REQUESTS)).repartition(len(requests))
    scored = dataset.map_batches(
        _Scorer,
        batch_format="pyarrow",
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=scoring.num_actors),
        fn_constructor_args=(str(model.resolve()), scoring),
        num_cpus=scoring.cpus_per_actor,
        num_gpus=scoring.gpus_per_actor or None,
    )
    collected: dict[str, list[dict[str, Any]]] = {name: [] for name in blocks}
    seen: dict[str, set[str]] = {name: set() for name in blocks}
    for batch in scored.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
        for row in cast(pa.Table, batch).to_pylist():
            name = row.pop("block")
            collected[name].append(row)
            seen[name].add(row["pair_id"])
        tally.add(len(set(cast(pa.Table, batch)["pair_id"].to_pylist())))
        for name in [name for name in collected if len(seen[name]) == wanted[name]]:
            # A pair's heads come in one batch, so a block with all its pairs is whole.
            yield name, collected.pop(name)


def _request_batches(block: list[dict[str, str]], num_requests: int) -> Iterator[list[dict[str, str]]]:
    groups = [list(group) for _, group in groupby(block, key=lambda row: (row["query_id"], row["profile_id"]))]
    for start in range(0, len(groups), num_requests):
        yield [row for group in groups[start : start + num_requests] for row in group]
