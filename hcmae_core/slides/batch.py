"""Cut slides into regions: one slide safely, many in parallel, and a reason for everything that was left out.

A damaged tile costs its region, a damaged slide costs that slide, a crash costs the regions in flight: each finished
region goes into a journal beside the store, and a second run continues from it. The store itself is written once, at
the end, from the journal, so it has the same bytes however often the work was interrupted.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import multiprocessing
import os
import re
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from hcmae_core import __version__
from hcmae_core.config import Geometry, SlideSettings
from hcmae_core.slides.reader import Slide, SlideError, TileError, open_slide
from hcmae_core.slides.regions import (
    RegionPlan,
    mask_downsample,
    ordered,
    plan_regions,
    read_region,
    region_side,
    regions_geojson,
    thumbnail,
)
from hcmae_core.slides.store import SlideStore, StoreContents, import_coords, write_store
from hcmae_core.slides.tiff import TiffError, read_pages
from hcmae_core.slides.tissue import Tissue, is_edited, read_geojson, segment, write_geojson

__all__ = ["REASONS", "SlideOutcome", "process_slide", "process_slides", "summary", "tissue_of"]

# Every reason a slide can have for not being 'ok', and what it means.
REASONS: dict[str, str] = {
    "up_to_date": "the store exists and was made from this file with these settings",
    "no_tissue": "segmentation found nothing that is large enough",
    "too_small": "the slide is smaller than one region",
    "no_region_passes": "there is tissue, but no square reaches the threshold",
    "missing": "no such file",
    "permission": "the file may not be read",
    "truncated": "the file ends before its last tile",
    "unreadable": "no reader can decode it",
    "unsupported": "a format that needs a reader which is not installed",
    "changed": "the file was replaced while it was read",
    "too_many_bad_regions": "more damaged regions than max_bad_regions allows",
    "bad_mask": "the edited tissue mask or the coordinate file cannot be used",
    "locked": "another process is working on this slide",
    "disk_full": "no space left for the store",
    "crashed": "the process that read it died",
    "error": "anything else; see detail",
}


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide. ``status``: ok, skipped, empty or failed; ``reason``: a key of REASONS or ''."""

    slide_id: str
    status: str
    reason: str
    regions: int
    bad_regions: int
    seconds: float
    mpix: float
    detail: str = ""
    reader: str = ""
    mpp: float = float("nan")
    tissue_share: float = float("nan")
    grid: int = 0
    four_point: int = 0
    resumed: int = 0


