"""A policy as it was: from a directory, or from a git revision of one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from preceptor.errors import PolicyError
from preceptor.policy.document import FILES, Policy, load_policy, policy_of
from preceptor.policy.findings import refuse


def policy_at(place: str) -> Policy:
    """The policy in the directory `place`, or as git has it where `place` is ``REVISION:DIRECTORY``.

    The revision is read from the repository of the working directory; nothing is checked out. Messages name its files
    as git does, such as ``HEAD~1:policy/job_match/rubric.toml:12``; `path` of such a policy is that name and no place
    on the disk. PolicyError where there is no such directory or revision, or the policy breaks a rule.
    """
    if Path(place).is_dir() or ":" not in place:
        return load_policy(Path(place))
    found, findings = policy_of({name: _show(place, name) for name in FILES}, Path(place))
    refuse(findings)
    assert found is not None, "a policy without findings is whole"
    return found


def _show(place: str, name: str) -> str:
    """The text of a file of the tree `place`, with its line breaks as `read_text` would give them."""
    shown = f"{place.rstrip('/')}/{name}"
    try:
        done = subprocess.run(["git", "cat-file", "blob", shown], capture_output=True, check=False)
    except OSError as error:
        raise PolicyError(
            f"{place}: git is needed to read a revision ({error.strerror}). Give two directories."
        ) from error
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"])[0]
        raise PolicyError(f"{shown}: no such file at that revision ({reason}). Write REVISION:DIRECTORY.")
    try:
        return done.stdout.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise PolicyError(f"{shown}: not UTF-8 at that revision. Compare with a later one.") from error
