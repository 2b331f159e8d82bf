"""Hand-crafted image features of nuclei, with CellProfiler's definitions (input of GPDBN and CAMR).

Patches are drawn from a slide's regions, the densest are laid side by side, nuclei are found on the unmixed
haematoxylin, each nucleus is measured by ``cp_measure`` (size, shape, intensity, texture, granularity, radial
distribution, neighbours) and the nuclei of a slide are summed up by mean, standard deviation, median and interquartile
range. The published recipe (CellProfiler on ten tiles of 1000 pixels) gives about 2,343 numbers per patient, the full
settings here about as many.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2gray, rgb2hed
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.morphology import disk
from skimage.segmentation import clear_border, relabel_sequential, watershed
from tqdm import tqdm

from hcmae.config import HandcraftedSettings, Profile
from hcmae.processes import worker_pool

Image = NDArray[np.uint8]
Channels = dict[str, NDArray[np.float64]]

STATISTICS = ("mean", "sd", "median", "iqr")
# Name of the dataset in a slide store. A store's datasets have one row per region, so the slide's row is repeated.
DATASET = "handcrafted"
# One stain unit is this many units of skimage's colour deconvolution: 1.5 in optical density (base 10), near the
# darkest nuclei. Fixed for all slides, so that intensities can be compared.
_STAIN_UNIT = 0.25
# Below this a pixel is no nucleus whatever Otsu says: a blank patch has none.
_MIN_STAIN = 0.12
# Patches of one picture that is measured at once; limits memory, and granularity sees only this far.
_PER_MOSAIC = 16
# Where an object lies or points says nothing about it.
_POSITION = ("Location_", "Center_", "BoundingBoxM", "Orientation", "ObjectNumber", "AngleBetween", "SpatialMoment_")
_NEIGHBOURS = ("NumberOfNeighbors", "FirstClosestDistance", "SecondClosestDistance", "PercentTouching")
# Undefined by their definition (a division by the zeroth power of the area's moment).
_UNDEFINED = ("NormalizedMoment_0_0", "NormalizedMoment_0_1", "NormalizedMoment_1_0")


def unmix(image: Image) -> Channels:
    """Haematoxylin, eosin and grey of an RGB image uint8 [H, W, 3], each [H, W] in [0, 1].

    Bounds are the same for all slides; grey is lightness (1 = white). Source: Ruifrok and Johnston 2001.
    """
    stains = rgb2hed(image)
    return {
        "hematoxylin": np.clip(stains[..., 0] / _STAIN_UNIT, 0.0, 1.0),
        "eosin": np.clip(stains[..., 1] / _STAIN_UNIT, 0.0, 1.0),
        "grey": rgb2gray(image),
    }


def segment_nuclei(
    haematoxylin: NDArray[np.floating],
    *,
    min_area: int = 30,
    min_distance: int = 5,
    correction: float = 1.0,
    tile: int | None = None,
) -> NDArray[np.int32]:
    """Label nuclei 1..n in a haematoxylin image [H, W] in [0, 1]: smooth, Otsu, open, fill, split by watershed.

    Objects below ``min_area`` pixels or touching the border are dropped; ``tile``: the image is a mosaic of squares of
    this side whose seams are borders too. A blank image gives no nucleus.
    """
    smooth = ndimage.gaussian_filter(haematoxylin, 1.0)
    if float(smooth.max()) < _MIN_STAIN:
        return np.zeros(haematoxylin.shape, np.int32)
    mask = smooth > max(threshold_otsu(smooth) * correction, _MIN_STAIN)
    if tile is not None:
        # Seams stay background, or two patches would share a nucleus.
        for axis in (0, 1):
            edges = np.arange(0, mask.shape[axis], tile)
            index: list[Any] = [slice(None), slice(None)]
            index[axis] = np.concatenate([edges, edges + tile - 1])
            mask[tuple(index)] = False
    mask = ndimage.binary_opening(mask, disk(1))
    mask = ndimage.binary_fill_holes(mask)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.0)
    peaks = (distance == ndimage.maximum_filter(distance, 2 * min_distance + 1)) & mask
    labels = watershed(-distance, label(peaks), mask=mask)
    if tile is not None:
        labels[np.isin(labels, _touching_seam(labels, tile))] = 0
    else:
        labels = clear_border(labels)
    small = np.flatnonzero(np.bincount(labels.ravel()) < min_area)
    labels[np.isin(labels, small)] = 0
    return relabel_sequential(labels)[0].astype(np.int32)


def _touching_seam(labels: NDArray[np.integer], tile: int) -> NDArray[np.integer]:
    """Labels with a pixel next to a seam (the outermost pixels of a tile were cleared before)."""
    found = []
    for view in (labels, labels.T):
        inner = np.concatenate([np.arange(1, len(view), tile), np.arange(tile - 2, len(view), tile)])
        found.append(view[inner].ravel())
    ids = np.unique(np.concatenate(found))
    return ids[ids > 0]


@lru_cache(maxsize=4)
def _measurements(accelerate: bool) -> tuple[dict[str, Callable[..., Any]], Callable[..., Any]]:
    """Functions of cp_measure, compiled where asked for."""
    import cp_measure
    from cp_measure.bulk import get_core_measurements, get_multimask_measurements

    cp_measure.set_accelerator("numba" if accelerate else None)
    # Labels are 1..n by construction, so they need no relabelling per measurement.
    return get_core_measurements(sanitize=False), get_multimask_measurements()["neighbors"]


def measure_objects(
    labels: NDArray[np.integer], channels: Channels, *, grey_levels: int = 256, accelerate: bool = True
) -> pd.DataFrame:
    """One row per object of a label image [H, W]: features that need the mask only, then those of every channel.

    Columns are CellProfiler's names, with the channel in front where there is one; positions are left out. Without
    objects the table is empty. Raises ValueError when a channel has another shape than the labels.
    """
    for name, pixels in channels.items():
        if pixels.shape != labels.shape:
            raise ValueError(f"channel '{name}' has shape {pixels.shape}, the labels have {labels.shape}")
    count = int(labels.max())
    if count == 0:
        return pd.DataFrame()
    core, neighbours = _measurements(accelerate)
    columns: dict[str, NDArray] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Ratios of empty rings are NaN by definition; they are averaged over the other nuclei.
        warnings.simplefilter("ignore")
        for name in ("sizeshape", "zernike", "feret"):
            columns.update(core[name](labels, None))
        if count > 1:
            columns.update({k: np.asarray(v) for k, v in neighbours(labels, labels).items()})
        else:
            # The library stops at a lone object: it has no neighbour, and no distance to one.
            columns.update({f"Neighbors_{k}_Expanded": np.full(1, np.nan) for k in _NEIGHBOURS})
            columns["Neighbors_NumberOfNeighbors_Expanded"] = np.zeros(1)
        for channel, pixels in channels.items():
            for name in ("intensity", "texture", "granularity", "radial_distribution", "radial_zernikes"):
                options = {"gray_levels": grey_levels} if name == "texture" else {}
                for key, values in core[name](labels, pixels, **options).items():
                    columns[f"{channel}.{key}"] = values
    kept = {
        name: np.asarray(values, dtype=np.float64)
        for name, values in columns.items()
        if len(values) == count and not any(part in name for part in (*_POSITION, *_UNDEFINED))
    }
    return pd.DataFrame(kept)


def describe_patches(patches: Image, settings: HandcraftedSettings | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the nuclei of patches uint8 [N, p, p, 3].

    Returns (nuclei: one row per nucleus, patches: one row per patch with number of nuclei, share of area covered by
    them and the texture of the whole patch). Patches without nuclei have rows in the second table only.
    """
    settings = settings or HandcraftedSettings()
    nuclei, tiles = [], []
    for start in range(0, len(patches), _PER_MOSAIC):
        part = patches[start : start + _PER_MOSAIC]
        labels, channels, places = _segmented_mosaic(part, settings)
        nuclei.append(
            measure_objects(labels, channels, grey_levels=settings.grey_levels, accelerate=settings.accelerate)
        )
        tiles.append(_describe_tiles(labels, channels, places, len(part), settings))
    filled = [frame for frame in nuclei if len(frame)]
    return (pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()), pd.concat(tiles, ignore_index=True)


