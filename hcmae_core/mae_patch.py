"""MAE-Patch: the standard masked autoencoder on patch images cut into cell-level tokens (section II-B.1, Eq. 2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hcmae_core.mae import MaskedAutoencoder, MaskedOutput
from hcmae_core.pixels import split_tokens
from hcmae_core.transformer import PAPER, Size

# The release's; the paper does not say.
DECODER = Size(256, 8, 16)


class MAEPatch(MaskedAutoencoder):
    """Masked autoencoder of one patch, whose tokens are cells.

    image, cell: side of the patch and of a token in pixels. Raises ValueError when sizes do not divide.
    Source: section II-B.1; He et al. 2022.
    """

    def __init__(
        self,
        image: int = 256,
        cell: int = 16,
        *,
        encoder: Size = PAPER,
        decoder: Size = DECODER,
        mask_ratio: float = 0.75,
        normalise_targets: bool = False,
        class_token: bool = True,
    ) -> None:
        super().__init__(
            image,
            cell,
            encoder,
            decoder,
            mask_ratio=mask_ratio,
            normalise_targets=normalise_targets,
            class_token=class_token,
        )
        self.settings = {"image": image, "cell": cell, **self.settings}

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        order: Tensor | None = None,
        predict: bool = False,
    ) -> MaskedOutput:
        """Mask, encode what is visible, reconstruct what is not.

        images: uint8 [B, p, p, 3]. order: token order [B, L], the first ``visible_tokens`` stay visible (None: drawn
        from ``generator``). predict: also return the prediction [B, Lm, cell * cell * 3], in normalised units.
        """
        return self.masked_step(images, None, generator, order, predict)

    def encode(
        self, images: Tensor, *, depth: int | None = None, norm: Literal["encoder", "after_mean"] = "encoder"
    ) -> Tensor:
        """x_A-256 [B, D]: the mean over all cell tokens of the encoder's output (Eq. 2); no masking, no augmentation.

        depth, norm: the release stops after 6 of 12 blocks and replaces the final norm by one after the mean.
        """
        x = self.encoder.run_blocks(self.encoder.embed_tokens(split_tokens(images, self.side)), depth)
        x = x[:, self.encoder.extra :]
        if norm == "after_mean":
            pooled = x.float().mean(dim=1)
            return F.layer_norm(pooled, pooled.shape[-1:], eps=1e-6)
        return self.encoder.norm(x).float().mean(dim=1)
