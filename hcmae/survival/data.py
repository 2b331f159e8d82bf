"""Everything a survival method may need for one cohort, gathered from stores and tables."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.config import MODALITIES
from hcmae.content import content_id
from hcmae.encoders.registry import encoder_label
from hcmae.manifest import Manifest
from hcmae.omics.cache import omics_content
from hcmae.outcome import check_outcome
from hcmae.survival.bags import (
    OF_PATCHES,
    STORE_FIELDS,
    VARIANTS,
    Bags,
    PackedBags,
    StoredBags,
    read_store,
    stored_names,
)

if TYPE_CHECKING:
    from hcmae.slides.store import SlideStore

# Vectors and thumbnails of a cohort stay in memory up to this size, each kind on its own.
MEMORY_BYTES = 8 << 30


@dataclass
class SurvivalData:
    """Everything a survival method may need for one cohort, row i = patient i everywhere.

    Attributes:
        patients, time [n] days, event [n] 0/1.
        bags: "region", "region_reg", "patch" vectors, "thumbnail" uint8, "positions" in units of a region;
            "patch_features" is "patch" again where no others are given.
        omics: MuData (or one DataFrame per modality) of raw values, or features chosen beforehand [n, modalities, K].
        clinical: table with age, sex, stage (each optional).
        normals: raw tables of normal tissue per modality, for ``contrast: tumour_normal`` only; they carry no survival.
        exclusions: who is not here and why.
    """

    patients: list[str]
    time: NDArray[np.float64]
    event: NDArray[np.int64]
    bags: dict[str, Bags] = field(default_factory=dict)
    omics: Any = None
    clinical: pd.DataFrame | None = None
    exclusions: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["patient", "reason"]))
    weights: dict[str, str] = field(default_factory=dict)
    normals: dict[str, pd.DataFrame] | None = None

    def __post_init__(self) -> None:
        if "patch" in self.bags and "patch_features" not in self.bags:
            # Without weights of an ImageNet network MCAT and CLAM read what HC-MAE reads.
            self.bags = {**self.bags, "patch_features": self.bags["patch"]}
            if "patch" in self.weights:
                self.weights = {**self.weights, "patch_features": self.weights["patch"]}
        days, dead = check_outcome(self.time, self.event)
        self.time, self.event = days, dead.astype(np.int64)
        if len(self.patients) != len(days):
            raise ValueError(f"{len(self.patients)} patients but {len(days)} survival times")
        for kind, bags in self.bags.items():
            if len(bags.sizes) != len(days):
                raise ValueError(f"bags '{kind}' hold {len(bags.sizes)} patients, the cohort has {len(days)}")
            empty = np.flatnonzero(bags.sizes == 0)
            if len(empty):
                raise ValueError(
                    f"patient {self.patients[empty[0]]} has no item in its bag of '{kind}' "
                    f"({len(empty)} such patients): exclude patients without regions"
                )
        self._check_omics()

    def _check_omics(self) -> None:
        if isinstance(self.omics, np.ndarray) and (self.omics.ndim != 3 or len(self.omics) != len(self.time)):
            raise ValueError(f"chosen omics must be [patients, modalities, features], not {self.omics.shape}")
        names = omics_names(self.omics)
        if names:
            expected = [name for name in MODALITIES if name in names]
            unknown = sorted(set(names) - set(MODALITIES))
            if unknown:
                raise ValueError(f"unknown omics modality '{unknown[0]}': expected {', '.join(MODALITIES)}")
            if list(names) != expected:
                # The order decides which omics is token 0, 1, 2; another order is put right, never trained on.
                self.omics = _reordered(self.omics, expected)
            for name in expected:
                index = _modality_index(self.omics, name)
                if list(index) != list(self.patients):
                    wrong = next((a for a, b in zip(index, self.patients, strict=False) if a != b), "?")
                    raise ValueError(
                        f"omics '{name}' does not list the cohort's patients in their order "
                        f"(first difference at {wrong}): reindex it by SurvivalData.patients"
                    )

    @property
    def patch_source(self) -> str:
        """Whose patch vectors MCAT and CLAM read."""
        own = self.bags.get("patch_features") is self.bags.get("patch")
        named = encoder_label(self.weights.get("patch" if own else "patch_features", ""))
        return named or ("the frozen MAE-Patch" if own else "a ResNet-50 trained on ImageNet")

    def sizes(self, kind: str) -> NDArray[np.int64]:
        """Items per patient of one kind of bag."""
        return self.bags[kind].sizes

    def has(self, need: str) -> bool:
        """Whether the data hold what a method needs."""
        if need == "omics":
            return self.omics is not None
        if need == "clinical":
            return self.clinical is not None
        return need in self.bags

    def permuted(self, seed: int) -> SurvivalData:
        """The same patients with (time, event) pairs shuffled: the true C-index is 0.5."""
        order = np.random.default_rng([seed, 777]).permutation(len(self.time))
        return replace(self, time=self.time[order], event=self.event[order])

    def content(self, kinds: Iterable[str], *, normals: bool = False) -> dict[str, str]:
        """Hash of the patients, their outcome and each kind of input, by name, as inputs of a key.

        Vectors, thumbnails and positions count by their bytes, not by the network that made them. ``normals``: tables
        of normal tissue too.
        """
        found = {
            "patients": content_id(self.patients),
            "outcome": content_id([self.time.tolist(), self.event.tolist()]),
        }
        for kind in sorted(kinds):
            if kind == "omics":
                found.update(omics_content(self.omics, self.normals if normals else None))
            elif kind == "clinical":
                assert self.clinical is not None
                found[kind] = content_id(self.clinical.to_csv())
            else:
                found[kind] = self.bags[kind].content()
        return found


def omics_names(omics: Any) -> list[str]:
    """Modalities of a MuData or of a dict of tables; empty for a ready array or None."""
    if omics is None or isinstance(omics, np.ndarray):
        return []
    return list(omics.mod) if hasattr(omics, "mod") else list(omics)


def _reordered(omics: Any, names: list[str]) -> Any:
    if hasattr(omics, "mod"):
        import mudata

        return mudata.MuData({name: omics.mod[name] for name in names})
    return {name: omics[name] for name in names}


def _modality_index(omics: Any, name: str) -> pd.Index:
    return omics.mod[name].obs_names if hasattr(omics, "mod") else omics[name].index


def load_inputs(
    table: pd.DataFrame,
    store_dir: str | Path,
    mdata: Any = None,
    *,
    kinds: tuple[str, ...] = (*VARIANTS, "thumbnail"),
    missing: str = "exclude",
    memory_bytes: int = MEMORY_BYTES,
    max_regions: int | None = None,
    usable: Collection[Path] | None = None,
) -> SurvivalData:
    """Gather a curated cohort for the survival stage.

    Args:
        table: Cohort.table, indexed by patient, with time, event, slide and clinical columns.
        store_dir: folder of <slide>.h5; vectors that a store lacks are left out for the whole cohort.
        mdata: omics in the order of ``table``, or None.
        missing: "exclude" (patients without a store or without a region are listed in ``exclusions``) or "raise".
        memory_bytes: kinds larger than this stay on disk and are read group by group.
        max_regions: of a slide with more regions only the darkest are used, in their order (``darkest_regions``).
        usable: stores that count; one that is not among them is as if it were not there (None: all count).

    Raises:
        ValueError: nobody is left, or (missing="raise") the first patient without regions.
    """
    from hcmae.slides.store import SlideStore

    store_dir = Path(store_dir)
    kept, gone, images = [], [], _Images()
    wants_images = bool(kinds) and "slide" in table.columns
    for patient, row in table.iterrows():
        if not wants_images:
            kept.append(str(patient))
            continue
        path = store_dir / f"{row['slide']}.h5"
        reason = None
        if usable is not None and path not in usable:
            reason = f"{path.name} does not hold what its slide gives now"
        elif not path.exists():
            reason = f"no slide store {path.name}"
        else:
            store = SlideStore(path)
            if len(store.coords) == 0:
                reason = f"{path.name} has no region"
        if reason is not None:
            if missing == "raise":
                raise ValueError(f"patient {patient}: {reason}; run the slide stage again or exclude the patient")
            gone.append({"patient": str(patient), "reason": reason})
            continue
        kept.append(str(patient))
        images.add(path, store, max_regions)
    if not kept:
        raise ValueError(f"no patient of {len(table)} has regions in {store_dir}: run the slide stage first")
    if gone:
        warnings.warn(f"{len(gone)} of {len(table)} patients have no regions and are left out", stacklevel=2)
    part = table.loc[kept]
    bags, weights = images.bags(kinds, memory_bytes) if images.stores else ({}, {})
    omics = mdata
    if mdata is not None and gone:
        omics = _rows_of(mdata, kept)
    clinical = part[[name for name in ("age", "sex", "stage") if name in part.columns]]
    return SurvivalData(
        kept,
        part["time"].to_numpy(dtype=np.float64),
        part["event"].to_numpy(),
        bags,
        omics,
        clinical if len(clinical.columns) else None,
        pd.DataFrame(gone, columns=["patient", "reason"]),
        weights,
    )


@dataclass
class _Images:
    """The stores of patients with regions, in order, and what of them is used.

    ``chosen``: rows of the regions (None: all); ``regions``: how many; ``patches``: how many patches are there (None:
    all that a region has); ``held``: the vectors that all of them have.
    """

    stores: list[Path] = field(default_factory=list)
    chosen: list[NDArray[np.int64] | None] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    patches: list[int | None] = field(default_factory=list)
    positions: list[NDArray[np.float32]] = field(default_factory=list)
    held: set[str] | None = None
    pixels: bool = True

    def add(self, path: Path, store: SlideStore, max_regions: int | None) -> None:
        """The store of one more patient."""
        self.stores.append(path)
        self.pixels = self.pixels and getattr(store, "has_pixels", True)
        rows = darkest_regions(store, max_regions)
        self.chosen.append(rows)
        self.regions.append(len(store.coords) if rows is None else len(rows))
        mask = getattr(store, "patch_mask", None)
        self.patches.append(None if mask is None else int((mask if rows is None else mask[rows]).sum()))
        corner = np.asarray(store.coords, dtype=np.float64)
        step = float(getattr(store, "side", 0) or _grid_step(corner))
        places = ((corner - corner.min(0)) / step).astype(np.float32)
        self.positions.append(places if rows is None else places[rows])
        held = set(store.vector_weights)
        self.held = held if self.held is None else self.held & held

    def bags(self, kinds: Sequence[str], memory_bytes: int) -> tuple[dict[str, Bags], dict[str, str]]:
        """Bags of the kinds that all stores have, and which network made each. Raises ValueError where several did."""
        bags: dict[str, Bags] = {}
        weights: dict[str, str] = {}
        for kind in kinds:
            name = next((name for name in stored_names(kind) if name in (self.held or set())), "")
            if kind == "thumbnail":
                name = "thumbnails" if self.pixels else ""
            if not name:
                continue
            bags[kind] = self._bag(name, kind in OF_PATCHES, memory_bytes)
            if kind in STORE_FIELDS:
                made = {str(_weights(path, name)) for path in self.stores}
                if len(made) > 1:
                    raise ValueError(
                        f"{self.stores[0].parent}: '{name}' come from {len(made)} different networks; embed again"
                    )
                if made != {"None"}:
                    weights[kind] = next(iter(made))
        bags["positions"] = PackedBags.from_list(self.positions)
        return bags, weights

    def _bag(self, name: str, flatten: bool, memory_bytes: int) -> Bags:
        stores, sizes, chosen = self.stores, self.regions, self.chosen
        first = read_store(stores[0], name, flatten, chosen[0])
        one_row = len(first) == 1 and name == "handcrafted"
        if flatten:
            each = len(first) // max(sizes[0], 1)
            sizes = [size * each if there is None else there for size, there in zip(sizes, self.patches, strict=True)]
        if not one_row and first.nbytes / max(sizes[0], 1) * sum(sizes) > memory_bytes:
            return StoredBags(stores, name, sizes, flatten, chosen)
        rest = zip(stores[1:], chosen[1:], strict=True)
        arrays = [first, *(read_store(path, name, flatten, rows) for path, rows in rest)]
        return PackedBags(np.concatenate(arrays), [len(array) for array in arrays])


def darkest_regions(store: SlideStore, limit: int | None) -> NDArray[np.int64] | None:
    """Rows of the ``limit`` regions with the smallest sum of pixels of the thumbnail, in the order of the store.

    None where the slide has no more regions than that. Source: the authors' release, which cuts its bags so.
    """
    if limit is None or len(store) <= limit:
        return None
    if not getattr(store, "has_pixels", True):
        raise ValueError(
            f"{store.path}: features have no pixels by which its darkest regions could be found: set "
            "fidelity.max_regions to null"
        )
    sums = np.array([int(thumbnail.sum(dtype=np.int64)) for thumbnail in np.asarray(store.thumbnails)])
    return np.sort(np.argsort(sums, kind="stable")[:limit])


def load_tables(
    folder: str | Path, manifest: Manifest, modalities: tuple[str, ...] = ("rna", "mirna"), *, seed: int = 0
) -> SurvivalData:
    """Molecular and clinical tables of a user's folder (source ``local``) without slides, for methods on omics alone.

    Raises CurationError for tables that cannot be read and where nobody passes the manifest's inclusion rules.
    """
    from hcmae.cohort.curate import curate
    from hcmae.omics.readers import read_omics

    cohort = curate(manifest, "local", Path(folder), seed=seed, modalities=modalities, slides=False)
    table = cohort.table
    clinical = table[[name for name in ("age", "sex", "stage") if name in table.columns and table[name].notna().any()]]
    return SurvivalData(
        [str(patient) for patient in table.index],
        table["time"].to_numpy(dtype=np.float64),
        table["event"].to_numpy(),
        omics=read_omics(cohort, "local", Path(folder)),
        clinical=clinical if len(clinical.columns) else None,
    )


def _grid_step(corners: NDArray[np.float64]) -> float:
    gaps = np.diff(np.unique(corners.ravel()))
    return float(gaps[gaps > 0].min()) if (gaps > 0).any() else 1.0


def _weights(path: Path, name: str) -> str | None:
    from hcmae.slides.store import SlideStore

    return SlideStore(path).vector_weights.get(name)


def _rows_of(omics: Any, patients: list[str]) -> Any:
    if hasattr(omics, "mod"):
        import mudata

        return mudata.MuData({name: omics.mod[name][patients].copy() for name in omics.mod})
    return {name: table.loc[patients] for name, table in omics.items()}
