"""Result files of the OpenAI Batch format as a judge: offline, and with the same labels as the endpoint online.

Everything is in the files. Output and error files of all tries are given together; a row's tries are the lines that
bear its name, and a row without a good one is rejected for the reason of its last.
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preceptor.contracts import content_id
from preceptor.errors import InputError, located
from preceptor.judge.batch_requests import Row, asked_ids, custom_id, rows_of
from preceptor.judge.completions import Prices, Verdict, read_grade, read_reasoned, reply_of, usage_of
from preceptor.judge.endpoint import UNREADABLE_ERRORS
from preceptor.judge.openai_judge import OpenAIJudge
from preceptor.judge.replies import BATCH_ERROR, EXPIRED, NO_ANSWER, UNREADABLE, Answers, Usage, is_passing

_EXPIRED_CODE: Final = "batch_expired"
_OK: Final = 200


@dataclass(frozen=True, kw_only=True)
class BatchFileJudge:
    """The judge `online`, answered from result files. A token costs `price_share` of its price online there."""

    online: OpenAIJudge
    results: tuple[Path, ...]
    price_share: float
    workers: None = None

    @property
    def judge_id(self) -> str:
        """The same as online: the same model was asked in the same words."""
        return self.online.judge_id

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Those of the judge online."""
        return self.online.dimensions

    @property
    def heads(self) -> tuple[str, ...]:
        """None: an endpoint gives no logits of heads."""
        return self.online.heads

    @property
    def asking(self) -> str:
        """What the judge online asks with."""
        return self.online.asking

    @property
    def prompt_hashes(self) -> dict[str, str]:
        """Those of the judge online."""
        return self.online.prompt_hashes

    def open(self) -> BatchFileGrader:
        """A grader over an index of the files; InputError where one is no result file."""
        return BatchFileGrader(judge=self)


@dataclass(kw_only=True)
class BatchFileGrader:
    """Looks answers up: in memory are 18 bytes for each line, and the lines of the rows just asked."""

    judge: BatchFileJudge

    def __post_init__(self) -> None:
        online = self.judge.online
        self.index = index_results(self.judge.results)
        self.asked = asked_ids(online)
        self.read = read_reasoned if online.endpoint.rationale_tokens else read_grade
        self.prices = _scaled(online.endpoint.prices, self.judge.price_share)

    async def grade(self, pairs: pa.Table) -> Answers:
        """A reply for every pair and dimension asked, in order, and what all tries of them took."""
        rows = rows_of(pairs, self.judge.dimensions)
        found = [(pair["pair_id"], name, self.verdict(pair["pair_id"], name)) for pair, name in rows]
        usage = sum((verdict.usage for _, _, verdict in found), start=Usage())
        return Answers(replies=tuple(reply_of(*each) for each in found), usage=usage)

    def verdict(self, pair_id: str, dimension: str) -> Verdict:
        """The first good answer to a row, or its last failure; its usage is that of all tries."""
        name = custom_id(pair_id, dimension, self.asked)
        tries = [_verdict_of(line, self.read, self.prices) for line in self.index.lines(name)]
        if not tries:
            return Verdict(reason=NO_ANSWER, raw=f"no line {name} in {len(self.judge.results)} files")
        chosen = next((each for each in tries if each.reason is None), tries[-1])
        return replace(chosen, attempt=len(tries), usage=sum((each.usage for each in tries), start=Usage()))


@dataclass(frozen=True, kw_only=True)
class Sorting:
    """The rows of an import by what becomes of them: graded, to be asked again, or given up, with reasons counted."""

    num_graded: int = 0
    again: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)

    @property
    def num_rows(self) -> int:
        """All of them."""
        return self.num_graded + self.again.total() + self.given_up.total()

    @property
    def num_found(self) -> int:
        """Those that some line speaks of."""
        return self.num_rows - self.again[NO_ANSWER]


def sort_rows(grader: BatchFileGrader, rows: Iterable[Row], *, max_attempts: int) -> Sorting:
    """What the files say of all `rows`."""
    graded, again, given_up = 0, Counter[str](), Counter[str]()
    for pair, dimension in rows:
        verdict = grader.verdict(pair["pair_id"], dimension)
        if verdict.reason is None:
            graded += 1
        else:
            (again if _is_worth_asking(verdict, max_attempts) else given_up)[verdict.reason] += 1
    return Sorting(num_graded=graded, again=again, given_up=given_up)


def rows_to_ask_again(grader: BatchFileGrader, rows: Iterable[Row], *, max_attempts: int) -> Iterator[Row]:
    """Those of `rows` without an answer that another try may bring, tried fewer than `max_attempts` times.

    A row that no line speaks of has not been tried, as far as the files know.
    """
    for pair, dimension in rows:
        if _is_worth_asking(grader.verdict(pair["pair_id"], dimension), max_attempts):
            yield pair, dimension


