"""From graders' files to a draft: read, hold every row to its checks, keep each grader's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preceptor.errors import InputError
from preceptor.golden.answers import Answers, problems, round_id, together
from preceptor.golden.draft import DRAFTS, Draft, draft_of, write_draft
from preceptor.golden.graders import declared_graders
from preceptor.golden.labelstudio import read_export
from preceptor.golden.rounds import Round, find_round
from preceptor.golden.spreadsheet import read_spreadsheet
from preceptor.policy import Finding, Policy
from preceptor.policy.document import GOLDEN_DIR


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A written draft, or, where any row is wrong, None and every finding."""

    draft: Draft | None
    findings: tuple[Finding, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_by_grader(self) -> dict[str, int]:
        """How many answers each grader gave, by name."""
        return dict(sorted(Counter(item.grader for item in self.draft.graded).items())) if self.draft else {}


def draft_from(files: Sequence[Path], policy: Policy, *, users: Mapping[str, str], out: Path | None) -> Intake:
    """The draft of the answers in `files`, written to `out` or to ``golden/drafts/{round}.jsonl``.

    Graders must be among those the policy declares, or the round's own where it declares none. InputError where a file
    cannot be read, belongs to no round of this policy, `out` is not among the policy's drafts, or exists.
    """
    found = together(_read(file, users) for file in files)
    if not found.answers and not found.findings:
        raise InputError(
            f"{files[0]}: no pair is graded there yet ({dict(found.skipped) or 'no row'}). Import it later."
        )
    round_ = _round_of(found, policy)
    if round_ is None:
        return Intake(draft=None, findings=found.findings)
    graders = declared_graders(policy.path) or round_.graders
    findings = (*found.findings, *problems(found.answers, round_, graders=graders))
    if findings:
        return Intake(draft=None, findings=findings)
    drafts = policy.path / GOLDEN_DIR / DRAFTS
    file = out if out is not None else drafts / f"{round_.id}.jsonl"
    if file.parent.resolve() != drafts.resolve() or file.suffix != ".jsonl":
        raise InputError(
            f"{file}: a draft holds grades of the holdout and is kept where what tunes a judge cannot read it. "
            f"Give --out {drafts}/NAME.jsonl."
        )
    draft = draft_of(round_, found.answers, policy.rubric, file=file)
    write_draft(draft)
    return Intake(draft=draft, skipped=found.skipped)


def _read(file: Path, users: Mapping[str, str]) -> Answers:
    if file.suffix == ".json":
        return read_export(file, users)
    if file.suffix == ".csv":
        return read_spreadsheet(file)
    raise InputError(f"{file}: cannot tell what '{file.suffix or file.name}' holds. Give .json or .csv files.")


def _round_of(found: Answers, policy: Policy) -> Round | None:
    """The round of the answers; None where none can be read. InputError where the policy does not know it any more."""
    if not found.answers:
        return None
    id = round_id(found.answers)
    round_ = find_round(policy.path, id)
    if round_ is None:
        first = found.answers[0]
        raise InputError(
            f"{first.where}: unknown pair: task '{first.task}' is of no round of {policy.path}. Restore its "
            "golden/rounds/ from version control, or give the --policy it was exported with."
        )
    if round_.dimensions != policy.rubric.names:
        raise InputError(
            f"{policy.path}: round {id} asked for {', '.join(round_.dimensions)}, but the policy has "
            f"{', '.join(policy.rubric.names)} now. Export a new round."
        )
    return round_
