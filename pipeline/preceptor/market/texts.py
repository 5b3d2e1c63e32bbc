"""Latent queries, members and postings in short, messy words.

Wording, abbreviations and misspellings vary by the random stream; what decides the grade is always written out.
"""

from __future__ import annotations

import random
import re
from typing import Final

from preceptor.market.industries import industries
from preceptor.market.latent import Direction, Employment, Member, Path, Place, Posting, Query, Workplace
from preceptor.market.roles import catalogue

_YEARS: Final = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 18))
_LEVEL_WORDS: Final = (
    ("trainee", "entry level", "apprentice"),
    ("junior", "jnr"),
    ("mid-level", "experienced"),
    ("senior", "snr", "sr"),
    ("lead", "head", "principal"),
)
_SHORT: Final = {
    "manager": "mgr",
    "assistant": "asst",
    "engineer": "eng",
    "technician": "tech",
    "developer": "dev",
    "executive": "exec",
    "administrator": "admin",
    "operator": "op",
    "officer": "offr",
    "representative": "rep",
    "management": "mgmt",
    "experience": "exp",
    "years": "yrs",
    "required": "req'd",
    "and": "&",
    "with": "w/",
    "department": "dept",
    "customers": "custs",
    "hospital": "hosp",
}
_EMPLOYMENT: Final[dict[Employment, tuple[str, ...]]] = {
    "permanent": ("permanent", "perm"),
    "contract": ("contract", "fixed term contract", "6-mth contract"),
    "temporary": ("temporary", "temp"),
    "part time": ("part time", "p/t", "part-time"),
}
_WORKPLACE: Final[dict[Workplace, tuple[str, ...]]] = {
    "onsite": ("on site", "office based", "on-site 5 days"),
    "hybrid": ("hybrid", "hybrid, 2 days office"),
    "remote": ("fully remote", "remote", "WFH"),
}
_WISH: Final[dict[Workplace, tuple[str, ...]]] = {
    "onsite": ("happy on site",),
    "hybrid": ("hybrid or remote only", "not full-time office"),
    "remote": ("remote only", "must be WFH"),
}
_DIRECTION: Final[dict[Direction, tuple[str, ...]]] = {
    "up": ("wants promotion", "ready to step up", "wants more responsibility"),
    "change": ("moving into {} work", "retraining as {}"),
    "learn": ("wants training", "hopes to qualify further"),
    "steady": ("wants no team to manage", "prefers to stay hands-on"),
}
_PATH: Final[dict[Path, tuple[str, ...]]] = {
    "training": ("full training given", "training & exams paid"),
    "progression": ("clear promotion path", "we promote from within"),
    "leads": ("manages a team of 5", "leads 6 people"),
    "steady": ("hands-on, no team to manage", "no people to manage"),
    "ready": ("no training given", "no time to train anyone"),
}


def query_text(query: Query, rng: random.Random) -> str:
    """What the member types: at most about ten words, mostly lower case."""
    role = catalogue().roles[query.role]
    title = rng.choice(role.titles)
    if query.style == "skills":
        said = " ".join(_skill(skill, rng) for skill in query.skills) + rng.choice((" jobs", " work", ""))
    elif query.style == "abbreviation":
        shorts = [name for name in role.titles if any(len(w) < 6 and w.isupper() for w in name.split())]
        said = rng.choice(shorts) if shorts else _abbreviate(title, rng, share=1.0)
    elif query.style == "sentence":
        said = rng.choice(_SENTENCES).format(title=title)
    elif query.style == "aspirational":
        said = rng.choice(_ASPIRATIONS["up" if query.direction == "up" else "change"]).format(title=title)
    else:
        said = title
    if query.level is not None:
        said = (
            f"{said} {rng.choice(_ASPIRED[query.level])}"
            if query.style == "aspirational"
            else _leveled(said, query.level, rng)
        )
    if query.industry is not None:
        said += f" {rng.choice(industries().words[query.industry])} sector"
    if query.workplace == "remote":
        said += rng.choice((" remote", " WFH", " work from home"))
    if query.place is not None:
        said += rng.choice((" {}", " in {}", " near {}")).format(query.place)
    return _misspell(said if rng.random() < 0.2 else said.lower(), rng, share=0.06)


