"""What every Transformer of the book is made of: position codes, attention by device and length, pre-norm blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Size of a stack of Transformer blocks: width, blocks, heads, hidden width of a block's perceptron over the width.

    Raises ValueError when the heads do not divide the width.
    """

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"width {self.dim} must be a multiple of the number of heads ({self.heads})")


# Every encoder of the paper, and both Transformers of the survival network (section III-A).
PAPER = Size(384, 12, 12)


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


def grid_positions(dim: int, side: int) -> Tensor:
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


def slide_positions(positions: Tensor, dim: int) -> Tensor:
    """Sine-cosine codes of places on a slide [..., 2] -> [..., dim]; half of it for x, half for y.

    Positions are in units of one region, so that neighbours differ by one.
    Raises ValueError when dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 for two axes of sine and cosine, not {dim}")
    steps = torch.arange(dim // 4, device=positions.device, dtype=torch.float32)
    frequency = torch.exp(-math.log(10000.0) * steps / (dim // 4))
    angle = positions.float().unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def in_low_precision(x: Tensor) -> Tensor:
    """Tokens in the precision of autocast on a GPU, where memory is what limits a step; unchanged elsewhere.

    Sums of residuals are then rounded to bf16; norms still take their statistics in fp32.
    """
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        return x.to(torch.get_autocast_dtype("cuda"))
    return x


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

    def __init__(self, size: Size) -> None:
        super().__init__()
        dim, hidden, self.heads = size.dim, int(size.dim * size.mlp_ratio), size.heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def split_heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Projections [B, L, parts * D] as ``parts`` tensors [B, heads, L, D / heads]."""
        batch, length, _ = x.shape
        return x.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What the heads mixed [B, heads, L, d] into the tokens x [B, L, D], and the perceptron."""
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, D] to [B, L, D]."""
        query, key, value = self.split_heads(self.qkv(self.norm1(x)), 3)
        return self.finish(x, attention(query, key, value))

    def forward_with(self, x: Tensor, qkv: Tensor) -> Tensor:
        """The same with the projections [B, L, 3 D] of the normed tokens already known."""
        query, key, value = self.split_heads(qkv, 3)
        return self.finish(x, attention(query, key, value))

    def forward_tail(self, x: Tensor, start: int) -> Tensor:
        """The result for tokens from ``start`` on, [B, L - start, D]: the others serve as keys and values only."""
        dim = x.shape[-1]
        normed = self.norm1(x)
        (query,) = self.split_heads(F.linear(normed[:, start:], self.qkv.weight[:dim], self.qkv.bias[:dim]), 1)
        key, value = self.split_heads(F.linear(normed, self.qkv.weight[dim:], self.qkv.bias[dim:]), 2)
        return self.finish(x[:, start:], attention(query, key, value))


def blocks(size: Size) -> nn.ModuleList:
    """``size.depth`` blocks."""
    return nn.ModuleList([Block(size) for _ in range(size.depth)])


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform linear maps, zero biases, unit norms (He et al. 2022)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
