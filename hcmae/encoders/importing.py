"""Features of others into slide stores: checked as a cohort, then slide by slide, a reason for each left out.

A region is a square of as many patches a side as the geometry has (16 in the paper), whatever a patch measures: the
same field of view in patches, which is the same in micrometres for all slides of a set made at one magnification.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from hcmae.config import Geometry
from hcmae.content import Contents
from hcmae.encoders.feature_files import FEATURE_REASONS, FeatureError, FeatureHead, read_features, read_head
from hcmae.encoders.grid import GridError, regions_of
from hcmae.keys import Key, source_of
from hcmae.slides.process import SlideOutcome
from hcmae.slides.store import FEATURES, SlideStore, StoreContents, store_key, write_store, write_vectors

CODE = (
    *(f"hcmae.encoders.{name}" for name in ("feature_files", "grid", "importing", "registry")),
    "hcmae.slides.coords_files",
    "hcmae.slides.hdf5",
    "hcmae.slides.store",
)
# (file of features, store, slide id)
Job = tuple[Any, Any, str]
# Sides in micrometres that differ by no more count as one: magnifications are rounded.
_ONE_SCALE = 0.05


class MixedFeaturesError(ValueError):
    """Files of features that cannot stand in one cohort."""


def import_key(path: str | Path, geometry: Geometry, contents: Contents) -> Key:
    """What a store of features depends on: the bytes of the files, patches a side, the code. Raises OSError."""
    files = {"features": contents.file(path)}
    try:
        place = read_head(path).coords
    except FeatureError:
        place = Path(path)
    if place != Path(path):
        files["coords"] = contents.file(place)
    return Key("features", {"patches a side": geometry.patches_per_side}, files, source_of(CODE))


def check_together(jobs: Iterable[Job]) -> None:
    """Raises MixedFeaturesError where files differ in width, encoder or scale: one cohort has one encoder.

    Files that cannot be read are passed over; their slides get a reason of their own.
    """
    heads = []
    for path, _, slide_id in jobs:
        try:
            heads.append(read_head(path, slide_id))
        except FeatureError:
            continue
    widths: Callable[[FeatureHead], str] = lambda head: f"{head.width:,} numbers"  # noqa: E731
    _one_of("width", [(widths(head), head) for head in heads])
    _one_of("encoder", [(head.encoder, head) for head in heads if head.encoder])
    scales = [head for head in heads if math.isfinite(head.micrometres)]
    if scales:
        first = scales[0].micrometres
        named = [(first if abs(h.micrometres / first - 1) <= _ONE_SCALE else h.micrometres, h) for h in scales]
        _one_of("scale", [(f"{value:.4g} um a side", head) for value, head in named])


def _one_of(what: str, found: Sequence[tuple[str, FeatureHead]]) -> None:
    groups: dict[str, list[Path]] = {}
    for name, head in found:
        groups.setdefault(name, []).append(head.path)
    if len(groups) > 1:
        listed = "; ".join(f"{name}: {len(paths)} file(s), {paths[0].name} ..." for name, paths in groups.items())
        raise MixedFeaturesError(
            f"features of more than one {what} in one cohort ({listed}): one cohort has one encoder at one scale; take "
            "the other files away"
        )


def import_slides(
    jobs: Iterable[Job],
    before: pd.DataFrame,
    geometry: Geometry,
    *,
    contents: Contents | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Bring every file of features into a store that has not been brought already; one outcome per job.

    ``before``: outcomes of earlier calls. The table has the columns of ``hcmae.slides.batch.process_slides``. Raises
    MixedFeaturesError, before anything is written.
    """
    plan = [(Path(path), Path(store), slide) for path, store, slide in jobs]
    check_together(plan)
    known = contents or Contents()
    kept = {str(row["slide"]): row for row in before.to_dict("records")}
    waiting = why_waiting(plan, before, geometry, known)
    rows: list[dict[Any, Any]] = []
    for path, store, slide in tqdm(plan, desc="features", unit="slide", disable=not progress, mininterval=1.0):
        if slide in waiting:
            outcome = import_slide(path, store, geometry, slide_id=slide, contents=known)
            rows.append({"slide": slide, **{k: v for k, v in vars(outcome).items() if k != "slide_id"}})
        else:
            rows.append(kept[slide])
    columns = ["slide", *(name for name in SlideOutcome.__annotations__ if name != "slide_id")]
    frame = pd.DataFrame(rows, columns=columns)
    frame["store"] = [str(store) for _, store, _ in plan]
    return frame


