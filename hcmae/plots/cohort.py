"""Figures of the cohort chapter."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hcmae.plots import style

__all__ = ["plot_consort", "plot_follow_up", "plot_sources", "plot_table1"]


def plot_consort(flow: pd.DataFrame, exclusions: pd.DataFrame | None = None, *, title: str = "") -> Figure:
    """Flow of patients in the manner of a CONSORT diagram: who remains after each rule, who left at it.

    flow: rule, before, excluded, after, in order (of a Cohort). exclusions: patient, rule, reason; up to three of the
    most frequent reasons are named. Rules that excluded nobody are listed at the end. Raises ValueError for an empty
    flow.
    """
    if flow.empty:
        raise ValueError("the flow has no rule: curate the cohort first")
    lossy = flow[flow["excluded"] > 0].reset_index(drop=True)
    silent = flow[flow["excluded"] == 0]["rule"].tolist()
    steps = len(lossy) + 2
    figure, ax = style.figure(width="wide", height=0.62 * steps + 0.5)
    style.bare(ax)
    ax.set_xlim(0, 10)
    ax.set_ylim(-steps + 0.4, 0.6)

    def box(x: float, y: float, width: float, text: str, colour: str, *, bold: bool = False) -> None:
        patch = FancyBboxPatch(
            (x, y - 0.3), width, 0.6, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor="white", edgecolor=colour, linewidth=1.6 if bold else 1.0,
        )  # fmt: skip
        ax.add_patch(patch)
        ax.text(
            x + width / 2, y, text, ha="center", va="center", fontsize=8 if "\n" not in text else 7.5, color=style.INK,
            fontweight="bold" if bold else "normal", linespacing=1.15,
        )  # fmt: skip

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": style.MUTED, "linewidth": 1.0})

    box(0.2, 0, 3.4, f"{int(flow['before'].iloc[0])} patients with any record", style.ACCENT, bold=True)
    for i, row in enumerate(lossy.itertuples(), start=1):
        arrow((1.9, -i + 0.68), (1.9, -i + 0.32))
        box(0.2, -i, 3.4, f"{row.after}: {row.rule}", style.MUTED)
        arrow((3.62, -i + 0.5), (4.38, -i + 0.5))
        reason = _reasons(exclusions, str(row.rule)) or f"without {row.rule}"
        lines = textwrap.wrap(f"{row.excluded} left: {reason}", 72, max_lines=2, placeholder=" ...")
        box(4.4, -i + 0.5, 5.4, "\n".join(lines), style.WARN)
    last = len(lossy) + 1
    arrow((1.9, -last + 0.68), (1.9, -last + 0.32))
    box(0.2, -last, 3.4, f"{int(flow['after'].iloc[-1])} patients in the cohort", style.ACCENT, bold=True)
    if silent:
        text = textwrap.fill("Nobody left for: " + ", ".join(silent), 62)
        ax.text(4.45, -last, text, va="center", fontsize=7, color=style.MUTED)
    ax.set_title(title)
    return figure


def _reasons(exclusions: pd.DataFrame | None, rule: str) -> str:
    if exclusions is None or exclusions.empty:
        return ""
    # Numbers differ from patient to patient; what counts is the kind of reason.
    reasons = exclusions.loc[exclusions["rule"] == rule, "reason"]
    kinds = reasons.str.replace(r"[ ]?\([^)]*\)", "", regex=True)
    kinds = kinds.str.replace(r"followed for .* days only", "followed for too short a time", regex=True)
    top = kinds.str.split().str.join(" ").value_counts()
    named = [f"{name}" if len(top) == 1 else f"{name} ({n})" for name, n in top.head(3).items()]
    return "; ".join(named)


def plot_follow_up(table: pd.DataFrame, *, min_days: int = 30, title: str = "") -> Figure:
    """How long patients were followed, deaths and censored apart, and the share followed at least so long.

    table: time (days), event of a Cohort.
    """
    figure, (left, right) = style.figure(1, 2, height=2.7)
    years = table["time"].to_numpy(dtype=float) / 365.25
    event = table["event"].to_numpy(dtype=int)
    edges = np.linspace(0, max(float(years.max()), 0.5), 25)
    for value, name, colour in ((1, "deaths", style.colour("high")), (0, "censored", style.colour("low"))):
        left.hist(
            years[event == value], bins=edges.tolist(), histtype="step", linewidth=1.6, color=colour,
            label=f"{name} ({int((event == value).sum())})",
        )  # fmt: skip
    left.legend()
    left.set(xlabel="years of follow-up", ylabel="patients", title=title)
    for value, colour in ((1, style.colour("high")), (0, style.colour("low"))):
        ordered = np.sort(years[event == value])
        if len(ordered):
            right.step(ordered, 1 - np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=colour)
    right.axvline(min_days / 365.25, color=style.MUTED, linewidth=1.2, linestyle=":", label=f"{min_days} days")
    right.legend()
    right.set(xlabel="years of follow-up", ylabel="share followed for longer", ylim=(0, 1.02))
    return figure


def plot_table1(counts: pd.DataFrame, *, title: str = "") -> Figure:
    """Patients per cancer: the paper's Table I beside ours.

    counts: one row per cancer with the columns cancer, paper, here.
    """
    figure, ax = style.figure(width="medium", height=0.4 * len(counts) + 0.9)
    y = np.arange(len(counts))[::-1]
    ax.hlines(y, counts["paper"], counts["here"], color=style.GRID, linewidth=2)
    ax.plot(counts["paper"], y, "o", color=style.MUTED, fillstyle="none", label="paper")
    ax.scatter(counts["here"], y, color=[style.colour(c) for c in counts["cancer"]], zorder=3, label="here")
    ax.set_yticks(y, counts["cancer"].tolist())
    ax.set_xlim(left=0)
    ax.set(xlabel="patients", title=title)
    ax.legend(loc="best")
    return figure


def plot_sources(lock: pd.DataFrame, *, title: str = "") -> Figure:
    """Number and size of the files of a lock, by modality; lock: modality, size (bytes)."""
    figure, (left, right) = style.figure(1, 2, height=2.2, sharey=True)
    names = [m for m in ("slides", "rna", "mirna", "methylation") if m in set(lock["modality"])]
    y = np.arange(len(names))[::-1]
    colours = [style.colour(m) for m in names]
    grouped = lock.groupby("modality")["size"]
    left.barh(y, [grouped.size()[m] for m in names], color=colours)
    left.set(xlabel="files", title=title)
    left.set_yticks(y, names)
    megabytes = [grouped.sum()[m] / 1e6 for m in names]
    bars = right.barh(y, megabytes, color=colours)
    right.bar_label(
        bars, [f"{size:,.3g}" if size < 100 else f"{size:,.0f}" for size in megabytes], padding=3, fontsize=8
    )
    right.margins(x=0.15)
    right.set(xlabel="megabytes")
    return figure
