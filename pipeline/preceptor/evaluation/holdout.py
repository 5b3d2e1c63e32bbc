"""The sealed rows of a corpus, the logits stored for them, and how logits become scores, grades and probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from preceptor.contracts import IMPRESSIONS, NUM_GRADES, OVERALL, TEACHER_SCORES, iter_tables, read_table
from preceptor.errors import InputError, located
from preceptor.evaluation.metrics import Floats, gain


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What the corpus keeps sealed, and the train rows the baselines may learn from."""

    golden: pa.Table
    impressions: pa.Table
    train_impressions: pa.Table
    pairs: Path


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The stored logits of one model, looked up by pair and head."""

    file: Path

    @cached_property
    def table(self) -> pa.Table:
        return read_table(self.file, TEACHER_SCORES)

    def covers(self, head: str, pair_ids: pa.ChunkedArray) -> bool:
        """Whether there are logits of `head` for every one of the pairs."""
        known = self.table.filter(pc.equal(self.table["head"], head))["pair_id"]
        return bool(pc.all(pc.is_in(pair_ids, value_set=known.combine_chunks()), min_count=0).as_py())

    def of(self, head: str, pair_ids: pa.ChunkedArray) -> Floats:
        """Raw logits of `head`, (pairs, 5) for 'overall' and (pairs, 1) for an action; InputError where any lacks."""
        width = NUM_GRADES if head == OVERALL else 1
        rows = self.table.filter(pc.equal(self.table["head"], head))
        found = pc.index_in(pair_ids, value_set=rows["pair_id"].combine_chunks())
        if found.null_count:
            first = pair_ids.filter(pc.is_null(found))[0].as_py()
            missing = pc.count_distinct(pair_ids.filter(pc.is_null(found))).as_py()
            total = pc.count_distinct(pair_ids).as_py()
            raise InputError(
                f"{self.file}: no '{head}' logits for {missing} of {total} holdout pairs, the first {first}. "
                f"Delete {self.file.parent} and run the prediction again."
            )
        used = rows["logits"].take(found)
        values = pc.list_flatten(used).to_numpy().astype(np.float64)
        lengths_differ = pc.any(pc.not_equal(pc.list_value_length(used), width)).as_py()
        if lengths_differ or len(values) != width * len(used) or not np.isfinite(values).all():
            raise InputError(
                located(
                    f"head '{head}' needs {width} finite logits in every row, got others. Predict with a sound model.",
                    file=self.file,
                    column="logits",
                )
            )
        return values.reshape(-1, width)


def read_holdout(corpus: Path, golden: pa.Table) -> Holdout:
    """The sealed rows of a corpus directory, `golden` as it was opened; a table the source does not have is empty."""
    return Holdout(
        golden=golden.filter(pc.equal(golden["dimension"], OVERALL)),
        impressions=_read_rows(corpus / "impressions", IMPRESSIONS, split="holdout"),
        train_impressions=_read_rows(corpus / "impressions", IMPRESSIONS, split="train"),
        pairs=corpus / "pairs",
    )


def expected_gain(logits: Floats) -> Floats:
    """Ranking score of each row of (pairs, 5) grade logits: the expectation of 2^grade - 1.

    Sorting by expected gain maximises the expected DCG, which sorting by expected grade does not.
    """
    return softmax(logits) @ gain(np.arange(NUM_GRADES))


def cheapest_grade(logits: Floats) -> NDArray[np.int64]:
    """The grade of least expected quadratic cost, kappa's own cost: the expected grade, rounded (halves up)."""
    return np.floor(softmax(logits) @ np.arange(NUM_GRADES) + 0.5).astype(np.int64)


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis, same shape."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def action_prob(logits: Floats, propensity: Floats) -> Floats:
    """Probability of the action at a shown position: propensity * sigmoid(logit), examination times attraction."""
    return propensity * np.exp(-np.logaddexp(0, -logits))


def _read_rows(path: Path, schema: pa.Schema, *, split: str) -> pa.Table:
    if not any(path.glob("*.parquet")):
        return schema.empty_table()
    return pa.concat_tables(table.filter(pc.equal(table["split"], split)) for table in iter_tables(path, schema))
