"""Figures of the two pre-training lessons: images and reconstructions, losses, probes, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from hcmae.plots import style


def plot_images(rows: Mapping[str, Sequence[NDArray[Any]]], *, titles: Sequence[str] | None = None) -> Figure:
    """Rows of images with a name each: originals, masked inputs, reconstructions. Images uint8 [S, S, 3]."""
    columns = max(len(images) for images in rows.values())
    figure, axes = style.image_figure(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=False):
            ax.imshow(image)
        line[0].set_ylabel(name)
    for ax, title in zip(axes[0], titles or (), strict=False):
        ax.set_title(title)
    return figure


def plot_losses(logs: Mapping[str, pd.DataFrame], *, skip: int = 0) -> Figure:
    """Reconstruction loss over epochs, one line per run, and the learning rate below it."""
    figure, axes = style.figure(1, 2)
    for name, log in logs.items():
        axes[0].plot(log["epoch"][skip:], log["loss"][skip:], label=name)
        axes[1].plot(log["epoch"], log["learning_rate"], label=name)
    axes[0].set(xlabel="epoch", ylabel="mean squared error", title="Loss on masked tokens", yscale="log")
    # On less than two decades the default writes 2 x 10^-1 beside 3 x 10^-1; plain numbers are shorter.
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[1].set(xlabel="epoch", ylabel="learning rate", title="Schedule")
    axes[0].legend()
    return figure


def plot_probes(table: pd.DataFrame, *, errors: pd.DataFrame | None = None) -> Figure:
    """R2 of linear probes on held-out patients: rows of the table are representations, columns are latent factors."""
    figure, ax = style.figure(width="wide", height=3.2)
    positions, width = np.arange(len(table.columns)), 0.8 / len(table)
    for number, (name, row) in enumerate(table.iterrows()):
        bars = None if errors is None else errors.iloc[number].to_numpy()
        place = positions + (number - (len(table) - 1) / 2) * width
        # A method of the tables has its colour in every figure, whatever stands beside it.
        known = style.METHODS.get(str(name).lower().replace("-", "_"))
        look: dict[str, Any] = {} if known is None else {"color": known}
        ax.bar(place, row.to_numpy(), width * 0.92, yerr=bars, label=str(name), error_kw={"elinewidth": 0.8}, **look)
    ax.axhline(0, color=style.INK, linewidth=0.8)
    ax.set_xticks(positions, list(table.columns))
    ax.set(ylabel="R² on held-out patients", title="What a linear probe reads")
    figure.legend(loc="outside lower center", ncols=min(len(table), 3))
    return figure


def plot_attention_maps(region: NDArray[np.uint8], weights: NDArray[Any], queries: Sequence[int]) -> Figure:
    """A region with its query patches marked, and where each of them looks.

    region: uint8 [R, R, 3]; weights: attention [P, P]; queries: patch numbers. The last panel is the mean over all
    queries.
    """
    side = round(weights.shape[0] ** 0.5)
    patch = region.shape[0] // side
    figure, axes = style.image_figure(1, len(queries) + 2)
    axes[0].imshow(region)
    axes[0].set_title("region")
    for ax, query in zip(axes[1:], queries, strict=False):
        y, x = divmod(query, side)
        ax.imshow(weights[query].reshape(side, side), cmap=style.ATTENTION, vmin=0)
        ax.plot(x, y, marker="s", markerfacecolor="none", markeredgecolor="white", markersize=7)
        axes[0].plot((x + 0.5) * patch, (y + 0.5) * patch, marker="s", markerfacecolor="none", markeredgecolor="white")
        ax.set_title(f"patch {query} looks at")
    axes[-1].imshow(weights.mean(axis=0).reshape(side, side), cmap=style.ATTENTION, vmin=0)
    axes[-1].set_title("mean of all")
    return figure


# Who asks and who answers in each reading of Eq. 4; the names are those of the lesson.
_READINGS = {
    "the release": ("x_E", "x_A"),
    "Eq. 4 as printed": ("x_P", "x_E"),
    "the prose": ("x_P", "x_A"),
}
_PLACES = {"x_P": (0.12, "embedded\npatches"), "x_E": (0.5, "encoder's\noutput"), "x_A": (0.88, "patch\nvectors")}


def plot_readings() -> Figure:
    """The three readings of the region-guided cross-attention: which inputs ask, which answer, which take no part."""
    figure, axes = style.image_figure(1, len(_READINGS), height=2.3)
    for ax, (title, (asks, answers)) in zip(axes, _READINGS.items(), strict=True):
        ax.set(title=title, xlim=(0, 1), ylim=(0, 1))
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": style.INK}
        ax.text(0.5, 0.84, "cross-attention", ha="center", va="center", bbox=box)
        for name, (x, words) in _PLACES.items():
            role = {asks: "asks", answers: "answers"}.get(name)
            colour = style.INK if role else style.MUTED
            ax.text(x, 0.14, f"${name}$\n{words}", ha="center", va="center", color=colour, fontsize=8)
            if role is None:
                continue
            arrow = {"arrowstyle": "->", "color": style.ACCENT if role == "asks" else style.WARN, "linewidth": 1.4}
            tip = 0.5 + (x - 0.5) * 0.4
            ax.annotate("", xy=(tip, 0.74), xytext=(x, 0.36), arrowprops=arrow)
            # Beside the arrow where it is at this height: who asks on its left, who answers on its right.
            height = 0.5
            beside = x + (tip - x) * (height - 0.36) / (0.74 - 0.36)
            left = role == "asks"
            ax.text(beside + (-0.03 if left else 0.03), height, role, ha="right" if left else "left", fontsize=8)
    return figure
