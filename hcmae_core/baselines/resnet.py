"""ResNet-50 up to its third stage, as CLAM and MCAT describe patches (Lu et al., Nature Biomedical Engineering 2021).

The network is timm's; ImageNet weights come from a local safetensors file with timm's or torchvision's names (they are
the same). The last stage and the classifier, which CLAM cuts off, are left out of the file's contents by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD

CUT = ("layer4.", "fc.")


class TruncatedResNet50(nn.Module):
    """uint8 patches [N, S, S, 3] to vectors [N, 1024]: three stages, then the mean over positions."""

    dim = 1024
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trunk: Any = timm.create_model("resnet50", pretrained=False)
        del self.trunk.layer4, self.trunk.fc
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @staticmethod
    def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a whole ResNet-50 that this network has, under its names."""
        return {f"trunk.{name}": tensor for name, tensor in tensors.items() if not name.startswith(CUT)}

    def forward(self, patches: Tensor) -> Tensor:
        x = (patches.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        trunk = self.trunk
        x = trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(x))))
        return trunk.layer3(trunk.layer2(trunk.layer1(x))).mean(dim=(2, 3))
