"""Cut one slide into regions, safely: a damaged tile costs its region, a crash the regions in flight."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hcmae import __version__
from hcmae.config import Geometry, SlideSettings
from hcmae.slides.journal import Journal, StopError, journal_path, slide_lock
from hcmae.slides.reader import Slide, SlideError, TileError, open_slide
from hcmae.slides.regions import (
    RegionPlan,
    mask_downsample,
    plan_regions,
    read_region,
    region_side,
    regions_geojson,
    thumbnail,
)
from hcmae.slides.store import SlideStore, StoreContents, import_coords, write_store
from hcmae.slides.store_reading import ordered
from hcmae.slides.tissue import Tissue, is_edited, read_geojson, segment, write_geojson

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
        with slide_lock(store_path):
            return _process(path, store_path, geometry, settings, name, workers, reader, coords_file, geojson, start)
    except StopError as stop:
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
        raise StopError("failed", "bad_mask", str(error)) from None
    key = _settings_hash(path, geometry, settings, name, reader, mask_path if edited else None, coords_file)
    fresh = _fresh_store(store_path, key)
    if fresh is not None:
        # Left by a process that was killed after the store was in place.
        journal_path(store_path).unlink(missing_ok=True)
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
            raise StopError("failed", "bad_mask", str(error)) from None
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
        except StopError:
            # What other settings left there is no result of these.
            store_path.unlink(missing_ok=True)
            raise
        coords = plan.coords
        journal = Journal(journal_path(store_path), key, len(coords), geometry.thumbnail)
        try:
            done = journal.open()
            todo = [i for i in range(len(coords)) if i not in done]
            for index, thumb, cause in ordered(
                lambda i: one_region(slide, i, coords[i], plan.side, geometry), todo, workers
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
                raise StopError(
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
        raise StopError(
            "empty", "too_small", f"{slide.path}: {w} x {h} pixels hold no whole region of {plan.side}", **facts
        )
    if len(plan.coords):
        return
    if not tissue.mask.any():
        steps = ", ".join(f"{key} {value:g}" for key, value in tissue.counts.items())
        raise StopError("empty", "no_tissue", f"{slide.path}: no tissue (mask pixels: {steps})", **facts)
    raise StopError(
        "empty",
        "no_region_passes",
        f"{slide.path}: the fullest of {len(plan.corners)} squares has {plan.fractions.max():.0%} tissue, "
        f"the rule '{settings.keep_rule}' wants {settings.min_tissue:.0%}",
        **facts,
    )


def one_region(
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
