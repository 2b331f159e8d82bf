"""Pixels in and out of tokens, and whole thumbnails into vectors.

Pixels stay uint8 until the two places that need numbers, the embedding of visible tokens and the loss on masked
tokens. Both are written as one linear map worked through in slices of pixels, so that neither the normalised image
nor the full prediction exists in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Elements of the slice of pixels worked on at once: inside the cache of a CPU core, large enough to fill a GPU.
# Below the 192 x 196,608 numbers of one region's masked prediction, so that not even that one is ever whole.
SLICE_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}
OTHER_SLICE = 2**25
# A slice has at least so many columns. Products on a GPU want width, and every slice passes over all rows once more.
LEAST_COLUMNS = {"cpu": 48, "cuda": 24_576}


def split_tokens(images: Tensor, side: int) -> Tensor:
    """Images uint8 [B, S, S, 3] to tokens uint8 [B, side * side, (S / side) ** 2 * 3], rows first, channels last.

    Raises ValueError when the images are not uint8, not square, or do not divide.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"expected uint8 images [B, S, S, 3], got {images.dtype} {tuple(images.shape)}")
    batch, size = images.shape[:2]
    if size % side:
        raise ValueError(f"images of {size} pixels do not divide into {side} x {side} tokens")
    token = size // side
    row = token * 3
    word = torch.int64 if _in_words(images, row) else torch.uint8
    width = row // word.itemsize
    grid = images.reshape(batch, size, size * 3).view(word).view(batch, side, token, side, width)
    return grid.transpose(2, 3).reshape(batch, side * side, token * width).view(torch.uint8)


def _in_words(images: Tensor, row: int) -> bool:
    """Whether rows of a token may be moved as machine words: eight times fewer elements to copy.

    Under the compiler this copy is no step of its own, and an address would break its graph.
    """
    if torch.compiler.is_compiling() or row % 8 or not images.is_contiguous():
        return False
    return images.data_ptr() % 8 == 0


