"""The points of a bench that compares students of one finished run: which are asked for, and where each is kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def require_known(names: Sequence[str], points: Collection[str]) -> None:
    """Nothing, where every name is one of `points`; else ends the command with one line that lists them."""
    unknown = sorted(set(names) - set(points))
    if unknown:
        raise SystemExit(f"no point {', '.join(unknown)}; points: {', '.join(points)}.")


def slug(name: str) -> str:
    """The directory of a point."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
