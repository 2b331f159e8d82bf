"""Training streams that read regions straight from slides, so that nobody writes millions of patch files.

Order is a function of the seed alone: a pass permutes all regions, cuts them into blocks, and shuffles the samples of
each block. The position in that endless sequence is one number, which is the whole state: a stream resumes exactly,
on the same order, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hcmae.config import Geometry
from hcmae.files import atomic_path
from hcmae.slides.reader import Slide
from hcmae.slides.regions import read_region, split_patches, thumbnail
from hcmae.slides.store import SlideStore

# Reduced regions are kept in memory up to this size.
_REDUCED_BYTES = 2 << 30

__all__ = ["Part", "PatchStream", "Plan", "RegionCache", "RegionSource", "RegionStream"]


class RegionCache:
    """Decoded regions on disk, at most ``max_bytes`` of them; the ones used longest ago go first.

    Worth its space where decoding is slow (JPEG 2000) or the slides lie on a network share. Several processes may share
    a folder. Files are raw pixels named by a hash of slide, place and size.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), int(max_bytes)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._total = 0
        self._seen = -2  # nothing seen yet: the first put counts what is there
        self.hits = self.misses = 0

    def _path(self, key: tuple[Any, ...]) -> Path:
        return self.folder / (hashlib.sha256(repr(key).encode()).hexdigest()[:32] + ".raw")

    def get(self, key: tuple[Any, ...], side: int) -> NDArray[np.uint8] | None:
        """The region [side, side, 3] stored under ``key``, or None."""
        path = self._path(key)
        try:
            data = np.fromfile(path, np.uint8)
        except OSError:
            data = np.zeros(0, np.uint8)
        if data.size != side * side * 3:
            self.misses += 1
            return None
        with suppress(OSError):
            os.utime(path)
        self.hits += 1
        return data.reshape(side, side, 3)

    def put(self, key: tuple[Any, ...], region: NDArray[np.uint8]) -> None:
        """Keep a region; makes room first. A region larger than the limit is not kept; a full disk is not an error."""
        if region.nbytes > self.max_bytes:
            return
        path = self._path(key)
        with self._lock:
            if path.exists():
                return
            # The folder's time tells whether another process has been at it; then its files count as well.
            if self._folder_time() != self._seen or self._total + region.nbytes > self.max_bytes:
                self._make_room(region.nbytes)
            try:
                with atomic_path(path) as temporary:
                    region.tofile(temporary)
                self._total += region.nbytes
            except OSError:
                return
            self._seen = self._folder_time()

    def _folder_time(self) -> int:
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return -1

    def _make_room(self, needed: int) -> None:
        found = []
        for item in self.folder.glob("*.raw"):
            with suppress(OSError):
                stat = item.stat()
                found.append((stat.st_mtime_ns, stat.st_size, item))
        self._total = sum(size for _, size, _ in found)
        for _, size, item in sorted(found):
            if self._total + needed <= self.max_bytes:
                break
            item.unlink(missing_ok=True)
            self._total -= size


