"""Metrics against scikit-survival and lifelines, comparisons against their formulas, curves, tables, interpretation."""

from __future__ import annotations

import html
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index
from scipy import stats
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
)
from sksurv.util import Surv

from hcmae.evaluation import compare, metrics, optimism, tables
from hcmae.evaluation.kaplan_meier import compare_groups, one_per_patient, risk_groups
from hcmae.interpretation import interpret, overlay
from hcmae.slides.viewer import deep_zoom_tiles


def outcome(n: int = 80, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    time = rng.exponential(np.exp(-risk)) * 800
    if ties:
        time, risk = np.ceil(time / 200) * 200, np.round(risk)
    return time, (rng.random(n) < 0.6).astype(int), risk


def predictions(n: int = 120, repeats: int = 2, seed: int = 0, noise: float = 0.5) -> pd.DataFrame:
    """Out-of-fold predictions of five folds whose scales differ."""
    rng = np.random.default_rng(100 + seed)
    time, event, risk = outcome(n, 0)
    parts = []
    for repeat in range(repeats):
        fold = rng.permutation(np.arange(n) % 5)
        guess = risk + noise * rng.normal(size=n)
        frame = pd.DataFrame(
            {
                "patient": [f"P{i:03d}" for i in range(n)],
                "repeat": repeat,
                "fold": fold,
                "risk": guess + 3 * fold,
                "time": time,
                "event": event,
                "risk_z": guess,
                "high": guess > 0,
            }
        )
        curves = metrics.breslow_survival(risk, time, event, guess, np.arange(1, 9) * 200.0)
        parts.append(pd.concat([frame, pd.DataFrame(curves, columns=[f"S@{d * 200}" for d in range(1, 9)])], axis=1))
    return pd.concat(parts, ignore_index=True)


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


def test_nadeau_bengio_by_hand() -> None:
    d = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    mean, error, p = compare.nadeau_bengio(d, 0.2)
    expected = np.sqrt((1 / 5 + 0.25) * d.var(ddof=1))
    assert (mean, error) == (pytest.approx(0.026), pytest.approx(expected))
    assert p == pytest.approx(2 * stats.t.sf(0.026 / expected, 4))
    # More careful than the plain paired test.
    assert p > stats.ttest_1samp(d, 0).pvalue
    assert compare.nadeau_bengio([0.0, 0.0], 0.2)[2] == 1.0
    with pytest.raises(ValueError, match="two folds"):
        compare.nadeau_bengio([0.1, np.nan], 0.2)
    with pytest.raises(ValueError, match="share"):
        compare.nadeau_bengio(d, 1.0)


def test_corrected_interval_and_p_value_agree() -> None:
    d = np.array([0.02, 0.05, -0.01, 0.04, 0.03, 0.06, 0.01, 0.02, 0.05, np.nan])
    interval = compare.corrected_interval(d, 0.2)
    mean, error, p = compare.nadeau_bengio(d, 0.2)
    assert interval.value == mean == pytest.approx(np.nanmean(d))
    assert interval.high - mean == pytest.approx(stats.t.ppf(0.975, 8) * error)
    assert (interval.low > 0) == (p < 0.05)
    exact = compare.corrected_interval(d, 0.2, level=1 - p)
    assert exact.low == pytest.approx(0, abs=1e-12)


def test_corrected_test_keeps_its_level_where_the_plain_one_does_not() -> None:
    """Two equal methods whose folds share training noise: correlation 1/k, what Nadeau and Bengio assume."""
    rng = np.random.default_rng(0)
    corrected = plain = 0
    for _ in range(600):
        d = np.sqrt(0.2) * rng.normal() + np.sqrt(0.8) * rng.normal(size=10)
        corrected += compare.nadeau_bengio(d, 0.2)[2] < 0.05
        plain += stats.ttest_1samp(d, 0).pvalue < 0.05
    assert plain / 600 > 0.15
    assert 0.02 < corrected / 600 < 0.08


def test_holm_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(11) ** 3
    assert compare.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_by_hand() -> None:
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.9, 0.8]).max() == 1.0


