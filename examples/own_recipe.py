"""A recipe of your own: the demo with a stricter gate, a deeper student, and twice the queries.

``preceptor run examples/own_recipe.py:recipe --dry-run`` prints its plan; without ``--dry-run`` it runs, into
``runs/own/``.
"""

from __future__ import annotations

from dataclasses import replace

from preceptor.recipe import MarketConfig, Mix, Recipe
from preceptor.recipes import demo


def recipe() -> Recipe:
    """The demo with three values replaced; everything else stays what the demo says."""
    start = demo()
    assert isinstance(start.source, MarketConfig) and start.distill is not None
    return replace(
        start,
        name="own",
        source=replace(start.source, num_queries=2 * start.source.num_queries),
        distill=replace(start.distill, num_layers=14, mix=Mix(relevance=0.8, engagement=0.2)),
        gate=replace(start.gate, thresholds={**start.gate.thresholds, "student overall retention ndcg@10": 0.95}),
    )
