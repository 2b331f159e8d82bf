"""From slides to batches on the device: the host only decodes, everything after that happens where the network is.

Threads or processes decode regions straight into a ring of reused host memory. On a GPU that memory is pinned, a whole
region crosses once, on a stream of its own, into the shuffle buffer on the device; batches of patches or regions are
gathered, flipped, turned and stained there. On a CPU the ring *is* the shuffle buffer. Which samples make a batch is
the stream's affair (``hcmae.slides.stream``): a function of seed and position alone.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hcmae.pretraining.augment import to_device
from hcmae.processes import worker_pool
from hcmae.slides.decoding import decode, open_sources
from hcmae.slides.stream import Plan, RegionSource

Decoders = Literal["auto", "threads", "processes"]
# Beyond so many threads the interpreter's lock is what limits decoding.
_THREADS_AT_MOST = 4
# Of the device's free memory, the share that the shuffle buffer may take.
_MEMORY_SHARE = 0.4


class Planned(Protocol):
    """A stream that says which samples make a batch and reads single regions: what this module needs of it."""

    batch_size: int
    buffer_regions: int
    workers: int
    source: RegionSource

    @property
    def per_region(self) -> int: ...
    @property
    def side(self) -> int: ...
    def plans(self) -> Iterator[Plan]: ...
    def load_into(self, number: int, out: NDArray[np.uint8]) -> None: ...
    def vectors_of(self, number: int) -> NDArray[Any] | None: ...


@dataclass(frozen=True)
class Fed:
    """A batch on its device: inputs of the network, where its samples come from, the stream's state behind it."""

    inputs: dict[str, Tensor]
    origin: dict[str, NDArray[Any]]
    state: Any
    ready: torch.cuda.Event | None = None

    def take(self) -> dict[str, Tensor]:
        """The inputs, for work that is given to the current stream of the device from now on."""
        if self.ready is not None:
            current = torch.cuda.current_stream()
            current.wait_event(self.ready)
            for tensor in self.inputs.values():
                # The memory must not go to another batch before this stream has read it.
                tensor.record_stream(current)
        return self.inputs


@dataclass(frozen=True)
class Raw:
    """A gathered batch before augmentation, rows of this process only."""

    images: Tensor
    vectors: Tensor | None


def numbered(device: torch.device) -> torch.device:
    """The device with its number, which a new thread must be told."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def together(streams: Sequence[Iterator[Any]]) -> Iterator[tuple[Any, ...]]:
    """Items of several streams side by side; where one has ended, all are run to their end, so that none lags."""
    while True:
        items = [next(stream, None) for stream in streams]
        if any(item is None for item in items):
            for stream, item in zip(streams, items, strict=True):
                while item is not None:
                    item = next(stream, None)
            return
        yield tuple(items)


def choose_decoders(asked: Decoders, workers: int, streams: Sequence[Planned], device: torch.device) -> str:
    """``threads``, or ``processes`` where many workers would wait for the interpreter's lock and a GPU waits for them.

    Processes need memory that has no name (Linux), regions that are read as they are, and no cache of regions.
    """
    possible = hasattr(os, "memfd_create") and all(
        stream.side == stream.source.geometry.region and stream.source.cache is None for stream in streams
    )
    if asked == "processes" and not possible:
        warnings.warn(
            "compute.decoders: processes are not possible here (Linux, whole regions and no cache of regions are "
            "needed): regions are decoded by threads",
            stacklevel=2,
        )
    if asked == "auto":
        asked = "processes" if workers > _THREADS_AT_MOST and device.type == "cuda" else "threads"
    return "processes" if asked == "processes" and possible else "threads"


class _Ring:
    """Host memory for regions [N, S, S, 3], used again and again; it has no name, so that nothing is left behind."""

    def __init__(self, slots: int, side: int, *, shared: bool, pinned: bool) -> None:
        shape, self._file, self._registered = (slots, side, side, 3), -1, False
        if shared:
            size = int(np.prod(shape))
            self._file = os.memfd_create("hcmae-regions")
            os.truncate(self._file, size)
            self.array = np.asarray(np.memmap(self.path, np.uint8, "r+", shape=shape))
        else:
            # Not touched before it is used: memory that is never needed is never taken.
            self.array = np.empty(shape, np.uint8)
        self.tensor = torch.from_numpy(self.array)
        if pinned:
            code = torch.cuda.cudart().cudaHostRegister(self.tensor.data_ptr(), self.tensor.nbytes, 0)
            self._registered = int(code) == 0
            if not self._registered:
                warnings.warn(
                    f"{self.tensor.nbytes / 2**30:.1f} GiB of host memory cannot be pinned ({code}): copies to the "
                    "device are slower; raise the limit of locked memory (ulimit -l)",
                    stacklevel=2,
                )

    @property
    def path(self) -> str:
        """How a process of the same user opens it."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def close(self) -> None:
        if self._registered:
            torch.cuda.cudart().cudaHostUnregister(self.tensor.data_ptr())
            self._registered = False
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@dataclass
class _Block:
    """Regions of one block of one shard: where each lies in the shuffle buffer, and what is still on its way."""

    slots: dict[int, int]
    missing: set[int]
    vectors: dict[int, NDArray[Any]]


