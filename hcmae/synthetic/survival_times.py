"""Survival times from a known hazard, with random right-censoring: small enough to be read in a lesson."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class SimulatedSurvival:
    """What a study sees (time, event) and what it never sees (the two latent times, the log hazard)."""

    time: FloatArray  # [n] days, the smaller of the two latent times
    event: IntArray  # [n] 1 = death seen, 0 = censored
    event_time: FloatArray  # [n] latent
    censoring_time: FloatArray  # [n] latent
    log_hazard: FloatArray  # [n]


def simulate_times(
    log_hazard: FloatArray, median_days: float, rng: np.random.Generator, *, shape: float = 1.0
) -> FloatArray:
    """Weibull times under proportional hazards, by inversion of the survival function.

    S(t | x) = exp(-(t / scale)^shape * exp(log_hazard)); ``shape`` 1 is the exponential law. ``median_days`` is the
    median of a patient with log hazard 0. log_hazard [n] -> days [n].
    Raises ValueError for a shape or a median that is not positive.
    Source: Bender, Augustin, Blettner 2005 (simulating Cox models by inversion).
    """
    if shape <= 0 or median_days <= 0:
        raise ValueError(f"shape ({shape}) and median_days ({median_days}) must be positive")
    scale = median_days / np.log(2.0) ** (1.0 / shape)
    uniform = rng.uniform(np.finfo(float).tiny, 1.0, size=np.shape(log_hazard))
    return scale * (-np.log(uniform) * np.exp(-np.asarray(log_hazard, dtype=float))) ** (1.0 / shape)


def random_censoring(event_time: FloatArray, event_rate: float, rng: np.random.Generator) -> FloatArray:
    """Censoring times, independent of the hazard, scaled so that the share of events is the wished one.

    Exponential with a floor of a tenth of its scale: patients join a study over years and are followed for a while.
    event_time [n] days -> days [n]. Raises ValueError unless 0 < event_rate <= 1.
    """
    if not 0.0 < event_rate <= 1.0:
        raise ValueError(f"event_rate must lie in (0, 1], got {event_rate}")
    unit = 0.1 + rng.exponential(size=np.shape(event_time))
    # A patient dies within the study when event_time <= scale * unit: the wished quantile of the ratio is the scale.
    ratio = np.sort(np.asarray(event_time, dtype=float) / unit)
    events = round(event_rate * len(ratio))
    if events >= len(ratio):
        return unit * ratio[-1] * 1.01
    low = ratio[events - 1] if events > 0 else 0.0
    return unit * 0.5 * (low + ratio[events])


def simulate_survival(
    log_hazard: FloatArray,
    *,
    median_days: float = 1500.0,
    event_rate: float = 0.4,
    shape: float = 1.0,
    seed: int | np.random.Generator = 0,
) -> SimulatedSurvival:
    """A study with a known log hazard [n]: Weibull (or exponential) deaths, independent random right-censoring.

    Returns SimulatedSurvival with times in days; the share of events equals ``event_rate`` up to one patient.
    """
    rng = np.random.default_rng(seed)
    hazard = np.asarray(log_hazard, dtype=float)
    deaths = simulate_times(hazard, median_days, rng, shape=shape)
    censored = random_censoring(deaths, event_rate, rng)
    event = (deaths <= censored).astype(np.int64)
    return SimulatedSurvival(np.minimum(deaths, censored), event, deaths, censored, hazard)


def concordance(time: FloatArray, event: IntArray, risk: FloatArray) -> float:
    """Harrell's C-index: share of comparable pairs in which the patient who died first has the higher risk.

    Ties in risk count one half; a constant risk gives exactly 0.5. All arrays [n]. Raises ValueError without any
    comparable pair. Source: Harrell et al. 1982.
    """
    time, event, risk = (np.asarray(a, dtype=float) for a in (time, event, risk))
    # Pair (i, j): i died, j was still under observation afterwards (or censored on the same day).
    later = (time[None, :] > time[:, None]) | ((time[None, :] == time[:, None]) & (event[None, :] == 0))
    comparable = later & (event[:, None] == 1)
    np.fill_diagonal(comparable, False)
    pairs = int(comparable.sum())
    if pairs == 0:
        raise ValueError("no comparable pair: every patient is censored, or there is only one patient")
    difference = risk[:, None] - risk[None, :]
    concordant = (comparable & (difference > 0)).sum() + 0.5 * (comparable & (difference == 0)).sum()
    return float(concordant / pairs)
