from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from hcmae.config import Profile, Protocol
from hcmae.files import atomic_path
from hcmae.survival.data import SurvivalData, omics_digest, omics_names

OmicsCache = MutableMapping[str, Any] | str | Path | None


def fold_omics(
    data: SurvivalData, train: NDArray[np.int64], profile: Profile, protocol: Protocol, seed: int, cache: OmicsCache
) -> tuple[NDArray[np.float32], dict[str, list[str]]]:
    """Selected and scaled omics of all patients [n, modalities, K], learnt on the training rows (or on all: a leak).

    Also returns the chosen features per modality. Kept in ``cache`` (a dict or a folder) under a hash of everything
    they depend on, so that all methods of a fold share one selection.
    """
    rows = train if protocol.select_on == "train" else np.arange(len(data.time))
    if isinstance(data.omics, np.ndarray):
        known = data.omics[rows]
        spread = known.std(0)
        scaled = (data.omics - known.mean(0)) / np.where(spread > 0, spread, 1.0)
        return scaled.astype(np.float32), {}
    key = _omics_key(data, rows, profile, seed)
    stored = _cache_read(cache, key)
    if stored is not None:
        return stored
    from hcmae.omics.select import OmicsSelector

    picked = {name: _table(data.omics, name) for name in omics_names(data.omics)}
    selector = OmicsSelector(profile.omics, seed)
    part = {name: table.iloc[rows] for name, table in picked.items()}
    selector.fit(part, data.time[rows], data.event[rows], normals=data.normals)
    values = np.asarray(selector.transform(picked), dtype=np.float32)
    names = {modality: [str(name) for name in report.index] for modality, report in selector.chosen.items()}
    _cache_write(cache, key, values, names)
    return values, names


def _table(omics: Any, name: str) -> pd.DataFrame:
    if not hasattr(omics, "mod"):
        return omics[name]
    part = omics.mod[name]
    values = part.X.toarray() if hasattr(part.X, "toarray") else np.asarray(part.X)
    table = pd.DataFrame(values, index=part.obs_names, columns=part.var_names)
    # What the values are (counts, beta, log ...) travels with the table.
    table.attrs["values"] = part.uns.get("values", part.uns.get("unit"))
    return table


def _omics_key(data: SurvivalData, rows: NDArray[np.int64], profile: Profile, seed: int) -> str:
    digest = hashlib.sha256(omics_digest(data.omics))
    digest.update(profile.omics.fingerprint().encode() + str(seed).encode())
    digest.update(json.dumps([data.patients[row] for row in rows]).encode())
    digest.update(data.time[rows].tobytes() + data.event[rows].tobytes())
    if data.normals is not None:
        digest.update(omics_digest(data.normals))
    return digest.hexdigest()[:20]


def _cache_read(cache: OmicsCache, key: str) -> tuple[NDArray[np.float32], dict[str, list[str]]] | None:
    if cache is None:
        return None
    if isinstance(cache, MutableMapping):
        return cache.get(key)
    path = Path(cache) / f"{key}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return stored["omics"], json.loads(str(stored["names"]))


def _cache_write(cache: OmicsCache, key: str, values: NDArray, names: dict[str, list[str]]) -> None:
    if cache is None:
        return
    if isinstance(cache, MutableMapping):
        cache[key] = (values, names)
        return
    with atomic_path(Path(cache) / f"{key}.npz") as temporary:
        np.savez(temporary, omics=values, names=np.array(json.dumps(names)))


Rows = NDArray[np.int64]


@dataclass
class FoldInputs:
    """All that a method may look at: rows of ``test`` may be predicted, never learnt from (unless Protocol says so)."""

    data: SurvivalData
    train: Rows
    test: Rows
    omics: NDArray[np.float32] | None
    profile: Profile
    protocol: Protocol
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def outcome(self, rows: Rows) -> NDArray:
        """Structured (event, time) of scikit-survival."""
        from sksurv.util import Surv

        return Surv.from_arrays(self.data.event[rows].astype(bool), self.data.time[rows])


@dataclass
class FoldOutput:
    """Risks of the test rows [n_test] and of the training rows [n_train], plus what is worth a line in a log.

    Training risks are held-out ones (inner folds) where the protocol has any; they set median, scale and baseline.
    """

    risk: NDArray[np.floating]
    train_risk: NDArray[np.floating]
    info: dict[str, Any] = field(default_factory=dict)
    models: list[nn.Module] = field(default_factory=list)
