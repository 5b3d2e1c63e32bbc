"""A diff of two policies for a terminal, and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final

from preceptor.policy.diff import MEANING, Change, PolicyDiff
from preceptor.policy.stale import STATES, LabelCount, Model, Staleness

_NUM_NAMED: Final = 6


def diff_text(change: PolicyDiff, stale: Staleness | None) -> str:
    """What changed, the version it asks for and, where a runs directory was looked into, what is stale there."""
    blocks = [
        [f"{change.name} {change.before} -> {change.after}"],
        _block("changed in meaning", change.changes, MEANING),
        _block("decided cases", change.changes, ("precedent", "case")),
        _block("wording and settings only", change.changes, ("wording", "setting")),
        [f"prompts that change: {', '.join(change.prompts) or 'none'}"],
        [_version_text(change)],
        *([] if stale is None else [list(_stale_lines(stale))]),
    ]
    return "\n".join(line for block in blocks for line in block)


def diff_json(change: PolicyDiff, stale: Staleness | None) -> dict[str, Any]:
    """The same in plain JSON types."""
    return {
        "name": change.name,
        "before": change.before,
        "after": change.after,
        "changes": [asdict(item) for item in change.changes],
        "prompts": list(change.prompts),
        "stale_dimensions": sorted(change.stale),
        "version": {
            "required": change.required,
            "declared": change.declared or "lower",
            "enough": change.is_declared_enough,
        },
        "stale": None
        if stale is None
        else {
            "root": str(stale.root),
            "labels": [asdict(count) for count in stale.labels],
            "models": [asdict(model) for model in stale.models],
        },
    }


def _block(title: str, changes: Iterable[Change], kinds: Iterable[str]) -> list[str]:
    by_what: dict[tuple[str, str], list[str]] = {}
    for item in changes:
        if item.kind in kinds:
            by_what.setdefault((item.what, item.bump), []).append(item.subject)
    if not by_what:
        return []
    return [f"{title}:", *(f"  {_subjects(names)}: {what} [{bump}]" for (what, bump), names in by_what.items())]


def _subjects(names: list[str]) -> str:
    """The names, or the first of many: a new document has a hundred that are merely new."""
    more = f" and {len(names) - _NUM_NAMED} more (--json has all)" if len(names) > _NUM_NAMED else ""
    return "; ".join(names[:_NUM_NAMED]) + more


def _version_text(change: PolicyDiff) -> str:
    declared = f"{change.before.split('+')[0]} -> {change.after.split('+')[0]}"
    if change.is_declared_enough:
        return f"version: {declared} is enough; the changes ask for {_rise(change.required)}"
    seen = "goes back" if change.declared is None else f"is {_rise(change.declared)}"
    return (
        f"error: version: {declared} {seen}, but the changes ask for {_rise(change.required)}. "
        "Raise `version` in rubric.toml and say in the changelog what changed."
    )


def _rise(bump: str) -> str:
    return "no change" if bump == "none" else f"a {bump} one"


def _stale_lines(stale: Staleness) -> Iterator[str]:
    yield f"stale under {stale.root}:"
    by_place: dict[str, list[LabelCount]] = {}
    for count in stale.labels:
        by_place.setdefault(count.place, []).append(count)
    for place, counts in by_place.items():
        yield f"  labels {place}: {_label_text(counts)}"
    by_kind: dict[str, list[Model]] = {}
    for model in stale.models:
        by_kind.setdefault(model.kind, []).append(model)
    for kind, models in by_kind.items():
        num = sum(model.state == "stale" for model in models)
        others = sum(model.state == "other" for model in models)
        places = "; ".join(f"{m.place}: {', '.join(m.stale_heads)}" for m in models if m.state == "stale")
        yield (
            f"  {kind}s: {num} of {len(models)}"
            + (f" ({places})" if places else "")
            + (f", {others} made under another policy" if others else "")
        )
    if not stale.labels and not stale.models:
        yield "  no label, teacher, student or bundle there"


def _label_text(counts: Iterable[LabelCount]) -> str:
    total = Counter[str]()
    for count in counts:
        total.update(count.by_state)
    parts = ", ".join(f"{count.dimension} {count.by_state['stale']:,}" for count in counts if count.by_state["stale"])
    other = f", {total['other']:,} made under another policy" if total["other"] else ""
    num = sum(total[state] for state in STATES)
    return f"{total['stale']:,} of {num:,}" + (f" ({parts})" if parts else "") + other
