"""What a query, a member and a posting are before they become words, and how queries and members are drawn.

A value of None, or an empty tuple, means that the text will not say it; the truth (truth.py) then treats it as unknown.
So the text determines the grade. Everything here is constructed: no real person, employer or posting stands behind it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from preceptor.market.industries import industries
from preceptor.market.roles import LEVELS, REMOTE_FAMILIES, Catalogue, Role, catalogue

Workplace = Literal["onsite", "hybrid", "remote"]
Employment = Literal["permanent", "contract", "temporary", "part time"]
Holding = Literal["held", "in progress", "lapsed", "absent"]
Tone = Literal["plain", "hype", "bait"]
Style = Literal["title", "abbreviation", "title_place", "skills", "sentence", "aspirational"]
Direction = Literal["up", "change", "learn", "steady"]
Path = Literal["training", "progression", "leads", "steady", "ready"]

STYLES: Final[tuple[Style, ...]] = ("title", "abbreviation", "title_place", "skills", "sentence", "aspirational")
EMPLOYMENTS: Final[tuple[Employment, ...]] = ("permanent", "contract", "temporary", "part time")

CITIES: Final = {
    "Leeds": ("Pudsey", "Selby"),
    "London": ("Croydon", "Luton"),
    "Manchester": ("Salford", "Buxton"),
    "Birmingham": ("Solihull", "Stafford"),
    "Bristol": ("Filton", "Swindon"),
    "Glasgow": ("Paisley", "Stirling"),
    "Edinburgh": ("Leith", "Kirkcaldy"),
    "Cardiff": ("Penarth", "Swansea"),
    "Belfast": ("Lisburn", "Ballymena"),
    "Liverpool": ("Bootle", "Southport"),
    "Newcastle": ("Gateshead", "Hexham"),
    "Sheffield": ("Rotherham", "Worksop"),
    "Nottingham": ("Beeston", "Newark"),
    "Southampton": ("Eastleigh", "Salisbury"),
    "Norwich": ("Wymondham", "Thetford"),
    "Plymouth": ("Saltash", "Torquay"),
    "Hull": ("Hessle", "Scunthorpe"),
    "Oxford": ("Abingdon", "Banbury"),
    "Cambridge": ("Histon", "Ely"),
    "Exeter": ("Exmouth", "Tiverton"),
    "Aberdeen": ("Westhill", "Peterhead"),
    "Brighton": ("Hove", "Hastings"),
    "Derby": ("Ilkeston", "Matlock"),
    "York": ("Haxby", "Malton"),
}
"""City: a town next door, and one a long commute away."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A city (`town` None), or a town `minutes` away from it; up to 20 minutes is the same area."""

    city: str
    town: str | None = None
    minutes: int = 0


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the member asks for. `skills` are the ones the text names instead of a title (style skills).

    An aspirational query says the `direction`: 'up', or 'change' into the work of `role`.
    """

    style: Style
    role: str
    level: int | None = None
    place: str | None = None
    workplace: Workplace | None = None
    skills: tuple[str, ...] = ()
    industry: str | None = None
    direction: Direction | None = None


@dataclass(frozen=True, kw_only=True)
class Member:
    """Who asks. `role` is the work they do now, `past` work they left; `pay` is wanted, in thousands a year.

    `holdings` pairs a credential with how it is held; a credential not listed is one the profile is silent about.
    `industry` was worked in, `wished` is looked for, `refused` is ruled out. `direction` is where the career is to go:
    up, into the work of the query ('change'), to more learning, or on with the work in hand and no team ('steady').
    """

    role: str
    level: int | None
    skills: tuple[str, ...]
    past: str | None = None
    holdings: tuple[tuple[str, Holding], ...] = ()
    place: str | None = None
    workplace: Workplace | None = None
    pay: int | None = None
    employment: Employment | None = None
    industry: str | None = None
    wished: str | None = None
    refused: str | None = None
    direction: Direction | None = None


@dataclass(frozen=True, kw_only=True)
class Posting:
    """What is offered. `pay` is a range in thousands a year.

    `mention` is a role and `asides` are skills that the text names without offering or requiring them. `path` is what
    the posting says of the way on: training, promotion, a team to lead, none to lead, or no training at all ('ready').
    """

    role: str
    level: int | None = None
    skills: tuple[str, ...] = ()
    credentials: tuple[str, ...] = ()
    place: Place | None = None
    workplace: Workplace | None = None
    pay: tuple[int, int] | None = None
    employment: Employment | None = None
    tone: Tone = "plain"
    brand: str | None = None
    perks: tuple[str, ...] = ()
    mention: str | None = None
    asides: tuple[str, ...] = ()
    industry: str | None = None
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Want:
    """Query and profile together: the query speaks first, the profile where the query is silent."""

    role: str
    level: int | None
    place: str | None
    workplace: Workplace | None
    industry: str | None
    refused: str | None
    direction: Direction | None


def want_of(query: Query, member: Member) -> Want:
    """What this member wants with this query."""
    return Want(
        role=query.role,
        level=member.level if query.level is None else query.level,
        place=query.place or member.place,
        workplace=query.workplace or member.workplace,
        industry=query.industry or member.wished or member.industry,
        refused=member.refused if query.industry is None else None,
        direction=query.direction or member.direction,
    )


def stream(seed: int, *key: str | int) -> random.Random:
    """The random stream of `key`: it depends on nothing drawn before, so any range can be generated alone."""
    return random.Random("/".join(map(str, (seed, *key))))


def subset(rng: random.Random, items: Sequence[_T], size: int) -> tuple[_T, ...]:
    """Up to `size` of `items`, in random order."""
    return tuple(rng.sample(items, min(size, len(items))))


def sample_ask(rng: random.Random) -> tuple[Query, Member]:
    """A query and the member who types it."""
    known = catalogue()
    role = known.roles[rng.choice(list(known.roles))]
    style = rng.choice(STYLES)
    changes_work = rng.random() < (0.6 if style == "aspirational" else 0.05)
    member = _sample_member(rng, role, known=known, style=style, changes_work=changes_work)
    return _sample_query(rng, role, style, member), member


def _sample_query(rng: random.Random, role: Role, style: Style, member: Member) -> Query:
    level = None
    if style == "aspirational" and member.level is not None and member.role == role.name:
        level = min(member.level + 1, len(LEVELS) - 1)
    elif style in ("title", "title_place") and member.level in (0, 1, 3, 4) and rng.random() < 0.3:
        level = member.level
    place = None
    if style == "title_place" or member.place is None:
        place = member.place if member.place and rng.random() < 0.8 else rng.choice(list(CITIES))
    asks_remote = style in ("title", "sentence") and role.family in REMOTE_FAMILIES and rng.random() < 0.3
    return Query(
        style=style,
        role=role.name,
        level=level,
        place=place,
        workplace="remote" if asks_remote else None,
        skills=subset(rng, role.skills, 3) if style == "skills" else (),
        industry=_sample_industry(rng, role) if style in ("title", "sentence") and rng.random() < 0.15 else None,
        direction=_asked_direction(role, member) if style == "aspirational" else None,
    )


def _asked_direction(role: Role, member: Member) -> Direction:
    return "up" if member.role == role.name else "change"


def _sample_industry(rng: random.Random, role: Role) -> str:
    return rng.choice(industries().settings[role.family])


def _sample_member(rng: random.Random, wanted: Role, *, known: Catalogue, style: Style, changes_work: bool) -> Member:
    current = wanted
    if changes_work:
        near = known.related(wanted.name, 3) or known.related(wanted.name, 2)
        current = known.roles[rng.choice(near)]
    level = rng.choices(range(len(LEVELS)), weights=(1, 3, 5, 4, 2))[0]
    skills = subset(rng, current.skills, 4)
    if current is not wanted:
        borrowed = [skill for skill in wanted.skills if skill not in skills]
        skills = (*skills[:3], *subset(rng, borrowed, 2))
    workplace: Workplace | None = None
    if wanted.family in REMOTE_FAMILIES and rng.random() < 0.35:
        workplace = rng.choice(("remote", "hybrid"))
    worked_in = _sample_industry(rng, current) if rng.random() < 0.75 else None
    wished = _sample_industry(rng, wanted) if rng.random() < 0.2 else None
    refused = _sample_industry(rng, wanted) if rng.random() < 0.3 else None
    return Member(
        role=current.name,
        level=None if rng.random() < 0.08 else level,
        skills=skills,
        past=rng.choice(list(known.roles)) if rng.random() < 0.6 else None,
        holdings=_sample_holdings(rng, wanted),
        place=None if rng.random() < 0.06 else rng.choice(list(CITIES)),
        workplace=workplace,
        pay=round(wanted.typical_pay(level) * rng.uniform(0.92, 1.05)) if rng.random() < 0.75 else None,
        employment=rng.choices(EMPLOYMENTS, weights=(6, 1, 1, 2))[0] if rng.random() < 0.5 else None,
        industry=worked_in,
        wished=wished,
        refused=None if refused in (worked_in, wished) else refused,
        direction=_sample_direction(rng, level, style=style, changes_work=current is not wanted),
    )


def _sample_direction(rng: random.Random, level: int, *, style: Style, changes_work: bool) -> Direction | None:
    """A wish of the profile; an aspirational query has said its own."""
    if style == "aspirational":
        return None
    if changes_work:
        return "change"
    wishes: tuple[Direction, ...] = ("up", "learn", "steady")
    return rng.choices(wishes, weights=(0 if level == len(LEVELS) - 1 else 3, 2, 2))[0] if rng.random() < 0.5 else None


def _sample_holdings(rng: random.Random, role: Role) -> tuple[tuple[str, Holding], ...]:
    states: tuple[Holding | None, ...] = ("held", "in progress", "lapsed", "absent", None)
    drawn = [(name, rng.choices(states, weights=(64, 8, 6, 14, 8))[0]) for name in role.needs]
    return tuple((name, state) for name, state in drawn if state is not None)
