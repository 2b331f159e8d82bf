"""The paper's experiment: repeated cross-validation of survival methods on one cohort, resumable fold by fold."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import time
import warnings
from collections.abc import MutableMapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from hcmae_core.cohort.splits import check_outcome
from hcmae_core.config import MODALITIES, Manifest, Profile, Protocol
from hcmae_core.evaluation.metrics import breslow_survival
from hcmae_core.files import atomic_path, read_json, write_json
from hcmae_core.training.bags import OF_PATCHES, STORE_FIELDS, VARIANTS, Bags, PackedBags, StoredBags, read_store
from hcmae_core.training.fit import FoldInputs, FoldOutput, fit_network
from hcmae_core.training.methods import METHODS, Method, get_method, register

log = logging.getLogger(__name__)

# Vectors and thumbnails of a cohort stay in memory up to this size, each kind on its own.
MEMORY_BYTES = 8 << 30
# Survival probabilities are kept at these times of every patient: shares of the longest follow-up.
GRID_POINTS = 24


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
        return "the frozen MAE-Patch" if own else "a ResNet-50 trained on ImageNet"

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

    def fingerprint(self, needs: frozenset[str]) -> str:
        """Hash of the patients, their outcome and the inputs that a method uses."""
        digest = hashlib.sha256(json.dumps(self.patients).encode())
        digest.update(self.time.tobytes() + self.event.tobytes())
        for need in sorted(needs):
            digest.update(need.encode())
            if need == "omics":
                digest.update(_omics_digest(self.omics))
            elif need == "clinical":
                assert self.clinical is not None
                digest.update(self.clinical.to_csv().encode())
            elif need in self.weights:
                digest.update(self.weights[need].encode() + self.bags[need].sizes.tobytes())
            else:
                digest.update(self.bags[need].packed(np.arange(len(self.time))).numpy().tobytes())
        return digest.hexdigest()[:16]


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


def _omics_digest(omics: Any) -> bytes:
    digest = hashlib.sha256()
    if isinstance(omics, np.ndarray):
        digest.update(np.ascontiguousarray(omics).tobytes())
    for name in omics_names(omics):
        table = omics.mod[name] if hasattr(omics, "mod") else omics[name]
        values = table.X if hasattr(table, "X") else table.to_numpy()
        values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.digest()


def load_inputs(
    table: pd.DataFrame,
    store_dir: str | Path,
    mdata: Any = None,
    *,
    kinds: tuple[str, ...] = (*VARIANTS, "thumbnail"),
    missing: str = "exclude",
    memory_bytes: int = MEMORY_BYTES,
) -> SurvivalData:
    """Gather a curated cohort for the survival stage.

    Args:
        table: Cohort.table, indexed by patient, with time, event, slide and clinical columns.
        store_dir: folder of <slide>.h5; vectors that a store lacks are left out for the whole cohort.
        mdata: omics in the order of ``table``, or None.
        missing: "exclude" (patients without a store or without a region are listed in ``exclusions``) or "raise".
        memory_bytes: kinds larger than this stay on disk and are read group by group.

    Raises:
        ValueError: nobody is left, or (missing="raise") the first patient without regions.
    """
    from hcmae_core.slides.store import SlideStore

    store_dir = Path(store_dir)
    kept, gone, stores, sizes, positions = [], [], [], [], []
    fields: set[str] | None = None
    hashes: dict[str, set[str]] = {}
    wants_images = bool(kinds) and "slide" in table.columns
    for patient, row in table.iterrows():
        if not wants_images:
            kept.append(str(patient))
            continue
        path = store_dir / f"{row['slide']}.h5"
        reason = None
        if not path.exists():
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
        sizes.append(count)
        corner = np.asarray(store.coords, dtype=np.float64)
        step = float(getattr(store.geometry, "region", 0) or _grid_step(corner))
        positions.append(((corner - corner.min(0)) / step).astype(np.float32))
        held = {kind for kind, name in STORE_FIELDS.items() if _holds(store, name)}
        fields = held if fields is None else fields & held
    if not kept:
        raise ValueError(f"no patient of {len(table)} has regions in {store_dir}: run the slide stage first")
    if gone:
        warnings.warn(f"{len(gone)} of {len(table)} patients have no regions and are left out", stacklevel=2)
    part = table.loc[kept]
    bags: dict[str, Bags] = {}
    weights: dict[str, str] = {}
    if stores:
        for kind in kinds:
            if kind != "thumbnail" and kind not in (fields or set()):
                continue
            name = STORE_FIELDS.get(kind, "thumbnails")
            bags[kind] = _bags(stores, name, sizes, kind in OF_PATCHES, memory_bytes)
            if kind in STORE_FIELDS:
                hashes[kind] = {str(_weights(path, name)) for path in stores}
                if len(hashes[kind]) > 1:
                    raise ValueError(
                        f"{store_dir}: '{name}' come from {len(hashes[kind])} different networks; embed again"
                    )
                if hashes[kind] != {"None"}:
                    weights[kind] = next(iter(hashes[kind]))
        bags["positions"] = PackedBags.from_list(positions)
    omics = mdata
    if mdata is not None and gone:
        omics = _rows_of(mdata, kept)
    clinical = part[[name for name in ("age", "sex", "stage") if name in part.columns]]
    return SurvivalData(
        kept,
        part["time"].to_numpy(dtype=np.float64),
        part["event"].to_numpy(dtype=np.int64),
        bags,
        omics,
        clinical if len(clinical.columns) else None,
        pd.DataFrame(gone, columns=["patient", "reason"]),
        weights,
    )


def load_tables(
    folder: str | Path, manifest: Manifest, modalities: tuple[str, ...] = ("rna", "mirna"), *, seed: int = 0
) -> SurvivalData:
    """Molecular and clinical tables of a user's folder (source ``local``) without slides, for methods on omics alone.

    Raises CurationError for tables that cannot be read and where nobody passes the manifest's inclusion rules.
    """
    from hcmae_core.cohort.curate import curate
    from hcmae_core.omics.readers import read_omics

    cohort = curate(manifest, "local", Path(folder), seed=seed, modalities=modalities, slides=False)
    table = cohort.table
    clinical = table[[name for name in ("age", "sex", "stage") if name in table.columns and table[name].notna().any()]]
    return SurvivalData(
        [str(patient) for patient in table.index],
        table["time"].to_numpy(dtype=np.float64),
        table["event"].to_numpy(dtype=np.int64),
        omics=read_omics(cohort, "local", Path(folder)),
        clinical=clinical if len(clinical.columns) else None,
    )


def _grid_step(corners: NDArray[np.float64]) -> float:
    gaps = np.diff(np.unique(corners.ravel()))
    return float(gaps[gaps > 0].min()) if (gaps > 0).any() else 1.0


def _holds(store: Any, name: str) -> bool:
    try:
        return store.vectors(name) is not None
    except (KeyError, ValueError):
        return False


def _weights(path: Path, name: str) -> str | None:
    import h5py

    with h5py.File(path, "r") as handle:
        value = handle[name].attrs.get("weights")
        return None if value is None else str(value)


def _bags(stores: list[Path], name: str, sizes: list[int], flatten: bool, memory_bytes: int) -> Bags:
    first = read_store(stores[0], name, flatten)
    one_row = len(first) == 1 and name == "handcrafted"
    per_item = first.nbytes / max(1 if one_row else sizes[0], 1)
    if not one_row and per_item * sum(sizes) > memory_bytes:
        scale = len(first) // max(sizes[0], 1)
        return StoredBags(stores, name, [size * scale for size in sizes], flatten)
    arrays = [first, *(read_store(path, name, flatten) for path in stores[1:])]
    counts = [len(array) for array in arrays]
    return PackedBags(np.concatenate(arrays), counts)


def _rows_of(omics: Any, patients: list[str]) -> Any:
    if hasattr(omics, "mod"):
        import mudata

        return mudata.MuData({name: omics.mod[name][patients].copy() for name in omics.mod})
    return {name: table.loc[patients] for name, table in omics.items()}


# --- omics of a fold ------------------------------------------------------------------------------------------------

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
    from hcmae_core.omics.select import OmicsSelector

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
    digest = hashlib.sha256(_omics_digest(data.omics))
    digest.update(profile.omics.fingerprint().encode() + str(seed).encode())
    digest.update(json.dumps([data.patients[row] for row in rows]).encode())
    digest.update(data.time[rows].tobytes() + data.event[rows].tobytes())
    if data.normals is not None:
        digest.update(_omics_digest(data.normals))
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


# --- cross-validation -----------------------------------------------------------------------------------------------


def cross_validate(
    method: str,
    data: SurvivalData,
    folds: pd.DataFrame,
    profile: Profile,
    protocol: Protocol | None = None,
    *,
    seed: int = 0,
    out_dir: str | Path | None = None,
    omics_cache: OmicsCache = None,
    workers: int = 1,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Out-of-fold predictions of one method on shared folds.

    Args:
        method: a name in METHODS.
        folds: table [patient, repeat, fold] of ``cohort.splits.make_folds``.
        protocol: honest by default.
        out_dir: every finished fold is kept below it and not computed again; the whole goes to <method>.parquet.
        omics_cache: dict or folder for the omics chosen per fold, shared by all methods.
        workers: folds in parallel (CPU only).

    Returns:
        Table [patient, repeat, fold, risk, time, event] plus risk_z (risk in standard deviations of the fold's
        training patients), high (above their median risk) and S@<days>: survival probabilities on a grid of days,
        from a Breslow baseline of the training patients.

    Raises:
        KeyError: unknown method. ValueError: data lack what the method needs, folds and data list other patients, or
        a fold leaves no death to train on.
    """
    chosen = get_method(method)
    protocol = protocol or Protocol.preset("honest")
    for need in sorted(chosen.needs):
        if not data.has(need):
            raise ValueError(
                f"method '{method}' needs '{need}', which the data of these {len(data.time)} patients lack"
            )
    where = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    grid = survival_grid(data.time)
    folder = None
    if out_dir is not None:
        folder = Path(out_dir) / "parts" / f"{method}-{_run_key(chosen, data, profile, protocol, seed)}"
    tasks = []
    for number, part in folds.groupby(["repeat", "fold"], sort=True):
        repeat, fold = (int(value) for value in tuple(number))  # type: ignore[arg-type, call-overload]
        test, train = _fold_rows(data, folds, repeat, set(part["patient"]), f"repeat {repeat}, fold {fold}")
        tasks.append((repeat, fold, train, test))
    results: dict[tuple[int, int], pd.DataFrame] = {}
    waiting = []
    for task in tasks:
        path = _part_path(folder, task, data)
        if path is not None and path.exists():
            results[task[:2]] = pd.read_parquet(path)
        else:
            waiting.append((task, path))
    arguments = [
        (chosen, data, task, path, profile, protocol, seed, omics_cache, where, grid) for task, path in waiting
    ]
    if workers > 1 and len(waiting) > 1 and where.type == "cpu":
        with _threads(1), ProcessPoolExecutor(workers, get_context("fork"), _single_thread) as pool:
            _SHARED["arguments"] = arguments
            for (task, _), frame in zip(waiting, pool.map(_run_shared, range(len(arguments))), strict=True):
                results[task[:2]] = frame
        _SHARED.clear()
    else:
        for (task, _), argument in zip(waiting, arguments, strict=True):
            results[task[:2]] = run_fold(*argument)
    frame = pd.concat([results[task[:2]] for task in tasks], ignore_index=True)
    if out_dir is not None:
        with atomic_path(Path(out_dir) / f"{method}.parquet") as temporary:
            frame.to_parquet(temporary)
        paths = {task[:2]: _part_path(folder, task, data) for task in tasks}
        records = [
            {"repeat": repeat, "fold": fold, **_read_cost(path)} for (repeat, fold), path in paths.items() if path
        ]
        write_json(Path(out_dir) / f"{method}.cost.json", {"folds": records})
    return frame


