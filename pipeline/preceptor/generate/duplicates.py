"""Repeats: equal texts, and near duplicates by MinHash over word triples (Broder 1997), from the library rensa.

One pass in the corpus's order, so that what stays is always the first of its kind. Memory holds what it takes to know a
text again: 128 hashes of 32 bits and its place in the library's index.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import REJECTS, content_id, iter_tables, rows_to_table, write_table
from preceptor.generate.screen import reject
from preceptor.generate.texts import TEXTS, write_ipc

EQUAL: Final = "equal text"
NEAR: Final = "near duplicate"

_NUM_HASHES: Final = 128
_SHINGLE_WORDS: Final = 3
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class DuplicateWork:
    """Drops repeats from each of `corpora`: from ``{source}/{corpus}/`` to ``{target}/{corpus}.arrow``."""

    corpora: tuple[str, ...]
    source: Path
    target: Path
    rejects: Path
    threshold: float
    seed: int

    def open(self) -> Callable[[int], Mapping[str, int]]:
        """Does the corpus that stands at `number`."""
        return partial(drop_repeats, work=self)


def drop_repeats(number: int, *, work: DuplicateWork) -> Counter[str]:
    """Counts of corpus `number`, named ``{corpus} kept`` and so on, after writing it and its rejects."""
    corpus = work.corpora[number]
    seen = Seen(threshold=work.threshold, seed=work.seed)
    tally: Counter[str] = Counter()

    def batches() -> Iterator[pa.RecordBatch]:
        for part, table in enumerate(iter_tables(work.source / corpus, TEXTS)):
            kept, rejects = [], []
            for row in table.to_pylist():
                repeats = seen.repeat_of(row["row"], row["text"])
                if repeats is None:
                    kept.append(row)
                else:
                    reason, first = repeats
                    rejects.append(reject(corpus, row["row"], "duplicates", reason, raw=f"of {corpus} row {first + 1}"))
            tally.update({"rows": table.num_rows, f"{corpus} kept": len(kept)})
            tally.update(f"{corpus} dropped {row['reason']}" for row in rejects)
            if rejects:
                file = work.rejects / f"duplicates-{corpus}-{part:06d}.parquet"
                write_table(rows_to_table(rejects, REJECTS), file, REJECTS)
            if kept:
                yield pa.RecordBatch.from_pylist(kept, schema=TEXTS)

    write_ipc(batches(), work.target / f"{corpus}.arrow", TEXTS)
    return tally


@dataclass(kw_only=True)
class Seen:
    """The texts met so far; from the estimated Jaccard similarity `threshold` on, a text repeats an earlier one."""

    threshold: float
    seed: int
    _equal: dict[str, int] = field(default_factory=dict)
    _near: Any = None

    def repeat_of(self, row: int, text: str) -> tuple[str, int] | None:
        """Why `text` is a repeat and of which row; None where it is new, and remembered as `row` from now on."""
        from rensa import RMinHash, RMinHashDeduplicator

        key = content_id(text)
        if key in self._equal:
            return EQUAL, self._equal[key]
        if self._near is None:
            self._near = RMinHashDeduplicator(self.threshold, _NUM_HASHES, True, seed=self.seed)
        sketch = RMinHash(num_perm=_NUM_HASHES, seed=self.seed)
        sketch.update(shingles(text))
        if not self._near.add(str(row), sketch):
            return NEAR, min(map(int, self._near.get_duplicates(sketch)))
        self._equal[key] = row
        return None


def shingles(text: str) -> list[str]:
    """The runs of three words of `text`, without case and punctuation; the whole text where it is shorter."""
    words = _WORD.findall(text.casefold())
    if len(words) <= _SHINGLE_WORDS:
        return [" ".join(words)]
    return [" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(len(words) - _SHINGLE_WORDS + 1)]
