"""What must not be among the features of an omics table: the outcome that they are to predict, other data on people and
on how samples were processed, and numbers of rows.

Also names of genes that a spreadsheet has made dates of, or that R has changed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from hcmae.cohort.layouts import NAMES, normalised
from hcmae.tables import date_of, listed
from hcmae.units import TIME_UNITS

# Endpoints of survival studies as clinical tables write them, in the form of `layouts.normalised`. What is
# the name of a gene too (EFS) is left out.
_ENDPOINTS = ("os", "dss", "dfs", "dfi", "pfs", "pfi", "rfs", "overall_survival", "disease_specific_survival",
              "disease_free", "progression_free_survival", "survival")  # fmt: skip
_UNITS = ("time", "days", "months", "years", "status", "event", "censor", "censored")
OUTCOME_NAMES = frozenset(
    (
        "time", "times", "days", "months", "time_days", "time_months", "time_years", "event", "events", "dead", "death",
        "deceased", "censored", "censorship", "censor", "status", "vital_status", "survival_time", "follow_up_time",
        "days_to_death", "days_to_last_follow_up", "days_to_last_followup", "days_to_follow_up", "last_contact_days_to",
        "death_days_to", "new_tumor_event", "risk", "risk_score",
        *_ENDPOINTS, *(f"{name}_{unit}" for name in _ENDPOINTS for unit in _UNITS),
    )
)  # fmt: skip
# Below this number a feature of zeros and ones can equal the events by chance.
FEWEST = 20
# Rank correlation above which two columns order patients alike; what is below 1 leaves room for rounded values.
SAME_ORDER = 0.9995


def outcome_names(names: Iterable[str]) -> list[str]:
    """Those of the names that are of an outcome's columns, as clinical tables write them."""
    return [name for name in names if normalised(name) in OUTCOME_NAMES]


# What a clinical table says of people, and what is known of how their samples were processed: no molecule has one of
# these names. Names that are symbols of genes too (T, MET, KIT) are left out.
_NO_MOLECULES = frozenset(
    (
        *(name for wanted in ("age", "sex", "stage", "grade") for name in NAMES[wanted]),
        "race", "ethnicity", "bmi", "height", "weight", "smoker", "smoking", "smoking_status", "pack_years",
        "age_group", "year_of_birth", "year_of_diagnosis", "birth_year", "pathologic_t", "pathologic_n", "pathologic_m",
        "batch", "batches", "batch_id", "batch_number", "sequencing_batch", "plate", "plate_id", "plate_number", "site",
        "site_id", "tissue_source_site", "tss", "center", "centre", "center_id", "centre_id", "hospital", "institution",
        "lane", "flowcell", "sentrix_id", "sentrix_position", "sample_type", "cohort", "fold", "split",
    )
)  # fmt: skip
# One of them spread over several columns of zeros and ones.
_SPREAD = re.compile(r"(?:batch|plate|site|cent(?:er|re)|sex|gender|stage|race)(?:_?\d{1,3}|_[a-z]{1,3}|_(?:fe)?male)")


def no_molecules(names: Iterable[str]) -> list[str]:
    """Those of the names that are of people or of how samples were processed: age, sex, batch, plate, site ..."""
    return [
        name for name in names if (plain := normalised(name)) in _NO_MOLECULES or _SPREAD.fullmatch(plain) is not None
    ]


# How R writes names: an X before a digit, dots for dashes.
_R_NAMES = re.compile(
    r"X\d\w*|(?:hsa|mmu|rno)\.(?:mir|let|miR)\..*|(?:HLA|MT|RP\d+|CT[ABCD])\.\w.*|NKX\d\.\d", re.ASCII
)


def names_of_r(names: Sequence[str]) -> list[str]:
    """Those of the names that R has changed; columns that never had a name ('X1', 'X2' ...) are none."""
    found = [name for name in names if _R_NAMES.fullmatch(name.strip())]
    if all(re.fullmatch(r"X\d+", name.strip()) for name in found) and len(found) == len(names):
        return []
    return found


def doubts_of_names(names: Sequence[str]) -> list[str]:
    """What looks wrong with names of features, one line each: dates for genes, names that R has changed."""
    lines = []
    if dated := dated_genes(names):
        lines.append(
            f"{len(dated)} features are named like dates, as Excel makes of genes' names: {listed(dated)}; take the "
            "names from the original file"
        )
    if changed := names_of_r(names):
        lines.append(
            f"{len(changed)} of {len(names)} features are named as R changes names, with an X before a digit or dots "
            f"for dashes ({listed(changed, 3)}), and fit no other table; write it with check.names=FALSE"
        )
    return lines


# Names of an index that was written with a table; what has none of these is one only where it counts its rows.
_INDEX = re.compile(r"unnamed(?:_\d+)*(?:_level_\d+)?|level_\d+")
_COUNTERS = frozenset(
    ("index", "idx", "id", "row", "rows", "row_id", "rowid", "row_number", "row_names", "rownames", "nr", "no",
     "number", "n", "x", "x1", "v1", "1")
)  # fmt: skip
# So many rows are counted by no measurement.
_MANY = 10


def index_names(names: Iterable[str]) -> list[str]:
    """Those of the names that an index gets when a table is written: '', 'Unnamed: 0', 'level_0'."""
    return [name for name in names if not name.strip() or _INDEX.fullmatch(normalised(name))]


