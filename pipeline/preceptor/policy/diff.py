"""What changed between two versions of a policy, what each change means, and the version it asks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from preceptor.contracts import OVERALL
from preceptor.policy.document import DOCUMENT, FILES, RUBRIC, Policy
from preceptor.policy.precedents import Precedent
from preceptor.policy.prompts import prompt_hash
from preceptor.policy.prose import anchor_table, cases, sections
from preceptor.policy.rubric import Cap, Dimension

Bump = Literal["none", "patch", "minor", "major"]
BUMPS: Final[tuple[Bump, ...]] = ("none", "patch", "minor", "major")
"""What a version may rise by, the least first. Major: the grades of before and after cannot be compared. Minor: they
can, and some will differ. Patch: no grade differs because of it."""

Kind = Literal["dimension", "aggregation", "prompt", "precedent", "case", "wording", "setting"]
_CASE_ID: Final = re.compile(r"C-\d+")
MEANING: Final[tuple[Kind, ...]] = ("dimension", "aggregation", "prompt")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that differs: `what` of `subject`, and the rise of the version that it asks for.

    `subject` is a dimension, 'overall', a precedent's or case's id, a heading of the prose, or the rubric as a whole.
    """

    kind: Kind
    subject: str
    what: str
    bump: Bump


@dataclass(frozen=True, kw_only=True)
class PolicyDiff:
    """The changes from `before` to `after`, both as their full versions.

    `prompts` holds the dimensions, and 'overall', whose prompt a judge reads otherwise now; `stale` those whose earlier
    judgements no longer hold: of a changed prompt, of a removed dimension, and overall wherever a part of it changed.
    `declared` is how far the version rose, None where it fell.
    """

    name: str
    before: str
    after: str
    changes: tuple[Change, ...]
    prompts: tuple[str, ...]
    stale: frozenset[str]
    declared: Bump | None

    @property
    def required(self) -> Bump:
        """The least rise of the version that covers every change."""
        return max((change.bump for change in self.changes), key=BUMPS.index, default="none")

    @property
    def is_declared_enough(self) -> bool:
        """Whether the version rose at least as far as the changes ask."""
        return self.declared is not None and BUMPS.index(self.declared) >= BUMPS.index(self.required)


def diff(before: Policy, after: Policy) -> PolicyDiff:
    """What differs between two loaded policies."""
    changes = [
        *_dimension_changes(before, after),
        *_aggregation_changes(before, after),
        *_prompt_changes(before, after),
        *_precedent_changes(before, after),
        *_case_changes(before, after),
        *_wording_changes(before, after),
        *_setting_changes(before, after),
    ]
    if not changes and before.version.split("+")[1] != after.version.split("+")[1]:
        files = "comments, layout or order of lines"
        changes.append(Change(kind="wording", subject=", ".join(FILES), what=files, bump="patch"))
    old, new = _hashes(before), _hashes(after)
    stale = {name for name in old if old[name] != new.get(name)}
    if stale or new.keys() - old.keys() or any(change.kind == "aggregation" for change in changes):
        stale.add(OVERALL)
    return PolicyDiff(
        name=after.rubric.name,
        before=before.version,
        after=after.version,
        changes=tuple(changes),
        prompts=tuple(name for name in {**new, **old} if old.get(name) != new.get(name)),
        stale=frozenset(stale),
        declared=declared_bump(before.rubric.version, after.rubric.version),
    )


def declared_bump(before: str, after: str) -> Bump | None:
    """How far the semantic version rose; None where it fell."""
    old, new = _numbers(before), _numbers(after)
    if new < old:
        return None
    return next((bump for bump, a, b in zip(BUMPS[:0:-1], old, new, strict=True) if a != b), "none")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split("+")[0].split(".")))


def _hashes(policy: Policy) -> dict[str, str]:
    return {name: prompt_hash(policy, name) for name in (*policy.rubric.names, OVERALL)}


def _dimension_changes(before: Policy, after: Policy) -> Iterator[Change]:
    old = {dimension.name: dimension for dimension in before.rubric.dimensions}
    new = {dimension.name: dimension for dimension in after.rubric.dimensions}
    for name in old:
        if name not in new:
            yield Change(kind="dimension", subject=name, what="removed", bump="major")
    for name, dimension in new.items():
        if name not in old:
            yield Change(kind="dimension", subject=name, what="added", bump="major")
        else:
            yield from _within_dimension(old[name], dimension)


def _within_dimension(old: Dimension, new: Dimension) -> Iterator[Change]:
    if old.question != new.question:
        yield Change(
            kind="dimension", subject=new.name, what=_from_to("question", old.question, new.question), bump="minor"
        )
    for grade, (was, now) in enumerate(zip(old.anchors, new.anchors, strict=True)):
        if was != now:
            yield Change(kind="dimension", subject=new.name, what=_from_to(f"anchor {grade}", was, now), bump="minor")
    if old.title != new.title:
        yield Change(kind="wording", subject=new.name, what=_from_to("title", old.title, new.title), bump="patch")


def _aggregation_changes(before: Policy, after: Policy) -> Iterator[Change]:
    old = {dimension.name: dimension.weight for dimension in before.rubric.dimensions}
    for dimension in after.rubric.dimensions:
        was = old.get(dimension.name, dimension.weight)
        if was != dimension.weight:
            what = f"weight {was:g} -> {dimension.weight:g}"
            yield Change(kind="aggregation", subject=dimension.name, what=what, bump="major")
    for verb, caps, others in (
        ("removed", before.rubric.caps, after.rubric.caps),
        ("added", after.rubric.caps, before.rubric.caps),
    ):
        for cap in caps:
            if cap not in others:
                yield Change(kind="aggregation", subject=cap.dimension, what=f"cap {verb}: {_cap(cap)}", bump="major")


