"""``hcmae run`` and ``hcmae status``: the steps of the book without its notebooks, and what is done of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hcmae.cli.errors import describe
from hcmae.cli.progress import silence
from hcmae.config import MODALITIES, ConfigError
from hcmae.pipeline.road import VERBS
from hcmae.pretraining.launched import world

if TYPE_CHECKING:
    from hcmae.pipeline import Run

_CANCER = typer.Option(help="Cancer, or NULL for the cohort without signal.")
_PROFILE = typer.Option(help="smoke, workstation, paper, or the path of a YAML file.")
_SOURCE = typer.Option(help="synthetic, gdc, local or features.")
_SEED = typer.Option(help="One seed for everything.")
_DATA = typer.Option(help="Raw data.")
_RUNS = typer.Option(help="What is computed.")
_MODALITIES = typer.Option(help="Omics that a patient must have: rna, mirna, methylation, comma-separated, or none.")
_SLIDES = typer.Option("--slides/--no-slides", help="Whether a patient must have a slide.")
_FROM = typer.Option(help="Folder pretrain of another run: its networks are used, none is trained.")
_MANIFESTS = typer.Option(help="Folder of manifests, for a cancer of your own.")


@dataclass(frozen=True)
class Asked:
    """What a caller wants of a stage beside its run."""

    method: str
    protocol: str
    workers: int
    weights: Path | None
    encoder: str
    strict: bool
    shards: int | None
    force: bool
    slide_list: Path | None


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("run")(run_command)
    app.command("status")(status_command)


def run_command(
    context: typer.Context,
    stages: Annotated[list[str], typer.Argument(help=f"One or several of {', '.join(VERBS)}, in that order.")],
    cancer: Annotated[str, _CANCER] = "LIHC",
    profile: Annotated[str, _PROFILE] = "smoke",
    source: Annotated[str, _SOURCE] = "synthetic",
    seed: Annotated[int, _SEED] = 0,
    data_dir: Annotated[Path, _DATA] = Path("data"),
    run_dir: Annotated[Path, _RUNS] = Path("runs"),
    modalities: Annotated[str, _MODALITIES] = ",".join(MODALITIES),
    slides: Annotated[bool, _SLIDES] = True,
    manifest_dir: Annotated[Path | None, _MANIFESTS] = None,
    weights_from: Annotated[Path | None, _FROM] = None,
    method: Annotated[
        str, typer.Option(help="Survival methods, comma-separated (or table2, table3), for stage survival.")
    ] = "hcmae",
    protocol: Annotated[str, typer.Option(help="honest or paper, for stage survival.")] = "honest",
    workers: Annotated[int, typer.Option(help="Parallel workers.", min=1)] = 2,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights on disk: an ImageNet ResNet-50 for stage resnet, those of --encoder for stage encoder."
        ),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Patch encoder, for stage encoder: uni2_h ..., or timm:MODEL?argument=value@weights.")
    ] = "",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Stop at the first slide without regions or with an assumed resolution, for stage slides."
        ),
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            help="Parts that regions are read in, for stages that train on several GPUs (default: one per process). "
            "The same number gives the same weights on every number of processes that divides it.",
            min=1,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Do the stages although they are done (curate, omics; of slides those that failed or have no region).",
        ),
    ] = False,
    slide_list: Annotated[
        Path | None,
        typer.Option(help="Text file with one slide a line (id or file name): only these, for stage slides."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")] = False,
) -> None:
    """Run one stage, or several one after the other; steps that are up to date are skipped."""
    from hcmae.pipeline import Run

    context.with_resource(silence(quiet))
    here = world()
    for stage in stages:
        if stage not in _WORK:
            raise ConfigError(f"unknown stage '{stage}': choose one of {', '.join(VERBS)}")
        if here.size > 1 and stage not in _SHARED:
            raise ConfigError(
                f"stage '{stage}' works in one process, and {here.launcher} has started {here.size}: start it without "
                f"{here.launcher}; {', '.join(_SHARED)} share their work"
            )
        if force and stage not in _FORCED:
            raise ConfigError(
                f"--force does {', '.join(_FORCED)} again, not {stage}: what {stage} writes is made again when what it "
                "reads has changed, or when its files are deleted"
            )
    if here.rank:
        # What happens is said once.
        context.with_resource(redirect_stdout(context.with_resource(open(os.devnull, "w", encoding="utf-8"))))  # noqa: SIM115
    chosen: dict[str, Any] = {
        "modalities": modalities,
        "slides": slides,
        "manifest_dir": manifest_dir,
        "weights_from": weights_from,
    }
    run = Run(cancer, profile, source, seed, data_dir, run_dir, **chosen)
    for stage in stages:
        _WORK[stage](run, Asked(method, protocol, workers, weights, encoder, strict, shards, force, slide_list))


def status_command(
    cancer: Annotated[str, _CANCER] = "LIHC",
    profile: Annotated[str, _PROFILE] = "smoke",
    source: Annotated[str, _SOURCE] = "synthetic",
    seed: Annotated[int, _SEED] = 0,
    data_dir: Annotated[Path, _DATA] = Path("data"),
    run_dir: Annotated[Path, _RUNS] = Path("runs"),
    modalities: Annotated[str, _MODALITIES] = ",".join(MODALITIES),
    slides: Annotated[bool, _SLIDES] = True,
    manifest_dir: Annotated[Path | None, _MANIFESTS] = None,
    weights_from: Annotated[Path | None, _FROM] = None,
) -> None:
    """List every step: done, stale (and why), waiting for another, or missing. Computes nothing; exit status 0."""
    from hcmae.pipeline import Run

    chosen: dict[str, Any] = {
        "modalities": modalities,
        "slides": slides,
        "manifest_dir": manifest_dir,
        "weights_from": weights_from,
    }
    table = Run(cancer, profile, source, seed, data_dir, run_dir, **chosen).status()
    width = int(table["step"].str.len().max())
    for row in table.to_dict("records"):
        print(f"{row['step']:<{width}}  {row['state']:<7}  {row['why'] or row['title']}")


def _slides(run: Run, asked: Asked) -> None:
    from hcmae.slides.batch import summary
    from hcmae.slides.errors import SlideError

    if not run.has_pixels:
        return _features(run, asked)
    try:
        only = None
        if asked.slide_list is not None:
            lines = asked.slide_list.read_text(encoding="utf-8").splitlines()
            only = [line.strip() for line in lines if line.strip()]
        outcomes = run.make_slides(workers=asked.workers, strict=asked.strict, force=asked.force, only=only)
    except SlideError as error:
        # The stage did what --strict asks for: it found a slide without regions.
        print(f"hcmae: {describe(error)}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(summary(outcomes).to_string(index=False))
    return None


def _features(run: Run, asked: Asked) -> None:
    outcomes = run.bring_features()
    counts = outcomes.groupby(["status", "reason"], dropna=False).agg(
        slides=("slide", "size"), regions=("regions", "sum")
    )
    print(counts.reset_index().to_string(index=False))
    for row in outcomes[outcomes["status"] != "ok"].to_dict("records"):
        print(f"{row['slide']}: {row['detail']}")


def _pretrain(run: Run, asked: Asked) -> None:
    from hcmae.pipeline import REGION_VARIANTS

    run.pretrain_patch(shards=asked.shards)
    for variant in REGION_VARIANTS:
        run.pretrain_region(variant, shards=asked.shards)


def _resnet(run: Run, asked: Asked) -> None:
    if asked.weights is None:
        raise ConfigError(
            "stage resnet needs --weights FILE, a ResNet-50 as safetensors (timm's resnet50.tv_in1k, say); "
            "without this stage MCAT and CLAM read the vectors of MAE-Patch"
        )
    run.embed_resnet(asked.weights)


def _encoder(run: Run, asked: Asked) -> None:
    from hcmae.encoders.registry import ENCODERS

    if not asked.encoder:
        raise ConfigError(f"stage encoder needs --encoder: one of {', '.join(ENCODERS)}, or timm:MODEL@weights")
    run.embed_encoder(asked.encoder, asked.weights)


def _survival(run: Run, asked: Asked) -> None:
    from hcmae.evaluation.metrics import fold_concordance

    for name in methods_asked(run, asked.method):
        scores = fold_concordance(run.evaluate(name, asked.protocol, workers=asked.workers))
        print(f"{run.cancer} {name}: C-index by fold\n{scores.to_string()}")


def methods_asked(run: Run, asked: str) -> list[str]:
    """Names of methods; ``table2`` and ``table3`` stand for the rows of a table whose inputs are there."""
    from hcmae.evaluation.tables import TABLE2_ROWS, TABLE3_ROWS
    from hcmae.pipeline.lessons import possible
    from hcmae.survival.methods import METHODS

    rows = {"table2": TABLE2_ROWS, "table3": TABLE3_ROWS}
    names: list[str] = []
    for name in (part.strip() for part in asked.split(",")):
        if not name:
            continue
        if name not in rows:
            names.append(name)
            continue
        wanted = [key for _, key, *_ in rows[name] if key in METHODS]
        fed = possible(wanted, run.survival_data)
        missing = [key for key in wanted if key not in fed]
        if missing:
            print(f"{run.cancer}: not run, their inputs are not there: {', '.join(missing)}")
        names += fed
    return list(dict.fromkeys(names))


# Stages that several processes of a launcher do together.
_SHARED = ("pretrain", "mae_patch", "mae_reg", "mae_patreg", "embed")
# Stages that --force does again: they are cheap, or done slide by slide.
_FORCED = ("curate", "slides", "omics")
# One function per verb of the road; a test compares the two lists.
_WORK: dict[str, Callable[[Run, Asked], object]] = {
    "synthesise": lambda run, asked: run.synthesise(workers=asked.workers),
    "curate": lambda run, asked: print(run.curate(force=asked.force).flow.to_string(index=False)),
    "slides": _slides,
    "omics": lambda run, asked: print(run.load_omics(force=asked.force)),
    "pretrain": _pretrain,
    "mae_patch": lambda run, asked: run.pretrain_patch(shards=asked.shards),
    "mae_reg": lambda run, asked: run.pretrain_region("reg", shards=asked.shards),
    "mae_patreg": lambda run, asked: run.pretrain_region("patreg", shards=asked.shards),
    "embed": lambda run, asked: run.embed(),
    "dino": lambda run, asked: run.pretrain_dino(),
    "features": _features,
    "feature_region": lambda run, asked: run.pretrain_feature_region(),
    "feature_hipt": lambda run, asked: run.pretrain_dino(),
    "resnet": _resnet,
    "encoder": _encoder,
    "nuclei": lambda run, asked: run.measure_nuclei(workers=asked.workers),
    "survival": _survival,
}
