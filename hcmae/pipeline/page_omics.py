"""What the lesson on omics computes beside the pipeline: how holes are filled, which test finds what was planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.config import OmicsSettings
from hcmae.omics import differential, report, scales
from hcmae.omics.impute import NeighbourImputer
from hcmae.omics.select import OmicsSelector

# The paper's test is run once on so many genes, to see what it does; the profile decides what the pipeline uses.
TESTED_GENES = 1500


def described(tables: Mapping[str, Any]) -> pd.DataFrame:
    """Patients, features, unit, smallest and largest value and the share missing, one row per modality."""
    rows = {}
    for name, table in tables.items():
        rows[name] = {
            "patients": table.X.shape[0],
            "features": table.X.shape[1],
            "unit": table.declared,
            "smallest": f"{np.nanmin(table.X):.4g}",
            "largest": f"{np.nanmax(table.X):,.7g}",
            "missing": f"{np.isnan(table.X).mean():.2%}",
        }
    return pd.DataFrame(rows).T


def filling_errors(table: Any, settings: OmicsSettings, seed: int, share: float = 0.01) -> pd.Series:
    """Root mean square error of a share of known values that were hidden and filled, by neighbours and by the mean."""
    rng = np.random.default_rng(seed)
    known = table.X[:, np.isnan(table.X).mean(axis=0) <= settings.max_missing]
    hidden = known.copy()
    spots = (rng.random(known.shape) < share) & ~np.isnan(known)
    hidden[spots] = np.nan
    filled = NeighbourImputer(settings.neighbours).fit_transform(hidden)
    mean = np.broadcast_to(np.nanmean(hidden, axis=0), known.shape)
    errors = {
        "nearest neighbours": np.sqrt(np.mean((filled[spots] - known[spots]) ** 2)),
        "mean of the probe": np.sqrt(np.mean((mean[spots] - known[spots]) ** 2)),
    }
    return pd.Series(errors, name="root mean square error of beta")


def groups_in_words(groups: NDArray[np.integer], days: float) -> str:
    """How many patients each of two groups at a horizon has, and how many are in neither."""
    return (
        f"{(groups == 1).sum()} patients died within {days} days, {(groups == 0).sum()} are known to have lived "
        f"longer, {(groups == -1).sum()} were censored before and are in neither group."
    )


def paper_test(tables: Mapping[str, Any], groups: NDArray[np.integer] | None, settings: OmicsSettings) -> Any:
    """DESeq2 on counts of RNA between two groups, at most ``TESTED_GENES`` genes; None without groups or counts."""
    if groups is None or "rna" not in tables or tables["rna"].declared != "counts":
        return None
    rna = tables["rna"]
    kept = np.flatnonzero(scales.expressed(rna.X, settings.min_count, settings.min_expressed))[:TESTED_GENES]
    return differential.deseq2(rna.X[:, kept], groups, rna.features[kept])


def planted_first(tests: Mapping[str, pd.DataFrame], planted: Sequence[str]) -> pd.DataFrame:
    """How many planted genes each test has among as many smallest p: [planted genes tested, share found]."""
    rows = {}
    for label, table in tests.items():
        there = [gene for gene in planted if gene in table.index]
        best = table.sort_values("p").index[: len(there)]
        rows[label] = {"planted genes tested": len(there), "share found": report.recovered(best, there)}
    return pd.DataFrame(rows).T


def values_of_best(table: Any, tested: pd.DataFrame, settings: OmicsSettings, most: int = 300) -> NDArray[np.float64]:
    """Values [n, p] of the candidates with the smallest p, counts as logarithms, no holes."""
    pool = tested.sort_values("p").index[: min(settings.candidates or most, most)]
    values = table.X[:, table.features.get_indexer(pool)]
    if table.declared == "counts":
        values = scales.log_expression(values, scales.SizeFactors.fit(table.X)(table.X))
    return np.nan_to_num(values)


def planted_by_rank(
    mdata: Any, time: NDArray, event: NDArray, settings: OmicsSettings, seed: int, planted: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """How many of the chosen features were planted, by the order of choice (columns) and modality (rows)."""
    columns = {}
    for rank in ("importance", "combined"):
        changed = settings.model_copy(update={"rank": rank})
        chosen = OmicsSelector(changed, seed).fit(mdata, time, event).chosen
        columns[rank] = {
            name: f"{len(set(table.index) & set(planted[name]))} of {len(table)} chosen were planted"
            for name, table in chosen.items()
        }
    return pd.DataFrame(columns)
