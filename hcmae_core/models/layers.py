"""Building blocks of both masked autoencoders: positions, attention, blocks, and pixels in and out of tokens.

Pixels stay uint8 until the two places that need numbers, the embedding of visible tokens and the loss on masked
tokens. Both are written as one linear map worked through in slices of pixels, so that neither the normalised image
nor the full prediction exists in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def has_tiles() -> bool:
    """Whether this CPU multiplies tiles of bf16 (AMX), so that products cost little beside everything around them."""
    test = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(test()) if test is not None else False


def explicit_attention_keys() -> dict[torch.dtype, int]:
    """Up to how many keys the explicit product beats the fused kernel on this CPU, per precision.

    The kernel's backward pass is slow for short rows, and in bf16 slower still. Where products are cheap, passes over
    the scores decide; the fused kernel saves them.
    """
    return {torch.float32: 128, torch.bfloat16: 128 if has_tiles() else 300}


EXPLICIT_ATTENTION_KEYS = explicit_attention_keys()
# Elements of the slice of pixels worked on at once: inside the cache of a CPU core, large enough to fill a GPU.
# Below the 192 x 196,608 numbers of one region's masked prediction, so that not even that one is ever whole.
_SLICE_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}
_OTHER_SLICE = 2**25


class MaskedOutput(NamedTuple):
    """What one masked step gives: mean squared error on masked tokens, their prediction if asked for, and who they are.

    loss: scalar. prediction: [B, Lm, pixels] in normalised units or None.
    masked, visible: token numbers [B, Lm], [B, Lv].
    """

    loss: Tensor
    prediction: Tensor | None
    masked: Tensor
    visible: Tensor


def sincos_positions(dim: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine position codes [side * side, dim], rows first; half codes the row, half the column.

    Raises ValueError when dim is not a multiple of 4. Source: He et al. 2022 (MAE), after Vaswani et al. 2017.
    """
    if dim % 4:
        raise ValueError(f"width {dim} must be a multiple of 4 for 2-D sine-cosine positions")
    quarter = dim // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    code = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = code[:, None, :].expand(side, side, -1)
    columns = code[None, :, :].expand(side, side, -1)
    # Columns first: the order of the reference implementation, so that its weights fit.
    return torch.cat([columns, rows], dim=-1).reshape(side * side, dim).float()


