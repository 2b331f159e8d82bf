"""Copies: two patients with one row, one table given as two modalities."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hcmae.cohort.cells import plain_number
from hcmae.tables import is_missing, listed, read_text

# So many values that are not zero, and so many different ones, are the same in two people by no chance.
_VALUES, _DIFFERENT = 10, 5
# So many pairs of rows that are equal by chance are to be expected at most, for equal rows to be worth a word.
_BY_CHANCE = 0.05
# Two modalities have few features in common; of a table that was given twice, nearly all.
_SHARED, _FEWEST = 0.5, 5
_LOOKED_AT = 10


def equal_rows(names: Sequence[str], values: NDArray[np.floating]) -> list[list[str]]:
    """Groups of rows [rows, features] that hold the same values, by their names; rows that say little are left out."""
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(values):
        groups.setdefault(hashlib.blake2b(np.ascontiguousarray(row).tobytes()).digest(), []).append(number)
    found = []
    for rows in groups.values():
        if len(rows) < 2:
            continue
        known = values[rows[0]][np.isfinite(values[rows[0]])]
        known = known[known != 0]
        if len(known) >= _VALUES and len(np.unique(known)) >= _DIFFERENT:
            found.append([names[row] for row in rows])
    return found


def line_of_equal_rows(names: Sequence[str], values: NDArray[np.floating]) -> str:
    """What to say of rows that hold the same values, '' where there are none."""
    groups = equal_rows(names, values)
    if not groups:
        return ""
    told = listed([" and ".join(group[:3]) for group in groups], 3)
    return (
        f"{told} have the same value in every feature, as a row that was copied: find out whose it is, and remove "
        "the other"
    )


def equal_patients(rows: Mapping[str, Sequence[Mapping[str, str]]], apart: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of patients whose clinical rows say the same in every column but those of ``apart`` (names, slides).

    Only where such a pair is no chance: the fewer columns a table has, and the rougher its numbers, the sooner two
    people are alike. The two columns that tell most are taken as independent, each of the others halves the chance at
    best, because times repeat each other.
    """
    first = {patient: found[0] for patient, found in rows.items() if found}
    columns = [name for name in next(iter(first.values()), {}) if name not in apart]
    groups: dict[tuple[str, ...], list[str]] = {}
    for patient, row in first.items():
        groups.setdefault(tuple(row[name] for name in columns), []).append(patient)
    pairs = [(own[0], other) for own in groups.values() for other in own[1:]]
    if not pairs:
        return []
    asked = [name for name in columns if not is_missing(first[pairs[0][0]][name])]
    chances = sorted(_chance([row[name] for row in first.values()]) for name in asked)
    # The two that tell most, as a time and an age; each of the others halves the chance at best.
    expected = 0.5 * len(first) * (len(first) - 1)
    for number, chance in enumerate(chances):
        expected *= chance if number < 2 else max(chance, 0.5)
    return pairs if expected <= _BY_CHANCE else []


def line_of_equal_patients(rows: Mapping[str, Sequence[Mapping[str, str]]], apart: Collection[str | None]) -> list[str]:
    """What to say of patients whose clinical rows are equal; no line where none are."""
    pairs = [f"{one} and {other}" for one, other in equal_patients(rows, [name for name in apart if name is not None])]
    if not pairs:
        return []
    return [
        f"{listed(pairs, 3)} say the same in every column, as a row that was copied: see whether they are one patient "
        "under two names, and keep one of them then"
    ]


def _chance(cells: Sequence[str]) -> float:
    """How probable it is that two patients agree in a column by chance."""
    known = [cell for cell in cells if not is_missing(cell)]
    numbers = np.array([plain_number(cell) for cell in known])
    count = Counter(known)
    if len(known) < 2:
        return 1.0
    if np.isfinite(numbers).all() and len(count) > 10:
        decimals = max(len(cell.partition(".")[2]) for cell in known)
        low, high = np.percentile(numbers, [25, 75])
        return float(min(1.0, 10.0**-decimals / max(2 * (high - low), 1e-9)))
    return sum((number / len(known)) ** 2 for number in count.values())


def table_given_twice(features: Mapping[str, tuple[Path, Collection[str]]]) -> str:
    """What is wrong where one table is given as two modalities, '' where none is.

    features: by modality the table and the names of its features. RNA and miRNA have no feature in common; methylation
    by gene has the names of genes, so there the values are compared as well.
    """
    wanted = [(what, path, set(names)) for what, (path, names) in features.items()]
    for number, (what, path, names) in enumerate(wanted):
        for other, second, others in wanted[number + 1 :]:
            same = sorted(names & others)
            if len(same) < _FEWEST or len(same) <= _SHARED * min(len(names), len(others)):
                continue
            if {what, other} == {"rna", "mirna"} or _same_values(path, second, same[:_LOOKED_AT]):
                return (
                    f"{path}: {len(same):,} of its {len(names):,} features are those of {second.name} "
                    f"({listed(same, 3)}): one table is given as {what} and as {other}; put the right one there, or "
                    "leave one out"
                )
    return ""


def _same_values(one: Path, other: Path, names: Sequence[str]) -> bool:
    """Whether two tables hold the same rows in some columns."""
    rows = [Counter(map(tuple, read_text(path, names).to_numpy().tolist())) for path in (one, other)]
    return 2 * (rows[0] & rows[1]).total() > min(rows[0].total(), rows[1].total())
