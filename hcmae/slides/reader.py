"""Read whole-slide images: decode the tiles of a TIFF directly where that gives OpenSlide's pixels, else use OpenSlide.

A tiled TIFF (Aperio SVS, generic pyramids) is a table of compressed tiles. Fetching a tile with one positional read and
decoding it with libjpeg-turbo gives the same pixels as OpenSlide several times as fast and with a fraction of the
memory, because nothing is composed in premultiplied ARGB on the way. Whether the pixels are the same is not assumed: it
is checked on tissue tiles every time a slide is opened for processing.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hcmae.slides.errors import SlideError, TileError
from hcmae.slides.handles import OpenSlideHandle, PositionalFile, seen_levels, seen_properties, slide_identity
from hcmae.slides.index import implausible_index
from hcmae.slides.mpp import ASSUMED_MPP, resolve_mpp
from hcmae.slides.overview import FAILED_READS, Box, Overview, overview_of, read_parts
from hcmae.slides.probe import dies_of
from hcmae.slides.tiff import (
    NoTiffError,
    TiffEndsEarlyError,
    TiffError,
    TiffPage,
    described,
    implausible,
    is_dialect,
    read_pages,
)  # fmt: skip
from hcmae.slides.tiles import (
    COMPRESSION_NAMES,
    JPEG,
    JPEG2000,
    Level,
    TileTable,
    implausible_levels,
    is_damage,
    jpeg2000_size,
    jpeg_stream,
    pyramid_pages,
    shifted,
    telling_tiles,
    tile_table,
    unpack_tile,
    ycbcr_to_rgb,
)

__all__ = ["Level", "Slide", "SlideError", "TileError", "open_slide", "slide_identity"]

# Formats whose tiles are plain rectangles on a grid; the other TIFF dialects of OpenSlide overlap or omit tiles.
_PLAIN_VENDORS = {"aperio", "generic-tiff"}
# Largest grey-level difference to OpenSlide that the self-check accepts; every slide tried so far gave 0.
TOLERANCE = 2
# The same where OpenSlide resamples, against our own interpolation: its weights have seven bits, and it rounds twice.
RESAMPLED_TOLERANCE = 4
# How far from a whole pixel of a level a place may lie and still be read as it is stored; OpenSlide resamples beyond.
_ON_GRID = 1e-6
_MAX_OVERVIEW = 1 << 30


class Slide:
    """An open whole-slide image. Safe to read from many threads; close it, or use it in a ``with`` block.

    ``size`` (width, height) of level 0; ``levels``; ``mpp`` micrometres per level-0 pixel with ``mpp_source`` saying
    where it comes from; ``objective_power`` or None; ``properties``; ``reader`` 'direct' or 'openslide' with ``note``
    saying why; ``compression`` of level 0; ``stat`` of the file as it was opened; ``file_bytes`` with all its parts.
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
        self.file_bytes = 0
        self._identity: list[tuple[str, int, int, int]] = []

    def __repr__(self) -> str:
        w, h = self.size
        return f"Slide({self.path.name}, {w} x {h}, {len(self.levels)} levels, {self.mpp:g} um/px, {self.reader})"

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the file descriptor and OpenSlide's handle."""
        if self._file is not None:
            self._file.close()
        self._openslide.close()

    def changed(self) -> bool:
        """True where the file at this path, or another file of the slide, is no longer the one that was opened."""
        try:
            return slide_identity(self.path) != self._identity
        except OSError:
            return True

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
        cannot be decoded. Between the pixels of a smaller level OpenSlide interpolates, and then reads itself. Raises
        TileError for a damaged tile, ValueError for a level that does not exist.
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
        scale = self.levels[level].downsample
        if self.reader == "direct" and (_on_grid(x / scale, y / scale) or not self._openslide_has(level)):
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

    def _openslide_has(self, level: int) -> bool:
        """Whether OpenSlide can read a level for the direct path: it opens the file and numbers the levels as we do."""
        if not self._openslide_ok:
            return False
        try:
            handle = self._openslide.get()
            info = self.levels[level]
            return tuple(handle.level_dimensions[level]) == (info.width, info.height)
        except Exception:  # not installed, not opened, no such level
            return False

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

            width, height = jpeg2000_size(data)
            if not (0 < width <= tw and 0 < height <= th):
                raise ValueError(f"corrupt: the tile says {width} x {height} pixels, the table {tw} x {th}")
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
        return self._overview(max(1, round(w / factor)), max(1, round(h / factor))).pixels

    def overview(self, downsample: int) -> NDArray[np.uint8]:
        """The pixels of :meth:`survey`, uint8 [ceil(h/d), ceil(w/d), 3]."""
        return self.survey(downsample).pixels

    def survey(self, downsample: int) -> Overview:
        """The whole slide reduced by an integer: pixel (i, j) covers level-0 pixels [i*d, (i+1)*d) x [j*d, (j+1)*d).

        Where tiles of the level it comes from are damaged, the next larger level that can be read takes their place;
        where none can, pixels are white and ``unread``. Raises SlideError(unsupported) where the result has more than
        2^30 pixels.
        """
        w, h = self.size
        columns, rows = -(-w // downsample), -(-h // downsample)
        if columns * rows > _MAX_OVERVIEW:
            raise SlideError(
                "unsupported",
                self.path,
                f"an overview of {columns} x {rows} pixels is too large for {w} x {h}; cut larger regions",
            )
        return self._overview(columns, rows, downsample)

    def _overview(self, width: int, height: int, downsample: float | None = None) -> Overview:
        budget = [FAILED_READS]

        def read(level: int, x: int, y: int, out: NDArray[np.uint8]) -> list[Box]:
            return self._read_level(level, x, y, out, budget)

        return overview_of(self.levels, self.size, read, width, height, downsample)

    def _read_level(self, level: int, x: int, y: int, out: NDArray[np.uint8], budget: list[int]) -> list[Box]:
        """Fill out from (x, y) in the level's own pixels, white beyond the slide; returns what cannot be decoded."""
        info = self.levels[level]
        if self.reader == "direct":
            bad, _ = self._read_tiles(x, y, level, out)
            tw, th = info.tile_width, info.tile_height
            return [(c * tw, r * th, (c + 1) * tw, (r + 1) * th) for _, c, r in bad]

        def read(left: int, top: int, part: NDArray[np.uint8]) -> None:
            scale = info.downsample
            self._openslide.read(round(left * scale), round(top * scale), part.shape[1], part.shape[0], level, part)

        return read_parts(read, (info.tile_width or 256, info.tile_height or 256), x, y, out, budget)

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
    'openslide' never does. ``check=False`` skips the self-check (for a file that has passed it before). The tags of a
    TIFF are checked before any decoder sees the file; a file of another format, or of a scanner's own dialect, is first
    opened in a process of its own, once.

    Micrometres per pixel are taken from the first source that has them: the property ``openslide.mpp-x``; the vendor's
    tag (aperio.MPP and its like); the TIFF resolution, if it is a microscope's; ``mpp_table`` (file name or glob ->
    um/px, as a mapping or a CSV with columns slide, mpp); 10 / objective power, with a warning; 0.25, with a warning.
    ``mpp_source`` tells which.

    Raises SlideError with a code: missing, permission, truncated, unreadable, unsupported, not_square (pixels that are
    longer than broad, for which the table gives no side).
    """
    if reader not in ("auto", "direct", "openslide"):
        raise ValueError(f"unknown reader '{reader}': choose 'auto', 'direct' or 'openslide'")
    path = Path(path)
    slide = Slide(path)
    try:
        with open(path, "rb") as handle:
            head = handle.read(16)
            slide.stat = os.fstat(handle.fileno())
        slide._identity = slide_identity(path)
        slide.file_bytes = sum(size for _, size, _, _ in slide._identity)
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


def _on_grid(*places: float) -> bool:
    return all(abs(place - round(place)) <= _ON_GRID for place in places)


def _open(slide: Slide, head: bytes, reader: str, check: bool) -> None:
    _refuse(slide, implausible_index(slide.path))
    direct, why, checked = False, "not a TIFF", not check
    if head[:2] in (b"II", b"MM"):
        direct, why = _read_tags(slide)
        checked = checked or (slide._first is not None and not is_dialect(slide._first))
    if not checked:
        _try_apart(slide)
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
    _open_with_openslide(slide, why, check)


def _try_apart(slide: Slide) -> None:
    """Raises SlideError(unreadable) where a process of its own dies of this file."""
    death = dies_of(slide.path)
    _refuse(slide, death and f"a program that opens it with OpenSlide dies ({death})")


def _refuse(slide: Slide, odd: str) -> None:
    if odd:
        raise SlideError("unreadable", slide.path, f"{odd}; damaged or hostile")


def _open_with_openslide(slide: Slide, why: str, check: bool) -> None:
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
    properties = seen_properties(handle)
    slide.properties.update(properties)
    slide.levels = seen_levels(handle)
    _refuse(slide, implausible_levels(slide.levels))
    slide.size = handle.level_dimensions[0]
    if check:
        _some_tile_decodes(slide, why)


# Places of level 0 that are tried, as shares of both sides; the middle first, because that is where the tissue is.
_TRIED = (0.5, 0.3, 0.7, 0.1, 0.9)


def _some_tile_decodes(slide: Slide, why: str) -> None:
    """Raises SlideError(unreadable) where OpenSlide opens a slide of which it can decode nothing (12-bit JPEG, say)."""
    (w, h), cause = slide.size, ""
    for row in _TRIED:
        for column in _TRIED:
            try:
                slide._openslide.read(int(column * w), int(row * h), 1, 1, 0, np.empty((1, 1, 3), np.uint8))
                return
            except Exception as error:  # OpenSlide's own class is not importable everywhere
                cause = str(error)
    raise SlideError(
        "unreadable", slide.path, f"no tile of {len(_TRIED) ** 2} tried can be decoded ({why}; OpenSlide: {cause})"
    )


def _read_tags(slide: Slide) -> tuple[bool, str]:
    """Tile tables of the pyramid from the TIFF tags. Raises SlideError(truncated) where the file ends too early."""
    length = slide.file_bytes
    try:
        every = read_pages(slide.path)
        pages = [] if (odd := implausible(every)) else pyramid_pages(every)
    except (NoTiffError, OSError) as error:
        return False, f"TIFF tags cannot be read ({error})"
    except TiffError as error:
        # NDPI of more than 4 GiB has directories of its own kind; of any other file OpenSlide would believe the rest.
        _try_apart(slide)
        if slide._openslide.vendor() == "hamamatsu":
            return False, f"TIFF tags cannot be read ({error})"
        if isinstance(error, TiffEndsEarlyError):
            message = f"{error} ({length} bytes are there); fetch it again"
            raise SlideError("truncated", slide.path, message) from None
        odd = str(error)
    _refuse(slide, odd and f"its tags claim what no slide has ({odd})")
    if not pages:
        return False, "not a tiled TIFF"
    slide.properties.update(described(pages[0]))
    slide._first = pages[0]
    _whole_file(slide, pages, length)
    tables: list[TileTable] = []
    for page in pages:
        table, why = tile_table(page, pages[0])
        if table is not None:
            tables.append(table)
        elif page is pages[0]:
            return False, why
    slide._tables = tables
    first_table = tables[0]
    empty = np.flatnonzero((first_table.counts == 0) | (first_table.offsets == 0))
    slide._missing = [divmod(int(i), first_table.columns) for i in empty]
    return True, ""


def _whole_file(slide: Slide, pages: list[TiffPage], length: int) -> None:
    """Raises SlideError(truncated) where tiles of the pyramid lie beyond the file's end, whoever would decode them."""
    ends = [page.all("offsets") + page.all("counts") for page in pages if _listed(page)]
    end = max((int(item.max()) for item in ends), default=0)
    if end > length:
        share = float(np.mean(ends[0] <= length))
        raise SlideError(
            "truncated",
            slide.path,
            f"the file ends at byte {length}, its last tile at {end} ({share:.0%} of level 0 is there); fetch it again",
        )


