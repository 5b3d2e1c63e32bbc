"""An agreed and adjudicated draft becomes golden files, one a split, or is refused with what lacks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from preceptor.contracts import OVERALL, SPLITS, make_pair, split_of
from preceptor.errors import GoldenRefused, InputError
from preceptor.golden.adjudicate import undecided
from preceptor.golden.agreement import agreement_of, inattentive, shortfalls
from preceptor.golden.agreement_text import refusal
from preceptor.golden.choose import plain_id
from preceptor.golden.draft import Draft, Graded
from preceptor.golden.files import write_new
from preceptor.golden.graders import JOINT, listed_graders, undeclared
from preceptor.golden.rounds import Task
from preceptor.policy import Policy
from preceptor.policy.document import GOLDEN_DIR
from preceptor.policy.findings import error_at, refuse
from preceptor.policy.golden import golden_files, read_golden


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """The golden files of a draft, how many pairs each holds, and why the other tasks are left out."""

    num_pairs: Mapping[Path, int]
    left_out: Mapping[str, int]


def seal_draft(draft: Draft, policy: Policy, *, out: Path, bar: float) -> Sealed:
    """The golden files ``{draft}.{split}.jsonl`` of `draft`, written to the folder `out`; splits by the query's hash.

    Tasks that fewer than two people graded, and vigilance items, are left out and counted. GoldenRefused where graders
    agree too little, one is under the vigilance bar, or a difference is undecided; PolicyError where a pair is golden
    or a precedent already, or the policy declares graders and one is not among them; InputError where a file exists.
    Nothing is written then.
    """
    if draft.dimensions != policy.rubric.names:
        raise InputError(
            f"{draft.file}: was graded on {', '.join(draft.dimensions)}, but the policy has "
            f"{', '.join(policy.rubric.names)}. Grade again under the policy as it is."
        )
    _check_agreed(draft, policy, bar)
    lines, left_out = _lines(draft, policy)
    texts = {split: "".join(found) for split, found in lines.items() if found}
    if not texts:
        raise GoldenRefused(f"{draft.file}: no pair has two graders: {dict(left_out)}. Import more answers.")
    files = {split: out / f"{draft.file.stem}.{split}.jsonl" for split in texts}
    _check_fits(texts, files, policy)
    write_new({file: texts[split] for split, file in files.items()})
    return Sealed(num_pairs={file: len(lines[split]) for split, file in files.items()}, left_out=left_out)


def _check_agreed(draft: Draft, policy: Policy, bar: float) -> None:
    agreement = agreement_of(draft)
    reasons = refusal(shortfalls(agreement, draft.dimensions), inattentive(agreement, bar), bar)
    if reasons:
        raise GoldenRefused(
            f"{draft.file}: not golden: {reasons}. Settle the anchors and grade again, or leave a grader's file out."
        )
    rest = undecided(draft)
    if rest:
        counts = Counter(one.dimension for one in rest)
        named = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        raise GoldenRefused(
            f"{draft.file}: not golden: {len(rest)} differences nobody has decided ({named}). "
            f"preceptor golden adjudicate {draft.file} --policy {policy.path} --out FILE.csv"
        )


def _lines(draft: Draft, policy: Policy) -> tuple[dict[str, list[str]], Counter[str]]:
    """The golden lines of each split, and how many tasks are left out for which reason."""
    answers = draft.by_task()
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    left_out: Counter[str] = Counter()
    for task in draft.tasks:
        given = answers.get(task.id, [])
        if task.known is not None:
            left_out["vigilance item"] += 1
        elif len(given) < 2:
            left_out[f"graded by {('nobody', 'one person')[len(given)]}"] += 1
        else:
            split = split_of(task.pair["query_id"])
            lines[split].append(json.dumps(_golden(task, given, draft, policy, split), ensure_ascii=False) + "\n")
    return lines, left_out


def _golden(task: Task, given: list[Graded], draft: Draft, policy: Policy, split: str) -> dict[str, object]:
    decisions = [decision for decision in draft.decisions if decision.task == task.id]
    grades = {name: given[0].grades[name] for name in draft.dimensions}
    grades |= {decision.dimension: decision.grade for decision in decisions}
    people = {answer.grader for answer in given}
    people |= {name for decision in decisions for name in decision.decided_by.split(JOINT)}
    return {
        **{name: task.pair[name] for name in ("query", "profile", "document", "slice")},
        "split": split,
        "grades": {**grades, OVERALL: policy.rubric.aggregate(grades)},
        "grader_id": JOINT.join(sorted(people)),
        "reason": "; ".join([*_reasons(given), *(f"{one.dimension}: {one.reason}" for one in decisions if one.reason)])
        or None,
        "policy_version": draft.policy_version,
    }


def _reasons(given: list[Graded]) -> Iterator[str]:
    return (f"{answer.grader}: {answer.reason}" for answer in given if answer.reason)


def _check_fits(texts: Mapping[str, str], files: Mapping[str, Path], policy: Policy) -> None:
    """Hold the new pairs to the rules of golden among those that are there; PolicyError where one is broken."""
    before = [file for file in golden_files(policy.path / GOLDEN_DIR) if file not in files.values()]
    graders = listed_graders(policy.path)
    known, _ = read_golden(before, policy.rubric)
    places = {pair.pair["pair_id"]: f"{pair.file.name}:{pair.line}" for pair in known}
    splits = {pair.pair["query_id"]: pair.pair["split"] for pair in known}
    decided = {plain_id(item.query, item.profile, item.document): item.id for item in policy.precedents}
    for split, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            row = json.loads(line)
            pair = make_pair(row["query"], row["profile"], row["document"], slice=row["slice"], split=split)
            problem = ""
            if name := undeclared([row["grader_id"]], graders):
                problem = f"unknown grader '{name}', declared are {', '.join(graders)}"
            elif pair["pair_id"] in places:
                problem = f"the pair is golden already, at {places[pair['pair_id']]}"
            elif splits.get(pair["query_id"], split) != split:
                problem = f"query '{row['query']}' is golden in split {splits[pair['query_id']]}"
            elif case := decided.get(plain_id(row["query"], row["profile"], row["document"])):
                problem = f"the pair is precedent '{case}', which a judge may be shown"
            if problem:
                refuse([error_at(files[split], number, f"{problem}. Leave it out of the draft.")])
