"""Neighbours by the real sentence encoder."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor.refine.neighbours import embedding, similarities

pytestmark = pytest.mark.integration


def test_minilm_is_taken_where_it_is_installed_and_knows_what_is_alike() -> None:
    method, embed = embedding()
    assert method == "minilm"
    alike = similarities(embed(["nurse on a night ward", "care assistant, hospital nights", "lorry driver, long haul"]))
    assert int(np.argmax(alike[0])) == 1
    assert alike.diagonal().tolist() == [-1.0, -1.0, -1.0]
