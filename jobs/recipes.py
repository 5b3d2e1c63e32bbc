"""Your own recipes: functions that start from a shipped one and replace what differs.

``preceptor run jobs/recipes.py:engagement_first --root DIR`` runs one by name.
"""

from __future__ import annotations

from dataclasses import replace

from preceptor.recipe import MarketConfig, Mix, Recipe
from preceptor.recipes import demo


def engagement_first() -> Recipe:
    """The demo with a student that listens more to what members click than to the policy."""
    recipe = demo()
    assert recipe.distill is not None
    distill = replace(recipe.distill, mix=Mix(relevance=0.3, engagement=0.7))
    return replace(recipe, name="engagement_first", distill=distill)


def larger_market() -> Recipe:
    """The demo on four times the queries of its synthetic market."""
    recipe = demo()
    assert isinstance(recipe.source, MarketConfig)
    source = replace(recipe.source, num_queries=4 * recipe.source.num_queries)
    return replace(recipe, name="larger_market", source=source)
