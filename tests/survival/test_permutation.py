"""The permutation p-value of a registered method: all of it is made again, and kept under its key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcmae.cohort.splits import make_folds
from hcmae.config import load_profile
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.survival import permutation
from hcmae.survival.cross_validate import cross_validate
from hcmae.survival.data import SurvivalData


@pytest.fixture(scope="module")
def data() -> SurvivalData:
    """50 patients whose hazard is their age."""
    rng = np.random.default_rng(0)
    age = rng.normal(60, 10, 50)
    names = [f"P{number:02d}" for number in range(50)]
    clinical = pd.DataFrame({"age": age, "sex": "female", "stage": "Stage II"}, index=names)
    time = rng.exponential(1000 * np.exp(-(age - 60) / 5)) + 1
    return SurvivalData(names, time, np.ones(50, int), {}, None, clinical)


def test_a_method_that_predicts_is_told_from_its_permutations(
    data: SurvivalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile("smoke", {"survival.folds": 2})
    asked = {"permutations": 3, "seed": 1, "out_dir": tmp_path}
    test = permutation.permutation_of_groups("cox_clinical", data, profile, **asked)
    assert test.p == 1 / 4
    # The truth goes through the very folds of a run with this seed.
    folds = make_folds(data.patients, data.time, data.event, 2, 1, 1)
    groups = risk_groups(cross_validate("cox_clinical", data, folds, profile, seed=1))
    assert groups.log_rank_p == pytest.approx(test.naive_p)

    monkeypatch.setattr(permutation, "cross_validate", lambda *_, **__: pytest.fail("a permutation was made again"))
    assert permutation.permutation_of_groups("cox_clinical", data, profile, **asked) == test
    with pytest.raises(pytest.fail.Exception, match="made again"):
        permutation.permutation_of_groups("cox_clinical", data.permuted(0), profile, **asked)


def test_folds_are_made_for_the_permuted_outcomes(data: SurvivalData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds are stratified by the outcome: those of the truth would know what was permuted away."""
    seen = []

    def predictions(method: str, labelled: SurvivalData, folds: pd.DataFrame, *_: object, **__: object) -> pd.DataFrame:
        seen.append((labelled.time, folds))
        flags = np.arange(50) % 2 == 0
        columns = {"time": labelled.time, "event": labelled.event, "risk_z": 0.0, "high": flags, "repeat": 0}
        return pd.DataFrame({"patient": labelled.patients, **columns})

    monkeypatch.setattr(permutation, "cross_validate", predictions)
    permutation.permutation_of_groups("cox_clinical", data, load_profile("smoke"), permutations=2)
    assert len(seen) == 3
    for time, folds in seen:
        expected = make_folds(data.patients, time, data.event, load_profile("smoke").survival.folds, 1, 0)
        pd.testing.assert_frame_equal(folds, expected)
    assert not np.array_equal(seen[0][0], seen[1][0])
