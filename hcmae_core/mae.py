"""What both masked autoencoders share: token encoder, decoder, constructor, and the step from masked input to loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmae_core.attention import CrossAttention
from hcmae_core.pixels import PixelEmbedding, PixelHead, split_tokens
from hcmae_core.transformer import Block, Size, attention, blocks, grid_positions, in_low_precision, init_weights


class MaskedOutput(NamedTuple):
    """What one masked step gives: mean squared error on masked tokens, their prediction if asked for, and who they are.

    loss: scalar. prediction: [B, Lm, pixels] in normalised units or None.
    masked, visible: token numbers [B, Lm], [B, Lv].
    """

    loss: Tensor
    prediction: Tensor | None
    masked: Tensor
    visible: Tensor


def random_order(batch: int, length: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Random permutations [B, L]; drawn where the generator lives (None: the CPU)."""
    where = generator.device if generator is not None else torch.device("cpu")
    noise = torch.rand(batch, length, generator=generator, device=where)
    return noise.argsort(dim=1).to(device, non_blocking=True)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` [B, K] of tokens [B, L, C], as [B, K, C]."""
    batch, length, width = tokens.shape
    flat = (ids + torch.arange(batch, device=ids.device)[:, None] * length).reshape(-1)
    return tokens.reshape(batch * length, width).index_select(0, flat).view(batch, ids.shape[1], width)


class _SharedRows(torch.autograd.Function):
    """Rows of a small table for many images, each row at most once per image.

    The gradient is summed in fp32 whatever the table's precision.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.dtype = table.shape[0], table.dtype
        return table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        if grad.device.type == "cuda":
            # Every image asks for a row once at most, so nothing collides: the same sum in the same order every time.
            batch, _, width = grad.shape
            placed = grad.new_zeros(batch, ctx.rows, width)
            placed.scatter_(1, ids[..., None].expand(-1, -1, width), grad)
            return placed.sum(0, dtype=torch.float32).to(ctx.dtype), None
        total = torch.zeros(ctx.rows, grad.shape[-1], dtype=torch.float32, device=grad.device)
        total.index_add_(0, ids.reshape(-1), grad.reshape(-1, grad.shape[-1]).float())
        return total.to(ctx.dtype), None


def shared_rows(table: Tensor, ids: Tensor) -> Tensor:
    """``table[ids]``: table [L, C], ids [B, K] -> [B, K, C]."""
    return _SharedRows.apply(table, ids)


class Decoder(nn.Module):
    """Light decoder of a masked autoencoder, working in shuffled order: class token, visible tokens, masked tokens.

    Three savings leave the function unchanged: mask tokens are the same in every image, so the first block projects one
    per position; the last block answers for masked tokens only; the head sees masked tokens only.
    """

    positions: Tensor

    def __init__(self, dim: int, side: int, pixels: int, size: Size, *, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.embed = nn.Linear(dim, size.dim)
        self.mask_token = nn.Parameter(torch.zeros(size.dim))
        self.blocks = blocks(size)
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.head = PixelHead(size.dim, pixels)
        self.register_buffer("positions", grid_positions(size.dim, side))

    def forward(self, x: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Encoded tokens [B, (1 +) Lv, D] to vectors of the masked tokens [B, Lm, width], ready for the head."""
        extra = int(self.class_token)
        batch, hidden = masked.shape
        seen = self.embed(x).float()
        position = self.positions[visible]
        seen = in_low_precision(seen + (F.pad(position, (0, 0, 1, 0)) if extra else position))
        table = in_low_precision(self.mask_token + self.positions)
        blanks = shared_rows(table, masked)
        tokens = torch.cat([seen, blanks], dim=1)
        start, last = seen.shape[1], len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            # Worth it only when the masked tokens of the batch outnumber the positions.
            if number == 0 and batch * hidden > table.shape[0]:
                tokens = self._first(block, seen, table, tokens, masked, start if last == 0 else 0)
            elif number == last:
                tokens = block.forward_tail(tokens, start)
            else:
                tokens = block(tokens)
        return self.norm(tokens)

    @staticmethod
    def _first(block: Block, seen: Tensor, table: Tensor, tokens: Tensor, masked: Tensor, start: int) -> Tensor:
        shared = shared_rows(block.qkv(block.norm1(table)), masked)
        if start == 0:
            return block.forward_with(tokens, torch.cat([block.qkv(block.norm1(seen)), shared], dim=1))
        dim = table.shape[1]
        own = F.linear(block.norm1(seen), block.qkv.weight[dim:], block.qkv.bias[dim:])
        (query,) = block.split_heads(shared[..., :dim], 1)
        key, value = block.split_heads(torch.cat([own, shared[..., dim:]], dim=1), 2)
        return block.finish(tokens[:, start:], attention(query, key, value))


class TokenEncoder(nn.Module):
    """Vision Transformer over pixel tokens: embedding, fixed positions, optional class token, blocks, final norm."""

    positions: Tensor

    def __init__(self, pixels: int, side: int, size: Size, *, class_token: bool) -> None:
        super().__init__()
        self.embed = PixelEmbedding(pixels, size.dim)
        self.class_token = nn.Parameter(torch.zeros(size.dim)) if class_token else None
        self.blocks = blocks(size)
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.register_buffer("positions", grid_positions(size.dim, side))

    @property
    def extra(self) -> int:
        """Tokens before the image tokens: 1 with a class token, else 0."""
        return int(self.class_token is not None)

    def embed_tokens(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Pixel tokens uint8 [B, K, pixels] of positions ``ids`` [B, K] (None: all) to x_P [B, K, D]."""
        return in_low_precision(self.embed(tokens) + (self.positions if ids is None else self.positions[ids]))

    def run_blocks(self, x: Tensor, depth: int | None = None) -> Tensor:
        """x_P [B, K, D] through the class token and the first ``depth`` blocks (None: all), without the final norm."""
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        for block in self.blocks[:depth]:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """x_P [B, K, D] to [B, (1 +) K, D]."""
        return self.norm(self.run_blocks(x))


class MaskedAutoencoder(nn.Module):
    """Encoder over visible tokens, decoder over all, and between them a cross-attention where there is one.

    image, token: side of an image and of a token in pixels. encoder, decoder: sizes of both stacks. cross: make the
    cross-attention, which ``attend`` of a subclass uses. Raises ValueError when sizes do not divide.
    Source: He et al. 2022; section II-B.
    """

    settings: dict[str, Any]

    def __init__(
        self,
        image: int,
        token: int,
        encoder: Size,
        decoder: Size,
        *,
        mask_ratio: float,
        normalise_targets: bool,
        class_token: bool,
        cross: bool = False,
    ) -> None:
        super().__init__()
        if image % token:
            raise ValueError(f"image of {image} pixels does not divide into tokens of {token}")
        self.settings = {
            **size_settings(encoder, decoder),
            "mask_ratio": mask_ratio,
            "normalise_targets": normalise_targets,
            "class_token": class_token,
        }
        self.side = image // token
        self.length = self.side**2
        self.mask_ratio = mask_ratio
        self.normalise_targets = normalise_targets
        pixels = token * token * 3
        self.encoder = TokenEncoder(pixels, self.side, encoder, class_token=class_token)
        self.cross = CrossAttention(encoder.dim) if cross else None
        self.decoder = Decoder(encoder.dim, self.side, pixels, decoder, class_token=class_token)
        self.apply(init_weights)
        if self.encoder.class_token is not None:
            nn.init.normal_(self.encoder.class_token, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The network whose weight file holds these ``settings``, freshly initialised."""
        return cls(**with_sizes(settings))

    @property
    def visible_tokens(self) -> int:
        """How many of the ``length`` tokens the encoder sees in a masked step."""
        return max(1, self.length - int(self.length * self.mask_ratio))

    def attend(self, embedded: Tensor, encoded: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the decoder is given for x_P [B, K, D] and encoder output [B, (1 +) K, D], and attention weights."""
        return encoded, None

    def masked_step(
        self,
        images: Tensor,
        vectors: Tensor | None,
        generator: torch.Generator | None,
        order: Tensor | None,
        predict: bool,
    ) -> MaskedOutput:
        """Mask, encode what is visible, attend, reconstruct what is not.

        images: uint8 [B, S, S, 3]. vectors: [B, L, D], one per token, or None. order: token order [B, L], the first
        ``visible_tokens`` stay visible (None: drawn from ``generator``). predict: also return the prediction
        [B, Lm, pixels], in normalised units.
        """
        tokens = split_tokens(images, self.side)
        if order is None:
            order = random_order(images.shape[0], self.length, generator, images.device)
        visible, masked = order[:, : self.visible_tokens], order[:, self.visible_tokens :]
        embedded = self.encoder.embed_tokens(take_tokens(tokens, visible), visible)
        seen = take_tokens(vectors, visible) if vectors is not None else None
        x, _ = self.attend(embedded, self.encoder(embedded), seen)
        hidden = self.decoder(x, visible, masked)
        loss = self.decoder.head.loss(hidden, take_tokens(tokens, masked), normalise_targets=self.normalise_targets)
        return MaskedOutput(loss, self.decoder.head(hidden) if predict else None, masked, visible)


def size_settings(encoder: Size, decoder: Size) -> dict[str, Any]:
    """Both sizes under the names that weight files have had from the start."""
    settings = {**vars(encoder)}
    settings.update({f"decoder_{name}": value for name, value in vars(decoder).items()})
    if decoder.mlp_ratio == encoder.mlp_ratio:
        # The first files knew one ratio for both; those of the same network stay the same file.
        del settings["decoder_mlp_ratio"]
    return settings


def with_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a weight file as a constructor's arguments: what ``size_settings`` spelt out, as two sizes.

    Raises ValueError, naming what is missing.
    """
    rest = dict(settings)
    try:
        encoder = Size(rest.pop("dim"), rest.pop("depth"), rest.pop("heads"), rest.pop("mlp_ratio"))
        ratio = rest.pop("decoder_mlp_ratio", encoder.mlp_ratio)
        decoder = Size(rest.pop("decoder_dim"), rest.pop("decoder_depth"), rest.pop("decoder_heads"), ratio)
    except KeyError as missing:
        raise ValueError(f"settings of a masked autoencoder lack {missing}: they are no weight file's") from None
    return {**rest, "encoder": encoder, "decoder": decoder}
