"""Time and memory of every step of the omics pipeline at TCGA size, beside the libraries' own, in one run.

    python -m benchmarks.omics                 everything, about ten minutes on two cores
    python -m benchmarks.omics --keep FOLDER   remembers finished steps there, so that a run can be taken in pieces
    python -m benchmarks.omics --only knn,forest

Each step runs in its own process, which reports CPU seconds (all threads together: a busy machine does not change the
ratios much) and peak memory; pydeseq2, which starts processes of its own, and the folds also wall time. The slow peers
are timed on a sample (columns or trees) and scaled up linearly; the table says so. The last line is one JSON object,
also written to
``book/results/omics.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time as clock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hcmae.config import OmicsSettings
from hcmae.files import read_json, write_json

REPO = Path(__file__).resolve().parent.parent
PROBES, GENES, MIRNAS = 450_000, 20_000, 1_881
KNN_PROBES, KNN_SAMPLE = 400_000, 40_000
POOL, TREES, REPEATS = 3_000, 1_000, 5
LIBRARY_TREES, LIBRARY_COLUMNS = 100, 8


def survival(n: int, rate: float = 0.36, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times in days, events and the log hazard behind them of n simulated patients with about this share of events."""
    rng = np.random.default_rng(seed)
    hazard = rng.standard_normal(n)
    death = rng.exponential(1500 * np.exp(-0.7 * hazard)) + 30
    last = rng.exponential(1500 * rate / (1 - rate), n) + 30
    return np.ceil(np.minimum(death, last)), (death <= last).astype(int), hazard


def betas(n: int, p: int, missing: float = 0.01, seed: int = 1) -> np.ndarray:
    """Methylation shares [n, p] float32 with missing cells."""
    rng = np.random.default_rng(seed)
    level = (2.0 * rng.standard_normal(p)).astype(np.float32)
    out = np.empty((n, p), dtype=np.float32)
    for i in range(n):
        out[i] = 1.0 / (1.0 + np.exp(-(level + 0.5 * rng.standard_normal(p, dtype=np.float32))))
        out[i, rng.random(p, dtype=np.float32) < missing] = np.nan
    return out


def counts(n: int, p: int, seed: int = 2) -> np.ndarray:
    """Reads [n, p] float32, negative binomial, libraries of different depth."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(5, 2, p)
    depth = rng.lognormal(0, 0.4, (n, 1))
    return rng.negative_binomial(4, 4 / (4 + mean * depth)).astype(np.float32)


def pool(n: int, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates of a forest: p features of which thirty follow the hazard."""
    time, event, hazard = survival(n)
    X = np.random.default_rng(3).standard_normal((n, p)).astype(np.float32)
    X[:, :30] += 0.5 * hazard[:, None]
    return X, time, event


def step_knn(n: int) -> dict[str, Any]:
    """Our imputer on all columns."""
    from hcmae.omics.impute import NeighbourImputer

    NeighbourImputer(5).fit_transform(betas(30, 200))
    X = betas(n, KNN_PROBES)
    start = clock.process_time()
    filled = NeighbourImputer(5).fit_transform(X)
    seconds = clock.process_time() - start
    assert not np.isnan(filled).any()
    return {"seconds": seconds}


def step_knn_library(n: int) -> dict[str, Any]:
    """scikit-learn's imputer on a sample of the columns; the same sample by ours, compared."""
    from sklearn.impute import KNNImputer

    from hcmae.omics.impute import NeighbourImputer

    X = betas(n, KNN_SAMPLE)
    start = clock.process_time()
    theirs = KNNImputer(n_neighbors=5).fit_transform(X)
    seconds = clock.process_time() - start
    difference = float(np.abs(theirs - NeighbourImputer(5).fit_transform(X)).max())
    return {
        "seconds": seconds * KNN_PROBES / KNN_SAMPLE,
        "largest_difference": difference,
        "note": f"{KNN_SAMPLE:,} columns timed, scaled to {KNN_PROBES:,}",
    }


def step_forest(n: int) -> dict[str, Any]:
    """Our forest and both importances, one thread."""
    from hcmae.omics.forest import SurvivalForest
    from hcmae.omics.importance import forest_importance

    X, time, event = pool(n, POOL)
    small = SurvivalForest(3).fit(X[:, :20], time, event)
    forest_importance(small, X[:, :20], time, event)
    start = clock.process_time()
    forest = SurvivalForest(TREES, seed=1).fit(X, time, event)
    fit = clock.process_time() - start
    out: dict[str, Any] = {"fit_seconds": fit, "seconds": fit}
    for kind in ("permutation", "oob"):
        start = clock.process_time()
        forest_importance(forest, X, time, event, kind=kind, repeats=REPEATS)
        out[f"{kind}_seconds"] = clock.process_time() - start
    return out


