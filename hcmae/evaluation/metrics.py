"""How good are predicted risks: concordance, time-dependent AUC, Brier score, calibration, intervals.

One convention throughout: a larger risk means an earlier death; event 1 = death observed; time in days.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hcmae.cohort.splits import FEW_EVENTS, FewEventsWarning
from hcmae.outcome import check_outcome

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with the limits of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def concordance(time: ArrayLike, event: ArrayLike, risk: ArrayLike, *, empty: float | None = None) -> float:
    """Harrell's C: the share of comparable pairs in which the earlier death had the larger risk.

    A pair is comparable when the shorter time ends in a death; of two equal times, a death is compared with a censored
    patient. Equal risks count one half. Same numbers as scikit-survival and lifelines.

    Args:
        empty: what to return where no pair is comparable; None raises.

    Raises:
        ValueError: NaN or infinite risks, lengths that differ, no comparable pair.
    """
    right, tied, pairs = concordant_pairs(time, event, risk)
    if pairs == 0:
        if empty is not None:
            return empty
        raise ValueError("no comparable pair: nobody outlived a patient whose death was observed; C is undefined")
    return (right + 0.5 * tied) / pairs


def concordant_pairs(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> tuple[float, float, float]:
    """Counts behind Harrell's C: (concordant, tied in risk, comparable)."""
    days, dead, score = _checked(time, event, risk)
    right = tied = pairs = 0.0
    deaths = np.flatnonzero(dead)
    # Blocks of rows keep the comparison matrix small for large cohorts.
    for block in np.array_split(deaths, max(1, len(deaths) * len(days) // 4_000_000)):
        if len(block) == 0:
            continue
        later = (days[None, :] > days[block, None]) | ((days[None, :] == days[block, None]) & ~dead[None, :])
        pairs += later.sum()
        right += (later & (score[None, :] < score[block, None])).sum()
        tied += (later & (score[None, :] == score[block, None])).sum()
    return float(right), float(tied), float(pairs)


def _checked(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> tuple[Vector, NDArray[np.bool_], Vector]:
    days, dead = check_outcome(np.asarray(time, dtype=np.float64), np.asarray(event))
    score = np.asarray(risk, dtype=np.float64)
    if score.shape != days.shape:
        raise ValueError(f"{score.shape} risks for {days.shape} times")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} of {len(score)} risks are NaN or infinite")
    return days, dead, score


def pooled_concordance(predictions: pd.DataFrame, column: str = "risk") -> float:
    """C over all out-of-fold risks of a repeat thrown together, mean over repeats.

    Each fold has its own network and so its own scale; "risk" pools them as they are (a habit this book questions),
    "risk_z" after standardisation by each fold's training patients.
    """
    parts = [concordance(p["time"], p["event"], p[column]) for _, p in predictions.groupby("repeat")]
    return float(np.mean(parts))


def fold_concordance(predictions: pd.DataFrame) -> pd.DataFrame:
    """Harrell's C of every fold: table [repeat, fold, patients, events, c_index].

    Warns FewEventsWarning once when folds have fewer than FEW_EVENTS deaths; a fold without a comparable pair has NaN.
    """
    rows = []
    for (repeat, fold), part in predictions.groupby(["repeat", "fold"], sort=True):
        value = concordance(part["time"], part["event"], part["risk"], empty=float("nan"))
        rows.append((repeat, fold, len(part), int(part["event"].sum()), value))
    table = pd.DataFrame(rows, columns=["repeat", "fold", "patients", "events", "c_index"])
    few = int((table["events"] < FEW_EVENTS).sum())
    if few:
        warnings.warn(
            f"{few} of {len(table)} folds have fewer than {FEW_EVENTS} deaths: their C-index is mostly chance",
            FewEventsWarning,
            stacklevel=2,
        )
    return table


def mean_concordance(predictions: pd.DataFrame) -> tuple[float, float]:
    """Mean over folds and repeats of the per-fold C, and the standard deviation over folds (the paper's mean +- sd)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewEventsWarning)
        table = fold_concordance(predictions)
    return float(np.nanmean(table["c_index"])), float(np.nanstd(table["c_index"], ddof=1))


def bootstrap(
    predictions: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float] | None = None,
    *,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval over patients of a statistic of out-of-fold predictions (default: within-fold C).

    Patients are drawn with replacement from the whole cohort, the same draw in all repeats of a patient's predictions,
    so that repeats do not pass for new patients. The networks are not trained again: the interval holds for these
    predictions, not for the method on another training set (for that see `compare.nadeau_bengio`).
    """
    if statistic is None:
        return _bootstrap_c(predictions, draws=draws, level=level, seed=seed)
    rng = np.random.default_rng(seed)
    patients = predictions["patient"].unique()
    groups = predictions.groupby("patient").indices
    values = []
    for _ in range(draws):
        drawn = rng.choice(patients, len(patients))
        sample = predictions.iloc[np.concatenate([groups[patient] for patient in drawn])]
        try:
            values.append(statistic(sample))
        except ValueError:
            continue
    return percentile_interval(statistic(predictions), values, level)


def _bootstrap_c(predictions: pd.DataFrame, *, draws: int, level: float, seed: int) -> Interval:
    """As ``bootstrap``, with the pairs of every fold counted once and reweighted by the draw."""
    pairs = pair_counts(predictions)
    weights = patient_weights(pairs.n_patients, draws, seed)
    value = float(pairs.scores(np.ones((1, pairs.n_patients)))[0])
    return percentile_interval(value, list(pairs.scores(weights)), level)


@dataclass
class PairCounts:
    """Comparable pairs (i, j) of all folds with their score (1, 0.5, 0) for weighted C-indices."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    score: Vector
    n_patients: int

    def scores(self, weights: Vector) -> Vector:
        """C-index [draws] under patient weights [draws, n]."""
        out = np.empty(len(weights))
        for number, w in enumerate(weights):
            pair = w[self.first] * w[self.second]
            total = pair.sum()
            out[number] = (pair @ self.score) / total if total > 0 else np.nan
        return out


def pair_counts(predictions: pd.DataFrame, column: str = "risk") -> PairCounts:
    """Collect the comparable pairs within folds of all repeats; patients are numbered in sorted order."""
    names = np.sort(predictions["patient"].unique())
    number = {name: i for i, name in enumerate(names)}
    first, second, score = [], [], []
    for _, part in predictions.groupby(["repeat", "fold"]):
        days, dead, risk = _checked(part["time"], part["event"], part[column])
        ids = np.array([number[patient] for patient in part["patient"]])
        later = (days[None, :] > days[:, None]) | ((days[None, :] == days[:, None]) & ~dead[None, :])
        a, b = np.nonzero(later & dead[:, None])
        first.append(ids[a])
        second.append(ids[b])
        score.append((risk[a] > risk[b]) + 0.5 * (risk[a] == risk[b]))
    return PairCounts(np.concatenate(first), np.concatenate(second), np.concatenate(score), len(names))


def patient_weights(n_patients: int, draws: int, seed: int) -> Vector:
    """Bootstrap draws as counts per patient [draws, n]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), draws).astype(np.float64)


