"""Regions decoded by worker processes straight into memory of the process that wants them.

Nothing here imports a network library: a worker starts in a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hcmae.slides.stream import RegionSource

_opened: dict[str, Any] = {}


def open_sources(sources: list[RegionSource], path: str, shape: tuple[int, ...]) -> None:
    """Called once in each worker: what it reads from, and the file [N, R, R, 3] of uint8 that is shared memory."""
    _opened.update(sources=sources, path=path, shape=shape)


def decode(source: int, number: int, slot: int) -> None:
    """Region ``number`` of a source into one slot."""
    shape = _opened["shape"][1:]
    # Mapped for this one region: a worker that seems to grow is replaced, and shared memory would count as its own.
    out = np.memmap(_opened["path"], np.uint8, "r+", offset=slot * int(np.prod(shape)), shape=shape)
    _opened["sources"][source].read_into(number, np.asarray(out))
