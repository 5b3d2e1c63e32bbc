"""The commands `preceptor rollout` and `preceptor compare`. Imports nothing heavy until one is asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

ROLLOUT_EPILOG: Final = """\
examples, against what `preceptor serve` or `serve deploy serve.yaml` started on this machine:
  preceptor rollout stage runs/new/export/v1/bundle    start it beside the live one; nobody is answered by it yet
  preceptor rollout shadow 0.2 --out shadow            a fifth of the requests is scored by it besides
  preceptor compare shadow --html shadow.html          how far its answers are from the live ones
  preceptor rollout share 0.05                         a twentieth of the members is answered by it
  preceptor rollout promote                            everyone is; the old one stays, ready
  preceptor rollout rollback                           back, from the next request on
  preceptor rollout retire                             end what answers nobody
  preceptor rollout status
"""


def add_rollouts(commands: Any) -> None:
    """Give the command line's `commands` the two of this module."""
    rollout = commands.add_parser(
        "rollout",
        help="try a new bundle beside the live one, promote it, go back",
        epilog=ROLLOUT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_rollout(rollout)
    _add_compare(commands.add_parser("compare", help="how far a candidate's shadow answers are from the live ones"))


def _add_rollout(parser: argparse.ArgumentParser) -> None:
    parser.description = "Each step is safe to repeat, says what it did, and is done when every edge follows it."
    steps = parser.add_subparsers(required=True, metavar="STEP")
    stage = steps.add_parser("stage", help="start a bundle as the candidate, without a share")
    stage.add_argument("bundle", type=Path, help="a bundle/ directory, at this path on every node that runs scorers")
    stage.set_defaults(run=lambda given: _step(given, lambda found: found.stage(given.bundle)))
    share = steps.add_parser("share", help="the share of the members whom the candidate answers")
    share.add_argument("share", type=float, help="0 to 1; a member, known by the profile, always gets the same bundle")
    share.set_defaults(run=lambda given: _step(given, lambda found: found.share(given.share)))
    shadow = steps.add_parser("shadow", help="the share of the requests that the candidate scores besides")
    shadow.add_argument("share", type=float, help="0 to 1; what does not fit behind the answers is dropped")
    shadow.add_argument("--out", type=Path, metavar="DIR", help="keep comparisons here, on each edge's machine")
    shadow.set_defaults(run=lambda given: _step(given, lambda found: found.shadow(given.share, _folder(given.out))))
    for name, about in (
        ("promote", "make the candidate live; the old bundle stays ready"),
        ("rollback", "nothing to the candidate, or back to the previous bundle, at once"),
        ("retire", "end the candidate and the previous bundle where they answer nobody"),
        ("status", "who is what, and whether every edge follows"),
    ):
        step = steps.add_parser(name, help=about)
        step.set_defaults(run=lambda given, name=name: _step(given, lambda found: getattr(found, name)()))
    for step in steps.choices.values():
        step.add_argument("--address", default="auto", help="the Ray cluster (default: the one on this machine)")
        step.add_argument("--app", default="preceptor", help="the Serve application (default: preceptor)")
        step.add_argument("--wait-s", type=float, default=300.0, metavar="S", help="for replicas to come up (300)")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Rank agreement, overlap of the first places, differences by head and failures, by pair of bundles, with 95 % "
        "intervals over requests. Reads what `preceptor rollout shadow SHARE --out DIR` wrote."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of comparisons")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the spread over requests, too")
    parser.set_defaults(run=_compare)


def _folder(out: Path | None) -> str | None:
    return None if out is None else str(out.resolve())


def _step(arguments: argparse.Namespace, step: Any) -> int:
    from preceptor_serve.rollout import Running, cluster

    with cluster(arguments.address):
        running = Running(app=arguments.app, wait_s=arguments.wait_s)
        print(step(running))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from preceptor_serve.agreement import agreements, words_of, write_page

    found = agreements(arguments.folder)
    print("\n".join(map(words_of, found)))
    if arguments.html is not None:
        write_page(found, arguments.html)
        print(f"compare: {arguments.html}")
    return 0
