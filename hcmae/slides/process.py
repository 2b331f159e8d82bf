"""Cut one slide into regions, safely: a damaged tile costs its region, a crash the regions in flight."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hcmae import __version__
from hcmae.config import Geometry, SlideSettings
from hcmae.content import Contents
from hcmae.keys import Key, source_of
from hcmae.slides.coords_files import import_coords
from hcmae.slides.errors import SlideError, TileError
from hcmae.slides.journal import Journal, StopError, journal_path, slide_lock
from hcmae.slides.mpp import is_assumed, load_mpp_table, table_entry
from hcmae.slides.reader import Slide, open_slide, slide_identity
from hcmae.slides.regions import (
    RegionPlan,
    mask_downsample,
    plan_regions,
    read_region,
    region_side,
    regions_geojson,
    thumbnail,
)
from hcmae.slides.store import SlideStore, StoreContents, write_store
from hcmae.slides.store_reading import ordered
from hcmae.slides.tissue import Tissue, is_edited, read_geojson, segment, write_geojson

# What makes a store: a change in one of these cuts every slide anew. What runs many slides, or resumes one, does not
# change what is cut and is not here.
CODE = tuple(
    f"hcmae.slides.{name}"
    for name in (
        "coords_files",
        "errors",
        "handles",
        "hdf5",
        "index",
        "mpp",
        "overview",
        "probe",
        "process",
        "reader",
        "regions",
        "store",
        "tiff",
        "tiles",
        "tissue",
    )
)
# Stands for the content of a slide that cannot be read.
UNREAD = "unread"

# Reasons that follow from the content and the settings: the same slide comes out the same next time.
_LASTING = {
    "damaged": "regions were cut, but parts of the file are damaged: see bad_regions, damaged_tiles and detail",
    "up_to_date": "the store exists and was made from this file with these settings",
    "no_tissue": "segmentation found nothing that is large enough",
    "too_small": "the slide is smaller than one region",
    "no_region_passes": "there is tissue, but no square reaches the threshold",
    "truncated": "the file ends before its last tile",
    "unreadable": "no reader can decode it",
    "unsupported": "a format that needs a reader which is not installed, or a slide too large for its regions",
    "not_square": "its pixels are longer than broad, and no table gives its resolution",
    "too_many_bad_regions": "more damaged regions than max_bad_regions allows",
    "bad_mask": "the edited tissue mask or the coordinate file cannot be used",
}
# Reasons that may pass by themselves.
_PASSING = {
    "missing": "no such file",
    "permission": "the file may not be read",
    "changed": "the file was replaced while it was read",
    "locked": "another process is working on this slide",
    "assumed_resolution": "nobody says its resolution, and a strict run does not assume one",
    "disk_full": "no space left for the store",
    "crashed": "the process that read it died",
    "error": "anything else, see detail",
}
PASSING = frozenset(_PASSING)
# Every reason a slide can have for not being 'ok', what it means, and which are tried again.
REASONS: dict[str, str] = _LASTING | {name: f"{text}; the next run tries again" for name, text in _PASSING.items()}


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide. ``status``: ok, skipped, empty or failed; ``reason``: a key of REASONS or ''.

    ``mpp_source`` says where ``mpp`` comes from ('assumed': from nowhere). ``damaged_tiles``: tiles that were damaged
    where the overview was made, their area taken from a larger level; ``bad_regions`` are those that cannot be read.
    ``final``: False where the same slide may come out otherwise next time (see PASSING). ``key``: digest of the key
    that it was cut under, ``content``: hash of the slide, ``mask``: hash of the mask beside the store, which a person
    has ``edited`` or not.
    """

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
    mpp_source: str = ""
    tissue_share: float = float("nan")
    grid: int = 0
    four_point: int = 0
    damaged_tiles: int = 0
    resumed: int = 0
    final: bool = True
    key: str = ""
    content: str = ""
    mask: str = ""
    edited: bool = False


