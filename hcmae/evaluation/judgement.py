"""Are predicted survival curves right, and of use: calibration slope and intercept, D-calibration, decision curves.

For patients whom the model has never seen, one row each: [patient, risk, time, event, S@<days> ...]. Follow-up beyond
the last day of the curves is cut there: nobody has predicted what comes after it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hcmae.evaluation.metrics import (
    Baseline,
    Vector,
    concordance,
    patient_weights,
    percentile_interval,
    survival_columns,
)

# Below this many deaths calibration says next to nothing (Collins et al., Statistics in Medicine 2016, ask for 100).
FEW_DEATHS = 10
# A predicted probability of exactly 0 or 1 would make a logarithm infinite.
_MARGIN = 1e-9


class FewDeathsWarning(UserWarning):
    """So few deaths that what is said about a group of patients is mostly chance."""


def survival_at(days: Vector, curves: Vector, time: ArrayLike) -> Vector:
    """Survival probability of each patient at a time of his own [n], linear between the days of the curves.

    days [K], curves [n, K], time [n] days. It is 1 at time 0, and that of the last day beyond it.
    """
    own = np.asarray(time, dtype=np.float64)
    grid, table = np.append(0.0, days), np.hstack([np.ones((len(curves), 1)), curves])
    return np.array([np.interp(day, grid, line) for day, line in zip(own, table, strict=True)])


def cut_off(predictions: pd.DataFrame) -> tuple[Vector, NDArray[np.bool_], Vector, Vector]:
    """(time, event, days, curves) of predictions, follow-up cut at the last day of the curves."""
    names, days = survival_columns(predictions)
    time, event = predictions["time"].to_numpy(np.float64), predictions["event"].to_numpy() > 0
    return np.minimum(time, days[-1]), event & (time <= days[-1]), days, predictions[names].to_numpy(np.float64)


def d_calibration(predictions: pd.DataFrame, bins: int = 10) -> tuple[float, pd.DataFrame]:
    """P-value of a chi-squared test that the predicted probabilities of surviving one's own time are uniform.

    A death falls into the bin of S(time); a censored patient is spread over his own bin and those below it, since he
    dies later, at a probability that is uniform below S(time). Also the table [low, high, patients] of the bins.
    Raises ValueError without any patient. Source: Haider et al., Journal of Machine Learning Research 21:85 (2020).
    """
    from scipy.stats import chi2

    time, event, days, curves = cut_off(predictions)
    if not len(time):
        raise ValueError("D-calibration of nobody: give some predictions")
    edges = np.linspace(0, 1, bins + 1)
    own = np.clip(survival_at(days, curves, time), 0, 1)
    place = np.clip(np.searchsorted(edges, own, side="right") - 1, 0, bins - 1)
    counts = np.zeros(bins)
    np.add.at(counts, place[event], 1.0)
    for survival, last in zip(own[~event], place[~event], strict=True):
        if survival <= _MARGIN:
            counts[0] += 1
            continue
        counts[last] += (survival - edges[last]) / survival
        counts[:last] += 1 / bins / survival
    expected = len(time) / bins
    statistic = float(((counts - expected) ** 2 / expected).sum())
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "patients": counts})
    return float(chi2.sf(statistic, bins - 1)), table


def calibration_slope(predictions: pd.DataFrame) -> float:
    """Slope of a Cox model on the predicted log cumulative hazard at the middle day of the curves.

    1: differences between patients are as large as predicted; below 1: too bold; 0: nothing to them; NaN where all
    predictions are equal or nobody died.
    Source: van Houwelingen, Statistics in Medicine 2000; Efron's ties, as in lifelines.
    """
    time, event, days, curves = cut_off(predictions)
    return _slope(_log_hazard(curves[:, len(days) // 2]), time, event)


def _log_hazard(survival: Vector) -> Vector:
    return np.log(-np.log(np.clip(survival, _MARGIN, 1 - _MARGIN)))


def _slope(score: Vector, time: Vector, event: NDArray[np.bool_]) -> float:
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    if not event.any() or np.ptp(score) <= 1e-9:
        return float("nan")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = CoxPHSurvivalAnalysis(ties="efron").fit(
                (score - score.mean())[:, None], Surv.from_arrays(event, time)
            )
    except (ArithmeticError, ValueError):
        return float("nan")  # separated draws of a bootstrap have no estimate
    return float(model.coef_[0])


def calibration_intercept(predictions: pd.DataFrame) -> float:
    """Logarithm of observed over expected deaths: 0 as many as predicted, above 0 more, below 0 fewer; NaN without any.

    Expected are the cumulative hazards that were predicted up to each patient's own time.
    Source: Crowson et al., Statistical Methods in Medical Research 2016 (calibration in the large).
    """
    time, event, days, curves = cut_off(predictions)
    expected = -np.log(np.clip(survival_at(days, curves, time), _MARGIN, 1.0)).sum()
    return float(np.log(event.sum() / expected)) if event.any() and expected > 0 else float("nan")


def decision_curve(predictions: pd.DataFrame, day: float, thresholds: Sequence[float] | None = None) -> pd.DataFrame:
    """Net benefit of treating whoever is predicted to die by ``day`` with at least a probability: [threshold, model,
    everybody, nobody, treated].

    Net benefit = P(treated and dead by the day) - P(treated and alive) * threshold / (1 - threshold), the shares of
    the treated by Kaplan-Meier. thresholds: 0.05 to 0.95 by default.
    Raises ValueError for a day beyond the curves or thresholds outside (0, 1).
    Source: Vickers et al., BMC Medical Informatics and Decision Making 8:53 (2008).
    """
    time, event, days, curves = cut_off(predictions)
    if not 0 < day <= days[-1]:
        raise ValueError(f"day {day:g} is not within the curves, which end at day {days[-1]:g}")
    levels = np.linspace(0.05, 0.95, 19) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"thresholds are probabilities between 0 and 1, not {levels.tolist()}")
    death = 1 - survival_at(days, curves, np.full(len(time), day))

    def benefit(treated: NDArray[np.bool_], level: float) -> float:
        if not treated.any():
            return 0.0
        alive = _kaplan_meier(time[treated], event[treated], day)
        return float(treated.mean() * ((1 - alive) - alive * level / (1 - level)))

    rows = [
        (
            level,
            benefit(death >= level, level),
            benefit(np.ones(len(time), bool), level),
            0.0,
            float((death >= level).mean()),
        )
        for level in levels
    ]
    return pd.DataFrame(rows, columns=["threshold", "model", "everybody", "nobody", "treated"])


def _kaplan_meier(time: Vector, event: NDArray[np.bool_], day: float) -> float:
    from sksurv.nonparametric import kaplan_meier_estimator

    moments, alive = kaplan_meier_estimator(event, time)
    return float(np.append(1.0, alive)[np.searchsorted(moments, day, side="right")])


def external(
    predictions: pd.DataFrame,
    reference: ArrayLike | None = None,
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How good a model is on patients whom it has never seen: [measure, value, low, high, ideal], an interval each.

    C-index, calibration slope and intercept, D-calibration (p, no interval), integrated Brier score of the model and of
    ``reference`` [K], one survival curve for everybody on the days of the predictions (the training cohort's
    Kaplan-Meier curve; default: that of these patients), and their difference (negative: the model is better).
    Intervals are percentiles over patients drawn with replacement. Warns FewDeathsWarning below ten deaths.
    """
    time, event, days, _ = cut_off(predictions)
    if event.sum() < FEW_DEATHS:
        warnings.warn(
            f"{int(event.sum())} deaths among {len(event)} patients: what is said of this model is mostly chance",
            FewDeathsWarning,
            stacklevel=2,
        )
    own = Baseline.fit(np.zeros(len(time)), time, event, days).survival([0.0])[0]
    null = own if reference is None else np.asarray(reference, dtype=np.float64)

    weights = patient_weights(len(predictions), draws, seed).astype(np.int64)
    samples = [predictions.iloc[np.repeat(np.arange(len(predictions)), line)] for line in weights]
    values, drawn = _measured(predictions, null), np.array([_measured(sample, null) for sample in samples])
    rows = []
    for (name, ideal), value, column in zip(_MEASURES.items(), values, drawn.T, strict=True):
        found = percentile_interval(value, list(column), level)
        rows.append((name, found.value, found.low, found.high, ideal))
    p_value, _ = d_calibration(predictions)
    rows.append(("D-calibration, p", p_value, float("nan"), float("nan"), "not small"))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "ideal"])


