"""Regions of a store read back from its slide, in order, by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hcmae.slides.reader import Slide
from hcmae.slides.regions import read_region
from hcmae.slides.store import SlideStore

_T = TypeVar("_T")
_R = TypeVar("_R")


def iter_regions(
    store_path: str | Path, *, indices: Iterable[int] | None = None, workers: int = 1, slide: Slide | None = None
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode the regions of a store again, in order: yields (index, uint8 [R, R, 3]).

    At most ``workers`` + 1 regions are in memory. ``slide``: an open slide to use instead of the store's. Raises
    SlideError where the slide has gone, TileError where it is damaged.
    """
    store = SlideStore(store_path)
    coords, side, pixels = store.coords, store.side, store.geometry.region
    chosen = range(len(coords)) if indices is None else [int(i) for i in indices]
    own = slide is None
    opened = store.open_slide() if slide is None else slide
    try:

        def work(index: int) -> tuple[int, NDArray[np.uint8]]:
            x, y = (int(v) for v in coords[index])
            return index, read_region(opened, x, y, side, pixels)

        yield from ordered(work, chosen, workers)
    finally:
        if own:
            opened.close()


def ordered(function: Callable[[_T], _R], items: Iterable[_T], workers: int) -> Iterator[_R]:
    """Map with threads, results in order, at most ``workers`` + 1 in flight (a plain loop for one worker or none)."""
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