def percentile_interval(value: float, values: list[float], level: float) -> Interval:
    """A value between the percentiles of its resampled values, those that are undefined left out; NaN without any."""
    known = np.asarray([v for v in values if np.isfinite(v)])
    if len(known) == 0:
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def uno_c(train: tuple[ArrayLike, ArrayLike], test: tuple[ArrayLike, ArrayLike], risk: ArrayLike, tau: float) -> float:
    """Uno's C: concordance weighted by the inverse probability of censoring, up to ``tau`` days.

    train, test: (time, event). The censoring distribution comes from the training patients. Raises ValueError for
    risks that are NaN or infinite and where no pair is comparable before ``tau``.
    Source: Uno et al., Statistics in Medicine 2011, as in scikit-survival.
    """
    from sksurv.metrics import concordance_index_ipcw

    days, dead, score = _checked(*test, risk)
    return float(concordance_index_ipcw(_surv(*train), _surv(days, dead), score, tau=tau)[0])


def horizon_for(folds_time: list[tuple[Vector, NDArray]], share: float = 0.1) -> float:
    """Largest time with more than ``share`` of the patients still at risk in every given training fold."""
    return float(min(np.quantile(np.asarray(time), 1 - share) for time, _ in folds_time))


def dynamic_auc(
    train: tuple[ArrayLike, ArrayLike], test: tuple[ArrayLike, ArrayLike], risk: ArrayLike, days: ArrayLike
) -> Vector:
    """Cumulative/dynamic AUC at each of ``days`` (NaN where the test follow-up does not reach).

    Raises ValueError for risks that are NaN or infinite.
    """
    from sksurv.metrics import cumulative_dynamic_auc

    times = np.atleast_1d(np.asarray(days, dtype=float))
    test_time, test_event, score = _checked(*test, risk)
    train_time = np.asarray(train[0], dtype=float)
    known = _surv(*_until(test_time, test_event, train_time.max()))
    out = np.full(len(times), np.nan)
    for number, day in enumerate(times):
        # Outside the observed range, or without deaths before or survivors after, there is nothing to rank.
        died, alive = (test_time <= day) & test_event, test_time > day
        if not died.any() or not alive.any() or day >= train_time.max():
            continue
        try:
            auc, _ = cumulative_dynamic_auc(_surv(*train), known, score, [day])
            out[number] = float(auc[0])
        except ValueError:
            continue
    return out


