"""A group for whom the model is blind is seen, small groups are put together, hazards that cross are found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hcmae.evaluation.metrics import concordance
from hcmae.evaluation.subgroups import REST, by_subgroup, groups_of, proportional_hazards


def test_a_group_for_whom_the_model_is_blind_is_seen() -> None:
    rng = np.random.default_rng(0)
    count = 160
    risk, blind = rng.normal(size=count), np.arange(count) % 2 == 0
    time = rng.exponential(500 * np.exp(-2 * np.where(blind, 0, risk)))
    patients = [f"P{number}" for number in range(count)]
    curves = pd.DataFrame({f"S@{day}": np.exp(-day / 500 * np.exp(risk)) for day in (200, 400, 800)})
    table = pd.DataFrame({"patient": patients, "risk": risk, "time": time, "event": 1})
    groups = pd.DataFrame({"sex": np.where(blind, "female", "male")}, index=patients)
    found = by_subgroup(pd.concat([table, curves], axis=1), groups, draws=40).set_index("group")
    assert found.loc["male", "low"] > found.loc["female", "high"]
    part = table[~blind]
    assert found.loc["male", "c_index"] == pytest.approx(concordance(part["time"], part["event"], part["risk"]))
    assert (found["intercept_low"] < found["intercept"]).all()
    with pytest.raises(ValueError, match="P0 is in no group"):
        by_subgroup(table, groups.iloc[1:])


def test_groups_with_few_deaths_are_put_together_and_never_judged_on_nothing() -> None:
    rng = np.random.default_rng(1)
    patients = [f"P{number}" for number in range(60)]
    site = pd.Series(["A"] * 40 + ["B"] * 8 + ["C"] * 6 + ["D"] * 6, index=patients)
    table = pd.DataFrame({"patient": patients, "risk": rng.normal(size=60), "time": rng.exponential(9, 60), "event": 1})
    found = by_subgroup(table, site.to_frame("site"), draws=20).set_index("group")
    assert found.loc[REST, "patients"] == 20
    assert list(found.index) == ["A", REST]
    few = by_subgroup(table.assign(event=[1] * 40 + [0] * 20), site.to_frame("site"), draws=20).set_index("group")
    assert np.isnan(few.loc[REST, "c_index"])


def test_groups_are_named_after_what_is_known() -> None:
    clinical = pd.DataFrame(
        {"age": [50, 70, None], "sex": ["male", None, "female"], "stage": ["Stage I", "Stage IIIA", "Stage X"]},
        index=["P1", "P2", "P3"],
    )
    found = groups_of(clinical, pd.Series({"P1": "DD"}))
    assert found["age"].tolist() == ["under 60", "60 or older", "unknown"]
    assert found["sex"].tolist() == ["male", "unknown", "female"]
    assert found["stage"].tolist() == ["I or II", "III or IV", "unknown"]
    assert found["site"].tolist() == ["DD", "unknown", "unknown"]


def test_hazards_that_cross_are_found_and_proportional_ones_pass() -> None:
    rng = np.random.default_rng(2)
    steady, crossing = rng.normal(size=400), rng.integers(0, 2, 400)
    # Weibull shapes 3 and 0.6: the second group dies early or late.
    time = np.where(crossing == 1, rng.weibull(0.6, 400), rng.weibull(3.0, 400)) * 500 * np.exp(-0.5 * steady)
    table = pd.DataFrame({"steady": steady, "crossing": crossing, "same": 1.0})
    found = proportional_hazards(table, time, np.ones(400)).set_index("covariate")
    assert found.loc["crossing", "p"] < 1e-4
    assert "same" not in found.index
    plain = proportional_hazards(table[["steady"]], rng.exponential(500 * np.exp(-0.5 * steady)), np.ones(400))
    assert plain["p"][0] > 0.01
    with pytest.raises(ValueError, match="no covariate varies"):
        proportional_hazards(table[["same"]], time, np.ones(400))
