"""Is one method better than another: paired over shared folds, with honest variances."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from hcmae.cohort.splits import FewEventsWarning
from hcmae.evaluation.metrics import Interval, fold_concordance, pair_counts, patient_weights, percentile_interval


def nadeau_bengio(differences: ArrayLike, test_share: float) -> tuple[float, float, float]:
    """Corrected resampled t-test of paired differences over repeated folds: (mean, standard error, two-sided p).

    Training sets overlap, so the variance of the mean is (1/k + n_test / n_train) times the variance of the
    differences, not 1/k. Source: Nadeau and Bengio, Machine Learning 2003.

    Raises ValueError for fewer than two finite differences or a share outside (0, 1).
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        raise ValueError("at least two folds with a C-index in both methods are needed")
    if not 0 < test_share < 1:
        raise ValueError(f"the share of test patients must lie in (0, 1), not {test_share}")
    mean, variance = float(values.mean()), float(values.var(ddof=1))
    error = float(np.sqrt((1 / len(values) + test_share / (1 - test_share)) * variance))
    if error == 0:
        return mean, 0.0, 1.0 if mean == 0 else 0.0
    return mean, error, float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))


def corrected_interval(differences: ArrayLike, test_share: float, level: float = 0.95) -> Interval:
    """Mean paired difference with the interval of the corrected resampled t-test; see ``nadeau_bengio``.

    Unlike a bootstrap over patients it counts how much a method changes from training set to training set.
    """
    mean, error, _ = nadeau_bengio(differences, test_share)
    count = int(np.isfinite(np.asarray(differences, dtype=np.float64)).sum())
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment of a family of p-values."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    out = np.empty_like(p)
    out[order] = np.minimum(adjusted, 1.0)
    return out


