"""One ask and its candidate postings, and one request for them, each a function of seed and index alone."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from preceptor.contracts import OVERALL, content_id, make_pair, split_of
from preceptor.errors import RecipeError
from preceptor.market import clicks
from preceptor.market.latent import Member, Posting, Query, sample_ask, stream
from preceptor.market.postings import Kind, kinds_for, sample_posting
from preceptor.market.texts import posting_text, profile_text, query_text
from preceptor.market.truth import explain, grade_all

if TYPE_CHECKING:
    from preceptor.policy import Rubric
    from preceptor.recipe import MarketConfig

POOL: Final = "pool"
"""The seed region of the unlabelled pool and its requests; golden pairs come from another."""

_FIRST_SHOWN: Final = datetime.datetime(2025, 1, 6, tzinfo=datetime.UTC)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A query and its member, latent and in words."""

    query: Query
    member: Member
    query_text: str
    profile_text: str

    @property
    def split(self) -> str:
        """The split of the query."""
        return split_of(content_id(self.query_text))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One posting for an ask: its PAIRS row and the truth; `grades` ends with 'overall'."""

    kind: Kind
    posting: Posting
    pair: dict[str, str]
    grades: dict[str, int]

    @property
    def overall(self) -> int:
        """The overall grade."""
        return self.grades[OVERALL]

    @property
    def reason(self) -> str:
        """Why it is not ideal, in one line."""
        return explain(self.grades)


@dataclass(frozen=True, kw_only=True)
class Group:
    """An ask and its candidates, no pair twice."""

    ask: Ask
    candidates: tuple[Candidate, ...]


def generate_ask(index: int, *, seed: int, region: str = POOL) -> Ask:
    """Ask number `index` of the region."""
    query, member = sample_ask(stream(seed, region, "ask", index))
    words = stream(seed, region, "words", index)
    return Ask(
        query=query,
        member=member,
        query_text=query_text(query, words),
        profile_text=profile_text(member, words, wanted=query.role),
    )


def generate_group(
    index: int, *, seed: int, num_documents: int, rubric: Rubric, region: str = POOL, ask: Ask | None = None
) -> Group:
    """Ask number `index` with `num_documents` candidates; fewer where two read the same."""
    ask = ask or generate_ask(index, seed=seed, region=region)
    kinds = kinds_for(stream(seed, region, "kinds", index), num_documents)
    candidates: dict[str, Candidate] = {}
    for place, kind in enumerate(kinds):
        rng = stream(seed, region, "document", index, place)
        posting = sample_posting(rng, kind, ask.query, ask.member)
        pair = make_pair(ask.query_text, ask.profile_text, posting_text(posting, rng), slice=ask.query.style)
        grades = grade_all(ask.query, ask.member, posting, rubric)
        candidates.setdefault(pair["pair_id"], Candidate(kind=kind, posting=posting, pair=pair, grades=grades))
    return Group(ask=ask, candidates=tuple(candidates.values()))


def generate_pairs(config: MarketConfig, rubric: Rubric, *, start: int = 0, stop: int | None = None) -> Iterator[Group]:
    """The pool's groups number `start` up to `stop`, without Ray."""
    for index in range(start, config.num_queries if stop is None else min(stop, config.num_queries)):
        yield generate_group(index, seed=config.seed, num_documents=config.documents_per_query, rubric=rubric)


def generate_request(index: int, config: MarketConfig, rubric: Rubric) -> list[dict[str, object]]:
    """The IMPRESSIONS rows of request number `index`, in order of position.

    The first `num_requests` are traffic of the train and calibration splits under the logging ranker; the following
    `num_holdout_requests` are holdout traffic in uniformly random order.
    """
    rng = stream(config.seed, POOL, "request", index)
    holdout = index >= config.num_requests
    query_index, ask = _pick_ask(rng.randrange(config.num_queries), config, holdout=holdout)
    group = generate_group(
        query_index, seed=config.seed, num_documents=config.documents_per_query, rubric=rubric, ask=ask
    )
    attractions = [clicks.attraction(item.overall, item.posting) for item in group.candidates]
    if holdout:
        order = clicks.uniform_order(rng, len(group.candidates))
    else:
        overlaps = [clicks.word_overlap(ask.query_text, item.pair["document"]) for item in group.candidates]
        order = clicks.logged_order(rng, attractions, overlaps)
    shown_at = _FIRST_SHOWN + datetime.timedelta(seconds=60 * index)
    rows: list[dict[str, object]] = []
    for position, place in enumerate(order[: config.documents_per_request], start=1):
        item = group.candidates[place]
        applies = clicks.application(item.overall, item.grades["credentials"])
        response = clicks.respond(rng, position=position, attracted=attractions[place], applies=applies)
        rows.append(
            {
                "request_id": content_id("request", str(config.seed), str(index)),
                **{name: item.pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id", "split")},
                "position": position,
                "shown_at": shown_at,
                "click": response.click,
                "apply": response.apply,
                "propensity": clicks.propensity(position),
            }
        )
    return rows


def _pick_ask(start: int, config: MarketConfig, *, holdout: bool) -> tuple[int, Ask]:
    """The first ask from `start` on, round the end, whose split belongs to the traffic."""
    for step in range(config.num_queries):
        index = (start + step) % config.num_queries
        ask = generate_ask(index, seed=config.seed)
        if (ask.split == "holdout") == holdout:
            return index, ask
    wanted = "holdout" if holdout else "train or calibration"
    raise RecipeError(f"a market of {config.num_queries} queries has no {wanted} query to show; raise num_queries.")