# What is noted of a fold beside its predictions.
COSTS = ("seconds", "parameters", "networks", "gpu_mib")


def fold_costs(out_dir: str | Path, method: str) -> pd.DataFrame:
    """What the folds of a method took: [repeat, fold, seconds, parameters, networks, gpu_mib], NaN where unknown.

    ``seconds`` are those of fitting and predicting one fold (its choice of omics left out: methods share it),
    ``parameters`` those of one of its ``networks``, ``gpu_mib`` the most memory that tensors took on a GPU.
    ``out_dir`` is that of ``cross_validate``; the table is empty where the method was not run there.
    """
    path = Path(out_dir) / f"{method}.cost.json"
    rows = read_json(path)["folds"] if path.exists() else []
    return pd.DataFrame(rows, columns=["repeat", "fold", *COSTS]).astype(dict.fromkeys(COSTS, float))


def _read_cost(path: Path) -> dict[str, float | None]:
    # Folds of an earlier version have none: that is no reason to train them again.
    record = path.with_suffix(".json")
    stored = read_json(record) if record.exists() else {}
    return {name: stored.get(name) for name in COSTS}


def _write_cost(path: Path, output: FoldOutput, seconds: float, device: torch.device) -> None:
    networks = len(output.models)
    record: dict[str, float | None] = {
        "seconds": seconds,
        "parameters": sum(p.numel() for p in output.models[0].parameters()) if networks else None,
        "networks": networks or None,
        "gpu_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
    }
    write_json(path.with_suffix(".json"), record)


