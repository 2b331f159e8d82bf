"""Find the tissue: saturation, median blur, threshold, closing, contours with holes, area filters, as CLAM does it.

Areas are counted in squares of 512 x 512 level-0 pixels, so the presets mean the same at every mask resolution. Ink of
marker pens and black scanner borders are taken out first; what each step removed is counted, so that an empty mask has
a reason. Masks are written as GeoJSON that QuPath opens; a mask that a person has edited is read back and used.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hcmae.files import write_text

__all__ = [
    "PRESETS",
    "Contour",
    "SegmentationPreset",
    "Tissue",
    "is_edited",
    "pen_marks",
    "read_geojson",
    "red_ink",
    "segment",
    "write_geojson",
]

AREA_UNIT = 512 * 512
# A mask drawn by people has thousands of vertices, one traced by a program a few hundred thousand.
MAX_VERTICES = 5_000_000
MAX_GEOJSON_BYTES = 256 << 20
# Pixels from the corner of a slide; drawing counts in 32 bits with 16 for the fraction of a pixel at most.
_FARTHEST = 1 << 24
_NAMESPACE = uuid.UUID("5a1d5c2e-6f0b-4c7e-9a53-0c2f8f6d1b7a")


@dataclass(frozen=True)
class SegmentationPreset:
    """Numbers of the segmentation: saturation threshold (0-255), median blur (odd pixels), closing (pixels), smallest
    tissue and hole area (in 512 x 512 level-0 squares), largest number of holes kept per contour, Otsu or not."""

    threshold: int = 8
    blur: int = 7
    close: int = 4
    otsu: bool = False
    min_tissue_area: float = 100
    min_hole_area: float = 16
    max_holes: int = 8


# The first four as in CLAM's preset files; the twins are so small that whole slides hold few area units.
PRESETS: dict[str, SegmentationPreset] = {
    "default": SegmentationPreset(),
    "tcga": SegmentationPreset(min_tissue_area=16, min_hole_area=4),
    "biopsy": SegmentationPreset(threshold=15, blur=11, close=2, min_tissue_area=1, min_hole_area=1, max_holes=2),
    "resection": SegmentationPreset(threshold=15, blur=11, close=4),
    "synthetic": SegmentationPreset(
        threshold=15, blur=5, close=3, min_tissue_area=0.1, min_hole_area=0.05, max_holes=1000
    ),
}


@dataclass(frozen=True)
class Contour:
    """One piece of tissue in level-0 pixels: outer ring [N, 2] and the rings of its holes."""

    outer: NDArray[np.int64]
    holes: tuple[NDArray[np.int64], ...] = ()


@dataclass(frozen=True)
class Tissue:
    """Where tissue is on a slide.

    ``mask`` bool [H, W], each pixel covering ``downsample`` level-0 pixels a side; ``contours``; ``counts``: what each
    step found or removed; ``source``: 'segmented' or 'edited' (read from a person's GeoJSON). ``unread`` bool [H, W]:
    where the overview could not be read at all (None: nowhere); ``damaged``: tiles that were damaged in it.
    """

    mask: NDArray[np.bool_]
    downsample: int
    contours: tuple[Contour, ...]
    counts: dict[str, float] = field(default_factory=dict)
    source: str = "segmented"
    unread: NDArray[np.bool_] | None = None
    damaged: int = 0

    @property
    def share(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean()) if self.mask.size else 0.0

    def fractions(self, corners: NDArray[np.integer], side: int) -> NDArray[np.float32]:
        """Tissue share of squares with level-0 ``corners`` [N, 2] (x, y) and level-0 ``side``; [N]."""
        return _shares(self.mask, self.downsample, corners, side)

    def unread_fractions(self, corners: NDArray[np.integer], side: int) -> NDArray[np.float32]:
        """Share of squares that could not be read for the mask; [N]."""
        if self.unread is None:
            return np.zeros(len(corners), np.float32)
        return _shares(self.unread, self.downsample, corners, side)


def _shares(mask: NDArray[np.bool_], downsample: int, corners: NDArray[np.integer], side: int) -> NDArray[np.float32]:
    total = cv2.integral(mask.astype(np.uint8), sdepth=cv2.CV_64F)
    h, w = mask.shape
    low = np.asarray(corners, np.float64) / downsample
    high = low + side / downsample
    x0, x1 = (np.clip(np.rint(v[:, 0]).astype(int), 0, w) for v in (low, high))
    y0, y1 = (np.clip(np.rint(v[:, 1]).astype(int), 0, h) for v in (low, high))
    area = (side / downsample) ** 2
    sums = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return np.clip(sums / area, 0, 1).astype(np.float32)


def segment(
    image: NDArray[np.uint8],
    downsample: int,
    preset: SegmentationPreset | str = "tcga",
    *,
    remove_pen: bool = True,
) -> Tissue:
    """Tissue of an overview image uint8 [H, W, 3] whose pixels cover ``downsample`` level-0 pixels a side.

    The order of steps and the presets are those of CLAM (Lu et al. 2021); pens and blank pixels are removed before the
    contours are traced. Raises ValueError for an unknown preset.
    """
    settings = _preset(preset)
    red = red_ink(image) if remove_pen else np.zeros(image.shape[:2], bool)
    if red.any():
        # Before anything is blurred or closed, or a ring of ink would leave a ring of its colour.
        image = np.where(red[..., None], np.uint8(255), image)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    saturation = cv2.medianBlur(np.ascontiguousarray(hsv[..., 1]), settings.blur)
    mode = cv2.THRESH_BINARY + (cv2.THRESH_OTSU if settings.otsu else 0)
    _, binary = cv2.threshold(saturation, 0 if settings.otsu else settings.threshold, 255, mode)
    counts: dict[str, float] = {"pixels": image.shape[0] * image.shape[1], "saturated": int((binary > 0).sum())}
    blank = image.min(axis=2) > 238
    counts["blank"] = int((blank & (binary > 0)).sum())
    binary[cv2.erode(blank.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0] = 0
    if settings.close > 0:
        binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, np.ones((settings.close, settings.close), np.uint8))
    counts["pen"] = 0
    if remove_pen:
        pen = pen_marks(image)
        counts["pen"] = int((pen & (binary > 0)).sum()) + int(red.sum())
        binary[pen] = 0
    contours, found, small = _contours(binary, downsample, settings)
    counts |= {"contours_found": found, "contours_too_small": small, "contours_kept": len(contours)}
    mask = rasterise(contours, image.shape[:2], downsample)
    counts["kept"] = int(mask.sum())
    return Tissue(mask, downsample, contours, counts)


def pen_marks(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Ink and black borders of an overview, bool [H, W].

    Haematoxylin and eosin both absorb green most, so green is the darkest channel of stained tissue. Pixels that are
    clearly coloured with green above red (blue, green and cyan ink), and nearly black ones, are not tissue. For red ink
    see :func:`red_ink`.
    """
    red, green = (image[..., i].astype(np.int16) for i in range(2))
    high, low = image.max(axis=2).astype(np.int16), image.min(axis=2).astype(np.int16)
    ink = (green - red > 12) & (high - low > 40)
    black = high < 50
    marks = cv2.morphologyEx((ink | black).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return cv2.dilate(marks, np.ones((3, 3), np.uint8)) > 0


def red_ink(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Marks of a red pen on an overview with their soft rim, bool [H, W].

    Red ink absorbs green and blue alike, eosin hardly any blue: ink is red where stained tissue is pink to purple.
    Blood is as red as ink, so the place decides: a mark of ink lies on glass, at least half of its rim borders on it,
    while blood lies in tissue. Blood that lies free on the glass is taken for ink, and faint ink for tissue.
    """
    red, green, blue = (image[..., i].astype(np.int16) for i in range(3))
    strength = red - np.maximum(green, blue)
    none = np.zeros(image.shape[:2], bool)
    ink = _pure_red(red, green, blue) & (strength > _INK_STRENGTH)
    if not ink.any():
        return none
    glass = (image.min(axis=2) > 200) & (image.max(axis=2) - image.min(axis=2) < 25)
    # The rim of a mark fades into the glass: it is as red, only paler, and belongs to it.
    close = cv2.dilate(ink.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    paler = _pure_red(red, green, blue) & (strength > _RIM_STRENGTH) & close
    count, labels = cv2.connectedComponents((ink | paler).astype(np.uint8), connectivity=8)
    near = cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int64)
    rim = near * (labels == 0)
    length, open_side = (np.bincount(rim[where], minlength=count) for where in (rim > 0, (rim > 0) & glass))
    strong = np.bincount(labels[ink], minlength=count)
    marked = (strong >= _LEAST_INK) & (2 * open_side >= length)
    marked[0] = False
    marks = marked[labels]
    return cv2.dilate(marks.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 if marks.any() else none


def _pure_red(red: Any, green: Any, blue: Any) -> NDArray[np.bool_]:
    """Red whose blue is hardly above its green, as a share of the colour; in eosin it is half of it."""
    return np.asarray((red > green) & (red > blue) & (5 * (blue - green) <= red - green))


# Grey levels that red is above green and blue in the middle of a mark (no stain reaches that in an overview) and on its
# rim, and pixels that a mark has in its middle.
_INK_STRENGTH = 100
_RIM_STRENGTH = 10
_LEAST_INK = 4


def rasterise(contours: Sequence[Contour], shape: tuple[int, int], downsample: int) -> NDArray[np.bool_]:
    """Mask bool [H, W] of contours given in level-0 pixels: outer rings filled, holes taken out."""
    mask = np.zeros(shape, np.uint8)
    for contour in contours:
        outer = _scaled(contour.outer, downsample)
        if not contour.holes or len(contours) == 1:
            cv2.fillPoly(mask, [outer], 1)
            for hole in contour.holes:
                cv2.fillPoly(mask, [_scaled(hole, downsample)], 0)
            continue
        # With its holes on a piece of its own, no larger than it is: a hole must not cut into a neighbour.
        x, y, w, h = cv2.boundingRect(outer)
        left, top, right, bottom = max(0, x), max(0, y), min(shape[1], x + w), min(shape[0], y + h)
        if left >= right or top >= bottom:
            continue
        piece = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(piece, [outer], 1, offset=(-left, -top))
        for hole in contour.holes:
            cv2.fillPoly(piece, [_scaled(hole, downsample)], 0, offset=(-left, -top))
        mask[top:bottom, left:right] |= piece
    return mask.astype(bool)


def _scaled(ring: NDArray[np.integer], downsample: int) -> NDArray[np.int32]:
    return np.floor(np.asarray(ring, np.float64) / downsample).astype(np.int32).reshape(-1, 1, 2)


def _preset(preset: SegmentationPreset | str) -> SegmentationPreset:
    if isinstance(preset, SegmentationPreset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"unknown segmentation preset '{preset}': choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _contours(binary: Any, downsample: int, settings: SegmentationPreset) -> tuple[tuple[Contour, ...], int, int]:
    unit = AREA_UNIT / downsample**2
    rings, hierarchy = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None or not len(rings):
        return (), 0, 0
    tree = hierarchy.reshape(-1, 4)  # next, previous, first child, parent
    areas = [cv2.contourArea(ring) for ring in rings]
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(tree[:, 3]):
        children.setdefault(int(parent), []).append(index)
    roots = children.get(-1, [])
    kept = []
    for root in roots:
        holes = children.get(root, [])
        net = areas[root] - sum(areas[i] for i in holes)
        if net <= 0 or net <= settings.min_tissue_area * unit:
            continue
        big = sorted((i for i in holes if areas[i] > settings.min_hole_area * unit), key=lambda i: -areas[i])
        kept.append(
            Contour(
                _ring(rings[root], downsample), tuple(_ring(rings[i], downsample) for i in big[: settings.max_holes])
            )
        )
    return tuple(kept), len(roots), len(roots) - len(kept)


def _ring(ring: Any, downsample: int) -> NDArray[np.int64]:
    """Ring [N, 2] in level-0 pixels without the points that lie on straight runs."""
    points = ring.reshape(-1, 2).astype(np.int64)
    if len(points) > 2:
        step = np.sign(points - np.roll(points, 1, axis=0))
        turn = np.any(step != np.roll(step, -1, axis=0), axis=1)
        points = points[turn] if turn.sum() > 2 else points
    return points * downsample


# --- GeoJSON ------------------------------------------------------------------------------------------------------


def feature(
    rings: Sequence[NDArray[np.integer]], label: str, colour: tuple[int, int, int], key: str, **extra: Any
) -> Any:
    """One QuPath annotation: a polygon with its holes, a class with a colour, a stable id."""
    coordinates = [[[int(x), int(y)] for x, y in (*ring, ring[0])] for ring in rings]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, key)),
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {"objectType": "annotation", "classification": {"name": label, "color": list(colour)}, **extra},
    }


def write_geojson(tissue: Tissue, path: str | Path, *, name: str = "") -> str:
    """Write the contours as annotations of class Tissue (level-0 pixels); returns the hash of what was written.

    The file carries its own hash, which an editor drops or leaves stale: that is how an edited mask is recognised.
    """
    features = [
        feature((contour.outer, *contour.holes), "Tissue", (0, 150, 110), f"{name}/tissue/{number}")
        for number, contour in enumerate(tissue.contours)
    ]
    digest = _digest(features)
    document = {"type": "FeatureCollection", "hcmae_sha256": digest, "features": features}
    write_text(path, json.dumps(document, separators=(",", ":")) + "\n")
    return digest


def is_edited(path: str | Path) -> bool:
    """True where the file exists and is not, or no longer, what ``write_geojson`` wrote."""
    if not Path(path).exists():
        return False
    document = _load(Path(path))
    if not isinstance(document, dict) or "hcmae_sha256" not in document:
        return True
    return document["hcmae_sha256"] != _digest(document.get("features"))


def read_geojson(path: str | Path, shape: tuple[int, int], downsample: int) -> Tissue:
    """A tissue mask drawn or edited by a person: mask ``shape`` [H, W] at ``downsample``.

    Polygons and multipolygons of any class are tissue, except classes named Ignore..., Artefact..., Artifact...,
    Pen..., Background..., which are taken out. Raises ValueError naming file and feature where it is not GeoJSON of
    that kind, or has more vertices than a mask can need.
    """
    document = _load(Path(path))
    features = document.get("features", []) if isinstance(document, dict) else document
    if isinstance(document, dict) and document.get("type") == "Feature":
        features = [document]
    contours: list[Contour] = []
    excluded: list[Contour] = []
    left = MAX_VERTICES
    if not isinstance(features, list):
        raise ValueError(f"{path}: holds no list of features; export it from QuPath as GeoJSON again")
    for number, item in enumerate(features):
        try:
            polygons, label = _polygons(item)
            for rings in polygons:
                left -= sum(map(len, rings))
                if left < 0:
                    raise _FeatureError(f"goes beyond {MAX_VERTICES} vertices; simplify the outlines in QuPath")
                arrays = [_vertices(ring) for ring in rings]
                if arrays:
                    target = excluded if label.lower().startswith(_NOT_TISSUE) else contours
                    target.append(Contour(arrays[0], tuple(arrays[1:])))
        except _FeatureError as error:
            raise ValueError(f"{path}: feature {number} {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"{path}: feature {number} is no polygon of GeoJSON ({error!r})") from error
    mask = rasterise(contours, shape, downsample)
    if excluded:
        mask &= ~rasterise(excluded, shape, downsample)
    counts: dict[str, float] = {
        "pixels": mask.size,
        "contours_kept": len(contours),
        "excluded": len(excluded),
        "kept": int(mask.sum()),
    }
    return Tissue(mask, downsample, tuple(contours), counts, source="edited")


class _FeatureError(ValueError):
    """What is wrong with one feature, as the rest of a sentence."""


def _polygons(item: Any) -> tuple[list[Any], str]:
    """Polygons of a feature, each a list of rings, and the name of its class; points and lines have none."""
    geometry = (item or {}).get("geometry") or {}
    kind = geometry.get("type")
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return [], ""
    if kind not in ("Polygon", "MultiPolygon"):
        raise _FeatureError(f"has geometry '{kind}'; only polygons can be tissue")
    label = ((item.get("properties") or {}).get("classification") or {}).get("name") or ""
    return [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"], str(label)


def _vertices(ring: Any) -> NDArray[np.int64]:
    """Ring [N, 2] in whole level-0 pixels, not closed. Raises ValueError for places that no slide has."""
    places = np.asarray(ring, np.float64)
    if places.ndim != 2 or places.shape[1] < 2 or len(places) < 3:
        raise _FeatureError("has a ring that is no list of at least three places (x, y)")
    places = places[:, :2]
    if not (np.abs(places) <= _FARTHEST).all():  # nor NaN
        raise _FeatureError(f"has a vertex beyond {_FARTHEST} pixels; is it another unit or another slide's?")
    whole = np.rint(places).astype(np.int64)
    return whole[:-1] if len(whole) > 3 and (whole[0] == whole[-1]).all() else whole


_NOT_TISSUE = ("ignore", "artefact", "artifact", "pen", "background")


def _digest(features: Any) -> str:
    return hashlib.sha256(json.dumps(features, sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> Any:
    if path.stat().st_size > MAX_GEOJSON_BYTES:
        raise ValueError(f"{path}: larger than {MAX_GEOJSON_BYTES >> 20} MiB; simplify the outlines in QuPath")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid GeoJSON ({error}); export it again or delete it") from error


def simplified(tissue: Tissue, tolerance: float) -> Tissue:
    """The same tissue with rings simplified to ``tolerance`` level-0 pixels (for drawing)."""

    def thin(ring: NDArray[np.int64]) -> NDArray[np.int64]:
        short = cv2.approxPolyDP(ring.astype(np.int32).reshape(-1, 1, 2), tolerance, True).reshape(-1, 2)
        return short.astype(np.int64) if len(short) > 2 else ring

    return replace(tissue, contours=tuple(Contour(thin(c.outer), tuple(map(thin, c.holes))) for c in tissue.contours))
