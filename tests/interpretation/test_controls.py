"""Controls of the probes: colour without place, the network before its first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hcmae.config import SlideSettings, load_profile
from hcmae.interpretation import controls
from hcmae.pretraining.networks import build_mae_patch
from hcmae.slides.process import process_slide
from hcmae.slides.store import SlideStore, write_vectors
from tests.support.twin_slides import paint, write_twin


def test_colour_statistics_are_those_of_numpy() -> None:
    patches = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = controls.colour_statistics(patches)
    flat = patches.reshape(3, 64, 3).astype(float)
    quantiles = np.quantile(flat, (0.1, 0.5, 0.9), axis=1, method="inverted_cdf")
    assert found.shape == (3, len(controls.COLOUR_NAMES))
    assert np.allclose(found, np.concatenate([flat.mean(axis=1), flat.std(axis=1), *quantiles], axis=1))


def test_colour_statistics_do_not_know_where_a_colour_lies() -> None:
    rng = np.random.default_rng(1)
    patch = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    shuffled = rng.permutation(patch.reshape(64, 3)).reshape(patch.shape)
    assert np.allclose(controls.colour_statistics(patch), controls.colour_statistics(shuffled))


def test_the_untrained_encoder_is_what_training_starts_from() -> None:
    profile = load_profile("smoke")
    torch.manual_seed(4)
    start, after = build_mae_patch(profile).state_dict(), torch.rand(1)
    torch.manual_seed(4)
    encoder = controls.untrained_encoder(profile, 4)
    assert all(torch.equal(tensor, start[name]) for name, tensor in encoder.state_dict().items())
    # Nothing else that draws notices.
    build_mae_patch(profile)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.filterwarnings("ignore:.*does not say its resolution")
def test_controls_are_means_over_patches_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"geometry": {"region": 128, "patch": 32, "cell": 8, "thumbnail": 16}}
    profile = load_profile("smoke", {**size, "network": {"dim": 16, "depth": 1, "heads": 2}})
    slide = write_twin(tmp_path / "one.svs", paint(400, 400, seed=5))
    store = tmp_path / "one.h5"
    process_slide(slide, store, profile.geometry, SlideSettings(preset="synthetic"))
    run: Any = SimpleNamespace(
        cancer="LIHC", seed=0, profile=profile, pretrain_dir=tmp_path, patient_stores=lambda: {"P1": store}
    )
    first = controls.control_features(run, progress=False)
    assert first[controls.COLOUR].shape == (1, 15)
    assert first[controls.UNTRAINED].shape == (1, 16)
    assert 50 < first[controls.COLOUR]["mean of red"].item() < 255
    with monkeypatch.context() as patched:
        patched.setattr(controls, "_measure", lambda *_: pytest.fail("measured again"))
        assert controls.control_features(run, progress=False)[controls.COLOUR].equals(first[controls.COLOUR])
    run.seed = 1
    other = controls.control_features(run, progress=False)
    assert other[controls.COLOUR].equals(first[controls.COLOUR])
    assert not np.allclose(other[controls.UNTRAINED], first[controls.UNTRAINED])
    count = len(SlideStore(store))
    write_vectors(store, "patch_vectors", np.full((count, 16, 4), 2, np.float16), weights="w")
    assert controls.stored_means(run, ("MAE-Patch",))["MAE-Patch"].to_numpy().tolist() == [[2.0] * 4]
    with pytest.raises(KeyError, match="region_vectors"):
        controls.stored_means(run)


def test_without_known_truth_there_is_nothing_to_probe() -> None:
    run: Any = SimpleNamespace(truth=lambda: None)
    assert controls.probe_run(run) is None