def _listed(page: TiffPage) -> bool:
    return 0 < len(page.all("offsets")) == len(page.all("counts"))


def _self_check(slide: Slide) -> tuple[bool, str]:
    """Compare tiles with OpenSlide. The longest tiles hold the most tissue, so the byte counts choose them."""
    try:
        handle = slide._openslide.get()
    except ImportError:
        slide._openslide_ok = False
        if slide._first is not None and is_dialect(slide._first):
            return False, "a scanner's dialect of TIFF that only OpenSlide knows"
        return True, "OpenSlide is not installed: not checked"
    except Exception as error:
        slide._openslide_ok = False
        tables = slide._tables
        if not any(_decodes(slide, tables[0], index) for index in telling_tiles(tables[0])):
            raise SlideError("unreadable", slide.path, f"no tile can be decoded (OpenSlide: {error})") from None
        return True, f"OpenSlide cannot open it ({error}): not checked"
    properties = seen_properties(handle)
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
        for index in telling_tiles(table) if number == 0 else telling_tiles(table)[:1]:
            row, column = divmod(index, table.columns)
            info = table.level
            x, y = column * info.tile_width, row * info.tile_height
            w, h = min(info.tile_width, info.width - x), min(info.tile_height, info.height - y)
            # OpenSlide takes level-0 pixels: the first whole one that is not before the corner.
            scale = downsamples[number]
            left, top = math.ceil(x * scale - _ON_GRID), math.ceil(y * scale - _ON_GRID)
            shift = (left / scale - x, top / scale - y)
            if resampled := not _on_grid(*shift):
                w, h = w - 1, h - 1
            if w < 1 or h < 1:
                continue
            try:
                mine = slide._tile(table, index)
            except Exception as error:
                failed += 1
                if is_damage(error):
                    continue
                if slide._openslide.attempt(left, top, w, h, number) is not None:
                    return False, "OpenSlide reads a tile that the direct path refuses"
                continue
            if mine is None:
                continue
            theirs = slide._openslide.attempt(left, top, w, h, number)
            if theirs is None:
                failed += 1
                continue
            compared += 1
            if resampled:
                difference = np.abs(shifted(mine[: h + 1, : w + 1], *shift) - theirs).max()
                if difference > RESAMPLED_TOLERANCE:
                    return False, f"direct decoding differs from OpenSlide between pixels by up to {difference:.0f}"
                continue
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


def _decodes(slide: Slide, table: TileTable, index: int) -> bool:
    try:
        return slide._tile(table, index) is not None
    except Exception:
        return False