def _segmented_mosaic(
    patches: Image, settings: HandcraftedSettings
) -> tuple[NDArray[np.int32], Channels, NDArray[np.int32]]:
    """Patches side by side: nuclei, channels, and a label image of the patches themselves."""
    side = patches.shape[1]
    across = int(np.ceil(np.sqrt(len(patches))))
    down = int(np.ceil(len(patches) / across))
    picture = np.full((down * side, across * side, 3), 255, np.uint8)
    places = np.zeros(picture.shape[:2], np.int32)
    for number, patch in enumerate(patches):
        y, x = divmod(number, across)
        where = np.s_[y * side : (y + 1) * side, x * side : (x + 1) * side]
        picture[where], places[where] = patch, number + 1
    every = unmix(picture)
    labels = segment_nuclei(
        every["hematoxylin"],
        min_area=settings.min_area,
        min_distance=settings.min_distance,
        correction=settings.threshold_correction,
        tile=side,
    )
    return labels, {name: every[name] for name in settings.channels}, places


def _describe_tiles(
    labels: NDArray[np.int32], channels: Channels, places: NDArray[np.int32], count: int, settings: HandcraftedSettings
) -> pd.DataFrame:
    area = np.bincount(places.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(places[labels > 0], minlength=count + 1)[1:]
    owners = (
        ndimage.maximum(places, labels, index=np.arange(1, labels.max() + 1)) if labels.max() else np.array([], int)
    )
    columns: dict[str, NDArray] = {
        "Nuclei_Count": np.bincount(np.asarray(owners, dtype=int), minlength=count + 1)[1:].astype(float),
        "Nuclei_AreaFraction": covered / area,
    }
    core, _ = _measurements(settings.accelerate)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for channel, pixels in channels.items():
            for key, values in core["texture"](places, pixels, gray_levels=settings.grey_levels).items():
                columns[f"Image.{channel}.{key}"] = np.asarray(values, dtype=np.float64)
    return pd.DataFrame(columns)


def aggregate(nuclei: pd.DataFrame, tiles: pd.DataFrame) -> pd.Series:
    """Mean, standard deviation, median and interquartile range of every column, NaN left out.

    Without any nucleus the features of nuclei are missing from the result; ``measure_patches`` fills them with NaN.
    """
    parts = [_statistics(frame) for frame in (tiles, nuclei) if len(frame)]
    return pd.concat(parts) if parts else pd.Series(dtype=float)


def _statistics(frame: pd.DataFrame) -> pd.Series:
    values = frame.to_numpy(dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    rows = np.empty((values.shape[1], len(STATISTICS)))
    whole = np.isfinite(values).all(axis=0)
    # The functions that look for NaN go column by column; most columns have none.
    for columns, mean, sd, quantile in (
        (whole, np.mean, np.std, np.quantile),
        (~whole, np.nanmean, np.nanstd, np.nanquantile),
    ):
        part = values[:, columns]
        if part.shape[1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                low, middle, high = quantile(part, (0.25, 0.5, 0.75), axis=0)
                rows[columns] = np.stack([mean(part, axis=0), sd(part, axis=0), middle, high - low], axis=1)
    names = [f"{column}.{statistic}" for column in frame.columns for statistic in STATISTICS]
    return pd.Series(rows.ravel(), index=names)


@lru_cache(maxsize=8)
def _names(fingerprint: str) -> tuple[str, ...]:
    settings = HandcraftedSettings.model_validate_json(fingerprint)
    yy, xx = np.mgrid[:64, :64]
    tile = np.full((64, 64, 3), 235, np.uint8)
    for centre in ((18, 18), (18, 46), (46, 32)):
        tile[(yy - centre[0]) ** 2 + (xx - centre[1]) ** 2 < 64] = (90, 60, 140)
    return tuple(aggregate(*describe_patches(tile[None], settings)).index)


def feature_names(settings: HandcraftedSettings) -> list[str]:
    """Names of the features of a slide under these settings, in the order in which they are stored."""
    return list(_names(settings.model_dump_json()))


def measure_patches(patches: Image, settings: HandcraftedSettings) -> NDArray[np.float32]:
    """Features [F] of one slide from patches uint8 [N, p, p, 3]; NaN where no nucleus tells.

    Raises ValueError for a wrong shape or type.
    """
    if patches.ndim != 4 or patches.shape[-1] != 3 or patches.dtype != np.uint8:
        raise ValueError(f"patches must be uint8 [N, p, p, 3], not {patches.dtype} {list(patches.shape)}")
    if not len(patches):
        return np.full(len(feature_names(settings)), np.nan, np.float32)
    found = aggregate(*describe_patches(patches, settings))
    return found.reindex(feature_names(settings)).to_numpy(dtype=np.float32)


# --- slides ---------------------------------------------------------------------------------------------------------


def settings_key(settings: HandcraftedSettings, seed: int) -> str:
    """What stored features depend on: settings, seed, version of the measuring library."""
    text = json.dumps([settings.model_dump(mode="json"), seed, version("cp_measure")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw_patches(store: Path, patch: int, settings: HandcraftedSettings, seed: int) -> Image:
    """The patches of a slide that are measured, uint8 [N, p, p, 3]: at random from random regions, the densest kept.

    Density is the share of pixels with haematoxylin. The same slide, settings and seed give the same patches.
    """
    from hcmae.slides.regions import split_patches
    from hcmae.slides.store import SlideStore
    from hcmae.slides.store_reading import iter_regions

    count = len(SlideStore(store).coords)
    own = int.from_bytes(hashlib.sha256(Path(store).stem.encode()).digest()[:4], "little")
    rng = np.random.default_rng([seed, own])
    chosen = np.sort(rng.choice(count, min(settings.regions, count), replace=False)).tolist()
    pool, density = [], []
    wanted = max(1, -(-4 * settings.patches // max(1, len(chosen))))
    for _, region in iter_regions(store, indices=chosen):
        patches = split_patches(region, patch)
        patches = patches[rng.permutation(len(patches))[:wanted]]
        # Optical density of red minus that of blue rises with haematoxylin; good enough to rank, and cheap.
        red, blue = patches[..., 0].astype(np.float32), patches[..., 2].astype(np.float32)
        pool.append(patches)
        density.append(((red < 180) & (red < blue)).mean(axis=(1, 2)))
    if not pool:
        return np.zeros((0, patch, patch, 3), np.uint8)
    order = np.argsort(-np.concatenate(density), kind="stable")[: settings.patches]
    return np.concatenate(pool)[order]


def measure_slide(store: Path, profile: Profile, seed: int = 0) -> NDArray[np.float32]:
    """Features [F] of one slide store."""
    return measure_patches(draw_patches(store, profile.geometry.patch, profile.handcrafted, seed), profile.handcrafted)


def measure_slides(
    stores: Sequence[Path],
    profile: Profile,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
    key: str | None = None,
) -> int:
    """Write ``handcrafted`` [M, F] (equal rows) into every store that lacks it; returns how many slides were measured.

    What is undefined (a slide without nuclei) is written as 0; ``load_handcrafted`` turns it back into NaN.

    key: of all that the features depend on (None: their settings and the seed); a slide that holds features of this
    key is not measured again. Raises what the reader raises for a broken slide, with its path.
    """
    from hcmae.slides.store import SlideStore

    made_by = settings_key(profile.handcrafted, seed)
    key = key or made_by
    waiting = [Path(store) for store in stores if not SlideStore(store).has_vectors(DATASET, key)]
    bar = tqdm(total=len(waiting), desc="hand-crafted features", unit="slide", disable=not progress, mininterval=1.0)
    with bar:
        if workers > 1 and len(waiting) > 1:
            # Compile once here; the children find the compiled code in the cache.
            feature_names(profile.handcrafted)
            with worker_pool(workers) as pool:
                jobs = [(store, profile, seed) for store in waiting]
                for store, row in zip(waiting, pool.map(_measure_one, jobs, chunksize=4), strict=True):
                    _write(store, row, made_by, key)
                    bar.update()
        else:
            for store in waiting:
                _write(store, measure_slide(store, profile, seed), made_by, key)
                bar.update()
    return len(waiting)


def _write(store: Path, row: NDArray[np.float32], made_by: str, key: str) -> None:
    from hcmae.slides.store import SlideStore, write_vectors

    rows = np.repeat(np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0)[None], len(SlideStore(store)), axis=0)
    write_vectors(store, DATASET, rows, weights=made_by, key=key)


def _measure_one(job: tuple[Path, Profile, int]) -> NDArray[np.float32]:
    return measure_slide(*job)


def load_handcrafted(stores: Sequence[Path], profile: Profile) -> pd.DataFrame:
    """Table of features, one row per store, indexed by its name. Raises ValueError naming a store without them."""
    from hcmae.slides.store import SlideStore

    names = feature_names(profile.handcrafted)
    rows = []
    for path in stores:
        row = np.asarray(SlideStore(path).vectors(DATASET, 0), dtype=np.float32)
        if len(row) != len(names):
            raise ValueError(f"{path}: {len(row)} hand-crafted features, expected {len(names)}: measure again")
        rows.append(row)
    return pd.DataFrame(mark_undefined(np.stack(rows)), index=[Path(p).stem for p in stores], columns=names)


def mark_undefined(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Stored features [n, F] with NaN instead of 0 wherever a slide showed no nucleus (first column: their number)."""
    out = np.asarray(rows, dtype=np.float32).copy()
    empty = out[:, 0] == 0
    out[np.ix_(empty, np.arange(out.shape[1]) > 0)] = np.nan
    return out
