"""Read whole-slide images: decode the tiles of a TIFF directly where that gives OpenSlide's pixels, else use OpenSlide.

A tiled TIFF (Aperio SVS, generic pyramids) is a table of compressed tiles. Fetching a tile with one positional read and
decoding it with libjpeg-turbo gives the same pixels as OpenSlide several times as fast and with a fraction of the
memory, because nothing is composed in premultiplied ARGB on the way. Whether the pixels are the same is not assumed: it
is checked on tissue tiles every time a slide is opened for processing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hcmae.slides.handles import OpenSlideHandle, PositionalFile
from hcmae.slides.mpp import ASSUMED_MPP, resolve_mpp
from hcmae.slides.tiff import TiffEndsEarlyError, TiffError, TiffPage, read_pages
from hcmae.slides.tiles import (
    COMPRESSION_NAMES,
    JPEG,
    JPEG2000,
    Level,
    TileTable,
    is_damage,
    jpeg_stream,
    pyramid_pages,
    tile_table,
    unpack_tile,
    ycbcr_to_rgb,
)

__all__ = ["Level", "Slide", "SlideError", "TileError", "open_slide"]

# Formats whose tiles are plain rectangles on a grid; the other TIFF dialects of OpenSlide overlap or omit tiles.
_PLAIN_VENDORS = {"aperio", "generic-tiff"}
# Largest grey-level difference to OpenSlide that the self-check accepts; every slide tried so far gave 0.
TOLERANCE = 2


class SlideError(Exception):
    """A slide that cannot be used. ``code`` is the reason in one word: missing, permission, truncated, unreadable,
    unsupported or changed."""

    def __init__(self, code: str, path: str | Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.code = code
        self.path = Path(path)
        self.message = message

    def __reduce__(self) -> tuple[type[SlideError], tuple[str, Path, str]]:
        # From a worker process it must arrive as it left.
        return type(self), (self.code, self.path, self.message)


class TileError(Exception):
    """Some tiles of a requested area cannot be decoded. ``tiles`` lists (level, column, row)."""

    def __init__(self, path: Path, tiles: list[tuple[int, int, int]], cause: str) -> None:
        super().__init__(
            f"{path}: {len(tiles)} tile(s) cannot be decoded, first (level, column, row) {tiles[0]}: {cause}"
        )
        self.path, self.tiles, self.cause = path, tiles, cause

    def __reduce__(self) -> tuple[type[TileError], tuple[Path, list[tuple[int, int, int]], str]]:
        return type(self), (self.path, self.tiles, self.cause)


class Slide:
    """An open whole-slide image. Safe to read from many threads; close it, or use it in a ``with`` block.

    ``size`` (width, height) of level 0; ``levels``; ``mpp`` micrometres per level-0 pixel with ``mpp_source`` saying
    where it comes from; ``objective_power`` or None; ``properties``; ``reader`` 'direct' or 'openslide' with ``note``
    saying why; ``compression`` of level 0; ``stat`` of the file as it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size: tuple[int, int] = (0, 0)
        self.levels: tuple[Level, ...] = ()
        self.mpp: float = ASSUMED_MPP
        self.mpp_source: str = "assumed"
        self.objective_power: float | None = None
        self.properties: dict[str, str] = {}
        self.reader: str = "openslide"
        self.note: str = ""
        self.compression: str = "unknown"
        self._tables: list[TileTable] = []
        self._first: TiffPage | None = None
        self._file: PositionalFile | None = None
        self._missing: list[tuple[int, int]] = []
        self._openslide = OpenSlideHandle(path)
        self._openslide_ok = True
        self._scratch = threading.local()
        self.stat: os.stat_result | None = None

    def __repr__(self) -> str:
        w, h = self.size
        return f"Slide({self.path.name}, {w} x {h}, {len(self.levels)} levels, {self.mpp:g} um/px, {self.reader})"

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def file_bytes(self) -> int:
        """Size of the file that was opened (of its first part, where a slide has several)."""
        return self.stat.st_size if self.stat is not None else 0

    def close(self) -> None:
        """Give back the file descriptor and OpenSlide's handle."""
        if self._file is not None:
            self._file.close()
        self._openslide.close()

    def changed(self) -> bool:
        """True where the file at this path is no longer the one that was opened (replaced, rewritten, removed)."""
        try:
            now = os.stat(self.path)
        except OSError:
            return True
        was = self.stat
        return was is None or (now.st_ino, now.st_size, now.st_mtime_ns) != (was.st_ino, was.st_size, was.st_mtime_ns)

    # --- pixels -------------------------------------------------------------------------------------------------

    def read(
        self,
        x: int,
        y: int,
        size: tuple[int, int],
        level: int = 0,
        *,
        on_error: str = "raise",
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Pixels of a rectangle, uint8 [h, w, 3].

        ``x, y``: top-left corner in level-0 pixels (as in OpenSlide); ``size`` (w, h) in pixels of ``level``. Pixels
        outside the slide, empty tiles and transparent pixels are white. ``on_error='white'`` also whitens tiles that
        cannot be decoded. Raises TileError for a damaged tile, ValueError for a level that does not exist.
        """
        if not 0 <= level < len(self.levels):
            raise ValueError(f"{self.path}: no level {level}; it has levels 0 to {len(self.levels) - 1}")
        width, height = size
        if width <= 0 or height <= 0:
            raise ValueError(f"{self.path}: cannot read {width} x {height} pixels; both must be positive")
        if out is None:
            out = np.empty((height, width, 3), np.uint8)
        elif out.shape != (height, width, 3) or out.dtype != np.uint8:
            raise ValueError(f"out must be uint8 [{height}, {width}, 3], not {out.dtype} {list(out.shape)}")
        if self.reader == "direct":
            scale = self.levels[level].downsample
            bad, cause = self._read_tiles(round(x / scale), round(y / scale), level, out)
        else:
            bad, cause = [], ""
            try:
                self._openslide.read(x, y, width, height, level, out)
            except Exception as error:  # OpenSlide's own class is not importable everywhere
                cause = str(error)
                bad = [(level, x, y)]
                out[...] = 255
        if bad and on_error == "raise":
            raise TileError(self.path, bad, cause)
        return out

    def _read_tiles(self, x: int, y: int, level: int, out: NDArray[np.uint8]) -> tuple[list[tuple[int, int, int]], str]:
        table = self._tables[level]
        info = table.level
        tw, th = info.tile_width, info.tile_height
        height, width = out.shape[:2]
        x1, y1 = min(x + width, info.width), min(y + height, info.height)
        if x < 0 or y < 0 or x1 < x + width or y1 < y + height:
            out[...] = 255
        bad: list[tuple[int, int, int]] = []
        cause = ""
        for row in range(max(0, y) // th, -(-y1 // th)):
            top, bottom = max(y, row * th), min(y1, (row + 1) * th)
            for column in range(max(0, x) // tw, -(-x1 // tw)):
                left, right = max(x, column * tw), min(x1, (column + 1) * tw)
                target = out[top - y : bottom - y, left - x : right - x]
                try:
                    tile = self._tile(table, row * table.columns + column)
                except Exception as error:  # decoders raise many kinds; the tile is what is bad
                    cause = f"{type(error).__name__}: {error}"
                    if is_damage(error) or not self._second_opinion(level, left, top, target):
                        bad.append((level, column, row))
                        target[...] = 255
                    continue
                if tile is None:
                    target[...] = 255
                else:
                    target[...] = tile[top - row * th : bottom - row * th, left - column * tw : right - column * tw]
        if level and self._missing:
            self._whiten_missing(x, y, level, out)
        return bad, cause

    def _whiten_missing(self, x: int, y: int, level: int, out: NDArray[np.uint8]) -> None:
        """Scanners leave rubbish in the smaller levels where a tile of level 0 is missing: white there too."""
        base, scale = self._tables[0].level, self.levels[level].downsample
        for row, column in self._missing:
            left, right = (round(c * base.tile_width / scale) - x for c in (column, column + 1))
            top, bottom = (round(r * base.tile_height / scale) - y for r in (row, row + 1))
            out[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = 255

    def _second_opinion(self, level: int, x: int, y: int, target: NDArray[np.uint8]) -> bool:
        """Ask OpenSlide for an area whose tile the direct path refuses: direct must never be the worse reader."""
        if not self._openslide_ok or self.changed():
            return False
        scale = self.levels[level].downsample
        patch = np.empty(target.shape, np.uint8)
        try:
            self._openslide.read(round(x * scale), round(y * scale), target.shape[1], target.shape[0], level, patch)
        except Exception:
            return False
        target[...] = patch
        return True

    def _tile(self, table: TileTable, index: int, factor: int = 1) -> NDArray[np.uint8] | None:
        """Decode one tile, [th, tw, 3]; None where the file stores nothing for it. ``factor``: JPEG scaling."""
        offset, count = int(table.offsets[index]), int(table.counts[index])
        if count == 0 or offset == 0:
            return None
        assert self._file is not None
        data = self._file.read(offset, count)
        if len(data) < count:
            raise ValueError(f"the file ends inside the tile ({len(data)} of {count} bytes)")
        th, tw = table.level.tile_height, table.level.tile_width
        if table.compression in JPEG:
            import simplejpeg

            buffer = None
            if factor == 1:
                buffer = getattr(self._scratch, "tile", None)
                if buffer is None or buffer.shape != (th, tw, 3):
                    buffer = self._scratch.tile = np.empty((th, tw, 3), np.uint8)
            stream = jpeg_stream(data, table.tables, table.ycbcr)
            tile = simplejpeg.decode_jpeg(
                stream, "RGB", False, False, min_factor=factor, **({} if buffer is None else {"buffer": buffer})
            )
        elif table.compression in JPEG2000:
            import imagecodecs

            tile = imagecodecs.jpeg2k_decode(data, numthreads=1)
            if tile.ndim == 3 and tile.dtype == np.uint8 and JPEG2000[table.compression] == "ycbcr":
                tile = ycbcr_to_rgb(tile)
        else:
            tile = unpack_tile(data, table)
        if factor == 1 and (tile.ndim != 3 or tile.shape[2] != 3 or tile.dtype != np.uint8):
            raise ValueError(f"tile decodes to {tile.dtype} {list(tile.shape)}, not to 8-bit RGB")
        if factor == 1 and (tile.shape[0] < th or tile.shape[1] < tw):
            full = np.full((th, tw, 3), 255, np.uint8)
            full[: tile.shape[0], : tile.shape[1]] = tile
            return full
        return tile

    def thumbnail(self, max_side: int) -> NDArray[np.uint8]:
        """The whole slide, area-averaged so that its longer side has at most ``max_side`` pixels, uint8 [h, w, 3]."""
        w, h = self.size
        factor = max(1.0, max(w, h) / max_side)
        return self._overview(max(1, round(w / factor)), max(1, round(h / factor)))

    def overview(self, downsample: int) -> NDArray[np.uint8]:
        """The whole slide reduced by an integer: pixel (i, j) covers level-0 pixels [i*d, (i+1)*d) x [j*d, (j+1)*d).

        Damaged tiles are white. uint8 [ceil(h/d), ceil(w/d), 3].
        """
        w, h = self.size
        return self._overview(-(-w // downsample), -(-h // downsample), downsample)

    def _overview(self, width: int, height: int, downsample: float | None = None) -> NDArray[np.uint8]:
        """Band by band from the smallest stored level that is not smaller than the result, so memory stays bounded."""
        import cv2

        sx = downsample or self.size[0] / width
        sy = downsample or self.size[1] / height
        level = max(i for i, item in enumerate(self.levels) if item.downsample <= max(1.0, min(sx, sy)) * 1.01)
        info = self.levels[level]
        fx, fy = sx / info.downsample, sy / info.downsample
        out = np.empty((height, width, 3), np.uint8)
        # About 24 MiB per band, at least one row of the result.
        rows = max(1, min(height, int((24 << 20) / (3 * max(info.width, 1) * fy))))
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            y0, y1 = round(top * fy), max(round(top * fy) + 1, round(bottom * fy))
            band = self._band(level, y0, y1, round(width * fx))
            out[top:bottom] = cv2.resize(band, (width, bottom - top), interpolation=cv2.INTER_AREA)
        return out

    def _band(self, level: int, y0: int, y1: int, width: int) -> NDArray[np.uint8]:
        """Rows [y0, y1) of a level, in its own pixels, white below and right of the slide."""
        if self.reader == "direct":
            band = np.empty((y1 - y0, width, 3), np.uint8)
            self._read_tiles(0, y0, level, band)
            return band
        return self.read(0, round(y0 * self.levels[level].downsample), (width, y1 - y0), level, on_error="white")

    # --- what a job planner needs ---------------------------------------------------------------------------------

    def tile_bytes(self, level: int = 0) -> NDArray[np.int64]:
        """Compressed size of every tile, [rows, columns]; empty array where OpenSlide reads. A cheap map of detail."""
        if not self._tables:
            return np.zeros((0, 0), np.int64)
        table = self._tables[level]
        return table.counts.reshape(table.rows, table.columns)


def open_slide(
    path: str | Path,
    *,
    mpp_table: str | Path | Mapping[str, float] | None = None,
    reader: str = "auto",
    check: bool = True,
) -> Slide:
    """Open a whole-slide image.

    ``reader``: 'auto' decodes tiles directly where the self-check against OpenSlide passes, 'direct' insists on it,
    'openslide' never does. ``check=False`` skips the self-check (for a file that has passed it before).

    Micrometres per pixel are taken from the first source that has them: the property ``openslide.mpp-x``; the vendor's
    tag (aperio.MPP and its like); the TIFF resolution, if it is a microscope's; ``mpp_table`` (file name or glob ->
    um/px, as a mapping or a CSV with columns slide, mpp); 10 / objective power, with a warning; 0.25, with a warning.
    ``mpp_source`` tells which.

    Raises SlideError with a code: missing, permission, truncated, unreadable, unsupported.
    """
    if reader not in ("auto", "direct", "openslide"):
        raise ValueError(f"unknown reader '{reader}': choose 'auto', 'direct' or 'openslide'")
    path = Path(path)
    slide = Slide(path)
    try:
        with open(path, "rb") as handle:
            head = handle.read(16)
            slide.stat = os.fstat(handle.fileno())
    except FileNotFoundError:
        raise SlideError("missing", path, "no such file; was the download deleted or renamed?") from None
    except PermissionError:
        raise SlideError("permission", path, "permission denied; make the file readable (chmod a+r)") from None
    except IsADirectoryError:
        raise SlideError("unreadable", path, "is a folder, not a slide") from None
    if not head:
        raise SlideError("truncated", path, "is empty; download it again")
    try:
        _open(slide, head, reader, check)
        found = resolve_mpp(path, slide.properties, mpp_table)
        slide.mpp, slide.mpp_source, slide.objective_power = found.mpp, found.source, found.power
    except BaseException:
        slide.close()
        raise
    return slide


def _open(slide: Slide, head: bytes, reader: str, check: bool) -> None:
    direct, why = False, "not a TIFF"
    if head[:2] in (b"II", b"MM"):
        direct, why = _read_tags(slide)
    if reader == "openslide":
        direct, why = False, "asked for"
    if direct:
        slide._file = PositionalFile(slide.path)
    if direct and check:
        direct, why = _self_check(slide)
    elif direct:
        why = "not checked against OpenSlide in this session"
    if direct:
        slide.reader, slide.note = "direct", why
        slide.levels = tuple(table.level for table in slide._tables)
        slide.size = (slide.levels[0].width, slide.levels[0].height)
        slide.compression = COMPRESSION_NAMES.get(slide._tables[0].compression, "unknown")
        return
    if reader == "direct":
        raise SlideError("unsupported", slide.path, f"cannot be decoded directly ({why}); open it with reader='auto'")
    if slide._file is not None:
        slide._file.close()
        slide._file = None
    slide._tables = []
    _open_with_openslide(slide, why)


def _open_with_openslide(slide: Slide, why: str) -> None:
    try:
        handle = slide._openslide.get()
    except ImportError:
        raise SlideError(
            "unsupported", slide.path, f"{why}, and OpenSlide is not installed (pip install openslide-bin)"
        ) from None
    except Exception as error:
        raise SlideError(
            "unreadable", slide.path, f"not a slide that can be read ({why}; OpenSlide: {error})"
        ) from None
    slide.reader, slide.note = "openslide", why
    slide.properties.update(handle.properties)
    slide.levels = tuple(
        Level(w, h, float(d)) for (w, h), d in zip(handle.level_dimensions, handle.level_downsamples, strict=True)
    )
    slide.size = handle.level_dimensions[0]


def _read_tags(slide: Slide) -> tuple[bool, str]:
    """Tile tables of the pyramid from the TIFF tags. Raises SlideError(truncated) where the file ends too early."""
    length = slide.file_bytes
    try:
        pages = pyramid_pages(read_pages(slide.path))
    except TiffEndsEarlyError as error:
        if _openslide_opens(slide):  # a dialect with tags of its own, such as NDPI of more than 4 GiB
            return False, f"TIFF tags cannot be read ({error})"
        raise SlideError("truncated", slide.path, f"{error} ({length} bytes are there); fetch it again") from None
    except (TiffError, OSError) as error:
        return False, f"TIFF tags cannot be read ({error})"
    if not pages:
        return False, "not a tiled TIFF"
    _describe(slide, pages[0])
    slide._first = pages[0]
    tables: list[TileTable] = []
    for page in pages:
        table, why = tile_table(page, pages[0])
        if table is not None:
            tables.append(table)
        elif page is pages[0]:
            return False, why
    end = max(int((table.offsets + table.counts).max()) for table in tables)
    if end > length:
        share = float(np.mean(tables[0].offsets + tables[0].counts <= length))
        raise SlideError(
            "truncated",
            slide.path,
            f"the file ends at byte {length}, its last tile at {end} ({share:.0%} of level 0 is there); fetch it again",
        )
    slide._tables = tables
    first_table = tables[0]
    empty = np.flatnonzero((first_table.counts == 0) | (first_table.offsets == 0))
    slide._missing = [divmod(int(i), first_table.columns) for i in empty]
    return True, ""


def _openslide_opens(slide: Slide) -> bool:
    try:
        slide._openslide.get()
    except Exception:  # not installed, or not a slide
        return False
    return True


def _foreign(slide: Slide) -> bool:
    """True where the tags say that a scanner wrote the file whose tiles overlap, are shifted or are left out."""
    page = slide._first
    text = str(page.get("description", "")).lstrip() if page else ""
    return page is not None and not text.startswith("Aperio") and ("xmp" in page.tags or text.startswith("<"))


def _describe(slide: Slide, page: TiffPage) -> None:
    """Properties of an Aperio description (key = value, separated by bars) and of the resolution tags."""
    text = page.get("description", "")
    if text.startswith("Aperio"):
        for item in text.split("|")[1:]:
            key, separator, value = item.partition("=")
            if separator:
                slide.properties[f"aperio.{key.strip()}"] = value.strip()
    for name, tag in (("XResolution", "x_resolution"), ("YResolution", "y_resolution")):
        if page.get(tag):
            slide.properties[f"tiff.{name}"] = repr(page.get(tag))
    if "unit" in page.tags:
        slide.properties["tiff.ResolutionUnit"] = {2: "inch", 3: "centimeter"}.get(page.get("unit"), "none")


def _self_check(slide: Slide) -> tuple[bool, str]:
    """Compare tiles with OpenSlide. The longest tiles hold the most tissue, so the byte counts choose them."""
    try:
        handle = slide._openslide.get()
    except ImportError:
        slide._openslide_ok = False
        if _foreign(slide):
            return False, "a scanner's dialect of TIFF that only OpenSlide knows"
        return True, "OpenSlide is not installed: not checked"
    except Exception as error:
        slide._openslide_ok = False
        tables = slide._tables
        if not any(_decodes(slide, tables[0], index) for index in _telling_tiles(tables[0])):
            raise SlideError("unreadable", slide.path, f"no tile can be decoded (OpenSlide: {error})") from None
        return True, f"OpenSlide cannot open it ({error}): not checked"
    properties = dict(handle.properties)
    slide.properties.update(properties)
    vendor = properties.get("openslide.vendor", "unknown")
    if vendor not in _PLAIN_VENDORS:
        return False, f"format {vendor} is read by OpenSlide only"
    sizes = list(handle.level_dimensions)
    downsamples = slide._openslide.downsamples(handle)
    if sizes[0] != (slide._tables[0].level.width, slide._tables[0].level.height):
        return False, "OpenSlide sees another size"
    # Levels of which OpenSlide knows nothing are not part of the pyramid, and the numbering must agree.
    slide._tables = [table for table in slide._tables if (table.level.width, table.level.height) in sizes]
    if [(t.level.width, t.level.height) for t in slide._tables] != sizes:
        return False, "OpenSlide sees other levels"
    worst, compared, failed = 0, 0, 0
    # Around missing tiles OpenSlide paints smaller levels anew from larger ones; only level 0 can be compared then.
    for number, table in enumerate(slide._tables[:1] if slide._missing else slide._tables):
        for index in _telling_tiles(table) if number == 0 else _telling_tiles(table)[:1]:
            row, column = divmod(index, table.columns)
            info = table.level
            x, y = column * info.tile_width, row * info.tile_height
            w, h = min(info.tile_width, info.width - x), min(info.tile_height, info.height - y)
            scale = downsamples[number]
            # Only where the corner is a whole level-0 pixel does OpenSlide not resample.
            if number and (x * scale != int(x * scale) or y * scale != int(y * scale)):
                continue
            try:
                mine = slide._tile(table, index)
            except Exception as error:
                failed += 1
                if is_damage(error):
                    continue
                theirs = _quiet_read(slide, int(x * scale), int(y * scale), w, h, number)
                if theirs is not None:
                    return False, "OpenSlide reads a tile that the direct path refuses"
                continue
            if mine is None:
                continue
            theirs = _quiet_read(slide, int(x * scale), int(y * scale), w, h, number)
            if theirs is None:
                failed += 1
                continue
            compared += 1
            worst = max(worst, int(np.abs(mine[:h, :w].astype(np.int16) - theirs).max()))
            if worst > TOLERANCE:
                return False, f"direct decoding differs from OpenSlide by up to {worst} grey levels"
    # The handle keeps a tile cache of tens of MiB that nothing will use again.
    slide._openslide.close()
    if not compared and failed:
        raise SlideError("unreadable", slide.path, "neither OpenSlide nor the direct path can decode any tile tried")
    if not compared:
        return True, "no stored tile to compare"
    return True, f"{compared} tiles compared with OpenSlide, largest difference {worst}"


def _telling_tiles(table: TileTable) -> list[int]:
    """The fullest tile, one of the upper quarter, the median, and the corner where tiles are cut off."""
    stored = np.flatnonzero((table.counts > 0) & (table.offsets > 0))
    if not len(stored):
        return [0]
    order = stored[np.argsort(table.counts[stored], kind="stable")]
    picks = [order[-1], order[int(0.8 * (len(order) - 1))], order[len(order) // 2], len(table.counts) - 1]
    return list(dict.fromkeys(int(i) for i in picks))


def _decodes(slide: Slide, table: TileTable, index: int) -> bool:
    try:
        return slide._tile(table, index) is not None
    except Exception:
        return False


def _quiet_read(slide: Slide, x: int, y: int, w: int, h: int, level: int) -> NDArray[np.int16] | None:
    out = np.empty((h, w, 3), np.uint8)
    try:
        slide._openslide.read(x, y, w, h, level, out)
    except Exception:
        return None
    return out.astype(np.int16)
