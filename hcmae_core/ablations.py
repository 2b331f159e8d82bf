"""The seven configurations of Table III, composed of HC-MAE's own parts.

A configuration says which vectors a patient's bag holds, whether thumbnails take part, and whether omics do. Neighbours
in the table differ in one of these and in what follows from it: with thumbnails come a cross-attention and a
Transformer, with omics the thumbnails turn from queries into keys (``hcmae.survival.differences`` counts it). The
release's own ablation models differ further (its HC-RegSli has no cross-attention at all); they are kept as
``*_release`` to show what that confounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hcmae_core.attention import AttentionPool, CrossAttention, InputScale, Transformer
from hcmae_core.hcmae import HCMAE, OmicsProjection, RiskHead, RiskKind, SlideTokens, check_bag
from hcmae_core.transformer import PAPER, Size, init_weights

Tokens = Literal["patch", "region_reg", "region"]


@dataclass(frozen=True)
class Configuration:
    """What a model sees: its bag of vectors, slide-level thumbnails, omics."""

    tokens: Tokens | None = None
    thumbnails: bool = False
    omics: bool = False


CONFIGURATIONS: dict[str, Configuration] = {
    "mae_pat": Configuration(tokens="patch"),
    "mae_reg": Configuration(tokens="region_reg"),
    "mae_patreg": Configuration(tokens="region"),
    "hc_regsli": Configuration(tokens="region_reg", thumbnails=True),
    "hc_patregsli": Configuration(tokens="region", thumbnails=True),
    "trans_mo": Configuration(omics=True),
    "hcmae": Configuration(tokens="region", thumbnails=True, omics=True),
}


class BagPool(nn.Module):
    """MAE-Pat, MAE-Reg, MAE-PatReg: attention-pool a bag of vectors [B, L, D], one linear layer, log hazard [B]."""

    def __init__(self, *, vector_dim: int, dropout: float = 0.0, risk_head: RiskKind = "scaled_sigmoid"):
        super().__init__()
        self.vectors = InputScale(vector_dim)
        self.pool = AttentionPool(vector_dim)
        self.risk = RiskHead(vector_dim, risk_head, dropout)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        check_bag(vectors, mask)
        pooled, _ = self.pool(self.vectors(vectors), mask)
        return self.risk(pooled)


class HierarchicalBag(nn.Module):
    """HC-RegSli, HC-PatRegSli: HC-MAE's image stream when there are no omics to ask the questions.

    The paper leaves the query undefined here; as in the release the embedded thumbnails ask (Q) and the region vectors
    answer (K and V). Everything behind the cross-attention is HC-MAE's.
    """

    def __init__(
        self,
        *,
        vector_dim: int,
        thumbnail: int,
        transformer: Size = PAPER,
        dropout: float = 0.0,
        risk_head: RiskKind = "scaled_sigmoid",
        slide_positions: bool = True,
    ):
        super().__init__()
        dim = transformer.dim
        self.vectors = InputScale(vector_dim)
        # Keys are region vectors here, so they enter at the Transformer's width.
        self.widen = nn.Identity() if vector_dim == dim else nn.Linear(vector_dim, dim)
        self.slide = SlideTokens(thumbnail, dim, slide_positions)
        self.cross = CrossAttention(dim, None, dropout).apply(init_weights)
        self.slide_transformer = Transformer(transformer, dropout)
        self.slide_pool = AttentionPool(dim)
        self.risk = RiskHead(dim, risk_head, dropout)

    def forward(
        self, thumbnails: Tensor, region_vectors: Tensor, mask: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        check_bag(region_vectors, mask)
        vectors = self.widen(self.vectors(region_vectors))
        crossed, _ = self.cross(self.slide(thumbnails, mask, positions), vectors, vectors, mask)
        pooled, _ = self.slide_pool(self.slide_transformer(crossed, mask), mask)
        return self.risk(pooled)


class OmicsTransformer(nn.Module):
    """Trans-MO: HC-MAE's omics stream alone, omics [B, 3, K] -> log hazard [B]."""

    def __init__(
        self,
        *,
        omics_features: int,
        modalities: int = 3,
        transformer: Size = PAPER,
        dropout: float = 0.0,
        omics_dropout: float = 0.0,
        omics_projection: Literal["shared", "separate"] = "shared",
        risk_head: RiskKind = "scaled_sigmoid",
    ):
        super().__init__()
        dim = transformer.dim
        self.omics_map = OmicsProjection(omics_features, dim, modalities, omics_projection == "shared", omics_dropout)
        self.omics_transformer = Transformer(transformer, dropout)
        self.omics_pool = AttentionPool(dim)
        self.risk = RiskHead(dim, risk_head, dropout)

    def forward(self, omics: Tensor) -> Tensor:
        pooled, _ = self.omics_pool(self.omics_transformer(self.omics_map(omics)))
        return self.risk(pooled)


