"""The compared methods of Table II and CLAM in the shared harness: folds, choice of the epoch and seeds as for HC-MAE.

Each registration says what a method is fed with, how its network is built, its loss, and which of the survival stage's
settings its publication sets otherwise (``profile.comparisons``). Whatever is learnt from labels or from the
distribution of the inputs (time bins, rankings, means) comes from the training patients of the fold only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hcmae.config import MethodSettings, Profile
from hcmae.survival.fit import Feeder, fit_network, gradient_in_parts, sizes_for
from hcmae.survival.fold import FoldInputs, FoldOutput, Rows, learnt_rows
from hcmae.survival.methods import COX, Bins, Method, Sizes, register
from hcmae.survival.table3 import INTEGRATION, integration_network
from hcmae_core.attention import InputScale
from hcmae_core.baselines import (
    CAMR,
    CLAMSB,
    GPDBN,
    HIPT,
    MCAT,
    DeepCorrSurv,
    DeepCorrSurvCosine,
    correlation_loss,
)
from hcmae_core.baselines.parts import hazard_risk
from hcmae_core.losses import cox_loss, nll_discrete

# L1 on all weights (GPDBN), share of the bag's loss (CLAM).
_GPDBN_L1 = 3e-4
_CLAM_BAG = 0.7


# --- what several methods share -------------------------------------------------------------------------------------


def own_profile(profile: Profile, own: MethodSettings) -> Profile:
    """The profile with the survival settings that a method's publication sets; the rest is shared by all methods."""
    changes: dict[str, Any] = own.model_dump(exclude_none=True)
    if changes.get("group") == 0:
        changes["group"] = None
    return profile.model_copy(update={"survival": profile.survival.model_copy(update=changes)})


def _dropout(own: MethodSettings) -> dict[str, Any]:
    """Argument of a network for the dropout that is asked for; without it, that of the publication."""
    return {} if own.dropout is None else {"dropout": own.dropout}


def training_rows(inputs: FoldInputs) -> Rows:
    """The patients whose labels and distributions may be used: the training part, or all under the leaking protocol."""
    return learnt_rows(inputs.train, inputs.data, inputs.protocol)


def time_edges(time: NDArray[np.floating], event: NDArray[np.integer], bins: int) -> NDArray[np.float64]:
    """Inner edges of ``bins`` time bins [bins - 1]: quantiles of the times of death of these patients.

    Raises ValueError without any death.
    """
    dead = np.asarray(time, dtype=np.float64)[np.asarray(event) > 0]
    if not len(dead):
        raise ValueError("time bins need at least one death among the training patients: use fewer folds")
    return np.quantile(dead, np.arange(1, bins) / bins)


def to_bins(time: Tensor, edges: NDArray[np.float64]) -> Tensor:
    """Bin of each time [B], int64; bins are closed on the left, the last has no end."""
    inner = torch.as_tensor(edges, dtype=time.dtype, device=time.device)
    return torch.searchsorted(inner, time.contiguous(), right=True)


def _fold_bins(time: Tensor, inputs: FoldInputs) -> Tensor:
    rows = training_rows(inputs)
    return to_bins(time, time_edges(inputs.data.time[rows], inputs.data.event[rows], inputs.profile.comparisons.bins))


def discrete_loss(logits: Tensor, time: Tensor, event: Tensor, inputs: FoldInputs) -> Tensor:
    """Discrete-time likelihood over the fold's time bins (MCAT, HIPT)."""
    return nll_discrete(logits, _fold_bins(time, inputs), event)


def balanced_weights(inputs: FoldInputs, rows: Rows) -> NDArray[np.float64] | None:
    """Weight of each of these rows [n]: one over the size of its class, a time bin among dead or among censored.

    None where ``comparisons.balanced_sampling`` is off. Source: the sampler of MCAT's code.
    """
    if not inputs.profile.comparisons.balanced_sampling:
        return None
    bins = _fold_bins(torch.from_numpy(inputs.data.time[rows]), inputs).numpy()
    classes = 2 * bins + (inputs.data.event[rows] > 0)
    return 1.0 / np.bincount(classes)[classes]


