"""MAE-Patch and MAE-Region of a profile's sizes, into weight files and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hcmae.config import MaePatchSettings, MaeRegionSettings, Network, Profile
from hcmae.pretraining.checkpoint import (
    CheckpointError,
    load_state,
    read_tensors,
    write_tensors,
)
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion, Reading
from hcmae_core.transformer import Size

_Model = TypeVar("_Model", MAEPatch, MAERegion)


def build_mae_patch(profile: Profile) -> MAEPatch:
    """MAE-Patch of a profile's sizes, freshly initialised from torch's global generator."""
    settings, geometry = profile.mae_patch, profile.geometry
    encoder, decoder = _sizes(profile.network, settings)
    return MAEPatch(
        geometry.patch,
        geometry.cell,
        encoder=encoder,
        decoder=decoder,
        mask_ratio=settings.mask_ratio,
        normalise_targets=settings.normalise_targets,
        class_token=settings.class_token,
    )


def build_mae_region(profile: Profile, attention: Reading | None = None) -> MAERegion:
    """MAE-Region of a profile's sizes; attention None takes the profile's reading, ``none`` is the ablation MAE-Reg."""
    settings, geometry = profile.mae_region, profile.geometry
    encoder, decoder = _sizes(profile.network, settings)
    reading = attention or profile.fidelity.region_attention
    return MAERegion(
        geometry.region // settings.reduce,
        geometry.patch // settings.reduce,
        encoder=encoder,
        decoder=decoder,
        mask_ratio=settings.mask_ratio,
        normalise_targets=settings.normalise_targets,
        class_token=settings.class_token,
        attention=reading,
        # Without cross-attention there is nothing to add the encoder's output to.
        residual=reading != "none" and profile.fidelity.region_residual,
    )


def _sizes(network: Network, settings: MaePatchSettings | MaeRegionSettings) -> tuple[Size, Size]:
    """Encoder and decoder of an autoencoder; one ratio of perceptron to width serves both."""
    ratio = network.mlp_ratio
    return (
        Size(network.dim, network.depth, network.heads, ratio),
        Size(settings.decoder_dim, settings.decoder_depth, settings.decoder_heads, ratio),
    )


def save_weights(path: Path, model: MAEPatch | MAERegion, extra: dict[str, Any] | None = None) -> Path:
    """Write a model with what is needed to rebuild it: its kind and constructor arguments."""
    kind = "mae_patch" if isinstance(model, MAEPatch) else "mae_region"
    return write_tensors(path, model.state_dict(), {"kind": kind, "model": model.settings, **(extra or {})})


def load_mae_patch(path: str | Path) -> MAEPatch:
    """MAE-Patch from its weight file. Raises CheckpointError for any other file."""
    return _load(Path(path), "mae_patch", MAEPatch.from_settings)


def load_mae_region(path: str | Path) -> MAERegion:
    """MAE-Region from its weight file. Raises CheckpointError for any other file."""
    return _load(Path(path), "mae_region", MAERegion.from_settings)


def _load(path: Path, kind: str, build: Callable[..., _Model]) -> _Model:
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{path}: holds {metadata.get('kind', 'something else')!r}, expected {kind!r}")
    model = build(metadata["model"])
    load_state(model, tensors, path)
    return model.eval()
