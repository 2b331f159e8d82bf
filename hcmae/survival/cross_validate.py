"""The paper's experiment: repeated cross-validation of survival methods on one cohort, resumable fold by fold."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from hcmae.config import Profile, Protocol
from hcmae.evaluation.metrics import Baseline, cox_slope, discrete_survival
from hcmae.files import atomic_path, read_json, read_parquet, write_json
from hcmae.keys import Key, code_of, pick, source_of
from hcmae.omics.cache import SELECTION_CODE
from hcmae.survival.bags import PackedBags
from hcmae.survival.data import SurvivalData
from hcmae.survival.fit import fit_network
from hcmae.survival.fold import FoldInputs, FoldOutput, OmicsCache, inner_numbers, learnt_rows, omics_of, standardised
from hcmae.survival.methods import INNER, Method, Output, get_method

log = logging.getLogger(__name__)

# Survival probabilities are kept at these times of every patient: shares of the longest follow-up.
GRID_POINTS = 24


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
        training patients), high (above their median risk) and S@<days>: survival probabilities on a grid of days
        (see ``survival_curves``).

    Raises:
        KeyError: unknown method. ValueError: data lack what the method needs, folds and data list other patients, or
        a fold leaves no death to train on.
    """
    chosen = get_method(method)
    protocol = protocol or Protocol.preset("honest")
    for need in chosen.kinds:
        if not data.has(need):
            raise ValueError(
                f"method '{method}' needs '{need}', which the data of these {len(data.time)} patients lack"
            )
    where = torch.device(device) if device else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    grid = survival_grid(data.time)
    folder = None
    if out_dir is not None:
        key = predictions_key(chosen, data, profile, protocol, seed)
        folder = Path(out_dir) / "parts" / f"{method}-{key.digest}"
        _note_key(Path(out_dir), method, key)
    tasks = []
    for number, part in folds.groupby(["repeat", "fold"], sort=True):
        repeat, fold = (int(value) for value in tuple(number))  # type: ignore[arg-type, call-overload]
        test, train = _fold_rows(data, folds, repeat, set(part["patient"]), f"repeat {repeat}, fold {fold}")
        tasks.append((repeat, fold, train, test))
    results: dict[tuple[int, int], pd.DataFrame] = {}
    waiting = []
    for task in tasks:
        path = _part_path(folder, task, data)
        kept = _kept_part(path)
        if kept is not None:
            results[task[:2]] = kept
        else:
            waiting.append((task, path))
    arguments = [
        (chosen, data, task, path, profile, protocol, seed, omics_cache, where, grid) for task, path in waiting
    ]
    if workers > 1 and len(waiting) > 1 and where.type == "cpu":
        # Forked, unlike other workers of the library: what lies in memory is shared and not copied once a process. A
        # forked process does not run the caller's script again either, so that no main guard is needed.
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
        write_json(Path(out_dir) / f"{method}.key.json", key.record())
        paths = {task[:2]: _part_path(folder, task, data) for task in tasks}
        records = [
            {"repeat": repeat, "fold": fold, **_read_cost(path)} for (repeat, fold), path in paths.items() if path
        ]
        write_json(Path(out_dir) / f"{method}.cost.json", {"folds": records})
    return frame


def _note_key(out_dir: Path, method: str, key: Key) -> None:
    """Keep what the parts of a key are made of beside them, and say why earlier predictions do not count."""
    path = out_dir / f"{method}.key.json"
    if path.exists():
        changes = key.changes(read_json(path))
        if changes:
            log.info("%s: predictions are made again (%s)", method, "; ".join(changes))
    write_json(out_dir / "parts" / f"{method}-{key.digest}.json", key.record())


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
    choosing, choose = [0.0], inputs.choose
    if choose is not None:

        def timed(rows: NDArray[np.int64]) -> Any:
            began = time.perf_counter()
            found = choose(rows)
            choosing[0] += time.perf_counter() - began
            return found

        # Inner parts choose their omics inside the fit; methods share these choices.
        inputs = replace(inputs, choose=timed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    output = fit_fold(method, inputs)
    seconds = time.perf_counter() - start - choosing[0]
    frame = predictions_table(data, task, output, grid, said=method.output)
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
    """What one fold is trained on; omics are chosen here, those of its inner parts when they are asked for."""
    own, where = fold_seed(seed, number), device or torch.device("cpu")
    if "omics" not in method.needs:
        return FoldInputs(data, train, test, None, profile, protocol, own, where)
    choose = omics_of(data, profile, protocol, seed, omics_cache)
    omics, names = choose(train)
    return FoldInputs(data, train, test, omics, profile, protocol, own, where, names, choose)


def fold_seed(seed: int, number: tuple[int, int]) -> int:
    """Seed of a (repeat, fold), for all methods alike."""
    return int(np.random.SeedSequence([seed, *number]).generate_state(1)[0])


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
) -> tuple[list[nn.Module], list[FoldInputs]]:
    """Networks of a method trained on the given rows, for a look inside (interpretation), and the inputs of each.

    Members that leave out different inner folds see different omics.
    """
    chosen = get_method(method)
    if chosen.build is None:
        raise ValueError(f"method '{method}' is no network")
    train = np.asarray(train, dtype=np.int64)
    test = np.setdiff1d(np.arange(len(data.time)), train)
    inputs = fold_inputs(
        chosen, data, train, test, profile, protocol or Protocol.preset("honest"), seed, omics_cache, device
    )
    output = fit_network(chosen, inputs)
    return output.models, output.parts


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


