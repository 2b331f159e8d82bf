"""What must not be among the features of an omics table: the outcome that they are to predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hcmae.cohort.layouts import normalised
from hcmae.units import TIME_UNITS

# Endpoints of survival studies as clinical tables write them, in the form of `layouts.normalised`. What is
# the name of a gene too (EFS) is left out.
_ENDPOINTS = ("os", "dss", "dfs", "dfi", "pfs", "pfi", "rfs", "overall_survival", "disease_specific_survival",
              "disease_free", "progression_free_survival", "survival")  # fmt: skip
_UNITS = ("time", "days", "months", "years", "status", "event", "censor", "censored")
OUTCOME_NAMES = frozenset(
    (
        "time", "times", "days", "months", "time_days", "time_months", "time_years", "event", "events", "dead", "death",
        "deceased", "censored", "censorship", "censor", "status", "vital_status", "survival_time", "follow_up_time",
        "days_to_death", "days_to_last_follow_up", "days_to_last_followup", "days_to_follow_up", "last_contact_days_to",
        "death_days_to", "new_tumor_event", "risk", "risk_score",
        *_ENDPOINTS, *(f"{name}_{unit}" for name in _ENDPOINTS for unit in _UNITS),
    )
)  # fmt: skip
# Below this number a feature of zeros and ones can equal the events by chance.
FEWEST = 20


def outcome_names(names: Iterable[str]) -> list[str]:
    """Those of the names that are of an outcome's columns, as clinical tables write them."""
    return [name for name in names if normalised(name) in OUTCOME_NAMES]


def outcome_values(names: Sequence[str], matrix: ArrayLike, time: ArrayLike, event: ArrayLike) -> list[str]:
    """Features that hold the outcome under another name.

    Args:
        matrix: [patients, features] in the order of ``names``; NaN where missing.
        time: [patients] in days; a feature that equals it in days, weeks, months or years is one of them.
        event: [patients] 0 or 1; a feature that equals it, or its reverse, is one of them among 20 patients or more.
    """
    values, days, dead = np.asarray(matrix), np.asarray(time, dtype=np.float64), np.asarray(event, dtype=np.float64)
    if len(days) < 6 or len(np.unique(days)) < 3:
        return []  # so few numbers can be equal by chance
    # Few features get past the first patients; the others are compared whole.
    wanted = [days / unit for unit in (*TIME_UNITS.values(), 7)]
    if len(dead) >= FEWEST and min(dead.sum(), len(dead) - dead.sum()) >= 3:
        wanted += [dead, 1 - dead]
    found = np.zeros(values.shape[1], dtype=bool)
    for target in wanted:
        some = np.flatnonzero(_equal(values[:3], target[:3]))
        found[some[_equal(values[:, some], target)]] = True
    return [str(name) for name, same in zip(names, found, strict=True) if same]


def _equal(values: NDArray[np.floating], target: NDArray[np.float64]) -> NDArray[np.bool_]:
    # Half of a hundredth is what a table of two decimals leaves open.
    gaps, room = np.abs(values - target[:, None]), np.maximum(0.006, 1e-5 * np.abs(target[:, None]))
    return np.asarray((gaps <= room).all(axis=0))
