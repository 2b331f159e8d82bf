"""DINO's crops, made on the device for a whole batch at once: of pixels (stage 1), of grids of vectors (stage 2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD

Crops = Callable[[Tensor, torch.Generator], list[Tensor]]
_GREY = torch.tensor([0.299, 0.587, 0.114])
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


class PixelCrops:
    """Multi-crop of uint8 images [B, S, S, 3], on their device: 2 global and ``local_crops`` local crops [B, 3, s, s].

    Random resized crop, flip, colour jitter, grey, blur, solarisation, ImageNet mean and standard deviation, with
    DINO's probabilities. Two things differ from the reference, to work on whole batches: jitter is one linear colour
    map per image (hue by rotation in YIQ, fixed order), and resizing samples between pixels without a low-pass filter,
    which matters little since crops shrink at most by the ratio of patch to crop.
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 96,
        local_crops: int = 8,
        *,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
        interpolation: str = "bicubic",
    ) -> None:
        self.global_size, self.local_size, self.local_crops = global_size, local_size, local_crops
        self.global_scale, self.local_scale, self.jitter = global_scale, local_scale, jitter
        self.interpolation = interpolation

    def __call__(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        pixels = images.permute(0, 3, 1, 2).float().div_(255.0)
        # Probabilities of blur and solarisation for the first global, second global and local crops.
        plan = [(self.global_size, self.global_scale, 1.0, 0.0), (self.global_size, self.global_scale, 0.1, 0.2)]
        plan += [(self.local_size, self.local_scale, 0.5, 0.0)] * self.local_crops
        return [self._one(pixels, generator, *settings) for settings in plan]

    def _one(
        self,
        pixels: Tensor,
        generator: torch.Generator,
        size: int,
        scale: tuple[float, float],
        blur: float,
        solarise: float,
    ) -> Tensor:
        out = resized_crops(pixels, size, scale, generator, self.interpolation)
        out = colour_jitter(out, self.jitter, generator)
        # The reference blurs 224-pixel crops with a radius of 0.1 to 2 pixels; smaller crops get a smaller radius.
        out = gaussian_blur(out, blur, (0.1, 2.0), generator, size / (224 if size == self.global_size else 96))
        if solarise:
            chosen = (torch.rand(len(out), generator=generator) < solarise).to(out.device)
            out = torch.where(chosen[:, None, None, None] & (out >= 0.5), 1 - out, out)
        mean = torch.tensor(IMAGENET_MEAN, device=out.device)[:, None, None]
        std = torch.tensor(IMAGENET_STD, device=out.device)[:, None, None]
        return (out - mean) / std


def resized_crops(
    pixels: Tensor, size: int, scale: tuple[float, float], generator: torch.Generator, mode: str = "bicubic"
) -> Tensor:
    """One random crop per image [B, C, S, S], its area a share in ``scale``, aspect 3:4 to 4:3, maybe flipped."""
    batch = len(pixels)
    area = torch.empty(batch).uniform_(*scale, generator=generator)
    aspect = torch.empty(batch).uniform_(-math.log(4 / 3), math.log(4 / 3), generator=generator).exp()
    width, height = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
    left = torch.rand(batch, generator=generator) * (1 - width)
    top = torch.rand(batch, generator=generator) * (1 - height)
    flip = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(theta.to(pixels.device), [batch, pixels.shape[1], size, size], align_corners=False)
    return F.grid_sample(pixels, grid, mode=mode, padding_mode="reflection", align_corners=False).clamp_(0, 1)


def colour_jitter(
    pixels: Tensor,
    strength: tuple[float, float, float, float],
    generator: torch.Generator,
    *,
    chance: float = 0.8,
    grey_chance: float = 0.2,
) -> Tensor:
    """Brightness, contrast, saturation and hue of images [B, 3, S, S] in [0, 1] as one colour map per image."""
    batch = len(pixels)
    brightness, contrast, saturation = (
        torch.empty(batch).uniform_(1 - s, 1 + s, generator=generator) for s in strength[:3]
    )
    angle = torch.empty(batch).uniform_(-strength[3], strength[3], generator=generator) * 2 * math.pi
    chosen = torch.rand(batch, generator=generator) < chance
    grey = torch.rand(batch, generator=generator) < grey_chance
    one, to_grey = torch.eye(3), torch.ones(3, 1) * _GREY
    turn = torch.zeros(batch, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    hue = torch.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    mix = saturation[:, None, None] * one + (1 - saturation)[:, None, None] * to_grey
    colour = torch.where(chosen[:, None, None], hue @ mix, one)
    gain = torch.where(chosen, brightness * contrast, 1.0)
    # Contrast pulls towards the mean grey of the image, which brightness has already scaled.
    offset = torch.where(chosen, brightness * (1 - contrast), 0.0)
    final = torch.where(grey[:, None, None], to_grey @ colour, colour)
    device = pixels.device
    level = pixels.mean(dim=(2, 3)) @ _GREY.to(device)
    # colour and to_grey leave grey values as they are, so the offset can be added last.
    shift = (offset.to(device) * level)[:, None, None]
    matrix = (final * gain[:, None, None]).to(device)
    mapped = torch.bmm(matrix, pixels.flatten(2)).add_(shift)
    return mapped.clamp_(0, 1).view_as(pixels)


def gaussian_blur(
    pixels: Tensor, chance: float, radius: tuple[float, float], generator: torch.Generator, scale: float = 1.0
) -> Tensor:
    """Blur a random share of images [B, C, S, S], each with its own standard deviation (``radius`` * ``scale``)."""
    batch = len(pixels)
    sigma = torch.empty(batch).uniform_(*radius, generator=generator) * scale
    chosen = (torch.rand(batch, generator=generator) < chance).nonzero().flatten()
    reach = math.ceil(2 * radius[1] * scale)
    if not len(chosen) or pixels.shape[-1] <= reach:
        return pixels
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma[chosen, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(pixels.device)
    rows = chosen.to(pixels.device)
    part = pixels[rows]
    for axis in (2, 3):
        padding = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        padded = F.pad(part, padding, mode="reflect")
        length = part.shape[axis]
        part = torch.zeros_like(part)
        for tap in range(len(offsets)):
            part.addcmul_(padded.narrow(axis, tap, length), kernel[:, tap, None, None, None])
    out = pixels.clone()
    out[rows] = part
    return out


class GridCrops:
    """Multi-crop of grids of patch vectors [B, n, n, D]: plain squares, maybe flipped, as [B, D, s, s].

    A crop as large as the grid is the whole grid. Source: HIPT's second stage (no scaling, no noise).
    """

    def __init__(self, global_size: int = 14, local_size: int = 6, local_crops: int = 8) -> None:
        self.global_size, self.local_size, self.local_crops = global_size, local_size, local_crops

    def __call__(self, grids: Tensor, generator: torch.Generator) -> list[Tensor]:
        sizes = [self.global_size] * 2 + [self.local_size] * self.local_crops
        return [_square(grids, size, generator) for size in sizes]


def _square(grids: Tensor, size: int, generator: torch.Generator) -> Tensor:
    batch, side = grids.shape[:2]
    if size > side:
        raise ValueError(f"a crop of {size} x {size} does not fit a grid of {side} x {side} patches: set a smaller one")
    steps = torch.arange(size)
    rows = torch.randint(0, side - size + 1, (batch, 1), generator=generator) + steps
    columns = torch.randint(0, side - size + 1, (batch, 1), generator=generator) + steps
    flipped = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    device = grids.device
    index = torch.arange(batch, device=device)[:, None, None]
    picked = grids[index, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return picked.permute(0, 3, 1, 2).float()
