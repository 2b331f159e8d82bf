"""How long pre-training takes on this machine: decoding and training measured for a few seconds each."""

from __future__ import annotations

import time
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from hcmae.config import Optimisation, Profile
from hcmae.pretraining.devices import choose_precision
from hcmae.pretraining.loop import make_optimizer
from hcmae.pretraining.networks import build_mae_patch, build_mae_region
from hcmae.processes import usable_cores
from hcmae_core.mae_patch import MAEPatch

_TILE = 256


@dataclass(frozen=True)
class Estimate:
    """Hours of one stage, the rates behind them in samples/s, and which of the two is the limit."""

    stage: str
    hours: float
    decoded: float
    trained: float

    @property
    def limit(self) -> str:
        """``decoding`` or ``training``."""
        return "decoding" if self.decoded < self.trained else "training"


def estimate(profile: Profile, regions: int, seconds: float = 20.0) -> list[Estimate]:
    """Both stages of pre-training on so many regions, from about ``seconds`` of measuring.

    One core decodes a JPEG tile that looks like tissue, and the workers are taken to do as well each, as far as there
    are cores. The step is an uncompiled one on this machine's device: a compiled one takes about two thirds.
    """
    share = seconds / 3
    pixels = decode_rate(share) * max(1, min(profile.compute.workers, usable_cores()))
    geometry, found = profile.geometry, []
    for stage, settings, side, samples in (
        ("mae_patch", profile.mae_patch.optimisation, geometry.patch, regions * geometry.patches_per_region),
        ("mae_region", profile.mae_region.optimisation, geometry.region, regions),
    ):
        decoded, trained = pixels / side**2, step_rate(profile, stage, share)
        total = (settings.samples_per_epoch or samples) * settings.epochs
        found.append(Estimate(stage, total / min(decoded, trained) / 3600, decoded, trained))
    return found


def decode_rate(seconds: float) -> float:
    """Pixels/s of one core that decodes JPEG tiles of quality 85."""
    import simplejpeg

    grain = np.random.default_rng(0).standard_normal((_TILE, _TILE, 3)).astype(np.float32)
    tissue = np.clip(200 + 90 * cv2.GaussianBlur(grain, (0, 0), 2.0) + 4 * grain, 0, 255).astype(np.uint8)
    stream = simplejpeg.encode_jpeg(tissue, quality=85, colorsubsampling="420")
    out, count = np.empty((_TILE, _TILE, 3), np.uint8), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        simplejpeg.decode_jpeg(stream, "RGB", False, False, buffer=out)
        count += 1
    return count * _TILE**2 / (time.perf_counter() - began)


def step_rate(profile: Profile, stage: str, seconds: float) -> float:
    """Samples/s of training steps on this machine's device, with random images and a batch of at most the profile's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = (build_mae_patch(profile) if stage == "mae_patch" else build_mae_region(profile, "none")).to(device)
    settings: Optimisation = getattr(profile, stage).optimisation
    geometry = profile.geometry
    side = geometry.patch if isinstance(model, MAEPatch) else geometry.region // profile.mae_region.reduce
    # A CPU shows its rate with a few megapixels.
    batch = settings.batch_size if device.type == "cuda" else max(1, min(settings.batch_size, 2**20 // side**2))
    images = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
    optimizer = make_optimizer(model, settings, profile.fidelity.adam_decay)
    low = choose_precision(profile.compute, device) == "bf16-mixed"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            loss = model(images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        step()
        count += 1
    return count * batch / (time.perf_counter() - began)
