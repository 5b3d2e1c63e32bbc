"""Which grades of which dimensions nothing exercises: no worked example, no precedent, no golden pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.policy.document import DOCUMENT, RUBRIC, Policy
from preceptor.policy.findings import Finding, read_text, warning_at
from preceptor.policy.golden import GoldenPair
from preceptor.policy.prose import examples, sections
from preceptor.policy.toml_lines import TomlLines


def coverage_findings(policy: Policy, golden: Sequence[GoldenPair]) -> Iterator[Finding]:
    """One warning for each dimension with grades that stand on their anchor alone, at its place in the rubric or prose.

    Without any golden pair there is one finding for that already, and none here.
    """
    file = policy.path / RUBRIC
    lines = TomlLines.of(read_text(file))
    decided = [precedent.grades for precedent in policy.precedents]
    graded = [pair.grades for pair in golden]
    for name in (*policy.rubric.names, OVERALL):
        gaps = {"precedent": _missing(name, decided)} | ({"golden pair": _missing(name, graded)} if golden else {})
        listed = [f"no {what} at {_grades(grades)}" for what, grades in gaps.items() if grades]
        if listed:
            line = (
                lines.table("[aggregation]")
                if name == OVERALL
                else lines.table("[[dimension]]", policy.rubric.names.index(name))
            )
            what = OVERALL if name == OVERALL else f"dimension '{name}'"
            message = (
                f"{what} is not exercised everywhere: {', '.join(listed)}. Decide a case there, or have pairs graded."
            )
            yield warning_at(file, line or None, message)
    yield from _example_gaps(policy)


def _example_gaps(policy: Policy) -> Iterator[Finding]:
    for section in sections(policy.document):
        if section.dimension in policy.rubric.names:
            found, _ = examples(section)
            missing = _missing("grade", [{"grade": example.grade} for example in found])
            if missing:
                message = (
                    f"dimension '{section.dimension}' has no worked example at {_grades(missing)}. "
                    "Add list items: - **Grade N.** ..."
                )
                yield warning_at(policy.path / DOCUMENT, section.line, message)


def _missing(name: str, graded: Iterable[Mapping[str, int]]) -> list[int]:
    seen = {grades.get(name) for grades in graded}
    return [grade for grade in range(NUM_GRADES) if grade not in seen]


def _grades(grades: Sequence[int]) -> str:
    if len(grades) == NUM_GRADES:
        return "any grade"
    return f"grade{'s' if len(grades) > 1 else ''} {', '.join(map(str, grades))}"
