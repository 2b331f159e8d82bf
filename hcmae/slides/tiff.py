"""The few TIFF tags a slide reader needs, from classic and BigTIFF files.

A library could do this too, but importing one with all its codecs costs nearly the memory of a region, and the reader's
point is to be small. Only tags are read here, no pixels.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = [
    "NoTiffError",
    "TiffEndsEarlyError",
    "TiffError",
    "TiffPage",
    "described",
    "implausible",
    "is_dialect",
    "read_pages",
]

# Type number -> numpy type; rationals are pairs.
_TYPES = {
    1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4", 12: "f8",
    13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
_NAMES = {
    254: "subfile", 256: "width", 257: "height", 258: "bits", 259: "compression", 262: "photometric",
    270: "description", 277: "samples", 282: "x_resolution", 283: "y_resolution", 284: "planar", 296: "unit",
    317: "predictor", 322: "tile_width", 323: "tile_height", 324: "offsets", 325: "counts", 330: "children",
    347: "tables", 700: "xmp",
}  # fmt: skip
_MAX_PAGES = 1000
# Bytes of all tags together that are read. A level of ten million tiles needs 160 MB.
_MAX_TAG_BYTES = 256 << 20
# What no microscope writes. A tile of 2^26 pixels takes 256 MiB when OpenSlide decodes it.
MAX_SIDE = 1 << 24
MAX_TILE_PIXELS = 1 << 26
MAX_TILE_BYTES = 1 << 29
MAX_TILES = 1 << 24
_WHOLE_NUMBERS = (
    "subfile", "width", "height", "compression", "photometric", "samples", "planar", "unit", "predictor", "tile_width",
    "tile_height",
)  # fmt: skip


class TiffError(ValueError):
    """Not a TIFF, or one whose directories make no sense."""


class NoTiffError(TiffError):
    """Begins as no TIFF does."""


class TiffEndsEarlyError(TiffError):
    """A directory or a tag lies beyond the end of the file."""


@dataclass
class TiffPage:
    """One directory: the tags by name, as Python numbers, text, bytes or integer arrays."""

    tags: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """First value of a tag, or the default (also where the tag holds nothing)."""
        value = self.tags.get(name, default)
        if not isinstance(value, np.ndarray):
            return value
        return value[0].item() if len(value) else default

    def text(self, name: str) -> str:
        """Text of a tag, '' where it is absent or something else."""
        value = self.tags.get(name)
        return value if isinstance(value, str) else ""

    def all(self, name: str) -> Any:
        """All values of a tag as an array (empty where it is absent)."""
        return self.tags.get(name, np.zeros(0, np.int64))

    @property
    def tiled(self) -> bool:
        return "tile_width" in self.tags and "offsets" in self.tags


def read_pages(path: str | Path) -> list[TiffPage]:
    """All directories of a file in order, each followed by its sub-directories.

    Raises NoTiffError where the file is not a TIFF, TiffError where its tags make no sense or together are too large,
    TiffEndsEarlyError where it stops before its directories do. No more is read than the file holds, whatever a tag
    claims.
    """
    with open(path, "rb") as handle:
        source = _Source(handle)
        head = handle.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise NoTiffError("no TIFF header")
        magic = struct.unpack(order + "H", head[2:4])[0]
        if magic == 42:
            big, first = False, struct.unpack(order + "I", head[4:8])[0]
        elif magic == 43 and len(head) == 16:
            big, first = True, struct.unpack(order + "Q", head[8:16])[0]
        else:
            raise NoTiffError(f"magic number {magic} is neither 42 nor 43")
        pages: list[TiffPage] = []
        seen: set[int] = set()
        place = first
        while place and place not in seen and len(pages) < _MAX_PAGES:
            seen.add(place)
            page, place = _directory(source, place, order, big)
            pages.append(page)
            children = page.all("children")
            for child in children.tolist() if isinstance(children, np.ndarray) else []:
                if isinstance(child, int) and child > 0 and child not in seen and len(pages) < _MAX_PAGES:
                    seen.add(child)
                    pages.append(_directory(source, child, order, big)[0])
        if not pages:
            raise TiffError("no directory")
        return pages


class _Source:
    """A file read in exact pieces, never beyond its end and never more than a directory can need."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._length, self._left = handle, os.fstat(handle.fileno()).st_size, _MAX_TAG_BYTES

    def read(self, place: int, size: int) -> bytes:
        if place + size > self._length:
            raise TiffEndsEarlyError("the file ends inside its directories")
        self._left -= size
        if self._left < 0:
            raise TiffError(f"directories of more than {_MAX_TAG_BYTES >> 20} MiB")
        self._handle.seek(place)
        data = self._handle.read(size)
        if len(data) < size:
            raise TiffEndsEarlyError("the file ends inside its directories")
        return data


