"""Sentences follow their numbers, whichever way these fall."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from hcmae.evaluation import sentences
from hcmae.evaluation.metrics import Interval


def test_a_comparison_says_what_the_numbers_say() -> None:
    assert sentences.compared("A", 0.7, "B", 0.6) == "A (0.700) is above B (0.600)"
    assert sentences.compared("A", 0.6, "B", 0.7) == "A (0.600) is below B (0.700)"
    assert sentences.compared("A", 0.7, "B", 0.6, better="low") == "A (0.700) is above, so worse than B (0.600)"
    assert sentences.compared("A", 0.5, "B", 0.6, better="low") == "A (0.500) is below, so better than B (0.600)"
    assert "cannot be compared" in sentences.compared("A", math.nan, "B", 0.6)


def test_what_prints_the_same_is_no_difference() -> None:
    assert "level with" in sentences.compared("A", 0.70001, "B", 0.70002)
    assert "level with" in sentences.compared("A", 0.70, "B", 0.72, margin=0.05)


def test_an_interval_that_holds_zero_tells_nothing_apart() -> None:
    assert sentences.told_apart("A", "B", Interval(0.1, 0.02, 0.2)).endswith("above 0")
    assert sentences.told_apart("A", "B", Interval(-0.1, -0.2, -0.02)).endswith("below 0")
    assert "not told apart" in sentences.told_apart("A", "B", Interval(0.1, -0.02, 0.2))
    assert sentences.told_apart("A", "B", Interval(0.1, math.nan, math.nan)).endswith("no interval")


def test_the_largest_names_ties_and_the_next() -> None:
    assert sentences.largest({"A": 0.2, "B": 0.5, "C": math.nan}) == "largest: B (0.500), before A (0.200)"
    assert sentences.largest({"A": 0.2, "B": 0.2}) == "largest: A and B (0.200)"
    assert sentences.largest({"A": 1.0, "B": 2.0}, most=False, what="smallest").startswith("smallest: A")
    with pytest.raises(ValueError, match="no value of A is known"):
        sentences.largest({"A": math.nan})


def test_a_trend_has_four_words() -> None:
    found = [sentences.trend(values) for values in ([1, 2, 3], [3, 2], [1, 1], [1, 2, 1])]
    assert found == ["rises", "falls", "stays level", "goes up and down"]
    assert sentences.trend([1, 1.05, 1.0], margin=0.1) == "stays level"


def test_groups_off_the_diagonal_are_named() -> None:
    table = pd.DataFrame(
        {"group": [0, 1], "predicted": [0.2, 0.9], "observed": [0.3, 0.6], "low": [0.1, 0.4], "high": [0.5, 0.8]}
    )
    said = sentences.calibrated("after 1 year", table)
    assert "group 2 (predicted 90%, observed 60%, 40% to 80%)" in said
    assert "group 1" not in said
    assert "every group's interval holds" in sentences.calibrated("after 1 year", table[:1])


def test_days_above_kaplan_meier_are_spans() -> None:
    days = 365.25 * np.arange(1, 6)
    table = pd.DataFrame({"day": days, "model": [0.2, 0.3, 0.1, 0.3, 0.4], "kaplan_meier": 0.25})
    assert (
        sentences.days_above("A", table)
        == "A is above Kaplan-Meier, so worse than it, at 2.0 and from 4.0 to 5.0 years"
    )
    assert sentences.days_above("A", table[:1]) == "A is below Kaplan-Meier at every day"
    with pytest.raises(ValueError, match="A: no day"):
        sentences.days_above("A", table[:0])