_SENTENCES: Final = (
    "looking for work as a {title}",
    "any {title} jobs going",
    "i need a {title} job asap",
    "who is hiring a {title}",
    "start soon as {title}",
)
_ASPIRATIONS: Final[dict[Direction, tuple[str, ...]]] = {
    "change": ("want to become a {title}", "move into {title} work", "switch to {title}", "retrain as {title}"),
    "up": ("next step: {title}", "step up to {title}", "promotion to {title}"),
}
_ASPIRED: Final = ("at trainee level", "at junior level", "at mid level", "at senior level", "at lead level")


def profile_text(member: Member, rng: random.Random, *, wanted: str) -> str:
    """The member in about 20 to 35 words: work, level, skills, industry, licences, direction, place, wishes."""
    role = catalogue().roles[member.role]
    parts = [_introduction(role.titles, member.level, rng)]
    skills = ", ".join(_skill(skill, rng) for skill in member.skills)
    parts.append(rng.choice(("{}", "Good at {}", "Skills: {}", "Done {}")).format(skills))
    if member.past is not None:
        parts.append(rng.choice(_PASTS).format(rng.choice(catalogue().roles[member.past].titles)))
    if member.industry is not None:
        named = rng.choice(industries().words[member.industry])
        parts.append(rng.choice(("{} background", "Worked in {} sector")).format(named))
    parts += [_holding(name, state, rng) for name, state in member.holdings]
    parts += _hopes(member, wanted, rng)
    wishes = [member.place] if member.place else []
    if member.workplace is not None:
        wishes.append(rng.choice(_WISH[member.workplace]))
    terms = [rng.choice(_EMPLOYMENT[member.employment])] if member.employment else []
    if member.pay is not None:
        terms.append(rng.choice(("{}k", "£{}k+", "£{},000")).format(member.pay))
    if wishes:
        parts.append(", ".join(wishes))
    if terms:
        parts.append(rng.choice(("Wants {}", "After {}", "Looking for {}")).format(", ".join(terms)))
    text = ". ".join(_capital(part) for part in parts) + "."
    return _misspell(_abbreviate(text, rng, share=0.25), rng, share=0.02)


def _hopes(member: Member, wanted: str, rng: random.Random) -> list[str]:
    """Where the member wants to go; `wanted` is the role that a change of work leads to."""
    parts = []
    if member.direction is not None:
        title = rng.choice(catalogue().roles[wanted].titles)
        parts.append(rng.choice(_DIRECTION[member.direction]).format(title))
    sectors = []
    if member.wished is not None:
        sectors.append(f"wants {rng.choice(industries().words[member.wished])} sector")
    if member.refused is not None:
        sectors.append(f"{rng.choice(('not', 'no'))} {rng.choice(industries().words[member.refused])}")
    return [*parts, *([", ".join(sectors)] if sectors else [])]


_PASTS: Final = ("Before that {}", "Used to be a {}", "Left {} work", "Was {} in the past")


def _introduction(titles: tuple[str, ...], level: int | None, rng: random.Random) -> str:
    title = rng.choice(titles)
    if level is None:
        return title
    low, high = _YEARS[level]
    if level == 0:
        return f"{rng.choice(_LEVEL_WORDS[0])} {title}, no experience yet"
    years = rng.randint(low, high)
    said = f"{title}, {years} {'yr' if years == 1 else 'years'}"
    return f"{rng.choice(_LEVEL_WORDS[level])} {said}" if rng.random() < 0.7 else said


def _holding(name: str, state: str, rng: random.Random) -> str:
    wording = rng.choice(catalogue().credential_wordings[name])
    forms = {
        "held": ("{}", "holds {}", "{} held"),
        "in progress": ("{} in progress", "working towards {}"),
        "lapsed": ("{} lapsed", "{} expired"),
        "absent": ("no {}", "without {}"),
    }
    return rng.choice(forms[state]).format(wording)