def _working_dtype(device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def _slices(pixels: Tensor) -> Iterator[slice]:
    rows, columns = pixels.shape
    limit = SLICE_ELEMENTS.get(pixels.device.type, OTHER_SLICE)
    # A multiple of 48 keeps whole pixels and rows aligned to 16 numbers.
    least = LEAST_COLUMNS.get(pixels.device.type, 48)
    step = columns if rows * columns <= limit else max(least, limit // rows // 48 * 48)
    for start in range(0, columns, step):
        yield slice(start, min(start + step, columns))


class _TokenLinear(torch.autograd.Function):
    """Linear map of normalised token pixels that keeps only the uint8 pixels for the backward pass.

    Works through slices of columns: a step of pre-training holds many tokens of few pixels, normalised slice by slice.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        dtype = _working_dtype(pixels.device)
        ctx.save_for_backward(pixels, scale, shift)
        ctx.dtype = dtype
        total: Tensor | None = None
        with torch.autocast(pixels.device.type, enabled=False):
            for part in _slices(pixels):
                x = torch.addcmul(shift[part], pixels[:, part].float(), scale[part]).to(dtype)
                product = F.linear(x, weight[:, part].to(dtype)).float()
                total = product if total is None else total.add_(product)
            assert total is not None
            return total.add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        pixels, scale, shift = ctx.saved_tensors
        with torch.autocast(pixels.device.type, enabled=False):
            flat = grad.to(ctx.dtype).t()
            parts = list(_slices(pixels))
            if len(parts) == 1:
                x = torch.addcmul(shift, pixels.float(), scale).to(ctx.dtype)
                grad_weight = (flat @ x).float()
            else:
                grad_weight = torch.empty(grad.shape[1], pixels.shape[1], device=grad.device)
                for part in parts:
                    x = torch.addcmul(shift[part], pixels[:, part].float(), scale[part]).to(ctx.dtype)
                    grad_weight[:, part] = flat @ x
        return None, grad_weight, grad.float().sum(0), None, None


class _PixelLoss(torch.autograd.Function):
    """Prediction head and squared error in slices of pixels; gradients are formed on the spot and scaled later.

    Each slice of the prediction is made once, turned into its share of the gradients and dropped, so the step costs the
    three products it must and the prediction never exists as a whole. The error is taken in units of grey levels around
    128, into which the head's rows are scaled: that is one pass over the pixels instead of one per arithmetic step, and
    small integers are exact in bf16.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, scale: Tensor, shift: Tensor, normalise: bool
    ) -> Tensor:
        dtype = _working_dtype(pixels.device)
        needs_grad = any(ctx.needs_input_grad[:3])
        factor = 1.0 / pixels.numel()
        loss = torch.zeros((), device=x.device)
        with torch.autocast(pixels.device.type, enabled=False):
            hidden = x.to(dtype)
            mean, deviation = _token_statistics(pixels, scale, shift) if normalise else (None, None)
            # Grey level minus 128, as a signed byte.
            centred = pixels.bitwise_xor(128).view(torch.int8)
            offset = shift + 128 * scale
            grad_x = torch.zeros(x.shape, device=x.device) if needs_grad else None
            grad_weight = torch.empty(weight.shape, device=x.device) if needs_grad else None
            grad_bias = torch.empty(bias.shape, device=x.device) if needs_grad else None
            for part in _slices(pixels):
                rows = weight[part]
                if mean is not None and deviation is not None:
                    # Every token has its own units, so the target is normalised outright.
                    units = torch.ones_like(scale[part])
                    target = torch.addcmul(offset[part], centred[:, part].float(), scale[part])
                    target = target.sub_(mean).div_(deviation)
                    error = F.linear(hidden, rows.to(dtype), bias[part].to(dtype)).float().sub_(target)
                else:
                    units = scale[part]
                    inverse = 1 / units
                    scaled = (rows * inverse[:, None]).to(dtype)
                    error = F.linear(hidden, scaled, ((bias[part] - offset[part]) * inverse).to(dtype))
                    error.sub_(centred[:, part].to(dtype))
                norm = torch.linalg.vector_norm(error, dim=0, dtype=torch.float32)
                loss += (norm * units).square().sum()
                if grad_x is not None and grad_weight is not None and grad_bias is not None:
                    low = error.to(dtype)
                    column = (2 * factor) * units
                    grad_bias[part] = low.sum(0, dtype=torch.float32) * column
                    torch.mul((low.t() @ hidden), column[:, None], out=grad_weight[part])
                    grad_x += low @ (rows * column[:, None]).to(dtype)
        if grad_x is not None and grad_weight is not None and grad_bias is not None:
            ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        ctx.x_dtype = x.dtype
        return loss * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        # In place: these tensors exist for this one use.
        return grad_x.mul(grad).to(ctx.x_dtype), grad_weight.mul_(grad), grad_bias.mul_(grad), None, None, None, None


def _token_statistics(pixels: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each token's normalised pixels, [N, 1] each, in slices of tokens."""
    means, deviations = [], []
    step = max(1, SLICE_ELEMENTS.get(pixels.device.type, OTHER_SLICE) // pixels.shape[1])
    for part in pixels.split(step):
        x = torch.addcmul(shift, part.float(), scale)
        variance, mean = torch.var_mean(x, dim=1, keepdim=True)
        means.append(mean)
        deviations.append((variance + 1e-6).sqrt())
    return torch.cat(means), torch.cat(deviations)


class PixelNorm(nn.Module):
    """Scale and shift from uint8 pixels to ImageNet-normalised units, one number per pixel and channel of a token."""

    scale: Tensor
    shift: Tensor

    def __init__(self, pixels: int) -> None:
        super().__init__()
        std, mean = torch.tensor(IMAGENET_STD), torch.tensor(IMAGENET_MEAN)
        self.register_buffer("scale", (1 / (255 * std)).repeat(pixels // 3), persistent=False)
        self.register_buffer("shift", (-mean / std).repeat(pixels // 3), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [..., C] to float32 [..., C]."""
        return torch.addcmul(self.shift, pixels.float(), self.scale)

    def invert(self, values: Tensor) -> Tensor:
        """Normalised units back to uint8."""
        return ((values - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)


class PixelEmbedding(nn.Linear):
    """Token pixels to vectors: the convolution whose kernel is its stride (section II-A), as a matrix product."""

    def __init__(self, pixels: int, dim: int) -> None:
        super().__init__(pixels, dim)
        self.normalise = PixelNorm(pixels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens uint8 [B, L, pixels] to float32 [B, L, D]."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        out = _TokenLinear.apply(flat, self.weight, self.bias, self.normalise.scale, self.normalise.shift)
        return out.view(*tokens.shape[:-1], self.out_features)


class PixelHead(nn.Linear):
    """Decoder vectors to the pixels of their tokens, with the reconstruction loss built in."""

    def __init__(self, dim: int, pixels: int) -> None:
        super().__init__(dim, pixels)
        self.normalise = PixelNorm(pixels)

    def loss(self, x: Tensor, targets: Tensor, *, normalise_targets: bool = False) -> Tensor:
        """Mean squared error of the prediction from x [B, K, D] to uint8 targets [B, K, pixels]."""
        return _PixelLoss.apply(
            x.reshape(-1, x.shape[-1]),
            self.weight,
            self.bias,
            targets.reshape(-1, targets.shape[-1]),
            self.normalise.scale,
            self.normalise.shift,
            normalise_targets,
        )


class _ThumbnailLinear(torch.autograd.Function):
    """x W^T for uint8 pixels x [N, P]: converts block by block and keeps only the bytes for the backward pass.

    Works through blocks of rows, and the caller folds the normalisation into W. Not one with ``_TokenLinear``: neither
    order of work is the faster one everywhere (measured forwards and backwards in fp32, slices of columns take 1.8
    times as long on 12,000 thumbnails of 32 pixels and 0.6 times on 600 of 256), and normalising before instead of
    after the product moves the result by 1e-5.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, block: int) -> Tensor:
        dtype = (
            torch.get_autocast_dtype(pixels.device.type)
            if torch.is_autocast_enabled(pixels.device.type)
            else weight.dtype
        )
        ctx.save_for_backward(pixels)
        ctx.block, ctx.compute_dtype, ctx.weight_dtype = block, dtype, weight.dtype
        transposed = weight.to(dtype).t()
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.cat([part.to(dtype) @ transposed for part in pixels.split(block)]).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (pixels,) = ctx.saved_tensors
        grad = grads[0].to(ctx.compute_dtype)
        total: Tensor | None = None
        with torch.autocast(pixels.device.type, enabled=False):
            for part, grad_part in zip(pixels.split(ctx.block), grad.split(ctx.block), strict=True):
                product = (grad_part.t() @ part.to(ctx.compute_dtype)).to(ctx.weight_dtype)
                total = product if total is None else total.add_(product)
        assert total is not None
        return None, total, None


class ThumbnailEmbedding(nn.Module):
    """x_P-4096: one linear map of a region's whole thumbnail, uint8 [N, T, T, 3] -> [N, dim].

    The paper's convolution has a kernel as large as the thumbnail, so it is a matrix product. As a Conv2d its weight
    gradient is a hundred times slower. ImageNet normalisation is folded into the weights: bytes go in as they are.
    """

    # Thumbnails converted to floating point at a time.
    block = 256
    pixel_mean: Tensor
    pixel_scale: Tensor

    def __init__(self, side: int, dim: int):
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(dim, side * side * 3))
        self.bias = nn.Parameter(torch.zeros(dim))
        # As for a ViT's patch embedding, scaled by the number of pixels.
        nn.init.xavier_uniform_(self.weight)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).repeat(side * side) * 255, persistent=False)
        self.register_buffer("pixel_scale", torch.tensor(IMAGENET_STD).repeat(side * side) * 255, persistent=False)

    def forward(self, thumbnails: Tensor) -> Tensor:
        if thumbnails.dtype != torch.uint8 or tuple(thumbnails.shape[1:]) != (self.side, self.side, 3):
            raise ValueError(
                f"thumbnails must be uint8 [N, {self.side}, {self.side}, 3], "
                f"not {thumbnails.dtype} {tuple(thumbnails.shape)}"
            )
        weight = self.weight / self.pixel_scale
        offset = self.bias - weight @ self.pixel_mean
        return _ThumbnailLinear.apply(thumbnails.flatten(1), weight, self.block) + offset
