"""What labelling a pool takes, on paper: tokens, hours, money, files, bytes and traffic, one small formula each.

Every formula is a function of a frozen `Sizing`; `preceptor plan` prints them side by side and docs/scale.md explains
them. Constants say whether they were measured or are assumptions. No figure here was measured on a GPU.

Letters: N pairs, D dimensions, a prompts a pair, P, T and Q the tokens of policy, pair and question, R replicas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from preceptor.contracts import OVERALL
from preceptor.errors import RecipeError
from preceptor.policy import Policy, load_policy, messages
from preceptor.policy.prompts import TOKENS_PER_WORD
from preceptor.recipe import Recipe, TeacherConfig

PAIRS_PER_SHARD: Final = 8192
PAIRS_PER_BLOCK: Final = 64

TICKET_BYTES: Final = 100
"""Design: what the driver sends for a block, a shard's name and a block's number."""
RESULT_BYTES: Final = 500
"""Design: what comes back for a block, its counts, reject reasons and usage."""
SHARD_ENTRY_BYTES: Final = 200
"""Assumption: what the driver remembers of a shard that is not open, a path and a flag."""

# Measured on 8,180 pairs of the synthetic market (20 documents a query), zstd with page checksums; labels under random
# distributions, which compress worst. tests/unit/test_capacity.py measures them again.
PAIR_TOKENS: Final = 117
"""Measured: a market pair has 73 words, times 1.6 tokens a word. A real posting and profile are nearer to 1,000."""
POOL_BYTES_PER_TOKEN: Final = 0.78
"""Measured: Parquet bytes of a pair in large row groups, by its tokens. Templates compress well, real prose less."""
ROW_GROUP_BYTES: Final = 5_300
"""Measured: what a row group costs, its footer entry, page headers and what zstd cannot share with its neighbours."""
LABEL_BYTES: Final = 34
"""Measured: Parquet bytes of a label; 2 where all mass is on one grade."""
REJECT_BYTES: Final = 55
"""Measured: Parquet bytes of a reject whose `raw` is 150 characters of digits."""
LABEL_MEMORY_BYTES: Final = 125
"""Measured: a label in Arrow, in memory."""

GPU_FLOPS: Final = 362e12
"""NVIDIA's data sheet of the L40S, dense bfloat16; the GPU of cluster.yaml's group gpu-label."""
GPU_SHARE: Final = 0.4
"""Assumption: the share of `GPU_FLOPS` that reading prompts reaches."""

Labeller = Literal["judge", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """A pool, the prompts it takes, and the replicas that answer them.

    `num_prompts` is how many prompts a pair takes: one for each dimension of a judge that is asked in words, one in all
    for a hosted teacher, whose heads answer together. `prompt_tokens_per_s` and `generated_tokens_per_s` are one
    replica's, over tokens that no cache held: put in what bench/label_throughput.py prints on your GPUs.
    `cached_share` is a measured share of prompt tokens found in the prefix cache; None takes what the prompt's shape
    allows, of which `evicted_share` of the prompts find nothing.
    """

    num_pairs: int
    num_dimensions: int
    num_labels_per_pair: int
    num_prompts: int
    policy_tokens: int
    question_tokens: int
    num_replicas: int
    gpus_per_replica: int
    prompt_tokens_per_s: float
    pair_tokens: int = PAIR_TOKENS
    generated_tokens: int = 1
    generated_tokens_per_s: float = 1_000.0
    cached_share: float | None = None
    evicted_share: float = 0.0
    cache_block_tokens: int = 16
    usd_per_gpu_hour: float = 2.6
    engine_start_s: float = 180.0
    deadline_hours: float = 168.0
    pairs_per_block: int = PAIRS_PER_BLOCK
    blocks_in_flight: int = 1
    reject_share: float = 0.01

    def __post_init__(self) -> None:
        for name in ("num_pairs", "num_replicas", "prompt_tokens_per_s", "generated_tokens_per_s", "deadline_hours"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("pairs_per_block", "blocks_in_flight", "num_prompts", "num_dimensions", "cache_block_tokens"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("policy_tokens", "question_tokens", "pair_tokens", "generated_tokens", "gpus_per_replica"):
            _require(getattr(self, name) >= 0, f"{name} must be 0 or above, got {getattr(self, name)}")
        for name in ("usd_per_gpu_hour", "engine_start_s"):
            _require(getattr(self, name) >= 0, f"{name} must be 0 or above, got {getattr(self, name)}")
        for name in ("cached_share", "evicted_share", "reject_share"):
            share = getattr(self, name)
            _require(share is None or 0 <= share <= 1, f"{name} lies in 0..1, got {share}")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint that is paid by the token: USD a million, and its limits a minute. All four are assumptions.

    Cached tokens are not counted cheaper: endpoints that do so ask for prefixes longer than this prompt's.
    """

    usd_per_million_prompt_tokens: float = 0.15
    usd_per_million_generated_tokens: float = 0.60
    tokens_per_minute: float = 10e6
    requests_per_minute: float = 10e3

    def __post_init__(self) -> None:
        for name in ("tokens_per_minute", "requests_per_minute"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("usd_per_million_prompt_tokens", "usd_per_million_generated_tokens"):
            _require(getattr(self, name) >= 0, f"{name} must be 0 or above, got {getattr(self, name)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(f"{message}. See `preceptor plan --help`.")


def sizing_of(
    recipe: Recipe,
    *,
    num_pairs: int,
    labeller: Labeller,
    model_billions: float | None = None,
    gpus_per_replica: int | None = None,
    prompt_tokens_per_s: float | None = None,
) -> Sizing:
    """The Sizing of labelling `num_pairs` with the recipe's judge, asked in words, or with its hosted teacher.

    Prompt lengths come from its policy, replicas from its engine. Without `prompt_tokens_per_s`, the rate is the
    assumed one of a model of `model_billions` parameters (default: what the model's name says). RecipeError where the
    recipe labels nothing, or where no rate can be assumed.
    """
    if recipe.judge is None or recipe.relevance is None:
        raise RecipeError(f"recipe {recipe.name} labels nothing: it has no judge. Plan another recipe.")
    policy = load_policy(recipe.policy)
    names = recipe.judge.dimensions or policy.rubric.names
    engine = recipe.judge.engine
    gpus = engine.gpus_per_replica if gpus_per_replica is None else gpus_per_replica
    if labeller == "judge":
        model = recipe.judge.model
    elif isinstance(recipe.relevance, TeacherConfig):
        model = recipe.relevance.backbone.source
    else:
        raise RecipeError(f"recipe {recipe.name}: its teacher matches texts, in no engine. Plan the judge.")
    if prompt_tokens_per_s is None:
        prompt_tokens_per_s = assumed_tokens_per_s(model_billions or billions_in(model), gpus_per_replica=gpus)
    policy_tokens, question_tokens = prompt_tokens(policy, names)
    in_words = labeller == "judge"
    return Sizing(
        num_pairs=num_pairs,
        num_dimensions=len(names),
        num_labels_per_pair=len(names) + (OVERALL not in names),
        num_prompts=len(names) if in_words else 1,
        policy_tokens=policy_tokens if in_words else 0,
        question_tokens=question_tokens if in_words else 0,
        generated_tokens=1 if in_words else 0,
        num_replicas=engine.num_replicas,
        gpus_per_replica=gpus,
        prompt_tokens_per_s=prompt_tokens_per_s,
        reject_share=recipe.judge.max_reject_share,
    )


def prompt_tokens(policy: Policy, dimensions: Sequence[str]) -> tuple[int, int]:
    """About how many tokens the policy takes in a prompt, and a question on average: words x `TOKENS_PER_WORD`."""
    asked = [messages(policy, name, query="", profile="", document="") for name in dimensions]
    # The question is what follows the pair, after the last empty line.
    questions = [user["content"].rpartition("\n\n")[2] for _, user in asked]
    num_words = sum(len(question.split()) for question in questions) / len(questions)
    return round(len(asked[0][0]["content"].split()) * TOKENS_PER_WORD), round(num_words * TOKENS_PER_WORD)


def billions_in(model: str) -> float:
    """The billions of parameters that a model's name tells (``-32B``, ``-135m``); RecipeError where it is mute."""
    found = re.search(r"(\d+(?:\.\d+)?)([bBmM])\b", model)
    if found is None:
        raise RecipeError(
            f"the name '{model}' does not say how large the model is: add --model-billions, or a measured "
            "--prompt-tokens-per-s."
        )
    return float(found[1]) / (1 if found[2] in "bB" else 1000)


def assumed_tokens_per_s(billions: float, *, gpus_per_replica: int) -> float:
    """gpus x GPU_FLOPS x GPU_SHARE / (2 x parameters): prompt tokens/s of a replica, an assumption and no measurement.

    A forward pass takes about 2 FLOP a parameter and token, attention left out (Kaplan et al. 2020, section 2.1). It is
    rounded to two digits, which is more than it deserves. RecipeError without a GPU.
    """
    if gpus_per_replica < 1:
        raise RecipeError(
            "no rate can be assumed for an engine without a GPU: add --gpus-per-replica 1, or a measured "
            "--prompt-tokens-per-s."
        )
    rate = gpus_per_replica * GPU_FLOPS * GPU_SHARE / (2 * billions * 1e9)
    return float(f"{rate:.1e}")


def num_rows(s: Sizing) -> int:
    """N x D: the (pair, dimension) rows that are graded."""
    return s.num_pairs * s.num_dimensions


def num_prompts(s: Sizing) -> int:
    """N x a: the prompts that are sent."""
    return s.num_pairs * s.num_prompts


def asked_tokens(s: Sizing) -> int:
    """N x a x (P + T + Q): the tokens of all prompts, cached or not."""
    return num_prompts(s) * (s.policy_tokens + s.pair_tokens + s.question_tokens)


def computed_tokens(s: Sizing) -> float:
    """The prompt tokens that no prefix cache held, which the GPUs compute.

    At best R x P + N x T + N x a x (Q + (c - 1) / 2): the policy once a replica, the pair once a pair, the question for
    each prompt, and on average half a cache block of c tokens, because only whole blocks are found again. A share
    `evicted_share` of what that saves is computed after all. With `cached_share`: asked x (1 - cached_share).
    """
    asked = asked_tokens(s)
    if s.cached_share is not None:
        return asked * (1 - s.cached_share)
    lost = (s.cache_block_tokens - 1) / 2
    once = s.num_replicas * s.policy_tokens + s.num_pairs * s.pair_tokens
    best = once + num_prompts(s) * (s.question_tokens + lost)
    return min(best, asked) + s.evicted_share * max(asked - best, 0)


def generated_tokens(s: Sizing) -> int:
    """N x a x g: the tokens written."""
    return num_prompts(s) * s.generated_tokens


def busy_seconds(s: Sizing) -> float:
    """computed / prompt rate + N x a x (g - 1) / generated rate: seconds of work for one replica.

    The first token written comes with the prompt. The two add up because they share one GPU.
    """
    num_decoded = num_prompts(s) * max(s.generated_tokens - 1, 0)
    return computed_tokens(s) / s.prompt_tokens_per_s + num_decoded / s.generated_tokens_per_s


def rows_per_second(s: Sizing) -> float:
    """N x D / busy seconds: the rows/s of one replica."""
    return num_rows(s) / busy_seconds(s) if busy_seconds(s) else math.inf


def wall_hours(s: Sizing) -> float:
    """(engine start + busy seconds / R) / 3600: hours from the first engine's start to the last row."""
    return (s.engine_start_s + busy_seconds(s) / s.num_replicas) / 3600


def gpu_hours(s: Sizing) -> float:
    """wall hours x R x GPUs a replica: what is paid for, starts included."""
    return wall_hours(s) * s.num_replicas * s.gpus_per_replica


def cost_usd(s: Sizing) -> float:
    """GPU hours x price."""
    return gpu_hours(s) * s.usd_per_gpu_hour


def replicas_for_deadline(s: Sizing) -> int:
    """busy seconds / (deadline - engine start), rounded up: the replicas that finish in `deadline_hours`."""
    left_s = s.deadline_hours * 3600 - s.engine_start_s
    _require(left_s > 0, f"deadline_hours must leave time after an engine's start, got {s.deadline_hours:g}")
    return max(1, math.ceil(busy_seconds(s) / left_s))


def num_shards(num_pairs: int, *, pairs_per_shard: int = PAIRS_PER_SHARD) -> int:
    """The smallest power of two that leaves at most `pairs_per_shard` pairs to a shard on average."""
    return 1 << max(0, (max(num_pairs, 1) - 1) // pairs_per_shard).bit_length()


def pairs_per_shard(s: Sizing) -> float:
    """N / shards, on average: the hash of (query, profile) spreads groups evenly, not exactly."""
    return s.num_pairs / num_shards(s.num_pairs)


def blocks_per_shard(s: Sizing) -> int:
    """pairs a shard / pairs a block, rounded up: the row groups of a shard's file."""
    return math.ceil(pairs_per_shard(s) / s.pairs_per_block)


def num_blocks(s: Sizing) -> int:
    """shards x blocks a shard: the tickets that are sent."""
    return num_shards(s.num_pairs) * blocks_per_shard(s)


def num_files(s: Sizing) -> int:
    """4 x shards: pool, labels, rejects and record of each, once all is finished. A hosted teacher's scores: 1 more."""
    return 4 * num_shards(s.num_pairs)


def num_open_shards(s: Sizing) -> int:
    """2 x R x blocks in flight + 1; never more than there are.

    A task holds neighbouring tickets: each one in work has a shard open, and shares its last with the next task; one
    more is being compacted.
    """
    return min(num_shards(s.num_pairs), 2 * s.num_replicas * s.blocks_in_flight + 1)


def num_open_parts(s: Sizing) -> int:
    """2 x open shards x blocks a shard: the most parts (labels, rejects) that wait for their shard to be whole."""
    return 2 * num_open_shards(s) * blocks_per_shard(s)


def pool_bytes(s: Sizing) -> float:
    """N x T x bytes a token + blocks x bytes a row group."""
    return s.num_pairs * s.pair_tokens * POOL_BYTES_PER_TOKEN + num_blocks(s) * ROW_GROUP_BYTES


def label_bytes(s: Sizing) -> int:
    """N x labels a pair x bytes a label; 'overall' is a label too."""
    return s.num_pairs * s.num_labels_per_pair * LABEL_BYTES


def reject_bytes(s: Sizing) -> float:
    """N x labels a pair x reject share x bytes a reject: the most the recipe's ceiling lets through."""
    return s.num_pairs * s.num_labels_per_pair * s.reject_share * REJECT_BYTES


def traffic_bytes_per_pair(s: Sizing) -> float:
    """(ticket + result) / pairs a block: what the object store carries for a pair. Text lengths do not enter."""
    return (TICKET_BYTES + RESULT_BYTES) / s.pairs_per_block


def traffic_bytes(s: Sizing) -> int:
    """blocks x (ticket + result): what the object store carries in all."""
    return num_blocks(s) * (TICKET_BYTES + RESULT_BYTES)


def driver_bytes(s: Sizing) -> float:
    """What the driver holds above its libraries: open blocks, one shard's labels while they are compacted, shard names.

    open shards x blocks a shard x (ticket + result) + pairs a shard x labels a pair x bytes in Arrow x 2 (the parts and
    their one table) + shards x bytes an entry. Only the last term grows with N.
    """
    opened = num_open_shards(s) * blocks_per_shard(s) * (TICKET_BYTES + RESULT_BYTES)
    compacted = 2 * pairs_per_shard(s) * s.num_labels_per_pair * LABEL_MEMORY_BYTES
    return opened + compacted + num_shards(s.num_pairs) * SHARD_ENTRY_BYTES


def rows_lost(s: Sizing) -> int:
    """blocks in flight x pairs a block x D: the most rows that are asked again when a replica is killed."""
    return min(s.blocks_in_flight * s.pairs_per_block, s.num_pairs) * s.num_dimensions


def seconds_lost(s: Sizing) -> float:
    """engine start + rows lost / rows/s: the most of one replica's time that a kill costs. The others work on."""
    return s.engine_start_s + rows_lost(s) / rows_per_second(s)


def endpoint_hours(s: Sizing, endpoint: Endpoint) -> float:
    """max((asked + generated) / tokens a minute, prompts / requests a minute) / 60: its limits, not its speed."""
    by_tokens = (asked_tokens(s) + generated_tokens(s)) / endpoint.tokens_per_minute
    return max(by_tokens, num_prompts(s) / endpoint.requests_per_minute) / 60


def endpoint_usd(s: Sizing, endpoint: Endpoint) -> float:
    """asked x prompt price + generated x generated price, each a million tokens."""
    prompt_usd = asked_tokens(s) * endpoint.usd_per_million_prompt_tokens
    return (prompt_usd + generated_tokens(s) * endpoint.usd_per_million_generated_tokens) / 1e6
