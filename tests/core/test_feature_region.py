"""The region token: a function of the patches that are there and of their places, taught by hiding some of them."""

from __future__ import annotations

import pytest
import torch

from hcmae_core.feature_region import FeatureRegion, draw_shown
from hcmae_core.transformer import Size

SMALL = Size(16, 1, 2)


def network(width: int = 12, seed: int = 0) -> FeatureRegion:
    torch.manual_seed(seed)
    return FeatureRegion(width, 4, encoder=SMALL, decoder=SMALL).eval()


def regions(count: int = 5, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(count, 16, generator=generator) < 0.6
    mask[:, 3] = True
    return torch.randn(count, 16, width, generator=generator), mask


@pytest.mark.parametrize("width", [7, 1536])
def test_any_width_gives_vectors_of_the_networks_own(width: int) -> None:
    vectors, mask = regions(width=width)
    found, weights = network(width).encode_with_attention(vectors.half(), mask)
    assert found.shape == (5, 16)
    assert torch.allclose(weights.sum(1), torch.ones(5), atol=1e-5)
    assert not weights[~mask].any()


def test_what_is_not_there_counts_for_nothing() -> None:
    vectors, mask = regions()
    other = torch.where(mask[..., None], vectors, torch.full_like(vectors, 9.0))
    model = network()
    assert torch.allclose(model.encode(vectors, mask), model.encode(other, mask), atol=1e-6)
    alone = torch.cat([model.encode(vectors[i : i + 1], mask[i : i + 1]) for i in range(5)])
    assert torch.allclose(model.encode(vectors, mask), alone, atol=1e-5)


def test_places_count() -> None:
    vectors, mask = regions()
    full = torch.ones_like(mask)
    turned = vectors.flip(1)
    assert not torch.allclose(network().encode(vectors, full), network().encode(turned, full), atol=1e-3)


def test_a_share_of_what_is_there_is_hidden_and_one_patch_always_seen() -> None:
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0], mask[1, :5], mask[2, 7] = True, True, True
    shown = draw_shown(mask, 0.75, torch.Generator().manual_seed(0))
    assert shown.sum(1).tolist() == [4, 2, 1]
    assert not (shown & ~mask).any()


def test_training_sees_neither_hidden_nor_absent_patches() -> None:
    vectors, mask = regions()
    model, generator = network(), torch.Generator()
    shown = draw_shown(mask, 0.75, generator.manual_seed(3))
    vectors = vectors.requires_grad_()
    token, _ = model._token(model.scale(vectors) * shown[..., None], shown)
    token.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[shown].abs().sum() > 0
    assert not vectors.grad[~shown].any()
    changed = torch.where(mask[..., None], vectors.detach(), torch.full_like(vectors, 5.0))
    losses = [model(v, mask, generator.manual_seed(3)).item() for v in (vectors.detach(), changed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_it_learns_what_a_regions_patches_share() -> None:
    """Regions of two kinds: after some steps hidden patches are told from the token better than by their mean."""
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(32, 16, dtype=torch.bool)
    for _ in range(60):
        kind = torch.randint(0, 2, (32, 1, 1), generator=generator) * 2.0 - 1
        vectors = kind + 0.1 * torch.randn(32, 16, 12, generator=generator)
        loss = model(vectors, mask, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3, "the variance of the patches is one"


def test_settings_rebuild_the_network_and_wrong_input_is_refused() -> None:
    model = network()
    twin = FeatureRegion.from_settings(model.settings)
    twin.load_state_dict(model.state_dict())
    vectors, mask = regions()
    assert torch.equal(twin.eval().encode(vectors, mask), model.encode(vectors, mask))
    with pytest.raises(ValueError, match=r"this network was built for P, D = \(16, 12\)"):
        model.encode(vectors[..., :5], mask)
    with pytest.raises(ValueError, match="without any patch"):
        model.encode(vectors, torch.zeros_like(mask))