def step_forest_library(n: int) -> dict[str, Any]:
    """scikit-survival's forest and scikit-learn's importance on samples of trees and columns, one thread."""
    from sklearn.inspection import permutation_importance
    from sksurv.util import Surv

    from hcmae.omics.forest import SurvivalForest, library_forest
    from hcmae.omics.importance import forest_importance

    X, time, event = pool(n, POOL)
    start = clock.process_time()
    forest = library_forest(X, time, event, trees=LIBRARY_TREES, seed=1)
    fit = (clock.process_time() - start) * TREES / LIBRARY_TREES
    ours = SurvivalForest(LIBRARY_TREES, seed=1).fit(X, time, event)

    y = Surv.from_arrays(event.astype(bool), time)
    everything = forest.estimators_
    sample = X[:, :LIBRARY_COLUMNS]

    class Padded:
        """The forest seen through its first columns: the function under test permutes only the sampled ones."""

        def fit(self, X: np.ndarray, y: Any) -> None: ...

        def score(self, part: np.ndarray, y: Any) -> float:
            whole[:, :LIBRARY_COLUMNS] = part
            return forest.score(whole, y)

    whole = X.copy()
    per_trees = {}
    found = None
    for trees in (LIBRARY_TREES // 4, LIBRARY_TREES):
        forest.estimators_ = everything[:trees]
        forest.n_estimators = trees
        start = clock.process_time()
        found = permutation_importance(Padded(), sample, y, n_repeats=REPEATS, random_state=0)
        per_trees[trees] = (clock.process_time() - start) / LIBRARY_COLUMNS
    few, many = sorted(per_trees)
    slope = (per_trees[many] - per_trees[few]) / (many - few)
    column = per_trees[many] + slope * (TREES - many)
    exact = forest_importance(ours, X, time, event, kind="permutation", repeats=REPEATS, seed=0)
    assert found is not None
    return {
        "seconds": fit,
        "fit_seconds": fit,
        "permutation_seconds": column * POOL,
        "largest_difference": float(np.abs(found.importances - exact.raw[:LIBRARY_COLUMNS]).max()),
        "oob_c_difference": abs(float(forest.oob_score_) - ours.oob_score()),
        "note": f"{LIBRARY_TREES} trees and {LIBRARY_COLUMNS} columns timed, scaled to {TREES:,} and {POOL:,}",
    }


def step_tests(n: int) -> dict[str, Any]:
    """Size factors, Cox score, moderated t on all probes."""
    from hcmae.omics import differential
    from hcmae.omics.scales import SizeFactors, log_expression, m_values

    time, event, _ = survival(n)
    group = differential.two_groups(time, event)
    out: dict[str, Any] = {}
    reads = counts(n, GENES)
    start = clock.process_time()
    expression = log_expression(reads, SizeFactors.fit(reads)(reads))
    out["log_expression_seconds"] = clock.process_time() - start
    start = clock.process_time()
    differential.cox_score(expression, time, event, np.arange(GENES))
    out["cox_score_genes_seconds"] = clock.process_time() - start
    beta = betas(n, PROBES, missing=0.0)
    start = clock.process_time()
    m = m_values(beta)
    out["m_values_seconds"] = clock.process_time() - start
    del beta
    for name, call in (
        ("cox_score_probes", lambda: differential.cox_score(m, time, event, np.arange(PROBES))),
        ("moderated_t_probes", lambda: differential.moderated_t(m, group, np.arange(PROBES))),
    ):
        start = clock.process_time()
        call()
        out[f"{name}_seconds"] = clock.process_time() - start
    out["seconds"] = sum(value for key, value in out.items() if key.endswith("_seconds"))
    return out


def step_deseq2(n: int) -> dict[str, Any]:
    """pydeseq2 on the miRNAs."""
    from hcmae.omics import differential

    time, event, _ = survival(n)
    group = differential.two_groups(time, event)
    reads = counts(n, MIRNAS)
    start = clock.perf_counter()
    differential.deseq2(reads, group, np.arange(MIRNAS), workers=2)
    seconds = clock.perf_counter() - start
    return {"seconds": seconds, "note": f"{MIRNAS:,} miRNAs, {(group >= 0).sum()} patients in the contrast"}


def step_deseq2_genes(n: int) -> dict[str, Any]:
    """pydeseq2 on all genes, two processes: the paper's step, whose cost the Cox score test avoids."""
    from hcmae.omics import differential
    from hcmae.omics.scales import expressed

    time, event, _ = survival(n)
    group = differential.two_groups(time, event)
    reads = counts(n, GENES)
    kept = np.flatnonzero(expressed(reads, 10, 0.1))
    start = clock.perf_counter()
    differential.deseq2(reads[:, kept], group, kept, workers=2)
    seconds = clock.perf_counter() - start
    return {"seconds": seconds, "note": f"{kept.size:,} of {GENES:,} genes expressed; wall time"}


def step_fold(n: int, fold: int) -> dict[str, Any]:
    """One fold of the nested pipeline: fit the selector on four fifths, transform everybody; two threads."""
    import pandas as pd

    from hcmae.omics.select import OmicsSelector

    time, event, _ = survival(n)
    index = [f"TCGA-00-{i:04d}" for i in range(n)]
    tables = {
        "rna": pd.DataFrame(counts(n, GENES), index=index, columns=[f"g{i}" for i in range(GENES)], copy=False),
        "mirna": pd.DataFrame(counts(n, MIRNAS, 5), index=index, columns=[f"m{i}" for i in range(MIRNAS)], copy=False),
        "methylation": pd.DataFrame(
            betas(n, PROBES), index=index, columns=[f"cg{i:08d}" for i in range(PROBES)], copy=False
        ),
    }
    train = np.flatnonzero(np.random.default_rng(7).permutation(n) % 5 != fold)
    settings = OmicsSettings(differential="cox_score", candidates=POOL, trees=TREES, importance_repeats=REPEATS)
    start, wall = clock.process_time(), clock.perf_counter()
    selector = OmicsSelector(settings, seed=fold, workers=2)
    selector.fit({k: v.iloc[train] for k, v in tables.items()}, time[train], event[train])
    matrix = selector.transform(tables)
    seconds = clock.process_time() - start
    return {"seconds": seconds, "wall_seconds": clock.perf_counter() - wall, "shape": list(matrix.shape)}


STEPS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[int, ...]]] = {
    "knn_323": (step_knn, (323,)),
    "knn_library_323": (step_knn_library, (323,)),
    "forest_323": (step_forest, (323,)),
    "forest_library_323": (step_forest_library, (323,)),
    "tests_323": (step_tests, (323,)),
    "deseq2_323": (step_deseq2, (323,)),
    "deseq2_genes_323": (step_deseq2_genes, (323,)),
    **{f"fold{k}_323": (step_fold, (323, k)) for k in range(5)},
    "knn_724": (step_knn, (724,)),
    "forest_724": (step_forest, (724,)),
    "tests_724": (step_tests, (724,)),
    "deseq2_724": (step_deseq2, (724,)),
    "deseq2_genes_724": (step_deseq2_genes, (724,)),
    "fold0_724": (step_fold, (724, 0)),
}


