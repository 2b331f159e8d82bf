"""MAE-Region: a masked autoencoder of regions with region-guided cross-attention to patch vectors (section II-B.2)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hcmae_core.attention import CrossAttention
from hcmae_core.mae import Decoder, MaskedOutput, TokenEncoder, random_order, take_tokens
from hcmae_core.pixels import split_tokens
from hcmae_core.transformer import init_weights

Reading = Literal["q_enc_kv_patch", "eq4", "prose", "none"]


class MAERegion(nn.Module):
    """Masked autoencoder of one region, whose tokens are patches and whose decoder is told what MAE-Patch saw in them.

    attention: which reading of Eq. 3-4 is followed.

    - ``q_enc_kv_patch``: queries are the encoder's output, keys and values the patch vectors x_A (the release).
    - ``eq4``: queries are the region's embeddings x_P, keys and values the encoder's output (Eq. 4 as printed, which
      never uses the patch vectors).
    - ``prose``: queries x_P, keys and values x_A (the paragraph above Eq. 3). The encoder then has no part in the
      result unless ``residual`` adds its output.
    - ``none``: no cross-attention, the ablation MAE-Reg.

    residual: add the encoder's output to what the attention mixes; the paper states none.
    Vectors of masked patches are never shown to the decoder. Raises ValueError for an unknown reading or sizes that do
    not divide. Source: section II-B.2, Eq. 3-5; defaults of the decoder are the release's.
    """

    def __init__(
        self,
        region: int = 4096,
        patch: int = 256,
        *,
        dim: int = 384,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        decoder_dim: int = 256,
        decoder_depth: int = 4,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        normalise_targets: bool = False,
        class_token: bool = True,
        attention: Reading = "q_enc_kv_patch",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if region % patch:
            raise ValueError(f"region of {region} pixels does not divide into patches of {patch}")
        if attention not in get_args(Reading):
            raise ValueError(f"unknown reading '{attention}' of the cross-attention: choose from {get_args(Reading)}")
        self.settings: dict[str, Any] = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.side = region // patch
        self.length = self.side**2
        self.mask_ratio = mask_ratio
        self.normalise_targets = normalise_targets
        self.reading, self.residual = attention, residual
        pixels = patch * patch * 3
        self.encoder = TokenEncoder(
            pixels, self.side, dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, class_token=class_token
        )
        self.cross = CrossAttention(dim) if attention != "none" else None
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
    def needs_patch_vectors(self) -> bool:
        """Whether this reading looks at patch vectors at all."""
        return self.reading in ("q_enc_kv_patch", "prose")

    @property
    def visible_tokens(self) -> int:
        return max(1, self.length - int(self.length * self.mask_ratio))

    def _checked(self, patch_vectors: Tensor | None, batch: int) -> Tensor | None:
        if not self.needs_patch_vectors:
            return None
        if patch_vectors is None:
            raise ValueError(f"reading '{self.reading}' needs patch vectors: run the patch embedding first")
        expected = (batch, self.length, self.encoder.norm.normalized_shape[0])
        if tuple(patch_vectors.shape) != expected:
            raise ValueError(f"patch vectors have shape {tuple(patch_vectors.shape)}, expected {expected}")
        return patch_vectors.float()

    def _attend(self, embedded: Tensor, encoded: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor | None]:
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
        tokens = split_tokens(regions, self.side)
        if order is None:
            order = random_order(regions.shape[0], self.length, generator, regions.device)
        visible, masked = order[:, : self.visible_tokens], order[:, self.visible_tokens :]
        embedded = self.encoder.embed_tokens(take_tokens(tokens, visible), visible)
        seen = take_tokens(vectors, visible) if vectors is not None else None
        x, _ = self._attend(embedded, self.encoder(embedded), seen)
        hidden = self.decoder(x, visible, masked)
        loss = self.decoder.head.loss(hidden, take_tokens(tokens, masked), normalise_targets=self.normalise_targets)
        return MaskedOutput(loss, self.decoder.head(hidden) if predict else None, masked, visible)

    def encode(self, regions: Tensor, patch_vectors: Tensor | None = None) -> Tensor:
        """x_A-4096 [B, D]: the mean over all tokens behind the cross-attention (Eq. 5); nothing is masked."""
        return self.encode_with_attention(regions, patch_vectors)[0]

    def encode_with_attention(
        self, regions: Tensor, patch_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The region vector [B, D] and the attention weights [B, P, P] (None without cross-attention)."""
        vectors = self._checked(patch_vectors, regions.shape[0])
        embedded = self.encoder.embed_tokens(split_tokens(regions, self.side))
        x, weights = self._attend(embedded, self.encoder(embedded), vectors)
        return x[:, self.encoder.extra :].float().mean(dim=1), weights