def bin_ends(inputs: FoldInputs) -> NDArray[np.float64]:
    """Where the time bins of ``discrete_loss`` end, in days [bins]; the last with the last death.

    Raises ValueError without any death among the training patients.
    """
    rows = training_rows(inputs)
    time, event = inputs.data.time[rows], inputs.data.event[rows]
    return np.append(time_edges(time, event, inputs.profile.comparisons.bins), time[event > 0].max())


# What this loss reads (its bins follow the training patients), and the sampler that goes with it.
_DISCRETE = ("comparisons.bins", "protocol.select_on")
_BALANCED = ("comparisons.balanced_sampling",)


def cox_scores(features: NDArray[np.floating], time: NDArray[np.floating], event: NDArray[np.integer]) -> NDArray:
    """Univariate score test of Cox (z) for every column of features [n, F]; 0 for a column without spread.

    One pass over patients sorted by time, whatever F is; ties as in Breslow's risk sets.
    """
    order = np.argsort(-np.asarray(time, dtype=np.float64), kind="stable")
    x, dead, sorted_time = (
        np.asarray(features, np.float64)[order],
        np.asarray(event)[order] > 0,
        np.asarray(time)[order],
    )
    x = x - x.mean(axis=0)
    # The risk set of a row ends with the last row of the same time.
    last = np.searchsorted(-sorted_time, -sorted_time, side="right") - 1
    size = np.arange(1, len(x) + 1)[:, None]
    mean = (np.cumsum(x, axis=0) / size)[last][dead]
    square = (np.cumsum(x**2, axis=0) / size)[last][dead]
    score = (x[dead] - mean).sum(axis=0)
    variance = np.maximum(square - mean**2, 0.0).sum(axis=0)
    return np.where(variance > 1e-12, score / np.sqrt(np.maximum(variance, 1e-12)), 0.0)


def best_columns(features: NDArray, inputs: FoldInputs, count: int) -> NDArray:
    """The ``count`` columns of features [n, F] with the largest score on the training rows, best first: [n, count].

    Fewer columns than asked for are filled up with zeros, so that a network's width does not depend on the fold.
    """
    rows = training_rows(inputs)
    scores = np.abs(cox_scores(features[rows], inputs.data.time[rows], inputs.data.event[rows]))
    chosen = features[:, np.argsort(-scores, kind="stable")[:count]]
    return np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])))


def handcrafted_table(inputs: FoldInputs) -> NDArray[np.float32]:
    """Hand-crafted features of all patients [n, F], standardised on the training rows; undefined ones at the mean.

    Raises ValueError when the data hold none.
    """
    from hcmae.slides.handcrafted import mark_undefined

    bags = inputs.data.bags.get("handcrafted")
    if bags is None:
        raise ValueError("the data hold no hand-crafted features: run slides.handcrafted.measure_slides on the stores")
    everyone = np.arange(len(inputs.data.time))
    first = np.concatenate([[0], np.cumsum(bags.sizes)[:-1]])
    table = mark_undefined(bags.packed(everyone)[torch.from_numpy(first)].numpy())
    rows = training_rows(inputs)
    known = np.where(np.isfinite(table[rows]), table[rows], np.nan).astype(np.float64)
    some = np.isfinite(known).any(axis=0)
    table, known = table[:, some], known[:, some]
    mean, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    scaled = (table - mean) / np.where(spread > 1e-8, spread, 1.0)
    return np.where(np.isfinite(scaled), scaled, 0.0).clip(-10, 10).astype(np.float32)


class Scaled(nn.Module):
    """A network behind the standardisation of its vectors by the training patients (``survival.scale_vectors``)."""

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__()
        self.scale, self.network = InputScale(dim), network

    def forward(self, vectors: Tensor, mask: Tensor, omics: Tensor | None = None) -> Any:
        scaled = self.scale(vectors)
        return self.network(scaled, mask=mask) if omics is None else self.network(scaled, omics, mask=mask)


def _published(
    network: Method,
    settings: Callable[[Profile], MethodSettings],
    *,
    has_dropout: bool = True,
) -> Method:
    """Register ``network`` as a method that is trained with its own settings."""

    def adapt(profile: Profile) -> Profile:
        own = settings(profile)
        if own.dropout is not None and not has_dropout:
            raise ValueError(f"comparisons.{network.name}.dropout is set, but the network has no dropout: remove it")
        return own_profile(profile, own)

    def run(inputs: FoldInputs) -> FoldOutput:
        return fit_network(network, replace(inputs, profile=adapt(inputs.profile)))

    return register(
        Method(
            network.name,
            network.label,
            network.group,
            fit=run,
            needs=network.needs,
            paper=network.paper,
            note=network.note,
            output=network.output,
            settings=network.reads,
            adapt=adapt,
            network=network,
        )
    )


