"""Golden pairs: graded by people, or constructed with known truth, and never shown to a judge.

One JSON object to a line; a directory may hold any number of ``*.jsonl`` files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from preceptor.contracts import GOLDEN, OVERALL, SPLITS, make_pair, rows_to_table
from preceptor.errors import PolicyError
from preceptor.policy.document import PRECEDENTS, RUBRIC, Policy
from preceptor.policy.findings import Finding, error_at, read_text, refuse
from preceptor.policy.jsonl import grade_problems, key_problems, read_lines
from preceptor.policy.precedents import Precedent
from preceptor.policy.rubric import Rubric
from preceptor.policy.sealed import is_sealed
from preceptor.policy.similar import words_of

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS: Final = ("document", "slice", "split", "grader_id", "policy_version")
_KEYS: Final = ("query", "profile", "grades", "reason", *_TEXTS)


@dataclass(frozen=True, kw_only=True)
class GoldenPair:
    """One line of a golden file: `pair` is its PAIRS row."""

    file: Path
    line: int
    pair: Mapping[str, str]
    grades: Mapping[str, int]
    grader_id: str
    reason: str | None
    policy_version: str


def load_golden(path: Path, policy: Policy) -> pa.Table:
    """A GOLDEN table, one row for each pair and graded dimension, in the files' order with the rubric's order inside.

    `path` is a directory of ``*.jsonl`` files or one of them. PolicyError with file and line where a line breaks its
    contract, is graded by nobody the rubric declares, stands twice, or is a precedent, or a query stands in two splits.
    """
    files = golden_files(path)
    if not files:
        raise PolicyError(f"{path}: no golden *.jsonl file here. Generate or add one, or check the path.")
    pairs, findings = read_golden(files, policy.rubric)
    refuse((*findings, *precedent_leaks(pairs, policy.precedents)))
    order = (*policy.rubric.names, OVERALL)
    return rows_to_table((row for pair in pairs for row in _rows(pair, order)), GOLDEN)


def golden_files(path: Path) -> tuple[Path, ...]:
    """The golden files at `path`, sorted by name; none where there is nothing.

    Of a folder, those that are sealed now are left out: what tunes a judge sees train and calibration.
    """
    if path.is_file():
        return (path,)
    return tuple(file for file in sorted(path.glob("*.jsonl")) if not is_sealed(file))


def read_golden(files: Iterable[Path], rubric: Rubric) -> tuple[tuple[GoldenPair, ...], tuple[Finding, ...]]:
    """The golden pairs that can be read, and what is wrong with the others and among them."""
    pairs: list[GoldenPair] = []
    findings: list[Finding] = []
    for file in files:
        for line, raw, broken in read_lines(read_text(file)):
            problems = [broken] if broken else list(_problems(raw, rubric))
            findings += [error_at(file, line, message) for message in problems]
            if not problems:
                pairs.append(_golden_pair(raw, file, line))
    return tuple(pairs), (*findings, *_duplicates(pairs), *_split_leaks(pairs))


def _problems(raw: Mapping[str, Any], rubric: Rubric) -> Iterator[str]:
    yield from key_problems(raw, required=_KEYS, texts=_TEXTS, may_be_empty=("query", "profile"))
    if not isinstance(raw.get("reason"), str | None):
        yield f"'reason' must be text or null, got {raw['reason']!r}."
    if isinstance(raw.get("split"), str) and raw["split"] not in SPLITS:
        yield f"unknown split '{raw['split']}'. Splits are {', '.join(SPLITS)}."
    grader = raw.get("grader_id")
    # Two who agreed, or were adjudicated, stand together: ann+lee.
    unknown = set(grader.split("+")) - {*rubric.graders} if rubric.graders and isinstance(grader, str) else set()
    if unknown:
        declared = ", ".join(rubric.graders)
        yield f"unknown grader '{min(unknown)}'. {RUBRIC} declares: {declared}. Mend it, or add it to [golden] graders."
    yield from grade_problems(raw, rubric, required=(OVERALL,))


def _golden_pair(raw: Mapping[str, Any], file: Path, line: int) -> GoldenPair:
    return GoldenPair(
        file=file,
        line=line,
        pair=make_pair(raw["query"], raw["profile"], raw["document"], slice=raw["slice"], split=raw["split"]),
        grades=raw["grades"],
        grader_id=raw["grader_id"],
        reason=raw["reason"],
        policy_version=raw["policy_version"],
    )


def precedent_leaks(pairs: Iterable[GoldenPair], precedents: Iterable[Precedent]) -> tuple[Finding, ...]:
    """An error at each golden pair that is a precedent too, whatever its case, spacing and punctuation."""
    decided = {words_of(item.query, item.profile, item.document): item for item in precedents}
    findings = []
    for pair in pairs:
        same = decided.get(words_of(pair.pair["query"], pair.pair["profile"], pair.pair["document"]))
        if same is not None:
            place = f"'{same.id}' ({PRECEDENTS}:{same.line})"
            message = f"golden pair is also precedent {place}, which a judge may be shown. Remove one of them."
            findings.append(error_at(pair.file, pair.line, message))
    return tuple(findings)


def _duplicates(pairs: Iterable[GoldenPair]) -> Iterator[Finding]:
    first: dict[str, GoldenPair] = {}
    for pair in pairs:
        before = first.setdefault(pair.pair["pair_id"], pair)
        if before is not pair:
            message = f"the same pair stands at {before.file.name}:{before.line}. Settle on one and remove the other."
            yield error_at(pair.file, pair.line, message)


def _split_leaks(pairs: Iterable[GoldenPair]) -> Iterator[Finding]:
    first: dict[str, GoldenPair] = {}
    for pair in pairs:
        before = first.setdefault(pair.pair["query_id"], pair)
        if before.pair["split"] != pair.pair["split"]:
            yield error_at(
                pair.file,
                pair.line,
                f"query '{pair.pair['query']}' is in split {pair.pair['split']}, but in {before.pair['split']} at "
                f"{before.file.name}:{before.line}. A query has one split: move one of them.",
            )


def _rows(pair: GoldenPair, order: tuple[str, ...]) -> Iterator[dict[str, object]]:
    for dimension in order:
        if dimension in pair.grades:
            yield {
                **pair.pair,
                "dimension": dimension,
                "grade": pair.grades[dimension],
                "grader_id": pair.grader_id,
                "reason": pair.reason,
                "policy_version": pair.policy_version,
            }
