"""A policy as plain text for a terminal."""

from __future__ import annotations

from collections import Counter

from preceptor.contracts import SPLITS
from preceptor.policy.document import GOLDEN_DIR, Policy
from preceptor.policy.golden import golden_files, read_golden
from preceptor.policy.prompts import num_tokens_about
from preceptor.policy.rubric import Dimension


def show(policy: Policy) -> str:
    """The policy's version, grades, dimensions with anchors, aggregation, and counts of precedents and golden pairs."""
    rubric = policy.rubric
    grades = ", ".join(f"{grade} {name}" for grade, name in enumerate(rubric.grade_names))
    num_words = len(policy.document.split())
    blocks = [
        f"{rubric.name} {policy.version}\nprose: {num_words:,} words\ngrades: {grades}",
        *(_dimension_text(policy, dimension) for dimension in rubric.dimensions),
        _aggregation_text(policy),
        f"precedents: {len(policy.precedents)}, shown to the judge: {', '.join(rubric.shown) or 'none'}\n"
        f"golden: {_golden_text(policy)}",
    ]
    return "\n\n".join(blocks)


def _dimension_text(policy: Policy, dimension: Dimension) -> str:
    tokens = num_tokens_about(policy, dimension.name)
    head = f"{dimension.name}: {dimension.title} (weight {dimension.weight:g}, prompt about {tokens} tokens)"
    anchors = (f"  {grade}  {anchor}" for grade, anchor in enumerate(dimension.anchors))
    return "\n".join([head, f"  {dimension.question}", *anchors])


def _aggregation_text(policy: Policy) -> str:
    caps = (f"  {cap.dimension} {_up_to(cap.at_most)}: overall {_up_to(cap.overall)}" for cap in policy.rubric.caps)
    return "\n".join(["overall: weighted mean of the dimensions, halves round down, then caps", *caps])


def _up_to(grade: int) -> str:
    return "0" if grade == 0 else f"at most {grade}"


def _golden_text(policy: Policy) -> str:
    files = golden_files(policy.path / GOLDEN_DIR)
    pairs, findings = read_golden(files, policy.rubric)
    if not files:
        return "none yet"
    counts = Counter(pair.pair["split"] for pair in pairs)
    graders = Counter(pair.grader_id for pair in pairs)
    by_split = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    by_grader = ", ".join(f"{grader} {count}" for grader, count in sorted(graders.items()))
    broken = f"; {len(findings)} findings, see preceptor policy lint" if findings else ""
    return f"{len(pairs)} pairs ({by_split}; graded by {by_grader}){broken}"
