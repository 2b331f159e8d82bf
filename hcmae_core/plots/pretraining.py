"""Figures of the two pre-training lessons: masks, reconstructions, losses, probes, neighbours, attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from hcmae_core.plots import style


def read_log(path: str | Path) -> pd.DataFrame:
    """A pre-training log as a table: step, epoch, loss, learning_rate, images_per_second, data_wait."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def image_grid(rows: Mapping[str, Sequence[NDArray[Any]]], *, titles: Sequence[str] | None = None) -> Figure:
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


def fill_in(
    patches: NDArray[np.uint8],
    masked: NDArray[np.integer],
    prediction: NDArray[np.floating],
    *,
    cell: int,
    mean: Sequence[float],
    sd: Sequence[float],
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """What the network saw of each patch (hidden cells grey), and the patch with its guesses in their place.

    patches: uint8 [N, S, S, 3]; masked: numbers of the hidden cells in reading order [N, Lm]; prediction:
    [N, Lm, cell * cell * 3], normalised by the channels' ``mean`` and ``sd`` as in the loss.
    """
    side = patches.shape[1] // cell
    seen, filled = patches.copy(), patches.copy()
    guesses = prediction.reshape(*masked.shape, cell, cell, 3) * np.asarray(sd) + np.asarray(mean)
    guesses = np.clip(guesses * 255, 0, 255).astype(np.uint8)
    for patch, numbers in enumerate(masked):
        for place, number in enumerate(numbers):
            y, x = (cell * int(k) for k in divmod(int(number), side))
            seen[patch, y : y + cell, x : x + cell] = 128
            filled[patch, y : y + cell, x : x + cell] = guesses[patch, place]
    return list(seen), list(filled)


def loss_curves(logs: Mapping[str, pd.DataFrame], *, skip: int = 0) -> Figure:
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


def probe_bars(table: pd.DataFrame, *, errors: pd.DataFrame | None = None) -> Figure:
    """R2 of linear probes on held-out patients: rows of the table are representations, columns are latent factors."""
    figure, ax = style.figure(width="wide", height=3.2)
    positions, width = np.arange(len(table.columns)), 0.8 / len(table)
    for number, (name, row) in enumerate(table.iterrows()):
        bars = None if errors is None else errors.iloc[number].to_numpy()
        place = positions + (number - (len(table) - 1) / 2) * width
        ax.bar(place, row.to_numpy(), width * 0.92, yerr=bars, label=str(name), error_kw={"elinewidth": 0.8})
    ax.axhline(0, color=style.INK, linewidth=0.8)
    ax.set_xticks(positions, list(table.columns))
    ax.set(ylabel="R² on held-out patients", title="What a linear probe reads")
    figure.legend(loc="outside lower center", ncols=min(len(table), 3))
    return figure


def neighbours(queries: NDArray[np.uint8], found: NDArray[np.uint8]) -> Figure:
    """Query images [Q, S, S, 3] in the first column, their nearest neighbours [Q, K, S, S, 3] in the others."""
    rows, columns = found.shape[0], found.shape[1] + 1
    figure, axes = style.image_figure(rows, columns, squeeze=False)
    for line, query, near in zip(axes, queries, found, strict=True):
        for ax, image in zip(line, [query, *near], strict=True):
            ax.imshow(image)
    axes[0][0].set_title("query")
    axes[0][1].set_title("nearest, other patients")
    return figure


def embedding_map(points: NDArray[Any], panels: Mapping[str, NDArray[Any]]) -> Figure:
    """First two components [N, 2] once per panel, coloured by a number or a flag."""
    figure, axes = style.figure(1, len(panels), height=3.0, squeeze=False)
    for ax, (name, values) in zip(axes[0], panels.items(), strict=True):
        drawn = ax.scatter(points[:, 0], points[:, 1], c=values, s=5, cmap=style.SEQUENTIAL, linewidths=0)
        figure.colorbar(drawn, ax=ax, shrink=0.8)
        ax.set(xlabel="component 1", ylabel="component 2", title=name)
    return figure


def attention_maps(region: NDArray[np.uint8], weights: NDArray[Any], queries: Sequence[int]) -> Figure:
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


def throughput(table: pd.DataFrame) -> Figure:
    """Rates of the pre-training benchmark: one panel per task, one bar per implementation."""
    tasks = list(dict.fromkeys(table["task"]))
    figure, axes = style.figure(len(tasks), 1, height=1.2 + 1.1 * len(tasks), squeeze=False)
    for ax, task in zip(axes[:, 0], tasks, strict=True):
        part = table[table["task"] == task]
        colours = [style.ACCENT if str(n).startswith("hcmae") else style.MUTED for n in part["implementation"]]
        ax.barh(part["implementation"], part["rate"], color=colours)
        ax.set(title=task, xlabel=part["unit"].iloc[0])
        ax.invert_yaxis()
    return figure
