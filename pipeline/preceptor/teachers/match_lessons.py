"""What a matching teacher learns from: judged train queries and weak titles, and which of them a fold may see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preceptor.contracts import content_id, read_table
from preceptor.sources.occupations import fold
from preceptor.sources.tables import DOCUMENTS, JUDGEMENTS, QUERIES, WEAK_PAIRS
from preceptor.teachers.match_adapter import Lesson


@dataclass(frozen=True, kw_only=True)
class AskedFor:
    """A query of the corpus, with its grades by posting row."""

    group: tuple[str, str]
    occupation: str
    slice: str
    split: str
    text: str
    typed: str
    grades: Mapping[int, int]
    tasks: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All that has to be embedded of it."""
        return self.text, self.typed, *self.tasks

    @property
    def described(self) -> bool:
        """Whether a profile says more than was typed."""
        return self.text != self.typed


@dataclass(frozen=True, kw_only=True)
class Title:
    """A text to learn from, the gains of the postings it asks for by their rows, and where it comes from.

    `occupation` is empty where no occupation goes by it.
    """

    text: str
    gains: Mapping[int, float]
    source: str
    occupation: str


def read_documents(corpus: Path) -> list[dict[str, Any]]:
    """The postings of a job-matching corpus (DOCUMENTS rows), in their order."""
    rows: list[dict[str, Any]] = read_table(corpus / "documents", DOCUMENTS).to_pylist()
    return rows


def read_asked(corpus: Path, rows: Mapping[str, int], splits: Iterable[str]) -> list[AskedFor]:
    """The queries of `splits`; `rows` maps a document_key to its posting's row."""
    grades: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for judged in read_table(corpus / "judgements", JUDGEMENTS).to_pylist():
        grades[judged["query_id"], judged["profile_id"]][rows[judged["document_key"]]] = judged["grade"]
    wanted = frozenset(splits)
    return [
        AskedFor(
            group=(query["query_id"], query["profile_id"]),
            occupation=query["occupation"],
            slice=query["slice"],
            split=query["split"],
            text=query["text"],
            typed=query["query"],
            grades=grades[query["query_id"], query["profile_id"]],
            tasks=tuple(query["tasks"]),
        )
        for query in read_table(corpus / "queries", QUERIES).to_pylist()
        if query["split"] in wanted
    ]


def read_titles(corpus: Path, rows: Mapping[str, int], asked: Sequence[AskedFor]) -> list[Title]:
    """The judged queries `asked` and every weak title of the corpus; pass train queries."""
    titles = [
        Title(
            text=query.text,
            gains={row: 2.0**grade - 1 for row, grade in query.grades.items()},
            source="judged",
            occupation=query.occupation,
        )
        for query in asked
        if query.grades
    ]
    if not (corpus / "weak_pairs").is_dir():
        return titles
    weak: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for pair in read_table(corpus / "weak_pairs", WEAK_PAIRS).to_pylist():
        key = (pair["query"], pair["source"], pair["occupation"])
        weak[key][rows[pair["document_key"]]] = 2.0 ** pair["grade"] - 1
    return titles + [
        Title(text=text, gains=gains, source=source, occupation=occupation)
        for (text, source, occupation), gains in weak.items()
    ]


def folds_of(asked: Sequence[AskedFor], num_folds: int) -> list[frozenset[str]]:
    """The occupations of `asked` in `num_folds` parts, whole SOC minor groups each (a code's first four characters)."""
    codes = {query.occupation for query in asked}
    groups = sorted({code[:4] for code in codes}, key=lambda group: content_id("fold", group))
    number = {group: index % num_folds for index, group in enumerate(groups)}
    return [frozenset(code for code in codes if number[code[:4]] == fold_) for fold_ in range(num_folds)]


def without_fold(titles: Sequence[Title], unseen: frozenset[str]) -> list[Title]:
    """The titles that tell nothing of the occupations `unseen`, just as weak pairs tell nothing of the holdout.

    Left out is what they go by, whoever else goes by it too. Titles of postings stay, relevant to them or not.
    """
    theirs = {fold(title.text) for title in titles if title.occupation in unseen}
    return [title for title in titles if title.occupation not in unseen and fold(title.text) not in theirs]


def to_lessons(titles: Sequence[Title], row_of: Mapping[str, int]) -> list[Lesson]:
    """The titles for an adapter; `row_of` maps a text to the row of its embedding."""
    return [Lesson(row=row_of[title.text], gains=title.gains, source=title.source) for title in titles]


def grade_matrix(asked: Sequence[AskedFor], num_postings: int) -> npt.NDArray[np.int8]:
    """The grade of every posting for every query, [queries, num_postings]; 0 where the crosswalk lists none."""
    grades = np.zeros((len(asked), num_postings), dtype=np.int8)
    for number, query in enumerate(asked):
        for row, grade in query.grades.items():
            grades[number, row] = grade
    return grades
