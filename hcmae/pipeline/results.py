"""Results of a run: JSON files with the provenance of their numbers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hcmae import __version__
from hcmae.evaluation.tables import source_commit
from hcmae.files import read_json, write_json
from hcmae.pipeline.place import Place


def save_result(run: Place, name: str, value: dict[str, Any]) -> Path:
    """Write results/<name>.json with the provenance of the run beside the numbers.

    A number without an estimate (NaN, infinite) is null: an AUC beyond the follow-up, a ratio of separated groups.
    """
    path = run.dir / "results" / f"{name}.json"
    write_json(path, {**_estimated(value), "provenance": provenance(run)})
    return path


def _estimated(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _estimated(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_estimated(part) for part in value]
    if isinstance(value, np.ndarray):
        return _estimated(value.tolist())
    if isinstance(value, float | np.floating):
        return value if np.isfinite(value) else None
    return value


def load_result(run: Place, name: str) -> dict[str, Any]:
    """Read results/<name>.json back; raises FileNotFoundError naming it."""
    path = run.dir / "results" / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the notebook that writes it for {run.cancer} first")
    return read_json(path)


def provenance(run: Place) -> dict[str, Any]:
    """Where a number comes from: cancer, profile, source, seed, folds, settings hash, library version, commit."""
    return {
        "folds": f"{run.profile.survival.repeats} x {run.profile.survival.folds}",
        "commit": source_commit(),
        "cancer": run.cancer,
        "profile": run.profile.name,
        "source": run.source,
        "seed": run.seed,
        "settings": run.profile.fingerprint(),
        "version": __version__,
    }
