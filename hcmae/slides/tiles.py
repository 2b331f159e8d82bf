"""Tiles of a TIFF: where they lie, how they are packed, and their pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hcmae.slides.tiff import MAX_SIDE, TiffPage

JPEG = {7}
JPEG2000 = {33003: "ycbcr", 33005: "rgb", 34712: "rgb"}
_OTHER = {1, 5, 8, 32946, 50000}
COMPRESSION_NAMES = {
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32946: "deflate",
    33003: "jpeg2000",
    33005: "jpeg2000",
    34712: "jpeg2000",
    50000: "zstd",
}


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: size in its own pixels, downsample relative to level 0, tile size (0: unknown)."""

    width: int
    height: int
    downsample: float
    tile_width: int = 0
    tile_height: int = 0


def implausible_levels(levels: Sequence[Level]) -> str:
    """What no slide has about levels that OpenSlide sees, in words; '' where they can be true."""
    sound = all(0 < side <= MAX_SIDE for level in levels for side in (level.width, level.height))
    if levels and sound and all(level.downsample > 0 for level in levels):
        return ""
    return f"levels of {', '.join(f'{level.width} x {level.height}' for level in levels) or 'no'} pixels"


@dataclass
class TileTable:
    """Where the tiles of one level lie in the file and how they are packed."""

    level: Level
    columns: int
    rows: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    compression: int
    ycbcr: bool
    tables: bytes = b""
    predictor: int = 1


def pyramid_pages(pages: list[TiffPage]) -> list[TiffPage]:
    """Tiled pages of the image itself, largest first: the first page and smaller tiled pages of the same shape."""
    first = pages[0]
    if not first.tiled or "width" not in first.tags or "height" not in first.tags:
        return []
    found = [first]
    for page in pages[1:]:
        width, height = page.get("width", 0), page.get("height", 0)
        if not page.tiled or not 0 < width < found[-1].get("width") or not height or page.get("subfile") == 9:
            continue
        ratio = (first.get("width") / width) / (first.get("height") / height)
        if abs(ratio - 1) < 0.02 + 2 / min(width, height):
            found.append(page)
    return found


