"""Train a method of a run on everybody and write it as a bundle, with the networks on pixels that it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hcmae.config import ConfigError, Protocol
from hcmae.content import content_id
from hcmae.evaluation.metrics import bootstrap, mean_concordance
from hcmae.files import read_parquet
from hcmae.keys import source_of
from hcmae.pipeline import results, road
from hcmae.pipeline.place import Place
from hcmae.pretraining.checkpoint import weights_hash
from hcmae.survival.bundle import BundleError, read_bundle, write_bundle
from hcmae.survival.cross_validate import predictions_key
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import get_method
from hcmae.survival.trained import check_hand_over, train

# Networks on pixels behind each kind of vectors, in the order in which they are applied.
IMAGES: dict[str, tuple[str, ...]] = {
    "patch": ("mae_patch",),
    "patch_features": ("mae_patch",),
    "region": ("mae_patch", "mae_region_patreg"),
    "region_reg": ("mae_region_reg",),
    "region_hipt": ("hipt_patch", "hipt_region"),
}
# Network -> the steps that train it and write its vectors.
_STEPS = {
    "mae_patch": ("mae_patch", "patch_vectors"),
    "mae_region_reg": ("mae_region_reg", "region_vectors_reg"),
    "mae_region_patreg": ("mae_region_patreg", "region_vectors"),
    "hipt_patch": ("dino_patch", "hipt_patch_vectors"),
    "hipt_region": ("dino_region", "region_vectors_hipt"),
}
_CODE = ("hcmae.survival.trained", "hcmae.survival.bundle", "hcmae.omics.rules")


def hand_over(run: Place, method: str, data: SurvivalData, out: str | Path | None = None) -> Path:
    """The bundle of a method of this run, fitted on all of ``data``; one that still holds is left as it is.

    out: folder of the bundle (default: bundles/<method> of the run).
    Raises HandOverError for a method that cannot be handed over, ConfigError where a step before it is stale or vectors
    are of other networks than those that lie there, BundleError where something else lies at ``out``.
    """
    chosen, protocol = get_method(method), Protocol.preset("honest")
    check_hand_over(chosen, data)
    brought = [kind for kind in chosen.kinds if kind in IMAGES and not run.has_pixels]
    if brought:
        raise ConfigError(
            f"the vectors of {brought[0]} of this run were brought along, and the encoder that made them is no part "
            "of a bundle: a later patient's slide could not be read; hand over a method on omics or clinical data"
        )
    used = {"synthesise", "curate", "slides", "omics"}
    used |= {step for kind in chosen.kinds for network in IMAGES.get(kind, ()) for step in _STEPS[network]}
    for name, why in road.stale_steps(run):
        if name not in used:
            continue
        raise ConfigError(f"step {name} of {run.cancer} is stale ({why}): do it again before a model leaves the house")
    images = _images(run, chosen.kinds, data)
    key = content_id(
        [
            predictions_key(chosen, data, run.profile, protocol, run.seed).digest,
            {name: weights_hash(path) for name, path in images.items()},
            source_of(_CODE),
        ]
    )
    path = Path(out) if out is not None else run.dir / "bundles" / method
    if _holds(path, key):
        return path
    trained = train(method, data, run.profile, protocol, seed=run.seed)
    about: dict[str, Any] = {
        "key": key,
        **{name: value for name, value in results.provenance(run).items() if name != "folds"},
        "modalities": list(run.modalities) if "omics" in chosen.needs else [],
        "manifest": run.manifest.model_dump(mode="json"),
        "left out": len(data.exclusions),
    }
    kept = road.kept_predictions(run, method, "honest")
    if kept:
        predictions = read_parquet(kept[0])
        about["cross-validation"] = {
            "C-index, mean over folds": round(mean_concordance(predictions)[0], 3),
            "interval over patients, 95 %": str(bootstrap(predictions)),
            "folds": f"{run.profile.survival.repeats} x {run.profile.survival.folds}",
        }
    return write_bundle(path, trained, images=images, about=about)


def _images(run: Place, kinds: tuple[str, ...], data: SurvivalData) -> dict[str, Path]:
    """Weights of the networks on pixels that made the vectors of these kinds."""
    where = {
        "mae_patch": run.patch_weights,
        **{f"mae_region_{variant}": run.region_weights(variant) for variant in ("reg", "patreg")},  # type: ignore[arg-type]
        **{f"hipt_{stage}": run.dino_weights(stage) for stage in ("patch", "region")},  # type: ignore[arg-type]
    }
    found: dict[str, Path] = {}
    for kind in kinds:
        for name in IMAGES.get(kind, ()):
            if not where[name].exists():
                raise ConfigError(f"{where[name]} is missing: the vectors of {kind} were made by it; train it again")
            found[name] = where[name]
        if kind in IMAGES:
            last = where[IMAGES[kind][-1]]
            if not data.weights.get(kind, "").startswith(weights_hash(last)):
                raise ConfigError(
                    f"the vectors of {kind} in the stores are of {data.weights.get(kind, 'unknown')}, and {last} is "
                    f"{weights_hash(last)}: embed the slides again"
                )
    return found


def _holds(path: Path, key: str) -> bool:
    try:
        return bool(read_bundle(path).about["about"].get("key") == key)
    except BundleError:
        return False
