"""Which features go with survival: four tests, one table.

``cox_score``  uses time: the score test of a one-gene Cox model, for every feature at once.
``deseq2``     two groups of patients, raw counts, by pydeseq2 (the paper's step).
``moderated_t`` two groups, continuous values (M-values, log expression): limma's empirical Bayes t.

Methylation beta values are shares between 0 and 1, not counts: DESeq2's negative binomial model has no meaning for
them, and its size factors would scale away global hypomethylation, a hallmark of tumours. So they are tested as
M-values by the moderated t; `beta_counts` keeps the literal reading (multiply, round, run DESeq2) for whoever wants to
see it.

Every function returns a DataFrame indexed by feature with columns effect, statistic, p, q (Benjamini-Hochberg).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special, stats

from hcmae.outcome import check_events

_COLUMN_BLOCK = 20000


def two_groups(
    time: np.ndarray, event: np.ndarray, contrast: Literal["horizon", "event"] = "horizon", horizon_days: int = 1095
) -> np.ndarray:
    """Group of every patient [n]: 1 (poor), 0 (good), -1 (in neither group).

    ``horizon``: event at or before the horizon against known to be event-free beyond it; patients censored before it
    are left out, because nobody knows their group. ``event``: dead against alive at last contact, whenever that was; a
    centre with longer follow-up then looks like a disease. ``horizon`` is free of that only where follow-up passes the
    horizon everywhere: a centre that was watched for less gives early deaths but nobody event-free beyond. The Cox
    score test compares within risk sets and has neither fault.
    Raises ValueError when a group has fewer than three patients.
    """
    time, event = np.asarray(time, dtype=np.float64), check_events(event).astype(int)
    group = np.full(time.shape, -1)
    if contrast == "horizon":
        group[(event == 1) & (time <= horizon_days)] = 1
        group[time > horizon_days] = 0
        what = f"event within {horizon_days} days / event-free beyond"
        fix = "set omics.horizon_days to another time, omics.contrast to event, or omics.differential to cox_score"
    elif contrast == "event":
        group[:] = event
        what, fix = "dead / alive", "set omics.differential to cox_score"
    else:
        raise ValueError(
            f"contrast '{contrast}': choose 'horizon' or 'event' (tumour against normal takes its own samples)"
        )
    if min((group == 1).sum(), (group == 0).sum()) < 3:
        raise ValueError(
            f"contrast {contrast} ({what}) has {(group == 1).sum()} and {(group == 0).sum()} patients; "
            f"three in each are needed: {fix}"
        )
    return group


def cox_score(X: np.ndarray, time: np.ndarray, event: np.ndarray, names: Iterable[object]) -> pd.DataFrame:
    """Score test at beta = 0 of a Cox model with one feature, Breslow ties; effect is the one-step estimate U/V.

    X [n, p], time [n], event [n]. A feature without variance among the patients at risk gets statistic 0, p 1.
    Source: Cox 1972. Positive: high values, short survival.
    """
    time, event = np.asarray(time, dtype=np.float64), check_events(event)
    moments = time[event]
    if moments.size == 0:
        raise ValueError("no patient has an event: the Cox score test has nothing to explain")
    distinct, deaths = np.unique(moments, return_counts=True)
    at_risk = time[None, :] >= distinct[:, None]  # [times, n]
    size = at_risk.sum(axis=1)
    hazard = (at_risk * (deaths / size)[:, None]).sum(axis=0)  # Nelson-Aalen estimate at each patient's time
    residual = event - hazard
    mean_of_risk_set = at_risk * (np.sqrt(deaths) / size)[:, None]
    p = X.shape[1]
    score, information = np.empty(p), np.empty(p)
    for start in range(0, p, _COLUMN_BLOCK):
        block = np.asarray(X[:, start : start + _COLUMN_BLOCK], dtype=np.float64)
        block = block - block.mean(axis=0)
        score[start : start + block.shape[1]] = residual @ block
        # Sum over deaths of the variance in the risk set: E[x^2] - E[x]^2.
        second = np.einsum("i,ij,ij->j", hazard, block, block)
        first = mean_of_risk_set @ block
        information[start : start + block.shape[1]] = second - np.einsum("ij,ij->j", first, first)
    usable = information > 1e-12 * max(float(information.max()), 1e-300)
    z = np.zeros(p)
    z[usable] = score[usable] / np.sqrt(information[usable])
    effect = np.zeros(p)
    effect[usable] = score[usable] / information[usable]
    return _table(names, effect, z, 2.0 * stats.norm.sf(np.abs(z)))


def moderated_t(X: np.ndarray, group: np.ndarray, names: Iterable[object]) -> pd.DataFrame:
    """Two-group t with the variance of a feature drawn towards that of all features; effect is mean(1) - mean(0).

    X [n, p] on a scale with additive noise (M-values, log expression); group [n] of {1, 0, -1 (ignored)}. The
    attributes
    ``prior_df`` and ``prior_variance`` of the returned frame hold the fitted prior.
    Source: Smyth 2004 (Stat Appl Genet Mol Biol 3:3), the formulas of limma's lmFit and eBayes.
    """
    group = np.asarray(group)
    one, zero = np.flatnonzero(group == 1), np.flatnonzero(group == 0)
    if one.size + zero.size < 3 or not one.size or not zero.size:
        raise ValueError(f"the moderated t needs two groups and three patients; got {one.size} and {zero.size}")
    p = X.shape[1]
    effect, variance = np.empty(p), np.empty(p)
    df = one.size + zero.size - 2
    for start in range(0, p, _COLUMN_BLOCK):
        part = slice(start, min(start + _COLUMN_BLOCK, p))
        a, b = np.asarray(X[one, part], dtype=np.float64), np.asarray(X[zero, part], dtype=np.float64)
        effect[part] = a.mean(axis=0) - b.mean(axis=0)
        rest = a.var(axis=0) * one.size + b.var(axis=0) * zero.size
        variance[part] = rest / df
    prior_df, prior_variance = fit_variance_prior(variance, df)
    if np.isinf(prior_df):
        posterior = np.full(p, prior_variance)
        total_df = float(df * p)
    else:
        posterior = (df * variance + prior_df * prior_variance) / (df + prior_df)
        total_df = min(df + prior_df, float(df * p))
    error = np.sqrt(posterior * (1.0 / one.size + 1.0 / zero.size))
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(error > 0, effect / error, 0.0)
    table = _table(names, effect, t, 2.0 * stats.t.sf(np.abs(t), total_df))
    table.attrs.update(prior_df=float(prior_df), prior_variance=float(prior_variance))
    return table


def fit_variance_prior(variance: np.ndarray, df: float) -> tuple[float, float]:
    """Degrees of freedom and value of the scaled inverse chi-square prior of the variances, by moments of their
    logarithm.

    Features with zero variance get limma's offset (1e-5 of the median). Returns (inf, mean variance) when the variances
    scatter no more than sampling alone would make them.
    """
    s2 = np.maximum(np.asarray(variance, dtype=np.float64), 0.0)
    middle = float(np.median(s2))
    if middle == 0.0:
        middle = 1.0
    s2 = np.maximum(s2, 1e-5 * middle)
    z = np.log(s2)
    e = z - special.digamma(df / 2.0) + np.log(df / 2.0)
    mean = float(e.mean())
    spread = float(((e - mean) ** 2).sum() / max(e.size - 1, 1)) - float(special.polygamma(1, df / 2.0))
    if spread <= 0.0:
        return np.inf, float(s2.mean())
    prior_df = 2.0 * _trigamma_inverse(spread)
    return prior_df, float(np.exp(mean + special.digamma(prior_df / 2.0) - np.log(prior_df / 2.0)))


def deseq2(
    counts: np.ndarray, group: np.ndarray, names: Iterable[object], *, workers: int = 1, shrink: bool = False
) -> pd.DataFrame:
    """Wald test of log2 fold change, group 1 over group 0, by pydeseq2; columns also base_mean and dispersion.

    counts [n, p] whole numbers. p is NaN-free: features DESeq2 sets aside (Cook's outliers, all zero) get p 1.
    Source: Love, Huber, Anders 2014 (Genome Biology 15:550); implementation Muzellec et al. 2023.
    Raises ValueError for negative or fractional counts or a sample without counts.
    """
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    check_counts(counts, "counts")
    labels = [str(name) for name in names]
    used = np.flatnonzero(np.asarray(group) >= 0)
    index = [f"s{i}" for i in used]
    frame = pd.DataFrame(np.rint(np.asarray(counts)[used]).astype(np.int64), index=index, columns=labels)
    design = pd.DataFrame({"group": np.where(np.asarray(group)[used] == 1, "poor", "good")}, index=index)
    for noisy in ("pydeseq2", "py.warnings"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    inference = DefaultInference(n_cpus=workers)
    data = DeseqDataSet(counts=frame, metadata=design, design="~group", inference=inference, quiet=True)
    with warnings.catch_warnings():
        # Few genes do not define a dispersion trend; the library then uses their mean and says so each time.
        warnings.filterwarnings("ignore", message=".*dispersion trend", category=UserWarning)
        data.deseq2()
    test = DeseqStats(data, contrast=["group", "poor", "good"], inference=inference, quiet=True)
    test.summary()
    if shrink:
        test.lfc_shrink(coeff="group[T.poor]")
    found = test.results_df
    table = _table(
        labels,
        found["log2FoldChange"].fillna(0.0).to_numpy(),
        found["stat"].fillna(0.0).to_numpy(),
        found["pvalue"].fillna(1.0).to_numpy(),
    )
    table["base_mean"] = found["baseMean"].to_numpy()
    table["dispersion"] = np.asarray(data.var["dispersions"], dtype=np.float64)
    return table


def beta_counts(beta: np.ndarray, scale: int = 1000) -> np.ndarray:
    """Beta values as pseudo-counts, round(beta * scale): the literal reading of DESeq2 on methylation, kept as a
    switch."""
    return np.rint(np.clip(beta, 0.0, 1.0) * scale)


def check_counts(
    counts: np.ndarray,
    what: str,
    patients: Sequence[str] | pd.Index | None = None,
    features: Sequence[str] | pd.Index | None = None,
) -> None:
    """Raise ValueError, naming the first patient and feature, unless all are whole numbers >= 0 and every sample has
    some."""

    def who(row: int) -> str:
        return str(patients[row]) if patients is not None else f"row {row}"

    def which(column: int) -> str:
        return str(features[column]) if features is not None else str(column)

    counts = np.asarray(counts)
    bad = ~np.isfinite(counts)
    if bad.any():
        row, column = (int(k[0]) for k in np.nonzero(bad))
        raise ValueError(
            f"{what}: missing or infinite count for {who(row)} (feature {which(column)}); counts have no missing values"
        )
    if (counts < 0).any():
        row, column = (int(k[0]) for k in np.nonzero(counts < 0))
        raise ValueError(
            f"{what}: negative value {counts[row, column]:g} for {who(row)} (feature {which(column)}): these "
            "are not counts; if the table is on a log or z scale, set omics.values to log for it"
        )
    whole = np.rint(counts)
    if not np.array_equal(whole, counts):
        row, column = (int(k[0]) for k in np.nonzero(whole != counts))
        raise ValueError(
            f"{what}: fractional value {counts[row, column]:g} for {who(row)} (feature {which(column)}): raw "
            "counts are whole numbers; if the table holds RPM, TPM or FPKM, set omics.values to rpm for it"
        )
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    if empty.size:
        raise ValueError(
            f"{what}: {who(int(empty[0]))} has a library of zero reads: exclude this patient or fetch the file again"
        )


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p values controlling the false discovery rate (Benjamini and Hochberg 1995)."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    ranked = p[order] * p.size / np.arange(1, p.size + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return q


def _table(names: Iterable[object], effect: np.ndarray, statistic: np.ndarray, p: np.ndarray) -> pd.DataFrame:
    index = pd.Index([str(name) for name in names], name="feature")
    return pd.DataFrame({"effect": effect, "statistic": statistic, "p": p, "q": benjamini_hochberg(p)}, index=index)


def _trigamma_inverse(x: float) -> float:
    # Newton's method on 1/trigamma, which is nearly linear (Smyth 2004, appendix).
    if x > 1e7:
        return 1.0 / np.sqrt(x)
    if x < 1e-6:
        return 1.0 / x
    y = 0.5 + 1.0 / x
    for _ in range(50):
        value = float(special.polygamma(1, y))
        step = value * (1.0 - value / x) / float(special.polygamma(2, y))
        y += step
        if -step / y < 1e-8:
            break
    return y
