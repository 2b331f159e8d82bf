"""HC-MAE's survival network (paper, section II-C, Eq. 6-12), small enough to read in one sitting.

One patient is a bag of M regions and three vectors of omics. Bags of different sizes are padded to the longest and
carry a mask (True = a real region), so that a whole group of patients is one forward pass.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

RiskKind = Literal["scaled_sigmoid", "sigmoid", "linear"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors.to(self.mean.dtype) - self.mean) / self.scale


class _PixelLinear(torch.autograd.Function):
    """x W^T for uint8 pixels x [N, P]: converts block by block and keeps only the bytes for the backward pass."""

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
        return _PixelLinear.apply(thumbnails.flatten(1), weight, self.block) + offset


def sincos_positions(positions: Tensor, dim: int) -> Tensor:
    """Fixed sine-cosine embedding of grid positions [..., 2] -> [..., dim]; half of it for x, half for y.

    Positions are in units of one region, so that neighbours differ by one.
    Raises ValueError when dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 for two axes of sine and cosine, not {dim}")
    steps = torch.arange(dim // 4, device=positions.device, dtype=torch.float32)
    frequency = torch.exp(-math.log(10000.0) * steps / (dim // 4))
    angle = positions.float().unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


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
    """Softmax(w_q Q (w_k K)^T / sqrt(d)) w_v V, single head, no residual, no output projection (Eq. 7)."""

    def __init__(self, dim: int, value_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(value_dim or dim, dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Q, d], [B, M, d], [B, M, dv], [B, M] -> ([B, Q, d], attention [B, Q, M])."""
        query, key, value = self.query(queries), self.key(keys), self.value(values)
        logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        weights = masked_softmax(logits, mask[:, None, :])
        return self.dropout(weights).to(value.dtype) @ value, weights


class Transformer(nn.Module):
    """A stack of pre-norm blocks and a final norm over tokens [B, L, d]; padded tokens are never attended to."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias=True, proj_drop=dropout, attn_drop=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

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


class RiskHead(nn.Module):
    """Log hazard [B] of a representation [B, d].

    "scaled_sigmoid" is 8 sigmoid(.) - 4 as in the release: a log hazard in (-4, 4). The paper's words give the bare
    "sigmoid", which bounds the hazard ratio between any two patients by e. "linear" is Cox's own.
    """

    def __init__(self, dim: int, kind: RiskKind = "scaled_sigmoid", dropout: float = 0.0):
        super().__init__()
        if kind not in ("scaled_sigmoid", "sigmoid", "linear"):
            raise ValueError(f"unknown risk head {kind!r}: scaled_sigmoid, sigmoid or linear")
        self.kind = kind
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, 1)

    def forward(self, representation: Tensor) -> Tensor:
        value = self.linear(self.dropout(representation)).squeeze(-1).float()
        if self.kind == "linear":
            return value
        return torch.sigmoid(value) * 8 - 4 if self.kind == "scaled_sigmoid" else torch.sigmoid(value)


class OmicsProjection(nn.Module):
    """x_O = MLP(x_omics): [B, 3, K] -> [B, 3, d] (Eq. 6); one map for all omics (paper, release) or one for each."""

    def __init__(self, features: int, dim: int, modalities: int, shared: bool = True, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.maps = nn.ModuleList(nn.Linear(features, dim) for _ in range(1 if shared else modalities))

    def forward(self, omics: Tensor) -> Tensor:
        omics = self.dropout(omics)
        if len(self.maps) == 1:
            return self.maps[0](omics)
        return torch.stack([layer(omics[:, index]) for index, layer in enumerate(self.maps)], 1)


class SlideTokens(nn.Module):
    """The slide level: embedded thumbnails with their places, [B, M, T, T, 3] -> [B, M, d]; padding gives zeros."""

    def __init__(self, side: int, dim: int, with_positions: bool = True):
        super().__init__()
        self.embed = ThumbnailEmbedding(side, dim)
        self.norm = nn.LayerNorm(dim)
        self.with_positions = with_positions

    def forward(self, thumbnails: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        # Only real regions are embedded: padding costs nothing here, where the arithmetic is.
        real = self.norm(self.embed(thumbnails[mask]))
        if self.with_positions:
            places = index_positions(mask) if positions is None else positions
            real = real + sincos_positions(places[mask], real.shape[-1]).to(real.dtype)
        tokens = real.new_zeros(*mask.shape, real.shape[-1])
        tokens[mask] = real
        return tokens


class HCMAE(nn.Module):
    """The complete model: omics question the slide, two Transformers, two attention pools, one risk (Eq. 6-12).

    Args:
        omics_features: K, features kept per modality (300).
        modalities: number of omics (3).
        vector_dim: D of the region vectors x_A-4096.
        thumbnail: side T of a region's thumbnail in pixels.
        dim, depth, heads, mlp_ratio: of both Transformers (384, 12, 12, 4).
        dropout: in Transformers and head; omics_dropout: on the omics input.
        omics_projection: "shared" or "separate" linear map of the three omics.
        pooler: "separate" (paper) or "shared" (release) attention pool of the two streams.
        risk_head: see ``RiskHead``.
        slide_positions: add the place of a region to its thumbnail's embedding (paper) or not (release).
    """

    def __init__(
        self,
        *,
        omics_features: int,
        vector_dim: int,
        thumbnail: int,
        modalities: int = 3,
        dim: int = 384,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        omics_dropout: float = 0.0,
        omics_projection: Literal["shared", "separate"] = "shared",
        pooler: Literal["separate", "shared"] = "separate",
        risk_head: RiskKind = "scaled_sigmoid",
        slide_positions: bool = True,
    ):
        super().__init__()
        self.omics_map = OmicsProjection(omics_features, dim, modalities, omics_projection == "shared", omics_dropout)
        self.vectors = InputScale(vector_dim)
        self.slide = SlideTokens(thumbnail, dim, slide_positions)
        self.cross = CrossAttention(dim, vector_dim, dropout)
        self.slide_transformer = Transformer(dim, depth, heads, mlp_ratio, dropout)
        self.omics_transformer = Transformer(dim, depth, heads, mlp_ratio, dropout)
        self.slide_pool = AttentionPool(dim)
        self.omics_pool = self.slide_pool if pooler == "shared" else AttentionPool(dim)
        self.risk = RiskHead(2 * dim, risk_head, dropout)

    def attend(
        self, thumbnails: Tensor, region_vectors: Tensor, mask: Tensor, omics: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 6 and 7: (x_O [B, 3, d], x_C [B, 3, d], attention of each omics over the regions [B, 3, M])."""
        _check_bag(region_vectors, mask)
        queries = self.omics_map(omics)
        keys = self.slide(thumbnails, mask, positions)
        values = self.vectors(region_vectors)
        crossed, attention = self.cross(queries, keys, values, mask)
        return queries, crossed, attention

    def forward(
        self, thumbnails: Tensor, region_vectors: Tensor, mask: Tensor, omics: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Log hazard [B].

        Shapes: thumbnails uint8 [B, M, T, T, 3], region_vectors [B, M, D], mask bool [B, M], omics [B, 3, K],
        positions [B, M, 2] in units of a region (None: the order in the bag).
        """
        queries, crossed, _ = self.attend(thumbnails, region_vectors, mask, omics, positions)
        slide, _ = self.slide_pool(self.slide_transformer(crossed))
        molecules, _ = self.omics_pool(self.omics_transformer(queries))
        return self.risk(torch.cat([slide, molecules], -1))


def _check_bag(vectors: Tensor, mask: Tensor) -> None:
    if vectors.ndim != 3 or mask.shape != vectors.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"region_vectors [B, M, D] {tuple(vectors.shape)} need a boolean mask [B, M], "
            f"not {mask.dtype} {tuple(mask.shape)}"
        )


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


__all__ = [
    "HCMAE",
    "AttentionPool",
    "CrossAttention",
    "InputScale",
    "OmicsProjection",
    "RiskHead",
    "SlideTokens",
    "ThumbnailEmbedding",
    "Transformer",
    "count_parameters",
    "index_positions",
    "masked_softmax",
    "sincos_positions",
]
