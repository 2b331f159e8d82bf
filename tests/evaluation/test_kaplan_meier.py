"""Risk groups and their curves against lifelines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.statistics import logrank_test

from hcmae.evaluation.kaplan_meier import compare_groups, one_per_patient, risk_groups
from tests.support.predictions import outcome, predictions


def test_groups_equal_lifelines() -> None:
    time, event, risk = outcome(100)
    high = risk > 0
    groups = compare_groups(time, event, high)
    test = logrank_test(time[~high], time[high], event[~high], event[high])
    assert groups.log_rank_p == pytest.approx(test.p_value)
    frame = pd.DataFrame({"time": time, "event": event, "high": high.astype(int)})
    fitter = CoxPHFitter().fit(frame, "time", "event")
    assert groups.hazard_ratio == pytest.approx(float(np.exp(fitter.params_["high"])))
    assert [groups.hr_low, groups.hr_high] == pytest.approx(
        np.exp(fitter.confidence_intervals_.loc["high"].to_numpy()).tolist()
    )
    assert groups.hr_low < groups.hazard_ratio < groups.hr_high
    curve = KaplanMeierFitter().fit(time[high], event[high])
    assert np.allclose(groups.high.survival, curve.survival_function_.iloc[:, 0])
    assert groups.high.at_risk[0.0] == high.sum()
    assert "hazard ratio" in groups.describe()


def test_split_is_by_the_training_median() -> None:
    frame = predictions(repeats=3)
    table = one_per_patient(frame)
    assert len(table) == 120
    assert (table["high"] == (frame.groupby("patient")["high"].mean() > 0.5)).all()
    honest, pooled = risk_groups(frame), risk_groups(frame, split="pooled_median")
    assert honest.hazard_ratio > pooled.hazard_ratio
    with pytest.raises(ValueError, match="unknown split"):
        risk_groups(frame, split="best")
    with pytest.raises(ValueError, match="'risk_z'"):
        risk_groups(frame.drop(columns="risk_z"))


@pytest.mark.parametrize(
    ("event", "high", "message"),
    [(np.zeros(6), np.arange(6) > 2, "nobody died"), (np.ones(6), np.ones(6, bool), "nobody is in the low-risk")],
)
def test_groups_that_cannot_be_compared(event: np.ndarray, high: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_groups(np.arange(6.0), event.astype(int), high)


def test_groups_with_deaths_in_one_only_have_no_ratio() -> None:
    groups = compare_groups(np.arange(1.0, 9.0), np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.arange(8) > 3)
    assert np.isnan(groups.hazard_ratio)
    assert "not estimable" in groups.describe()
    assert "nan" not in groups.describe()
    assert 0 <= groups.log_rank_p <= 1
