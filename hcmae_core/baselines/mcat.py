"""MCAT: omics tokens attend over patch vectors (multimodal co-attention Transformer; Chen et al., ICCV 2021).

Follows the publication and its code (they agree on the network: 3,227,398 parameters without the omics networks at
1024-number patch vectors): a linear layer on patches, one self-normalising network per omics group, single-head
co-attention with omics as queries, a two-layer Transformer and gated attention pooling per stream, concatenation, four
discrete hazards. Loss and risk: discrete-time likelihood over four bins, risk = - sum of survival. Patients are drawn
with replacement, time bins of dead and censored equally often (``hcmae.survival.table2.balanced_weights``).
Had to be decided: the omics groups are the three modalities (the six gene families of the original need a gene
list that covers RNA only; any number of groups works: ``groups`` is a list of widths); patch vectors come from an
ImageNet ResNet-50 when its weights are on disk, else from the frozen MAE-Patch; time bins come from the training
patients only (the code cuts them on the whole cohort); bags are padded and masked, so that several patients fit a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hcmae_core.baselines.parts import GatedAttentionPool, expect, expect_mask, hazard_risk


class MCAT(nn.Module):
    """Logits [B, bins] of discrete hazards from a bag of patches and omics groups.

    forward(patches [B, M, patch_dim], omics: list of [B, groups[i]], mask bool [B, M]).
    Raises ValueError for a missing group or another width. Source: Chen et al. 2021, section 3.
    """

    def __init__(
        self,
        patch_dim: int = 1024,
        groups: tuple[int, ...] = (300, 300, 300),
        dim: int = 256,
        heads: int = 8,
        feedforward: int = 512,
        layers: int = 2,
        bins: int = 4,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.patch_dim, self.groups = patch_dim, tuple(groups)
        self.patches = nn.Sequential(nn.Linear(patch_dim, dim), nn.ReLU(), nn.Dropout(dropout))
        self.omics = nn.ModuleList(
            nn.Sequential(_snn_block(width, dim, dropout), _snn_block(dim, dim, dropout)) for width in groups
        )
        self.coattention = nn.MultiheadAttention(dim, 1, batch_first=True)
        self.path_transformer = _transformer(dim, heads, feedforward, layers, dropout)
        self.omics_transformer = _transformer(dim, heads, feedforward, layers, dropout)
        self.path_pool = GatedAttentionPool(dim, dim, dropout)
        self.omics_pool = GatedAttentionPool(dim, dim, dropout)
        self.path_out = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))
        self.omics_out = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))
        self.fusion = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.classifier = nn.Linear(dim, bins)

    def forward(self, patches: Tensor, omics: list[Tensor], mask: Tensor | None = None) -> Tensor:
        return self.with_attention(patches, omics, mask, need_weights=False)[0]

    def with_attention(
        self, patches: Tensor, omics: list[Tensor], mask: Tensor | None = None, *, need_weights: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [B, bins] and, on request, the co-attention [B, groups, M] that the paper draws on the slide."""
        patches = expect("patch vectors", patches, None, None, self.patch_dim)
        mask = expect_mask(mask, patches)
        if len(omics) != len(self.groups):
            raise ValueError(
                f"MCAT was built for {len(self.groups)} omics groups, got {len(omics)}: give every modality"
            )
        genes = torch.stack(
            [
                network(expect(f"omics group {i}", group, len(patches), self.groups[i]))
                for i, (network, group) in enumerate(zip(self.omics, omics, strict=True))
            ],
            dim=1,
        )  # [B, G, dim]
        bag = self.patches(patches)
        attended, weights = self.coattention(
            genes, bag, bag, key_padding_mask=~mask, need_weights=need_weights, average_attn_weights=True
        )  # [B, G, dim]
        path = self.path_out(self.path_pool(self.path_transformer(attended))[0])
        gene = self.omics_out(self.omics_pool(self.omics_transformer(genes))[0])
        return self.classifier(self.fusion(torch.cat([path, gene], dim=1))), weights

    risk = staticmethod(hazard_risk)


def _snn_block(width: int, dim: int, dropout: float) -> nn.Sequential:
    """Linear, ELU, alpha dropout: keeps activations near zero mean and unit variance."""
    return nn.Sequential(nn.Linear(width, dim), nn.ELU(), nn.AlphaDropout(dropout))


def _transformer(dim: int, heads: int, feedforward: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(dim, heads, feedforward, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
