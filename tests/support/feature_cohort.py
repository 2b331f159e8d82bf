"""Files of features as TRIDENT and CLAM write them, and a cohort of them: source ``features``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hcmae.pipeline import Run
from tests.support.local_cohort import OVERRIDES, write_manifest, write_tables

Array = NDArray[Any]


def tissue(
    seed: int, side: int = 512, cells: int = 6, *, share: float = 0.8, origin: tuple[int, int] = (0, 0)
) -> Array:
    """Corners [N, 2] of patches on one grid of ``cells`` x ``cells``, some of which are background."""
    rng = np.random.default_rng(seed)
    there = rng.random((cells, cells)) < share
    there[0, 0] = True
    rows, columns = np.nonzero(there)
    return np.stack([columns * side + origin[0], rows * side + origin[1]], axis=1)


def write_trident(path: Path, coords: Array, features: Array, **attrs: Any) -> Path:
    """One ``<slide>.h5`` in TRIDENT's layout: 256 pixels at 20x of a 40x slide, unless ``attrs`` say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    usual: dict[str, Any] = {
        "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 0,
        "name": path.stem, "savetodir": "/somewhere", "level0_width": 20000, "level0_height": 20000,
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["features"].attrs["name"] = path.stem
        dataset = file.create_dataset("coords", data=coords)
        for name, value in {**usual, **attrs}.items():
            if value is not None:
                dataset.attrs[name] = value
    return path


def write_features(
    folder: Path, cancer: str = "HCC2", *, patients: int = 8, width: int = 1536, encoder: str = "uni_v2", cells: int = 6
) -> Path:
    """A whole cohort below ``folder`` (data/features/<cancer> and manifests); returns its data folder.

    Patient P<k>'s vectors lie further from the origin the sooner the patient dies.
    """
    names = [f"P{number:03d}" for number in range(patients)]
    root = folder / "data" / "features" / cancer
    write_manifest(folder / "manifests", cancer)
    write_tables(root, names)
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        coords = tissue(number, cells=cells)
        features = rng.normal(1 - number / patients, 1, (len(coords), width)).astype(np.float32)
        write_trident(root / "features" / f"features_{encoder}" / f"{name}.h5", coords, features)
    return root


def features_run(folder: Path, cancer: str = "HCC2", **overrides: Any) -> Run:
    """The run of a cohort that ``write_features`` has written: regions of 4 x 4 patches."""
    return Run(
        cancer, "smoke", "features", 0, folder / "data", folder / "runs",
        overrides={**OVERRIDES, **overrides}, manifest_dir=folder / "manifests",
    )  # fmt: skip
