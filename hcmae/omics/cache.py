"""Selections remembered: by data, patients, labels, settings and seed, so that no fold is fitted twice.

The folds of one cancer share what does not look at labels: the nan-distances between all patients are summed once, and
a fold that drops a few probes takes their share off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hcmae.config import OmicsSettings
from hcmae.files import atomic_path
from hcmae.omics.impute import SharedSums
from hcmae.omics.select import OmicsSelector, OmicsTable, omics_tables

# Raise when the selection itself changes, so that old files are not taken for new ones.
_VERSION = 1


@dataclass(frozen=True)
class Selection:
    """matrix [n, modalities, top_k] float32 of all patients, chosen: modality -> gene report, cached: read from
    disk."""

    matrix: np.ndarray
    chosen: dict[str, pd.DataFrame]
    cached: bool


class SelectorCache:
    """Fits an `OmicsSelector` on some patients and transforms all of them, or reads the stored answer.

    normals: tables of normal tissue for ``contrast: tumour_normal``; they carry no survival, so every fold may see
    them.
    folder: where ``<key>.npz`` (the matrix) and ``<key>-<modality>.parquet`` (the gene reports) are kept; None:
    nowhere. Nothing in them is pickled.
    """

    def __init__(
        self,
        data: Any,
        settings: OmicsSettings,
        folder: str | Path | None = None,
        *,
        workers: int = 1,
        normals: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        self.tables = omics_tables(data)
        self.settings = settings
        self.folder = None if folder is None else Path(folder)
        self.workers = workers
        self.normals = normals
        self.patients = next(iter(self.tables.values())).patients
        self._data_hash: str | None = None
        self._shared: dict[str, SharedSums] = {}

    def select(
        self,
        train: np.ndarray,
        time: np.ndarray | pd.Series,
        event: np.ndarray | pd.Series,
        *,
        seed: int = 0,
    ) -> Selection:
        """Selection learnt from the patients in positions ``train`` and applied to all.

        time, event [n] of all patients, in their order; only those of ``train`` are looked at.
        """
        train = np.asarray(train, dtype=np.int64)
        time64 = np.asarray(time, dtype=np.float64)[train]
        events = np.asarray(event).astype(np.int64)[train]
        key = self._key(train, time64, events, seed)
        stored = self._read(key)
        if stored is not None:
            return stored
        selector = OmicsSelector(self.settings, seed, workers=self.workers)
        part = {name: table.take(train) for name, table in self.tables.items()}
        shared = {name: self._sums(name, train) for name in self._with_holes()}
        selector.fit(part, time64, events, normals=self.normals, shared=shared)
        found = Selection(selector.transform(self.tables), selector.chosen, False)
        self._write(key, found)
        return found

    def _with_holes(self) -> list[str]:
        return [name for name, table in self.tables.items() if np.isnan(table.X).any()]

    def _sums(self, name: str, train: np.ndarray) -> SharedSums:
        if name not in self._shared:
            self._shared[name] = SharedSums.of(self.tables[name].X)
        return self._shared[name].take(train)

    def _key(self, train: np.ndarray, time: np.ndarray, event: np.ndarray, seed: int) -> str:
        if self._data_hash is None:
            self._data_hash = hash_tables(self.tables)
            if self.normals is not None:
                self._data_hash += "".join(hash_tables(omics_tables({n: t})) for n, t in sorted(self.normals.items()))
        digest = hashlib.sha256(self._data_hash.encode())
        for array in (train, time, event):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(json.dumps([_VERSION, seed, self.settings.model_dump(mode="json")], sort_keys=True).encode())
        return digest.hexdigest()[:24]

    def _read(self, key: str) -> Selection | None:
        if self.folder is None or not (self.folder / f"{key}.npz").exists():
            return None
        try:
            with np.load(self.folder / f"{key}.npz", allow_pickle=False) as file:
                matrix = file["matrix"]
            chosen = {name: pd.read_parquet(self.folder / f"{key}-{name}.parquet") for name in self.tables}
        except (OSError, ValueError, KeyError):
            return None  # a damaged entry is fitted again and overwritten
        return Selection(matrix, chosen, True)

    def _write(self, key: str, found: Selection) -> None:
        if self.folder is None:
            return
        for name, report in found.chosen.items():
            plain = report.copy()
            plain.attrs = {}
            with atomic_path(self.folder / f"{key}-{name}.parquet") as path:
                plain.to_parquet(path)
        # Last, because its presence says that the entry is whole.
        with atomic_path(self.folder / f"{key}.npz") as path:
            np.savez(path, matrix=found.matrix)


def hash_tables(tables: dict[str, OmicsTable]) -> str:
    """Hash of values, patients, features and scale of all modalities."""
    digest = hashlib.blake2b(digest_size=16)
    for name, table in tables.items():
        digest.update(f"{name}|{table.declared}|{table.X.shape}|".encode())
        digest.update("\n".join([*table.patients, *table.features]).encode())
        digest.update(np.ascontiguousarray(table.X).data)
    return digest.hexdigest()
