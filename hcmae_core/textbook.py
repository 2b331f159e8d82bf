"""The networks and losses of the book as short as they can be: formulas, and nothing that makes them fast.

Each function takes a network for its weights, and computes one step as the equations say it, without dropout. The
networks themselves give the same numbers in less time and memory; the tests hold them to these functions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hcmae_core.attention import AttentionPool, CrossAttention
from hcmae_core.hcmae import HCMAE
from hcmae_core.mae import TokenEncoder
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion
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

    block: a ``hcmae_core.transformer.Block``.
    """
    query, key, value = block.qkv(block.norm1(x)).chunk(3, dim=-1)
    width, heads = x.shape[-1] // block.heads, []
    for q, k, v in zip(query.split(width, -1), key.split(width, -1), value.split(width, -1), strict=True):
        heads.append((q @ k.transpose(1, 2) / width**0.5).softmax(-1) @ v)
    x = x + block.proj(torch.cat(heads, dim=-1))
    return x + block.fc2(F.gelu(block.fc1(block.norm2(x))))


def embed(encoder: TokenEncoder, tokens: Tensor) -> Tensor:
    """x_P [B, L, D]: pixels of all tokens [B, L, P] through one linear map, plus their places."""
    return F.linear(tokens, encoder.embed.weight, encoder.embed.bias) + encoder.positions


def encode(encoder: TokenEncoder, x: Tensor) -> Tensor:
    """Class token (where there is one) and x_P [B, K, D] through all blocks and the norm: [B, (1 +) K, D]."""
    if encoder.class_token is not None:
        x = torch.cat([encoder.class_token.expand(len(x), 1, -1), x], dim=1)
    for block in encoder.blocks:
        x = transformer_block(block, x)
    return encoder.norm(x)


def masked_loss(model: MAEPatch | MAERegion, images: Tensor, order: Tensor, x_a: Tensor | None = None) -> Tensor:
    """Mean squared error on the hidden tokens of images uint8 [B, S, S, 3] (section II-B; He et al. 2022).

    order: numbers of all tokens [B, L], of which the first ``model.visible_tokens`` stay visible. x_a: the patch
    vectors [B, L, D] where MAE-Region's reading asks for them.
    """
    encoder, decoder, first = model.encoder, model.decoder, model.encoder.extra
    shown, hidden = order[:, : model.visible_tokens], order[:, model.visible_tokens :]
    target = pixel_tokens(images, model.side)  # [B, L, P]
    x_p = rows(embed(encoder, target), shown)  # [B, Lv, D]
    x = encode(encoder, x_p)  # [B, (1 +) Lv, D]
    if isinstance(model, MAERegion) and model.cross is not None:
        x_c = region_guided(model, x_p, x[:, first:], None if x_a is None else rows(x_a, shown))
        x = torch.cat([x[:, :first], x_c], dim=1)
    y = decoder.embed(x)  # [B, (1 +) Lv, width]
    blanks = decoder.mask_token.expand(*hidden.shape, -1)
    everything = rows(torch.cat([y[:, first:], blanks], dim=1), order.argsort(1)) + decoder.positions
    y = torch.cat([y[:, :first], everything], dim=1)  # [B, (1 +) L, width]
    for block in decoder.blocks:
        y = transformer_block(block, y)
    prediction = decoder.head(decoder.norm(y)[:, first:])  # [B, L, P]
    if model.normalise_targets:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (prediction - target).square().mean(-1).gather(1, hidden).mean()


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


def region_vector(model: MAERegion, regions: Tensor, x_a: Tensor | None = None) -> Tensor:
    """x_A-4096 [B, D]: the mean of x_C over all patches (Eq. 5)."""
    x_p = embed(model.encoder, pixel_tokens(regions, model.side))
    x_e = encode(model.encoder, x_p)[:, model.encoder.extra :]
    return (x_e if model.cross is None else region_guided(model, x_p, x_e, x_a)).mean(dim=1)


def attention_pool(pool: AttentionPool, x: Tensor) -> Tensor:
    """Softmax(MLP(x)) . x (Eq. 10 and 11): [B, L, d] -> [B, d]."""
    return (pool.score(x).softmax(dim=1) * x).sum(dim=1)


def log_hazard(model: HCMAE, thumbnails: Tensor, x_a: Tensor, omics: Tensor, positions: Tensor) -> Tensor:
    """HC-MAE's log hazard [B] of patients who have M regions each (Eq. 6-12).

    thumbnails: uint8 [B, M, T, T, 3]; x_a: region vectors [B, M, D]; omics: [B, 3, K]; positions: [B, M, 2].
    """
    slide, maps = model.slide, model.omics_map.maps
    x_o = torch.stack([maps[i % len(maps)](omics[:, i]) for i in range(omics.shape[1])], dim=1)  # Eq. 6: [B, 3, d]
    x_p = slide.norm(F.linear(normalised(thumbnails).flatten(2), slide.embed.weight, slide.embed.bias))  # [B, M, d]
    if slide.with_positions:
        x_p = x_p + slide_positions(positions, x_p.shape[-1])
    x_a = (x_a - model.vectors.mean) / model.vectors.scale
    x_c = cross_attention(model.cross, x_o, x_p, x_a)  # Eq. 7: [B, 3, d]
    x_slide, x_omics = model.slide_transformer(x_c), model.omics_transformer(x_o)  # Eq. 8 and 9
    x = torch.cat([attention_pool(model.slide_pool, x_slide), attention_pool(model.omics_pool, x_omics)], dim=-1)
    risk = model.risk.linear(x).squeeze(-1)  # Eq. 12
    return {"linear": risk, "sigmoid": risk.sigmoid(), "scaled_sigmoid": 8 * risk.sigmoid() - 4}[model.risk.kind]


def cox_by_definition(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Minus the mean log share of each death's hazard in its risk set, all who lived as long or longer (Eq. 13).

    risk: log hazards [n]; time [n]; event [n], with one death at least. Tied deaths share one risk set (Breslow).
    """
    shares = [risk[i] - risk[time >= time[i]].exp().sum().log() for i in range(len(time)) if event[i]]
    return -torch.stack(shares).mean()
