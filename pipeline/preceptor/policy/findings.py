"""What is wrong with a policy file, and where: one value for the loaders that refuse and the lint that lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preceptor.errors import PolicyError, located


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken rule at one place. `line` counts from 1; None where the whole file is meant."""

    file: Path
    line: int | None
    severity: Literal["error", "warning"]
    message: str

    def __str__(self) -> str:
        return located(f"{self.severity}: {self.message}", file=self.file, line=self.line)


def error_at(file: Path, line: int | None, message: str) -> Finding:
    """A finding that loading refuses."""
    return Finding(file=file, line=line, severity="error", message=message)


def warning_at(file: Path, line: int | None, message: str) -> Finding:
    """A finding that a reviewer should see and may accept."""
    return Finding(file=file, line=line, severity="warning", message=message)


def refuse(findings: Iterable[Finding]) -> None:
    """Raise PolicyError for the first error among `findings`, if there is one."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    more = f" ({len(errors) - 1} more: preceptor policy lint lists them.)" if len(errors) > 1 else ""
    raise PolicyError(located(errors[0].message, file=errors[0].file, line=errors[0].line) + more)


def format_findings(findings: Iterable[Finding]) -> str:
    """The findings one to a line, ``file:line: severity: message``, closed by their count."""
    listed = tuple(findings)
    num_errors = sum(finding.severity == "error" for finding in listed)
    count = f"{num_errors} errors, {len(listed) - num_errors} warnings"
    return "\n".join([*map(str, listed), f"policy lint: {count}" if listed else "policy lint: clean"])


def read_text(file: Path) -> str:
    """The file's text; PolicyError where it is missing, unreadable or not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PolicyError(f"{file}: a policy needs this file and it is missing. Add it or check the path.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PolicyError(located("not UTF-8. Save the file as UTF-8.", file=file, line=line)) from error
    except OSError as error:
        raise PolicyError(f"{file}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
