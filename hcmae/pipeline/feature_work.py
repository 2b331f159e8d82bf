"""How the work of the steps around patch encoders is done, and what it reads: functions behind rows of ``road``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hcmae.config import Profile
from hcmae.keys import Key, Reads
from hcmae.pipeline import cutting, work
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


# --- features that others have made -----------------------------------------------------------------------------------


def bring_features(run: Place, key: Key, options: Options) -> None:
    from hcmae.encoders.importing import import_slides
    from hcmae.slides.locations import write_locations

    jobs, before = cutting.slide_jobs(run), run.slide_outcomes()
    run.store_dir.mkdir(parents=True, exist_ok=True)
    found = import_slides(jobs, before, run.profile.geometry, contents=run.contents, progress=options["progress"])
    work.write_parquet(run.dir / "slides.parquet", found)
    write_locations(run.store_dir, run.root, run.cohort().table)


def features_reads(profile: Profile) -> Reads:
    from hcmae.encoders.importing import CODE

    return Reads(("geometry.region", "geometry.patch"), CODE)


def not_brought(run: Place, key: Key, options: Options) -> Sequence[str]:
    from hcmae.encoders.importing import why_waiting

    waiting = why_waiting(cutting.slide_jobs(run), run.slide_outcomes(), run.profile.geometry, run.contents)
    return [f"features of {name} are not done ({', '.join(why)})" for name, why in waiting.items()]


# --- regions without pixels -------------------------------------------------------------------------------------------

REGION_CODE = (
    "hcmae.optimiser",
    "hcmae.pretraining.devices",
    "hcmae.pretraining.embed",
    "hcmae.pretraining.feature_regions",
    "hcmae.pretraining.loop",
    "hcmae_core.attention",
    "hcmae_core.feature_region",
    "hcmae_core.mae",
    "hcmae_core.transformer",
)


def region_reads(profile: Profile) -> Reads:
    named = ("mask_ratio", "decoder_dim", "decoder_depth", "decoder_heads", "optimisation")
    settings = ["geometry.region", "geometry.patch", "network", *(f"mae_region.{name}" for name in named)]
    if profile.mae_region.optimisation.optimizer == "adam":
        settings.append("fidelity.adam_decay")
    return Reads((*settings, "compute.precision"), REGION_CODE)


def train_feature_region(run: Place, key: Key, options: Options) -> None:
    from hcmae.pretraining.feature_regions import pretrain_feature_region

    pretrain_feature_region(
        run.pool_stores(), run.profile, run.pretrain_dir, run.seed, key=key.digest, progress=options["progress"]
    )


REGION_VECTORS = work.Vectors(
    "region_vectors",
    lambda run, _: run.feature_region_weights,
    "feature_regions.embed_feature_regions",
    "patch_vectors",
)


# --- HIPT's second stage on these patch vectors -----------------------------------------------------------------------

# Bytes of patch vectors that are shuffled together.
_WINDOW_BYTES = 256 << 20


def hipt_reads(profile: Profile) -> Reads:
    own = work.dino_reads("region")(profile)
    return Reads((*own.settings, "-dino.patch.network.dim"), own.code)


def train_feature_hipt(run: Place, key: Key, options: Options) -> None:
    import numpy as np

    from hcmae.pretraining.dino import pretrain_dino
    from hcmae.slides.store import SlideStore

    stores = run.pool_stores()
    size = SlideStore(stores[0]).vectors("patch_vectors", np.s_[:1]).nbytes
    pretrain_dino(
        "region", stores, run.profile, run.pretrain_dir / "dino", run.seed,
        key=key.digest, progress=options["progress"], vectors="patch_vectors", window=max(1, _WINDOW_BYTES // size),
    )  # fmt: skip


HIPT_VECTORS = work.Vectors(
    "region_vectors_hipt",
    lambda run, _: run.dino_weights("region"),
    "dino.embed_hipt_regions",
    "patch_vectors",
    options={"vectors": "patch_vectors"},
)
