"""CAMR: cross-aligned multimodal representation (Wu et al., Bioinformatics 2023).

Each modality is coded twice: by one encoder shared by all (the modality-invariant code, adversarially aligned) and by
its own encoder (the modality-specific code, kept apart by a difference loss). Invariant codes are gated and fused by a
low-rank tensor product; decoders rebuild each input; the head predicts a log hazard.

Follows the publication: the adversarial game. A discriminator tries to tell the modality of an invariant code, a
gradient reversal layer makes the shared encoder hide it.
Follows its code: all widths, rank 16, the gate, the head (sigmoid * 8 - 4), the loss weights (0.6 adversarial, 0.8
reconstruction, 0.05 difference, 2e-6 L1), full-batch training at 4e-4 with linear decay (Adam there, AdamW here).
1,725,929 parameters with three slots of 80, as many as the release uses (it holds 878,760 more that take no part).
Had to be decided: (1) the release never trains the discriminator and pushes the shared encoder to *reveal* the
modality; ``aligned=False`` keeps that reading, the default is the published game. (2) Its third gate looks at the
second modality's code; here each gate looks at its own. (3) Its decoders end in ReLU and cannot rebuild negative
values of standardised inputs; ours end linearly. (4) HC-MAE has four inputs for CAMR's three: the slots are gene
expression, pathology, and [miRNA, methylation] in place of copy number. (5) The release labels gene codes 1 and all
others 0; kept, and averaged over the batch.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmae_core.baselines.parts import expect


class ReverseGradient(torch.autograd.Function):
    """Identity forwards, minus ``scale`` times the gradient backwards (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.scale * grad, None


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


class Gate(nn.Module):
    """Scale a code by what it and the two others say together."""

    def __init__(self, dim: int, others: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())
        self.bilinear = nn.Bilinear(dim, others * dim, dim)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, code: Tensor, others: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self._bilinear(code, others)) * self.hidden(code))

    def _bilinear(self, code: Tensor, others: Tensor) -> Tensor:
        # torch's own bilinear runs output by output, several times as slow as one product of matrices.
        weight = self.bilinear.weight  # [O, D, E]
        half = (code @ weight.permute(1, 0, 2).reshape(code.shape[1], -1)).view(len(code), len(weight), -1)
        return torch.einsum("boe,be->bo", half, others) + self.bilinear.bias


class LowRankFusion(nn.Module):
    """Tensor fusion of all codes with rank-``rank`` factors (Liu et al. 2018); a 1 keeps lower-order terms."""

    def __init__(self, modalities: int, dim: int, rank: int) -> None:
        super().__init__()
        self.factors = nn.ParameterList(nn.Parameter(torch.empty(rank, dim + 1, dim)) for _ in range(modalities))
        self.weights = nn.Parameter(torch.empty(1, rank))
        self.bias = nn.Parameter(torch.zeros(1, dim))
        for tensor in (*self.factors, self.weights):
            nn.init.xavier_normal_(tensor)

    def forward(self, codes: list[Tensor]) -> Tensor:
        product: Tensor | None = None
        for code, factor in zip(codes, self.factors, strict=True):
            extended = torch.cat([code, code.new_ones(len(code), 1)], dim=1)
            projected = torch.einsum("bd,rde->bre", extended, factor)
            product = projected if product is None else product * projected
        assert product is not None
        return torch.einsum("qr,bre->be", self.weights, product) + self.bias


