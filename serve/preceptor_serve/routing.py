"""Which bundle answers which request while a new one is tried: the rollout's state and its steps, as pure functions.

A slot is the name of a Serve application that holds a deployment `Scorer`. One slot is live; another may be the
candidate, which answers a share of the members (canary) and scores a share of the requests besides (shadow); the slot
that was live before the last promotion is kept as the previous one, so that going back needs no start.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from preceptor.contracts import content_id
from preceptor.errors import StageFailed


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The state of a rollout; `folder` is where each edge writes what shadow requests showed, None for nowhere."""

    live: str
    candidate: str | None = None
    previous: str | None = None
    share: float = 0.0
    shadow: float = 0.0
    folder: str | None = None
    revision: int = 0

    @property
    def slots(self) -> tuple[str, ...]:
        """Every slot that this state names, the live one first."""
        return tuple(slot for slot in (self.live, self.candidate, self.previous) if slot is not None)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def routing_from(text: str | bytes) -> Routing:
    """The Routing that `to_json` wrote."""
    return Routing(**json.loads(text))


def is_canary(routing: Routing, query: str, profile: str) -> bool:
    """Whether the candidate answers this request.

    The member decides, known by the profile, or by the query where there is none: the same one sees the same bundle
    for as long as the share stands, and a greater share keeps everyone a smaller one had. Each candidate draws anew.
    """
    if routing.candidate is None or not routing.share:
        return False
    member = profile if profile.strip() else query
    return int(content_id("canary", routing.candidate, member), 16) < routing.share * 2**64


def staged(routing: Routing, slot: str) -> Routing:
    """`slot` as the candidate, with no share yet; StageFailed where it is live, or another candidate is in use."""
    if slot == routing.live:
        raise StageFailed(f"{slot} is live already. Stage another bundle.")
    if slot == routing.candidate:
        return routing
    if routing.candidate is not None and (routing.share or routing.shadow):
        raise StageFailed(
            f"{routing.candidate} is the candidate, with share {routing.share:g} and shadow {routing.shadow:g}. "
            "Promote it, or roll it back first."
        )
    previous = None if slot == routing.previous else routing.previous
    return replace(routing, candidate=slot, previous=previous, share=0.0, shadow=0.0)


def shared(routing: Routing, share: float) -> Routing:
    """`share` of the members are answered by the candidate; StageFailed where there is none or it is no share."""
    _require_candidate(routing)
    return replace(routing, share=_a_share(share))


def shadowed(routing: Routing, shadow: float, folder: str | None) -> Routing:
    """`shadow` of the requests are scored by the candidate besides, compared in `folder`; StageFailed as `shared`."""
    _require_candidate(routing)
    return replace(routing, shadow=_a_share(shadow), folder=folder)


def promoted(routing: Routing) -> Routing:
    """The candidate as the live slot, what was live as the previous one; StageFailed where there is no candidate."""
    candidate = _require_candidate(routing)
    return replace(routing, live=candidate, candidate=None, previous=routing.live, share=0.0, shadow=0.0)


def rolled_back(routing: Routing) -> Routing:
    """A step back: nothing goes to the candidate or, where none is staged, the previous slot is live again.

    What was live is then the candidate, without a share: a second step back changes nothing.
    """
    if routing.candidate is not None:
        return replace(routing, share=0.0, shadow=0.0)
    if routing.previous is not None:
        return replace(routing, live=routing.previous, candidate=routing.live, previous=None, share=0.0, shadow=0.0)
    return routing


def retired(routing: Routing, *, own: str) -> Routing:
    """Without a previous slot, and without a candidate that nothing goes to. The slot `own` cannot end, being the app.

    StageFailed where the candidate is in use.
    """
    if routing.share or routing.shadow:
        raise StageFailed(
            f"{routing.candidate} still has share {routing.share:g} and shadow {routing.shadow:g}. "
            "Promote it, or roll it back first."
        )
    return replace(routing, candidate=None, previous=own if routing.live != own else None)


def _require_candidate(routing: Routing) -> str:
    if routing.candidate is None:
        raise StageFailed("No candidate is staged. Stage one first: preceptor rollout stage BUNDLE.")
    return routing.candidate


def _a_share(share: float) -> float:
    if not 0 <= share <= 1:
        raise StageFailed(f"A share lies between 0 and 1, got {share:g}.")
    return share
