"""Stand-ins for two formats that only OpenSlide reads, MIRAX and NDPI, small and by hand, so that every field can lie.

Layouts: https://openslide.org/formats/mirax/ and https://openslide.org/formats/hamamatsu/. What OpenSlide does not ask
for is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Version and name of the slide stand in front of the two roots of Index.dat.
_VERSION, _SLIDE_ID = b"01.02", b"0123456789abcdef"
HIER_ROOT = len(_VERSION) + len(_SLIDE_ID)


def _jpeg(image: NDArray[np.uint8], restart: int = 0) -> bytes:
    import cv2

    # Whole colours: blocks of 8 x 8 pixels, of which OpenSlide decodes the pieces between two markers alone.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    options = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_RST_INTERVAL, restart, *sampling]
    done, packed = cv2.imencode(".jpg", image[..., ::-1], options)
    assert done
    return packed.tobytes()


def write_mrxs(
    path: Path,
    image: NDArray[np.uint8],
    *,
    tile: int = 128,
    ini: Mapping[str, object] | None = None,
    records: Mapping[int, tuple[int, int, int, int]] | None = None,
    index: Mapping[int, int] | None = None,
) -> Path:
    """A MIRAX slide of one level and one data file beside ``path``, in the folder of its name.

    ``ini`` replaces values of Slidedat.ini by key ('IMAGENUMBER_X'); ``records`` replaces tiles of Index.dat by number
    (image, offset, length, file); ``index`` writes 32-bit numbers into Index.dat at these bytes.
    """
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff\xe0")  # the file itself is a picture of the slide, which nobody asks for
    data, entries = bytearray(_VERSION + _SLIDE_ID), []
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        part = _jpeg(image[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile])
        entries.append((number, len(data), len(part), 0))
        data += part
    for number, entry in (records or {}).items():
        entries[number] = entry
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(_index(entries, index or {}))
    (folder / "Slidedat.ini").write_text(_slidedat(rows, columns, tile, ini or {}), encoding="utf-8")
    return path


def _index(entries: list[tuple[int, int, int, int]], changes: Mapping[int, int]) -> bytes:
    table = HIER_ROOT + 8  # the pointer of each level, then its head, then its one page
    head, page = table + 4, table + 12
    out = bytearray(_VERSION + _SLIDE_ID)
    out += struct.pack("<ii", table, 0) + struct.pack("<i", head) + struct.pack("<ii", 0, page)
    out += struct.pack("<ii", len(entries), 0) + b"".join(struct.pack("<iiii", *entry) for entry in entries)
    for place, value in changes.items():
        struct.pack_into("<I", out, place, value & 0xFFFFFFFF)
    return bytes(out)


def _slidedat(rows: int, columns: int, tile: int, changes: Mapping[str, object]) -> str:
    sections: dict[str, dict[str, object]] = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02", "SLIDE_ID": _SLIDE_ID.decode(), "IMAGENUMBER_X": columns, "IMAGENUMBER_Y": rows,
            "OBJECTIVE_MAGNIFICATION": 20, "CameraImageDivisionsPerSide": 1,
        },
        "HIERARCHICAL": {
            "HIER_COUNT": 1, "HIER_0_NAME": "Slide zoom level", "HIER_0_COUNT": 1,
            "HIER_0_VAL_0_SECTION": "LAYER_0_LEVEL_0_SECTION", "NONHIER_COUNT": 0, "INDEXFILE": "Index.dat",
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
        "LAYER_0_LEVEL_0_SECTION": {
            "OVERLAP_X": 0, "OVERLAP_Y": 0, "MICROMETER_PER_PIXEL_X": 0.5, "MICROMETER_PER_PIXEL_Y": 0.5,
            "IMAGE_FORMAT": "JPEG", "IMAGE_FILL_COLOR_BGR": 16777215, "DIGITIZER_WIDTH": tile, "DIGITIZER_HEIGHT": tile,
            "IMAGE_CONCAT_FACTOR": 0,
        },
    }  # fmt: skip
    unknown = set(changes) - {key for values in sections.values() for key in values}
    assert not unknown, unknown
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {changes.get(key, value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


# Tag, type and value of a directory: 3 is 16 bits, 4 is 32, 9 is 32 with a sign, 11 a float.
_FORMS = {3: "H", 4: "I", 9: "i", 11: "f"}


def write_ndpi(
    path: Path,
    image: NDArray[np.uint8],
    *,
    tags: Mapping[int, tuple[int, Any]] | None = None,
    counts: Mapping[int, int] | None = None,
    mcu_starts: Any = None,
    high: Mapping[int, int] | None = None,
) -> Path:
    """An NDPI of one level: one strip that is a JPEG with restart markers, as Hamamatsu's scanners write it.

    ``tags`` replaces tags, or adds them, as (type, value or values); ``counts`` replaces the number of values that a
    tag claims; ``mcu_starts`` is a function that changes the table of where the pieces between markers begin
    (McuStarts, tag 65426); ``high`` are the upper 32 bits of a tag's value, which NDPI of more than 4 GiB keep behind
    the directory.
    """
    height, width = image.shape[:2]
    stream = _jpeg(image, restart=width // 16)  # two pieces for each row of blocks
    place = 16
    starts = _mcu_starts(stream)
    starts = starts if mcu_starts is None else mcu_starts(starts)
    found: dict[int, tuple[int, Any]] = {
        256: (4, width), 257: (4, height), 258: (3, [8, 8, 8]), 259: (3, 7), 262: (3, 6), 271: (2, b"Hamamatsu\0"),
        273: (4, place), 277: (3, 3), 278: (4, height), 279: (4, len(stream)), 282: (5, (20000, 1)),
        283: (5, (20000, 1)), 296: (3, 3), 65420: (4, 1), 65421: (11, 20.0), 65422: (9, 0), 65423: (9, 0),
        65424: (9, 0), 65426: (4, starts),
    }  # fmt: skip
    found |= tags or {}
    body = bytearray(stream)
    body += b"\0" * (-len(body) % 4)
    entries = []
    for tag, (kind, value) in sorted(found.items()):
        raw, count = _raw(kind, value)
        if len(raw) > 4:
            raw, pointed = struct.pack("<I", place + len(body)), raw
            body += pointed + b"\0" * (-len(pointed) % 4)
        entries.append(struct.pack("<HHI", tag, kind, (counts or {}).get(tag, count)) + raw.ljust(4, b"\0"))
    upper = b"".join(struct.pack("<I", (high or {}).get(tag, 0)) for tag in sorted(found))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<Q", 0) + upper
    path.write_bytes(b"II*\0" + struct.pack("<Q", place + len(body)) + b"\0" * 4 + bytes(body) + directory)
    return path


def _raw(kind: int, value: Any) -> tuple[bytes, int]:
    if kind == 2:
        return value, len(value)
    if kind == 5:
        return struct.pack("<II", *value), 1
    values = value if isinstance(value, list) else [value]
    return struct.pack(f"<{len(values)}{_FORMS[kind]}", *values), len(values)


def _mcu_starts(stream: bytes) -> list[int]:
    """Where the scan begins and where the pieces behind its restart markers do, from the start of the stream."""
    scan = stream.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4], "big")
    starts = [first]
    for at in range(first, len(stream) - 1):
        if stream[at] == 0xFF and 0xD0 <= stream[at + 1] <= 0xD7:
            starts.append(at + 2)
    return starts