def _until(time: Vector, event: NDArray[np.bool_], last: float) -> tuple[Vector, NDArray[np.bool_]]:
    """Follow-up that ends at ``last``: whoever was seen longer is censored there.

    The censoring distribution of the training patients is unknown beyond their last day. Leaving out those who lived
    longer would take the best survivors off the test set.
    """
    beyond = time >= last
    return np.where(beyond, last, time), event & ~beyond


def _surv(time: ArrayLike, event: ArrayLike) -> NDArray:
    from sksurv.util import Surv

    return Surv.from_arrays(np.asarray(event).astype(bool), np.asarray(time, dtype=float))


def breslow_survival(
    train_risk: ArrayLike, time: ArrayLike, event: ArrayLike, risk: ArrayLike, grid: ArrayLike
) -> Vector:
    """Survival probabilities [n, len(grid)] of patients with log hazards ``risk``: S(t) = exp(-H0(t) exp(risk)).

    H0 is Breslow's cumulative baseline hazard of the training patients. Source: Breslow, JRSS-B 1972 (discussion).
    """
    return Baseline.fit(train_risk, time, event, grid).survival(risk)


@dataclass(frozen=True)
class Baseline:
    """Breslow's cumulative baseline hazard [len(days)] at ``days``, of log hazards that are counted from ``centre``."""

    days: Vector
    hazard: Vector
    centre: float

    @classmethod
    def fit(cls, risk: ArrayLike, time: ArrayLike, event: ArrayLike, days: ArrayLike) -> Baseline:
        """Of patients with these log hazards [n]. Source: Breslow, JRSS-B 1972 (discussion)."""
        times, dead, score = _checked(time, event, risk)
        # The centre cancels; without it large log hazards overflow.
        centre = float(score.mean())
        hazard = np.exp(np.clip(score - centre, -50, 50))
        order = np.argsort(times, kind="stable")
        times, dead, hazard = times[order], dead[order], hazard[order]
        at_risk = np.cumsum(hazard[::-1])[::-1]
        first = np.searchsorted(times, times, side="left")
        steps = np.where(dead, 1.0 / at_risk[first], 0.0)
        cumulative = np.concatenate([[0.0], np.cumsum(steps)])
        asked = np.asarray(days, dtype=np.float64)
        return cls(asked, cumulative[np.searchsorted(times, asked, side="right")], centre)

    def survival(self, risk: ArrayLike) -> Vector:
        """Survival probabilities [n, len(days)] of patients with log hazards ``risk`` [n]."""
        above = np.clip(np.asarray(risk, dtype=np.float64) - self.centre, -50, 50)
        return np.exp(-self.hazard[None, :] * np.exp(above)[:, None])


