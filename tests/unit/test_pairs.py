"""A user's own pairs, from every format that is read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preceptor.contracts import PAIRS, make_pair
from preceptor.errors import InputError
from preceptor.sources.pairs import read_pairs

USER_ROWS = [
    {"query": "bäcker, night", "profile": "", "document": 'baker — "early" shift'},
    {"query": "", "profile": "ten years\nof ovens", "document": "roofer\u2028and tiler"},
]


def write_jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return file


def write_csv(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as sink:
        writer = csv.DictWriter(sink, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def test_pairs_read_the_same_from_every_format(tmp_path: Path) -> None:
    from datasets import Dataset

    folder = tmp_path / "parts"
    for number, row in enumerate(USER_ROWS):
        write_parquet(folder / f"part-{number}.parquet", [row])
    Dataset.from_list(USER_ROWS).save_to_disk(str(tmp_path / "saved"))
    expected = pa.Table.from_pylist(
        [make_pair(row["query"], row["profile"], row["document"], slice="user") for row in USER_ROWS], schema=PAIRS
    )
    for path in (
        write_parquet(tmp_path / "pairs.parquet", [{**row, "note": 1} for row in USER_ROWS]),
        folder,
        write_jsonl(tmp_path / "pairs.jsonl", USER_ROWS),
        write_csv(tmp_path / "pairs.csv", USER_ROWS),
        tmp_path / "saved",
    ):
        assert read_pairs(path).equals(expected), path


def test_pairs_that_carry_their_ids_keep_them(tmp_path: Path) -> None:
    row = {**make_pair("", "", "headline", slice="headline", split="holdout"), "query_id": "test-1", "pair_id": "p-1"}
    found = read_pairs(write_parquet(tmp_path / "own.parquet", [row])).to_pylist()
    assert found == [row]


def test_a_dataset_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(USER_ROWS)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match=r"several dataset splits \(test, train\)"):
        read_pairs(tmp_path / "both")
    assert read_pairs(tmp_path / "both" / "test").num_rows == 2


BAD_ROW = {"query": "q", "profile": "p", "document": None}


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.parquet", lambda file: write_parquet(file, [*USER_ROWS, BAD_ROW]), "a.parquet: row 3: column 'document'"),
        ("b.parquet", lambda file: write_parquet(file, [{"query": "q", "profile": "p"}]), "column 'document'"),
        ("c.parquet", lambda file: write_parquet(file, [{**USER_ROWS[0], "query": 7}]), "must be text, got int64"),
        ("d.parquet", lambda file: write_parquet(file, [{**USER_ROWS[0], "document": " "}]), "must not be empty"),
        ("e.jsonl", lambda file: write_jsonl(file, [USER_ROWS[0], BAD_ROW]), "e.jsonl:2: column 'document'"),
        ("f.jsonl", lambda file: write_jsonl(file, [{"query": "q"}]), "f.jsonl:1: column 'profile'"),
        ("g.jsonl", lambda file: write_jsonl(file, [USER_ROWS[0], [1]]), "g.jsonl:2: must be an object, got list"),
        ("h.jsonl", lambda file: file.write_text('{"query": "q"'), "h.jsonl:1: not JSON"),
        ("i.jsonl", lambda file: file.write_bytes(b"\xff\xfe{"), "i.jsonl: not UTF-8"),
        ("j.csv", lambda file: write_csv(file, [{"query": "q", "document": "d"}]), "j.csv: column 'profile'"),
        ("k.csv", lambda file: file.write_text("query,profile,document\nq,p\n"), "k.csv:2: column 'document'"),
        ("l.csv", lambda file: file.write_text("query,profile,document\nq,p,d,x\n"), "l.csv:2: more cells than the 3"),
        ("m.csv", lambda file: file.write_text('query,profile,document\nq,p,"d\n'), "not readable as CSV"),
        ("n.csv", lambda file: file.write_text(""), "n.csv: column 'query'"),
        ("o.xlsx", lambda file: file.write_bytes(b"PK"), "cannot tell what '.xlsx' holds"),
        ("p.parquet", lambda file: file, "p.parquet: does not exist"),
        ("q.csv", lambda file: file, "no such file"),
        ("r", lambda file: file.mkdir(), "empty directory"),
    ],
)
def test_pairs_that_break_the_contract_are_named(tmp_path: Path, name: str, write: Any, said: str) -> None:
    file = tmp_path / name
    write(file)
    with pytest.raises(InputError) as caught:
        read_pairs(file)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_pairs_are_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "pairs.parquet", USER_ROWS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"pairs.parquet: not readable as Parquet"):
        read_pairs(file)
