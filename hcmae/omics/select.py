"""From whole-genome tables to the 3 x top_k matrix of the survival network, fitted on some patients, applied to all.

Everything that is learnt (filters, size-factor reference, donors of the imputation, tests, forest, scaling) is learnt
in `OmicsSelector.fit` from the patients it is given and from nobody else. The honest protocol calls it with the
training part of a fold; the paper's protocol calls it with everybody, and that is the whole difference between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from hcmae.config import MODALITIES, OmicsSettings
from hcmae.omics import differential
from hcmae.omics.forest import SurvivalForest, library_forest
from hcmae.omics.importance import Importance, forest_importance, library_importance
from hcmae.omics.impute import NeighbourImputer, SharedSums
from hcmae.omics.recognise import converted, recognise
from hcmae.omics.scales import (
    SCALES,
    Scale,
    SizeFactors,
    check_scale,
    expressed,
    least_expression,
    log_expression,
    m_values,
)
from hcmae.tables import say
from hcmae.units import UNITS

_DEFAULT_SCALE: dict[str, Scale] = {"rna": "counts", "mirna": "counts", "methylation": "beta"}


@dataclass
class OmicsTable:
    """One modality: values [n, p] float32, patients (rows), features (columns, unique), gene names.

    ``declared``: its unit (`hcmae.units.UNITS`) or its scale (`hcmae.omics.scales.SCALES`), None where nobody says.
    """

    modality: str
    X: np.ndarray
    patients: list[str]
    features: pd.Index
    labels: pd.Series
    declared: str | None = None

    def take(self, rows: np.ndarray) -> OmicsTable:
        """The same table with these rows only."""
        return OmicsTable(
            self.modality, self.X[rows], [self.patients[i] for i in rows], self.features, self.labels, self.declared
        )


@dataclass
class Step:
    """What was learnt about one modality; ``features`` are all that were fitted, ``chosen`` counts within ``kept``."""

    declared: str | None
    scale: Scale
    features: pd.Index
    kept: np.ndarray
    factors: SizeFactors | None
    limits: tuple[np.ndarray, np.ndarray] | None
    imputer: NeighbourImputer | None
    chosen: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


class OmicsSelector:
    """Filter, impute, test, rank by a survival forest, keep the best top_k of every modality, standardise.

    scikit-learn's contract: `fit` learns, `transform` applies, nothing else changes state. After `fit`:

    ``chosen``    modality -> DataFrame of the top_k, best first: gene, effect, statistic, p, q, importance,
                  importance_sd, rank
    ``tested``    modality -> the whole differential table of the fitted patients
    ``losses``    DataFrame modality x step: how many features each filter left
    Source: section III-A of the paper; where it is silent, ``config.OmicsSettings`` names the choice.
    """

    def __init__(self, settings: OmicsSettings | None = None, seed: int = 0, *, workers: int = 1) -> None:
        self.settings = settings or OmicsSettings()
        self.seed = seed
        self.workers = workers

    def fit(
        self,
        data: Any,
        time: Sequence[float] | np.ndarray | pd.Series,
        event: Sequence[int] | np.ndarray | pd.Series,
        *,
        normals: Mapping[str, pd.DataFrame] | None = None,
        shared: Mapping[str, SharedSums] | None = None,
    ) -> OmicsSelector:
        """Learn from these patients.

        data: MuData, or dict of modality -> DataFrame (patients x features); all modalities have the same patients in
        the same order. time [n] days, event [n] of {0, 1}, in that order. ``normals``: raw tables of normal tissue, for
        ``contrast: tumour_normal`` only. ``shared``: sums over patient pairs that folds have in common (see
        `SelectorCache`).
        Raises ValueError for patients that differ between modalities, values that contradict their scale, a library of
        zero, an unusable contrast, or fewer than top_k features left.
        """
        tables = omics_tables(data)
        self.modalities = tuple(tables)
        patients = next(iter(tables.values())).patients
        time64, events = _labels(time, event, patients)
        self.chosen: dict[str, pd.DataFrame] = {}
        self.tested: dict[str, pd.DataFrame] = {}
        self.steps: dict[str, Step] = {}
        losses = {}
        for k, (modality, table) in enumerate(tables.items()):
            normal = None
            if self.settings.contrast == "tumour_normal":
                if normals is None or modality not in normals:
                    raise ValueError(
                        f"contrast tumour_normal needs a table of normal tissue for {modality}: "
                        f"pass normals={{'{modality}': DataFrame}} or choose contrast horizon"
                    )
                normal = _normal(normals[modality], table, _scale(table, self.settings))
            # One stream per modality, so that a modality's selection does not depend on which others are present.
            seed = self.seed * 10 + (MODALITIES.index(modality) if modality in MODALITIES else 3 + k)
            losses[modality] = self._fit_modality(table, time64, events, normal, seed, (shared or {}).get(modality))
        steps = ["measured", "few missing", "expressed", "varies", "candidates", "chosen"]
        self.losses = pd.DataFrame(losses).T.reindex(columns=steps).astype("Int64")
        self.patients_ = patients
        return self

    def transform(self, data: Any) -> np.ndarray:
        """The chosen features of these patients, standardised with the fitted means: [n, modalities, top_k] float32.

        Same modalities and features as fitted (extra modalities are ignored). Column j of a modality is row j of
        `chosen`.
        """
        if not hasattr(self, "steps"):
            raise ValueError("this OmicsSelector is not fitted: call fit first")
        tables = omics_tables(data, self.modalities)
        n = len(next(iter(tables.values())).patients)
        out = np.empty((n, len(self.modalities), self.settings.top_k), dtype=np.float32)
        for k, modality in enumerate(self.modalities):
            out[:, k] = self._apply(tables[modality], self.steps[modality])
        return out

    def fit_transform(self, data: Any, time: Any, event: Any) -> np.ndarray:
        """Fit and transform the same patients."""
        return self.fit(data, time, event).transform(data)

    def _fit_modality(
        self,
        table: OmicsTable,
        time: np.ndarray,
        event: np.ndarray,
        normal: np.ndarray | None,
        seed: int,
        shared: SharedSums | None,
    ) -> dict[str, int]:
        settings, modality = self.settings, table.modality
        scale = _scale(table, settings)
        check_scale(table.X, scale, modality, table.patients, table.features)
        left = {"measured": table.X.shape[1]}

        missing = np.isnan(table.X).mean(axis=0)
        keep = missing <= min(settings.max_missing, np.nextafter(1.0, 0.0))
        left["few missing"] = int(keep.sum())
        least = least_expression(table.declared, scale, settings.min_count, settings.min_rpm)
        if least is not None and modality != "methylation":
            keep &= expressed(table.X, least, settings.min_expressed)
            left["expressed"] = int(keep.sum())
        if not keep.any():
            raise ValueError(
                f"{modality}: no feature is left after the filters; check omics.max_missing, min_count, min_rpm, "
                "min_expressed"
            )
        raw = table.X[:, keep]
        step = Step(
            table.declared,
            scale,
            table.features,
            np.flatnonzero(keep),
            None,
            None,
            None,
            np.empty(0, int),
            np.empty(0),
            np.empty(0),
        )
        if scale == "counts":
            step.factors = SizeFactors.fit(table.X)
            values = log_expression(raw, step.factors(table.X))
        else:
            if np.isnan(raw).any():
                step.imputer = NeighbourImputer(settings.neighbours).fit(raw)
                raw = step.imputer.transform(raw, distances=None if shared is None else shared.distances(keep))
            elif modality == "methylation":
                # New patients may miss a probe that nobody misses here.
                step.imputer = NeighbourImputer(settings.neighbours).fit(raw)
            if scale == "log":
                step.limits = _limits(raw)
            values = rescale(raw, scale, step.limits)

        varies = values.std(axis=0, dtype=np.float64) > 1e-6
        left["varies"] = int(varies.sum())
        if varies.sum() < settings.top_k:
            raise ValueError(
                f"{modality}: {int(varies.sum())} usable features of {table.X.shape[1]} measured, but omics.top_k is "
                f"{settings.top_k}: lower omics.top_k (the matrix is modalities x top_k), or relax omics.max_missing "
                f"({settings.max_missing}), min_count ({settings.min_count}), min_rpm ({settings.min_rpm:g}) or "
                f"min_expressed ({settings.min_expressed})"
            )
        usable = np.flatnonzero(varies)
        values = values[:, usable]
        names = table.features[step.kept[usable]]
        tested = self._test(table, step.kept[usable], values, scale, time, event, normal, names)
        self.tested[modality] = tested

        pool = _candidates(tested, settings)
        left["candidates"] = pool.size
        importance = self._rank(values[:, pool], time, event, seed)
        statistic = np.abs(tested["statistic"].to_numpy()[pool])
        best = _order(importance.mean, statistic, settings.rank)[: settings.top_k]
        where = pool[best]
        left["chosen"] = where.size
        report = tested.iloc[where].copy()
        report.insert(0, "gene", table.labels.to_numpy()[step.kept[usable[where]]])
        report["importance"] = importance.mean[best]
        report["importance_sd"] = importance.sd[best]
        report["rank"] = np.arange(1, where.size + 1)
        self.chosen[modality] = report

        step.chosen = usable[where]
        picked = values[:, where].astype(np.float64)
        step.mean, step.sd = picked.mean(axis=0), picked.std(axis=0)
        self.steps[modality] = step
        return left

    def _test(
        self,
        table: OmicsTable,
        columns: np.ndarray,
        values: np.ndarray,
        scale: Scale,
        time: np.ndarray,
        event: np.ndarray,
        normal: np.ndarray | None,
        names: pd.Index,
    ) -> pd.DataFrame:
        settings = self.settings
        if settings.differential == "cox_score":
            return differential.cox_score(values, time, event, names)
        raw = table.X[:, columns]
        if normal is not None:
            group = np.concatenate([np.ones(len(values), int), np.zeros(len(normal), int)])
            raw = np.concatenate([raw, normal[:, columns]])
            if scale != "counts":
                below = normal[:, columns]
                below = np.where(np.isnan(below), np.nanmean(raw, axis=0), below)
                values = np.concatenate([values, rescale(below, scale, None)])
        else:
            contrast: Literal["horizon", "event"] = "event" if settings.contrast == "event" else "horizon"
            group = differential.two_groups(time, event, contrast, settings.horizon_days)
        if scale == "counts":
            return differential.deseq2(raw, group, names, workers=self.workers)
        if scale == "beta" and settings.methylation_test == "deseq2":
            filled = np.where(np.isnan(raw), np.nanmean(raw, axis=0), raw)
            return differential.deseq2(differential.beta_counts(filled), group, names, workers=self.workers)
        # Not counts: DESeq2 does not apply; the same contrast by the moderated t.
        return differential.moderated_t(values, group, names)

    def _rank(self, X: np.ndarray, time: np.ndarray, event: np.ndarray, seed: int) -> Importance:
        settings = self.settings
        if settings.forest == "library":
            forest = library_forest(X, time, event, trees=settings.trees, seed=seed, workers=self.workers)
            return library_importance(forest, X, time, event, repeats=settings.importance_repeats, seed=seed)
        grown = SurvivalForest(settings.trees, seed=seed, workers=self.workers).fit(X, time, event)
        return forest_importance(
            grown, X, time, event,
            kind=settings.importance, repeats=settings.importance_repeats, seed=seed, workers=self.workers,
        )  # fmt: skip

    def _apply(self, table: OmicsTable, step: Step) -> np.ndarray:
        if not table.features.equals(step.features):
            lost = step.features.difference(table.features)
            if len(lost):
                raise ValueError(
                    f"{table.modality}: {len(lost)} fitted feature(s) are not in this table (first: {lost[0]}); "
                    "transform needs the tables that fit had"
                )
            at = table.features.get_indexer(step.features)
            table = OmicsTable(
                table.modality, table.X[:, at], table.patients, step.features, table.labels.iloc[at], table.declared
            )
        check_scale(table.X, step.scale, table.modality, table.patients, table.features)
        columns = step.kept[step.chosen]
        if step.factors is not None:
            values = log_expression(table.X[:, columns], step.factors(table.X))
        else:
            if step.imputer is not None and np.isnan(table.X[:, columns]).any():
                raw = step.imputer.transform(table.X[:, step.kept], step.chosen)
            else:
                raw = table.X[:, columns]
                if np.isnan(raw).any():
                    row = int(np.nonzero(np.isnan(raw))[0][0])
                    raise ValueError(
                        f"{table.modality}: missing value for {table.patients[row]}, "
                        "but no fitted patient had one to learn from"
                    )
            limits = None if step.limits is None else (step.limits[0][step.chosen], step.limits[1][step.chosen])
            values = rescale(raw, step.scale, limits)
        z = (values - step.mean) / step.sd
        return np.clip(z, -self.settings.clip, self.settings.clip).astype(np.float32)


def omics_tables(data: Any, modalities: Sequence[str] | None = None) -> dict[str, OmicsTable]:
    """The modalities of a MuData or of a dict of DataFrames, in the project's order, checked for equal patients.

    Duplicate features of a table (a gene symbol on two rows) become one: counts are added, other values averaged, a
    missing copy left out. Tables of expected counts and of betas in per cent, if declared so, become counts and betas.
    Raises ValueError for no known modality, duplicate patients, or patients that differ between modalities.
    """
    source: Mapping[str, Any] = data.mod if hasattr(data, "mod") else data
    names = [m for m in MODALITIES if m in source] + [m for m in source if m not in MODALITIES]
    if modalities is not None:
        absent = [m for m in modalities if m not in source]
        if absent:
            raise ValueError(f"modality {absent[0]} was fitted but is not in this data ({', '.join(names)})")
        names = list(modalities)
    if not names:
        raise ValueError("no modality in the data: pass a MuData or a dict of DataFrames named rna, mirna, methylation")
    tables = {name: _table(name, source[name]) for name in names}
    first = tables[names[0]]
    for table in tables.values():
        if len(set(table.patients)) != len(table.patients):
            twice = pd.Index(table.patients)[pd.Index(table.patients).duplicated()][0]
            raise ValueError(f"{table.modality}: patient {twice} has two rows; keep one sample per patient")
        if table.patients != first.patients:
            gone = sorted(set(first.patients) ^ set(table.patients))
            raise ValueError(
                f"{table.modality} and {first.modality} do not have the same patients in the same order"
                + (f": {len(gone)} differ, first {gone[0]}" if gone else "")
                + "; curate the cohort to patients with every modality first"
            )
    return tables


def _table(modality: str, source: Any) -> OmicsTable:
    if isinstance(source, OmicsTable):
        return source
    if isinstance(source, pd.DataFrame):
        X = source.to_numpy(dtype=np.float32)
        labels = pd.Series(source.columns.astype(str))
        declared = source.attrs.get("values", source.attrs.get("unit"))
        patients, features = source.index, source.columns
    else:
        X = source.X.toarray() if hasattr(source.X, "toarray") else np.asarray(source.X)
        X = X.astype(np.float32, copy=False)
        patients, features = source.obs_names, source.var_names
        labels = source.var["gene_name"] if "gene_name" in source.var else pd.Series(features.astype(str))
        declared = source.uns.get("values", source.uns.get("unit"))
    if declared is not None and declared in UNITS:
        X, unit = converted(X, UNITS[declared])
        declared = unit.name
    index = pd.Index([str(f) for f in features])
    labels = pd.Series(labels.astype(str).to_numpy(), index=index)
    if index.has_duplicates:
        X, index = _merged(X, index, declared)
        labels = labels[~labels.index.duplicated()]
    return OmicsTable(modality, X, [str(p) for p in patients], index, labels, declared)


def _merged(X: np.ndarray, index: pd.Index, declared: str | None) -> tuple[np.ndarray, pd.Index]:
    """One column per feature: copies of counts are added, of other values averaged; a missing copy is left out."""
    codes, unique = pd.factorize(index)
    known = ~np.isnan(X)
    merged = np.zeros((X.shape[0], len(unique)), dtype=np.float32)
    np.add.at(merged.T, codes, np.where(known, X, np.float32(0)).T)
    copies = np.zeros((X.shape[0], len(unique)), dtype=np.float32)
    np.add.at(copies.T, codes, known.T.astype(np.float32))
    seen = X[known]
    whole = declared == "counts" or (
        declared in (None, "auto") and seen.size > 0 and np.array_equal(seen, np.rint(seen)) and seen.min() >= 0
    )
    if not whole:
        merged /= np.maximum(copies, 1)
    merged[copies == 0] = np.nan
    return merged, pd.Index(unique)


def _scale(table: OmicsTable, settings: OmicsSettings) -> Scale:
    # Tables read by earlier versions may say "as given", which is no unit.
    declared = "auto" if table.declared == "as given" else table.declared
    wanted: Any = settings.values.get(table.modality)
    scale: Any = wanted or declared or _DEFAULT_SCALE.get(table.modality, "auto")
    if scale == "auto":
        found = recognise(table.X, table.modality, table.patients, list(table.features), table.modality)
        say(found.line(table.modality))
        if found.unit.done != "nothing":
            raise ValueError(
                f"{table.modality}: these are {found.unit.name}, {found.reason}; they must be {found.unit.done}: "
                f"declare them, attrs['unit'] = '{found.unit.name}', or read them with read_omics"
            )
        return found.unit.scale  # type: ignore[return-value]
    if None not in (wanted, declared) and declared in UNITS and UNITS[str(declared)].scale != wanted:
        say(f"{table.modality}: taken as '{wanted}', as omics.values says, although the table says {declared}")
    if scale in UNITS:
        return UNITS[scale].scale  # type: ignore[return-value]
    if scale not in SCALES:
        raise ValueError(
            f"{table.modality}: unknown scale '{scale}' in uns['values']; choose one of {', '.join(SCALES)} or of the "
            f"units {', '.join(UNITS)}"
        )
    return scale


def _normal(source: pd.DataFrame, table: OmicsTable, scale: Scale) -> np.ndarray:
    # Columns of the tumours' table; duplicates and scale are treated as theirs.
    normal = _table(table.modality, source)
    if normal.declared is not None and normal.declared in UNITS and UNITS[normal.declared].scale != scale:
        raise ValueError(
            f"{table.modality}: the table of normal tissue holds {normal.declared}, that of the tumours is used as "
            f"'{scale}': bring both in one unit"
        )
    lost = table.features.difference(normal.features)
    if len(lost):
        raise ValueError(
            f"{table.modality}: the table of normal tissue lacks {len(lost)} features of the tumours (first: {lost[0]})"
        )
    values = normal.X[:, normal.features.get_indexer(table.features)]
    check_scale(values, scale, f"{table.modality}, normal tissue", normal.patients, table.features)
    return values


def _limits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # z-score tables have tails to thousands of standard deviations: five robust ones around the median are kept.
    low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
    reach = np.where(high > low, 5.0 * (high - low) / 1.349, np.inf)
    return (middle - reach).astype(np.float32), (middle + reach).astype(np.float32)


def rescale(values: np.ndarray, scale: Scale, limits: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """Values [n, p] of a scale other than counts as a test sees them: logarithm, M-value, far outliers pulled in."""
    if scale == "beta":
        return m_values(values)
    if scale == "rpm":
        return np.log2(values + np.float32(1.0))
    if limits is not None:
        return np.clip(values, limits[0], limits[1])
    return values


def _candidates(tested: pd.DataFrame, settings: OmicsSettings) -> np.ndarray:
    # Small p first; equal p (underflow at 0) by the size of the statistic.
    order = np.lexsort((-np.abs(tested["statistic"].to_numpy()), tested["p"].to_numpy()))
    if settings.candidates is not None:
        return order[: max(settings.candidates, settings.top_k)]
    passed = int((tested["p"].to_numpy() < settings.alpha).sum())
    return order[:passed] if passed >= settings.top_k else order


def _order(importance: np.ndarray, statistic: np.ndarray, rank: str) -> np.ndarray:
    # Features that no tree can use (importance <= 0) are equals; the test orders them.
    by_importance = np.lexsort((-statistic, -np.maximum(importance, 0.0)))
    if rank == "importance":
        return by_importance
    places = np.empty((2, importance.size))
    places[0, by_importance] = np.arange(importance.size)
    places[1, np.argsort(-statistic, kind="stable")] = np.arange(importance.size)
    return np.lexsort((-statistic, places.sum(axis=0)))


def _labels(time: Any, event: Any, patients: list[str]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(time, pd.Series) and isinstance(event, pd.Series) and set(patients) <= set(time.index.astype(str)):
        time, event = time.loc[patients], event.loc[patients]
    time64, events = np.asarray(time, dtype=np.float64), np.asarray(event)
    if time64.shape != (len(patients),) or events.shape != time64.shape:
        raise ValueError(f"{len(patients)} patients, but time has shape {time64.shape} and event {events.shape}")
    if not np.isfinite(time64).all() or (time64 < 0).any():
        row = int(np.flatnonzero(~np.isfinite(time64) | (time64 < 0))[0])
        raise ValueError(f"survival time of {patients[row]} is {time64[row]}: days must be finite and not negative")
    if not np.isin(events, (0, 1)).all():
        row = int(np.flatnonzero(~np.isin(events, (0, 1)))[0])
        raise ValueError(f"event of {patients[row]} is {events[row]}: must be 0 or 1")
    return time64, events.astype(int)
