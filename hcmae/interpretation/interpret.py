"""A look inside a trained HC-MAE: attended regions and genes, and whether both lie where the truth was planted.

Attention says which regions' vectors are mixed into a token. It does not say that the risk depends on them, that
another mix would give another risk, or that a region with little attention is harmless. The checks here are against
planted truth, because on real slides there is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hcmae.config import MODALITIES
from hcmae.files import write_json
from hcmae.survival.fit import Feeder
from hcmae.survival.fold import FoldInputs
from hcmae.survival.methods import get_method
from hcmae_core.ablations import OmicsTransformer
from hcmae_core.hcmae import HCMAE


@dataclass
class Attention:
    """Attention of one patient's omics over the regions: weights [3, M], mean over an ensemble."""

    patient: str
    weights: NDArray[np.float64]
    modalities: tuple[str, ...] = MODALITIES


@torch.no_grad()
def region_attention(
    models: Sequence[nn.Module], inputs: Sequence[FoldInputs], rows: NDArray[np.int64]
) -> list[Attention]:
    """Attention of Eq. 7 for the given patients, averaged over the members of an ensemble.

    inputs: what each network was trained on (``cross_validate.train_models``). Raises TypeError for networks without
    omics-guided cross-attention.
    """
    for model in models:
        if not isinstance(model, HCMAE):
            raise TypeError(f"{type(model).__name__} has no omics-guided attention over regions; use method 'hcmae'")
    feeders = _feeders("hcmae", models, inputs)
    out = []
    for row in np.asarray(rows, dtype=np.int64):
        one = np.array([row])
        mean = np.mean([_attention(model, feeder(one)) for model, feeder in zip(models, feeders, strict=True)], 0)
        out.append(Attention(inputs[0].data.patients[row], mean[0], MODALITIES[: mean.shape[1]]))
    return out


def _feeders(method: str, models: Sequence[nn.Module], inputs: Sequence[FoldInputs]) -> list[Feeder]:
    """One feeder for each network: members of an ensemble see different omics, and the same bags."""
    if len(models) != len(inputs):
        raise ValueError(f"{len(models)} networks, but inputs for {len(inputs)}: give what each was trained on")
    chosen = get_method(method)
    first = Feeder(chosen, inputs[0])
    return [first.fed(chosen, own) for own in inputs]


def _attention(model: nn.Module, batch: dict[str, Tensor]) -> NDArray[np.float64]:
    assert isinstance(model, HCMAE)
    return model.eval().attend(**batch)[2].float().cpu().numpy().astype(np.float64)


def region_importance(
    models: Sequence[nn.Module], inputs: Sequence[FoldInputs], row: int, *, method: str = "hcmae"
) -> NDArray[np.float64]:
    """How much the predicted log hazard falls when a region is left out, [M]; positive = the region raises the risk.

    Unlike attention this is an effect on the prediction. A patient with a single region has zero. inputs: what each
    network was trained on.
    """
    effects = []
    for model, feeder in zip(models, _feeders(method, models, inputs), strict=True):
        batch = feeder(np.array([row]))
        count = int(batch["mask"].sum())
        if count == 1:
            return np.zeros(1)
        repeated = {name: value.expand(count + 1, *value.shape[1:]).clone() for name, value in batch.items()}
        for number in range(count):
            repeated["mask"][number + 1, number] = False
        with torch.no_grad():
            risk = model.eval()(**repeated).float().cpu().numpy()
        effects.append(risk[0] - risk[1:])
    return np.mean(effects, 0).astype(np.float64)


def attention_auc(weights: Mapping[str, NDArray[np.floating]], planted: Mapping[str, NDArray[np.bool_]]) -> float:
    """Probability that a planted region outranks another region of the same patient, over all such pairs.

    weights, planted: patient -> [M]. 0.5 is chance. Raises ValueError when no patient has regions of both kinds.
    """
    won = pairs = 0.0
    for patient, values in weights.items():
        truth = np.asarray(planted[patient], dtype=bool)
        if truth.shape != np.shape(values):
            raise ValueError(f"patient {patient}: {np.shape(values)} weights for {truth.shape} regions")
        inside, outside = np.asarray(values)[truth], np.asarray(values)[~truth]
        difference = inside[:, None] - outside[None, :]
        won += (difference > 0).sum() + 0.5 * (difference == 0).sum()
        pairs += difference.size
    if pairs == 0:
        raise ValueError("no patient has both planted and other regions")
    return float(won / pairs)


