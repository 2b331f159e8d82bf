"""Unpacking what others have packed: a small file that swells without end is refused before it fills the memory."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any, BinaryIO

# Deflate can pack a thousand to one; tables of numbers stay below fifty, tables of zeros below two hundred.
MOST_RATIO = 200
# Up to this size the ratio is not asked for: a short file of one repeated line packs better than any long one.
FREE_BYTES = 1 << 26
# JSON that is held in memory several times over while it is read.
MOST_JSON = 1 << 29


class SwellingError(OSError):
    """Packed data that unpack to more than such a file can hold; an OSError, as other damage of a file is."""


class BoundedReader(io.RawIOBase):
    """The unpacked bytes of a gzip file, which end in SwellingError where they are far more than its size allows."""

    def __init__(self, source: BinaryIO, packed: int, name: str) -> None:
        self._source, self._name = source, name
        self._most = max(FREE_BYTES, MOST_RATIO * packed)
        self._seen = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._source.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        block = self._source.read(min(len(buffer), 1 << 20))
        self._seen += len(block)
        if self._seen > self._most:
            raise SwellingError(f"{self._name} unpacks to more than {self._most} bytes, {MOST_RATIO} times its size")
        buffer[: len(block)] = block
        return len(block)


def open_packed(path: str | Path) -> io.BufferedReader:
    """The unpacked bytes of a gzip file. Reading raises SwellingError, OSError, EOFError or zlib.error for damage."""
    path = Path(path)
    return io.BufferedReader(
        BoundedReader(gzip.open(path, "rb"), path.stat().st_size, path.name),  # type: ignore[arg-type]
        buffer_size=1 << 20,
    )


def unpacked(path: str | Path) -> bytes:
    """All bytes of a file, unpacked where it is gzip. Raises as ``open_packed``."""
    path = Path(path)
    with open(path, "rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raw.seek(0)
            return raw.read()
    with open_packed(path) as handle:
        return handle.read()


def parse_json(content: bytes | str, most: int = MOST_JSON, *, unique: bool = False) -> Any:
    """JSON of bounded size, with or without a byte order mark.

    Raises ValueError for anything that is not, nesting without end included; a mistake is named by line and column.
    ``unique``: also for a key that an object has twice, of which the last would count.
    """
    if len(content) > most:
        raise ValueError(f"{len(content)} bytes of JSON, more than {most}")
    try:
        # Of bytes the decoder takes the mark off itself.
        text = content.removeprefix("\ufeff") if isinstance(content, str) else content
        return json.loads(text, object_pairs_hook=_once if unique else None)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}{_hint(error)}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' comes twice")
    return found


def _hint(error: json.JSONDecodeError) -> str:
    """What people who write JSON by hand get wrong most often."""
    before, found = error.doc[: error.pos].rstrip(), error.doc[error.pos : error.pos + 1]
    # From Python 3.13 on the place is that of the comma.
    if (before.endswith(",") and found in ("}", "]")) or error.msg.startswith("Illegal trailing comma"):
        return " (a comma behind the last entry: remove it)"
    if found == "'":
        return " (write double quotation marks)"
    return ""