def random_order(batch: int, length: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Random permutations [B, L]; drawn where the generator lives (None: the CPU)."""
    where = generator.device if generator is not None else torch.device("cpu")
    noise = torch.rand(batch, length, generator=generator, device=where)
    return noise.argsort(dim=1).to(device, non_blocking=True)


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
    # Rows of a token are moved as machine words: eight times fewer elements to copy.
    word = torch.int64 if row % 8 == 0 and images.is_contiguous() and images.data_ptr() % 8 == 0 else torch.uint8
    width = row // word.itemsize
    grid = images.reshape(batch, size, size * 3).view(word).view(batch, side, token, side, width)
    return grid.transpose(2, 3).reshape(batch, side * side, token * width).view(torch.uint8)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` [B, K] of tokens [B, L, C], as [B, K, C]."""
    batch, length, width = tokens.shape
    flat = (ids + torch.arange(batch, device=ids.device)[:, None] * length).reshape(-1)
    return tokens.reshape(batch * length, width).index_select(0, flat).view(batch, ids.shape[1], width)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention over [B, heads, L, d]; chosen by device, precision and number of keys.

    On a CPU short rows are multiplied out; everything else goes to the fused kernel, in fp32 where a bf16 gradient will
    be asked for, since the kernel's backward pass takes more than twice as long in bf16. All compute the same function.
    """
    if query.device.type == "cpu":
        if key.shape[-2] <= EXPLICIT_ATTENTION_KEYS.get(query.dtype, 0):
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            return scores.softmax(dim=-1) @ value
        if query.dtype == torch.bfloat16 and torch.is_grad_enabled() and query.requires_grad:
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value)


class Block(nn.Module):
    """Pre-norm Transformer block, as in ViT: attention and a two-layer perceptron, each with a residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} must be a multiple of the number of heads ({heads})")
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, length, _ = x.shape
        return x.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, D] to [B, L, D]."""
        query, key, value = self._split(self.qkv(self.norm1(x)), 3)
        return self._finish(x, attention(query, key, value))

    def forward_with(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The same with the projections [B, L, 3 D] of the normed tokens already known."""
        query, key, value = self._split(qkv, 3)
        return self._finish(x, attention(query, key, value))

    def forward_tail(self, x: Tensor, start: int) -> Tensor:
        """The result for tokens from ``start`` on, [B, L - start, D]: the others serve as keys and values only."""
        dim = x.shape[-1]
        normed = self.norm1(x)
        (query,) = self._split(F.linear(normed[:, start:], self.qkv.weight[:dim], self.qkv.bias[:dim]), 1)
        key, value = self._split(F.linear(normed, self.qkv.weight[dim:], self.qkv.bias[dim:]), 2)
        return self._finish(x[:, start:], attention(query, key, value))


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform linear maps, zero biases, unit norms (He et al. 2022)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _SharedRows(torch.autograd.Function):
    """Rows of a small table for many images; the gradient is summed in fp32 whatever the table's precision."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.dtype = table.shape[0], table.dtype
        return table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        total = torch.zeros(ctx.rows, grad.shape[-1], dtype=torch.float32, device=grad.device)
        total.index_add_(0, ids.reshape(-1), grad.reshape(-1, grad.shape[-1]).float())
        return total.to(ctx.dtype), None


def shared_rows(table: Tensor, ids: Tensor) -> Tensor:
    """``table[ids]``: table [L, C], ids [B, K] -> [B, K, C]."""
    return _SharedRows.apply(table, ids)


def _working_dtype(device: torch.device) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def _slices(pixels: Tensor) -> Iterator[slice]:
    rows, columns = pixels.shape
    limit = _SLICE_ELEMENTS.get(pixels.device.type, _OTHER_SLICE)
    # A multiple of 48 keeps whole pixels and rows aligned to 16 numbers.
    step = columns if rows * columns <= limit else max(48, limit // rows // 48 * 48)
    for start in range(0, columns, step):
        yield slice(start, min(start + step, columns))


class _PixelLinear(torch.autograd.Function):
    """Linear map of normalised pixels that keeps only the uint8 pixels for the backward pass."""

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
    step = max(1, _SLICE_ELEMENTS.get(pixels.device.type, _OTHER_SLICE) // pixels.shape[1])
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
        out = _PixelLinear.apply(flat, self.weight, self.bias, self.normalise.scale, self.normalise.shift)
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


class Decoder(nn.Module):
    """Light decoder of a masked autoencoder, working in shuffled order: class token, visible tokens, masked tokens.

    Three savings leave the function unchanged: mask tokens are the same in every image, so the first block projects one
    per position; the last block answers for masked tokens only; the head sees masked tokens only.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        side: int,
        pixels: int,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        class_token: bool,
    ) -> None:
        super().__init__()
        self.class_token = class_token
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = PixelHead(width, pixels)
        self.register_buffer("positions", sincos_positions(width, side))

    def forward(self, x: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Encoded tokens [B, (1 +) Lv, D] to vectors of the masked tokens [B, Lm, width], ready for the head."""
        extra = int(self.class_token)
        batch, hidden = masked.shape
        seen = self.embed(x).float()
        position = self.positions[visible]
        seen = seen + (F.pad(position, (0, 0, 1, 0)) if extra else position)
        table = self.mask_token + self.positions
        blanks = shared_rows(table, masked)
        tokens = torch.cat([seen, blanks], dim=1)
        start, last = seen.shape[1], len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            # Worth it only when the masked tokens of the batch outnumber the positions.
            if number == 0 and batch * hidden > table.shape[0]:
                tokens = self._first(block, seen, table, tokens, masked, start if last == 0 else 0)
            elif number == last:
                tokens = block.forward_tail(tokens, start)
            else:
                tokens = block(tokens)
        return self.norm(tokens)

    @staticmethod
    def _first(block: Block, seen: Tensor, table: Tensor, tokens: Tensor, masked: Tensor, start: int) -> Tensor:
        shared = shared_rows(block.qkv(block.norm1(table)), masked)
        if start == 0:
            return block.forward_with(tokens, torch.cat([block.qkv(block.norm1(seen)), shared], dim=1))
        dim = table.shape[1]
        own = F.linear(block.norm1(seen), block.qkv.weight[dim:], block.qkv.bias[dim:])
        (query,) = block._split(shared[..., :dim], 1)
        key, value = block._split(torch.cat([own, shared[..., dim:]], dim=1), 2)
        return block._finish(tokens[:, start:], attention(query, key, value))
