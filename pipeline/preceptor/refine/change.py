"""A winner as a change that people review: the policy's files with a new version, and the difference as a patch."""

from __future__ import annotations

import datetime
import difflib
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from preceptor.contracts import whole_file
from preceptor.errors import PolicyError, located
from preceptor.policy import Policy, load_policy
from preceptor.policy.document import DOCUMENT, PRECEDENTS, RUBRIC
from preceptor.policy.rubric import read_rubric
from preceptor.policy.toml_lines import TomlLines
from preceptor.refine import candidate

POLICY: Final = "policy"
PATCH: Final = "change.diff"

_WIDTH: Final = 110
_HEADING: Final = re.compile(r"#+\s.*change\s?log", re.IGNORECASE)
_ENTRY: Final = re.compile(r"[-*]\s+\**(\d+\.\d+\.\d+)")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A policy's files before and after, by name."""

    version: str
    before: Mapping[str, str]
    after: Mapping[str, str]

    @property
    def patch(self) -> str:
        """A unified diff, to be applied inside the policy's directory with ``patch -p1``."""
        parts = []
        for name, text in self.after.items():
            old, new = self.before[name].splitlines(keepends=True), text.splitlines(keepends=True)
            parts += list(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}"))
        return "".join(part if part.endswith("\n") else f"{part}\n\\ No newline at end of file\n" for part in parts)


def change_of(policy: Policy, texts: candidate.Texts, *, why: str) -> Change:
    """The files of `policy` saying `texts`, under the next version, with a line in the changelog that says `why`.

    Other precedents shown are a minor version; other words, or another order, a patch. PolicyError where a value in
    rubric.toml cannot be found to be replaced.
    """
    rubric = policy.rubric
    version = next_version(rubric.version, policy, texts)
    before = {name: (policy.path / name).read_text(encoding="utf-8") for name in (RUBRIC, DOCUMENT, PRECEDENTS)}
    wanted = candidate.policy_with(policy, texts).rubric
    text = _replaced(before[RUBRIC], 0, "version", _quoted(version), policy.path / RUBRIC)
    for key, old, new, value in (
        ("instructions", rubric.instructions, wanted.instructions, _paragraphs(wanted.instructions)),
        ("overall_question", rubric.overall_question, wanted.overall_question, _quoted(wanted.overall_question)),
        ("precedents", rubric.shown, wanted.shown, f"[{', '.join(map(_quoted, wanted.shown))}]"),
    ):
        if old != new:
            start = TomlLines.of(text).table("[prompt]")
            text = _replaced(text, start, key, value, policy.path / RUBRIC)
    written, _ = read_rubric(text, policy.path / RUBRIC)
    if written != replace(wanted, version=version):
        message = "the new values cannot be written here and read back the same. Write them in by hand."
        raise PolicyError(located(f"{message} They stand in candidates.md.", file=policy.path / RUBRIC))
    document = with_entry(before[DOCUMENT], version=version, old=rubric.version, why=why)
    after = {RUBRIC: text, DOCUMENT: document, PRECEDENTS: before[PRECEDENTS]}
    return Change(version=version, before=before, after=after)


def next_version(version: str, policy: Policy, texts: candidate.Texts) -> str:
    """`version` with its minor number raised where `texts` show other precedents, else its patch number."""
    major, minor, patch = map(int, version.split("."))
    shown = candidate.policy_with(policy, texts).rubric.shown
    return f"{major}.{minor + 1}.0" if set(shown) != set(policy.rubric.shown) else f"{major}.{minor}.{patch + 1}"


