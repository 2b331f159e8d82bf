"""One HTML file about a run that can be sent to a colleague: cohort, predictions, subgroups, origin, open questions.

It holds counts and curves, no name of a patient, and asks no network for anything. Nothing is trained for it: what was
not computed, or no longer holds, is said to be missing.
"""

from __future__ import annotations

import html
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.evaluation import judgement, metrics
from hcmae.evaluation.kaplan_meier import RiskGroups, risk_groups
from hcmae.evaluation.subgroups import by_subgroup, groups_of, proportional_hazards
from hcmae.files import read_json, read_parquet, write_text
from hcmae.pipeline import results, road, work
from hcmae.pipeline.place import Place
from hcmae.pipeline.reporting_items import ITEMS

_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #22272e; }
table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #d9dde3; padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; } .open { color: #c2410c; }
"""
# Methods whose risk groups are drawn.
_DRAWN = 6


def write_report(run: Place, out: str | Path | None = None) -> Path:
    """Write the report of a run (default: report.html in its folder) and give its path.

    Raises FileNotFoundError where the cohort has not been curated.
    """
    cohort = run.cohort()
    found = _kept(run)
    parts = [
        ("Provenance", _table(pd.DataFrame(results.provenance(run).items(), columns=["what", "value"]))),
        ("Steps", _table(road.status(run)[["step", "state", "why"]])),
        ("Cohort", _cohort(run, cohort)),
        ("Sites", _sites(run, cohort.table)),
        ("Predictions", _predictions(found)),
        ("Subgroups", _subgroups(run, cohort.table, found)),
        ("Proportional hazards", _hazards(cohort.table)),
        ("Bundles", _bundles(run)),
        ("Settings", f"<details><summary>all of them</summary><pre>{html.escape(_settings(run))}</pre></details>"),
        ("Questions of TRIPOD+AI and PROBAST+AI", _items()),
    ]
    name = f"{run.cancer}, profile {run.profile.name}, source {run.source}"
    body = "".join(f"<h2>{html.escape(title)}</h2>\n{text}\n" for title, text in parts)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(name)}</h1>\n{body}</body></html>\n"
    )
    path = Path(out) if out is not None else run.dir / "report.html"
    write_text(path, page)
    return path


# --- parts ----------------------------------------------------------------------------------------------------------


def _kept(run: Place) -> dict[tuple[str, str], pd.DataFrame]:
    """(method, protocol) -> predictions that were made and still hold."""
    found = {}
    for options in work.kept_predictions(run):
        paths = road.kept_predictions(run, options["method"], options["protocol"], options["repeats"])
        if paths:
            found[options["method"], options["protocol"]] = read_parquet(paths[0])
    return found


def _cohort(run: Place, cohort: Any) -> str:
    from hcmae.plots import plot_consort, plot_follow_up

    table = cohort.table
    counts = f"<p>{len(table)} patients, {int(table['event'].sum())} deaths; {len(cohort.exclusions)} left out.</p>"
    flow = plot_consort(cohort.flow), "Who remains after each rule"
    follow_up = plot_follow_up(table, min_days=run.manifest.inclusion.min_days), "How long patients were followed"
    rows = [("age, median (known of)", f"{table['age'].median():.0f} ({int(table['age'].notna().sum())})")]
    for name in ("sex", "stage"):
        counted = table[name].fillna("unknown").value_counts()
        rows += [(f"{name}: {value}", str(count)) for value, count in counted.items()]
    known = _table(pd.DataFrame(rows, columns=["what", "patients"]))
    return counts + _table(cohort.flow) + _figure(*flow) + _figure(*follow_up) + known


def _sites(run: Place, table: pd.DataFrame) -> str:
    sites = _sites_of(run, table)
    if sites is None:
        return _missing("Nothing says which hospitals the patients are from.")
    counts = pd.DataFrame({"site": sites, "event": table["event"]}).groupby("site")["event"].agg(["size", "sum"])
    counts = counts.rename(columns={"size": "patients", "sum": "deaths"}).sort_values("patients", ascending=False)
    kind = html.escape(run.profile.survival.fold_kind)
    return f"<p>{len(counts)} sites; folds are {kind}.</p>" + _table(counts.reset_index())


def _sites_of(run: Place, table: pd.DataFrame) -> pd.Series | None:
    from hcmae.cohort.evidence import CurationError
    from hcmae.cohort.sites import sites_of

    try:
        return sites_of(list(table.index), run.tables, run.root)
    except CurationError:
        return None


def _predictions(found: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    if not found:
        return _missing("No predictions of this cohort hold: run the stage survival.")
    rows: list[dict[str, Any]] = []
    groups: dict[str, RiskGroups] = {}
    for (method, protocol), table in found.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean, spread = metrics.mean_concordance(table)
            interval = metrics.bootstrap(table, draws=200)
            own, null = _brier(table)
            merged = _one_model(table)
            slope, p_value = judgement.calibration_slope(merged), judgement.d_calibration(merged)[0]
            drawn = _groups(table)
        if drawn is not None and protocol == "honest" and len(groups) < _DRAWN:
            groups[method] = drawn
        rows.append(
            {
                "method": method,
                "protocol": protocol,
                "patients": table["patient"].nunique(),
                "C-index": f"{mean:.3f} (sd of folds {spread:.3f})",
                "95 %": f"{interval.low:.3f} to {interval.high:.3f}",
                "integrated Brier score": own,
                "Kaplan-Meier's": null,
                "calibration slope": f"{slope:.2f}",
                "D-calibration, p": f"{p_value:.3f}",
            }
        )
    from hcmae.plots import plot_kaplan_meier

    text = _table(pd.DataFrame(rows))
    text += "<p>Out of fold; slope and D-calibration of curves averaged over repeats.</p>"
    if groups:
        text += _figure(plot_kaplan_meier(groups), "Risk groups at the training median; p-values are naive")
    return text


def _one_model(table: pd.DataFrame) -> pd.DataFrame:
    """A row per patient, risks and curves averaged over repeats."""
    names, _ = metrics.survival_columns(table)
    columns = {"time": "first", "event": "first", "risk": "mean", **dict.fromkeys(names, "mean")}
    return table.groupby("patient").agg(columns).reset_index()


def _brier(table: pd.DataFrame) -> tuple[str, str]:
    try:
        own, null = metrics.integrated_brier(table)
    except ValueError:
        return "", ""
    return f"{own:.3f}", f"{null:.3f}"


def _groups(table: pd.DataFrame) -> RiskGroups | None:
    try:
        return risk_groups(table)
    except ValueError:
        return None


def _subgroups(run: Place, table: pd.DataFrame, found: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    honest = [method for method, protocol in found if protocol == "honest"]
    if not honest:
        return _missing("No predictions under the honest protocol hold.")
    method = "hcmae" if "hcmae" in honest else honest[0]
    groups = groups_of(table, _sites_of(run, table))
    shown = by_subgroup(found[method, "honest"], groups, draws=200)
    return (
        f"<p>Method {html.escape(method)}; intervals over patients. Groups with fewer than {judgement.FEW_DEATHS} "
        "deaths are put together; the intercept is the logarithm of observed over expected deaths.</p>" + _table(shown)
    )


def _hazards(table: pd.DataFrame) -> str:
    from hcmae.survival.linear import clinical_columns

    columns = pd.DataFrame(clinical_columns(table), columns=["age", "sex (male)", "stage"], index=table.index)
    columns = columns.loc[:, columns.notna().mean() > 0.5]
    try:
        shown = proportional_hazards(columns, table["time"].to_numpy(), table["event"].to_numpy())
    except (ValueError, ArithmeticError) as error:
        return _missing(f"Not tested: {error}.")
    text = "Cox model of the clinical covariates; a small p speaks against one hazard ratio for all times."
    return f"<p>{text}</p>{_table(shown)}"


def _bundles(run: Place) -> str:
    from hcmae.survival.bundle import ABOUT

    rows = []
    for path in sorted((run.dir / "bundles").glob(f"*/{ABOUT}")):
        record = read_json(path)
        reads = [
            {name for rules in record["selections"] for name in rules[modality]["features"]}
            for modality in record["libraries"]
        ]
        features = [f"{name}: {len(names)}" for name, names in zip(record["libraries"], reads, strict=True)]
        rows.append(
            {
                "bundle": path.parent.name,
                "predictors": len(record["members"]),
                "features": ", ".join(features),
                "high above": f"{record['groups']['middle']:.4g}",
                "format": record["format"],
            }
        )
    return _table(pd.DataFrame(rows)) if rows else _missing("No model was handed over (hcmae train).")


def _settings(run: Place) -> str:
    return json.dumps(run.profile.model_dump(mode="json"), indent=1)


def _items() -> str:
    rows = [
        f"<tr><td>{html.escape(item.part)}</td><td>{html.escape(item.topic)}</td>"
        + (f"<td>{html.escape(item.answered)}</td>" if item.answered else '<td class="open">for the researcher</td>')
        + "</tr>"
        for item in ITEMS
    ]
    still = sum(not item.answered for item in ITEMS)
    head = f"<p>{still} of {len(ITEMS)} questions are left to the researcher.</p>"
    return f"{head}<table><tr><th>part</th><th>topic</th><th>answered by</th></tr>{''.join(rows)}</table>"


# --- HTML -----------------------------------------------------------------------------------------------------------


def _table(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, escape=True, border=0, float_format=lambda value: f"{value:.3f}", na_rep="")


def _missing(text: str) -> str:
    return f'<p class="open">{html.escape(text)}</p>'


def _figure(figure: Any, alt: str) -> str:
    """A figure as SVG in the page, with its text as text."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    said = html.escape(alt)
    return f'<figure role="img" aria-label="{said}">{drawing}<figcaption>{said}</figcaption></figure>'
