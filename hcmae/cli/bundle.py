"""``hcmae train``, ``predict``, ``validate``, ``report``: what leaves the house, a model or one page about a run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hcmae.config import MODALITIES, ConfigError
from hcmae.files import atomic_path, write_json

if TYPE_CHECKING:
    import pandas as pd

    from hcmae.survival.bundle import Bundle

_BUNDLE = typer.Argument(help="Folder that 'hcmae train' has written.")
_COHORT = typer.Option(help="Folder of raw data of many patients.")
_SOURCE = typer.Option(help="Layout of that folder: local, gdc or synthetic.")
_WORK = typer.Option(help="Folder for regions and vectors, kept and used again (default: a temporary one).")
_WORKERS = typer.Option(help="Parallel workers.")
_SEED = typer.Option(help="Seed of the draw among several slides of a patient.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("train")(train_command)
    app.command("predict")(predict_command)
    app.command("validate")(validate_command)
    app.command("report")(report_command)


def train_command(
    method: Annotated[str, typer.Option(help="Survival method.")] = "hcmae",
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle (default: bundles/METHOD of the run).")] = None,
    cancer: Annotated[str, typer.Option(help="Cancer.")] = "LIHC",
    profile: Annotated[str, typer.Option(help="smoke, workstation, paper, or the path of a YAML file.")] = "smoke",
    source: Annotated[str, typer.Option(help="synthetic, gdc or local.")] = "synthetic",
    seed: Annotated[int, typer.Option(help="One seed for everything.")] = 0,
    data_dir: Annotated[Path, typer.Option(help="Raw data.")] = Path("data"),
    run_dir: Annotated[Path, typer.Option(help="What is computed.")] = Path("runs"),
    modalities: Annotated[
        str, typer.Option(help="Omics that a patient must have: rna, mirna, methylation, comma-separated, or none.")
    ] = ",".join(MODALITIES),
    slides: Annotated[bool, typer.Option("--slides/--no-slides", help="Whether a patient must have a slide.")] = True,
    manifest_dir: Annotated[Path | None, typer.Option(help="Folder of manifests, for a cancer of your own.")] = None,
) -> None:
    """Fit a method on everybody of a cohort and write it as a bundle that can be sent to somebody."""
    from hcmae.pipeline import Run

    chosen: dict[str, Any] = {"modalities": modalities, "slides": slides, "manifest_dir": manifest_dir}
    run = Run(cancer, profile, source, seed, data_dir, run_dir, **chosen)
    print(f"{run.train(method, out)}: {method} of {run.cancer}")


def report_command(
    out: Annotated[Path | None, typer.Option(help="HTML file (default: report.html in the run's folder).")] = None,
    cancer: Annotated[str, typer.Option(help="Cancer.")] = "LIHC",
    profile: Annotated[str, typer.Option(help="smoke, workstation, paper, or the path of a YAML file.")] = "smoke",
    source: Annotated[str, typer.Option(help="synthetic, gdc or local.")] = "synthetic",
    seed: Annotated[int, typer.Option(help="One seed for everything.")] = 0,
    data_dir: Annotated[Path, typer.Option(help="Raw data.")] = Path("data"),
    run_dir: Annotated[Path, typer.Option(help="What is computed.")] = Path("runs"),
    modalities: Annotated[
        str, typer.Option(help="Omics that a patient must have: rna, mirna, methylation, comma-separated, or none.")
    ] = ",".join(MODALITIES),
    slides: Annotated[bool, typer.Option("--slides/--no-slides", help="Whether a patient must have a slide.")] = True,
    manifest_dir: Annotated[Path | None, typer.Option(help="Folder of manifests, for a cancer of your own.")] = None,
) -> None:
    """Write one HTML file about a run: cohort, predictions, subgroups, provenance, open questions; trains nothing."""
    from hcmae.pipeline import Run

    chosen: dict[str, Any] = {"modalities": modalities, "slides": slides, "manifest_dir": manifest_dir}
    print(Run(cancer, profile, source, seed, data_dir, run_dir, **chosen).report(out))


def predict_command(
    bundle: Annotated[Path, _BUNDLE],
    slide: Annotated[Path | None, typer.Option(help="Slide of one patient.")] = None,
    rna: Annotated[Path | None, typer.Option(help="RNA of one patient: a file of the GDC, or a table.")] = None,
    mirna: Annotated[Path | None, typer.Option(help="miRNA of one patient.")] = None,
    methylation: Annotated[Path | None, typer.Option(help="Methylation of one patient.")] = None,
    patient: Annotated[str | None, typer.Option(help="Name of the patient, which picks a row of a table.")] = None,
    age: Annotated[float | None, typer.Option(help="Age in years.")] = None,
    sex: Annotated[str | None, typer.Option(help="female or male.")] = None,
    stage: Annotated[str | None, typer.Option(help="Stage, such as 'Stage II'.")] = None,
    cohort: Annotated[Path | None, _COHORT] = None,
    source: Annotated[str, _SOURCE] = "local",
    out: Annotated[Path | None, typer.Option(help="Table to write (.tsv); default: the screen.")] = None,
    work: Annotated[Path | None, _WORK] = None,
    workers: Annotated[int, _WORKERS] = 1,
    seed: Annotated[int, _SEED] = 0,
) -> None:
    """Risk, risk group and survival curve of one patient (--slide, --rna ...) or of a folder (--cohort).

    Exit status 1 where some patients of a folder could not be rated; they are listed with the reason.
    """
    from hcmae.pipeline.newcomers import from_folder, one_patient

    given = {name: path for name, path in (("rna", rna), ("mirna", mirna), ("methylation", methylation)) if path}
    covariates = {name: value for name, value in (("age", age), ("sex", sex), ("stage", stage)) if value is not None}
    if cohort is not None and (slide or given or covariates or patient):
        raise ConfigError("--cohort is a folder of many patients; the other options are for one: choose one way")
    model = _read(bundle)
    with _place(work) as place:
        if cohort is not None:
            options: dict[str, Any] = {"workers": workers, "seed": seed, "progress": sys.stderr.isatty()}
            found = from_folder(model, cohort, source, place, with_outcomes=False, **options)
        else:
            options = {"workers": workers, "progress": sys.stderr.isatty(), "covariates": covariates}
            found = one_patient(model, place, patient=patient, slide=slide, omics=given, **options)
        table = model.trained.predict(found.data)
    table.insert(3, "group", table.pop("high").map({True: "high", False: "low"}))
    _write(table, out)
    for row in table.to_dict("records"):
        if row["filled"]:
            names = str(row["filled"]).split("; ")
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            line = f"{row['patient']}: the training patients' mean stands for {', '.join(names[:5])}{more}"
            print(f"hcmae: {line}", file=sys.stderr)
    if len(found.refused):
        for row in found.refused.to_dict("records"):
            print(f"hcmae: {row['patient']}: not rated: {row['reason']}", file=sys.stderr)
        raise typer.Exit(1)


def validate_command(
    bundle: Annotated[Path, _BUNDLE],
    cohort: Annotated[Path, _COHORT],
    source: Annotated[str, _SOURCE] = "local",
    out: Annotated[Path | None, typer.Option(help="Result to write (.json), decision curve included.")] = None,
    work: Annotated[Path | None, _WORK] = None,
    workers: Annotated[int, _WORKERS] = 1,
    seed: Annotated[int, _SEED] = 0,
    draws: Annotated[int, typer.Option(min=20, help="Draws of the bootstrap behind the intervals.")] = 200,
) -> None:
    """How good a bundle is on patients whom it has never seen: discrimination, calibration, Brier score, decisions."""
    from hcmae.evaluation.judgement import decision_curve, external
    from hcmae.pipeline.newcomers import from_folder

    model = _read(bundle)
    with _place(work) as place:
        options: dict[str, Any] = {"workers": workers, "seed": seed, "progress": sys.stderr.isatty()}
        found = from_folder(model, cohort, source, place, with_outcomes=True, **options)
        table = model.trained.predict(found.data)
    table = table.assign(time=found.data.time, event=found.data.event)
    report = external(table, model.trained.kaplan_meier, draws=draws)
    days = model.trained.baseline.days
    middle = float(days[len(days) // 2])
    curve = decision_curve(table, middle)
    print(f"{len(table)} patients, {int(table['event'].sum())} deaths; {len(found.refused)} not rated")
    print(report.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"net benefit of treating whoever dies by day {middle:.0f} with at least a probability")
    print(curve.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if out is not None:
        tables = {"measures": report, f"decision curve at day {middle:.0f}": curve, "not rated": found.refused}
        plain = {
            name: part.astype(object).where(part.notna(), None).to_dict("records") for name, part in tables.items()
        }
        about = {name: value for name, value in model.about["about"].items() if name != "manifest"}
        write_json(out, {"patients": len(table), "deaths": int(table["event"].sum()), "bundle": about, **plain})


def _read(path: Path) -> Bundle:
    from hcmae.survival.bundle import read_bundle

    bundle = read_bundle(path)
    for note in bundle.notes:
        print(f"hcmae: {path.name}: {note}", file=sys.stderr)
    return bundle


@contextmanager
def _place(work: Path | None) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="hcmae-") as folder:
        yield Path(folder)


def _write(table: pd.DataFrame, out: Path | None) -> None:
    if out is None:
        print(table.to_csv(sep="\t", index=False, float_format="%.6g"), end="")
        return
    with atomic_path(out) as temporary:
        table.to_csv(temporary, sep="\t", index=False)
    print(f"{out}: {len(table)} patients")
