"""How the candidate postings of one ask are drawn: from ideal to unrelated, with decoys and attractive misfits."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Literal

from preceptor.market.industries import industries
from preceptor.market.latent import (
    CITIES,
    EMPLOYMENTS,
    Direction,
    Member,
    Path,
    Place,
    Posting,
    Query,
    Want,
    Workplace,
    subset,
    want_of,
)
from preceptor.market.roles import LEVELS, REMOTE_FAMILIES, Role, catalogue

Kind = Literal["ideal", "good", "flawed", "sibling", "family", "adjacent", "decoy", "attractive", "random"]

MIX: Final[tuple[Kind, ...]] = (
    *("ideal",) * 3,
    *("good",) * 3,
    *("sibling",) * 3,
    *("family",) * 2,
    *("flawed",) * 2,
    "adjacent",
    *("attractive",) * 2,
    *("decoy",) * 3,
    "random",
)
"""Kinds of twenty candidates; other numbers take evenly spaced ones."""

BRANDS: Final = ("Halden & Moor", "Northgate Group", "Brightwell", "Castlebrook", "Fenwick Vale", "Orchard Lane")
PERKS: Final = ("free gym", "4-day week", "big bonus", "28 days hols", "company car", "share scheme", "free parking")


def kinds_for(rng: random.Random, num_documents: int) -> tuple[Kind, ...]:
    """`num_documents` kinds, evenly spaced over MIX from a random start, so that any number spans good to bad."""
    start = rng.random()
    return tuple(MIX[int((start + index) * len(MIX) / num_documents) % len(MIX)] for index in range(num_documents))


def sample_posting(rng: random.Random, kind: Kind, query: Query, member: Member) -> Posting:
    """One posting of `kind` for this ask."""
    return _KINDS[kind](rng, query, member)


def _ideal(rng: random.Random, query: Query, member: Member) -> Posting:
    return _suited(rng, query.role, query, member)


def _good(rng: random.Random, query: Query, member: Member) -> Posting:
    return _worsen(rng, _ideal(rng, query, member), query, member, _MINOR, count=rng.choice((1, 2, 3)))


def _flawed(rng: random.Random, query: Query, member: Member) -> Posting:
    return _worsen(rng, _good(rng, query, member), query, member, _FATAL, count=1)


def _sibling(rng: random.Random, query: Query, member: Member) -> Posting:
    known = catalogue()
    near = known.related(query.role, 3) or known.related(query.role, 2)
    posting = _tempting(rng, _suited(rng, rng.choice(near), query, member), query, member)
    return _worsen(rng, posting, query, member, _MINOR, count=rng.choice((0, 1)))


def _family(rng: random.Random, query: Query, member: Member) -> Posting:
    known = catalogue()
    posting = _suited(rng, rng.choice(known.related(query.role, 2) or known.related(query.role, 1)), query, member)
    return _worsen(rng, _tempting(rng, posting, query, member), query, member, _MINOR, count=rng.choice((0, 1)))


def _adjacent(rng: random.Random, query: Query, member: Member) -> Posting:
    posting = _suited(rng, rng.choice(catalogue().related(query.role, 1)), query, member)
    return _tempting(rng, posting, query, member)


def _decoy(rng: random.Random, query: Query, member: Member) -> Posting:
    known = catalogue()
    lookalikes = known.lookalikes[query.role] or known.related(query.role, 1)
    role = member.past if member.past is not None and rng.random() < 0.5 else rng.choice(lookalikes)
    posting = _suited(rng, role, query, member)
    return replace(posting, mention=query.role, asides=subset(rng, member.skills, 2))


def _attractive(rng: random.Random, query: Query, member: Member) -> Posting:
    """Well paid, known and full of perks; and the wrong work, out of reach, or bait."""
    trap = rng.choice(("work", "fatal", "bait"))
    if trap == "work":
        posting = _decoy(rng, query, member)
    elif trap == "fatal":
        posting = _flawed(rng, query, member)
    else:
        posting = replace(_ideal(rng, query, member), tone="bait", skills=())
    return replace(
        posting,
        pay=_pay_range(rng, posting.role, 3 if posting.level is None else posting.level, ratio=1.45),
        tone=posting.tone if posting.tone == "bait" else rng.choice(("hype", "plain")),
        brand=None if posting.tone == "bait" else rng.choice(BRANDS),
        perks=subset(rng, PERKS, 2),
    )


def _random(rng: random.Random, query: Query, member: Member) -> Posting:
    return _tempting(rng, _suited(rng, rng.choice(list(catalogue().roles)), query, member), query, member)


_KINDS: Final[Mapping[Kind, Callable[[random.Random, Query, Member], Posting]]] = {
    "ideal": _ideal,
    "good": _good,
    "flawed": _flawed,
    "sibling": _sibling,
    "family": _family,
    "adjacent": _adjacent,
    "decoy": _decoy,
    "attractive": _attractive,
    "random": _random,
}


def _suited(rng: random.Random, role_name: str, query: Query, member: Member) -> Posting:
    """A posting for `role_name` that suits the member in everything but, perhaps, the work."""
    role = catalogue().roles[role_name]
    want = want_of(query, member)
    level = want.level if want.level is not None else rng.choice((1, 2, 3))
    held = {name for name, state in member.holdings if state == "held"}
    if role_name == query.role:
        credentials = tuple(name for name in role.needs if name in held)
        skills = _fitting_skills(rng, role, member)
    else:
        credentials, skills = role.needs, subset(rng, role.skills, 3)
    brand = rng.choice(BRANDS) if rng.random() < 0.15 else None
    stated_level = level if rng.random() < 0.9 else None
    return Posting(
        role=role_name,
        level=stated_level,
        skills=skills,
        credentials=credentials,
        place=_place_near(rng, want),
        workplace=_workplace(rng, want, role.family),
        pay=_pay_asked(rng, role_name, level, member) if rng.random() < 0.8 else None,
        employment=(member.employment or rng.choice(EMPLOYMENTS)) if rng.random() < 0.75 else None,
        tone="plain",
        brand=brand,
        perks=subset(rng, PERKS, 1) if rng.random() < 0.15 else (),
        mention=rng.choice(list(catalogue().roles)) if rng.random() < 0.35 else None,
        asides=subset(rng, rng.choice(list(catalogue().roles.values())).skills, 2) if rng.random() < 0.5 else (),
        industry=_industry_near(rng, want, role.family) if rng.random() < 0.7 else None,
        path=_path_suited(rng, want.direction, stated_level) if rng.random() < 0.6 else None,
    )


def _industry_near(rng: random.Random, want: Want, family: str) -> str:
    """The industry wanted, or at times another that the work is found in and the member does not rule out."""
    if want.industry is not None and rng.random() < 0.65:
        return want.industry
    return rng.choice([name for name in industries().settings[family] if name != want.refused])


_SUITED: Final[Mapping[Direction, tuple[Path, ...]]] = {
    "up": ("progression", "leads"),
    "change": ("training",),
    "learn": ("training", "progression"),
    "steady": ("steady",),
}


def _path_suited(rng: random.Random, direction: Direction | None, level: int | None) -> Path:
    """A way on that a posting of this level may promise, more often than not one that the member wants."""
    likely = _likely_paths(level)
    suited = [path for path in likely if direction is not None and path in _SUITED[direction]]
    return rng.choice(suited if suited and rng.random() < 0.7 else likely)


_PATH_LEVELS: Final[Mapping[Path, range]] = {
    "steady": range(5),
    "training": range(3),
    "leads": range(3, 5),
    "progression": range(4),
    "ready": range(1, 5),
}


def _likely_paths(level: int | None) -> list[Path]:
    return [path for path, levels in _PATH_LEVELS.items() if (2 if level is None else level) in levels]


def _fitting_skills(rng: random.Random, role: Role, member: Member) -> tuple[str, ...]:
    """Two or three skills of the role that the member shows; at times one more that they do not."""
    shown = [skill for skill in member.skills if skill in role.skills]
    other = [skill for skill in role.skills if skill not in member.skills]
    if len(shown) < 2:
        return subset(rng, role.skills, 3)
    skills = (
        (*subset(rng, shown, 2), rng.choice(other)) if rng.random() < 0.6 else subset(rng, shown, rng.choice((2, 3)))
    )
    return subset(rng, skills, len(skills))


def _tempting(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    """The posting, at times naming the wanted work or the member's skills without asking for them."""
    mention = rng.choice((query.role, member.role)) if rng.random() < 0.6 else posting.mention
    asides = subset(rng, member.skills, 2) if rng.random() < 0.9 else posting.asides
    return replace(posting, mention=mention, asides=tuple(skill for skill in asides if skill not in posting.skills))


