"""What the tests of the real sources share: small files in the layouts of O*NET, ESCO and headlines, all made up."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preceptor.recipe import JobmatchConfig

TRADES = ("baker", "welder", "nurse", "clerk", "pilot", "tailor", "miner", "florist", "roofer", "tutor")
NUM_POSTINGS = 60
SHARED_TITLE = "Shop Hand"


def word_encoder(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of hashed words: similarity is word overlap, the same on every machine."""
    vectors = np.full((len(texts), 64), 1e-3, dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.casefold().replace(".", " ").split():
            vectors[row, zlib.crc32(word.encode()) % 64] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def posting_rows() -> list[dict[str, Any]]:
    return [
        {
            "uri": f"esco/{index}",
            "title": f"{TRADES[index % 10]} of kind {index}",
            "alt_titles": [f"{TRADES[index % 10]} {index} a", f"{TRADES[index % 10]} {index} b"],
            "description": f"The {TRADES[index % 10]} works with material {index} and tool {index // 3}.",
            "isco_group": f"{index % 10 // 2}{index % 3}1{index % 10}",
        }
        for index in range(NUM_POSTINGS)
    ]


def occupation_rows() -> list[dict[str, Any]]:
    """Twenty occupations in ten minor groups of two; the last two groups are the file's dev split."""
    rows = []
    for index in range(20):
        trade = TRADES[index // 2]
        rows.append(
            {
                "soc": f"{11 + index // 2}-1{index % 2:03d}.00",
                "title": f"{trade.title()}s, Class {index}",
                "description": f"Work as a {trade} with material {index}.",
                "job_zone": None if index == 3 else index % 5 + 1,
                "core_tasks": [] if index == 5 else [f"Handle material {index}.", f"Keep tool {index // 3} sharp."],
                "reported_titles": []
                if index == 4
                else [f"{trade} {word} {index}" for word in ("lead", "hand", "aide")],
                "alternate_titles": [SHARED_TITLE, f"{trade} helper {index}", f"{trade} trainee {index}"],
            }
        )
    rows[0]["reported_titles"] = [SHARED_TITLE]
    return rows


def crosswalk_rows() -> list[dict[str, Any]]:
    rows = []
    for index, occupation in enumerate(occupation_rows()):
        for offset, grade in ((0, 3), (10, 2), (20, 1), (25, 1)):
            rows.append(
                {
                    "soc": occupation["soc"],
                    "esco_uri": f"esco/{(index // 2 + offset) % NUM_POSTINGS}",
                    "match_type": "exactMatch",
                    "grade": grade,
                    "split": "dev" if index >= 16 else "train",
                }
            )
    return rows


def write_data(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = pa.list_(pa.string())
    tables = {
        "esco_occupations": (
            posting_rows(),
            {
                "uri": pa.large_string(),
                "title": pa.string(),
                "alt_titles": texts,
                "description": pa.string(),
                "isco_group": pa.string(),
            },
        ),
        "onet_occupations": (
            occupation_rows(),
            {
                "soc": pa.large_string(),
                "title": pa.string(),
                "description": pa.string(),
                "job_zone": pa.int8(),
                "reported_titles": texts,
                "alternate_titles": texts,
                "core_tasks": texts,
            },
        ),
        "crosswalk": (
            crosswalk_rows(),
            {
                "soc": pa.string(),
                "esco_uri": pa.string(),
                "match_type": pa.string(),
                "grade": pa.int64(),
                "split": pa.string(),
            },
        ),
    }
    for name, (rows, types) in tables.items():
        table = pa.Table.from_pylist(changes.get(name, rows), schema=pa.schema(list(types.items())))
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def config_for(data: Path, **changes: Any) -> JobmatchConfig:
    settings = {"num_candidates": 25, "num_train_candidates": 8, "num_requests": 300, "num_holdout_requests": 100}
    return JobmatchConfig(data=data, **{**settings, **changes})


def headline_row(test_id: str, headline: str, impressions: int, clicks: int, split: str) -> dict[str, Any]:
    return {
        "test_id": test_id,
        "headline": headline,
        "impressions": impressions,
        "clicks": clicks,
        "split": split,
    }


def write_headlines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "headline_tests.parquet")
    return folder
