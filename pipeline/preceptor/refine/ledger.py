"""Every answer that was paid for, kept as soon as it came: one JSON object to a line, and never asked for twice.

A search is a function of its answers. Run again after a kill, it walks the same way through the answers that are here
and asks only what is missing.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from preceptor.errors import InputError, StageFailed, located
from preceptor.judge.completions import Verdict
from preceptor.judge.replies import Usage


@dataclass(kw_only=True)
class Ledger:
    """Answers by what was asked; `add` writes through to the file."""

    file: Path
    sink: IO[bytes]
    answers: dict[str, Verdict] = field(default_factory=dict)

    def add(self, key: str, verdict: Verdict) -> None:
        """Keep `verdict` as the answer to `key`; StageFailed where the disk refuses."""
        self.answers[key] = verdict
        line = json.dumps({"key": key, **asdict(verdict)}, separators=(",", ":"))
        try:
            self.sink.write(f"{line}\n".encode())
            self.sink.flush()
        except OSError as error:
            raise StageFailed(f"{self.file}: could not be written ({error.strerror}). Free some space.") from error


@contextmanager
def open_ledger(file: Path) -> Iterator[Ledger]:
    """The ledger in `file`, made where there is none, for this process alone.

    A line that a kill cut short is removed. InputError where another process has it open, or a line is no answer.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{file}: another refinement is at work here. Wait for it, or choose another --root."
            ) from None
        sink.seek(0)
        content = sink.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            sink.truncate(len(whole))
        yield Ledger(file=file, sink=sink, answers=dict(_answers(whole, file)))


def _answers(content: bytes, file: Path) -> Iterator[tuple[str, Verdict]]:
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield _answer(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                located(f"not an answer ({error}). Remove the line: it is asked again.", file=file, line=number)
            ) from error


def _answer(told: Mapping[str, Any]) -> tuple[str, Verdict]:
    content = dict(told)
    key, masses, usage = content.pop("key"), content.pop("masses"), content.pop("usage")
    return key, Verdict(masses=None if masses is None else tuple(masses), usage=Usage(**usage), **content)
