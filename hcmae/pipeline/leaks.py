"""The experiments of the lesson on leaks: one method under protocols that differ in one leak, labels true or shuffled.

Every table has one row per prediction: cohort, labels (true or permuted), protocol, mean, low, high, and the noise of a
5-fold mean at this size, for a model that knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from hcmae.cohort.splits import make_folds
from hcmae.config import Protocol
from hcmae.evaluation import compare, metrics
from hcmae.omics import report
from hcmae.pipeline.lessons import RealTables, possible
from hcmae.pipeline.run import NULL_COHORT, Run
from hcmae.survival.cross_validate import cross_validate
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS

# "no leak" takes the last epoch, so that it differs from "best test epoch" in that alone.
PROTOCOLS = {
    "no leak": Protocol(name="honest-last", select_on="train", epoch="last"),
    "select on all": Protocol(name="leak-select", select_on="all", epoch="last"),
    "best test epoch": Protocol(name="leak-epoch", select_on="train", epoch="best_test"),
    "both": Protocol.preset("paper"),
}
# Methods that are asked on the null cohort; the last has images.
ON_NULL = ("coxnet_omics", "trans_mo", "hcmae")
Made = dict[str, pd.DataFrame]


def chance(data: SurvivalData, seed: int) -> float:
    """Standard deviation of a 5-fold mean of C for a score that knows nothing, at this size."""
    return compare.sampling_noise(len(data.patients), data.event.mean(), draws=100, seed=seed)[1]


def protocol_rows(cohort: str, labels: str, made: Mapping[str, pd.DataFrame], noise: float, seed: int) -> pd.DataFrame:
    """One row per protocol of predictions of the same patients: mean over folds, interval over patients."""
    rows = []
    for name, predictions in made.items():
        interval = metrics.bootstrap(predictions, draws=200, seed=seed)
        mean, _ = metrics.mean_concordance(predictions)
        row = {"cohort": cohort, "labels": labels, "protocol": name, "mean": mean}
        rows.append({**row, "low": interval.low, "high": interval.high, "noise": noise})
    return pd.DataFrame(rows)


def leaks_add(cohort: str, labels: str, method: str, made: Mapping[str, pd.DataFrame], seed: int) -> dict[str, Any]:
    """What both leaks add for the same patients in the same folds, with its interval over patients."""
    gain = compare.bootstrap_difference(made["both"], made["no leak"], draws=500, seed=seed)
    row = {"cohort": cohort, "labels": labels, "method": METHODS[method].label, "both leaks add": gain.value}
    return {**row, "low": gain.low, "high": gain.high}


def true_and_permuted(run: Run, method: str) -> dict[str, Made]:
    """Predictions of a method under every protocol, by labels: the cohort's (true) and shuffled ones (permuted)."""
    shuffled, label = run.survival_data.permuted(run.seed), f"permuted{run.seed}"
    made: dict[str, Made] = {"true": {}, "permuted": {}}
    for name, protocol in PROTOCOLS.items():
        made["true"][name] = run.evaluate(method, protocol, repeats=1)
        made["permuted"][name] = run.evaluate(method, protocol, repeats=1, data=shuffled, label=label)
    return made


def on_null_cohort(run: Run) -> dict[str, Made]:
    """Predictions on the cohort without signal, by method; none where this run has no such cohort."""
    if run.source != "synthetic":
        return {}
    null = run.sibling(NULL_COHORT)
    if not (null.dir / "cohort.parquet").exists():
        return {}
    chosen = {name: PROTOCOLS[name] for name in ("no leak", "both")}
    return {
        method: {name: null.evaluate(method, protocol, repeats=1) for name, protocol in chosen.items()}
        for method in possible(ON_NULL, null.survival_data)
    }


def on_real_tables(run: Run, found: RealTables, method: str = "trans_mo") -> dict[str, Made]:
    """Predictions for real patients: true labels without a leak and with both, shuffled labels under every protocol."""
    made: dict[str, Made] = {}
    for kind, data in (("true", found.data), ("permuted", found.data.permuted(run.seed))):
        folds = make_folds(data.patients, data.time, data.event, 5, 1, run.seed)
        chosen = PROTOCOLS if kind == "permuted" else {name: PROTOCOLS[name] for name in ("no leak", "both")}
        made[kind] = {}
        for name, protocol in chosen.items():
            made[kind][name] = cross_validate(
                method,
                data,
                folds,
                run.profile,
                protocol,
                seed=run.seed,
                out_dir=run.dir / "predictions" / f"{found.name}-{kind}-{protocol.name}",
                omics_cache=run.dir / "omics_cache",
            )
    return made


def selection_draws(run: Run, data: SurvivalData, draws: int = 3) -> pd.DataFrame:
    """C of an elastic net on permuted labels, features chosen on all patients or in the training part.

    Rows are permutations, the last is their mean.
    """
    columns: dict[str, list[float]] = {"all": [], "train": []}
    for where, found in columns.items():
        for number in range(draws):
            folds = report.leak_experiment(
                data.omics,
                data.time,
                data.event,
                run.profile.omics,
                select_on=where,  # type: ignore[arg-type]
                permute=True,
                seed=run.seed + number,
                folder=run.dir / "omics_cache",
            )
            found.append(float(folds["c_index"].mean()))
    table = pd.DataFrame(columns).rename_axis(index="permutation", columns="features chosen on")
    table.loc["mean"] = table.mean()
    return table


def small_leaks(run: Run, method: str, group: int = 60) -> pd.DataFrame:
    """Two small leaks side by side: columns with all patients used and with the last group of an epoch dropped; rows
    how risks of different folds are put together.
    """
    profile = run.profile.model_copy(
        update={
            "fidelity": run.profile.fidelity.model_copy(update={"drop_last_group": True}),
            "survival": run.profile.survival.model_copy(update={"group": group}),
        }
    )
    dropped = cross_validate(
        method,
        run.survival_data,
        run.folds(repeats=1),
        profile,
        PROTOCOLS["no leak"],
        seed=run.seed,
        omics_cache=run.dir / "omics_cache",
        out_dir=run.dir / "predictions" / "drop-last",
    )
    columns = {
        "all patients used": run.evaluate(method, PROTOCOLS["no leak"], repeats=1),
        f"last group dropped (groups of {group})": dropped,
    }
    together: dict[str, Callable[[pd.DataFrame], float]] = {
        "mean of folds": lambda made: metrics.mean_concordance(made)[0],
        "raw risks pooled": lambda made: metrics.pooled_concordance(made, "risk"),
        "standardised, pooled": lambda made: metrics.pooled_concordance(made, "risk_z"),
    }
    return pd.DataFrame(
        {label: {how: score(made) for how, score in together.items()} for label, made in columns.items()}
    )


def over_the_band(rows: pd.DataFrame) -> list[str]:
    """'LIHC, both (0.838)' for each row of meaningless labels whose mean is over two standard deviations of chance."""
    return [
        f"{row['cohort']}, {row['protocol']} ({row['mean']:.3f})"
        for row in rows.to_dict("records")
        if row["labels"] == "permuted" and row["mean"] > 0.5 + 2 * row["noise"]
    ]


def records(rows: Iterable[pd.DataFrame]) -> list[dict[str, Any]]:
    """Rows of several tables as JSON has them; what is not known is None."""
    table = pd.concat([part for part in rows if len(part)])
    whole = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in whole.to_dict("records")]