# Read by forked workers: nothing is pickled on the way in, so that bags are shared and not copied.
_SHARED: dict[str, Any] = {}


def _run_shared(number: int) -> pd.DataFrame:
    return run_fold(*_SHARED["arguments"][number])


def _single_thread() -> None:
    torch.set_num_threads(1)


class _threads:  # noqa: N801
    """Fewer torch threads while children are forked: an OpenMP pool does not survive a fork."""

    def __init__(self, count: int):
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def run_fold(
    method: Method,
    data: SurvivalData,
    task: tuple[int, int, NDArray[np.int64], NDArray[np.int64]],
    path: Path | None,
    profile: Profile,
    protocol: Protocol,
    seed: int,
    omics_cache: OmicsCache,
    device: torch.device,
    grid: NDArray[np.float64],
) -> pd.DataFrame:
    """Train and predict one fold; the predictions are kept at ``path``."""
    repeat, fold, train, test = task
    inputs = fold_inputs(method, data, train, test, profile, protocol, seed, omics_cache, device, (repeat, fold))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    output = fit_fold(method, inputs)
    seconds = time.perf_counter() - start
    frame = _predictions(data, task, output, grid)
    log.info("%s repeat %d fold %d: %s", method.name, repeat, fold, output.info)
    if path is not None:
        _write_cost(path, output, seconds, device)
        with atomic_path(path) as temporary:
            frame.to_parquet(temporary)
    return frame


