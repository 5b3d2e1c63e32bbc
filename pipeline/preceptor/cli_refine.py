"""The commands `preceptor refine` and `preceptor worklist`: their options, and what they print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from preceptor.errors import InputError, RecipeError
from preceptor.recipe import POLICY_DIR, Budget, JudgeConfig, RefineConfig, ReflectionConfig
from preceptor.recipes import find_recipe

if TYPE_CHECKING:
    import pyarrow as pa

    from preceptor.policy import Policy

REFINE_EPILOG: Final = """\
examples:
  preceptor refine --policy policy/job_match --root runs/refine --judge-url URL --judge-model NAME \\
      --reflect-url URL --reflect-model NAME --budget calls=4000
  preceptor refine demo --judge-url URL --judge-model NAME --reflect-model LARGER \\
      --judge-prices 0.15 0.6 --reflect-prices 3 15 --budget usd=5
  preceptor worklist --policy policy/job_match --labels runs/refine/refine/v1/labels/before.parquet --out runs/worklist

Keys come from OPENAI_API_KEY (the judge) and REFLECT_API_KEY (the reflection model; where it is not set, the judge's
key serves an endpoint on the same host). How a candidate is accepted, and what it costs: docs/refine.md.
"""

_LIMITS: Final = {
    "calls": ("max_metric_calls", int),
    "tokens": ("max_tokens", int),
    "usd": ("max_usd", float),
    "proposals": ("max_proposals", int),
}


def add_refine(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `refine` and set what it runs."""
    parser.description = (
        "Search for prompts that agree better with golden: other instructions, other precedents shown. A candidate is\n"
        "accepted where it gains more than the noise on two sets of calibration queries it was not made from. The\n"
        "winner is written as a change to review. Run again, it resumes; a larger budget goes on under a new --version."
    )
    _add_policy(parser)
    judge = parser.add_argument_group("the judge")
    judge.add_argument("--judge-url", required=True, metavar="URL", help="such as http://127.0.0.1:8000/v1")
    judge.add_argument("--judge-model", required=True, metavar="NAME", help="its name at the endpoint")
    judge.add_argument(
        "--judge-prices", nargs=2, type=float, metavar=("READ", "WRITTEN"), help="USD per million tokens"
    )
    judge.add_argument("--rationale-tokens", type=int, metavar="N", help="reasons before each grade, at most so long")
    judge.add_argument("--dimensions", nargs="+", metavar="NAME", help="ask these alone, 'overall' may be one")
    judge.add_argument("--concurrency", type=int, metavar="N", help="open requests (the recipe's, or 16)")
    judge.add_argument("--timeout-s", type=float, metavar="S", help="for one request (the recipe's, or 60)")
    reflect = parser.add_argument_group("the reflection model")
    reflect.add_argument("--reflect-url", metavar="URL", help="the judge's where it is left out")
    reflect.add_argument(
        "--reflect-model", required=True, metavar="NAME", help="its name; a stronger model than the judge"
    )
    reflect.add_argument(
        "--reflect-prices", nargs=2, type=float, default=(0.0, 0.0), metavar=("READ", "WRITTEN"), help="as above"
    )
    reflect.add_argument("--reflect-tokens", type=int, default=4000, metavar="N", help="of an answer, at most (4000)")
    search = parser.add_argument_group("the search")
    search.add_argument(
        "--budget",
        nargs="+",
        required=True,
        metavar="LIMIT",
        help="calls=N (pairs judged on all dimensions), tokens=N, usd=X, proposals=N (50); the first reached ends it",
    )
    search.add_argument("--statistic", choices=("kappa", "agreement"), default="kappa", help="what must gain (kappa)")
    search.add_argument("--minibatch", type=int, default=8, metavar="N", help="pairs a proposal is made from (8)")
    search.add_argument("--finalists", type=int, default=3, metavar="N", help="candidates tested at most (3)")
    search.add_argument("--seed", type=int, default=17)
    parser.add_argument("--write", action="store_true", help="write an accepted change into the policy itself")
    parser.set_defaults(run=_refine)


