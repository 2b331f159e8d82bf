"""Figures of the survival chapters: curves of risk groups, C-indices, comparisons, leaks, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from hcmae.plots import style

__all__ = [
    "plot_ablation",
    "plot_attention",
    "plot_brier",
    "plot_calibration",
    "plot_comparison",
    "plot_cox_geometry",
    "plot_critical_difference",
    "plot_differences",
    "plot_fold_scores",
    "plot_gene_attributions",
    "plot_kaplan_meier",
    "plot_leaks",
    "plot_null_p_values",
    "plot_optimism_curve",
]


def plot_kaplan_meier(groups: Mapping[str, Any], *, columns: int = 3) -> Figure:
    """Kaplan-Meier panels of low and high risk, one per method, with 95 % bands and numbers at risk.

    groups: title -> evaluation.kaplan_meier.RiskGroups. Naive p-values and intervals are called so in the panel.
    """
    count = len(groups)
    columns = min(columns, count)
    rows = -(-count // columns)
    fig, axes = style.figure(rows, columns, width="wide", height=3.5 * rows, squeeze=False)
    for ax, (title, verdict) in zip(axes.ravel(), groups.items(), strict=False):
        for curve in (verdict.low, verdict.high):
            colour = style.colour(curve.label)
            years = curve.days / 365.25
            ax.step(years, curve.survival, where="post", color=colour, label=f"{curve.label} risk")
            ax.fill_between(years, curve.low, curve.high, step="post", color=colour, alpha=0.15, linewidth=0)
        # The verdict stands under the title: inside the panel a curve may run anywhere.
        said = _verdict_lines(verdict)
        ax.set_title(fill(title, 24), pad=6 + 10 * (said.count("\n") + 1))
        words = ax.text(0.0, 1.02, said, transform=ax.transAxes, fontsize=7, va="bottom")
        words.set_in_layout(
            False
        )  # a long one may stand over the gap to the next panel, and takes no width from its own
        ax.set_ylim(0, 1.02)
        _numbers_at_risk(ax, verdict)
    for ax in axes[:, 0]:
        ax.set_ylabel("alive")
    for ax in axes.ravel()[count:]:
        ax.set_visible(False)
    engine = fig.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(hspace=0.07)  # room between the numbers at risk and the next row's titles
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _verdict_lines(verdict: Any) -> str:
    """p-value and hazard ratio; a line of its own for the p-value of the whole procedure."""
    interval = f"HR {verdict.ratio_text(why=False)}"
    if not verdict.out_of_fold:
        return f"{verdict.p_text()}\n{interval}"
    naive = f"naive: p = {verdict.log_rank_p:.2g}\nnaive: {interval}"
    if verdict.permutation is None:
        return naive
    return f"permuted ({verdict.permutation.permutations}): p = {verdict.permutation.p:.2g}\n{naive}"


def _numbers_at_risk(ax: Axes, verdict: Any) -> None:
    """Two rows under the axis: how many of each group are still followed at every tick."""
    ax.set_xticks([tick / 365.25 for tick in verdict.ticks], [f"{tick / 365.25:.0f}" for tick in verdict.ticks])
    ax.set_xlabel("years", labelpad=2)
    for place, curve in ((-0.3, verdict.high), (-0.39, verdict.low)):
        look: dict[str, Any] = {
            "fontsize": 7,
            "color": style.colour(curve.label),
            "va": "top",
            "transform": ax.get_xaxis_transform(),
        }
        ax.text(-0.04, place, f"{curve.label} ", **{**look, "ha": "right", "transform": ax.transAxes})
        for tick in verdict.ticks:
            ax.text(tick / 365.25, place, str(curve.at_risk[tick]), ha="center", **look)
    ax.text(-0.04, -0.21, "at risk", fontsize=7, color=style.MUTED, va="top", ha="right", transform=ax.transAxes)


def plot_null_p_values(p_values: Mapping[str, NDArray[np.floating]], *, alpha: float = 0.05) -> Figure:
    """Share of p-values up to each value where nothing is true; a test that holds stays on the diagonal.

    p_values: name -> p-values [draws] of outcomes that mean nothing. The second panel is the corner that decides.
    """
    fig, axes = style.figure(1, 2, width="wide", height=3.2)
    for ax, reach in zip(axes, (1.0, 4 * alpha), strict=True):
        ax.plot([0, reach], [0, reach], color=style.MUTED, linestyle=":", label="a test that holds")
        for name, values in p_values.items():
            ordered = np.sort(np.asarray(values, dtype=float))
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            ax.step(
                np.concatenate([[0.0], ordered, [1.0]]),
                np.concatenate([[0.0], share, [1.0]]),
                where="post",
                color=style.colour(name),
                label=name,
            )
        ax.axvline(alpha, color=style.INK, linewidth=0.8)
        ax.set(xlim=(0, reach), ylim=(0, min(1.0, 1.6 * reach)), xlabel="p-value")
    axes[0].set_ylabel("share of the draws at or under it")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(p_values) + 1)
    return fig


def plot_fold_scores(
    scores: Mapping[str, pd.DataFrame], *, labels: Mapping[str, str] | None = None, oracle: float | None = None
) -> Figure:
    """C-index of every fold as a dot and the mean as a bar mark, one row per method.

    scores: method -> metrics.fold_concordance table.
    """
    fig, ax = style.figure(width="wide", height=0.42 * len(scores) + 1.0)
    names = list(scores)
    for row, name in enumerate(reversed(names)):
        values = scores[name]["c_index"].to_numpy()
        spread = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(values, row + spread, "o", color=style.colour(name), alpha=0.45, markersize=3.5)
        ax.plot([np.nanmean(values)] * 2, [row - 0.32, row + 0.32], color=style.colour(name), linewidth=2.5)
    ax.set_yticks(range(len(names)), [(labels or {}).get(name, name) for name in reversed(names)])
    _reference(ax, oracle)
    ax.set_xlabel("C-index of a test fold")
    return fig


def _reference(ax: Axes, oracle: float | None) -> None:
    ax.axvline(0.5, color=style.MUTED, linestyle=":", linewidth=1.2)
    ax.annotate("coin", (0.5, 1.0), xycoords=("data", "axes fraction"), fontsize=7, ha="center", va="bottom")
    if oracle is not None:
        ax.axvline(oracle, color=style.INK, linestyle="--", linewidth=1.0)
        ax.annotate("oracle", (oracle, 1.0), xycoords=("data", "axes fraction"), fontsize=7, ha="center", va="bottom")


def plot_comparison(
    table: pd.DataFrame, *, labels: Mapping[str, str] | None = None, oracle: float | None = None
) -> Figure:
    """Mean C-index with its bootstrap interval per method; table indexed by method with mean, low, high (and paper)."""
    fig, ax = style.figure(width="wide", height=0.4 * len(table) + 1.1)
    rows = np.arange(len(table))[::-1]
    for row, (name, line) in zip(rows, table.iterrows(), strict=True):
        colour = style.colour(str(name))
        ax.plot([line["low"], line["high"]], [row, row], color=colour, linewidth=2)
        ax.plot(line["mean"], row, "o", color=colour, markersize=6)
        if "paper" in table.columns and np.isfinite(line["paper"]):
            ax.plot(line["paper"], row, "D", markerfacecolor="none", markeredgecolor=style.INK, markersize=5)
    ax.set_yticks(rows, [(labels or {}).get(str(name), str(name)) for name in table.index])
    if "paper" in table.columns and np.isfinite(table["paper"]).any():
        ax.plot([], [], "D", markerfacecolor="none", markeredgecolor=style.INK, label="paper (real data)")
        fig.legend(loc="outside lower left")
    _reference(ax, oracle)
    ax.set_xlabel("C-index, mean over folds; line: 95 % over patients")
    return fig


def plot_ablation(
    table: pd.DataFrame, *, labels: Mapping[str, str] | None = None, oracle: float | None = None
) -> Figure:
    """The ablation of Table III: the same picture as ``plot_comparison``, in the table's order."""
    return plot_comparison(table, labels=labels, oracle=oracle)