def _place_near(rng: random.Random, want: Want) -> Place | None:
    if rng.random() < 0.06:
        return None
    return Place(city=want.place or rng.choice(list(CITIES)))


def _workplace(rng: random.Random, want: Want, family: str) -> Workplace | None:
    if family not in REMOTE_FAMILIES:
        return None
    return want.workplace or rng.choice(("onsite", "hybrid", "remote", None))


def _pay_asked(rng: random.Random, role_name: str, level: int, member: Member) -> tuple[int, int]:
    if member.pay is None:
        return _pay_range(rng, role_name, level, ratio=1.0)
    low = round(member.pay * rng.uniform(0.95, 1.04))
    return low, max(low, member.pay) + rng.choice((1, 2, 3, 5))


def _pay_range(rng: random.Random, role_name: str, level: int, *, ratio: float) -> tuple[int, int]:
    middle = catalogue().roles[role_name].typical_pay(level) * ratio
    return round(middle * rng.uniform(0.93, 0.98)), round(middle * rng.uniform(1.02, 1.08))


Change = Callable[[random.Random, Posting, Query, Member], Posting]


def _worsen(
    rng: random.Random, posting: Posting, query: Query, member: Member, changes: tuple[Change, ...], *, count: int
) -> Posting:
    for change in rng.sample(changes, count):
        posting = change(rng, posting, query, member)
    return posting


