"""Every exception Preceptor raises on purpose.

Each carries one line: the rule, the value seen, the way out. The command line prints that line and exits with
``exit_code``; anything that is not a PreceptorError is a defect and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class PreceptorError(Exception):
    """Base of every error a user can mend."""

    exit_code = 2


class InputError(PreceptorError):
    """A file, column, row or request that breaks its contract."""


class RecipeError(PreceptorError):
    """A recipe whose values cannot work together."""


class PolicyError(PreceptorError):
    """A policy document, rubric, precedent or golden line that breaks a rule of the policy room."""


class DriftError(PreceptorError):
    """A finished stage whose recorded config or inputs differ from the ones asked for now."""


class JudgeRefused(PreceptorError):
    """A judge under its agreement floor: it may not label."""

    exit_code = 1


class RejectCeilingError(PreceptorError):
    """More rows rejected than the recipe allows."""

    exit_code = 1


class SpendCeilingError(PreceptorError):
    """The money a recipe allows is spent and rows are left."""

    exit_code = 1


class GateFailed(PreceptorError):
    """The student missed a threshold of the gate: nothing is exported."""

    exit_code = 1


class GoldenRefused(PreceptorError):
    """Grades that may not be called golden: graders who agree too little, or disagreements nobody decided."""

    exit_code = 1


class SealedError(PreceptorError):
    """An attempt to read the holdout while it is sealed."""


class ParityError(PreceptorError):
    """An exported bundle whose scores differ from the trained model's."""

    exit_code = 1


class StageFailed(PreceptorError):
    """A stage that could not finish: a killed worker, a full disk, an engine that would not start."""

    exit_code = 1


def located(message: str, *, file: Path | str, line: int | None = None, column: str | None = None) -> str:
    """`message` prefixed with where it is: ``file:line: column 'c': message``."""
    place = f"{file}:{line}" if line is not None else f"{file}"
    return f"{place}: column '{column}': {message}" if column is not None else f"{place}: {message}"


def last_line(error: BaseException) -> str:
    """What `error` says last, on one line of at most 300 characters; what Ray wraps ends with its cause."""
    return str(error).strip().splitlines()[-1][:300]


def reason_of(error: BaseException) -> str:
    """The first line of what `error` says, 200 characters at most; the name of its type where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__
