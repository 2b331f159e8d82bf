"""Tables of which some features are in one unit and the others in another are refused, and ordinary ones are not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from hcmae.omics.mixtures import two_units
from hcmae.omics.recognise import UnitError, recognise

PATIENTS, FEATURES = 24, 60
NAMES = [f"F{number}" for number in range(FEATURES)]
RNG = np.random.default_rng(5)
COUNTS = RNG.negative_binomial(2, 2 / (2 + RNG.lognormal(5, 1, FEATURES)), (PATIENTS, FEATURES)).astype(np.float32)
LOGS = np.round(np.log2(COUNTS + 1), 4)
SCORES = np.round((LOGS - LOGS.mean(axis=0)) / LOGS.std(axis=0), 4)
BETAS = np.round(RNG.beta(RNG.uniform(0.5, 5, FEATURES), 2, (PATIENTS, FEATURES)), 4).astype(np.float32)
PERCENT = np.round(100 * BETAS, 2)
M_VALUES = np.round(np.log2((BETAS + 1e-3) / (1 - BETAS + 1e-3)), 4)
# Reads that fit several genes are shared out; a gene without a twin keeps whole numbers.
EXPECTED = COUNTS + np.where(np.arange(FEATURES) % 3 == 0, np.round(RNG.random(COUNTS.shape), 2), 0).astype(np.float32)


def mixed(one: np.ndarray, other: np.ndarray, features: int) -> np.ndarray:
    """A table with the first ``features`` of one and the rest of another."""
    return np.where(np.arange(FEATURES) < features, one, other).astype(np.float32)


def unit(values: np.ndarray, modality: str, **more: str) -> str:
    return recognise(
        values, modality, [f"P{n}" for n in range(len(values))], NAMES[: values.shape[1]], "t.tsv", **more
    ).unit.name


@pytest.mark.parametrize("features", [4, 30, 56])
@pytest.mark.parametrize(
    ("one", "other", "modality", "told"),
    [
        (LOGS, COUNTS, "rna", r"\d+ of 60 features look like logarithms \(F\d+: .* look like counts \(F\d+: "),
        (LOGS, COUNTS, "mirna", "the table holds two units; bring all features to one, or, if it is one, say in"),
        (SCORES, LOGS, "rna", r"look like z-scores \(F0: .* look like logarithms"),
        (BETAS, PERCENT, "methylation", r"look like shares \(F.* look like per cent"),
        (BETAS, M_VALUES, "methylation", r"look like shares \(F.* look like M-values"),
    ],
)  # fmt: skip
def test_two_units_by_feature_are_refused_with_a_feature_of_each(
    one: np.ndarray, other: np.ndarray, modality: str, told: str, features: int
) -> None:
    if modality == "methylation" and features == 4:
        features = 10  # below a tenth, probes of one kind happen
    if one is LOGS and features == 56:
        features = 50  # a few small counts are whole in either unit
    with pytest.raises(UnitError, match=told):
        unit(mixed(one, other, features), modality)


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        (COUNTS, "rna"), (LOGS, "rna"), (SCORES, "rna"), (EXPECTED, "rna"), (BETAS, "methylation"),
        (PERCENT, "methylation"), (M_VALUES, "methylation"), (PERCENT / 40, "methylation"),
        (LOGS - np.median(LOGS, axis=0), "rna"), (LOGS - 5, "rna"), (np.log2(np.maximum(COUNTS, 1e-3)), "rna"),
        (1e6 * COUNTS / COUNTS.sum(axis=1, keepdims=True), "rna"), (COUNTS / 7, "rna"), (COUNTS[:3], "rna"),
        (np.where(np.arange(FEATURES) % 4 == 0, EXPECTED / 100, EXPECTED), "rna"),
    ],
)  # fmt: skip
def test_tables_of_one_unit_are_let_pass(values: np.ndarray, modality: str) -> None:
    assert two_units(values.astype(np.float32), modality, NAMES) == ""


def test_who_states_the_unit_is_told_and_believed() -> None:
    values = mixed(BETAS, PERCENT, 30)
    with pytest.warns(UserWarning, match=r"beta_percent, as stated; but 2\d of 60 features look like shares"):
        assert unit(values, "methylation", stated="beta_percent") == "beta_percent"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unit(PERCENT, "methylation", stated="beta_percent") == "beta_percent"
        assert unit(EXPECTED, "rna", stated="expected_counts") == "expected_counts"


def test_missing_values_and_constant_features_decide_nothing() -> None:
    for values, modality in ((LOGS, "rna"), (M_VALUES, "methylation")):
        table = values.astype(np.float32).copy()
        table[RNG.random(table.shape) < 0.2] = np.nan
        table[:, 0], table[:, 1] = np.nan, 1
        assert two_units(table, modality, NAMES) == ""
    table = mixed(LOGS, COUNTS, 30)
    table[RNG.random(table.shape) < 0.1] = np.nan
    assert "look like logarithms" in two_units(table, "rna", NAMES)
