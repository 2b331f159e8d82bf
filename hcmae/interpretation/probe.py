"""Linear probes: what a representation says about the latent factors of synthetic patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def patient_means(vectors: NDArray[np.floating], patients: Sequence[str]) -> pd.DataFrame:
    """Mean vector per patient: vectors [N, D] and one patient id each, to a table [patients, D]."""
    frame = pd.DataFrame(np.asarray(vectors, dtype=np.float64))
    return frame.groupby(np.asarray(patients)).mean()


def linear_probe(
    features: pd.DataFrame, factors: pd.DataFrame, *, names: Sequence[str] = ("cell", "architecture"), seeds: int = 3
) -> pd.DataFrame:
    """R2 of cross-validated ridge regression on held-out patients; rows are seeds of the folds, columns factors.

    Features and factors are tables indexed by patient; patients in both are used. A probe that knows nothing scores
    about 0, slightly below for want of data. Raises ValueError with fewer than 20 common patients.
    """
    common = features.index.intersection(factors.index)
    if len(common) < 20:
        raise ValueError(f"{len(common)} patients have both features and factors; a probe needs at least 20")
    X = features.loc[common].to_numpy()
    rows = []
    for seed in range(seeds):
        row = {}
        for name in names:
            y = factors.loc[common, name].to_numpy(dtype=float)
            model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 22)))
            predicted = cross_val_predict(model, X, y, cv=KFold(5, shuffle=True, random_state=seed))
            row[name] = 1 - float(((predicted - y) ** 2).mean() / y.var())
        rows.append(row)
    return pd.DataFrame(rows)
