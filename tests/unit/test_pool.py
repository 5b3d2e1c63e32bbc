"""The pool on disk: shards by group, blocks in shards, the same for the same pairs."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.contracts import PAIRS, rows_to_table
from preceptor.judge.pool import Pool, Shard, lay_pool, read_blocks, shard_of
from preceptor.judge.tickets import SLICES_PER_ACTOR, task_sizes
from tests.unit.labelling import pool


def tables(num: int, *, rows_per_table: int = 7) -> list[pa.Table]:
    rows = pool(num)
    return [rows_to_table(rows[start : start + rows_per_table], PAIRS) for start in range(0, num, rows_per_table)]


def contents(laid: Pool) -> dict[str, list[list[str]]]:
    """The pair ids of each block of each shard."""
    return {
        shard.name: [block.column("pair_id").to_pylist() for block in read_blocks(laid, shard)] for shard in laid.shards
    }


def test_every_pair_is_in_one_block_and_a_group_in_one_shard_side_by_side(tmp_path: Path) -> None:
    laid = lay_pool(
        [*tables(200), *tables(50)], tmp_path / "pool", num_pairs=250, pairs_per_block=8, pairs_per_shard=40
    )
    assert len(laid.num_pairs) == 8
    found = contents(laid)
    ids = [pair_id for blocks in found.values() for block in blocks for pair_id in block]
    assert sorted(ids) == sorted(pair["pair_id"] for pair in pool(200)), "a repeated pair is kept once"
    assert {len(block) for blocks in found.values() for block in blocks[:-1]} == {8}
    shards_of_group: dict[tuple[str, str], set[str]] = {}
    for shard in laid.shards:
        rows = [row for block in read_blocks(laid, shard) for row in block.to_pylist()]
        groups = [(row["query_id"], row["profile_id"]) for row in rows]
        assert len([key for key, _ in groupby(groups)]) == len(set(groups)), "neighbours share query and profile"
        for group in groups:
            shards_of_group.setdefault(group, set()).add(shard.name)
    assert all(len(names) == 1 for names in shards_of_group.values())


def test_the_same_pairs_give_the_same_blocks_in_whatever_order_they_come(tmp_path: Path) -> None:
    sizes = {"num_pairs": 90, "pairs_per_block": 8, "pairs_per_shard": 40}
    first = lay_pool(tables(90), tmp_path / "first", **sizes)
    second = lay_pool(reversed(tables(90, rows_per_table=13)), tmp_path / "second", **sizes)
    assert contents(first) == contents(second)
    assert lay_pool([], tmp_path / "first", **sizes) == first, "a pool that is there is taken as it is"


def test_a_pool_cut_short_is_laid_out_anew(tmp_path: Path) -> None:
    def broken() -> object:
        yield from tables(40)
        raise RuntimeError("the disk went away")

    with pytest.raises(RuntimeError):
        lay_pool(broken(), tmp_path / "pool", num_pairs=90, pairs_per_shard=20)  # type: ignore[arg-type]
    laid = lay_pool(tables(90), tmp_path / "pool", num_pairs=90, pairs_per_shard=20)
    assert sum(laid.num_pairs) == 90
    assert not (tmp_path / "pool" / "raw").exists()


@given(query=st.text(max_size=8), profile=st.text(max_size=8), few=st.integers(0, 6), more=st.integers(0, 6))
def test_a_groups_shards_of_two_pools_overlap(query: str, profile: str, few: int, more: int) -> None:
    first = Shard(index=shard_of(query, profile, 2**few), num_shards=2**few)
    second = Shard(index=shard_of(query, profile, 2**more), num_shards=2**more)
    assert first.overlaps(second.name) and second.overlaps(first.name)


@given(data=st.data(), bits=st.integers(0, 6), more=st.integers(0, 6))
def test_a_shard_overlaps_just_its_share_of_the_others(data: st.DataObject, bits: int, more: int) -> None:
    shard = Shard(index=data.draw(st.integers(0, 2**bits - 1)), num_shards=2**bits)
    others = [Shard(index=index, num_shards=2**more).name for index in range(2**more)]
    assert sum(map(shard.overlaps, others)) == max(1, 2 ** (more - bits)) if more >= bits else 1


@given(num_tickets=st.integers(0, 10**7), num_actors=st.integers(1, 500))
def test_tasks_hold_every_ticket_once_and_leave_no_actor_with_much_at_the_end(
    num_tickets: int, num_actors: int
) -> None:
    sizes = task_sizes(num_tickets, num_actors)
    assert sum(sizes) == num_tickets
    assert sizes == sorted(sizes, reverse=True)
    left = num_tickets
    for size in sizes:
        assert 1 <= size <= max(1, left / num_actors / SLICES_PER_ACTOR + 1)
        left -= size
    share = SLICES_PER_ACTOR * num_actors
    assert len(sizes) <= share * (1 + math.log(max(num_tickets / share, 1))) + 1, "the driver remembers every task"
