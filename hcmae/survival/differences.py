"""In what HC-MAE of a run differs from the paper's reading, and neighbours of Table III from each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from hcmae.config import Fidelity, Profile
from hcmae.survival.methods import METHODS, VECTORS, Method
from hcmae.survival.table3 import PAPER_STAGE

# Readings of MAE-Region, which are in the region vectors before the survival stage begins.
_OF_VECTORS = ("region_attention", "region_residual", "region_warm_start", "extract_depth", "extract_norm", "augment")


def variant(profile: Profile) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings in which a profile's HC-MAE differs from the paper's reading: of its vectors, of its survival stage.

    Sizes, rates and epochs are not among them: they are the profile's for every method.
    """
    paper = Fidelity.preset("paper")
    found = {name: getattr(profile.fidelity, name) for name in (*_OF_VECTORS, "extract_augment")}
    vectors = {name: value for name, value in found.items() if value != getattr(paper, name)}
    stage = {}
    for dotted, value in PAPER_STAGE.items():
        section, name = dotted.split(".")
        here = getattr(getattr(profile, section), name)
        if here != value:
            stage[name] = here
    return vectors, stage


def variant_note(profile: Profile) -> str:
    """One or two sentences for a caption: which HC-MAE the table shows. Empty where it is the paper's reading."""
    vectors, stage = variant(profile)
    if not vectors and not stage:
        return ""
    text = f"HC-MAE here is this book's variant ({_listed({**vectors, **stage})}). "
    undone = f"the paper's survival stage (without {_listed(stage)})" if stage else "the same survival stage"
    kept = f"the same region vectors (with {_listed(vectors)})" if vectors else "the same region vectors"
    return text + f"The paper's reading has {undone} on {kept}."


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value).lower()}" for name, value in settings.items())


def neighbour_table(
    pairs: Iterable[tuple[str, str]], profile: Profile, parameters: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """What differs between two methods of Table III, row by row; a cell that is equal for both says it once.

    parameters: of one network of each method, from the run's record (``cross_validate.fold_costs``).
    """
    known = parameters or {}
    rows = []
    for first, second in pairs:
        a, b = (_described(METHODS[name], profile, known.get(name)) for name in (first, second))
        cells = {name: a[name] if a[name] == b[name] else f"{a[name]} | {b[name]}" for name in a}
        count = sum(a[name] != b[name] for name in a)
        rows.append({"first": METHODS[first].label, "second": METHODS[second].label, "differ in": count, **cells})
    return pd.DataFrame(rows)


def _described(method: Method, profile: Profile, parameters: float | None) -> dict[str, str]:
    own = method.adapt(profile) if method.adapt is not None else profile
    kind = next((kind for kind in VECTORS if kind in method.needs), None)
    return {
        "parameters": f"{parameters:,.0f}" if parameters is not None and parameters == parameters else "n/a",
        "networks": str(own.survival.ensemble),
        "survival stage": _listed({k: v for k, v in variant(own)[1].items() if k != "ensemble"}) or "the paper's",
        "vectors": kind or "none",
        "thumbnails": thumbnail_role(method),
        "omics": "yes" if "omics" in method.needs else "no",
        "epochs of pre-training": pretraining_epochs(kind, profile),
    }


def thumbnail_role(method: Method) -> str:
    """What thumbnails are to the cross-attention: keys where omics ask, queries where there are none to ask."""
    if "thumbnail" not in method.needs:
        return "none"
    return "keys" if "omics" in method.needs else "queries"


def pretraining_epochs(kind: str | None, profile: Profile) -> str:
    """Epochs behind a kind of vectors, stage by stage, as the profile sets them."""
    patch, region = profile.mae_patch.optimisation.epochs, profile.mae_region.optimisation.epochs
    warm = profile.mae_region.warm_epochs or region
    patreg = f"MAE-Reg {region} + MAE-PatReg {warm}" if profile.fidelity.region_warm_start else f"MAE-PatReg {region}"
    return {
        "patch": f"MAE-Patch {patch}",
        "region_reg": f"MAE-Reg {region}",
        "region": f"MAE-Patch {patch}, {patreg}",
    }.get(kind or "", "none")
