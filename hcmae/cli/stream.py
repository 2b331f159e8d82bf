"""``hcmae stream``: a cohort whose slides do not fit on the disk, one part after the other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hcmae.cli.progress import silence
from hcmae.config import MODALITIES, ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("stream")(stream_command)


def size_of(text: str) -> int:
    """Bytes of a size such as 200G, 1.5T or 500000000. Raises ConfigError for any other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if found is None or not float(found[1]):
        raise ConfigError(f"--disk {text}: give a number of bytes, or one with K, M, G or T behind it, such as 200G")
    return int(float(found[1]) * _UNITS[found[2]])


def stream_command(
    context: typer.Context,
    cancer: Annotated[str, typer.Argument(help="Cancer, e.g. LIHC.")],
    disk: Annotated[str, typer.Option(help="Most bytes of slides on disk at any time, such as 200G.")],
    profile: Annotated[
        str, typer.Option(help="smoke, workstation, paper, or the path of a YAML file.")
    ] = "workstation",
    keep: Annotated[
        str,
        typer.Option(
            help="vectors: of all networks whose weights are there; stores: places and thumbnails of regions alone."
        ),
    ] = "vectors",
    nuclei: Annotated[bool, typer.Option("--nuclei/--no-nuclei", help="Measure nuclei (GPDBN, CAMR).")] = True,
    weights_from: Annotated[
        Path | None, typer.Option(help="Folder pretrain of another run: its networks are used, none is trained.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Slides that are cut at a time.", min=1)] = 2,
    in_flight: Annotated[int, typer.Option(help="Slides that are fetched at a time.", min=1, max=8)] = 4,
    modalities: Annotated[str, typer.Option(help="Omics that a patient must have.")] = ",".join(MODALITIES),
    seed: Annotated[int, typer.Option(help="One seed for everything.")] = 0,
    data_dir: Annotated[Path, typer.Option(help="Raw data.")] = Path("data"),
    run_dir: Annotated[Path, typer.Option(help="What is computed.")] = Path("runs"),
    lock_file: Annotated[Path | None, typer.Option(help="Lock (default: data_manifests/lock/CANCER.tsv).")] = None,
    url: Annotated[str | None, typer.Option(help="Base URL of the GDC API.")] = None,
    mirror: Annotated[str | None, typer.Option(help="Base URL of the S3 mirror, '' for none.")] = None,
    xena: Annotated[str | None, typer.Option(help="Base URL of the Xena hub.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")] = False,
) -> None:
    """Fetch each slide, cut it, keep what later steps need and delete it; goes on where it stopped.

    Exit status 1 where slides could not be had or have no region.
    """
    context.with_resource(silence(quiet))
    from hcmae.cohort.lock import read_lock
    from hcmae.gdc import fetch
    from hcmae.gdc.client import GDCClient
    from hcmae.manifest import default_manifest_dir
    from hcmae.pipeline import Run
    from hcmae.pipeline.streaming import embed_steps, stream
    from hcmae.slides.batch import summary

    budget = size_of(disk)
    if keep not in ("vectors", "stores"):
        raise ConfigError(f"--keep {keep}: choose vectors or stores")
    chosen: dict[str, Any] = {"modalities": modalities, "weights_from": weights_from}
    run = Run(cancer, profile, "gdc", seed, data_dir, run_dir, **chosen)
    if keep == "vectors":
        embed_steps(run)  # before anything is fetched
    path = lock_file or default_manifest_dir() / "lock" / f"{cancer}.tsv"
    if not path.exists():
        raise ConfigError(f"{path} is missing: run 'hcmae manifest resolve {cancer}' first")
    with GDCClient(url=url, mirror=mirror, xena=xena, cache=data_dir / "gdc" / "cache") as client:
        rest = (*run.modalities, "clinical")
        fetch.fetch(run.manifest, read_lock(path), run.root, client, what=rest, progress=not quiet)
        outcomes = stream(
            run, client, disk=budget, keep=keep, nuclei=nuclei, workers=workers, in_flight=in_flight  # type: ignore[arg-type]
        )  # fmt: skip
    print(summary(outcomes).to_string(index=False))
    left = outcomes[~outcomes["status"].isin(["ok", "skipped"])]
    if len(left):
        print(f"{len(left)} slides without regions, see {run.dir / 'slides.parquet'}", file=sys.stderr)
        raise typer.Exit(1)
