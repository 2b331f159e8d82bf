"""MAE-Patch: the standard masked autoencoder on patch images cut into cell-level tokens (section II-B.1, Eq. 2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmae_core.mae import Decoder, MaskedOutput, TokenEncoder, random_order, take_tokens
from hcmae_core.pixels import split_tokens
from hcmae_core.transformer import init_weights


class MAEPatch(nn.Module):
    """Masked autoencoder of one patch, whose tokens are cells.

    image, cell: side of the patch and of a token in pixels. Defaults are the paper's encoder (12 blocks, 12 heads, 384)
    with the release's decoder (256 wide, 8 blocks, 16 heads). Raises ValueError when sizes do not divide.
    Source: section II-B.1; He et al. 2022.
    """

    def __init__(
        self,
        image: int = 256,
        cell: int = 16,
        *,
        dim: int = 384,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        decoder_dim: int = 256,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        normalise_targets: bool = False,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        if image % cell:
            raise ValueError(f"patch of {image} pixels does not divide into cells of {cell}")
        self.settings: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.side = image // cell
        self.length = self.side**2
        self.mask_ratio = mask_ratio
        self.normalise_targets = normalise_targets
        pixels = cell * cell * 3
        self.encoder = TokenEncoder(
            pixels, self.side, dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, class_token=class_token
        )
        self.decoder = Decoder(
            dim,
            self.side,
            pixels,
            width=decoder_dim,
            depth=decoder_depth,
            heads=decoder_heads,
            mlp_ratio=mlp_ratio,
            class_token=class_token,
        )
        self.apply(init_weights)
        if self.encoder.class_token is not None:
            nn.init.normal_(self.encoder.class_token, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    @property
    def visible_tokens(self) -> int:
        return max(1, self.length - int(self.length * self.mask_ratio))

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
        tokens = split_tokens(images, self.side)
        if order is None:
            order = random_order(images.shape[0], self.length, generator, images.device)
        visible, masked = order[:, : self.visible_tokens], order[:, self.visible_tokens :]
        x = self.encoder(self.encoder.embed_tokens(take_tokens(tokens, visible), visible))
        hidden = self.decoder(x, visible, masked)
        loss = self.decoder.head.loss(hidden, take_tokens(tokens, masked), normalise_targets=self.normalise_targets)
        return MaskedOutput(loss, self.decoder.head(hidden) if predict else None, masked, visible)

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
