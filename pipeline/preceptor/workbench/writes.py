"""Several policy files changed as one: all of them or none, whatever dies in between, and nobody else meanwhile.

What is to be written stands in a journal first. Whoever opens the policy next finishes what a killed process began.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from preceptor.contracts import content_id, whole_file
from preceptor.errors import PolicyError
from preceptor.policy import Finding, lint
from preceptor.policy.sealed import is_sealed

JOURNAL: Final = ".decision.pending"

Texts = Mapping[str, str]
"""New texts of a policy's files, by their path inside its directory."""


@contextmanager
def locked(policy: Path) -> Iterator[None]:
    """The policy's directory to oneself while the body runs, after finishing a write that was cut short."""
    # The directory itself is locked, so that no lock file turns up in a reviewer's `git status`.
    handle = os.open(policy, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        recover(policy)
        yield
    finally:
        os.close(handle)


def write_all(policy: Path, texts: Texts) -> None:
    """Write `texts` below `policy`: after a crash at any point, `recover` leaves all of them written or none."""
    steps = {name: {"before": _hash_of(policy / name), "after": text} for name, text in texts.items()}
    with whole_file(policy / JOURNAL) as sink:
        sink.write(json.dumps(steps, ensure_ascii=False).encode())
    recover(policy)


def recover(policy: Path) -> None:
    """Finish the write that the journal tells of, if there is one.

    PolicyError where a file was edited after the write was cut short: nobody's text is overwritten.
    """
    journal = policy / JOURNAL
    if not journal.is_file():
        return
    steps = json.loads(journal.read_text(encoding="utf-8"))
    found = {name: _hash_of(policy / name) for name in steps}
    for name, step in steps.items():
        if found[name] not in (step["before"], content_id(step["after"])):
            raise PolicyError(
                f"{policy / name}: edited while a decision was being written. Apply what {journal} says by hand, "
                "then delete that file."
            )
    for name, step in steps.items():
        if found[name] != content_id(step["after"]):
            with whole_file(policy / name) as sink:
                sink.write(step["after"].encode())
    journal.unlink()


def new_errors(policy: Path, texts: Texts) -> tuple[Finding, ...]:
    """The errors that lint would find with `texts` in place and does not find now; their files are below `policy`.

    What is sealed now is in neither: lint reads it later, at the next run.
    """
    known = Counter(_place_free(finding, policy) for finding in lint(policy) if finding.severity == "error")
    with tempfile.TemporaryDirectory(prefix="preceptor-staged-") as folder:
        staged = Path(folder) / policy.name
        shutil.copytree(policy, staged, ignore=_left_out)
        for name, text in texts.items():
            (staged / name).write_bytes(text.encode())
        found = [finding for finding in lint(staged) if finding.severity == "error"]
        fresh = []
        for finding in found:
            key = _place_free(finding, staged)
            if known[key]:
                known[key] -= 1
            else:
                fresh.append(Finding(**{**vars(finding), "file": policy / finding.file.relative_to(staged)}))
    return tuple(fresh)


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What of `folder` the staged copy goes without: hidden files, and the sealed holdout."""
    return {name for name in names if name.startswith(".") or is_sealed(Path(folder) / name)}


def read_exact(file: Path) -> str:
    """The file's text with its line endings as they are; empty where there is no file."""
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        return ""


def _place_free(finding: Finding, folder: Path) -> tuple[str, str]:
    """A finding without its line numbers, which a change above it moves."""
    message = re.sub(r":\d+|line \d+", "", finding.message)
    return str(finding.file.relative_to(folder)), message


def _hash_of(file: Path) -> str | None:
    return content_id(read_exact(file)) if file.is_file() else None