def plot_differences(table: pd.DataFrame, *, labels: Mapping[str, str] | None = None) -> Figure:
    """Paired differences of C-indices; thick: bootstrap over patients, thin: corrected for retraining.

    ``table`` is that of compare.compare; a difference is coloured when both intervals exclude zero.
    """
    fig, ax = style.figure(width="wide", height=0.4 * len(table) + 1.0)
    rows = np.arange(len(table))[::-1]
    names = labels or {}
    for row, (_, line) in zip(rows, table.iterrows(), strict=True):
        low, high = min(line["low"], line["nb_low"]), max(line["high"], line["nb_high"])
        colour = style.ACCENT if low > 0 or high < 0 else style.MUTED
        ax.plot([line["nb_low"], line["nb_high"]], [row, row], color=colour, linewidth=0.9)
        ax.plot([line["low"], line["high"]], [row, row], color=colour, linewidth=3)
        ax.plot(line["difference"], row, "o", color=colour)
    ax.set_yticks(
        rows,
        [f"{names.get(a, a)} minus {names.get(b, b)}" for a, b in zip(table["first"], table["second"], strict=True)],
    )
    ax.axvline(0, color=style.INK, linewidth=1)
    ax.set_xlabel("difference in C-index, 95 % (thick: over test patients, thin: over training sets)")
    return fig


