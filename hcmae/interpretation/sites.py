"""Does an input tell the hospital? A probe against permuted sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Sites with fewer patients cannot be in every fold of the probe.
_FOLDS = 4


@dataclass(frozen=True)
class SiteProbe:
    """Balanced accuracy of a linear probe for the site on patients whom it has not seen.

    chance: that of the permuted sites, mean; p: share of permutations that are told as well, one added to both counts;
    permuted [permutations]; sites, patients: how many took part.
    """

    accuracy: float
    chance: float
    p: float
    permuted: NDArray[np.float64]
    sites: int
    patients: int


def site_probe(features: ArrayLike, site: ArrayLike, *, permutations: int = 100, seed: int = 0) -> SiteProbe:
    """How well features [n, D] (mean vectors of patients, omics) tell the site [n] of a patient.

    Logistic regression with classes weighted equally on standardised features, in four folds; sites with fewer than
    four patients take no part. Missing features count as the mean of the fold's training patients.
    Raises ValueError with fewer than two sites left or lengths that differ.
    Source: Ojala and Garriga, Journal of Machine Learning Research 2010, as in scikit-learn.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, permutation_test_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table, names = np.asarray(features, dtype=np.float64), np.asarray(site, dtype=str)
    if table.ndim != 2 or len(table) != len(names):
        raise ValueError(f"features must be [n, D] and sites [n], not {table.shape} and {names.shape}")
    labels, counts = np.unique(names, return_counts=True)
    kept = np.isin(names, labels[counts >= _FOLDS])
    if len(np.unique(names[kept])) < 2:
        raise ValueError(f"fewer than two sites have {_FOLDS} patients or more: there is nothing to tell apart")
    probe = make_pipeline(
        SimpleImputer(keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000),
    )
    accuracy, permuted, p = permutation_test_score(
        probe,
        table[kept],
        names[kept],
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
        scoring="balanced_accuracy",
        n_permutations=permutations,
        random_state=seed,
    )
    taken = int(kept.sum())
    return SiteProbe(float(accuracy), float(np.mean(permuted)), float(p), permuted, len(np.unique(names[kept])), taken)