def with_entry(document: str, *, version: str, old: str, why: str) -> str:
    """`document` with an entry for `version` beside those of its changelog, or with a changelog where it has none.

    Where the head says ``Version OLD`` it says the new one.
    """
    lines = document.split("\n")
    heading = next((number for number, line in enumerate(lines) if _HEADING.match(line)), None)
    entry = textwrap.wrap(
        f"- **{version}.** {why}",
        _WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, line in enumerate(lines[:heading]):
        if f"Version {old}" in line:
            lines[number] = line.replace(f"Version {old}", f"Version {version}", 1)
            break
    if heading is None:
        return "\n".join(["\n".join(lines).rstrip("\n"), "", "## Changelog", "", *entry, ""])
    end = next((n for n in range(heading + 1, len(lines)) if lines[n].startswith("#")), len(lines))
    entries = [(n, found[1]) for n in range(heading, end) if (found := _ENTRY.match(lines[n]))]
    if not entries:
        return "\n".join([*lines[: heading + 1], "", *entry, *lines[heading + 1 :]])
    ordered = [tuple(map(int, number.split("."))) for _, number in entries]
    at = entries[0][0] if ordered == sorted(ordered, reverse=True) else _end_of(lines, entries[-1][0], end)
    return "\n".join([*lines[:at], *entry, *lines[at:]])


def write_change(change: Change, out: Path) -> None:
    """Writes the changed files to ``out/policy`` and the difference to ``out/change.diff``.

    Golden is measured with a policy and no part of it, so that it is not copied.
    """
    for name, text in change.after.items():
        _write(out / POLICY / name, text)
    load_policy(out / POLICY)
    _write(out / PATCH, change.patch)


def apply_change(out: Path, policy_dir: Path, *, policy_version: str) -> str:
    """What was done, after writing the change in `out` into `policy_dir`.

    PolicyError, and nothing written, where that policy is no longer `policy_version`, the one the change was made of.
    """
    now = load_policy(policy_dir).version
    after = load_policy(out / POLICY)
    if now == after.version:
        return f"{policy_dir}: is {now} already"
    if now != policy_version:
        raise PolicyError(
            f"{policy_dir}: is {now} by now, and the change was made of {policy_version}. "
            f"Merge {out / PATCH} by hand, or refine again."
        )
    # The document first: between the two renames the policy still judges as it did.
    for name in (DOCUMENT, RUBRIC):
        _write(policy_dir / name, (out / POLICY / name).read_text(encoding="utf-8"))
    return f"{policy_dir}: {now} is {after.version} now"


def entry_text(model: str, *, changed: str, statistic: str, gains: str) -> str:
    """What a changelog entry says of a refinement."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{today}: {changed}, by `preceptor refine` with {model}. Overall {statistic} on two sets of calibration "
        f"queries it was not made from: {gains}. No anchor changed."
    )


def _end_of(lines: list[str], start: int, end: int) -> int:
    """The line after the entry that begins at `start`."""
    return next((n for n in range(start + 1, end) if not lines[n].startswith(" ")), end)


def _replaced(text: str, start: int, key: str, value: str, file: Path) -> str:
    """`text` with `value` for `key` of the table that begins at line `start`; comments and all else stay."""
    lines = text.split("\n")
    first = TomlLines.of(text).key(start, key)
    if first is None or first == start or not re.match(rf"\s*{re.escape(key)}\s*=", lines[first - 1]):
        raise PolicyError(located(f"'{key}' is not written as `{key} = ...` on a line of its own.", file=file))
    for last in range(first, len(lines) + 1):
        try:
            tomllib.loads("\n".join(lines[first - 1 : last]))
        except tomllib.TOMLDecodeError:
            continue
        return "\n".join([*lines[: first - 1], f"{key} = {value}", *lines[last:]])
    raise PolicyError(located(f"'{key}' has no end.", file=file, line=first))


def _quoted(text: str) -> str:
    """`text` as a basic TOML string on one line."""
    return f'"{_escaped(text)}"'


def _paragraphs(text: str) -> str:
    """`text` as a multi-line TOML string whose long lines are folded where a backslash swallows the break."""
    folded = [
        " \\\n".join(textwrap.wrap(_escaped(line), _WIDTH, break_long_words=False, break_on_hyphens=False)) or ""
        for line in text.split("\n")
    ]
    return '"""\n' + "\n".join(folded) + '"""'


def _escaped(text: str) -> str:
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", plain)


def _write(file: Path, text: str) -> None:
    with whole_file(file) as sink:
        sink.write(text.encode())