def fold_inputs(
    method: Method,
    data: SurvivalData,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    profile: Profile,
    protocol: Protocol,
    seed: int,
    omics_cache: OmicsCache = None,
    device: torch.device | None = None,
    number: tuple[int, int] = (0, 0),
) -> FoldInputs:
    """What one fold is trained on; omics are chosen here."""
    omics = None
    if "omics" in method.needs:
        omics, _ = fold_omics(data, train, profile, protocol, seed, omics_cache)
    own_seed = int(np.random.SeedSequence([seed, *number]).generate_state(1)[0])
    return FoldInputs(data, train, test, omics, profile, protocol, own_seed, device or torch.device("cpu"))


def fit_fold(method: Method, inputs: FoldInputs) -> FoldOutput:
    """Fit a method on one fold: its own ``fit``, or the training of its network."""
    if not inputs.data.event[inputs.train].any():
        raise ValueError("the training part of a fold has no event: use fewer folds or a cohort with more deaths")
    output = method.fit(inputs) if method.fit is not None else fit_network(method, inputs)
    if not np.isfinite(output.risk).all():
        bad = int(np.flatnonzero(~np.isfinite(output.risk))[0])
        raise ValueError(f"{method.name}: the risk of patient {inputs.data.patients[inputs.test[bad]]} is not finite")
    return output


