"""Labels that earlier versions of a stage gave: which of them still hold, so that only the rest is asked.

What a label says depends on four things: the pair's text (its id), the dimension, the part of the prompt that speaks of
that dimension (its prompt hash), and the judge with its revision and sampling (its id). A label holds for as long as
these four are the same, whatever else in the policy, the corpus or the recipe has changed. What is known is read shard
by shard: only files whose shard may hold the same groups are opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import LABELS, REJECTS, conform, read_parquet
from preceptor.judge.pool import Shard
from preceptor.judge.replies import Reply, is_passing, rejected
from preceptor.record import DEV

Asked = tuple[str, str]
"""A pair's id and a dimension."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What is known of a shard's rows before it is asked: replies that hold, and rows whose wording has changed."""

    replies: Mapping[Asked, Reply]
    stale: frozenset[Asked]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What labelling would do with its (pair, dimension) rows: ask anew, reuse, or ask again because they are stale."""

    num_new: int
    num_reused: int
    num_stale: int


NOTHING: Earlier = Earlier(replies={}, stale=frozenset())


def earlier_labels(out: Path, shard: Shard, *, judge_id: str, prompt_hashes: Mapping[str, str]) -> Earlier:
    """What this and the other versions beside the stage directory `out` know of the groups of `shard` by this judge.

    `prompt_hashes` is by dimension; a dimension without one is not looked for. Labels of another judge are neither
    reused nor stale: they stand beside these. Of `out` itself, rejects that no other try can cure are known too.
    """
    replies, stale = dict[Asked, Reply](), set[Asked]()
    for table in _labels_of(out, shard):
        mine = pc.and_(
            pc.equal(table.column("judge_id"), judge_id),
            pc.is_in(table.column("dimension"), value_set=pa.array(list(prompt_hashes), type=pa.string())),
        )
        for row in table.filter(mine).to_pylist():
            asked = (row["pair_id"], row["dimension"])
            if row["prompt_hash"] != prompt_hashes[row["dimension"]]:
                stale.add(asked)
                continue
            replies[asked] = Reply(
                pair_id=row["pair_id"],
                dimension=row["dimension"],
                probs=tuple(row["probs"]),
                label_mass=row["label_mass"],
                rationale=row["rationale"],
            )
    for reply in _final_rejects(out / "rejects" / f"part-{shard.name}.parquet", frozenset(prompt_hashes)):
        replies.setdefault((reply.pair_id, reply.dimension), reply)
    return Earlier(replies=replies, stale=frozenset(stale - replies.keys()))


def _labels_of(out: Path, shard: Shard) -> Iterator[pa.Table]:
    """LABELS tables of the versions beside `out`, finished or not, and of `out`: a part that is there is whole."""
    versions = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    for version in versions:
        if version != out and version.name == DEV:
            continue
        for part in sorted((version / "labels").glob("part-*.parquet")):
            if shard.overlaps(part.stem.removeprefix("part-")):
                yield conform(read_parquet(part), LABELS, where=part)


def _final_rejects(part: Path, dimensions: frozenset[str]) -> Iterator[Reply]:
    if not part.is_file():
        return
    for row in conform(read_parquet(part), REJECTS, where=part).to_pylist():
        pair_id, _, dimension = row["id"].partition("/")
        if dimension in dimensions and not is_passing(row["reason"]):
            yield rejected(pair_id, dimension, row["reason"], raw=row["raw"], attempt=row["attempt"])