def row_counters(names: Sequence[str], matrix: ArrayLike, first: str | None = None) -> list[str]:
    """Columns that count the rows from 0 or 1 on, and so are no features.

    matrix: [rows, columns] in the order of ``names``. Under a name such as 'index', in the ``first`` column of the file
    (three rows or more) or among ten rows or more under any name.
    """
    values = np.asarray(matrix)
    rows = len(values)
    if rows < 2:
        return []
    steps = np.arange(rows, dtype=np.float64)[:, None]
    with np.errstate(invalid="ignore"):
        counting = ((values - steps) == values[:1]).all(axis=0) & np.isin(values[0], (0, 1))
    return [
        name
        for name, counts in zip(names, counting, strict=True)
        if counts and (normalised(name) in _COUNTERS or rows >= _MANY or (name == first and rows >= 3))
    ]


# Genes whose names Excel takes for dates, by month: as they were and as they are called today.
_GENES = {
    2: "FEB{0}", 3: "MARCH{0} (now MARCHF{0}) or MARC{0} (now MTARC{0})", 4: "APR{0}", 9: "SEPT{0} (now SEPTIN{0})",
    10: "OCT{0}", 11: "NOV{0}", 12: "DEC{0} (now DELEC{0})",
}  # fmt: skip


def dated_genes(names: Iterable[str]) -> list[str]:
    """For each name that reads as a date, that name and the genes that Excel makes such a date of."""
    found = []
    for name in names:
        if (date := date_of(name)) is not None:
            month, day = date
            genes = _GENES.get(month)
            found.append(f"'{name}'" + (f" from {genes.format(day)}" if genes else ""))
    return found


def outcome_values(names: Sequence[str], matrix: ArrayLike, time: ArrayLike, event: ArrayLike) -> list[str]:
    """Features that hold the outcome under another name, some cells missing or not.

    Args:
        matrix: [patients, features] in the order of ``names``; NaN where missing.
        time: [patients] in days. A feature that equals it in days, weeks, months or years is one of them; among 20
            patients or more also one that orders them alike or the other way round, as a logarithm or a z-score does.
        event: [patients] 0 or 1. Among 20 patients or more, a feature of two values that tell the dead from the others.
    """
    values, days, dead = np.asarray(matrix), np.asarray(time, dtype=np.float64), np.asarray(event, dtype=np.float64)
    if len(days) < 6 or len(np.unique(days)) < 3:
        return []  # so few numbers can be equal by chance
    found = np.zeros(values.shape[1], dtype=bool)
    # Few features get past the first patients; the others are compared whole.
    for target in (days / unit for unit in TIME_UNITS.values()):
        some = np.flatnonzero(_equal(values[:3], target[:3]))
        found[some[_equal(values[:, some], target) & _mostly_known(values[:, some])]] = True
    if len(days) >= FEWEST:
        # Patients whose times lie far apart: one in twenty thousand features orders eight of them by chance.
        spread = np.argsort(days, kind="stable")[np.linspace(0, len(days) - 1, 8).astype(int)]
        some = np.flatnonzero(_ordered(values[spread]))
        found[some[[_same_order(values[:, column], days) for column in some]]] = True
        if min(dead.sum(), len(dead) - dead.sum()) >= 3:
            few = np.concatenate([np.flatnonzero(dead == 1)[:4], np.flatnonzero(dead == 0)[:4]])
            some = np.flatnonzero(_told_apart(values[few], dead[few]))
            found[some[_told_apart(values[:, some], dead) & _mostly_known(values[:, some])]] = True
    return [str(name) for name, same in zip(names, found, strict=True) if same]


def _mostly_known(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    known = np.isfinite(values).sum(axis=0)
    return np.asarray((known >= 6) & (2 * known >= len(values)))


def _equal(values: NDArray[np.floating], target: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which columns equal the target wherever they are known."""
    # Half of a hundredth is what a table of two decimals leaves open.
    gaps, room = np.abs(values - target[:, None]), np.maximum(0.006, 1e-5 * np.abs(target[:, None]))
    return np.asarray(((gaps <= room) | ~np.isfinite(values)).all(axis=0))


def _ordered(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which columns only rise or only fall from row to row; a missing cell is no step."""
    steps = np.diff(values, axis=0)
    unknown = ~np.isfinite(steps)
    moves = (~unknown).sum(axis=0) >= 4
    return np.asarray((((steps > 0) | unknown).all(axis=0) | ((steps < 0) | unknown).all(axis=0)) & moves)


def _same_order(column: NDArray[np.floating], target: NDArray[np.float64]) -> bool:
    known = np.isfinite(column)
    if known.sum() < FEWEST or 2 * known.sum() < len(column):
        return False
    return abs(float(spearmanr(column[known], target[known]).statistic)) > SAME_ORDER


def _told_apart(values: NDArray[np.floating], dead: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which columns have one value for the dead and another for the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without a known value in a group
        low = [np.nanmin(values[dead == group], axis=0) for group in (0, 1)]
        high = [np.nanmax(values[dead == group], axis=0) for group in (0, 1)]
    return np.asarray((low[0] == high[0]) & (low[1] == high[1]) & (low[0] != low[1]))
