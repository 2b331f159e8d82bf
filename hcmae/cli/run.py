"""``hcmae run``: the stages of the book without its notebooks, for scripts and clusters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

STAGES = ("synthesise", "curate", "slides", "omics", "pretrain", "embed", "dino", "resnet", "nuclei", "survival")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("run")
    def command(
        stage: Annotated[str, typer.Argument(help=f"One of {', '.join(STAGES)}.")],
        cancer: Annotated[str, typer.Option(help="Cancer, or NULL for the cohort without signal.")] = "LIHC",
        profile: Annotated[str, typer.Option(help="smoke, workstation, paper, or the path of a YAML file.")] = "smoke",
        source: Annotated[str, typer.Option(help="synthetic, gdc or local.")] = "synthetic",
        seed: Annotated[int, typer.Option(help="One seed for everything.")] = 0,
        data_dir: Annotated[Path, typer.Option(help="Raw data.")] = Path("data"),
        run_dir: Annotated[Path, typer.Option(help="What is computed.")] = Path("runs"),
        method: Annotated[
            str, typer.Option(help="Survival method or methods, comma-separated, for stage survival.")
        ] = "hcmae",
        protocol: Annotated[str, typer.Option(help="honest or paper, for stage survival.")] = "honest",
        workers: Annotated[int, typer.Option(help="Parallel workers.")] = 2,
        weights: Annotated[
            Path | None, typer.Option(help="ImageNet ResNet-50 as safetensors, for stage resnet (MCAT and CLAM).")
        ] = None,
        strict: Annotated[
            bool, typer.Option("--strict", help="Stop at the first slide without regions, for stage slides.")
        ] = False,
    ) -> None:
        """Run one stage; stages that are up to date are skipped."""
        from hcmae import pipeline
        from hcmae.config import ConfigError

        run = pipeline.Run(cancer, profile, source, seed, data_dir, run_dir)
        if stage == "synthesise":
            run.synthesise(workers=workers)
        elif stage == "curate":
            print(run.curate().flow.to_string(index=False))
        elif stage == "slides":
            from hcmae.slides.batch import summary
            from hcmae.slides.reader import SlideError

            try:
                outcomes = run.make_slides(workers=workers, strict=strict)
            except SlideError as error:
                print(f"hcmae: {error}", file=sys.stderr)
                raise typer.Exit(1) from None
            print(summary(outcomes).to_string(index=False))
            # A stage that was finished without --strict is not run again.
            if strict and outcomes["status"].isin(["failed", "empty"]).any():
                print(f"hcmae: slides without regions, see {run.dir / 'slides.parquet'}", file=sys.stderr)
                raise typer.Exit(1)
        elif stage == "omics":
            print(run.load_omics())
        elif stage == "pretrain":
            run.pretrain_patch()
            for variant in pipeline.REGION_VARIANTS:
                run.pretrain_region(variant)
        elif stage == "embed":
            run.embed()
        elif stage == "dino":
            run.pretrain_dino()
        elif stage == "resnet":
            if weights is None:
                raise ConfigError(
                    "stage resnet needs --weights FILE, a ResNet-50 as safetensors (timm's resnet50.tv_in1k, say); "
                    "without this stage MCAT and CLAM read the vectors of MAE-Patch"
                )
            run.embed_resnet(weights)
        elif stage == "nuclei":
            run.measure_nuclei(workers=workers)
        elif stage == "survival":
            from hcmae.evaluation.metrics import fold_concordance

            for name in method.split(","):
                scores = fold_concordance(run.evaluate(name, protocol, workers=workers))
                print(f"{cancer} {name}: C-index by fold\n{scores.to_string()}")
        else:
            raise ConfigError(f"unknown stage '{stage}': choose one of {', '.join(STAGES)}")
