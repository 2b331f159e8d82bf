"""The readings of Eq. 4 side by side: what region vectors say about latent factors under each (lesson 06).

A row differs from its neighbour in one thing: who asks and answers, the residual, or that there is no attention at all.
All of them go on from the same weights for the same epochs on the same regions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import pandas as pd

from hcmae.config import Profile
from hcmae.content import content_id, tensors_hash
from hcmae.files import atomic_path, read_json, read_parquet, write_json
from hcmae.interpretation.probe import patient_means, probe_table, probeable
from hcmae.keys import Key, Reads
from hcmae.pretraining.embed import embed_regions
from hcmae.pretraining.pretrain import pretrain_region
from hcmae.slides.store import SlideStore
from hcmae_core.mae_region import Reading

RESIDUAL, ALONE = "q_enc_kv_patch + residual", "none (MAE-Reg)"
# Row of the table -> its reading, and whether the encoder's output is added.
ROWS: dict[str, tuple[Reading, bool]] = {
    **{reading: (reading, False) for reading in get_args(Reading) if reading != "none"},
    RESIDUAL: ("q_enc_kv_patch", True),
    ALONE: ("none", False),
}
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


def probe_readings(run: Pretrained, *, epochs: int = 3, progress: bool = True) -> pd.DataFrame | None:
    """``probe.probe_table`` of region vectors under each reading of Eq. 4, with intervals; None without known truth.

    Rows are the three readings without a residual, the release's with one (``RESIDUAL``, with which all are compared),
    and MAE-Reg without cross-attention (``ALONE``). Each goes on from MAE-Reg's weights for the same few epochs on this
    cancer's regions. Kept below the pre-training folder. None, with a warning, with too few patients for a probe too.
    """
    truth = run.truth()
    if truth is None or not probeable(truth, run.patient_stores(), what=run.cancer):
        return None
    start = run.pretrain_region("reg", progress=progress)
    stores = run.patient_stores()
    folder = run.pretrain_dir / "readings"
    target, record = folder / f"{run.cancer}.parquet", folder / f"{run.cancer}.key.json"
    key = _key(run.profile, run.seed, truth, start, list(stores.values()), epochs)
    if target.exists() and record.exists() and read_json(record) == key.record():
        return read_parquet(target)
    described = {}
    for number, (label, (reading, residual)) in enumerate(ROWS.items()):
        changed = {"region_residual": residual}
        profile = run.profile.model_copy(
            update={
                "mae_region": run.profile.mae_region.model_copy(update={"warm_epochs": epochs}),
                "fidelity": run.profile.fidelity.model_copy(update=changed),
            }
        )
        name = f"{number}_{reading}"
        described[label] = _described(name, reading, profile, stores, start, folder, run.seed, progress)
    found = probe_table(described, truth, against=RESIDUAL, seed=run.seed)
    with atomic_path(target) as temporary:
        found.to_parquet(temporary)
    write_json(record, key.record())
    return found


def _described(
    name: str,
    reading: Reading,
    profile: Profile,
    stores: dict[str, Path],
    start: Path,
    folder: Path,
    seed: int,
    progress: bool,
) -> pd.DataFrame:
    """Mean region vector of each patient under one reading: [patients, D]."""
    paths = list(stores.values())
    weights = pretrain_region(
        paths, profile, folder, seed, attention=reading, name=name, start=start, progress=progress
    )
    vectors = f"region_vectors_{name}"
    embed_regions(paths, weights, profile, name=vectors, progress=progress)
    means = np.stack([SlideStore(path).vectors(vectors).astype(np.float32).mean(axis=0) for path in paths])
    return patient_means(means, list(stores))


def _key(profile: Profile, seed: int, truth: pd.DataFrame, start: Path, stores: list[Path], epochs: int) -> Key:
    inputs = {"truth": content_id(truth.to_csv()), "MAE-Reg": tensors_hash(start)}
    for path in stores:
        store = SlideStore(path)
        inputs[path.stem] = content_id([store.content, store.vector_content["patch_vectors"]])
    return READS.key("readings of Eq. 4", profile, inputs, seed=seed, epochs=epochs)
