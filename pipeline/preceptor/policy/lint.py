"""Everything a reviewer of a policy should know before merging it, each with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from preceptor.contracts import OVERALL
from preceptor.policy.document import GOLDEN_DIR, RUBRIC, Policy, read_policy
from preceptor.policy.findings import Finding, read_text, warning_at
from preceptor.policy.golden import golden_files, read_golden
from preceptor.policy.lint_coverage import coverage_findings
from preceptor.policy.lint_document import document_findings
from preceptor.policy.lint_golden import golden_findings
from preceptor.policy.lint_precedents import precedent_findings
from preceptor.policy.prompts import num_tokens_about, prompt_parts
from preceptor.policy.toml_lines import TomlLines

MAX_ANCHOR_WORDS: Final = 18

PROTECTED: Final = re.compile(
    r"\b(age[ds]?|young(er)?|old(er)?|elderly|gender|sex|male|female|m[ae]n|wom[ae]n|races?|racial|ethnic\w*|skin|"
    r"nationalit\w*|native|citizen\w*|immigra\w*|religio\w*|church|muslim|christian|jewish|hindu|pregnan\w*|"
    r"married|marital|parent\w*|child|children|disab\w*|health\w*|gay|lesbian|transgender|union member|photo\w*)\b",
    re.IGNORECASE,
)
"""Words for protected attributes and their commonest proxies: in an anchor they ask a judge to grade on one."""

_NUM_PARTS_NAMED: Final = 3


def lint(policy_dir: Path) -> tuple[Finding, ...]:
    """What is wrong with the policy in `policy_dir`, by file and line; nothing where it is clean.

    Errors break a rule that code relies on; warnings want a reviewer's eye. PolicyError only where a file is missing or
    unreadable.
    """
    policy, findings = read_policy(policy_dir)
    if policy is None:
        return findings
    golden, unreadable = read_golden(golden_files(policy_dir / GOLDEN_DIR), policy.rubric)
    checks: tuple[Iterable[Finding], ...] = (
        findings,
        _rubric_findings(policy),
        document_findings(policy),
        precedent_findings(policy),
        unreadable,
        golden_findings(policy, golden),
        coverage_findings(policy, golden),
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
    if not policy.rubric.graders:
        message = 'no graders are declared, so anybody\'s grades count as golden. Add: [golden] graders = ["..."]'
        yield warning_at(file, lines.table("[prompt]") or None, message)
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
        parts = sorted(prompt_parts(policy).items(), key=lambda part: -part[1])[:_NUM_PARTS_NAMED]
        longest = ", ".join(f"{name} {length}" for name, length in parts)
        yield warning_at(
            file,
            lines.key(lines.table("[prompt]"), "max_tokens"),
            f"prompts longer than max_tokens = {limit}: {listed}. Their longest parts: {longest}. "
            "Shorten anchors or show fewer precedents.",
        )