def _is_worth_asking(verdict: Verdict, max_attempts: int) -> bool:
    if verdict.reason is None or not is_passing(verdict.reason):
        return False
    return verdict.reason == NO_ANSWER or verdict.attempt < max_attempts


@dataclass(frozen=True, kw_only=True)
class ResultIndex:
    """Where in which file the lines of a request begin: three columns, sorted by the hash of the request's name."""

    contents: tuple[mmap.mmap, ...]
    keys: npt.NDArray[np.uint64]
    files: npt.NDArray[np.uint16]
    offsets: npt.NDArray[np.int64]
    num_unreadable: int

    @property
    def num_lines(self) -> int:
        """Lines that name a request."""
        return len(self.keys)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects whose custom_id is `name`, in the order of the files; a repeated line counts once."""
        key = np.uint64(_key(name))
        first, last = np.searchsorted(self.keys, key, side="left"), np.searchsorted(self.keys, key, side="right")
        raw = dict.fromkeys(self._raw(row) for row in range(first, last))
        # Two names may share a hash.
        return [line for line in map(json.loads, raw) if line["custom_id"] == name]

    def _raw(self, row: int) -> bytes:
        content, offset = self.contents[self.files[row]], int(self.offsets[row])
        end = content.find(b"\n", offset)
        return content[offset : end if end >= 0 else len(content)].strip()


def index_results(files: Sequence[Path]) -> ResultIndex:
    """The index of `files`; a file named twice counts once.

    A line that is cut short or no JSON is counted and left out: its row then has no answer. InputError for a file that
    is missing, of requests, or without a single line of results.
    """
    distinct = tuple(dict.fromkeys(file.resolve() for file in files))
    opened = [(file, content) for file in distinct if (content := _content(file)) is not None]
    keys, numbers, offsets = array("Q"), array("H"), array("q")
    num_unreadable = 0
    for number, (file, content) in enumerate(opened):
        num_before, num_lines = len(keys), 0
        for offset, line in _offset_lines(content):
            num_lines += 1
            name = _name_of(line, file, num_lines)
            if name is not None:
                keys.append(_key(name))
                numbers.append(number)
                offsets.append(offset)
        num_unreadable += num_lines - (len(keys) - num_before)
        if num_lines and len(keys) == num_before:
            raise InputError(f"{file}: no line of batch results among {num_lines:,}. Give output or error files.")
    columns = np.array(keys, np.uint64), np.array(numbers, np.uint16), np.array(offsets, np.int64)
    order = np.argsort(columns[0], kind="stable")
    return ResultIndex(
        contents=tuple(content for _, content in opened),
        keys=columns[0][order],
        files=columns[1][order],
        offsets=columns[2][order],
        num_unreadable=num_unreadable,
    )


def _content(file: Path) -> mmap.mmap | None:
    """The bytes of `file` without reading them; None where there are none."""
    try:
        with file.open("rb") as source:
            return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}). Check the path.") from error


def _offset_lines(content: mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with where it begins."""
    content.seek(0)
    offset = 0
    while line := content.readline():
        if line.strip():
            yield offset, line
        offset += len(line)


def _name_of(line: bytes, file: Path, number: int) -> str | None:
    """The custom_id of a line of results; None where it is none. InputError where it is a request."""
    try:
        told = json.loads(line)
        name = told["custom_id"]
    except UNREADABLE_ERRORS:
        return None
    if "body" in told and "response" not in told:
        raise InputError(located("a request, not an answer. Give output or error files.", file=file, line=number))
    return name if isinstance(name, str) and ("response" in told or "error" in told) else None


def _key(name: str) -> int:
    return int(content_id(name), 16)


def _verdict_of(line: Mapping[str, Any], read: Callable[[Any], Verdict], prices: Prices) -> Verdict:
    """What one line says of its row."""
    response, error = line.get("response"), line.get("error")
    status = response.get("status_code") if isinstance(response, Mapping) else None
    if not isinstance(response, Mapping) or not isinstance(status, int):
        code = error.get("code") if isinstance(error, Mapping) else None
        return Verdict(reason=EXPIRED if code == _EXPIRED_CODE else f"{BATCH_ERROR}: {code}", raw=json.dumps(error))
    body = response.get("body")
    usage = usage_of(body, prices) if isinstance(body, Mapping) else Usage()
    if status != _OK:
        return Verdict(reason=f"http {status}", raw=json.dumps(body or error), usage=usage)
    try:
        verdict = read(body)
    except UNREADABLE_ERRORS as unreadable:
        return Verdict(reason=UNREADABLE, raw=f"{type(unreadable).__name__}: {unreadable}", usage=usage)
    return replace(verdict, usage=usage)


def _scaled(prices: Prices, share: float) -> Prices:
    return Prices(prompt=prices.prompt * share, cached=prices.cached * share, generated=prices.generated * share)
