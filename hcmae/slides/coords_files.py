"""Files of coordinates: where CLAM, HIPT or TRIDENT have cut squares out of a slide, and how large these are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hcmae.slides.hdf5 import numbers

__all__ = ["UNREADABLE", "import_coords", "level0_side", "plain"]

# What a read of a damaged or hostile file ends in, whichever layer of h5py notices.
UNREADABLE = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, MemoryError)


def plain(value: Any) -> Any:
    """An attribute of HDF5 as Python has it: text for bytes, a number for numpy's."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.generic):
        return value.item()
    return value


def import_coords(path: str | Path, *, side: int | None = None) -> NDArray[np.int32]:
    """Region corners [N, 2] int32 (level 0) from a coordinate file of CLAM, HIPT or TRIDENT.

    ``side``: the expected level-0 side; a file cut at another one is refused. Raises ValueError naming the file.
    """
    try:
        with h5py.File(path, "r") as file:
            dataset = numbers(file, "coords")
            coords = np.asarray(dataset)
            attrs = {key: plain(value) for key, value in dataset.attrs.items()}
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a coordinate file with a dataset 'coords' ({error})") from error
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise ValueError(f"{path}: coords has shape {coords.shape}, expected [N, 2]")
    if not np.isfinite(coords).all() or (np.abs(coords.astype(np.float64)) > np.iinfo(np.int32).max).any():
        raise ValueError(f"{path}: coords holds places that no slide has")
    try:
        found = level0_side(attrs)
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"{path}: the attributes of coords do not say the side of a square ({error})") from error
    if side is not None and found is not None and found != side:
        raise ValueError(f"{path}: squares of {found} level-0 pixels, but the geometry wants {side}")
    return coords.astype(np.int32)


def level0_side(attrs: Mapping[str, Any]) -> int | None:
    """Level-0 side of the squares of a coordinate file by the attributes of ``coords``; None where they do not say.

    Raises ValueError where they give a side at a level and not how much that level is reduced.
    """
    found = attrs.get("patch_size_level0")
    if found is None and "patch_size" in attrs:
        level = int(attrs.get("patch_level", 0))
        if level and "downsample" not in attrs:
            raise ValueError(f"patch_size is at level {level}, whose downsample is not said")
        scale = float(np.ravel(attrs["downsample"])[0]) if level else 1.0
        found = round(float(attrs["patch_size"]) * scale)
    return None if found is None else int(found)
