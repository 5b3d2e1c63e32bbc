"""The commands `preceptor golden ...`: pairs to people, their grades back, agreement, decisions, golden files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from preceptor.errors import InputError
from preceptor.recipe import POLICY_DIR

if TYPE_CHECKING:
    from preceptor.policy import Finding

GOLDEN_EPILOG: Final = """\
in this order (docs/golden.md), once rubric.toml names the people: [golden] graders = ["market-truth", "kim", "lee"]
  preceptor golden export --pairs runs/demo/corpus/v1/pairs --format labelstudio --out tasks.json --graders kim,lee
  preceptor golden import export.json --users 1=kim,2=lee
  preceptor golden agree policy/job_match/golden/drafts/ROUND.jsonl
  preceptor golden adjudicate policy/job_match/golden/drafts/ROUND.jsonl --out worklist.csv
  preceptor golden adjudicate policy/job_match/golden/drafts/ROUND.jsonl --decisions worklist.csv
  preceptor golden seal policy/job_match/golden/drafts/ROUND.jsonl
"""


def add_golden(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the commands that make golden of people's grades."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_export(_command(commands, "export", "write pairs for people to grade", _export))
    _add_import(_command(commands, "import", "read their grades into a draft, every row checked", _import))
    agree = _command(commands, "agree", "how far the graders agree; exit 1 where it is not enough for golden", _agree)
    decide = _command(commands, "adjudicate", "write what graders differ on, or read the decisions back", _adjudicate)
    seal = _command(commands, "seal", "make golden files of an agreed and adjudicated draft", _seal)
    for command in (agree, decide, seal):
        command.add_argument("draft", type=Path, help="a draft that `golden import` wrote")
    for command in (agree, seal):
        command.add_argument(
            "--vigilance-bar", type=float, metavar="X", help="share of vigilance grades that must be right (0.7)"
        )
    way = decide.add_mutually_exclusive_group(required=True)
    way.add_argument("--out", type=Path, help="a new CSV: one row for each difference")
    way.add_argument("--decisions", type=Path, metavar="FILE", help="the CSV with its decisions filled in")
    seal.add_argument("--out", type=Path, metavar="FOLDER", help="where the golden files go (the policy's golden/)")
    census = _command(commands, "census", "write golden's counts into its README, and the holdout's seal", _census)
    for command in (decide, seal, census):
        _add_policy(command)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    about: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    return parser


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", type=Path, default=POLICY_DIR, metavar="DIR", help="default: the shipped policy")


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_policy(parser)
    parser.add_argument("--pairs", type=Path, required=True, help="PAIRS: a Parquet file or a folder of them")
    parser.add_argument("--format", choices=("labelstudio", "csv"), required=True, help="what the graders work in")
    parser.add_argument("--out", type=Path, required=True, help="a new file; what explains the grades goes beside it")
    parser.add_argument("--graders", metavar="A,B", help="who grades ([golden] graders of rubric.toml)")
    parser.add_argument("--strata", metavar="COLUMN,...", help="columns whose values make a stratum (slice,split)")
    parser.add_argument("--per-stratum", type=int, default=20, metavar="N", help="pairs of each stratum (20)")
    parser.add_argument(
        "--vigilance-share", type=float, default=0.1, metavar="X", help="share of tasks with known grades (0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another choice of pairs (0)")


def _add_import(parser: argparse.ArgumentParser) -> None:
    _add_policy(parser)
    parser.add_argument("files", type=Path, nargs="+", help="Label Studio exports (.json) and spreadsheets (.csv)")
    parser.add_argument("--out", type=Path, help="the draft, in the policy's golden/drafts/ (ROUND.jsonl there)")
    parser.add_argument("--users", metavar="ID=NAME,...", help="which grader a Label Studio user is")


def _export(arguments: argparse.Namespace) -> int:
    from preceptor.golden.choose import STRATA, make_round, read_candidates
    from preceptor.golden.files import write_new
    from preceptor.golden.graders import choose_graders
    from preceptor.golden.labelstudio import interface_xml, tasks_json
    from preceptor.golden.rounds import round_file, round_json, strata_table
    from preceptor.golden.spreadsheet import anchors_page, tasks_csv
    from preceptor.policy import load_policy

    if arguments.per_stratum < 1:
        raise InputError(f"--per-stratum must be at least 1, got {arguments.per_stratum}.")
    policy = load_policy(arguments.policy)
    columns = tuple(_names(arguments.strata) or STRATA)
    round_ = make_round(
        policy,
        read_candidates(arguments.pairs, columns),
        columns=columns,
        graders=choose_graders(arguments.policy, _names(arguments.graders)),
        per_stratum=arguments.per_stratum,
        vigilance_share=arguments.vigilance_share,
        seed=arguments.seed,
    )
    out: Path = arguments.out
    if arguments.format == "labelstudio":
        texts = {out: tasks_json(round_), out.with_name(f"{out.stem}.labeling.xml"): interface_xml(policy)}
    else:
        texts = {out: tasks_csv(round_), out.with_name(f"{out.stem}.anchors.md"): anchors_page(policy)}
    kept = round_file(arguments.policy, round_.id)
    write_new({kept: round_json(round_), **texts})
    print(strata_table(round_))
    print("".join(f"left out: {num} {why}\n" for why, num in round_.skipped.items()), end="")
    num_known = sum(task.known is not None for task in round_.tasks)
    print(
        f"round {round_.id}: {len(round_.tasks)} pairs, {num_known} of them with known grades, 2 graders each; {kept}"
    )
    print("\n".join(map(str, texts)))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from preceptor.golden.graders import parse_users
    from preceptor.golden.intake import draft_from
    from preceptor.policy import load_policy

    policy = load_policy(arguments.policy)
    taken = draft_from(arguments.files, policy, users=parse_users(arguments.users), out=arguments.out)
    _stop_at(taken.findings, "nothing is written")
    assert taken.draft is not None, "answers without findings make a draft"
    for why, num in taken.skipped.items():
        print(f"left out: {num} {why}")
    graders = ", ".join(f"{name} {num}" for name, num in taken.num_by_grader.items())
    print(f"draft: {len(taken.draft.graded)} answers ({graders}) to {len(taken.draft.tasks)} tasks; {taken.draft.file}")
    return 0


def _agree(arguments: argparse.Namespace) -> int:
    from preceptor.golden.agreement import agreement_of, inattentive, shortfalls
    from preceptor.golden.agreement_text import agreement_text
    from preceptor.golden.draft import read_draft

    draft, bar = read_draft(arguments.draft), _bar(arguments)
    agreement = agreement_of(draft)
    print(agreement_text(agreement, dimensions=draft.dimensions, bar=bar))
    return int(bool(shortfalls(agreement, draft.dimensions) or inattentive(agreement, bar)))


def _adjudicate(arguments: argparse.Namespace) -> int:
    from preceptor.golden.adjudicate import read_decisions, undecided, worklist
    from preceptor.golden.draft import add_decisions, read_draft
    from preceptor.golden.files import write_new
    from preceptor.golden.graders import declared_graders
    from preceptor.policy import load_policy

    draft = read_draft(arguments.draft)
    if arguments.out is not None:
        write_new({arguments.out: worklist(draft, load_policy(arguments.policy))})
        print(f"adjudicate: {len(undecided(draft))} differences to decide; {arguments.out}")
        return 0
    graders = declared_graders(arguments.policy)
    decisions, findings, num_empty = read_decisions(arguments.decisions, draft, graders=graders)
    _stop_at(findings, "the draft is as it was")
    add_decisions(draft, decisions)
    num_left = len(undecided(read_draft(arguments.draft)))
    print(f"adjudicate: {len(decisions)} decisions read, {num_empty} rows empty, {num_left} differences left")
    return 0


def _seal(arguments: argparse.Namespace) -> int:
    from preceptor.golden.census import refresh
    from preceptor.golden.draft import read_draft
    from preceptor.golden.sealing import seal_draft
    from preceptor.policy import load_policy
    from preceptor.policy.document import GOLDEN_DIR

    policy, draft = load_policy(arguments.policy), read_draft(arguments.draft)
    golden = policy.path / GOLDEN_DIR
    out: Path = arguments.out if arguments.out is not None else golden
    sealed = seal_draft(draft, policy, out=out, bar=_bar(arguments))
    for file, num in sealed.num_pairs.items():
        print(f"{file}: {num} pairs")
    for why, num in sealed.left_out.items():
        print(f"left out: {num} {why}")
    if out.resolve() == golden.resolve():
        print("\n".join(map(str, refresh(policy))))
    return 0


def _census(arguments: argparse.Namespace) -> int:
    from preceptor.golden.census import refresh
    from preceptor.policy import load_policy

    print("\n".join(map(str, refresh(load_policy(arguments.policy)))))
    return 0


def _stop_at(findings: Iterable[Finding], then: str) -> None:
    """Print what is wrong, a line each, and raise InputError where anything is."""
    listed = list(findings)
    for finding in listed:
        print(finding, file=sys.stderr)
    if listed:
        raise InputError(f"{len(listed)} rows are refused, listed above; {then}. Mend them and run it again.")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _bar(arguments: argparse.Namespace) -> float:
    from preceptor.golden.agreement import VIGILANCE_BAR

    bar = VIGILANCE_BAR if arguments.vigilance_bar is None else arguments.vigilance_bar
    if not 0 <= bar <= 1:
        raise InputError(f"--vigilance-bar must be a share from 0 to 1, got {bar}.")
    return float(bar)
