"""Damage to files: bytes anywhere, and the places where a format keeps its types, counts, sizes and offsets.

Every function takes a generator of `random` and returns other bytes; the same generator gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

# What breaks arithmetic: the ends of every width, and one beside them.
EXTREMES = (
    0, 1, 2, 3, 7, 127, 128, 255, 256, 1000, 4096, 32767, 32768, 65535, 65536, 1 << 20, (1 << 24) - 1, 1 << 24,
    (1 << 26) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 40) + 5, (1 << 62) - 1, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1,
)  # fmt: skip
# A secret beside the folder of an input, from there and from a folder below.
_OUTSIDE = ("../../outside/secret.txt", "../../../outside/secret.txt")
# What a value of JSON must not be.
_JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), -float("inf"), 1 << 70, -(1 << 70), "", "x",
    "NaN", "\0", "\ud800", "../../outside/secret.txt", [], {}, [[]], [None], {"": None}, "9" * 400,
)  # fmt: skip
_CELLS = (
    "", " ", "NA", "nan", "#N/A", "inf", "-inf", "1e999", "-1", "0", "0.5", "1e38", "3.5e38", "1_000", "1,5", "0x10",
    "½", "١", "\0", '"', '""', '"a', 'a"', "'", "#", "é", "\ufeff", "\u2028", "x" * 5000, "9" * 400, "-0.0", "OS",
    "OS.time", "TCGA-AA-0001", "TCGA-AA-0001-01A-11R-A111-07", "patient", "event", "time_days", "dead", "Alive", ">89",
    "Stage I", "../../outside/secret.txt", "\r", "True", "2001-03-01", "1-Mar", "CDE_ID:1",
)  # fmt: skip


def any_bytes(rng: Random, data: bytes) -> bytes:
    """One to five changes anywhere: bits, bytes, numbers, pieces that go, come twice or change places, a cut end."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        if out:
            rng.choice(_ANYWHERE)(rng, out)
    return bytes(out)


def _bit(rng: Random, out: bytearray) -> None:
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _byte(rng: Random, out: bytearray) -> None:
    at = rng.randrange(len(out))
    out[at : at + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])


def _number(rng: Random, out: bytearray) -> None:
    _put(rng, out, rng.randrange(len(out)), rng.choice((1, 2, 4, 8)))


