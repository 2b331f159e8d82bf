"""Is a model as good for everybody: its order and its curves by age, sex, stage and hospital, with intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hcmae.evaluation.judgement import FEW_DEATHS, calibration_intercept
from hcmae.evaluation.metrics import bootstrap, survival_columns

# What is left of a covariate where nothing is known of a patient.
UNKNOWN = "unknown"
# Levels with few deaths are put together under this name.
REST = "the rest"


def groups_of(clinical: pd.DataFrame, site: pd.Series | None = None) -> pd.DataFrame:
    """Groups of patients by age (below the median, or from it on), sex, stage (I and II, III and IV) and site.

    clinical: indexed by patient, with age (years), sex and stage, each optional; site: by patient. What is not known is
    ``unknown``.
    """
    from hcmae.cohort.cells import stage_number

    found: dict[str, pd.Series] = {}
    if "age" in clinical:
        age = pd.to_numeric(clinical["age"], errors="coerce")
        middle = age.median()
        old = pd.Series(np.where(age >= middle, f"{middle:.0f} or older", f"under {middle:.0f}"), index=clinical.index)
        found["age"] = old.where(age.notna(), UNKNOWN)
    if "sex" in clinical:
        found["sex"] = clinical["sex"].where(clinical["sex"].notna(), UNKNOWN).astype(str)
    if "stage" in clinical:
        number = clinical["stage"].map(lambda stage: stage_number(str(stage)))
        found["stage"] = pd.cut(number, [0, 2.5, 5], labels=["I or II", "III or IV"]).astype(object).fillna(UNKNOWN)
    if site is not None:
        found["site"] = site.reindex(clinical.index).fillna(UNKNOWN).astype(str)
    return pd.DataFrame(found, index=clinical.index)


def by_subgroup(
    predictions: pd.DataFrame, groups: pd.DataFrame, *, draws: int = 500, seed: int = 0, fewest: int = FEW_DEATHS
) -> pd.DataFrame:
    """How good predictions are in each group: [covariate, group, patients, deaths, c_index, low, high, intercept,
    intercept_low, intercept_high].

    predictions: out-of-fold ones (``cross_validate``; pairs within folds) or those of one model, in which case
    [repeat, fold] may be missing. groups: indexed by patient, one column per covariate (``groups_of``). Groups with
    fewer than ``fewest`` deaths are put together (``the rest``); where that has too few as well, its row has NaN.
    intercept: logarithm of observed over expected deaths, NaN without survival curves.
    Raises ValueError for a patient who is in no group. Intervals: 95 %, percentiles over patients.
    """
    table = predictions if "fold" in predictions else predictions.assign(repeat=0, fold=0)
    lost = sorted(set(table["patient"]) - set(groups.index))
    if lost:
        raise ValueError(f"patient {lost[0]} is in no group ({len(lost)} such patients): give groups for all of them")
    curves = any(str(name).startswith("S@") for name in table.columns)
    rows = []
    for covariate in groups.columns:
        level = table["patient"].map(groups[covariate])
        deaths = table[table["repeat"] == table["repeat"].min()].groupby(level)["event"].sum()
        few = set(deaths.index[deaths < fewest])
        level = level.where(~level.isin(few), REST) if len(few) > 1 else level
        for group in sorted(level.unique(), key=lambda name: (name in (REST, UNKNOWN), str(name))):
            part = table[level == group]
            one = part.drop_duplicates("patient")
            counts = (covariate, group, len(one), int(one["event"].sum()))
            if counts[3] < fewest:
                rows.append((*counts, *[float("nan")] * 6))
                continue
            order = bootstrap(part, draws=draws, seed=seed)
            nothing = (float("nan"),) * 3
            rest = _intercept(part, draws, seed) if curves else nothing
            rows.append((*counts, order.value, order.low, order.high, *rest))
    names = ["covariate", "group", "patients", "deaths", "c_index", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "intercept", "intercept_low", "intercept_high"])


def _intercept(part: pd.DataFrame, draws: int, seed: int) -> tuple[float, float, float]:
    """Calibration in the large of mean curves over repeats, with an interval over patients."""
    names, _ = survival_columns(part)
    mean = (
        part.groupby("patient").agg({"time": "first", "event": "first", **dict.fromkeys(names, "mean")}).reset_index()
    )
    rng = np.random.default_rng(seed)
    drawn = [calibration_intercept(mean.iloc[rng.integers(0, len(mean), len(mean))]) for _ in range(min(draws, 200))]
    known = np.array(drawn)[np.isfinite(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (float("nan"), float("nan"))
    return calibration_intercept(mean), float(low), float(high)


def proportional_hazards(covariates: pd.DataFrame, time: np.ndarray, event: np.ndarray) -> pd.DataFrame:
    """Does the hazard ratio of each covariate stay the same over time: [covariate, log_hazard_ratio, statistic, p].

    covariates [n]: numbers; rows with a missing one, and columns without spread, take no part. A small p says that a
    Cox model's one number for the covariate is a mean over times that differ.
    Raises ValueError where nothing is left. Source: Grambsch and Therneau, Biometrika 1994 (scaled Schoenfeld
    residuals against ranks of time), by lifelines.
    """
    import warnings

    from lifelines import CoxPHFitter
    from lifelines.statistics import proportional_hazard_test

    known = covariates.notna().all(axis=1).to_numpy()
    table = covariates[known].astype(float)
    table = table.loc[:, table.std() > 0]
    if table.empty or not np.asarray(event)[known].any():
        raise ValueError("no covariate varies, or nobody died, among patients of whom all covariates are known")
    table = table.assign(time=np.asarray(time, dtype=float)[known], event=np.asarray(event)[known].astype(int))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitter = CoxPHFitter().fit(table, "time", "event")
        test = proportional_hazard_test(fitter, table, time_transform="rank").summary
    names = list(fitter.params_.index)
    return pd.DataFrame(
        {
            "covariate": names,
            "log_hazard_ratio": fitter.params_.to_numpy(),
            "statistic": [float(test.loc[name, "test_statistic"]) for name in names],
            "p": [float(test.loc[name, "p"]) for name in names],
        }
    )