def _other_level(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    return _shift(posting, query, member, rng.choice((1, -1)))


def _wrong_level(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    wanted = want_of(query, member).level
    return _shift(posting, query, member, 3 if (2 if wanted is None else wanted) < 2 else -3)


def _shift(posting: Posting, query: Query, member: Member, steps: int) -> Posting:
    wanted = want_of(query, member).level
    base = 2 if wanted is None else wanted
    shifted = base + steps if 0 <= base + steps < len(LEVELS) else base - steps
    return replace(posting, level=min(max(shifted, 0), len(LEVELS) - 1))


def _town(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    city = want_of(query, member).place or (posting.place.city if posting.place else "London")
    near, far = CITIES[city]
    place = Place(city=city, town=far, minutes=rng.choice((55, 60, 70)))
    if rng.random() < 0.4:
        place = Place(city=city, town=near, minutes=rng.choice((10, 15, 20)))
    return replace(posting, place=place, workplace=None if posting.workplace == "remote" else posting.workplace)


def _far(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    wanted = want_of(query, member).place
    city = rng.choice([city for city in CITIES if city != wanted])
    return replace(posting, place=Place(city=city), workplace="onsite" if posting.workplace else None)


def _unheld(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    """Every licence of the role required; where the member holds them all, out of reach instead."""
    needs = catalogue().roles[posting.role].needs
    if all((name, "held") in member.holdings for name in needs):
        return _far(rng, posting, query, member)
    return replace(posting, credentials=needs)


def _other_skills(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    missing = [skill for skill in catalogue().roles[posting.role].skills if skill not in member.skills]
    return replace(posting, skills=(*posting.skills[:1], *subset(rng, missing, 2)))


def _low_pay(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    level = 2 if posting.level is None else posting.level
    wanted = member.pay or catalogue().roles[posting.role].typical_pay(level)
    top = round(wanted * rng.choice((0.75, 0.9)))
    return replace(posting, pay=(top - rng.choice((1, 2)), top))


def _other_type(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    return replace(posting, employment=rng.choice([kind for kind in EMPLOYMENTS if kind != member.employment]))


def _vague(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    return replace(posting, skills=(), pay=None, employment=None)


def _hype(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    return replace(posting, tone="hype", perks=subset(rng, PERKS, 1))


def _other_industry(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    """One that the member rules out; or another than the one wanted, as often a related one as any other."""
    want = want_of(query, member)
    if want.refused is not None and rng.random() < 0.5:
        return replace(posting, industry=want.refused)
    known, wanted = industries(), want.industry
    others = [name for name in known.settings[catalogue().roles[posting.role].family] if name != wanted]
    related = [name for name in known.words if wanted is not None and known.relation(wanted, name) in (2, 3)]
    return replace(posting, industry=rng.choice(related if related and rng.random() < 0.5 else others))


def _ruled_out(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    """The industry that the member rules out; where there is none, out of reach instead."""
    refused = want_of(query, member).refused
    return _far(rng, posting, query, member) if refused is None else replace(posting, industry=refused)


def _other_path(rng: random.Random, posting: Posting, query: Query, member: Member) -> Posting:
    wish = want_of(query, member).direction
    suited = () if wish is None else _SUITED[wish]
    return replace(posting, path=rng.choice([path for path in _likely_paths(posting.level) if path not in suited]))


_MINOR: Final[tuple[Change, ...]] = (
    _other_level,
    _town,
    _other_skills,
    _low_pay,
    _other_type,
    _vague,
    _hype,
    _other_industry,
    _other_path,
)
_FATAL: Final[tuple[Change, ...]] = (_wrong_level, _far, _unheld, _ruled_out)
