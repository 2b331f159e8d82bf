"""A small cohort of one's own, source ``local``: painted slides, three omics tables, a clinical table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from hcmae.pipeline import Run
from tests.support.twin_slides import paint, write_twin

REPO = Path(__file__).resolve().parents[2]
# Seconds for the whole road on a handful of slides.
OVERRIDES: dict[str, Any] = {
    "name": "tiny",
    "geometry": {"region": 256, "patch": 64, "cell": 16, "thumbnail": 16},
    "network": {"dim": 16, "depth": 1, "heads": 2},
    "slides.min_tissue": 0.1,
    "mae_patch.decoder_dim": 16,
    "mae_patch.decoder_heads": 2,
    "mae_patch.optimisation.batch_size": 32,
    "mae_patch.optimisation.epochs": 1,
    "mae_patch.optimisation.samples_per_epoch": 64,
    "mae_region.decoder_dim": 16,
    "mae_region.decoder_heads": 2,
    "mae_region.optimisation.batch_size": 4,
    "mae_region.optimisation.epochs": 1,
    "mae_region.warm_epochs": 1,
    "dino.patch.network": {"dim": 16, "depth": 1, "heads": 2},
    "dino.region.network": {"dim": 16, "depth": 1, "heads": 2},
    "dino.patch.epochs": 1,
    "dino.patch.samples_per_epoch": 16,
    "dino.patch.batch_size": 8,
    "dino.region.epochs": 1,
    "dino.region.samples_per_epoch": 8,
    "dino.region.batch_size": 4,
    "dino.region.global_cells": 3,
    "dino.region.local_cells": 2,
    "handcrafted.patches": 2,
    "handcrafted.regions": 1,
    "omics.top_k": 5,
    "omics.candidates": 10,
    "omics.trees": 10,
    "survival.network": {"dim": 16, "depth": 1, "heads": 2},
    "survival.epochs": 2,
    "survival.ensemble": 1,
    "survival.folds": 2,
}


def write_manifest(folder: Path, cancer: str, **inclusion: Any) -> Path:
    """A manifest of one's own: LIHC's under another name, without a least size of slides."""
    raw = yaml.safe_load((REPO / "data_manifests" / "LIHC.yaml").read_text(encoding="utf-8"))
    raw["cancer"] = cancer
    raw["inclusion"] = {**raw["inclusion"], "min_slide_bytes": 0, **inclusion}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{cancer}.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def write_tables(root: Path, patients: Sequence[str], *, seed: int = 0, features: int = 20) -> None:
    """clinical.tsv and three omics tables; three of four patients die, times lie between 200 and 1000 days."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    count = len(patients)
    clinical = pd.DataFrame(
        {
            "patient": patients,
            "time_days": np.linspace(200, 999, count).astype(int),
            "event": [int(row % 4 != 3) for row in range(count)],
        }
    )
    clinical.to_csv(root / "clinical.tsv", sep="\t", index=False)
    tables = {
        "rna": (rng.poisson(500, (count, features)), "G"),
        "mirna": (rng.poisson(200, (count, features)), "hsa-mir-"),
        "methylation": (np.round(rng.beta(2, 2, (count, features)), 4), "cg"),
    }
    for name, (values, prefix) in tables.items():
        frame = pd.DataFrame(values, columns=[f"{prefix}{number}" for number in range(features)])
        frame.insert(0, "patient", list(patients))
        frame.to_csv(root / f"{name}.tsv", sep="\t", index=False)


def write_slide(path: Path, *, seed: int, side: int = 640) -> Path:
    """A painted slide as a pyramid of tiles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_twin(path, paint(side, side, seed=seed))


def write_cohort(folder: Path, cancer: str = "HCC2", patients: int = 6) -> Path:
    """The whole cohort below ``folder`` (data/local/<cancer> and manifests); returns its data folder."""
    names = [f"P{number:03d}" for number in range(patients)]
    root = folder / "data" / "local" / cancer
    write_manifest(folder / "manifests", cancer)
    write_tables(root, names)
    for number, name in enumerate(names):
        write_slide(root / "slides" / f"{name}.svs", seed=number)
    return root


def local_run(folder: Path, cancer: str = "HCC2", **overrides: Any) -> Run:
    """The run of a cohort that ``write_cohort`` has written."""
    return Run(
        cancer,
        "smoke",
        "local",
        0,
        folder / "data",
        folder / "runs",
        overrides={**OVERRIDES, **overrides},
        manifest_dir=folder / "manifests",
    )