def plot_critical_difference(ranks: Any, *, labels: Mapping[str, str] | None = None) -> Figure:
    """Mean ranks on a line, best on the left; a bar joins methods that cannot be told apart (Demsar 2006).

    ranks: evaluation.compare.Ranks; the ruler above the line has the length of the critical difference.
    """
    names = [str(name) for name in ranks.mean.index]
    places = ranks.mean.to_numpy()
    count = len(names)
    half = -(-count // 2)
    bar, row = 0.16, 0.27  # inches between two bars, between two names
    below = 0.14 + bar * len(ranks.groups)
    above, depth = 0.62, below + row * half
    fig, ax = style.figure(width="wide", height=above + depth + 0.1)
    # One unit upwards is one inch; the sides leave room for the names.
    side = 0.34 * max(count - 1, 1)
    ax.set(xlim=(1 - side, count + side), ylim=(-depth - 0.05, above))
    style.bare(ax)
    ax.plot([1, count], [0, 0], color=style.INK, linewidth=1.2)
    for tick in range(1, count + 1):
        ax.plot([tick, tick], [0, 0.06], color=style.INK, linewidth=0.8)
        ax.text(tick, 0.09, str(tick), ha="center", va="bottom", fontsize=8)
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        left = number < half
        level = -below - row * (number if left else count - 1 - number) - 0.12
        end = 1 - 0.05 * side if left else count + 0.05 * side
        ax.plot([place, place, end], [0, level, level], color=style.colour(name), linewidth=1)
        ax.plot(place, 0, "o", color=style.colour(name), markersize=4.5, zorder=3)
        text = (
            f"{(labels or {}).get(name, name)}  {place:.1f}"
            if left
            else f"{place:.1f}  {(labels or {}).get(name, name)}"
        )
        ax.text(end, level, f" {text} ", ha="right" if left else "left", va="center", fontsize=8)
    for number, group in enumerate(ranks.groups):
        ends = places[names.index(group[0])] - 0.06, places[names.index(group[-1])] + 0.06
        level = -0.14 - bar * number
        ax.plot(ends, [level, level], color=style.INK, linewidth=3.2, solid_capstyle="butt")
    reach = min(ranks.critical_difference, count + side - 1)
    ax.plot([1, 1 + reach], [0.42, 0.42], color=style.MUTED, linewidth=1.2)
    for x in (1, 1 + reach):
        ax.plot([x, x], [0.37, 0.47], color=style.MUTED, linewidth=1.2)
    ax.text(
        1 + reach / 2,
        0.46,
        f"critical difference {ranks.critical_difference:.1f}",
        ha="center",
        va="bottom",
        fontsize=8,
    )
    return fig


def plot_leaks(table: pd.DataFrame) -> Figure:
    """C-index by protocol for true and permuted labels; table [cohort, labels, protocol, mean, low, high, noise].

    ``noise`` is the standard deviation of a 5-fold mean for patients of that number and event rate; a grey band of
    two of it around 0.5 shows what chance alone does.
    """
    cohorts = list(dict.fromkeys(table["cohort"]))
    order = list(dict.fromkeys(table["protocol"]))
    fig, axes = style.figure(1, len(cohorts), width="wide", height=3.4, squeeze=False, sharey=True)
    for ax, cohort in zip(axes[0], cohorts, strict=True):
        part = table[table["cohort"] == cohort]
        # The same order in every panel, whatever order its rows came in.
        protocols = [name for name in order if name in set(part["protocol"])]
        noise = part["noise"].dropna()
        if len(noise):
            ax.axhspan(0.5 - 2 * noise.iloc[0], 0.5 + 2 * noise.iloc[0], color=style.GRID, alpha=0.7, linewidth=0)
        for shift, (labels, marker) in zip((-0.12, 0.12), (("true", "o"), ("permuted", "s")), strict=True):
            shown = part[part["labels"] == labels].set_index("protocol").reindex(protocols)
            x = np.arange(len(protocols)) + shift
            colour = style.ACCENT if labels == "true" else style.WARN
            ax.vlines(x, shown["low"], shown["high"], color=colour, linewidth=1.2)
            name = "true labels" if labels == "true" else "labels that mean nothing"
            ax.plot(x, shown["mean"], marker, color=colour, label=name)
        ax.axhline(0.5, color=style.MUTED, linestyle=":")
        ax.set_xticks(range(len(protocols)), [fill(name, 10) for name in protocols], fontsize=8)
        ax.set_xlim(-0.5, len(protocols) - 0.5)
        ax.set_title(cohort)
    axes[0, 0].set_ylabel("C-index, 95 % interval")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=2)
    return fig


