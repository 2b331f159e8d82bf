"""Tables of the lessons on survival, ablation and comparison, as their pages show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.cohort.splits import make_folds
from hcmae.config import CANCERS
from hcmae.evaluation import compare, metrics, tables
from hcmae.evaluation.kaplan_meier import RiskGroups, risk_groups
from hcmae.pipeline.lessons import RealTables, main_method
from hcmae.pipeline.run import Run, all_runs
from hcmae.slides.handcrafted import draw_patches, segment_nuclei, unmix
from hcmae.survival import differences
from hcmae.survival.cross_validate import cross_validate, fold_costs
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS

# What ``metrics.summary`` measures, in words.
MEASURES = {
    "c_index": "C-index, mean of folds",
    "c_sd": "sd over folds",
    "c_low": "95 % interval from",
    "c_high": "to",
    "uno_c": "Uno's C",
    "auc_1y": "AUC at 1 year",
    "auc_3y": "AUC at 3 years",
    "auc_5y": "AUC at 5 years",
    "ibs": "integrated Brier score",
    "ibs_km": "the same, Kaplan-Meier",
}
# Neighbours of the ablation: each pair is compared on the same folds.
NEIGHBOURS = (
    ("mae_patreg", "mae_pat"),
    ("mae_patreg", "mae_reg"),
    ("hc_patregsli", "mae_patreg"),
    ("hc_patregsli", "hc_regsli"),
    ("hcmae_regions", "trans_mo"),
    ("hcmae", "hcmae_regions"),
    ("hcmae", "hc_patregsli"),
    ("hcmae", "trans_mo"),
    ("hcmae", "hcmae_paper"),
)
# Inputs of the compared methods, by the symbol that lesson 9 gives them.
SYMBOLS = {
    "handcrafted": "h",
    "patch": "P",
    "region": "R, HC-MAE",
    "region_hipt": "R, HIPT",
    "thumbnail": "thumbnails",
}


def labels_of(names: Iterable[str]) -> dict[str, str]:
    """Name of a method -> its label."""
    return {name: METHODS[name].label for name in names}


def size_in_words(data: SurvivalData) -> str:
    """'162 patients, 105 deaths, 981 regions (3 to 12 per slide).'"""
    regions = ""
    if data.has("region"):
        sizes = data.sizes("region")
        regions = f", {sizes.sum()} regions ({sizes.min()} to {sizes.max()} per slide)"
    return f"{len(data.patients)} patients, {data.event.sum()} deaths{regions}."


def stand_in(data: SurvivalData) -> str:
    """Which method stands for HC-MAE in a run without slides or without omics; empty where HC-MAE can be fed."""
    main = main_method(data)
    if main == "hcmae":
        return ""
    lacks = "no omics" if data.has("region") else "no slides"
    return f"**{METHODS[main].label} stands for HC-MAE on this page**: this run has {lacks}."


def on_real_tables(run: Run, found: RealTables, methods: Sequence[str] = ("trans_mo", "coxnet_omics")) -> pd.DataFrame:
    """Methods on real tables under the honest protocol, 5 folds: method, C-index, sd over folds, low, high."""
    data = found.data
    folds = make_folds(data.patients, data.time, data.event, 5, 1, run.seed)
    out = run.dir / "predictions" / f"{found.name}-honest"
    rows = []
    for name in methods:
        made = cross_validate(name, data, folds, run.profile, seed=run.seed, out_dir=out, omics_cache=out / "omics")
        interval = metrics.bootstrap(made, draws=300)
        rows.append((METHODS[name].label, *metrics.mean_concordance(made), interval.low, interval.high))
    return pd.DataFrame(rows, columns=["method", "C-index", "sd over folds", "low", "high"])


def inputs_of_rows(names: Iterable[str]) -> pd.DataFrame:
    """What each method is fed with: model, bag of vectors, role of the thumbnails, omics."""
    rows = []
    for name in names:
        method = METHODS[name]
        role = differences.thumbnail_role(method)
        rows.append((method.label, method.bag or "none", role, "omics" in method.needs))
    return pd.DataFrame(rows, columns=["model", "bag of vectors", "thumbnails are", "omics"])


def score_frame(scores: Mapping[str, tables.Score], paper: Mapping[str, tables.Score | None]) -> pd.DataFrame:
    """Means with intervals and the paper's value, NaN where it prints none: one row per method, for the figures."""
    return pd.DataFrame(
        {
            name: {
                "mean": own.mean,
                "low": own.low,
                "high": own.high,
                "paper": printed.mean if (printed := paper.get(name)) else np.nan,
            }
            for name, own in scores.items()
        }
    ).T


