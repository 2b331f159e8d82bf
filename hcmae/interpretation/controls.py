"""Controls beside the probes of the networks: colour alone, and an encoder that was never trained.

A factor that 15 statistics of colour give away, or an encoder with random weights, is no evidence that a network has
learnt anything. So both are asked the same question as the vectors in the stores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hcmae.config import Profile
from hcmae.files import atomic_path, read_json, read_parquet, write_json
from hcmae.interpretation.probe import probe_table, probeable
from hcmae.keys import Key, Reads
from hcmae.pretraining.networks import build_mae_patch
from hcmae.slides.regions import split_patches
from hcmae.slides.store import SlideStore
from hcmae.slides.store_reading import iter_regions
from hcmae_core.mae_patch import MAEPatch

COLOUR, UNTRAINED = "colour statistics", "untrained encoder"
# What the stores hold, by the label under which the lessons show it.
STORED = {"MAE-Patch": "patch_vectors", "MAE-Reg": "region_vectors_reg", "MAE-PatReg": "region_vectors"}
COLOUR_NAMES = tuple(
    f"{statistic} of {channel}"
    for statistic in ("mean", "deviation", "10th percentile", "median", "90th percentile")
    for channel in ("red", "green", "blue")
)
READS = Reads(
    ("geometry", "network", "mae_patch", "fidelity.extract_depth", "fidelity.extract_norm"),
    (
        "hcmae.interpretation.controls",
        "hcmae.pretraining.networks",
        "hcmae.slides.regions",
        "hcmae.slides.store_reading",
        "hcmae_core.*",
    ),
)


class Cut(Protocol):
    """What is asked of a run: who it is, and its slides, cut into regions."""

    cancer: str
    seed: int
    profile: Profile
    pretrain_dir: Path

    def patient_stores(self) -> dict[str, Path]: ...


class Probed(Cut, Protocol):
    """The same, and the planted truth where there is one."""

    def truth(self) -> pd.DataFrame | None: ...


def colour_statistics(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean, deviation, 10th, 50th and 90th percentile of red, green and blue per patch: [N, p, p, 3] -> [N, 15].

    All of them follow from the histograms of the three channels: where in the patch a colour lies does not count.
    Columns as ``COLOUR_NAMES``.
    """
    count, pixels = len(patches), patches.shape[1] * patches.shape[2]
    own = (np.arange(count)[:, None, None] * 3 + np.arange(3)) * 256
    levels = np.arange(256.0)
    histogram = np.bincount((patches.reshape(count, pixels, 3) + own).ravel(), minlength=count * 768)
    histogram = histogram.reshape(count, 3, 256)
    mean = histogram @ levels / pixels
    deviation = np.sqrt(np.maximum(histogram @ levels**2 / pixels - mean**2, 0.0))
    reached = histogram.cumsum(axis=2)
    percentiles = [(reached < share * pixels).sum(axis=2) for share in (0.1, 0.5, 0.9)]
    return np.concatenate([mean, deviation, *percentiles], axis=1)


def untrained_encoder(profile: Profile, seed: int) -> MAEPatch:
    """MAE-Patch as pre-training with this seed starts from; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return build_mae_patch(profile).eval()


def control_features(run: Cut, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """Mean over all patches of a patient of the colour statistics and of the untrained encoder's vectors.

    Two tables [patients, 15] and [patients, D] by label. Kept below the pre-training folder under a key of all that
    they depend on. Raises SlideError where a slide has gone.
    """
    stores = run.patient_stores()
    folder = run.pretrain_dir / "controls"
    target, record = folder / f"{run.cancer}.parquet", folder / f"{run.cancer}.key.json"
    key = _key(run.profile, run.seed, stores)
    if target.exists() and record.exists() and read_json(record) == key.record():
        kept = read_parquet(target)
    else:
        kept = _measure(run, stores, progress)
        with atomic_path(target) as temporary:
            kept.to_parquet(temporary)
        write_json(record, key.record())
    colours = len(COLOUR_NAMES)
    return {COLOUR: kept.iloc[:, :colours], UNTRAINED: kept.iloc[:, colours:]}


def stored_means(run: Cut, labels: tuple[str, ...] = tuple(STORED)) -> dict[str, pd.DataFrame]:
    """Mean over all stored vectors of a patient, [patients, D] by label of ``STORED``.

    Raises KeyError where a store has no such vectors.
    """
    out: dict[str, pd.DataFrame] = {}
    stores = run.patient_stores()
    for label in labels:
        rows = []
        for path in stores.values():
            vectors = SlideStore(path).vectors(STORED[label]).astype(np.float32)
            rows.append(vectors.reshape(-1, vectors.shape[-1]).mean(axis=0))
        out[label] = pd.DataFrame(np.stack(rows), index=list(stores))
    return out


def probe_run(run: Probed, labels: tuple[str, ...] = tuple(STORED), *, progress: bool = True) -> pd.DataFrame | None:
    """``probe.probe_table`` of both controls and of the stored vectors of a run; None without known truth.

    None, with a warning, also where the patients are too few for a probe. labels: of ``STORED``; all are compared with
    the last. Raises as ``control_features`` and ``stored_means``.
    """
    truth = run.truth()
    if truth is None or not probeable(truth, run.patient_stores(), what=run.cancer):
        return None
    descriptions = {**control_features(run, progress=progress), **stored_means(run, labels)}
    return probe_table(descriptions, truth, against=labels[-1], seed=run.seed)


def _measure(run: Cut, stores: dict[str, Path], progress: bool) -> pd.DataFrame:
    fidelity, patch = run.profile.fidelity, run.profile.geometry.patch
    encoder = untrained_encoder(run.profile, run.seed)
    rows = []
    with torch.inference_mode():
        for path in tqdm(stores.values(), desc="colour, untrained encoder", unit="slide", disable=not progress):
            parts = []
            for _, region in iter_regions(path):
                patches = split_patches(region, patch)
                vectors = encoder.encode(
                    torch.from_numpy(patches), depth=fidelity.extract_depth, norm=fidelity.extract_norm
                )
                # In half precision, as the vectors in the stores.
                halved = vectors.to(torch.float16).numpy().astype(np.float64)
                parts.append(np.concatenate([colour_statistics(patches), halved], axis=1).mean(axis=0))
            rows.append(np.mean(parts, axis=0))
    table = pd.DataFrame(np.stack(rows), index=list(stores))
    width = table.shape[1] - len(COLOUR_NAMES)
    return table.set_axis([*COLOUR_NAMES, *(f"untrained {number}" for number in range(width))], axis=1)


def _key(profile: Profile, seed: int, stores: dict[str, Path]) -> Key:
    inputs = {patient: SlideStore(path).content for patient, path in stores.items()}
    return READS.key("controls", profile, inputs, seed=seed)
