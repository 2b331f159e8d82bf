"""CLAM-SB: gated attention over patches with instance-level clustering (Lu et al., Nature BME 2021).

Follows the publication and its code: a linear layer to 512, one gated attention branch (256), the attended mean
classified, and per class a small classifier taught on the eight most and the eight least attended patches; total loss
0.7 * bag + 0.3 * instances; 1e-4, weight decay 1e-5, at most 200 epochs, an update after every patient; dropout 0.25.
Adam there, AdamW here.
Had to be decided: CLAM is a classifier, HC-MAE names no classes; here the bag's classes are the four time bins of the
discrete survival likelihood, and the instance branch of a bin learns from patients who died in it only (a censored
patient's bin is unknown). The instance loss is the cross entropy (the code's default), not the smooth SVM.

"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmae_core.baselines.parts import GatedAttentionPool, expect, expect_mask, hazard_risk


class CLAMSB(nn.Module):
    """Logits [B, bins] from a bag of patch vectors [B, M, patch_dim] with mask [B, M].

    Raises ValueError for a missing or empty bag. Source: Lu et al. 2021, methods.
    """

    def __init__(
        self,
        patch_dim: int = 1024,
        dim: int = 512,
        hidden: int = 256,
        bins: int = 4,
        instances: int = 8,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.patch_dim, self.instances = patch_dim, instances
        self.patches = nn.Sequential(nn.Linear(patch_dim, dim), nn.ReLU(), nn.Dropout(dropout))
        self.pool = GatedAttentionPool(dim, hidden, dropout)
        self.classifier = nn.Linear(dim, bins)
        self.instance_classifiers = nn.ModuleList(nn.Linear(dim, 2) for _ in range(bins))

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.with_attention(patches, mask)[0]

    def with_attention(self, patches: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, bins], attention [B, M] (sums to 1), patch codes [B, M, dim]."""
        patches = expect("patch vectors", patches, None, None, self.patch_dim)
        mask = expect_mask(mask, patches)
        codes = self.patches(patches)
        pooled, weights = self.pool(codes, mask)
        return self.classifier(pooled), weights, codes

    def instance_loss(
        self, weights: Tensor, codes: Tensor, bins: Tensor, event: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mean cross entropy of the instance branch: most attended patches 1, least attended 0, in the bin of death.

        bins int [B], event [B]. A bag of n patches gives min(instances, n // 2) of each kind; without any, the loss is
        0.
        """
        mask = expect_mask(mask, codes)
        losses = []
        for row in range(len(codes)):
            real = mask[row].nonzero().flatten()
            count = min(self.instances, len(real) // 2)
            if not count or not bool(event[row]):
                continue
            order = real[weights[row, real].detach().argsort(descending=True)]
            chosen = torch.cat([order[:count], order[-count:]])
            target = torch.cat([torch.ones(count), torch.zeros(count)]).long().to(codes.device)
            losses.append(F.cross_entropy(self.instance_classifiers[int(bins[row])](codes[row, chosen]), target))
        return torch.stack(losses).mean() if losses else codes.sum() * 0.0

    risk = staticmethod(hazard_risk)
