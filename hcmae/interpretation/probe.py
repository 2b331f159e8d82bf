"""Linear probes: what a representation says about the latent factors of synthetic patients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FACTORS = ("cell", "architecture", "burden")
# Fewer patients than this leave folds in which a ridge regression learns nothing.
MIN_PATIENTS = 20


def patient_means(vectors: NDArray[np.floating], patients: Sequence[str]) -> pd.DataFrame:
    """Mean vector per patient: vectors [N, D] and one patient id each, to a table [patients, D]."""
    frame = pd.DataFrame(np.asarray(vectors, dtype=np.float64))
    return frame.groupby(np.asarray(patients)).mean()


def probeable(factors: pd.DataFrame | None, patients: Iterable[str], *, what: str) -> bool:
    """Whether there is a truth to ask for (``factors``; None: there is none) and enough of these patients are in it.

    Warns where they are too few: ``what`` names whose they are.
    """
    if factors is None:
        return False
    known = len(factors.index.intersection(list(patients)))
    if known < MIN_PATIENTS:
        warnings.warn(
            f"{what}: {known} patients with regions and known factors, a probe needs at least {MIN_PATIENTS}; none is "
            "shown (synthetic.patient_scale makes a larger twin)",
            stacklevel=3,
        )
    return known >= MIN_PATIENTS


def linear_probe(
    features: pd.DataFrame, factors: pd.DataFrame, *, names: Sequence[str] = ("cell", "architecture"), seeds: int = 3
) -> pd.DataFrame:
    """R2 of cross-validated ridge regression on held-out patients; rows are seeds of the folds, columns factors.

    Features and factors are tables indexed by patient; patients in both are used. A probe that knows nothing scores
    about 0, slightly below for want of data. Raises ValueError with fewer than 20 common patients.
    """
    common = _common(features, factors)
    columns = {}
    for name in names:
        y = factors.loc[common, name].to_numpy(dtype=float)
        errors = _squared_errors(features.loc[common].to_numpy(), y, seeds)
        columns[name] = 1 - errors.mean(axis=1) / y.var()
    return pd.DataFrame(columns)


def probe_table(
    descriptions: Mapping[str, pd.DataFrame],
    factors: pd.DataFrame,
    *,
    against: str | None = None,
    names: Sequence[str] = FACTORS,
    seeds: int = 3,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """R2 of several descriptions of the same patients with 95 % intervals: description, factor, r2, low, high.

    ``r2`` is that of ``linear_probe``, the mean over ``seeds`` ways to cut the folds. Intervals are of a bootstrap over
    patients (``draws`` of them) of their held-out errors: they say what other patients would have changed, not what
    another training of the network would have. ``against``: a description; less, less_low, less_high are then by how
    much each other one falls short of its R2, from the same draws. Raises as ``linear_probe``, ValueError for an
    ``against`` that is not there or where descriptions are not of the same patients.
    """
    if against is not None and against not in descriptions:
        raise ValueError(f"no description '{against}': there are {', '.join(descriptions)}")
    known = [_common(features, factors) for features in descriptions.values()]
    if any(not known[0].equals(other) for other in known):
        raise ValueError(f"not the same patients: {', '.join(descriptions)} have {[len(c) for c in known]} of them")
    common = known[0]
    chosen = np.random.default_rng(seed).integers(0, len(common), (draws, len(common)))
    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    for label, features in descriptions.items():
        for name in names:
            y = factors.loc[common, name].to_numpy(dtype=float)
            errors = _squared_errors(features.loc[common].to_numpy(), y, seeds).mean(axis=0)
            drawn = 1 - errors[chosen].mean(axis=1) / y[chosen].var(axis=1)
            found[label, name] = np.array([1 - errors.mean() / y.var(), *drawn])
    rows = []
    for (label, name), values in found.items():
        row = {"description": label, "factor": name, **_interval(values, "r2", "low", "high")}
        if against is not None and label != against:
            row |= _interval(found[against, name] - values, "less", "less_low", "less_high")
        rows.append(row)
    return pd.DataFrame(rows)


def in_words(table: pd.DataFrame, against: str, factor: str) -> list[str]:
    """One computed sentence per description of a ``probe_table(against=...)``: who reads more of a factor, if anyone.

    Two are told apart where the interval of their difference leaves out zero.
    """
    rows = table[table["factor"] == factor].set_index("description")
    own, lines = float(rows["r2"][against]), []
    for label, row in zip(map(str, rows.index), rows.to_dict("records"), strict=True):
        if label == against:
            continue
        verb = "reads more of" if row["less_low"] > 0 else "reads less of" if row["less_high"] < 0 else ""
        said = f"**{against}** {verb} *{factor}* than **{label}**"
        if not verb:
            said = f"**{against}** and **{label}** are not told apart on *{factor}*"
        lines.append(
            f"{said}: R2 {own:.2f} and {row['r2']:.2f}, difference {row['less']:.2f} "
            f"({row['less_low']:.2f} to {row['less_high']:.2f})."
        )
    return lines


def r2_table(table: pd.DataFrame) -> pd.DataFrame:
    """The R2 of a ``probe_table``: rows are descriptions, columns factors, in their order."""
    wide = table.pivot(index="description", columns="factor", values="r2")
    return wide.loc[table["description"].unique(), table["factor"].unique()].rename_axis(index=None, columns=None)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A ``probe_table`` for the eye: one row per description, one column per factor, 'R2 (low to high)'."""
    text = table.assign(
        text=[f"{r2:.2f} ({low:.2f} to {high:.2f})" for r2, low, high in table[["r2", "low", "high"]].to_numpy()]
    )
    wide = text.pivot(index="description", columns="factor", values="text")
    return wide.loc[table["description"].unique(), table["factor"].unique()].rename_axis(index=None, columns=None)


def _interval(values: NDArray[np.float64], name: str, low: str, high: str) -> dict[str, float]:
    """The first value, and what holds 95 % of the others."""
    bounds = np.quantile(values[1:], (0.025, 0.975))
    return {name: float(values[0]), low: float(bounds[0]), high: float(bounds[1])}


def _common(features: pd.DataFrame, factors: pd.DataFrame) -> pd.Index:
    common = features.index.intersection(factors.index)
    if len(common) < MIN_PATIENTS:
        raise ValueError(
            f"{len(common)} patients have both features and factors; a probe needs at least {MIN_PATIENTS}"
        )
    return common


def _squared_errors(X: NDArray[np.floating], y: NDArray[np.floating], seeds: int) -> NDArray[np.float64]:
    """Squared error of each held-out patient for each way to cut the folds, [seeds, n]."""
    out = np.empty((seeds, len(y)))
    for seed in range(seeds):
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 22)))
        predicted = cross_val_predict(model, X, y, cv=KFold(5, shuffle=True, random_state=seed))
        out[seed] = (predicted - y) ** 2
    return out
