"""The fast autoencoders against the textbook's: same weights, same mask, same loss and gradients in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hcmae_core import mae, pixels, textbook, transformer
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion
from hcmae_core.transformer import Size


def _compare(model: MAEPatch | MAERegion, images: Tensor, vectors: Tensor | None = None) -> None:
    order = torch.rand(len(images), model.length, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    # Weights away from their symmetric start, so that every term matters.
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    results = []
    for fast in (True, False):
        model.zero_grad()
        if not fast:
            loss = textbook.masked_loss(model, images, order, vectors)
        elif vectors is None:
            loss = model(images, order=order).loss
        else:
            loss = model(images, vectors, order=order).loss
        loss.backward()
        gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        results.append((loss.item(), gradients))
    (fast_loss, fast_gradients), (plain_loss, plain_gradients) = results
    assert fast_loss == pytest.approx(plain_loss, rel=1e-5)
    for name, plain in plain_gradients.items():
        ours = fast_gradients[name]
        if plain is None:
            assert ours is None or ours.abs().max() == 0, name
            continue
        assert ours is not None, name
        assert (ours - plain).norm() <= 1e-5 * plain.norm() + 1e-7, name


def _images(batch: int, size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("decoder_depth", [1, 3])
@pytest.mark.parametrize("normalise", [True, False])
def test_patch_loss_and_gradients(class_token: bool, decoder_depth: int, normalise: bool) -> None:
    torch.manual_seed(0)
    model = MAEPatch(
        32, 8, encoder=Size(24, 2, 3), decoder=Size(16, decoder_depth, 2),
        class_token=class_token, normalise_targets=normalise,
    )  # fmt: skip
    _compare(model, _images(6, 32))


@pytest.mark.parametrize("reading", ["q_enc_kv_patch", "eq4", "prose", "none"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("slice_elements", [2**19, 300])
def test_region_loss_and_gradients(
    reading: str, residual: bool, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pixels.SLICE_ELEMENTS, "cpu", slice_elements)
    torch.manual_seed(0)
    model = MAERegion(
        64, 16, encoder=Size(24, 2, 3), decoder=Size(16, 2, 2),
        attention=reading, residual=residual,
    )  # fmt: skip
    vectors = torch.randn(3, 16, 24) if reading in ("q_enc_kv_patch", "prose") else None
    _compare(model, _images(3, 64), vectors)


def test_region_single_image_and_normalised_targets() -> None:
    torch.manual_seed(0)
    model = MAERegion(64, 16, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2), normalise_targets=True)
    _compare(model, _images(1, 64), torch.randn(1, 16, 24))


@pytest.mark.parametrize("keys", [16, 300])
def test_attention_paths_agree(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, keys, 8, generator=generator) for _ in range(3))
    explicit = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, dim=-1) @ v
    for limit in (0, 10**6):
        monkeypatch.setattr(transformer, "EXPLICIT_ATTENTION_KEYS", {torch.float32: limit})
        torch.testing.assert_close(transformer.attention(q, k, v), explicit, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "keys", "fused"),
    [
        (torch.float32, 65, False),
        (torch.float32, 257, True),
        (torch.bfloat16, 65, False),
        (torch.bfloat16, 1025, True),
    ],
)
def test_attention_is_chosen_by_precision_and_length(
    dtype: torch.dtype, keys: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", lambda *a: called.append(1) or real(*a))
    q = torch.randn(1, 2, keys, 8, dtype=dtype)
    transformer.attention(q, q, q)
    assert bool(called) == fused


@pytest.mark.parametrize(("tiles", "fused"), [(False, False), (True, True)])
def test_long_rows_in_bf16_follow_the_processor(tiles: bool, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """257 keys in bf16 are multiplied out on a processor without tiles and go to the fused kernel on one with them."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(transformer, "EXPLICIT_ATTENTION_KEYS", transformer.explicit_attention_keys())
    called = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", lambda *a: called.append(1) or real(*a))
    q = torch.randn(1, 2, 257, 8, dtype=torch.bfloat16)
    transformer.attention(q, q, q)
    assert bool(called) == fused