# --- GPDBN and CAMR: vectors of features ----------------------------------------------------------------------------


class _Penalised(nn.Module):
    """GPDBN on features [B, 2, dim]: (log hazard, L1 of all weights)."""

    def __init__(self, dim: int, **dropout: Any) -> None:
        super().__init__()
        self.network = GPDBN(dim, **dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(features[:, 0], features[:, 1]), self.network.penalty()


def _cox(risk: Tensor, time: Tensor, event: Tensor, inputs: FoldInputs) -> Tensor:
    return cox_loss(risk, time, event, ties=inputs.profile.survival.ties, divisor=inputs.profile.fidelity.cox_divisor)


def _gpdbn_loss(output: tuple[Tensor, Tensor], time: Tensor, event: Tensor, inputs: FoldInputs) -> Tensor:
    return _cox(output[0], time, event, inputs) + _GPDBN_L1 * output[1]


def _gpdbn_features(network: Method, inputs: FoldInputs) -> tuple[Method, FoldInputs]:
    assert inputs.omics is not None
    count = inputs.profile.comparisons.gpdbn_features
    genes = best_columns(inputs.omics.reshape(len(inputs.omics), -1), inputs, count)
    pathology = best_columns(handcrafted_table(inputs), inputs, count)
    return network, replace(inputs, omics=np.stack([genes, pathology], axis=1).astype(np.float32))


_published(
    Method(
        "gpdbn",
        "GPDBN",
        "multimodal",
        {"features": "omics"},
        lambda sizes, profile: _Penalised(sizes.omics_features, **_dropout(profile.comparisons.gpdbn)),
        loss=_gpdbn_loss,
        risk=lambda output: output[0],
        output="log hazard",
        prepare=_gpdbn_features,
        own_features=True,
        needs=frozenset({"handcrafted"}),
        paper="GPDBN",
        note="the best omics and hand-crafted features of the training patients",
        settings=(*COX, "comparisons.gpdbn_features", "comparisons.gpdbn.dropout"),
    ),
    lambda profile: profile.comparisons.gpdbn,
)


class _AlignedModalities(nn.Module):
    """CAMR on features [B, 3, dim]: (log hazard, auxiliary losses, network)."""

    def __init__(self, dim: int, aligned: bool, **dropout: Any) -> None:
        super().__init__()
        self.network = CAMR(dim, aligned=aligned, **dropout)

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor], CAMR]:
        return (*self.network.with_losses(features), self.network)


def _camr_loss(
    output: tuple[Tensor, dict[str, Tensor], CAMR], time: Tensor, event: Tensor, inputs: FoldInputs
) -> Tensor:
    risk, losses, network = output
    return network.total_loss(_cox(risk, time, event, inputs), losses)


def _camr_features(network: Method, inputs: FoldInputs) -> tuple[Method, FoldInputs]:
    assert inputs.omics is not None
    if inputs.omics.shape[1] < 2:
        raise ValueError("CAMR needs RNA and at least one other omics: its three slots are RNA, pathology, other omics")
    count = min(inputs.profile.comparisons.camr_features, inputs.omics.shape[2])
    others = inputs.omics[:, 1:].reshape(len(inputs.omics), -1)
    slots = [
        best_columns(inputs.omics[:, 0], inputs, count),
        best_columns(handcrafted_table(inputs), inputs, count),
        best_columns(others, inputs, count),
    ]
    return network, replace(inputs, omics=np.stack(slots, axis=1).astype(np.float32))


_published(
    Method(
        "camr",
        "CAMR",
        "multimodal",
        {"features": "omics"},
        lambda sizes, profile: _AlignedModalities(
            sizes.omics_features, profile.comparisons.camr_aligned, **_dropout(profile.comparisons.camr)
        ),
        loss=_camr_loss,
        risk=lambda output: output[0],
        output="log hazard",
        prepare=_camr_features,
        own_features=True,
        needs=frozenset({"handcrafted"}),
        paper="CAMR",
        note="slots: RNA, hand-crafted features, miRNA with methylation",
        settings=(*COX, "comparisons.camr_features", "comparisons.camr_aligned", "comparisons.camr.dropout"),
    ),
    lambda profile: profile.comparisons.camr,
)


