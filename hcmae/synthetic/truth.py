"""The planted truth of a synthetic cohort, as it lies beside its raw data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.files import read_json


def read_truth(root: Path) -> pd.DataFrame | None:
    """Latent factors and log hazard per patient; None where ``root`` is no synthetic cohort."""
    path = root / "truth.parquet"
    return pd.read_parquet(path) if path.exists() else None


def read_summary(root: Path) -> dict[str, Any] | None:
    """Oracle C-index, planted features and hazard mix; None where ``root`` is no synthetic cohort."""
    path = root / "truth.json"
    return read_json(path) if path.exists() else None


def read_regions(root: Path) -> pd.DataFrame | None:
    """Where the tumour regions were planted; None where ``root`` is no synthetic cohort."""
    path = root / "truth_regions.parquet"
    return pd.read_parquet(path) if path.exists() else None
