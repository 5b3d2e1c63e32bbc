"""A candidate: the texts of a prompt that may change. Anchors, grades and the aggregation rule are the policy's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from preceptor.contracts import OVERALL, content_id
from preceptor.policy import Policy
from preceptor.policy.prompts import num_tokens_about
from preceptor.refine.sample import Item

INSTRUCTIONS: Final = "instructions"
OVERALL_QUESTION: Final = "overall_question"
PRECEDENTS: Final = "precedents"

NUM_QUOTED_WORDS: Final = 8
"""So many words of a golden text in a row are a quotation: a judge would have seen what it is measured on."""

Texts = Mapping[str, str]
"""A candidate: the text of each component by its name; shown precedents are ids, one to a line."""


def texts_of(policy: Policy, dimensions: Sequence[str]) -> dict[str, str]:
    """The components of `policy` as it is; the overall question only where the judge is asked it."""
    rubric = policy.rubric
    asked = {OVERALL_QUESTION: rubric.overall_question} if OVERALL in dimensions else {}
    chosen = {PRECEDENTS: "\n".join(rubric.shown)} if policy.precedents else {}
    return {INSTRUCTIONS: rubric.instructions, **asked, **chosen}


def policy_with(policy: Policy, texts: Texts) -> Policy:
    """`policy` saying `texts`."""
    rubric = policy.rubric
    return replace(
        policy,
        rubric=replace(
            rubric,
            instructions=texts[INSTRUCTIONS],
            overall_question=texts.get(OVERALL_QUESTION, rubric.overall_question),
            shown=tuple(texts[PRECEDENTS].split()) if PRECEDENTS in texts else rubric.shown,
        ),
    )


def candidate_id(texts: Texts) -> str:
    """16 hex digits of all components."""
    return content_id(*(part for name in sorted(texts) for part in (name, texts[name])))


def cleaned(component: str, proposed: str) -> str:
    """`proposed` with one space between words and no empty line at either end.

    Of precedents the ids, one to a line, whatever marks a model puts around or between them.
    """
    if component == PRECEDENTS:
        return "\n".join(re.findall(r"[^\s,;\"'`\[\]()*]+", re.sub(r"(?m)^\s*(?:[-*]|\d+[.)])\s+", "", proposed)))
    lines = [" ".join(line.split()) for line in proposed.strip().splitlines()]
    return "\n".join(lines) if component == INSTRUCTIONS else " ".join(line for line in lines if line)


def problem_of(policy: Policy, texts: Texts, component: str, *, seen: Iterable[Item]) -> str | None:
    """Why `texts`, of which `component` was proposed, cannot be a prompt of `policy`; None where they can.

    `seen` are the golden pairs that the proposal was made from.
    """
    proposed = texts[component]
    if component == PRECEDENTS:
        ids = proposed.split()
        unknown = [name for name in ids if name not in {precedent.id for precedent in policy.precedents}]
        if unknown:
            return f"names the precedent '{unknown[0][:60]}', which the policy lacks"
        if len(set(ids)) < len(ids):
            return "names a precedent twice"
    elif not proposed:
        return "is empty"
    elif quoted := _quotation(proposed, seen):
        return f"quotes a golden pair: '{quoted}'"
    return _length_problem(policy, policy_with(policy, texts))


def _length_problem(before: Policy, after: Policy) -> str | None:
    limit = before.rubric.max_prompt_tokens
    for name in after.rubric.names:
        length = num_tokens_about(after, name)
        if length > max(limit, num_tokens_about(before, name)):
            return f"makes the prompt of '{name}' about {length} tokens long, more than max_tokens = {limit}"
    return None


def _quotation(text: str, items: Iterable[Item]) -> str | None:
    runs = _runs(text)
    for item in items:
        for part in (item.pair["query"], item.pair["profile"], item.pair["document"]):
            if shared := runs & _runs(part):
                return min(shared)
    return None


def _runs(text: str) -> set[str]:
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[at : at + NUM_QUOTED_WORDS]) for at in range(len(words) - NUM_QUOTED_WORDS + 1)}
