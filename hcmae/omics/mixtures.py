"""Tables in which some features are in one unit and the others in another: put together from two sources.

Each rule asks for features of two kinds of which one alone is possible in every unit, and for several of each, so that
a single odd feature decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# log2 of a thousand million reads: no logarithm is larger.
LARGEST_LOG = 30.0
# Fewer patients say nothing of a feature.
_PATIENTS = 5
# So many features of a kind, and such a share of all, are no chance.
_FEWEST, _SHARE = 3, 0.05
# Probes that are hardly methylated lie below 1 per cent, or between 0.5 and 0.67, now and then.
_SHARE_OF_PROBES = 0.1

_Mask = NDArray[np.bool_]


def two_units(values: NDArray[np.floating], modality: str, features: Sequence[str]) -> str:
    """What is wrong with a table [patients, features] of two units, naming a feature of each; '' for one unit.

    Expression: logarithms among whole counts, z-scores among logarithms. Methylation: shares among per cent or among
    M-values.
    """
    if len(values) < _PATIENTS:
        return ""
    with np.errstate(invalid="ignore"):
        if modality == "methylation":
            return _methylation(values, features)
        return _standardised(values, features) if (values < 0).any() else _logarithms(values, features)


def _logarithms(values: NDArray[np.floating], features: Sequence[str]) -> str:
    """Features of whole numbers beside features of fractions, none of which goes beyond a logarithm.

    In expected counts, and in rates, some features with fractions are large.
    """
    largest = _largest(values)
    positive = (values > 0).sum(axis=0)
    fractional = ((values != np.rint(values)) & np.isfinite(values)).sum(axis=0)
    whole = (fractional == 0) & (largest > LARGEST_LOG)
    logs = (fractional >= 0.8 * positive) & (positive >= 0.5 * len(values))
    if (largest[fractional > 0] > LARGEST_LOG).any() or largest[whole].max(initial=0.0) <= 100:
        return ""
    return _told(values, features, logs, whole, "logarithms", "counts", _SHARE)


def _standardised(values: NDArray[np.floating], features: Sequence[str]) -> str:
    """Features of mean 0 and deviation 1 over these very patients beside features that are far from mean 0."""
    if len(values) < 2 * _PATIENTS:
        return ""
    known = np.isfinite(values).sum(axis=0) > 2
    mean, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    mean[known] = np.nanmean(values[:, known], axis=0, dtype=np.float64)
    spread[known] = np.nanstd(values[:, known], axis=0, dtype=np.float64)
    scores = known & (np.abs(mean) < 0.02) & (np.abs(spread - 1) < 0.06)
    return _told(values, features, scores, known & (np.abs(mean) > 1), "z-scores", "logarithms", _SHARE)


def _methylation(values: NDArray[np.floating], features: Sequence[str]) -> str:
    largest, smallest = _largest(values), -_largest(-values)
    known = np.isfinite(values).any(axis=0)
    shares = known & (smallest >= 0) & (largest <= 1)
    if (smallest[known] < 0).any():
        others = known & ((smallest < 0) | (largest > 1))
        return _told(values, features, shares & (largest > 0), others, "shares", "M-values", _SHARE_OF_PROBES)
    # Of probes without methylation nearly all per cents are small; of shares below 1 they are anything.
    shares &= np.nan_to_num(values).mean(axis=0) > 0.2
    return _told(values, features, shares, known & (largest > 20), "shares", "per cent", _SHARE_OF_PROBES)


def _told(
    values: NDArray[np.floating], features: Sequence[str], one: _Mask, other: _Mask, kind: str, rest: str, share: float
) -> str:
    if one.sum() < max(_FEWEST, share * len(features)) or other.sum() < max(_FEWEST, _SHARE * len(features)):
        return ""
    named = []
    for mask, what in ((one, kind), (other, rest)):
        column = int(mask.argmax())
        low, high = float(np.nanmin(values[:, column])), float(np.nanmax(values[:, column]))
        named.append(
            f"{int(mask.sum()):,} of {len(features):,} features look like {what} ({features[column]}: {low:.4g} to "
            f"{high:.4g})"
        )
    return f"{named[0]} and {named[1]}: the table holds two units"


def _largest(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """The largest known value of every feature, -inf where none is known."""
    return np.asarray(np.max(np.where(np.isfinite(values), values, -np.inf), axis=0))
