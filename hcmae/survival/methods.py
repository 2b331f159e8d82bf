"""The registry of survival methods: what each needs, how it is built, what it is fitted with.

A new method is a network and one ``register(Method(...))``; those of the book are registered in ``table3``, ``linear``
and ``table2``, which ``import hcmae.survival`` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hcmae.config import ComparisonSettings, MethodSettings, Profile
from hcmae.survival.fold import FoldInputs, FoldOutput, Rows

Group = Literal["clinical", "omics", "image", "multimodal"]
# What a method says about a patient; survival curves are made from it accordingly (``cross_validate.survival_curves``).
Output = Literal["log hazard", "hazards in bins", "score"]
# The kinds that can be a method's bag of vectors.
VECTORS = ("region", "region_reg", "region_hipt", "patch", "patch_features")
NEEDS = ("omics", *VECTORS, "thumbnail", "handcrafted", "clinical")


@dataclass(frozen=True)
class Sizes:
    """What a network has to fit: known only when data and fold are."""

    vector_dim: int = 0
    thumbnail: int = 0
    omics_features: int = 0
    modalities: int = 3
    clinical: int = 0


# --- settings that methods read, by dotted name -----------------------------------------------------------------------

# What the loop of ``fit_network`` reads for every network, for bags of vectors, for networks without their own loss.
TRAINING = (
    *(f"survival.{name}" for name in ("learning_rate", "weight_decay", "epochs", "warmup_epochs", "schedule", "group")),
    *(f"survival.{name}" for name in ("clip_norm", "ensemble", "inner_fraction", "patience")),
    "fidelity.drop_last_group",
    "compute.precision",
    "protocol.epoch",
)
BAGS = ("survival.region_dropout", "survival.bag_limit")
SCALE = ("survival.scale_vectors",)
COX = ("survival.ties", "fidelity.cox_divisor")
# Only read where an inner part of the training patients chooses the epoch.
INNER = ("survival.inner_fraction", "survival.patience")
# What a network or a fit that says nothing may read beside these. Settings that change only speed
# (``survival.micro_batch``), what lies before the vectors, and other methods' sections are not among them.
ANYTHING = (
    *("geometry", "network", "survival.network", "survival.dropout", "survival.omics_dropout", *COX),
    *(f"fidelity.{name}" for name in ("slide_positions", "omics_projection", "pooler", "risk_head")),
    *(
        f"comparisons.{name}"
        for name, item in ComparisonSettings.model_fields.items()
        if item.annotation is not MethodSettings
    ),
    *("protocol.select_on", *TRAINING, *BAGS, *SCALE),
)


# Output of a network, time [B], event [B], settings of the fold -> scalar loss.
Loss = Callable[[Any, Tensor, Tensor, "FoldInputs"], Tensor]


@dataclass(frozen=True)
class Bins:
    """How hazards in time bins are read from a network.

    hazards: output of the network -> [B, K], each in (0, 1). ends: inputs of the fit -> where the K bins end, days [K],
    ascending; learnt from ``inputs.train``.
    """

    hazards: Callable[[Any], Tensor]
    ends: Callable[[FoldInputs], NDArray[np.float64]]


@dataclass(frozen=True)
class Method:
    """One row of a comparison.

    Args:
        name, label: key and printed name; group: which data it rests on.
        inputs: argument of the network's forward -> what it is fed with (one of NEEDS, or "positions"). The mask of
            the bags is always passed as ``mask``.
        build: (sizes, profile) -> network. Without ``loss`` it is trained by the Cox loss on its output.
        loss, risk: for networks whose output is no log hazard; risk maps the output to [B], larger = worse.
        output: what it says about a patient: "log hazard" (the default of networks under the Cox loss), "hazards in
            bins" (the default with ``bins``), or "score", an order and no more (the default of everything else).
        bins: how hazards in time bins are read from the network.
        prepare: (method, inputs) -> (method, inputs), before a network is trained: features made or ranked, a first
            stage. It learns from ``inputs.train`` and is called for every inner part anew.
        fit: instead of ``build``: everything from training rows to risks, for methods that are no networks.
        needs: what data must hold; follows from ``inputs`` for networks.
        paper: key of the paper's row, where there is one.
        settings: settings that build, loss, risk and fit read, by dotted name (``survival.dropout``,
            ``comparisons.bins``, ``protocol.select_on``). Kept predictions are made again when one of them, or one that
            the training loop reads, has changed. Default: everything that a method may sensibly read.
        adapt: the profile as the method's publication sets it, where it differs.
        weights: (inputs, rows) -> weight of each row [n] with which an epoch's patients are drawn, with replacement;
            None, or a weight of None: everybody once.
        network: the network behind a ``fit`` that only sets settings otherwise.
        own_features: ``prepare`` makes features of its own, which nobody could make for a patient who comes later.
        learns_from_censored: its loss has a value for a group without a death, so that no group is passed over.
    """

    name: str
    label: str
    group: Group
    inputs: Mapping[str, str] = field(default_factory=dict)
    build: Callable[[Sizes, Profile], nn.Module] | None = None
    fit: Callable[[FoldInputs], FoldOutput] | None = None
    loss: Loss | None = None
    risk: Callable[[Any], Tensor] | None = None
    output: Output | None = None
    bins: Bins | None = None
    prepare: Callable[[Method, FoldInputs], tuple[Method, FoldInputs]] | None = None
    needs: frozenset[str] = frozenset()
    paper: str | None = None
    note: str = ""
    settings: tuple[str, ...] = ANYTHING
    adapt: Callable[[Profile], Profile] | None = None
    weights: Callable[[FoldInputs, Rows], NDArray[np.float64] | None] | None = None
    learns_from_censored: bool = False
    network: Method | None = None
    own_features: bool = False

    def __post_init__(self) -> None:
        if (self.build is None) == (self.fit is None):
            raise ValueError(f"method {self.name}: give either build (a network) or fit (anything else)")
        usual: Output = "log hazard" if self.build is not None and self.loss is None else "score"
        usual = "hazards in bins" if self.bins is not None else usual
        object.__setattr__(self, "output", self.output or usual)
        if self.build is not None and (self.bins is not None) != (self.output == "hazards in bins"):
            raise ValueError(f"method {self.name}: output {self.output!r} does not fit: hazards in bins come with bins")
        fed = frozenset(kind for kind in self.inputs.values() if kind != "positions")
        object.__setattr__(self, "needs", self.needs | fed)
        unknown = sorted(self.needs - set(NEEDS))
        if unknown:
            raise ValueError(f"method {self.name} needs {unknown[0]!r}: choose from {', '.join(NEEDS)}")

    @property
    def bag(self) -> str | None:
        """The kind of vectors in its bags, if any."""
        return next((kind for kind in VECTORS if kind in self.needs), None)

    @property
    def reads(self) -> tuple[str, ...]:
        """All settings that its predictions depend on, those of the training loop included, those of omics not."""
        found = [*self.settings]
        if self.build is not None:
            found += TRAINING
            found += COX if self.loss is None else ()
            found += BAGS if self.bag else ()
            found += SCALE if self.bag in VECTORS else ()
        if "omics" in self.needs:
            found.append("protocol.select_on")
        return tuple(sorted(set(found)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of input that it is fed with, positions of regions included."""
        return tuple(sorted({*self.needs, *self.inputs.values()}))


METHODS: dict[str, Method] = {}


def register(method: Method, *, replace: bool = False) -> Method:
    """Add a method to METHODS; with ``replace`` it takes the place of one of the same name, as in a cell run again.

    Raises ValueError when the name is taken.
    """
    if method.name in METHODS and not replace:
        raise ValueError(
            f"a method named {method.name!r} is registered already: choose another name, or say "
            "register(..., replace=True) to put this one in its place"
        )
    METHODS[method.name] = method
    return method


def get_method(name: str) -> Method:
    """Look a method up; raises KeyError with the known names."""
    if name not in METHODS:
        raise KeyError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    return METHODS[name]