def tile_table(page: TiffPage, first: TiffPage) -> tuple[TileTable | None, str]:
    compression, photometric = page.get("compression", 1), page.get("photometric", -1)
    if compression not in JPEG and compression not in JPEG2000 and compression not in _OTHER:
        return None, f"compression {compression} is not decoded directly"
    samples, bits = page.get("samples", 1), page.all("bits")
    if samples != 3 or not len(bits) or (bits != 8).any() or page.get("planar", 1) != 1:
        return None, f"{samples} samples of {bits.tolist()} bits, not 8-bit RGB"
    if photometric not in (2, 6):
        return None, f"photometric interpretation {photometric} is neither RGB nor YCbCr"
    if photometric == 6 and compression in _OTHER:
        return None, "YCbCr outside JPEG"
    predictor = page.get("predictor", 1)
    if compression in _OTHER and predictor not in (1, 2):
        return None, f"predictor {predictor}"
    width, height, tw, th = (page.get(name) for name in ("width", "height", "tile_width", "tile_height"))
    if not tw or not th:
        return None, "tiles without a size"
    columns, rows = -(-width // tw), -(-height // th)
    offsets, counts = page.all("offsets"), page.all("counts")
    if len(offsets) != columns * rows or len(counts) != columns * rows:
        return None, f"{len(offsets)} tiles in the table, {columns * rows} in the grid"
    # As OpenSlide defines it: the mean of both ratios.
    downsample = (first.get("width") / width + first.get("height") / height) / 2
    level = Level(width, height, downsample, tw, th)
    tables = page.get("tables", b"") if compression in JPEG else b""
    return TileTable(level, columns, rows, offsets, counts, compression, photometric == 6, tables, predictor), ""


def jpeg_stream(data: bytes, tables: bytes, ycbcr: bool) -> bytes:
    """One complete JPEG from a tile: shared tables in front, and the colour model of the TIFF tag made explicit.

    libjpeg guesses the colour model from JFIF and Adobe markers; in a TIFF the photometric tag decides. So both markers
    are taken out and one Adobe marker (transform 1 for YCbCr, 0 for RGB) is put in.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("the tile does not start as a JPEG")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if ycbcr else b"\x00")
    parts = [b"\xff\xd8", adobe]
    if tables:
        end = len(tables) - 2 if tables[-2:] == b"\xff\xd9" else len(tables)
        parts.append(without_colour_markers(tables[:end]))
    parts.append(without_colour_markers(data))
    return b"".join(parts)


def without_colour_markers(stream: bytes) -> bytes:
    """A JPEG stream after its start marker, without JFIF (APP0) and Adobe (APP14) segments ahead of the scan."""
    position, kept, start = 2, [], 2
    end = len(stream)
    while position + 4 <= end and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker in (0xDA, 0xD9):
            break
        following = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        if marker in (0xE0, 0xEE):
            kept.append(stream[start:position])
            start = following
        position = following
    kept.append(stream[start:])
    return b"".join(kept)


def unpack_tile(data: bytes, table: TileTable) -> NDArray[np.uint8]:
    """A tile of one of the lossless packings, horizontal differencing undone."""
    shape = (table.level.tile_height, table.level.tile_width, 3)
    # No more than a tile can hold and one byte, whatever the packed data unfold to.
    most = shape[0] * shape[1] * 3 + 1
    if table.compression in (8, 32946):
        data = zlib.decompressobj().decompress(data, most)
    elif table.compression in (5, 50000):
        import imagecodecs

        decode = imagecodecs.lzw_decode if table.compression == 5 else imagecodecs.zstd_decode
        data = bytes(decode(data, out=most))
    tile = np.frombuffer(data, np.uint8)[: shape[0] * shape[1] * 3].reshape(shape)
    return np.cumsum(tile, axis=1, dtype=np.uint8) if table.predictor == 2 else tile


def jpeg2000_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG 2000 stream says it has. Raises ValueError where it has no such header."""
    start = data[:4096].find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 24:
        raise ValueError("the tile does not start as a JPEG 2000 stream")
    right, lower, left, upper = struct.unpack_from(">IIII", data, start + 8)
    return right - left, lower - upper


def telling_tiles(table: TileTable) -> list[int]:
    """The fullest tile, one of the upper quarter, the median, and the corner where tiles are cut off."""
    stored = np.flatnonzero((table.counts > 0) & (table.offsets > 0))
    if not len(stored):
        return [0]
    order = stored[np.argsort(table.counts[stored], kind="stable")]
    picks = [order[-1], order[int(0.8 * (len(order) - 1))], order[len(order) // 2], len(table.counts) - 1]
    return list(dict.fromkeys(int(i) for i in picks))


def shifted(image: NDArray[np.uint8], x: float, y: float) -> NDArray[np.float32]:
    """An image [h, w, 3] between its pixels, (x, y) of one to the right and down, [h - 1, w - 1, 3]: bilinear."""
    full = image.astype(np.float32)
    rows = (1 - y) * full[:-1] + y * full[1:]
    return np.asarray((1 - x) * rows[:, :-1] + x * rows[:, 1:], np.float32)


def is_damage(error: Exception) -> bool:
    """True where libjpeg says that the data are corrupt. OpenSlide would return such a tile without a word."""
    text = str(error).lower()
    return "corrupt" in text or "premature" in text or "the file ends inside" in text


def ycbcr_to_rgb(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """JPEG's full-range YCbCr to RGB, for JPEG 2000 tiles that hold YCbCr (compression 33003)."""
    y, cb, cr = (tile[..., i].astype(np.float32) for i in range(3))
    cb -= 128
    cr -= 128
    out = np.empty_like(tile)
    out[..., 0] = np.clip(np.rint(y + 1.402 * cr), 0, 255)
    out[..., 1] = np.clip(np.rint(y - 0.34414 * cb - 0.71414 * cr), 0, 255)
    out[..., 2] = np.clip(np.rint(y + 1.772 * cb), 0, 255)
    return out
