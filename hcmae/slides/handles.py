"""Open files: positional reads for many threads, and OpenSlide behind a handle of our own."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hcmae.content import slide_parts
from hcmae.slides.tiles import Level


def slide_identity(path: str | Path) -> list[tuple[str, int, int, int]]:
    """Name, size, time of change and inode of every file of a slide, itself first. Raises OSError where it is gone."""
    found = []
    for part in slide_parts(path):
        stat = os.stat(part)
        found.append((part.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return found


def seen_properties(handle: Any) -> dict[str, str]:
    """The properties of a slide that OpenSlide has opened, without those it names and has no value or text for."""
    found = {}
    for name in handle.properties:
        with suppress(KeyError, UnicodeDecodeError):
            found[name] = handle.properties[name]
    return found


def seen_levels(handle: Any) -> tuple[Level, ...]:
    """The levels of a slide that OpenSlide has opened, as it sees them."""
    properties = seen_properties(handle)

    def side(level: int, name: str) -> int:
        text = properties.get(f"openslide.level[{level}].tile-{name}", "")
        return int(text) if text.isdecimal() else 0

    return tuple(
        Level(w, h, float(downsample), side(number, "width"), side(number, "height"))
        for number, ((w, h), downsample) in enumerate(
            zip(handle.level_dimensions, handle.level_downsamples, strict=True)
        )
    )


class PositionalFile:
    """Positional reads that many threads may do at once on one descriptor."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        self.stat = os.fstat(self._fd)

    def read(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._fd, count, offset)
        with self._lock:  # Windows has no pread
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, count)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OpenSlideHandle:
    """OpenSlide behind one lock-protected handle that is opened late, in stripes, and opened again after every error.

    OpenSlide keeps a handle in its error state for ever, so one bad tile would spoil all later reads.
    """

    # Rows read at a time: bounds the ARGB buffer to a few MiB whatever the region.
    STRIPE_BYTES = 8 << 20

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slide: Any = None
        self._downsamples: tuple[float, ...] = ()
        self._lock = threading.Lock()

    def get(self) -> Any:
        import openslide

        with self._lock:
            if self._slide is None:
                self._slide = openslide.OpenSlide(self.path)
            return self._slide

    def downsamples(self, slide: Any) -> tuple[float, ...]:
        """Downsample of each level, asked once while the handle is sound."""
        if not self._downsamples:
            self._downsamples = tuple(float(d) for d in slide.level_downsamples)
        return self._downsamples

    def close(self) -> None:
        with self._lock:
            if self._slide is not None:
                self._slide.close()
                self._slide = None

    def _drop(self, bad: Any) -> None:
        # Not closed here: another thread may be inside a call on it; the last reference frees it.
        with self._lock:
            if self._slide is bad:
                self._slide = None

    def read(self, x: int, y: int, width: int, height: int, level: int, out: NDArray[np.uint8]) -> None:
        """Fill out [height, width, 3]; x, y in level-0 pixels. Transparent pixels become white."""
        scale = self.downsamples(self.get())[level]
        rows = max(1, min(height, self.STRIPE_BYTES // (4 * width)))
        if rows > 256:
            rows -= rows % 256
        # Stripes only where they start at whole level-0 pixels; otherwise OpenSlide would resample between rows.
        if level and scale != int(scale):
            rows = height
        buffer = np.empty((rows, width, 4), np.uint8)
        for top in range(0, height, rows):
            n = min(rows, height - top)
            for attempt in (1, 2):
                slide = self.get()
                try:
                    self._fill(slide, buffer[:n], x, y + int(top * scale), level, width, n)
                    break
                except Exception:
                    # The handle may have been spoilt by another thread's bad tile: once more on a fresh one.
                    self._drop(slide)
                    if attempt == 2:
                        raise
            _argb_on_white(buffer[:n], out[top : top + n])

    def attempt(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.int16] | None:
        """The same as signed numbers, for differences; None where it fails."""
        out = np.empty((height, width, 3), np.uint8)
        try:
            self.read(x, y, width, height, level, out)
        except Exception:  # OpenSlide's own class is not importable everywhere
            return None
        return out.astype(np.int16)

    def vendor(self) -> str:
        """Whose format OpenSlide takes the file for; '' where it is not installed or does not open the file."""
        try:
            return str(self.get().properties.get("openslide.vendor", ""))
        except Exception:  # OpenSlide's own class is not importable everywhere
            return ""

    @staticmethod
    def _fill(slide: Any, buffer: NDArray[np.uint8], x: int, y: int, level: int, width: int, height: int) -> None:
        import ctypes

        from openslide import lowlevel

        raw = getattr(lowlevel, "_read_region", None)
        if raw is None:  # a future openslide-python may hide it: premultiply back what its public call undid
            rgba = np.asarray(slide.read_region((x, y), level, (width, height)))
            alpha = rgba[..., 3:].astype(np.uint16)
            buffer[..., 3] = rgba[..., 3]
            buffer[..., 2::-1] = (rgba[..., :3] * alpha + 127) // 255
            return
        raw(slide._osr, buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32)), x, y, level, width, height)


def _argb_on_white(argb: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Premultiplied ARGB words -> RGB over white."""
    if np.little_endian:
        alpha, rgb = argb[..., 3], argb[..., 2::-1]
    else:
        alpha, rgb = argb[..., 0], argb[..., 1:]
    out[...] = rgb
    if alpha.min() < 255:
        out += (255 - alpha)[..., None]
