"""What a patch encoder is: name, width, how it is fed, its magnification, its licence, where its weights are.

Figures are those of model cards and of the code that made the published feature sets. Weights are never downloaded:
most are given to persons who accept terms, and a message says where.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD

Interpolation = Literal["bicubic", "bilinear"]
# own: what the network itself returns; token_mean: its class token beside the mean of its patch tokens.
Pool = Literal["own", "token_mean"]
# Where weights are looked for when no path is given: <folder>/<name>.safetensors, then .bin.
WEIGHTS_VARIABLE, WEIGHTS_FOLDER = "HCMAE_ENCODERS", Path("weights")
WEIGHTS_SUFFIXES = (".safetensors", ".bin")
TIMM = "timm:"


class EncoderError(ValueError):
    """An encoder that is unknown, has no weights or cannot be built; the message says what to do."""


@dataclass(frozen=True)
class Encoder:
    """One patch encoder.

    Args:
        name, label: key and printed name.
        width: numbers per patch (None: known only when the network is built).
        architecture: timm's name of the network; "" where it is not one of timm's.
        arguments: of ``timm.create_model``; ``SwiGLUPacked`` and ``SiLU`` by name.
        pool: see ``Pool``. layout: whose names the weights have, timm's or those of transformers' DINOv2.
        resize, input: a patch is brought to ``resize`` pixels with ``interpolation``, and the network sees its centre
            of ``input`` pixels (0: as it was cut).
        mean, std: of red, green and blue in [0, 1].
        patch, mpp: side in pixels and micrometres per pixel of the patches that published features were made from
            (None: not stated, and not asked).
        precision: in which its authors compute; here it is ``compute.precision`` that counts, stored as float16.
        licence, source: terms, and where a person gets the weights.
        path: of the weights, where the name gave it.
        stage: the stage of ``hcmae run`` that writes its vectors, for encoders that have one of their own.
    """

    name: str
    label: str
    width: int | None
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pool: Pool = "own"
    layout: Literal["timm", "dinov2"] = "timm"
    resize: int = 224
    input: int = 224
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    patch: int | None = None
    mpp: float | None = None
    precision: str = "fp32"
    licence: str = "of whoever made the weights"
    source: str = ""
    path: Path | None = None
    stage: str = "encoder"


_UNI2 = {
    "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "reg_tokens": 8, "no_embed_class": True,
    "dynamic_img_size": True,
}  # fmt: skip
_VIRCHOW2 = {
    "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU",
    "reg_tokens": 4, "dynamic_img_size": True, "global_pool": "",
}  # fmt: skip
_OPTIMUS = {"img_size": 224, "init_values": 1e-5, "global_pool": "token"}
_OPTIMUS_MEAN, _OPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_GIGAPATH = {
    "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "init_values": 1e-5,
    "mlp_ratio": 5.33334, "global_pool": "token",
}  # fmt: skip
_ACADEMIC = "CC BY-NC-ND 4.0, gated"
_HUB = "https://huggingface.co/"

# At 20x one pixel is half a micrometre: the magnification of the published feature sets.
ENCODERS: dict[str, Encoder] = {
    item.name: item
    for item in (
        Encoder(
            "mae_patch", "MAE-Patch", None, resize=0, input=0, licence="yours", source="hcmae run mae_patch",
            stage="mae_patch",
        ),
        Encoder(
            "resnet50", "ResNet-50", 1024, resize=0, input=0, licence="see timm's resnet50.tv_in1k",
            source="timm's resnet50.tv_in1k as safetensors", stage="resnet",
        ),
        Encoder(
            "uni", "UNI", 1024, "vit_large_patch16_224", {"init_values": 1e-5, "dynamic_img_size": True},
            interpolation="bilinear", patch=256, mpp=0.5, precision="fp16",
            licence=_ACADEMIC, source=f"{_HUB}MahmoodLab/UNI",
        ),
        Encoder(
            "uni2_h", "UNI2-h", 1536, "vit_giant_patch14_224", _UNI2, interpolation="bilinear", patch=256, mpp=0.5,
            precision="bf16", licence=_ACADEMIC, source=f"{_HUB}MahmoodLab/UNI2-h",
        ),
        Encoder(
            "conch_v15", "CONCH v1.5", 768, resize=448, input=448, patch=512, mpp=0.5, precision="fp16",
            licence=_ACADEMIC, source=f"{_HUB}MahmoodLab/conchv1_5",
        ),
        Encoder(
            "virchow2", "Virchow2", 2560, "vit_huge_patch14_224", _VIRCHOW2, "token_mean", patch=224, mpp=0.5,
            precision="fp16", licence=_ACADEMIC, source=f"{_HUB}paige-ai/Virchow2",
        ),
        Encoder(
            "h_optimus_0", "H-optimus-0", 1536, "vit_giant_patch14_reg4_dinov2", _OPTIMUS, mean=_OPTIMUS_MEAN,
            std=_OPTIMUS_STD,
            patch=224, mpp=0.5, precision="fp16", licence="Apache-2.0", source=f"{_HUB}bioptimus/H-optimus-0",
        ),
        Encoder(
            "h_optimus_1", "H-optimus-1", 1536, "vit_giant_patch14_reg4_dinov2", _OPTIMUS, mean=_OPTIMUS_MEAN,
            std=_OPTIMUS_STD,
            patch=224, mpp=0.5, precision="fp16", licence="gated, see its card", source=f"{_HUB}bioptimus/H-optimus-1",
        ),
        Encoder(
            "gigapath", "Prov-GigaPath", 1536, "vit_giant_patch14_dinov2", _GIGAPATH, resize=256, patch=256, mpp=0.5,
            precision="fp16", licence="Apache-2.0, for research, gated", source=f"{_HUB}prov-gigapath/prov-gigapath",
        ),
        Encoder(
            "phikon_v2", "Phikon-v2", 1024, "vit_large_patch16_224",
            {"init_values": 1e-5, "global_pool": "token"}, layout="dinov2", patch=224, mpp=0.5,
            licence="Owkin's licence, not commercial", source=f"{_HUB}owkin/phikon-v2",
        ),
    )
}  # fmt: skip
# What folders and files of others call them.
_ALIASES = {"conchv15": "conch_v15", "hoptimus0": "h_optimus_0", "hoptimus1": "h_optimus_1", "univ2": "uni2_h",
            "univ1": "uni", "provgigapath": "gigapath", "phikonv2": "phikon_v2"}  # fmt: skip


def get_encoder(name: str) -> Encoder:
    """The encoder of a name: one of ``ENCODERS``, or ``timm:MODEL?argument=value&...@weights`` for any model of timm.

    Raises EncoderError for an unknown one.
    """
    if name.startswith(TIMM):
        return timm_encoder(name)
    found = known_encoder(name)
    if found is None:
        raise EncoderError(
            f"unknown encoder '{name}': choose one of {', '.join(ENCODERS)}, or timm:MODEL@weights.safetensors"
        )
    return found


def known_encoder(name: str) -> Encoder | None:
    """The registered encoder that somebody writes in some way ('UNI2-h', 'univ2'); None where there is none."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    plain = re.sub(r"[^a-z0-9]", "", _ALIASES.get(plain, plain))
    return next((item for key, item in ENCODERS.items() if re.sub(r"[^a-z0-9]", "", key) == plain), None)


