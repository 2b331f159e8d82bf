"""Region vectors from features without pixels: the region token's training on a pool, and its vectors into the stores.

Regions come in windows of shuffled stores, so that memory does not grow with the cohort; what a step does follows from
the seed and its number, and an interrupted training goes on at its last epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hcmae.config import Profile
from hcmae.keys import derived
from hcmae.pretraining.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    load_state,
    read_metadata,
    read_tensors,
    weights_hash,
    write_tensors,
)
from hcmae.pretraining.devices import choose_precision
from hcmae.pretraining.embed import usual_device
from hcmae.pretraining.logs import Log
from hcmae.pretraining.loop import NonFiniteLossError, learning_rate, make_optimizer
from hcmae.slides.store import SlideStore, write_vectors
from hcmae_core.feature_region import FeatureRegion
from hcmae_core.transformer import Size

PATCHES, REGIONS = "patch_vectors", "region_vectors"
NAME = "feature_region"
# Bytes of patch vectors that are shuffled together.
WINDOW_BYTES = 256 << 20
_PART = 64


def build_feature_region(profile: Profile, vector_dim: int) -> FeatureRegion:
    """The network in the profile's sizes, freshly initialised from torch's global generator."""
    size, settings = profile.network, profile.mae_region
    return FeatureRegion(
        vector_dim,
        profile.geometry.patches_per_side,
        encoder=Size(size.dim, size.depth, size.heads, size.mlp_ratio),
        decoder=Size(settings.decoder_dim, settings.decoder_depth, settings.decoder_heads, size.mlp_ratio),
        mask_ratio=settings.mask_ratio,
    )


def load_feature_region(path: str | Path) -> FeatureRegion:
    """The network of a weight file, in evaluation mode. Raises CheckpointError for any other file."""
    tensors, metadata = read_tensors(Path(path))
    if metadata.get("kind") != NAME:
        raise CheckpointError(f"{path}: holds {metadata.get('kind', 'something else')!r}, expected {NAME!r}")
    network = FeatureRegion.from_settings(metadata["model"])
    load_state(network, tensors, Path(path))
    return network.eval()


def _regions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Patch vectors [M, P, D] and mask [M, P] of a store. Raises ValueError where it has none."""
    store = SlideStore(path)
    if PATCHES not in store.vector_weights:
        raise ValueError(f"{path}: has no {PATCHES}: bring the features first")
    vectors, mask = store.vectors(PATCHES), store.patch_mask
    return vectors, np.ones(vectors.shape[:2], bool) if mask is None else mask


def batches(stores: Sequence[Path], size: int, samples: int, seed: int, epoch: int) -> Iterator[tuple[Any, Any]]:
    """Batches (vectors [B, P, D] float16, mask [B, P]) of one epoch, repeated passes until it has its ``samples``."""
    left, number = samples // size, 0
    rest: tuple[np.ndarray, np.ndarray] | None = None
    while left > 0:
        rng = np.random.default_rng([seed, epoch, number])
        number += 1
        for block in _windows(stores, rng):
            rows = block if rest is None else (np.concatenate([rest[0], block[0]]), np.concatenate([rest[1], block[1]]))
            while len(rows[0]) >= size and left > 0:
                yield torch.from_numpy(rows[0][:size]), torch.from_numpy(rows[1][:size])
                rows, left = (rows[0][size:], rows[1][size:]), left - 1
            rest = rows
            if left == 0:
                return


