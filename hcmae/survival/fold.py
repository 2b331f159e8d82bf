"""What a method sees of one fold: rows, omics chosen on the training part, settings; and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hcmae.config import Profile, Protocol
from hcmae.omics.cache import Kept, SelectorCache
from hcmae.survival.data import SurvivalData

# Where selections of omics are kept: a dict, a folder, or nowhere.
OmicsCache = Kept
Rows = NDArray[np.int64]


def fold_omics(
    data: SurvivalData, train: Rows, profile: Profile, protocol: Protocol, seed: int, cache: OmicsCache
) -> tuple[NDArray[np.float32], dict[str, list[str]]]:
    """Selected and scaled omics of all patients [n, modalities, K], learnt on the training rows (or on all: a leak).

    Also returns the chosen features per modality. Kept in ``cache`` under all that they depend on, so that all methods
    of a fold share one selection.
    """
    rows = train if protocol.select_on == "train" else np.arange(len(data.time))
    if isinstance(data.omics, np.ndarray):
        return standardised(data.omics, rows), {}
    selector = SelectorCache(data.omics, profile.omics, cache, normals=data.normals)
    found = selector.select(rows, data.time, data.event, seed=seed)
    return found.matrix, {modality: [str(name) for name in report.index] for modality, report in found.chosen.items()}


def standardised(omics: NDArray[np.floating], rows: Rows) -> NDArray[np.float32]:
    """Omics [n, modalities, K] less the mean of these rows, in their standard deviations."""
    known = omics[rows]
    spread = known.std(0)
    return ((omics - known.mean(0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)


@dataclass
class FoldInputs:
    """All that a method may look at: rows of ``test`` may be predicted, never learnt from (unless Protocol says so)."""

    data: SurvivalData
    train: Rows
    test: Rows
    omics: NDArray[np.float32] | None
    profile: Profile
    protocol: Protocol
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def outcome(self, rows: Rows) -> NDArray:
        """Structured (event, time) of scikit-survival."""
        from sksurv.util import Surv

        return Surv.from_arrays(self.data.event[rows].astype(bool), self.data.time[rows])


@dataclass
class FoldOutput:
    """Risks of the test rows [n_test] and of the training rows [n_train], plus what is worth a line in a log.

    Training risks are held-out ones (inner folds) where the protocol has any; they set median, scale and baseline.
    """

    risk: NDArray[np.floating]
    train_risk: NDArray[np.floating]
    info: dict[str, Any] = field(default_factory=dict)
    models: list[nn.Module] = field(default_factory=list)
