"""How the work of the steps around patch encoders is done, and what it reads: functions behind rows of ``road``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hcmae.keys import Key
from hcmae.pipeline import work
from hcmae.pipeline.place import Place

Options = Mapping[str, Any]


# --- vectors of a registered encoder ----------------------------------------------------------------------------------

ENCODER_CODE = ("hcmae.encoders.embed", "hcmae.encoders.network", "hcmae.pretraining.checkpoint")


def _encoder(options: Options) -> tuple[Any, Path]:
    from hcmae.encoders.registry import EncoderError, find_weights, get_encoder

    if not options["encoder"]:
        raise EncoderError("no encoder is named: say which, uni2_h or timm:MODEL@weights.safetensors for example")
    encoder = get_encoder(options["encoder"])
    return encoder, find_weights(encoder, options["weights"])


def embed_with_encoder(run: Place, key: Key, options: Options) -> None:
    from hcmae.encoders.embed import embed_encoder

    encoder, weights = _encoder(options)
    embed_encoder(
        run.stores(), encoder, weights, run.profile,
        any_scale=options["any_scale"], key=key.digest, progress=options["progress"],
    )  # fmt: skip


def encoder_inputs(run: Place, options: Options) -> Mapping[str, str]:
    work.need_stores(run, options)
    _, weights = _encoder(options)
    read = run.contents.weights if weights.suffix == ".safetensors" else run.contents.file
    return {"weights": read(weights)}


def encoder_facts(run: Place, options: Options) -> Mapping[str, Any]:
    """How the encoder is fed; its licence and where its weights lie change no vector."""
    encoder, _ = _encoder(options)
    left_out = {"licence", "source", "path", "precision", "label"}
    return {f"encoder.{name}": value for name, value in asdict(encoder).items() if name not in left_out}


def not_encoded(run: Place, key: Key, options: Options) -> Sequence[str]:
    """Stores without the vectors of this key."""
    from hcmae.slides.store import opened_stores

    stores = opened_stores(run.store_dir, run.stores())
    return [f"store {path.stem} is not done" for path, store in stores if not store.has_vectors(ENCODER, key.digest)]


ENCODER = "encoder_vectors"
