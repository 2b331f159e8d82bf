"""From what is on disk to what a test may see: library size, logarithm, M-value, filters; fitted on some, applied to
all.

The scale of a table follows from its unit (`hcmae.units.UNITS`) and is one of

========  ==========================================================  =====================================
values    what the table holds                                        what is done
========  ==========================================================  =====================================
counts    raw reads (STAR, BCGSC); the default of rna and mirna       size factors, log2(count / factor + 1)
rpm       reads per million, TPM, FPKM: not negative                  imputed, log2(value + 1)
log       logarithms or z-scores                                      as they are; far outliers pulled in
beta      methylation share in [0, 1]; default of methylation         imputed, then log2(beta / (1 - beta))
mvalue    logarithm of the methylation odds                           imputed
auto      --                                                          decided by the values found
========  ==========================================================  =====================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from hcmae.omics.differential import check_counts

Scale = Literal["counts", "rpm", "log", "beta", "mvalue", "auto"]
SCALES = ("counts", "rpm", "log", "beta", "mvalue", "auto")
# Beta values of exactly 0 or 1 would be infinite on the M scale.
_BETA_MARGIN = 1e-3
# Patients needed in a feature's favour to make it a reference of the size factors.
_REFERENCE_FEATURES = 20


def check_scale(
    X: np.ndarray,
    scale: Scale,
    modality: str,
    patients: Sequence[str],
    features: Sequence[str] | pd.Index | None = None,
) -> None:
    """Raise ValueError, naming modality, patient, feature and value, when the values contradict the scale."""
    if scale == "counts":
        check_counts(X, modality, patients, features)
        return

    def first(mask: np.ndarray) -> str:
        row, column = (int(k[0]) for k in np.nonzero(mask))
        name = column if features is None else features[column]
        return f"for {patients[row]} (feature {name}: {X[row, column]:g})"

    if np.isinf(X).any():
        raise ValueError(f"{modality}: infinite value {first(np.isinf(X))}; correct it")
    with np.errstate(invalid="ignore"):
        if scale == "rpm" and (X < 0).any():
            raise ValueError(
                f"{modality}: negative value {first(X < 0)}; a table of RPM has none: set omics.values to log"
            )
        if scale == "beta" and ((X < 0) | (X > 1)).any():
            raise ValueError(
                f"{modality}: value outside [0, 1] {first((X < 0) | (X > 1))}; beta values are shares: "
                "set omics.values to mvalue"
            )


@dataclass
class SizeFactors:
    """Median-of-ratios size factors against the geometric means of the fitted patients (Anders and Huber 2010).

    ``log_mean`` [p] has the log geometric mean of features counted in every fitted patient and -inf elsewhere; with
    fewer than 20 such features (sparse miRNA tables) the factor is the library over the fitted patients' median
    library.
    """

    log_mean: np.ndarray
    median_library: float

    @classmethod
    def fit(cls, counts: np.ndarray) -> SizeFactors:
        """counts [n, p] of the fitted patients."""
        with np.errstate(divide="ignore"):
            log_mean = np.log(counts).mean(axis=0, dtype=np.float64)
        return cls(log_mean, float(np.median(counts.sum(axis=1, dtype=np.float64))))

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Factor [n] of every sample; 1 is a typical library."""
        library = counts.sum(axis=1, dtype=np.float64) / self.median_library
        reference = np.isfinite(self.log_mean)
        if reference.sum() < _REFERENCE_FEATURES:
            return library
        with np.errstate(divide="ignore"):
            ratios = np.log(counts[:, reference]) - self.log_mean[reference]
        ratios[~np.isfinite(ratios)] = np.nan
        enough = np.isfinite(ratios).sum(axis=1) >= _REFERENCE_FEATURES
        factor = library
        factor[enough] = np.exp(np.nanmedian(ratios[enough], axis=1))
        return factor


def log_expression(counts: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """log2(count / size factor + 1), [n, p] float32."""
    return np.log2(counts / factors[:, None].astype(np.float32) + np.float32(1.0)).astype(np.float32, copy=False)


def m_values(beta: np.ndarray) -> np.ndarray:
    """log2(beta / (1 - beta)), [n, p] float32; shares are kept 0.001 away from 0 and 1 (Du et al. 2010)."""
    out = np.empty(beta.shape, dtype=np.float32)
    low, high = np.float32(_BETA_MARGIN), np.float32(1.0 - _BETA_MARGIN)
    # A few patients at a time: temporaries stay in cache.
    for start in range(0, beta.shape[0], 4):
        part = slice(start, start + 4)
        share = np.clip(beta[part], low, high).astype(np.float32, copy=False)
        np.log2(share / (np.float32(1.0) - share), out=out[part])
    return out


def expressed(values: np.ndarray, least: float, min_share: float) -> np.ndarray:
    """Mask [p]: a value of ``least`` or more in at least ``min_share`` of the fitted patients; missing is not more."""
    with np.errstate(invalid="ignore"):
        return (values >= least).mean(axis=0) >= min_share


def least_expression(unit: str | None, scale: Scale, min_count: int, min_rpm: float) -> float | None:
    """The value from which a feature counts as expressed, on the scale of its table; None where the unit says nothing.

    ``min_count`` reads, or ``min_rpm`` reads per million (TPM, FPKM), of logarithms their logarithm.
    """
    if scale == "log":
        least = {"log2_counts": min_count, "log2_rpm": min_rpm, "log2_tpm": min_rpm, "log2_fpkm": min_rpm}.get(
            unit or ""
        )
        return None if least is None else float(np.log2(least + 1.0))
    return {"counts": float(min_count), "rpm": min_rpm}.get(scale)
