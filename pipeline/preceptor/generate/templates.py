"""Queries by rule: what members type, from the fields of a posting or profile, in several seeded wordings a style."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any, Final

from preceptor.recipe import QueryStyle

_WORDINGS: Final[Mapping[QueryStyle, tuple[str, ...]]] = {
    "title": ("{title}", "{title} jobs", "{title} vacancies"),
    "title_place": ("{title} {place}", "{title} in {place}", "{title} jobs {place}"),
    "skills": ("{skills}", "{skills} jobs", "jobs that use {skills}"),
    "sentence": (
        "I am looking for a job as {a_title}",
        "I am looking for a job as {a_title} in {place}",
        "are there any {title} positions near {place}",
        "I know {skills} and would like to work as {a_title}",
    ),
    "aspirational": (
        "I want to become {a_title}",
        "how do I get my first job as {a_title}",
        "I would like to grow into {a_title} role",
        "one day I want to lead a team as {a_title}",
    ),
}
# A member who is one already does not want to become one.
_STEPS_UP: Final = (
    "senior {title} jobs",
    "next step after {title}",
    "I work as {a_title} and want to lead a team",
    "from {title} to management",
)
_FIELD: Final = re.compile(r"{(?:a_)?(\w+)}")
# What stands behind the title proper: "Staff Nurse - Nights (m/f/d) | Acme".
_TITLE_ENDS: Final = re.compile(r"\s[-\u2013\u2014|/]\s|[(\[|,;:]")
_MAX_TITLE_WORDS: Final = 6
_MAX_SKILLS: Final = 3


def write_by_rule(draft: Mapping[str, Any], seed: int) -> str:
    """The query of a DRAFTS row: a wording of its style that the row has all fields for, chosen by `seed` and row."""
    rng = random.Random(f"{seed} {draft['origin']} {draft['index']} {draft['style']}")
    skills = [skill.lower() for skill in draft["skills"]]
    title = spoken_title(draft["title"])
    values = {
        "title": title,
        "a_title": f"{'an' if title[:1] in tuple('aeiou') else 'a'} {title}",
        "place": spoken_place(draft["place"]),
        "skills": " ".join(rng.sample(skills, min(len(skills), _MAX_SKILLS))),
    }
    steps_up = draft["style"] == "aspirational" and draft["origin"] == "profiles"
    wordings = _STEPS_UP if steps_up else _WORDINGS[draft["style"]]
    able = [wording for wording in wordings if all(values[name] for name in _FIELD.findall(wording))]
    return rng.choice(able).format(**values) if able else ""


def spoken_title(title: str) -> str:
    """A posting's title as it is typed: lower case, without what follows the title proper."""
    plain = _TITLE_ENDS.split(title.strip(), maxsplit=1)[0]
    return " ".join(plain.lower().split()[:_MAX_TITLE_WORDS])


def spoken_place(place: str) -> str:
    """A place as it is typed: its first part, in lower case."""
    return " ".join(re.split(r"[,(|/]", place.strip(), maxsplit=1)[0].lower().split())
