"""How a bench ends on what the product refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from preceptor.errors import PreceptorError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A PreceptorError of the body ends the command, with its one line and exit code 1."""
    try:
        yield
    except PreceptorError as error:
        raise SystemExit(str(error)) from error
