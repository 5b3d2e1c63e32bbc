"""Request files of the OpenAI Batch format: what an endpoint would be asked, one JSON object to a line.

A line's ``custom_id`` is ``PAIR_ID/DIMENSION/ASKED``. ASKED is a hash of the judge's id and of the wording, so that an
answer that comes back days later says by itself of whom and in which words it was asked.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from preceptor.contracts import content_id, whole_file
from preceptor.errors import InputError
from preceptor.judge.endpoint import Dialect
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.replies import asked_of, pair_columns

MAX_REQUESTS: Final = 50_000
MAX_BYTES: Final = 200 * 10**6
"""What the format's inventor takes in one file."""

URL: Final = "/v1/chat/completions"

# Nobody answers while a file is written, so there is nothing to learn a dialect from: this name of the limit is the one
# that both old and new servers know.
BATCH_LIMIT: Final = "max_completion_tokens"

Row = tuple[Mapping[str, Any], str]
"""A pair (its columns by name) and a dimension to ask of it."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Request files that were written, and how many requests they hold together."""

    files: tuple[Path, ...]
    num_requests: int


def batch_dialect(*, top_logprobs: int) -> Dialect:
    """The dialect for a file; `top_logprobs` 0 for a model that gives none."""
    return Dialect(limit=BATCH_LIMIT, top_logprobs=top_logprobs)


def rows_of(pairs: pa.Table, dimensions: tuple[str, ...]) -> Iterator[Row]:
    """Every pair of `pairs` and dimension it is to be asked, in order."""
    for pair in pair_columns(pairs).to_pylist():
        for dimension in asked_of(pair, dimensions):
            yield pair, dimension


def asked_ids(judge: OpenAIJudge) -> dict[str, str]:
    """By dimension, 16 hex digits for what `judge` is asked about it."""
    return {name: content_id(judge.judge_id, wording) for name, wording in judge.prompt_hashes.items()}


def custom_id(pair_id: str, dimension: str, asked: Mapping[str, str]) -> str:
    """The name of one request; `asked` is of `asked_ids`."""
    return f"{pair_id}/{dimension}/{asked[dimension]}"


def write_requests(
    judge: OpenAIJudge,
    rows: Iterable[Row],
    *,
    out: Path,
    dialect: Dialect,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> Requests:
    """The files written: `out` and, where one may not hold them all, ``STEM-2``, ``STEM-3`` and so on beside it.

    Each is written whole or not at all; none where there is no row. InputError where one of that name exists, because
    two exports side by side would be paid for twice.
    """
    _refuse_existing(out)
    files, num_requests = [], 0
    numbered = _numbered(_lines(judge, rows, dialect), max_requests=max_requests, max_bytes=max_bytes)
    for number, part in itertools.groupby(numbered, key=itemgetter(0)):
        file = out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
        with whole_file(file) as sink:
            for _, line in part:
                sink.write(line)
                num_requests += 1
        files.append(file)
    return Requests(files=tuple(files), num_requests=num_requests)


def _lines(judge: OpenAIJudge, rows: Iterable[Row], dialect: Dialect) -> Iterator[bytes]:
    asked, arguments = asked_ids(judge), dialect.arguments(judge.endpoint)
    for pair, dimension in rows:
        request = {
            "custom_id": custom_id(pair["pair_id"], dimension, asked),
            "method": "POST",
            "url": URL,
            "body": {"model": judge.endpoint.model, "messages": judge.chat(pair, dimension), **arguments},
        }
        yield json.dumps(request, ensure_ascii=False).encode(errors="replace") + b"\n"


def _numbered(lines: Iterable[bytes], *, max_requests: int, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Each line with the number of the file it goes to, from 1."""
    number, num_requests, num_bytes = 1, 0, 0
    for line in lines:
        if num_requests and (num_requests == max_requests or num_bytes + len(line) > max_bytes):
            number, num_requests, num_bytes = number + 1, 0, 0
        num_requests, num_bytes = num_requests + 1, num_bytes + len(line)
        yield number, line


def _refuse_existing(out: Path) -> None:
    part = re.compile(rf"{re.escape(out.stem)}(-\d+)?{re.escape(out.suffix)}")
    known = sorted(file for file in out.parent.glob("*") if part.fullmatch(file.name))
    if known:
        raise InputError(
            f"{known[0]}: exists; requests of two exports in one place would be sent and paid twice. "
            "Remove it or name another file."
        )
