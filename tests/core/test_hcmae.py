"""HC-MAE and its ablations: shapes, masks, equality of batched and one-by-one training, what each model depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hcmae_core import textbook
from hcmae_core.ablations import (
    CONFIGURATIONS,
    Configuration,
    ReleaseRegionSlide,
    build,
    release_hierarchical,
)
from hcmae_core.attention import CrossAttention, InputScale, masked_softmax
from hcmae_core.baselines.abmil import GatedAttentionMIL
from hcmae_core.hcmae import HCMAE, RiskHead, count_parameters
from hcmae_core.losses import cox_loss
from hcmae_core.pixels import ThumbnailEmbedding
from hcmae_core.transformer import Size, slide_positions

SIZES = {"vector_dim": 24, "thumbnail": 8, "omics_features": 10}
TRANSFORMER = Size(24, 2, 4, 2.0)


def bag(sizes: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Padded patients; the padding holds garbage on purpose."""
    g = torch.Generator().manual_seed(seed)
    length = max(sizes)
    return {
        "thumbnails": torch.randint(0, 256, (len(sizes), length, 8, 8, 3), dtype=torch.uint8, generator=g),
        "region_vectors": torch.randn(len(sizes), length, 24, generator=g),
        "mask": torch.arange(length)[None] < torch.tensor(sizes)[:, None],
        "omics": torch.randn(len(sizes), 3, 10, generator=g),
    }


def hcmae(**changes) -> HCMAE:
    torch.manual_seed(1)
    return HCMAE(**{**SIZES, "transformer": TRANSFORMER, **changes}).eval()