def _put(rng: Random, out: bytearray, at: int, width: int, order: str = "") -> None:
    """An extreme, or what stands there changed a little, as a number of ``width`` bytes."""
    order = order or rng.choice("<>")
    name = "little" if order == "<" else "big"
    old = int.from_bytes(out[at : at + width], name)  # type: ignore[arg-type]
    value = rng.choice((rng.choice(EXTREMES), old + rng.choice((-1, 1, 2, 8, 16)), old * 2, old // 2, len(out)))
    out[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, name)  # type: ignore[arg-type]


def _piece(rng: Random, out: bytearray) -> tuple[int, int]:
    size = min(len(out), rng.choice((1, 2, 4, 16, 64, 512, 4096, max(1, len(out) // 4))))
    return rng.randrange(len(out) - size + 1), size


def _lose(rng: Random, out: bytearray) -> None:
    at, size = _piece(rng, out)
    del out[at : at + size]


def _double(rng: Random, out: bytearray) -> None:
    at, size = _piece(rng, out)
    out[at:at] = out[at : at + size] * rng.choice((1, 1, 2, 50 if size < 100 else 1))


def _swap(rng: Random, out: bytearray) -> None:
    (one, size), (other, _) = _piece(rng, out), _piece(rng, out)
    other = min(other, len(out) - size)
    out[one : one + size], out[other : other + size] = out[other : other + size], out[one : one + size]


def _fill(rng: Random, out: bytearray) -> None:
    at, size = _piece(rng, out)
    out[at : at + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _cut(rng: Random, out: bytearray) -> None:
    del out[rng.choice((rng.randrange(len(out)), rng.randrange(min(len(out), 64)), len(out) - 1)) :]


_ANYWHERE = (_bit, _bit, _byte, _number, _number, _lose, _double, _swap, _fill, _cut)


def either(*ways: Mutation) -> Mutation:
    """One of these, or two in a row."""

    def mutation(rng: Random, data: bytes) -> bytes:
        for way in rng.sample(ways, min(len(ways), rng.choice((1, 1, 1, 2)))):
            data = way(rng, data)
        return data

    return mutation


# ---------------------------------------------------------------- TIFF, JPEG, HDF5: where numbers lie


def tiff(rng: Random, data: bytes) -> bytes:
    """Entries of directories: tag, type, count, value or offset, the next directory, and the arrays they point to."""
    out = bytearray(data)
    if len(out) < 16 or out[:2] not in (b"II", b"MM"):
        return any_bytes(rng, data)
    order = "<" if out[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", out, 2)[0] == 43
    places = _entries(out, order, big)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not places or rng.random() < 0.05:
            _put(rng, out, rng.randrange(4, 16), 8 if big else 4, order)
            continue
        entry = rng.choice(places)
        _change_entry(rng, out, entry, places, order, big)
    return bytes(out)


def _entries(out: bytearray, order: str, big: bool) -> list[int]:
    head, size, word = ("Q", 20, "Q") if big else ("H", 12, "I")
    place, found = struct.unpack_from(order + word, out, 8 if big else 4)[0], []
    for _ in range(30):
        if not 0 < place < len(out) - 16:
            break
        count = struct.unpack_from(order + head, out, place)[0]
        first = place + struct.calcsize(order + head)
        if count > 200 or first + count * size + 8 > len(out):
            break
        found += [first + number * size for number in range(count)]
        place = struct.unpack_from(order + word, out, first + count * size)[0]
    return found


_TAGS = (
    254, 256, 257, 258, 259, 262, 270, 273, 277, 278, 279, 284, 322, 323, 324, 325, 330, 347, 530, 700, 65420, 65426,
)  # fmt: skip


def _change_entry(rng: Random, out: bytearray, entry: int, places: Sequence[int], order: str, big: bool) -> None:
    size, width = (20, 8) if big else (12, 4)
    kind = rng.randrange(7)
    if kind == 0:
        struct.pack_into(order + "H", out, entry, rng.choice(_TAGS))
    elif kind == 1:
        struct.pack_into(order + "H", out, entry + 2, rng.choice((*range(20), 255, 65535)))
    elif kind == 2:
        _put(rng, out, entry + 4, width, order)
    elif kind == 3:
        other = rng.choice(places)
        out[entry : entry + size], out[other : other + size] = out[other : other + size], out[entry : entry + size]
    elif kind == 4 and (at := int.from_bytes(out[entry + 4 + width : entry + size], "little")) < len(out) - 8:
        # What it points to: one of the offsets, counts, or bytes of the tables.
        count = min(2000, int.from_bytes(out[entry + 4 : entry + 4 + width], "little") or 1)
        _put(
            rng,
            out,
            min(at + rng.randrange(count) * rng.choice((1, 2, 4, 8)), len(out) - 8),
            rng.choice((2, 4, 8)),
            order,
        )
    else:
        _put(rng, out, entry + 4 + width, rng.choice((2, width)), order)


# Markers of JPEG (size, tables, scan, restart interval), JPEG 2000 (size, coding, quantisation, tile part).
_MARKERS = (
    b"\xff\xc0",
    b"\xff\xc4",
    b"\xff\xdb",
    b"\xff\xda",
    b"\xff\xdd",
    b"\xff\x51",
    b"\xff\x52",
    b"\xff\x5c",
    b"\xff\x90",
)
# Of HDF5: superblock, object header and its blocks, B-trees of both kinds, heaps, groups.
_SIGNATURES = (
    b"\x89HDF",
    b"OHDR",
    b"OCHK",
    b"TREE",
    b"BTHD",
    b"BTLF",
    b"BTIN",
    b"HEAP",
    b"GCOL",
    b"SNOD",
    b"FRHP",
    b"FHDB",
)


def near(signatures: Sequence[bytes], reach: int) -> Mutation:
    """Numbers within ``reach`` bytes behind one of these marks."""

    def mutation(rng: Random, data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            mark, start = rng.choice(signatures), rng.randrange(max(1, len(out)))
            at = out.find(mark, start)
            at = out.find(mark) if at < 0 else at
            if at < 0:
                return any_bytes(rng, data)
            place = min(at + len(mark) + rng.randrange(reach), len(out) - 1)
            width = rng.choice((1, 1, 2, 4, 8))
            if place + width <= len(out):
                _put(rng, out, place, width)
        return bytes(out)

    return mutation


jpeg = near(_MARKERS, 20)
hdf5_bytes = near(_SIGNATURES, 64)


def hdf5(rng: Random, data: bytes) -> bytes:
    """A sound HDF5 file with something in it that has no place there, written by the library itself."""
    import h5py
    import numpy as np

    held = io.BytesIO(data)
    try:
        with h5py.File(held, "r+") as file:
            for _ in range(rng.choice((1, 1, 2))):
                name = rng.choice([*file, "coords", "region_vectors"])
                rng.choice(_HDF5)(rng, file, name, np)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError):  # of bytes damaged before
        return any_bytes(rng, data)
    return held.getvalue()


def _other_data(rng: Random, file: Any, name: str, np: Any) -> None:
    value = rng.choice((
        np.zeros((0, 2), "i4"), np.zeros((3,), "i8"), np.float64(3), b"text", np.array([b"a", b"b"]),
        np.full((4, 2), np.nan), np.zeros((2, 2), [("x", "i4"), ("y", "f8")]), np.zeros((2, 2), bool),
        np.zeros((5, 2), "u8") + np.uint64((1 << 64) - 1), np.zeros((1, 4, 2), "i2"), np.zeros((2, 2), "c16"),
        -np.ones((6, 2), "i4"),
    ))  # fmt: skip
    _clear(file, name)
    file[name] = value


def _claimed(rng: Random, file: Any, name: str, np: Any) -> None:
    _clear(file, name)
    side = rng.choice((1 << 20, 1 << 40, 1 << 62, 10**6))
    file.create_dataset(name, (side, *rng.choice(((), (2,), (16, 16, 3)))), rng.choice(("u1", "i4", "f8")), chunks=True,
                        compression=rng.choice((None, "gzip")))  # fmt: skip


def _attribute(rng: Random, file: Any, name: str, np: Any) -> None:
    owner = rng.choice((file, file[name])) if name in file else file
    key = rng.choice([*owner.attrs, "patch_size", "downsample", "geometry", "side", "hcmae_format", "weights"])
    owner.attrs[key] = rng.choice((
        0, -1, 1 << 62, 1.5, float("nan"), "", "x", "{}", "[", "[" * 5000, b"\xff", np.zeros(0), np.zeros(3),
        np.zeros((2, 2)), np.zeros(2, [("a", "i4")]), _empty(), [b"a", b"b"],
    ))  # fmt: skip


def _empty() -> Any:
    """A dataset or attribute without a value, as HDF5 has it."""
    import h5py

    return h5py.Empty("f4")


def _link(rng: Random, file: Any, name: str, np: Any) -> None:
    import h5py

    _clear(file, name)
    outside = "../../outside/secret.h5"
    kind = rng.randrange(5)
    if kind == 0:
        file[name] = h5py.ExternalLink(outside, "/secret")
    elif kind == 1:
        file[name] = h5py.SoftLink(rng.choice(("/", "/coords", f"/{name}", "/nowhere")))
    elif kind == 2:
        file.create_dataset(name, (10, 2), "i4", external=[(outside, 0, 80)])
    elif kind == 3:
        layout = h5py.VirtualLayout((10, 2), "i4")
        layout[:] = h5py.VirtualSource(outside, "secret", (10, 2))
        file.create_virtual_dataset(name, layout)
    else:
        file[name] = file["/"]  # a circle


def _clear(file: Any, name: str) -> None:
    if file.get(name, getlink=True) is not None:
        del file[name]


_HDF5 = (_other_data, _claimed, _attribute, _attribute, _link)


# ---------------------------------------------------------------- text


def json_values(rng: Random, data: bytes) -> bytes:
    """Values, keys and depth of a JSON document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return any_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        document = _changed(rng, document)
    text = json.dumps(document)
    if rng.random() < 0.05:
        text = rng.choice(("[" * 100_000, '{"a":' * 50_000, text + text, f"[{text}", text.replace(":", ":\n", 1) + ","))
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode("utf-8", "surrogatepass")


def _changed(rng: Random, value: Any) -> Any:
    """The value with something in it replaced, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        what = rng.randrange(8)
        if what == 0:
            return {name: item for name, item in value.items() if name != key}
        if what == 1:
            return {(rng.choice(_CELLS) if name == key else name): item for name, item in value.items()}
        return {name: (_changed(rng, item) if name == key else item) for name, item in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        what = rng.randrange(8)
        if what == 0:
            return value[:at]
        if what == 1:
            return value + value[at:]
        return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, float | int) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice((-value, value * 1e9, value + 0.5, rng.choice(EXTREMES), -rng.choice(EXTREMES)))
    return rng.choice(_JUNK)


def cells(separator: str = "\t") -> Mutation:
    """Cells, rows and columns of a table of delimited text."""

    def mutation(rng: Random, data: bytes) -> bytes:
        text = data.decode("utf-8", "surrogateescape")
        rows = [line.split(separator) for line in text.split("\n")]
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            _change_rows(rng, rows)
        ending = rng.choice(("\n",) * 8 + ("\r\n", "\r", "\n\n"))
        other = rng.choice((separator,) * 12 + (",", ";", "\t", " "))
        text = ending.join(other.join(row) for row in rows)
        encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "latin-1"))
        return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")

    return mutation


def _change_rows(rng: Random, rows: list[list[str]]) -> None:
    if not rows:
        rows.append([])
    at = rng.choice((0, rng.randrange(len(rows))))
    row = rows[at]
    column = rng.randrange(max(1, len(row)))
    what = rng.randrange(10)
    if what == 0:
        del rows[at]
    elif what == 1:
        rows.insert(at, list(rng.choice(rows)))
    elif what == 2 and row:
        del row[column]
    elif what == 3:
        row.insert(column, rng.choice(_CELLS))
    elif what == 4:  # a whole column
        word = rng.choice(_CELLS)
        for other in rows[1:]:
            other[column : column + 1] = [word]
    elif what == 5:
        rows.insert(0, [rng.choice(("#", "# made by", '"#"'))])
    else:
        row[column : column + 1] = [rng.choice(_CELLS)]


@lru_cache
def _swelling(byte: int, size: int) -> bytes:
    return gzip.compress(bytes([byte]) * size, 1, mtime=0)


def packed(inner: Mutation) -> Mutation:
    """A table as gzip: damaged inside, outside, cut, more than one member, or swelling."""

    def mutation(rng: Random, data: bytes) -> bytes:
        what = rng.randrange(8)
        if what == 0:
            return gzip.compress(data, mtime=0) + gzip.compress(inner(rng, data), mtime=0)
        if what == 1:
            size = 200 << 20 if rng.random() < 0.2 else 1 << 20
            return gzip.compress(data, 1, mtime=0) + _swelling(rng.choice((0, 10, 49)), size)
        if what == 2:
            return gzip.compress(gzip.compress(data, mtime=0), mtime=0)
        if what < 5:
            return any_bytes(rng, gzip.compress(data, mtime=0))
        return gzip.compress(inner(rng, data), 1, mtime=0)

    return mutation


def ini(rng: Random, data: bytes) -> bytes:
    """Values and keys of an INI file."""
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        key, mark, _ = lines[at].partition("=")
        value = rng.choice((*map(str, EXTREMES), "-1", "nan", "1e400", "", "x", *_OUTSIDE, "..", "/dev/zero"))
        lines[at] = f"{key}= {value}" if mark else rng.choice(("", "[X]", lines[at] + lines[at]))
    return "\n".join(lines).encode()


def numbers32(rng: Random, data: bytes) -> bytes:
    """Whole numbers of 32 bits in a file that is made of them."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if len(out) >= 4:
            _put(rng, out, rng.choice((rng.randrange(len(out) - 3), rng.randrange(min(len(out) - 3, 60)))), 4, "<")
    return bytes(out)