class _FromThread:
    """What another thread puts into a queue: batches, or the error that ended it."""

    _queue: queue.Queue[Any]

    def next(self) -> Fed:
        """The next batch; waits for it."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        fed: Fed = item
        return fed


class Feeder(_FromThread):
    """Batches of one or several shards, gathered on ``device`` from regions that ``workers`` decode ahead.

    finish: (batch, its number from ``first``) -> inputs of the network; runs on the device, in the feeder's thread.
    state: gives the position to be saved behind the batch that was planned last. sizes: how many samples a batch may
    have; others are dropped. ahead: batches kept ready. Memory: the shuffle buffer holds the regions of one batch,
    three blocks of each shard, and twice as many regions as there are workers; on a GPU the host's ring holds the
    latter.
    Raises ValueError where a GPU has no room for that, and from ``next`` whatever decoding raised.
    """

    def __init__(
        self,
        shards: Sequence[Planned],
        device: torch.device,
        finish: Callable[[Raw, int], dict[str, Tensor]],
        state: Callable[[], Any],
        *,
        name: str,
        sizes: Sequence[int],
        patch: int | None,
        first: int = 0,
        decoders: Decoders = "auto",
        ahead: int = 2,
    ) -> None:
        self.shards, self.device, self.name = list(shards), numbered(device), name
        self._finish, self._state, self._sizes, self._patch, self._number = finish, state, set(sizes), patch, first
        self._gpu = device.type == "cuda"
        workers = sum(shard.workers for shard in self.shards)
        self.decoders = choose_decoders(decoders, workers, self.shards, device)
        side = self.shards[0].side
        self.slots = self._buffer_slots(2 * workers, 3 * side * side)
        ring = min(self.slots, 2 * workers) if self._gpu else self.slots
        self._ring = _Ring(ring, side, shared=self.decoders == "processes", pinned=self._gpu)
        self._buffer = (
            torch.empty((self.slots, side, side, 3), dtype=torch.uint8, device=device)
            if self._gpu
            else self._ring.tensor
        )
        self._pool: Executor = (
            worker_pool(
                workers,
                open_sources,
                ([shard.source for shard in self.shards], self._ring.path, self._ring.array.shape),
            )
            if self.decoders == "processes"
            else ThreadPoolExecutor(workers, thread_name_prefix="decode")
        )
        # Low numbers first: of memory that was never used nothing is taken.
        self._free, self._free_ring = list(range(self.slots))[::-1], list(range(ring))[::-1]
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._waiting: deque[tuple[int, int, int]] = deque()
        self._busy: dict[Future[None], tuple[int, int, int, int]] = {}
        self._crossing: deque[tuple[torch.cuda.Event, int]] = deque()
        self._planned: deque[tuple[tuple[Plan, ...], Any]] = deque()
        self._plans = self._endless()
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="feeder")
        self._thread.start()

    def _buffer_slots(self, decoding: int, region_bytes: int) -> int:
        """Regions in the shuffle buffer."""
        needed, more = 0, decoding
        for shard in self.shards:
            # A batch may begin at the end of one block and end at the beginning of another; both are there as a whole.
            needed += -(-shard.batch_size // shard.per_region) + 2 * shard.buffer_regions
            more += shard.buffer_regions
        if not self._gpu:
            return needed + more
        room = int(torch.cuda.mem_get_info(self.device)[0] * _MEMORY_SHARE) // region_bytes
        if room < needed + 1:
            raise ValueError(
                f"{self.name}: the shuffle buffer needs {needed + 1} regions of {region_bytes / 2**20:.0f} MiB, and "
                f"the device has room for {room} in {_MEMORY_SHARE:.0%} of its free memory: free some, or use a "
                "smaller batch_size with more accumulation"
            )
        if room < needed + more:
            print(
                f"{self.name}: {room} instead of {needed + more} regions in the shuffle buffer, as the device's memory "
                "allows; the order stays the same, waiting for data may grow",
                file=sys.stderr,
            )
        return min(room, needed + more)

    @property
    def buffer_bytes(self) -> int:
        """Memory of the shuffle buffer."""
        return self._buffer.nbytes

    # --- for the thread that trains ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop decoding, end the workers, give memory back."""
        self._stop.set()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        # Open plans would end when memory is tidied up, somewhere in the step after this one.
        self._plans.close()
        if self._gpu:
            torch.cuda.synchronize(self.device)
        self._ring.close()

    # --- the feeder's own thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._gpu:
                torch.cuda.set_device(self.device)
                stream = torch.cuda.Stream(self.device)
                # What had the buffer's memory before may still be in use there.
                stream.wait_stream(torch.cuda.default_stream(self.device))
                with torch.cuda.stream(stream):
                    self._serve()
            else:
                self._serve()
        except BaseException as error:
            self._put(error)

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._look_ahead()
            plans, state = self._planned[0]
            if all(not self._blocks[key].missing for key in self._keys(plans)):
                self._planned.popleft()
                self._put(self._make(plans, state))
            else:
                self._arrive()

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                # Meanwhile decoding goes on, and what has arrived makes room for more.
                self._queue.put(item, timeout=0.02)
                return
            except queue.Full:
                if not isinstance(item, BaseException):
                    self._look_ahead()
                    self._arrive(block=False)

    def _endless(self) -> Generator[tuple[tuple[Plan, ...], Any], None, None]:
        empty = 0
        while True:
            empty += 1
            for plans in together([shard.plans() for shard in self.shards]):
                if sum(map(len, plans)) in self._sizes:
                    empty = 0
                    yield plans, self._state()
            # One empty pass is normal: resuming at the very end of an epoch.
            if empty > 1:
                raise ValueError(f"{self.name}: fewer samples than one batch of {max(self._sizes)}; use a smaller one")

    @staticmethod
    def _keys(plans: tuple[Plan, ...]) -> list[tuple[int, int]]:
        return [(shard, part.number) for shard, plan in enumerate(plans) for part in plan.parts]

    def _look_ahead(self) -> None:
        """Plan batches and hand out regions to be decoded, as far as there is room."""
        while not self._planned or (len(self._waiting) < len(self._free) and len(self._planned) < 64):
            self._planned.append(next(self._plans))
            for shard, plan in enumerate(self._planned[-1][0]):
                for part in plan.parts:
                    self._enlist(shard, part.number, part.regions)
        self._reclaim()
        while self._waiting and self._free and (self._free_ring or not self._gpu):
            shard, number, region = self._waiting.popleft()
            slot = self._free.pop()
            ring = self._free_ring.pop() if self._gpu else slot
            if self.decoders == "processes":
                future: Future[None] = self._pool.submit(decode, shard, region, ring)
            else:
                future = self._pool.submit(self.shards[shard].load_into, region, self._ring.array[ring])
            self._busy[future] = (shard, number, region, ring)
            self._blocks[shard, number].slots[region] = slot

    def _enlist(self, shard: int, number: int, regions: NDArray[np.int64]) -> None:
        if (shard, number) in self._blocks:
            return
        # Slide by slide, so that workers share open files and neighbouring tiles.
        order = np.sort(regions).tolist()
        self._blocks[shard, number] = _Block({}, set(order), {})
        self._waiting.extend((shard, number, region) for region in order)

    def _arrive(self, block: bool = True) -> None:
        """Take what has been decoded to where it belongs."""
        if not self._busy:
            if block and not self._reclaim(wait=True):
                raise RuntimeError(f"{self.name}: nothing is being decoded and the next batch is not complete")
            return
        done, _ = wait(self._busy, timeout=0.2 if block else 0, return_when=FIRST_COMPLETED)
        for future in done:
            shard, number, region, ring = self._busy.pop(future)
            future.result()
            item = self._blocks[shard, number]
            if self._gpu:
                self._buffer[item.slots[region]].copy_(self._ring.tensor[ring], non_blocking=True)
                event = torch.cuda.Event()
                event.record()
                self._crossing.append((event, ring))
            vectors = self.shards[shard].vectors_of(region)
            if vectors is not None:
                item.vectors[region] = vectors
            item.missing.discard(region)

    def _reclaim(self, wait: bool = False) -> bool:
        """Ring memory whose pixels have crossed; True where some came back."""
        found = False
        while self._crossing and (wait or self._crossing[0][0].query()):
            event, ring = self._crossing.popleft()
            event.synchronize()
            self._free_ring.append(ring)
            found, wait = True, False
        return found

    def _make(self, plans: tuple[Plan, ...], state: Any) -> Fed:
        slots, inside, vectors = [], [], []
        for shard, plan in enumerate(plans):
            for part in plan.parts:
                block = self._blocks[shard, part.number]
                which, patch = np.divmod(part.picks, self.shards[shard].per_region)
                regions = part.regions[which].tolist()
                slots += [block.slots[region] for region in regions]
                inside += patch.tolist()
                vectors += [block.vectors[region] for region in regions if block.vectors]
        raw = Raw(self._gather(slots, inside), self._to_device(np.stack(vectors)) if vectors else None)
        inputs = self._finish(raw, self._number)
        self._number += 1
        self._release()
        ready = None
        if self._gpu:
            ready = torch.cuda.Event()
            ready.record()
        origin = {key: np.concatenate([plan.origin[key] for plan in plans]) for key in plans[0].origin}
        return Fed(inputs, origin, state, ready)

    def _release(self) -> None:
        """Room of the blocks that no batch needs any more: those before the first block of the next batch."""
        while not self._planned:
            self._look_ahead()
        needed = {key for plans, _ in self._planned for key in self._keys(plans)}
        for key in [key for key in self._blocks if key not in needed]:
            # Gathering runs on the same stream as the copies, so what is written there next comes after it.
            self._free += self._blocks.pop(key).slots.values()

    def _gather(self, slots: list[int], inside: list[int]) -> Tensor:
        """Samples of the shuffle buffer: whole regions, or their patches."""
        side, patch = self._buffer.shape[1], self._patch
        if patch is None:
            if self._gpu:
                return self._buffer.index_select(0, self._to_device(np.array(slots)))
            return self._buffer[torch.tensor(slots)]
        n = side // patch
        if self._gpu:
            # Rows of a patch are moved as machine words where they are whole ones.
            word = torch.int64 if patch * 3 % 8 == 0 else torch.uint8
            grid = self._buffer.view(self.slots, side, side * 3).view(word).view(self.slots, n, patch, n, -1)
            index = self._to_device(np.array([slots, inside]))
            rows = grid[index[0], index[1] // n, :, index[1] % n]
            return rows.contiguous().view(torch.uint8).view(len(slots), patch, patch, 3)
        out = np.empty((len(slots), patch, patch, 3), np.uint8)
        # Not a batched index: rows of pixels are copied whole this way.
        view = self._ring.array.reshape(self.slots, n, patch, n, patch * 3)
        flat = out.reshape(len(slots), patch, patch * 3)
        for i, (slot, k) in enumerate(zip(slots, inside, strict=True)):
            flat[i] = view[slot, k // n, :, k % n]
        return torch.from_numpy(out)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(array), self.device)


class HostBatches(_FromThread):
    """The same from a stream that gives finished batches in host memory; a thread stays ``ahead`` batches in front.

    finish: (batch of arrays, its number) -> inputs on the device.
    """

    def __init__(
        self,
        batches: Iterator[Mapping[str, Any]],
        device: torch.device,
        finish: Callable[[Mapping[str, Any], int], dict[str, Tensor]],
        origin: Callable[[Mapping[str, Any]], dict[str, NDArray[Any]]],
        state: Callable[[], Any],
        *,
        first: int = 0,
        ahead: int = 2,
    ) -> None:
        self._batches, self._device, self._finish, self._origin = batches, numbered(device), finish, origin
        self._state, self._number = state, first
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="batches")
        self._thread.start()

    def _make(self) -> Fed:
        batch = next(self._batches)
        ready = None
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            with torch.cuda.stream(self._stream):
                inputs = self._finish(batch, self._number)
                ready = torch.cuda.Event()
                ready.record()
        else:
            inputs = self._finish(batch, self._number)
        self._number += 1
        return Fed(inputs, self._origin(batch), self._state(), ready)

    def _fill(self) -> None:
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)
        while not self._stop.is_set():
            try:
                item: Any = self._make()
            except BaseException as error:
                item = error
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()
