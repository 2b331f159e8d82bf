"""What a fitted selection knows that a patient who comes later needs. No patient's values are in it.

The neighbours of `OmicsSelector` are the fitted patients themselves, so they stay at home: what a later patient lacks
counts as the mean of the fitted patients (0 after standardisation), and is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hcmae.omics.recognise import UnitError, recognise
from hcmae.omics.scales import Scale, SizeFactors, check_scale, log_expression
from hcmae.omics.select import OmicsSelector, OmicsTable, omics_tables, rescale
from hcmae.tables import listed
from hcmae.units import UNITS

# A table that lacks a larger share of what is asked for is of another panel, or of another cancer's model.
MOST_LACKING = 0.2
# Chosen features further than this from the fitted patients' mean, in their standard deviations, are unusual.
UNUSUAL = 4.0


class OtherFeaturesError(ValueError):
    """A table that cannot be what the rule was fitted on; the message names modality and features or units."""


@dataclass(frozen=True)
class FeatureRule:
    """The chosen features of one modality and how they are scaled; K features, best first.

    unit: of the fitted table (`hcmae.units.UNITS`) where somebody said it. low, high [K]: bounds of logarithms.
    library, log_mean [p], median_library: of counts, what size factors are taken from.
    """

    modality: str
    unit: str | None
    scale: Scale
    names: tuple[str, ...]
    genes: tuple[str, ...]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None
    library: tuple[str, ...] = ()
    log_mean: NDArray[np.float64] | None = None
    median_library: float = 0.0

    def apply(self, table: OmicsTable, clip: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Standardised features [n, K] of these patients, and where the mean stands for a missing one [n, K].

        Raises OtherFeaturesError for another unit and where too much of what is asked for is not in the table,
        ValueError for values that contradict the scale.
        """
        self._check_unit(table)
        check_scale(table.X, self.scale, self.modality, table.patients, table.features)
        at = self._found(table, self.names, "that the model reads")
        known = np.where(at >= 0, table.X[:, at], np.float32(np.nan)).astype(np.float32, copy=False)
        if self.scale == "counts":
            assert self.log_mean is not None
            where = self._found(table, self.library, "that its size factors are taken from")
            factors = SizeFactors(self.log_mean[where >= 0], self.median_library)
            values = log_expression(known, factors(table.X[:, where[where >= 0]]))
        else:
            limits = None if self.low is None or self.high is None else (self.low, self.high)
            values = rescale(known, self.scale, limits)
        z = np.clip((values - self.mean) / self.sd, -clip, clip).astype(np.float32)
        missing = np.isnan(z)
        return np.where(missing, np.float32(0), z), missing

    def _found(self, table: OmicsTable, names: tuple[str, ...], what: str) -> NDArray[np.int64]:
        at = np.asarray(table.features.get_indexer(pd.Index(names, dtype=object)), dtype=np.int64)
        lacking = [name for name, place in zip(names, at, strict=True) if place < 0]
        if len(lacking) > MOST_LACKING * len(names):
            raise OtherFeaturesError(
                f"{self.modality}: {len(lacking):,} of {len(names):,} features {what} are not in this table (first: "
                f"{listed(lacking, 3)}); it is of another panel, another release of names, or for another model: bring "
                f"a table with features such as {listed(list(names), 3)}"
            )
        return at

    def _check_unit(self, table: OmicsTable) -> None:
        given = table.declared
        if given in (None, "auto", "as given"):
            if self.unit not in UNITS:
                return
            try:
                given = recognise(table.X, self.modality, table.patients, list(table.features), self.modality).unit.name
            except UnitError as error:
                raise OtherFeaturesError(str(error)) from error
        theirs = UNITS[given].scale if given in UNITS and self.unit not in UNITS else given
        if theirs not in (self.unit, self.scale):
            raise OtherFeaturesError(
                f"{self.modality}: these are {given}, and the model was trained on {self.unit or self.scale}: "
                "bring the table in that unit"
            )


def rules_of(selector: OmicsSelector) -> dict[str, FeatureRule]:
    """The rules of a fitted selector, by modality."""
    found = {}
    for modality, step in selector.steps.items():
        limits = (None, None)
        if step.limits is not None:
            limits = (step.limits[0][step.chosen], step.limits[1][step.chosen])
        counted: dict[str, Any] = {}
        if step.factors is not None:
            counted = {
                "library": tuple(step.features),
                "log_mean": step.factors.log_mean,
                "median_library": step.factors.median_library,
            }
        names = tuple(step.features[step.kept[step.chosen]])
        genes = tuple(str(gene) for gene in selector.chosen[modality]["gene"])
        found[modality] = FeatureRule(
            modality, step.declared, step.scale, names, genes, step.mean, step.sd, *limits, **counted
        )
    return found


@dataclass(frozen=True)
class Applied:
    """matrix [n, modalities, K] standardised; filled, unusual: the same shape, what was missing, what is far off."""

    matrix: NDArray[np.float32]
    filled: NDArray[np.bool_]
    unusual: NDArray[np.bool_]


def apply_rules(rules: Mapping[str, FeatureRule], data: Any, clip: float) -> Applied:
    """The features of new patients. data: MuData, or dict of tables, with every modality of the rules (others are
    passed over). Raises what ``FeatureRule.apply`` raises, and ValueError for a modality that is not there.
    """
    lacking = [name for name in rules if name not in (data.mod if hasattr(data, "mod") else data)]
    if lacking:
        raise OtherFeaturesError(
            f"the model reads {', '.join(rules)}, and there is no {lacking[0]}: nothing stands for a whole table; "
            "train a model without it (an image-only or omics-only method, or --modalities)"
        )
    tables = omics_tables(data, list(rules))
    parts = [rule.apply(tables[name], clip) for name, rule in rules.items()]
    matrix = np.stack([values for values, _ in parts], axis=1)
    filled = np.stack([missing for _, missing in parts], axis=1)
    return Applied(matrix, filled, np.abs(matrix) >= min(UNUSUAL, clip))