def cox_slope(risk: ArrayLike, time: ArrayLike, event: ArrayLike) -> float:
    """Slope of a one-parameter Cox model on given risks: 1 for well calibrated log hazards, near 0 for noise.

    Fitted with a ridge of one on risks in units of their spread, which keeps it finite where the risks order the
    deaths without a fault; 0 where nobody died or all risks are equal. Raises ValueError for risks that are not finite.
    Source: van Houwelingen, Statistics in Medicine 2000 (calibration slope); Efron's ties.
    """
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    days, dead, score = _checked(time, event, risk)
    spread = float(score.std())
    # Equal risks differ by rounding at most.
    if not dead.any() or spread <= 1e-9 * max(1.0, float(np.abs(score).max())):
        return 0.0
    model = CoxPHSurvivalAnalysis(alpha=1.0, ties="efron")
    model.fit(((score - score.mean()) / spread)[:, None], _surv(days, dead))
    return float(model.coef_[0]) / spread


def discrete_survival(hazards: ArrayLike, ends: ArrayLike, grid: ArrayLike) -> Vector:
    """Survival probabilities [n, len(grid)] from hazards in time bins [n, K] that end at ``ends`` [K] days, ascending.

    S at the end of bin k is the product of 1 - hazard up to k; inside a bin the rate is constant. The last bin ends
    with the last death of the training patients: what comes after it nobody has taught, and S stays where it is, as a
    Kaplan-Meier curve does. Raises ValueError for hazards outside 0 to 1 and ends that do not fit.
    Source: Kvamme and Borgan, Lifetime Data Analysis 2021 (constant hazard interpolation).
    """
    rate, last = np.asarray(hazards, dtype=np.float64), np.asarray(ends, dtype=np.float64)
    if rate.ndim != 2 or last.shape != rate.shape[1:]:
        raise ValueError(f"hazards must be [n, K] with K ends of bins, not {rate.shape} with {last.shape}")
    if not ((rate >= 0) & (rate <= 1)).all():
        raise ValueError("hazards in bins are probabilities: each must lie in 0 to 1")
    if (np.diff(last, prepend=0.0) < 0).any():
        raise ValueError(f"ends of time bins must ascend from 0, not {last.tolist()}")
    # A hazard of one would make every later one meaningless.
    total = np.cumsum(-np.log1p(-np.minimum(rate, 1 - 1e-12)), axis=1)
    total = np.concatenate([np.zeros((len(rate), 1)), total, total[:, -1:]], axis=1)
    edges = np.concatenate([[0.0], last, [np.inf]])
    days = np.asarray(grid, dtype=np.float64)
    bins = np.minimum(np.searchsorted(edges, days, side="right") - 1, len(last))
    share = (days - edges[bins]) / (edges[bins + 1] - edges[bins])
    return np.exp(-(total[:, bins] + share * (total[:, bins + 1] - total[:, bins])))


def survival_columns(predictions: pd.DataFrame) -> tuple[list[str], Vector]:
    """Names and days of the S@<days> columns; raises ValueError where predictions have none."""
    names = [name for name in predictions.columns if str(name).startswith("S@")]
    if not names:
        raise ValueError("these predictions hold no survival probabilities (columns S@<days>)")
    return names, np.array([float(name[2:]) for name in names])


def brier(predictions: pd.DataFrame) -> pd.DataFrame:
    """Brier score over time of the predicted survival and of Kaplan-Meier, weighted for censoring.

    Every fold is scored with the censoring distribution of its training patients; table [day, model, kaplan_meier],
    mean over folds. Source: Graf et al., Statistics in Medicine 1999, as in scikit-survival.
    """
    from sksurv.metrics import brier_score
    from sksurv.nonparametric import kaplan_meier_estimator

    names, days = survival_columns(predictions)
    collected: dict[float, list[tuple[float, float]]] = {}
    for repeat, part in predictions.groupby("repeat"):
        for fold, test in part.groupby("fold"):
            train = part[part["fold"] != fold]
            top = min(test["time"].max(), train["time"].max())
            usable = (days < top) & (days > test["time"].min())
            if not usable.any():
                continue
            known = _until(test["time"].to_numpy(float), test["event"].to_numpy() > 0, float(train["time"].max()))
            km_days, km = kaplan_meier_estimator(train["event"].astype(bool), train["time"])
            curve = np.concatenate([[1.0], km])[np.searchsorted(km_days, days[usable], side="right")]
            try:
                outcome = _surv(train["time"], train["event"]), _surv(*known)
                model = brier_score(*outcome, test[[n for n, u in zip(names, usable, strict=True) if u]], days[usable])
                null = brier_score(*outcome, np.tile(curve, (len(test), 1)), days[usable])
            except ValueError as error:
                warnings.warn(f"repeat {repeat}, fold {fold}: no Brier score ({error})", stacklevel=2)
                continue
            for day, own, reference in zip(days[usable], model[1], null[1], strict=True):
                collected.setdefault(float(day), []).append((float(own), float(reference)))
    rows = [(day, *np.mean(values, 0)) for day, values in sorted(collected.items())]
    return pd.DataFrame(rows, columns=["day", "model", "kaplan_meier"])


