"""The seal of a policy's holdout: a hash of its grades and their counts, which the gate compares with what it opens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from preceptor.contracts import OVERALL
from preceptor.errors import PolicyError
from preceptor.policy.document import GOLDEN_DIR
from preceptor.policy.sealed import HOLDOUT

if TYPE_CHECKING:
    import pyarrow as pa

SEAL: Final = "seal.json"


@dataclass(frozen=True, kw_only=True)
class Seal:
    """`rows` is the SHA-256 of every (pair, dimension, grade) of the holdout; `overall` counts its overall grades."""

    rows: str
    num_pairs: int
    num_queries: int
    num_grades: int
    slices: Mapping[str, int]
    overall: Mapping[str, int]


def seal_of(golden: pa.Table) -> Seal:
    """The seal of the holdout rows of a GOLDEN table; the same whatever their order, files or format."""
    names = ["pair_id", "query_id", "dimension", "grade", "slice", "split"]
    rows = [row for row in golden.select(names).to_pylist() if row["split"] == HOLDOUT]
    lines = sorted(f"{row['pair_id']}\t{row['dimension']}\t{row['grade']}\n" for row in rows)
    slices = {row["pair_id"]: row["slice"] for row in rows}
    return Seal(
        rows=hashlib.sha256("".join(lines).encode()).hexdigest(),
        num_pairs=len(slices),
        num_queries=len({row["query_id"] for row in rows}),
        num_grades=len(rows),
        slices=dict(sorted(Counter(slices.values()).items())),
        overall=dict(sorted(Counter(str(row["grade"]) for row in rows if row["dimension"] == OVERALL).items())),
    )


def read_seal(policy: Path) -> Seal:
    """The seal of the policy in `policy`; PolicyError where there is none or it cannot be read."""
    file = policy / GOLDEN_DIR / SEAL
    try:
        return Seal(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise PolicyError(
            f"{file}: the holdout has no seal to compare with. Write it: preceptor golden census --policy {policy}"
        ) from None
    except (OSError, TypeError, ValueError) as error:
        raise PolicyError(
            f"{file}: not a seal ({error}). Write it again: preceptor golden census --policy {policy}"
        ) from error


def verify(policy: Path, found: Seal) -> None:
    """Return where `found` is what the policy in `policy` sealed; PolicyError with what differs where it is not."""
    seal = read_seal(policy)
    if found == seal:
        return
    before, after = dataclasses.asdict(seal), dataclasses.asdict(found)
    names = [name for name in before if name != "rows" and before[name] != after[name]]
    counts = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in names) or "the counts are the same"
    raise PolicyError(
        f"{policy / GOLDEN_DIR / SEAL}: the holdout is not the one that was sealed: rows {seal.rows[:8]} -> "
        f"{found.rows[:8]}; {counts}. Where golden has grown since the corpus was made, give the run a new --version; "
        f"where a change is meant and reviewed, run preceptor golden census --policy {policy}; else bring it back."
    )
