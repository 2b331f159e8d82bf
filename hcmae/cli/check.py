"""``hcmae check``: is this folder of data ready for the road, and if not, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("check")(check_command)


def check_command(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder with the raw data (default: DATA_DIR/SOURCE/CANCER).")
    ] = None,
    source: Annotated[str, typer.Option(help="local, gdc (Xena's matrices too) or synthetic.")] = "local",
    cancer: Annotated[
        str | None, typer.Option(help="Manifest with the inclusion rules (default: the folder's name, else LIHC).")
    ] = None,
    modalities: Annotated[
        str | None, typer.Option(help="Omics that there must be, comma-separated, or none (default: what is there).")
    ] = None,
    slides: Annotated[
        bool | None, typer.Option("--slides/--no-slides", help="Whether there must be slides (default: if any are).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings for a program.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draw among several slides.")] = 0,
    data_dir: Annotated[Path, typer.Option(help="Raw data.")] = Path("data"),
    manifest_dir: Annotated[Path | None, typer.Option(help="Folder of manifests, for a cancer of your own.")] = None,
) -> None:
    """Run all checks of a folder of raw data and compute nothing; exit status 1 where there are faults."""
    from hcmae.pipeline.check import check_data, rules_for
    from hcmae.pipeline.place import listed_modalities

    folder = folder or data_dir / source / (cancer or "LIHC")
    manifest, told = rules_for(folder, cancer, manifest_dir)
    wanted = None if modalities is None else listed_modalities(modalities)
    report = check_data(manifest, source, folder, modalities=wanted, slides=slides, seed=seed, told=told)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        for finding in report.findings:
            print(finding.line())
        print(f"{folder}: {len(report.faults)} fault(s), by the rules of manifest {report.manifest}")
    raise typer.Exit(1 if report.faults else 0)
