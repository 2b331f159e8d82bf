"""Probes: what is known scores high, what is not scores nothing, and a comparison says which is which."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hcmae.interpretation import probe

PATIENTS = [f"P{number}" for number in range(80)]


@pytest.fixture(scope="module")
def factors() -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)), PATIENTS, list(probe.FACTORS))


@pytest.fixture(scope="module")
def table(factors: pd.DataFrame) -> pd.DataFrame:
    """One description knows cell, one knows nothing, one knows cell as well as the first."""
    rng = np.random.default_rng(1)
    noise = pd.DataFrame(rng.normal(size=(80, 4)), PATIENTS)
    knows = noise.assign(cell=factors["cell"] + 0.3 * rng.normal(size=80))
    twin = noise.assign(cell=knows["cell"] + 0.001 * rng.normal(size=80))
    descriptions = {"noise": noise, "twin": twin, "network": knows}
    return probe.probe_table(descriptions, factors, against="network", seeds=2, draws=200)


@pytest.mark.slow
def test_a_table_has_the_r2_of_the_probe_within_its_interval(factors: pd.DataFrame, table: pd.DataFrame) -> None:
    assert (table["low"] < table["r2"]).all()
    assert (table["r2"] < table["high"]).all()
    wide = probe.r2_table(table)
    assert list(wide.index) == ["noise", "twin", "network"]
    assert list(wide.columns) == list(probe.FACTORS)
    assert wide.loc["network", "cell"] > 0.8
    assert wide.loc["noise", "cell"] < 0.1
    features = pd.DataFrame({"one": factors["cell"] + factors["burden"]})
    alone = probe.probe_table({"x": features}, factors, seeds=2, draws=50)
    single = probe.linear_probe(features, factors, names=probe.FACTORS, seeds=2)
    assert np.allclose(probe.r2_table(alone).loc["x"], single.mean())


def test_words_follow_from_the_interval_of_the_difference(table: pd.DataFrame) -> None:
    worse, same = probe.in_words(table, "network", "cell")
    assert "**network** reads more of *cell* than **noise**" in worse
    assert "not told apart on *cell*" in same
    turned = table.assign(less_low=-table["less_high"], less_high=-table["less_low"], less=-table["less"])
    assert "reads less of *cell*" in probe.in_words(turned, "network", "cell")[0]


def test_what_cannot_be_compared_is_refused(factors: pd.DataFrame) -> None:
    one = pd.DataFrame(np.ones((80, 1)), PATIENTS)
    with pytest.raises(ValueError, match="no description 'c'"):
        probe.probe_table({"a": one}, factors, against="c")
    with pytest.raises(ValueError, match="not the same patients"):
        probe.probe_table({"a": one, "b": one.iloc[:40]}, factors)
    with pytest.raises(ValueError, match="at least 20"):
        probe.probe_table({"a": one.iloc[:10]}, factors)
