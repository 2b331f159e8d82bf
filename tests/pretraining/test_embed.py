"""Vectors in the stores: what the networks give, each release switch alone, resumed per region, tied to weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hcmae.config import Profile, SlideSettings, load_profile
from hcmae.pretraining import embed
from hcmae.pretraining.networks import build_mae_patch, build_mae_region, load_mae_patch, save_weights
from hcmae.slides.process import process_slide
from hcmae.slides.regions import split_patches, thumbnail
from hcmae.slides.store import SlideStore
from hcmae.slides.store_reading import iter_regions
from hcmae_core.mae_patch import MAEPatch
from tests.support.twin_slides import paint, write_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say its resolution")


def profile(**fidelity: Any) -> Profile:
    changes = {
        "geometry": {"region": 128, "patch": 32, "cell": 8, "thumbnail": 16},
        "network": {"dim": 24, "depth": 3, "heads": 3},
        "compute": {"precision": "32"},
    }
    return load_profile("smoke", {**changes, **{f"fidelity.{name}": value for name, value in fidelity.items()}})


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    slide = write_twin(folder / "one.svs", paint(700, 700, seed=5))
    outcome = process_slide(slide, folder / "one.h5", profile().geometry, SlideSettings(preset="synthetic"))
    assert outcome.status == "ok"
    return folder / "one.h5"


@pytest.fixture
def store(cut: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(cut, tmp_path / "one.h5"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return save_weights(tmp_path / "mae_patch.safetensors", build_mae_patch(profile()))


def _run(store: Path, weights: Path, settings: Profile | None = None) -> np.ndarray:
    embed.embed_patches([store], weights, settings or profile(), progress=False, device="cpu")
    return SlideStore(store).vectors("patch_vectors")


def test_patch_vectors_are_the_encoders(store: Path, weights: Path) -> None:
    vectors = _run(store, weights)
    assert vectors.dtype == np.float16
    assert vectors.shape == (len(SlideStore(store)), 16, 24)
    model = load_mae_patch(weights)
    for number, region in iter_regions(store, indices=[0, 3], workers=1):
        with torch.inference_mode():
            expected = model.encode(torch.from_numpy(split_patches(region, 32)))
        np.testing.assert_allclose(vectors[number], expected.numpy(), rtol=2e-3, atol=2e-3)


def test_work_is_keyed_by_the_weights(store: Path, weights: Path, tmp_path: Path) -> None:
    first = _run(store, weights)
    assert embed.embed_patches([store], weights, profile(), progress=False, device="cpu") == 0
    torch.manual_seed(2)
    other = save_weights(tmp_path / "other.safetensors", build_mae_patch(profile()))
    assert embed.embed_patches([store], other, profile(), progress=False, device="cpu") == 1
    assert not np.allclose(SlideStore(store).vectors("patch_vectors"), first, atol=1e-2)
    assert SlideStore(store).vector_weights["patch_vectors"] == embed.network_of(other, profile())


@pytest.mark.parametrize("damage", ["none", "cut", "foreign"])
def test_an_interrupted_slide_goes_on_at_its_next_region(
    damage: str, store: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embed._PATCHES, "cpu", 32)  # two regions at a time
    whole = _run(Path(shutil.copy(store, store.with_name("whole.h5"))), weights)
    real = embed.store_reading.iter_regions
    read: list[int] = []

    def stops(path: Path, *, indices: list[int], workers: int) -> Iterator[Any]:
        for number, region in real(path, indices=indices, workers=workers):
            if number == 7:
                raise KeyboardInterrupt
            yield number, region

    def counts(path: Path, *, indices: list[int], workers: int) -> Iterator[Any]:
        read.extend(indices)
        yield from real(path, indices=indices, workers=workers)

    monkeypatch.setattr(embed.store_reading, "iter_regions", stops)
    with pytest.raises(KeyboardInterrupt):
        _run(store, weights)
    (part,) = store.parent.glob("one.*.part")
    first = 6
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-5])
        first = 4
    elif damage == "foreign":
        part.write_bytes(b"something else\n" + bytes(1000))
        first = 0
    monkeypatch.setattr(embed.store_reading, "iter_regions", counts)
    assert np.array_equal(_run(store, weights), whole)
    assert read == list(range(first, len(whole)))
    assert not part.exists()


@pytest.mark.parametrize(
    "header",
    [
        '{"key": "k", "shape": [0], "dtype": "<f4"}', '{"key": "k", "shape": [-1, -3], "dtype": "<f4"}', '["key"]', "7",
        '{"key": "k", "shape": [1e400], "dtype": "<f4"}', '{"key": "k", "shape": [2], "dtype": "O"}', "[" * 9000,
        '{"key": "k", "shape": 3, "dtype": "<f4"}', '{"key": "other", "shape": [2], "dtype": "<f4"}',
    ],
)  # fmt: skip
def test_what_an_interrupted_slide_cannot_have_left_is_dropped(header: str, tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    path.write_bytes(header.encode() + b"\n" + bytes(64))
    assert embed._Part(path, "k", 2).done == 0
    path.write_bytes(b'{"key": "k", "shape": [2], "dtype": "<f4"}\n' + bytes(64))
    assert embed._Part(path, "k", 2).done == 8


@pytest.mark.parametrize("switch", [{"extract_depth": 1}, {"extract_norm": "after_mean"}, {"extract_augment": True}])
def test_each_release_switch_alone(switch: dict[str, Any], store: Path, weights: Path) -> None:
    plain = _run(Path(shutil.copy(store, store.with_name("plain.h5"))), weights).astype(np.float32)
    changed = _run(store, weights, profile(**switch)).astype(np.float32)
    assert np.abs(changed - plain).max() > 0.05
    model = load_mae_patch(weights)
    ((_, region),) = iter_regions(store, indices=[0], workers=1)
    images = torch.from_numpy(split_patches(region, 32))
    if "extract_augment" in switch:
        images = embed._release_crop(images, store, [0])
    with torch.inference_mode():
        expected = model.encode(images, depth=switch.get("extract_depth"), norm=switch.get("extract_norm", "encoder"))
    np.testing.assert_allclose(changed[0], expected.numpy(), rtol=2e-3, atol=3e-3)


def test_release_crops_are_frozen_whatever_the_groups(store: Path) -> None:
    images = torch.randint(0, 256, (32, 32, 32, 3), dtype=torch.uint8)
    both = embed._release_crop(images, store, [4, 5])
    apart = torch.cat([embed._release_crop(images[:16], store, [4]), embed._release_crop(images[16:], store, [5])])
    assert torch.equal(both, apart)
    assert not torch.equal(both, images)
    assert not torch.equal(both, embed._release_crop(images, store, [4, 6]))


def test_region_vectors_need_the_patch_vectors_of_their_training(store: Path, weights: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = build_mae_region(profile())
    key = embed.network_of(weights, profile())
    trained = save_weights(tmp_path / "r.safetensors", model, {"training": {"patch_weights": [key]}})
    with pytest.raises(ValueError, match=r"one\.h5.*no patch vectors"):
        embed.embed_regions([store], trained, profile(), progress=False, device="cpu")
    patches = _run(store, weights)
    assert embed.embed_regions([store], trained, profile(), progress=False, device="cpu") == 1
    found = SlideStore(store).vectors("region_vectors")
    ((_, region),) = iter_regions(store, indices=[2], workers=1)
    region = thumbnail(region, region.shape[0] // profile().mae_region.reduce)
    with torch.inference_mode():
        expected = model.eval().encode(
            torch.from_numpy(np.ascontiguousarray(region))[None], torch.from_numpy(patches[2:3]).float()
        )
    np.testing.assert_allclose(found[2], expected[0].numpy(), rtol=1e-4, atol=1e-4)
    other = save_weights(tmp_path / "s.safetensors", model, {"training": {"patch_weights": ["else"]}})
    with pytest.raises(ValueError, match=rf"one\.h5: patch vectors of weights {key}.*pre-train MAE-Region again"):
        embed.embed_regions([store], other, profile(), progress=False, device="cpu")


def test_extraction_draws_nothing(weights: Path) -> None:
    model = load_mae_patch(weights)
    assert isinstance(model, MAEPatch)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    state = torch.get_rng_state()
    with torch.inference_mode():
        first, second = model.encode(images), model.encode(images)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
