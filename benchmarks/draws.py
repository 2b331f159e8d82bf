"""What one run of the book cannot show: methods over many draws of folds, seeds and labels.

``null``: each draw shuffles the outcomes of the null cohort and makes new folds and networks; an honest C-index has the
mean 0.5, honest survival curves have no larger integrated Brier score (IBS) than Kaplan-Meier's, which tells everybody
the same, and what the paper's protocol adds is the difference of both protocols on the same draw.
``seeds``: each draw makes new folds and networks for one cancer; HC-MAE against every other method, with the interval
over patients and the one that counts changes of the training set, and the share of the way from 0.5 to the best
C-index that the planted hazard allows.

Run as ``python -m benchmarks.draws null`` or ``... seeds`` in a clone where ``make book`` has run: vectors and tables
are read from there. Every fold that is done is kept below the run and not computed again. The last line is one JSON
object, also written to book/results/draws_null.json or draws_seeds.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hcmae import __version__, pipeline
from hcmae.cohort.splits import FewEventsWarning, make_folds
from hcmae.config import Protocol
from hcmae.evaluation import compare, metrics
from hcmae.files import write_json
from hcmae.survival.cross_validate import cross_validate
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results"
# Quick ones first, so that a run that is stopped has said most.
METHOD_NAMES = (
    "cox_clinical", "coxnet_omics", "trans_mo", "gpdbn", "camr", "deepcorrsurv", "mcat", "hipt", "hipt_integration",
    "clam_sb", "abmil_patch", "mae_pat", "mae_reg", "mae_patreg", "hc_regsli", "hcmae_image", "hcmae_regions",
    "hcmae_paper", "hcmae",
)  # fmt: skip
# What the paper's protocol adds is shown for a linear model, a network on omics, and one with images.
LEAKING = ("coxnet_omics", "trans_mo", "hcmae")


def predict(
    run: pipeline.Run, method: str, data: SurvivalData, folds: pd.DataFrame, protocol: Protocol, seed: int, workers: int
) -> pd.DataFrame:
    """Out-of-fold predictions, kept below the run so that a stopped benchmark goes on."""
    folder = run.dir / "draws"
    return cross_validate(
        method,
        data,
        folds,
        run.profile,
        protocol,
        seed=seed,
        out_dir=folder / protocol.name / f"{seed}",
        omics_cache=folder / "omics",
        workers=workers,
    )


def null_draws(run: pipeline.Run, methods: list[str], draws: int, workers: int) -> Iterator[dict[str, Any]]:
    """One row per draw, protocol and method: mean C-index over its folds, IBS minus Kaplan-Meier's on the same days."""
    for draw in range(draws):
        data = run.survival_data.permuted(draw)
        folds = make_folds(data.patients, data.time, data.event, run.profile.survival.folds, 1, draw)
        for protocol in (Protocol.preset("honest"), Protocol.preset("paper")):
            for method in methods:
                if protocol.name == "paper" and method not in LEAKING:
                    continue
                start = time.perf_counter()
                predictions = predict(run, method, data, folds, protocol, draw, workers)
                c_index, _ = metrics.mean_concordance(predictions)
                excess = brier_excess(predictions)
                seconds = time.perf_counter() - start
                shown = f"{c_index:.3f} {excess:+.4f} {seconds:6.1f} s"
                print(f"draw {draw} {protocol.name:<7}{method:<18}{shown}", flush=True)
                named = {"draw": draw, "protocol": protocol.name, "method": method}
                yield {**named, "c_index": c_index, "ibs_excess": excess}


def brier_excess(predictions: pd.DataFrame) -> float:
    """Integrated Brier score minus Kaplan-Meier's; NaN where there are no curves or too short a follow-up."""
    try:
        own, everybody = metrics.integrated_brier(predictions)
    except ValueError:
        return float("nan")
    return own - everybody


def mean_interval(values: pd.Series) -> dict[str, float]:
    """Mean over independent draws, its standard error and Student's 95 % interval; unknown draws are left out."""
    values = values.dropna()
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    mean = float(values.mean())
    return {"mean": mean, "standard_error": error, "low": mean - reach, "high": mean + reach}


