"""A region's vector where there are no pixels: from the vectors of its patches and their places alone.

MAE-Region without its pixel stage. A Transformer looks at the patch vectors of a region with their places; one region
token attends over what comes out, and is the region's vector. It is trained by hiding patch vectors: a light decoder,
which is given the region token and nothing else of the region, says what the hidden ones were. What it needs to know of
the region it can only have from the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from hcmae_core.attention import CrossAttention, InputScale, Transformer
from hcmae_core.mae import size_settings, with_sizes
from hcmae_core.mae_region import DECODER
from hcmae_core.transformer import PAPER, Size, grid_positions, init_weights


class FeatureRegion(nn.Module):
    """Region vectors [B, dim] from patch vectors [B, P, D] of any width D, of which some may not be there.

    vector_dim: D. side: patches a side, P = side * side. encoder, decoder: sizes of both stacks. mask_ratio: share of a
    region's patches that is hidden in training. Patch vectors are standardised by ``scale``, which is fitted before.
    Source: this project; section II-B.2 is its model with pixels.
    """

    positions: Tensor
    places: Tensor

    def __init__(
        self,
        vector_dim: int,
        side: int = 16,
        *,
        encoder: Size = PAPER,
        decoder: Size = DECODER,
        mask_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        sizes = size_settings(encoder, decoder)
        self.settings = {"vector_dim": vector_dim, "side": side, **sizes, "mask_ratio": mask_ratio}
        self.scale = InputScale(vector_dim)
        self.embed = nn.Linear(vector_dim, encoder.dim)
        self.transformer = Transformer(encoder)
        self.region = nn.Parameter(torch.zeros(encoder.dim))
        self.cross = CrossAttention(encoder.dim)
        self.narrow = nn.Linear(encoder.dim, decoder.dim)
        self.hidden = nn.Parameter(torch.zeros(decoder.dim))
        self.decoder = Transformer(decoder)
        self.head = nn.Linear(decoder.dim, vector_dim)
        self.apply(init_weights)
        nn.init.normal_(self.region, std=0.02)
        nn.init.normal_(self.hidden, std=0.02)
        self.register_buffer("positions", grid_positions(encoder.dim, side), persistent=False)
        self.register_buffer("places", grid_positions(decoder.dim, side), persistent=False)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The network whose weight file holds these ``settings``, freshly initialised."""
        return cls(**with_sizes(settings))

    def encode(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Region vectors [B, dim] of all patches that are there: vectors [B, P, D], mask bool [B, P]."""
        return self.encode_with_attention(vectors, mask)[0]

    def encode_with_attention(self, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The region vectors [B, dim] and how much each patch counted in them [B, P], 0 where there is none."""
        mask = self._checked(vectors, mask)
        return self._token(self.scale(vectors), mask)

    def _token(self, scaled: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.transformer(self.embed(scaled) + self.positions, mask)
        query = self.region.to(tokens.dtype).expand(len(tokens), 1, -1)
        mixed, weights = self.cross(query, tokens, tokens, mask)
        return mixed[:, 0].float(), weights[:, 0]

    def _checked(self, vectors: Tensor, mask: Tensor) -> Tensor:
        wanted = (len(self.positions), self.settings["vector_dim"])
        if vectors.ndim != 3 or vectors.shape[1:] != wanted or mask.shape != vectors.shape[:2]:
            raise ValueError(
                f"patch vectors [B, P, D] {tuple(vectors.shape)} with mask {tuple(mask.shape)}: this network was built "
                f"for P, D = {wanted}"
            )
        if not bool(mask.any(1).all()):
            raise ValueError("a region without any patch has no vector: leave it out")
        return mask

    def forward(self, vectors: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the hidden patch vectors, in standard deviations: a scalar.

        vectors [B, P, D], mask bool [B, P]; who is hidden is drawn from ``generator``.
        """
        mask = self._checked(vectors, mask)
        scaled = self.scale(vectors)
        shown = draw_shown(mask, self.mask_ratio, generator)
        asked = mask & ~shown
        token, _ = self._token(scaled * shown[..., None], shown)
        tokens = torch.cat([self.narrow(token)[:, None], (self.hidden + self.places).expand(len(token), -1, -1)], dim=1)
        there = torch.cat([torch.ones_like(asked[:, :1]), asked], dim=1)
        said = self.head(self.decoder(tokens, there)[:, 1:])
        error = (said.float() - scaled.float()).square().mean(-1)
        return (error * asked).sum() / asked.sum().clamp(min=1)


def draw_shown(mask: Tensor, ratio: float, generator: torch.Generator | None) -> Tensor:
    """Which patches stay visible [B, P]: of those that are there all but a share ``ratio``, at least one."""
    noise = torch.rand(mask.shape, generator=generator).to(mask.device).masked_fill(~mask, 2.0)
    rank = noise.argsort(1).argsort(1)
    there = mask.sum(1, keepdim=True)
    return mask & (rank < (there - (there * ratio).int()).clamp(min=1))