def _cap(cap: Cap) -> str:
    return f"{cap.dimension} at most {cap.at_most} makes overall at most {cap.overall}"


def _prompt_changes(before: Policy, after: Policy) -> Iterator[Change]:
    old, new = before.rubric, after.rubric
    texts = [("instructions", old.instructions, new.instructions)]
    texts += [("question", old.overall_question, new.overall_question)]
    texts += [
        (f"name of grade {n}", a, b) for n, (a, b) in enumerate(zip(old.grade_names, new.grade_names, strict=True))
    ]
    for what, was, now in texts:
        if was != now:
            yield Change(kind="prompt", subject=OVERALL, what=_from_to(what, was, now), bump="minor")
    if old.shown != new.shown:
        what = f"shown precedents: {', '.join(old.shown) or 'none'} -> {', '.join(new.shown) or 'none'}"
        yield Change(kind="prompt", subject=OVERALL, what=what, bump="minor")
    shared = {*old.names} & {*new.names}
    if [name for name in old.names if name in shared] != [name for name in new.names if name in shared]:
        what = f"order of dimensions: {', '.join(new.names)}"
        yield Change(kind="prompt", subject=OVERALL, what=what, bump="minor")


def _precedent_changes(before: Policy, after: Policy) -> Iterator[Change]:
    old = {precedent.id: precedent for precedent in before.precedents}
    new = {precedent.id: precedent for precedent in after.precedents}
    shown = {*before.rubric.shown, *after.rubric.shown}
    for name in {**old, **new}:
        what = _precedent_change(old.get(name), new.get(name))
        if what:
            # A judge reads only those that are shown; a regraded one means something else to every grader.
            bump: Bump = "minor" if name in shown or what.startswith("regraded") else "patch"
            seen = " (shown to the judge)" if name in shown else ""
            yield Change(kind="precedent", subject=name, what=what + seen, bump=bump)


def _precedent_change(old: Precedent | None, new: Precedent | None) -> str:
    if old is None or new is None:
        return "added" if old is None else "removed"
    if regraded := _regraded(old.grades, new.grades):
        return f"regraded: {regraded}"
    changed = [name for name in ("query", "profile", "document", "reason") if getattr(old, name) != getattr(new, name)]
    return f"reworded: {', '.join(changed)}" if changed else ""


def _case_changes(before: Policy, after: Policy) -> Iterator[Change]:
    """Cases of the prose that are new, gone or graded otherwise; those reworded are found with the wording."""
    old, new = (
        {case.id: case.grades or {} for case in cases(policy.document, policy.rubric.names)[0]}
        for policy in (before, after)
    )
    for name in {**old, **new}:
        if name not in old or name not in new:
            verb = "added" if name not in old else "removed"
            yield Change(kind="case", subject=name, what=verb, bump="patch")
        elif what := _regraded(old[name], new[name]):
            yield Change(kind="case", subject=name, what=f"regraded: {what}", bump="minor")


def _regraded(old: Mapping[str, int], new: Mapping[str, int]) -> str:
    """Grades that differ on dimensions both know; what is new or gone comes with its dimension."""
    return ", ".join(
        f"{name} {grade} -> {new[name]}" for name, grade in old.items() if name in new and grade != new[name]
    )


def _wording_changes(before: Policy, after: Policy) -> Iterator[Change]:
    old, new = _prose(before.document), _prose(after.document)
    for title in {**old, **new}:
        if title in old and title in new:
            verb = "reworded" if old[title] != new[title] else ""
        else:
            # A case that is new or gone is reported as a case.
            verb = "" if _CASE_ID.fullmatch(title) else "added" if title in new else "removed"
        if verb:
            yield Change(kind="wording", subject=f"{DOCUMENT}: {title}", what=verb, bump="patch")


def _prose(document: str) -> dict[str, list[str]]:
    """The words of each heading and its own text by its title, or its case's id.

    Lines that the rubric and the cases answer for are left out.
    """
    whole = sections(document)
    lines = document.split("\n")
    starts = [section.line for section in whole] + [len(lines) + 1]
    found = {"(top)": " ".join(lines[: starts[0] - 1]).split()}
    seen = Counter[str]()
    for section, end in zip(whole, starts[1:], strict=True):
        answered = {number for number, _ in (anchor_table(section) if section.dimension else ())}
        own = [
            lines[number - 1]
            for number in range(section.line, end)
            if number not in answered and not lines[number - 1].startswith(("Grades: ", "Precedent: "))
        ]
        case = _CASE_ID.match(section.title)
        title = case.group() if case else section.title
        seen[title] += 1
        found[title if seen[title] == 1 else f"{title} ({seen[title]})"] = " ".join(own).split()
    return found


def _setting_changes(before: Policy, after: Policy) -> Iterator[Change]:
    old, new = before.rubric, after.rubric
    pairs: Sequence[tuple[str, str, str]] = (
        ("name", old.name, new.name),
        ("max_tokens", str(old.max_prompt_tokens), str(new.max_prompt_tokens)),
        ("graders", ", ".join(old.graders), ", ".join(new.graders)),
    )
    for what, was, now in pairs:
        if was != now:
            yield Change(kind="setting", subject=RUBRIC, what=_from_to(what, was, now), bump="patch")


def _from_to(what: str, was: str, now: str) -> str:
    return f"{what}: '{was}' -> '{now}'"
