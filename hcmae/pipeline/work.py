"""How the work of each step is done, and what it reads: the functions behind the rows of ``road``.

Imports of the work itself are inside its functions, so that looking at the road costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from hcmae.cohort.local import normal_files
from hcmae.config import Profile, Protocol
from hcmae.content import content_id
from hcmae.files import atomic_path, read_json
from hcmae.keys import Key, Reads, derived
from hcmae.omics.kept import normal_tables
from hcmae.pipeline.place import Place

Options = Mapping[str, Any]


# --- raw data, cohort, omics ----------------------------------------------------------------------------------------


def write_twin(run: Place, key: Key, options: Options) -> None:
    from hcmae.synthetic import generate_cohort

    generate_cohort(
        run.manifest, run.profile, run.root, run.seed, null=run.is_null, workers=options["workers"], key=key.digest
    )


def unwritten(run: Place, key: Key, options: Options) -> Sequence[str]:
    from hcmae.synthetic.generate import missing_files

    return [f"{name} is missing" for name in missing_files(run.root)]


def twin_of(run: Place, options: Options) -> Mapping[str, Any]:
    return {
        "manifest.synthetic": run.manifest.synthetic.model_dump(mode="json"),
        "manifest.regions_per_slide": run.manifest.regions_per_slide,
        "manifest.inclusion.min_days": run.manifest.inclusion.min_days,
        "cancer": run.cancer,
        "seed": run.seed,
    }


COHORT_FILES = ("cohort.parquet", "exclusions.parquet", "flow.parquet", "exclusions.csv", "choices.csv")


def curate_cohort(run: Place, key: Key, options: Options) -> None:
    from hcmae.cohort.curate import curate
    from hcmae.cohort.paths import relative_paths

    cohort = curate(run.manifest, run.source, run.root, seed=run.seed, modalities=run.modalities, slides=run.slides)
    write_parquet(run.dir / "cohort.parquet", relative_paths(cohort.table, run.root))
    write_parquet(run.dir / "exclusions.parquet", cohort.exclusions)
    write_parquet(run.dir / "flow.parquet", cohort.flow)
    for name, frame in (("exclusions", cohort.exclusions), ("choices", relative_paths(cohort.choices, run.root))):
        with atomic_path(run.dir / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)


def raw_files(run: Place, options: Options) -> Mapping[str, str]:
    from hcmae.cohort.inputs import curate_inputs

    return curate_inputs(run.source, run.root, run.modalities, run.slides, run.manifest, run.contents)


def rules_of(run: Place, options: Options) -> Mapping[str, Any]:
    return {
        "manifest.inclusion": run.manifest.inclusion.model_dump(mode="json"),
        "source": run.source,
        "modalities": list(run.modalities),
        "slides": run.slides,
        "seed": run.seed,
    }


def read_omics_tables(run: Place, key: Key, options: Options) -> None:
    from hcmae.omics.readers import read_omics

    data = read_omics(run.cohort(), run.tables, run.root)
    with atomic_path(run.dir / "omics.h5mu") as temporary:
        data.write(temporary)


def omics_files(run: Place, options: Options) -> Mapping[str, str]:
    from hcmae.omics.readers import omics_inputs

    return omics_inputs(run.cohort(), run.tables, run.root, run.contents)


# --- networks on images ---------------------------------------------------------------------------------------------

CORE_MAE = ("hcmae_core.mae", "hcmae_core.transformer", "hcmae_core.pixels")
_TRAINING = (
    "hcmae.pretraining.pretrain",
    "hcmae.pretraining.networks",
    "hcmae.pretraining.loop",
    "hcmae.pretraining.feeder",
    "hcmae.pretraining.devices",
    "hcmae.optimiser",
    "hcmae.pretraining.augment",
    "hcmae.slides.stream",
    "hcmae.slides.decoding",
    "hcmae.slides.regions",
)
EMBEDDING = (
    "hcmae.pretraining.embed",
    "hcmae.pretraining.networks",
    "hcmae.pretraining.devices",
    "hcmae.pretraining.augment",
    "hcmae.slides.regions",
)


def pool_contents(run: Place, options: Options) -> dict[str, str]:
    """Content of every store that the pool's networks are trained on."""
    return {f"{other.cancer}/{path.stem}": store.content for other in run.pool() for path, store in _stores(other)}


