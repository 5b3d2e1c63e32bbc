"""Weak pairs: titles and the postings they are said to belong to, for a teacher to start from.

Nobody judged them. A title of a train occupation is taken to ask for all postings of that occupation, though it may
name one speciality of it; a posting's other titles are ESCO's own; a vacancy's title was given its ESCO title by a
program. What a held-out occupation goes by never asks here. Which postings are relevant to one decides nothing: to
leave out the titles of these would tell a learner which they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from preceptor.recipe import WeakSource
from preceptor.sources.occupations import POSTINGS_FILE, Occupation, fold
from preceptor.sources.tables import read_source

VACANCIES_FILE: Final = "vacancy_titles.parquet"
NEEDED_FILES: Final[dict[WeakSource, tuple[str, ...]]] = {"vacancy": (VACANCIES_FILE,)}
"""Files of the data folder that a source reads beside those of every job-matching corpus."""

_BEST: Final = 3
"""The grade of a pair that is weak but leaves nothing open: a posting's own other title."""


def held_out_titles(occupations: Sequence[Occupation]) -> frozenset[str]:
    """What every occupation that is not for training goes by, folded."""
    return frozenset(title for occupation in occupations if occupation.split != "train" for title in occupation.titles)


def weak_pairs(
    sources: Sequence[WeakSource], *, data: Path, occupations: Sequence[Occupation]
) -> Iterator[dict[str, Any]]:
    """WEAK_PAIRS rows of `sources`, read from the folder `data` where they are not in `occupations`.

    Each (title, posting) comes once for an occupation, and once without.
    """
    held = held_out_titles(occupations)
    seen: set[tuple[str, str, str]] = set()
    for source in sources:
        for row in _ROWS[source](data, occupations):
            asked = (fold(row["query"]), row["document_key"], row["occupation"])
            if not asked[0] or asked[0] in held or asked in seen:
                continue
            seen.add(asked)
            yield {**row, "source": source}


def _occupation_titles(data: Path, occupations: Sequence[Occupation]) -> Iterator[dict[str, Any]]:
    """Every title of a train occupation, with each posting relevant to it."""
    for occupation in occupations:
        if occupation.split == "train":
            for title in (occupation.title, *occupation.reported_titles, *occupation.alternate_titles):
                for key, grade in occupation.grades.items():
                    yield _row(title, key, grade, occupation.code)


def _posting_titles(data: Path, occupations: Sequence[Occupation]) -> Iterator[dict[str, Any]]:
    rows = read_source(data / POSTINGS_FILE, {"uri": "text", "alt_titles": "list of text"})
    for row in rows:
        for title in row["alt_titles"]:
            yield _row(title, row["uri"], _BEST, "")


def _vacancies(data: Path, occupations: Sequence[Occupation]) -> Iterator[dict[str, Any]]:
    """Titles of real vacancies whose ESCO title, assigned by a program, is one posting's and no other's."""
    titles = read_source(data / POSTINGS_FILE, {"uri": "text", "title": "text"})
    counts = Counter(fold(row["title"]) for row in titles)
    keys = {fold(row["title"]): row["uri"] for row in titles if counts[fold(row["title"])] == 1}
    for row in read_source(data / VACANCIES_FILE, {"vacancy_title": "text", "esco_title": "text"}):
        key = keys.get(fold(row["esco_title"]))
        if key is not None:
            yield _row(row["vacancy_title"], key, _BEST, "")


def _row(query: str, key: str, grade: int, occupation: str) -> dict[str, Any]:
    return {"query": query, "document_key": key, "grade": grade, "occupation": occupation}


_ROWS: Final = {
    "occupation_title": _occupation_titles,
    "posting_title": _posting_titles,
    "vacancy": _vacancies,
}