def paper_scores(cancer: str) -> dict[str, tables.Score | None]:
    """What Table II of the paper prints for a cancer, by name of the method."""
    return {key: tables.PAPER_TABLE2.get(label, {}).get(cancer) for label, key, _ in tables.TABLE2_ROWS}


def neighbour_differences(predictions: Mapping[str, pd.DataFrame], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """``compare.compare`` of each pair on the same folds, Holm's adjustment over all pairs; empty without pairs."""
    if not pairs:
        return pd.DataFrame()
    rows = [compare.compare({a: predictions[a], b: predictions[b]}, a, draws=500) for a, b in pairs]
    table = pd.concat(rows)
    table["p_holm"] = compare.holm(table["p"])
    return table


def input_table(run: Run, data: SurvivalData) -> pd.DataFrame:
    """What one patient brings to the methods of lesson 9: input, items per patient, size of an item."""
    rows = []
    if data.has("omics"):
        rows.append(("O", str(len(run.modalities)), str(run.profile.omics.top_k)))
    for kind, symbol in SYMBOLS.items():
        if not data.has(kind):
            continue
        inner = data.bags[kind].packed(np.array([0])).shape[1:]
        count = data.sizes(kind)
        items = "1" if kind == "handcrafted" else f"{count.min()} to {count.max()}"
        rows.append((symbol, items, " x ".join(map(str, inner))))
    return pd.DataFrame(rows, columns=["input", "items per patient", "size of an item"])


def nuclei_of_a_slide(run: Run) -> tuple[NDArray[np.uint8], NDArray[np.integer]] | None:
    """Patches [N, p, p, 3] of the first slide and the numbers of their nuclei [N, p, p]; None without slides.

    All patches of a slide share one threshold: they are laid in a row, as the measurement lays them side by side.
    """
    if not run.slides or not run.stores():
        return None
    settings, side = run.profile.handcrafted, run.profile.geometry.patch
    patches = draw_patches(run.stores()[0], side, settings, run.seed)
    labels = segment_nuclei(
        unmix(np.concatenate(patches, axis=1))["hematoxylin"],
        min_area=settings.min_area,
        min_distance=settings.min_distance,
        correction=settings.threshold_correction,
        tile=side,
    )
    return np.asarray(patches), np.stack(np.split(labels, len(patches), axis=1))


def scores_of_cancers(
    run: Run, predictions: Mapping[str, pd.DataFrame]
) -> tuple[dict[str, dict[str, tables.Score]], dict[str, list[str]]]:
    """Scores by method and cancer, and the methods that a cancer lacks.

    Other cancers that were run with this profile fill their columns; what no longer holds does not.
    """
    scores = {name: {run.cancer: tables.score(made)} for name, made in predictions.items()}
    absent: dict[str, list[str]] = {}
    for other in all_runs(run):
        if other.cancer == run.cancer:
            continue
        for name in predictions:
            kept = other.kept(name)
            if kept is None:
                absent.setdefault(other.cancer, []).append(METHODS[name].label)
            else:
                scores[name][other.cancer] = tables.score(kept)
    return scores, absent


def comparison_table(run: Run, data: SurvivalData, scores: Mapping[str, Mapping[str, tables.Score]]) -> Any:
    """Table II of a run with the provenance of its numbers, also written into the run's results."""
    origin = f"MCAT and CLAM-SB read patch vectors of {data.patch_source}."
    table = tables.table2(
        scores,
        cancers=CANCERS if run.cancer in CANCERS else (run.cancer,),
        provenance={**run.provenance(), "protocol": "honest"},
        interval=True,
        note=origin if data.has("patch_features") else "",
        variant=differences.variant_note(run.profile),
    )
    table.write(run.dir / "results", "table2")
    run.save_result("table2", {"scores": {name: vars(value[run.cancer]) for name, value in scores.items()}})
    return table


def complete_means(run: Run, scores: Mapping[str, Mapping[str, tables.Score]]) -> pd.DataFrame:
    """Mean C of every method (columns) in those cancers (rows) that were run with all of them."""
    means = pd.DataFrame({name: {c: s.mean for c, s in row.items()} for name, row in scores.items()})
    order = dict.fromkeys((*CANCERS, run.cancer))
    return means.reindex([cancer for cancer in order if cancer in means.index]).dropna()


def ranks_in_words(ranks: Any, cancers: Sequence[str], main: str) -> str:
    """Friedman's test, the critical difference and from which methods the main one is told apart."""
    far = [METHODS[m].label for m, r in ranks.mean.items() if r - ranks.mean[main] > ranks.critical_difference]
    apart = f"{'; '.join(far)}. From the other {len(ranks.mean) - 1 - len(far)} it is not." if far else "none."
    return (
        f"{len(ranks.mean)} methods on {len(cancers)} cancers ({', '.join(cancers)}): Friedman's chi-square "
        f"{ranks.statistic:.1f}, p = {ranks.p:.1g}. Two mean ranks must differ by more than "
        f"{ranks.critical_difference:.1f}. {METHODS[main].label}, mean rank {ranks.mean[main]:.1f}, is told apart from "
        f"{apart}"
    )


def cost_table(run: Run, names: Iterable[str]) -> pd.DataFrame:
    """Parameters, networks and seconds of one fold, by label of the method; memory where a GPU was used.

    'n/a' where the predictions were made before folds noted their cost.
    """
    rows = {}
    for name in names:
        cost = fold_costs(run.dir / "predictions" / "honest", name).median()
        known, network = np.isfinite(cost["seconds"]), np.isfinite(cost["networks"])
        unknown = ("no network", "0") if known else ("n/a", "n/a")
        counted = (f"{cost['parameters']:,.0f}", f"{cost['networks']:.0f}") if network else unknown
        seconds = f"{cost['seconds']:.1f}" if cost["seconds"] >= 0.1 else "< 0.1"
        memory = f"{cost['gpu_mib']:,.0f}" if np.isfinite(cost["gpu_mib"]) else "n/a"
        rows[METHODS[name].label] = (*counted, seconds if known else "n/a", memory)
    columns = ["parameters", "networks per fold", "seconds per fold", "memory on the GPU, MiB"]
    table = pd.DataFrame(rows, index=columns).T
    return table.drop(columns=columns[-1]) if (table[columns[-1]] == "n/a").all() else table


def figure2_numbers(groups: Mapping[str, RiskGroups]) -> dict[str, dict[str, float | int | None]]:
    """P-values, naive and permuted, and hazard ratios of every method, as results/figure2.json keeps them."""
    return {
        name: {
            "p_naive": group.log_rank_p,
            "p_permuted": group.permutation.p if group.permutation else None,
            "permutations": group.permutation.permutations if group.permutation else None,
            "hr": group.hazard_ratio,
            "hr_low": group.hr_low,
            "hr_high": group.hr_high,
        }
        for name, group in groups.items()
    }


def cut_offs(predictions: pd.DataFrame) -> pd.DataFrame:
    """One method's risk groups at the training median of each fold and at the pooled median of raw risks."""
    rows = {}
    for split in ("training_median", "pooled_median"):
        groups = risk_groups(predictions, split=split)  # type: ignore[arg-type]
        rows[split] = {
            "log-rank p, naive": f"{groups.log_rank_p:.2g}",
            "hazard ratio (naive 95 %)": groups.ratio_text(),
            "high-risk patients": f"{groups.high.patients} of {groups.high.patients + groups.low.patients}",
        }
    return pd.DataFrame(rows).T
