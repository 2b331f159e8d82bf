"""Augmentations that keep a region's tokens and its patch vectors about the same tissue.

Flips and quarter turns are exact on pixels and move whole tokens, so patch vectors can follow by a permutation, which
gives the vectors of the turned patches as far as these do not depend on the turn; random crops cannot, which is why the
release's crop is here only to be compared with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels looked up at once on a GPU: bounds the numbers that point into the tables to 256 MiB.
_LOOKED_UP = 2**26


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without making the host wait for it."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def draw_symmetries(batch: int, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries of a square per image, int64 [B]: bits 0-1 quarter turns, bit 2 flip."""
    return torch.randint(0, 8, (batch,), generator=generator)


def without_quarter_turns(symmetries: Tensor) -> Tensor:
    """The same [B] less an odd quarter turn: flips and half turns, which leave an axis an axis.

    A patch vector that moves along was computed on the unturned patch. MAE-Patch sees nearly the same in a patch and in
    its mirror image, and something else in a patch turned by a quarter.
    """
    return symmetries & 0b110


def apply_symmetries(images: Tensor, symmetries: Tensor) -> Tensor:
    """Flip and turn images [B, S, S, C] (or grids of vectors [B, s, s, D]) by their symmetry [B], drawn on the host."""
    out = torch.empty_like(images)
    for code in symmetries.unique().tolist():
        rows = to_device((symmetries == code).nonzero()[:, 0], images.device)
        part = images.index_select(0, rows)
        if code & 4:
            part = part.flip(2)
        out.index_copy_(0, rows, torch.rot90(part, code & 3, dims=(1, 2)))
    return out


def apply_symmetries_to_vectors(vectors: Tensor, symmetries: Tensor) -> Tensor:
    """Move patch vectors [B, P, D], rows first, to where a flip or turn of the region takes their patches."""
    batch, length, dim = vectors.shape
    side = math.isqrt(length)
    return apply_symmetries(vectors.reshape(batch, side, side, dim), symmetries).reshape(batch, length, dim)


def draw_stain(batch: int, strength: float, generator: torch.Generator) -> Tensor:
    """Factors of optical density [B, 3]: logarithms are normal with standard deviation ``strength``."""
    return (torch.randn(batch, 3, generator=generator) * strength).exp()


def stain_jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the optical density of each channel of each uint8 image [B, S, S, 3] by its factor [B, 3]."""
    levels = torch.arange(256.0) / 255
    table = (255 * levels ** factors[:, :, None]).round().to(torch.uint8)  # [B, 3, 256], made on the host for all
    out = torch.empty_like(images)
    if images.device.type == "cuda":
        # A look-up of many images at once; on a CPU one table at a time stays in the cache.
        table = to_device(table, images.device).reshape(-1)
        step = max(1, _LOOKED_UP // images[0].numel())
        for start in range(0, len(images), step):
            part = images[start : start + step]
            first = torch.arange(start * 3, (start + len(part)) * 3, device=images.device).view(-1, 1, 1, 3) * 256
            out[start : start + step] = table[part.int() + first.int()]
        return out
    for image, result, lookup in zip(images, out, table, strict=True):
        for channel in range(3):
            result[..., channel] = lookup[channel][image[..., channel].int()]
    return out


def draw_crops(batch: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers [B, 5] for ``random_resized_crop``: area, aspect, left, top, flip."""
    return torch.rand(batch, 5, generator=generator)


def random_resized_crop(images: Tensor, draws: Tensor, *, scale: tuple[float, float] = (0.2, 1.0)) -> Tensor:
    """The release's augmentation of uint8 [B, S, S, 3]: a crop of random area and aspect, resized back, maybe flipped.

    It breaks the correspondence of region tokens and patch vectors (page *Paper versus release*, MAE-Region).
    """
    size = images.shape[1]
    out = torch.empty_like(images)
    for number, (area, ratio, left, top, flip) in enumerate(draws.tolist()):
        target = (scale[0] + area * (scale[1] - scale[0])) * size * size
        aspect = math.exp((2 * ratio - 1) * math.log(4 / 3))
        width = min(size, max(1, round(math.sqrt(target * aspect))))
        height = min(size, max(1, round(math.sqrt(target / aspect))))
        x, y = round(left * (size - width)), round(top * (size - height))
        crop = images[number, y : y + height, x : x + width].permute(2, 0, 1)[None].float()
        resized = F.interpolate(crop, (size, size), mode="bicubic", antialias=True, align_corners=False)
        result = resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        out[number] = result.flip(1) if flip < 0.5 else result
    return out
