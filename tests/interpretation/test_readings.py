"""The three readings of Eq. 4: the same start and epochs for each, kept until something changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hcmae.config import SlideSettings, load_profile
from hcmae.interpretation import readings
from hcmae.interpretation.probe import FACTORS, r2_table
from hcmae.pretraining.checkpoint import write_tensors
from hcmae.slides.process import process_slide
from hcmae.slides.store import SlideStore, write_vectors
from tests.support.twin_slides import paint, write_twin

PATIENTS = [f"TCGA-AA-{number:04d}" for number in range(20)]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run that has its stores, patch vectors and MAE-Reg's weights."""
    profile = load_profile(
        "smoke",
        {"geometry": {"region": 128, "patch": 32, "cell": 8, "thumbnail": 16}, "fidelity.region_residual": True},
    )
    slide = write_twin(tmp_path / "one.svs", paint(400, 400, seed=5))
    first = tmp_path / "slides" / f"{PATIENTS[0]}.h5"
    process_slide(slide, first, profile.geometry, SlideSettings(preset="synthetic"))
    count = len(SlideStore(first))
    write_vectors(first, "patch_vectors", np.ones((count, 16, 4), np.float16), weights="w")
    for patient in PATIENTS[1:]:
        shutil.copy(first, first.with_name(f"{patient}.h5"))
    weights = tmp_path / "mae_region_reg.safetensors"
    write_tensors(weights, {"weight": torch.zeros(2)}, {"kind": "mae_region"})
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.normal(size=(20, 3)), PATIENTS, list(FACTORS))
    return SimpleNamespace(
        cancer="LIHC",
        seed=0,
        profile=profile,
        pretrain_dir=tmp_path / "pretrain",
        truth=lambda: truth,
        store_dir=first.parent,
        patient_stores=lambda: {patient: first.parent / f"{patient}.h5" for patient in PATIENTS},
        pretrain_region=lambda variant, progress: weights,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not say its resolution")
def test_readings_share_start_and_epochs_and_are_kept(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def train(stores: list[Path], profile: Any, out: Path, seed: int, **options: Any) -> Path:
        fidelity, epochs = profile.fidelity, profile.mae_region.warm_epochs
        asked.append((options["attention"], epochs, fidelity.region_residual, options["start"].name, len(stores)))
        return out / f"{options['name']}.safetensors"

    def embed(stores: list[Path], weights: Path, profile: Any, *, name: str, progress: bool) -> None:
        for store, factors in zip(stores, run.truth().to_numpy(), strict=True):
            # The reading as printed knows the factors, the others know nothing.
            known = factors if name.endswith("_eq4") else np.zeros(3)
            write_vectors(store, name, np.tile(known.astype(np.float32), (len(SlideStore(store)), 1)), weights="w")

    monkeypatch.setattr(readings, "pretrain_region", train)
    monkeypatch.setattr(readings, "embed_regions", embed)
    table = readings.probe_readings(run, epochs=3, progress=False)
    assert table is not None
    start = "mae_region_reg.safetensors"
    rows = [
        ("q_enc_kv_patch", False), ("eq4", False), ("prose", False), ("q_enc_kv_patch", True), ("none", False)
    ]  # fmt: skip
    assert asked == [(reading, 3, residual, start, 20) for reading, residual in rows]
    r2 = r2_table(table)
    assert list(r2.index) == list(readings.ROWS)
    assert list(r2.columns) == list(FACTORS)
    assert (r2.loc["eq4"] > 0.9).all()
    assert (r2.loc["prose"] < 0.1).all()
    # All are compared with the residual, each with an interval.
    compared = table[table["description"] != readings.RESIDUAL]
    assert compared[["less", "less_low", "less_high"]].notna().all(axis=None)
    again = readings.probe_readings(run, epochs=3, progress=False)
    pd.testing.assert_frame_equal(table, again)
    assert len(asked) == 5
    # One row is enough for the rest. Other epochs and other patch vectors are other work.
    monkeypatch.setattr(readings, "ROWS", {readings.RESIDUAL: readings.ROWS[readings.RESIDUAL]})
    readings.probe_readings(run, epochs=4, progress=False)
    store = run.store_dir / f"{PATIENTS[3]}.h5"
    write_vectors(store, "patch_vectors", np.zeros((len(SlideStore(store)), 16, 4), np.float16), weights="w")
    readings.probe_readings(run, epochs=4, progress=False)
    assert len(asked) == 7


def test_without_known_truth_there_is_nothing_to_probe() -> None:
    run: Any = SimpleNamespace(truth=lambda: None)
    assert readings.probe_readings(run) is None