# --- DeepCorrSurv: thumbnails ---------------------------------------------------------------------------------------


class _ThumbnailMethod(Method):
    """A method whose bag holds thumbnails instead of vectors."""

    @property
    def bag(self) -> str | None:
        return "thumbnail"


class _Thumbnails(nn.Module):
    """A network on thumbnails and flattened omics [B, modalities, K]."""

    def __init__(self, network: DeepCorrSurv | DeepCorrSurvCosine) -> None:
        super().__init__()
        self.network = network

    def forward(self, thumbnails: Tensor, omics: Tensor, mask: Tensor) -> Tensor:
        return self.network(thumbnails, omics.flatten(1), mask)


def _deepcorrsurv(sizes: Sizes, profile: Profile) -> _Thumbnails:
    return _Thumbnails(DeepCorrSurv(sizes.modalities * sizes.omics_features, sizes.thumbnail))


def _correlated(network: Method, inputs: FoldInputs) -> tuple[Method, FoldInputs]:
    """Stage 1 on the training patients (it sees no label); stage 2 of every member begins there."""
    settings = inputs.profile.comparisons
    feeder = Feeder(network, inputs)
    seed = np.random.SeedSequence([inputs.seed, 23]).generate_state(2)
    rng = np.random.default_rng(seed[0])
    first: dict[str, Tensor] = {}

    def build(sizes: Sizes, profile: Profile) -> nn.Module:
        model = _deepcorrsurv(sizes, profile)
        if first:
            model.load_state_dict(first)
        return model

    with torch.random.fork_rng(devices=[inputs.device] if inputs.device.type == "cuda" else []):
        torch.manual_seed(int(seed[1]))
        model = _deepcorrsurv(sizes_for(network, inputs), inputs.profile).to(inputs.device)
    inner = model.network
    assert isinstance(inner, DeepCorrSurv)

    def views(rows: Rows) -> tuple[Tensor, Tensor]:
        batch = feeder(rows)
        return inner.views(batch["thumbnails"], batch["omics"].flatten(1), batch["mask"])

    optimizer = torch.optim.Adam(model.parameters(), lr=settings.correlation_learning_rate)
    for _ in range(settings.correlation_epochs):
        # Equal parts of at least 32 patients: a correlation over a few says nothing.
        for rows in np.array_split(rng.permutation(inputs.train), max(1, len(inputs.train) // 32)):
            optimizer.zero_grad(set_to_none=True)
            part = inputs.profile.survival.micro_batch
            gradient_in_parts(views, lambda seen: correlation_loss(*seen), rows, part, inputs.device, torch.Generator())
            optimizer.step()
    first.update({name: value.detach().clone() for name, value in model.state_dict().items()})
    return replace(network, build=build), inputs


_THUMBNAILS = {"thumbnails": "thumbnail", "omics": "omics"}

_published(
    _ThumbnailMethod(
        "deepcorrsurv",
        "DeepCorrSurv",
        "multimodal",
        _THUMBNAILS,
        _deepcorrsurv,
        paper="DeepCorrSurv",
        prepare=_correlated,
        # Parts round otherwise, and the first stage's loss makes another network of that.
        settings=(
            "comparisons.correlation_epochs",
            "comparisons.correlation_learning_rate",
            "survival.micro_batch",
        ),
    ),
    lambda profile: profile.comparisons.deepcorrsurv,
    has_dropout=False,
)
_published(
    _ThumbnailMethod(
        "deepcorrsurv_hc",
        "DeepCorrSurv, cosine",
        "multimodal",
        _THUMBNAILS,
        lambda sizes, profile: _Thumbnails(
            DeepCorrSurvCosine(sizes.modalities * sizes.omics_features, sizes.thumbnail)
        ),
        note="the variant that HC-MAE's release trains",
        settings=(),
    ),
    lambda profile: profile.comparisons.deepcorrsurv_hc,
    has_dropout=False,
)


# --- MCAT, HIPT, CLAM: bags of vectors ------------------------------------------------------------------------------


class _Groups(nn.Module):
    """MCAT with the modalities as its omics groups."""

    def __init__(self, network: MCAT) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor, omics: Tensor, mask: Tensor) -> Tensor:
        return self.network(patches, list(omics.unbind(1)), mask)


def _mcat(sizes: Sizes, profile: Profile) -> nn.Module:
    dim = profile.comparisons.mcat_dim
    network = MCAT(
        sizes.vector_dim,
        (sizes.omics_features,) * sizes.modalities,
        dim,
        feedforward=2 * dim,
        bins=profile.comparisons.bins,
        **_dropout(profile.comparisons.mcat),
    )
    return Scaled(_Groups(network), sizes.vector_dim)


_published(
    Method(
        "mcat",
        "MCAT",
        "multimodal",
        {"vectors": "patch_features", "omics": "omics"},
        _mcat,
        loss=discrete_loss,
        risk=hazard_risk,
        bins=Bins(torch.sigmoid, bin_ends),
        paper="MCAT",
        note="patch vectors of the frozen MAE-Patch unless others are stored",
        settings=(*_DISCRETE, *_BALANCED, "comparisons.mcat_dim", "comparisons.mcat.dropout"),
        weights=balanced_weights,
        learns_from_censored=True,
    ),
    lambda profile: profile.comparisons.mcat,
)


def _hipt(sizes: Sizes, profile: Profile) -> nn.Module:
    settings = profile.comparisons
    network = HIPT(sizes.vector_dim, settings.hipt_dim, bins=settings.bins, **_dropout(settings.hipt))
    return Scaled(network, sizes.vector_dim)


_published(
    Method(
        "hipt",
        "HIPT (WSI only)",
        "image",
        {"vectors": "region_hipt"},
        _hipt,
        loss=discrete_loss,
        risk=hazard_risk,
        bins=Bins(torch.sigmoid, bin_ends),
        paper="HIPT (WSI only)",
        settings=(*_DISCRETE, *_BALANCED, "comparisons.hipt_dim", "comparisons.hipt.dropout"),
        weights=balanced_weights,
        learns_from_censored=True,
    ),
    lambda profile: profile.comparisons.hipt,
)


_published(
    Method(
        "hipt_integration",
        "HIPT (Integration)",
        "multimodal",
        {"regions": "region_hipt", "omics": "omics"},
        integration_network,
        paper="HIPT (Integration)",
        note="HC-MAE's network and switches on HIPT's region vectors",
        settings=INTEGRATION,
    ),
    lambda profile: profile.comparisons.hipt_integration,
)


class _Instances(nn.Module):
    """CLAM with all that its instance loss needs: (logits, attention, codes, mask, network)."""

    def __init__(self, network: CLAMSB) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, CLAMSB]:
        return (*self.network.with_attention(patches, mask), mask, self.network)