def test_compare_finds_the_better_method_and_not_a_difference_of_nothing() -> None:
    # Same folds, so only the risks differ.
    good = predictions(noise=0.2)
    bad = good.assign(risk=good["risk"] + np.random.default_rng(1).normal(size=len(good)) * 2)
    table = compare.compare({"good": good, "bad": bad, "same": good.copy()}, "good", draws=200).set_index("second")
    assert table.loc["bad", "low"] > 0
    assert table.loc["bad", "p_holm"] >= table.loc["bad", "p"]
    assert table.loc["bad", "nb_low"] < table.loc["bad", "difference"] < table.loc["bad", "nb_high"]
    assert (table.loc["bad", "nb_low"] > 0) == (table.loc["bad", "p"] < 0.05)
    assert table.loc["same", "difference"] == 0
    assert table.loc["same", "p"] == 1
    assert len(compare.compare({"a": good, "b": bad, "c": good}, draws=20)) == 3
    with pytest.raises(KeyError, match="no predictions"):
        compare.compare({"good": good}, "other")


def test_comparison_needs_the_same_folds() -> None:
    frame = predictions()
    other = frame.assign(fold=(frame["fold"] + 1) % 5)
    with pytest.raises(ValueError, match="same folds"):
        compare.paired_folds(frame, other)
    with pytest.raises(ValueError, match="different outcomes"):
        compare.paired_folds(frame, frame.assign(event=1 - frame["event"]))


def test_few_events_in_a_fold_warn_and_count() -> None:
    from hcmae.cohort.splits import FEW_EVENTS, FewEventsWarning

    frame = predictions(100, 1)
    frame.loc[frame["fold"] == 2, "event"] = 0
    with pytest.warns(FewEventsWarning, match=f"1 of 5 folds have fewer than {FEW_EVENTS} deaths"):
        table = metrics.fold_concordance(frame)
    assert np.isnan(table.loc[table["fold"] == 2, "c_index"]).all()
    # A fold without events is left out of the mean, not counted as a coin.
    assert metrics.mean_concordance(frame)[0] == pytest.approx(table["c_index"].dropna().mean())


