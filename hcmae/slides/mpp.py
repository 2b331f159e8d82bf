"""Micrometres per pixel: what a file says, what a table says, and what is assumed where neither does."""

from __future__ import annotations

import csv
import fnmatch
import io
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hcmae.slides.errors import SlideError

# A resolution tag outside this range (micrometres per pixel) is a printer's default, not a microscope's.
_PLAUSIBLE_MPP = (0.05, 20.0)
ASSUMED_MPP = 0.25
# What mpp_source begins with where nobody has said it.
_ASSUMED = "assumed"
# Pixels whose sides differ by more than this share are not square.
SQUARE = 0.02
_MPP_PROPERTIES = ("openslide.mpp-x",)
_VENDOR_MPP = ("aperio.MPP", "MPP", "hamamatsu.XResolution.um", "tiff.MPP", "philips.PixelSpacing.um")


def load_mpp_table(table: str | Path | Mapping[str, float] | None) -> dict[str, float]:
    """File name or glob -> um/px, from a mapping or a CSV with columns ``slide`` and ``mpp``.

    Raises ValueError naming file and column where the CSV cannot be read or used.
    """
    if table is None:
        return {}
    if isinstance(table, Mapping):
        return {str(key): float(value) for key, value in table.items()}
    try:
        text = Path(table).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{table}: the table of resolutions (mpp_table) cannot be read ({error})") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"slide", "mpp"} - set(rows.fieldnames or ())
    if missing:
        raise ValueError(f"{table}: column '{sorted(missing)[0]}' is missing; it needs the columns slide, mpp")
    result = {}
    for number, row in enumerate(rows, start=2):
        # A quotation mark that is left open makes one cell of all rows up to the next mark.
        if open_in := [name for name, cell in row.items() if isinstance(cell, str) and {"\n", "\r"} & set(cell)]:
            raise ValueError(
                f"{table}: row {number}, column {open_in[0]}: a quotation mark is left open, and would make one cell "
                "of the rows that follow; remove the quotation mark"
            )
        try:
            result[row["slide"]] = float(row["mpp"])
        except (TypeError, ValueError):
            raise ValueError(f"{table}: line {number}, column mpp: '{row['mpp']}' is not a number") from None
    return result


def table_entry(path: Path, table: Mapping[str, float]) -> tuple[str, float] | None:
    """The first entry of a table that applies to a slide, by file name, name without suffix or glob; else None."""
    for pattern, mpp in table.items():
        if pattern in (path.name, path.stem) or (
            {"*", "?", "["} & set(pattern) and fnmatch.fnmatch(path.name, pattern)
        ):
            return pattern, mpp
    return None


@dataclass(frozen=True)
class Resolution:
    """Micrometres per level-0 pixel, where that comes from, and the power of the objective (None: not said)."""

    mpp: float
    source: str
    power: float | None


def resolve_mpp(
    path: Path, properties: Mapping[str, str], table: str | Path | Mapping[str, float] | None
) -> Resolution:
    """Resolution of a slide: its own property, a vendor's tag, TIFF's tags, the user's table, else assumed, with a
    warning.

    Raises SlideError(not_square) where the file says that its pixels are not, unless the table has an entry for it.
    """
    power = _number(properties.get("openslide.objective-power")) or _number(properties.get("aperio.AppMag"))
    for names, source in ((_MPP_PROPERTIES, "property"), (_VENDOR_MPP, "vendor tag")):
        for name in names:
            value = _number(properties.get(name))
            if value is not None and _plausible(value):
                # OpenSlide fills its property from the resolution tags of a generic TIFF: 72 dpi is not a microscope.
                across = _number(properties.get("openslide.mpp-y")) if name == "openslide.mpp-x" else None
                return _square(path, Resolution(value, f"{source} {name}", power), across, table)
    value = _from_resolution(properties, "X")
    if value is not None:
        return _square(path, Resolution(value, "TIFF resolution", power), _from_resolution(properties, "Y"), table)
    entry = table_entry(path, load_mpp_table(table))
    if entry is not None:
        return Resolution(entry[1], f"table entry {entry[0]}", power)
    if power:
        assumed = Resolution(10.0 / power, f"{_ASSUMED} from {power:g}x objective", power)
    else:
        assumed = Resolution(ASSUMED_MPP, _ASSUMED, None)
    warnings.warn(
        f"{path.name}: the file does not say its resolution; {assumed.mpp:g} um/px {assumed.source}. "
        "Give the right value in mpp_table.",
        stacklevel=3,
    )
    return assumed


def is_assumed(source: Any) -> bool:
    """True for the ``mpp_source`` of a slide whose resolution nobody has said."""
    return isinstance(source, str) and source.startswith(_ASSUMED)


def _square(
    path: Path, found: Resolution, across: float | None, table: str | Path | Mapping[str, float] | None
) -> Resolution:
    """The resolution, where that across the other side agrees; ``across`` None: the file does not say it."""
    if across is None or not _plausible(across) or abs(across / found.mpp - 1) <= SQUARE:
        return found
    sides = f"{found.mpp:g} x {across:g} um"
    entry = table_entry(path, load_mpp_table(table))
    if entry is not None:
        return Resolution(entry[1], f"table entry {entry[0]} (the file says pixels of {sides})", found.power)
    raise SlideError(
        "not_square",
        path,
        f"its pixels are {sides}, not square; resample the slide to square pixels, "
        "or give its resolution in mpp_table where the file is wrong",
    )


def _number(text: Any) -> float | None:
    with suppress(TypeError, ValueError):
        value = float(text)
        return value if np.isfinite(value) and value > 0 else None
    return None


def _plausible(mpp: float) -> bool:
    return _PLAUSIBLE_MPP[0] <= mpp <= _PLAUSIBLE_MPP[1]


def _from_resolution(properties: Mapping[str, str], axis: str) -> float | None:
    per_unit = _number(properties.get(f"tiff.{axis}Resolution"))
    micrometres = {"inch": 25400.0, "centimeter": 10000.0}.get(properties.get("tiff.ResolutionUnit", ""))
    if per_unit is None or micrometres is None:
        return None
    value = micrometres / per_unit
    return value if _plausible(value) else None