def plot_finding(table: pd.DataFrame) -> Figure:
    """C-index of labels that mean nothing, without and with the leaks; table [cohort, protocol, mean, low, high].

    One row per cohort, one mark per protocol in the order of the table; small enough to be read on a telephone.
    """
    cohorts, protocols = (list(dict.fromkeys(table[name])) for name in ("cohort", "protocol"))
    fig, ax = style.figure(width="narrow", height=0.9 + 0.62 * len(cohorts))
    for protocol, colour, marker in zip(protocols, (style.ACCENT, style.WARN), "os", strict=False):
        shown = table[table["protocol"] == protocol].set_index("cohort").reindex(cohorts)
        y = np.arange(len(cohorts))
        ax.hlines(y, shown["low"], shown["high"], color=colour, linewidth=2.0)
        ax.plot(shown["mean"], y, marker, color=colour, markersize=7, label=protocol)
        for place, mean in zip(y, shown["mean"], strict=True):
            ax.annotate(f"{mean:.2f}", (mean, place), (0, 8), textcoords="offset points", ha="center", color=colour)
    ax.axvline(0.5, color=style.MUTED, linestyle=":")
    ax.set_yticks(range(len(cohorts)), [fill(name, 14) for name in cohorts])
    ax.set_ylim(len(cohorts) - 0.5, -0.7)
    ax.set_xlabel("C-index of shuffled labels, 95 % interval")
    fig.legend(loc="outside upper center", ncols=2)
    return fig


