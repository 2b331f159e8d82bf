"""``hcmae manifest resolve``, ``hcmae fetch``, ``hcmae verify``: real data, from query to checked files."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from hcmae.gdc.client import GDCClient

_WHAT = "slides,rna,mirna,methylation,clinical"
_URL = typer.Option(help="Base URL of the GDC API (default: HCMAE_GDC_URL or the public server).")
_MIRROR = typer.Option(help="Base URL of the S3 mirror, '' for none (default: HCMAE_MIRROR_URL or the public bucket).")
_XENA = typer.Option(help="Base URL of the Xena hub (default: HCMAE_XENA_URL or the public hub).")
_LOCKS = typer.Option(help="Folder of the locks.")
_DATA = typer.Option(help="Raw data go to DATA_DIR/gdc/CANCER.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    manifest_app = typer.Typer(no_args_is_help=True, help="What a cancer's manifest means on the server today.")
    app.add_typer(manifest_app, name="manifest")
    manifest_app.command("resolve")(resolve_command)
    app.command("fetch")(fetch_command)
    app.command("verify")(verify_command)


def resolve_command(
    cancer: Annotated[str, typer.Argument(help="Cancer, e.g. LIHC.")],
    out: Annotated[Path | None, typer.Option(help="File to write (default: data_manifests/lock/CANCER.tsv).")] = None,
    cache: Annotated[Path, typer.Option(help="Answers of queries are kept here, by release.")] = Path("data/gdc/cache"),
    url: Annotated[str | None, _URL] = None,
) -> None:
    """Ask the server which files the manifest means, and write them with size and md5 into the lock."""
    from hcmae.gdc import fetch
    from hcmae.manifest import load_manifest

    manifest = load_manifest(cancer)
    with _client(url=url, cache=cache) as client:
        lock = fetch.resolve(manifest, client)
        path = out or _lock_path(cancer)
        before = _earlier(path)
        fetch.write_lock(lock, path)
        summary = lock.groupby("modality", sort=False).agg(
            files=("id", "size"), patients=("case", "nunique"), bytes=("size", "sum")
        )
        print(summary.to_string())
        size = _bytes(int(lock["size"].sum()))
        print(f"{path}: {len(lock)} files, {size}, {client.release}; commit this file")
        if before is not None:
            old, new = set(before["id"]), set(lock["id"])
            since = ", ".join(sorted(set(before["release"]))) or "no release"
            print(f"since the earlier lock ({since}): {len(new - old)} files are new, {len(old - new)} are gone")


def fetch_command(
    cancer: Annotated[str, typer.Argument(help="Cancer, e.g. LIHC.")],
    what: Annotated[str, typer.Option(help="Comma-separated parts to fetch.")] = _WHAT,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N patients who have everything.")] = None,
    smallest: Annotated[int | None, typer.Option(min=1, help="Only the N patients with the smallest slides.")] = None,
    one_slide: Annotated[bool, typer.Option(help="Only the slide that curation draws for each patient.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of that draw; use the one of your runs.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="Print counts, bytes and time, and stop.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=8, help="Connections at a time.")] = 4,
    rate: Annotated[float, typer.Option(min=0.001, help="MB per second assumed by the estimate.")] = 10.0,
    strict: Annotated[bool, typer.Option(help="Stop at the first file that cannot be had.")] = False,
    mirror_first: Annotated[bool, typer.Option(help="Ask the S3 mirror before the GDC.")] = False,
    lock_file: Annotated[Path | None, typer.Option(help="Lock (default: data_manifests/lock/CANCER.tsv).")] = None,
    data_dir: Annotated[Path, _DATA] = Path("data"),
    url: Annotated[str | None, _URL] = None,
    mirror: Annotated[str | None, _MIRROR] = None,
    xena: Annotated[str | None, _XENA] = None,
) -> None:
    """Fetch what the lock lists; continues where it stopped, and fetches nothing twice."""
    from hcmae.cohort.lock import read_lock
    from hcmae.gdc import fetch
    from hcmae.manifest import load_manifest

    manifest, root = load_manifest(cancer), data_dir / "gdc" / cancer
    parts = tuple(p.strip() for p in what.split(",") if p.strip())
    path = lock_file or _lock_path(cancer)
    if not path.exists():
        raise fetch.FetchError(f"{path} is missing: run 'hcmae manifest resolve {cancer}' first")
    lock = read_lock(path)
    choice: dict[str, Any] = {
        "what": parts, "limit": limit, "smallest": smallest, "one_slide": one_slide, "seed": seed
    }  # fmt: skip
    made = fetch.plan(manifest, lock, root, **choice)
    table = made.table(rate * 1e6)
    table["bytes"] = [_bytes(b) for b in table["bytes"]]
    table["hours"] = [_time(3600 * h) for h in table["hours"]]
    print(table.rename(columns={"bytes": "size", "hours": "time"}).to_string(index=False))
    extra = [*(["clinical records"] if made.clinical else []), *(f"Xena {name}" for _, name in made.xena)]
    print(f"already there: {made.present} files; also: {', '.join(extra) or 'nothing'}; time at {rate:g} MB/s")
    slides = sum(file.size for file in made.files if made.modality[file.id] == "slides")
    if slides:
        print(f"slides on disk: {_bytes(slides)}; with 'hcmae stream {cancer} --disk 100G' never more than 100 GB")
    fetch.check_space(made, root)
    if dry_run:
        return
    with _client(url=url, mirror=mirror, xena=xena, cache=data_dir / "gdc" / "cache") as client:
        report = fetch.fetch(
            manifest, lock, root, client, workers=workers, strict=strict, mirror_first=mirror_first, **choice
        )  # fmt: skip
    print(f"{root}: {report.fetched} files, {_bytes(report.bytes)} in {_time(report.seconds)}")
    if len(report.failures):
        print(report.failures.to_string(index=False))
        print(f"{len(report.failures)} files could not be had, see {root / 'failures.tsv'}", file=sys.stderr)
        raise typer.Exit(1)


def verify_command(
    cancer: Annotated[str, typer.Argument(help="Cancer, e.g. LIHC.")],
    remove: Annotated[bool, typer.Option(help="Delete wrong files, so that the next fetch brings them.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Files read at a time.")] = 2,
    data_dir: Annotated[Path, _DATA] = Path("data"),
) -> None:
    """Check size and md5 of every fetched file again; exit status 1 where one is wrong."""
    from hcmae.gdc import fetch
    from hcmae.manifest import load_manifest

    result = fetch.verify(data_dir / "gdc" / load_manifest(cancer).cancer, workers=workers, remove=remove)
    print(result.groupby(["modality", "status"], sort=False).size().to_string())
    wrong = result[result["status"].str.startswith("wrong")]
    if len(wrong):
        print(wrong.to_string(index=False), file=sys.stderr)
        print("fetch again" if remove else "run 'verify --remove', then fetch again", file=sys.stderr)
        raise typer.Exit(1)


def _lock_path(cancer: str) -> Path:
    from hcmae.manifest import default_manifest_dir

    return default_manifest_dir() / "lock" / f"{cancer}.tsv"


def _earlier(path: Path) -> pd.DataFrame | None:
    """The lock that is about to be replaced; None where there is none that can be read."""
    from hcmae.cohort.evidence import CurationError
    from hcmae.cohort.lock import read_lock

    try:
        return read_lock(path) if path.exists() else None
    except CurationError:
        return None


def _bytes(count: int) -> str:
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count} bytes"


def _time(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _client(**settings: Any) -> GDCClient:
    from hcmae.gdc.client import GDCClient

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return GDCClient(**settings)
