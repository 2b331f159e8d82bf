"""Survival outcomes: the one check that everything which reads times and events goes through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def check_outcome(
    time: NDArray[np.floating] | Sequence[float], event: NDArray[np.integer] | Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Times as float [n] and events as bool [n].

    Raises:
        ValueError: lengths differ, a time is negative or missing, an event is neither 0 nor 1.
    """
    days = np.asarray(time, dtype=np.float64)
    flags = np.asarray(event)
    if days.ndim != 1 or days.shape != flags.shape:
        raise ValueError(f"time {days.shape} and event {flags.shape} must be equally long vectors")
    if not np.isfinite(days).all() or (days < 0).any():
        row = int(np.flatnonzero(~np.isfinite(days) | (days < 0))[0])
        raise ValueError(f"time of row {row} is {days[row]}: survival times must be finite and not negative")
    return days, check_events(flags)


def check_events(event: NDArray | Sequence[int]) -> NDArray[np.bool_]:
    """Events as bool [n]. Raises ValueError where one is neither 0 nor 1: half a death would be cut to none."""
    flags = np.asarray(event)
    if not np.isin(flags, (0, 1)).all():
        row = int(np.flatnonzero(~np.isin(flags, (0, 1)))[0])
        raise ValueError(f"event of row {row} is {flags[row]!r}: use 1 for an observed death and 0 for censored")
    return flags.astype(bool)
