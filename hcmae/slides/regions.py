"""Regions of a slide: the grid at level 0, which squares are kept, and the views of one region.

The paper cuts 4096 x 4096 squares at level 0 whatever the magnification (``target_mpp=None``), splits each into 16 x 16
patches of 256 and shrinks it to a 256 x 256 thumbnail. Patches need every pixel anyway, so the thumbnail is the area
mean of the decoded region and does not depend on the scanner's own pyramid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hcmae.config import Geometry, SlideSettings
from hcmae.files import write_text
from hcmae.slides import tissue as tissue_module
from hcmae.slides.reader import Slide, open_slide

if TYPE_CHECKING:
    from hcmae.slides.tissue import Contour, Tissue

__all__ = [
    "RegionPlan",
    "clam_grid",
    "four_point",
    "mask_downsample",
    "plan_regions",
    "read_region",
    "regions_geojson",
    "split_patches",
    "thumbnail",
]


@dataclass(frozen=True)
class RegionPlan:
    """Every square of the grid and the ones that are kept.

    ``corners`` [N, 2] int32 (x, y level 0, rows first), ``fractions`` [N] tissue share, ``four_points`` bool [N] CLAM's
    test, ``kept`` bool [N]; ``side`` of a region in level-0 pixels (differs from geometry.region with a target_mpp).
    ``undecided``: squares that may hold enough tissue, but so much of them cannot be read that nobody knows.
    """

    corners: NDArray[np.int32]
    fractions: NDArray[np.float32]
    four_points: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    side: int
    undecided: int = 0

    @property
    def coords(self) -> NDArray[np.int32]:
        return self.corners[self.kept]

    @property
    def counts(self) -> dict[str, int]:
        """How many squares each rule keeps, whichever is in force."""
        return {
            "grid": len(self.corners),
            "with_tissue": int((self.fractions > 0).sum()),
            "four_point": int(self.four_points.sum()),
            "kept": int(self.kept.sum()),
        }


def mask_downsample(side: int) -> int:
    """Downsample of the tissue mask: 64 for a 4096 region (CLAM's choice), finer for smaller regions."""
    result = 64
    while result > 1 and side // result < 32:
        result //= 2
    return result


def region_side(geometry: Geometry, settings: SlideSettings, mpp: float) -> int:
    """Side of a region in level-0 pixels: geometry.region, or as many as cover the same field at ``target_mpp``."""
    if settings.target_mpp is None:
        return geometry.region
    return max(1, round(geometry.region * settings.target_mpp / mpp))


def plan_regions(
    size: tuple[int, int], tissue: Tissue, geometry: Geometry, settings: SlideSettings, mpp: float
) -> RegionPlan:
    """Lay the grid from the slide's corner (0, 0) and apply the keep rule.

    'fraction': at least ``min_tissue`` of the square is tissue. 'four_point': CLAM's rule on the same grid (one of four
    points around the centre lies in a contour and the centre in no hole); it also keeps nearly empty squares.
    """
    side = region_side(geometry, settings, mpp)
    count = (-(-s // side) if settings.pad_edges else s // side for s in size)
    nx, ny = count
    corners = np.array([(x * side, y * side) for y in range(ny) for x in range(nx)], np.int32).reshape(-1, 2)
    fractions = tissue.fractions(corners, side)
    points = four_point(corners, side, tissue.contours)
    kept = points if settings.keep_rule == "four_point" else (fractions >= settings.min_tissue) & (fractions > 0)
    unread = tissue.unread_fractions(corners, side)
    enough = settings.keep_rule == "four_point" or fractions + unread >= settings.min_tissue
    undecided = int(((unread > 0) & ~kept & enough).sum())
    return RegionPlan(corners, fractions, points, kept, side, undecided)


def four_point(corners: NDArray[np.integer], side: int, contours: Sequence[Contour]) -> NDArray[np.bool_]:
    """CLAM's default test for squares [N, 2]: a point centre +- side/4 in or on a contour, centre in no hole."""
    inside = np.zeros(len(corners), bool)
    for contour in contours:
        outer = contour.outer.astype(np.float32).reshape(-1, 1, 2)
        holes = [hole.astype(np.float32).reshape(-1, 1, 2) for hole in contour.holes]
        x, y, w, h = cv2.boundingRect(contour.outer.astype(np.int32).reshape(-1, 1, 2))
        left, top = corners[:, 0], corners[:, 1]
        near = (left <= x + w) & (top <= y + h) & (left + side >= x) & (top + side >= y)
        for i in np.flatnonzero(~inside & near):
            x0, y0 = int(corners[i, 0]), int(corners[i, 1])
            inside[i] = _passes(outer, holes, x0 + side // 2, y0 + side // 2, side // 4)
    return inside


def _passes(outer: Any, holes: list[Any], cx: int, cy: int, shift: int) -> bool:
    points = ((cx - shift, cy - shift), (cx + shift, cy + shift), (cx + shift, cy - shift), (cx - shift, cy + shift))
    if all(cv2.pointPolygonTest(outer, (float(px), float(py)), False) < 0 for px, py in points):
        return False
    return all(cv2.pointPolygonTest(hole, (float(cx), float(cy)), False) <= 0 for hole in holes)


def clam_grid(size: tuple[int, int], contours: Sequence[Contour], side: int) -> NDArray[np.int32]:
    """Coordinates as CLAM lists them: per contour a grid from the corner of its bounding box, column by column, padded.

    Differs from the plan's grid in its origin; use it to compare with coordinate files of CLAM. [N, 2] int32.
    """
    found: list[tuple[int, int]] = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour.outer.astype(np.int32).reshape(-1, 1, 2))
        outer = contour.outer.astype(np.float32).reshape(-1, 1, 2)
        holes = [hole.astype(np.float32).reshape(-1, 1, 2) for hole in contour.holes]
        for left in range(x, x + w, side):
            for top in range(y, y + h, side):
                if left >= size[0] or top >= size[1]:
                    continue
                if _passes(outer, holes, left + side // 2, top + side // 2, side // 4):
                    found.append((left, top))
    return np.array(found, np.int32).reshape(-1, 2)


# --- views of a region --------------------------------------------------------------------------------------------


def read_region(
    slide: Slide, x: int, y: int, side: int, pixels: int, *, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """One region uint8 [R, R, 3]: ``side`` level-0 pixels from (x, y), area-averaged to ``pixels`` where they differ.

    out: [R, R, 3], contiguous, filled and returned. Raises TileError where a tile in it is damaged.
    """
    if side == pixels:
        return slide.read(x, y, (side, side), out=out)
    region = slide.read(x, y, (side, side))
    method = cv2.INTER_AREA if side > pixels else cv2.INTER_LINEAR
    # A result of its own: where cv2 is given other memory than it wants, it makes new memory without a word.
    resized = np.asarray(cv2.resize(region, (pixels, pixels), interpolation=method), np.uint8)
    if out is None:
        return resized
    out[...] = resized
    return out


def thumbnail(region: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Area mean of a region [R, R, 3] at ``side``, rounded to whole grey levels: uint8 [side, side, 3].

    Raises ValueError unless ``side`` divides R.
    """
    if region.shape[0] % side or region.shape[1] % side:
        raise ValueError(f"thumbnail side {side} does not divide the region {region.shape[0]} x {region.shape[1]}")
    return np.asarray(cv2.resize(region, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def split_patches(region: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    """Patches of a region [R, R, 3], row by row from the top left: contiguous uint8 [P, p, p, 3].

    Works the same for patches into cells. Raises ValueError unless ``patch`` divides R.
    """
    height, width = region.shape[:2]
    if height % patch or width % patch:
        raise ValueError(f"patch {patch} does not divide the region {height} x {width}")
    rows, columns = height // patch, width // patch
    blocks = region.reshape(rows, patch, columns, patch, -1).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).reshape(rows * columns, patch, patch, -1)


def regions_geojson(
    path: str | Path,
    coords: NDArray[np.integer],
    side: int,
    fractions: NDArray[np.floating] | None = None,
    name: str = "",
) -> None:
    """Write region squares as QuPath annotations of class Region, with their number and tissue share."""
    features = []
    for index, (x, y) in enumerate(np.asarray(coords).tolist()):
        ring = np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]])
        extra: dict[str, Any] = {"name": f"region {index}"}
        if fractions is not None:
            extra["measurements"] = {"tissue fraction": round(float(fractions[index]), 4)}
        features.append(tissue_module.feature([ring], "Region", (200, 60, 40), f"{name}/region/{x}/{y}", **extra))
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n")


def open_for(path: str | Path, settings: SlideSettings) -> Slide:
    """Open a slide with the resolution table of the settings."""
    return open_slide(path, mpp_table=settings.mpp_table)