def plot_optimism_curve(curve: pd.DataFrame) -> Figure:
    """Leaky against nested C-index of pure noise by the number of candidates; table [candidates, leaky, nested]."""
    fig, ax = style.figure(width="medium")
    ax.plot(curve["candidates"], curve["leaky"], "o-", color=style.colour("paper"), label="chosen on all patients")
    ax.plot(curve["candidates"], curve["nested"], "s-", color=style.colour("honest"), label="chosen in training only")
    ax.axhline(0.5, color=style.MUTED, linestyle=":")
    ax.set_xscale("log")
    ax.set_xlabel("noise features to choose from")
    ax.set_ylabel("C-index")
    ax.legend()
    return fig


def plot_calibration(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Observed against predicted survival in groups of equal size; title -> metrics.calibration table."""
    fig, axes = style.figure(1, len(tables), width="wide" if len(tables) > 1 else "narrow", height=3.0, squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=style.MUTED, linestyle=":")
        ax.vlines(table["predicted"], table["low"], table["high"], color=style.ACCENT, clip_on=False)
        ax.plot(table["predicted"], table["observed"], "o", color=style.ACCENT, clip_on=False, zorder=3)
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), title=title, xlabel="predicted survival")
    axes[0, 0].set_ylabel("observed (Kaplan-Meier)")
    return fig


def plot_brier(tables: Mapping[str, pd.DataFrame], *, labels: Mapping[str, str] | None = None) -> Figure:
    """Brier score over time per method, with Kaplan-Meier as the reference; method -> metrics.brier table."""
    fig, ax = style.figure(width="medium")
    for name, table in tables.items():
        ax.plot(table["day"] / 365.25, table["model"], color=style.colour(name), label=(labels or {}).get(name, name))
    reference = next(iter(tables.values()))
    ax.plot(
        reference["day"] / 365.25,
        reference["kaplan_meier"],
        color=style.INK,
        linestyle="--",
        label="Kaplan-Meier, same for all",
    )
    ax.set_xlabel("years")
    ax.set_ylabel("Brier score (smaller is better)")
    ax.legend()
    return fig


def plot_cox_geometry(time: NDArray, event: NDArray, risk: NDArray) -> Figure:
    """Patients as bars of follow-up, sorted by time; at each death the risk set is everybody at or beyond it."""
    order = np.argsort(time)
    fig, ax = style.figure(width="wide", height=0.24 * len(time) + 1.0)
    scale = (np.asarray(risk) - np.min(risk)) / max(float(np.ptp(risk)), 1e-9)
    for row, index in enumerate(order):
        colour = style.WARN if event[index] else style.ACCENT
        ax.plot([0, time[index]], [row, row], color=colour, linewidth=1 + 4 * scale[index], alpha=0.7)
        ax.plot(time[index], row, "X" if event[index] else "|", color=colour, markersize=7)
        if event[index]:
            ax.axvline(time[index], color=style.MUTED, linewidth=0.9, linestyle=":", zorder=0)
    ax.grid(False)
    ax.set_yticks([])
    ax.set(xlabel="days of follow-up", ylabel="patients")
    for marker, colour, label in (("X", style.WARN, "death"), ("|", style.ACCENT, "last contact (censored)")):
        ax.plot([], [], marker, color=colour, markersize=7, label=label)
    ax.plot([], [], color=style.MUTED, linewidth=5, alpha=0.7, label="thicker: larger risk")
    fig.legend(loc="outside upper left", ncols=3)
    return fig


def plot_auc_strip(values: Mapping[str, float], *, marked: Sequence[str] = (), pooled: float | None = None) -> Figure:
    """One dot per patient: the chance that a planted region gets more attention than another; 0.5 is a coin.

    values: patient -> AUC; marked: patients who are named; pooled: AUC over the pairs of all patients.
    """
    fig, ax = style.figure(width="wide", height=1.7)
    ordered = sorted(values, key=lambda name: values[name])
    # Equal values are piled up, so that none hides another.
    pile: dict[float, int] = {}
    for name in ordered:
        place = round(values[name], 2)
        pile[place] = pile.get(place, 0) + 1
        known = name in marked
        ax.plot(place, pile[place], "o", color=style.WARN if known else style.ACCENT, markersize=6 if known else 5)
        if known:
            side = ("left", 5) if place < 0.5 else ("right", -5)
            ax.annotate(
                name, (place, pile[place]), xytext=(side[1], 4), textcoords="offset points", ha=side[0], va="bottom"
            )
    ax.axvline(0.5, color=style.MUTED, linestyle=":", label="coin")
    if pooled is not None:
        ax.axvline(pooled, color=style.INK, linewidth=1.0, label="all pairs")
    ax.set(
        xlim=(-0.03, 1.03),
        ylim=(0, max(pile.values(), default=1) + 2),
        yticks=[],
        xlabel="AUC of a patient's attention",
    )
    ax.legend(loc="upper center", ncols=2)
    return fig


def plot_attention(
    thumbnails: NDArray[np.uint8],
    positions: NDArray[np.floating],
    weights: NDArray[np.floating],
    *,
    planted: NDArray[np.bool_] | None = None,
    titles: Sequence[str] = ("rna", "mirna", "methylation"),
) -> Figure:
    """Regions at their places on the slide and each omics token's attention over them.

    thumbnails [M, T, T, 3], positions [M, 2] in units of a region, weights [k, M]; planted regions get a frame.
    """
    fig, axes = style.image_figure(1, 1 + len(weights), width="wide")
    axes = np.atleast_1d(axes)
    extent = (
        float(positions[:, 0].min()) - 0.1,
        float(positions[:, 0].max()) + 1.1,
        float(positions[:, 1].max()) + 1.1,
        float(positions[:, 1].min()) - 0.1,
    )
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps[style.ATTENTION]
    top = max(float(np.max(weights)), 1e-9)
    for number, ax in enumerate(axes):
        ax.set_xlim(extent[0], extent[1])
        ax.set_ylim(extent[2], extent[3])
        ax.set_aspect("equal")
        for region, (x, y) in enumerate(positions):
            if number == 0:
                ax.imshow(thumbnails[region], extent=(x, x + 1, y + 1, y), aspect="auto")
            else:
                ax.add_patch(Rectangle((x, y), 1, 1, color=colours(float(weights[number - 1, region]) / top)))
            if planted is not None and planted[region]:
                ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=style.ACCENT, linewidth=1.5))
        ax.set_xlim(extent[0], extent[1])
        ax.set_ylim(extent[2], extent[3])
        # imshow with an extent loosens it.
        ax.set_aspect("equal")
        ax.set_title("regions" if number == 0 else titles[number - 1])
    scale = ScalarMappable(Normalize(0, top), cmap=style.ATTENTION)
    fig.colorbar(scale, ax=list(axes), orientation="horizontal", shrink=0.4, aspect=30, label="attention weight")
    return fig


def plot_gene_attributions(table: pd.DataFrame, *, top: int = 20) -> Figure:
    """The features with the largest attribution; planted ones are filled. Table of interpret.gene_table."""
    shown = table.head(top).iloc[::-1]
    fig, ax = style.figure(width="wide", height=0.24 * len(shown) + 0.9)
    for row, (_, line) in enumerate(shown.iterrows()):
        colour = style.colour(line["modality"])
        ax.barh(row, line["attribution"], color=colour if line["planted"] else "white", edgecolor=colour)
    ax.set_yticks(
        range(len(shown)), [f"{m}: {f}" for m, f in zip(shown["modality"], shown["feature"], strict=True)], fontsize=7
    )
    ax.set_xlabel("mean absolute integrated gradient; filled = planted")
    return fig
