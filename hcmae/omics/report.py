"""How far a selection can be believed: agreement between seeds and folds, a report per gene, and what a leak is
worth."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from hcmae.config import OmicsSettings
from hcmae.omics.cache import SelectorCache
from hcmae.omics.forest import SurvivalForest, concordance
from hcmae.omics.importance import forest_importance
from hcmae.outcome import check_events


def forest_stability(
    X: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    trees: Sequence[int] = (100, 300, 1000),
    seeds: int = 3,
    top_k: int = 300,
    repeats: int = 5,
    kind: str = "oob",
    workers: int = 1,
) -> pd.DataFrame:
    """What the seed alone does to the importance ranking of features X [n, p].

    One row per number of trees: mean over pairs of seeds of the rank correlation and of the share of the top_k that
    both have, with `chance`, the share two random draws would have (top_k / p).
    """
    rows = []
    for count in trees:
        rankings = []
        for seed in range(seeds):
            forest = SurvivalForest(count, seed=1000 + seed, workers=workers).fit(X, time, event)
            # Permutations differ with the seed as well, as they would between two users.
            found = forest_importance(forest, X, time, event, kind=kind, repeats=repeats, seed=seed, workers=workers)
            rankings.append(found.mean)
        k = min(top_k, X.shape[1])
        tops = [set(np.argsort(-ranking, kind="stable")[:k].tolist()) for ranking in rankings]
        pairs = list(combinations(range(seeds), 2))
        rho = [float(pd.Series(rankings[a]).corr(pd.Series(rankings[b]), method="spearman")) for a, b in pairs]
        rows.append(
            {
                "trees": count,
                "spearman": float(np.mean(rho)),
                "shared": float(np.mean([len(tops[a] & tops[b]) / k for a, b in pairs])),
                "chance": k / X.shape[1],
            }
        )
    return pd.DataFrame(rows)


def selection_frequency(selections: Iterable[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """How often each feature was chosen: modality -> DataFrame indexed by feature with gene, times, frequency,
    mean_rank.

    ``selections``: the `chosen` of several folds, repeats or seeds. Most frequent first.
    """
    chosen = list(selections)
    if not chosen:
        raise ValueError("no selection to count: pass the chosen tables of at least one fold")
    out = {}
    for modality in chosen[0]:
        together = pd.concat([one[modality] for one in chosen])
        table = together.groupby(level=0).agg(
            gene=("gene", "first"), times=("rank", "size"), mean_rank=("rank", "mean")
        )
        table.insert(2, "frequency", table["times"] / len(chosen))
        out[modality] = table.sort_values(["times", "mean_rank"], ascending=[False, True])
    return out


def gene_report(
    chosen: Mapping[str, pd.DataFrame], frequency: Mapping[str, pd.DataFrame] | None = None
) -> pd.DataFrame:
    """All modalities in one table: feature, modality, gene, effect, statistic, p, q, importance, rank, frequency.

    ``frequency`` (from `selection_frequency`) adds in how many folds the feature was chosen.
    """
    parts = []
    for modality, table in chosen.items():
        part = table.copy()
        part.insert(0, "modality", modality)
        if frequency is not None:
            part["frequency"] = frequency[modality]["frequency"].reindex(part.index).fillna(0.0)
        parts.append(part)
    report = pd.concat(parts)
    report.index.name = "feature"
    return report


def recovered(chosen: Iterable[str], planted: Iterable[str]) -> float:
    """Share of the planted features among the chosen ones."""
    planted = set(planted)
    return len(planted & set(chosen)) / len(planted)


def planted_features(truth: Mapping[str, Any], programmes: Sequence[str] = ("shared", "omics")) -> dict[str, list[str]]:
    """Features of a synthetic cohort that follow the hazard: modality -> names, from the ``planted`` part of its
    truth."""
    return {
        modality: [name for programme in programmes for names in parts[programme].values() for name in names]
        for modality, parts in truth.items()
    }


def leak_experiment(
    data: Any,
    time: np.ndarray,
    event: np.ndarray,
    settings: OmicsSettings,
    *,
    select_on: Literal["train", "all"] = "train",
    permute: bool = False,
    folds: pd.DataFrame | None = None,
    n_folds: int = 5,
    l1_ratio: float = 0.5,
    seed: int = 0,
    folder: Any = None,
    workers: int = 1,
) -> pd.DataFrame:
    """Cross-validated concordance of an elastic-net Cox model on the selected features, one row per fold.

    The folds are always honest for the model; only the selection (tests, forest, scaling) sees the training part
    (``select_on="train"``) or everybody ("all", the paper's protocol). ``permute`` shuffles the (time, event) pairs
    first: the truth is then 0.5 and everything above it is leakage.

    data: MuData or dict of DataFrames; time, event [n] in the order of its patients. folds: DataFrame with patient and
    fold (one repeat), default: stratified by event. The penalty is chosen by an inner 4-fold split of the training
    part, on the selected features. Returns fold, patients, events, c_index, penalty, features (with non-zero weight).
    """
    cache = SelectorCache(data, settings, folder, workers=workers)
    n = len(cache.patients)
    time64, events = np.asarray(time, dtype=np.float64), check_events(event).astype(int)
    generator = np.random.default_rng(seed)
    if permute:
        shuffled = generator.permutation(n)
        time64, events = time64[shuffled], events[shuffled]
    if folds is None:
        fold_of = _stratified(events, n_folds, generator)
    else:
        fold_of = folds.set_index("patient")["fold"].reindex(cache.patients).to_numpy()
        if pd.isna(fold_of).any():
            raise ValueError(f"patient {cache.patients[int(np.flatnonzero(pd.isna(fold_of))[0])]} is in no fold")
    everyone = cache.select(np.arange(n), time64, events, seed=seed).matrix if select_on == "all" else None
    rows = []
    for fold in np.unique(fold_of):
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        matrix = everyone if everyone is not None else cache.select(train, time64, events, seed=seed).matrix
        flat = matrix.reshape(n, -1).astype(np.float64)
        risk, penalty, used = elastic_net(flat[train], time64[train], events[train], flat[test], l1_ratio, generator)
        rows.append(
            {
                "fold": int(fold),
                "patients": test.size,
                "events": int(events[test].sum()),
                "c_index": concordance(time64[test], events[test], risk),
                "penalty": penalty,
                "features": used,
            }
        )
    return pd.DataFrame(rows)


def elastic_net(
    X: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    X_new: np.ndarray,
    l1_ratio: float,
    generator: np.random.Generator,
    inner: int = 4,
) -> tuple[np.ndarray, float, int]:
    """Cox elastic net with its penalty chosen on inner folds: risk of X_new, penalty, number of weights that are not
    zero.

    Source: Simon et al. 2011 (J Stat Softw 39:5), scikit-survival's CoxnetSurvivalAnalysis.
    """
    from sksurv.linear_model import CoxnetSurvivalAnalysis
    from sksurv.util import Surv

    def path(rows: np.ndarray, alphas: np.ndarray | None) -> CoxnetSurvivalAnalysis:
        model = CoxnetSurvivalAnalysis(
            l1_ratio=l1_ratio, n_alphas=30, alphas=alphas, alpha_min_ratio=0.05, max_iter=10_000
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(X[rows], Surv.from_arrays(event[rows].astype(bool), time[rows]))

    everybody = np.arange(X.shape[0])
    whole = path(everybody, None)
    part = _stratified(event, inner, generator)
    scores = np.zeros((inner, whole.alphas_.size))
    for k in range(inner):
        held = part == k
        model = path(np.flatnonzero(~held), whole.alphas_)
        risks = X[held] @ model.coef_
        for a in range(model.coef_.shape[1]):
            scores[k, a] = concordance(time[held], event[held], risks[:, a])
        scores[k, model.coef_.shape[1] :] = np.nan
    best = int(np.nanargmax(np.nanmean(scores, axis=0)))
    weights = whole.coef_[:, min(best, whole.coef_.shape[1] - 1)]
    return X_new @ weights, float(whole.alphas_[best]), int((weights != 0).sum())


def _stratified(event: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    fold_of = np.empty(event.size, dtype=int)
    start = 0
    for value in (0, 1):
        members = generator.permutation(np.flatnonzero(event == value))
        fold_of[members] = (np.arange(members.size) + start) % folds
        start += members.size
    return fold_of
