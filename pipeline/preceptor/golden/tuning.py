"""What a tuner of judges may read of golden: rows of train and calibration, never of the holdout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from preceptor.contracts import GOLDEN, conform, parquet_files, read_parquet
from preceptor.errors import SealedError
from preceptor.policy.sealed import is_sealed, sealed

Split = Literal["train", "calibration"]

TUNING_SPLITS: Final[tuple[Split, ...]] = ("train", "calibration")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def tuning_rows(golden: Path, *, split: Split) -> pa.Table:
    """GOLDEN rows of `split` in the Parquet file or folder `golden`; none where it has none.

    There is no argument for which a holdout row comes back: SealedError for another split. Files that are sealed now
    are not opened. InputError where a file is missing or breaks the contract.
    """
    if split not in TUNING_SPLITS:
        raise SealedError(
            f"{golden}: split '{split}' is not for tuning. Ask for one of: {', '.join(TUNING_SPLITS)}; only the gate "
            "opens the holdout."
        )
    tables = [conform(read_parquet(file), GOLDEN, where=file) for file in parquet_files(golden) if not is_sealed(file)]
    chosen = [table.filter(pc.equal(table["split"], split)) for table in tables]
    return pa.concat_tables([GOLDEN.empty_table(), *chosen])


def without_holdout(stage: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`stage` run with the holdout of its keyword arguments `policy` (a folder) and `corpus` (a Record) sealed."""

    @functools.wraps(stage)
    def run(*positional: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        given: dict[str, Any] = dict(named)
        with sealed(given["policy"], given["corpus"].path):
            return stage(*positional, **named)

    return run