def test_long_rows_take_their_gradient_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 attention over long rows: result and gradients of fp32 up to bf16's rounding, under autocast too."""
    monkeypatch.setitem(transformer.EXPLICIT_ATTENTION_KEYS, torch.bfloat16, 128)
    seen = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", lambda *a: seen.append(a[0].dtype) or real(*a))
    torch.manual_seed(0)
    rows = [torch.randn(2, 3, 200, 16).bfloat16().requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        low = transformer.attention(*rows)
    low.backward(torch.ones_like(low))
    exact = [row.detach().float().requires_grad_() for row in rows]
    transformer.attention(*exact).sum().backward()
    assert low.dtype == torch.bfloat16
    for row, other in zip(rows, exact, strict=True):
        torch.testing.assert_close(row.grad.float(), other.grad, rtol=0.02, atol=0.02)
    with torch.no_grad():
        transformer.attention(*rows)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


class _Largest(TorchDispatchMode):
    """Largest floating-point tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            # Views count as what they show: a broadcast weight is no memory, but a prediction would be.
            if isinstance(item, Tensor) and item.is_floating_point():
                self.numbers = max(self.numbers, item.numel())
        return out


def test_the_prediction_is_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tokens of 3,072 numbers: nothing as large as the masked prediction appears, unless it is asked for."""
    monkeypatch.setitem(pixels.SLICE_ELEMENTS, "cpu", 2**14)
    torch.manual_seed(0)
    model = MAERegion(256, 32, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2))
    regions, vectors = _images(4, 256), torch.randn(4, 64, 24)
    whole = 4 * 48 * 3072
    with _Largest() as seen:
        model(regions, vectors).loss.backward()
    assert seen.numbers < whole / 4
    with _Largest() as seen:
        model(regions, vectors, predict=True)
    assert seen.numbers >= whole
    # One region at the paper's geometry is cut on every device.
    assert all(limit < 192 * 196608 for limit in (*pixels.SLICE_ELEMENTS.values(), pixels.OTHER_SLICE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["patch", "region"])
def test_equality_at_the_paper_depth(kind: str) -> None:
    """12 blocks of 12 heads and width 384 over 256 tokens, decoders of the release; patches of a region are smaller."""
    torch.manual_seed(0)
    if kind == "patch":
        _compare(MAEPatch(256, 16), _images(2, 256))
    else:
        _compare(MAERegion(512, 32), _images(2, 512), torch.randn(2, 256, 384))


@pytest.mark.slow
def test_compiled_blocks_compute_the_same() -> None:
    torch.manual_seed(0)
    model = MAEPatch(32, 8, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2))
    images, order = _images(2, 32), torch.rand(2, 16).argsort(dim=1)
    results = []
    for compiled in (False, True):
        if compiled:
            for block in model.modules():
                if isinstance(block, transformer.Block):
                    # One thread: a pool of compilers would import torch in processes of their own.
                    block.compile(options={"compile_threads": 1})
        model.zero_grad()
        loss = model(images, order=order).loss
        loss.backward()
        results.append((loss.item(), model.encoder.blocks[0].fc1.weight.grad.clone()))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-6)


def test_encode_is_the_mean_of_all_tokens() -> None:
    torch.manual_seed(0)
    model = MAEPatch(32, 8, encoder=Size(24, 3, 3), decoder=Size(16, 1, 2)).eval()
    images = _images(4, 32)
    x = model.encoder.embed_tokens(pixels.split_tokens(images, 4))
    full = model.encoder(x)[:, 1:].mean(dim=1)
    torch.testing.assert_close(model.encode(images), full)
    shallow = model.encode(images, depth=1, norm="after_mean")
    hidden = model.encoder.run_blocks(x, 1)[:, 1:].mean(dim=1)
    torch.testing.assert_close(shallow, F.layer_norm(hidden, (24,), eps=1e-6))
    assert not torch.allclose(shallow, full, atol=1e-2)


