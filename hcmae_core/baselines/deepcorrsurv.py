"""DeepCorrSurv: image and molecular networks learn to correlate, then to predict survival (Yao et al., MICCAI 2017).

Follows the publication: two sub-networks with 32 outputs each; stage 1 maximises the correlation of matching outputs,
stage 2 joins both and minimises the Cox loss, fine-tuning everything.
Follows its code: the layers of both sub-networks and of the fusion (449,248 parameters in the image network at 1024
pixels), Pearson correlation per dimension (not full CCA), Glorot uniform initialisation, molecular hidden width 128.
Had to be decided: Adam instead of Nesterov momentum whose schedule never took effect there; batches of at least 32 in
stage 1, since one patient has no correlation; stage 2 trains all layers, as the paper says, where the code freezes
both sub-networks; no L1 or L2 of the output layer, whose weights are 0 by default there; several images of a patient
are averaged after the image network. The image is a region's thumbnail; at sizes below 64 pixels the strides of the
three convolutions and the poolings shrink with it.

``DeepCorrSurvCosine`` is the variant that accompanies HC-MAE (353,664 parameters at 256 pixels and 900 features) and
that its entry script trains: the risk is the *cosine* of both vectors, with no correlation stage; probably what
Table II shows under this name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hcmae_core.baselines.parts import expect, expect_mask
from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD


def correlation_loss(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Minus the sum over dimensions of the Pearson correlation of a [B, D] and b [B, D] over the batch.

    A constant dimension contributes 0. Raises ValueError for fewer than two patients.
    """
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(
            f"correlation needs two equal tables of at least 2 patients, got {list(a.shape)} and {list(b.shape)}"
        )
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    norm = torch.sqrt((a.square().sum(dim=0) + eps) * (b.square().sum(dim=0) + eps))
    return -((a * b).sum(dim=0) / norm).sum()


class ImageNet1024(nn.Module):
    """Three convolutions and two poolings, then 32 linear outputs: images [N, 3, S, S] in [0, 1] -> [N, 32]."""

    def __init__(self, size: int = 1024, channels: int = 32, out: int = 32) -> None:
        super().__init__()
        # (kernel, stride) of the publication suit 1024 pixels; smaller images take smaller steps to keep a map to
        # look at.
        plans = {
            512: ((7, 3), (5, 2), (3, 2)),
            96: ((7, 2), (5, 2), (3, 1)),
            28: ((5, 2), (3, 1), (3, 1)),
            0: ((5, 1), (3, 1), (3, 1)),
        }
        plan = next(steps for least, steps in plans.items() if size >= least)
        layers: list[nn.Module] = []
        depth = 3
        for index, (kernel, stride) in enumerate(plan):
            layers += [nn.Conv2d(depth, channels, kernel, stride), nn.ReLU()]
            if index in (0, 2):
                layers.append(nn.MaxPool2d(2))
            depth = channels
        self.features = nn.Sequential(*layers)
        with torch.no_grad():
            flat = self.features(torch.zeros(1, 3, size, size)).numel()
        self.out = nn.Linear(flat, out)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.features(images).flatten(1))


class DeepCorrSurv(nn.Module):
    """Log hazard from region thumbnails and one molecular vector.

    forward(thumbnails uint8 [B, M, S, S, 3], molecular [B, d], mask bool [B, M]) -> [B]; ``views`` gives both
    32-vectors for the correlation stage. Raises ValueError for a missing input or another size. Source: Yao et al.
    2017.
    """

    def __init__(self, features: int, size: int = 1024, out: int = 32, hidden: int = 128, max_batch: int = 256) -> None:
        super().__init__()
        self.features, self.size, self.max_batch = features, size, max_batch
        self.image = ImageNet1024(size, out=out)
        self.molecular = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))
        # 64 -> 32 ReLU -> 8 -> 1: no bend between 8 and 1 in the original either.
        self.fusion = nn.Sequential(nn.Linear(2 * out, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 1))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.get_parameter("bias"), 0.0)

    def views(self, thumbnails: Tensor, molecular: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image and molecular vectors, each [B, 32]."""
        molecular = expect("molecular features", molecular, None, self.features)
        thumbnails = expect("thumbnails", thumbnails, len(molecular), None, self.size, self.size, 3)
        mask = expect_mask(mask, thumbnails)
        pooled = _mean_over_real(self.image, thumbnails, mask, self.max_batch, lambda x: x / 255.0)
        return pooled, self.molecular(molecular)

    def forward(self, thumbnails: Tensor, molecular: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.fusion(torch.cat(self.views(thumbnails, molecular, mask), dim=1)).squeeze(1)


class DeepCorrSurvCosine(nn.Module):
    """The release's variant: risk [B] in [0, 1] is the cosine of an image and an omics vector, both non-negative.

    forward(thumbnails uint8 [B, M, S, S, 3], molecular [B, d], mask bool [B, M]) -> [B].
    """

    def __init__(
        self, features: int = 900, size: int = 256, out: int = 32, hidden: int = 256, max_batch: int = 256
    ) -> None:
        super().__init__()
        self.features, self.size, self.max_batch = features, size, max_batch
        plan = ((8, 4), (9, 6)) if size >= 128 else ((5, 2), (3, 2))
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 32, *plan[0]), nn.ReLU(), nn.Conv2d(32, 32, *plan[1]), nn.ReLU(), nn.MaxPool2d(2)
        )
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, 3, size, size)).numel()
        self.image = nn.Sequential(self.convolutions, nn.Flatten(), nn.Linear(flat, out), nn.ReLU())
        self.molecular = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out), nn.ReLU())
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, thumbnails: Tensor, molecular: Tensor, mask: Tensor | None = None) -> Tensor:
        molecular = expect("molecular features", molecular, None, self.features)
        thumbnails = expect("thumbnails", thumbnails, len(molecular), None, self.size, self.size, 3)
        mask = expect_mask(mask, thumbnails)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pooled = _mean_over_real(self.image, thumbnails, mask, self.max_batch, lambda x: (x / 255.0 - mean) / std)
        return torch.cosine_similarity(pooled, self.molecular(molecular), dim=1)


def _mean_over_real(
    network: nn.Module, images: Tensor, mask: Tensor, max_batch: int, scale: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run ``network`` on the real images only, ``max_batch`` at a time, and average per patient: [B, out]."""
    real = images[mask]  # [N, S, S, 3] uint8: padding never reaches the network
    owner = mask.nonzero()[:, 0]
    outputs = torch.cat([network(scale(part.permute(0, 3, 1, 2).float())) for part in real.split(max_batch)])
    total = outputs.new_zeros(len(images), outputs.shape[1]).index_add(0, owner, outputs)
    return total / mask.sum(dim=1, keepdim=True)