def integrated_brier(predictions: pd.DataFrame) -> tuple[float, float]:
    """Integrated Brier score of the model and of Kaplan-Meier (smaller is better; 0.25 is a coin)."""
    table = brier(predictions)
    if len(table) < 2:
        raise ValueError("follow-up is too short for an integrated Brier score: fewer than two days can be scored")
    span = table["day"].iloc[-1] - table["day"].iloc[0]
    own, null = (float(np.trapezoid(table[name], table["day"]) / span) for name in ("model", "kaplan_meier"))
    return own, null


def calibration(predictions: pd.DataFrame, day: float, groups: int = 4) -> pd.DataFrame:
    """Predicted against observed survival at ``day`` in groups of equal size: [group, patients, predicted, observed,
    low, high].

    Observed is the Kaplan-Meier estimate in the group with its 95 % interval; the nearest day of the grid is used.
    """
    from lifelines import KaplanMeierFitter

    names, days = survival_columns(predictions)
    nearest = int(np.abs(days - day).argmin())
    # A patient's prediction is the mean over repeats.
    table = predictions.groupby("patient").agg({"time": "first", "event": "first", names[nearest]: "mean"})
    order = pd.qcut(table[names[nearest]].rank(method="first"), groups, labels=False)
    rows = []
    for group in range(groups):
        part = table[order == group]
        fitter = KaplanMeierFitter().fit(part["time"], part["event"])
        at = days[nearest]
        band = fitter.confidence_interval_survival_function_
        place = max(int(np.searchsorted(band.index.to_numpy(), at, side="right")) - 1, 0)
        rows.append(
            (
                group,
                len(part),
                float(part[names[nearest]].mean()),
                float(fitter.predict(at)),
                float(band.iloc[place, 0]),
                float(band.iloc[place, 1]),
            )
        )
    return pd.DataFrame(rows, columns=["group", "patients", "predicted", "observed", "low", "high"])


def summary(predictions: pd.DataFrame, *, years: tuple[int, ...] = (1, 3, 5), draws: int = 500) -> dict[str, float]:
    """One row of a report: Harrell's C (mean, sd over folds, interval), Uno's C, AUC at years, integrated Brier."""
    mean, spread = mean_concordance(predictions)
    interval = bootstrap(predictions, draws=draws)
    out = {"c_index": mean, "c_sd": spread, "c_low": interval.low, "c_high": interval.high}
    uno, auc = [], []
    for _, part in predictions.groupby("repeat"):
        folds = [part[part["fold"] != fold] for fold in sorted(part["fold"].unique())]
        tau = horizon_for([(t["time"].to_numpy(), t["event"].to_numpy()) for t in folds])
        for fold, train in zip(sorted(part["fold"].unique()), folds, strict=True):
            test = part[part["fold"] == fold]
            pair = (train["time"], train["event"]), (test["time"], test["event"])
            try:
                uno.append(uno_c(*pair, test["risk"], tau))
            except ValueError:
                uno.append(np.nan)
            auc.append(dynamic_auc(*pair, test["risk"], [365.25 * year for year in years]))
    out["uno_c"] = float(np.nanmean(uno)) if np.isfinite(uno).any() else float("nan")
    for year, values in zip(years, np.array(auc).T, strict=True):
        out[f"auc_{year}y"] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    if any(str(name).startswith("S@") for name in predictions.columns):
        out["ibs"], out["ibs_km"] = integrated_brier(predictions)
    return out