@pytest.mark.parametrize("reading", ["q_enc_kv_patch", "eq4", "prose", "none"])
@pytest.mark.parametrize("residual", [True, False])
def test_region_vector_is_the_mean_of_equation_5(reading: str, residual: bool) -> None:
    torch.manual_seed(0)
    model = MAERegion(
        64, 16, encoder=Size(24, 2, 3), decoder=Size(16, 1, 2), attention=reading, residual=residual
    ).eval()  # fmt: skip
    regions, vectors = _images(3, 64), torch.randn(3, 16, 24)
    given = vectors if model.needs_patch_vectors else None
    torch.testing.assert_close(
        model.encode(regions, given), textbook.region_vector(model, regions, given), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("reading", ["q_enc_kv_patch", "eq4", "prose"])
def test_the_same_weights_are_read_in_three_ways(reading: str) -> None:
    torch.manual_seed(0)
    trained = MAERegion(64, 16, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2), residual=True).eval()
    regions, vectors = _images(2, 64), torch.randn(2, 16, 24)
    other = textbook.read_as(trained, reading)
    assert (other.reading, other.residual) == (reading, False)
    assert (trained.reading, trained.residual) == ("q_enc_kv_patch", True)
    given = vectors if other.needs_patch_vectors else None
    ours = other.encode(regions, given)
    torch.testing.assert_close(ours, textbook.region_vector(other, regions, given), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, trained.encode(regions, vectors), atol=1e-3)


def test_the_prediction_in_the_textbook_is_in_place() -> None:
    torch.manual_seed(0)
    model = MAEPatch(32, 8, encoder=Size(24, 1, 3), decoder=Size(16, 2, 2)).eval()
    images, order = _images(3, 32), torch.rand(3, 16).argsort(dim=1)
    out = model(images, order=order, predict=True)
    x = textbook.embed(model.encoder, textbook.pixel_tokens(images, 4))
    seen = textbook.encode(model.encoder, textbook.rows(x, out.visible))
    prediction = textbook.decode(model.decoder, seen, order)
    torch.testing.assert_close(textbook.rows(prediction, out.masked), out.prediction, rtol=1e-4, atol=1e-5)


def test_token_embedding_is_the_convolution_whose_kernel_is_its_stride() -> None:
    torch.manual_seed(0)
    model = MAEPatch(32, 8, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2))
    images, embed = _images(3, 32), model.encoder.embed
    kernel = embed.weight.view(24, 8, 8, 3).permute(0, 3, 1, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grid = F.conv2d(((images.float() / 255 - mean) / std).permute(0, 3, 1, 2), kernel, embed.bias, stride=8)
    expected = grid.flatten(2).transpose(1, 2) + model.encoder.positions
    torch.testing.assert_close(
        model.encoder.embed_tokens(pixels.split_tokens(images, 4)), expected, rtol=1e-4, atol=1e-5
    )
    plain = textbook.embed(model.encoder, textbook.pixel_tokens(images, 4))
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)


def test_region_pools_what_the_attention_gives() -> None:
    torch.manual_seed(0)
    model = MAERegion(64, 16, encoder=Size(24, 2, 3), decoder=Size(16, 1, 2)).eval()
    regions, vectors = _images(2, 64), torch.randn(2, 16, 24)
    pooled, weights = model.encode_with_attention(regions, vectors)
    assert weights is not None
    assert model.cross is not None
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16))
    # No residual: the vector is a weighted mean of value-projected patch vectors and nothing else (row R3).
    torch.testing.assert_close(pooled, (weights.mean(1, keepdim=True) @ model.cross.value(vectors))[:, 0])


def test_masked_patch_vectors_never_reach_the_decoder() -> None:
    torch.manual_seed(0)
    model = MAERegion(64, 16, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2))
    regions, vectors = _images(2, 64), torch.randn(2, 16, 24)
    order = torch.rand(2, 16).argsort(dim=1)
    base = model(regions, vectors, order=order).loss
    changed = vectors.clone()
    changed[torch.arange(2)[:, None], order[:, model.visible_tokens :]] = 1e3
    assert model(regions, changed, order=order).loss == base
    changed[torch.arange(2)[:, None], order[:, : model.visible_tokens]] += 1.0
    assert model(regions, changed, order=order).loss != base


def test_masking_share_and_generator() -> None:
    model = MAEPatch(256, 16, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2))
    out = model(_images(2, 256), torch.Generator().manual_seed(1), predict=True)
    assert out.visible.shape == (2, 64)
    assert out.masked.shape == (2, 192)
    assert torch.equal(torch.cat([out.visible, out.masked], 1).sort(dim=1).values, torch.arange(256).expand(2, -1))
    again = model(_images(2, 256), torch.Generator().manual_seed(1))
    assert torch.equal(out.masked, again.masked)
    assert out.prediction is not None
    target = model.decoder.head.normalise(mae.take_tokens(pixels.split_tokens(_images(2, 256), 16), out.masked))
    assert out.loss.item() == pytest.approx(((out.prediction - target) ** 2).mean().item(), rel=1e-5)


