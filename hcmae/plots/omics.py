"""Figures of the omics chapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hcmae.plots import style

__all__ = [
    "plot_dispersion",
    "plot_importance",
    "plot_mean_variance",
    "plot_missing",
    "plot_omics_heatmap",
    "plot_selection_frequency",
    "plot_stability",
    "plot_volcano",
]


def plot_missing(values: pd.DataFrame, *, patients: int = 80, features: int = 400, title: str = "") -> Figure:
    """Where a table has holes: features with most missing values first (columns), patients by their number (rows).

    values: patients x features with NaN. At most ``features`` columns are drawn, evenly chosen among those with a hole.
    """
    missing = values.isna()
    share = missing.mean(axis=0).sort_values(ascending=False)
    holed = share.index[share > 0]
    figure, (left, right) = style.figure(1, 2, width_ratios=[2.2, 1])
    if len(holed):
        picked = holed[np.unique(np.linspace(0, len(holed) - 1, min(features, len(holed))).astype(int))]
        rows = missing.sum(axis=1).sort_values(ascending=False).index[:patients]
        left.imshow(missing.loc[rows, picked], aspect="auto", cmap="Greys", vmin=0, vmax=1)
        drawn = f", {len(picked):,} of them drawn" if len(picked) < len(holed) else ""
    else:
        rows, drawn = missing.index[:0], ""
    left.set(
        xlabel=f"features with a hole ({len(holed):,} of {len(share):,}{drawn})",
        ylabel=f"patients ({len(rows):,} of {len(missing):,} drawn)" if 0 < len(rows) < len(missing) else "patients",
        title=title,
    )
    left.grid(False)
    right.hist(share.to_numpy(), bins=np.linspace(0, 1, 41), color=style.ACCENT, log=True)
    right.set(xlabel="share of patients missing", ylabel="features")
    return figure


def plot_mean_variance(tables: Mapping[str, np.ndarray]) -> Figure:
    """Mean and sd of every feature on the scale the tests see: modality -> values [n, p]."""
    figure, axes = style.figure(1, len(tables), height=2.4, squeeze=False)
    for axis, (name, values) in zip(axes[0], tables.items(), strict=True):
        axis.scatter(
            np.nanmean(values, axis=0),
            np.nanstd(values, axis=0),
            s=4,
            alpha=0.35,
            color=style.colour(name),
            rasterized=True,
            linewidths=0,
        )
        axis.set(xlabel="mean", title=name)
    axes[0, 0].set_ylabel("standard deviation")
    return figure


def plot_dispersion(base_mean: np.ndarray, dispersion: np.ndarray) -> Figure:
    """DESeq2's dispersion of every gene against its mean count; the line is where counting noise is as large."""
    figure, axis = style.figure(width="medium")
    fine = np.isfinite(dispersion) & (dispersion > 0) & (base_mean > 0)
    axis.scatter(
        base_mean[fine],
        dispersion[fine],
        s=5,
        alpha=0.4,
        color=style.colour("rna"),
        rasterized=True,
        linewidths=0,
        label="gene",
    )
    grid = np.geomspace(base_mean[fine].min(), base_mean[fine].max(), 50)
    axis.plot(grid, 1 / grid, color=style.MUTED, label="1 / mean: counting noise is as large")
    axis.set(xscale="log", yscale="log", xlabel="mean count", ylabel="dispersion")
    axis.legend(markerscale=3)
    return figure


def plot_volcano(
    tested: pd.DataFrame, *, planted: Iterable[str] = (), alpha: float = 0.05, effect_label: str = "effect"
) -> Figure:
    """Effect against -log10 p of every feature; q below ``alpha`` in colour, planted features ringed."""
    figure, axis = style.figure(width="medium")
    level = -np.log10(np.maximum(tested["p"].to_numpy(), 1e-300))
    found = (tested["q"] < alpha).to_numpy()
    for mask, colour, label in (
        (~found, style.MUTED, f"q ≥ {alpha:g}"),
        (found, style.WARN, f"q < {alpha:g} ({found.sum()})"),
    ):
        axis.scatter(
            tested["effect"][mask],
            level[mask],
            s=7,
            alpha=0.55,
            color=colour,
            label=label,
            linewidths=0,
            rasterized=True,
        )
    marked = tested.index.isin(list(planted))
    if marked.any():
        axis.scatter(
            tested["effect"][marked],
            level[marked],
            s=22,
            facecolors="none",
            edgecolors=style.INK,
            linewidths=0.6,
            label="planted",
        )
    axis.set(xlabel=effect_label, ylabel="−log10 p")
    axis.legend(markerscale=1.5)
    return figure