# What ``external`` measures, and the best value.
_MEASURES = {
    "C-index": "1",
    "calibration slope": "1",
    "calibration intercept": "0",
    "integrated Brier score": "0",
    "integrated Brier score, Kaplan-Meier": "",
    "Brier score, model less Kaplan-Meier": "below 0",
}


def _measured(frame: pd.DataFrame, curve: Vector) -> list[float]:
    """The values of _MEASURES; ``curve`` is the one that everybody has without a model."""
    order = concordance(frame["time"], frame["event"], frame["risk"], empty=float("nan"))
    own, null = _integrated_brier(frame), _integrated_brier(_with_curve(frame, curve))
    return [order, calibration_slope(frame), calibration_intercept(frame), own, null, own - null]


def _with_curve(frame: pd.DataFrame, curve: Vector) -> pd.DataFrame:
    names, _ = survival_columns(frame)
    return frame.assign(**{name: float(value) for name, value in zip(names, curve, strict=True)})


def _integrated_brier(predictions: pd.DataFrame) -> float:
    """Brier score weighted for censoring by these patients' own censoring, its mean over the days; NaN if none counts.

    Source: Graf et al., Statistics in Medicine 1999, by scikit-survival.
    """
    from sksurv.metrics import brier_score
    from sksurv.util import Surv

    time, event, days, curves = cut_off(predictions)
    usable = (days > time.min()) & (days < time.max())
    outcome = Surv.from_arrays(event, time)
    try:
        at, value = brier_score(outcome, outcome, curves[:, usable], days[usable])
    except ValueError:
        return float("nan")  # nobody is left under observation at one of the days
    return float(np.trapezoid(value, at) / (at[-1] - at[0])) if len(at) > 1 else float("nan")
