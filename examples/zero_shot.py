"""Labels by a language model as it is, asked in words: SmolLM2-135M in vLLM over 20,000 rows of the synthetic market.

    preceptor run examples/zero_shot.py:recipe --root runs/zero_shot --only corpus
    preceptor run examples/zero_shot.py:recipe --root runs/zero_shot --only calibrate
    preceptor label examples/zero_shot.py:recipe --root runs/zero_shot

So small a model agrees with golden no better than chance: the floor of -1 lets it label all the same, to show the
machinery at work. A product sets the floor it needs. Kill it at any moment and run the last command again.
"""

from __future__ import annotations

from dataclasses import replace

from preceptor.recipe import EngineConfig, JudgeConfig, MarketConfig, Recipe
from preceptor.recipes import demo


def recipe() -> Recipe:
    """About 3,000 pairs of the pool on all seven dimensions."""
    return replace(
        demo(),
        name="zero_shot",
        source=MarketConfig(num_queries=560, documents_per_query=8, num_requests=10, num_holdout_requests=10),
        labeller="judge",
        judge=JudgeConfig(
            kind="vllm",
            model="smollm2-135m",
            floor=-1.0,
            max_reject_share=0.01,
            num_calibration_pairs=60,
            engine=EngineConfig(max_model_len=1536),
        ),
    )
