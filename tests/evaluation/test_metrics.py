"""Metrics against scikit-survival and lifelines; what is no number is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
)
from sksurv.util import Surv

from hcmae.evaluation import compare, metrics, tables
from tests.support.predictions import outcome, predictions


@pytest.mark.parametrize("ties", [False, True])
def test_concordance_equals_lifelines_and_sksurv(ties: bool) -> None:
    for seed in range(5):
        time, event, risk = outcome(seed=seed, ties=ties)
        ours = metrics.concordance(time, event, risk)
        assert ours == pytest.approx(concordance_index(time, -risk, event), abs=1e-9)
        assert ours == pytest.approx(concordance_index_censored(event.astype(bool), time, risk)[0], abs=1e-9)


def test_concordance_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    time, event, risk = outcome(2500)
    assert metrics.concordance(time, event, risk) == pytest.approx(concordance_index(time, -risk, event), abs=1e-9)


@pytest.mark.parametrize(
    ("time", "event", "risk", "message"),
    [
        ([1, 2], [1, 0], [np.nan, 1], "NaN"),
        ([1, 2], [0, 0], [1, 2], "comparable"),
        ([5], [1], [1], "comparable"),
        ([3, 3], [1, 1], [1, 2], "comparable"),
        ([1, 2], [1, 0], [1, 2, 3], "risks for"),
    ],
)
def test_concordance_refuses(time, event, risk, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.concordance(time, event, risk)


def test_concordance_of_constants_is_one_half() -> None:
    time, event, _ = outcome()
    assert metrics.concordance(time, event, np.zeros(len(time))) == 0.5


def within_fold_concordance(predictions: pd.DataFrame) -> float:
    """C over all pairs of patients that were tested by the same network, counted fold by fold."""
    parts = [part for _, part in predictions.groupby(["repeat", "fold"])]
    counts = sum(np.array(metrics.concordant_pairs(part["time"], part["event"], part["risk"])) for part in parts)
    return float((counts[0] + 0.5 * counts[1]) / counts[2])


def test_pooling_across_scales_hurts_and_standardising_mends() -> None:
    frame = predictions(repeats=1, noise=0.1)
    within = within_fold_concordance(frame)
    assert metrics.pooled_concordance(frame, "risk") < within - 0.05
    assert metrics.pooled_concordance(frame, "risk_z") == pytest.approx(within, abs=0.03)
    assert metrics.mean_concordance(frame)[0] == pytest.approx(within, abs=0.03)


def test_bootstrap_covers_and_is_repeatable() -> None:
    frame = predictions()
    interval = metrics.bootstrap(frame, draws=200, seed=1)
    assert interval.low < interval.value < interval.high
    assert interval == metrics.bootstrap(frame, draws=200, seed=1)
    assert interval.value == pytest.approx(within_fold_concordance(frame))
    # The same predictions twice are not twice the patients: the interval must not shrink.
    once = frame[frame["repeat"] == 0]
    twice = pd.concat([once, once.assign(repeat=1)])
    assert metrics.bootstrap(twice, draws=100) == metrics.bootstrap(once, draws=100)


def test_bootstrap_of_any_statistic() -> None:
    frame = predictions(60, 1)
    interval = metrics.bootstrap(frame, lambda p: float(p["risk_z"].mean()), draws=100)
    error = frame["risk_z"].std() / np.sqrt(60)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.4)


def test_uno_equals_sksurv_and_auc_orders() -> None:
    time, event, risk = outcome(200)
    train, test = slice(0, 120), slice(120, 200)
    tau = metrics.horizon_for([(time[train], event[train])])
    expected = concordance_index_ipcw(
        Surv.from_arrays(event[train].astype(bool), time[train]),
        Surv.from_arrays(event[test].astype(bool), time[test]),
        risk[test],
        tau,
    )[0]
    pair = (time[train], event[train]), (time[test], event[test])
    assert metrics.uno_c(*pair, risk[test], tau) == pytest.approx(expected)
    good, bad = (metrics.dynamic_auc(*pair, sign * risk[test], [365.0, 1e6]) for sign in (1, -1))
    assert good[0] > 0.6 > bad[0]
    assert np.isnan(good[1])


def test_nobody_is_left_out_who_outlives_the_training_patients() -> None:
    """The test patient with the longest follow-up is a survivor at every day, whatever the training set has seen."""
    time, event, risk = outcome(160, seed=3)
    train, test = slice(0, 100), slice(100, 160)
    days = [200.0, 500.0]
    long = time[test].copy()
    long[np.argsort(long)[-8:]] += 10 * time.max()
    capped = np.where(long >= time[train].max(), time[train].max(), long)
    still = event[test] * (long < time[train].max())
    given = (time[train], event[train])
    expected, _ = cumulative_dynamic_auc(
        Surv.from_arrays(event[train].astype(bool), time[train]), Surv.from_arrays(still.astype(bool), capped),
        risk[test], days,
    )  # fmt: skip
    assert (long > time[train].max()).sum() >= 8
    assert np.allclose(metrics.dynamic_auc(given, (long, event[test]), risk[test], days), expected)
    # A patient rated as the safest who lives longest must help: the same ranking without the survivors scores less.
    worst = risk[test].copy()
    worst[np.argsort(long)[-8:]] = worst.max() + 1
    assert (metrics.dynamic_auc(given, (long, event[test]), worst, days) < expected).all()


def test_metrics_refuse_risks_that_are_no_numbers() -> None:
    time, event, risk = outcome(60)
    risk[4] = np.nan
    pair = (time, event), (time, event)
    with pytest.raises(ValueError, match="1 of 60 risks are NaN"):
        metrics.uno_c(*pair, risk, 500.0)
    with pytest.raises(ValueError, match="1 of 60 risks are NaN"):
        metrics.dynamic_auc(*pair, risk, [300.0])
    with pytest.raises(ValueError, match="1 of 60 risks are NaN"):
        metrics.breslow_survival(risk, time, event, risk, [300.0])
    frame = predictions(60, 1)
    frame.loc[3, "risk"] = np.inf
    for call in (metrics.fold_concordance, metrics.bootstrap, tables.score):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call(frame)


def test_brier_equals_sksurv_in_one_fold() -> None:
    frame = predictions(150, 1, noise=0.3)
    table = metrics.brier(frame).set_index("day")
    day = 600.0
    values = []
    for fold in range(5):
        train, test = frame[frame["fold"] != fold], frame[frame["fold"] == fold]
        top = min(train["time"].max(), test["time"].max())
        if not test["time"].min() < day < top:
            continue
        time, event = test["time"].to_numpy(), test["event"].to_numpy().astype(bool)
        last = train["time"].max()
        event = event & (time < last)
        outcome_ = Surv.from_arrays(event, np.minimum(time, last))
        known = Surv.from_arrays(train["event"].astype(bool), train["time"])
        values.append(brier_score(known, outcome_, test[["S@600"]], [day])[1][0])
    assert table.loc[day, "model"] == pytest.approx(np.mean(values))


def test_calibrated_predictions_are_called_calibrated_and_shifted_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    n = 1500
    log_hazard = 0.7 * rng.normal(size=n)
    death = rng.exponential(1000 * np.exp(-log_hazard))
    last = rng.uniform(300, 3000, n)
    truth = np.exp(-600 / 1000 * np.exp(log_hazard))
    frame = pd.DataFrame(
        {
            "patient": np.arange(n), "repeat": 0, "fold": np.arange(n) % 5, "time": np.minimum(death, last),
            "event": (death <= last).astype(int), "S@600": truth,
        }
    )  # fmt: skip
    good = metrics.calibration(frame, 600, groups=5)
    assert np.abs(good["predicted"] - good["observed"]).max() < 0.06
    bad = metrics.calibration(frame.assign(**{"S@600": truth**2}), 600, groups=5)
    assert ((bad["predicted"] < bad["low"]) | (bad["predicted"] > bad["high"])).sum() >= 3


def test_baseline_hazard_with_ties_equals_scikit_survivals() -> None:
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    time, event, x = outcome(120, ties=True)
    x = x + np.random.default_rng(1).normal(size=120)
    model = CoxPHSurvivalAnalysis(ties="breslow").fit(x[:, None], Surv.from_arrays(event.astype(bool), time))
    risk = x * model.coef_[0]
    grid = np.unique(time)[:-1]
    theirs = np.array([[f(day) for day in grid] for f in model.predict_survival_function(x[:, None])])
    assert np.allclose(metrics.breslow_survival(risk, time, event, risk, grid), theirs, atol=1e-9)


def test_breslow_baseline_equals_lifelines() -> None:
    time, event, x = outcome(150)
    frame = pd.DataFrame({"x": x, "time": time, "event": event})
    fitter = CoxPHFitter().fit(frame, "time", "event")
    # lifelines interpolates between deaths, so the two are compared where somebody died.
    grid = np.sort(time[event == 1])[[5, 30, 60]]
    theirs = fitter.predict_survival_function(frame, times=grid).to_numpy().T
    ours = metrics.breslow_survival(x * fitter.params_["x"], time, event, x * fitter.params_["x"], grid)
    assert np.allclose(ours, theirs, atol=1e-6)


def test_breslow_does_not_overflow() -> None:
    time, event, x = outcome(50)
    curves = metrics.breslow_survival(x * 300, time, event, x * 300, [10.0, 100.0])
    assert np.isfinite(curves).all()


def test_brier_rewards_knowledge() -> None:
    own, null = metrics.integrated_brier(predictions(200, 1, noise=0.1))
    assert own < null < 0.26
    table = metrics.calibration(predictions(200, 1, noise=0.1), 400, groups=3)
    assert table["patients"].sum() == 200
    assert (np.diff(table["predicted"]) > 0).all()
    assert (np.diff(table["observed"]) > 0).all()
    with pytest.raises(ValueError, match="S@"):
        metrics.brier(predictions()[["patient", "repeat", "fold", "risk", "time", "event"]])


def test_summary_has_every_number() -> None:
    out = metrics.summary(predictions(150, 1, noise=0.2), draws=50)
    assert set(out) == {"c_index", "c_sd", "c_low", "c_high", "uno_c", "auc_1y", "auc_3y", "auc_5y", "ibs", "ibs_km"}
    assert out["c_index"] > 0.65
    assert out["auc_1y"] > 0.65


def test_few_events_in_a_fold_warn_and_count() -> None:
    from hcmae.cohort.splits import FEW_EVENTS, FewEventsWarning

    frame = predictions(100, 1)
    frame.loc[frame["fold"] == 2, "event"] = 0
    with pytest.warns(FewEventsWarning, match=f"1 of 5 folds have fewer than {FEW_EVENTS} deaths"):
        table = metrics.fold_concordance(frame)
    assert np.isnan(table.loc[table["fold"] == 2, "c_index"]).all()
    # A fold without events is left out of the mean, not counted as a coin.
    assert metrics.mean_concordance(frame)[0] == pytest.approx(table["c_index"].dropna().mean())


def test_sampling_noise_matches_the_size_of_the_paper_cohorts() -> None:
    # LUAD, 374 patients, 36 % deaths: simulated elsewhere as 0.058 for a fold and 0.025 for the mean.
    single, mean = compare.sampling_noise(374, 0.36, c_index=0.65, draws=60, seed=1)
    assert 0.045 < single < 0.08
    assert mean < single / 1.7


def test_slope_of_risks_is_that_of_a_cox_model_and_finite() -> None:
    from lifelines import CoxPHFitter

    rng = np.random.default_rng(5)
    x = rng.normal(size=400)
    time = rng.exponential(np.exp(-0.5 * x)) * 500 + 1
    event = (rng.random(400) < 0.7).astype(int)
    fitter = CoxPHFitter().fit(pd.DataFrame({"x": x, "time": time, "event": event}), "time", "event")
    assert metrics.cox_slope(x, time, event) == pytest.approx(fitter.params_["x"], rel=0.02)
    # Twice the risk is half the slope; risks that order all deaths have one too, and equal or unseen ones have none.
    assert metrics.cox_slope(2 * x + 7, time, event) == pytest.approx(metrics.cox_slope(x, time, event) / 2)
    assert np.isfinite(metrics.cox_slope(-time, time, event))
    assert metrics.cox_slope(np.full(400, 0.1), time, event) == 0
    assert metrics.cox_slope(x, time, 0 * event) == 0


def test_survival_from_hazards_in_bins() -> None:
    """Products at the ends, constant rates between, level after the last; a bin without width is a step."""
    hazards, ends = np.array([[0.5, 0.2, 0.0], [0.0, 1.0, 0.3]]), np.array([100.0, 200.0, 400.0])
    curves = metrics.discrete_survival(hazards, ends, [0, 50, 100, 150, 200, 400, 9000])
    assert np.allclose(curves[0], [1, np.sqrt(0.5), 0.5, 0.5 * np.sqrt(0.8), 0.4, 0.4, 0.4])
    assert np.allclose(curves[1], [1, 1, 1, 0, 0, 0, 0], atol=1e-5)
    step = metrics.discrete_survival(hazards[:1], [100.0, 100.0, 400.0], [99.999, 100.0])
    assert np.allclose(step, [[0.5, 0.4]], atol=1e-4)
    with pytest.raises(ValueError, match="must ascend"):
        metrics.discrete_survival(hazards, [100.0, 50.0, 400.0], [1.0])
    with pytest.raises(ValueError, match="K ends of bins"):
        metrics.discrete_survival(hazards, ends[:2], [1.0])
    with pytest.raises(ValueError, match="0 to 1"):
        metrics.discrete_survival(hazards * 3, ends, [1.0])
