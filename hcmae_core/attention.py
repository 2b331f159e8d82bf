"""Attention between sets: cross-attention, Transformers over bags, attention pooling."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hcmae_core.transformer import Size


class InputScale(nn.Module):
    """Standardise vectors [..., D] by the mean and deviation of the training patients; both are buffers.

    Encoder outputs have dimensions of very different spread. Until ``fit`` is called this is the identity.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Take the statistics of the vectors [N, D] of training patients."""
        values = vectors.detach().float()
        self.mean.copy_(values.mean(0))
        spread = values.std(0, correction=0)
        # A dimension without spread says nothing: it is centred and left alone.
        self.scale.copy_(torch.where(spread > 1e-8, spread, torch.ones_like(spread)))

    @torch.no_grad()
    def fit_parts(self, parts: Iterable[Tensor]) -> None:
        """The same from parts [n, D] that need not be in memory together; sums are taken in fp64."""
        count = 0
        total = torch.zeros(len(self.mean), dtype=torch.float64)
        square = total.clone()
        for part in parts:
            values = part.detach().double().cpu()
            count += len(values)
            total += values.sum(0)
            square += values.square().sum(0)
        mean = total / count
        spread = (square / count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-8, spread, torch.ones_like(spread)))

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors.to(self.mean.dtype) - self.mean) / self.scale


def index_positions(mask: Tensor) -> Tensor:
    """Where the place of a region on the slide is unknown: its number in the bag on the x axis, [B, M, 2]."""
    number = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32)
    return torch.stack([number, torch.zeros_like(number)], -1).expand(mask.shape[0], -1, -1)


def masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis where mask is True; a row without any True gives zeros, not NaN."""
    if mask is None:
        return logits.softmax(-1)
    weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1)
    return weights * mask


class CrossAttention(nn.Module):
    """softmax(w_q Q (w_k K)^T / sqrt(d)) w_v V: one head, no output map, no residual, no norm (Eq. 4 and Eq. 7).

    Without a mask every key counts. The linear maps start as torch makes them: who builds a network initialises it.
    """

    def __init__(self, dim: int, value_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(value_dim or dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, Q, d], [B, M, d], [B, M, dv], mask [B, M] -> ([B, Q, d], attention [B, Q, M])."""
        query, key, value = self.query(queries), self.key(keys), self.value(values)
        # Where the scale enters decides the last bit of a score; each equation keeps the bits of earlier runs.
        if mask is None:
            weights = (query * query.shape[-1] ** -0.5 @ key.transpose(1, 2)).float().softmax(-1)
        else:
            logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
            weights = masked_softmax(logits, mask[:, None, :])
        return self.dropout(weights).to(value.dtype) @ value, weights


class Transformer(nn.Module):
    """A stack of pre-norm blocks and a final norm over tokens [B, L, d]; padded tokens are never attended to."""

    def __init__(self, size: Size, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(size.dim, size.heads, size.mlp_ratio, qkv_bias=True, proj_drop=dropout, attn_drop=dropout)
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        keys = None
        if mask is not None:
            # An empty bag attends to its padding; the pool that follows weighs it with zero.
            keys = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, attn_mask=keys)
        return self.norm(tokens)


class AttentionPool(nn.Module):
    """Softmax(MLP(x)) . x: one weight per token, their weighted sum (Eq. 10 and 11)."""

    def __init__(self, dim: int, hidden: int | None = None):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(dim, hidden or dim), nn.ReLU(), nn.Linear(hidden or dim, 1))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, L, d], mask [B, L] -> ([B, d], weights [B, L])."""
        weights = masked_softmax(self.score(tokens).squeeze(-1), mask)
        return torch.einsum("bl,bld->bd", weights.to(tokens.dtype), tokens), weights