# What may stand beside timm's arguments in a name, as they are called in ``Encoder``.
_FEEDING = ("input", "resize", "interpolation", "mean", "std", "patch", "mpp", "pool", "label")


def timm_encoder(text: str) -> Encoder:
    """``timm:MODEL?argument=value&...@weights``: arguments of ``timm.create_model`` and, by their names in ``Encoder``,
    input, resize, interpolation, mean and std (three numbers with commas), patch, mpp, pool and label.

    What is not given is timm's own for that model. Raises EncoderError for an unknown model or value.
    """
    from timm.models import get_pretrained_cfg, is_model

    head, _, path = text.removeprefix(TIMM).partition("@")
    model, _, query = head.partition("?")
    if not is_model(model.partition(".")[0]):
        raise EncoderError(f"timm has no model '{model}' (of '{text}'): timm.list_models() lists them")
    given = dict(part.partition("=")[::2] for part in query.split("&") if part)
    values = {key: _value(value) for key, value in given.items()}
    own = {key: values.pop(key) for key in _FEEDING if key in values}
    cfg: Any = get_pretrained_cfg(model, allow_unregistered=True)
    side = int(own.get("input") or values.get("img_size") or cfg.input_size[-1])
    base = Encoder(f"{TIMM}{head}", model, None, model, values, input=side, resize=int(own.pop("resize", side)))
    own.pop("input", None)
    own.setdefault("mean", cfg.mean)
    own.setdefault("std", cfg.std)
    own.setdefault("interpolation", "bicubic" if cfg.interpolation == "bicubic" else "bilinear")
    for key, choices in (("interpolation", get_args(Interpolation)), ("pool", get_args(Pool))):
        if key in own and own[key] not in choices:
            raise EncoderError(f"'{text}': {key} is '{own[key]}', and may be {' or '.join(choices)}")
    for key in ("mean", "std"):
        numbers = str(own[key]).strip("()[]").split(",") if isinstance(own[key], str) else own[key]
        try:
            own[key] = tuple(float(number) for number in numbers)
        except (TypeError, ValueError):
            own[key] = ()
        if len(own[key]) != 3:
            raise EncoderError(f"'{text}': {key} must be three numbers with commas, for red, green and blue")
    return replace(base, **own, path=Path(path) if path else None)


def _value(text: str) -> Any:
    """A value in a name: a number, true, false, null or else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def find_weights(encoder: Encoder, given: str | Path | None = None) -> Path:
    """Weights on disk: ``given``, else the path in the name, else ``<name>.safetensors`` (or ``.bin``) in the folder
    that ``$HCMAE_ENCODERS`` names (default: ``weights``).

    Raises EncoderError that says where a person gets them; nothing is ever downloaded.
    """
    folder = Path(os.environ.get(WEIGHTS_VARIABLE) or WEIGHTS_FOLDER)
    named = given or encoder.path
    places = [Path(named)] if named else [folder / f"{encoder.name}{suffix}" for suffix in WEIGHTS_SUFFIXES]
    for place in places:
        if place.is_file():
            return place
    where = f" A person gets them at {encoder.source} ({encoder.licence})" if encoder.source else " They are looked for"
    raise EncoderError(
        f"no weights of {encoder.label} at {' or '.join(map(str, places))}.{where}; give their path, or put them into "
        f"the folder that ${WEIGHTS_VARIABLE} names. They are never downloaded here."
    )


def encoder_label(made_by: str) -> str:
    """Printed name of what made stored vectors, from the mark beside them: '<encoder>:<hash>', or a hash alone."""
    name = made_by.rpartition(":")[0]
    if not name:
        return ""
    if name.startswith(TIMM):
        return name.removeprefix(TIMM)
    found = known_encoder(name)
    return found.label if found is not None else name
