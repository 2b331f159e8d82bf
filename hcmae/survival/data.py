"""Everything a survival method may need for one cohort, gathered from stores and tables."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hcmae.config import MODALITIES
from hcmae.content import content_id
from hcmae.encoders.registry import encoder_label
from hcmae.manifest import Manifest
from hcmae.omics.cache import omics_content
from hcmae.outcome import check_outcome
from hcmae.survival.bags import OF_PATCHES, STORE_FIELDS, VARIANTS, Bags, PackedBags, StoredBags, stored_names

if TYPE_CHECKING:
    from hcmae.slides.store import SlideStore

# Vectors and thumbnails of a cohort stay in memory up to this size together, the smallest kinds first.
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
        memory_bytes: of all kinds in memory together; the largest ones stay on disk and are read group by group.
        max_regions: of a slide with more regions only the darkest are used, in their order (``darkest_regions``).
        usable: stores that count; one that is not among them is as if it were not there (None: all count).

    Raises:
        ValueError: nobody is left, or (missing="raise") the first patient without regions.
    """
    from hcmae.slides.store import SlideStore

    store_dir = Path(store_dir)
    kept, gone, stores, sizes, positions = [], [], [], [], []
    chosen: list[NDArray[np.int64] | None] = []
    patches: list[int | None] = []
    fields: set[str] | None = None
    pixels = True
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
            count = len(store.coords)
            if count == 0:
                reason = f"{path.name} has no region"
        if reason is not None:
            if missing == "raise":
                raise ValueError(f"patient {patient}: {reason}; run the slide stage again or exclude the patient")
            gone.append({"patient": str(patient), "reason": reason})
            continue
        kept.append(str(patient))
        stores.append(path)
        rows = darkest_regions(store, max_regions)
        chosen.append(rows)
        sizes.append(count if rows is None else len(rows))
        pixels = pixels and getattr(store, "has_pixels", True)
        mask = getattr(store, "patch_mask", None)
        patches.append(None if mask is None else int((mask if rows is None else mask[rows]).sum()))
        corner = np.asarray(store.coords, dtype=np.float64)
        step = float(getattr(store, "side", 0) or _grid_step(corner))
        places = ((corner - corner.min(0)) / step).astype(np.float32)
        positions.append(places if rows is None else places[rows])
        held = set(store.vector_weights)
        fields = held if fields is None else fields & held
    if not kept:
        raise ValueError(f"no patient of {len(table)} has regions in {store_dir}: run the slide stage first")
    if gone:
        warnings.warn(f"{len(gone)} of {len(table)} patients have no regions and are left out", stacklevel=2)
    part = table.loc[kept]
    bags: dict[str, Bags] = {}
    weights: dict[str, str] = {}
    if stores:
        there = _stored_kinds(kinds, fields or set(), pixels)
        weights = _networks(there, stores)
        bags = _gathered(there, stores, sizes, patches, chosen, memory_bytes)
        bags["positions"] = PackedBags.from_list(positions)
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


def _stored_kinds(kinds: Sequence[str], held: set[str], pixels: bool) -> dict[str, str]:
    """The kinds that all stores have -> what they call them; of several names of a kind the first that all have."""
    found = {kind: next((name for name in stored_names(kind) if name in held), "") for kind in kinds}
    if "thumbnail" in found:
        found["thumbnail"] = "thumbnails" if pixels else ""
    return {kind: name for kind, name in found.items() if name}


def _gathered(
    kinds: Mapping[str, str],
    stores: list[Path],
    sizes: list[int],
    patches: list[int | None],
    chosen: list[NDArray[np.int64] | None],
    memory_bytes: int,
) -> dict[str, Bags]:
    """Bags of each kind: in memory as far as all of them fit, else in their stores.

    ``patches``: per store how many patches are there (None: all that its regions have).
    """
    on_disk = {kind: StoredBags(stores, name, sizes, kind in OF_PATCHES, chosen) for kind, name in kinds.items()}
    held = _in_memory(on_disk, patches, memory_bytes)
    return {kind: _read(stored) if kind in held else stored for kind, stored in on_disk.items()}


def _networks(kinds: Mapping[str, str], stores: list[Path]) -> dict[str, str]:
    """Kind -> hash of the network that wrote it. Raises ValueError where stores hold vectors of several."""
    weights = {}
    for kind, name in kinds.items():
        if kind not in STORE_FIELDS:
            continue
        hashes = {str(_weights(path, name)) for path in stores}
        if len(hashes) > 1:
            raise ValueError(f"{stores[0].parent}: '{name}' come from {len(hashes)} different networks; embed again")
        if hashes != {"None"}:
            weights[kind] = hashes.pop()
    return weights


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


def _in_memory(kinds: dict[str, StoredBags], patches: list[int | None], memory_bytes: int) -> set[str]:
    """The kinds that fit into memory together, the smallest first; sizes are set right for several items per region."""
    needed = {}
    for kind, bags in kinds.items():
        first = bags.packed(np.array([0]))
        if kind == "handcrafted":
            # One row per slide, however many regions it has: always small.
            continue
        per_region = max(len(first) // max(int(bags.sizes[0]), 1), 1)
        bags.sizes = bags.sizes * per_region
        if bags.flatten:
            # Regions of features are not all full.
            bags.sizes = np.array([n if own is None else own for n, own in zip(bags.sizes, patches, strict=True)])
        needed[kind] = first[0].numel() * first.element_size() * int(bags.sizes.sum())
    held, left = set(kinds) - set(needed), memory_bytes
    for kind in sorted(needed, key=lambda kind: (needed[kind], kind)):
        left -= needed[kind]
        if left < 0:
            break
        held.add(kind)
    return held


def _read(stored: StoredBags) -> PackedBags:
    """The same items in memory, under the same hash; each store is read into its place: nothing is held twice."""
    first = stored.packed(np.array([0]))
    if stored.field == STORE_FIELDS["handcrafted"]:
        arrays = [first, *(stored.packed(np.array([row])) for row in range(1, len(stored.stores)))]
        return PackedBags(torch.cat(arrays), [len(array) for array in arrays], stored.content)
    values = torch.empty(int(stored.sizes.sum()), *first.shape[1:], dtype=first.dtype)
    start = 0
    for row, size in enumerate(stored.sizes):
        items = stored.packed(np.array([row]))
        if len(items) != size:
            raise ValueError(f"{stored.stores[row]}: {len(items)} items of {stored.field}, {size} by its regions")
        values[start : start + size] = items
        start += int(size)
    return PackedBags(values, stored.sizes, stored.content)


def _rows_of(omics: Any, patients: list[str]) -> Any:
    if hasattr(omics, "mod"):
        import mudata

        return mudata.MuData({name: omics.mod[name][patients].copy() for name in omics.mod})
    return {name: table.loc[patients] for name, table in omics.items()}
