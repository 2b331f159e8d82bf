"""Kaplan-Meier curves of risk groups (Fig. 2): training-median split, log-rank, hazard ratio, numbers at risk.

Groups that cross-validation made have naive p-values and intervals, and say so: see ``evaluation.permutation``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.evaluation.permutation import PermutationTest
from hcmae.outcome import check_outcome

# Printed wherever a p-value or an interval of out-of-fold groups stands.
NAIVE = (
    "naive: the log-rank test and the interval take predictions of different folds for independent, which they are "
    "not, so that small p-values come too often and intervals miss the truth too often"
)


@dataclass
class Curve:
    """One Kaplan-Meier curve with its 95 % band and numbers at risk."""

    label: str
    days: NDArray[np.float64]
    survival: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    at_risk: dict[float, int]
    patients: int
    events: int


@dataclass
class RiskGroups:
    """A split into low and high risk with its verdicts.

    ``reason``: why there is no hazard ratio (then it and its interval are NaN), empty where there is one.
    ``out_of_fold``: cross-validation made the groups, so that p-value and interval are naive. ``permutation``: the test
    that repeats the whole procedure, where it was paid for.
    """

    low: Curve
    high: Curve
    log_rank_p: float
    hazard_ratio: float
    hr_low: float
    hr_high: float
    ticks: list[float] = field(default_factory=list)
    reason: str = ""
    out_of_fold: bool = False
    permutation: PermutationTest | None = None

    def tested(self, permutation: PermutationTest) -> RiskGroups:
        """The same groups with the p-value of the whole procedure."""
        return replace(self, permutation=permutation)

    def p_text(self) -> str:
        """'p = 0.02' of given groups; of out-of-fold ones 'naive p = 0.02', behind the permuted p-value if any."""
        if not self.out_of_fold:
            return f"p = {self.log_rank_p:.2g}"
        naive = f"naive p = {self.log_rank_p:.2g}"
        return f"{self.permutation.text()}; {naive}" if self.permutation else naive

    def ratio_text(self, *, why: bool = True) -> str:
        """'2.31 (1.40 to 3.80)', or 'not estimable' and (``why``) the reason."""
        if self.reason:
            return f"not estimable ({self.reason})" if why else "not estimable"
        return f"{self.hazard_ratio:.2f} ({self.hr_low:.2f} to {self.hr_high:.2f})"

    def describe(self) -> str:
        """One line for a caption."""
        interval = "naive 95 % interval" if self.out_of_fold else "95 % interval"
        return f"log-rank {self.p_text()}; hazard ratio high against low, {interval}: {self.ratio_text()}"


def one_per_patient(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per patient: the mean over repeats of the risk in units of each fold's training patients.

    High means above the training median in most repeats; a draw goes to the first repeat. The network that rates a
    patient never saw that patient, and the cut-off comes from its own training patients, so nothing is tuned on the
    curves that are drawn.
    """
    needed = {"patient", "time", "event", "risk_z", "high"}
    lacking = sorted(needed - set(predictions.columns))
    if lacking:
        raise ValueError(f"predictions lack the column '{lacking[0]}': make them with cross_validate")
    ordered = predictions.sort_values("repeat") if "repeat" in predictions else predictions
    grouped = ordered.groupby("patient", sort=True)
    table = grouped.agg(time=("time", "first"), event=("event", "first"), risk_z=("risk_z", "mean"))
    share, first = grouped["high"].mean(), grouped["high"].first()
    table["high"] = np.where(share == 0.5, first, share > 0.5).astype(bool)
    return table


def risk_groups(
    predictions: pd.DataFrame,
    *,
    split: str = "training_median",
    ticks: int = 6,
) -> RiskGroups:
    """Kaplan-Meier of low and high risk on out-of-fold predictions; p-value and interval are naive (``NAIVE``).

    Args:
        split: "training_median" (honest) or "pooled_median": raw risks of all folds pooled and cut at their own median,
            as the release does, although folds have different scales.

    Raises:
        ValueError: a group is empty, nobody died, or an unknown split.
    """
    if split == "training_median":
        table = one_per_patient(predictions)
    elif split == "pooled_median":
        table = predictions.groupby("patient").agg(
            time=("time", "first"), event=("event", "first"), risk=("risk", "mean")
        )
        table["high"] = table["risk"] > table["risk"].median()
    else:
        raise ValueError(f"unknown split {split!r}: training_median or pooled_median")
    groups = compare_groups(table["time"].to_numpy(), table["event"].to_numpy(), table["high"].to_numpy(), ticks=ticks)
    return replace(groups, out_of_fold=True)


