"""Memory at the paper's size fits the card and the host that the profiles are made for; measured, not believed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import memory
from hcmae.config import load_profile
from hcmae.survival.methods import METHODS


def test_what_autograd_keeps_is_counted_once_and_forgotten() -> None:
    weight = torch.ones(1000, requires_grad=True)
    kept = memory.Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
        for _ in range(3):
            # Both products keep the same 4,000 bytes of weight, and 4,000 of their own.
            (weight * torch.full((1000,), 2.0) * weight).sum().backward()
    assert 8000 <= kept.peak <= 12_000


def test_all_methods_with_bags_are_looked_at() -> None:
    names = memory.methods_with_bags()
    assert {"hcmae", "mcat", "clam_sb", "deepcorrsurv", "hipt", "mae_patreg"} <= set(names)
    assert not {"trans_mo", "gpdbn", "coxnet_omics"} & set(names)
    assert set(names) <= set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["workstation", "paper"])
@pytest.mark.parametrize("name", ["hcmae", "mcat", "clam_sb", "deepcorrsurv"])
def test_the_papers_bags_fit_a_card_of_24_gb_and_8_gib_of_host_memory(name: str, profile: str) -> None:
    found = memory.estimate(name, load_profile(profile))
    assert found["device at most, GiB"] < 22, found
    assert found["host at most, GiB"] < 8, found
