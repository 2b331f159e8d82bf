"""What pure noise can look like: C-indices of leaky selection, and p-values of groups that cross-validation made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.cohort.splits import deal
from hcmae.evaluation.metrics import concordance
from hcmae.evaluation.permutation import permutation_test
from hcmae.omics import differential
from hcmae.outcome import check_events, check_outcome


def cox_score(values: NDArray[np.floating], time: NDArray, event: NDArray) -> NDArray[np.float64]:
    """Score statistic of a univariate Cox model for every column, z [p]; needs no fit.

    At each death the dead patient's value is compared with the mean of those at risk (Breslow for ties).
    """
    days, dead = check_outcome(time, event)
    x = np.asarray(values)
    return differential.cox_score(x, days, dead, range(x.shape[1]))["statistic"].to_numpy()


def ridge_cox(x: NDArray[np.floating], time: NDArray, event: NDArray, penalty: float) -> NDArray[np.float64]:
    """Coefficients [p] of a Cox model with a ridge, by scikit-survival."""
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    outcome = Surv.from_arrays(check_events(event), np.asarray(time, dtype=float))
    return CoxPHSurvivalAnalysis(alpha=penalty, n_iter=20).fit(x, outcome).coef_


def noise_curve(
    time: NDArray,
    event: NDArray,
    *,
    candidates: Sequence[int] = (30, 100, 300, 1000, 3000),
    top: int = 30,
    penalty: float = 50.0,
    n_folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """5-fold C-index of a ridge Cox model on the ``top`` of p noise features, chosen on all patients or in training.

    The features are independent standard normal numbers, so the true C is 0.5 whatever is done. Table
    [candidates, leaky, nested]. Raises ValueError when fewer candidates than ``top`` are asked for.
    """
    days, dead = check_outcome(time, event)
    if min(candidates) < top:
        raise ValueError(f"cannot choose {top} of {min(candidates)} features")
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(len(days), max(candidates)))
    fold = deal(days, dead, n_folds, rng)
    rows = []
    for p in candidates:
        leaky, nested = (
            selected_concordance(noise[:, :p], days, dead, fold, top, penalty, leak=leak) for leak in (True, False)
        )
        rows.append((p, leaky, nested))
    return pd.DataFrame(rows, columns=["candidates", "leaky", "nested"])


def selected_concordance(
    x: NDArray[np.floating],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    fold: NDArray[np.integer],
    top: int,
    penalty: float,
    *,
    leak: bool,
) -> float:
    """Mean C over folds of a ridge Cox model on the ``top`` columns of x [n, p] with the largest Cox score.

    fold: of each patient [n]. leak: the columns are chosen on all patients instead of on the training part.
    """
    scores = []
    for number in range(int(fold.max()) + 1):
        train, test = fold != number, fold == number
        seen = np.ones(len(fold), dtype=bool) if leak else train  # the leak is this line
        chosen = np.argsort(-np.abs(cox_score(x[seen], time[seen], event[seen])))[:top]
        weights = ridge_cox(x[train][:, chosen], time[train], event[train], penalty)
        scores.append(concordance(time[test], event[test], x[test][:, chosen] @ weights, empty=0.5))
    return float(np.mean(scores))


def compound_groups(
    x: NDArray[np.floating], time: NDArray[np.float64], event: NDArray[np.int64], n_folds: int, seed: int
) -> NDArray[np.bool_]:
    """Out-of-fold high-risk group [n] of a compound covariate: each feature weighted by its Cox score in training.

    Nothing is fitted by iteration, so that it costs milliseconds; folds are dealt for these outcomes, the cut-off is
    the training median.
    """
    fold = deal(time, event.astype(bool), n_folds, np.random.default_rng(seed))
    high = np.zeros(len(time), dtype=bool)
    for number in range(n_folds):
        train, test = fold != number, fold == number
        weights = cox_score(x[train], time[train], event[train])
        high[test] = x[test] @ weights > np.median(x[train] @ weights)
    return high


def group_statistic(time: NDArray[np.float64], event: NDArray[np.int64], high: NDArray[np.bool_]) -> float:
    """Chi-square of the Cox score test of a group; without tied deaths that of the log-rank test. 0 for one group."""
    if high.all() or not high.any():
        return 0.0
    return float(cox_score(high[:, None].astype(float), time, event)[0] ** 2)


def null_p_values(
    draws: int = 200,
    *,
    patients: int = 60,
    features: int = 5,
    n_folds: int = 5,
    permutations: int = 19,
    seed: int = 0,
) -> pd.DataFrame:
    """P-values of out-of-fold risk groups of cohorts in which nothing is true: table [draw, naive, permuted].

    Each draw invents normal features and exponential times that have nothing to do with each other, a third of them
    censored. ``naive``: the groups tested as if they had been given. ``permuted``: the whole procedure again on
    permuted outcomes (ties broken at random, since so few permutations leave steps).
    """
    rows = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw, 2011])
        x = rng.normal(size=(patients, features))
        death, last = rng.exponential(1.0, patients), rng.exponential(2.0, patients)

        def procedure(
            time: NDArray[np.float64], event: NDArray[np.int64], x: NDArray = x, draw: int = draw
        ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
            return time, event, compound_groups(x, time, event, n_folds, draw)

        test = permutation_test(
            procedure,
            lambda found: group_statistic(*found),
            np.minimum(death, last),
            (death <= last).astype(np.int64),
            permutations=permutations,
            seed=draw,
        )
        rows.append((draw, test.naive_p, test.randomised_p(rng)))
    return pd.DataFrame(rows, columns=["draw", "naive", "permuted"])