def posting_text(posting: Posting, rng: random.Random) -> str:
    """The posting in about 30 to 45 words: title, place, sector, work, skills, licences, pay, the way on; and noise."""
    role = catalogue().roles[posting.role]
    title = rng.choice(role.titles)
    if posting.level is not None and (posting.level != 2 or rng.random() < 0.5):
        title = _leveled(title, posting.level, rng)
    opening = title if rng.random() < 0.7 else f"{title} wanted"
    if posting.brand is not None:
        opening += f" at {posting.brand}"
    where = [*_where(posting.place, rng), *([rng.choice(_WORKPLACE[posting.workplace])] if posting.workplace else [])]
    sector = [f"{rng.choice(industries().words[posting.industry])} sector"] if posting.industry else []
    parts = [", ".join([opening, *where, *sector])]
    parts += _work(posting, role.duties, rng)
    if posting.skills:
        skills = ", ".join(_skill(skill, rng) for skill in posting.skills)
        parts.append(rng.choice(("Must have {}", "Needs {}", "You bring {}", "Required: {}")).format(skills))
    parts += _requirements(posting, rng)
    parts += _terms(posting, rng)
    if posting.path is not None:
        parts.append(rng.choice(_PATH[posting.path]))
    if posting.asides:
        named = rng.choice((" or ", ", ")).join(_skill(skill, rng) for skill in posting.asides)
        parts.append(rng.choice(_ASIDES).format(named))
    if posting.mention is not None:
        other = rng.choice(catalogue().roles[posting.mention].titles)
        parts.append(rng.choice(_MENTIONS).format(other))
    text = ". ".join(_capital(part) for part in parts) + "."
    return _misspell(_abbreviate(text, rng, share=0.2), rng, share=0.015)


_MENTIONS: Final = (
    "You will work beside our {} team",
    "Reports to the {}",
    "Not a {} post, but you will meet one daily",
    "Former {} welcome",
    "Our {} colleagues will rely on you",
)
_ASIDES: Final = ("No {} needed", "{} not part of the job", "{} done by others", "{} no longer needed")
_HYPE: Final = (
    "Rockstars only!! Smash it with the best team ever",
    "The opportunity of a lifetime, sky's the limit!",
    "Amazing vibes, huge rewards, be legendary!!",
)
_BAIT: Final = (
    "EARN £££ from day 1!! £49 starter kit payable by you",
    "No interview, instant start! Send bank details & £30 admin fee",
    "Be your own boss, unlimited £££, buy training pack to begin",
)


def _where(place: Place | None, rng: random.Random) -> list[str]:
    if place is None:
        return []
    if place.town is None:
        return [place.city]
    return [rng.choice(("{}, {} mins from {}", "{} ({} min from {})")).format(place.town, place.minutes, place.city)]


def _work(posting: Posting, duties: tuple[str, ...], rng: random.Random) -> list[str]:
    if posting.tone == "bait":
        return [rng.choice(_BAIT)]
    if posting.tone == "hype":
        return [rng.choice(_HYPE)]
    vague = not posting.skills and posting.pay is None and posting.employment is None
    return ["Various duties as needed"] if vague else [rng.choice(duties)]


def _requirements(posting: Posting, rng: random.Random) -> list[str]:
    wordings = catalogue().credential_wordings
    parts = []
    if posting.credentials:
        named = rng.choice((" & ", " + ")).join(rng.choice(wordings[name]) for name in posting.credentials)
        parts.append(rng.choice(("{} essential", "Must hold {}", "{} required")).format(named))
    if posting.level == 2:
        parts.append(rng.choice(("3-5 years experience", "4+ years in role", "solid 3 years experience")))
    return parts


def _terms(posting: Posting, rng: random.Random) -> list[str]:
    terms = [rng.choice(_EMPLOYMENT[posting.employment])] if posting.employment else []
    if posting.pay is not None:
        low, high = posting.pay
        terms.append(rng.choice((f"£{low}-{high}k", f"£{low},000 to £{high},000", f"{low}k - {high}k")))
    terms += posting.perks
    return [", ".join(terms)] if terms else []


def _leveled(title: str, level: int, rng: random.Random) -> str:
    word = rng.choice(_LEVEL_WORDS[level])
    return f"{title} ({word})" if rng.random() < 0.2 else f"{word} {title}"


def _skill(name: str, rng: random.Random) -> str:
    return rng.choice(catalogue().skill_wordings[name])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _abbreviate(text: str, rng: random.Random, *, share: float) -> str:
    def shorten(match: re.Match[str]) -> str:
        word = match[0]
        short = _SHORT.get(word.lower())
        return short if short is not None and rng.random() < share else word

    return re.sub(r"[A-Za-z]+", shorten, text)


def _misspell(text: str, rng: random.Random, *, share: float) -> str:
    """`text` with about `share` of its plain lower-case words of five letters or more slightly wrong."""

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= share:
            return word
        at = rng.randrange(1, len(word) - 2)
        kind = rng.randrange(3)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return word[:at] + word[at + 1 :] if kind == 1 else word[:at] + word[at] + word[at:]

    return re.sub(r"\b[a-z]{5,}\b", slip, text)
