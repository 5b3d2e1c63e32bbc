"""The command `preceptor plan`: its options, one for each assumption, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from preceptor.errors import RecipeError
from preceptor.recipe import Recipe, TeacherConfig
from preceptor.recipe.checks import require
from preceptor.recipes import find_recipe


def _whole(text: str) -> int:
    """``1e9`` as a whole number."""
    value = float(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)


_PLAN_OPTIONS: Final[dict[str, dict[str, tuple[Callable[[str], float], str]]]] = {
    "prompts": {
        "policy-tokens": (_whole, "tokens of the policy (the recipe's, counted by words)"),
        "pair-tokens": (_whole, "tokens of a pair, on average (117, the synthetic market's)"),
        "question-tokens": (_whole, "tokens of a dimension's question (the policy's, counted by words)"),
        "generated-tokens": (_whole, "tokens of an answer (1; more where the judge gives reasons)"),
        "cached-share": (float, "measured share of prompt tokens found in the prefix cache (what is possible)"),
        "evicted-share": (float, "share of prompts that find nothing there (0)"),
    },
    "engines": {
        "replicas": (_whole, "engine replicas (the recipe's)"),
        "gpus-per-replica": (_whole, "GPUs each (the recipe's)"),
        "model-billions": (float, "parameters the assumed rate is reckoned from (what the model's name says)"),
        "prompt-tokens-per-s": (float, "prompt tokens/s one replica computes (assumed: 0.4 of an L40S's peak)"),
        "generated-tokens-per-s": (float, "tokens/s one replica writes, beyond the first of an answer (1000, assumed)"),
        "usd-per-gpu-hour": (float, "price of a GPU for an hour (2.6, assumed)"),
        "engine-start-s": (float, "seconds until an engine answers (180, assumed)"),
        "deadline-hours": (float, "hours to be done in (168)"),
    },
    "blocks": {
        "pairs-per-block": (_whole, "pairs of one ticket and row group (64)"),
        "blocks-in-flight": (_whole, "blocks a replica works on at once (1)"),
        "reject-share": (float, "share of rows rejected (the recipe's ceiling)"),
    },
    "endpoint instead of GPUs": {
        "usd-per-million-prompt-tokens": (float, "price of a million tokens read (0.15, assumed)"),
        "usd-per-million-generated-tokens": (float, "price of a million tokens written (0.6, assumed)"),
        "tokens-per-minute": (float, "its limit (1e7, assumed)"),
        "requests-per-minute": (float, "its limit (1e4, assumed)"),
    },
}
_FIELDS: Final = {"replicas": "num_replicas"}


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the command's options and set what it runs."""
    parser.description = (
        "Print what labelling a pool takes with a recipe's policy, prompts and engines: tokens, hours, money, files,\n"
        "bytes and traffic. Nothing is read but the recipe and its policy, and nothing is run."
    )
    parser.add_argument("recipe", help="a shipped recipe's name, or FILE.py:function")
    parser.add_argument("--policy", type=Path, help="a policy directory in place of the recipe's")
    parser.add_argument(
        "--pairs", type=_whole, nargs="+", metavar="N", help="pool sizes, such as 1e6 1e9: a column each"
    )
    parser.add_argument(
        "--labeller",
        choices=("judge", "teacher"),
        help="judge asked in words, or hosted teacher (the recipe's)",
    )
    for group, options in _PLAN_OPTIONS.items():
        added = parser.add_argument_group(group)
        for name, (kind, about) in options.items():
            added.add_argument(f"--{name}", type=kind, metavar="X", dest=_FIELDS.get(name), help=about)
    training = parser.add_argument_group("memory of training, instead of labelling")
    training.add_argument("--training", action="store_true", help="print what training models of 0.6B to 7B takes")
    training.add_argument("--gpus", type=_whole, default=8, metavar="X", help="GPUs a run is sharded over (8)")
    training.add_argument("--gpu-gb", type=float, default=80.0, metavar="X", help="memory of each (80)")
    training.add_argument("--pass-tokens", type=_whole, metavar="X", help="tokens of a pass (the recipe's)")
    training.add_argument("--activations", choices=("kept", "recomputed"), help="(the recipe's)")
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from preceptor.capacity import Endpoint, Sizing, sizing_of
    from preceptor.capacity_table import render

    recipe = find_recipe(arguments.recipe)
    if arguments.training:
        return _plan_training(recipe, arguments)
    if not arguments.pairs:
        raise RecipeError("nothing to plan: add --pairs N for labelling, or --training.")
    if arguments.policy is not None:
        recipe = replace(recipe, policy=arguments.policy)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    labeller = arguments.labeller or recipe.labeller
    rate = {name: given.get(name) for name in ("model_billions", "gpus_per_replica", "prompt_tokens_per_s")}
    first = sizing_of(recipe, num_pairs=arguments.pairs[0], labeller=labeller, **rate)
    first = replace(first, **{field.name: given[field.name] for field in fields(Sizing) if field.name in given})
    endpoint = Endpoint(**{field.name: given[field.name] for field in fields(Endpoint) if field.name in given})
    print(render([replace(first, num_pairs=num) for num in arguments.pairs], endpoint, labeller=labeller))
    return 0


def _plan_training(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from preceptor.training_memory import Cluster, render_training

    teachers = [found for found in (recipe.relevance, recipe.engagement) if isinstance(found, TeacherConfig)]
    learner = recipe.distill or next(iter(teachers), None)
    require(learner is not None, f"recipe '{recipe.name}' trains no language model: plan demo --training, say")
    assert learner is not None
    train = learner.train
    cluster = Cluster(
        num_gpus=arguments.gpus,
        gpu_bytes=arguments.gpu_gb * 1e9,
        pass_tokens=arguments.pass_tokens or train.pass_tokens,
        activations=arguments.activations or train.activations,
    )
    print(render_training(cluster))
    return 0
