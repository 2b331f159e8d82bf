"""HC-MAE's survival network (paper, section II-C, Eq. 6-12), small enough to read in one sitting.

One patient is a bag of M regions and three vectors of omics. Bags of different sizes are padded to the longest and
carry a mask (True = a real region), so that a whole group of patients is one forward pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hcmae_core.attention import (
    AttentionPool,
    CrossAttention,
    InputScale,
    Transformer,
    index_positions,
)
from hcmae_core.pixels import ThumbnailEmbedding
from hcmae_core.transformer import PAPER, Size, init_weights, slide_positions

RiskKind = Literal["scaled_sigmoid", "sigmoid", "linear"]


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
            real = real + slide_positions(places[mask], real.shape[-1]).to(real.dtype)
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
        transformer: size of both Transformers.
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
        transformer: Size = PAPER,
        dropout: float = 0.0,
        omics_dropout: float = 0.0,
        omics_projection: Literal["shared", "separate"] = "shared",
        pooler: Literal["separate", "shared"] = "separate",
        risk_head: RiskKind = "scaled_sigmoid",
        slide_positions: bool = True,
    ):
        super().__init__()
        dim = transformer.dim
        self.omics_map = OmicsProjection(omics_features, dim, modalities, omics_projection == "shared", omics_dropout)
        self.vectors = InputScale(vector_dim)
        self.slide = SlideTokens(thumbnail, dim, slide_positions)
        self.cross = CrossAttention(dim, vector_dim, dropout).apply(init_weights)
        self.slide_transformer = Transformer(transformer, dropout)
        self.omics_transformer = Transformer(transformer, dropout)
        self.slide_pool = AttentionPool(dim)
        self.omics_pool = self.slide_pool if pooler == "shared" else AttentionPool(dim)
        self.risk = RiskHead(2 * dim, risk_head, dropout)

    def attend(
        self, thumbnails: Tensor, region_vectors: Tensor, mask: Tensor, omics: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 6 and 7: (x_O [B, 3, d], x_C [B, 3, d], attention of each omics over the regions [B, 3, M])."""
        check_bag(region_vectors, mask)
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


def check_bag(vectors: Tensor, mask: Tensor) -> None:
    """Raises ValueError unless vectors [B, M, D] come with a boolean mask [B, M]."""
    if vectors.ndim != 3 or mask.shape != vectors.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"region_vectors [B, M, D] {tuple(vectors.shape)} need a boolean mask [B, M], "
            f"not {mask.dtype} {tuple(mask.shape)}"
        )


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
