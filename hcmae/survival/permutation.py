"""The permutation p-value of a survival method's risk groups: folds, selection, training and groups made again."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hcmae.cohort.splits import FewEventsWarning, make_folds
from hcmae.config import Profile, Protocol
from hcmae.evaluation.kaplan_meier import log_rank_statistic
from hcmae.evaluation.permutation import PermutationTest, permutation_test
from hcmae.keys import Key, code_of
from hcmae.survival.cross_validate import cross_validate, predictions_key
from hcmae.survival.data import SurvivalData


def permutation_of_groups(
    method: str,
    data: SurvivalData,
    profile: Profile,
    protocol: Protocol | None = None,
    *,
    permutations: int = 199,
    repeats: int = 1,
    seed: int = 0,
    out_dir: str | Path | None = None,
    workers: int = 1,
    device: str | torch.device | None = None,
) -> PermutationTest:
    """Whether the risk groups of a method part further than those of the same method on permuted outcomes.

    Costs ``permutations`` + 1 cross-validations. The outcomes as they are go through the same code, with the folds of
    ``make_folds`` for this seed, so that its naive p-value is that of ``risk_groups`` on the same folds.

    Args:
        out_dir: finished permutations are kept there, one file for each key, and not computed again.
        workers, device, protocol: as in ``cross_validate``.

    Raises:
        KeyError, ValueError: as ``cross_validate`` and ``evaluation.permutation.permutation_test``.
    """
    protocol = protocol or Protocol.preset("honest")

    def procedure(time: NDArray[np.float64], event: NDArray[np.int64]) -> pd.DataFrame:
        labelled = replace(data, time=time, event=event)
        with warnings.catch_warnings():
            # Few deaths in a fold are part of the procedure, for every permutation alike.
            warnings.simplefilter("ignore", FewEventsWarning)
            folds = make_folds(data.patients, time, event, profile.survival.folds, repeats, seed)
            return cross_validate(
                method, labelled, folds, profile, protocol, seed=seed, omics_cache={}, workers=workers, device=device
            )

    kept, digest = None, ""
    if out_dir is not None:
        predictions = predictions_key(method, data, profile, protocol, seed)
        key = Key(
            f"permutation test of {method}",
            {"folds": profile.survival.folds, "repeats": repeats},
            {"predictions": predictions.digest},
            {"groups": code_of(log_rank_statistic, make_folds, permutation_test)},
        )
        digest, kept = key.digest, Path(out_dir) / f"{method}-{key.digest}.permutations.json"
    return permutation_test(
        procedure,
        log_rank_statistic,
        data.time,
        data.event,
        permutations=permutations,
        seed=seed,
        kept=kept,
        key=digest,
    )
