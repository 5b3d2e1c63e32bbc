"""The one way to the holdout's grades: verified against the policy's seal, and written down.

What tunes a judge never imports this module (tests/unit/test_architecture.py).
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import GOLDEN, iter_tables
from preceptor.errors import StageFailed
from preceptor.policy.seal import Seal, seal_of, verify
from preceptor.policy.sealed import HOLDOUT


def open_holdout(golden: Path, *, policy: Path | None, log: Path, why: str) -> pa.Table:
    """GOLDEN rows of the holdout in the folder `golden`, after a line in `log` that says who opened it, when and why.

    With `policy`, the folder that sealed it, PolicyError where the rows are not those that were sealed; without, the
    golden rows are a source's own and have no seal. StageFailed where the line cannot be written: an opening that
    nobody can see does not happen.
    """
    rows = read_holdout_rows(golden)
    found = seal_of(rows)
    if policy is not None:
        verify(policy, found)
    _write_down(log, found, why=why, seal="verified" if policy is not None else "none")
    return rows


def read_holdout_rows(golden: Path) -> pa.Table:
    """GOLDEN rows of the holdout in a folder of Parquet files; none where it has no file."""
    if not any(golden.glob("*.parquet")):
        return GOLDEN.empty_table()
    return pa.concat_tables(table.filter(pc.equal(table["split"], HOLDOUT)) for table in iter_tables(golden, GOLDEN))


def _write_down(log: Path, found: Seal, *, why: str, seal: str) -> None:
    line = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "who": _who(),
        "why": why,
        "rows": found.rows,
        "num_pairs": found.num_pairs,
        "seal": seal,
    }
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of two openings at once do not mix.
        with log.open("ab", buffering=0) as sink:
            sink.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
            os.fsync(sink.fileno())
    except OSError as error:
        raise StageFailed(
            f"{log}: the opening of the holdout cannot be written down ({error.strerror}). Mend the folder's rights."
        ) from error


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
