"""The command `preceptor`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from preceptor.cli_feedback import FEEDBACK_EPILOG, add_feedback
from preceptor.cli_golden import GOLDEN_EPILOG, add_golden
from preceptor.cli_plan import add_plan
from preceptor.cli_policy import add_policy
from preceptor.cli_refine import REFINE_EPILOG, add_refine, add_worklist
from preceptor.cli_serve import add_serve
from preceptor.cli_workbench import EPILOG as WORKBENCH_EPILOG
from preceptor.cli_workbench import add_workbench
from preceptor.errors import PreceptorError, RecipeError
from preceptor.plan import choose, make_plan
from preceptor.recipe import CorporaConfig, Recipe
from preceptor.recipes import SHIPPED, find_recipe, with_data

_EPILOG: Final = """\
examples:
  preceptor run demo --root runs/demo --dry-run        what would run
  preceptor run demo --root runs/demo                  the whole path; run again, it skips what is finished
  preceptor run demo --root runs/demo --from distill   from one stage on
  preceptor run jobmatch --root runs/jobmatch --data DIR
  preceptor run demo --root runs/mine --judge openai --base-url http://127.0.0.1:8000/v1 --judge-model NAME
  preceptor generate examples/own_corpora.py:recipe --root runs/own
  preceptor label demo --root runs/mine --judge openai --base-url URL --version v2 --dry-run
  preceptor calibrate demo --root runs/demo --policy DIR   agreement before and after an edit of the policy
  preceptor batch export demo --root runs/mine --judge openai --base-url URL --out requests.jsonl
  preceptor batch import demo output.jsonl errors.jsonl --root runs/mine --judge openai --base-url URL
  preceptor score --bundle runs/demo/export/v1/bundle --pairs pairs.parquet --out scores.parquet
  preceptor serve --bundle runs/demo/export/v1/bundle
  preceptor keys add recommender --file keys.json
  preceptor serve --bundle runs/demo/export/v1/bundle --host 0.0.0.0 --keys keys.json
  preceptor feedback join --served log --texts log-texts --events clicks.jsonl --propensities estimate \\
    --late-after-s 86400 --root runs/live
  preceptor policy lint policy/job_match
  preceptor policy diff HEAD:policy/job_match policy/job_match --root runs/demo
  preceptor workbench demo --root runs/demo            decide about disagreements at http://127.0.0.1:8100
  preceptor plan cluster --pairs 1e6 1e9               hours, money and bytes of labelling, on paper
"""

_PLAN_EPILOG: Final = """\
examples:
  preceptor plan cluster --pairs 1e6 1e8 1e9
  preceptor plan cluster --pairs 1e9 --labeller judge --replicas 64 --usd-per-gpu-hour 1.1
  preceptor plan cluster --pairs 1e9 --pair-tokens 900 --prompt-tokens-per-s 6200 --cached-share 0.85

what to replace first, because the default is an assumption and the result is proportional to it:
  --prompt-tokens-per-s    what bench/label_throughput.py prints on your GPUs
  --pair-tokens            the mean of your pairs; the default is the synthetic market's
  --usd-per-gpu-hour       what you pay
