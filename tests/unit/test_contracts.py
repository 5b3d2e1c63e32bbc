"""Contracts: what conform refuses, what reaches the disk, and which split a query stands in."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor import contracts_doc
from preceptor.contracts import (
    CONTRACTS,
    GOLDEN,
    PAIRS,
    REJECTS,
    SPLITS,
    conform,
    content_id,
    make_pair,
    name_of,
    parquet_files,
    read_table,
    rows_to_table,
    split_of,
    write_table,
)
from preceptor.errors import InputError, StageFailed

REPOSITORY = Path(__file__).resolve().parents[2]


def pairs(num_rows: int = 3) -> pa.Table:
    rows: list[dict[str, object]] = [
        {**make_pair(f"nurse {row}", "registered nurse", f"ward {row}", slice="plain")} for row in range(num_rows)
    ]
    return rows_to_table(rows, PAIRS)


def replaced(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(column), pa.field(column, values.type), values)


def test_conform_names_the_missing_column_and_the_file() -> None:
    with pytest.raises(InputError, match=r"^in\.parquet: column 'query': PAIRS needs this column") as caught:
        conform(pairs().drop_columns(["query"]), PAIRS, where="in.parquet")
    assert "\n" not in str(caught.value)


def test_conform_refuses_another_type_instead_of_casting() -> None:
    rows = pa.table({"id": ["a"], "stage": ["label"], "reason": ["empty"], "raw": [None], "attempt": [1]})
    table = replaced(rows, "raw", pa.array([None], pa.string()))
    with pytest.raises(InputError, match=r"column 'attempt': REJECTS needs type int32, got int64"):
        conform(table, REJECTS)


def test_conform_refuses_a_null_where_the_contract_has_none() -> None:
    table = replaced(pairs(), "document", pa.array(["a", None, "b"]))
    with pytest.raises(InputError, match=r"column 'document': PAIRS allows no null, got 1 of 3 rows"):
        conform(table, PAIRS)


def test_conform_refuses_a_null_inside_a_list() -> None:
    schema = CONTRACTS["EXAMPLES"]
    row = {"pair_id": "a", "head": "click", "target": [None], "weight": 1.0}
    with pytest.raises(InputError, match=r"column 'target': EXAMPLES allows no null inside a list, got 1"):
        rows_to_table([{**row, "target": [0.5]}, row], schema)


@pytest.mark.parametrize("grade", [-1, 5])
def test_conform_refuses_a_grade_outside_the_scale(grade: int) -> None:
    row = {**make_pair("nurse", "", "ward", slice="a"), "dimension": "role", "grader_id": "a", "policy_version": "1"}
    rows = [{**row, "grade": found, "reason": None} for found in (0, 4, grade)]
    with pytest.raises(InputError, match=rf"column 'grade': GOLDEN row 3: a grade is 0 to 4, got {grade}\. Mend"):
        rows_to_table(rows, GOLDEN)
    assert rows_to_table(rows[:2], GOLDEN).num_rows == 2


def test_conform_refuses_a_split_that_is_none() -> None:
    table = replaced(pairs(), "split", pa.array(["train", "dev", "test"]))
    with pytest.raises(InputError, match=r"^in\.parquet: column 'split': PAIRS row 2: a split is .* got 'dev'"):
        conform(table, PAIRS, where="in.parquet")


def test_conform_lets_a_null_pass_where_the_contract_allows_it() -> None:
    row: dict[str, object] = {"id": "a", "stage": "label", "reason": "empty", "raw": None, "attempt": 1}
    assert rows_to_table([row], REJECTS)["raw"].null_count == 1


def test_conform_drops_extra_columns_and_orders_the_rest() -> None:
    table = pairs()
    shuffled = table.select(table.column_names[::-1]).append_column("year", pa.array([2026] * 3))
    assert conform(shuffled, PAIRS).equals(table)


@pytest.mark.parametrize("row", [{"attempt": "three"}, {"attempt": 2**40}])
def test_a_row_that_does_not_fit_is_an_input_error(row: dict[str, object]) -> None:
    whole = {"id": "a", "stage": "label", "reason": "empty", "raw": None, **row}
    with pytest.raises(InputError, match="REJECTS: a row does not fit"):
        rows_to_table([whole], REJECTS)


@pytest.mark.parametrize("schema", CONTRACTS.values(), ids=CONTRACTS.keys())
def test_every_contract_survives_parquet(schema: pa.Schema, tmp_path: Path) -> None:
    file = write_table(schema.empty_table(), tmp_path / "part.parquet", schema)
    assert read_table(file, schema).schema.equals(schema)
    assert name_of(schema) in CONTRACTS


def test_golden_starts_with_the_columns_of_pairs() -> None:
    assert GOLDEN.names[: len(PAIRS.names)] == PAIRS.names


def test_a_directory_reads_as_one_table_without_unfinished_files(tmp_path: Path) -> None:
    table = pairs(4)
    write_table(table.slice(0, 2), tmp_path / "0.parquet", PAIRS)
    write_table(table.slice(2), tmp_path / "1.parquet", PAIRS)
    (tmp_path / ".2.parquet.partial").write_bytes(b"half")
    (tmp_path / ".hidden.parquet").write_bytes(b"half")
    assert read_table(tmp_path, PAIRS).equals(table)


def test_a_missing_path_and_an_empty_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        parquet_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is an empty directory"):
        parquet_files(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = write_table(pairs(), tmp_path / "part.parquet", PAIRS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"part\.parquet: not readable as Parquet"):
        read_table(file, PAIRS)


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_damaged_page_is_named(compression: str, tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    if compression == "zstd":
        write_table(pairs(200), file, PAIRS)
    else:
        pq.write_table(pairs(200), file, compression=compression, write_page_checksum=True)
    damaged = bytearray(file.read_bytes())
    first_page = pq.ParquetFile(file).metadata.row_group(0).column(2)
    middle = first_page.data_page_offset + first_page.total_compressed_size // 2
    damaged[middle] ^= 0xFF
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"part\.parquet: not readable as Parquet") as caught:
        read_table(file, PAIRS)
    assert "\n" not in str(caught.value)


def test_a_wrong_table_never_reaches_the_disk(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'split'"):
        write_table(pairs().drop_columns(["split"]), tmp_path / "part.parquet", PAIRS)
    assert list(tmp_path.iterdir()) == []


# A process may write files of 4 KiB at most: what a full disk does, without filling one.
_WRITE_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from preceptor.contracts import REJECTS, rows_to_table, write_table
from preceptor.errors import StageFailed

ids = [f"{row * 2654435761 % 2**32:08x}" for row in range(20000)]
rows = [{"id": id, "stage": "label", "reason": "empty", "raw": None, "attempt": 1} for id in ids]
table = rows_to_table(rows, REJECTS)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_table(table, Path(sys.argv[1]), REJECTS)
except StageFailed as error:
    print(error)
"""


