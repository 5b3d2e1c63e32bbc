"""How fast labels come: our stage against raw vLLM on the same prompts in the same order, and against the naive order.

    .venv/bin/python bench/label_throughput.py

One process after the other, in rounds; the medians are over rounds. "Steady" leaves out the first block of pairs, which
also pays for what an engine does once. The naive order puts the pair before the policy and asks one dimension after the
other, so that a prefix cache finds nothing; it is slow, and measured on fewer pairs. Pairs are synthetic.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from preceptor.contracts import PAIRS, rows_to_table
from preceptor.judge.blocks import Ticket, Work
from preceptor.judge.engine import engine_arguments, environment
from preceptor.judge.judges import prompt_hashes
from preceptor.judge.pool import Pool, lay_pool, read_block
from preceptor.judge.replies import Usage, in_waves
from preceptor.judge.tickets import answer_tickets
from preceptor.judge.vllm_judge import PromptTokens, VllmJudge, grade_token_ids
from preceptor.local_ray import ray_cluster
from preceptor.market.groups import generate_pairs
from preceptor.policy import Policy, load_policy, messages
from preceptor.ranker.backbones import resolve_backbone
from preceptor.recipe import POLICY_DIR, EngineConfig, MarketConfig

VARIANTS = ("ours", "raw", "naive")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one run labels."""

    model: str
    policy: Path
    num_policy_tokens: int
    num_blocks: int
    pairs_per_block: int
    num_naive_pairs: int
    engine: EngineConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="the judge (default: smollm2-135m)")
    parser.add_argument("--policy", type=Path, default=POLICY_DIR, help="policy directory (default: the shipped one)")
    parser.add_argument(
        "--policy-tokens",
        type=int,
        default=1000,
        help="precedents are shown until the policy is this long (default: 1000)",
    )
    parser.add_argument("--blocks", type=int, default=3, help="blocks for an engine, the first not timed (default: 3)")
    parser.add_argument("--pairs-per-block", type=int, default=64)
    parser.add_argument("--naive-pairs", type=int, default=8, help="pairs in the naive order (default: 8)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of an engine (default: 0, the CPU)")
    parser.add_argument("--engines", type=int, default=1, help="engines of ours and of raw vLLM (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the medians are over them (default: 3)")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one here and print JSON")
    arguments = parser.parse_args()
    shape = Shape(
        model=resolve_backbone(arguments.model),
        policy=arguments.policy,
        num_policy_tokens=arguments.policy_tokens,
        num_blocks=arguments.blocks,
        pairs_per_block=arguments.pairs_per_block,
        num_naive_pairs=arguments.naive_pairs,
        engine=EngineConfig(
            num_replicas=arguments.engines, gpus_per_replica=arguments.gpus, enforce_eager=not arguments.gpus
        ),
    )
    if arguments.variant is not None:
        print(json.dumps({"ours": ours, "raw": raw, "naive": naive}[arguments.variant](shape)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(arguments.rounds):
        # Which comes first changes from round to round: a machine that slows down favours neither.
        for name in VARIANTS if number % 2 == 0 else ("raw", "ours", "naive"):
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                sys.exit(ran.stderr)
            found[name].append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {name}: {found[name][-1]['rows_per_s']:.2f} rows/s", flush=True)
    show(found)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians and both ratios, the latter as medians of each round's."""
    print(f"\nmedian of {len(found['ours'])} rounds")
    for name, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{name:<6} {middle['rows_per_s']:8.2f} rows/s, {middle['prompt_tokens_per_s']:,.0f} prompt tokens/s, "
            f"prefix-cache hit rate {middle['hit_rate']:.3f}, engine idle {middle['idle_share']:.3%}, "
            f"{middle['policy_tokens']:,.0f} policy tokens"
        )
    for peer, target in (("raw", "0.97"), ("naive", "5")):
        ratios = [a["rows_per_s"] / b["rows_per_s"] for a, b in zip(found["ours"], found[peer], strict=True)]
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"ours / {peer}: {statistics.median(ratios):.3f} (rounds: {each}; target at least {target})")


