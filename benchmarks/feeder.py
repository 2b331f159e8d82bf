"""The loader without a GPU: the feeder beside the stream it replaced, and decoding over the number of threads.

Both sides give the same batches, turned and flipped, to a consumer that does nothing. The old way is the stream itself
with augmentation on the host, as the training loop used it. Rates are given per second and per CPU-second, since a busy
machine hardly changes the latter. The last line is one JSON object, also written to book/results/feeder.json.

Run: python -m benchmarks.feeder [--side 8192] [--batches 24] [--no-write]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from benchmarks.slides import tile_streams
from hcmae.config import Geometry, Optimisation
from hcmae.files import write_json
from hcmae.pretraining.feeder import Feeder, Raw
from hcmae.pretraining.loop import Stage
from hcmae.processes import worker_pool
from hcmae.slides.store import StoreContents, write_store
from hcmae.slides.stream import PatchStream, RegionSource
from tests.support.twin_slides import paint, write_twin

REGION, BATCH = 1024, 256
RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "feeder.json"
GEOMETRY = Geometry(region=REGION, patch=256, cell=16, thumbnail=64)


def make_store(folder: Path, side: int) -> tuple[Path, Path]:
    """A painted slide, JPEG at quality 85 in tiles of 256, and its store with every region of the grid."""
    slide, path = write_twin(folder / "a.svs", paint(side, side), quality=85, levels=()), folder / "a.h5"
    corners = np.array([(x, y) for y in range(0, side, REGION) for x in range(0, side, REGION)], np.int32)
    attrs = {
        "slide_id": "a", "slide_content": "a", "slide_bytes": slide.stat().st_size, "slide_path": str(slide),
        "slide_relative": slide.name, "reader": "direct", "mpp": 0.25, "side": REGION, "width": side, "height": side,
        "geometry": json.dumps(GEOMETRY.model_dump()),
    }  # fmt: skip
    thumbnails = np.zeros((len(corners), 64, 64, 3), np.uint8)
    write_store(path, StoreContents(corners, thumbnails, np.ones(len(corners), np.float32), attrs))
    return slide, path


class _Tokens(nn.Module):
    length = 256


def _stage(stream: Any) -> Stage:
    return Stage("feeder", _Tokens(), stream, Optimisation(batch_size=BATCH), 10**6, "images")


def old_way(path: Path, workers: int, batches: int) -> Callable[[], None]:
    """The stream gives finished batches; they are augmented behind it."""
    stream = PatchStream([path], BATCH, 0, workers=workers, drop_last=True, samples_per_epoch=BATCH * batches)
    stage = _stage(stream)

    def work() -> None:
        for number, batch in enumerate(stream):
            stage.prepare(batch, 0, number, slice(0, BATCH))

    return work


def new_way(path: Path, workers: int, batches: int) -> Callable[[], None]:
    """The feeder with device cpu."""
    stream = PatchStream([path], BATCH, 0, workers=workers, drop_last=True, samples_per_epoch=BATCH * batches)
    stage = _stage(stream)

    def finish(raw: Raw, number: int) -> dict[str, torch.Tensor]:
        return stage.augmented(raw.images, None, 0, number, slice(0, BATCH))

    def work() -> None:
        feeder = Feeder(
            [stream], torch.device("cpu"), finish, stream.state_dict, name="feeder", sizes=(BATCH,), patch=256
        )
        try:
            for _ in range(batches):
                feeder.next()
        finally:
            feeder.close()

    return work


_opened: dict[str, Any] = {}


def _open(source: RegionSource) -> None:
    _opened["source"], _opened["out"] = source, np.empty((REGION, REGION, 3), np.uint8)


def _decode(number: int) -> float:
    """One region in a worker process; CPU-seconds it took."""
    before = time.process_time()
    _opened["source"].read_into(number, _opened["out"])
    return time.process_time() - before


def decoding(path: Path, workers: int, kind: str, rounds: int) -> tuple[float, float]:
    """MPix/s and MPix per CPU-second of decoding alone."""
    source = RegionSource([path])
    numbers = list(range(len(source))) * rounds
    pixels = len(numbers) * REGION**2 / 1e6
    if kind == "threads":
        outs = [np.empty((REGION, REGION, 3), np.uint8) for _ in range(workers)]

        def some(first: int) -> None:
            for number in numbers[first::workers]:
                source.read_into(number, outs[first])

        source.read_into(0, outs[0])  # opens the slide
        cpu, clock = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            wait([pool.submit(some, first) for first in range(workers)])
        return pixels / (time.perf_counter() - clock), pixels / (time.process_time() - cpu)
    pool = worker_pool(workers, _open, (source,))
    try:
        list(pool.map(_decode, numbers[: 4 * workers]))
        clock = time.perf_counter()
        used = sum(pool.map(_decode, numbers))
        return pixels / (time.perf_counter() - clock), pixels / used
    finally:
        pool.shutdown(wait=True)


def bare(slide: Path) -> float:
    """MPix per CPU-second of libjpeg-turbo alone: the same tiles from memory into one buffer."""
    import simplejpeg

    streams, width, height = tile_streams(str(slide), REGION)
    buffer = np.empty((height, width, 3), np.uint8)
    best = 0.0
    for _ in range(3):
        cpu = time.process_time()
        for stream in streams:
            simplejpeg.decode_jpeg(stream, "RGB", False, False, buffer=buffer)
        best = max(best, len(streams) * width * height / 1e6 / (time.process_time() - cpu))
    return best


def run(side: int, batches: int) -> dict[str, Any]:
    """Measure everything, print the table, return the record."""
    table: list[dict[str, Any]] = []

    def add(task: str, name: str, rate: float, unit: str) -> None:
        table.append({"task": task, "implementation": name, "rate": round(rate, 2), "unit": unit})
        print(f"{task:<34} {name:<34} {rate:>10.2f} {unit}", flush=True)

    keys: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        slide, path = make_store(Path(name), side)
        limit = bare(slide)
        add("libjpeg-turbo alone", "one thread", limit, "MPix per CPU-second")
        cores = os.cpu_count() or 1
        counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= cores]
        rates: dict[tuple[str, int], tuple[float, float]] = {}
        for kind in ("threads", "processes"):
            for count in counts:
                rates[kind, count] = decoding(path, count, kind, max(1, count // 4))
                wall, per_cpu = rates[kind, count]
                add("Decoding", f"{count} {kind}", wall, "MPix/s")
                add("Decoding", f"{count} {kind}", per_cpu, "MPix per CPU-second")
        if 2 in counts:
            keys["scaling_2_threads"] = rates["threads", 2][0] / rates["threads", 1][0]
            keys["scaling_2_processes"] = rates["processes", 2][0] / rates["processes", 1][0]
            keys["cpu_share_2_threads"] = rates["threads", 2][1] / rates["threads", 1][1]
        workers = min(2, cores)
        ways = {"old way": old_way(path, workers, batches), "feeder": new_way(path, workers, batches)}
        clocks: dict[str, list[float]] = {way: [] for way in ways}
        cpus: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(4):
            for way in list(ways)[:: 1 if number % 2 else -1]:
                cpu, clock = time.process_time(), time.perf_counter()
                ways[way]()
                clocks[way].append(time.perf_counter() - clock)
                cpus[way].append(time.process_time() - cpu)
        for way in ways:
            add("Batches of patches", way, BATCH * batches / statistics.median(clocks[way]), "patches/s")
            add("Batches of patches", way, BATCH * batches / statistics.median(cpus[way]), "patches per CPU-second")
        keys["feeder_ratio"] = statistics.median(a / b for a, b in zip(*clocks.values(), strict=True))
        keys["feeder_cpu_ratio"] = statistics.median(a / b for a, b in zip(*cpus.values(), strict=True))
        per_cpu = BATCH * batches * 256**2 / 1e6 / statistics.median(cpus["feeder"])
        keys["feeder_share_of_libjpeg_turbo"] = per_cpu / limit
    return {
        **{name: round(value, 3) for name, value in keys.items()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30)},
        "table": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--side", type=int, default=8192, help="side of the painted slide in pixels")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--no-write", action="store_true", help="do not write book/results/feeder.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = run(options.side, options.batches)
    if not options.no_write:
        write_json(RESULTS, record)
    print(json.dumps({key: value for key, value in record.items() if key not in ("table", "machine", "date")}))


if __name__ == "__main__":
    main()