def plot_importance(chosen: Mapping[str, pd.DataFrame], *, top: int = 15) -> Figure:
    """The first features of every modality with their importance (fall of C when permuted) and its sd over repeats."""
    figure, axes = style.figure(1, len(chosen), height=0.22 * top + 0.8, squeeze=False)
    for axis, (name, table) in zip(axes[0], chosen.items(), strict=True):
        first = table.head(top)[::-1]
        axis.barh(
            np.arange(len(first)),
            first["importance"],
            xerr=first["importance_sd"],
            color=style.colour(name),
            error_kw={"elinewidth": 0.8, "ecolor": style.MUTED},
        )
        axis.set_yticks(np.arange(len(first)), first["gene"], fontsize=7)
        axis.set(title=name, xlabel="fall of C when permuted")
        axis.grid(axis="y", visible=False)
    return figure


def plot_stability(stability: pd.DataFrame) -> Figure:
    """What the seed alone does to the ranking: shared top and rank correlation against the number of trees."""
    figure, axis = style.figure(width="medium")
    axis.plot(stability["trees"], stability["shared"], marker="o", label="share of the top both seeds have")
    axis.plot(stability["trees"], stability["spearman"], marker="s", label="rank correlation")
    axis.plot(stability["trees"], stability["chance"], color=style.MUTED, linestyle="--", label="share by chance")
    axis.set(xscale="log", xlabel="trees in the forest (log scale)", ylabel="agreement of two seeds", ylim=(0, 1))
    axis.set_xticks(stability["trees"], [f"{trees:,}" for trees in stability["trees"]])
    axis.set_xticks([], minor=True)
    axis.legend()
    return figure


def plot_selection_frequency(frequency: Mapping[str, pd.DataFrame], *, folds: int) -> Figure:
    """How many features were chosen in how many folds: modality -> table with column times."""
    figure, axis = style.figure(width="medium")
    width = 0.8 / len(frequency)
    for k, (name, table) in enumerate(frequency.items()):
        times = np.bincount(table["times"], minlength=folds + 1)[1 : folds + 1]
        axis.bar(np.arange(1, folds + 1) + (k - (len(frequency) - 1) / 2) * width, times, width, label=name,
                 color=style.colour(name))  # fmt: skip
    axis.set(xlabel="folds that chose the feature", ylabel="features", xticks=np.arange(1, folds + 1))
    axis.legend()
    return figure


def plot_omics_heatmap(
    matrix: np.ndarray, order: np.ndarray, modalities: Iterable[str], *, order_label: str = "patients by risk"
) -> Figure:
    """The selected matrix [n, modalities, k], patients ordered by ``order`` [n] from low to high.

    Within a modality, features are ordered by their correlation with that order, so that a signal shows as a gradient.
    """
    names = list(modalities)
    rank = np.argsort(np.argsort(order))
    figure, axes = style.figure(len(names), 1, height=1.5 * len(names) + 0.6, squeeze=False)
    for axis, name, k in zip(axes[:, 0], names, range(len(names)), strict=True):
        values = matrix[np.argsort(order), k]
        trend = matrix[:, k].T @ (rank - rank.mean())
        axis.imshow(values[:, np.argsort(trend)].T, aspect="auto", cmap=style.DIVERGING, vmin=-2.5, vmax=2.5)
        axis.grid(False)
        axis.set(ylabel=name, yticks=[], xticks=[])
    axes[-1, 0].set_xlabel(f"{order_label}, low to high")
    figure.colorbar(axes[-1, 0].images[0], ax=list(axes[:, 0]), shrink=0.5, label="standardised value")
    return figure