def summarise_null(rows: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Mean C-index and IBS of each method under each protocol, and what the paper's protocol adds on the same draws.

    Each has the verdict beside it that the honest protocol should pass: 0.5 in the interval of the C-index, and no
    IBS above Kaplan-Meier's with its whole interval.
    """
    table, brier, inflation = [], [], []
    for (protocol, method), part in rows.groupby(["protocol", "method"], sort=False):
        entry = {"method": METHODS[str(method)].label, "protocol": protocol, "draws": len(part)}
        found = mean_interval(part["c_index"])
        table.append({**entry, **found, "interval holds 0.5": found["low"] <= 0.5 <= found["high"]})
        known = int(part["ibs_excess"].notna().sum())
        if known > 1:
            found = mean_interval(part["ibs_excess"])
            verdict = {"above Kaplan-Meier beyond its interval": found["low"] > 0}
            brier.append({**entry, "draws": known, **found, **verdict})
    wide = rows.pivot(index="draw", columns=["method", "protocol"], values="c_index")
    for method in LEAKING:
        if (method, "paper") in wide and (method, "honest") in wide:
            added = (wide[(method, "paper")] - wide[(method, "honest")]).dropna()
            inflation.append({"method": METHODS[method].label, "draws": len(added), **mean_interval(added)})
    return {
        "C-index of labels that mean nothing": table,
        "integrated Brier score minus Kaplan-Meier's": brier,
        "what the protocol of the paper adds": inflation,
    }


def seed_draws(run: pipeline.Run, methods: list[str], draws: int, workers: int) -> dict[str, list[dict[str, Any]]]:
    """Every method over several repeats of the folds, and HC-MAE against each."""
    data = run.survival_data
    folds = make_folds(data.patients, data.time, data.event, run.profile.survival.folds, draws, run.seed)
    honest = Protocol.preset("honest")
    truth = run.truth()
    best = None if truth is None else metrics.concordance(data.time, data.event, truth.loc[data.patients, "log_hazard"])
    predictions, table = {}, []
    for method in methods:
        start = time.perf_counter()
        predictions[method] = predict(run, method, data, folds, honest, run.seed, workers)
        c_index, deviation = metrics.mean_concordance(predictions[method])
        interval = metrics.bootstrap(predictions[method], draws=500, seed=run.seed)
        row: dict[str, Any] = {
            "method": METHODS[method].label,
            "repeats": draws,
            "mean": c_index,
            "deviation_of_folds": deviation,
            "low": interval.low,
            "high": interval.high,
            "IBS minus Kaplan-Meier's": brier_excess(predictions[method]),
        }
        if best is not None:
            row["share_of_the_way"] = (c_index - 0.5) / (best - 0.5)
        table.append(row)
        print(f"{method:<18}{c_index:.3f} {time.perf_counter() - start:6.1f} s", flush=True)
    out: dict[str, list[dict[str, Any]]] = {"C-index": table}
    if "hcmae" in predictions:
        against = compare.compare(predictions, "hcmae")
        out["HC-MAE minus the method"] = [
            {
                "method": METHODS[row["second"]].label,
                "difference": row["difference"],
                "interval over patients": f"{row['low']:.3f} to {row['high']:.3f}",
                "corrected interval": f"{row['nb_low']:.3f} to {row['nb_high']:.3f}",
                "p (Holm)": row["p_holm"],
            }
            for row in against.to_dict("records")
        ]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("null", "seeds"))
    parser.add_argument("--draws", type=int, help="default: 12 of the null cohort, 5 seeds")
    parser.add_argument("--cancer", default="LIHC", help="for seeds")
    parser.add_argument("--methods", default=",".join(METHOD_NAMES), help="names, separated by commas")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="folds at a time")
    parser.add_argument("--out", type=Path, help="where the JSON object is written")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        parser.error(f"unknown method '{unknown[0]}': choose from {', '.join(METHODS)}")
    draws = arguments.draws or (12 if arguments.what == "null" else 5)
    if draws < 2:
        parser.error("an interval needs two draws or more")
    cancer = "NULL" if arguments.what == "null" else arguments.cancer
    run = pipeline.Run(cancer=cancer, data_dir=arguments.data_dir, run_dir=arguments.run_dir)
    if not (run.dir / "cohort.parquet").exists():
        parser.error(f"{run.dir} holds no cohort: run `make book` first, or name another --run-dir and --data-dir")
    if any("handcrafted" in METHODS[method].needs for method in methods):
        # The book measures no nuclei of the null cohort; a stage that is done is skipped.
        run.measure_nuclei(workers=arguments.workers, progress=False)
    # Few deaths in a fold are the very thing that many draws are for.
    warnings.simplefilter("ignore", FewEventsWarning)
    if arguments.what == "null":
        tables = summarise_null(pd.DataFrame(null_draws(run, methods, draws, arguments.workers)))
    else:
        tables = seed_draws(run, methods, draws, arguments.workers)
    result: dict[str, Any] = {
        "title": "Labels that mean nothing" if arguments.what == "null" else f"{cancer} over {draws} repeats",
        "benchmark": f"draws_{arguments.what}",
        "cancer": cancer,
        "profile": run.profile.name,
        "patients": len(run.survival_data.patients),
        "deaths": int(run.survival_data.event.sum()),
        **tables,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores",
        "versions": {"hcmae_core": __version__, "torch": version("torch"), "settings": run.profile.fingerprint()},
    }
    for name, rows in tables.items():
        print(f"\n{name}\n{pd.DataFrame(rows).round(3).to_string(index=False)}")
    write_json(arguments.out or RESULTS / f"draws_{arguments.what}.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
