"""From what is on disk to what a test may see: library size, logarithm, M-value, filters; fitted on some, applied to
all.

The scale of a table is one of

========  ==========================================================  =====================================
values    what the table holds                                        what is done
========  ==========================================================  =====================================
counts    raw reads (STAR, BCGSC); the default of rna and mirna       size factors, log2(count / factor + 1)
rpm       reads per million, TPM, FPKM: not negative                  log2(value + 1)
log       logarithms or z-scores                                      as they are; far outliers pulled in
beta      methylation share in [0, 1]; default of methylation         imputed, then log2(beta / (1 - beta))
mvalue    logarithm of the methylation odds                           imputed
auto      --                                                          decided by the values found
========  ==========================================================  =====================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hcmae.omics.differential import check_counts

Scale = Literal["counts", "rpm", "log", "beta", "mvalue", "auto"]
SCALES = ("counts", "rpm", "log", "beta", "mvalue", "auto")
# Beta values of exactly 0 or 1 would be infinite on the M scale.
_BETA_MARGIN = 1e-3
# Patients needed in a feature's favour to make it a reference of the size factors.
_REFERENCE_FEATURES = 20


def guess_scale(X: np.ndarray, modality: str) -> Scale:
    """What a table with ``values: auto`` holds, from its values alone."""
    finite = X[np.isfinite(X)]
    if finite.size == 0:
        raise ValueError(f"{modality}: the table has no value at all")
    if modality == "methylation":
        return "beta" if finite.min() >= 0 and finite.max() <= 1 else "mvalue"
    if finite.min() < 0:
        return "log"
    return "counts" if np.array_equal(finite, np.rint(finite)) else "rpm"


def check_scale(X: np.ndarray, scale: Scale, modality: str, patients: list[str]) -> None:
    """Raise ValueError, naming modality and patient, when the values contradict the scale."""
    if scale == "counts":
        check_counts(X, modality, patients)
        return
    if np.isinf(X).any():
        row = int(np.nonzero(np.isinf(X))[0][0])
        raise ValueError(f"{modality}: infinite value for {patients[row]}")
    with np.errstate(invalid="ignore"):
        if scale == "rpm" and (X < 0).any():
            row = int(np.nonzero(X < 0)[0][0])
            raise ValueError(
                f"{modality}: negative value for {patients[row]}; a table of RPM has none: set omics.values to log"
            )
        if scale == "beta" and ((X < 0) | (X > 1)).any():
            row = int(np.nonzero((X < 0) | (X > 1))[0][0])
            raise ValueError(
                f"{modality}: value outside [0, 1] for {patients[row]}; beta values are shares: "
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


def expressed(counts: np.ndarray, min_count: int, min_share: float) -> np.ndarray:
    """Mask [p]: at least ``min_count`` reads in at least ``min_share`` of the fitted patients."""
    return (counts >= min_count).mean(axis=0) >= min_share
