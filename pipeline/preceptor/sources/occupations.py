"""O*NET occupations, ESCO postings and their crosswalk, read and turned into queries; splits go by occupation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import NUM_GRADES, SPLITS, content_id
from preceptor.errors import InputError, located
from preceptor.sources.tables import Kind, read_source

POSTINGS_FILE: Final = "esco_occupations.parquet"
OCCUPATIONS_FILE: Final = "onet_occupations.parquet"
CROSSWALK_FILE: Final = "crosswalk.parquet"

SLICES: Final = ("title_description", "reported_title", "alternate_title")

CALIBRATION_SHARE: Final = 0.1
"""At least this share of the train occupations calibrates instead, by whole SOC minor groups."""

NUM_ALTERNATE_TITLES: Final = 1
"""Weak train queries for each train occupation: an alternate title stands for one of its specialities only."""

DOCUMENT_WORDS: Final = 50
PROFILE_WORDS: Final = 70

_FEW_WORDS: Final = 25  # a description this short leaves room for the posting's other titles
_PREPARATION: Final = {1: "little or no", 2: "some", 3: "medium", 4: "considerable", 5: "extensive"}


@dataclass(frozen=True, kw_only=True)
class Posting:
    """An ESCO occupation. `text` is what retrieval reads, `document` what a model is shown, `names` are its titles and
    `group` its ISCO-08 unit group."""

    key: str
    text: str
    document: str
    names: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Occupation:
    """A judged O*NET occupation; `grades` holds the postings relevant to it, by ESCO URI, each above 0."""

    code: str
    title: str
    description: str
    job_zone: int | None
    reported_titles: tuple[str, ...]
    alternate_titles: tuple[str, ...]
    split: str
    grades: Mapping[str, int]
    tasks: tuple[str, ...] = ()

    @property
    def titles(self) -> frozenset[str]:
        """Every title it goes by, folded for comparison."""
        return frozenset(fold(title) for title in (self.title, *self.reported_titles, *self.alternate_titles))


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query with its profile; `text` is what retrieval searches with."""

    occupation: Occupation
    slice: str
    query: str
    profile: str
    text: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its member does: the occupation's tasks, where there is a profile."""
        return self.occupation.tasks if self.profile else ()


def fold(title: str) -> str:
    """`title` in lower case with single spaces: equal for titles that differ only there."""
    return " ".join(title.casefold().split())


def cut_words(text: str, num_words: int) -> str:
    """The first `num_words` words of `text`, with an ellipsis where more followed."""
    words = text.split()
    return " ".join(words[:num_words]) + (" …" if len(words) > num_words else "")


def posting_document(title: str, description: str, alternate_titles: Sequence[str]) -> str:
    """What a model is shown of a posting: title, description cut to 50 words, and other titles where it is short."""
    text = f"{title} — {cut_words(description, DOCUMENT_WORDS)}"
    if len(description.split()) < _FEW_WORDS and alternate_titles:
        text += f" Also called: {', '.join(alternate_titles[:3])}."
    return text


def occupation_profile(description: str, job_zone: int | None) -> str:
    """A member in words, assembled from an occupation: its description cut to 70 words, and its preparation."""
    text = cut_words(description, PROFILE_WORDS)
    if job_zone is None:
        return text
    return f"{text} Preparation: {_PREPARATION[job_zone]} (job zone {job_zone} of 5)."


def read_postings(data: Path) -> tuple[Posting, ...]:
    """Every ESCO occupation of the folder `data` as a posting, in file order."""
    rows = read_source(
        data / POSTINGS_FILE,
        {"uri": "text", "title": "text", "description": "text", "alt_titles": "list of text", "isco_group": "text"},
    )
    return tuple(
        Posting(
            key=row["uri"],
            text=f"{row['title']}. {row['description']}",
            document=posting_document(row["title"], row["description"], row["alt_titles"]),
            names=tuple(_distinct([row["title"], *row["alt_titles"]])),
            group=row["isco_group"],
        )
        for row in rows
    )


def read_occupations(data: Path, postings: Sequence[Posting]) -> tuple[Occupation, ...]:
    """The O*NET occupations of the folder `data` that the crosswalk judges, by code, with split and grades.

    The file's dev occupations become holdout; train occupations become train or calibration. Raises InputError where
    the crosswalk names an unknown occupation, posting, grade or split, or puts one occupation in two splits.
    """
    file = data / OCCUPATIONS_FILE
    rows = read_source(
        file,
        {
            "soc": "text",
            "title": "text",
            "description": "text",
            "job_zone": "integer",
            "core_tasks": "list of text",
            "reported_titles": "list of text",
            "alternate_titles": "list of text",
        },
        nullable=("job_zone",),
    )
    for row in rows:
        if row["job_zone"] not in (None, *_PREPARATION):
            raise InputError(
                located(f"a job zone is 1 to 5 or null, got {row['job_zone']}. Mend it.", file=file, column="job_zone")
            )
    known = {row["soc"] for row in rows}
    grades, file_splits = _read_crosswalk(data / CROSSWALK_FILE, known, {posting.key for posting in postings})
    splits = split_occupations(file_splits)
    return tuple(
        Occupation(
            code=row["soc"],
            title=row["title"],
            description=row["description"],
            job_zone=row["job_zone"],
            reported_titles=tuple(row["reported_titles"]),
            alternate_titles=tuple(row["alternate_titles"]),
            split=splits[row["soc"]],
            tasks=tuple(row["core_tasks"]),
            grades=grades[row["soc"]],
        )
        for row in sorted(rows, key=lambda row: row["soc"])
        if row["soc"] in grades
    )