def ours(shape: Shape) -> dict[str, float]:
    """Steady figures of the label stage: pool, Ray, engine, parts on disk."""
    policy = policy_of(shape)
    judge = VllmJudge(
        judge_id="bench", model=shape.model, policy=policy, dimensions=policy.rubric.names, engine=shape.engine
    )
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        pool = laid(shape, policy, Path(folder))
        work = Work(
            stage="label",
            judge=judge,
            policy=policy,
            prompt_hashes=prompt_hashes(judge, policy),
            pool=pool,
            out=Path(folder) / "out",
            run_id="bench",
            max_attempts=1,
        )
        (shard,) = pool.shards
        tickets = [Ticket(shard=shard, block=block) for block in range(pool.num_blocks(shard))]
        usages, times = [], []
        for _, tally in answer_tickets(work, tickets):
            assert tally is not None and not tally.rejected, tally
            usages.append(tally.usage)
            times.append(time.monotonic())
    num_rows = shape.pairs_per_block * len(policy.rubric.names)
    # Of as many blocks as there are engines: with two, each has answered one, or one of them two.
    first = shape.engine.num_replicas
    elapsed_s = times[-1] - times[first - 1]
    return figures(num_rows * (len(tickets) - first), elapsed_s, sum(usages[first:], Usage()), shape.model, policy)


def raw(shape: Shape) -> dict[str, float]:
    """vLLM's own batch interface, given at once what our stage asks block by block; engines take the blocks in turn."""
    num = shape.engine.num_replicas
    if num == 1:
        return raw_share(shape, 0, None)
    # Processes of their own, none of which begins to be timed before all have answered their first block.
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(num), context.SimpleQueue()
    engines = [context.Process(target=_tell_share, args=(shape, number, barrier, told)) for number in range(num)]
    for engine in engines:
        engine.start()
    found = [told.get() for _ in engines]
    for engine in engines:
        engine.join()
    added = {name: sum(share[name] for share in found) for name in ("rows_per_s", "prompt_tokens_per_s")}
    return {name: statistics.mean(share[name] for share in found) for name in found[0]} | added


def _tell_share(shape: Shape, number: int, barrier: Any, told: Any) -> None:
    told.put(raw_share(shape, number, barrier))


def raw_share(shape: Shape, number: int, barrier: Any) -> dict[str, float]:
    """What engine `number` makes of its blocks."""
    # Before torch is loaded, which the tokenizer does: it takes its number of threads from here, the engine from it.
    os.environ.update(environment(shape.model, shape.engine))
    policy = policy_of(shape)
    with tempfile.TemporaryDirectory() as folder:
        pool = laid(shape, policy, Path(folder))
        (shard,) = pool.shards
        mine = range(number, pool.num_blocks(shard), shape.engine.num_replicas)
        blocks = [read_block(pool.file(shard), block).to_pylist() for block in mine]
    tokens = prompt_tokens(shape.model)
    names = policy.rubric.names
    prompts = [
        [tokens.of_chat(messages(policy, name, **texts(pair))) for pair, name in in_waves(block, names)]
        for block in blocks
    ]
    rest = [prompt for block in prompts[1:] for prompt in block]
    return generated(shape, policy, first=prompts[0], rest=rest, barrier=barrier)


def naive(shape: Shape) -> dict[str, float]:
    """The pair first, then the policy, one prompt after the other for each dimension."""
    policy = policy_of(shape)
    pairs = market_pairs(policy, num=shape.num_naive_pairs + 1)
    tokens = prompt_tokens(shape.model)
    prompts = []
    for pair in pairs:
        for name in policy.rubric.names:
            system, user = (message["content"] for message in messages(policy, name, **texts(pair)))
            prompts.append(tokens.of_chat([{"role": "user", "content": f"{user}\n\n{system}"}]))
    num_first = len(policy.rubric.names)
    return generated(shape, policy, first=prompts[:num_first], rest=prompts[num_first:])


