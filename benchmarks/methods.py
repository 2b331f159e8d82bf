"""Cost of the compared methods at paper-like sizes: parameters, seconds per epoch, peak memory.

Run as ``python -m benchmarks.methods`` (add ``--small`` for a quick look); the last line is one JSON object, also
written to book/results/methods.json. Each method runs in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hcmae import __version__
from hcmae.config import Protocol, load_profile
from hcmae.files import write_json
from hcmae.survival import cross_validate as survival
from hcmae.survival.bags import PackedBags
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS

RESULT = Path(__file__).resolve().parent.parent / "book" / "results" / "methods.json"
NAMES = ("gpdbn", "camr", "deepcorrsurv", "deepcorrsurv_hc", "mcat", "hipt", "hipt_integration", "clam_sb", "hcmae")


def make_data(name: str, patients: int, regions: int, patches: int, thumbnail: int) -> SurvivalData:
    """Random input of the method's needs, in the paper's sizes unless told otherwise."""
    rng = np.random.default_rng(0)
    sizes = np.full(patients, regions)
    needs = METHODS[name].needs
    bags: dict[str, Any] = {}
    for kind, dim in (("region", 384), ("region_hipt", 192)):
        if kind in needs:
            bags[kind] = PackedBags(rng.normal(size=(patients * regions, dim)).astype(np.float32), sizes)
    if needs & {"patch", "patch_features"}:
        vectors = rng.normal(size=(patients * patches, 384)).astype(np.float16)
        bags["patch"] = PackedBags(vectors, np.full(patients, patches))
    if "thumbnail" in needs:
        pixels = rng.integers(0, 256, (patients * regions, thumbnail, thumbnail, 3), dtype=np.uint8)
        bags["thumbnail"] = PackedBags(pixels, sizes)
    if "positions" in METHODS[name].inputs.values():
        bags["positions"] = PackedBags(rng.integers(0, 20, (patients * regions, 2)).astype(np.float32), sizes)
    if "handcrafted" in needs:
        bags["handcrafted"] = PackedBags(rng.normal(size=(patients, 2343)).astype(np.float32), np.ones(patients, int))
    omics = rng.normal(size=(patients, 3, 300)).astype(np.float32)
    names = [f"TCGA-ZZ-{i:04d}" for i in range(patients)]
    return SurvivalData(names, rng.exponential(1000, patients) + 1, rng.integers(0, 2, patients), bags, omics)


def measure(name: str, patients: int, regions: int, patches: int, thumbnail: int, epochs: int) -> dict[str, Any]:
    """One method: fit on four fifths for a few epochs, in this process."""
    data = make_data(name, patients, regions, patches, thumbnail)
    settings: dict[str, Any] = {"survival.epochs": epochs, "survival.ensemble": 1, "comparisons.correlation_epochs": 0}
    profile = load_profile("paper", settings)
    if name != "hcmae":
        own = getattr(profile.comparisons, name).model_copy(update={"epochs": epochs})
        profile = profile.model_copy(update={"comparisons": profile.comparisons.model_copy(update={name: own})})
    rows = np.arange(patients)
    train = rows[: patients * 4 // 5]
    protocol = Protocol(name="benchmark", epoch="last")
    inputs = survival.fold_inputs(METHODS[name], data, train, rows[len(train) :], profile, protocol, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    output = survival.fit_fold(METHODS[name], inputs)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "method": name,
        "parameters": sum(p.numel() for p in output.models[0].parameters()) if output.models else None,
        "seconds_per_epoch": round(seconds / epochs, 3),
        "peak_mib": round(peak / 1024),
        "input_mib": round(before / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--method", choices=NAMES, help="this one only, in this process")
    args = parser.parse_args()
    # Real cohorts have about 144 regions of 256 patches a slide; bags of patches are drawn down to 4,096.
    sizes = (20, 4, 64, 64, 1) if args.small else (40, 40, 4096, 256, 1)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.method:
        print(json.dumps(measure(args.method, *sizes)))
        return
    rows = []
    for name in NAMES:
        command = [sys.executable, "-m", "benchmarks.methods", "--method", name, *(["--small"] if args.small else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            rows.append({"method": name, "error": f"exit {done.returncode}: {last[0]}"})
        else:
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(rows[-1], file=sys.stderr)
    keys = ("patients", "regions", "patches", "thumbnail", "epochs")
    result = {
        "benchmark": "methods",
        "date": date.today().isoformat(),
        "version": __version__,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores",
        "sizes": dict(zip(keys, sizes, strict=True)),
        "methods": rows,
    }
    for row in rows:
        print(
            "  ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    if not args.small:
        write_json(RESULT, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