The formulas, and what of this was measured: docs/scale.md.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where a judge, gate or stage failed, 2 for input that must be mended."""
    arguments = _parser().parse_args(argv)
    # Read when transformers is imported: its progress bars would bury the lines of a run.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return int(arguments.run(arguments) or 0)
    except PreceptorError as error:
        print(f"preceptor: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("preceptor: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from preceptor_serve.keys_command import add_keys
    from preceptor_serve.rollout_command import add_rollouts

    parser = argparse.ArgumentParser(
        prog="preceptor",
        description="From a product policy and graded examples to a distilled ranker.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a recipe's stages; finished ones are skipped"))
    _add_generate(commands.add_parser("generate", help="make pairs worth labelling out of your own corpora"))
    _add_label(commands.add_parser("label", help="label a recipe's pool, or say what that would ask"))
    _add_calibrate(commands.add_parser("calibrate", help="measure the labelling judge again under an edited policy"))
    _add_batch(commands.add_parser("batch", help="ask an endpoint through OpenAI batch files"))
    for name, about, epilog, add in (
        ("plan", "what labelling so many pairs takes: hours, money, bytes", _PLAN_EPILOG, add_plan),
        ("refine", "improve a judge's prompts against golden's calibration split", REFINE_EPILOG, add_refine),
        ("worklist", "sort what golden and a judge disagree on", REFINE_EPILOG, add_worklist),
        ("golden", "pairs to people, their grades back, golden files", GOLDEN_EPILOG, add_golden),
        ("feedback", "clicks joined to a served log, and what to label next", FEEDBACK_EPILOG, add_feedback),
    ):
        add(commands.add_parser(name, help=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter))
    _add_score(commands.add_parser("score", help="score a file of pairs with a bundle"))
    add_serve(commands.add_parser("serve", help="serve a bundle over HTTP with Ray Serve"))
    add_policy(commands.add_parser("policy", help="check, show or compare policies"))
    workbench = commands.add_parser(
        "workbench",
        help="a local page to decide about disagreements with the judge",
        epilog=WORKBENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recipe(workbench)
    add_workbench(workbench, _recipe)
    add_keys(commands.add_parser("keys", help="make, list and end the API keys of a scorer"))
    add_rollouts(commands)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = f"Run a recipe. Shipped: {', '.join(SHIPPED)}; or FILE.py:function of your own."
    _add_recipe(parser)
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone, on finished inputs")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="run from this stage on")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    parser.add_argument("--storage", metavar="PATH", help="where training keeps its checkpoints: a path or s3://...")
    parser.add_argument("--base", metavar="VERSION", help="take from this version what it finished in the same way")
    parser.add_argument("--serve-examples", action="store_true", help="then score three pairs over HTTP")
    parser.set_defaults(run=_run)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make pairs out of a recipe's corpora of postings and profiles: the stage `corpus` of `preceptor run`. Columns "
        "are checked, personal data masked, repeats dropped, queries written, candidates found and chosen by predicted "
        "grade. corpus/VERSION/table.md says what was kept and why the rest was dropped. Run again, it resumes."
    )
    _add_recipe(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be read, run nothing")
    parser.set_defaults(run=_generate)


def _add_label(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Label a recipe's pool with its judge: the stage `label` of `preceptor run`. Labels that an earlier version "
        "gave are taken over where pair, judge and the wording of their dimension are the same."
    )
    _add_recipe(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print how many rows are new, reused, stale; ask nothing"
    )
    parser.set_defaults(run=_label)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calibrate the labelling judge of a finished run again, under the policy as it is now or another (--policy). "
        "Only dimensions that are worded anew are judged; other labels are taken over. Prints agreement before and "
        "after. The new calibration stands beside the earlier ones; exit 1 where the judge is under its floor."
    )
    _add_recipe(parser)
    parser.add_argument(
        "--against", metavar="VERSION", help="the calibration to compare with (default: the finished run's)"
    )
    parser.set_defaults(run=_calibrate)


def _add_batch(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write what is to be asked as request files")
    export.description = (
        "Write one request for each pair and dimension, in files of at most 50,000 requests and 200 MB each."
    )
    _add_recipe(export)
    export.add_argument("--out", type=Path, required=True, help="requests.jsonl; more files are requests-2.jsonl, ...")
    export.set_defaults(run=_batch_export)
    read = commands.add_parser("import", help="make labels of the results")
    read.description = (
        "Read output and error files of all tries together and run the stage on them, without asking anybody."
    )
    _add_recipe(read)
    read.add_argument("results", type=Path, nargs="+", help="output and error files, JSON Lines")
    read.add_argument(
        "--retry", type=Path, metavar="FILE", help="first ask rows again that failed, expired or are missing"
    )
    read.set_defaults(run=_batch_import)
    for command in (export, read):
        command.add_argument("--stage", choices=("calibrate", "label"), default="label", help="whose pairs (label)")
        command.add_argument(
            "--top-logprobs", type=int, default=20, metavar="N", help="as many as the model gives (20); 0 for none"
        )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a shipped recipe's name, or FILE.py:function")
    parser.add_argument("--root", type=Path, help="where stages are kept (default: runs/RECIPE)")
    parser.add_argument("--data", type=Path, help="folder of the source's files (jobmatch, headlines)")
    parser.add_argument("--policy", type=Path, help="a policy directory in place of the recipe's")
    parser.add_argument("--version", help="name of this run's outputs; 'dev' always rebuilds")
    parser.add_argument("--judge", choices=("openai",), help="label with an OpenAI-compatible endpoint")
    parser.add_argument("--base-url", help="the endpoint, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--judge-model", help="the model's name at the endpoint")
    parser.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="serve rows, rejects, tokens and cost to Prometheus meanwhile"
    )
    parser.add_argument("--metrics-host", default="127.0.0.1", help="interface for that (default: 127.0.0.1)")


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.description = "Score pairs: columns query, profile and document suffice. Output: the SCORES contract."
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle/ directory of an export stage")
    parser.add_argument("--pairs", type=Path, required=True, help="Parquet, JSONL, CSV or a saved datasets directory")
    parser.add_argument("--out", type=Path, required=True, help="a Parquet file; one row a pair, in their order")
    parser.set_defaults(run=_score)


def _run(arguments: argparse.Namespace) -> int:
    from preceptor.running import dry_run, run_steps, watching

    recipe = _recipe(arguments)
    recipe = replace(recipe, base=arguments.base or recipe.base, storage=arguments.storage or recipe.storage)
    root = _root(arguments, recipe)
    if arguments.dry_run:
        steps = choose(make_plan(recipe), only=arguments.only, start=arguments.start)
        print(dry_run(recipe, steps, root=root))
        return 0
    with watching(host=arguments.metrics_host, port=arguments.metrics_port) as watch:
        steps = choose(make_plan(recipe, watch=watch), only=arguments.only, start=arguments.start)
        run_steps(recipe, steps, root=root, serve=arguments.serve_examples)
    shown = arguments.root or Path("runs") / recipe.name
    print(f"{recipe.name}: ok {shown / 'report.html'}")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from preceptor.running import dry_run, run_steps

    recipe = _recipe(arguments)
    if not isinstance(recipe.source, CorporaConfig):
        raise RecipeError(f"recipe {recipe.name} has no corpora of its own; see examples/own_corpora.py for one.")
    root, steps = _root(arguments, recipe), choose(make_plan(recipe), only="corpus", start=None)
    if arguments.dry_run:
        print(dry_run(recipe, steps, root=root))
        return 0
    run_steps(recipe, steps, root=root)
    print(f"generate: ok {root / 'corpus' / recipe.version}")
    return 0


def _label(arguments: argparse.Namespace) -> int:
    from preceptor.running import label_dry_run, run_steps, watching

    recipe = _recipe(arguments)
    root = _root(arguments, recipe)
    if arguments.dry_run:
        print(label_dry_run(recipe, root=root))
        return 0
    with watching(host=arguments.metrics_host, port=arguments.metrics_port) as watch:
        run_steps(recipe, choose(make_plan(recipe, watch=watch), only="label", start=None), root=root)
    print(f"label: ok {root / 'label' / recipe.version}")
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    from preceptor.judge.label import require_calibrated
    from preceptor.recalibrate import recalibrate
    from preceptor.running import watching

    recipe = _recipe(arguments)
    root = _root(arguments, recipe)
    with watching(host=arguments.metrics_host, port=arguments.metrics_port) as watch:
        found = recalibrate(recipe, root=root, against=arguments.against, watch=watch)
    print(found.words())
    require_calibrated(found.judge, found.after, found.policy)
    return 0


def _batch_export(arguments: argparse.Namespace) -> int:
    from preceptor.batch import batch_export

    recipe = _recipe(arguments)
    print(
        batch_export(
            recipe,
            root=_root(arguments, recipe),
            out=arguments.out,
            stage=arguments.stage,
            top_logprobs=arguments.top_logprobs,
        )
    )
    return 0


def _batch_import(arguments: argparse.Namespace) -> int:
    from preceptor.batch import batch_import

    recipe = _recipe(arguments)
    print(
        batch_import(
            recipe,
            root=_root(arguments, recipe),
            results=arguments.results,
            retry=arguments.retry,
            stage=arguments.stage,
            top_logprobs=arguments.top_logprobs,
        )
    )
    return 0


def _recipe(arguments: argparse.Namespace) -> Recipe:
    recipe = with_data(find_recipe(arguments.recipe), arguments.data)
    if arguments.policy is not None:
        recipe = replace(recipe, policy=arguments.policy)
    if arguments.version is not None:
        recipe = replace(recipe, version=arguments.version)
    if arguments.judge is None:
        if arguments.base_url or arguments.judge_model:
            raise RecipeError("--base-url and --judge-model go with --judge openai.")
        return recipe
    if recipe.judge is None:
        raise RecipeError(f"recipe {recipe.name} has no judge to replace.")
    judge = replace(
        recipe.judge,
        kind=arguments.judge,
        base_url=arguments.base_url,
        model=arguments.judge_model or recipe.judge.model,
        # A judge that labels is measured on as many pairs as a teacher that does: few say nothing of a floor.
        num_calibration_pairs=max(recipe.judge.num_calibration_pairs, recipe.num_tuned_pairs),
    )
    return replace(recipe, judge=judge, labeller="judge")


def _root(arguments: argparse.Namespace, recipe: Recipe) -> Path:
    return (arguments.root or Path("runs") / recipe.name).resolve()


def _score(arguments: argparse.Namespace) -> int:
    from preceptor.bundle import load_bundle, score_table
    from preceptor.contracts import SCORES, write_table
    from preceptor.sources.pairs import read_pairs

    pairs = read_pairs(arguments.pairs)
    bundle = load_bundle(arguments.bundle)
    bundle.probe()
    scores = score_table(bundle, pairs)
    write_table(scores, arguments.out, SCORES)
    print(f"score: {scores.num_rows:,} pairs, bundle {bundle.bundle_id}, {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
