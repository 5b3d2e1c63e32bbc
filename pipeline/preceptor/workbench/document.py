"""The policy for reading: its document as safe HTML whose blocks know their lines, its sources, and lint's findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from preceptor.errors import PreceptorError
from preceptor.policy import Finding, lint
from preceptor.policy.document import DOCUMENT, GOLDEN_DIR, PRECEDENTS, RUBRIC
from preceptor.policy.jsonl import read_lines
from preceptor.workbench.golden_lines import SPLIT
from preceptor.workbench.writes import read_exact


def policy_json(policy: Path) -> dict[str, Any]:
    """The document rendered, rubric.toml by lines, the precedents, and the findings that may be shown.

    A finding at a golden line of another split than calibration is only counted: the holdout is not to be looked at.
    """
    try:
        findings: tuple[Finding, ...] = lint(policy)
        broken = None
    except PreceptorError as error:
        findings, broken = (), str(error)
    shown = [finding for finding in findings if _may_be_shown(finding, policy)]
    precedents = [
        {"line": line, **raw} for line, raw, fault in read_lines(read_exact(policy / PRECEDENTS)) if fault is None
    ]
    return {
        "html": rendered(read_exact(policy / DOCUMENT)),
        "rubric": read_exact(policy / RUBRIC).splitlines(),
        "precedents": precedents,
        "files": {"document": DOCUMENT, "rubric": RUBRIC, "precedents": PRECEDENTS},
        "findings": [_finding_json(finding, policy) for finding in shown],
        "num_hidden": len(findings) - len(shown),
        "broken": broken,
    }


def rendered(markdown: str) -> str:
    """`markdown` as HTML: tables yes, raw HTML and images no. Each block has its first line as ``data-line``."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.map is not None and token.nesting >= 0 and token.type != "inline":
            token.attrSet("data-line", str(token.map[0] + 1))
        for child in token.children or ():
            if child.type == "link_open":
                child.attrSet("rel", "noreferrer noopener")
    return str(parser.renderer.render(tokens, parser.options, {}))


def _may_be_shown(finding: Finding, policy: Path) -> bool:
    if finding.line is None or not finding.file.is_relative_to(policy / GOLDEN_DIR):
        return True
    lines = read_exact(finding.file).split("\n")
    try:
        content = json.loads(lines[finding.line - 1])
    except (ValueError, IndexError):
        return False
    return isinstance(content, dict) and content.get("split") == SPLIT


def _finding_json(finding: Finding, policy: Path) -> dict[str, Any]:
    inside = finding.file.is_relative_to(policy)
    return {
        "file": str(finding.file.relative_to(policy)) if inside else finding.file.name,
        "line": finding.line,
        "severity": finding.severity,
        "message": finding.message,
    }
