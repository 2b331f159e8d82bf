"""What encoders are: published figures, names of timm's models with their arguments, weights on disk or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hcmae.encoders.registry import (
    ENCODERS,
    EncoderError,
    encoder_label,
    find_weights,
    get_encoder,
    known_encoder,
)
from hcmae.encoders.scale import check_scale

# Widths, sides of the input and colours, from the model cards by way of the published feature sets.
PUBLISHED = {
    "uni": (1024, 224, 0.485), "uni2_h": (1536, 224, 0.485), "conch_v15": (768, 448, 0.485),
    "virchow2": (2560, 224, 0.485), "h_optimus_0": (1536, 224, 0.707223),
    "h_optimus_1": (1536, 224, 0.707223), "gigapath": (1536, 224, 0.485),
    "phikon_v2": (1024, 224, 0.485), "resnet50": (1024, 0, 0.485),
}  # fmt: skip


def test_presets_hold_the_published_figures() -> None:
    assert {name: (e.width, e.input, e.mean[0]) for name, e in ENCODERS.items() if name in PUBLISHED} == PUBLISHED
    assert set(ENCODERS) == {*PUBLISHED, "mae_patch"}
    assert ENCODERS["gigapath"].resize == 256, "256 pixels, of which the middle 224 are seen"
    assert all(e.licence and e.source for e in ENCODERS.values())


@pytest.mark.parametrize(
    ("written", "name"),
    [("UNI2-h", "uni2_h"), ("univ2", "uni2_h"), ("Virchow2", "virchow2"), ("conch_v15", "conch_v15"),
     ("hoptimus1", "h_optimus_1"), ("Prov-GigaPath", "gigapath"), ("resnet50", "resnet50")],
)  # fmt: skip
def test_an_encoder_is_known_however_its_name_is_written(written: str, name: str) -> None:
    found = known_encoder(written)
    assert found is not None
    assert found.name == name


def test_names_of_timm_carry_their_arguments() -> None:
    text = "timm:vit_tiny_patch16_224?img_size=64&init_values=1e-5&mean=0.5,0.6,0.7&mpp=0.5@some where/w@2.safetensors"
    encoder = get_encoder(text)
    assert encoder.arguments == {"img_size": 64, "init_values": 1e-5}
    assert (encoder.architecture, encoder.input, encoder.resize, encoder.mpp) == ("vit_tiny_patch16_224", 64, 64, 0.5)
    assert encoder.mean == (0.5, 0.6, 0.7)
    assert encoder.path == Path("some where/w@2.safetensors")
    assert get_encoder("timm:vit_tiny_patch16_224").input == 224


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uni3", "unknown encoder 'uni3': choose one of mae_patch"),
        ("timm:vit_of_nobody@w.safetensors", "timm has no model 'vit_of_nobody'"),
        ("timm:vit_tiny_patch16_224?mean=0.5", "mean must be three numbers"),
        ("timm:vit_tiny_patch16_224?pool=max", "pool is 'max', and may be own or token_mean"),
    ],
)
def test_a_name_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        get_encoder(text)


def test_missing_weights_say_where_a_person_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCMAE_ENCODERS", str(tmp_path))
    with pytest.raises(EncoderError, match=r"no weights of UNI2-h at .*uni2_h\.safetensors.*MahmoodLab/UNI2-h.*gated"):
        find_weights(get_encoder("uni2_h"))
    (tmp_path / "uni2_h.bin").touch()
    assert find_weights(get_encoder("uni2_h")) == tmp_path / "uni2_h.bin"
    with pytest.raises(EncoderError, match="elsewhere"):
        find_weights(get_encoder("uni2_h"), tmp_path / "elsewhere.safetensors")


def test_a_patch_must_be_what_the_encoder_knows() -> None:
    uni = get_encoder("uni2_h")
    check_scale(uni, 256, 0.5, "S")
    check_scale(uni, 224, 0.55, "S")
    with pytest.raises(EncoderError, match=r"S: patches of 256 pixels of 0\.25 um .*slides\.target_mpp: 0\.5"):
        check_scale(uni, 256, 0.25, "S")
    with pytest.raises(EncoderError, match=r"geometry\.patch: 256"):
        check_scale(uni, 64, 0.5, "S")
    check_scale(replace(uni, mpp=None), 64, 0.25, "S")


def test_vectors_name_who_made_them() -> None:
    assert encoder_label("uni2_h:0123") == "UNI2-h"
    assert encoder_label("timm:vit_tiny_patch16_224?img_size=64:0123") == "vit_tiny_patch16_224?img_size=64"
    assert encoder_label("0123") == ""
