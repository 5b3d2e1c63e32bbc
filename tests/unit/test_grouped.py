"""Groups on disk are the groups in memory, in their order, however small the buckets they were joined in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from preceptor.contracts import EXAMPLES, OVERALL, PAIRS, make_pair, rows_to_table, write_table
from preceptor.errors import InputError
from preceptor.ranker.examples import load_groups
from preceptor.ranker.grouped import BUCKET_BYTES, GroupFiles, write_groups


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    """Pairs of 40 requests in two files, some twice, some without an example; examples without a pair."""
    draw = random.Random(3)
    pairs = [
        make_pair(f"query {draw.randrange(20)}", draw.choice(["", "Köln"]), f"posting {number}\n…", slice="s")
        for number in range(200)
    ]
    examples = []
    for pair in draw.sample(pairs, 150):
        examples.append({"pair_id": pair["pair_id"], "head": OVERALL, "target": [0.1, 0.2, 0.3, 0.4], "weight": 0.7})
        if draw.random() < 0.5:
            examples.append({"pair_id": pair["pair_id"], "head": "click", "target": [1 / 3], "weight": 2.0})
    examples.append({"pair_id": "of another corpus", "head": OVERALL, "target": [1.0], "weight": 1.0})
    for number, part in enumerate((pairs[:120], pairs[100:])):
        write_table(rows_to_table(part, PAIRS), tmp_path / "pairs" / f"{number}.parquet", PAIRS)
    write_table(rows_to_table(examples, EXAMPLES), tmp_path / "examples" / "0.parquet", EXAMPLES)
    return tmp_path / "pairs", tmp_path / "examples"


@pytest.mark.parametrize("bucket_bytes", [500, BUCKET_BYTES])
def test_groups_on_disk_are_those_in_memory(corpus: tuple[Path, Path], tmp_path: Path, bucket_bytes: int) -> None:
    target = tmp_path / "groups"
    target.mkdir()
    (target / "999.arrow").write_bytes(b"of an older run")
    number = write_groups(*corpus, target, bucket_bytes=bucket_bytes)
    wanted = load_groups(*corpus)
    found = GroupFiles(target)
    assert number == len(found) == len(wanted) > 30
    assert list(found) == wanted
    assert found[3:5] == wanted[3:5]
    num_files = len(list(target.glob("*.arrow")))
    assert num_files == 1 if bucket_bytes == BUCKET_BYTES else num_files > 10
    assert sorted(item.name for item in tmp_path.iterdir()) == ["examples", "groups", "pairs"]


def test_examples_of_another_corpus_are_refused_and_leave_nothing(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    row = {"pair_id": "other", "head": OVERALL, "target": [1.0], "weight": 1.0}
    write_table(rows_to_table([row], EXAMPLES), tmp_path / "others" / "0.parquet", EXAMPLES)
    with pytest.raises(InputError, match="no example matches a pair in"):
        write_groups(corpus[0], tmp_path / "others", tmp_path / "groups")
    assert not [item for item in tmp_path.iterdir() if "groups" in item.name]
