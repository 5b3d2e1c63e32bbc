"""Everything a reviewer of a policy should know before merging it, each with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

from preceptor.contracts import OVERALL, content_id, split_of
from preceptor.policy.document import DOCUMENT, GOLDEN_DIR, PRECEDENTS, RUBRIC, Policy, read_policy
from preceptor.policy.findings import Finding, error_at, read_text, warning_at
from preceptor.policy.golden import GoldenPair, golden_files, read_golden
from preceptor.policy.prompts import num_tokens_about
from preceptor.policy.rubric import Rubric
from preceptor.policy.toml_lines import TomlLines

MAX_ANCHOR_WORDS: Final = 18

PROTECTED: Final = re.compile(
    r"\b(age[ds]?|young(er)?|old(er)?|elderly|gender|sex|male|female|m[ae]n|wom[ae]n|races?|racial|ethnic\w*|skin|"
    r"nationalit\w*|native|citizen\w*|immigra\w*|religio\w*|church|muslim|christian|jewish|hindu|pregnan\w*|"
    r"married|marital|parent\w*|child|children|disab\w*|health\w*|gay|lesbian|transgender|union member|photo\w*)\b",
    re.IGNORECASE,
)
"""Words for protected attributes and their commonest proxies: in an anchor they ask a judge to grade on one."""


def lint(policy_dir: Path) -> tuple[Finding, ...]:
    """What is wrong with the policy in `policy_dir`, by file and line; nothing where it is clean.

    Errors break a rule that code relies on; warnings want a reviewer's eye. PolicyError only where a file is missing or
    unreadable.
    """
    policy, findings = read_policy(policy_dir)
    if policy is None:
        return findings
    golden, golden_findings = read_golden(golden_files(policy_dir / GOLDEN_DIR), policy.rubric)
    checks: tuple[Iterable[Finding], ...] = (
        findings,
        _rubric_findings(policy),
        _document_findings(policy),
        _precedent_findings(policy),
        golden_findings,
        _golden_findings(policy, golden),
    )
    listed = [finding for check in checks for finding in check]
    return tuple(sorted(listed, key=lambda finding: (str(finding.file), finding.line or 0, finding.severity)))


def _rubric_findings(policy: Policy) -> Iterator[Finding]:
    file = policy.path / RUBRIC
    lines = TomlLines.of(read_text(file))
    for index, dimension in enumerate(policy.rubric.dimensions):
        start = lines.table("[[dimension]]", index)
        texts = {"question": dimension.question, **{str(grade): text for grade, text in enumerate(dimension.anchors)}}
        for key, text in texts.items():
            what = f"dimension '{dimension.name}': {'anchor ' if key.isdigit() else ''}{key}"
            if found := PROTECTED.search(text):
                message = f"{what} says '{found.group()}', a protected attribute or proxy. Grade the work instead."
                yield warning_at(file, lines.key(start, key), message)
            if len(text.split()) > MAX_ANCHOR_WORDS:
                message = f"{what} has {len(text.split())} words; graders remember {MAX_ANCHOR_WORDS}. Shorten it."
                yield warning_at(file, lines.key(start, key), message)
    yield from _prompt_findings(policy, file, lines)


def _prompt_findings(policy: Policy, file: Path, lines: TomlLines) -> Iterator[Finding]:
    known = {precedent.id for precedent in policy.precedents}
    if not known.issuperset(policy.rubric.shown):
        return
    limit = policy.rubric.max_prompt_tokens
    lengths = {name: num_tokens_about(policy, name) for name in (*policy.rubric.names, OVERALL)}
    long = {name: length for name, length in lengths.items() if length > limit}
    if long:
        listed = ", ".join(f"{name} about {length}" for name, length in long.items())
        message = f"prompts longer than max_tokens = {limit}: {listed}. Shorten anchors or show fewer precedents."
        yield warning_at(file, lines.key(lines.table("[prompt]"), "max_tokens"), message)


def _document_findings(policy: Policy) -> Iterator[Finding]:
    file = policy.path / DOCUMENT
    sections = dict(_sections(policy.document))
    for name in sections:
        if name not in policy.rubric.names:
            yield error_at(file, sections[name][0], f"a section for '{name}', which {RUBRIC} lacks. Add or remove it.")
    for dimension in policy.rubric.dimensions:
        if dimension.name not in sections:
            heading = f"### {dimension.title} (`{dimension.name}`)"
            yield error_at(file, None, f"no section for dimension '{dimension.name}'. Add the heading: {heading}")
            continue
        start, lines = sections[dimension.name]
        for number, line in enumerate(lines, start):
            row = re.match(r"\|\s*(\d)\s*\|\s*(.*?)\s*\|\s*$", line)
            if row and dict(enumerate(dimension.anchors)).get(int(row.group(1))) != row.group(2):
                message = (
                    f"the table's grade {row.group(1)} differs from {RUBRIC}. Copy the anchor: one text, one meaning."
                )
                yield error_at(file, number, message)
    if policy.rubric.version not in policy.document:
        message = f"the changelog does not mention version {policy.rubric.version} of {RUBRIC}. Say what changed."
        yield warning_at(file, None, message)


def _sections(document: str) -> Iterator[tuple[str, tuple[int, list[str]]]]:
    """(dimension name, (line of its heading, its lines)) for each heading that ends in ``(`name`)``."""
    lines = document.splitlines()
    heads = [number for number, line in enumerate(lines, 1) if line.startswith("#")]
    for head, end in pairwise([*heads, len(lines) + 1]):
        named = re.search(r"\(`(\w+)`\)\s*$", lines[head - 1])
        if named:
            yield named.group(1), (head, lines[head - 1 : end - 1])


def _precedent_findings(policy: Policy) -> Iterator[Finding]:
    file = policy.path / PRECEDENTS
    for precedent in policy.precedents:
        if message := _breaks_rule(policy.rubric, precedent.grades):
            yield error_at(file, precedent.line, f"precedent '{precedent.id}': {message}")


def _breaks_rule(rubric: Rubric, grades: Mapping[str, int]) -> str | None:
    """How `grades` contradict the aggregation rule, or None where they follow it or leave a dimension ungraded."""
    if not grades.keys() >= set(rubric.names):
        return None
    derived = rubric.aggregate(grades)
    if derived == grades[OVERALL]:
        return None
    return f"overall is {grades[OVERALL]}, but the aggregation rule gives {derived}. Mend a grade, or the rule."


def _golden_findings(policy: Policy, golden: tuple[GoldenPair, ...]) -> Iterator[Finding]:
    folder = policy.path / GOLDEN_DIR
    if not golden:
        yield warning_at(folder, None, "no golden pairs yet: no judge can be calibrated. Generate or add some.")
        return
    precedents = {_plain(p.query, p.profile, p.document): p for p in policy.precedents}
    for pair in golden:
        if message := _breaks_rule(policy.rubric, pair.grades):
            yield error_at(pair.file, pair.line, message)
        row = pair.pair
        if same := precedents.get(_plain(row["query"], row["profile"], row["document"])):
            message = (
                f"golden pair is also precedent '{same.id}' ({PRECEDENTS}:{same.line}), which a judge may be shown."
            )
            yield error_at(pair.file, pair.line, f"{message} Remove one of them.")
    yield from _at_first(
        [pair for pair in golden if pair.pair["split"] != split_of(pair.pair["query_id"])],
        "declare another split than their query's hash gives; the unlabelled pool may hold them in that one",
    )
    yield from _at_first(
        [pair for pair in golden if pair.policy_version.split("+")[0] != policy.rubric.version],
        f"were graded under another version than {policy.rubric.version}; check that they still hold",
    )


def _at_first(pairs: list[GoldenPair], what: str) -> Iterator[Finding]:
    """One warning at the first of `pairs`, saying how many there are: a list of thousands would hide the rest."""
    if pairs:
        yield warning_at(pairs[0].file, pairs[0].line, f"{len(pairs)} golden pairs, this the first, {what}.")


def _plain(*texts: str) -> str:
    """A key that ignores case and spacing, so that a copy with either changed is still the same case."""
    return content_id(*(" ".join(text.casefold().split()) for text in texts))
