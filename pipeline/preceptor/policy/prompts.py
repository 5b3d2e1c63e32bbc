"""A policy as chat messages: the part that never changes first, so that an engine's prefix cache holds it."""

from __future__ import annotations

import json
from typing import Final

from preceptor.contracts import OVERALL, content_id
from preceptor.policy.document import Policy
from preceptor.policy.precedents import Precedent
from preceptor.policy.rubric import Dimension, Rubric

ANSWER: Final = "Answer with one digit, 0 to 4."
"""What `messages` ends with."""

REASONED_ANSWER: Final = (
    "First give your reasons in one or two sentences. Then write, on a line of its own, 'Grade: N', "
    "where N is one digit, 0 to 4."
)
"""What `reasoned_messages` ends with."""

UNASKED: Final = ""
"""The way of a tuned teacher, which reads no prompt: the hash of its labels is that of the policy's words alone."""

TOKENS_PER_WORD: Final = 1.6


def messages(policy: Policy, dimension: str, *, query: str, profile: str, document: str) -> list[dict[str, str]]:
    """Chat messages that ask a judge for one digit: the policy (system), then the pair and the question (user).

    The system message is the same for every pair and dimension. `dimension` is one of the rubric's or 'overall';
    PolicyError otherwise.
    """
    return _asked(policy, dimension, pair=_pair_text(query, profile, document), asking=ANSWER)


def reasoned_messages(
    policy: Policy, dimension: str, *, query: str, profile: str, document: str
) -> list[dict[str, str]]:
    """Chat messages that ask a judge for its reasons first and for ``Grade: N`` on a line of its own after them.

    They differ from `messages` in their last sentences alone, so that both share an engine's cached prefix.
    """
    return _asked(policy, dimension, pair=_pair_text(query, profile, document), asking=REASONED_ANSWER)


def system_prompt(policy: Policy) -> str:
    """Instructions, grades, every dimension with its anchors, and the shown precedents."""
    rubric = policy.rubric
    by_id = {precedent.id: precedent for precedent in policy.precedents}
    grades = ", ".join(f"{grade} {name}" for grade, name in enumerate(rubric.grade_names))
    blocks = [f"{rubric.instructions}\nGrades: {grades}.", *map(_dimension_text, rubric.dimensions)]
    blocks += [_precedent_text(by_id[shown], rubric) for shown in rubric.shown]
    return "\n\n".join(blocks)


def prompt_hash(policy: Policy, dimension: str, *, asking: str = ANSWER) -> str:
    """16 hex digits that change with what a prompt says of this dimension, apart from the pair.

    That is the instructions, the grades' names, the dimension's question and anchors, of each precedent shown its
    pair, its grade on the dimension and its reason, and `asking`, the words that ask for the answer. The wording of
    other dimensions, although it stands in the same prompt, does not count: otherwise any change would make every label
    stale. For 'overall' everything counts.
    """
    rubric = policy.rubric
    if dimension == OVERALL:
        pair = _pair_text("", "", "")
        return content_id(json.dumps(_asked(policy, OVERALL, pair=pair, asking=asking)))
    by_id = {precedent.id: precedent for precedent in policy.precedents}
    shown = [by_id[name] for name in rubric.shown]
    said = [
        rubric.instructions,
        *rubric.grade_names,
        _dimension_text(rubric.dimension(dimension)),
        asking,
        *(f"{_pair_text(p.query, p.profile, p.document)}\n{p.grades[dimension]}. {p.reason}" for p in shown),
    ]
    return content_id(*said)


def num_tokens_about(policy: Policy, dimension: str) -> int:
    """About how many tokens the prompt takes without the pair: words times 1.6.

    The SmolLM2 tokenizer makes 1.57 to 1.60 tokens of a word of the shipped policy; good enough to warn by.
    """
    asked = messages(policy, dimension, query="", profile="", document="")
    return _tokens_about(*(message["content"] for message in asked))


def prompt_parts(policy: Policy) -> dict[str, int]:
    """About how many tokens each part takes that all prompts carry: instructions, dimensions, shown precedents."""
    rubric = policy.rubric
    by_id = {precedent.id: precedent for precedent in policy.precedents}
    return {
        "instructions": _tokens_about(rubric.instructions),
        **{f"dimension '{item.name}'": _tokens_about(_dimension_text(item)) for item in rubric.dimensions},
        **{f"precedent '{shown}'": _tokens_about(_precedent_text(by_id[shown], rubric)) for shown in rubric.shown},
    }


def _tokens_about(*texts: str) -> int:
    return round(sum(len(text.split()) for text in texts) * TOKENS_PER_WORD)


def _asked(policy: Policy, dimension: str, *, pair: str, asking: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": system_prompt(policy)},
        {"role": "user", "content": f"{pair}\n\n{_question(policy.rubric, dimension)}\n{asking}"},
    ]


def _question(rubric: Rubric, dimension: str) -> str:
    if dimension == OVERALL:
        return f"{OVERALL}: {rubric.overall_question}"
    return f"{dimension}: {rubric.dimension(dimension).question}"


def _dimension_text(dimension: Dimension) -> str:
    anchors = (f"{grade} {anchor}" for grade, anchor in enumerate(dimension.anchors))
    return "\n".join([f"{dimension.name}: {dimension.question}", *anchors])


def _precedent_text(precedent: Precedent, rubric: Rubric) -> str:
    grades = ", ".join(f"{name} {precedent.grades[name]}" for name in (*rubric.names, OVERALL))
    pair = _pair_text(precedent.query, precedent.profile, precedent.document)
    return f"Case:\n{pair}\nGrades: {grades}. {precedent.reason}"


def _pair_text(query: str, profile: str, document: str) -> str:
    return f"Query: {query or '(none)'}\nMember: {profile or '(none)'}\nPosting: {document or '(none)'}"
