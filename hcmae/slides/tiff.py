"""The few TIFF tags a slide reader needs, from classic and BigTIFF files.

A library could do this too, but importing one with all its codecs costs nearly the memory of a region, and the reader's
point is to be small. Only tags are read here, no pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["TiffEndsEarlyError", "TiffError", "TiffPage", "read_pages"]

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


class TiffError(ValueError):
    """Not a TIFF, or one whose directories make no sense."""


class TiffEndsEarlyError(TiffError):
    """A directory or a tag lies beyond the end of the file."""


@dataclass
class TiffPage:
    """One directory: the tags by name, as Python numbers, text, bytes or integer arrays."""

    tags: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """First value of a tag, or the default."""
        value = self.tags.get(name, default)
        return value[0].item() if isinstance(value, np.ndarray) and len(value) else value

    def all(self, name: str) -> Any:
        """All values of a tag as an array (empty where it is absent)."""
        return self.tags.get(name, np.zeros(0, np.int64))

    @property
    def tiled(self) -> bool:
        return "tile_width" in self.tags and "offsets" in self.tags


def read_pages(path: str | Path) -> list[TiffPage]:
    """All directories of a file in order, each followed by its sub-directories.

    Raises TiffError where the file is not a TIFF, TiffEndsEarlyError where it stops before its directories do.
    """
    with open(path, "rb") as handle:
        head = handle.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise TiffError("no TIFF header")
        magic = struct.unpack(order + "H", head[2:4])[0]
        if magic == 42:
            big, first = False, struct.unpack(order + "I", head[4:8])[0]
        elif magic == 43 and len(head) == 16:
            big, first = True, struct.unpack(order + "Q", head[8:16])[0]
        else:
            raise TiffError(f"magic number {magic} is neither 42 nor 43")
        pages: list[TiffPage] = []
        seen: set[int] = set()
        place = first
        while place and place not in seen and len(pages) < _MAX_PAGES:
            seen.add(place)
            page, place = _directory(handle, place, order, big)
            pages.append(page)
            for child in page.all("children").tolist():
                if child and child not in seen and len(pages) < _MAX_PAGES:
                    seen.add(child)
                    pages.append(_directory(handle, child, order, big)[0])
        if not pages:
            raise TiffError("no directory")
        return pages


def _directory(handle: BinaryIO, place: int, order: str, big: bool) -> tuple[TiffPage, int]:
    handle.seek(place)
    entry, inline = (20, 8) if big else (12, 4)
    count = struct.unpack(order + ("Q" if big else "H"), _exactly(handle, 8 if big else 2))[0]
    if count > 4096:
        raise TiffError(f"a directory of {count} tags")
    body = _exactly(handle, count * entry)
    following = struct.unpack(order + ("Q" if big else "I"), _exactly(handle, 8 if big else 4))[0]
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
            handle.seek(struct.unpack(order + ("Q" if big else "I"), raw)[0])
            raw = _exactly(handle, size)
        raw = raw[:size]
        if name == "tables":
            page.tags[name] = raw
        elif kind == 2:
            page.tags[name] = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
        elif pairs == 2:
            values = np.frombuffer(raw, dtype)
            page.tags[name] = float(values[0]) / float(values[1]) if len(values) > 1 and values[1] else None
        else:
            values = np.frombuffer(raw, dtype)
            page.tags[name] = values.astype(np.int64) if values.dtype.kind in "ui" else values.astype(np.float64)
    return page, following


def _exactly(handle: BinaryIO, size: int) -> bytes:
    data = handle.read(size)
    if len(data) < size:
        raise TiffEndsEarlyError("the file ends inside its directories")
    return data
