"""The networks and losses of the book as short as they can be: formulas, and nothing that makes them fast.

Each function takes a network for its weights, and computes one step as the equations say it, without dropout. The
networks themselves give the same numbers in less time and memory; the tests hold them to these functions, and the
lessons print them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hcmae_core.attention import AttentionPool, CrossAttention, InputScale
from hcmae_core.hcmae import HCMAE, OmicsProjection, RiskHead, SlideTokens
from hcmae_core.mae import Decoder, TokenEncoder
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion, Reading
from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD
from hcmae_core.transformer import slide_positions


def normalised(images: Tensor) -> Tensor:
    """uint8 [..., 3] in units of ImageNet's mean and deviation."""
    mean, std = (torch.tensor(numbers, device=images.device) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std


def pixel_tokens(images: Tensor, side: int) -> Tensor:
    """Images uint8 [B, S, S, 3] as side * side squares of normalised pixels, rows first: [B, L, P]."""
    batch, size = images.shape[:2]
    squares = normalised(images).reshape(batch, side, size // side, side, size // side, 3)
    return squares.transpose(2, 3).reshape(batch, side * side, -1)


def rows(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` [B, K] of tokens [B, L, D]."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def transformer_block(block: Any, x: Tensor) -> Tensor:
    """x [B, L, D] + attention of its norm, + perceptron of the norm of that (Dosovitskiy et al. 2021).

    block: a ``hcmae_core.transformer.Block``, or timm's, which keeps both parts in modules of their own.
    """
    attention, perceptron = getattr(block, "attn", block), getattr(block, "mlp", block)
    width, heads = x.shape[-1] // getattr(attention, "num_heads", getattr(block, "heads", 1)), []
    query, key, value = attention.qkv(block.norm1(x)).chunk(3, dim=-1)
    for q, k, v in zip(query.split(width, -1), key.split(width, -1), value.split(width, -1), strict=True):
        heads.append((q @ k.transpose(1, 2) / width**0.5).softmax(-1) @ v)
    x = x + attention.proj(torch.cat(heads, dim=-1))
    return x + perceptron.fc2(F.gelu(perceptron.fc1(block.norm2(x))))


def transformer(stack: Any, x: Tensor) -> Tensor:
    """All blocks of a stack and its norm (Eq. 8 and 9): [B, L, D] -> [B, L, D]."""
    for block in stack.blocks:
        x = transformer_block(block, x)
    return stack.norm(x)


def embed(encoder: TokenEncoder, tokens: Tensor) -> Tensor:
    """x_P [B, L, D]: pixels of all tokens [B, L, P] through one linear map, plus their places."""
    return F.linear(tokens, encoder.embed.weight, encoder.embed.bias) + encoder.positions


def encode(encoder: TokenEncoder, x: Tensor) -> Tensor:
    """Class token (where there is one) and x_P [B, K, D] through all blocks and the norm: [B, (1 +) K, D]."""
    if encoder.class_token is not None:
        x = torch.cat([encoder.class_token.expand(len(x), 1, -1), x], dim=1)
    return transformer(encoder, x)


def decode(decoder: Decoder, x: Tensor, order: Tensor) -> Tensor:
    """Predicted pixels of all tokens [B, L, P] from the encoded ones of the visible tokens [B, (1 +) Lv, D].

    order: numbers of all tokens [B, L], the visible ones first. Every hidden token starts as the same mask token.
    """
    y, first = decoder.embed(x), int(decoder.class_token)
    blanks = decoder.mask_token.expand(len(x), order.shape[1] - (x.shape[1] - first), -1)
    in_place = rows(torch.cat([y[:, first:], blanks], dim=1), order.argsort(1))
    y = torch.cat([y[:, :first], in_place + decoder.positions], dim=1)
    return decoder.head(transformer(decoder, y)[:, first:])


def hidden_error(prediction: Tensor, target: Tensor, hidden: Tensor, normalise: bool = False) -> Tensor:
    """Mean squared error of [B, L, P] on the tokens ``hidden`` [B, Lm]; those that were shown do not count.

    normalise: each token of the target in units of its own mean and deviation.
    """
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (prediction - target).square().mean(-1).gather(1, hidden).mean()


def masked_loss(model: MAEPatch | MAERegion, images: Tensor, order: Tensor, x_a: Tensor | None = None) -> Tensor:
    """What an autoencoder minimises on images uint8 [B, S, S, 3] (section II-B; He et al. 2022).

    order: numbers of all tokens [B, L], of which the first ``model.visible_tokens`` stay visible. x_a: the patch
    vectors [B, L, D] where MAE-Region's reading asks for them.
    """
    first, shown, hidden = model.encoder.extra, order[:, : model.visible_tokens], order[:, model.visible_tokens :]
    target = pixel_tokens(images, model.side)  # [B, L, P]
    x_p = rows(embed(model.encoder, target), shown)  # [B, Lv, D]
    x = encode(model.encoder, x_p)  # [B, (1 +) Lv, D]
    if isinstance(model, MAERegion) and model.cross is not None:
        x_c = region_guided(model, x_p, x[:, first:], None if x_a is None else rows(x_a, shown))
        x = torch.cat([x[:, :first], x_c], dim=1)
    return hidden_error(decode(model.decoder, x, order), target, hidden, model.normalise_targets)


def cross_attention(cross: CrossAttention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(w_q Q (w_k K)^T / sqrt(d)) w_v V (Eq. 4 and Eq. 7): [B, Q, d] from [B, Q, d], [B, M, d], [B, M, dv]."""
    query, key = cross.query(queries), cross.key(keys)
    return (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1) @ cross.value(values)


def region_guided(model: MAERegion, x_p: Tensor, x_e: Tensor, x_a: Tensor | None) -> Tensor:
    """x_C [B, K, D]: who asks and who answers in the three readings of Eq. 3 and 4.

    x_p: the region's embedded patches; x_e: what its encoder makes of them; x_a: the patch vectors of MAE-Patch.
    """
    asks, answers = {"q_enc_kv_patch": (x_e, x_a), "eq4": (x_p, x_e), "prose": (x_p, x_a)}[model.reading]
    assert model.cross is not None
    assert answers is not None
    x_c = cross_attention(model.cross, asks, answers, answers)
    return x_c + x_e if model.residual else x_c


def read_as(model: MAERegion, reading: Reading, *, residual: bool = False) -> MAERegion:
    """The same weights under another reading of Eq. 4, with or without the residual; ``model`` stays as it is.

    Raises RuntimeError where one of the two has a cross-attention and the other has none.
    """
    other = MAERegion.from_settings({**model.settings, "attention": reading, "residual": residual})
    other.load_state_dict(model.state_dict())
    return other.eval()


def region_vector(model: MAERegion, regions: Tensor, x_a: Tensor | None = None) -> Tensor:
    """x_A-4096 [B, D]: the mean of x_C over all patches (Eq. 5)."""
    x_p = embed(model.encoder, pixel_tokens(regions, model.side))
    x_e = encode(model.encoder, x_p)[:, model.encoder.extra :]
    return (x_e if model.cross is None else region_guided(model, x_p, x_e, x_a)).mean(dim=1)


def attention_pool(pool: AttentionPool, x: Tensor) -> Tensor:
    """Softmax(MLP(x)) . x (Eq. 10 and 11): [B, L, d] -> [B, d]."""
    return (pool.score(x).softmax(dim=1) * x).sum(dim=1)


def project_omics(omics_map: OmicsProjection, omics: Tensor) -> Tensor:
    """x_O [B, 3, d] from omics [B, 3, K]: one linear map for all, or each omics its own (Eq. 6)."""
    maps = omics_map.maps
    return torch.stack([maps[i % len(maps)](omics[:, i]) for i in range(omics.shape[1])], dim=1)


def embed_thumbnails(slide: SlideTokens, thumbnails: Tensor, positions: Tensor) -> Tensor:
    """x_P-4096 [B, M, d]: all pixels of a thumbnail uint8 [B, M, T, T, 3] through one linear map, plus its place.

    positions: [B, M, 2] in units of a region.
    """
    x_p = slide.norm(F.linear(normalised(thumbnails).flatten(2), slide.embed.weight, slide.embed.bias))
    return x_p + slide_positions(positions, x_p.shape[-1]) if slide.with_positions else x_p


def standardised(scale: InputScale, x_a: Tensor) -> Tensor:
    """Region vectors in units of the training patients' spread (``scale_vectors``); unchanged where that is off."""
    return (x_a - scale.mean) / scale.scale


def log_hazard(model: HCMAE, thumbnails: Tensor, x_a: Tensor, omics: Tensor, positions: Tensor) -> Tensor:
    """HC-MAE's log hazard [B] of patients who have M regions each (Eq. 6-12).

    thumbnails: uint8 [B, M, T, T, 3]; x_a: region vectors [B, M, D]; omics: [B, 3, K]; positions: [B, M, 2].
    """
    x_o = project_omics(model.omics_map, omics)  # Eq. 6: [B, 3, d]
    x_p = embed_thumbnails(model.slide, thumbnails, positions)  # [B, M, d]
    x_c = cross_attention(model.cross, x_o, x_p, standardised(model.vectors, x_a))  # Eq. 7: [B, 3, d]
    x_slide = transformer(model.slide_transformer, x_c)  # Eq. 8: [B, 3, d]
    x_omics = transformer(model.omics_transformer, x_o)  # Eq. 9: [B, 3, d]
    slide = attention_pool(model.slide_pool, x_slide)  # Eq. 10: [B, d]
    molecules = attention_pool(model.omics_pool, x_omics)  # Eq. 11: [B, d]
    return risk(model.risk, torch.cat([slide, molecules], dim=-1))  # Eq. 12: [B]


def risk(head: RiskHead, x: Tensor) -> Tensor:
    """The last number [B] of x [B, 2 d], bounded or not (Eq. 12 and ``fidelity.risk_head``)."""
    value = head.linear(x).squeeze(-1)
    return {"linear": value, "sigmoid": value.sigmoid(), "scaled_sigmoid": 8 * value.sigmoid() - 4}[head.kind]


def cox_by_definition(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Minus the mean log share of each death's hazard in its risk set, all who lived as long or longer (Eq. 13).

    risk: log hazards [n]; time [n]; event [n], with one death at least. Tied deaths share one risk set (Breslow).
    """
    shares = [risk[i] - risk[time >= time[i]].exp().sum().log() for i in range(len(time)) if event[i]]
    return -torch.stack(shares).mean()
