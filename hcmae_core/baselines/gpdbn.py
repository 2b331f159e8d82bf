"""GPDBN: genes and pathology fused by three bilinear (outer product) terms (Wang et al., Bioinformatics 2021).

Follows the publication: the three outer products (gene x gene, pathology x pathology, gene x pathology), each reduced
to 20 numbers and joined with both inputs.
Follows its code (the Cox version that accompanies it, 289,313 parameters at 32 + 32 inputs): encoder 500-256-128-32
with ReLU and dropout 0.1, head sigmoid * 6 - 3, Cox loss, L1 on all weights (3e-4), full-batch training (2e-4, weight
decay 1e-6, learning rate falling linearly; Adam there, AdamW here).
Had to be decided: what the 32 + 32 inputs are here (the 32 omics features, over all modalities, and the 32 hand-crafted
ones with the largest univariate Cox scores among the training patients; both standardised, the release had ternary
values), and they are bounded to +-3 so that one outlier does not rule an outer product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hcmae_core.baselines.parts import expect


class GPDBN(nn.Module):
    """Log hazard from ``genes`` [B, dim] and ``pathology`` [B, dim] features.

    Raises ValueError when an input is missing or has another width. Source: Wang et al. 2021, section 2.3.
    """

    def __init__(
        self,
        dim: int = 32,
        bilinear: int = 20,
        hidden: tuple[int, ...] = (500, 256, 128, 32),
        dropout: float = 0.1,
        bound: float = 3.0,
    ) -> None:
        super().__init__()
        self.dim, self.bound = dim, bound
        self.gene_gene = nn.Linear(dim * dim, bilinear)
        self.path_path = nn.Linear(dim * dim, bilinear)
        self.gene_path = nn.Linear(dim * dim, bilinear)
        layers: list[nn.Module] = []
        width = 2 * dim + 3 * bilinear
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Linear(width, 1)

    def forward(self, genes: Tensor, pathology: Tensor) -> Tensor:
        """Log hazard [B], in (-3, 3)."""
        genes = expect("genes", genes, None, self.dim).clamp(-self.bound, self.bound)
        pathology = expect("pathology", pathology, None, self.dim).clamp(-self.bound, self.bound)
        joined = torch.cat(
            [
                genes,
                pathology,
                torch.relu(self.gene_path(_outer(genes, pathology))),
                torch.relu(self.gene_gene(_outer(genes, genes))),
                torch.relu(self.path_path(_outer(pathology, pathology))),
            ],
            dim=1,
        )
        return torch.sigmoid(self.head(self.encoder(joined))).squeeze(1) * 6 - 3

    def penalty(self) -> Tensor:
        """Sum of absolute values of all parameters, which the release adds to the loss times 3e-4."""
        return torch.stack([parameter.abs().sum() for parameter in self.parameters()]).sum()


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1)  # [B, dim * dim]
