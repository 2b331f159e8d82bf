"""Patch and region vectors into the slide stores (Eq. 2 and 5): deterministic, resumable, keyed by the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hcmae.config import Profile
from hcmae.keys import derived, whole_library
from hcmae.pretraining.augment import draw_crops, random_resized_crop
from hcmae.pretraining.checkpoint import load_resnet, read_metadata, weights_hash
from hcmae.pretraining.devices import choose_precision, wait_for_others
from hcmae.pretraining.launched import world
from hcmae.pretraining.networks import load_mae_patch, load_mae_region
from hcmae.pretraining.pretrain import Variant
from hcmae.slides import regions as region_pixels
from hcmae.slides import store as slide_store
from hcmae.slides import store_reading

# Choices of the release that change what vectors an encoder gives.
EXTRACTION = ("extract_depth", "extract_norm", "extract_augment")
# Patches per forward pass: large enough for a device, small enough for a laptop.
_PATCHES = {"cpu": 512, "cuda": 4096}
_REGIONS = {"cpu": 16, "cuda": 16}


@dataclass(frozen=True)
class Embedding:
    """Vectors to be written into stores.

    Args:
        dataset: their name in the store; network: what made them, kept beside them.
        encode: (store, region numbers, regions uint8 [G, R, R, 3]) -> vectors [G, ...].
        group: regions per call of ``encode``.
        reads: other vectors of the store that they are made from.
    """

    dataset: str
    network: str
    encode: Callable[[Path, list[int], np.ndarray], np.ndarray]
    group: int
    reads: str | None = None


def network_of(weights: Path, profile: Profile, choices: tuple[str, ...] = EXTRACTION) -> str:
    """Which network made stored vectors: the weights' hash and how they are applied (the release's choices)."""
    chosen = {name: getattr(profile.fidelity, name) for name in choices}
    suffix = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:4]
    return f"{weights_hash(weights)}-{suffix}"


def embed_patches(
    stores: Sequence[Path],
    weights: Path,
    profile: Profile,
    *,
    key: str | None = None,
    progress: bool = True,
    device: str | None = None,
) -> int:
    """Write ``patch_vectors`` [M, P, D] float16 into each store (Eq. 2); returns how many slides were computed.

    key: of all that the vectors depend on (None: the weights and how they are applied). Slides that hold vectors of
    this key are left alone; a slide interrupted half-way goes on at its next region.
    Source: Eq. 2; with the release's switches of ``profile.fidelity`` also its truncated depth, norm and random crops.
    Raises CheckpointError for unusable weights.
    """
    model = load_mae_patch(weights)
    fidelity = profile.fidelity
    where = usual_device(device)
    model.to(where)
    per_region = profile.geometry.patches_per_region
    group = max(1, _PATCHES[where.type] // per_region)
    vectors_of = _in_parts(
        lambda images: model.encode(images, depth=fidelity.extract_depth, norm=fidelity.extract_norm),
        _PATCHES[where.type],
        compiled=profile.compute.compile and where.type == "cuda",
    )

    def encode(store: Path, indices: list[int], pixels: np.ndarray) -> np.ndarray:
        patches = np.concatenate([region_pixels.split_patches(r, profile.geometry.patch) for r in pixels])
        images = torch.from_numpy(patches)
        if fidelity.extract_augment:
            images = _release_crop(images, store, indices)
        out = []
        for part in images.split(_PATCHES[where.type]):
            out.append(vectors_of(part.to(where)).cpu())
        return torch.cat(out).view(len(indices), per_region, -1).to(torch.float16).numpy()

    job = Embedding("patch_vectors", network_of(weights, profile), encode, group)
    return embed_stores(stores, job, profile, where, key=key, progress=progress)


def _in_parts(encode: Callable[[Tensor], Tensor], size: int, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """``encode`` for up to ``size`` images; compiled for just so many, so that fewer are filled up with black ones."""
    if not compiled:
        return encode
    whole: Callable[[Tensor], Tensor] = torch.compile(encode, dynamic=False)

    def filled(images: Tensor) -> Tensor:
        count = len(images)
        if count < size:
            images = torch.cat([images, images.new_zeros(size - count, *images.shape[1:])])
        return whole(images)[:count]

    return filled


def embed_resnet(
    stores: Sequence[Path],
    weights: Path,
    profile: Profile,
    *,
    key: str | None = None,
    progress: bool = True,
    device: str | None = None,
) -> int:
    """Write ``resnet_vectors`` [M, P, 1024] float16 into each store; returns how many slides were computed.

    weights: an ImageNet ResNet-50 on disk. MCAT and CLAM read these vectors where every slide has them. Resumable and
    keyed as patch vectors. Raises CheckpointError for unusable weights.
    """
    where = usual_device(device)
    network = load_resnet(weights).to(where)
    per_region = profile.geometry.patches_per_region
    part = {"cpu": 64, "cuda": 1024}[where.type]

    def encode(store: Path, indices: list[int], pixels: np.ndarray) -> np.ndarray:
        patches = np.concatenate([region_pixels.split_patches(r, profile.geometry.patch) for r in pixels])
        out = [network(images.to(where)).float().cpu() for images in torch.from_numpy(patches).split(part)]
        return torch.cat(out).view(len(indices), per_region, -1).to(torch.float16).numpy()

    group = max(1, _PATCHES[where.type] // per_region)
    job = Embedding("resnet_vectors", weights_hash(weights), encode, group)
    return embed_stores(stores, job, profile, where, key=key, progress=progress)


def embed_regions(
    stores: Sequence[Path],
    weights: Path,
    profile: Profile,
    variant: Variant = "patreg",
    *,
    name: str | None = None,
    key: str | None = None,
    progress: bool = True,
    device: str | None = None,
) -> int:
    """Write region vectors [M, D] float32 into each store (Eq. 5); returns how many slides were computed.

    They are called ``region_vectors`` (variant ``patreg``) or ``region_vectors_reg``, or ``name``.
    Source: Eq. 5. Raises CheckpointError for unusable weights, ValueError when patch vectors are missing or not of the
    kind that these weights were trained with.
    """
    model = load_mae_region(weights)
    if model.needs_patch_vectors:
        _check_patch_vectors(stores, weights)
    where = usual_device(device)
    model.to(where)
    dataset = name or ("region_vectors" if variant == "patreg" else f"region_vectors_{variant}")
    cached: dict[Path, np.ndarray] = {}

    def encode(store: Path, indices: list[int], pixels: np.ndarray) -> np.ndarray:
        if profile.mae_region.reduce > 1:
            side = profile.geometry.region // profile.mae_region.reduce
            pixels = np.stack([region_pixels.thumbnail(region, side) for region in pixels])
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

    reads = "patch_vectors" if model.needs_patch_vectors else None
    job = Embedding(dataset, network_of(weights, profile, ("extract_augment",)), encode, _REGIONS[where.type], reads)
    return embed_stores(stores, job, profile, where, key=key, progress=progress)


def usual_device(device: str | None) -> torch.device:
    """The device that is named, else a GPU where there is one (of several processes each its own), else the CPU."""
    if device is None and torch.cuda.is_available():
        return torch.device("cuda", world().local_rank % torch.cuda.device_count())
    return torch.device(device or "cpu")


def _check_patch_vectors(stores: Sequence[Path], weights: Path) -> None:
    """Patch vectors of other weights than those seen in training would give region vectors that mean nothing."""
    expected = read_metadata(weights).get("training", {}).get("patch_weights")
    for path in map(Path, stores):
        found = slide_store.SlideStore(path).vector_weights.get("patch_vectors")
        if found is None:
            raise ValueError(f"{path}: has no patch vectors: run embed_patches first")
        if expected and found not in expected:
            raise ValueError(
                f"{path}: patch vectors of weights {found}, but {weights.name} was trained with {expected}: "
                "embed the patches with those weights, or pre-train MAE-Region again"
            )


def _release_crop(images: Tensor, store: Path, indices: list[int]) -> Tensor:
    """One frozen random crop per image, the same whenever and in whatever groups the slide is embedded."""
    per_region = len(images) // len(indices)
    draws = []
    for index in indices:
        seed = int.from_bytes(hashlib.sha256(f"{store.stem}:{index}".encode()).digest()[:8], "little") >> 1
        draws.append(draw_crops(per_region, torch.Generator().manual_seed(seed)))
    return random_resized_crop(images, torch.cat(draws))


def embed_stores(
    stores: Sequence[Path],
    job: Embedding,
    profile: Profile,
    device: torch.device,
    *,
    key: str | None,
    progress: bool,
) -> int:
    """Write the vectors of a job into every store that lacks them; returns how many slides were computed.

    key: of all that they depend on but the store itself (None: the network, every setting, the whole library).
    """
    key = key or whole_library(job.dataset, profile, {"network": job.network}).digest
    # Of several processes each takes every n-th slide.
    here = world()
    todo, total = [], 0
    for path in list(map(Path, stores))[here.rank :: here.size]:
        store = slide_store.SlideStore(path)
        own = derived(key, job.reads, store.vector_content)
        if not store.has_vectors(job.dataset, own):
            todo.append((path, own))
            total += len(store)
    low = choose_precision(profile.compute, device) == "bf16-mixed"
    label = job.dataset.replace("_", " ")
    bar = tqdm(total=total, desc=label, unit="region", disable=not progress or here.rank != 0, mininterval=1.0)
    with bar, torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low):
        for path, own in todo:
            vectors = _embed_slide(path, job, own, profile, bar)
            slide_store.write_vectors(path, job.dataset, vectors, weights=job.network, key=own)
            _part_path(path, job.dataset).unlink(missing_ok=True)
    # What comes next reads all stores.
    wait_for_others()
    return len(todo)


def _embed_slide(path: Path, job: Embedding, key: str, profile: Profile, bar: tqdm[Any]) -> np.ndarray:
    coords = slide_store.SlideStore(path).coords
    count = len(coords)
    if not count:
        raise ValueError(f"{path}: holds no region, so there is nothing to embed; it should not be in the cohort")
    place = hashlib.sha256(np.ascontiguousarray(coords).tobytes()).hexdigest()[:8]
    with _Part(_part_path(path, job.dataset), f"{key}-{place}", job.group) as part:
        bar.update(part.done)
        for indices, pixels in _groups(path, range(part.done, count), job.group, profile.compute.workers):
            part.add(job.encode(path, indices, pixels))
            bar.update(len(indices))
        return part.vectors()


def _groups(path: Path, indices: range, size: int, workers: int) -> Iterator[tuple[list[int], np.ndarray]]:
    numbers: list[int] = []
    pixels: list[np.ndarray] = []
    for number, region in store_reading.iter_regions(path, indices=list(indices), workers=max(1, workers)):
        numbers.append(int(number))
        pixels.append(region)
        if len(numbers) == size:
            yield numbers, np.stack(pixels)
            numbers, pixels = [], []
    if numbers:
        yield numbers, np.stack(pixels)


def _part_path(path: Path, dataset: str) -> Path:
    return path.with_name(f"{path.stem}.{dataset}.part")


class _Part:
    """Vectors of a slide that is not finished: a header line, then one record per region, appended as they come.

    A process that dies leaves at most its last record cut; what a file of other weights holds is dropped.
    """

    def __init__(self, path: Path, key: str, group: int) -> None:
        self.path, self.key, self.group = path, key, group
        self.done = 0
        self._rows: list[np.ndarray] = []
        self._file: Any = None
        if path.exists():
            self._read(path.read_bytes())

    def _read(self, data: bytes) -> None:
        header, _, body = data.partition(b"\n")
        try:
            found = json.loads(header)
            shape, dtype = tuple(found["shape"]), np.dtype(found["dtype"])
            size = dtype.itemsize * int(np.prod(shape))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return
        if found.get("key") != self.key or size <= 0 or dtype.kind != "f" or min(shape, default=1) <= 0:
            return
        # Whole groups only, so that the rest is cut into the very groups of an undisturbed run.
        self.done = len(body) // size // self.group * self.group
        if self.done:
            self._rows.append(np.frombuffer(body, dtype, self.done * int(np.prod(shape))).reshape(self.done, *shape))

    def __enter__(self) -> _Part:
        return self

    def add(self, vectors: np.ndarray) -> None:
        """Append the vectors of one group [G, ...]."""
        if self._file is None:
            header = {"key": self.key, "shape": list(vectors.shape[1:]), "dtype": vectors.dtype.str}
            self._file = self.path.open("wb")
            self._file.write(json.dumps(header).encode() + b"\n" + b"".join(row.tobytes() for row in self._rows))
        self._file.write(np.ascontiguousarray(vectors).tobytes())
        self._file.flush()
        self._rows.append(vectors)

    def vectors(self) -> np.ndarray:
        """All of them so far."""
        return np.concatenate(self._rows)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
