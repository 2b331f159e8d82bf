"""Gated-attention multiple-instance pooling over patch vectors (Ilse, Tomczak and Welling, ICML 2018): a plain peer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hcmae_core.attention import InputScale, masked_softmax
from hcmae_core.hcmae import RiskHead, RiskKind


class GatedAttentionMIL(nn.Module):
    """A bag of patch vectors -> hidden layer -> gated attention -> log hazard.

    Args:
        vector_dim: D of the patch vectors.
        hidden: width of the hidden layer; the gate has half of it.
    """

    def __init__(self, *, vector_dim: int, hidden: int, dropout: float = 0.0, risk_head: RiskKind = "scaled_sigmoid"):
        super().__init__()
        self.vectors = InputScale(vector_dim)
        self.embed = nn.Sequential(nn.Linear(vector_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.content = nn.Linear(hidden, hidden // 2)
        self.gate = nn.Linear(hidden, hidden // 2)
        self.score = nn.Linear(hidden // 2, 1)
        self.risk = RiskHead(hidden, risk_head, dropout)

    def forward(self, patch_vectors: Tensor, mask: Tensor) -> Tensor:
        """patch_vectors [B, L, D], mask bool [B, L] -> log hazard [B]."""
        tokens = self.embed(self.vectors(patch_vectors))
        score = self.score(torch.tanh(self.content(tokens)) * torch.sigmoid(self.gate(tokens))).squeeze(-1)
        weights = masked_softmax(score, mask)
        return self.risk(torch.einsum("bl,bld->bd", weights.to(tokens.dtype), tokens))