def arguments(name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    configuration = CONFIGURATIONS[name]
    if name == "hcmae":
        return batch
    if configuration.omics:
        return {"omics": batch["omics"]}
    if configuration.thumbnails:
        return {key: batch[key] for key in ("thumbnails", "region_vectors", "mask")}
    return {"vectors": batch["region_vectors"], "mask": batch["mask"]}


def made(name: str) -> nn.Module:
    torch.manual_seed(2)
    return build(CONFIGURATIONS[name], **SIZES, transformer=TRANSFORMER).eval()


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_batch_equals_one_by_one_loss_and_gradients(name: str) -> None:
    sizes = [3, 1, 7, 2, 5]
    batch = arguments(name, bag(sizes))
    time, event = torch.tensor([5.0, 3.0, 9.0, 1.0, 4.0]), torch.tensor([1, 0, 1, 1, 1])
    together, single = made(name), made(name)
    loss = cox_loss(together(**batch), time, event)
    loss.backward()
    risks = []
    for number, size in enumerate(sizes):
        # As the paper trains: one patient at a time without padding, one loss over the accumulated risks.
        one = {
            key: value[number : number + 1] if key == "omics" else value[number : number + 1, :size]
            for key, value in batch.items()
        }
        risks.append(single(**one))
    alone = cox_loss(torch.cat(risks), time, event)
    alone.backward()
    assert loss.item() == pytest.approx(alone.item(), abs=1e-5)
    for (label, a), b in zip(together.named_parameters(), single.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5), label


@pytest.mark.parametrize("name", ["hcmae", "hc_patregsli", "mae_patreg"])
def test_padding_is_never_seen(name: str) -> None:
    batch = arguments(name, bag([2, 6]))
    model = made(name)
    before = model(**batch)
    changed = {key: value.clone() for key, value in batch.items()}
    for key in ("thumbnails", "region_vectors", "vectors"):
        if key in changed:
            changed[key][~changed["mask"]] = 77
    assert torch.equal(before, model(**changed))


def test_order_of_regions_does_not_matter_without_positions() -> None:
    model = hcmae(slide_positions=False)
    batch = bag([5])
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = {key: value if key == "omics" else value[:, order] for key, value in batch.items()}
    assert torch.allclose(model(**batch), model(**shuffled), atol=1e-5)


def test_positions_move_with_their_regions() -> None:
    batch = bag([5])
    places = torch.rand(1, 5, 2) * 9
    order = torch.tensor([3, 0, 4, 1, 2])
    model = hcmae()
    shuffled = {key: value if key == "omics" else value[:, order] for key, value in batch.items()}
    here = model(**batch, positions=places)
    assert torch.allclose(here, model(**shuffled, positions=places[:, order]), atol=1e-5)
    assert not torch.allclose(here, model(**batch, positions=places[:, order]), atol=1e-6)


def test_shared_projection_cannot_tell_the_omics_apart() -> None:
    batch = bag([4, 2])
    swapped = {**batch, "omics": batch["omics"][:, [2, 0, 1]]}
    shared, separate = hcmae(), hcmae(omics_projection="separate")
    assert torch.allclose(shared(**batch), shared(**swapped), atol=1e-5)
    assert not torch.allclose(separate(**batch), separate(**swapped), atol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_cross_attention_is_equations_4_and_7(masked: bool) -> None:
    torch.manual_seed(0)
    cross = CrossAttention(6, 5).double()
    q, k, v = (torch.randn(2, n, dim, dtype=torch.float64) for n, dim in ((3, 6), (4, 6), (4, 5)))
    crossed, weights = cross(q, k, v, torch.ones(2, 4, dtype=torch.bool) if masked else None)
    query, key = q @ cross.query.weight.T + cross.query.bias, k @ cross.key.weight.T + cross.key.bias
    expected = torch.softmax(query @ key.transpose(1, 2) / np.sqrt(6), -1)
    # Without a mask the softmax is taken in fp32 whatever the precision.
    close = {"rtol": 1e-9, "atol": 1e-12} if masked else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(weights, expected.to(weights.dtype), **close)
    torch.testing.assert_close(crossed, expected @ (v @ cross.value.weight.T + cross.value.bias), **close)
    torch.testing.assert_close(crossed, textbook.cross_attention(cross, q, k, v), **close)


def test_the_transformer_is_its_blocks_written_out() -> None:
    model, tokens = hcmae(), torch.randn(2, 3, 24)
    for stack in (model.slide_transformer, model.omics_transformer):
        torch.testing.assert_close(stack(tokens), textbook.transformer(stack, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"omics_projection": "separate", "pooler": "shared", "risk_head": "linear"},
        {"slide_positions": False, "risk_head": "sigmoid"},
    ],
)
def test_risk_and_gradients_are_those_of_equations_6_to_12(changes: dict) -> None:
    model, batch, places = hcmae(**changes), bag([5, 5]), torch.rand(2, 5, 2) * 9
    model.vectors.fit(torch.randn(50, 24) * 3 + 1)
    results = []
    for plain in (False, True):
        model.zero_grad()
        if plain:
            risk = textbook.log_hazard(model, batch["thumbnails"], batch["region_vectors"], batch["omics"], places)
        else:
            risk = model(**batch, positions=places)
        risk.square().sum().backward()
        results.append((risk.detach(), {name: value.grad.clone() for name, value in model.named_parameters()}))
    (fast, ours), (plain_risk, theirs) = results
    torch.testing.assert_close(fast, plain_risk, rtol=1e-5, atol=1e-5)
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_the_textbook_fits_the_networks_of_the_smoke_profile() -> None:
    """A width whose root is no number of bits, one block, separate maps: the network that the lessons print."""
    torch.manual_seed(0)
    model = HCMAE(
        omics_features=60, vector_dim=96, thumbnail=32, transformer=Size(96, 1, 4), omics_projection="separate",
        dropout=0.2, omics_dropout=0.5,
    ).eval()  # fmt: skip
    pixels = torch.randint(0, 256, (1, 7, 32, 32, 3), dtype=torch.uint8)
    vectors, omics, places = torch.randn(1, 7, 96), torch.randn(1, 3, 60), torch.rand(1, 7, 2) * 9
    risk = model(pixels, vectors, torch.ones(1, 7, dtype=torch.bool), omics, places)
    torch.testing.assert_close(risk, textbook.log_hazard(model, pixels, vectors, omics, places), rtol=1e-5, atol=1e-5)


def test_thumbnail_embedding_is_the_convolution_on_normalised_pixels() -> None:
    torch.manual_seed(0)
    embed = ThumbnailEmbedding(8, 12)
    conv = nn.Conv2d(3, 12, 8)
    with torch.no_grad():
        conv.weight.copy_(embed.weight.reshape(12, 8, 8, 3).permute(0, 3, 1, 2))
        conv.bias.copy_(embed.bias)
    pixels = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = conv(normalised).flatten(1)
    ours = embed(pixels)
    assert torch.allclose(ours, expected, atol=1e-5)
    target = torch.randn_like(ours)
    (ours * target).sum().backward()
    (expected * target).sum().backward()
    assert torch.allclose(
        embed.weight.grad.reshape(12, 8, 8, 3).permute(0, 3, 1, 2), conv.weight.grad, rtol=1e-4, atol=1e-4
    )
    assert torch.allclose(embed.bias.grad, conv.bias.grad, atol=1e-5)


def test_thumbnail_blocks_change_nothing() -> None:
    embed = ThumbnailEmbedding(8, 12)
    pixels = torch.randint(0, 256, (23, 8, 8, 3), dtype=torch.uint8)
    gradients = []
    for block in (256, 5):
        embed.block = block
        embed.zero_grad()
        embed(pixels).square().sum().backward()
        gradients.append(embed.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4 * gradients[0].abs().max().item())


def test_wrong_thumbnails_are_refused() -> None:
    embed = ThumbnailEmbedding(8, 12)
    with pytest.raises(ValueError, match="uint8"):
        embed(torch.zeros(2, 8, 8, 3))
    with pytest.raises(ValueError, match="8, 8, 3"):
        embed(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))