def test_bf16_autocast_stays_close() -> None:
    torch.manual_seed(0)
    model = MAEPatch(64, 16, encoder=Size(48, 2, 4), decoder=Size(32, 2, 4))
    images, order = _images(8, 64), torch.rand(8, 16).argsort(dim=1)
    plain = model(images, order=order).loss
    plain.backward()
    reference = model.encoder.embed.weight.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images, order=order).loss
    low.backward()
    assert low.item() == pytest.approx(plain.item(), rel=2e-3)
    cosine = F.cosine_similarity(reference.flatten(), model.encoder.embed.weight.grad.flatten(), dim=0)
    assert cosine > 0.99


def test_positions_are_two_dimensional_sine_cosine() -> None:
    codes = transformer.grid_positions(16, 4).view(4, 4, 16)
    # Width first: the first half depends on the column alone, the second on the row alone.
    assert torch.equal(codes[0, :, :8], codes[3, :, :8])
    assert torch.equal(codes[:, 0, 8:], codes[:, 2, 8:])
    torch.testing.assert_close(codes[0, 1, :4], torch.sin(torch.tensor([1.0, 0.1, 0.01, 0.001])))
    with pytest.raises(ValueError, match="multiple of 4"):
        transformer.grid_positions(10, 4)


def test_wrong_inputs_are_named() -> None:
    model = MAERegion(64, 16, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2))
    with pytest.raises(ValueError, match="uint8"):
        model(torch.rand(1, 64, 64, 3), torch.randn(1, 16, 24))
    with pytest.raises(ValueError, match="needs patch vectors"):
        model(_images(1, 64))
    with pytest.raises(ValueError, match="expected \\(1, 16, 24\\)"):
        model(_images(1, 64), torch.randn(1, 15, 24))
    with pytest.raises(ValueError, match="unknown reading"):
        MAERegion(64, 16, attention="eq5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not divide"):
        MAEPatch(30, 16)


def test_sizes_are_checked_and_survive_the_settings_of_a_file() -> None:
    with pytest.raises(ValueError, match=r"width 10 must be a multiple of the number of heads \(4\)"):
        Size(10, 1, 4)
    for ratio in (2.0, 3.0):
        model = MAEPatch(32, 8, encoder=Size(24, 2, 3, 2.0), decoder=Size(16, 1, 2, ratio), mask_ratio=0.5)
        again = MAEPatch.from_settings(model.settings)
        assert again.settings == model.settings
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
        assert model.decoder.blocks[0].fc1.out_features == 16 * ratio
    with pytest.raises(ValueError, match="lack 'heads'"):
        MAEPatch.from_settings({"image": 32, "cell": 8, "dim": 24, "depth": 2})


def test_split_tokens_order() -> None:
    image = torch.arange(4 * 4 * 3, dtype=torch.uint8).view(1, 4, 4, 3)
    tokens = pixels.split_tokens(image, 2)
    assert tokens[0, 1].tolist() == image[0, :2, 2:].reshape(-1).tolist()
    big = _images(2, 64)
    plain = big.view(2, 4, 16, 4, 16, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, 16, -1)
    assert torch.equal(pixels.split_tokens(big, 4), plain)


def test_prose_trains_its_encoder_through_the_class_token_alone() -> None:
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    vectors = torch.randn(3, 16, 24)
    for token in (True, False):
        torch.manual_seed(0)
        model = MAERegion(64, 16, encoder=Size(24, 1, 3), decoder=Size(16, 1, 2), attention="prose", class_token=token)
        model(pixels, vectors, torch.Generator().manual_seed(0)).loss.backward()
        slopes = [parameter.grad for parameter in model.encoder.blocks.parameters()]
        assert any(slope is not None and bool(slope.abs().max() > 0) for slope in slopes) is token
        # A region vector holds nothing of it either way.
        before = model.encode(pixels, vectors)
        with torch.no_grad():
            for parameter in model.encoder.blocks.parameters():
                parameter.add_(1.0)
        torch.testing.assert_close(model.encode(pixels, vectors), before)