def add_worklist(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `worklist` and set what it runs."""
    parser.description = (
        "Sort what golden and a judge disagree on: the policy is unclear, the label is wrong, or the judge is. Prints\n"
        "the largest groups; worklist.jsonl and worklist.csv hold every case with its evidence."
    )
    _add_policy(parser)
    parser.add_argument("--labels", type=Path, help="LABELS of the judge (a recipe's: those of its calibration)")
    parser.add_argument("--again", type=Path, help="LABELS of the same judge, asked a second time")
    parser.add_argument(
        "--gradings", type=Path, nargs="+", metavar="FILE", help="golden lines of single graders, a file for each"
    )
    parser.add_argument("--embedding", choices=("minilm", "tfidf"), help="minilm where it is installed")
    parser.add_argument("--groups", type=int, default=5, metavar="N", help="groups printed of each cause (5)")
    parser.add_argument("--out", type=Path, help="folder of both files (default: ROOT/worklist)")
    parser.set_defaults(run=_worklist)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a recipe, for its policy and its judge's limits")
    parser.add_argument("--policy", type=Path, help="a policy directory (default: the recipe's, or the shipped one)")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="default: golden/calibration.jsonl of the policy")
    parser.add_argument("--root", type=Path, help="where outputs are kept (default: runs/RECIPE, or runs/refine)")
    parser.add_argument("--version", default="v1", help="name of this run's outputs (v1)")


def _refine(arguments: argparse.Namespace) -> int:
    from preceptor.refine import refine
    from preceptor.refine.candidates import TABLE
    from preceptor.refine.change import PATCH, apply_change

    config, policy = config_of(arguments), _policy_of(arguments)
    out = _root_of(arguments) / "refine" / arguments.version
    record = refine(
        config, policy=policy, golden=arguments.golden, reflection_key=_reflection_key(config), out=out.resolve()
    )
    print((out / TABLE).read_text(encoding="utf-8"))
    tokens, usd = record.cost["tokens"], record.cost["usd"]
    took = f"{record.metrics['num_metric_calls']:,} metric calls, {tokens:,.0f} tokens, {usd:.2f} USD"
    if record.metrics["winner"] is None:
        print(f"refine: no candidate gained more than the noise; {took}. The policy stays as it is.")
        return 0
    print(f"refine: candidate {record.metrics['winner']} accepted ({'; '.join(record.metrics['gains'])}); {took}")
    if arguments.write:
        print(apply_change(out, policy, policy_version=record.policy_version or ""))
    else:
        print(f"review {out / PATCH}; then: patch -d {policy} -p1 < {out / PATCH}, or the same command with --write")
    return 0


def _worklist(arguments: argparse.Namespace) -> int:
    from preceptor.contracts import LABELS, read_table
    from preceptor.judge.calibrate import calibration_rows
    from preceptor.policy import load_policy
    from preceptor.refine.neighbours import embedding
    from preceptor.refine.sample import load_calibration
    from preceptor.refine.worklist import worklist
    from preceptor.refine.worklist_files import text_of_worklist, write_worklist

    policy = load_policy(_policy_of(arguments))
    if arguments.labels is None and arguments.recipe is None:
        raise InputError("a worklist is made of a judge's labels: give --labels FILE, or a recipe that was calibrated.")
    root = _root_of(arguments)
    if arguments.labels is None:
        # A recipe's judge is calibrated on its corpus's own golden pairs.
        labels = root / "calibrate" / arguments.version / "labels"
        golden = calibration_rows(root / "corpus" / arguments.version / "golden", num_pairs=sys.maxsize)
    else:
        labels, golden = arguments.labels, load_calibration(policy, arguments.golden)
    judged = read_table(labels, LABELS)
    if not set(judged["pair_id"].to_pylist()) & set(golden["pair_id"].to_pylist()):
        raise InputError(f"{labels}: no label of a golden calibration pair. Give the labels of a calibration.")
    method, embed = embedding(arguments.embedding)
    tasks = worklist(
        golden,
        judged,
        policy.rubric,
        embed=embed,
        again=None if arguments.again is None else read_table(arguments.again, LABELS),
        gradings=_gradings(arguments.gradings or (), policy),
    )
    files = write_worklist(tasks, policy.rubric, arguments.out or root / "worklist")
    print(text_of_worklist(tasks, num_groups=arguments.groups))
    print(f"\nworklist: {len(tasks)} cases, neighbours by {method}: {files[0]}, {files[1]}")
    return 0


def config_of(arguments: argparse.Namespace) -> RefineConfig:
    """What the options ask for; RecipeError where they cannot work together."""
    read, written = arguments.reflect_prices
    return RefineConfig(
        judge=_judge_of(arguments),
        reflection=ReflectionConfig(
            base_url=arguments.reflect_url or arguments.judge_url,
            model=arguments.reflect_model,
            max_tokens=arguments.reflect_tokens,
            usd_per_million_prompt_tokens=read,
            usd_per_million_generated_tokens=written,
        ),
        budget=budget_of(arguments.budget),
        statistic=arguments.statistic,
        minibatch=arguments.minibatch,
        num_finalists=arguments.finalists,
        seed=arguments.seed,
    )


def budget_of(limits: list[str]) -> Budget:
    """The budget that ``calls=N tokens=N usd=X proposals=N`` give; RecipeError for another name or no number."""
    given: dict[str, Any] = {}
    for limit in limits:
        name, _, value = limit.partition("=")
        if name not in _LIMITS:
            raise RecipeError(f"--budget takes {', '.join(f'{known}=N' for known in _LIMITS)}, got '{limit}'.")
        field, kind = _LIMITS[name]
        try:
            given[field] = kind(float(value))
        except (ValueError, OverflowError):
            raise RecipeError(f"--budget {name}= takes a number, got '{value}'.") from None
    return Budget(**given)


def _gradings(files: Sequence[Path], policy: Policy) -> pa.Table | None:
    """What single graders said, all of them together; a file may hold a pair once."""
    import pyarrow as pa

    from preceptor.policy import load_golden

    return pa.concat_tables([load_golden(file, policy) for file in files]) if files else None


def _judge_of(arguments: argparse.Namespace) -> JudgeConfig:
    recipe = None if arguments.recipe is None else find_recipe(arguments.recipe)
    # The floor and the number of pairs are calibration's; refinement takes every pair it is given.
    base = JudgeConfig(
        kind="fake", model=arguments.judge_model, floor=0.0, max_reject_share=0.05, num_calibration_pairs=1
    )
    if recipe is not None and recipe.judge is not None:
        base = recipe.judge
    dimensions = arguments.dimensions
    changes = {
        "dimensions": None if dimensions is None else tuple(dimensions),
        "rationale_tokens": arguments.rationale_tokens,
        "max_concurrency": arguments.concurrency,
        "timeout_s": arguments.timeout_s,
    }
    if arguments.judge_prices is not None:
        changes["usd_per_million_prompt_tokens"], changes["usd_per_million_generated_tokens"] = arguments.judge_prices
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return replace(base, kind="openai", base_url=arguments.judge_url, model=arguments.judge_model, **given)


def _policy_of(arguments: argparse.Namespace) -> Path:
    if arguments.policy is not None:
        return Path(arguments.policy)
    return POLICY_DIR if arguments.recipe is None else find_recipe(arguments.recipe).policy


def _root_of(arguments: argparse.Namespace) -> Path:
    name = "refine" if arguments.recipe is None else find_recipe(arguments.recipe).name
    return Path(arguments.root or Path("runs") / name)


def _reflection_key(config: RefineConfig) -> str:
    """The reflection model's key; the judge's is sent to no other host than the judge's."""
    same_host = urlsplit(config.judge.base_url or "").netloc == urlsplit(config.reflection.base_url).netloc
    shared = os.environ.get("OPENAI_API_KEY", "none") if same_host else "none"
    return os.environ.get("REFLECT_API_KEY", shared)