def build(
    configuration: Configuration,
    *,
    vector_dim: int,
    thumbnail: int,
    omics_features: int,
    modalities: int = 3,
    transformer: Size = PAPER,
    dropout: float = 0.0,
    omics_dropout: float = 0.0,
    risk_head: RiskKind = "scaled_sigmoid",
    slide_positions: bool = True,
    omics_projection: Literal["shared", "separate"] = "shared",
    pooler: Literal["separate", "shared"] = "separate",
) -> nn.Module:
    """The network of a configuration; ``transformer`` is the size of its Transformers.

    Raises ValueError for a combination that is none of the seven (thumbnails without region vectors, nothing at all).
    """
    if configuration.omics and configuration.thumbnails and configuration.tokens in ("region", "region_reg"):
        return HCMAE(
            omics_features=omics_features,
            modalities=modalities,
            vector_dim=vector_dim,
            thumbnail=thumbnail,
            dropout=dropout,
            omics_dropout=omics_dropout,
            omics_projection=omics_projection,
            pooler=pooler,
            risk_head=risk_head,
            slide_positions=slide_positions,
            transformer=transformer,
        )
    if configuration.omics and configuration.tokens is None and not configuration.thumbnails:
        return OmicsTransformer(
            omics_features=omics_features,
            modalities=modalities,
            dropout=dropout,
            omics_dropout=omics_dropout,
            omics_projection=omics_projection,
            risk_head=risk_head,
            transformer=transformer,
        )
    if not configuration.omics and configuration.thumbnails and configuration.tokens in ("region", "region_reg"):
        return HierarchicalBag(
            vector_dim=vector_dim,
            thumbnail=thumbnail,
            dropout=dropout,
            risk_head=risk_head,
            slide_positions=slide_positions,
            transformer=transformer,
        )
    if not configuration.omics and not configuration.thumbnails and configuration.tokens is not None:
        return BagPool(vector_dim=vector_dim, dropout=dropout, risk_head=risk_head)
    raise ValueError(f"{configuration} is none of Table III's models: thumbnails need region vectors to question")


class ReleaseRegionSlide(nn.Module):
    """The release's HC-RegSli: a small CNN on thumbnails beside pooled region vectors, and no cross-attention."""

    def __init__(self, *, vector_dim: int, thumbnail: int, risk_head: RiskKind = "scaled_sigmoid"):
        super().__init__()
        if thumbnail < 72:
            raise ValueError(f"the release's CNN needs thumbnails of 72 pixels or more, not {thumbnail}")
        self.vectors = InputScale(vector_dim)
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 32, 9, 6), nn.ReLU(), nn.AdaptiveMaxPool2d(5), nn.Flatten()
        )
        self.widen = nn.Linear(800, vector_dim)
        self.pool = AttentionPool(vector_dim)
        self.risk = RiskHead(2 * vector_dim, risk_head)

    def forward(self, thumbnails: Tensor, region_vectors: Tensor, mask: Tensor) -> Tensor:
        check_bag(region_vectors, mask)
        pixels = thumbnails[mask].permute(0, 3, 1, 2).float() / 127.5 - 1
        seen = self.widen(self.cnn(pixels))
        tokens = seen.new_zeros(*mask.shape, seen.shape[-1])
        tokens[mask] = seen
        slide, _ = self.pool(tokens, mask)
        regions, _ = self.pool(self.vectors(region_vectors), mask)
        return self.risk(torch.cat([slide, regions], -1))


def release_hierarchical(*, vector_dim: int, thumbnail: int, risk_head: RiskKind = "scaled_sigmoid") -> HierarchicalBag:
    """The release's HC-PatRegSli: two blocks of three heads whatever the profile says, and no positions."""
    return HierarchicalBag(
        vector_dim=vector_dim,
        thumbnail=thumbnail,
        transformer=Size(vector_dim, 2, 3),
        risk_head=risk_head,
        slide_positions=False,
    )
