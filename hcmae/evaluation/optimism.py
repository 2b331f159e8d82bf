"""How much a C-index rises when features are chosen on patients that are tested later, shown on pure noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.cohort.splits import deal
from hcmae.evaluation.metrics import concordance
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
        x = noise[:, :p]
        everyone = np.argsort(-np.abs(cox_score(x, days, dead)))[:top]
        scores: dict[str, list[float]] = {"leaky": [], "nested": []}
        for number in range(n_folds):
            train, test = fold != number, fold == number
            own = np.argsort(-np.abs(cox_score(x[train], days[train], dead[train])))[:top]
            for kind, chosen in (("leaky", everyone), ("nested", own)):
                weights = ridge_cox(x[train][:, chosen], days[train], dead[train], penalty)
                risk = x[test][:, chosen] @ weights
                scores[kind].append(concordance(days[test], dead[test], risk, empty=0.5))
        rows.append((p, float(np.mean(scores["leaky"])), float(np.mean(scores["nested"]))))
    return pd.DataFrame(rows, columns=["candidates", "leaky", "nested"])
