"""Risk groups and their curves against lifelines."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.exceptions import ConvergenceError, ConvergenceWarning
from lifelines.statistics import logrank_test

from hcmae.evaluation.kaplan_meier import compare_groups, one_per_patient, risk_groups
from hcmae.evaluation.metrics import concordance
from hcmae.evaluation.permutation import PermutationTest
from hcmae.survival.data import load_inputs
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


def test_groups_of_cross_validation_are_naive_and_say_so() -> None:
    """Given groups have a p-value; those that a model made out of fold have a naive one until it is permuted."""
    frame = predictions()
    made = risk_groups(frame)
    table = one_per_patient(frame)
    given = compare_groups(*(table[name].to_numpy() for name in ("time", "event", "high")))
    assert given.log_rank_p == made.log_rank_p
    assert "naive" not in given.describe() + given.p_text()
    assert made.p_text() == f"naive p = {made.log_rank_p:.2g}"
    assert "naive 95 % interval" in made.describe()
    tested = made.tested(PermutationTest(4.0, (1.0, 5.0, 2.0)))
    assert tested.p_text() == f"p = 0.5 (3 permutations); naive p = {made.log_rank_p:.2g}"
    assert made.permutation is None


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


SEPARATED = {
    "all of the high group die before the first death of the low one": (
        [40, 80, 120, 160, 200, 900, 1000, 1100, 1200, 1300], [1, 1, 1, 1, 1, 1, 1, 0, 0, 1], 5, "low",
    ),
    "the only death of the low group comes after the last of the high group": (
        [40, 80, 120, 160, 200, 210, 400, 900, 1000, 1100, 1200, 1300], [1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0], 6, "low",
    ),
    "the high group dies last": (
        [900, 1000, 1100, 1200, 1300, 40, 80, 120, 160, 200], [1, 1, 0, 0, 1, 1, 1, 1, 1, 1], 5, "high",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SEPARATED)
def test_separated_groups_have_no_ratio_although_both_have_deaths(case: str) -> None:
    time, event, first, later = SEPARATED[case]
    groups = compare_groups(np.array(time, float), np.array(event), np.arange(len(time)) < first)
    assert np.isnan([groups.hazard_ratio, groups.hr_low, groups.hr_high]).all()
    assert groups.ratio_text().startswith(f"not estimable (no overlap: every {later}-risk death is later")
    assert groups.ratio_text(why=False) == "not estimable"
    assert 0 <= groups.log_rank_p <= 1


def test_a_tie_across_the_groups_is_an_overlap() -> None:
    """At the shared day both are at risk, so the likelihood has a maximum."""
    time = np.array([40.0, 80, 120, 160, 160, 1000, 1100, 1200])
    groups = compare_groups(time, np.ones(8, int), np.arange(8) < 4)
    assert np.isfinite(groups.hazard_ratio)
    assert not groups.reason


def test_warnings_of_the_fit_reach_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = CoxPHFitter.fit

    def warns(self: CoxPHFitter, *args: object, **more: object) -> CoxPHFitter:
        warnings.warn("the data are odd", ConvergenceWarning, stacklevel=2)
        return fit(self, *args, **more)

    monkeypatch.setattr(CoxPHFitter, "fit", warns)
    time, event, risk = outcome(40)
    with pytest.warns(ConvergenceWarning, match="the data are odd"):
        compare_groups(time, event, risk > 0)


def test_a_fit_that_fails_is_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConvergenceError("no\nway")

    monkeypatch.setattr(CoxPHFitter, "fit", fails)
    time, event, risk = outcome(40)
    assert compare_groups(time, event, risk > 0).ratio_text() == "not estimable (the fit does not converge: no way)"


def test_half_an_event_is_refused_and_not_cut_to_none() -> None:
    time, event, risk = outcome(20)
    half = event.astype(float)
    half[3] = 0.5
    for judge in (lambda: compare_groups(time, half, risk > 0), lambda: concordance(time, half, risk)):
        with pytest.raises(ValueError, match=r"event of row 3 is .*0\.5"):
            judge()
    table = pd.DataFrame({"time": time, "event": half}, index=[f"P{row}" for row in range(20)])
    with pytest.raises(ValueError, match=r"event of row 3 is .*0\.5"):
        load_inputs(table, "nowhere", kinds=())