def log_rank_statistic(predictions: pd.DataFrame) -> float:
    """Log-rank chi-square of the groups of out-of-fold predictions, for ``permutation.permutation_test``.

    0 where there is nothing to compare: one group, or no death.
    """
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    table = one_per_patient(predictions)
    high = table["high"].to_numpy()
    if high.all() or not high.any() or not (table["event"] > 0).any():
        return 0.0
    days, dead = check_outcome(table["time"].to_numpy(), table["event"].to_numpy())
    return float(compare_survival(Surv.from_arrays(dead, days), high)[0])


def compare_groups(time: NDArray, event: NDArray, high: NDArray, *, ticks: int = 6) -> RiskGroups:
    """Curves, log-rank test and Cox hazard ratio of two groups of patients; see ``risk_groups``.

    Where the groups leave the ratio without an estimate, the verdict says so; warnings of the fit are passed on.
    """
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError
    from lifelines.statistics import logrank_test

    days, dead = check_outcome(time, event)
    above = np.asarray(high, dtype=bool)
    for name, members in (("low", ~above), ("high", above)):
        if not members.any():
            raise ValueError(f"nobody is in the {name}-risk group: all risks lie on one side of the cut-off")
    if not dead.any():
        raise ValueError("nobody died: Kaplan-Meier curves cannot be compared")
    test = logrank_test(days[~above], days[above], dead[~above], dead[above])
    frame = pd.DataFrame({"time": days, "event": dead.astype(int), "high": above.astype(int)})
    ratio, lower, upper = float("nan"), float("nan"), float("nan")
    reason = _no_ratio(days, dead, above)
    if not reason:
        try:
            # What lifelines has to say of its own fit is the user's to read.
            fitter = CoxPHFitter().fit(frame, "time", "event")
        except ConvergenceError as error:
            reason = f"the fit does not converge: {' '.join(str(error).split())[:120]}"
        else:
            ratio = float(np.exp(fitter.params_["high"]))
            lower, upper = (float(np.exp(v)) for v in fitter.confidence_intervals_.loc["high"])
    marks = _round_ticks(float(days.max()), ticks)
    low, top = (
        kaplan_meier(days[members], dead[members], label, marks)
        for label, members in (("low", ~above), ("high", above))
    )
    return RiskGroups(low, top, float(test.p_value), ratio, lower, upper, marks, reason)


def _no_ratio(days: NDArray[np.float64], dead: NDArray[np.bool_], above: NDArray[np.bool_]) -> str:
    """Why the partial likelihood of two groups has no maximum, in words; empty where it has one.

    It rises without end in the ratio where, at every death, those who die belong to the high group if anybody of it is
    still followed (and falls without end where the same holds of the low one). What a fit prints then is the place at
    which its iterations ended. Source: Bryson and Johnson, Technometrics 23 (1981), 381-383.
    """
    for name, members in (("low", ~above), ("high", above)):
        if not dead[members].any():
            return f"no death in the {name}-risk group"
    # A death of one group with nobody of the other at risk says nothing of the ratio.
    last = {name: days[members].max() for name, members in (("low", ~above), ("high", above))}
    low_alone = (days[dead & ~above] > last["high"]).all()
    high_alone = (days[dead & above] > last["low"]).all()
    for one, other, alone in (("low", "high", low_alone), ("high", "low", high_alone)):
        if alone:
            return f"no overlap: every {one}-risk death is later than all {other}-risk follow-up"
    return ""


def kaplan_meier(time: NDArray, event: NDArray, label: str, ticks: list[float]) -> Curve:
    """One curve as steps; ``at_risk`` counts those still followed at each tick."""
    from lifelines import KaplanMeierFitter

    days, dead = check_outcome(time, event)
    fitter = KaplanMeierFitter().fit(days, dead)
    band = fitter.confidence_interval_survival_function_
    return Curve(
        label,
        fitter.survival_function_.index.to_numpy(dtype=float),
        fitter.survival_function_.iloc[:, 0].to_numpy(dtype=float),
        band.iloc[:, 0].to_numpy(dtype=float),
        band.iloc[:, 1].to_numpy(dtype=float),
        {tick: int((days >= tick).sum()) for tick in ticks},
        len(days),
        int(dead.sum()),
    )


def _round_ticks(longest: float, count: int) -> list[float]:
    """Whole years, at most ``count`` of them."""
    years = max(1, int(np.ceil(longest / 365.25 / count)))
    return [365.25 * year for year in range(0, int(longest / 365.25) + 1, years)]