def run_step(name: str) -> dict[str, Any]:
    """The step in a process of its own: its result with seconds and peak memory."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.omics", "--step", name], cwd=REPO, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"step {name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run the steps, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=list(STEPS), help="one step, as JSON (used by the run itself)")
    parser.add_argument("--only", help="comma-separated beginnings of step names")
    parser.add_argument("--keep", type=Path, help="folder that remembers finished steps")
    arguments = parser.parse_args()
    if arguments.step:
        call, values = STEPS[arguments.step]
        result = call(*values)
        result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))
        return

    wanted = [s for s in STEPS if not arguments.only or any(s.startswith(o) for o in arguments.only.split(","))]
    results: dict[str, dict[str, Any]] = {}
    print(f"{'step':<22}{'CPU s':>10}{'peak GiB':>10}  details", flush=True)
    for name in wanted:
        stored = arguments.keep / f"{name}.json" if arguments.keep else None
        results[name] = read_json(stored) if stored and stored.exists() else run_step(name)
        if stored:
            write_json(stored, results[name])
        r = results[name]
        details = ", ".join(
            f"{k.removesuffix('_seconds')} {v:.2f} s" for k, v in r.items() if k.endswith("_seconds") and k != "seconds"
        )
        rest = "; ".join(f"{k} {r[k]}" for k in ("largest_difference", "oob_c_difference", "note") if k in r)
        print(
            f"{name:<22}{r['seconds']:>10.2f}{r['peak_gib']:>10.2f}  {'; '.join(x for x in (details, rest) if x)}",
            flush=True,
        )
    if len(wanted) < len(STEPS):
        return

    folds = [results[f"fold{k}_323"] for k in range(5)]
    forest, library = results["forest_323"], results["forest_library_323"]
    summary: dict[str, Any] = {
        "benchmark": "omics",
        "importance_speedup": round(library["permutation_seconds"] / forest["permutation_seconds"], 1),
        "forest_fit_speedup": round(library["fit_seconds"] / forest["fit_seconds"], 1),
        "knn_speedup": round(results["knn_library_323"]["seconds"] / results["knn_323"]["seconds"], 1),
        "knn_peak_gib": round(results["knn_323"]["peak_gib"], 2),
        "nested_five_folds_minutes": round(sum(f["wall_seconds"] for f in folds) / 60, 2),
        "nested_five_folds_cpu_minutes": round(sum(f["seconds"] for f in folds) / 60, 2),
        "nested_peak_gib": round(max(f["peak_gib"] for f in folds), 2),
        "oob_c_difference": library["oob_c_difference"],
        "importance_largest_difference": library["largest_difference"],
        "knn_largest_difference": results["knn_library_323"]["largest_difference"],
        "steps": {k: {a: round(b, 3) if isinstance(b, float) else b for a, b in v.items()} for k, v in results.items()},
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("numpy", "numba", "scikit-learn", "scikit-survival", "pydeseq2")
        },
    }
    write_json(REPO / "book" / "results" / "omics.json", summary)
    print(json.dumps({k: v for k, v in summary.items() if k != "steps"}))


if __name__ == "__main__":
    main()
