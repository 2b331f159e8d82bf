"""Do p-values of risk groups hold where nothing is true, and what are they where the whole procedure is permuted?

``null``: many invented cohorts whose outcomes mean nothing. Each gives a naive log-rank p-value on pooled out-of-fold
groups of a compound covariate, which costs milliseconds, and the p-value of the whole procedure permuted (Simon et al.
2011). One that holds is uniform (Kolmogorov-Smirnov).
``methods``: both p-values of methods on a cohort of the book, with a stated number of permutations; those that are done
are kept below the run and not computed again.

Run as ``python -m benchmarks.permutation null`` or, in a clone where ``make book`` has run, ``... methods``. The last
line is one JSON object, also written to book/results/permutation_null.json (the p-values beside it as CSV) or
permutation_methods.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from hcmae import __version__, pipeline
from hcmae.cohort.splits import FewEventsWarning
from hcmae.evaluation.optimism import null_p_values
from hcmae.files import atomic_path, write_json
from hcmae.survival.methods import METHODS
from hcmae.survival.permutation import permutation_of_groups

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results"


def summarise_null(rows: pd.DataFrame, alpha: float = 0.05) -> list[dict[str, Any]]:
    """Per kind of p-value: share below ``alpha`` with its exact 95 % interval, and the test for uniformity."""
    table = []
    for column, label in (("naive", "log-rank on pooled groups, naive"), ("permuted", "whole procedure permuted")):
        table.append({"p-value": label, **_rate((rows[column] < alpha).to_numpy()), **_uniform(rows[column])})
    return table


def _rate(hits: NDArray[np.bool_]) -> dict[str, float]:
    found = stats.binomtest(int(hits.sum()), len(hits), 0.05)
    interval = found.proportion_ci(0.95)
    return {
        "draws": len(hits),
        "share below 0.05": float(hits.mean()),
        "from": float(interval.low),
        "to": float(interval.high),
        "p that it is 0.05": float(found.pvalue),
    }


def _uniform(values: pd.Series) -> dict[str, float]:
    found = stats.kstest(values.to_numpy(float), "uniform")
    return {"KS distance from uniform": float(found.statistic), "KS p": float(found.pvalue)}


def method_rows(run: pipeline.Run, methods: list[str], permutations: int, workers: int) -> list[dict[str, Any]]:
    """Both p-values of each method's groups on the run's cohort."""
    rows = []
    for method in methods:
        test = permutation_of_groups(
            method,
            run.survival_data,
            run.profile,
            permutations=permutations,
            seed=run.seed,
            out_dir=run.dir / "permutations",
            workers=workers,
        )
        row = {
            "method": METHODS[method].label,
            "name": method,
            "cancer": run.cancer,
            "permutations": test.permutations,
            "p, permuted": test.p,
            "p, naive": test.naive_p,
            "naive p below 0.05 among permuted outcomes": float((test.naive_null < 0.05).mean()),
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("null", "methods"))
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--permutations", type=int, help="default: 39 for null, 99 for methods")
    parser.add_argument("--methods", default="cox_clinical,coxnet_omics", help="names, separated by commas")
    parser.add_argument("--cancer", default="LIHC")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="folds at a time")
    parser.add_argument("--out", type=Path, help="where the JSON object is written")
    arguments = parser.parse_args()
    # Few deaths in a fold are part of the procedure.
    warnings.simplefilter("ignore", FewEventsWarning)
    out = arguments.out or RESULTS / f"permutation_{arguments.what}.json"
    result: dict[str, Any] = {"benchmark": f"permutation_{arguments.what}"}
    if arguments.what == "null":
        if arguments.draws < 2:
            parser.error("a test for uniformity needs two draws or more")
        permutations = arguments.permutations or 39
        rows = null_p_values(arguments.draws, permutations=permutations)
        with atomic_path(out.with_suffix(".csv")) as temporary:
            rows.to_csv(temporary, index=False, float_format="%.6f")
        result |= {
            "title": "P-values of risk groups, outcomes that mean nothing",
            "rows": summarise_null(rows),
            "method": "compound covariate: five features weighted by their Cox scores in training",
            "patients": 60,
            "folds": 5,
            "permutations": permutations,
        }
    else:
        run = pipeline.Run(cancer=arguments.cancer, data_dir=arguments.data_dir, run_dir=arguments.run_dir)
        if not (run.dir / "cohort.parquet").exists():
            parser.error(f"{run.dir} holds no cohort: run `make book` first, or name another --run-dir and --data-dir")
        permutations = arguments.permutations or 99
        result |= {
            "title": f"P-values of risk groups, {run.cancer}",
            "rows": method_rows(run, arguments.methods.split(","), permutations, arguments.workers),
            "profile": run.profile.name,
            "folds": run.profile.survival.folds,
        }
    result |= {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores",
        "versions": {"hcmae_core": __version__, "scikit-survival": version("scikit-survival")},
    }
    write_json(out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