def paired_folds(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """C-indices of two methods on the same folds: [repeat, fold, first, second, difference].

    Raises ValueError when the two were not tested on the same patients in the same folds with the same outcomes.
    """
    keys = ["repeat", "fold", "patient"]
    ours, theirs = (set(map(tuple, frame[keys].to_numpy())) for frame in (first, second))
    if ours != theirs:
        odd = sorted(ours ^ theirs, key=str)[0]
        raise ValueError(f"the methods were not tested on the same folds: repeat, fold, patient = {odd} is in one only")
    here, there = (frame.sort_values(keys)[["time", "event"]].to_numpy(dtype=np.float64) for frame in (first, second))
    if not np.array_equal(here, there):
        raise ValueError("the methods were tested against different outcomes: one of them has other (permuted?) labels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewEventsWarning)
        left, right = fold_concordance(first), fold_concordance(second)
    table = left[["repeat", "fold"]].copy()
    table["first"], table["second"] = left["c_index"], right["c_index"]
    table["difference"] = table["first"] - table["second"]
    return table


def bootstrap_difference(
    first: pd.DataFrame, second: pd.DataFrame, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval over patients of the difference of two within-fold C-indices, the same draw for both methods."""
    paired_folds(first, second)
    pairs = [pair_counts(frame) for frame in (first, second)]
    weights = patient_weights(pairs[0].n_patients, draws, seed)
    ones = np.ones((1, pairs[0].n_patients))
    values = pairs[0].scores(weights) - pairs[1].scores(weights)
    return percentile_interval(float((pairs[0].scores(ones) - pairs[1].scores(ones))[0]), list(values), level)


def compare(
    predictions: Mapping[str, pd.DataFrame], reference: str | None = None, *, draws: int = 1000
) -> pd.DataFrame:
    """Paired comparison of methods: against ``reference``, or all pairs.

    Returns [first, second, difference, low, high (bootstrap over patients), nb_low, nb_high, p (Nadeau-Bengio),
    p_holm].
    Raises KeyError for an unknown reference.
    """
    if reference is not None and reference not in predictions:
        raise KeyError(f"no predictions of '{reference}': have {', '.join(predictions)}")
    if reference is None:
        pairs = list(combinations(predictions, 2))
    else:
        pairs = [(reference, name) for name in predictions if name != reference]
    rows = []
    for a, b in pairs:
        folds = paired_folds(predictions[a], predictions[b])
        share = 1 / max(2, folds["fold"].nunique())
        _, _, p = nadeau_bengio(folds["difference"], share)
        corrected = corrected_interval(folds["difference"], share)
        interval = bootstrap_difference(predictions[a], predictions[b], draws=draws)
        rows.append(
            (a, b, float(folds["difference"].mean()), interval.low, interval.high, corrected.low, corrected.high, p)
        )
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "nb_low", "nb_high", "p"])
    table["p_holm"] = holm(table["p"]) if len(table) else []
    return table


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods over cancers (1 = best) with Friedman's test and Nemenyi's critical difference.

    Attributes:
        mean: method -> mean rank, best first.
        statistic, p: Friedman's chi-square with as many degrees of freedom as methods less one, corrected for ties.
        critical_difference: two methods whose mean ranks differ by less cannot be told apart.
        cancers: those that were ranked; left_out: those that lack a method.
        groups: runs of neighbours within one critical difference, each as long as it can be; a method that differs
            from all others is in none.
    """

    mean: pd.Series
    statistic: float
    p: float
    critical_difference: float
    cancers: tuple[str, ...]
    left_out: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]


def nemenyi_difference(n_methods: int, n_cancers: int, alpha: float = 0.05) -> float:
    """Critical difference of mean ranks, q sqrt(k (k + 1) / (6 N)).

    q is the quantile of the studentized range of k methods with infinite degrees of freedom, divided by sqrt(2).
    Source: Demsar, JMLR 2006, section 3.2.2. Raises ValueError for fewer than two methods or cancers.
    """
    if n_methods < 2 or n_cancers < 2:
        raise ValueError(f"ranks of {n_methods} method(s) over {n_cancers} cancer(s): at least two of each are needed")
    q = float(stats.studentized_range.ppf(1 - alpha, n_methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(n_methods * (n_methods + 1) / (6 * n_cancers)))


def rank_methods(scores: pd.DataFrame, *, alpha: float = 0.05) -> Ranks:
    """Rank methods within each cancer and ask whether their mean ranks differ more than chance allows.

    Args:
        scores: one C-index per cancer (rows) and method (columns), larger is better. A cancer that lacks a method is
            left out; equal scores share their mean rank.

    Source: Friedman 1937; Demsar, JMLR 2006. Raises ValueError for fewer than two methods, or fewer than two cancers
    that have all of them.
    """
    whole = scores.dropna()
    left_out = tuple(str(name) for name in scores.index.difference(whole.index, sort=False))
    count, methods = whole.shape
    difference = nemenyi_difference(methods, count, alpha)
    ranks = whole.rank(axis=1, ascending=False)
    mean = ranks.mean().sort_values(kind="stable")
    # Sums of squares form: ties make the ranks vary less than 1..k do, and the denominator follows.
    between = count * float(((mean - (methods + 1) / 2) ** 2).sum())
    spread = float(((ranks - (methods + 1) / 2) ** 2).to_numpy().sum()) / (count * (methods - 1))
    statistic = between / spread if spread > 0 else 0.0
    return Ranks(
        mean,
        statistic,
        float(stats.chi2.sf(statistic, methods - 1)),
        difference,
        tuple(str(name) for name in whole.index),
        left_out,
        _alike(mean, difference),
    )


def _alike(mean: pd.Series, difference: float) -> tuple[tuple[str, ...], ...]:
    """Longest runs of sorted mean ranks that span no more than ``difference``, single methods left out."""
    values, names = mean.to_numpy(), [str(name) for name in mean.index]
    groups: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(values)):
        end = int(np.searchsorted(values, values[start] + difference, side="right"))
        # A run that ends where the one before ended is part of it.
        if end > reached and end - start > 1:
            groups.append(tuple(names[start:end]))
        reached = max(reached, end)
    return tuple(groups)


def sampling_noise(
    n_patients: int, event_rate: float, *, c_index: float = 0.5, n_folds: int = 5, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Standard deviation of one fold's C and of the mean over folds for a fixed score of the given true C.

    Simulated: exponential times whose log hazard depends on the score, independent censoring. Nothing is fitted, so
    this is the noise of the test patients alone, the least that any method has.
    """
    from hcmae.cohort.splits import deal
    from hcmae.evaluation.metrics import concordance

    rng = np.random.default_rng(seed)
    # For a normal score of unit variance and proportional hazards, C grows with the slope; found by bisection.
    slope = _slope_for(c_index, event_rate, rng) if c_index > 0.5 else 0.0
    single, means = [], []
    for _ in range(draws):
        score, time, event = simulate_outcome(n_patients, slope, event_rate, rng)
        if not event.any():
            continue
        fold = deal(time, event, n_folds, rng)
        values = [
            concordance(time[fold == k], event[fold == k], score[fold == k], empty=np.nan) for k in range(n_folds)
        ]
        single.extend(values)
        means.append(np.nanmean(values))
    return float(np.nanstd(single)), float(np.std(means))


def simulate_outcome(
    n: int, slope: float, event_rate: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """A standard normal score, times whose hazard is exp(slope * score), and about ``event_rate`` deaths observed."""
    score = rng.normal(size=n)
    death = rng.exponential(np.exp(-slope * score))
    relative = rng.uniform(0.05, 1.0, n)
    # The scale of follow-up that leaves the wanted share of deaths.
    low, high = 1e-4, 1e4
    for _ in range(60):
        scale = np.sqrt(low * high)
        if (death <= relative * scale).mean() < event_rate:
            low = scale
        else:
            high = scale
    censored = relative * high
    return score, np.minimum(death, censored), death <= censored


def _slope_for(c_index: float, event_rate: float, rng: np.random.Generator) -> float:
    from hcmae.evaluation.metrics import concordance

    low, high = 0.0, 5.0
    for _ in range(14):
        slope = (low + high) / 2
        score, time, event = simulate_outcome(3000, slope, event_rate, rng)
        if concordance(time, event, score) < c_index:
            low = slope
        else:
            high = slope
    return (low + high) / 2


def equal_models(
    n: int, slope: float, event_rate: float, rng: np.random.Generator, *, draws: int = 100
) -> NDArray[np.float64]:
    """C-indices [draws, 2] of two equally good models on the same patients: the true score plus noise of their own.

    Each draw invents another cohort of n patients, as ``simulate_outcome``.
    """
    from hcmae.evaluation.metrics import concordance

    scores = np.empty((draws, 2))
    for draw in range(draws):
        score, time, event = simulate_outcome(n, slope, event_rate, rng)
        for model in range(2):
            scores[draw, model] = concordance(time, event, score + rng.normal(size=n))
    return scores
