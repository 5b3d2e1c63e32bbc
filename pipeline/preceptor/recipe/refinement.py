"""How a judge's prompts are refined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal
from urllib.parse import urlsplit

from preceptor.recipe.checks import is_http_url, require, without_credentials
from preceptor.recipe.judges import JudgeConfig


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a search may take, whichever is reached first; a metric call is one pair judged on every dimension asked.

    Tokens and money are those of the judge and of the reflection model together. A proposal is one answer of the
    reflection model, usable or not.
    """

    max_metric_calls: int | None = None
    max_tokens: int | None = None
    max_usd: float | None = None
    max_proposals: int = 50

    def __post_init__(self) -> None:
        limits = {"calls": self.max_metric_calls, "tokens": self.max_tokens, "usd": self.max_usd}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        require(bool(given), "a search needs a budget: give calls=N, tokens=N or usd=X")
        for name, limit in {**given, "proposals": self.max_proposals}.items():
            require(0 < limit < math.inf, f"the budget's {name} must be above 0, got {limit}")


@dataclass(frozen=True, kw_only=True)
class ReflectionConfig:
    """The model that proposes new wordings, at an OpenAI-compatible endpoint; prices are per million tokens."""

    base_url: str
    model: str
    max_tokens: int = 4000
    temperature: float | None = 1.0
    timeout_s: float = 300.0
    max_attempts: int = 3
    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_generated_tokens: float = 0.0

    @property
    def deciding(self) -> ReflectionConfig:
        """The config with what decides no proposal set back."""
        return ReflectionConfig(
            base_url=self.base_url, model=self.model, max_tokens=self.max_tokens, temperature=self.temperature
        )

    def __post_init__(self) -> None:
        shown = without_credentials(self.base_url)
        require(is_http_url(self.base_url), f"the reflection URL must be like http://HOST:PORT/v1, got '{shown}'")
        require(
            "@" not in urlsplit(self.base_url).netloc,
            "the reflection URL must hold no credentials, which every record would repeat: set REFLECT_API_KEY instead",
        )
        for name in ("max_tokens", "timeout_s", "max_attempts"):
            require(getattr(self, name) > 0, f"reflection {name} must be above 0, got {getattr(self, name)}")
        for price in (self.usd_per_million_prompt_tokens, self.usd_per_million_generated_tokens):
            require(0 <= price < math.inf, f"a reflection price must be 0 or above, got {price}")


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """A search for a better prompt, and the test its best candidates must pass.

    `minibatch` pairs are shown to the reflection model at a time; at most `num_finalists` candidates are tested on
    pairs that the search has not seen. `statistic` is what must gain there, of the overall grade: quadratic-weighted
    kappa, or the expected agreement (1 less the expected squared distance over 16).
    """

    judge: JudgeConfig
    reflection: ReflectionConfig
    budget: Budget
    statistic: Literal["kappa", "agreement"] = "kappa"
    minibatch: int = 8
    num_finalists: int = 3
    num_bootstrap: int = 2000
    seed: int = 17

    @property
    def deciding(self) -> Mapping[str, object]:
        """The values by name, of both models only what decides a candidate: neither their prices nor their pace."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "judge": self.judge.deciding, "reflection": self.reflection.deciding}

    def __post_init__(self) -> None:
        require(
            self.judge.kind == "openai",
            f"refinement asks an OpenAI-compatible judge, got kind '{self.judge.kind}': give --judge-url",
        )
        for name in ("minibatch", "num_finalists", "num_bootstrap"):
            require(getattr(self, name) > 0, f"refine {name} must be above 0, got {getattr(self, name)}")
        prices = (
            self.judge.usd_per_million_prompt_tokens,
            self.judge.usd_per_million_generated_tokens,
            self.reflection.usd_per_million_prompt_tokens,
            self.reflection.usd_per_million_generated_tokens,
        )
        require(
            self.budget.max_usd is None or max(prices) > 0,
            "a budget in usd is never reached without prices: give --judge-prices and --reflect-prices",
        )
