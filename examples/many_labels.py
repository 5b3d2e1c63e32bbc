"""More than 20,000 (pair, dimension) labels on the synthetic market, by SmolLM2-135M in vLLM, in two ways.

As it is, asked in words; so small a model agrees with golden no better than chance, and the floor of -1 lets it label
all the same, to show the machinery at work (about 20 minutes of labelling on two cores):

    for stage in corpus calibrate label; do
        preceptor run examples/many_labels.py:zero_shot --root runs/zero_shot --only $stage
    done

Tuned on golden, with a grade head for each dimension, as in the demo (6 to 12 minutes in all on two cores):

    for stage in corpus relevance_teacher relevance_scores calibrate label; do
        preceptor run examples/many_labels.py:tuned --root runs/tuned --only $stage
    done

Kill it at any moment and run the same command again.
"""

from __future__ import annotations

from dataclasses import replace

from preceptor.recipe import EngineConfig, JudgeConfig, MarketConfig, Recipe
from preceptor.recipes import demo

MARKET = MarketConfig(num_queries=560, documents_per_query=8, num_requests=100, num_holdout_requests=100)


def zero_shot() -> Recipe:
    """About 3,000 pairs of the pool on every dimension, asked in words."""
    judge = JudgeConfig(
        kind="vllm",
        model="smollm2-135m",
        floor=-1.0,
        max_reject_share=0.01,
        num_calibration_pairs=60,
        engine=EngineConfig(max_model_len=1536),
    )
    return replace(demo(), name="zero_shot", source=MARKET, labeller="judge", judge=judge)


def tuned() -> Recipe:
    """The same pairs, labelled by the demo's relevance teacher: every dimension and the overall grade."""
    return replace(demo(), name="tuned", source=MARKET)
