"""The machine-read part of a policy: dimensions, anchors, and how the overall grade follows from them."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.errors import PolicyError
from preceptor.policy.findings import Finding, error_at
from preceptor.policy.toml_lines import TomlLines, toml_problem

RULE: Final = "weighted-mean-half-down-then-caps"
"""The one aggregation rule this version knows, as it must be written in ``[aggregation] rule``."""

_SEMVER = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}")
_NAME = re.compile(r"[a-z][a-z_]*")
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "rubric.toml": ("name", "version", "grades", "prompt", "aggregation", "dimension", "golden"),
    "[golden]": ("graders",),
    "[prompt]": ("instructions", "overall_question", "precedents", "max_tokens"),
    "[aggregation]": ("rule", "caps"),
    "a cap": ("dimension", "at_most", "overall"),
    "[[dimension]]": ("name", "title", "question", "weight", "anchors"),
}
_OPTIONAL: Final = ("golden",)

Problems = Iterator[tuple[int | None, str]]


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One question a grader answers. `anchors[grade]` says what each of the five grades means."""

    name: str
    title: str
    question: str
    anchors: tuple[str, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class Cap:
    """Where the grade of `dimension` is `at_most` this, the overall grade is at most `overall`."""

    dimension: str
    at_most: int
    overall: int


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """A checked rubric.toml. `grade_names[grade]` names the five grades; `shown` holds the ids of the precedents that
    every prompt carries, in order; `max_prompt_tokens` is the length above which lint warns; `graders` are those whose
    golden grades count, empty where the rubric declares none and anybody's do."""

    name: str
    version: str
    grade_names: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    caps: tuple[Cap, ...]
    instructions: str
    overall_question: str
    shown: tuple[str, ...]
    max_prompt_tokens: int
    graders: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions' names, in the rubric's order."""
        return tuple(dimension.name for dimension in self.dimensions)

    def dimension(self, name: str) -> Dimension:
        """The dimension of this name; PolicyError naming those there are."""
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        raise PolicyError(f"unknown dimension '{name}'. The rubric has: {', '.join(self.names)}.")

    def aggregate(self, grades: Mapping[str, int]) -> int:
        """The overall grade: the weighted mean of all dimensions with halves rounded down, then the caps.

        Other keys, such as 'overall', are ignored. PolicyError where a dimension has no grade.
        """
        missing = ", ".join(name for name in self.names if name not in grades)
        if missing:
            raise PolicyError(f"the overall grade needs every dimension; no grade for {missing}. Grade it.")
        rated = {name: grades[name] for name in self.names}
        return min(self.rounded(self.weighted(rated)), *(self.cap(name, grade) for name, grade in rated.items()))

    def weighted(self, grades: Mapping[str, int]) -> int:
        """The sum of `grades`, some or all of the dimensions', each times its weight as a whole number."""
        return sum(self._whole_weights[name] * grade for name, grade in grades.items())

    def rounded(self, weighted: int) -> int:
        """The grade nearest to the mean that `weighted`, the sum over all dimensions, stands for; a half goes down."""
        total = self._total_weight
        # ceil(weighted / total - 1/2), in whole numbers.
        return -((total - 2 * weighted) // (2 * total))

    def cap(self, dimension: str, grade: int) -> int:
        """The highest overall grade that the caps allow where `dimension` has `grade`."""
        found = [cap.overall for cap in self.caps if cap.dimension == dimension and grade <= cap.at_most]
        return min(found, default=NUM_GRADES - 1)

    def contradiction(self, grades: Mapping[str, int]) -> str | None:
        """How `grades` contradict the aggregation rule; None where they follow it or leave a dimension ungraded."""
        if not grades.keys() >= {*self.names, OVERALL}:
            return None
        derived = self.aggregate(grades)
        if derived == grades[OVERALL]:
            return None
        return f"overall is {grades[OVERALL]}, but the aggregation rule gives {derived}. Mend a grade, or the rule."

    @cached_property
    def _whole_weights(self) -> Mapping[str, int]:
        """Each dimension's weight as a whole number, because a mean of exactly 2.5 must round down on every machine,
        whatever the weights. A weight is taken as it is written: 0.1 is a tenth, not the nearest binary fraction."""
        fractions = {dimension.name: Fraction(repr(dimension.weight)) for dimension in self.dimensions}
        shared = math.lcm(*(fraction.denominator for fraction in fractions.values()))
        return {name: int(fraction * shared) for name, fraction in fractions.items()}

    @cached_property
    def _total_weight(self) -> int:
        return sum(self._whole_weights.values())


def read_rubric(text: str, file: Path) -> tuple[Rubric | None, tuple[Finding, ...]]:
    """The rubric in `text` and what is wrong with it; None in place of the rubric where anything is."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return None, (error_at(file, *toml_problem(error, text)),)
    lines = TomlLines.of(text)
    findings = tuple(error_at(file, line, message) for line, message in _problems(raw, lines))
    return (None if findings else _build(raw)), findings


def _build(raw: Mapping[str, Any]) -> Rubric:
    prompt = raw["prompt"]
    return Rubric(
        name=raw["name"],
        version=raw["version"],
        grade_names=_by_grade(raw["grades"]),
        dimensions=tuple(
            Dimension(**{**item, "anchors": _by_grade(item["anchors"]), "weight": float(item["weight"])})
            for item in raw["dimension"]
        ),
        caps=tuple(Cap(**cap) for cap in raw["aggregation"]["caps"]),
        instructions=prompt["instructions"].strip(),
        overall_question=prompt["overall_question"],
        shown=tuple(prompt["precedents"]),
        max_prompt_tokens=prompt["max_tokens"],
        graders=tuple(raw.get("golden", {}).get("graders", ())),
    )


def _by_grade(texts: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(texts[str(grade)] for grade in range(NUM_GRADES))


def _problems(raw: Mapping[str, Any], lines: TomlLines) -> Problems:
    yield from _keys(raw, "rubric.toml", lines, 0)
    for key in ("name", "version"):
        yield from _text(raw, key, lines, 0)
    if isinstance(raw.get("version"), str) and not _SEMVER.fullmatch(raw["version"]):
        yield lines.key(0, "version"), f"version must be three numbers such as 1.0.0, got '{raw['version']}'."
    yield from _graded(raw, "grades", "[grades]", lines, lines.table("[grades]"))
    yield from _prompt_problems(raw.get("prompt", {}), lines)
    dimensions = raw.get("dimension", [])
    if not isinstance(dimensions, list) or not all(isinstance(item, dict) for item in dimensions) or not dimensions:
        yield lines.key(0, "dimension"), "dimensions are written as [[dimension]] tables, at least one. Add them."
        return
    for index, item in enumerate(dimensions):
        yield from _dimension_problems(item, lines, lines.table("[[dimension]]", index))
    names = [item.get("name") for item in dimensions]
    for index, name in enumerate(names):
        if name is not None and name in names[:index]:
            line = lines.key(lines.table("[[dimension]]", index), "name")
            yield line, f"two dimensions are named '{name}'. Rename or remove one."
    yield from _aggregation_problems(raw.get("aggregation", {}), names, lines)
    yield from _golden_problems(raw.get("golden", {}), lines)


def _keys(raw: Mapping[str, Any], table: str, lines: TomlLines, start: int) -> Problems:
    known = _KEYS[table]
    for key in known:
        if key not in raw and key not in _OPTIONAL:
            yield start or None, f"{table} has no '{key}'. Add it."
    for key in raw:
        if key not in known:
            yield lines.key(start, key), f"{table} has an unknown key '{key}'. Known: {', '.join(known)}."


def _text(raw: Mapping[str, Any], key: str, lines: TomlLines, start: int) -> Problems:
    if key in raw and not (isinstance(raw[key], str) and raw[key].strip()):
        yield lines.key(start, key), f"'{key}' must be text, got {raw[key]!r}."


def _graded(raw: Mapping[str, Any], key: str, owner: str, lines: TomlLines, start: int) -> Problems:
    """Problems of a table that must give one text to each of the five grades."""
    texts = raw.get(key)
    if texts is None:
        return
    if not isinstance(texts, dict):
        yield lines.key(start, key), f"{owner}: '{key}' must be a table of five texts, 0 to 4, got {texts!r}."
        return
    wanted = [str(grade) for grade in range(NUM_GRADES)]
    what = "anchor" if key == "anchors" else "name"
    for grade in wanted:
        if grade not in texts:
            yield start or None, f'{owner} has no {what} for grade {grade}. Add the line: {grade} = "...".'
    for grade, text in texts.items():
        if grade not in wanted:
            yield lines.key(start, grade), f"{owner} has an unknown grade '{grade}'. Grades are 0 to 4."
        elif not (isinstance(text, str) and text.strip()):
            yield lines.key(start, grade), f"{owner}: the {what} for grade {grade} must be text, got {text!r}."
        elif text in [texts.get(other) for other in wanted[: int(grade)]]:
            yield (
                lines.key(start, grade),
                f"{owner}: grade {grade} has the same {what} as a lower grade. Tell them apart.",
            )


def _prompt_problems(prompt: Any, lines: TomlLines) -> Problems:
    start = lines.table("[prompt]")
    if not isinstance(prompt, dict):
        yield lines.key(0, "prompt"), "[prompt] must be a table."
        return
    yield from _keys(prompt, "[prompt]", lines, start)
    for key in ("instructions", "overall_question"):
        yield from _text(prompt, key, lines, start)
    shown = prompt.get("precedents", [])
    if not isinstance(shown, list) or not all(isinstance(item, str) for item in shown):
        yield lines.key(start, "precedents"), f"'precedents' must be a list of precedent ids, got {shown!r}."
    limit = prompt.get("max_tokens", 1)
    if type(limit) is not int or limit < 1:
        yield lines.key(start, "max_tokens"), f"'max_tokens' must be a whole number above 0, got {limit!r}."


def _dimension_problems(item: Mapping[str, Any], lines: TomlLines, start: int) -> Problems:
    yield from _keys(item, "[[dimension]]", lines, start)
    for key in ("name", "title", "question"):
        yield from _text(item, key, lines, start)
    name = item.get("name")
    if isinstance(name, str) and (name == OVERALL or not _NAME.fullmatch(name)):
        yield lines.key(start, "name"), f"a dimension's name is lower case and not '{OVERALL}', got '{name}'."
    weight = item.get("weight", 1)
    if type(weight) not in (int, float) or not 0 < weight < math.inf:
        yield lines.key(start, "weight"), f"dimension '{name}': weight must be a number above 0, got {weight!r}."
    yield from _graded(item, "anchors", f"dimension '{name}'", lines, start)


def _aggregation_problems(aggregation: Any, names: list[Any], lines: TomlLines) -> Problems:
    start = lines.table("[aggregation]")
    if not isinstance(aggregation, dict):
        yield lines.key(0, "aggregation"), "[aggregation] must be a table."
        return
    yield from _keys(aggregation, "[aggregation]", lines, start)
    if aggregation.get("rule", RULE) != RULE:
        yield lines.key(start, "rule"), f"unknown aggregation rule '{aggregation['rule']}'. Known: {RULE}."
    caps = aggregation.get("caps", [])
    if not isinstance(caps, list) or not all(isinstance(cap, dict) for cap in caps):
        yield lines.key(start, "caps"), "'caps' must be a list of { dimension, at_most, overall }."
        return
    for index, cap in enumerate(caps):
        line = lines.item(start, "caps", index)
        for _, message in _keys(cap, "a cap", lines, start):
            yield line, message
        if "dimension" in cap and cap["dimension"] not in names:
            known = ", ".join(map(str, names))
            yield line, f"a cap names the unknown dimension '{cap['dimension']}'. The rubric has: {known}."
        for key in ("at_most", "overall"):
            if key in cap and not is_grade(cap[key]):
                yield line, f"a cap's '{key}' must be a grade, 0 to 4, got {cap[key]!r}."


def _golden_problems(golden: Any, lines: TomlLines) -> Problems:
    start = lines.table("[golden]")
    if not isinstance(golden, dict):
        yield lines.key(0, "golden"), "[golden] must be a table."
        return
    if not golden and not start:
        return
    yield from _keys(golden, "[golden]", lines, start)
    graders = golden.get("graders", ["-"])
    if not isinstance(graders, list) or not all(isinstance(item, str) and item.strip() for item in graders):
        yield lines.key(start, "graders"), f"'graders' must be a list of names, got {graders!r}."
    elif not graders or len({*graders}) < len(graders):
        rule = "must name each grader once, at least one"
        yield lines.key(start, "graders"), f"'graders' {rule}, got {graders!r}. Mend it, or remove the table."


def is_grade(value: object) -> bool:
    """Whether `value` is one of the five grades; True and 3.0 are not."""
    return type(value) is int and 0 <= value < NUM_GRADES
