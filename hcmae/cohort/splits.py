"""Who is trained on and who is tested: repeated folds, stratified by event and time, made once and shared by all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.outcome import check_outcome

# Below this many deaths in a test fold one C-index says next to nothing.
FEW_EVENTS = 5


class FewEventsWarning(UserWarning):
    """A fold has so few deaths that its C-index is mostly chance."""


def make_folds(
    patients: Sequence[str],
    time: NDArray[np.floating] | Sequence[float],
    event: NDArray[np.integer] | Sequence[int],
    n_folds: int = 5,
    n_repeats: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Assign every patient to one test fold per repeat.

    Deaths and censored patients are sorted by time separately and dealt out in blocks of ``n_folds``, at random inside
    a block: each fold gets the same share of deaths and the same spread of times.

    Returns:
        Table [patient, repeat, fold], n_patients x n_repeats rows.

    Raises:
        ValueError: fewer patients than folds, repeated patients, bad times or events, no death at all.
    Warns:
        FewEventsWarning: a test fold has fewer than FEW_EVENTS deaths.
    """
    patients = [str(patient) for patient in patients]
    days, dead = check_outcome(time, event)
    if len(patients) != len(days):
        raise ValueError(f"{len(patients)} patients but {len(days)} times")
    if len(set(patients)) != len(patients):
        twice = pd.Series(patients)[pd.Series(patients).duplicated()].iloc[0]
        raise ValueError(f"patient {twice} occurs more than once: folds need one row per patient")
    if n_folds < 2 or len(patients) < n_folds:
        raise ValueError(f"cannot cut {len(patients)} patients into {n_folds} folds: need 2 <= folds <= patients")
    if not dead.any():
        raise ValueError("no patient has an event: a C-index cannot be computed; check the column 'event' (1 = death)")
    tables = []
    for repeat in range(n_repeats):
        rng = np.random.default_rng([seed, repeat])
        fold = deal(days, dead, n_folds, rng)
        tables.append(pd.DataFrame({"patient": patients, "repeat": repeat, "fold": fold}))
        fewest = int(np.bincount(fold[dead], minlength=n_folds).min())
        if fewest < FEW_EVENTS:
            warnings.warn(
                f"repeat {repeat}: a test fold has only {fewest} of {int(dead.sum())} deaths; "
                "its C-index is mostly chance, use fewer folds or read only the mean over repeats",
                FewEventsWarning,
                stacklevel=2,
            )
    return pd.concat(tables, ignore_index=True)


def deal(time: NDArray, event: NDArray, n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each patient [n], stratified by event and time (see ``make_folds``)."""
    fold = np.full(len(time), -1, dtype=np.int64)
    sizes = np.zeros(n_folds, dtype=np.int64)
    for stratum in (event, ~event):
        rows = np.flatnonzero(stratum)
        # Equal times are ordered at random.
        rows = rows[np.lexsort((rng.random(len(rows)), np.asarray(time)[rows]))]
        for start in range(0, len(rows), n_folds):
            block = rows[start : start + n_folds]
            # The smallest folds first, so that incomplete blocks do not pile up on the same fold.
            order = np.lexsort((rng.random(n_folds), sizes))[: len(block)]
            chosen = rng.permutation(order)
            fold[block] = chosen
            sizes[chosen] += 1
    return fold


def inner_split(
    time: NDArray[np.floating] | Sequence[float],
    event: NDArray[np.integer] | Sequence[int],
    fraction: float = 0.2,
    seed: int | Sequence[int] = 0,
) -> NDArray[np.bool_]:
    """Mark a validation part [n] of about ``fraction`` of the training patients, stratified by event and time.

    Raises:
        ValueError: the fraction is not inside (0, 0.5], or either part would be empty.
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"inner fraction must lie in (0, 0.5], not {fraction}")
    return inner_folds(time, event, round(1 / fraction), seed) == 0


def inner_folds(
    time: NDArray[np.floating] | Sequence[float],
    event: NDArray[np.integer] | Sequence[int],
    n_folds: int,
    seed: int | Sequence[int] = 0,
) -> NDArray[np.int64]:
    """Inner fold of each training patient [n]; member k of an ensemble is validated on inner fold k."""
    days, dead = check_outcome(time, event)
    if len(days) < 2 * n_folds:
        raise ValueError(f"{len(days)} training patients are too few for {n_folds} inner folds")
    return deal(days, dead, n_folds, np.random.default_rng(seed))
