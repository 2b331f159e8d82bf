"""Rank the regions of slides by the attention of a survival-trained network: "high diagnostic value", taken literally.

The paper keeps regions of high diagnostic value and does not say how they are found. The reading that needs no label
but survival: CLAM's gated attention (Lu et al. 2021), fitted on the training patients only, scores every region of
every slide, and the best k of a slide are kept. Nothing of the book calls this by itself; it is an ablation, off by
default, and its result belongs to one fold: used in another one it would tell about test patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hcmae.config import Profile, Protocol
from hcmae.survival import table2 as comparisons
from hcmae.survival.bags import OF_PATCHES, PackedBags
from hcmae.survival.fit import Feeder, fit_network
from hcmae.survival.fold import FoldInputs
from hcmae.survival.methods import Method
from hcmae_core.baselines import region_scores
from hcmae_core.baselines.parts import hazard_risk

if TYPE_CHECKING:
    from hcmae.survival.data import SurvivalData

__all__ = ["keep_regions", "rank_regions_by_attention", "write_region_scores"]
# The network and loss of the comparison, without the registration that hides the fitted networks.
_CLAM = Method(
    "clam_sb",
    "CLAM-SB",
    "image",
    {"vectors": "patch"},
    comparisons.clam_network,
    loss=comparisons.clam_loss,
    risk=lambda output: hazard_risk(output[0]),
)


def rank_regions_by_attention(
    data: SurvivalData,
    train: NDArray[np.integer] | Sequence[int],
    profile: Profile,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Fit CLAM-SB on the patients ``train`` and score every region of all patients.

    ``data.bags['patch']`` holds the patch vectors [M * P, D] of each patient, region after region. Returns one row per
    region: patient, region (row in the store), score (mean attention of its patches times their number: 1 is a
    region that is looked at like any other), rank (0 = best of its slide). Outcomes of patients outside ``train`` are
    not seen: they are blanked before the fit. Raises ValueError where bags do not split into whole regions or a
    patient is listed twice. Source: Lu et al. 2021, methods.
    """
    rows = np.asarray(train, np.int64)
    everyone = np.arange(len(data.time))
    if len(np.unique(rows)) != len(rows) or not len(rows) or rows.min() < 0 or rows.max() >= len(everyone):
        raise ValueError(f"train must list different patients out of {len(everyone)}")
    if "patch" not in data.bags:
        raise ValueError("the data hold no patch vectors: run the MAE-Patch stage (notebook 05) on the stores first")
    per_region = profile.geometry.patches_per_region
    sizes = data.sizes("patch")
    if (sizes % per_region).any():
        odd = data.patients[int(np.flatnonzero(sizes % per_region)[0])]
        raise ValueError(f"patient {odd}: the bag does not split into regions of {per_region} patches")
    outside = np.setdiff1d(everyone, rows)
    time, event = data.time.copy(), data.event.copy()
    # No path from a held-out outcome to the network, whatever the fit looks at.
    time[outside], event[outside] = 1.0, 0
    inputs = FoldInputs(
        replace(data, time=time, event=event), rows, rows[:1], None, profile, Protocol.preset("honest"), seed
    )
    inputs = replace(inputs, device=torch.device(device))
    inputs = comparisons.own_settings(inputs, profile.comparisons.clam_sb)
    output = fit_network(_CLAM, inputs)
    feeder = Feeder(_CLAM, inputs)
    parts = []
    for row in everyone:
        scores = _scores(output.models, feeder(np.array([row])), int(sizes[row]), per_region)
        rank = np.empty(len(scores), np.int64)
        rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
        parts.append(
            pd.DataFrame(
                {"patient": data.patients[row], "region": np.arange(len(scores)), "score": scores, "rank": rank}
            )
        )
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def _scores(models: Sequence[Any], batch: dict[str, Any], size: int, per_region: int) -> NDArray[np.float64]:
    """Mean over the ensemble of each region's mean attention, times the number of patches."""
    found = []
    for model in models:
        model.eval()
        _, weights, *_ = model(**batch)
        found.append(region_scores(weights[0, :size].double().cpu(), per_region).numpy() * size)
    return np.mean(found, axis=0)


def keep_regions(data: SurvivalData, ranking: pd.DataFrame, keep: int, *, per_region: int) -> SurvivalData:
    """The same cohort with the ``keep`` best regions of each patient, in the order of the slide, in all its bags.

    Bags of patches (``per_region`` per region) and of regions are cut alike; hand-crafted features, one row per slide,
    stay. Raises ValueError unless ``keep`` is at least 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    chosen = [
        np.sort(table.loc[table["rank"] < keep, "region"].to_numpy())
        for _, table in sorted(
            ranking.groupby("patient", sort=False), key=lambda item: data.patients.index(str(item[0]))
        )
    ]
    bags: dict[str, Any] = {}
    for kind, bag in data.bags.items():
        if kind == "handcrafted":
            bags[kind] = bag
            continue
        if kind == "patch_features" and bag is data.bags.get("patch"):
            continue  # the same bag under another name; the new data name it again
        width = per_region if kind in OF_PATCHES else 1
        kept = []
        for row, regions in enumerate(chosen):
            items = bag.packed(np.array([row]))
            kept.append(items.reshape(-1, width, *items.shape[1:])[regions].reshape(-1, *items.shape[1:]).numpy())
        bags[kind] = PackedBags.from_list(kept)
    # The weights' hash no longer says what the bags hold, so folds are told apart by the vectors themselves.
    return replace(data, bags=bags, weights={})


def write_region_scores(
    ranking: pd.DataFrame, stores: dict[str, str | Path], *, fold: str, weights: str = "attention"
) -> None:
    """Keep the scores [M] in the stores (patient -> store) as ``diagnostic_value_<fold>``, beside the vectors."""
    from hcmae.slides.store import write_vectors

    for patient, path in stores.items():
        scores = ranking.loc[ranking["patient"] == patient].sort_values("region")["score"].to_numpy(np.float32)
        write_vectors(path, f"diagnostic_value_{fold}", scores, weights)
