"""``hcmae slide``: one slide alone, without a cohort: mask, regions, vectors, a picture of both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hcmae.config import Profile, load_profile


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("slide")(slide_command)


def slide_command(
    slide: Annotated[Path, typer.Argument(help="The slide: a TIFF, SVS, MRXS, NDPI, DICOM ...")],
    out: Annotated[Path, typer.Option(help="Folder for what comes out.")],
    profile: Annotated[
        str, typer.Option(help="smoke, workstation, paper, or the path of a YAML file.")
    ] = "workstation",
    weights_from: Annotated[
        Path | None, typer.Option(help="Folder pretrain of a run: write the vectors of its networks as well.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a slide that does not say its resolution.")] = False,
) -> None:
    """Cut one slide: NAME.h5 (regions, thumbnails, vectors), tissue and regions as GeoJSON, NAME.regions.png.

    Exit status 1 where the slide has no region or cannot be read; the reason is said.
    """
    from hcmae.processes import usable_cores
    from hcmae.slides.process import REASONS, process_slide

    settings = load_profile(profile)
    store = out / f"{slide.stem}.h5"
    out.mkdir(parents=True, exist_ok=True)
    found = process_slide(slide, store, settings.geometry, settings.slides, workers=usable_cores(), strict=strict)
    if found.status not in ("ok", "skipped"):
        print(f"{slide}: {found.reason} ({found.detail or REASONS.get(found.reason, '')})")
        raise typer.Exit(1)
    print(f"{store}: {found.regions} regions" + (f", {found.bad_regions} left out" if found.bad_regions else ""))
    if weights_from is not None:
        for name in write_vectors_of(store, weights_from, settings):
            print(f"{store}: {name}")
    picture = out / f"{slide.stem}.regions.png"
    draw(slide, store, settings, picture)
    print(picture)


def write_vectors_of(store: Path, weights: Path, profile: Profile) -> list[str]:
    """Write the vectors of the networks in a folder into a store; the datasets that were written.

    Raises ConfigError for a folder without MAE-Patch, CheckpointError for unusable weights.
    """
    from hcmae.config import ConfigError
    from hcmae.pretraining.embed import embed_patches, embed_regions

    patch = weights / "mae_patch.safetensors"
    if not patch.exists():
        raise ConfigError(f"{patch} is missing: name the folder pretrain of a run that has trained MAE-Patch")
    embed_patches([store], patch, profile, progress=False)
    written = ["patch_vectors"]
    for variant in ("reg", "patreg"):
        if (region := weights / f"mae_region_{variant}.safetensors").exists():
            embed_regions([store], region, profile, variant, progress=False)  # type: ignore[arg-type]
            written.append("region_vectors" if variant == "patreg" else "region_vectors_reg")
    return written


def draw(slide: Path, store: Path, profile: Profile, path: Path) -> None:
    """Slide, tissue and the grid with its kept squares."""
    from hcmae.plots import style
    from hcmae.plots.slides import plot_tissue
    from hcmae.slides.process import mask_path, tissue_of
    from hcmae.slides.reader import open_slide
    from hcmae.slides.regions import plan_regions

    with open_slide(slide, mpp_table=profile.slides.mpp_table) as opened:
        tissue = tissue_of(opened, profile.geometry, profile.slides, mask_path(store))
        plan = plan_regions(opened.size, tissue, profile.geometry, profile.slides, opened.mpp)
        overview = opened.thumbnail(1000)
        scale = overview.shape[1] / opened.size[0]
        style.save(plot_tissue(overview, tissue.mask, plan.corners, plan.kept, plan.side, scale), path)