def clam_loss(output: Any, time: Tensor, event: Tensor, inputs: FoldInputs) -> Tensor:
    logits, weights, codes, mask, network = output
    bins = _fold_bins(time, inputs)
    instances = network.instance_loss(weights, codes, bins, event, mask)
    return _CLAM_BAG * nll_discrete(logits, bins, event) + (1 - _CLAM_BAG) * instances


def clam_network(sizes: Sizes, profile: Profile) -> nn.Module:
    settings = profile.comparisons
    hidden = max(1, settings.clam_dim // 2)
    network = CLAMSB(sizes.vector_dim, settings.clam_dim, hidden, settings.bins, **_dropout(settings.clam_sb))
    return Scaled(_Instances(network), sizes.vector_dim)


_published(
    Method(
        "clam_sb",
        "CLAM-SB",
        "image",
        {"vectors": "patch_features"},
        clam_network,
        loss=clam_loss,
        risk=lambda output: hazard_risk(output[0]),
        bins=Bins(lambda output: torch.sigmoid(output[0]), bin_ends),
        note="bag classes are time bins; patch vectors as for MCAT",
        settings=(*_DISCRETE, "comparisons.clam_dim", "comparisons.clam_sb.dropout"),
        learns_from_censored=True,
    ),
    lambda profile: profile.comparisons.clam_sb,
)

__all__ = [
    "Scaled",
    "balanced_weights",
    "best_columns",
    "bin_ends",
    "cox_scores",
    "discrete_loss",
    "handcrafted_table",
    "own_profile",
    "time_edges",
    "to_bins",
    "training_rows",
]
