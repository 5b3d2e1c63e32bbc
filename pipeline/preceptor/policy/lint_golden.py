"""Golden pairs that break the rule, leak into what a judge or a grader reads, or were graded under other terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from preceptor.contracts import split_of
from preceptor.policy.document import DOCUMENT, GOLDEN_DIR, PRECEDENTS, Policy
from preceptor.policy.findings import Finding, error_at, warning_at
from preceptor.policy.golden import GoldenPair, precedent_leaks
from preceptor.policy.prose import cases, examples, sections
from preceptor.policy.similar import Similar, Words, words_of


def golden_findings(policy: Policy, golden: Sequence[GoldenPair]) -> Iterator[Finding]:
    """What is wrong with golden pairs that can be read."""
    if not golden:
        folder = policy.path / GOLDEN_DIR
        yield warning_at(folder, None, "no golden pairs yet: no judge can be calibrated. Generate or add some.")
        return
    for pair in golden:
        if message := policy.rubric.contradiction(pair.grades):
            yield error_at(pair.file, pair.line, message)
    leaks = precedent_leaks(golden, policy.precedents)
    yield from leaks
    known = {(finding.file, finding.line) for finding in leaks}
    yield from _almost_precedents(policy, [pair for pair in golden if (pair.file, pair.line) not in known])
    yield from _in_the_document(policy, golden)
    yield from _at_first(
        [pair for pair in golden if pair.pair["split"] != split_of(pair.pair["query_id"])],
        "declare another split than their query's hash gives; the unlabelled pool may hold them in that one",
    )
    yield from _at_first(
        [pair for pair in golden if _meaning(pair.policy_version) != _meaning(policy.rubric.version)],
        f"were graded under another version than {policy.rubric.version}; check that they still hold",
    )


def _almost_precedents(policy: Policy, golden: Sequence[GoldenPair]) -> Iterator[Finding]:
    index = Similar([words_of(item.query, item.profile, item.document) for item in policy.precedents])
    for pair in golden:
        row = pair.pair
        for near in index.near(words_of(row["query"], row["profile"], row["document"])):
            same = policy.precedents[near.index]
            yield error_at(
                pair.file,
                pair.line,
                f"golden pair is precedent '{same.id}' ({PRECEDENTS}:{same.line}) but for '{near.theirs}' in place of "
                f"'{near.ours}': a judge may be shown its answer. Remove one of them.",
            )


def _in_the_document(policy: Policy, golden: Sequence[GoldenPair]) -> Iterator[Finding]:
    """Golden pairs whose texts stand in an example or a case of the prose, where a grader reads the answer."""
    places = list(_examples_of(policy))
    index = Similar([words_of(text) for _, text in places])
    held: dict[str, frozenset[int]] = {}

    def holding(text: str) -> frozenset[int]:
        if text not in held:
            held[text] = index.holding(_unfielded(words_of(text)))
        return held[text]

    for pair in golden:
        row = pair.pair
        with_document = holding(row["document"])
        for place in sorted(with_document):
            line = places[place][0]
            if place in holding(row["profile"]) or not row["profile"]:
                message = f"golden pair stands as an example at {DOCUMENT}:{line}. Remove one of them."
                yield error_at(pair.file, pair.line, message)
            else:
                message = (
                    f"the posting of this golden pair stands at {DOCUMENT}:{line}. Choose another for one of them."
                )
                yield warning_at(pair.file, pair.line, message)


def _examples_of(policy: Policy) -> Iterator[tuple[int, str]]:
    """(line, text) of every worked example and hard case."""
    for section in sections(policy.document):
        if section.dimension is not None:
            yield from ((example.line, example.text) for example in examples(section)[0])
    yield from ((case.line, case.text) for case in cases(policy.document, policy.rubric.names)[0])


def _unfielded(words: Words) -> Words:
    return words[:-1]


def _meaning(version: str) -> list[str]:
    """The part of a version that changes with the meaning of grades: a patch changes none."""
    return version.split("+")[0].split(".")[:2]


def _at_first(pairs: list[GoldenPair], what: str) -> Iterator[Finding]:
    """One warning at the first of `pairs`, saying how many there are: a list of thousands would hide the rest."""
    if pairs:
        yield warning_at(pairs[0].file, pairs[0].line, f"{len(pairs)} golden pairs, this the first, {what}.")