def split_occupations(file_splits: Mapping[str, str]) -> dict[str, str]:
    """The split of each occupation code: dev becomes holdout, and train is parted by SOC minor group.

    Whole minor groups (the first four characters of a code) move from train to calibration, in the order of their
    hash, until at least CALIBRATION_SHARE of the train occupations has moved: near twins, such as 29-1141.01 and
    29-1141.02, never stand on both sides, just as in the file's own dev split.
    """
    train = [code for code, split in file_splits.items() if split == "train"]
    calibration: set[str] = set()
    num_moved = 0
    for group in sorted({code[:4] for code in train}, key=lambda group: content_id("calibration", group)):
        if num_moved >= CALIBRATION_SHARE * len(train):
            break
        calibration.add(group)
        num_moved += sum(code[:4] == group for code in train)
    return {
        code: "holdout" if split == "dev" else "calibration" if code[:4] in calibration else "train"
        for code, split in file_splits.items()
    }


def build_queries(
    occupations: Sequence[Occupation], *, seed: int, num_alternate_titles: int = NUM_ALTERNATE_TITLES
) -> tuple[tuple[Query, ...], list[dict[str, Any]]]:
    """(queries, REJECTS rows): for each occupation its title with a profile, and one seeded reported title without.

    Train occupations add `num_alternate_titles` seeded alternate titles. No query text stands for two occupations.
    A title that any holdout occupation goes by is never a calibration or train query, nor one of a calibration
    occupation a train query; holdout chooses first.
    """
    queries: list[Query] = []
    rejects: list[dict[str, Any]] = []
    taken: dict[str, str] = {}
    reserved: set[str] = set()
    for split in reversed(SPLITS):
        here = [occupation for occupation in occupations if occupation.split == split]
        for slice_ in SLICES:
            for occupation in here:
                chosen = _choose_titles(occupation, slice_, taken, reserved, seed, num_alternate_titles)
                for title in chosen:
                    taken[fold(title)] = occupation.code
                    queries.append(_query(occupation, slice_, title))
                if not chosen and (slice_ != "alternate_title" or (split == "train" and num_alternate_titles)):
                    rejects.append(_reject(occupation, slice_))
        reserved.update(title for occupation in here for title in occupation.titles)
    return tuple(queries), rejects


def _choose_titles(
    occupation: Occupation,
    slice_: str,
    taken: Mapping[str, str],
    reserved: set[str],
    seed: int,
    num_alternate_titles: int,
) -> list[str]:
    titles, limit = {
        "title_description": ((occupation.title,), 1),
        "reported_title": (occupation.reported_titles, 1),
        "alternate_title": (occupation.alternate_titles, num_alternate_titles if occupation.split == "train" else 0),
    }[slice_]
    free = [title for title in _distinct(titles) if fold(title) not in taken and fold(title) not in reserved]
    random.Random(f"{seed} {slice_} {occupation.code}").shuffle(free)
    return free[:limit]


def _distinct(titles: Sequence[str]) -> Iterator[str]:
    yield from {fold(title): title for title in titles if title.strip()}.values()


def _query(occupation: Occupation, slice_: str, title: str) -> Query:
    described = slice_ == "title_description"
    return Query(
        occupation=occupation,
        slice=slice_,
        query=title,
        profile=occupation_profile(occupation.description, occupation.job_zone) if described else "",
        text=f"{title}. {occupation.description}" if described else title,
    )


def _reject(occupation: Occupation, slice_: str) -> dict[str, Any]:
    titles = {
        "title_description": (occupation.title,),
        "reported_title": occupation.reported_titles,
        "alternate_title": occupation.alternate_titles,
    }[slice_]
    return {
        "id": f"{occupation.code} {slice_}",
        "stage": "jobmatch",
        "reason": "titles of other occupations" if any(title.strip() for title in titles) else "no title",
        "raw": "; ".join(titles)[:2000],
        "attempt": 1,
    }


def _read_crosswalk(file: Path, codes: set[str], keys: set[str]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    columns: dict[str, Kind] = {"soc": "text", "esco_uri": "text", "grade": "integer", "split": "text"}
    grades: dict[str, dict[str, int]] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(read_source(file, columns), start=1):
        code, key, grade, split = row["soc"], row["esco_uri"], row["grade"], row["split"]
        wrong = {
            "soc": None if code in codes else f"{code} is not in onet_occupations.parquet",
            "esco_uri": None if key in keys else f"{key} is not in esco_occupations.parquet",
            "grade": None if 0 < grade < NUM_GRADES else f"a grade is 1 to {NUM_GRADES - 1}, got {grade}",
            "split": None if split in ("train", "dev") else f"a split is train or dev, got '{split}'",
        }
        wrong["split"] = wrong["split"] or (
            None if splits.setdefault(code, split) == split else f"{code} stands in train and in dev"
        )
        for column, message in wrong.items():
            if message is not None:
                raise InputError(located(f"row {number}: {message}. Mend it.", file=file, column=column))
        of_code = grades.setdefault(code, {})
        of_code[key] = max(grade, of_code.get(key, 0))
    return grades, splits
