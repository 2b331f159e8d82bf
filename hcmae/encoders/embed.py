"""Vectors of a registered encoder into the slide stores, beside those of MAE-Patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hcmae.config import Profile
from hcmae.encoders.network import load_encoder
from hcmae.encoders.registry import Encoder
from hcmae.encoders.scale import check_scale
from hcmae.pretraining.checkpoint import foreign_id
from hcmae.pretraining.embed import Embedding, embed_stores, usual_device
from hcmae.slides.regions import split_patches
from hcmae.slides.store import SlideStore

DATASET = "encoder_vectors"
# Patches per forward pass: these networks are large.
_PATCHES = {"cpu": 32, "cuda": 256}


def embed_encoder(
    stores: Sequence[Path],
    encoder: Encoder,
    weights: str | Path,
    profile: Profile,
    *,
    any_scale: bool = False,
    key: str | None = None,
    progress: bool = True,
    device: str | None = None,
) -> int:
    """Write ``encoder_vectors`` [M, P, D] float16 into each store; returns how many slides were computed.

    Computed in fp32 on a CPU and in bf16 on a GPU unless ``compute.precision`` says otherwise. Resumable and keyed as
    patch vectors. MCAT, CLAM-SB and the like read these vectors where every slide has them.

    Raises EncoderError for patches of another scale than the encoder knows (``any_scale``: not asked), CheckpointError
    for unusable weights.
    """
    if not any_scale:
        for path in stores:
            store = SlideStore(path)
            pixel = float(store.attrs["mpp"]) * store.side / store.geometry.region
            check_scale(encoder, store.geometry.patch, pixel, store.slide_id)
    where = usual_device(device)
    network = load_encoder(encoder, weights).to(where)
    per_region = profile.geometry.patches_per_region

    def encode(store: Path, indices: list[int], pixels: np.ndarray) -> np.ndarray:
        patches = np.concatenate([split_patches(region, profile.geometry.patch) for region in pixels])
        parts = torch.from_numpy(patches).split(_PATCHES[where.type])
        found = torch.cat([network(part.to(where)).float().cpu() for part in parts])
        return found.view(len(indices), per_region, -1).to(torch.float16).numpy()

    job = Embedding(DATASET, f"{encoder.name}:{foreign_id(weights)}", encode, 1)
    return embed_stores(stores, job, profile, where, key=key, progress=progress)
