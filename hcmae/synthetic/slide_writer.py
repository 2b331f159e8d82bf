"""Slides as a scanner leaves them: tiled JPEG pyramids in Aperio's layout, written band by band."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from hcmae.config import Geometry
from hcmae.files import atomic_path
from hcmae.synthetic import histology

TILE = 256
MPP = 0.5
POWER = 20
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class SlidePlan:
    """Where the tissue lies: regions on a grid, with the corner of the slide at (0, 0)."""

    columns: int
    rows: int
    cells: tuple[tuple[int, int], ...]  # (row, column) of each region, reading order
    tumour: tuple[bool, ...]

    def corners(self, region: int) -> list[tuple[int, int]]:
        """Level-0 (x, y) of the top-left corner of each region: multiples of the region's side."""
        return [((column + 1) * region, (row + 1) * region) for row, column in self.cells]


def plan_slide(regions: int, tumour_regions: int, rng: np.random.Generator, *, widest: int = 64) -> SlidePlan:
    """Place the regions in one connected piece of tissue, ``widest`` regions wide at most, the tumour as one focus."""
    columns = int(np.clip(np.ceil(np.sqrt(regions * rng.uniform(0.9, 1.5))), 2, widest))
    rows = -(-regions // columns)
    last = regions - (rows - 1) * columns
    start = int(rng.integers(0, columns - last + 1))
    cells = [(r, c) for r in range(rows - 1) for c in range(columns)]
    cells += [(rows - 1, start + c) for c in range(last)]
    focus = np.array(cells[int(rng.integers(len(cells)))])
    distance = np.abs(np.array(cells) - focus).sum(axis=1) + 0.1 * rng.uniform(size=regions)
    chosen = set(np.argsort(distance)[:tumour_regions].tolist())
    return SlidePlan(columns, rows, tuple(cells), tuple(i in chosen for i in range(regions)))


def write_slide(
    path: Path,
    plan: SlidePlan,
    geometry: Geometry,
    *,
    cell: float,
    architecture: float,
    seed: list[int],
    quality: int,
    barcode: str,
) -> None:
    """Paint and write one slide: a margin of one region above and left, half a region below and right.

    Page 0 is tiled JPEG (YCbCr 4:2:0), then thumbnail, levels /4 and /16 (where at least a tile fits), label, macro.
    One band of regions is in memory at a time, so that a slide of any size can be written.
    """
    width, height = _size(plan, geometry.region)
    small = np.full((-(-height // 4), -(-width // 4), 3), histology.BACKGROUND, dtype=np.uint8)
    head = (
        f"Aperio Image Library v12.0.15\r\n{width}x{height} [0,0 {width}x{height}] ({TILE}x{TILE}) JPEG/RGB Q={quality}"
    )
    facts = f"|AppMag = {POWER}|StripeWidth = 2040|ScanScope ID = SYNTH|Filename = {barcode}|MPP = {MPP:.4f}"
    with (
        atomic_path(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=width * height > 3_000_000_000) as out,
    ):
        bands = _bands(plan, geometry, width, height, cell, architecture, seed, small)
        _write_level(out, _tiles(bands, width, quality), (height, width), head + facts)
        side = max(width, height)
        factor = max(1, side // 512)
        thumbnail = _shrink(small, (max(1, width // factor), max(1, height // factor)))
        _write_strip(out, thumbnail, f"{head} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} {facts}", 0)
        level = small
        for downsample in (4, 16):
            if downsample > 4:
                if min(level.shape[:2]) < 4 * TILE // 2:
                    break
                level = _shrink(level, (level.shape[1] // 4, level.shape[0] // 4))
            note = f"{head} -> {level.shape[1]}x{level.shape[0]} {facts}"
            _write_level(out, _tiles(iter([level]), level.shape[1], quality), level.shape[:2], note)
        _write_strip(out, _label(barcode), "Aperio Image Library v12.0.15\r\nlabel 160x160", 1)
        macro = np.full((160, 400, 3), 235, dtype=np.uint8)
        scale = min(140 / height, 240 / width)
        view = _shrink(small, (max(1, int(width * scale)), max(1, int(height * scale))))
        macro[10 : 10 + view.shape[0], 150 : 150 + view.shape[1]] = view
        _write_strip(out, macro, "Aperio Image Library v12.0.15\r\nmacro 400x160", 9)


def paint_slide(plan: SlidePlan, geometry: Geometry, *, cell: float, architecture: float, seed: list[int]) -> Bytes:
    """The same picture in memory, before JPEG: RGB [height, width, 3]. For small geometries, figures and tests."""
    width, height = _size(plan, geometry.region)
    small = np.empty((-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return np.concatenate(list(_bands(plan, geometry, width, height, cell, architecture, seed, small)))


def _size(plan: SlidePlan, region: int) -> tuple[int, int]:
    return (plan.columns + 1) * region + region // 2, (plan.rows + 1) * region + region // 2


def _bands(
    plan: SlidePlan,
    geometry: Geometry,
    width: int,
    height: int,
    cell: float,
    architecture: float,
    seed: list[int],
    small: Bytes,
) -> Iterator[Bytes]:
    """Yield the slide as bands of one region's height; fill the quarter-size copy on the way."""
    region, side = geometry.region, geometry.patches_per_side
    rng = np.random.default_rng(seed)
    table = histology.stain_table(rng)
    ground = histology.draw_ground(rng)
    grain, fibres = _cached_textures()
    seeds = rng.integers(1, 2**62, size=(len(plan.cells), 2))
    phases = rng.uniform(0, 2 * np.pi, size=(len(plan.cells), 4))
    occupied = set(plan.cells)
    for row in range(-1, -(-height // region) - 1):
        rows = min(region, height - (row + 1) * region)
        members = [i for i, cell_at in enumerate(plan.cells) if cell_at[0] == row]
        band = np.empty((rows, width, 3), dtype=np.uint8)
        if not members:
            band[:] = histology.BACKGROUND
            yield band
            continue
        h = np.zeros((rows, width), dtype=np.uint8)
        e = np.zeros((rows, width), dtype=np.uint8)
        for i in members:
            _, column = plan.cells[i]
            x0 = (column + 1) * region
            if plan.tumour[i]:
                kinds = histology.patch_kinds(side, architecture, int(seeds[i, 0]))
            else:
                kinds = np.full((side, side), histology.NORMAL, dtype=np.int8)
            top, start = (row + 1) * region, np.uint64(seeds[i, 1])
            histology.paint_region(h, e, 0, x0, top, geometry.patch, kinds, float(cell), ground, grain, fibres, start)
            _outline(h, e, x0, region, (row, column), occupied, phases[i])
        histology.to_colour(h, e, table, band)
        quarter = _shrink(band, (-(-width // 4), -(-rows // 4)))
        top = (row + 1) * region // 4
        small[top : top + quarter.shape[0], : quarter.shape[1]] = quarter
        yield band


def _outline(
    h: Bytes,
    e: Bytes,
    x0: int,
    region: int,
    at: tuple[int, int],
    occupied: set[tuple[int, int]],
    phases: NDArray[np.float64],
) -> None:
    """Wavy outer sides and rounded outer corners; inner borders between regions stay whole."""
    row, column = at
    free = [
        (row - 1, column) not in occupied,
        (row + 1, column) not in occupied,
        (row, column - 1) not in occupied,
        (row, column + 1) not in occupied,
    ]
    for side in range(4):
        if free[side]:
            histology.erode_side(h, e, 0, x0, region, side, 0.05 * region, phases[side])
    for corner, (a, b) in enumerate([(0, 2), (0, 3), (1, 2), (1, 3)]):
        if free[a] and free[b]:
            histology.round_corner(h, e, 0, x0, region, corner, int(0.1 * region))


_TEXTURES: list[tuple[Bytes, Bytes]] = []


def _cached_textures() -> tuple[Bytes, Bytes]:
    if not _TEXTURES:
        _TEXTURES.append(histology.textures())
    return _TEXTURES[0]


def _tiles(bands: Iterator[Bytes], width: int, quality: int) -> Iterator[bytes]:
    """JPEG-encoded tiles in reading order from bands whose heights need not be multiples of the tile."""
    blank = np.empty((TILE, TILE, 3), dtype=np.uint8)
    blank[:] = histology.BACKGROUND
    blank_jpeg = _jpeg(blank, quality)
    rest = np.empty((0, width, 3), dtype=np.uint8)

    def encode(stripe: Bytes) -> Iterator[bytes]:
        for left in range(0, width, TILE):
            tile = stripe[:, left : left + TILE]
            if tile.shape[:2] != (TILE, TILE):
                padding = ((0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0))
                tile = np.pad(tile, padding, mode="edge")
            # Most of a slide is glass: its tile is encoded once.
            if tile[0, 0, 0] == blank[0, 0, 0] and np.array_equal(tile, blank):
                yield blank_jpeg
            else:
                yield _jpeg(np.ascontiguousarray(tile), quality)

    for band in bands:
        rest = np.concatenate([rest, band]) if len(rest) else band
        whole = len(rest) // TILE * TILE
        for top in range(0, whole, TILE):
            yield from encode(rest[top : top + TILE])
        rest = rest[whole:]
    if len(rest):
        yield from encode(rest)


def _jpeg(image: Bytes, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")


def _write_level(out: tifffile.TiffWriter, tiles: Iterator[bytes], shape: tuple[int, ...], note: str) -> None:
    # The tiles are encoded already: here ``photometric`` names what the file holds, not what an array held.
    out.write(
        tiles,
        shape=(shape[0], shape[1], 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        description=note,
        resolution=(1e4 / MPP, 1e4 / MPP),
        resolutionunit="CENTIMETER",
        metadata=None,
        software=False,
        subfiletype=0,
    )


def _write_strip(out: tifffile.TiffWriter, image: Bytes, note: str, kind: int) -> None:
    out.write(
        iter([_jpeg(np.ascontiguousarray(image), 80)]),
        shape=image.shape,
        dtype=np.uint8,
        rowsperstrip=image.shape[0],
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        description=note,
        metadata=None,
        software=False,
        subfiletype=kind,
    )


def _shrink(image: Bytes, size: tuple[int, int]) -> Bytes:
    """Area mean; size is (width, height)."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _label(barcode: str) -> Bytes:
    label = np.full((160, 160, 3), 250, dtype=np.uint8)
    cv2.putText(label, "SYNTHETIC", (12, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (30, 30, 30), 1, cv2.LINE_AA)
    cv2.putText(label, barcode[:12], (12, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return label