def pool_patches(run: Place, options: Options) -> dict[str, str]:
    """The same with the patch vectors, for networks that read them. Raises FileNotFoundError where one lacks them."""
    return {
        f"{other.cancer}/{path.stem}": content_id([store.content, _vectors_of(store, "patch_vectors")])
        for other in run.pool()
        for path, store in _stores(other)
    }


def need_stores(run: Place, options: Options) -> Mapping[str, str]:
    """No input of a key: raises FileNotFoundError where no slide has been cut; nothing must not count as done."""
    if not run.stores():
        raise FileNotFoundError(f"no slide of {run.cancer} has been cut: run make_slides() (notebook 03) first")
    return {}


def _stores(run: Place) -> Iterator[tuple[Path, Any]]:
    from hcmae.slides.store import opened_stores

    return opened_stores(run.store_dir, run.stores())


def _vectors_of(store: Any, name: str) -> str:
    if name not in store.vector_content:
        raise FileNotFoundError(f"{store.path} has no {name} yet: run the step that writes them first")
    return store.vector_content[name]


def seed_of(run: Place, options: Options) -> Mapping[str, Any]:
    return {"seed": run.seed}


def train_patch(run: Place, key: Key, options: Options) -> None:
    from hcmae.pretraining.pretrain import pretrain_patch

    weights = pretrain_patch(
        run.pool_stores(),
        run.profile,
        run.pretrain_dir / "patch",
        run.seed,
        progress=options["progress"],
        shards=options.get("shards"),
        key=key.digest,
    )
    _copy(weights, run.patch_weights)


def _decay(stage: Literal["mae_patch", "mae_region"], profile: Profile) -> tuple[str, ...]:
    """What weight decay means is read where the optimiser is called Adam; AdamW says it itself."""
    return ("fidelity.adam_decay",) if getattr(profile, stage).optimisation.optimizer == "adam" else ()


def patch_reads(profile: Profile) -> Reads:
    sizes = ("geometry.patch", "geometry.cell")
    settings = (*sizes, "network", "mae_patch", "fidelity.augment", "compute.precision", *_decay("mae_patch", profile))
    return Reads(settings, (*_TRAINING, "hcmae_core.mae_patch", *CORE_MAE))


def starts_warm(profile: Profile, variant: str) -> bool:
    """Whether MAE-Region of this variant goes on from MAE-Reg's weights."""
    return variant == "patreg" and profile.fidelity.region_warm_start


def region_reads(variant: str) -> Callable[[Profile], Reads]:
    def reads(profile: Profile) -> Reads:
        settings = [
            "geometry.region",
            "geometry.patch",
            "network",
            "mae_region",
            "fidelity.augment",
            "compute.precision",
            *_decay("mae_region", profile),
        ]
        if not starts_warm(profile, variant):
            settings.append("-mae_region.warm_epochs")
        if variant == "patreg":
            settings += ["fidelity.region_attention", "fidelity.region_residual", "fidelity.region_warm_start"]
        code = (*_TRAINING, "hcmae_core.mae_region", "hcmae_core.attention", *CORE_MAE)
        return Reads(tuple(settings), code)

    return reads


def train_region(variant: Literal["reg", "patreg"]) -> Callable[[Place, Key, Options], None]:
    def work(run: Place, key: Key, options: Options) -> None:
        from hcmae.pretraining.pretrain import pretrain_region

        weights = pretrain_region(
            run.pool_stores(),
            run.profile,
            run.pretrain_dir / f"region_{variant}",
            run.seed,
            variant=variant,
            start=run.region_weights("reg") if starts_warm(run.profile, variant) else None,
            progress=options["progress"],
            shards=options.get("shards"),
            key=key.digest,
        )
        _copy(weights, run.region_weights(variant))

    return work


def patreg_inputs(run: Place, options: Options) -> Mapping[str, str]:
    reads_patches = run.profile.fidelity.region_attention in ("q_enc_kv_patch", "prose")
    found = pool_patches(run, options) if reads_patches else pool_contents(run, options)
    if starts_warm(run.profile, "patreg"):
        found["MAE-Reg"] = run.contents.weights(run.region_weights("reg"))
    return found


