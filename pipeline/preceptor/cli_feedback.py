"""The command `preceptor feedback`, and the options of `preceptor serve` that switch the served log on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from preceptor.errors import RecipeError

FEEDBACK_EPILOG: Final = """\
examples:
  preceptor serve --bundle BUNDLE --log log --log-rate 0.1 --log-texts log-texts
  preceptor feedback join --served log --texts log-texts --events clicks.jsonl --propensities curve.csv \\
      --late-after-s 86400 --root runs/live
  preceptor feedback pick --served log --texts log-texts --golden runs/demo/corpus/v1/golden \\
      --budget disagreement=200 novelty=100 golden=100 --golden-per-slice 50 --root runs/live

An event is {"request_id", "action": "click" or "apply", "document" and/or "position", and, if known, "part", "at"}.
docs/feedback.md says what becomes of each.
"""

_KINDS: Final = ("golden", "disagreement", "novelty")


def add_feedback(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the commands of `feedback`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_join(commands.add_parser("join", help="events joined to the served log: impressions"))
    _add_pick(commands.add_parser("pick", help="pairs of the served log worth labelling next"))


def add_log(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `serve` the options of the served log."""
    log = parser.add_argument_group("the served log (off unless told)")
    log.add_argument("--log", type=Path, metavar="DIR", help="keep ids and scores of what was served, in Parquet")
    log.add_argument("--log-rate", type=float, metavar="SHARE", help="of requests, chosen by a hash of their id")
    log.add_argument("--log-texts", type=Path, metavar="DIR", help="keep the texts too, members' words, in this folder")


def _add_join(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Join clicks and applications to the served log. Writes ROOT/feedback/VERSION in the layout of a corpus, with "
        "impressions/ that an engagement teacher trains on; table.md says what was joined, what was not, and why."
    )
    _add_common(parser)
    parser.add_argument("--events", type=Path, required=True, help="a .jsonl or .parquet file, or a folder of them")
    parser.add_argument(
        "--propensities",
        required=True,
        metavar="CSV",
        help="position,propensity from position 1 on; or the word 'estimate': from pairs shown at several positions",
    )
    parser.add_argument(
        "--late-after-s", type=float, required=True, metavar="S", help="an event counts up to so long after the answer"
    )
    parser.add_argument(
        "--max-bad-share", type=float, default=0.05, metavar="SHARE", help="of event rows that may be bad (0.05)"
    )
    parser.set_defaults(run=_join)


def _add_pick(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Pick pairs to label next: where relevance and action heads disagree, what is unlike anything labelled, slices "
        "short of golden. Writes ROOT/pick/VERSION with pairs/ (PAIRS) and picks/, why each was chosen."
    )
    _add_common(parser)
    parser.add_argument("--golden", type=Path, nargs="+", default=[], metavar="DIR", help="GOLDEN, to compare with")
    parser.add_argument("--labelled", type=Path, nargs="+", default=[], metavar="DIR", help="PAIRS labelled already")
    parser.add_argument(
        "--budget", nargs="+", required=True, metavar="KIND=N", help=f"{', '.join(f'{kind}=N' for kind in _KINDS)}"
    )
    parser.add_argument(
        "--golden-per-slice", type=int, required=True, metavar="N", help="a slice with fewer golden pairs is short"
    )
    parser.add_argument("--max-per-query", type=int, default=2, metavar="N", help="pairs of one query (2)")
    parser.add_argument("--embedding", choices=("minilm", "tfidf"), help="minilm where it is installed")
    parser.add_argument("--seed", type=int, default=17)
    parser.set_defaults(run=_pick)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--served", type=Path, required=True, metavar="DIR", help="the served log")
    parser.add_argument(
        "--texts", type=Path, nargs="+", default=[], metavar="DIR", help="PAIRS with texts: the log's, a corpus' pairs/"
    )
    parser.add_argument("--root", type=Path, default=Path("runs") / "feedback", help="where outputs are kept")
    parser.add_argument("--version", default="v1", help="name of this run's outputs; 'dev' always rebuilds")


def _join(arguments: argparse.Namespace) -> int:
    from preceptor.feedback.stage import TABLE, FeedbackConfig, feedback

    estimate = arguments.propensities == "estimate"
    config = FeedbackConfig(
        served=arguments.served,
        events=arguments.events,
        propensities=None if estimate else Path(arguments.propensities),
        late_after_s=arguments.late_after_s,
        texts=tuple(arguments.texts),
        max_bad_share=arguments.max_bad_share,
    )
    out = arguments.root / "feedback" / arguments.version
    record = feedback(config, out=out.resolve())
    print((out / TABLE).read_text(encoding="utf-8"))
    joined, rows = record.num_rows_kept, record.num_rows_in
    print(f"feedback: {joined:,} of {rows:,} events, {record.metrics['num_impressions']:,} impressions, {out}")
    return 0


def _pick(arguments: argparse.Namespace) -> int:
    from preceptor.feedback.pick import PickConfig, pick

    budget = budget_of(arguments.budget)
    config = PickConfig(
        served=arguments.served,
        texts=tuple(arguments.texts),
        golden=tuple(arguments.golden),
        labelled=tuple(arguments.labelled),
        num_golden=budget["golden"],
        num_disagreement=budget["disagreement"],
        num_novelty=budget["novelty"],
        golden_per_slice=arguments.golden_per_slice,
        max_per_query=arguments.max_per_query,
        embedding=arguments.embedding,
        seed=arguments.seed,
    )
    out = arguments.root / "pick" / arguments.version
    record = pick(config, out=out.resolve())
    found = ", ".join(f"{kind} {record.metrics['picked'].get(kind, 0)} of {budget[kind]}" for kind in _KINDS)
    print(f"pick: {record.num_rows_kept:,} of {record.num_rows_in:,} served pairs ({found}), {out}")
    return 0


def budget_of(limits: list[str]) -> dict[str, int]:
    """How many of each kind ``KIND=N ...`` ask for, 0 where one is not named; RecipeError where one is unknown."""
    found = dict.fromkeys(_KINDS, 0)
    for limit in limits:
        kind, _, value = limit.partition("=")
        if kind not in found or not value.isascii() or not value.isdigit():
            raise RecipeError(f"--budget takes {', '.join(f'{kind}=N' for kind in _KINDS)}, got '{limit}'.")
        found[kind] = int(value)
    return found
