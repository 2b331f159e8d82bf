"""The whole slide, small: from the best stored level, and from the next larger one where tiles of it are damaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hcmae.slides.tiles import Level

__all__ = ["Box", "Overview", "overview_of", "read_parts"]

# Left, top, right, bottom, in pixels of a level.
Box = tuple[int, int, int, int]
# Fills an array from (level, x, y) and returns the places that cannot be decoded, which are white then.
ReadLevel = Callable[[int, int, int, NDArray[np.uint8]], list[Box]]

# Pixels that are in memory at a time.
_BAND_BYTES = 24 << 20
# Reads that may fail before whatever fails is given up as it is: a file of nothing but damage is not searched tile by
# tile.
FAILED_READS = 2000


@dataclass(frozen=True)
class Overview:
    """``pixels`` uint8 [H, W, 3]; ``unread`` bool [H, W] where no level can be read and pixels are white (None:
    nowhere); ``damaged``: how many damaged tiles were met."""

    pixels: NDArray[np.uint8]
    unread: NDArray[np.bool_] | None = None
    damaged: int = 0


def overview_of(
    levels: Sequence[Level],
    size: tuple[int, int],
    read: ReadLevel,
    width: int,
    height: int,
    downsample: float | None = None,
) -> Overview:
    """Band by band from the smallest stored level that is not smaller than the result, so memory stays bounded.

    Where tiles of that level are damaged, their area is taken from the next larger level that can be read there.
    """
    sx = downsample or size[0] / width
    sy = downsample or size[1] / height
    level = max(i for i, item in enumerate(levels) if item.downsample <= max(1.0, min(sx, sy)) * 1.01)
    canvas = _Canvas(levels, read, (sx, sy), np.empty((height, width, 3), np.uint8))
    canvas.fill(level, (0, 0, width, height))
    return Overview(canvas.out, canvas.unread, len(canvas.damaged))


class _Canvas:
    """The result while it is painted."""

    def __init__(
        self, levels: Sequence[Level], read: ReadLevel, scale: tuple[float, float], out: NDArray[np.uint8]
    ) -> None:
        self.levels, self.read, self.scale, self.out = levels, read, scale, out
        self.unread: NDArray[np.bool_] | None = None
        self.damaged: set[tuple[int, Box]] = set()

    def fill(self, level: int, box: Box) -> None:
        """Paint a box of the result from a level, and again from larger ones where that one is damaged."""
        info = self.levels[level]
        fx, fy = (step / info.downsample for step in self.scale)
        left, top, right, bottom = box
        whole = right - left == self.out.shape[1]
        x0, x1 = round(left * fx), max(round(left * fx) + 1, round(right * fx))
        width = max(info.width, 1) if whole else x1 - x0
        rows = max(1, min(bottom - top, int(_BAND_BYTES / (3 * width * fy))))
        for start in range(top, bottom, rows):
            end = min(bottom, start + rows)
            y0, y1 = round(start * fy), max(round(start * fy) + 1, round(end * fy))
            band = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
            damaged = self.read(level, x0, y0, band)
            self.out[start:end, left:right] = cv2.resize(
                band, (right - left, end - start), interpolation=cv2.INTER_AREA
            )
            for hurt in damaged:
                self.damaged.add((level, hurt))
                self._mend(level, _covered(hurt, fx, fy, (left, start, right, end)))

    def _mend(self, level: int, box: Box) -> None:
        if box[0] >= box[2] or box[1] >= box[3]:
            return
        if level:
            self.fill(level - 1, box)
            return
        left, top, right, bottom = box
        if self.unread is None:
            self.unread = np.zeros(self.out.shape[:2], bool)
        self.unread[top:bottom, left:right] = True
        self.out[top:bottom, left:right] = 255


def _covered(box: Box, fx: float, fy: float, within: Box) -> Box:
    """Pixels of the result that a box of level pixels touches."""
    # Bands begin at whole pixels of the level: what a pixel covers may be shifted by less than one of the result.
    mx, my = (0 if factor == int(factor) else 1 for factor in (fx, fy))
    return (
        max(within[0], math.floor(box[0] / fx) - mx),
        max(within[1], math.floor(box[1] / fy) - my),
        min(within[2], math.ceil(box[2] / fx) + mx),
        min(within[3], math.ceil(box[3] / fy) + my),
    )


def read_parts(
    read: Callable[[int, int, NDArray[np.uint8]], None],
    tile: tuple[int, int],
    x: int,
    y: int,
    out: NDArray[np.uint8],
    budget: list[int],
) -> list[Box]:
    """Read a box in one go; where that fails, in ever smaller parts down to one ``tile``: a bad one costs itself alone.

    ``budget`` [reads that may still fail] is counted down. Returns the boxes that fail, which are white.
    """
    height, width = out.shape[:2]
    try:
        read(x, y, out)
    except Exception:  # a decoder's, of any class
        budget[0] -= 1
    else:
        return []
    columns, rows = width / tile[0], height / tile[1]
    if (columns <= 1 and rows <= 1) or budget[0] <= 0:
        out[...] = 255
        return [(x, y, x + width, y + height)]
    if columns >= rows:
        cut = _middle(x, width, tile[0])
        parts = [(x, y, out[:, :cut]), (x + cut, y, out[:, cut:])]
    else:
        cut = _middle(y, height, tile[1])
        parts = [(x, y, out[:cut]), (x, y + cut, out[cut:])]
    return [box for px, py, part in parts for box in read_parts(read, tile, px, py, part, budget)]


def _middle(start: int, length: int, step: int) -> int:
    """The border between two tiles that is nearest to the middle, counted from the start."""
    cut = round((start + length / 2) / step) * step - start
    return cut if 0 < cut < length else length // 2