def train_dino(stage: Literal["patch", "region"]) -> Callable[[Place, Key, Options], None]:
    def work(run: Place, key: Key, options: Options) -> None:
        from hcmae.pretraining.dino import pretrain_dino

        pretrain_dino(
            stage,
            run.pool_stores(),
            run.profile,
            run.pretrain_dir / "dino",
            run.seed,
            progress=options["progress"],
            key=key.digest,
        )

    return work


def dino_reads(stage: Literal["patch", "region"]) -> Callable[[Profile], Reads]:
    """Settings and source of one of HIPT's stages; the second one sees vectors and no pixels."""

    def reads(profile: Profile) -> Reads:
        own = getattr(profile.dino, stage)
        settings = [f"dino.{stage}", "compute.precision"]
        if stage == "patch":
            settings += ["geometry.region", "geometry.patch", "geometry.cell"]
        else:
            settings += ["-dino.region.interpolation", "-dino.region.jitter", "dino.patch.network.dim"]
        # What the stage leaves open is the budget of the masked autoencoder of its level.
        twin = f"mae_{stage}.optimisation"
        settings += [f"{twin}.{name}" for name in ("epochs", "samples_per_epoch") if getattr(own, name) is None]
        return Reads(tuple(settings), DINO_CODE)

    return reads


DINO_CODE = (
    "hcmae.optimiser",
    "hcmae.pretraining.crops",
    "hcmae.pretraining.devices",
    "hcmae.pretraining.dino",
    "hcmae.pretraining.feeder",
    "hcmae.pretraining.loop",
    "hcmae.slides.decoding",
    "hcmae.slides.stream",
    "hcmae.slides.regions",
    "hcmae_core.dino",
    "hcmae_core.baselines.hipt",
    "hcmae_core.transformer",
)


def hipt_patches(run: Place, options: Options) -> Mapping[str, str]:
    return {
        f"{other.cancer}/{path.stem}": content_id([store.content, _vectors_of(store, "hipt_patch_vectors")])
        for other in run.pool()
        for path, store in _stores(other)
    }


# --- vectors of one cancer ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vectors:
    """Vectors that one network writes into the stores of a cancer: dataset, weights, and the function that does it.

    ``reads``: other vectors of the store that they are made from; ``options``: further arguments of the function.
    """

    dataset: str
    weights: Callable[[Place, Options], Path]
    embed: str  # module.function below hcmae.pretraining
    reads: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, run: Place, options: Options) -> Mapping[str, str]:
        """The weights; the stores are units."""
        need_stores(run, options)
        weights = self.weights(run, options)
        if not weights.exists():
            raise FileNotFoundError(f"{weights} is missing: run the step that trains it for profile {run.profile.name}")
        return {"weights": run.contents.weights(weights)}

    def pending(self, run: Place, key: Key, options: Options) -> list[str]:
        """Stores without these vectors."""
        return [f"store {path.stem} is not done" for path, store in _stores(run) if not self.done(store, key)]

    def done(self, store: Any, key: Key) -> bool:
        """Whether a store holds the vectors of this key (and, for a second level, of its present first level)."""
        return store.has_vectors(self.dataset, derived(key.digest, self.reads, store.vector_content))

    def work(self, run: Place, key: Key, options: Options) -> None:
        """Write the vectors into every store that lacks them."""
        module, _, function = self.embed.partition(".")
        embed = getattr(importlib.import_module(f"hcmae.pretraining.{module}"), function)
        chosen: dict[str, Any] = {"key": key.digest, "progress": options["progress"], **self.options}
        if function == "embed_regions":
            chosen["name"] = self.dataset
        embed(stores_asked(run, options), self.weights(run, options), run.profile, **chosen)


PATCH_VECTORS = Vectors("patch_vectors", lambda run, _: run.patch_weights, "embed.embed_patches")
REGION_VECTORS_REG = Vectors("region_vectors_reg", lambda run, _: run.region_weights("reg"), "embed.embed_regions")
REGION_VECTORS = Vectors(
    "region_vectors", lambda run, _: run.region_weights("patreg"), "embed.embed_regions", "patch_vectors"
)
HIPT_PATCH_VECTORS = Vectors("hipt_patch_vectors", lambda run, _: run.dino_weights("patch"), "dino.embed_hipt_patches")
HIPT_REGION_VECTORS = Vectors(
    "region_vectors_hipt", lambda run, _: run.dino_weights("region"), "dino.embed_hipt_regions", "hipt_patch_vectors"
)
RESNET_VECTORS = Vectors("resnet_vectors", lambda run, options: Path(options["weights"]), "embed.embed_resnet")

