"""Patch and region vectors into the slide stores (Eq. 2 and 5): deterministic, resumable, keyed by the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hcmae_core.config import Profile
from hcmae_core.files import atomic_path
from hcmae_core.slides import regions as region_pixels
from hcmae_core.slides import store as slide_store
from hcmae_core.training.augment import draw_crops, random_resized_crop
from hcmae_core.training.checkpoint import weights_hash
from hcmae_core.training.loop import choose_precision
from hcmae_core.training.pretrain import Variant, load_mae_patch, load_mae_region

# Patches per forward pass: large enough for a device, small enough for a laptop.
_PATCHES = {"cpu": 512, "cuda": 4096}
_REGIONS = {"cpu": 16, "cuda": 16}
# Slides with more regions than this write what they have every so often, so that an interruption loses little.
_PART = 64


def vectors_key(weights: Path, profile: Profile) -> str:
    """What stored vectors are keyed by: the weights' hash and whatever else changes a vector (release choices)."""
    choices = profile.fidelity.model_dump(include={"extract_depth", "extract_norm", "extract_augment"})
    suffix = hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:4]
    return f"{weights_hash(weights)}-{suffix}"


def embed_patches(
    stores: Sequence[Path], weights: Path, profile: Profile, *, progress: bool = True, device: str | None = None
) -> int:
    """Write ``patch_vectors`` [M, P, D] float16 into each store (Eq. 2); returns how many slides were computed.

    Slides that hold vectors of these weights are left alone; a slide interrupted half-way goes on at its next region.
    Source: Eq. 2; with the release's switches of ``profile.fidelity`` also its truncated depth, norm and random crops.
    Raises CheckpointError for unusable weights.
    """
    model = load_mae_patch(weights)
    fidelity = profile.fidelity
    where = _device(device)
    model.to(where)
    per_region = profile.geometry.patches_per_region
    group = max(1, _PATCHES[where.type] // per_region)

    def encode(store: Path, indices: list[int], pixels: np.ndarray) -> np.ndarray:
        patches = np.concatenate([region_pixels.split_patches(r, profile.geometry.patch) for r in pixels])
        images = torch.from_numpy(patches)
        if fidelity.extract_augment:
            images = _release_crop(images, store, indices)
        out = []
        for part in images.split(_PATCHES[where.type]):
            vectors = model.encode(part.to(where), depth=fidelity.extract_depth, norm=fidelity.extract_norm)
            out.append(vectors.cpu())
        return torch.cat(out).view(len(indices), per_region, -1).to(torch.float16).numpy()

    return _embed(
        stores, "patch_vectors", vectors_key(weights, profile), encode, group, profile, where, progress, "patch vectors"
    )


def embed_regions(
    stores: Sequence[Path],
    weights: Path,
    profile: Profile,
    variant: Variant = "patreg",
    *,
    name: str | None = None,
    progress: bool = True,
    device: str | None = None,
) -> int:
    """Write region vectors [M, D] float32 into each store (Eq. 5); returns how many slides were computed.

    They are called ``region_vectors`` (variant ``patreg``) or ``region_vectors_reg``, or ``name``.
    Source: Eq. 5. Raises CheckpointError for unusable weights, ValueError when patch vectors are missing.
    """
    model = load_mae_region(weights)
    where = _device(device)
    model.to(where)
    dataset = name or ("region_vectors" if variant == "patreg" else f"region_vectors_{variant}")
    key = vectors_key(weights, profile)
    cached: dict[Path, np.ndarray] = {}

    def encode(store: Path, indices: list[int], pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        if profile.fidelity.extract_augment:
            images = _release_crop(images, store, indices)
        vectors: Tensor | None = None
        if model.needs_patch_vectors:
            if store not in cached:
                cached.clear()
                cached[store] = slide_store.SlideStore(store).vectors("patch_vectors")
            vectors = torch.from_numpy(cached[store][indices]).float().to(where)
        return model.encode(images.to(where), vectors).float().cpu().numpy()

    return _embed(
        stores, dataset, key, encode, _REGIONS[where.type], profile, where, progress, dataset.replace("_", " ")
    )


def _device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _release_crop(images: Tensor, store: Path, indices: list[int]) -> Tensor:
    """One frozen random crop per image, the same whenever the slide is embedded."""
    seed = int.from_bytes(hashlib.sha256(f"{store.stem}:{indices[0]}".encode()).digest()[:8], "little") >> 1
    return random_resized_crop(images, draw_crops(len(images), torch.Generator().manual_seed(seed)))


def _embed(
    stores: Sequence[Path],
    dataset: str,
    key: str,
    encode: Callable[[Path, list[int], np.ndarray], np.ndarray],
    group: int,
    profile: Profile,
    device: torch.device,
    progress: bool,
    label: str,
) -> int:
    todo, total = [], 0
    for path in map(Path, stores):
        store = slide_store.SlideStore(path)
        if not store.has_vectors(dataset, key):
            todo.append(path)
            total += len(store.coords)
    low = choose_precision(profile.compute, device) == "bf16-mixed"
    bar = tqdm(total=total, desc=label, unit="region", disable=not progress, mininterval=1.0)
    with bar, torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low):
        for path in todo:
            vectors = _embed_slide(path, dataset, key, encode, group, profile, bar)
            slide_store.write_vectors(path, dataset, vectors, weights=key)
            _part_path(path, dataset).unlink(missing_ok=True)
    return len(todo)


def _embed_slide(
    path: Path,
    dataset: str,
    key: str,
    encode: Callable[[Path, list[int], np.ndarray], np.ndarray],
    group: int,
    profile: Profile,
    bar: tqdm[Any],
) -> np.ndarray:
    count = len(slide_store.SlideStore(path).coords)
    done = _read_part(path, dataset, key)
    pieces: list[np.ndarray] = [] if done is None else [done]
    finished = 0 if done is None else len(done)
    written = finished
    bar.update(finished)
    for indices, pixels in _groups(path, range(finished, count), group, profile.compute.workers):
        pieces.append(encode(path, indices, pixels))
        finished += len(indices)
        bar.update(len(indices))
        if finished - written >= _PART and finished < count:
            _write_part(path, dataset, key, np.concatenate(pieces))
            written = finished
    if not pieces:
        raise ValueError(f"{path}: holds no region, so there is nothing to embed; it should not be in the cohort")
    return np.concatenate(pieces)


def _groups(path: Path, indices: range, size: int, workers: int) -> Iterator[tuple[list[int], np.ndarray]]:
    numbers: list[int] = []
    pixels: list[np.ndarray] = []
    for number, region in region_pixels.iter_regions(path, indices=list(indices), workers=max(1, workers)):
        numbers.append(int(number))
        pixels.append(region)
        if len(numbers) == size:
            yield numbers, np.stack(pixels)
            numbers, pixels = [], []
    if numbers:
        yield numbers, np.stack(pixels)


def _part_path(path: Path, dataset: str) -> Path:
    return path.with_name(f"{path.stem}.{dataset}.part.npz")


def _write_part(path: Path, dataset: str, key: str, vectors: np.ndarray) -> None:
    with atomic_path(_part_path(path, dataset)) as temporary:
        np.savez(temporary, vectors=vectors, key=np.array(key))


def _read_part(path: Path, dataset: str, key: str) -> np.ndarray | None:
    part = _part_path(path, dataset)
    if not part.exists():
        return None
    try:
        with np.load(part, allow_pickle=False) as content:
            return content["vectors"] if str(content["key"]) == key else None
    except (ValueError, OSError, KeyError, EOFError):
        return None