def test_empty_bag_gives_a_finite_risk_and_no_nan() -> None:
    batch = bag([3, 1])
    batch["mask"][1] = False
    model = hcmae()
    risk = model(**batch)
    risk.sum().backward()
    assert torch.isfinite(risk).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.equal(masked_softmax(torch.randn(1, 3), torch.zeros(1, 3, dtype=torch.bool)), torch.zeros(1, 3))


def test_mask_must_fit() -> None:
    batch = bag([3, 2])
    with pytest.raises(ValueError, match="mask"):
        hcmae()(**{**batch, "mask": batch["mask"].float()})


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("scaled_sigmoid", -4.0, 4.0), ("sigmoid", 0.0, 1.0), ("linear", -np.inf, np.inf)]
)
def test_risk_heads(kind, low: float, high: float) -> None:
    head = RiskHead(4, kind)
    risk = head(torch.randn(50, 4) * 1000)
    assert risk.min() >= low
    assert risk.max() <= high
    assert risk.max() > risk.min()
    with pytest.raises(ValueError, match="risk head"):
        RiskHead(4, "tanh")  # type: ignore[arg-type]


def test_input_scale_standardises_and_leaves_constant_columns() -> None:
    scale = InputScale(3)
    values = torch.randn(200, 3) * torch.tensor([5.0, 0.1, 0.0]) + 3
    assert torch.equal(scale(values), values)
    scale.fit(values)
    out = scale(values)
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(out.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3)


def test_input_scale_learns_in_parts_what_it_learns_at_once() -> None:
    values = torch.randn(1000, 3) * torch.tensor([5.0, 0.1, 0.0]) + torch.tensor([1e3, 0.0, 3.0])
    whole, parts, one = InputScale(3), InputScale(3), InputScale(3)
    whole.fit(values)
    parts.fit(values.split([1, 399, 600]))
    one.fit(iter([values]))
    assert torch.allclose(parts.mean, values.double().mean(0).float(), rtol=1e-6)
    assert torch.allclose(parts.scale, whole.scale, rtol=1e-4)
    # One part is computed as ever, to the last bit.
    assert torch.equal(one.mean, whole.mean)
    assert torch.equal(one.scale, whole.scale)
    with pytest.raises(ValueError, match="no vectors"):
        InputScale(3).fit(iter(()))


