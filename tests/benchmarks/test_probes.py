"""The summary of probes over seeds."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks.probes import summarise


def test_a_row_is_the_mean_of_its_seeds_with_students_interval() -> None:
    rows = pd.DataFrame(
        [("colour", "cell", 0.1), ("colour", "cell", 0.3), ("network", "cell", 0.5), ("network", "cell", 0.5)],
        columns=["description", "factor", "r2"],
    )
    first, second = summarise(rows)
    assert (first["description"], first["factor"], first["seeds"]) == ("colour", "cell", 2)
    assert first["mean R2"] == pytest.approx(0.2)
    assert first["high"] - first["mean R2"] == pytest.approx(12.706 * 0.1, abs=1e-3)
    assert second["low"] == second["high"] == 0.5


def test_one_seed_has_no_interval() -> None:
    only = summarise(pd.DataFrame({"description": ["network"], "factor": ["cell"], "r2": [0.4]}))[0]
    assert "low" not in only
