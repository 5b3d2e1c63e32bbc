"""Who may grade: the list a policy declares, and how Label Studio's users are told apart."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from preceptor.errors import InputError, PolicyError
from preceptor.policy.document import RUBRIC
from preceptor.policy.findings import read_text

CONSTRUCTED: Final = "market-truth"
"""The grader id of grades that follow from the synthetic market's own attributes: nobody's judgement."""

JOINT: Final = "+"
"""Joins the names of those who settled on a grade together; so no name holds it."""


def declared_graders(policy: Path) -> tuple[str, ...]:
    """The people among `listed_graders`: all but the market."""
    return tuple(name for name in listed_graders(policy) if name != CONSTRUCTED)


def listed_graders(policy: Path) -> tuple[str, ...]:
    """``[golden] graders`` of the policy's rubric.toml, in its order: whose grades count; empty where anybody's do.

    PolicyError where the list is not one of names, or a name holds '+'.
    """
    file = policy / RUBRIC
    try:
        golden = tomllib.loads(read_text(file)).get("golden", {})
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{file}: not valid TOML: {error}. preceptor policy lint says where.") from error
    names = golden.get("graders", []) if isinstance(golden, dict) else golden
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise PolicyError(f"{file}: [golden] graders must be a list of names, got {names!r}. Write: graders = [...]")
    joined = next((name for name in names if JOINT in name), None)
    if joined is not None:
        raise PolicyError(f"{file}: [golden] graders: '{joined}' holds '{JOINT}', which joins two names. Rename it.")
    return tuple(names)


def choose_graders(policy: Path, given: Iterable[str] | None) -> tuple[str, ...]:
    """The graders of a new round: those `given`, or else all declared.

    PolicyError where there are fewer than two, one stands twice, or one is not declared by a policy that declares any.
    """
    listed, declared = listed_graders(policy), declared_graders(policy)
    chosen = tuple(given) if given is not None else declared
    # A list of nobody but the market is a list too: golden of anybody else would be refused in the end.
    unknown = [name for name in chosen if listed and name not in declared]
    if unknown:
        raise PolicyError(
            f"unknown grader '{unknown[0]}'. {policy / RUBRIC} declares: {', '.join(listed)}. "
            "Mend it, or add it to [golden] graders."
        )
    if len(set(chosen)) < len(chosen) or any(not name or JOINT in name for name in chosen):
        raise PolicyError(f"graders must be different names without '{JOINT}', got: {', '.join(chosen)}.")
    if len(chosen) < 2:
        raise PolicyError(
            f"every pair is graded by two people, got {len(chosen)} ({', '.join(chosen) or 'nobody'}). "
            f"Give --graders a,b or declare [golden] graders in {policy / RUBRIC}."
        )
    return chosen


def undeclared(people: Iterable[str], declared: Iterable[str]) -> str | None:
    """The first of `people` that a policy which declares graders does not name; None where all may grade.

    One of `people` may be several who settled a grade together, joined by '+'.
    """
    known = set(declared)
    names = (name for together in people for name in together.split(JOINT))
    return next((name for name in names if known and name not in known), None)


def parse_users(text: str | None) -> dict[str, str]:
    """Label Studio's user ids, or e-mail addresses, with the graders they are, from ``1=kim,2=lee``."""
    users: dict[str, str] = {}
    for part in text.split(",") if text else ():
        user, _, name = (piece.strip() for piece in part.partition("="))
        if not user or not name or user in users:
            raise InputError(f"--users: '{part}' in '{text}' is not ID=NAME with every id once. Write: 1=kim,2=lee")
        users[user] = name
    return users
