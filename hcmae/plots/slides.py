"""Figures of slides: pyramid, tissue mask, grid, kept and rejected regions, views of one region, contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hcmae.plots import style

__all__ = [
    "plot_contact_sheet",
    "plot_kept_and_rejected",
    "plot_nested_squares",
    "plot_nuclei",
    "plot_pyramid",
    "plot_tissue",
]

_GROUPS = ("kept", "rejected")
# Panels are about this many pixels wide: larger pictures are averaged to it, smaller ones keep their pixels as squares.
_PANEL = 230


def plot_pyramid(levels: Sequence[NDArray[np.uint8]], downsamples: Sequence[float], *, title: str = "") -> Figure:
    """The same square of a slide on every level it stores, [h, w, 3] each, with the downsample of the level.

    A level with fewer pixels than its panel shows them as squares.
    """
    made, axes = style.image_figure(1, len(levels), squeeze=False)
    for ax, picture, factor in zip(axes[0], levels, downsamples, strict=True):
        ax.imshow(picture, interpolation=_interpolation(picture))
        ax.set_title(f"1 : {factor:.3g}, {picture.shape[1]} px", fontsize=9)
    if title:
        made.suptitle(title)
    return made


def plot_tissue(
    overview: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    corners: NDArray[np.integer],
    kept: NDArray[np.bool_],
    side: float,
    scale: float,
) -> Figure:
    """Slide, tissue mask, and the grid with its kept squares.

    ``overview`` [h, w, 3] and ``mask`` [H, W] show the same area; ``corners`` [N, 2] and ``side`` in level-0 pixels,
    ``scale`` overview pixels per level-0 pixel, ``kept`` bool [N].
    """
    made, axes = style.image_figure(1, 3)
    extent = (-0.5, overview.shape[1] - 0.5, overview.shape[0] - 0.5, -0.5)
    for ax, name in zip(axes, ("slide", "tissue", f"{int(kept.sum())} of {len(kept)} squares"), strict=True):
        ax.imshow(overview, extent=extent, interpolation=_interpolation(overview))
        ax.set_title(name)
    shade: Any = np.zeros((*mask.shape, 4))
    shade[~mask] = (0.1, 0.1, 0.1, 0.65)
    axes[1].imshow(shade, extent=extent)
    for (x, y), good in zip(np.asarray(corners) * scale, kept, strict=True):
        axes[2].add_patch(
            Rectangle(
                (x, y),
                side * scale,
                side * scale,
                fill=False,
                edgecolor="#0b7a75" if good else "#8a8f98",
                linewidth=1.4 if good else 0.4,
                zorder=3 if good else 2,
            )
        )
    return made


def plot_kept_and_rejected(
    regions: Mapping[str, Sequence[NDArray[np.uint8]]], fractions: Mapping[str, Sequence[float]]
) -> Figure:
    """Kept regions on the left, rejected ones on the right, each with its share of tissue.

    ``regions`` and ``fractions``: 'kept' and 'rejected' -> pictures [h, w, 3] and tissue shares.
    Raises ValueError for a group that is neither.
    """
    unknown = sorted(set(regions) - set(_GROUPS))
    if unknown:
        raise ValueError(f"unknown group '{unknown[0]}': choose kept, rejected")
    rows = max(1, -(-max(len(pictures) for pictures in regions.values()) // 2))
    made, axes = style.image_figure(rows, 4, squeeze=False)
    for group, first in (("kept", 0), ("rejected", 2)):
        for number, (picture, share) in enumerate(zip(regions.get(group, ()), fractions.get(group, ()), strict=True)):
            ax = axes[number // 2, first + number % 2]
            ax.imshow(picture, interpolation=_interpolation(picture))
            ax.set_title(f"{group}: {share:.0%}", color="#0b7a75" if group == "kept" else style.WARN)
    return made


def plot_nested_squares(pictures: Mapping[str, tuple[NDArray[np.uint8], int | None]]) -> Figure:
    """Pictures side by side, each with the lines of the squares it is cut into (their side in pixels, or None)."""
    made, axes = style.image_figure(1, len(pictures), squeeze=False)
    for ax, (title, (picture, step)) in zip(axes[0], pictures.items(), strict=True):
        ax.imshow(picture, interpolation=_interpolation(picture))
        ax.set_title(title)
        for line in np.arange(0, picture.shape[0] + 1, step) - 0.5 if step else ():
            ax.axhline(line, color="white", linewidth=0.4)
            ax.axvline(line, color="white", linewidth=0.4)
    return made


def plot_nuclei(patches: NDArray[np.uint8], labels: NDArray[np.integer]) -> Figure:
    """Patches [N, p, p, 3] above, the same below with every labelled nucleus of ``labels`` [N, p, p] outlined.

    Raises ValueError when the two differ in number or size.
    """
    if patches.shape[:3] != labels.shape:
        raise ValueError(f"patches {list(patches.shape)} and labels {list(labels.shape)} do not fit each other")
    from skimage.measure import find_contours

    made, axes = style.image_figure(2, len(patches), squeeze=False)
    for column, (patch, found) in enumerate(zip(patches, labels, strict=True)):
        for ax in axes[:, column]:
            ax.imshow(patch, interpolation=_interpolation(patch))
        # One nucleus at a time: neighbours that touch keep a line each.
        numbers = np.unique(found[found > 0])
        for number in numbers:
            for line in find_contours(np.pad(found == number, 1).astype(float), 0.5):
                axes[1, column].plot(line[:, 1] - 1, line[:, 0] - 1, color="#ffd60a", linewidth=1.3)
        axes[1, column].set_title(f"{len(numbers)} nuclei", fontsize=9)
        axes[1, column].set(xlim=(-0.5, patch.shape[1] - 0.5), ylim=(patch.shape[0] - 0.5, -0.5))
    return made


def plot_contact_sheet(
    thumbnails: NDArray[np.uint8], labels: Sequence[str] | None = None, *, columns: int = 10, limit: int = 60
) -> Figure:
    """The thumbnails [M, t, t, 3] of a slide's regions in the order of its store, at most ``limit`` of them."""
    shown = thumbnails[:limit]
    rows = max(1, -(-len(shown) // columns))
    made, axes = style.image_figure(rows, columns, squeeze=False)
    for number, ax in enumerate(axes.ravel()):
        if number < len(shown):
            ax.imshow(shown[number], interpolation=_interpolation(shown[number]))
            ax.set_title(
                labels[number] if labels is not None else str(number), fontsize=7.5, fontweight="normal", pad=2
            )
    return made


def _interpolation(picture: NDArray[np.uint8]) -> str:
    return "antialiased" if picture.shape[1] > _PANEL else "nearest"
