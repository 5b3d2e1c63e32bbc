"""Numbers as text at a document's end: the same wherever they come from, and read back by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.ranker.text import features_of, split_features, with_hundredths, with_numbers


def test_numbers_read_the_same_wherever_they_come_from() -> None:
    wanted = "Nurse, Leeds [distance km 3 | pay 34.5 | rate 0.000012]"
    assert with_numbers("Nurse, Leeds", {"pay": 34.5, "distance_km": 3, "rate": 1.2e-5, "x": None}) == wanted
    assert with_numbers("Nurse, Leeds", {"rate": 0.000012, "distance km": 3.0, "pay": 34.5001}) == wanted
    assert with_numbers("Nurse", {"x": None, "y": math.nan}) == "Nurse"
    assert with_numbers("Nurse", {"pay": 1_234_567, "loss": -0.0}) == "Nurse [loss 0 | pay 1230000]"


def test_hundredths_stand_at_the_same_distance_from_the_end() -> None:
    assert with_hundredths("Nurse", {"words": 0.068, "best_name": 0.714}) == "Nurse [best name 71 | words 07]"
    assert with_hundredths("Nurse", {"words": -0.1, "names": 0.9999}) == "Nurse [names 99 | words 00]"
    assert with_hundredths("Nurse", {}) == "Nurse"


def test_the_features_of_a_text_are_read_back_by_name() -> None:
    assert features_of(with_hundredths("Nurse [nights]", {"words": 0.07, "best_name": 0.7})) == ("best name", "words")
    assert features_of(with_numbers("Nurse", {"pay": -34.5, "distance_km": 3})) == ("distance km", "pay")
    numbered = with_numbers("Nurse [nights]", {"pay": -34.5, "distance_km": 3})
    assert split_features(numbered) == ("Nurse [nights]", {"distance km": 3.0, "pay": -34.5})
    assert split_features("Nurse [nights]") == ("Nurse [nights]", {})
    for plain in ("Nurse", "Nurse [nights]", "Nurse [pay 3] in Leeds", "Nurse [12]", "Nurse [a | pay 3]", ""):
        assert features_of(plain) == ()


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_number_as_text_is_close_to_it_and_has_no_exponent(value: float) -> None:
    said = with_numbers("", {"n": value}).removeprefix(" [n ").removesuffix("]")
    assert float(said) == pytest.approx(value, rel=5.1e-3) and "e" not in said.lower()
