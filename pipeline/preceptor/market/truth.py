"""The constructed truth: grades by the policy's dimensions, computed from what the texts say and nothing else.

Each rule below is one column of anchors in policy/job_match/rubric.toml. Nobody judged these pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from preceptor.contracts import OVERALL
from preceptor.market.industries import industries
from preceptor.market.latent import Member, Path, Place, Posting, Query, Want, want_of
from preceptor.market.roles import catalogue

if TYPE_CHECKING:
    from preceptor.policy import Rubric

SAME_AREA_MIN: Final = 20
"""Minutes of travel that still count as the same area."""

_HOLDING_GRADE: Final = {"held": 4, "in progress": 3, None: 2, "lapsed": 1, "absent": 0}


def grade(query: Query, member: Member, posting: Posting) -> dict[str, int]:
    """The grade, 0 to 4, of every dimension of the rubric, in its order."""
    want = want_of(query, member)
    return {
        "role": catalogue().relation(want.role, posting.role),
        "skills": _skills(member.skills, posting.skills),
        "seniority": _seniority(want.level, posting.level),
        "credentials": _credentials(dict(member.holdings), posting.credentials),
        "industry": _industry(want, posting.industry),
        "place": _place(want, posting),
        "pay": _pay(member, posting),
        "direction": _direction(want, member, posting),
        "quality": _quality(posting),
    }


def grade_all(query: Query, member: Member, posting: Posting, rubric: Rubric) -> dict[str, int]:
    """`grade` and, last, 'overall' by the rubric's aggregation."""
    grades = grade(query, member, posting)
    return {**grades, OVERALL: rubric.aggregate(grades)}


def explain(grades: Mapping[str, int]) -> str:
    """One line that names what keeps the pair from being ideal, the worst first after the role."""
    others = sorted((name for name in _REASONS if name != "role"), key=lambda name: grades[name])
    found = [_REASONS[name][grades[name]] for name in ("role", *others[:3]) if grades[name] < 4]
    return "; ".join(found) if found else "as wanted in every respect"


_REASONS: Final[Mapping[str, tuple[str, ...]]] = {
    "role": ("unrelated work", "same field, other work", "neighbouring role", "sibling role"),
    "skills": ("no required skill shown", "few required skills shown", "half the skills, or none stated", "small gap"),
    "seniority": ("three or more levels apart", "two levels apart", "one level below", "one level above or unstated"),
    "credentials": ("required licence not held", "licence lapsed", "licence not mentioned", "licence in progress"),
    "industry": (
        "industry ruled out",
        "industry unrelated",
        "industry of the same group",
        "close industry or unstated",
    ),
    "place": ("out of reach", "workplace refused", "long commute or hybrid", "same area or place unstated"),
    "pay": (
        "wrong type and pay far below",
        "wrong type or pay far below",
        "pay somewhat below",
        "pay or type unstated",
    ),
    "direction": (
        "leads away from the wish",
        "hardly a step towards the wish",
        "says nothing of the wish",
        "part of the way or no wish stated",
    ),
    "quality": ("bait", "hype hides the work", "vague", "a gap or two"),
}


def _skills(shown: tuple[str, ...], required: tuple[str, ...]) -> int:
    if not required:
        return 2
    share = sum(skill in shown for skill in required) / len(required)
    if share in (0, 1):
        return int(4 * share)
    return 3 if share > 0.6 else 2 if share > 0.4 else 1


def _seniority(wanted: int | None, offered: int | None) -> int:
    if wanted is None or offered is None:
        return 3
    above = offered - wanted
    return {0: 4, 1: 3, -1: 2, 2: 1, -2: 1}.get(above, 0)


def _credentials(holdings: Mapping[str, str], required: tuple[str, ...]) -> int:
    return min((_HOLDING_GRADE[holdings.get(name)] for name in required), default=4)


def _industry(want: Want, offered: str | None) -> int:
    if offered is not None and offered == want.refused:
        return 0
    if offered is None or want.industry is None:
        return 3
    return industries().relation(want.industry, offered)


def _place(want: Want, posting: Posting) -> int:
    if posting.workplace == "remote":
        return 4
    reach = _reach(want.place, posting.place)
    if reach == 0 or want.workplace is None:
        return reach
    if posting.workplace == "onsite":
        return 1
    if posting.workplace is None:
        return min(reach, 3)
    return min(reach, 2) if want.workplace == "remote" else reach


def _reach(wanted: str | None, offered: Place | None) -> int:
    if wanted is None or offered is None:
        return 3
    if wanted != offered.city:
        return 0
    if offered.minutes > SAME_AREA_MIN:
        return 2
    return 4 if offered.town is None else 3


def _pay(member: Member, posting: Posting) -> int:
    wrong_type = None not in (member.employment, posting.employment) and member.employment != posting.employment
    ratio = None if member.pay is None or posting.pay is None else posting.pay[1] / member.pay
    far_below = ratio is not None and ratio < 0.85
    if wrong_type or far_below:
        return 0 if wrong_type and far_below else 1
    if ratio is not None and ratio < 1:
        return 2
    type_unstated = member.employment is not None and posting.employment is None
    return 3 if ratio is None or type_unstated else 4


def _direction(want: Want, member: Member, posting: Posting) -> int:
    if want.direction is None:
        return 3
    if want.direction == "change":
        return _change(want.role, member.role, posting)
    if want.direction == "up":
        return _up(member.level, posting)
    return _WISHED_PATHS[want.direction].get(posting.path, 2)


_WISHED_PATHS: Final[Mapping[str, Mapping[Path | None, int]]] = {
    "learn": {"training": 4, "progression": 3, "steady": 1, "ready": 0},
    "steady": {"steady": 4, "training": 3, "progression": 1, "leads": 0},
}
"""The direction grade by what the posting says of the way on; 2 where it says nothing that bears on the wish."""


def _change(wanted: str, left: str, posting: Posting) -> int:
    """Into the work of `wanted`, out of the work of `left`."""
    relation = catalogue().relation(wanted, posting.role)
    if posting.role == left or relation == 0:
        return 0
    if relation >= 3:
        return {"training": 4, "ready": 2}.get(posting.path or "", 3)
    return relation + (relation == 2 and posting.path == "training")


def _up(level: int | None, posting: Posting) -> int:
    above = 0 if level is None or posting.level is None else posting.level - level
    if above < 0:
        return 1 if posting.path == "progression" else 0
    if above > 0 or posting.path == "leads":
        return 4
    return {"progression": 3, "steady": 1}.get(posting.path or "", 2)


def _quality(posting: Posting) -> int:
    if posting.tone != "plain":
        return 0 if posting.tone == "bait" else 1
    place_known = posting.place is not None or posting.workplace == "remote"
    stated = (bool(posting.skills), place_known, posting.pay is not None, posting.employment is not None)
    num_gaps = stated.count(False)
    return 4 if num_gaps == 0 else 3 if num_gaps <= 2 else 2