EXTRACTION = ("fidelity.extract_depth", "fidelity.extract_norm", "fidelity.extract_augment")


def measure_nuclei(run: Place, key: Key, options: Options) -> None:
    from hcmae.slides.handcrafted import measure_slides

    stores, how = stores_asked(run, options), {name: options[name] for name in ("workers", "progress")}
    measure_slides(stores, run.profile, seed=run.seed, key=key.digest, **how)


def unmeasured(run: Place, key: Key, options: Options) -> Sequence[str]:
    waiting = [path for path, store in _stores(run) if not store.has_vectors("handcrafted", key.digest)]
    return [f"store {path.stem} is not done" for path in waiting]


# Steps that write into stores, each by what it writes.
WRITTEN: Mapping[str, Vectors] = {
    "patch_vectors": PATCH_VECTORS,
    "region_vectors_reg": REGION_VECTORS_REG,
    "region_vectors": REGION_VECTORS,
    "hipt_patch_vectors": HIPT_PATCH_VECTORS,
    "region_vectors_hipt": HIPT_REGION_VECTORS,
}


def stores_asked(run: Place, options: Options) -> list[Path]:
    """The stores that a step is to write into: those of the option ``stores``, else all of the run."""
    return list(options.get("stores") or run.stores())


def has_written(name: str, store: Any, key: Key) -> bool:
    """Whether a store holds what the step ``name`` (of ``WRITTEN``, or nuclei) writes under this key."""
    return store.has_vectors("handcrafted", key.digest) if name == "nuclei" else WRITTEN[name].done(store, key)


# --- folds ----------------------------------------------------------------------------------------------------------


def fold_path(run: Place, repeats: int | None) -> Path:
    """Where the folds of so many repeats (None: the profile's) are kept."""
    settings = run.profile.survival
    kind = "" if settings.fold_kind == "stratified" else f"_{settings.fold_kind}"
    return run.dir / f"folds_{settings.folds}x{repeats or settings.repeats}{kind}.parquet"


def fold_suffix(run: Place, options: Options) -> str:
    """Folds of different numbers of repeats lie side by side."""
    return fold_path(run, options["repeats"]).stem.removeprefix("folds")


def deal_folds(run: Place, key: Key, options: Options) -> None:
    from hcmae.cohort.sites import make_site_folds, sites_of
    from hcmae.cohort.splits import make_folds

    table, settings = run.cohort().table, run.profile.survival
    outcome = list(table.index), table["time"].to_numpy(), table["event"].to_numpy()
    size = settings.folds, options["repeats"] or settings.repeats, run.seed
    if settings.fold_kind == "site_preserved":
        frame = make_site_folds(*outcome, list(sites_of(list(table.index), run.tables, run.root)), *size)
    else:
        frame = make_folds(*outcome, *size)
    write_parquet(fold_path(run, options["repeats"]), frame)


def outcomes_of(run: Place, options: Options) -> Mapping[str, str]:
    table = run.cohort().table
    rows = [list(map(str, table.index)), table["time"].tolist(), np.asarray(table["event"]).tolist()]
    return {"outcomes of the cohort": content_id(rows)}


def fold_inputs_of(run: Place, options: Options) -> Mapping[str, str]:
    """Outcomes, and the hospitals where folds keep them whole."""
    found = dict(outcomes_of(run, options))
    if run.profile.survival.fold_kind == "site_preserved":
        from hcmae.cohort.sites import sites_of

        sites = sites_of(list(run.cohort().table.index), run.tables, run.root)
        found["sites of the cohort"] = content_id(sites.to_dict())
    return found


def fold_reads(profile: Profile) -> Reads:
    """Settings and source of the folds; what reads hospitals counts where hospitals are kept whole."""
    code: tuple[str, ...] = ("hcmae.cohort.splits", "hcmae.outcome")
    if profile.survival.fold_kind == "site_preserved":
        code += ("hcmae.cohort.sites", "hcmae.cohort.barcodes", "hcmae.cohort.layouts", "hcmae.cohort.local")
    return Reads(("survival.folds", "survival.fold_kind"), code)


def repeats_of(run: Place, options: Options) -> Mapping[str, Any]:
    return {"seed": run.seed, "repeats": options["repeats"] or run.profile.survival.repeats}


