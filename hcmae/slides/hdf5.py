"""HDF5 files from anywhere: only what lies in the file itself is read, and no more than it stores.

HDF5 can point out of a file (external links, datasets in raw files, virtual datasets), and can claim a dataset of
terabytes of which nothing is stored. Neither has a place in a slide store or a file of coordinates.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

__all__ = ["numbers", "refuse_links"]

# Deflate packs 1032 bytes into one at best; datasets below the free size are not worth the question.
_DENSEST = 1032
_FREE_BYTES = 1 << 20


def refuse_links(file: h5py.File, own: Mapping[str, str]) -> None:
    """Raises ValueError where a name of the file leads elsewhere; ``own``: soft links that the format itself has."""
    for name in file:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.HardLink) or (isinstance(link, h5py.SoftLink) and own.get(name) == link.path):
            continue
        place = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else getattr(link, "path", "")
        raise ValueError(f"{file.filename}: '{name}' is a link to {place}; files with links are not read")


def numbers(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of numbers that lies in the file itself.

    Raises KeyError where there is none of that name, ValueError where it is a link, no array of numbers, lies in
    another file or claims far more than is stored.
    """
    link: Any = file.get(name, getlink=True)
    if link is None:
        raise KeyError(f"{file.filename}: no dataset '{name}'")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{file.filename}: '{name}' is a link; files with links are not read")
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biuf" or item.shape is None:
        raise ValueError(f"{file.filename}: '{name}' is no array of numbers")
    if item.external or item.is_virtual:
        raise ValueError(f"{file.filename}: '{name}' lies in another file; files with links are not read")
    claimed = int(np.prod([int(side) for side in item.shape], dtype=object)) * item.dtype.itemsize
    stored = min(item.id.get_storage_size(), os.path.getsize(file.filename))
    if claimed > max(_FREE_BYTES, _DENSEST * stored):
        raise ValueError(f"{file.filename}: '{name}' claims {claimed} bytes and stores {stored}; damaged or hostile")
    return item
