"""Prune a student and let it recover, on the recipe `tiny`: half its neurons and heads, and unread embedding rows.

``preceptor run examples/prune_a_student.py:recipe`` runs it, in about a minute, into ``runs/tiny-pruned/``; the bundle
in ``export/v1/bundle`` is the pruned one. Its weights are random: it shows the path, not what pruning costs.
"""

from __future__ import annotations

from dataclasses import replace

from preceptor.recipe import PruneConfig, Recipe
from preceptor.recipes import tiny


def recipe() -> Recipe:
    """`tiny` with a student that is cut in two rounds, each followed by recovery on the same stored scores."""
    return replace(
        tiny(),
        name="tiny-pruned",
        prune=PruneConfig(mlp=0.5, heads=0.5, vocabulary="seen", num_rounds=2, num_pairs=64, recovery_steps=4),
    )
