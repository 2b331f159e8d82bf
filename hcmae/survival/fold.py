"""What a method sees of one fold, and of each inner part of it: rows, omics, settings; and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hcmae.cohort.splits import inner_folds
from hcmae.config import Profile, Protocol
from hcmae.omics.cache import Kept, SelectorCache
from hcmae.survival.data import SurvivalData

# Where selections of omics are kept: a dict, a folder, or nowhere.
OmicsCache = Kept
Rows = NDArray[np.int64]


# Omics of all patients [n, modalities, K] and the chosen features per modality.
Omics = tuple[NDArray[np.float32], dict[str, list[str]]]


def fold_omics(
    data: SurvivalData, train: Rows, profile: Profile, protocol: Protocol, seed: int, cache: OmicsCache
) -> Omics:
    """Selected and scaled omics of all patients [n, modalities, K], learnt on the training rows (or on all: a leak).

    Also returns the chosen features per modality. Kept in ``cache`` under all that they depend on, so that all methods
    share the selections of a fold and of its inner parts.
    """
    return omics_of(data, profile, protocol, seed, cache)(train)


def omics_of(
    data: SurvivalData, profile: Profile, protocol: Protocol, seed: int, cache: OmicsCache
) -> Callable[[Rows], Omics]:
    """``fold_omics`` for several sets of training rows, which share what does not look at labels."""
    if isinstance(data.omics, np.ndarray):
        values = data.omics
        return lambda train: (standardised(values, learnt_rows(train, data, protocol)), {})
    # Without a place to keep them, selections last as long as what asks for them.
    selector = SelectorCache(data.omics, profile.omics, {} if cache is None else cache, normals=data.normals)

    def choose(train: Rows) -> Omics:
        rows = learnt_rows(train, data, protocol)
        found = selector.select(rows, data.time, data.event, seed=seed)
        return found.matrix, {name: [str(item) for item in report.index] for name, report in found.chosen.items()}

    return choose


def learnt_rows(train: Rows, data: SurvivalData, protocol: Protocol) -> Rows:
    """The rows whose labels and distributions may be used: the training rows, or all under the leaking protocol."""
    return train if protocol.select_on == "train" else np.arange(len(data.time))


def standardised(omics: NDArray[np.floating], rows: Rows) -> NDArray[np.float32]:
    """Omics [n, modalities, K] less the mean of these rows, in their standard deviations."""
    known = omics[rows]
    spread = known.std(0)
    return ((omics - known.mean(0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)


def inner_numbers(data: SurvivalData, train: Rows, profile: Profile, seed: int) -> Rows:
    """Inner fold of each training row [n_train], as many folds as ``survival.inner_fraction`` goes into one.

    Raises ValueError for too few training patients.
    """
    count = max(2, round(1 / profile.survival.inner_fraction))
    return inner_folds(data.time[train], data.event[train], count, [seed, 11])


@dataclass
class FoldInputs:
    """All that a method may look at: rows of ``test`` may be predicted, never learnt from (unless Protocol says so).

    A method that chooses anything by its training patients (an epoch, a penalty) or says how it rates patients that it
    has not seen learns on each ``part``: there the patients of one inner fold teach nothing at all, not the choice of
    omics either.

    Attributes:
        omics: of all patients [n, modalities, K], chosen and scaled on ``train``; names: the features per modality.
        choose: rows -> omics chosen and scaled on these. None: ``omics`` are taken as given, also for the parts.
        left_out: rows of the inner fold that a part leaves out, empty for the whole fold.
    """

    data: SurvivalData
    train: Rows
    test: Rows
    omics: NDArray[np.float32] | None
    profile: Profile
    protocol: Protocol
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    names: dict[str, list[str]] = field(default_factory=dict)
    choose: Callable[[Rows], Omics] | None = None
    left_out: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def outcome(self, rows: Rows) -> NDArray:
        """Structured (event, time) of scikit-survival."""
        from sksurv.util import Surv

        return Surv.from_arrays(self.data.event[rows].astype(bool), self.data.time[rows])

    @cached_property
    def inner(self) -> Rows:
        """Inner fold of each training patient [n_train]; the same for all methods, which so share their selections."""
        return inner_numbers(self.data, self.train, self.profile, self.seed)

    @property
    def inner_count(self) -> int:
        """How many inner folds there are."""
        return int(self.inner.max()) + 1

    def part(self, number: int) -> FoldInputs:
        """The fold for a model that leaves inner fold ``number`` out: its own training rows and its own omics.

        Raises ValueError where nobody in it died.
        """
        away = self.inner == number
        rows = self.train[~away]
        if not self.data.event[rows].any():
            raise ValueError(
                f"inner fold {number} takes the only death of {len(self.train)} training patients: use fewer folds, a "
                "cohort with more deaths, or Protocol(epoch='last')"
            )
        omics, names = (self.omics, self.names) if self.choose is None else self.choose(rows)
        return replace(self, train=rows, omics=omics, names=names, left_out=self.train[away])


@dataclass(frozen=True)
class Binned:
    """Hazards of the test rows in time bins: hazards [n_test, K], ends [K] in days."""

    hazards: NDArray[np.float64]
    ends: NDArray[np.float64]


@dataclass(frozen=True)
class LinearRule:
    """A linear predictor, as it is applied to any patient: ((x - centre) / spread) @ weights, unknown values filled.

    x [n, p]: the omics of ``fold_omics`` side by side ("omics"), or age, sex and stage as numbers ("clinical").
    """

    reads: Literal["omics", "clinical"]
    fill: NDArray[np.float64]
    centre: NDArray[np.float64]
    spread: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __call__(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log hazards [n]."""
        return ((np.where(np.isfinite(x), x, self.fill) - self.centre) / self.spread) @ self.weights


@dataclass
class FoldOutput:
    """Risks of the test rows [n_test] and of the training rows [n_train], plus what is worth a line in a log.

    Attributes:
        train_risk: sets median, scale and baseline. With ``held_out`` each is the risk of a patient whom the model did
            not learn from, in any way, and NaN for patients without one; otherwise it is in-sample.
        binned: of methods whose output is hazards in bins, one for each network.
        models, parts: the networks, and what each was trained on.
        origins: what is taken off the risks of each network before their mean.
        rule: of linear methods, how any patient is rated.
    """

    risk: NDArray[np.floating]
    train_risk: NDArray[np.floating]
    info: dict[str, Any] = field(default_factory=dict)
    models: list[nn.Module] = field(default_factory=list)
    held_out: bool = False
    binned: list[Binned] = field(default_factory=list)
    parts: list[FoldInputs] = field(default_factory=list)
    origins: list[float] = field(default_factory=list)
    rule: LinearRule | None = None