def predictions_table(
    data: SurvivalData,
    task: tuple[int, int, NDArray[np.int64], NDArray[np.int64]],
    output: FoldOutput,
    grid: NDArray[np.float64],
    *,
    said: Output | None,
) -> pd.DataFrame:
    """One row per test patient of a (repeat, fold, train, test): the columns of ``cross_validate``.

    said: what the method says about a patient (``Method.output``).
    """
    repeat, fold, train, test = task
    known = output.train_risk[np.isfinite(output.train_risk)]
    spread = float(np.std(known))
    scale = spread if spread > 0 else 1.0
    middle = float(np.median(known))
    curves = survival_curves(output, data.time[train], data.event[train], grid, said=said)
    frame = pd.DataFrame(
        {
            "patient": [data.patients[row] for row in test],
            "repeat": repeat,
            "fold": fold,
            "risk": output.risk,
            "time": data.time[test],
            "event": data.event[test],
            "risk_z": (output.risk - float(np.mean(known))) / scale,
            "high": output.risk > middle,
        }
    )
    columns = {f"S@{day:.0f}": curves[:, number] for number, day in enumerate(grid)}
    return pd.concat([frame, pd.DataFrame(columns)], axis=1)


def survival_curves(
    output: FoldOutput,
    time: NDArray[np.floating],
    event: NDArray[np.integer],
    grid: NDArray[np.float64],
    *,
    said: Output | None = "log hazard",
) -> NDArray[np.float64]:
    """Survival probabilities of the test rows [n_test, len(grid)] from what a method says; time, event [n_train].

    - Hazards in bins: the survival that they spell out, the mean over the networks (``metrics.discrete_survival``).
    - Else, with held-out training risks: the risks times their slope in a Cox model of these, over their Breslow
      baseline. Training patients without a held-out risk take no part. A slope below zero says that the risks hold
      nothing: it is zero, and everybody has the baseline.
    - Else (protocols without inner folds): the Breslow baseline of the in-sample risks, as they are for log hazards,
      times their slope for scores.
    """
    if output.binned:
        return np.mean([discrete_survival(item.hazards, item.ends, grid) for item in output.binned], axis=0)
    slope, baseline = calibrated(output, time, event, grid, said=said)
    return baseline.survival(slope * output.risk)


def calibrated(
    output: FoldOutput,
    time: NDArray[np.floating],
    event: NDArray[np.integer],
    grid: NDArray[np.float64],
    *,
    said: Output | None,
) -> tuple[float, Baseline]:
    """Slope of a method's risks and the baseline under them, from the training risks (see ``survival_curves``)."""
    known = np.isfinite(output.train_risk)
    risk, days, dead = output.train_risk[known], time[known], event[known]
    slope = 1.0
    if output.held_out or said != "log hazard":
        slope = max(0.0, cox_slope(risk, days, dead))
    return slope, Baseline.fit(slope * risk, days, dead, grid)


def survival_grid(time: NDArray[np.floating]) -> NDArray[np.float64]:
    """Whole days, evenly spread over the follow-up up to its 95th percentile."""
    return np.unique(np.round(np.linspace(0, float(np.quantile(time, 0.95)), GRID_POINTS + 1)[1:]))


def predictions_key(method: Method | str, data: SurvivalData, profile: Profile, protocol: Protocol, seed: int) -> Key:
    """What kept predictions of a method depend on: settings that it reads, content of its inputs, code.

    The code is that of its network, loss and fit, those of a notebook too, and of the harness around them. How folds
    are cut is not in it: a part says itself whom it tests. Raises ValueError for settings that the method refuses.
    """
    chosen = get_method(method) if isinstance(method, str) else method
    inputs = data.content(chosen.kinds, normals=profile.omics.contrast == "tumour_normal")
    return method_key(chosen, inputs, profile, protocol, seed, selected=isinstance(data.omics, np.ndarray))


def method_key(
    chosen: Method,
    inputs: Mapping[str, str],
    profile: Profile,
    protocol: Protocol,
    seed: int,
    *,
    selected: bool = False,
) -> Key:
    """``predictions_key`` for inputs whose content is known; ``selected``: omics were chosen beforehand."""
    profile = chosen.adapt(profile) if chosen.adapt is not None else profile
    # A network without inner folds reads nothing about them.
    fixed = "protocol.epoch" in chosen.reads and protocol.epoch != "inner"
    names = [name for name in chosen.reads if not (fixed and name in INNER)]
    ours = [name for name in names if name.startswith("protocol.")]
    settings = {**pick(profile, [name for name in names if name not in ours]), "seed": seed}
    settings.update({name: getattr(protocol, name.removeprefix("protocol.")) for name in ours})
    code = {"method": code_of(chosen), "harness": code_of(*HARNESS, *((fit_network,) if chosen.build else ()))}
    if "omics" in chosen.needs:
        if selected:
            code["omics"] = code_of(standardised)
        else:
            settings.update(pick(profile, ["omics"]))
            code.update(source_of(SELECTION_CODE))
    return Key(f"predictions of {chosen.name}", settings, inputs, code)


# Between a method and its kept numbers, beside the training loop of networks.
HARNESS = (
    *(fold_seed, predictions_table, survival_grid, learnt_rows, inner_numbers, PackedBags.packed),
    *(FoldInputs.outcome, FoldInputs.part),
)


def _kept_part(path: Path | None) -> pd.DataFrame | None:
    """Predictions of a fold that is done; None where it is not, or where the file was cut short."""
    if path is None or not path.exists():
        return None
    try:
        return read_parquet(path)
    except ValueError as error:
        log.warning("%s", error)
        return None


def _part_path(folder: Path | None, task: tuple[int, int, NDArray, NDArray], data: SurvivalData) -> Path | None:
    if folder is None:
        return None
    # Another partition of the same patients is another part.
    tested = hashlib.sha256(json.dumps([data.patients[row] for row in task[3]]).encode()).hexdigest()[:8]
    return folder / f"r{task[0]}f{task[1]}-{tested}.parquet"
