"""What both masked autoencoders share: token encoder, decoder, and the step from masked input to loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmae_core.pixels import PixelEmbedding, PixelHead
from hcmae_core.transformer import Block, attention, grid_positions


class MaskedOutput(NamedTuple):
    """What one masked step gives: mean squared error on masked tokens, their prediction if asked for, and who they are.

    loss: scalar. prediction: [B, Lm, pixels] in normalised units or None.
    masked, visible: token numbers [B, Lm], [B, Lv].
    """

    loss: Tensor
    prediction: Tensor | None
    masked: Tensor
    visible: Tensor


def random_order(batch: int, length: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Random permutations [B, L]; drawn where the generator lives (None: the CPU)."""
    where = generator.device if generator is not None else torch.device("cpu")
    noise = torch.rand(batch, length, generator=generator, device=where)
    return noise.argsort(dim=1).to(device, non_blocking=True)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` [B, K] of tokens [B, L, C], as [B, K, C]."""
    batch, length, width = tokens.shape
    flat = (ids + torch.arange(batch, device=ids.device)[:, None] * length).reshape(-1)
    return tokens.reshape(batch * length, width).index_select(0, flat).view(batch, ids.shape[1], width)


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
        self.register_buffer("positions", grid_positions(width, side))

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


class TokenEncoder(nn.Module):
    """Vision Transformer over pixel tokens: embedding, fixed positions, optional class token, blocks, final norm."""

    positions: Tensor

    def __init__(
        self, pixels: int, side: int, *, dim: int, depth: int, heads: int, mlp_ratio: float, class_token: bool
    ) -> None:
        super().__init__()
        self.embed = PixelEmbedding(pixels, dim)
        self.class_token = nn.Parameter(torch.zeros(dim)) if class_token else None
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("positions", grid_positions(dim, side))

    @property
    def extra(self) -> int:
        """Tokens before the image tokens: 1 with a class token, else 0."""
        return int(self.class_token is not None)

    def embed_tokens(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Pixel tokens uint8 [B, K, pixels] of positions ``ids`` [B, K] (None: all) to x_P [B, K, D]."""
        return self.embed(tokens) + (self.positions if ids is None else self.positions[ids])

    def run_blocks(self, x: Tensor, depth: int | None = None) -> Tensor:
        """x_P [B, K, D] through the class token and the first ``depth`` blocks (None: all), without the final norm."""
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1)
        for block in self.blocks[:depth]:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """x_P [B, K, D] to [B, (1 +) K, D]."""
        return self.norm(self.run_blocks(x))
