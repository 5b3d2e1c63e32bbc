"""Reading a chat completion, the JSON object an OpenAI-compatible server answers with, online or in a batch file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from preceptor.contracts import NUM_GRADES
from preceptor.judge.replies import NO_GRADE, Reply, Usage, graded, one_hot, rejected

_GRADE_LINE: Final = re.compile(rb"^[ \t*#_]*grade[ \t*_]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_GRADE_VALUE: Final = re.compile(rb"[ \t*_]*([0-4])[ \t*_.]*")
_MARKS: Final = " \t\r\n*:"


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Dollars per token read, read from a prefix cache, and written."""

    prompt: float = 0.0
    cached: float = 0.0
    generated: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What asking once came to: `masses` of the five grades, or a `reason` for having none; `raw` is what was seen.

    `attempt` counts the tries, `usage` sums over all of them that the server billed for.
    """

    masses: tuple[float, ...] | None = None
    rationale: str | None = None
    reason: str | None = None
    raw: str | None = None
    attempt: int = 1
    usage: Usage = field(default_factory=Usage)


def reply_of(pair_id: str, dimension: str, verdict: Verdict) -> Reply:
    """The reply that `verdict` is to one pair and dimension."""
    attempt, raw = verdict.attempt, verdict.raw
    if verdict.reason is not None or verdict.masses is None:
        return rejected(pair_id, dimension, verdict.reason or NO_GRADE, raw=raw, attempt=attempt)
    return replace(
        graded(pair_id, dimension, verdict.masses, raw=raw, attempt=attempt), rationale=verdict.rationale or None
    )


def read_grade(body: Mapping[str, Any]) -> Verdict:
    """The verdict of a completion whose first token is to be a grade; without logprobs all mass is on that grade.

    Raises LookupError, TypeError, AttributeError or ValueError where `body` is no chat completion.
    """
    text, listed = _content(body)
    masses = _masses(listed[0]) if listed else one_hot(text)
    return Verdict(masses=masses, reason=NO_GRADE if masses is None else None, raw=text)


def read_reasoned(body: Mapping[str, Any]) -> Verdict:
    """The verdict of a completion that gives reasons and then, on a line of its own, ``Grade: N``.

    The masses are those of the token that holds the digit, wherever the tokenizer puts the space before it; without
    logprobs all mass is on that grade. Raises as `read_grade` does.
    """
    text, listed = _content(body)
    rationale, grade = split_reasoned(text)
    if grade is None:
        return Verdict(reason=NO_GRADE, raw=text)
    token = _grade_token(listed)
    masses = one_hot(str(grade)) if token is None else _masses(token)
    return Verdict(masses=masses, rationale=rationale, raw=text)


def split_reasoned(text: str) -> tuple[str, int | None]:
    """The reasons before the last line that starts with ``Grade:``, and the grade on it, None where it is not one.

    Without such a line all of `text` is reasons.
    """
    encoded = text.encode(errors="replace")
    line = _last_grade_line(encoded)
    if line is None:
        return text.strip(), None
    value = _GRADE_VALUE.fullmatch(line[1])
    return encoded[: line.start()].decode().strip(), None if value is None else int(value[1])


def usage_of(body: Mapping[str, Any], prices: Prices) -> Usage:
    """What `body` says that it took, at `prices`; nothing where it does not say."""
    told = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(told, Mapping):
        return Usage()
    details = told.get("prompt_tokens_details")
    num_prompt, num_generated = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    num_cached = min(_count(details.get("cached_tokens")) if isinstance(details, Mapping) else 0, num_prompt)
    return Usage(
        num_prompt_tokens=num_prompt,
        num_cached_tokens=num_cached,
        num_generated_tokens=num_generated,
        cost_usd=(num_prompt - num_cached) * prices.prompt
        + num_cached * prices.cached
        + num_generated * prices.generated,
    )


def _count(told: Any) -> int:
    return told if isinstance(told, int) and told > 0 else 0


def _content(body: Mapping[str, Any]) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The first choice's text and its tokens; no tokens where the server gave no logprobs."""
    choice = body["choices"][0]
    text = choice["message"]["content"]
    if text is not None and not isinstance(text, str):
        raise TypeError(f"message.content is {type(text).__name__}")
    logprobs = choice.get("logprobs")
    return text or "", (logprobs.get("content") if logprobs is not None else None) or ()


def _masses(token: Mapping[str, Any]) -> tuple[float, ...]:
    masses = [0.0] * NUM_GRADES
    for text, logprob in _candidates(token):
        # Some tokenizers write a digit with and without a space before it: both are the grade.
        digit = text.strip(_MARKS)
        if len(digit) == 1 and digit in "01234":
            masses[int(digit)] += math.exp(min(logprob, 0.0))
    return tuple(masses)


def _candidates(token: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The tokens that could have stood here; a server may leave the one it chose out of the list."""
    listed = [(top["token"], float(top["logprob"])) for top in token.get("top_logprobs") or ()]
    yield from listed
    if token["token"] not in {text for text, _ in listed}:
        yield token["token"], float(token["logprob"])


def _grade_token(tokens: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The token with the digit after the last ``Grade:``; None without logprobs, or where the tokens spell no grade.

    The tokens are put together from their bytes: a character cut in two has no text of its own.
    """
    spelled = [_spelling(token) for token in tokens]
    line = _last_grade_line(b"".join(spelled))
    value = _GRADE_VALUE.fullmatch(line[1]) if line is not None else None
    if line is None or value is None:
        return None
    at, end = line.start(1) + value.start(1), 0
    for token, spelling in zip(tokens, spelled, strict=True):
        end += len(spelling)
        if at < end:
            return token
    return None


def _spelling(token: Mapping[str, Any]) -> bytes:
    told = token.get("bytes")
    return bytes(told) if told else str(token["token"]).encode(errors="replace")


def _last_grade_line(text: bytes) -> re.Match[bytes] | None:
    found = list(_GRADE_LINE.finditer(text))
    return found[-1] if found else None