def tissue_of(slide: Slide, geometry: Geometry, settings: SlideSettings, mask: str | Path | None = None) -> Tissue:
    """Tissue of an open slide: from an edited mask where ``mask`` is one, else segmented with the settings' preset."""
    downsample = mask_downsample(region_side(geometry, settings, slide.mpp))
    if mask is not None and is_edited(mask):
        shape = (-(-slide.size[1] // downsample), -(-slide.size[0] // downsample))
        return read_geojson(mask, shape, downsample)
    return segment(slide.overview(downsample), downsample, settings.preset, remove_pen=settings.remove_pen)


def process_slide(
    path: str | Path,
    store_path: str | Path,
    geometry: Geometry,
    settings: SlideSettings,
    *,
    slide_id: str | None = None,
    workers: int = 1,
    reader: str = "auto",
    coords_file: str | Path | None = None,
    geojson: bool = True,
) -> SlideOutcome:
    """Cut one slide into regions and write its store; never raises for a bad slide, the outcome says what was wrong.

    Beside ``<name>.h5`` lie ``<name>.tissue.geojson`` and ``<name>.regions.geojson`` (level-0 pixels, for QuPath). Edit
    the tissue in QuPath, save it under the same name and run again: the edited mask is used. ``coords_file`` takes the
    corners from a file of CLAM, HIPT or TRIDENT instead of the grid. ``workers``: threads that decode regions.
    """
    path, store_path = Path(path), Path(store_path)
    name = slide_id or path.stem
    start = time.perf_counter()
    try:
        with _journal_lock(store_path):
            return _process(path, store_path, geometry, settings, name, workers, reader, coords_file, geojson, start)
    except _StopError as stop:
        return _outcome(name, stop.status, stop.reason, start, stop.detail, **stop.facts)
    except SlideError as error:
        return _outcome(name, "failed", error.code, start, str(error))
    except MemoryError:
        return _outcome(name, "failed", "error", start, f"{path}: not enough memory for one region per worker")
    except OSError as error:
        # HDF5 reports the full disk in its text only. A limit on the size of a file ends a store as well.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
            return _outcome(
                name, "failed", "disk_full", start, f"{store_path.parent}: {error.strerror or error}; free some space"
            )
        return _outcome(name, "failed", "error", start, f"{type(error).__name__}: {error}")
    except Exception as error:  # one slide must never stop the batch
        return _outcome(name, "failed", "error", start, f"{type(error).__name__}: {error}")


class _StopError(Exception):
    def __init__(self, status: str, reason: str, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.facts = status, reason, detail, facts


def _outcome(name: str, status: str, reason: str, start: float, detail: str = "", **facts: Any) -> SlideOutcome:
    base = {"regions": 0, "bad_regions": 0, "mpix": 0.0} | facts
    return SlideOutcome(name, status, reason, seconds=round(time.perf_counter() - start, 4), detail=detail, **base)


def _process(
    path: Path,
    store_path: Path,
    geometry: Geometry,
    settings: SlideSettings,
    name: str,
    workers: int,
    reader: str,
    coords_file: str | Path | None,
    geojson: bool,
    start: float,
) -> SlideOutcome:
    mask_path = store_path.with_suffix(".tissue.geojson")
    try:
        edited = is_edited(mask_path)
    except ValueError as error:
        raise _StopError("failed", "bad_mask", str(error)) from None
    key = _settings_hash(path, geometry, settings, name, reader, mask_path if edited else None, coords_file)
    fresh = _fresh_store(store_path, key)
    if fresh is not None:
        # Left by a process that was killed after the store was in place.
        _journal_path(store_path).unlink(missing_ok=True)
        return _outcome(
            name,
            "skipped",
            "up_to_date",
            start,
            regions=len(fresh),
            bad_regions=int(fresh.attrs["bad_regions"]),
            reader=fresh.attrs["reader"],
            mpp=float(fresh.attrs["mpp"]),
            tissue_share=float(fresh.attrs["tissue_share"]),
            grid=int(fresh.attrs["grid"]),
            four_point=int(fresh.attrs["four_point"]),
        )
    with open_slide(path, mpp_table=settings.mpp_table, reader=reader) as slide:
        try:
            tissue = tissue_of(slide, geometry, settings, mask_path)
            plan = _plan(slide, tissue, geometry, settings, coords_file)
        except ValueError as error:
            raise _StopError("failed", "bad_mask", str(error)) from None
        facts: dict[str, Any] = {
            "reader": slide.reader,
            "mpp": slide.mpp,
            "tissue_share": round(tissue.share, 5),
            "grid": plan.counts["grid"],
            "four_point": plan.counts["four_point"],
        }
        if geojson and not edited:
            write_geojson(tissue, mask_path, name=name)
        try:
            _stop_if_empty(slide, tissue, plan, settings, facts)
        except _StopError:
            # What other settings left there is no result of these.
            store_path.unlink(missing_ok=True)
            raise
        coords = plan.coords
        journal = _Journal(_journal_path(store_path), key, len(coords), geometry.thumbnail)
        try:
            done = journal.open()
            todo = [i for i in range(len(coords)) if i not in done]
            for index, thumb, cause in ordered(
                lambda i: _one_region(slide, i, coords[i], plan.side, geometry), todo, workers
            ):
                journal.add(index, thumb, cause)
            if slide.changed():
                journal.remove()
                raise SlideError("changed", path, "the file was replaced while it was read; run again")
            good = journal.good()
            bad = len(coords) - len(good)
            facts |= {"bad_regions": bad, "resumed": len(done), "mpix": len(todo) * plan.side**2 / 1e6}
            if bad > settings.max_bad_regions * len(coords):
                journal.remove()
                store_path.unlink(missing_ok=True)
                raise _StopError(
                    "failed",
                    "too_many_bad_regions",
                    f"{path}: {bad} of {len(coords)} regions are damaged ({journal.first_cause()}); "
                    f"max_bad_regions allows {settings.max_bad_regions:.0%}",
                    **facts,
                )
            kept_fraction = plan.fractions[plan.kept][good]
            attrs = _attributes(slide, path, store_path, geometry, settings, name, key, plan, tissue, bad)
            if geojson:
                regions_path = store_path.with_suffix(".regions.geojson")
                regions_geojson(regions_path, coords[good], plan.side, kept_fraction, name)
            # Last, because a store that is there ends the work: whatever a kill leaves undone must come before it.
            write_store(store_path, StoreContents(coords[good], journal.thumbnails(good), kept_fraction, attrs))
            journal.remove()
        finally:
            journal.close()
    detail = f"{bad} of {len(coords)} regions are damaged and left out" if bad else ""
    return _outcome(name, "ok", "", start, detail, regions=len(good), **facts)


def _plan(
    slide: Slide, tissue: Tissue, geometry: Geometry, settings: SlideSettings, coords_file: str | Path | None
) -> RegionPlan:
    if coords_file is None:
        return plan_regions(slide.size, tissue, geometry, settings, slide.mpp)
    side = region_side(geometry, settings, slide.mpp)
    corners = import_coords(coords_file, side=side)
    outside = (corners < 0).any(axis=1) | (corners >= slide.size).any(axis=1)
    if outside.any():
        raise ValueError(
            f"{coords_file}: {outside.sum()} of {len(corners)} squares lie outside {slide.path.name} "
            f"({slide.size[0]} x {slide.size[1]} pixels), first {corners[outside][0].tolist()}; is it another slide's?"
        )
    if not len(corners):
        raise ValueError(f"{coords_file}: holds no coordinates")
    fractions = tissue.fractions(corners, side)
    everything = np.ones(len(corners), bool)
    return RegionPlan(corners, fractions, everything, everything, side)


def _stop_if_empty(
    slide: Slide, tissue: Tissue, plan: RegionPlan, settings: SlideSettings, facts: dict[str, Any]
) -> None:
    if not len(plan.corners):
        w, h = slide.size
        raise _StopError(
            "empty", "too_small", f"{slide.path}: {w} x {h} pixels hold no whole region of {plan.side}", **facts
        )
    if len(plan.coords):
        return
    if not tissue.mask.any():
        steps = ", ".join(f"{key} {value:g}" for key, value in tissue.counts.items())
        raise _StopError("empty", "no_tissue", f"{slide.path}: no tissue (mask pixels: {steps})", **facts)
    raise _StopError(
        "empty",
        "no_region_passes",
        f"{slide.path}: the fullest of {len(plan.corners)} squares has {plan.fractions.max():.0%} tissue, "
        f"the rule '{settings.keep_rule}' wants {settings.min_tissue:.0%}",
        **facts,
    )


def _one_region(
    slide: Slide, index: int, corner: NDArray[np.int32], side: int, geometry: Geometry
) -> tuple[int, NDArray[np.uint8] | None, str]:
    try:
        region = read_region(slide, int(corner[0]), int(corner[1]), side, geometry.region)
    except TileError as error:
        return index, None, error.cause
    return index, thumbnail(region, geometry.thumbnail), ""


def _settings_hash(
    path: Path,
    geometry: Geometry,
    settings: SlideSettings,
    name: str,
    reader: str,
    mask: Path | None,
    coords_file: str | Path | None,
) -> str:
    """Hash of everything a store depends on: settings, the slide (size, first and last bytes), mask and coordinates."""
    parts: list[Any] = [geometry.model_dump(mode="json"), settings.model_dump(mode="json"), name, reader, __version__]
    for extra in (mask, coords_file):
        parts.append(hashlib.sha256(Path(extra).read_bytes()).hexdigest() if extra else None)
    try:
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            head = handle.read(1 << 16)
            handle.seek(max(0, size - (1 << 16)))
            parts += [size, hashlib.sha256(head + handle.read(1 << 16)).hexdigest()]
    except OSError:
        parts.append(None)  # open_slide says what is wrong
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fresh_store(store_path: Path, key: str) -> SlideStore | None:
    if not store_path.exists():
        return None
    try:
        store = SlideStore(store_path)
    except ValueError:
        return None
    return store if store.attrs.get("settings_hash") == key else None


def _attributes(
    slide: Slide,
    path: Path,
    store_path: Path,
    geometry: Geometry,
    settings: SlideSettings,
    name: str,
    key: str,
    plan: RegionPlan,
    tissue: Tissue,
    bad: int,
) -> dict[str, Any]:
    import cv2
    import h5py

    versions = {
        "hcmae_core": __version__,
        "h5py": h5py.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    with suppress(ImportError):
        import simplejpeg

        versions["simplejpeg"] = simplejpeg.__version__
    assert slide._stat is not None
    return {
        "slide_id": name,
        "slide_path": path.absolute().as_posix(),
        "slide_relative": Path(os.path.relpath(path.absolute(), store_path.absolute().parent)).as_posix(),
        "slide_bytes": slide._stat.st_size,
        "width": slide.size[0],
        "height": slide.size[1],
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "objective_power": slide.objective_power or 0.0,
        "geometry": json.dumps(geometry.model_dump(mode="json"), sort_keys=True),
        "settings": json.dumps(settings.model_dump(mode="json"), sort_keys=True),
        "settings_hash": key,
        "side": plan.side,
        "region_pixels": geometry.region,
        "reader": slide.reader,
        "reader_note": slide.note,
        "compression": slide.compression,
        "versions": json.dumps(versions, sort_keys=True),
        "tissue_source": tissue.source,
        "tissue_share": round(tissue.share, 5),
        "tissue_counts": json.dumps(tissue.counts, sort_keys=True),
        "grid": plan.counts["grid"],
        "four_point": plan.counts["four_point"],
        "bad_regions": bad,
    }


# --- the journal ----------------------------------------------------------------------------------------------------


def _journal_path(store_path: Path) -> Path:
    return store_path.with_name(f".{store_path.stem}.journal")


@contextmanager
def _journal_lock(store_path: Path) -> Iterator[None]:
    """One process per slide. The lock belongs to the process, so a killed one leaves none behind."""
    store_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two batches at once are the user's to avoid
        yield
        return
    lock_path = store_path.with_name(f".{store_path.stem}.lock")
    with open(lock_path, "wb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                yield  # a file system without locks
                return
            raise _StopError("skipped", "locked", f"{store_path}: another process is working on this slide") from None
        try:
            _sweep(store_path)
            yield
        finally:
            lock_path.unlink(missing_ok=True)


def _sweep(store_path: Path) -> None:
    """Remove temporary files that a killed process left for this slide; those of living processes are left alone."""
    name = re.compile(rf"\.{re.escape(store_path.stem)}(?:\.tissue|\.regions)?\.(\d+)-[0-9a-f]{{8}}\.(?:h5|geojson)")
    for item in store_path.parent.glob(f".{glob.escape(store_path.stem)}.*"):
        match = name.fullmatch(item.name)
        if match and not _alive(int(match[1])):
            item.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class _Journal:
    """Finished regions of an unfinished slide: a header line, then one fixed-size record per region.

    A record is index, state, CRC and the thumbnail. Whatever a crash left half-written fails its CRC and is cut off.
    """

    _HEAD = struct.Struct("<IiI")

    def __init__(self, path: Path, key: str, regions: int, side: int) -> None:
        self.path, self.side, self.regions = path, side, regions
        self.header = f"hcmae-journal {FORMAT_JOURNAL} {key} {regions} {side}\n".encode()
        self.payload = side * side * 3
        self.record = self._HEAD.size + self.payload
        self._file: BinaryIO | None = None
        self._row: dict[int, int] = {}
        self._bad: dict[int, str] = {}
        self._rows = 0

    def open(self) -> set[int]:
        """Open or continue; returns the indices that are done. Damaged regions are tried again."""
        valid = len(self.header)
        if self.path.exists():
            with open(self.path, "rb") as file:
                if file.read(len(self.header)) == self.header:
                    while True:
                        record = file.read(self.record)
                        if len(record) < self.record:
                            break
                        index, state, crc = self._HEAD.unpack_from(record)
                        if zlib.crc32(record[self._HEAD.size :]) != crc or index >= self.regions or state != 1:
                            break
                        self._row[index] = self._rows
                        self._rows += 1
                        valid += self.record
        if self._rows:
            self._file = self.path.open("r+b", buffering=0)
            self._file.truncate(valid)
            self._file.seek(valid)
        else:
            self._file = self.path.open("w+b", buffering=0)
            self._file.write(self.header)
        return set(self._row)

    def add(self, index: int, thumb: NDArray[np.uint8] | None, cause: str) -> None:
        if thumb is None:
            self._bad[index] = cause
            return
        assert self._file is not None
        data = thumb.tobytes()
        record = self._HEAD.pack(index, 1, zlib.crc32(data)) + data
        if self._file.write(record) < len(record):  # an almost full disk takes a part and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._row[index] = self._rows
        self._rows += 1

    def good(self) -> NDArray[np.int64]:
        return np.array(sorted(self._row), np.int64)

    def first_cause(self) -> str:
        return next(iter(self._bad.values()), "")

    def thumbnails(self, indices: NDArray[np.int64]) -> Any:
        """Thumbnails [M, T, T, 3] in the order of ``indices``, read from the file as they are needed."""
        return _JournalThumbs(self, indices)

    def read(self, index: int) -> NDArray[np.uint8]:
        assert self._file is not None
        self._file.seek(len(self.header) + self._row[index] * self.record + self._HEAD.size)
        data = self._file.read(self.payload)
        return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


FORMAT_JOURNAL = 1


class _JournalThumbs:
    def __init__(self, journal: _Journal, indices: NDArray[np.int64]) -> None:
        self._journal, self._indices = journal, indices
        self.shape = (len(indices), journal.side, journal.side, 3)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        picked = [self._journal.read(int(i)) for i in self._indices[rows]]
        return np.stack(picked) if picked else np.zeros((0, *self.shape[1:]), np.uint8)


# --- many slides ----------------------------------------------------------------------------------------------------

Job = tuple[Any, Any, str]


def process_slides(
    jobs: Iterable[Sequence[Any]],
    geometry: Geometry,
    settings: SlideSettings,
    *,
    workers: int = 2,
    threads: int | None = None,
    strict: bool = False,
    progress: bool = True,
    reader: str = "auto",
    geojson: bool = True,
) -> pd.DataFrame:
    """Cut many slides; jobs are (slide path, store path[, slide id]). One row per job, in the order of the jobs.

    ``workers`` slides at a time, each in a process of its own, so that even a crash inside a decoder costs one slide;
    ``threads`` decode regions inside a slide (default: cores / workers). The slides that take longest go first: the
    bar's unit is a byte of JPEG, and a byte of JPEG 2000 counts for what it costs. ``strict`` raises SlideError at the
    first slide that fails or has no region; otherwise the columns status, reason and detail say it, and ``summary``
    makes a table of them.
    """
    plan: list[Job] = [(item[0], item[1], str(item[2]) if len(item) > 2 else Path(item[0]).stem) for item in jobs]
    threads = threads or max(1, (os.cpu_count() or 1) // max(1, workers))
    sizes = [_cost(path) for path, _, _ in plan]
    order = sorted(range(len(plan)), key=lambda i: (-sizes[i], i))
    arguments = {"workers": threads, "reader": reader, "geojson": geojson}
    results: dict[int, SlideOutcome] = {}
    start = time.perf_counter()
    bar = tqdm(
        total=sum(sizes), unit="B", unit_scale=True, unit_divisor=1024, desc="slides", disable=not progress, leave=True
    )
    mpix, failed = 0.0, 0
    try:
        for index, outcome in _run_all(plan, order, geometry, settings, arguments, workers):
            results[index] = outcome
            mpix += outcome.mpix
            failed += outcome.status in ("failed", "empty")
            speed = mpix / max(time.perf_counter() - start, 1e-9)
            bar.set_postfix_str(
                f"{len(results)}/{len(plan)} slides, {speed:.0f} MPix/s, {failed} without regions", False
            )
            bar.update(sizes[index])
            if strict and outcome.status in ("failed", "empty"):
                # What a reader said begins with the slide's path already, and so does SlideError.
                detail = (outcome.detail or REASONS.get(outcome.reason, "")).removeprefix(f"{plan[index][0]}: ")
                raise SlideError(outcome.reason, plan[index][0], detail)
    finally:
        bar.close()
    frame = pd.DataFrame([asdict(results[i]) for i in range(len(plan))], columns=list(SlideOutcome.__annotations__))
    frame = frame.rename(columns={"slide_id": "slide"})
    frame["store"] = [str(store) for _, store, _ in plan]
    return frame


# What a byte costs beside one of JPEG: decoding JPEG 2000 takes about ten times as long for a pixel.
_JPEG2000_COST = 10
_JPEG2000_TAGS = {33003, 33005, 34712}


def _cost(path: Any) -> int:
    """Expected work on a slide, in bytes of JPEG; 0 where there is none."""
    try:
        size = os.stat(path).st_size
        packed = read_pages(path)[0].get("compression", 1)
    except TiffError:
        return size
    except OSError:
        return 0
    return size * (_JPEG2000_COST if packed in _JPEG2000_TAGS else 1)


def summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What became of a batch: one row per status and reason with its meaning, slides, regions, megapixels, seconds."""
    table = outcomes.assign(reason=outcomes["reason"].fillna(""))
    rows = table.groupby(["status", "reason"], sort=True).agg(
        slides=("slide", "size"),
        regions=("regions", "sum"),
        bad_regions=("bad_regions", "sum"),
        mpix=("mpix", "sum"),
        seconds=("seconds", "sum"),
    )
    rows = rows.reset_index()
    rows.insert(2, "meaning", [REASONS.get(reason, "regions were cut") for reason in rows["reason"]])
    return rows.round({"mpix": 1, "seconds": 2})


def _work(job: Job, geometry: Geometry, settings: SlideSettings, arguments: dict[str, Any]) -> SlideOutcome:
    return process_slide(job[0], job[1], geometry, settings, slide_id=job[2], **arguments)


def _quiet_worker() -> None:
    import warnings

    import cv2

    _die_with_parent()

    cv2.setNumThreads(1)
    # A missing resolution is in the outcome table (mpp_source in the store); a line per slide would drown the bar.
    warnings.filterwarnings("ignore", message=".*does not say its resolution.*")


def _die_with_parent() -> None:
    """End this worker when its parent is gone. A killed parent cannot tell its workers, and they would wait for ever,
    holding the locks of their slides against the next run."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def _run_all(
    plan: list[Job],
    order: list[int],
    geometry: Geometry,
    settings: SlideSettings,
    arguments: dict[str, Any],
    workers: int,
) -> Iterator[tuple[int, SlideOutcome]]:
    if workers <= 1 or len(plan) <= 1:
        for index in order:
            yield index, _work(plan[index], geometry, settings, arguments)
        return
    queue = deque(order)
    suspects: list[int] = []
    while queue:
        running: dict[Future[SlideOutcome], int] = {}
        with _pool(min(workers, len(queue))) as pool:
            try:
                while queue or running:
                    while queue and len(running) < 2 * workers:
                        index = queue.popleft()
                        running[pool.submit(_work, plan[index], geometry, settings, arguments)] = index
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        outcome = future.result()
                        yield running.pop(future), outcome
            except BrokenProcessPool:
                suspects += running.values()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    # A worker died and took the slides in flight with it: try each alone; the one that kills again is the culprit.
    for index in suspects:
        with _pool(1) as pool:
            try:
                yield index, pool.submit(_work, plan[index], geometry, settings, arguments).result()
            except BrokenProcessPool:
                detail = f"{plan[index][0]}: the process that read it died (damaged file or out of memory)"
                yield index, SlideOutcome(plan[index][2], "failed", "crashed", 0, 0, 0.0, 0.0, detail)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the caller may hold threads (torch) that do not survive a fork.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet_worker)