@pytest.mark.parametrize("before", [None, b"the older file"], ids=["new", "replacing"])
def test_a_full_disk_leaves_no_half_written_table(before: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    if before is not None:
        file.write_bytes(before)
    command = [sys.executable, "-c", _WRITE_UNDER_A_LIMIT, str(file)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.startswith(f"{file}: could not be written")
    assert "--root" in finished.stdout
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == (
        [] if before is None else [(file.name, before)]
    )


def test_a_file_in_place_of_the_folder_is_a_stage_failure(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("a file")
    with pytest.raises(StageFailed, match="could not be written") as caught:
        write_table(pairs(), tmp_path / "pairs" / "part.parquet", PAIRS)
    assert "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["pairs"]


def test_a_directory_in_the_way_is_a_stage_failure(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").mkdir()
    with pytest.raises(StageFailed, match="could not be written"):
        write_table(pairs(), tmp_path / "part.parquet", PAIRS)
    assert [found.name for found in tmp_path.iterdir()] == ["part.parquet"]


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_content_ids_differ_where_the_parts_differ(left: list[str], right: list[str]) -> None:
    assert (content_id(*left) == content_id(*right)) == (left == right)


def test_a_pair_is_identified_by_its_three_texts() -> None:
    pair = make_pair("nurse", "ten years", "ward", slice="a")
    assert pair["pair_id"] == make_pair("nurse", "ten years", "ward", slice="b")["pair_id"]
    assert pair["pair_id"] != make_pair("nurse", "ward", "ten years", slice="a")["pair_id"]
    assert pair["query_id"] == make_pair("nurse", "none", "other", slice="a")["query_id"]


@given(st.text(), st.text(), st.text())
def test_a_query_stands_in_one_split_whatever_it_is_paired_with(query: str, profile: str, document: str) -> None:
    pair = make_pair(query, profile, document, slice="a")
    assert pair["split"] in SPLITS
    assert pair["split"] == make_pair(query, "", "", slice="b")["split"] == split_of(pair["query_id"])


def test_splits_have_the_shares_they_promise() -> None:
    # 10,000 draws: a share's standard deviation is at most 0.004, so 0.02 is five of them.
    counts = Counter(split_of(content_id(str(query))) for query in range(10_000))
    assert counts["holdout"] / 10_000 == pytest.approx(0.2, abs=0.02)
    assert counts["calibration"] / 10_000 == pytest.approx(0.1, abs=0.02)


def test_a_split_never_moves_between_versions() -> None:
    # Frozen: a change here silently moves queries between train and the sealed holdout.
    found = {query: split_of(content_id(query)) for query in ("nurse", "python dev", "welder", "plumber", "chef")}
    assert found == {
        "nurse": "train",
        "python dev": "calibration",
        "welder": "holdout",
        "plumber": "train",
        "chef": "holdout",
    }


def test_the_contracts_page_is_the_generated_one() -> None:
    page = REPOSITORY / "docs" / "contracts.md"
    assert page.read_text() == contracts_doc.render(), "docs/contracts.md is stale: run `make contracts`"


def test_the_contracts_page_has_every_column_of_every_contract() -> None:
    sections = dict(zip(CONTRACTS, contracts_doc.render().split("\n## ")[1:], strict=True))
    for name, schema in CONTRACTS.items():
        assert sections[name].startswith(name)
        rows = [line.split("|")[1].strip() for line in sections[name].splitlines() if line.startswith("| ")]
        assert rows == ["column", "---", *schema.names]


def test_contracts_compress_their_tables(tmp_path: Path) -> None:
    file = write_table(pairs(), tmp_path / "part.parquet", PAIRS)
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
