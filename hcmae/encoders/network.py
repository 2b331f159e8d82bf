"""An encoder as a frozen network: patches as they were cut in, vectors out, fed as its authors feed it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as images_v2

from hcmae.encoders.registry import Encoder, EncoderError
from hcmae.pretraining.checkpoint import CheckpointError, foreign_tensors, load_state

# Arguments of timm that are classes.
_CLASSES = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU, "GELU": nn.GELU}


class PatchEncoder(nn.Module):
    """uint8 patches [N, S, S, 3] of any side S to vectors [N, width].

    Source: the model cards and TRIDENT's code, as ``registry`` has them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, trunk: nn.Module) -> None:
        super().__init__()
        self.encoder, self.trunk = encoder, trunk
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Numbers per patch."""
        width = int(self.trunk.num_features)  # type: ignore[arg-type]
        return 2 * width if self.encoder.pool == "token_mean" else width

    def prepare(self, patches: Tensor) -> Tensor:
        """Patches uint8 [N, S, S, 3] as the network sees them: [N, 3, input, input], resized, cut and normalised."""
        images, encoder = patches.permute(0, 3, 1, 2), self.encoder
        if images.shape[-1] != encoder.resize:
            mode = InterpolationMode(encoder.interpolation)
            images = images_v2.resize(images, [encoder.resize, encoder.resize], mode, antialias=True)
        images = images_v2.center_crop(images, [encoder.input, encoder.input])
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, patches: Tensor) -> Tensor:
        """Vectors [N, width]."""
        found = self.trunk(self.prepare(patches))
        if self.encoder.pool == "own":
            return found
        return torch.cat([found[:, 0], found[:, int(self.trunk.num_prefix_tokens) :].mean(1)], dim=1)  # type: ignore[arg-type]


def build_encoder(encoder: Encoder) -> PatchEncoder:
    """The network of an encoder, freshly initialised, in evaluation mode and frozen.

    Raises EncoderError for one that is not timm's, or whose arguments or width do not fit.
    """
    if encoder.stage != "encoder":
        raise EncoderError(f"{encoder.label} has a stage of its own: hcmae run {encoder.stage}")
    if not encoder.architecture:
        raise EncoderError(
            f"{encoder.label} is no network of timm, so it is not built here: make its features with TRIDENT and bring "
            "the files (source=features)"
        )
    arguments: dict[str, Any] = {key: _CLASSES.get(value, value) if isinstance(value, str) else value
                 for key, value in encoder.arguments.items()}  # fmt: skip
    try:
        trunk = timm.create_model(encoder.architecture, pretrained=False, num_classes=0, **arguments)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise EncoderError(f"timm does not build {encoder.name}: {error}") from error
    network = PatchEncoder(encoder, trunk).eval().requires_grad_(False)
    if encoder.width is not None and network.width != encoder.width:
        raise EncoderError(f"{encoder.label} has {network.width} numbers per patch, and should have {encoder.width}")
    return network


def load_encoder(encoder: Encoder, weights: str | Path) -> PatchEncoder:
    """An encoder with weights from disk (safetensors, or ``.bin`` and ``.pt`` that hold tensors alone).

    A classifier in the file is left out. Raises EncoderError as ``build_encoder``, CheckpointError for a file that is
    missing, damaged or another network's.
    """
    network = build_encoder(encoder)
    tensors = foreign_tensors(weights)
    if encoder.layout == "dinov2":
        tensors = from_dinov2(tensors, Path(weights))
    cfg: Any = network.trunk.pretrained_cfg
    heads = cfg.get("classifier") or ()
    ends = tuple(f"{name}." for name in ((heads,) if isinstance(heads, str) else heads))
    load_state(network.trunk, {key: value for key, value in tensors.items() if not key.startswith(ends)}, Path(weights))
    return network


_DINOV2 = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_DINOV2_BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
}  # fmt: skip


def from_dinov2(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights under the names of transformers' DINOv2 as timm names them: one matrix for queries, keys and values.

    Raises CheckpointError for a name that is neither.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _DINOV2:
            found[_DINOV2[name]] = tensor
            continue
        if name == "embeddings.mask_token":
            continue  # of its pre-training
        block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+?)(?:\.(weight|bias))?", name)
        if block is None:
            raise CheckpointError(f"{path}: '{name}' is no tensor of transformers' DINOv2")
        number, part, kind = block.groups()
        start, end = f"blocks.{number}.", f".{kind}" if kind else ""
        if part == "attention.attention.query":
            parts = [tensors[name.replace(".query.", f".{other}.")] for other in ("query", "key", "value")]
            found[f"{start}attn.qkv{end}"] = torch.cat(parts)
        elif part not in ("attention.attention.key", "attention.attention.value"):
            if part not in _DINOV2_BLOCK:
                raise CheckpointError(f"{path}: '{name}' is no tensor of transformers' DINOv2")
            found[f"{start}{_DINOV2_BLOCK[part]}{end}"] = tensor
    return found
