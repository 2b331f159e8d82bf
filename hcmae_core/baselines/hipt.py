"""HIPT: Transformers over cells, patches and regions (Chen et al., CVPR 2022), and HC-MAE's omics integration with it.

Stages 1 and 2 (``vit_patch``, ``vit_region``) are pre-trained without labels by DINO (``hcmae_core.dino``) and
frozen; stage 3 (``HIPT``) is trained on survival.

Follows the publication: the hierarchy 16 -> 256 -> 4096 -> slide and DINO in two stages.
Follows its code: ViT-S/16 with 384 numbers, 12 blocks, 6 heads (21.7 M parameters); region ViT on the 16 x 16 grid of
frozen patch vectors, 192 numbers, 6 blocks, 6 heads (2,781,504 parameters); slide: linear 192, two post-norm layers
with 3 heads, gated attention pooling, four hazards (595,397 parameters); discrete-time likelihood, 2e-4,
accumulation over 32 patients.
Had to be decided: regions and patches are those of HC-MAE's two autoencoders (the budget of images is the profile's,
see ``hcmae.pipeline.budgets``); the survival code was never released, so its wiring follows MCAT's, whose settings it
shares.

``HIPTIntegration`` exists in the HC-MAE paper only, in one sentence (cross-attention with omics queries, a Transformer,
attention pooling). Had to be decided, all of it; it is built of HC-MAE's parts, with the same switches, so that only
the image differs: omics are the queries, HIPT's region vectors the keys and the values (HIPT has no thumbnail
embedding), one Transformer and pooling per stream (``fused_only=True``: one Transformer, for the paper's singular). On
MAE-PatReg's vectors it is HC-MAE without thumbnails.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hcmae_core.attention import AttentionPool, CrossAttention, InputScale, Transformer
from hcmae_core.baselines.parts import GatedAttentionPool, expect, expect_mask, hazard_risk
from hcmae_core.hcmae import OmicsProjection, RiskHead, RiskKind
from hcmae_core.transformer import PAPER, Size, init_weights


class GridEmbed(nn.Module):
    """Tokens of the region ViT: a linear layer and GELU on each cell of a grid of patch vectors [B, C, H, W].

    Takes the arguments that timm hands to a patch embedding; only the number of channels and the width matter here.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 14,
        patch_size: int = 1,
        in_chans: int = 384,
        embed_dim: int = 192,
        **_: object,
    ) -> None:
        super().__init__()
        side = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.img_size, self.patch_size, self.grid_size = side, (1, 1), side
        self.num_patches = side[0] * side[1]
        self.phi = nn.Sequential(nn.Linear(in_chans, embed_dim), nn.GELU())

    def forward(self, grid: Tensor) -> Tensor:
        return self.phi(grid.permute(0, 2, 3, 1))  # [B, H, W, D]


def vit_patch(
    cells: int = 14, cell: int = 16, size: Size = Size(384, 12, 6), drop_path: float = 0.0
) -> VisionTransformer:
    """Stage 1: images [B, 3, n * cell, n * cell] -> class token [B, dim]; any n (positions: ``cells`` a side)."""
    return VisionTransformer(
        img_size=cells * cell,
        patch_size=cell,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        mlp_ratio=size.mlp_ratio,
        num_classes=0,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
    )


def vit_region(
    grid: int = 14, in_dim: int = 384, size: Size = Size(192, 6, 6), drop_path: float = 0.0
) -> VisionTransformer:
    """Stage 2: grids of patch vectors [B, in_dim, n, n] -> class token [B, dim], for any n."""
    return VisionTransformer(
        img_size=grid,
        patch_size=1,
        in_chans=in_dim,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        mlp_ratio=size.mlp_ratio,
        num_classes=0,
        dynamic_img_size=True,
        embed_layer=GridEmbed,  # type: ignore[arg-type]
        drop_path_rate=drop_path,
    )


class HIPT(nn.Module):
    """Stage 3, slide images only: logits [B, bins] from region vectors [B, M, dim] with mask [B, M].

    Raises ValueError for a missing or empty bag. Source: Chen et al. 2022, section 3.
    """

    def __init__(
        self, in_dim: int = 192, dim: int = 192, heads: int = 3, layers: int = 2, bins: int = 4, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.embed = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU(), nn.Dropout(dropout))
        layer = nn.TransformerEncoderLayer(dim, heads, dim, dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pool = GatedAttentionPool(dim, dim, dropout)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))
        self.classifier = nn.Linear(dim, bins)

    def forward(self, regions: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.with_attention(regions, mask)[0]

    def with_attention(self, regions: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, bins] and the pooling weights [B, M] of the regions."""
        regions = expect("HIPT region vectors", regions, None, None, self.in_dim)
        mask = expect_mask(mask, regions)
        tokens = self.transformer(self.embed(regions), src_key_padding_mask=~mask)
        pooled, weights = self.pool(tokens, mask)
        return self.classifier(self.out(pooled)), weights

    risk = staticmethod(hazard_risk)


class HIPTIntegration(nn.Module):
    """Log hazard [B] from region vectors and omics: HC-MAE with region vectors as keys and as values.

    forward(regions [B, M, in_dim], omics [B, modalities, features], mask [B, M]) -> [B]. The switches are those of
    ``hcmae_core.hcmae.HCMAE``. Raises ValueError for a missing input or another width. Source: HC-MAE paper, section
    III (one sentence).
    """

    def __init__(
        self,
        in_dim: int = 192,
        features: int = 300,
        modalities: int = 3,
        transformer: Size = PAPER,
        dropout: float = 0.0,
        *,
        omics_dropout: float = 0.0,
        omics_projection: Literal["shared", "separate"] = "shared",
        pooler: Literal["separate", "shared"] = "separate",
        risk_head: RiskKind = "scaled_sigmoid",
        fused_only: bool = False,
    ) -> None:
        super().__init__()
        self.in_dim, self.features, self.modalities = in_dim, features, modalities
        dim = transformer.dim
        self.vectors = InputScale(in_dim)
        self.widen = nn.Linear(in_dim, dim)
        self.omics_map = OmicsProjection(features, dim, modalities, omics_projection == "shared", omics_dropout)
        self.cross = CrossAttention(dim, None, dropout).apply(init_weights)
        self.slide_transformer = Transformer(transformer, dropout)
        self.omics_transformer = nn.Identity() if fused_only else Transformer(transformer, dropout)
        self.slide_pool = AttentionPool(dim)
        self.omics_pool = self.slide_pool if pooler == "shared" else AttentionPool(dim)
        self.risk = RiskHead(2 * dim, risk_head, dropout)

    def forward(self, regions: Tensor, omics: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.with_attention(regions, omics, mask)[0]

    def with_attention(self, regions: Tensor, omics: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log hazard [B] and the cross-attention [B, modalities, M]."""
        regions = expect("region vectors", regions, None, None, self.in_dim)
        omics = expect("omics", omics, len(regions), self.modalities, self.features)
        mask = expect_mask(mask, regions)
        image, queries = self.widen(self.vectors(regions)), self.omics_map(omics)
        crossed, weights = self.cross(queries, image, image, mask)
        slide, _ = self.slide_pool(self.slide_transformer(crossed))
        molecules, _ = self.omics_pool(self.omics_transformer(queries))
        return self.risk(torch.cat([slide, molecules], -1)), weights
