"""MAE-Region: a masked autoencoder of regions with region-guided cross-attention to patch vectors (section II-B.2)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from hcmae_core.mae import MaskedAutoencoder, MaskedOutput
from hcmae_core.pixels import split_tokens
from hcmae_core.transformer import PAPER, Size

Reading = Literal["q_enc_kv_patch", "eq4", "prose", "none"]
# The release's; the paper does not say.
DECODER = Size(256, 4, 16)


class MAERegion(MaskedAutoencoder):
    """Masked autoencoder of one region, whose tokens are patches and whose decoder is told what MAE-Patch saw in them.

    attention: which reading of Eq. 3-4 is followed.

    - ``q_enc_kv_patch``: queries are the encoder's output, keys and values the patch vectors x_A (the release).
    - ``eq4``: queries are the region's embeddings x_P, keys and values the encoder's output (Eq. 4 as printed, which
      never uses the patch vectors).
    - ``prose``: queries x_P, keys and values x_A (the paragraph above Eq. 3). The encoder then has no part in the
      region vector unless ``residual`` adds its output. In training its class token still reaches the decoder beside
      the attention, and is all that teaches the encoder; without a class token nothing does.
    - ``none``: no cross-attention, the ablation MAE-Reg.

    residual: add the encoder's output to what the attention mixes; the paper states none.
    Vectors of masked patches are never shown to the decoder. Raises ValueError for an unknown reading or sizes that do
    not divide. Source: section II-B.2, Eq. 3-5.
    """

    def __init__(
        self,
        region: int = 4096,
        patch: int = 256,
        *,
        encoder: Size = PAPER,
        decoder: Size = DECODER,
        mask_ratio: float = 0.75,
        normalise_targets: bool = False,
        class_token: bool = True,
        attention: Reading = "q_enc_kv_patch",
        residual: bool = False,
    ) -> None:
        if attention not in get_args(Reading):
            raise ValueError(f"unknown reading '{attention}' of the cross-attention: choose from {get_args(Reading)}")
        super().__init__(
            region,
            patch,
            encoder,
            decoder,
            mask_ratio=mask_ratio,
            normalise_targets=normalise_targets,
            class_token=class_token,
            cross=attention != "none",
        )
        self.reading, self.residual = attention, residual
        geometry = {"region": region, "patch": patch}
        self.settings = {**geometry, **self.settings, "attention": attention, "residual": residual}

    @property
    def needs_patch_vectors(self) -> bool:
        """Whether this reading looks at patch vectors at all."""
        return self.reading in ("q_enc_kv_patch", "prose")

    def _checked(self, patch_vectors: Tensor | None, batch: int) -> Tensor | None:
        if not self.needs_patch_vectors:
            return None
        if patch_vectors is None:
            raise ValueError(f"reading '{self.reading}' needs patch vectors: run the patch embedding first")
        expected = (batch, self.length, self.encoder.norm.normalized_shape[0])
        if tuple(patch_vectors.shape) != expected:
            raise ValueError(f"patch vectors have shape {tuple(patch_vectors.shape)}, expected {expected}")
        return patch_vectors.float()

    def attend(self, embedded: Tensor, encoded: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x_P [B, K, D], encoder output [B, (1 +) K, D], x_A [B, K, D] to x_C [B, (1 +) K, D] and attention weights."""
        if self.cross is None:
            return encoded, None
        extra = self.encoder.extra
        tokens = encoded[:, extra:]
        query = tokens if self.reading == "q_enc_kv_patch" else embedded
        context = tokens if self.reading == "eq4" else vectors
        assert context is not None
        mixed, weights = self.cross(query, context, context)
        if self.residual:
            mixed = mixed + tokens
        # The class token, where there is one, bypasses the attention, as in the release.
        return (torch.cat([encoded[:, :extra].to(mixed.dtype), mixed], dim=1) if extra else mixed), weights

    def forward(
        self,
        regions: Tensor,
        patch_vectors: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        order: Tensor | None = None,
        predict: bool = False,
    ) -> MaskedOutput:
        """Mask, encode, attend, reconstruct.

        regions: uint8 [B, R, R, 3]; patch_vectors: [B, P, D] in the region's patch order. order, predict: as MAEPatch.
        """
        vectors = self._checked(patch_vectors, regions.shape[0])
        return self.masked_step(regions, vectors, generator, order, predict)

    def encode(self, regions: Tensor, patch_vectors: Tensor | None = None) -> Tensor:
        """x_A-4096 [B, D]: the mean over all tokens behind the cross-attention (Eq. 5); nothing is masked."""
        return self.encode_with_attention(regions, patch_vectors)[0]

    def encode_with_attention(
        self, regions: Tensor, patch_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The region vector [B, D] and the attention weights [B, P, P] (None without cross-attention)."""
        vectors = self._checked(patch_vectors, regions.shape[0])
        embedded = self.encoder.embed_tokens(split_tokens(regions, self.side))
        x, weights = self.attend(embedded, self.encoder(embedded), vectors)
        return x[:, self.encoder.extra :].float().mean(dim=1), weights
