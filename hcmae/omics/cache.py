"""Selections remembered under all that they depend on, so that no fold is fitted twice: in memory or in a folder.

The folds of one cancer share what does not look at labels: the nan-distances between all patients are summed once, and
a fold that drops a few probes takes their share off.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hcmae.config import OmicsSettings
from hcmae.content import content_id
from hcmae.files import atomic_path, write_json
from hcmae.keys import Key, source_of
from hcmae.omics.impute import SharedSums
from hcmae.omics.select import OmicsSelector, OmicsTable, omics_tables
from hcmae.outcome import check_events

# Modules whose source decides what is selected.
SELECTION_CODE = (
    "hcmae.omics.select",
    "hcmae.omics.differential",
    "hcmae.omics.forest",
    "hcmae.omics.importance",
    "hcmae.omics.impute",
    "hcmae.omics.recognise",
    "hcmae.omics.scales",
    "hcmae.outcome",
    "hcmae.units",
)


@dataclass(frozen=True)
class Selection:
    """matrix [n, modalities, top_k] float32 of all patients, chosen: modality -> gene report, cached: was kept."""

    matrix: np.ndarray
    chosen: dict[str, pd.DataFrame]
    cached: bool


# Where selections are kept: a dict for this session, a folder for ever, or nowhere.
Kept = MutableMapping[str, Selection] | str | Path | None


class SelectorCache:
    """Fits an `OmicsSelector` on some patients and transforms all of them, or gives the kept answer.

    normals: tables of normal tissue for ``contrast: tumour_normal``; they carry no survival, so every fold may see
    them.
    kept: a dict, or a folder for ``<key>.npz`` (the matrix), ``<key>-<modality>.parquet`` (the gene reports) and
    ``<key>.json`` (what the key is made of); None: nowhere. Nothing in them is pickled.
    """

    def __init__(
        self,
        data: Any,
        settings: OmicsSettings,
        kept: Kept = None,
        *,
        workers: int = 1,
        normals: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        self.tables = omics_tables(data)
        self.settings = settings
        self.kept = Path(kept) if isinstance(kept, str) else kept
        self.workers = workers
        self.normals = normals if settings.contrast == "tumour_normal" else None
        self.patients = next(iter(self.tables.values())).patients
        self._content: dict[str, str] | None = None
        self._shared: dict[str, SharedSums] = {}
        self._fitted = 0

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
        events = check_events(np.asarray(event)[train]).astype(np.int64)
        key = self._key(train, time64, events, seed)
        stored = self._read(key.digest)
        if stored is not None:
            return stored
        selector = OmicsSelector(self.settings, seed, workers=self.workers)
        part = {name: table.take(train) for name, table in self.tables.items()}
        # Sums over all patients pay from the second selection on.
        shared = {name: self._sums(name, train) for name in self._with_holes()} if self._fitted else {}
        selector.fit(part, time64, events, normals=self.normals, shared=shared)
        self._fitted += 1
        found = Selection(selector.transform(self.tables), selector.chosen, False)
        self._write(key, found)
        return found

    def key(
        self, train: np.ndarray, time: np.ndarray | pd.Series, event: np.ndarray | pd.Series, *, seed: int = 0
    ) -> Key:
        """What the selection of ``select`` with the same arguments depends on."""
        train = np.asarray(train, dtype=np.int64)
        time64 = np.asarray(time, dtype=np.float64)[train]
        return self._key(train, time64, check_events(np.asarray(event)[train]).astype(np.int64), seed)

    def _with_holes(self) -> list[str]:
        return [name for name, table in self.tables.items() if np.isnan(table.X).any()]

    def _sums(self, name: str, train: np.ndarray) -> SharedSums:
        if name not in self._shared:
            self._shared[name] = SharedSums.of(self.tables[name].X)
        return self._shared[name].take(train)

    def _key(self, train: np.ndarray, time: np.ndarray, event: np.ndarray, seed: int) -> Key:
        if self._content is None:
            self._content = omics_content(self.tables, self.normals)
        settings = {f"omics.{name}": value for name, value in self.settings.model_dump(mode="json").items()}
        who = {
            "patients": content_id([self.patients[row] for row in train]),
            "outcome": content_id([time.tolist(), event.tolist()]),
        }
        return Key("omics selection", {**settings, "seed": seed}, {**self._content, **who}, source_of(SELECTION_CODE))

    def _read(self, digest: str) -> Selection | None:
        if isinstance(self.kept, MutableMapping):
            found = self.kept.get(digest)
            return None if found is None else replace(found, cached=True)
        if self.kept is None or not (self.kept / f"{digest}.npz").exists():
            return None
        try:
            with np.load(self.kept / f"{digest}.npz", allow_pickle=False) as file:
                matrix = file["matrix"]
            chosen = {name: pd.read_parquet(self.kept / f"{digest}-{name}.parquet") for name in self.tables}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # a damaged entry is fitted again and overwritten
        return Selection(matrix, chosen, True)

    def _write(self, key: Key, found: Selection) -> None:
        if self.kept is None:
            return
        if isinstance(self.kept, MutableMapping):
            self.kept[key.digest] = found
            return
        write_json(self.kept / f"{key.digest}.json", key.record())
        for name, report in found.chosen.items():
            plain = report.copy()
            plain.attrs = {}
            with atomic_path(self.kept / f"{key.digest}-{name}.parquet") as path:
                plain.to_parquet(path)
        # Last, because its presence says that the entry is whole.
        with atomic_path(self.kept / f"{key.digest}.npz") as path:
            np.savez(path, matrix=found.matrix)


def omics_content(data: Any, normals: Mapping[str, pd.DataFrame] | None = None) -> dict[str, str]:
    """Hash of each modality and of its normal tissue, by name, as inputs of a key.

    data: MuData, dict of tables, or features chosen beforehand [n, modalities, K].
    """
    if isinstance(data, np.ndarray):
        plain = f"{data.shape}|{data.dtype}|".encode() + np.ascontiguousarray(data).tobytes()
        return {"omics": hashlib.sha256(plain).hexdigest()[:20]}
    found = {f"omics {name}": hash_table(table) for name, table in omics_tables(data).items()}
    for name, table in sorted((normals or {}).items()):
        found[f"normal tissue {name}"] = hash_table(omics_tables({name: table})[name])
    return found


def hash_table(table: OmicsTable) -> str:
    """Hash of values, patients, features, gene names and declared scale of one modality."""
    digest = hashlib.sha256(f"{table.modality}|{table.declared}|{table.X.shape}|".encode())
    digest.update(content_id([table.patients, list(table.features), list(table.labels)]).encode())
    digest.update(np.ascontiguousarray(table.X).data)
    return digest.hexdigest()[:20]