def tissue_of(slide: Slide, geometry: Geometry, settings: SlideSettings, mask: str | Path | None = None) -> Tissue:
    """Tissue of an open slide: from an edited mask where ``mask`` is one, else segmented with the settings' preset."""
    downsample = mask_downsample(region_side(geometry, settings, slide.mpp))
    if mask is not None and is_edited(mask):
        shape = (-(-slide.size[1] // downsample), -(-slide.size[0] // downsample))
        return read_geojson(mask, shape, downsample)
    view = slide.survey(downsample)
    found = segment(view.pixels, downsample, settings.preset, remove_pen=settings.remove_pen)
    return replace(found, unread=view.unread, damaged=view.damaged)


@dataclass(frozen=True)
class _Task:
    """One slide to cut and how."""

    path: Path
    store_path: Path
    geometry: Geometry
    settings: SlideSettings
    name: str
    workers: int
    reader: str
    coords_file: str | Path | None
    geojson: bool
    contents: Contents
    strict: bool


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
    contents: Contents | None = None,
    strict: bool = False,
) -> SlideOutcome:
    """Cut one slide into regions and write its store; never raises for a bad slide, the outcome says what was wrong.

    Beside ``<name>.h5`` lie ``<name>.tissue.geojson`` and ``<name>.regions.geojson`` (level-0 pixels, for QuPath). Edit
    the tissue in QuPath, save it under the same name and run again: the edited mask is used. ``coords_file`` takes the
    corners from a file of CLAM, HIPT or TRIDENT instead of the grid. ``workers``: threads that decode regions.
    ``contents``: the memory of hashes, so that a slide whose bytes are known is not read for its key again.
    ``strict``: a slide whose resolution would have to be assumed fails (reason 'assumed_resolution').
    """
    path, store_path = Path(path), Path(store_path)
    name = slide_id or path.stem
    known = contents if contents is not None else Contents()
    task = _Task(path, store_path, geometry, settings, name, workers, reader, coords_file, geojson, known, strict)
    start = time.perf_counter()
    identity: dict[str, Any] = {}

    def outcome(status: str, reason: str, detail: str = "", **facts: Any) -> SlideOutcome:
        seconds = round(time.perf_counter() - start, 4)
        base = {"regions": 0, "bad_regions": 0, "mpix": 0.0, "final": reason not in PASSING} | facts | identity
        return SlideOutcome(name, status, reason, seconds=seconds, detail=detail, **base)

    try:
        with slide_lock(store_path):
            status, reason, detail, facts = _process(task, identity)
        return outcome(status, reason, detail, **facts)
    except StopError as stop:
        return outcome(stop.status, stop.reason, stop.detail, **stop.facts)
    except SlideError as error:
        return outcome("failed", error.code, str(error))
    except MemoryError:
        return outcome("failed", "error", f"{path}: not enough memory for one region per worker")
    except OSError as error:
        # HDF5 reports the full disk in its text only. A limit on the size of a file ends a store as well.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
            return outcome("failed", "disk_full", f"{store_path.parent}: {error.strerror or error}; free some space")
        return outcome("failed", "error", f"{type(error).__name__}: {error}")
    except Exception as error:  # one slide must never stop the batch
        return outcome("failed", "error", f"{type(error).__name__}: {error}")


def _process(task: _Task, identity: dict[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
    """Status, reason, detail and facts; ``identity`` is filled as soon as it is known, for failures too."""
    path, store_path, mask = task.path, task.store_path, mask_path(task.store_path)
    # The mask is hashed before it is looked at: an edit in between is then seen by the next run, not lost.
    identity["mask"] = mask_content(mask, task.contents)
    edited = mask_edited(mask)
    table = load_mpp_table(task.settings.mpp_table)
    before = _facts(path)
    key = slide_key(
        path,
        task.geometry,
        task.settings,
        slide_id=task.name,
        reader=task.reader,
        mask=mask if edited else None,
        coords_file=task.coords_file,
        mpp_table=table,
        contents=task.contents,
    )
    identity |= {"key": key.digest, "content": key.inputs["slide"], "edited": edited}
    fresh = _fresh_store(store_path, key)
    if fresh is not None:
        # Left by a process that was killed after the store was in place.
        journal_path(store_path).unlink(missing_ok=True)
        facts: dict[str, Any] = {
            "regions": len(fresh),
            "bad_regions": int(fresh.attrs["bad_regions"]),
            "damaged_tiles": int(fresh.attrs.get("damaged_tiles", 0)),
            "mpp_source": str(fresh.attrs["mpp_source"]),
            "reader": fresh.attrs["reader"],
            "mpp": float(fresh.attrs["mpp"]),
            "tissue_share": float(fresh.attrs["tissue_share"]),
            "grid": int(fresh.attrs["grid"]),
            "four_point": int(fresh.attrs["four_point"]),
        }
        _refuse_assumed(task, facts)
        return "skipped", "up_to_date", "", facts
    with open_slide(path, mpp_table=table, reader=task.reader) as slide:
        if slide.changed() or before != _facts(path):
            raise SlideError("changed", path, "the file was replaced while it was opened; run again")
        facts = {"reader": slide.reader, "mpp": slide.mpp, "mpp_source": slide.mpp_source}
        _refuse_assumed(task, facts)
        try:
            tissue = tissue_of(slide, task.geometry, task.settings, mask)
            plan = _plan(slide, tissue, task.geometry, task.settings, task.coords_file)
        except ValueError as error:
            raise StopError("failed", "bad_mask", str(error)) from None
        facts |= {
            "tissue_share": round(tissue.share, 5),
            "grid": plan.counts["grid"],
            "four_point": plan.counts["four_point"],
            "damaged_tiles": tissue.damaged,
        }
        if task.geojson and not edited:
            write_geojson(tissue, mask, name=task.name)
            identity["mask"] = mask_content(mask, task.contents)
        try:
            _stop_if_empty(slide, tissue, plan, task.settings, facts)
        except StopError:
            # What other settings left there is no result of these.
            store_path.unlink(missing_ok=True)
            raise
        return _cut(task, slide, tissue, plan, key, facts)


def _cut(
    task: _Task, slide: Slide, tissue: Tissue, plan: RegionPlan, key: Key, facts: dict[str, Any]
) -> tuple[str, str, str, dict[str, Any]]:
    """The regions of a plan, by way of the journal into the store."""
    path, store_path, coords, allowed = task.path, task.store_path, plan.coords, task.settings.max_bad_regions
    journal = Journal(journal_path(store_path), key.digest, len(coords), task.geometry.thumbnail)
    try:
        done = journal.open()
        todo = [i for i in range(len(coords)) if i not in done]
        for index, thumb, cause in ordered(
            lambda i: one_region(slide, i, coords[i], plan.side, task.geometry), todo, task.workers
        ):
            journal.add(index, thumb, cause)
        if slide.changed():
            journal.remove()
            raise SlideError("changed", path, "the file was replaced while it was read; run again")
        good = journal.good()
        bad, wanted = len(coords) - len(good) + plan.undecided, len(coords) + plan.undecided
        facts |= {"bad_regions": bad, "resumed": len(done), "mpix": len(todo) * plan.side**2 / 1e6}
        if bad > allowed * wanted:
            cause = journal.first_cause() or "no level can be read there"
            journal.remove()
            store_path.unlink(missing_ok=True)
            raise StopError(
                "failed",
                "too_many_bad_regions",
                f"{path}: {bad} of {wanted} regions are damaged ({cause}); max_bad_regions allows {allowed:.0%}",
                **facts,
            )
        kept_fraction = plan.fractions[plan.kept][good]
        if task.geojson:
            regions_path = store_path.with_suffix(".regions.geojson")
            regions_geojson(regions_path, coords[good], plan.side, kept_fraction, task.name)
        attrs = _attributes(task, slide, key, plan, tissue, bad)
        # Last, because a store that is there ends the work: whatever a kill leaves undone must come before it.
        write_store(store_path, StoreContents(coords[good], journal.thumbnails(good), kept_fraction, attrs))
        journal.remove()
    finally:
        journal.close()
    said = [f"{bad} of {wanted} regions are damaged and left out"] if bad else []
    if tissue.damaged:
        said.append(f"{tissue.damaged} damaged tile(s) were met while the overview was made")
    return "ok", "damaged" if said else "", "; ".join(said), facts | {"regions": len(good)}


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


def _refuse_assumed(task: _Task, facts: dict[str, Any]) -> None:
    if task.strict and is_assumed(facts["mpp_source"]):
        raise StopError(
            "failed",
            "assumed_resolution",
            f"{task.path}: the file does not say its resolution ({facts['mpp']:g} um/px {facts['mpp_source']}); "
            "give it in mpp_table",
            **facts,
        )


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
    if plan.undecided:
        raise StopError(
            "failed",
            "too_many_bad_regions",
            f"{slide.path}: {plan.undecided} of {len(plan.corners)} squares cannot be read at any level, "
            "and no other has enough tissue",
            **facts,
            bad_regions=plan.undecided,
        )
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


def slide_key(
    path: str | Path,
    geometry: Geometry,
    settings: SlideSettings,
    *,
    slide_id: str | None = None,
    reader: str = "auto",
    mask: str | Path | None = None,
    coords_file: str | Path | None = None,
    mpp_table: Mapping[str, float] | None = None,
    contents: Contents | None = None,
    content: str | None = None,
) -> Key:
    """The key of a slide's store, without opening the slide.

    ``mask``: the mask beside the store where a person has edited it, else None. Of the table of resolutions only the
    entry that applies to this slide counts; ``mpp_table`` is the settings' table where it has been read already.
    ``content``: hash of the slide where it is known. A slide that cannot be read has a key too: opening it says what is
    wrong. Raises ValueError for a table that cannot be used, OSError for a mask or coordinates that cannot be read.
    """
    path = Path(path)
    known = contents if contents is not None else Contents()
    entry = table_entry(path, load_mpp_table(settings.mpp_table) if mpp_table is None else mpp_table)
    asked = {f"geometry.{name}": value for name, value in geometry.model_dump(mode="json").items()}
    asked |= {f"slides.{name}": value for name, value in settings.model_dump(mode="json").items()}
    # Where the table lies is nobody's concern.
    asked |= {"slides.mpp_table": entry[1] if entry else None, "slide": slide_id or path.stem, "reader": reader}
    if content is None:
        try:
            content = known.slide(path)
        except OSError:
            content = UNREAD
    inputs = {"slide": content}
    for name, extra in (("mask", mask), ("coordinates", coords_file)):
        if extra is not None:
            inputs[name] = known.file(extra)
    return Key("slide", asked, inputs, source_of(CODE))


def store_is_fresh(store_path: str | Path, key: Key) -> bool:
    """True where a store is there, can be read and was made under this key."""
    return _fresh_store(Path(store_path), key) is not None


def mask_path(store_path: str | Path) -> Path:
    """Where the tissue mask of a store lies."""
    return Path(store_path).with_suffix(".tissue.geojson")


def mask_edited(mask: str | Path) -> bool:
    """True where a person has edited the mask; one that is no GeoJSON at all was not written by us either."""
    try:
        return is_edited(mask)
    except ValueError:
        return True


def mask_content(mask: str | Path, contents: Contents) -> str:
    """Hash of a mask as it lies there, edited or not; '' where there is none."""
    try:
        return contents.file(mask)
    except FileNotFoundError:
        return ""


def _fresh_store(store_path: Path, key: Key) -> SlideStore | None:
    try:
        store = SlideStore(store_path)
    except (FileNotFoundError, ValueError):
        return None
    return store if store.key == key.digest else None


def _facts(path: Path) -> list[tuple[str, int, int, int]] | None:
    try:
        return slide_identity(path)
    except OSError:
        return None


def _attributes(task: _Task, slide: Slide, key: Key, plan: RegionPlan, tissue: Tissue, bad: int) -> dict[str, Any]:
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
    path, folder = task.path.absolute(), task.store_path.absolute().parent
    return {
        "slide_id": task.name,
        "slide_path": path.as_posix(),
        "slide_relative": Path(os.path.relpath(path, folder)).as_posix(),
        "slide_bytes": slide.file_bytes,
        "slide_content": key.inputs["slide"],
        "width": slide.size[0],
        "height": slide.size[1],
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "objective_power": slide.objective_power or 0.0,
        "geometry": json.dumps(task.geometry.model_dump(mode="json"), sort_keys=True),
        "settings": json.dumps(task.settings.model_dump(mode="json"), sort_keys=True),
        "key": key.digest,
        "key_parts": json.dumps(key.record(), sort_keys=True),
        "side": plan.side,
        "region_pixels": task.geometry.region,
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
        **({"damaged_tiles": tissue.damaged} if tissue.damaged else {}),
    }