def train_models(
    method: str,
    data: SurvivalData,
    train: NDArray[np.int64],
    profile: Profile,
    protocol: Protocol | None = None,
    *,
    seed: int = 0,
    omics_cache: OmicsCache = None,
    device: torch.device | None = None,
) -> tuple[list[nn.Module], FoldInputs]:
    """Networks of a method trained on the given rows, for a look inside (interpretation), with their inputs."""
    chosen = get_method(method)
    if chosen.build is None:
        raise ValueError(f"method '{method}' is no network")
    train = np.asarray(train, dtype=np.int64)
    test = np.setdiff1d(np.arange(len(data.time)), train)
    inputs = fold_inputs(
        chosen, data, train, test, profile, protocol or Protocol.preset("honest"), seed, omics_cache, device
    )
    return fit_network(chosen, inputs).models, inputs


def _fold_rows(
    data: SurvivalData, folds: pd.DataFrame, repeat: int, tested: set[str], where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    known = set(folds.loc[folds["repeat"] == repeat, "patient"])
    missing = [patient for patient in data.patients if patient not in known]
    if missing:
        raise ValueError(
            f"{where}: patient {missing[0]} is in no fold ({len(missing)} such patients); make the folds again"
        )
    # Patients that the data lack (no regions) simply fall out of their fold.
    test = np.array([row for row, patient in enumerate(data.patients) if patient in tested], dtype=np.int64)
    train = np.setdiff1d(np.arange(len(data.patients)), test)
    if len(test) == 0 or len(train) == 0:
        raise ValueError(f"{where}: {len(train)} training and {len(test)} test patients; both are needed")
    return test, train


def _predictions(
    data: SurvivalData,
    task: tuple[int, int, NDArray[np.int64], NDArray[np.int64]],
    output: FoldOutput,
    grid: NDArray[np.float64],
) -> pd.DataFrame:
    repeat, fold, train, test = task
    spread = float(np.std(output.train_risk))
    scale = spread if spread > 0 else 1.0
    middle = float(np.median(output.train_risk))
    curves = breslow_survival(output.train_risk, data.time[train], data.event[train], output.risk, grid)
    frame = pd.DataFrame(
        {
            "patient": [data.patients[row] for row in test],
            "repeat": repeat,
            "fold": fold,
            "risk": output.risk,
            "time": data.time[test],
            "event": data.event[test],
            "risk_z": (output.risk - float(np.mean(output.train_risk))) / scale,
            "high": output.risk > middle,
        }
    )
    columns = {f"S@{day:.0f}": curves[:, number] for number, day in enumerate(grid)}
    return pd.concat([frame, pd.DataFrame(columns)], axis=1)


def survival_grid(time: NDArray[np.floating]) -> NDArray[np.float64]:
    """Whole days, evenly spread over the follow-up up to its 95th percentile."""
    return np.unique(np.round(np.linspace(0, float(np.quantile(time, 0.95)), GRID_POINTS + 1)[1:]))


def _run_key(method: Method, data: SurvivalData, profile: Profile, protocol: Protocol, seed: int) -> str:
    comparisons = getattr(profile, "comparisons", None)
    parts = [
        method.name,
        data.fingerprint(method.needs),
        profile.survival.fingerprint(),
        profile.fidelity.fingerprint(),
        comparisons.fingerprint() if comparisons is not None else "",
        profile.omics.fingerprint() if "omics" in method.needs else "",
        json.dumps([protocol.select_on, protocol.epoch]),
        str(seed),
    ]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def _part_path(folder: Path | None, task: tuple[int, int, NDArray, NDArray], data: SurvivalData) -> Path | None:
    if folder is None:
        return None
    # Another partition of the same patients is another part.
    tested = hashlib.sha256(json.dumps([data.patients[row] for row in task[3]]).encode()).hexdigest()[:8]
    return folder / f"r{task[0]}f{task[1]}-{tested}.parquet"


def default_workers() -> int:
    """Processes for folds on this machine."""
    return max(1, len(os.sched_getaffinity(0)))


# Importing it registers the compared methods of Table II.
if importlib.util.find_spec("hcmae_core.training.comparisons") is not None:
    importlib.import_module("hcmae_core.training.comparisons")

__all__ = [
    "METHODS",
    "FoldInputs",
    "FoldOutput",
    "Method",
    "PackedBags",
    "SurvivalData",
    "cross_validate",
    "fold_costs",
    "fold_omics",
    "get_method",
    "load_inputs",
    "load_tables",
    "register",
    "run_fold",
    "train_models",
]
