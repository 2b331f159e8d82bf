"""What several compared methods share: a check of input shapes, gated attention pooling, hazards turned to a risk."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def expect(name: str, tensor: Tensor | None, *shape: int | None) -> Tensor:
    """Return ``tensor`` if it has ``shape`` (None: any size), else say what the method wanted and what came.

    Raises ValueError for a missing input, a wrong number of axes, a wrong size or an empty bag.
    """
    wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
    if tensor is None:
        raise ValueError(
            f"{name} is missing: this method needs it with shape {wanted}; give it or choose another method"
        )
    found = list(tensor.shape)
    if len(found) != len(shape) or any(size not in (None, got) for size, got in zip(shape, found, strict=True)):
        raise ValueError(f"{name} has shape {found}, but this method was built for {wanted}")
    if 0 in found:
        raise ValueError(f"{name} is empty (shape {found}): leave the patient out, or give at least one row")
    return tensor


def expect_mask(mask: Tensor | None, bag: Tensor) -> Tensor:
    """A bool mask [B, M], True where the bag has a real row; None means all rows are real.

    Raises ValueError for a patient whose bag has no real row.
    """
    if mask is None:
        return torch.ones(bag.shape[:2], dtype=torch.bool, device=bag.device)
    mask = expect("mask", mask, bag.shape[0], bag.shape[1]).bool()
    if not bool(mask.any(dim=1).all()):
        rows = (~mask.any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"the bags of rows {rows} of this batch have no real entry: leave these patients out")
    return mask


class GatedAttentionPool(nn.Module):
    """Weighted mean of a bag, the weights from a tanh branch gated by a sigmoid branch (Ilse et al. 2018).

    forward(bag [B, M, D], mask [B, M]) -> (pooled [B, D], weights [B, M]; 0 where the mask is False).
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.25) -> None:
        super().__init__()
        self.what = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(dim, hidden), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(hidden, 1)

    def forward(self, bag: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scores = self.score(self.what(bag) * self.gate(bag)).squeeze(-1)  # [B, M]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=1)
        return torch.einsum("bm,bmd->bd", weights, bag), weights


def hazard_risk(logits: Tensor) -> Tensor:
    """Risk [B] from the logits [B, K] of K discrete hazards: minus the sum of the survival function over the bins."""
    return -(1 - torch.sigmoid(logits)).cumprod(dim=1).sum(dim=1)
