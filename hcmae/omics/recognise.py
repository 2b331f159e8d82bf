"""What the numbers of a table are: stated by the user, or recognised with a reason; what does not fit is named.

Nothing here changes a number but :func:`converted`. A table whose unit is neither stated nor plain is refused, because
a wrong unit spoils a study without a trace: logarithms taken twice, libraries that nobody corrects for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hcmae.omics.mixtures import LARGEST_LOG, two_units
from hcmae.units import UNITS, Unit, unit_in_name, unit_named

# Up to this share of values that differ in kind from all others are strays to be named, not the rule of a new unit.
_STRAY = 0.01
# Fractions among whole numbers are strays up to this share of the values that are not 0.
_STRAY_FRACTIONS = 0.05
# Sums of reads per million: tables without rare features fall a little short.
_MILLION = (0.8e6, 1.01e6)
# Sums beyond these are far from a million.
_ABOUT_MILLION = (1e5, 2e6)
# So few different negative numbers among many others are marks for "missing".
_MARKS = 2
# What a table of two units, feature by feature, is taken for: the looser of the two.
_COULD_BE_TWO = ("expected_counts", "log2", "z_score", "m_value", "beta_percent")
# Patients looked at where all would not say more.
_SOME = 50


class UnitError(ValueError):
    """Numbers that fit no unit, or not the stated one; the message names table, patient, feature and value."""


@dataclass(frozen=True)
class Recognition:
    """``unit`` of a table and the ``reason`` for it; ``stated`` by the user (columns.json, a setting) or not."""

    unit: Unit
    reason: str
    stated: bool = False

    def line(self, where: str) -> str:
        """One line for the user."""
        done = "" if self.unit.done == "nothing" else f"; {self.unit.done}"
        return f"{where}: {self.unit.name} ({self.unit.meaning}), {self.reason}{done}"


def recognise(
    values: np.ndarray,
    modality: str,
    patients: Sequence[str],
    features: Sequence[str],
    where: str,
    *,
    stated: str | None = None,
    file_name: str | None = None,
) -> Recognition:
    """The unit of a table and why: stated, else in the name of its file, else plain from its numbers.

    values [n, p] float, NaN where missing; ``where`` is named in errors. Raises UnitError for values that do not fit
    the unit, with patient, feature and value, and where the numbers do not say what they are. Warns where a unit that
    is stated, or in the file's name, is possible and unlikely.
    """
    table = _Table(values, modality, patients, features, where)
    if not np.isfinite(values).any():
        raise UnitError(f"{where}: the table has no value at all")
    if stated is not None:
        try:
            found = Recognition(unit_named(stated, modality), "as stated", True)
        except ValueError as error:
            raise UnitError(f"{where}: {error}") from None
    elif file_name is not None and (named := unit_in_name(file_name, modality)) is not None:
        found = Recognition(named, "as the name of the file says")
    else:
        found = _methylation(table) if modality == "methylation" else _expression(table)
        if (found.unit.name in _COULD_BE_TWO) and (told := two_units(values, modality, features)):
            raise UnitError(f"{where}: {told}; bring all features to one, or, if it is one, {_ask(modality)}")
        check_unit(values, found.unit, modality, patients, features, where)
        return found
    check_unit(values, found.unit, modality, patients, features, where)
    _check_statement(table, found)
    if found.unit.name in _COULD_BE_TWO and (told := two_units(values, modality, features)):
        _warn(f"{where}: {found.unit.name}, {found.reason}; but {told}; see if it is right")
    return found


def check_unit(
    values: np.ndarray, unit: Unit, modality: str, patients: Sequence[str], features: Sequence[str], where: str
) -> None:
    """Raise UnitError, naming patient, feature and value, where values contradict their unit."""
    table = _Table(values, modality, patients, features, where)
    low, high = unit.bounds
    with np.errstate(invalid="ignore"):
        outside = (values < low) | (values > high) | np.isinf(values)
        if outside.any():
            raise table.error(outside, f"is no value of the unit {unit.name} ({unit.meaning})")
        if unit.scale == "counts" and np.isnan(values).any():
            raise table.error(np.isnan(values), f"is missing; {unit.name} have no missing values")
        if unit.name == "counts" and (fractions := values != np.rint(values)).any():
            raise table.error(fractions, "is no whole number, as counts are")
        largest, smallest = float(np.nanmax(values)), float(np.nanmin(values))
    if unit.name == "beta_percent" and largest <= 1:
        raise UnitError(f"{where}: no value is above 1 ({largest:g} at most): these are shares, not per cent")
    if unit.name == "m_value" and smallest >= 0 and largest <= 1:
        raise UnitError(f"{where}: all values lie between 0 and 1: these are shares (beta), not M-values")
    if unit.name == "z_score" and smallest >= 0:
        raise UnitError(f"{where}: no value is negative, as half of the z-scores are; {_ask(modality)}")


def _check_statement(table: _Table, found: Recognition) -> None:
    """Raise UnitError where the numbers of a whole table are not of the unit that somebody wrote down; warn of doubts.

    No unit is taken from a name against the numbers: logarithms would be taken twice, libraries not corrected for.
    """
    unit, values, where = found.unit, table.values, table.where
    claim = f"{unit.name} ({unit.meaning}), {found.reason}"
    largest, sums = float(np.nanmax(values)), _sums(values)
    with np.errstate(invalid="ignore"):
        whole = bool(((values == np.rint(values)) | np.isnan(values)).all())
    if unit.scale == "rpm" and whole and sums.max() > _ABOUT_MILLION[1]:
        row = int(sums.argmax())
        raise UnitError(
            f"{where}: {claim}; but all values are whole numbers, and those of patient {table.patients[row]} add up to "
            f"{sums[row]:,.0f}: these look like counts; {_ask(table.modality)}"
        )
    if unit.name in ("rpm", "tpm") and largest > _MILLION[1]:
        raise table.error(values > _MILLION[1], f"is more than a million: no value of the unit {claim}")
    # Rates per million without a larger value would need tens of thousands of genes that are all alike.
    small_rates = unit.scale == "rpm" and not _millions(values, _MILLION)
    if largest <= LARGEST_LOG and (small_rates or (unit.name == "expected_counts" and _mostly_fractions(values))):
        row, column = divmod(int(np.nanargmax(values)), values.shape[1])
        raise UnitError(
            f"{where}: {claim}; but the largest value is {largest:g} (patient {table.patients[row]}, feature "
            f"{table.features[column]}; this patient's values add up to {sums[row]:,.0f}): these look like "
            f"{'counts' if whole else 'logarithms'}; {_ask(table.modality)}"
        )
    if unit.name in ("rpm", "tpm"):
        _warn_of_sums(table, claim, sums, "values add", whole)
    elif unit.name in ("log2_rpm", "log2_tpm"):
        linear = _sums(np.exp2(values[:_SOME].astype(np.float64)) - 1.0)
        _warn_of_sums(table, claim, linear, "numbers 2^value - 1 add", False)
    elif unit.scale == "counts" and len(values) > 2 and _millions(values, (0.995e6, 1.005e6)):
        _warn(f"{where}: {claim}; but those of all patients add up to a million, as RPM or TPM do; see if it is right")


def _mostly_fractions(values: np.ndarray) -> bool:
    positive = values[values > 0]
    return bool((positive != np.rint(positive)).mean() > 0.5) if positive.size else False


def _warn_of_sums(table: _Table, claim: str, sums: np.ndarray, added: str, whole: bool) -> None:
    """Warn where what should be a million is not: a panel of some genes, or another unit."""
    low, high = _ABOUT_MILLION
    far = (sums < low) | (sums > high)
    if far.any():
        row = int(far.argmax())
        means = "this is right for a panel of some genes only" if sums[row] < low else "no table of that unit does"
        also = ", and all are whole numbers, as counts are" if whole else ""
        _warn(
            f"{table.where}: {claim}; but for patient {table.patients[row]} the {added} up to {sums[row]:,.0f}, where "
            f"a million is due ({far.sum():,} such patients of {len(sums):,}){also}; {means}: see if the unit is right"
        )
    elif whole and not _millions(table.values, _MILLION):
        _warn(f"{table.where}: {claim}; but all values are whole numbers, as counts are; see if it is right")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def converted(values: np.ndarray, unit: Unit) -> tuple[np.ndarray, Unit]:
    """The numbers that the selection sees, and their unit: expected counts rounded, per cent as shares, others as they
    are.

    Rounding as tximport does it for DESeq2: to the nearest whole number.
    """
    if unit.name == "expected_counts":
        return np.rint(values), UNITS["counts"]
    if unit.name == "beta_percent":
        return (values / np.float32(100.0)).astype(values.dtype, copy=False), UNITS["beta"]
    return values, unit


@dataclass(frozen=True)
class _Table:
    values: np.ndarray
    modality: str
    patients: Sequence[str]
    features: Sequence[str]
    where: str

    def error(self, mask: np.ndarray, what: str) -> UnitError:
        """An error that names the first cell of a mask and says how many there are."""
        row, column = divmod(int(np.argmax(mask)), mask.shape[1])
        count, known = int(mask.sum()), int(np.isfinite(self.values).sum())
        more = f" ({count:,} such values of {known:,})" if count > 1 else ""
        value = self.values[row, column]
        return UnitError(
            f"{self.where}: patient {self.patients[row]}, feature {self.features[column]}: "
            f"{'the value' if np.isnan(value) else f'{value:g}'} {what}{more}; correct it, or {_ask(self.modality)}"
        )


def _ask(modality: str) -> str:
    known = ", ".join(name for name, unit in UNITS.items() if modality in unit.modalities)
    return f'say in columns.json what the table holds, {{"units": {{"{modality}": ...}}}}, with one of {known}'


def _expression(table: _Table) -> Recognition:
    values = table.values
    with np.errstate(invalid="ignore"):
        negative = values < 0
        if negative.any():
            return _with_negatives(table, negative)
        fractions = np.isfinite(values) & (values != np.rint(values))
        count, positive = int(fractions.sum()), int((values > 0).sum())
    if count == 0:
        if _millions(values, (0.995e6, 1.005e6)) and len(values) > 2:
            raise UnitError(
                f"{table.where}: whole numbers, but those of every patient add up to a million, as rounded RPM or TPM "
                f"do; {_ask(table.modality)}"
            )
        return Recognition(UNITS["counts"], "because all values are whole numbers and none is negative")
    if count <= max(1, _STRAY_FRACTIONS * positive):
        raise table.error(fractions, "is no whole number, while nearly all others are")
    _check_one_unit(table, LARGEST_LOG, 1000.0)
    _check_thousands(table, fractions)
    largest = float(np.nanmax(values))
    if largest <= 1:
        raise UnitError(f"{table.where}: all values lie between 0 and 1, as no expression does; {_ask(table.modality)}")
    if largest <= LARGEST_LOG:
        return _logarithms(table, largest)
    if _millions(values, _MILLION):
        unit = UNITS["tpm" if table.modality == "rna" else "rpm"]
        return Recognition(unit, "because the values of every patient add up to about a million")
    large = values[values > 5]
    whole = float((large == np.rint(large)).mean()) if large.size else 0.0
    if whole >= 0.2:
        reason = f"because {whole:.0%} of the larger values are whole numbers and the others are not"
        return Recognition(UNITS["expected_counts"], reason)
    raise UnitError(
        f"{table.where}: fractional values up to {largest:g} that add up to no million: RPM, TPM, FPKM and expected "
        f"counts look like this; {_ask(table.modality)}"
    )


def _with_negatives(table: _Table, negative: np.ndarray) -> Recognition:
    values = table.values
    share = float(negative.sum() / np.isfinite(values).sum())
    if negative.sum() <= max(1, _STRAY * np.isfinite(values).sum()):
        raise table.error(negative, "is negative, while nearly all others are not")
    marks = np.unique(values[negative])
    if len(marks) <= _MARKS < len(np.unique(values[~negative & np.isfinite(values)])):
        kind = "the only negative value" if len(marks) == 1 else "one of few that are negative"
        raise table.error(negative, f"is {kind} and stands again and again: a mark for a missing value is left empty")
    if _standardised(values):
        reason = f"because {share:.0%} of the values are negative and most features have mean 0 and deviation 1"
        return Recognition(UNITS["z_score"], reason)
    unit = UNITS["m_value" if table.modality == "methylation" else "log2"]
    if np.nanmin(values) >= unit.bounds[0] and np.nanmax(values) <= unit.bounds[1]:
        reason = f"because {share:.0%} of the values are negative and none is beyond {np.nanmax(np.abs(values)):.3g}"
        return Recognition(unit, reason)
    raise UnitError(
        f"{table.where}: {share:.0%} of the values are negative, yet they reach from {np.nanmin(values):g} to "
        f"{np.nanmax(values):g}, as neither logarithms nor z-scores do; {_ask(table.modality)}"
    )


def _check_one_unit(table: _Table, low: float, high: float) -> None:
    """Raise UnitError where some patients have no value above ``low`` and others have values above ``high``.

    Half a table in one unit and half in another, put together from two sources, fits the unit of neither.
    """
    largest = np.nanmax(np.where(np.isfinite(table.values), table.values, -np.inf), axis=1)
    small, large = (largest > 0) & (largest <= low), largest > high
    if small.any() and large.any():
        one, other = int(small.argmax()), int(large.argmax())
        raise UnitError(
            f"{table.where}: no value of patient {table.patients[one]} is above {largest[one]:.3g} ({small.sum():,} "
            f"such patients of {len(largest):,}), while those of {table.patients[other]} reach {largest[other]:,.0f}: "
            "the table holds two units; bring all patients to one"
        )


def _check_thousands(table: _Table, fractions: np.ndarray) -> None:
    """Raise UnitError where the points can be marks between thousands: '3.751' for 3751 reads."""
    values = table.values
    if np.nanmax(values) >= 1000 or fractions.sum() < 3:
        return
    thousands = values[fractions].astype(np.float64) * 1000
    whole = np.abs(thousands - np.rint(thousands)) < 0.05
    third = np.rint(thousands) % 10 != 0
    if whole.all() and third.mean() > 0.5 and (values[~fractions & (values > 0)].size > 0):
        raise table.error(
            fractions, "has three decimals, as all fractions here have, and no value reaches 1000: if the point "
            "separates thousands, write the numbers without it; if not"
        )  # fmt: skip


def _logarithms(table: _Table, largest: float) -> Recognition:
    counted = np.exp2(table.values[:_SOME].astype(np.float64)) - 1.0
    reason = f"because no value is above {largest:.3g}"
    if _millions(counted, _MILLION):
        unit = UNITS["log2_tpm" if table.modality == "rna" else "log2_rpm"]
        return Recognition(unit, f"{reason} and 2^value - 1 adds up to about a million for every patient")
    # Where four decimals of the logarithm still tell whole numbers from others.
    small = counted[(counted > 0.5) & (counted < 500)]
    if small.size and float((np.abs(small - np.rint(small)) <= 0.05).mean()) > 0.95:
        return Recognition(UNITS["log2_counts"], f"{reason} and 2^value - 1 gives whole numbers")
    return Recognition(UNITS["log2"], f"{reason}, as is true of logarithms")


def _methylation(table: _Table) -> Recognition:
    values = table.values
    with np.errstate(invalid="ignore"):
        outside = (values < 0) | (values > 1)
        negative = values < 0
    if not outside.any():
        return Recognition(UNITS["beta"], "because all values lie between 0 and 1")
    if outside.sum() <= max(1, _STRAY * np.isfinite(values).sum()):
        raise table.error(outside, "is no share between 0 and 1, while nearly all others are")
    if negative.any():
        return _with_negatives(table, negative)
    largest = float(np.nanmax(values))
    if 20 < largest <= 100:
        _check_one_unit(table, 1.0, 20.0)
        return Recognition(UNITS["beta_percent"], f"because the values lie between 0 and {largest:g}")
    raise table.error(outside, f"is no share between 0 and 1, and with values up to {largest:g} not in per cent either")


def _millions(values: np.ndarray, limits: tuple[float, float]) -> bool:
    sums = _sums(values)
    return bool((sums >= limits[0]).all() and (sums <= limits[1]).all())


def _sums(values: np.ndarray) -> np.ndarray:
    """Sum of every patient's values [n]."""
    return np.asarray(np.nansum(values, axis=1, dtype=np.float64))


def _standardised(values: np.ndarray) -> bool:
    if len(values) < 3:
        return False
    measured = np.isfinite(values).sum(axis=0) > 1
    if not measured.any():
        return False
    part = values[:, measured]
    middle = np.median(np.abs(np.nanmean(part, axis=0, dtype=np.float64)))
    spread = np.median(np.nanstd(part, axis=0, dtype=np.float64))
    return bool(middle < 0.25 and 0.5 < spread < 2.0)