@pytest.mark.parametrize(
    ("methods", "q"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_difference_has_the_published_quantiles(methods: int, q: float) -> None:
    # Table 5a of Demsar 2006; its last digit is off by one at 3 and 7 methods.
    difference = compare.nemenyi_difference(methods, 14)
    assert difference == pytest.approx(q * np.sqrt(methods * (methods + 1) / 84), abs=0.0011)


def test_ranks_by_hand() -> None:
    scores = pd.DataFrame(
        {"a": [0.9, 0.8, 0.7, np.nan], "b": [0.8, 0.8, 0.6, 0.5], "c": [0.5, 0.6, 0.5, 0.6]},
        index=["LIHC", "BRCA", "LUAD", "COAD"],
    )
    ranks = compare.rank_methods(scores)
    # LIHC 1 2 3, BRCA 1.5 1.5 3, LUAD 1 2 3; COAD lacks a method.
    assert ranks.mean.to_dict() == pytest.approx({"a": 3.5 / 3, "b": 5.5 / 3, "c": 3.0})
    assert list(ranks.mean.index) == ["a", "b", "c"]
    assert ranks.cancers == ("LIHC", "BRCA", "LUAD")
    assert ranks.left_out == ("COAD",)
    # 2 * (2.5^2 + 0.5^2 + 3^2) / (2 + 1.5 + 2)
    assert ranks.statistic == pytest.approx(2 * 15.5 / 5.5)
    assert ranks.p == pytest.approx(np.exp(-ranks.statistic / 2))
    assert ranks.critical_difference == pytest.approx(2.344 * np.sqrt(12 / 18), abs=1e-3)
    assert ranks.groups == (("a", "b", "c"),)


def test_friedman_equals_scipy_with_and_without_ties() -> None:
    rng = np.random.default_rng(3)
    for digits in (6, 1):
        values = rng.normal(size=(6, 5)).round(digits)
        ranks = compare.rank_methods(pd.DataFrame(values, columns=list("abcde")))
        expected = stats.friedmanchisquare(*values.T)
        assert ranks.statistic == pytest.approx(expected.statistic)
        assert ranks.p == pytest.approx(expected.pvalue)


def test_bars_join_what_cannot_be_told_apart() -> None:
    # Twenty cancers that agree: ranks 1 to 5 exactly, and a critical difference of 1.36.
    same = pd.DataFrame(np.tile([0.9, 0.8, 0.7, 0.6, 0.5], (20, 1)), columns=list("abcde"))
    ranks = compare.rank_methods(same)
    assert ranks.critical_difference == pytest.approx(2.728 * np.sqrt(30 / 120), abs=1e-3)
    assert ranks.groups == (("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))
    # Sixty: 0.79, so that no two ranks are alike and there is no bar.
    assert compare.rank_methods(pd.concat([same] * 3, ignore_index=True)).groups == ()
    none = compare.rank_methods(pd.DataFrame(np.ones((3, 2)), columns=["a", "b"]))
    assert (none.statistic, none.p, none.groups) == (0.0, 1.0, (("a", "b"),))


def test_ranks_need_two_methods_and_two_cancers() -> None:
    for scores in (
        pd.DataFrame({"a": [0.5, 0.6]}),
        pd.DataFrame({"a": [0.5], "b": [0.6]}),
        pd.DataFrame({"a": [0.5, np.nan], "b": [0.6, 0.7]}),
    ):
        with pytest.raises(ValueError, match="at least two of each"):
            compare.rank_methods(scores)


def test_sampling_noise_matches_the_size_of_the_paper_cohorts() -> None:
    # LUAD, 374 patients, 36 % deaths: simulated elsewhere as 0.058 for a fold and 0.025 for the mean.
    single, mean = compare.sampling_noise(374, 0.36, c_index=0.65, draws=60, seed=1)
    assert 0.045 < single < 0.08
    assert mean < single / 1.7


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


def test_table2_and_its_renderings() -> None:
    ours = {"hcmae": {"LIHC": tables.Score(0.71, 0.04, 0.66, 0.76)}}
    table = tables.table2(ours, cancers=("LIHC", "STAD"), provenance={"profile": "smoke", "source": "synthetic"})
    frame = table.frame()
    assert frame.loc[("Deep learning", "HC-MAE"), "LIHC paper"] == "0.737 ± 0.031"
    assert frame.loc[("Deep learning", "HC-MAE"), "LIHC ours"] == "0.710 ± 0.040"
    assert frame.loc[("Deep learning", "MCAT"), "LIHC ours"] == tables.NOT_RUN
    assert "profile smoke, source synthetic" in table.caption
    page = table.to_html()
    assert page.count("<tr>") == len(tables.TABLE2_ROWS) + 1
    # The paper's best on STAD is HIPT (Integration), not HC-MAE.
    assert "<strong>0.631 ± 0.048</strong>" in page
    assert r"\textbf{0.737 $\pm$ 0.031}" in table.to_latex()
    read = pd.read_csv(io.StringIO(table.to_csv()), comment="#")
    assert list(read.columns) == ["data", "method", *table.columns]
    assert len(read) == len(tables.TABLE2_ROWS)


def test_six_cancers_are_two_blocks_with_intervals_on_a_line_of_their_own() -> None:
    ours = {"hcmae": {"LIHC": tables.Score(0.71, 0.04, 0.66, 0.76)}}
    table = tables.table2(ours, interval=True)
    page = table.to_html()
    assert page.count("<table") == 2
    assert page.count("<tr>") == 2 * (len(tables.TABLE2_ROWS) + 1)
    assert page.index("LUAD ours") < page.index("continued") < page.index("COAD paper")
    assert "0.710 ± 0.040<br><small>(0.660 to 0.760)</small>" in page
    assert "0.737<br><small>± 0.031</small>" in page
    assert page.count('<tr class="group">') == 6
    tex = table.to_latex()
    assert tex.count(r"\begin{tabular}{llllllll}") == tex.count(r"\end{tabular}") == 2
    assert tex.count(r"\caption") == 1
    assert r"\shortstack[l]{\textbf{0.710 $\pm$ 0.040} \\ (0.660 to 0.760)}" in tex
    read = pd.read_csv(io.StringIO(table.to_csv()), comment="#")
    assert len(read.columns) == 14
    assert "0.710 ± 0.040 (0.660 to 0.760)" in set(read["LIHC ours"])
    assert "0.737 ± 0.031" in set(read["LIHC paper"])


def test_table3_and_figure2() -> None:
    table = tables.table3({"trans_mo": tables.Score(0.7, 0.05, 0.65, 0.75)})
    assert table.frame().loc[("Multi-omics", "Trans-MO"), "ours"] == "0.700 ± 0.050 (0.650 to 0.750)"
    assert table.frame().loc[("Image", "MAE-Pat"), "ours"] == tables.NOT_RUN
    figure = tables.figure2_table({"hcmae": risk_groups(predictions())}).frame()
    assert figure.loc[("Deep learning", "HC-MAE"), "p, paper"] == "2.1e-07"
    assert figure.loc[("Deep learning", "MCAT"), "p, ours"] == tables.NOT_RUN


def test_difference_frame_names_both_intervals() -> None:
    frame = predictions()
    rows = compare.compare({"hcmae": frame, "x": frame.assign(risk=frame["risk"][::-1].to_numpy())}, "hcmae", draws=20)
    shown = tables.difference_frame(rows, {"hcmae": "HC-MAE"})
    assert shown.loc[0, "first"] == "HC-MAE"
    assert shown.loc[0, "minus"] == "x"
    assert shown.loc[0, "95 %, other training sets"] == f"{rows['nb_low'][0]:+.3f} to {rows['nb_high'][0]:+.3f}"
    assert shown.loc[0, "95 %, other test patients"] == f"{rows['low'][0]:+.3f} to {rows['high'][0]:+.3f}"


def test_rendered_tables_escape() -> None:
    table = tables.ResultTable("T_1 & co", ["a<b"], [("g", "m%")], [["<i>"]], "50 %")
    assert "<i>" not in table.to_html()
    assert r"T\_1 \& co" in table.to_latex()
    odd = tables.ResultTable("a\\b{c}~d^e", ["x"], [("g", "m")], [["1"]]).to_latex()
    assert r"a\textbackslash{}b\{c\}\textasciitilde{}d\textasciicircum{}e" in odd


def test_tables_carry_their_provenance_in_every_format(tmp_path) -> None:
    origin = {"profile": "smoke", "source": "synthetic", "seeds": [0, 1, 2], "protocol": "honest", "commit": "abc1234"}
    score = tables.Score(0.7, 0.05, 0.65, 0.75)
    for number, table in enumerate(
        (
            tables.table2({"hcmae": {"LIHC": score}}, cancers=("LIHC",), provenance=origin),
            tables.table3({"hcmae": score}, provenance=origin),
            tables.figure2_table({"hcmae": risk_groups(predictions())}, provenance=origin),
        )
    ):
        for path in table.write(tmp_path, f"table{number}"):
            text = path.read_text()
            for part in ("profile smoke", "source synthetic", "seeds 0 1 2", "commit abc1234"):
                assert part in text, (path.name, part)


def test_commit_of_the_checkout_stands_in_for_a_missing_one(repo, tmp_path, monkeypatch) -> None:
    named = tables.provenance_text({"profile": "smoke", "commit": "abc"})
    assert "commit abc" in named
    checkout = tmp_path / "x"
    (checkout / ".git" / "refs" / "heads").mkdir(parents=True)
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (checkout / ".git" / "refs" / "heads" / "main").write_text("0123456789abcdef\n")
    monkeypatch.setattr(tables, "__file__", str(checkout / "hcmae" / "evaluation" / "tables.py"))
    assert tables.source_commit() == "0123456789"
    assert "commit 0123456789" in tables.provenance_text({"profile": "smoke"})
    (checkout / ".git" / "refs" / "heads" / "main").unlink()
    (checkout / ".git" / "packed-refs").write_text("# pack\nfedcba98765 refs/heads/main\n")
    assert tables.source_commit() == "fedcba9876"
    (checkout / ".git" / "HEAD").unlink()
    assert tables.source_commit() is None


def test_attention_auc_by_hand() -> None:
    weights = {"a": np.array([0.5, 0.3, 0.2]), "b": np.array([0.5, 0.5]), "c": np.array([1.0])}
    planted = {"a": np.array([True, False, True]), "b": np.array([True, False]), "c": np.array([True])}
    assert interpret.attention_auc(weights, planted) == pytest.approx((1 + 0 + 0.5) / 3)
    with pytest.raises(ValueError, match="both planted"):
        interpret.attention_auc({"c": weights["c"]}, planted)
    with pytest.raises(ValueError, match="patient a"):
        interpret.attention_auc({"a": np.ones(2)}, planted)


def test_planted_regions_and_geojson(tmp_path) -> None:
    truth = pd.DataFrame(
        {"patient": ["a", "a"], "x": [0, 512], "y": [0, 0], "tumour": [True, False], "slide": ["s", "s"]}
    )
    found = interpret.planted_regions(truth, {"a": np.array([[100, 60], [512, 0], [300, 0]])}, 512)
    assert found["a"].tolist() == [True, False, False]
    with pytest.raises(ValueError, match="patient z"):
        interpret.planted_regions(truth, {"z": np.zeros((1, 2))}, 512)
    path = tmp_path / "x.geojson"
    interpret.write_geojson(path, np.array([[0, 0], [512, 0]]), 512, np.array([0.25, 0.75]))
    features = json.loads(path.read_text())["features"]
    assert features[1]["properties"]["measurements"] == {"attention": 0.75}
    assert features[1]["geometry"]["coordinates"][0][2] == [1024, 512]


class _Picture:
    """A slide as far as the overlay looks at one."""

    size = (1000, 700)

    def thumbnail(self, max_side: int) -> np.ndarray:
        height = round(700 * min(1.0, max_side / 1000))
        width = round(1000 * min(1.0, max_side / 1000))
        image = np.full((height, width, 3), 255, np.uint8)
        image[: height // 2, : width // 2] = (200, 30, 60)
        return image


def test_overlay_page_is_whole_and_asks_no_network(tmp_path) -> None:
    corners = np.array([[0, 0], [500, 0], [0, 350]])
    weights = {"rna": np.array([0.5, 0.3, 0.2]), "</script><b>": np.ones(3) / 3}
    page = overlay.overlay_page(
        _Picture(), corners, 250, weights, planted=np.array([True, False, False]), max_side=500, title="A & B"
    )
    start = page.index('id="data">') + len('id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    # Half the size: regions are scaled from level-0 pixels to the deepest level of the page.
    assert (data["width"], data["height"], data["levels"]) == (500, 350, 9)
    assert data["regions"] == [[0, 0], [250, 0], [0, 175]]
    assert data["side"] == [125, 125]
    assert data["layers"]["rna"] == [0.5, 0.3, 0.2]
    assert data["planted"] == [True, False, False]
    assert set(data["tiles"]) == set(deep_zoom_tiles(_Picture().thumbnail(500))[1])
    assert "<b>" not in page
    assert "A &amp; B" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    overlay.write_overlay(tmp_path / "x.html", page)
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == page
    frame = overlay.inline_frame(page)
    assert html.unescape(frame[frame.index('srcdoc="') + 8 : frame.rindex('"></iframe>')]) == page


@pytest.mark.parametrize(
    ("weights", "planted", "message"),
    [
        ({}, None, "no layer"),
        ({"rna": np.ones(2)}, None, r"'rna' has weights of shape \(2,\) for 3 regions"),
        ({"rna": np.array([1, np.nan, 0])}, None, "negative, NaN or infinite"),
        ({"rna": np.ones(3)}, np.ones(2, bool), "planted has shape"),
    ],
)
def test_overlay_refuses(weights, planted, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay.overlay_page(_Picture(), np.zeros((3, 2), int), 10, weights, planted=planted)


def test_overlay_names_the_missing_library(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="library="):
        overlay.overlay_page(
            _Picture(), np.zeros((1, 2), int), 10, {"rna": np.ones(1)}, library=tmp_path / "openseadragon.min.js"
        )


def test_gene_table_marks_planted_features() -> None:
    names = {"rna": ["ENSG1.5", "ENSG2.1"], "mirna": ["m1", "m2"]}
    attributions = np.array([[[0.1, -0.9], [0.2, 0.0]]])
    planted = {"rna": {"shared": {"up": ["ENSG2.7"], "down": []}}, "mirna": {"omics": ["m1"]}}
    table = interpret.gene_table(attributions, names, planted)
    assert table["feature"].tolist() == ["ENSG2.1", "m1", "ENSG1.5", "m2"]
    assert table["planted"].tolist() == [True, True, False, False]


def test_cox_score_equals_lifelines_where_it_must() -> None:
    time, event, x = outcome(300)
    z = optimism.cox_score(x[:, None], time, event)[0]
    # A score and a Wald statistic agree for small effects only.
    weak = x * 0.1 + np.random.default_rng(0).normal(size=300)
    fitter = CoxPHFitter().fit(pd.DataFrame({"x": weak, "t": time, "e": event}), "t", "e")
    assert optimism.cox_score(weak[:, None], time, event)[0] == pytest.approx(fitter.summary.loc["x", "z"], rel=0.06)
    assert z > 5


def test_noise_curve_shows_the_leak() -> None:
    time, event, _ = outcome(120)
    curve = optimism.noise_curve(time, event, candidates=(20, 400), top=20, seed=0).set_index("candidates")
    assert curve.loc[400, "leaky"] > 0.65
    assert abs(curve.loc[400, "nested"] - 0.5) < 0.15
    assert curve.loc[20, "leaky"] == curve.loc[20, "nested"]
    with pytest.raises(ValueError, match="cannot choose"):
        optimism.noise_curve(time, event, candidates=(10,), top=20)


def test_every_survival_figure_can_be_drawn() -> None:
    from matplotlib.figure import Figure

    from hcmae import plots

    frame = predictions()
    score = tables.score(frame, draws=50)
    summary = pd.DataFrame({"hcmae": {"mean": score.mean, "low": score.low, "high": score.high, "paper": 0.737}}).T
    worse = frame.assign(risk=-frame["risk"])
    time, event, risk = outcome(12)
    leaks = pd.DataFrame(
        [
            ("LIHC", kind, protocol, 0.6, 0.55, 0.65, 0.03)
            for kind in ("true", "permuted")
            for protocol in ("honest", "both")
        ],
        columns=["cohort", "labels", "protocol", "mean", "low", "high", "noise"],
    )
    genes = interpret.gene_table(np.ones((1, 1, 3)), {"rna": ["a", "b", "c"]}, {"rna": {"x": ["a"]}})
    drawn = [
        plots.plot_kaplan_meier({"HC-MAE": risk_groups(frame), "other": risk_groups(frame)}),
        plots.plot_fold_scores({"hcmae": metrics.fold_concordance(frame)}, oracle=0.8),
        plots.plot_comparison(summary, labels={"hcmae": "HC-MAE"}, oracle=0.8),
        plots.plot_differences(compare.compare({"hcmae": frame, "x": worse}, "hcmae", draws=20)),
        plots.plot_critical_difference(
            compare.rank_methods(pd.DataFrame(np.eye(3), columns=["hcmae", "mcat", "x"])), labels={"hcmae": "HC-MAE"}
        ),
        plots.plot_leaks(leaks),
        plots.plot_calibration({"one": metrics.calibration(frame, 400)}),
        plots.plot_brier({"hcmae": metrics.brier(frame)}),
        plots.plot_cox_geometry(time, event, risk),
        plots.plot_attention(
            np.zeros((3, 4, 4, 3), np.uint8), np.eye(3, 2), np.ones((3, 3)) / 3, planted=np.eye(3)[0] > 0
        ),
        plots.plot_gene_attributions(genes),
        plots.plot_optimism_curve(pd.DataFrame({"candidates": [30, 300], "leaky": [0.5, 0.8], "nested": [0.5, 0.5]})),
    ]
    for figure in drawn:
        assert isinstance(figure, Figure)
        figure.savefig(io.BytesIO(), format="svg")
