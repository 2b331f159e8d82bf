"""The readings of Eq. 4 side by side: what region vectors say about latent factors under each (lesson 06)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import pandas as pd

from hcmae.config import Profile
from hcmae.content import content_id, tensors_hash
from hcmae.files import atomic_path, read_json, read_parquet, write_json
from hcmae.interpretation.probe import FACTORS, linear_probe, patient_means, probeable
from hcmae.keys import Key, Reads
from hcmae.pretraining.embed import embed_regions
from hcmae.pretraining.pretrain import pretrain_region
from hcmae.slides.store import SlideStore
from hcmae_core.mae_region import Reading

READINGS: tuple[Reading, ...] = tuple(reading for reading in get_args(Reading) if reading != "none")
READS = Reads(
    ("geometry", "network", "mae_region", "fidelity.augment", "fidelity.extract_augment", "compute.precision"),
    (
        "hcmae.interpretation.probe",
        "hcmae.interpretation.readings",
        "hcmae.pretraining.augment",
        "hcmae.pretraining.embed",
        "hcmae.pretraining.loop",
        "hcmae.pretraining.pretrain",
        "hcmae_core.*",
    ),
)


class Pretrained(Protocol):
    """What is asked of a run: who it is, what lies there, and MAE-Reg's weights."""

    cancer: str
    seed: int
    profile: Profile
    pretrain_dir: Path

    def truth(self) -> pd.DataFrame | None: ...
    def patient_stores(self) -> dict[str, Path]: ...
    def pretrain_region(self, variant: Literal["patreg", "reg"] = ..., *, progress: bool = ...) -> Path: ...


def probe_readings(run: Pretrained, *, epochs: int = 6, progress: bool = True) -> pd.DataFrame | None:
    """R2 of the latent factors in region vectors of the three readings of Eq. 4, none of them with a residual.

    Each reading goes on from MAE-Reg's weights for the same few epochs on this cancer's regions; rows are readings,
    columns factors. Kept below the pre-training folder. None without known truth or, with a warning, with too few
    patients for a probe.
    """
    truth = run.truth()
    if truth is None or not probeable(truth, run.patient_stores(), what=run.cancer):
        return None
    start = run.pretrain_region("reg", progress=progress)
    profile = run.profile.model_copy(
        update={
            "mae_region": run.profile.mae_region.model_copy(update={"warm_epochs": epochs}),
            "fidelity": run.profile.fidelity.model_copy(update={"region_residual": False}),
        }
    )
    stores = run.patient_stores()
    folder = run.pretrain_dir / "readings"
    target, record = folder / f"{run.cancer}.parquet", folder / f"{run.cancer}.key.json"
    key = _key(profile, run.seed, truth, start, list(stores.values()))
    if target.exists() and record.exists() and read_json(record) == key.record():
        return read_parquet(target)
    rows = {}
    for reading in READINGS:
        rows[reading] = _probe(reading, profile, stores, truth, start, folder, run.seed, progress)
    found = pd.DataFrame(rows).T
    with atomic_path(target) as temporary:
        found.to_parquet(temporary)
    write_json(record, key.record())
    return found


def _probe(
    reading: Reading,
    profile: Profile,
    stores: dict[str, Path],
    truth: pd.DataFrame,
    start: Path,
    folder: Path,
    seed: int,
    progress: bool,
) -> pd.Series:
    paths = list(stores.values())
    weights = pretrain_region(
        paths, profile, folder, seed, attention=reading, name=reading, start=start, progress=progress
    )
    name = f"region_vectors_{reading}"
    embed_regions(paths, weights, profile, name=name, progress=progress)
    means = np.stack([SlideStore(path).vectors(name).astype(np.float32).mean(axis=0) for path in paths])
    return linear_probe(patient_means(means, list(stores)), truth, names=FACTORS).mean()


def _key(profile: Profile, seed: int, truth: pd.DataFrame, start: Path, stores: list[Path]) -> Key:
    inputs = {"truth": content_id(truth.to_csv()), "MAE-Reg": tensors_hash(start)}
    for path in stores:
        store = SlideStore(path)
        inputs[path.stem] = content_id([store.content, store.vector_content["patch_vectors"]])
    return READS.key("readings of Eq. 4", profile, inputs, seed=seed)