def test_positions_are_distinct_and_checked() -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij"), -1).reshape(-1, 2)
    codes = slide_positions(grid, 16)
    assert torch.unique(codes, dim=0).shape[0] == 25
    with pytest.raises(ValueError, match="multiple of 4"):
        slide_positions(grid, 10)


def test_paper_sizes() -> None:
    with torch.device("meta"):
        model = HCMAE(omics_features=300, vector_dim=384, thumbnail=256)
    blocks = count_parameters(model.slide_transformer) + count_parameters(model.omics_transformer)
    # Two Transformers of 12 blocks: 42.6 million; the thumbnail's embedding: 75.5 million.
    assert blocks / 1e6 == pytest.approx(42.6, abs=0.1)
    assert count_parameters(model.slide.embed) / 1e6 == pytest.approx(75.5, abs=0.1)


def test_neighbours_of_table3_differ_in_one_thing() -> None:
    changes = {
        ("mae_pat", "mae_patreg"): {"tokens"},
        ("mae_reg", "mae_patreg"): {"tokens"},
        ("mae_reg", "hc_regsli"): {"thumbnails"},
        ("mae_patreg", "hc_patregsli"): {"thumbnails"},
        ("hc_regsli", "hc_patregsli"): {"tokens"},
        ("hc_patregsli", "hcmae"): {"omics"},
    }
    for (one, other), expected in changes.items():
        a, b = vars(CONFIGURATIONS[one]), vars(CONFIGURATIONS[other])
        assert {name for name in a if a[name] != b[name]} == expected, (one, other)
    reg, patreg = made("mae_reg"), made("mae_patreg")
    assert [p.shape for p in reg.parameters()] == [p.shape for p in patreg.parameters()]
    image, full = made("hc_patregsli"), made("hcmae")
    assert [p.shape for p in image.slide_transformer.parameters()] == [
        p.shape for p in full.slide_transformer.parameters()
    ]
    assert [p.shape for p in made("trans_mo").omics_transformer.parameters()] == [
        p.shape for p in full.omics_transformer.parameters()
    ]
    with pytest.raises(ValueError, match="none of Table III"):
        build(Configuration(tokens="patch", thumbnails=True), **SIZES)


def test_shared_pooler_is_one_module() -> None:
    model = hcmae(pooler="shared")
    assert model.slide_pool is model.omics_pool
    assert count_parameters(model) < count_parameters(hcmae())


def test_release_variants() -> None:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 80, 80, 3), dtype=torch.uint8, generator=g)
    vectors, mask = torch.randn(2, 3, 24), torch.tensor([[True, True, True], [True, False, False]])
    model = ReleaseRegionSlide(vector_dim=24, thumbnail=80).eval()
    assert model(pixels, vectors, mask).shape == (2,)
    with pytest.raises(ValueError, match="72"):
        ReleaseRegionSlide(vector_dim=24, thumbnail=32)
    plain = release_hierarchical(vector_dim=24, thumbnail=80)
    assert len(plain.slide_transformer.blocks) == 2
    assert plain.slide.with_positions is False


def test_gated_attention_ignores_padding() -> None:
    torch.manual_seed(0)
    model = GatedAttentionMIL(vector_dim=6, hidden=8).eval()
    vectors, mask = torch.randn(2, 5, 6), torch.arange(5)[None] < torch.tensor([[5], [2]])
    other = vectors.clone()
    other[1, 2:] = 9.0
    assert torch.equal(model(vectors, mask), model(other, mask))
