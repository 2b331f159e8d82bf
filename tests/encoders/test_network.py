"""Encoders as networks: the very vectors of timm, weights that fit or are refused, widths as published."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as images_v2

from hcmae.config import Profile, SlideSettings, load_profile
from hcmae.encoders.embed import embed_encoder
from hcmae.encoders.network import PatchEncoder, build_encoder, from_dinov2, load_encoder
from hcmae.encoders.registry import ENCODERS, Encoder, EncoderError, get_encoder
from hcmae.pretraining.checkpoint import CheckpointError
from hcmae.slides.process import process_slide
from hcmae.slides.regions import split_patches
from hcmae.slides.store import SlideStore
from hcmae.slides.store_reading import iter_regions
from tests.support.twin_slides import paint, write_twin

SMALL = "timm:vit_tiny_patch16_224?img_size=64&depth=2&embed_dim=48"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT as timm saves it, classifier included."""
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_classes=5)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path


def timms_own(weights: Path, patches: torch.Tensor, side: int = 64) -> torch.Tensor:
    """What timm itself says of patches [N, S, S, 3]."""
    from safetensors.torch import load_file

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_classes=5).eval()
    model.load_state_dict(load_file(weights))
    cfg = timm.data.resolve_model_data_config(model)
    images = images_v2.resize(patches.permute(0, 3, 1, 2), [side, side], InterpolationMode.BICUBIC, antialias=True)
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        tokens = model.forward_features((images.float() / 255 - mean) / std)
        return model.forward_head(tokens, pre_logits=True)


@pytest.mark.parametrize("side", [64, 80])
def test_vectors_equal_timms_own_forward(weights: Path, side: int) -> None:
    network = load_encoder(get_encoder(SMALL), weights)
    patches = torch.randint(
        0, 256, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(side)
    )
    with torch.inference_mode():
        found = network(patches)
    assert found.shape == (3, network.width) == (3, 48)
    assert torch.allclose(found, timms_own(weights, patches), atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_only_the_middle_is_seen_where_the_card_says_so() -> None:
    encoder = replace(get_encoder(SMALL), resize=80)
    network = build_encoder(encoder)
    patches = torch.randint(0, 256, (1, 80, 80, 3), dtype=torch.uint8)
    other = patches.clone()
    other[:, :8] = 0
    assert network.prepare(patches).shape == (1, 3, 64, 64)
    assert torch.equal(network.prepare(patches), network.prepare(other))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, item in ENCODERS.items() if item.architecture])
def test_published_networks_have_the_published_width(name: str) -> None:
    """On the meta device: shapes without a number computed."""
    with torch.device("meta"):
        network = build_encoder(get_encoder(name))
    encoder = get_encoder(name)
    images = torch.empty(2, 3, encoder.input, encoder.input, device="meta")
    network.prepare = lambda patches: images  # type: ignore[method-assign]
    assert network(torch.empty(0)).shape == (2, encoder.width)


def test_class_token_beside_the_mean_of_patch_tokens() -> None:
    """Registers are neither."""
    arguments = {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2, "reg_tokens": 4, "global_pool": ""}
    encoder = Encoder("v", "V", 48, "vit_tiny_patch16_224", arguments, "token_mean", resize=32, input=32)
    network = build_encoder(encoder)
    tokens = torch.randn(2, 1 + 4 + 4, 24)
    network.trunk.forward = lambda images: tokens  # type: ignore[method-assign]
    found = network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert torch.equal(found, torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1))


def test_weights_that_do_not_fit_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit this model: missing"):
        load_encoder(get_encoder(SMALL.replace("depth=2", "depth=3")), weights)
    with pytest.raises(CheckpointError, match="has shape"):
        load_encoder(get_encoder(SMALL.replace("img_size=64", "img_size=32")), weights)
    with pytest.raises(EncoderError, match=r"timm does not build .*colour"):
        load_encoder(get_encoder(SMALL + "&colour=3"), weights)
    with pytest.raises(EncoderError, match=r"CONCH v1\.5 is no network of timm.*source=features"):
        load_encoder(get_encoder("conch_v15"), weights)
    with pytest.raises(EncoderError, match="hcmae run resnet"):
        load_encoder(get_encoder("resnet50"), weights)
    with pytest.raises(EncoderError, match="has 48 numbers per patch, and should have 64"):
        load_encoder(replace(get_encoder(SMALL), width=64), weights)


def test_a_pickle_that_holds_more_than_tensors_is_refused(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    plain, wild = tmp_path / "plain.bin", tmp_path / "wild.bin"
    torch.save(load_file(weights), plain)
    torch.save({"where": tmp_path}, wild)
    load_encoder(get_encoder(SMALL), plain)
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        load_encoder(get_encoder(SMALL), wild)


@pytest.mark.slow
def test_weights_of_transformers_dinov2_give_its_class_token(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    theirs = Dinov2Model(Dinov2Config(image_size=32, patch_size=8, **sizes)).eval()
    for parameter in theirs.parameters():  # its positions and scales start alike
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)  # under the names that published files have
    arguments = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "init_values": 1e-5,
                 "global_pool": "token"}  # fmt: skip
    encoder = Encoder("p", "P", 24, "vit_tiny_patch16_224", arguments, layout="dinov2", resize=32, input=32)
    ours = load_encoder(encoder, tmp_path / "model.safetensors")
    patches = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs(ours.prepare(patches)).last_hidden_state[:, 0]
        assert torch.allclose(ours(patches), expected, atol=1e-5, rtol=0)
    with pytest.raises(CheckpointError, match=r"'encoder\.layer\.0\.rotor' is no tensor"):
        from_dinov2({"encoder.layer.0.rotor": torch.zeros(1)}, Path("w"))


def tiny() -> Profile:
    changes: dict[str, Any] = {"geometry": {"region": 128, "patch": 64, "cell": 16, "thumbnail": 16}}
    return load_profile("smoke", {**changes, "compute": {"precision": "32"}})


@pytest.mark.filterwarnings("ignore:.*does not say its resolution")
def test_vectors_of_an_encoder_go_into_the_stores(weights: Path, tmp_path: Path) -> None:
    slide = write_twin(tmp_path / "one.svs", paint(500, 500, seed=5))
    store = tmp_path / "one.h5"
    assert process_slide(slide, store, tiny().geometry, SlideSettings(preset="synthetic")).status == "ok"
    encoder = get_encoder(SMALL)
    assert embed_encoder([store], encoder, weights, tiny(), progress=False, device="cpu") == 1
    found = SlideStore(store)
    vectors = found.vectors("encoder_vectors")
    assert (vectors.shape, vectors.dtype) == ((len(found), 4, 48), np.float16)
    assert found.vector_weights["encoder_vectors"].startswith(f"{encoder.name}:")
    _, region = next(iter_regions(store, indices=[0]))
    expected = timms_own(weights, torch.from_numpy(split_patches(region, 64)))
    assert np.allclose(vectors[0], expected.numpy(), atol=2e-3), "stored as float16"
    assert embed_encoder([store], encoder, weights, tiny(), progress=False, device="cpu") == 0
    again = Path(shutil.copy(weights, tmp_path / "again.safetensors"))
    assert embed_encoder([store], encoder, again, tiny(), progress=False, device="cpu") == 0, "the same weights"
    with pytest.raises(EncoderError, match="or say any_scale"):
        embed_encoder([store], replace(encoder, mpp=2.0), weights, tiny(), progress=False, device="cpu")


def test_an_encoder_is_a_module_like_any_other() -> None:
    assert isinstance(build_encoder(get_encoder(SMALL)), PatchEncoder)
