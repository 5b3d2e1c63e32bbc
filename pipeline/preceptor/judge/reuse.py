"""Labels that earlier versions of a stage gave: which of them still hold, so that only the rest is asked.

What a label says depends on four things: the pair's text (its id), the dimension, the part of the prompt that speaks of
that dimension (its prompt hash), and the judge with its revision and sampling (its id). A label holds for as long as
these four are the same, whatever else in the policy, the corpus or the recipe has changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import LABELS, iter_tables
from preceptor.judge.replies import Reply
from preceptor.record import DEV

Asked = tuple[str, str]
"""A pair's id and a dimension."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What earlier versions know of the rows that are wanted: replies that hold, and rows whose wording has changed."""

    replies: Mapping[Asked, Reply]
    stale: frozenset[Asked]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What labelling would do with its (pair, dimension) rows: ask anew, reuse, or ask again because they are stale."""

    num_new: int
    num_reused: int
    num_stale: int


NOTHING: Earlier = Earlier(replies={}, stale=frozenset())


def earlier_labels(out: Path, *, pair_ids: Collection[str], judge_id: str, prompt_hashes: Mapping[str, str]) -> Earlier:
    """What the other versions beside the stage directory `out` know of `pair_ids` by this judge.

    `prompt_hashes` is by dimension; a dimension without one is not looked for. Labels of another judge are neither
    reused nor stale: they stand beside these.
    """
    wanted, replies, stale = frozenset(pair_ids), dict[Asked, Reply](), set[Asked]()
    for table in _tables_beside(out):
        mine = pc.and_(
            pc.equal(table.column("judge_id"), judge_id),
            pc.is_in(table.column("dimension"), value_set=pa.array(list(prompt_hashes), type=pa.string())),
        )
        for row in table.filter(mine).to_pylist():
            asked = (row["pair_id"], row["dimension"])
            if asked[0] not in wanted:
                continue
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
    return Earlier(replies=replies, stale=frozenset(stale - replies.keys()))


def _tables_beside(out: Path) -> Iterator[pa.Table]:
    """LABELS tables of the versions beside `out`, finished or not: a part that is there is whole."""
    if not out.parent.is_dir():
        return
    for version in sorted(out.parent.iterdir()):
        labels = version / "labels"
        if version != out and version.name != DEV and any(labels.glob("part-*.parquet")):
            yield from iter_tables(labels, LABELS)
