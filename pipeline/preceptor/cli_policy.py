"""The commands `preceptor policy lint`, `show` and `diff`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from preceptor.recipe import POLICY_DIR

_DIFF_EPILOG: Final = """\
examples:
  preceptor policy diff HEAD:policy/job_match policy/job_match              what is not committed yet
  preceptor policy diff HEAD~1:policy/job_match policy/job_match --root runs/demo
  preceptor policy diff old/job_match policy/job_match --json
"""


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the commands that check, show and compare policies."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, about, run in (
        ("lint", "check a policy; exit 1 where there are errors", _lint),
        ("show", "print a policy's dimensions, anchors and rule", _show),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("directory", type=Path, nargs="?", default=POLICY_DIR, help="default: the shipped policy")
        command.set_defaults(run=run)
    about = "say what changed between two versions of a policy; exit 1 where the version rose too little"
    compare = commands.add_parser(
        "diff",
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=_DIFF_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("before", metavar="A", help="a policy directory, or REVISION:DIRECTORY of git")
    compare.add_argument("after", metavar="B", help="likewise")
    compare.add_argument("--root", type=Path, help="also count what this runs directory holds and is stale by it")
    compare.add_argument("--json", action="store_true", help="for machines")
    compare.set_defaults(run=_diff)


def _lint(arguments: argparse.Namespace) -> int:
    from preceptor.policy import format_findings, lint

    findings = lint(arguments.directory)
    print(format_findings(findings))
    return int(any(finding.severity == "error" for finding in findings))


def _show(arguments: argparse.Namespace) -> int:
    from preceptor.policy import load_policy, show

    print(show(load_policy(arguments.directory)))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from preceptor.policy import diff, diff_json, diff_text, policy_at, staleness

    before, after = policy_at(arguments.before), policy_at(arguments.after)
    change = diff(before, after)
    stale = None if arguments.root is None else staleness(arguments.root, before, after, change)
    print(json.dumps(diff_json(change, stale), indent=2) if arguments.json else diff_text(change, stale))
    return int(not change.is_declared_enough)
