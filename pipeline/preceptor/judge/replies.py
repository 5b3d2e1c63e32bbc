"""What a judge answers, and the one place where answers become LABELS, REJECTS and TEACHER_SCORES rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa

from preceptor.contracts import NUM_GRADES, OVERALL
from preceptor.judge.overall import overall_probs

if TYPE_CHECKING:
    from preceptor.policy import Rubric

MIN_LABEL_MASS: Final = 0.001
"""A reply with less probability than this on the five grades together is no grade."""

ASK: Final = "ask"
"""A column beside PAIRS: the dimensions to ask of the pair."""

PAIRS_PER_WAVE: Final = 32
"""So many pairs are asked their first dimension before any is asked its second. Requests that start in one step of the
engine cannot share what they compute: side by side, all dimensions of a pair would compute the pair each for itself."""

NO_GRADE: Final = "not a grade"
OVER_LONG: Final = "over-long"
TIMEOUT: Final = "timeout"
UNREADABLE: Final = "unreadable reply"
UNREACHABLE: Final = "connection lost"
ENGINE_ERROR: Final = "engine error"
EXPIRED: Final = "expired"
NO_ANSWER: Final = "no answer"
BATCH_ERROR: Final = "batch error"
ENGINE_DIED: Final = "killed its engine"
INCOMPLETE: Final = "a dimension was rejected"

_MAX_RAW: Final = 2000
_PASSING: Final = (
    *(TIMEOUT, UNREADABLE, UNREACHABLE, ENGINE_ERROR, EXPIRED, NO_ANSWER, BATCH_ERROR),
    *("http 408", "http 409", "http 429", "http 5"),
)
_GRADE_TEXT: Final = re.compile(r"\s*[\"'(\[]?([0-4])[\"')\].]*\s*")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One judge's word on one pair and one dimension: five `probs` and a `label_mass`, or a `reason` for having none.

    `probs` add up to 1; `label_mass` is the probability of the five grades before that. `raw` is what was seen.
    """

    pair_id: str
    dimension: str
    probs: tuple[float, ...] | None = None
    label_mass: float | None = None
    rationale: str | None = None
    reason: str | None = None
    raw: str | None = None
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What answers took: tokens read (of those, found in a prefix cache), tokens written, money, and time at work.

    `busy_s` are the seconds in which at least one request of the grader was open.
    """

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    cost_usd: float = 0.0
    busy_s: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            num_prompt_tokens=self.num_prompt_tokens + other.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens + other.num_cached_tokens,
            num_generated_tokens=self.num_generated_tokens + other.num_generated_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
            busy_s=self.busy_s + other.busy_s,
        )


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Replies to a block of pairs, the raw logits of each head by pair where a teacher is hosted, and what it took."""

    replies: tuple[Reply, ...]
    logits: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The Ray actors that ask a judge: how many, what each reserves, and how many blocks each works on at once.

    The job fails where none of them finishes a block for `give_up_s` seconds. Where they `fill_the_cpus`, what follows
    them on a local Ray takes what they leave.
    """

    num_actors: int
    cpus: float
    gpus: int = 0
    blocks_in_flight: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    give_up_s: float = 1800.0
    fill_the_cpus: bool = False


class Grader(Protocol):
    """A judge that is ready to be asked: its engine is running, its client connected. It lives in one actor."""

    async def grade(self, pairs: pa.Table) -> Answers:
        """A reply for every pair and dimension asked, failed ones too; only a grader that is beyond help raises.

        `pairs` holds pair_id, query, profile, document, and a list column `ASK` where not all dimensions are wanted.
        """


class Judge(Protocol):
    """A measuring device: each pair is answered once on each of `dimensions`. It is small and travels by pickle."""

    @property
    def judge_id(self) -> str:
        """Names the model and its state; goes into every label."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What it is asked; 'overall' is derived where it is not among them."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads whose raw logits come along; empty unless a teacher is hosted."""

    @property
    def asking(self) -> str:
        """The words that ask for the answer, where it is asked in words; they count into the labels' prompt hash."""

    @property
    def workers(self) -> Workers | None:
        """What Ray gives it; None where it answers at once, in the process that asks."""

    def open(self) -> Grader:
        """The grader, in the process that calls this."""


def asked_of(pair: Mapping[str, Any], dimensions: Sequence[str]) -> Sequence[str]:
    """The dimensions that `pair`, a row, is to be asked: those of its column `ASK`, or all of `dimensions`."""
    asked: Sequence[str] | None = pair.get(ASK)
    return dimensions if asked is None else asked