class RegionSource:
    """All regions of several stores under one running index, decoded on demand by any number of threads.

    ``index`` [N, 2] (store, row). At most ``open_slides`` slides are open at a time. Raises ValueError where stores
    differ in geometry or hold no region at all.
    """

    def __init__(
        self, stores: Sequence[str | Path], *, cache: RegionCache | None = None, open_slides: int = 32
    ) -> None:
        self.stores = [SlideStore(path) for path in stores]
        if not sum(map(len, self.stores)):
            raise ValueError(f"no regions in {len(self.stores)} stores: cut slides into regions first")
        self.geometry: Geometry = self.stores[0].geometry
        for store in self.stores:
            if store.geometry != self.geometry:
                raise ValueError(
                    f"{store.path}: cut with {store.attrs['geometry']}, but {self.stores[0].path} with "
                    f"{self.stores[0].attrs['geometry']}; cut all slides with one geometry"
                )
        self.coords = [store.coords for store in self.stores]
        self.index = np.array([(s, r) for s, store in enumerate(self.stores) for r in range(len(store))], np.int64)
        self.cache = cache
        self._limit = max(1, open_slides)
        self._open: OrderedDict[int, Slide] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def fingerprint(self) -> str:
        """Hash of what the order depends on: slides, coordinates, geometry."""
        digest = hashlib.sha256()
        for store, coords in zip(self.stores, self.coords, strict=True):
            digest.update(store.slide_id.encode() + coords.tobytes())
        return digest.hexdigest()[:16]

    def read(self, number: int) -> NDArray[np.uint8]:
        """Region ``number`` of the running index, uint8 [R, R, 3]."""
        pixels = self.geometry.region
        return self.read_into(number, np.empty((pixels, pixels, 3), np.uint8))

    def read_into(self, number: int, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same, decoded straight into ``out`` [R, R, 3], which is returned."""
        s, r = (int(v) for v in self.index[number])
        store, pixels = self.stores[s], self.geometry.region
        x, y = (int(v) for v in self.coords[s][r])
        key = (store.slide_id, store.attrs.get("slide_content", store.attrs["slide_bytes"]), x, y, store.side, pixels)
        if self.cache is not None and (found := self.cache.get(key, pixels)) is not None:
            out[...] = found
            return out
        read_region(self._slide(s), x, y, store.side, pixels, out=out)
        if self.cache is not None:
            self.cache.put(key, out)
        return out

    def __getstate__(self) -> dict[str, Any]:
        """For another process: open files stay here."""
        return {key: value for key, value in vars(self).items() if key not in ("_open", "_lock", "cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _open=OrderedDict(), _lock=threading.Lock(), cache=None)

    def _slide(self, s: int) -> Slide:
        with self._lock:
            slide = self._open.get(s)
            if slide is None:
                slide = self._open[s] = self.stores[s].open_slide()
                while len(self._open) > self._limit:
                    # Not closed here: another thread may be reading from it. It closes when nobody holds it.
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(s)
            return slide

    def close(self) -> None:
        """Close all slides."""
        with self._lock:
            for slide in self._open.values():
                slide.close()
            self._open.clear()


@dataclass(frozen=True)
class Part:
    """Samples of one block: its number in the endless sequence, the regions that must be in memory, which samples."""

    number: int
    regions: NDArray[np.int64]
    picks: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """A batch before its pixels are read: its parts, where every sample comes from, the stream's state behind it."""

    parts: tuple[Part, ...]
    origin: dict[str, NDArray[Any]]
    state: dict[str, Any]

    def __len__(self) -> int:
        return sum(len(part.picks) for part in self.parts)


class _Stream:
    """An endless, deterministic sequence of samples, of which one epoch at a time is iterated."""

    def __init__(
        self,
        stores: Sequence[str | Path],
        batch_size: int,
        seed: int,
        *,
        per_region: int,
        buffer_regions: int,
        workers: int,
        samples_per_epoch: int | None,
        shuffle: bool,
        drop_last: bool,
        rank: int,
        world_size: int,
        cache: RegionCache | None,
        source: RegionSource | None,
    ) -> None:
        if batch_size < 1 or buffer_regions < 1:
            raise ValueError(f"batch_size ({batch_size}) and buffer_regions ({buffer_regions}) must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not below world_size {world_size}")
        self.source = source if source is not None else RegionSource(stores, cache=cache)
        self.batch_size, self.seed, self.workers = batch_size, int(seed), max(1, workers)
        self.shuffle, self.drop_last, self.rank, self.world_size = shuffle, drop_last, rank, world_size
        self._per_region = per_region or self.source.geometry.patches_per_region
        # Every rank gets the same number of regions, so that all make the same number of steps.
        self.regions_per_pass = len(self.source) // world_size
        if not self.regions_per_pass:
            raise ValueError(f"{len(self.source)} regions are too few for {world_size} processes")
        self.buffer_regions = min(buffer_regions, self.regions_per_pass)
        self._known: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self.samples_per_pass = self.regions_per_pass * self._per_region
        self.samples_per_epoch = (
            self.samples_per_pass if samples_per_epoch is None else max(1, samples_per_epoch // world_size)
        )
        self.position = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        full, rest = divmod(self.samples_per_epoch, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def epoch(self) -> int:
        """Number of epochs that have been finished."""
        return self.position // self.samples_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here: the position, and what the order depends on to check it."""
        return {"position": self.position, "order": self._order_key()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state. Raises ValueError where seed, regions, buffer or processes differ."""
        if state["order"] != self._order_key():
            raise ValueError(
                f"the saved stream order {state['order']} is not this one {self._order_key()}: "
                "seed, slides, buffer_regions and number of processes must be the same to resume"
            )
        self.position = int(state["position"])

    def _order_key(self) -> list[Any]:
        return [
            type(self).__name__,
            self.seed,
            self.source.fingerprint(),
            self.buffer_regions,
            self.samples_per_epoch,
            int(self.shuffle),
            self.rank,
            self.world_size,
        ]

    def _block_regions(self, number: int) -> NDArray[np.int64]:
        """Running indices of the regions of block ``number`` of the endless sequence."""
        # A permutation of all regions is not made anew for every batch.
        if number not in self._known:
            self._known[number] = self._draw_block(number)
            while len(self._known) > 8:
                self._known.popitem(last=False)
        return self._known[number]

    def _draw_block(self, number: int) -> NDArray[np.int64]:
        blocks = -(-self.regions_per_pass // self.buffer_regions)
        turn, block = divmod(number, blocks)
        order = np.arange(len(self.source))
        if self.shuffle:
            order = np.random.default_rng([self.seed, 1, turn]).permutation(order)
        mine = order[self.rank :: self.world_size][: self.regions_per_pass]
        return mine[block * self.buffer_regions : (block + 1) * self.buffer_regions]

    def _locate(self, position: int) -> tuple[int, int]:
        """Block that holds a position, and the offset inside it."""
        blocks = -(-self.regions_per_pass // self.buffer_regions)
        turn, rest = divmod(position, self.samples_per_pass)
        block, offset = divmod(rest, self.buffer_regions * self._per_region)
        return turn * blocks + block, offset

    def _block_order(self, number: int, regions: int) -> NDArray[np.int64]:
        order = np.arange(regions * self._per_region)
        if self.shuffle:
            order = np.random.default_rng([self.seed, 2, number, self.rank]).permutation(order)
        return order

    @property
    def per_region(self) -> int:
        """Samples in one region."""
        return self._per_region

    @property
    def side(self) -> int:
        """Side in pixels of a region as ``load_into`` gives it."""
        return self.source.geometry.region

    def load_into(self, number: int, out: NDArray[np.uint8]) -> None:
        """Pixels of one region, [side, side, 3], into given memory. Safe from many threads."""
        self.source.read_into(number, out)

    def vectors_of(self, number: int) -> NDArray[Any] | None:
        """Patch vectors [P, D] of one region, where samples have them."""
        return None

    def _origin(self, parts: tuple[Part, ...]) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def _load(self, number: int) -> Any:
        raise NotImplementedError

    def _gather(self, plan: Plan, loaded: list[list[Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def plans(self) -> Iterator[Plan]:
        """The rest of the current epoch without its pixels. ``position`` has moved past a batch when it is given."""
        end = (self.epoch + 1) * self.samples_per_epoch
        while self.position < end:
            want = min(self.batch_size, end - self.position)
            if want < self.batch_size and self.drop_last:
                self.position = end
                break
            parts, at = [], self.position
            while want:
                number, offset = self._locate(at)
                regions = self._block_regions(number)
                picks = self._block_order(number, len(regions))[offset : offset + want]
                parts.append(Part(number, regions, picks))
                want -= len(picks)
                at += len(picks)
            self.position = at
            yield Plan(tuple(parts), self._origin(tuple(parts)), self.state_dict())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rest of the current epoch. ``position`` has moved past a batch when it is handed out."""
        last_block = self._locate((self.epoch + 1) * self.samples_per_epoch - 1)[0]
        pool = ThreadPoolExecutor(self.workers)
        blocks: dict[int, list[Future[Any]]] = {}

        def block(number: int) -> list[Future[Any]]:
            if number not in blocks:
                regions = self._block_regions(number)
                # Submitted slide by slide, so that threads share open files and neighbouring tiles.
                futures: dict[int, Future[Any]] = {int(r): pool.submit(self._load, int(r)) for r in np.sort(regions)}
                blocks[number] = [futures[int(r)] for r in regions]
            return blocks[number]

        try:
            for plan in self.plans():
                loaded = []
                for part in plan.parts:
                    futures = block(part.number)
                    if part.number < last_block:
                        block(part.number + 1)  # read ahead while this one is consumed
                    loaded.append([future.result() for future in futures])
                batch = self._gather(plan, loaded)
                current = self._locate(self.position)[0]
                for number in [n for n in blocks if n < current]:
                    del blocks[number]
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Close the slides."""
        self.source.close()


class PatchStream(_Stream):
    """Patches for MAE-Patch: batches with images uint8 [B, p, p, 3], slide [B], region [B] and coords [B, 2] (level 0).

    Shuffled over regions, then over all patches of ``buffer_regions`` regions (two such buffers are in memory while the
    next is read ahead). ``samples_per_epoch`` None: one pass over every patch. Iterating yields one epoch.
    """

    def __init__(
        self,
        stores: Sequence[str | Path],
        batch_size: int,
        seed: int,
        *,
        buffer_regions: int = 16,
        workers: int = 2,
        samples_per_epoch: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        cache: RegionCache | None = None,
        source: RegionSource | None = None,
    ) -> None:
        super().__init__(
            stores,
            batch_size,
            seed,
            per_region=0,
            buffer_regions=buffer_regions,
            workers=workers,
            samples_per_epoch=samples_per_epoch,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            cache=cache,
            source=source,
        )

    def _load(self, number: int) -> NDArray[np.uint8]:
        return split_patches(self.source.read(number), self.source.geometry.patch)

    def _origin(self, parts: tuple[Part, ...]) -> dict[str, NDArray[Any]]:
        numbers = np.concatenate([part.regions[part.picks // self._per_region] for part in parts])
        patches = np.concatenate([part.picks % self._per_region for part in parts])
        slide, row = self.source.index[numbers].T
        n = self.source.geometry.patches_per_side
        step = np.array([self.source.stores[s].side for s in slide]) / n
        corner = np.array([self.source.coords[s][r] for s, r in zip(slide, row, strict=True)]).reshape(-1, 2)
        coords = corner + np.stack([patches % n * step, patches // n * step], axis=1)
        return {"slide": slide, "region": row, "coords": np.rint(coords).astype(np.int32)}

    def _gather(self, plan: Plan, loaded: list[list[Any]]) -> dict[str, Any]:
        p = self.source.geometry.patch
        images, at = np.empty((len(plan), p, p, 3), np.uint8), 0
        for part, regions in zip(plan.parts, loaded, strict=True):
            which, inside = np.divmod(part.picks, self._per_region)
            for i, (w, k) in enumerate(zip(which.tolist(), inside.tolist(), strict=True)):
                images[at + i] = regions[w][k]
            at += len(part.picks)
        return {"images": images, **plan.origin}


class RegionStream(_Stream):
    """Regions for MAE-Region: batches with regions uint8 [B, R, R, 3], patch_vectors [B, P, D] where all stores have
    them, slide [B], row [B] (region inside its slide) and index [B] (running index over all stores)."""

    def __init__(
        self,
        stores: Sequence[str | Path],
        batch_size: int,
        seed: int,
        *,
        vectors: str | None = "patch_vectors",
        reduce: int = 1,
        workers: int = 2,
        samples_per_epoch: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        cache: RegionCache | None = None,
        source: RegionSource | None = None,
    ) -> None:
        super().__init__(
            stores,
            batch_size,
            seed,
            per_region=1,
            buffer_regions=batch_size,
            workers=workers,
            samples_per_epoch=samples_per_epoch,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            cache=cache,
            source=source,
        )
        self.reduce = reduce
        # Small regions are decoded in the first pass only.
        self._reduced: dict[int, NDArray[np.uint8]] = {}
        self.vectors = vectors if vectors and all(vectors in s.vector_weights for s in self.source.stores) else None

    @property
    def side(self) -> int:
        return self.source.geometry.region // self.reduce

    def load_into(self, number: int, out: NDArray[np.uint8]) -> None:
        if self.reduce == 1:
            self.source.read_into(number, out)
        else:
            out[...] = self._region(number)

    def vectors_of(self, number: int) -> NDArray[Any] | None:
        if self.vectors is None:
            return None
        s, r = (int(v) for v in self.source.index[number])
        return self.source.stores[s].vectors(self.vectors, r)

    def _load(self, number: int) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
        return self._region(number), self.vectors_of(number)

    def _region(self, number: int) -> NDArray[np.uint8]:
        if self.reduce == 1:
            return self.source.read(number)
        found = self._reduced.get(number)
        if found is None:
            found = thumbnail(self.source.read(number), self.side)
            if (len(self._reduced) + 1) * found.nbytes <= _REDUCED_BYTES:
                self._reduced[number] = found
        return found

    def _origin(self, parts: tuple[Part, ...]) -> dict[str, NDArray[Any]]:
        numbers = np.concatenate([part.regions[part.picks] for part in parts])
        slide, row = self.source.index[numbers].T
        return {"slide": slide, "row": row, "index": numbers}

    def _gather(self, plan: Plan, loaded: list[list[Any]]) -> dict[str, Any]:
        items = [regions[k] for part, regions in zip(plan.parts, loaded, strict=True) for k in part.picks.tolist()]
        batch: dict[str, Any] = {"regions": np.stack([item[0] for item in items]), **plan.origin}
        if self.vectors is not None:
            batch["patch_vectors"] = np.stack([item[1] for item in items])
        return batch
