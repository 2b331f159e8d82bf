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
    def fit(self, vectors: Tensor | Iterable[Tensor]) -> None:
        """Take the statistics of the vectors [N, D] of training patients, given at once or in parts.

        One part at a time is in memory. Moments of parts are joined as in Chan, Golub and LeVeque (1979). Raises
        ValueError where there is no vector.
        """
        count, mean, spread = 0, self.mean, self.scale
        for part in [vectors] if isinstance(vectors, Tensor) else vectors:
            values = part.detach().float()
            own_mean, own_spread = values.mean(0), values.std(0, correction=0)
            if count == 0:
                count, mean, spread = len(values), own_mean, own_spread
                continue
            share = len(values) / (count + len(values))
            shift = own_mean.double() - mean.double()
            variance = (1 - share) * spread.double() ** 2 + share * own_spread.double() ** 2
            spread = (variance + share * (1 - share) * shift**2).sqrt()
            mean = mean.double() + share * shift
            count += len(values)
        if count == 0:
            raise ValueError("InputScale.fit: no vectors to take mean and deviation of")
        self.mean.copy_(mean)
        # A dimension without spread says nothing: it is centred and left alone.
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