def generated(
    shape: Shape, policy: Policy, *, first: Sequence[list[int]], rest: Sequence[list[int]], barrier: Any = None
) -> dict[str, float]:
    """Figures of `rest`, asked of a raw engine that has answered `first`, as others have that wait at `barrier`."""
    os.environ.update(environment(shape.model, shape.engine))
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    engine = LLM(model=shape.model, **engine_arguments(shape.engine, "generate"))
    grade_tokens = grade_token_ids(prompt_tokens(shape.model).tokenizer, shape.model)
    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=grade_tokens)

    def ask(prompts: Sequence[list[int]]) -> list[Any]:
        return engine.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False)

    ask(first)
    if barrier is not None:
        barrier.wait()
    started_s = time.monotonic()
    outputs = ask(rest)
    elapsed_s = time.monotonic() - started_s
    usage = Usage(
        num_prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        num_cached_tokens=sum(output.num_cached_tokens for output in outputs),
        num_generated_tokens=len(outputs),
        busy_s=elapsed_s,
    )
    return figures(len(rest), elapsed_s, usage, shape.model, policy)


def figures(num_rows: int, elapsed_s: float, usage: Usage, model: str, policy: Policy) -> dict[str, float]:
    """What a run reports."""
    return {
        "rows_per_s": num_rows / elapsed_s,
        "prompt_tokens_per_s": usage.num_prompt_tokens / elapsed_s,
        "hit_rate": usage.num_cached_tokens / usage.num_prompt_tokens,
        "idle_share": max(0.0, 1 - usage.busy_s / elapsed_s),
        "policy_tokens": num_policy_tokens(model, policy),
    }


def policy_of(shape: Shape) -> Policy:
    """The policy, with as many of its precedents shown as make it about so long."""
    policy = load_policy(shape.policy)
    for precedent in policy.precedents:
        if num_policy_tokens(shape.model, policy) >= shape.num_policy_tokens:
            break
        if precedent.id not in policy.rubric.shown:
            rubric = replace(policy.rubric, shown=(*policy.rubric.shown, precedent.id))
            policy = replace(policy, rubric=rubric)
    return policy


def num_policy_tokens(model: str, policy: Policy) -> int:
    system = messages(policy, policy.rubric.names[0], query="", profile="", document="")[0]
    return len(prompt_tokens(model).tokenizer(system["content"])["input_ids"])


def prompt_tokens(model: str) -> PromptTokens:
    from transformers import AutoTokenizer

    return PromptTokens(AutoTokenizer.from_pretrained(model))


def texts(pair: Mapping[str, str]) -> dict[str, str]:
    return {name: pair[name] for name in ("query", "profile", "document")}


def laid(shape: Shape, policy: Policy, folder: Path) -> Pool:
    pairs = market_pairs(policy, num=shape.num_blocks * shape.engine.num_replicas * shape.pairs_per_block)
    table: pa.Table = rows_to_table(pairs, PAIRS)
    return lay_pool([table], folder / "pool", num_pairs=len(pairs), pairs_per_block=shape.pairs_per_block)


def market_pairs(policy: Policy, *, num: int) -> list[dict[str, str]]:
    """The first `num` different pairs of the synthetic market."""
    config = MarketConfig(num_queries=num, documents_per_query=8, num_requests=1, num_holdout_requests=1)
    found: dict[str, dict[str, str]] = {}
    for group in generate_pairs(config, policy.rubric):
        for candidate in group.candidates:
            found.setdefault(candidate.pair["pair_id"], {**candidate.pair})
            if len(found) == num:
                return list(found.values())
    raise AssertionError(f"the market made only {len(found)} pairs")


if __name__ == "__main__":
    main()