def _directory(source: _Source, place: int, order: str, big: bool) -> tuple[TiffPage, int]:
    entry, inline, head = (20, 8, 8) if big else (12, 4, 2)
    count = struct.unpack(order + ("Q" if big else "H"), source.read(place, head))[0]
    if count > 4096:
        raise TiffError(f"a directory of {count} tags")
    body = source.read(place + head, count * entry)
    rest = source.read(place + head + count * entry, 8 if big else 4)
    following = struct.unpack(order + ("Q" if big else "I"), rest)[0]
    page = TiffPage()
    for i in range(count):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), body, i * entry)
        name = _NAMES.get(tag)
        if name is None or kind not in _TYPES:
            continue
        dtype = np.dtype(order + _TYPES[kind]) if _TYPES[kind] != "S1" else np.dtype("S1")
        pairs = 2 if kind in (5, 10) else 1
        size = number * dtype.itemsize * pairs
        raw = body[(i + 1) * entry - inline : (i + 1) * entry]
        if size > inline:
            raw = source.read(struct.unpack(order + ("Q" if big else "I"), raw)[0], size)
        page.tags[name] = _value(name, kind, raw[:size], dtype)
    return page, following


def _value(name: str, kind: int, raw: bytes, dtype: np.dtype[Any]) -> Any:
    if name == "tables":
        return raw
    if kind == 2:
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    values = np.frombuffer(raw, dtype)
    if kind in (5, 10):
        return float(values[0]) / float(values[1]) if len(values) > 1 and values[1] else None
    if values.dtype.kind not in "ui":
        return values.astype(np.float64)
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise TiffError(f"tag '{name}' holds {values.max()}, more than any file is long")
    return values.astype(np.int64)


def is_dialect(page: TiffPage) -> bool:
    """True where the tags say that a scanner wrote the file whose tiles overlap, are shifted or are left out."""
    text = page.text("description").lstrip()
    return not text.startswith("Aperio") and ("xmp" in page.tags or text.startswith("<"))


def described(page: TiffPage) -> dict[str, str]:
    """Properties of an Aperio description (key = value, separated by bars) and of the resolution tags."""
    found = {}
    text = page.text("description")
    if text.startswith("Aperio"):
        for item in text.split("|")[1:]:
            key, separator, value = item.partition("=")
            if separator:
                found[f"aperio.{key.strip()}"] = value.strip()
    for name, tag in (("XResolution", "x_resolution"), ("YResolution", "y_resolution")):
        if page.get(tag):
            found[f"tiff.{name}"] = repr(page.get(tag))
    if "unit" in page.tags:
        found["tiff.ResolutionUnit"] = {2: "inch", 3: "centimeter"}.get(page.get("unit"), "none")
    return found


def implausible(pages: list[TiffPage]) -> str:
    """What no microscope writes about its image, in words; '' where the tags of all directories can be true.

    A decoder believes what the tags say and asks for that much memory: sides of image and tile, bytes of a tile, packed
    and unpacked, and the number of tiles are looked at before one sees the file.
    """
    for number, page in enumerate(pages):
        for name in _WHOLE_NUMBERS:
            if name in page.tags and not isinstance(page.get(name), int):
                return f"directory {number}: tag '{name}' holds no whole number"
        for name in ("bits", "offsets", "counts", "children"):
            if getattr(page.all(name), "dtype", None) != np.int64:
                return f"directory {number}: tag '{name}' holds no whole numbers"
        width, height = page.get("width", 1), page.get("height", 1)
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            return f"directory {number}: an image of {width} x {height} pixels"
        if page.tiled and (found := _odd_tiles(page, width, height)):
            return f"directory {number}: {found}"
    return ""


def _odd_tiles(page: TiffPage, width: int, height: int) -> str:
    tw, th = page.get("tile_width", 0), page.get("tile_height", 0)
    if tw <= 0 or th <= 0 or tw * th > MAX_TILE_PIXELS:
        return f"tiles of {tw} x {th} pixels"
    samples, bits = page.get("samples", 1), page.all("bits")
    deepest = int(bits.max()) if len(bits) else 1
    unpacked = tw * th * max(samples, 1) * max(deepest, 8) // 8
    if not 0 < samples <= 64 or not 0 < deepest <= 64 or unpacked > MAX_TILE_BYTES:
        return f"{samples} samples of {deepest} bits a pixel in tiles of {tw} x {th}"
    offsets, counts = page.all("offsets"), page.all("counts")
    tiles = -(-width // tw) * -(-height // th)
    if tiles > max(MAX_TILES, len(offsets)):
        return f"{tiles} tiles, of which {len(offsets)} are listed"
    if len(offsets) and int(offsets.max()) > 1 << 60:
        return f"a tile that begins at byte {int(offsets.max())}"
    if (offsets < 0).any() or (counts < 0).any():
        return "tiles that begin before the file or have a negative length"
    # What is packed may be longer than what it was, but not by much.
    if len(counts) and int(counts.max()) > 4 * unpacked + (1 << 20):
        return f"a packed tile of {int(counts.max())} bytes for {tw} x {th} pixels"
    return ""