def in_waves(pairs: Sequence[Mapping[str, Any]], dimensions: Sequence[str]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every pair with each dimension it is to be asked, in waves: the first dimension of each pair, then the second."""
    for start in range(0, len(pairs), PAIRS_PER_WAVE):
        wave = [(pair, asked_of(pair, dimensions)) for pair in pairs[start : start + PAIRS_PER_WAVE]]
        for turn in range(len(dimensions)):
            yield from ((pair, names[turn]) for pair, names in wave if turn < len(names))


def pair_columns(pairs: pa.Table) -> pa.Table:
    """The columns of `pairs` that a judge reads."""
    return pairs.select(
        [name for name in ("pair_id", "query", "profile", "document", ASK) if name in pairs.column_names]
    )


def graded(pair_id: str, dimension: str, masses: Sequence[float], *, raw: str | None = None, attempt: int = 1) -> Reply:
    """The reply for `masses`, the probability of each grade before renormalising; a reject where they are too small."""
    total = math.fsum(masses)
    if len(masses) != NUM_GRADES or not math.isfinite(total) or min(masses) < 0 or total < MIN_LABEL_MASS:
        return rejected(pair_id, dimension, NO_GRADE, raw=raw or f"grade masses {list(masses)}", attempt=attempt)
    return Reply(
        pair_id=pair_id,
        dimension=dimension,
        probs=tuple(mass / total for mass in masses),
        label_mass=min(total, 1.0),
        attempt=attempt,
    )


def rejected(pair_id: str, dimension: str, reason: str, *, raw: str | None = None, attempt: int = 1) -> Reply:
    """A reply that holds no grade."""
    return Reply(pair_id=pair_id, dimension=dimension, reason=reason, raw=raw, attempt=attempt)


def one_hot(text: str | None) -> tuple[float, ...] | None:
    """All mass on the grade that `text` is, or None where it is anything but one grade."""
    found = _GRADE_TEXT.fullmatch(text or "")
    return None if found is None else tuple(float(grade == int(found[1])) for grade in range(NUM_GRADES))


def is_passing(reason: str) -> bool:
    """Whether the fault lay with the moment and not with the row, so that a later run should try the row again."""
    return reason.startswith(_PASSING)


def restricted(rubric: Rubric, dimensions: Sequence[str]) -> Rubric:
    """`rubric` with only `dimensions` and the caps that speak of them."""
    return replace(
        rubric,
        dimensions=tuple(dimension for dimension in rubric.dimensions if dimension.name in dimensions),
        caps=tuple(cap for cap in rubric.caps if cap.dimension in dimensions),
    )


def overall_reply(rubric: Rubric, pair_id: str, replies: Mapping[str, Reply]) -> Reply:
    """The overall reply that follows from one reply on each dimension of `rubric`.

    The dimensions' distributions are taken as independent, and the overall grade's is exact. The label mass is the
    product of the dimensions', the probability that all of them were grades.
    """
    missing = [d.name for d in rubric.dimensions if d.name not in replies or replies[d.name].probs is None]
    if missing:
        return rejected(pair_id, OVERALL, INCOMPLETE, raw=", ".join(missing))
    used = [replies[dimension.name] for dimension in rubric.dimensions]
    probs = overall_probs(rubric, {reply.dimension: reply.probs or () for reply in used})
    return Reply(
        pair_id=pair_id,
        dimension=OVERALL,
        probs=tuple(float(prob) for prob in probs / probs.sum()),
        label_mass=math.prod(reply.label_mass or 0.0 for reply in used),
    )


def with_overall(rubric: Rubric, replies: Iterable[Reply]) -> list[Reply]:
    """`replies` of whole pairs, each pair closed by its overall reply where the judge gave none itself."""
    by_pair: dict[str, dict[str, Reply]] = {}
    for reply in replies:
        by_pair.setdefault(reply.pair_id, {})[reply.dimension] = reply
    closed = []
    for pair_id, found in by_pair.items():
        derived = [] if OVERALL in found else [overall_reply(restricted(rubric, tuple(found)), pair_id, found)]
        closed += [*found.values(), *derived]
    return closed


def label_rows(
    replies: Iterable[Reply],
    *,
    stage: str,
    judge_id: str,
    policy_version: str,
    prompt_hashes: Mapping[str, str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """LABELS rows and REJECTS rows: every reply is in exactly one of the two.

    The id of a reject is ``pair_id/dimension``. `prompt_hashes` is by dimension; one that is not asked for (a derived
    overall) has the empty hash.
    """
    labels, rejects = [], []
    for reply in replies:
        if reply.probs is None:
            rejects.append(
                {
                    "id": f"{reply.pair_id}/{reply.dimension}",
                    "stage": stage,
                    "reason": reply.reason or NO_GRADE,
                    "raw": None if reply.raw is None else reply.raw[:_MAX_RAW],
                    "attempt": reply.attempt,
                }
            )
            continue
        labels.append(
            {
                "pair_id": reply.pair_id,
                "dimension": reply.dimension,
                "grade": max(range(NUM_GRADES), key=reply.probs.__getitem__),
                "probs": list(reply.probs),
                "label_mass": reply.label_mass,
                "rationale": reply.rationale,
                "judge_id": judge_id,
                "policy_version": policy_version,
                "prompt_hash": prompt_hashes.get(reply.dimension, ""),
            }
        )
    return labels, rejects


def score_rows(logits: Mapping[str, Mapping[str, Sequence[float]]], *, teacher: str) -> list[dict[str, Any]]:
    """TEACHER_SCORES rows of `teacher`: one per pair and head, with the raw logits."""
    return [
        {"pair_id": pair_id, "teacher": teacher, "head": head, "logits": list(values)}
        for pair_id, heads in logits.items()
        for head, values in heads.items()
    ]
