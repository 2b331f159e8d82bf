"""Calibration and decisions on patients that a model has never seen, against lifelines, scikit-survival and by hand."""

from __future__ import annotations

import math

import lifelines
import numpy as np
import pandas as pd
import pytest
from sksurv.metrics import integrated_brier_score
from sksurv.util import Surv

from hcmae.evaluation import judgement

DAYS = np.arange(1, 13) * 100.0


def frame(time: np.ndarray, event: np.ndarray, rate: np.ndarray) -> pd.DataFrame:
    """Predictions of exponential survival with these rates a day."""
    curves = np.exp(-rate[:, None] * DAYS[None, :])
    table = pd.DataFrame({"patient": np.arange(len(time)).astype(str), "time": time, "event": event.astype(int)})
    table["risk"] = np.log(rate)
    return pd.concat([table, pd.DataFrame(curves, columns=[f"S@{day:.0f}" for day in DAYS])], axis=1)


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(size=n) * 0.7) / 800
    death, censored = rng.exponential(1 / rate), rng.uniform(200, 2500, n)
    return np.minimum(death, censored), death <= censored, rate


def test_a_true_model_is_calibrated_and_a_bold_or_gloomy_one_is_not() -> None:
    time, event, rate = drawn(800)
    true = frame(time, event, rate)
    slope = judgement.calibration_slope(true)
    assert slope == pytest.approx(1, abs=0.2)
    assert judgement.calibration_intercept(true) == pytest.approx(0, abs=0.1)
    assert judgement.d_calibration(true)[0] > 0.05
    bold = frame(time, event, np.exp(2 * np.log(rate * 800)) / 800)
    assert judgement.calibration_slope(bold) == pytest.approx(slope / 2, abs=0.01)
    assert judgement.d_calibration(bold)[0] < 1e-3
    gloomy = frame(time, event, rate * 2)
    assert judgement.calibration_slope(gloomy) == pytest.approx(slope, abs=0.01)
    told_apart = judgement.calibration_intercept(gloomy) - judgement.calibration_intercept(true)
    assert told_apart == pytest.approx(-np.log(2), abs=0.01)


def test_slope_is_that_of_lifelines() -> None:
    time, event, rate = drawn(120, seed=3)
    table = frame(time, event, rate)
    cut, dead, _, _ = judgement.cut_off(table)
    fitter = lifelines.CoxPHFitter().fit(pd.DataFrame({"time": cut, "event": dead, "x": np.log(rate)}), "time", "event")
    assert judgement.calibration_slope(table) == pytest.approx(float(fitter.params_["x"]), abs=1e-4)


def test_d_calibration_by_hand() -> None:
    """Deaths count where S(time) lies; who is censored at S = 0.6 counts 0.1 / 0.6 above 0.5 and 0.5 / 0.6 below."""
    time = np.array([100.0, 100.0, 100.0])
    table = frame(time, np.array([1, 1, 0]), -np.log(np.array([0.3, 0.9, 0.6])) / 100)
    p_value, bins = judgement.d_calibration(table, bins=2)
    assert bins["patients"].to_numpy() == pytest.approx([1 + 0.5 / 0.6, 1 + 0.1 / 0.6])
    statistic = 2 * (1 / 3) ** 2 / 1.5
    assert p_value == pytest.approx(1 - math.erf(math.sqrt(statistic / 2)))


def test_net_benefit_without_censoring_is_that_of_a_binary_outcome() -> None:
    rng = np.random.default_rng(5)
    time, rate = rng.exponential(500, 80), rng.uniform(1, 5, 80) / 1000
    table = frame(np.minimum(time, 1100), np.ones(80, bool), rate)
    curve = judgement.decision_curve(table, 600, [0.3, 0.8])
    death = 1 - np.exp(-rate * 600)
    for level, found, everybody in curve[["threshold", "model", "everybody"]].to_numpy():
        treated, dead = death >= level, time <= 600
        by_hand = (treated & dead).mean() - (treated & ~dead).mean() * level / (1 - level)
        assert found == pytest.approx(by_hand)
        assert everybody == pytest.approx(dead.mean() - (1 - dead.mean()) * level / (1 - level))
    with pytest.raises(ValueError, match="not within the curves"):
        judgement.decision_curve(table, 5000)
    with pytest.raises(ValueError, match="between 0 and 1"):
        judgement.decision_curve(table, 600, [1.0])


@pytest.mark.slow
def test_report_on_new_patients_has_intervals_and_the_libraries_brier_score() -> None:
    time, event, rate = drawn(120, seed=2)
    table = frame(time, event, rate)
    report = judgement.external(table, draws=20).set_index("measure")
    low, high = report.loc["C-index", ["low", "high"]]
    assert low < report.loc["C-index", "value"] < high
    assert report.loc["Brier score, model less Kaplan-Meier", "value"] < 0
    cut, dead, days, curves = judgement.cut_off(table)
    usable = (days > cut.min()) & (days < cut.max())
    outcome = Surv.from_arrays(dead, cut)
    theirs = integrated_brier_score(outcome, outcome, curves[:, usable], days[usable])
    assert report.loc["integrated Brier score", "value"] == pytest.approx(theirs)
    few = table.head(12).assign(event=[1, *[0] * 11])
    with pytest.warns(judgement.FewDeathsWarning, match="1 deaths"):
        judgement.external(few, draws=20)
