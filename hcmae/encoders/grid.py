"""Patches that somebody else has cut, put into square regions by their coordinates.

Patches of a slide lie on one grid, or on one per piece of tissue, each with an origin of its own. So the grids are
found in the coordinates, to a pixel, and each is laid out in regions of n x n patches from its own upper left corner.
A region that is not full has places without a patch; nothing is moved to fill them, and no patch is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

# Pixels that a patch may lie beside its place on the grid.
TOLERANCE = 1
# A slide is refused where more of its patches than this are alone on a grid of their own, or lie on another patch.
ALONE, OVERLAPPING = 0.5, 0.05


class GridError(ValueError):
    """Coordinates that lie on no grid; ``code`` is the reason in a word or two."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Regions:
    """Where patches went: ``corners`` [M, 2] int32 at level 0; ``rows`` [M, n * n], the patch at each place, else -1.

    ``grids``: how many there were; ``overlapping``: patches that lie on another one, at most a few where grids meet.
    """

    corners: NDArray[np.int32]
    rows: NDArray[np.int64]
    grids: int
    overlapping: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[M, n * n]: where there is a patch."""
        return self.rows >= 0


def regions_of(coords: NDArray[np.integer], side: int, n: int) -> Regions:
    """Regions of ``n`` x ``n`` patches from their upper left corners [N, 2] at level 0 and their side there.

    Regions come by grid, then row by row. Raises GridError for places that no slide has, patches that lie on no common
    grid, or on each other.
    """
    corners = np.asarray(coords, dtype=np.int64)
    if side <= 0 or (corners < 0).any():
        raise GridError("off_grid", f"a side of {side} pixels, corners from {corners.min()} on: no places on a slide")
    origins = _origins(corners % side, side)
    _, label, count = np.unique(origins, axis=0, return_inverse=True, return_counts=True)
    label = label.reshape(-1)
    alone = int((count[label] == 1).sum())
    if len(corners) > 4 and alone > ALONE * len(corners):
        raise GridError(
            "off_grid", f"{alone} of {len(corners)} patches lie on no grid of {side} pixels with any other patch"
        )
    overlapping = _overlapping(corners, side)
    if overlapping > OVERLAPPING * len(corners):
        raise GridError("overlap", f"{overlapping} of {len(corners)} patches of {side} pixels lie on another one")
    found_corners, found_rows = [], []
    for grid in range(len(count)):
        rows = np.flatnonzero(label == grid)
        start = corners[rows].min(0)
        cells = np.rint((corners[rows] - start) / side).astype(np.int64)
        blocks, block = np.unique(cells[:, ::-1] // n, axis=0, return_inverse=True)
        block = block.reshape(-1)
        places = np.full((len(blocks), n * n), -1, dtype=np.int64)
        inside = cells % n
        places[block, inside[:, 1] * n + inside[:, 0]] = rows
        if (places >= 0).sum() != len(rows):
            raise GridError("overlap", f"{len(rows) - (places >= 0).sum()} patches lie at the place of another one")
        found_corners.append(start + blocks[:, ::-1] * n * side)
        found_rows.append(places)
    return Regions(np.concatenate(found_corners).astype(np.int32), np.concatenate(found_rows), len(count), overlapping)


def _origins(rests: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """The origin of each patch's grid [N, 2]: its corner modulo the side, one for all that agree within a pixel."""
    found, label, count = np.unique(rests, axis=0, return_inverse=True, return_counts=True)
    label = label.reshape(-1)
    heads = np.empty((0, 2), dtype=np.int64)
    of = np.empty(len(found), dtype=np.int64)
    for number in np.argsort(-count, kind="stable"):
        away = np.abs(heads - found[number])
        near = np.flatnonzero((np.minimum(away, side - away) <= TOLERANCE).all(1))
        if len(near):
            of[number] = near[0]
        else:
            of[number] = len(heads)
            heads = np.concatenate([heads, found[number : number + 1]])
    return heads[of[label]]


def _overlapping(corners: NDArray[np.int64], side: int) -> int:
    """Patches that lie on another one by more than the tolerance."""
    reach = side - 2 * TOLERANCE - 0.5
    if reach <= 0:
        return 0
    pairs = cKDTree(corners).query_pairs(reach, p=np.inf, output_type="ndarray")
    return len(np.unique(pairs))