class CAMR(nn.Module):
    """Log hazard from three vectors [B, 3, dim] in the order gene, pathology, other.

    ``specific`` are the hidden widths of the modality-specific encoders (in the release 80-320-60, 80-256-128-60,
    80-260-130-60). Raises ValueError for a missing or misshapen input. Source: Wu et al. 2023, section 2.
    """

    def __init__(
        self,
        dim: int = 80,
        code: int = 60,
        shared: tuple[int, ...] = (320, 128),
        specific: tuple[tuple[int, ...], ...] = ((320,), (256, 128), (260, 130)),
        head: tuple[int, ...] = (900, 512, 64, 15),
        decoder: int = 256,
        rank: int = 16,
        dropout: float = 0.1,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.aligned, self.modalities = dim, aligned, len(specific)
        self.shared = _mlp(dim, *shared, code)
        self.specific = nn.ModuleList(_mlp(dim, *widths, code) for widths in specific)
        self.gate = Gate(code, self.modalities - 1, dropout)
        self.fusion = LowRankFusion(self.modalities, code, rank)
        layers: list[nn.Module] = []
        width = code * (1 + self.modalities)
        for size in head:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * code, decoder), nn.ReLU(), nn.Linear(decoder, dim)) for _ in specific
        )
        self.discriminator = nn.Sequential(
            nn.Linear(code, 128), nn.LeakyReLU(0.2), nn.Linear(128, 32), nn.Tanh(), nn.Linear(32, 1)
        )

    def codes(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Invariant and specific codes, each a list of [B, code]."""
        x = expect("features", x, None, self.modalities, self.dim)
        invariant = [self.shared(x[:, m]) for m in range(self.modalities)]
        return invariant, [encoder(x[:, m]) for m, encoder in enumerate(self.specific)]

    def forward(self, x: Tensor) -> Tensor:
        """Log hazard [B], in (-4, 4)."""
        return self.with_losses(x)[0]

    def with_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Log hazard [B] and the three auxiliary losses: adversarial, reconstruction, difference."""
        invariant, specific = self.codes(x)
        gated = []
        for m, code in enumerate(invariant):
            others = torch.cat([c for k, c in enumerate(invariant) if k != m], dim=1)
            gated.append(self.gate(code, others))
        fused = self.fusion(gated)
        risk = torch.sigmoid(self.head(torch.cat([fused, *specific], dim=1))).squeeze(1) * 8 - 4
        count = x[:, 0].numel()
        rebuilt = [
            (1 - 1 / count) * F.mse_loss(decode(torch.cat([fused, code], dim=1)), x[:, m])
            for m, (decode, code) in enumerate(zip(self.decoders, specific, strict=True))
        ]
        return risk, {
            "adversarial": self._adversarial(invariant),
            "reconstruction": torch.stack(rebuilt).sum(),
            "difference": torch.stack([_difference(a, b) for a, b in zip(invariant, specific, strict=True)]).mean(),
        }

    def _adversarial(self, invariant: list[Tensor]) -> Tensor:
        """0.5 * sum over modalities of the discriminator's cross entropy (gene against the rest)."""
        loss = invariant[0].new_zeros(())
        for m, code in enumerate(invariant):
            seen = ReverseGradient.apply(code, 1.0) if self.aligned else code
            logits = self.discriminator(seen).squeeze(1)
            loss = loss + F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(m == 0)))
        return 0.5 * loss

    def main_parameters(self) -> list[nn.Parameter]:
        """Everything but the discriminator: what the L1 term sees, and what the release's optimiser holds."""
        return [p for name, p in self.named_parameters() if not name.startswith("discriminator.")]

    def penalty(self) -> Tensor:
        """Sum of absolute values of the main parameters (times 2e-6 in the release)."""
        return torch.stack([p.abs().sum() for p in self.main_parameters()]).sum()

    def total_loss(self, cox: Tensor, losses: dict[str, Tensor]) -> Tensor:
        """Cox + 0.6 adversarial + 0.8 reconstruction + 0.05 difference + 2e-6 L1."""
        value = cox + 0.6 * losses["adversarial"] + 0.8 * losses["reconstruction"] + 0.05 * losses["difference"]
        if not math.isfinite(float(value.detach())):
            raise ValueError("CAMR's loss is not finite: are the inputs standardised and free of missing values?")
        return value + 2e-6 * self.penalty()


def _difference(invariant: Tensor, specific: Tensor) -> Tensor:
    """Mean squared entry of the cross-product matrix of both codes: 0 when they span orthogonal directions."""
    a = invariant - invariant.mean(dim=0)
    b = specific - specific.mean(dim=0)
    a = a / (a.norm(dim=1, keepdim=True).detach() + 1e-6)
    b = b / (b.norm(dim=1, keepdim=True).detach() + 1e-6)
    return (a.T @ b).square().mean()
