"""The road as a table: one row per step, from raw files to predictions.

A row says what a step comes after, which settings and which source it reads, what else goes into its key, what it
writes and how its work is done. The verbs of ``Run``, the command line, ``hcmae status`` and the test of the run graph
all come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.config import ConfigError
from hcmae.files import read_json
from hcmae.pipeline import cutting, feature_work, stages, work
from hcmae.pipeline.place import Place
from hcmae.pipeline.step import FEATURES, PIXELS, Step, fixed
from hcmae.pipeline.work import Options, Vectors


def do(run: Place, name: str, *, say: Callable[[str], None] = print, force: bool = False, **options: Any) -> bool:
    """Do one step of a run unless it is done (``force``: even then); returns True where work was done."""
    step = ROAD[name]
    if step.work is None:
        raise ValueError(f"step {name} is not one piece of work: call the verb of Run that does it")
    stage, act = step.stage(run, options), step.work
    return stage.run(lambda: act(run, stage.key, {**step.options, **options}), say=say, force=force)


def _embed_step(
    name: str,
    title: str,
    after: tuple[str, ...],
    vectors: Vectors,
    settings: tuple[str, ...],
    code: tuple[str, ...],
    **more: Any,
) -> Step:
    return Step(
        name,
        title,
        after,
        fixed("compute.precision", *settings, code=(*work.EMBEDDING, *code)),
        vectors.work,
        lambda run, _: [],
        vectors.inputs,
        pending=vectors.pending,
        options={"progress": True},
        **more,
    )


# --- the table ------------------------------------------------------------------------------------------------------

_COHORT = (
    "annotations", "barcodes", "cells", "clinical", "columns", "copies", "covariates", "curate", "evidence", "features",
    "fields", "follow_up", "layouts", "local", "lock", "notices", "people", "remarks", "slide_names",
    "twins",
)  # fmt: skip
_TABLES = ("hcmae.packed", "hcmae.tables", "hcmae.units")
_COHORT_CODE = (*(f"hcmae.cohort.{name}" for name in _COHORT), *_TABLES)
_OMICS = ("barcodes", "cells", "columns", "copies", "evidence", "features", "layouts", "local", "people")
_OMICS_CODE = (
    *(f"hcmae.omics.{name}" for name in ("gdc_files", "mixtures", "readers", "recognise")),
    *(f"hcmae.cohort.{name}" for name in _OMICS),
    *_TABLES,
)
# Sizes of a region and of the patches it is split into.
_GRID = ("geometry.region", "geometry.patch")
_HIPT_CODE = ("hcmae.pretraining.dino", "hcmae_core.baselines.hipt", "hcmae_core.transformer")
_MAE_PATCH_CODE = ("hcmae_core.mae_patch", *work.CORE_MAE)
_MAE_REGION_CODE = ("hcmae_core.mae_region", "hcmae_core.attention", *work.CORE_MAE)
_SURVIVAL_FIDELITY = (
    "compute.precision",
    *(
        f"fidelity.{name}"
        for name in (
            "slide_positions",
            "omics_projection",
            "pooler",
            "risk_head",
            "cox_divisor",
            "max_regions",
            "drop_last_group",
        )
    ),
)
_WORKERS = {"workers": 2}
_PROGRESS = {"progress": True}

STEPS = (
    Step(
        "synthesise",
        "write the synthetic twin of a cancer",
        (),
        fixed("geometry", "synthetic", code=("hcmae.synthetic.*",)),
        work.write_twin,
        lambda run, _: [run.root / "files.tsv", run.root / "truth.parquet"],
        facts=work.twin_of,
        pending=work.unwritten,
        options=_WORKERS,
    ),
    Step(
        "curate",
        "decide who is in the cohort",
        ("synthesise",),
        fixed(code=_COHORT_CODE),
        work.curate_cohort,
        lambda run, _: [run.dir / name for name in work.COHORT_FILES],
        work.raw_files,
        work.rules_of,
    ),
    Step(
        "slides",
        "cut every slide into regions",
        ("curate",),
        cutting.slide_reads,
        cutting.cut_slides,
        lambda run, _: [run.dir / "slides.parquet"],
        cutting.slide_list,
        pending=cutting.unfinished_slides,
        note=cutting.slide_notes,
        sources=PIXELS,
        options={**_WORKERS, "strict": False, "again": False, "only": None, **_PROGRESS},
    ),
    Step(
        "omics",
        "read the omics tables of the cohort",
        ("curate",),
        fixed(code=_OMICS_CODE),
        work.read_omics_tables,
        lambda run, _: [run.dir / "omics.h5mu"],
        work.omics_files,
        lambda run, _: {"source": run.source, "modalities": list(run.modalities)},
    ),
    Step(
        "features",
        "bring features that others have made into stores",
        ("curate",),
        feature_work.features_reads,
        feature_work.bring_features,
        lambda run, _: [run.dir / "slides.parquet"],
        cutting.slide_list,
        pending=feature_work.not_brought,
        options=_PROGRESS,
        sources=FEATURES,
    ),
    Step(
        "feature_region",
        "pre-train the region token on the pool's features",
        ("features",),
        feature_work.region_reads,
        feature_work.train_feature_region,
        lambda run, _: [run.feature_region_weights],
        work.pool_patches,
        work.seed_of,
        scope="pool",
        options=_PROGRESS,
        sources=FEATURES,
    ),
    _embed_step(
        "feature_region_vectors",
        "write the region token's vectors",
        ("features", "feature_region"),
        feature_work.REGION_VECTORS,
        (),
        feature_work.REGION_CODE,
        sources=FEATURES,
    ),
    Step(
        "feature_hipt",
        "pre-train HIPT's second stage on the pool's features",
        ("features",),
        feature_work.hipt_reads,
        feature_work.train_feature_hipt,
        lambda run, _: [run.dino_weights("region")],
        work.pool_patches,
        work.seed_of,
        scope="pool",
        options=_PROGRESS,
        sources=FEATURES,
    ),
    _embed_step(
        "feature_hipt_vectors",
        "write the vectors of HIPT's second stage on features",
        ("features", "feature_hipt"),
        feature_work.HIPT_VECTORS,
        (),
        _HIPT_CODE,
        sources=FEATURES,
    ),
    Step(
        "mae_patch",
        "pre-train MAE-Patch on the pool",
        ("slides",),
        work.patch_reads,
        work.train_patch,
        lambda run, _: [run.patch_weights],
        work.pool_contents,
        work.seed_of,
        scope="pool",
        options=_PROGRESS,
    ),
    _embed_step(
        "patch_vectors",
        "write MAE-Patch's vectors",
        ("slides", "mae_patch"),
        work.PATCH_VECTORS,
        (*_GRID, *work.EXTRACTION),
        _MAE_PATCH_CODE,
    ),
    Step(
        "mae_region_reg",
        "pre-train MAE-Reg, MAE-Region without patch vectors",
        ("slides",),
        work.region_reads("reg"),
        work.train_region("reg"),
        lambda run, _: [run.region_weights("reg")],
        work.pool_contents,
        work.seed_of,
        scope="pool",
        options=_PROGRESS,
    ),
    _embed_step(
        "region_vectors_reg",
        "write MAE-Reg's vectors",
        ("slides", "mae_region_reg"),
        work.REGION_VECTORS_REG,
        ("geometry.region", "mae_region.reduce", "fidelity.extract_augment"),
        _MAE_REGION_CODE,
    ),
    Step(
        "mae_region_patreg",
        "pre-train MAE-PatReg, MAE-Region with patch vectors",
        ("patch_vectors", "mae_region_reg"),
        work.region_reads("patreg"),
        work.train_region("patreg"),
        lambda run, _: [run.region_weights("patreg")],
        work.patreg_inputs,
        work.seed_of,
        scope="pool",
        options=_PROGRESS,
    ),
    _embed_step(
        "region_vectors",
        "write MAE-PatReg's vectors",
        ("patch_vectors", "mae_region_patreg"),
        work.REGION_VECTORS,
        ("geometry.region", "mae_region.reduce", "fidelity.extract_augment"),
        _MAE_REGION_CODE,
    ),
    Step(
        "dino_patch",
        "pre-train HIPT's first stage on the pool",
        ("slides",),
        work.dino_reads("patch"),
        work.train_dino("patch"),
        lambda run, _: [run.dino_weights("patch")],
        work.pool_contents,
        work.seed_of,
        scope="pool",
        options=_PROGRESS,
    ),
    _embed_step(
        "hipt_patch_vectors",
        "write the vectors of HIPT's first stage",
        ("slides", "dino_patch"),
        work.HIPT_PATCH_VECTORS,
        _GRID,
        _HIPT_CODE,
    ),
    Step(
        "dino_region",
        "pre-train HIPT's second stage on the pool",
        ("hipt_patch_vectors",),
        work.dino_reads("region"),
        work.train_dino("region"),
        lambda run, _: [run.dino_weights("region")],
        work.hipt_patches,
        work.seed_of,
        scope="pool",
        options=_PROGRESS,
    ),
    _embed_step(
        "region_vectors_hipt",
        "write the vectors of HIPT's second stage",
        ("hipt_patch_vectors", "dino_region"),
        work.HIPT_REGION_VECTORS,
        (),
        _HIPT_CODE,
    ),
    _embed_step(
        "resnet_vectors",
        "write the vectors of an ImageNet ResNet-50",
        ("slides",),
        work.RESNET_VECTORS,
        _GRID,
        ("hcmae.pretraining.checkpoint", "hcmae_core.baselines.resnet"),
        on_request=True,
    ),
    Step(
        "encoder_vectors",
        "write the vectors of a registered patch encoder",
        ("slides",),
        fixed("compute.precision", *_GRID, code=(*work.EMBEDDING, *feature_work.ENCODER_CODE)),
        feature_work.embed_with_encoder,
        lambda run, _: [],
        feature_work.encoder_inputs,
        feature_work.encoder_facts,
        pending=feature_work.not_encoded,
        options={**_PROGRESS, "encoder": "", "weights": None, "any_scale": False},
        on_request=True,
    ),
    Step(
        "nuclei",
        "measure nuclei by hand-crafted features",
        ("slides",),
        fixed(
            "handcrafted",
            "geometry.patch",
            code=("hcmae.slides.handcrafted", "hcmae.slides.regions"),
        ),
        work.measure_nuclei,
        lambda run, _: [],
        work.need_stores,
        work.seed_of,
        pending=work.unmeasured,
        options={**_WORKERS, **_PROGRESS},
    ),
    Step(
        "folds",
        "deal the cohort into test folds",
        ("curate",),
        work.fold_reads,
        work.deal_folds,
        lambda run, options: [work.fold_path(run, options["repeats"])],
        work.fold_inputs_of,
        work.repeats_of,
        options={"repeats": None},
        suffix=work.fold_suffix,
    ),
    Step(
        "predictions",
        "predict survival out of fold, method by method",
        (*dict.fromkeys(work.MADE_BY.values()), "folds"),
        # All that some method reads; the key of a method's predictions holds what that one reads.
        fixed(
            "survival",
            "-survival.micro_batch",
            "omics",
            "comparisons",
            "compute.precision",
            *_SURVIVAL_FIDELITY,
            code=(),
        ),
        None,
        work.prediction_files,
        options={"method": "hcmae", "protocol": "honest", "repeats": None},
        suffix=work.prediction_suffix,
        made_key=work.prediction_key,
    ),
)
ROAD: Mapping[str, Step] = {step.name: step for step in STEPS}

# What the command line calls by one name, and what notebooks do: which steps, in which order.
VERBS: Mapping[str, tuple[str, ...]] = {
    "synthesise": ("synthesise",),
    "curate": ("curate",),
    "slides": ("slides",),
    "omics": ("omics",),
    "pretrain": (
        "mae_patch",
        "patch_vectors",
        "mae_region_reg",
        "region_vectors_reg",
        "mae_region_patreg",
        "region_vectors",
    ),
    "mae_patch": ("mae_patch", "patch_vectors"),
    "mae_reg": ("mae_region_reg", "region_vectors_reg"),
    "mae_patreg": ("mae_region_patreg", "region_vectors"),
    "embed": ("patch_vectors", "region_vectors_reg", "region_vectors", "hipt_patch_vectors", "region_vectors_hipt"),
    "dino": ("dino_patch", "hipt_patch_vectors", "dino_region", "region_vectors_hipt"),
    "features": ("features",),
    "feature_region": ("feature_region", "feature_region_vectors"),
    "feature_hipt": ("feature_hipt", "feature_hipt_vectors"),
    "resnet": ("resnet_vectors",),
    "encoder": ("encoder_vectors",),
    "nuclei": ("nuclei",),
    "survival": ("folds", "predictions"),
}
NOTEBOOKS: Mapping[str, tuple[str, ...]] = {
    "02_cohort": VERBS["curate"],
    "03_slides": VERBS["slides"],
    "04_omics": VERBS["omics"],
    "05_mae_patch": ("mae_patch", "patch_vectors"),
    "06_mae_region": ("mae_region_reg", "region_vectors_reg", "mae_region_patreg", "region_vectors"),
    "07_survival": VERBS["survival"],
    "08_ablation": VERBS["survival"],
    "09_comparison": VERBS["survival"],
    "11_leaks": VERBS["survival"],
}


def steps_for(run: Place) -> list[Step]:
    """The steps of a run in order: those of its source and its kinds of data, none that waits to be asked for."""
    skipped = {"synthesise"} if run.source != "synthetic" else set()
    skipped |= {step.name for step in STEPS if run.source not in step.sources}
    # Whatever comes after a slide is for slides.
    skipped |= {
        step.name for step in STEPS if not run.has_pixels and step.name != "predictions" and _needs(step, "slides")
    }
    if not run.modalities:
        skipped.add("omics")
    if run.weights_from is not None:
        # Networks that others have trained.
        skipped |= {step.name for step in STEPS if step.scope == "pool"}
    if not run.slides:
        # Whatever comes after a slide, but for predictions, which also need none.
        skipped |= {"slides", "features"}
        rest = [step for step in STEPS if step.name != "predictions"]
        skipped |= {step.name for step in rest if _needs(step, "slides") or _needs(step, "features")}
    return [step for step in STEPS if step.name not in skipped and not step.on_request]


def _needs(step: Step, name: str) -> bool:
    return name in step.after or any(_needs(ROAD[other], name) for other in step.after)


def check_source(run: Place) -> None:
    """Raise ConfigError where there are no raw data, with the command that brings them."""
    if not run.root.is_dir():
        images = "slides/" if run.has_pixels else "features/"
        parts = [*([images] if run.slides else []), *(f"{name}.tsv" for name in run.modalities)]
        hint = {
            "synthetic": "call synthesise() first",
            "gdc": f"run 'hcmae fetch {run.cancer}' first",
            "local": f"put {', '.join(parts)} and clinical.tsv there",
            "features": f"put {', '.join(parts)} and clinical.tsv there",
        }
        raise ConfigError(f"no raw data at {run.root}: {hint[run.source]}")


def record_predictions(run: Place, method: str, protocol: str, repeats: int | None, seconds: float) -> None:
    """Note what the predictions of a method were made from, so that ``status`` can tell whether they still hold."""
    options = {"method": method, "protocol": protocol, "repeats": repeats}
    ROAD["predictions"].stage(run, options).write(seconds)


def kept_predictions(run: Place, method: str, protocol: str, repeats: int | None = None) -> Sequence[Path]:
    """Files of predictions that are done under today's key; none where they are missing or stale.

    repeats: those that were asked for (None: the profile's).
    """
    options = {"method": method, "protocol": protocol, "repeats": repeats}
    state, _ = _state(run, ROAD["predictions"], options)
    return ROAD["predictions"].outputs(run, options) if state == "done" else ()


def stale_steps(run: Place) -> list[tuple[str, str]]:
    """Steps before survival that were done once and no longer hold, with the reason."""
    found = []
    for step in steps_for(run):
        if step.name == "predictions":
            continue
        kept = {name: value for name, value in _kept_settings(run, step).items() if name in step.options}
        state, why = _state(run, step, kept)
        if state == "stale":
            found.append((step.name, why))
    return found


def status(run: Place) -> pd.DataFrame:
    """Every step of a run: [step, state, why, title].

    A step whose forerunner is not done waits for it: whether it will have to be done again is known only then, since
    it depends on what its inputs will hold. Computes nothing; predictions are one row.
    """
    rows, undone = [], set[str]()
    for step in steps_for(run):
        if step.name == "predictions":
            state, why = _predictions_state(run, step, undone)
        else:
            # Options that a step was called with and that are part of its key are taken from its record.
            kept = {name: value for name, value in _kept_settings(run, step).items() if name in step.options}
            state, why = _state(run, step, kept)
            waits = [name for name in step.after if name in undone]
            if waits and state == "done":
                state, why = "waits", f"for {', '.join(waits)}"
        if state == "done":
            why = why or step.note(run)
        else:
            undone.add(step.name)
        rows.append((step.name, state, why, step.title))
    return pd.DataFrame(rows, columns=["step", "state", "why", "title"])


def _state(run: Place, step: Step, options: Options) -> tuple[str, str]:
    chosen = {**step.options, **options}
    # What its record says alone comes first: the inputs of a step need not be looked at for that.
    kept = step.folder(run) / "stages" / f"{step.name}{step.suffix(run, chosen)}.json"
    found = stages.recorded(kept)
    if found is not None:
        return found.kind, found.reason()
    try:
        found = step.stage(run, options).state()
    except (OSError, ValueError) as error:
        # Its inputs are not there yet, or cannot be used.
        return "missing", str(error)
    return found.kind, found.reason()


def _predictions_state(run: Place, step: Step, undone: set[str]) -> tuple[str, str]:
    found = work.kept_predictions(run)
    if not found:
        return "missing", "never run here"
    from hcmae.survival.methods import METHODS

    kept = [options for options in found if options["method"] in METHODS]
    reasons, waits = [], set[str]()
    for options in kept:
        state, why = _state(run, step, options)
        if state != "done":
            reasons.append(f"{options['method']} ({options['protocol']}): {why}")
        waits |= undone & {work.made_by(run)[kind] for kind in METHODS[options["method"]].kinds}
    if reasons:
        more = f"; and {len(reasons) - 3} more methods" if len(reasons) > 3 else ""
        return "stale", "; ".join(reasons[:3]) + more
    if waits or "folds" in undone:
        return "waits", f"for {', '.join(sorted(waits | (undone & {'folds'})))}"
    return "done", f"{len(kept)} methods and protocols"


def _kept_settings(run: Place, step: Step) -> Mapping[str, Any]:
    path = step.folder(run) / "stages" / f"{step.name}{step.suffix(run, step.options)}.json"
    return read_json(path).get("settings", {}) if path.exists() else {}
