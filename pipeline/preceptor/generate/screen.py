"""Personal data in texts: e-mail addresses and phone numbers, found, counted, and masked or dropped with their text.

Phone numbers are found by Google's libphonenumber. Its strictest leniency still takes ten digits of a reference number
for a phone, hence the words that rule a match out. Names and postal addresses are not looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from preceptor.contracts import REJECTS, read_table, rows_to_table, write_table
from preceptor.generate.texts import TEXTS

Kind = Literal["email", "phone"]
PERSONAL: Final = "personal data"

_AT: Final = r"(?:@|\s?[(\[]\s?at\s?[)\]]\s?)"
_DOT: Final = r"(?:\.|\s?[(\[]\s?dot\s?[)\]]\s?)"
_EMAIL: Final = re.compile(
    rf"(?<![\w.+-])[a-z0-9](?:[a-z0-9_%+'.-]{{0,62}}[a-z0-9_+-])?{_AT}"
    rf"(?:[a-z0-9](?:[a-z0-9-]{{0,61}}[a-z0-9])?{_DOT}){{1,8}}[a-z]{{2,24}}(?![\w@])",
    re.IGNORECASE,
)
# The matcher takes 3 ms for two pages; this finds the texts that have seven digits with at most 4 signs between two.
_MAYBE_PHONE: Final = re.compile(r"\d(?:[\s().\-/\u2010-\u2015]{0,4}\d){6}")
_NO_PHONE_AFTER: Final = re.compile(
    r"(?:\b(?:ref|refs|reference|id|req|requisition|vacancy|job|order|invoice|account|licen[cs]e|isbn|vat|code"
    r"|salary|pay)\b(?:\s+(?:no|number|code|id|is|of))?|[#\u00a3$\u20ac])[\s.:#-]*$",
    re.IGNORECASE,
)
_LOOKBACK: Final = 24


@dataclass(frozen=True, kw_only=True)
class Found:
    """One piece of personal data: characters `start` to `stop` of its text."""

    kind: Kind
    start: int
    stop: int


def find_personal(text: str, regions: Sequence[str]) -> list[Found]:
    """The e-mail addresses and phone numbers in `text`, in its order, none overlapping another.

    Numbers without a country code are read as of each of `regions`, such as ``US``.
    """
    found = [Found(kind="email", start=hit.start(), stop=hit.end()) for hit in _EMAIL.finditer(text)]
    if _MAYBE_PHONE.search(text):
        found += [hit for region in regions for hit in _phones(text, region)]
    apart: list[Found] = []
    for hit in sorted(found, key=lambda hit: (hit.start, -hit.stop)):
        if not apart or hit.start >= apart[-1].stop:
            apart.append(hit)
    return apart


def mask(text: str, found: Sequence[Found]) -> str:
    """`text` with ``[email]`` or ``[phone]`` in place of each of `found`."""
    pieces, end = [], 0
    for hit in found:
        pieces += [text[end : hit.start], f"[{hit.kind}]"]
        end = hit.stop
    return "".join([*pieces, text[end:]])


def _phones(text: str, region: str) -> list[Found]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    matches = PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING, max_tries=1000)
    return [
        Found(kind="phone", start=match.start, stop=match.end)
        for match in matches
        if match.raw_string.startswith("+")
        or not _NO_PHONE_AFTER.search(text, max(0, match.start - _LOOKBACK), match.start)
    ]


@dataclass(frozen=True, kw_only=True)
class ScreenWork:
    """Screens `parts`, files below `source` named ``{corpus}/{part}``, to the same names below `target`."""

    parts: tuple[tuple[str, str], ...]
    source: Path
    target: Path
    rejects: Path
    action: Literal["mask", "drop"]
    regions: tuple[str, ...]

    def open(self) -> Callable[[int], Mapping[str, int]]:
        """Screens the part that stands at `number`."""
        return partial(screen_part, work=self)


def screen_part(number: int, *, work: ScreenWork) -> Counter[str]:
    """What was found and done in part `number`, as ``{corpus} kept`` and so on, after writing it and its rejects."""
    corpus, name = work.parts[number]
    tally: Counter[str] = Counter()
    kept, rejects = [], []
    for row in read_table(work.source / corpus / name, TEXTS).to_pylist():
        clean, kinds = screen_row(row, work.regions)
        tally.update({f"{corpus} {kind}s found": num for kind, num in kinds.items()})
        if kinds and work.action == "drop":
            rejects.append(reject(corpus, row["row"], "screen", PERSONAL, raw=clean["text"]))
        else:
            tally[f"{corpus} texts masked"] += bool(kinds)
            kept.append(clean)
    write_table(pa.Table.from_pylist(kept, schema=TEXTS), work.target / corpus / name, TEXTS)
    if rejects:
        write_table(rows_to_table(rejects, REJECTS), work.rejects / f"screen-{corpus}-{name}", REJECTS)
    tally.update(
        {"rows": len(kept) + len(rejects), f"{corpus} kept": len(kept), f"{corpus} dropped {PERSONAL}": len(rejects)}
    )
    return tally


def screen_row(row: Mapping[str, Any], regions: Sequence[str]) -> tuple[dict[str, Any], Counter[str]]:
    """The TEXTS row with personal data masked in every field, and how much of each kind `text` has."""
    found = find_personal(row["text"], regions)
    kinds = Counter[str](hit.kind for hit in found)
    clean = {**row, "text": mask(row["text"], found)}
    for field in ("title", "place"):
        clean[field] = mask(row[field], find_personal(row[field], regions))
    clean["skills"] = [mask(skill, find_personal(skill, regions)) for skill in row["skills"]]
    if not kinds:
        # What stands in another field alone is personal data as well.
        masked = [clean["title"] != row["title"], clean["place"] != row["place"], clean["skills"] != row["skills"]]
        kinds.update({"other field": sum(masked)} if any(masked) else {})
    return clean, kinds


def reject(corpus: str, row: int, stage: str, reason: str, *, raw: str | None) -> dict[str, Any]:
    """A REJECTS row for row `row` of `corpus`; `raw` must be free of personal data."""
    return {
        "id": f"{corpus} row {row + 1}",
        "stage": f"generate {stage}",
        "reason": reason,
        "raw": raw[:2000] if raw is not None else None,
        "attempt": 1,
    }
