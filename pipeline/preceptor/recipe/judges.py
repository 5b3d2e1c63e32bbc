"""Who labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from preceptor.recipe.checks import is_http_url, require, without_credentials
from preceptor.recipe.compute import EngineConfig


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
        require(-1 <= self.floor <= 1, f"a kappa floor lies in -1..1, got {self.floor}")
        require(0 <= self.max_reject_share <= 1, f"max_reject_share lies in 0..1, got {self.max_reject_share}")
        require(
            self.kind != "openai" or bool(self.base_url),
            "an openai judge needs base_url: pass --base-url http://HOST:PORT/v1",
        )
        require(
            self.base_url is None or is_http_url(self.base_url),
            f"base_url must be like http://HOST:PORT/v1, got '{without_credentials(self.base_url or '')}'",
        )
        require(
            "@" not in urlsplit(self.base_url or "").netloc,
            "base_url must hold no credentials, which every record would repeat: set OPENAI_API_KEY instead",
        )
        for name in ("max_concurrency", "timeout_s", "max_attempts"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_requests_per_minute", "max_tokens_per_minute", "max_cost_usd"):
            limit = getattr(self, name)
            require(limit is None or 0 < limit < math.inf, f"{name} must be above 0, or None for none, got {limit}")
        require(self.rationale_tokens >= 0, f"rationale_tokens must be 0 or above, got {self.rationale_tokens}")
        self._check_prices()

    def _check_prices(self) -> None:
        prompt, generated = self.usd_per_million_prompt_tokens, self.usd_per_million_generated_tokens
        prices = {"prompt": prompt, "cached": self.usd_per_million_cached_tokens or 0.0, "generated": generated}
        for name, price in prices.items():
            require(0 <= price < math.inf, f"usd_per_million_{name}_tokens must be 0 or above, got {price}")
        require(0 <= self.batch_price_share <= 1, f"batch_price_share lies in 0..1, got {self.batch_price_share}")
        require(
            self.max_cost_usd is None or max(prompt, generated) > 0,
            "max_cost_usd is never reached without prices: give usd_per_million_prompt_tokens and _generated_tokens",
        )