def why_waiting(
    jobs: Iterable[Job], before: pd.DataFrame, geometry: Geometry, contents: Contents
) -> dict[str, list[str]]:
    """Slide -> why its features have to be brought (again); slides that are done are not there."""
    kept = {str(row["slide"]): row for row in before.to_dict("records")}
    found: dict[str, list[str]] = {}
    for path, store, slide in jobs:
        row = kept.get(slide)
        if row is None:
            found[slide] = ["not brought yet"]
            continue
        try:
            key = import_key(path, geometry, contents)
        except OSError as error:
            found[slide] = [f"cannot be read ({error})"]
            continue
        if key.digest != row["key"]:
            found[slide] = ["features, geometry or code have changed"]
        elif row["status"] == "ok" and store_key(store) != key.digest:
            found[slide] = ["the store is missing"]
    return found


def import_slide(
    path: str | Path,
    store_path: str | Path,
    geometry: Geometry,
    *,
    slide_id: str | None = None,
    contents: Contents | None = None,
) -> SlideOutcome:
    """Bring one file of features into a store: ``patch_vectors`` [M, P, D] float16 and ``patch_mask`` [M, P].

    What is wrong with the file is the outcome's reason, a key of FEATURE_REASONS.
    """
    path, store_path = Path(path), Path(store_path)
    name, start = slide_id or path.stem, time.perf_counter()
    key = import_key(path, geometry, contents or Contents())
    fixed: dict[str, Any] = {"reader": FEATURES, "key": key.digest, "content": key.inputs["features"]}

    def failed(code: str, detail: str) -> SlideOutcome:
        seconds, status = round(time.perf_counter() - start, 3), "empty" if code == "no_features" else "failed"
        store_path.unlink(missing_ok=True)  # of features that were there before
        return SlideOutcome(name, status, code, 0, 0, seconds, 0.0, f"{detail} ({FEATURE_REASONS[code]})", **fixed)

    try:
        head, features, coords = read_features(path, name)
        placed = regions_of(coords, head.side, geometry.patches_per_side)
    except FeatureError as error:
        return failed(error.code, str(error))
    except GridError as error:
        return failed(error.code, f"{path}: {error}")
    mask = placed.mask
    vectors = np.zeros((*mask.shape, head.width), np.float16)
    vectors[mask] = features[placed.rows[mask]]
    attrs = _attributes(head, path, store_path, name, geometry, key, coords)
    attrs = {**attrs, "grids": placed.grids, "overlapping": placed.overlapping, "patches": head.count}
    thumbnails = np.empty((len(mask), 0, 0, 3), np.uint8)
    contents_of = StoreContents(placed.corners, thumbnails, mask.mean(1).astype(np.float32), attrs, mask)
    store_path.parent.mkdir(parents=True, exist_ok=True)
    write_store(store_path, contents_of)
    write_vectors(store_path, "patch_vectors", vectors, weights=made_by(head), key=key.digest)
    detail = f"{placed.overlapping} patches lie on another one, where grids meet" if placed.overlapping else ""
    seconds = round(time.perf_counter() - start, 3)
    fixed |= {"mpp": head.mpp, "grid": placed.grids, "tissue_share": float(mask.mean()), "detail": detail}
    return SlideOutcome(name, "ok", "", len(mask), 0, seconds, 0.0, **fixed)


def made_by(head: FeatureHead) -> str:
    """The mark beside imported vectors: encoder, colon, width; one for all slides of a cohort."""
    return f"{head.encoder or 'an encoder without a name'}:{head.width} numbers"


def _attributes(
    head: FeatureHead,
    path: Path,
    store_path: Path,
    name: str,
    geometry: Geometry,
    key: Key,
    coords: np.ndarray,
) -> Mapping[str, Any]:
    # Features have neither cells nor thumbnails, whatever the profile says of those.
    squares = Geometry(region=geometry.region, patch=geometry.patch, cell=geometry.patch, thumbnail=geometry.region)
    width, height = head.size or (int(v) for v in coords.max(0) + head.side)
    place, folder = path.absolute(), store_path.absolute().parent
    return {
        "slide_id": name,
        "slide_path": place.as_posix(),
        "slide_relative": Path(os.path.relpath(place, folder)).as_posix(),
        "slide_bytes": path.stat().st_size,
        "slide_content": key.inputs["features"],
        "width": max(width, int(coords[:, 0].max()) + 1),
        "height": max(height, int(coords[:, 1].max()) + 1),
        "mpp": head.mpp,
        "mpp_source": "attributes of coords" if math.isfinite(head.mpp) else "",
        "objective_power": 10 / head.mpp if math.isfinite(head.mpp) else 0.0,
        "geometry": json.dumps(squares.model_dump(mode="json"), sort_keys=True),
        "key": key.digest,
        "key_parts": json.dumps(key.record(), sort_keys=True),
        "side": head.side * geometry.patches_per_side,
        "region_pixels": geometry.region,
        "reader": FEATURES,
        "encoder": head.encoder,
    }


def encoder_of(stores: Iterable[str | Path]) -> str:
    """Printed name of the encoder whose features lie in these stores; '' where nothing says it."""
    return next((str(SlideStore(path).attrs.get("encoder", "")) for path in stores), "")