def _windows(stores: Sequence[Path], rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    order = rng.permutation(len(stores))
    for place, index in enumerate(order):
        parts.append(_regions(Path(stores[int(index)])))
        if place == len(order) - 1 or sum(vectors.nbytes for vectors, _ in parts) >= WINDOW_BYTES:
            vectors, mask = (np.concatenate(column) for column in zip(*parts, strict=True))
            mixed = rng.permutation(len(vectors))
            yield vectors[mixed], mask[mixed]
            parts = []


def pretrain_feature_region(
    stores: Sequence[Path],
    profile: Profile,
    out_dir: Path,
    seed: int,
    *,
    key: str,
    progress: bool = True,
    device: str | None = None,
) -> Path:
    """Train the region token on the patch vectors of a pool; returns ``out_dir/feature_region.safetensors``.

    Sizes, masking and optimiser are those of MAE-Region (``profile.mae_region``). Finished work of this key is kept; a
    checkpoint is written after each epoch. Raises NonFiniteLossError, ValueError for stores without patch vectors.
    """
    final, settings = Path(out_dir) / f"{NAME}.safetensors", profile.mae_region.optimisation
    if final.exists() and read_metadata(final).get("fingerprint") == key:
        tqdm.write(f"{NAME}: {final.name} is up to date, nothing to do", file=sys.stderr)
        return final
    regions = sum(len(SlideStore(path)) for path in stores)
    if not regions:
        raise ValueError(f"no regions in {len(stores)} stores: bring the features first")
    where = usual_device(device)
    low = choose_precision(profile.compute, where) == "bf16-mixed"
    samples = settings.samples_per_epoch or regions
    size = min(settings.batch_size * settings.accumulation, samples)
    per_epoch = samples // size
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build_feature_region(profile, _regions(stores[0])[0].shape[-1])
        model.scale.fit(torch.from_numpy(vectors[mask]) for vectors, mask in map(_regions, stores))
        model.to(where).train()
        # Read where it has a meaning and nowhere else: it is part of the key then.
        decay = profile.fidelity.adam_decay if settings.optimizer == "adam" else "decoupled"
        optimizer = make_optimizer(model, settings, decay)
        checkpoints = CheckpointFolder(Path(out_dir) / "checkpoints" / f"{NAME}-{key}", keep=1)
        restored = checkpoints.load(model, optimizer)
        step = int(restored[0]["step"]) if restored is not None else 0
        total = per_epoch * settings.epochs
        bar = tqdm(total=total, initial=step, desc="region token", disable=not progress, mininterval=1.0)
        with bar, closing(Log(Path(out_dir) / f"{NAME}.jsonl", step)) as log:
            for epoch in range(step // per_epoch, settings.epochs):
                for vectors, mask in batches(stores, size, samples, seed, epoch):
                    drawn = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
                    generator = torch.Generator().manual_seed(drawn)
                    rate = learning_rate(settings, step, per_epoch)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    value = 0.0
                    parts = list(zip(vectors.split(settings.batch_size), mask.split(settings.batch_size), strict=True))
                    for part, there in parts:
                        with torch.autocast(where.type, torch.bfloat16, enabled=low):
                            loss = model(part.to(where), there.to(where), generator) * (len(part) / size)
                        loss.backward()
                        value += float(loss.detach())
                    if not np.isfinite(value):
                        raise NonFiniteLossError(f"{NAME}: loss {value} at step {step}: lower learning_rate")
                    if settings.clip_norm is not None:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    step += 1
                    bar.update()
                    log.write({"step": step, "epoch": step / per_epoch, "loss": value, "learning_rate": rate})
                if step < total:
                    checkpoints.save(step, model, optimizer, None, {"stage": NAME})
    write_tensors(final, model.state_dict(), {"kind": NAME, "model": model.settings, "fingerprint": key})
    checkpoints.clear()
    return final


def embed_feature_regions(
    stores: Sequence[Path],
    weights: Path,
    profile: Profile,
    *,
    key: str,
    progress: bool = True,
    device: str | None = None,
) -> int:
    """Write ``region_vectors`` [M, D] float32 into each store; returns how many slides were computed.

    Their key holds the content of the patch vectors. Raises CheckpointError for unusable weights, ValueError for a
    store without patch vectors.
    """
    where = usual_device(device)
    network = load_feature_region(weights).to(where)
    low = choose_precision(profile.compute, where) == "bf16-mixed"
    count = 0
    for path in tqdm(stores, desc="region vectors", unit="slide", disable=not progress, mininterval=1.0):
        store = SlideStore(path)
        own = derived(key, PATCHES, store.vector_content)
        if store.has_vectors(REGIONS, own):
            continue
        vectors, mask = _regions(Path(path))
        found = []
        with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=low):
            for start in range(0, len(vectors), _PART):
                part, there = (torch.from_numpy(array[start : start + _PART]).to(where) for array in (vectors, mask))
                found.append(network.encode(part, there).cpu().numpy())
        # Whose patch vectors they rest on comes first: tables name it.
        encoder = store.vector_weights[PATCHES].rpartition(":")[0]
        write_vectors(path, REGIONS, np.concatenate(found), weights=f"{encoder}:{weights_hash(weights)}", key=own)
        count += 1
    return count