def planted_regions(
    truth: pd.DataFrame,
    coords: Mapping[str, NDArray[np.integer]],
    region: int,
    sides: Mapping[str, int] | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Which of each patient's regions overlap a planted tumour region by at least half a side in both directions.

    truth: columns patient, x, y, tumour (level-0 corners); coords: patient -> [M, 2] corners of the stored regions;
    region: side of a planted region; sides: patient -> side of the stored ones, where slides were cut to a common
    resolution (``SlideStore.side``; None: the same as planted). All in level-0 pixels; half of the smaller side counts.
    """
    out = {}
    by_patient = dict(tuple(truth.groupby("patient")))
    for patient, corners in coords.items():
        known = by_patient.get(patient)
        if known is None:
            raise ValueError(f"patient {patient} is not in the table of planted regions")
        tumour = known.loc[known["tumour"].astype(bool), ["x", "y"]].to_numpy()
        side = region if sides is None else sides[patient]
        stored = np.asarray(corners)[:, None, :]
        common = np.minimum(stored + side, tumour[None] + region) - np.maximum(stored, tumour[None])
        out[patient] = (common >= min(side, region) / 2).all(-1).any(1)
    return out


def omics_gradients(
    models: Sequence[nn.Module], inputs: Sequence[FoldInputs], rows: NDArray[np.int64], *, steps: int = 32
) -> NDArray[np.float64]:
    """Integrated gradients of the log hazard with respect to the omics, [n, modalities, K], mean over an ensemble.

    The baseline is the mean patient of the training part (all features are standardised, so zero). By captum; source:
    Sundararajan, Taly and Yan, ICML 2017. For HC-MAE and Trans-MO; raises TypeError for other networks, and ValueError
    for several that see different features: ask for each alone.
    """
    from captum.attr import IntegratedGradients

    method = _method_of(models[0])
    if any(own.names != inputs[0].names for own in inputs):
        raise ValueError(
            "these networks left out different inner folds and see different omics, whose attributions have no mean: "
            "ask for each network alone (models[:1], inputs[:1])"
        )
    total: NDArray[np.float64] | None = None
    for model, feeder in zip(models, _feeders(method, models, inputs), strict=True):
        model.eval()
        pieces = []
        for row in np.asarray(rows, dtype=np.int64):
            batch = feeder(np.array([row]))
            omics = batch.pop("omics")

            def risk(value: Tensor, batch: dict = batch, model: nn.Module = model) -> Tensor:
                fixed = {name: item.expand(len(value), *item.shape[1:]) for name, item in batch.items()}
                return model(omics=value, **fixed)

            attribution = IntegratedGradients(risk).attribute(omics, torch.zeros_like(omics), n_steps=steps)
            pieces.append(attribution.detach().cpu().numpy()[0])
        stacked = np.stack(pieces).astype(np.float64)
        total = stacked if total is None else total + stacked
    assert total is not None
    return total / len(models)


def _method_of(model: nn.Module) -> str:
    if isinstance(model, HCMAE):
        return "hcmae"
    if isinstance(model, OmicsTransformer):
        return "trans_mo"
    raise TypeError(f"{type(model).__name__}: integrated gradients are written for 'hcmae' and 'trans_mo'")


def gene_table(
    attributions: NDArray[np.floating], names: Mapping[str, Sequence[str]], planted: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Mean absolute attribution of each chosen feature, largest first: [modality, feature, attribution, planted].

    planted: modality -> programme -> features (or programme -> direction -> features).
    """
    rows = []
    for number, modality in enumerate(names):
        truth = {feature.split(".")[0] for feature in _flatten(planted.get(modality, []))} if planted else set()
        for feature, value in zip(names[modality], np.abs(attributions[:, number]).mean(0), strict=True):
            rows.append((modality, feature, float(value), str(feature).split(".")[0] in truth))
    table = pd.DataFrame(rows, columns=["modality", "feature", "attribution", "planted"])
    return table.sort_values("attribution", ascending=False, ignore_index=True)


def _flatten(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [item for part in value.values() for item in _flatten(part)]
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flatten(part)]
    return [str(value)] if isinstance(value, str) else []


def geojson(corners: NDArray[np.integer], region: int, weights: NDArray[np.floating], name: str) -> dict[str, Any]:
    """Regions as QuPath-readable GeoJSON squares in level-0 pixels, coloured and measured by their weight."""
    values = np.asarray(weights, dtype=float)
    top = values.max() if len(values) and values.max() > 0 else 1.0
    features = []
    for number, ((x, y), value) in enumerate(zip(np.asarray(corners).tolist(), values.tolist(), strict=True)):
        ring = [[x, y], [x + region, y], [x + region, y + region], [x, y + region], [x, y]]
        shade = round(255 * value / top)
        features.append(
            {
                "type": "Feature",
                "id": f"region-{number}",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "annotation",
                    "name": f"{name} {number}",
                    "color": [shade, 40, 255 - shade],
                    "measurements": {name: value},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def write_geojson(
    path: str | Path, corners: NDArray[np.integer], region: int, weights: NDArray[np.floating], name: str = "attention"
) -> None:
    """Write ``geojson`` to a file that QuPath opens by drag and drop."""
    value = geojson(corners, region, weights, name)
    # Through text once: what is not plain JSON fails here and not in the viewer.
    write_json(path, json.loads(json.dumps(value)))