# --- predictions ----------------------------------------------------------------------------------------------------

# Which step makes each kind of input.
MADE_BY = {
    "region": "region_vectors",
    "region_reg": "region_vectors_reg",
    "region_hipt": "region_vectors_hipt",
    "patch": "patch_vectors",
    "patch_features": "patch_vectors",
    "thumbnail": "slides",
    "positions": "slides",
    "handcrafted": "nuclei",
    "omics": "omics",
    "clinical": "curate",
}
# The same for source ``features``.
MADE_BY_FEATURES = {
    **MADE_BY,
    "region": "feature_region_vectors",
    "region_hipt": "feature_hipt_vectors",
    "patch": "features",
    "patch_features": "features",
    "positions": "features",
}


def made_by(run: Place) -> Mapping[str, str]:
    """Which step makes each kind of input in a run."""
    return MADE_BY if run.has_pixels else MADE_BY_FEATURES


def inputs_on_disk(run: Place) -> str:
    """What survival data are read from, by the stat of its files: whether data in memory are those on disk."""
    files = [run.dir / "cohort.parquet", run.dir / "slides.parquet", run.dir / "omics.h5mu", *run.stores()]
    files += normal_files(run.root)
    found = [(path.name, path.stat()) for path in files if path.exists()]
    return content_id([[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in found])


def prediction_suffix(run: Place, options: Options) -> str:
    """Predictions of each method and protocol have a record of their own."""
    return f"_{options['protocol']}_{options['method']}"


def kept_predictions(run: Place) -> list[Options]:
    """Methods and protocols with predictions of this cohort, shuffled labels and other data left out."""
    found = sorted((run.dir / "stages").glob("predictions_*.json"))
    parts = [path.stem.removeprefix("predictions_").partition("_") for path in found]
    asked = [read_json(path).get("settings", {}).get("repeats") for path in found]
    return [
        {"protocol": protocol, "method": method, "repeats": repeats}
        for (protocol, _, method), repeats in zip(parts, asked, strict=True)
    ]


def prediction_key(run: Place, options: Options) -> Key:
    """The key of a method's predictions, from the content that lies on disk; nothing large is read."""
    from hcmae.survival.bags import STORE_CHOICES, STORE_FIELDS
    from hcmae.survival.cross_validate import method_key
    from hcmae.survival.methods import get_method

    method = get_method(options["method"])
    inputs = dict(outcomes_of(run, options))
    if "clinical" in method.kinds:
        table = run.cohort().table
        inputs["clinical"] = content_id(table[[c for c in ("age", "sex", "stage") if c in table]].to_csv())
    if "omics" in method.kinds:
        inputs["omics"] = run.contents.file(run.dir / "omics.h5mu")
        if run.profile.omics.contrast == "tumour_normal":
            for name, path in normal_tables(run.root, run.modalities).items():
                inputs[f"normal {name}"] = run.contents.file(path)
    fields = [STORE_FIELDS[kind] for kind in method.kinds if kind in STORE_FIELDS]
    # Of several that a store may have the first is taken; where it has none of them, none is an input.
    better = [name for kind in method.kinds for name in STORE_CHOICES.get(kind, ())[:-1]]
    if fields or {"thumbnail", "positions"} & set(method.kinds):
        for path, store in _stores(run):
            held = [store.vector_content.get(name) for name in fields]
            held += [[name, store.vector_content[name]] for name in better if name in store.vector_content]
            inputs[path.stem] = content_id([store.content, *held])
    protocol = Protocol.preset(options["protocol"])
    key = method_key(method, inputs, run.profile, protocol, run.seed)
    facts: dict[str, Any] = {"fidelity.max_regions": run.profile.fidelity.max_regions} if fields else {}
    repeats = options["repeats"] or run.profile.survival.repeats
    kind = "" if run.profile.survival.fold_kind == "stratified" else f", {run.profile.survival.fold_kind}"
    facts |= {"folds": f"{repeats} x {run.profile.survival.folds}{kind}", "repeats": options["repeats"]}
    return replace(key, name=f"predictions{prediction_suffix(run, options)}", settings={**key.settings, **facts})


def prediction_files(run: Place, options: Options) -> Sequence[Path]:
    return [run.dir / "predictions" / options["protocol"] / f"{options['method']}.parquet"]


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table whole or not at all."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(source.read_bytes())
