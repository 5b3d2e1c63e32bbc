"""Simulated impressions over real texts, with the market's position-based click model: the truth is constructed.

A member examines a position with the market's propensity, clicks an examined posting by its attraction, and applies
after a click by its suitability. Attraction mixes the grade with an appeal that belongs to the posting alone, so that
clicks and grades partly disagree; applying follows the grade, and appeal works against it.
"""

from __future__ import annotations

import datetime
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Final

from preceptor.contracts import content_id
from preceptor.logits import sigmoid
from preceptor.market.clicks import Response, propensity, respond

DOCUMENTS_PER_REQUEST: Final = 10

_ALL: Final = ""
_PRIOR: Final = 10.0
"""Examinations that the mean rate counts for in a posting's own."""
_ORDER_NOISE: Final = 0.05  # of a cosine: enough to show one posting at several positions
_STARTED: Final = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A pair that may be shown. `prominence` orders the result list; `appeal_key` is the posting's identity, `topic`
    what was asked for, however it was worded."""

    pair: dict[str, str]
    grade: int
    prominence: float
    appeal_key: str
    topic: str


def appeal(key: str) -> float:
    """How tempting the posting `key` looks, suitable or not: standard normal over postings, fixed by its hash."""
    return NormalDist().inv_cdf((int(content_id("appeal", key), 16) + 0.5) / 2**64)


def click_prob(grade: int, appeal: float) -> float:
    """Probability of a click on an examined posting: 0.10 for grade 0 and 0.75 for grade 3 at appeal 0."""
    return sigmoid(-2.2 + 1.1 * grade + 0.8 * appeal)


def apply_prob(grade: int, appeal: float) -> float:
    """Probability of applying after a click: 0.05 for grade 0 and 0.57 for grade 3 at appeal 0."""
    return sigmoid(-3.0 + 1.1 * grade - 0.3 * appeal)


@dataclass(frozen=True, kw_only=True)
class PastClicks:
    """What earlier traffic did: the examinations expected and the clicks of each (posting, topic), under _ALL of all
    topics together."""

    examined: Mapping[tuple[str, str], float]
    clicks: Mapping[tuple[str, str], float]

    @cached_property
    def mean_rate(self) -> float:
        """Clicks per examination of all postings, 0 to 1; 0 without any examination."""
        clicks, examined = (
            sum(count for (_, topic), count in counts.items() if topic == _ALL)
            for counts in (self.clicks, self.examined)
        )
        return clicks / examined if examined else 0.0

    def rate(self, key: str, *, topic: str) -> float:
        """Clicks per examination of the posting `key` in requests of any other `topic`, 0 to 1: towards the mean of
        all postings by as much as _PRIOR examinations weigh."""
        clicks, examined = (
            counts.get((key, _ALL), 0.0) - counts.get((key, topic), 0.0) for counts in (self.clicks, self.examined)
        )
        return min((clicks + _PRIOR * self.mean_rate) / (examined + _PRIOR), 1.0)


def past_clicks(candidates: Sequence[Shown], *, num_requests: int, seed: int) -> PastClicks:
    """The clicks of `num_requests` requests that came before those of `simulate`, over the same groups of split train.

    An examination counts by its propensity, so that clicks at low positions weigh more (inverse propensity).
    """
    rng = random.Random(f"{seed} past clicks")
    groups = _groups([shown for shown in candidates if shown.pair["split"] == "train"])
    examined: defaultdict[tuple[str, str], float] = defaultdict(float)
    clicks: defaultdict[tuple[str, str], float] = defaultdict(float)
    for _ in range(num_requests if groups else 0):
        for position, shown in enumerate(_listed(rng.choice(groups), rng, shuffled=False), start=1):
            click = _responded(shown, position, rng).click
            for topic in (_ALL, shown.topic):
                examined[shown.appeal_key, topic] += propensity(position)
                clicks[shown.appeal_key, topic] += click
    return PastClicks(examined=examined, clicks=clicks)


def simulate(
    candidates: Sequence[Shown], *, num_requests: int, num_holdout_requests: int, seed: int
) -> Iterator[dict[str, Any]]:
    """IMPRESSIONS rows, request by request: `num_requests` over train and calibration, then the holdout requests.

    A request draws one (query, profile) group and up to 10 of its postings. Train and calibration lists are ordered by
    prominence with a little noise, holdout lists at random. A side without groups gets no requests.
    """
    groups = _groups(candidates)
    logged = [group for group in groups if group[0].pair["split"] != "holdout"]
    held_out = [group for group in groups if group[0].pair["split"] == "holdout"]
    rng = random.Random(f"{seed} clicks")
    requests = [
        *((logged, False) for _ in range(num_requests if logged else 0)),
        *((held_out, True) for _ in range(num_holdout_requests if held_out else 0)),
    ]
    for number, (pool, shuffled) in enumerate(requests):
        listed = _listed(rng.choice(pool), rng, shuffled=shuffled)
        request_id = content_id("jobmatch request", str(seed), str(number))
        shown_at = _STARTED + datetime.timedelta(minutes=number)
        for position, shown in enumerate(listed, start=1):
            yield _impression(shown, position, request_id, shown_at, rng)


def _groups(candidates: Sequence[Shown]) -> list[list[Shown]]:
    groups: dict[tuple[str, str], list[Shown]] = {}
    for candidate in candidates:
        groups.setdefault((candidate.pair["query_id"], candidate.pair["profile_id"]), []).append(candidate)
    return list(groups.values())


def _listed(group: Sequence[Shown], rng: random.Random, *, shuffled: bool) -> list[Shown]:
    listed = rng.sample(group, min(DOCUMENTS_PER_REQUEST, len(group)))
    if not shuffled:
        listed.sort(key=lambda shown: -(shown.prominence + rng.gauss(0, _ORDER_NOISE)))
    return listed


def _responded(shown: Shown, position: int, rng: random.Random) -> Response:
    tempting = appeal(shown.appeal_key)
    return respond(
        rng,
        position=position,
        attracted=click_prob(shown.grade, tempting),
        applies=apply_prob(shown.grade, tempting),
    )


def _impression(
    shown: Shown, position: int, request_id: str, shown_at: datetime.datetime, rng: random.Random
) -> dict[str, Any]:
    response = _responded(shown, position, rng)
    return {
        "request_id": request_id,
        **{name: shown.pair[name] for name in ("pair_id", "query_id", "profile_id", "document_id", "split")},
        "position": position,
        "shown_at": shown_at,
        "click": response.click,
        "apply": response.apply,
        "propensity": propensity(position),
    }
