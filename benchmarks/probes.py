"""What each representation of a patient says about the planted factors, over several seeds.

Each seed draws another cohort and trains the networks of its profile on that cohort's slides alone, from the raw slide
to the vectors of MAE-Patch, MAE-Reg and MAE-PatReg. Beside them stand 15 statistics of colour and an encoder that was
never trained. The interval of a row is Student's over the seeds.

Run as ``python -m benchmarks.probes``. Every step that is done is kept below ``--work``, a training at its last
checkpoint, so a stopped benchmark goes on where it was. After each seed the results are written, with the number of
seeds that they rest on; the last line is that JSON object, also written to book/results/probes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hcmae import __version__, pipeline
from hcmae.files import write_json
from hcmae.interpretation import controls, probe

RESULT = Path(__file__).resolve().parent.parent / "book" / "results" / "probes.json"


def probe_seed(work: Path, cancer: str, profile: str, seed: int, workers: int) -> tuple[pipeline.Run, pd.DataFrame]:
    """The run of one seed, and its description, factor, r2, low, high (over patients)."""
    folder = work / f"seed_{seed}"
    run = pipeline.Run(cancer, profile, "synthetic", seed, folder / "data", folder / "runs", modalities="none")
    run.synthesise(workers=workers)
    run.curate()
    run.make_slides(workers=workers, progress=False)
    run.pretrain_patch()
    for variant in pipeline.REGION_VARIANTS:
        run.pretrain_region(variant)
    table = controls.probe_run(run)
    assert table is not None
    return run, table


def summarise(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per description and factor: mean R2 over the seeds, its standard error and Student's 95 % interval."""
    out = []
    for (description, factor), part in rows.groupby(["description", "factor"], sort=False):
        values = part["r2"].to_numpy()
        entry: dict[str, Any] = {"description": description, "factor": factor, "seeds": len(values)}
        entry["mean R2"] = float(values.mean())
        if len(values) > 1:
            error = float(values.std(ddof=1) / np.sqrt(len(values)))
            reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
            entry |= {"low": entry["mean R2"] - reach, "high": entry["mean R2"] + reach}
        out.append(entry)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cancer", default="LIHC")
    parser.add_argument("--profile", default="smoke", help="name, or path of a YAML file")
    parser.add_argument("--work", type=Path, default=Path("runs") / "probes", help="where everything is kept")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON object is written")
    arguments = parser.parse_args()
    rows: list[pd.DataFrame] = []
    result: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        start = time.perf_counter()
        run, found = probe_seed(arguments.work, arguments.cancer, arguments.profile, seed, arguments.workers)
        rows.append(found)
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s\n{probe.readable(found)}", flush=True)
        result = {
            "title": "What a linear probe reads: R2 on held-out patients",
            "benchmark": "probes",
            "rows": summarise(pd.concat(rows)),
            "cancer": run.cancer,
            "profile": run.profile.name,
            "patients": len(run.patient_stores()),
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores",
            "versions": {"hcmae_core": __version__, "torch": version("torch"), "settings": run.profile.fingerprint()},
        }
        write_json(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
