"""Whether the times of a table can be follow-up times in their unit; numbers that stand for "unknown".

The rules, in this order:

1. *Marks.* -1, -9, -99, -999 ... are none of a follow-up. Nor is a largest value of nines (999, 9999) that is more than
   twice the next one, or that several patients have; nor one above 20 years that is more than twice the next one (three
   patients have it) or five times (ten patients or more are known); nor a number of three nines or more that three
   patients have, and three times as many as have any other value. Marks do not decide about the unit either. A largest
   value that could be the end of a study is a time, however many have it.
2. *Longer than a life* (120 years): refused.
3. *A median above 20 years* among three patients or more: refused; a doubt where columns.json states the unit.
4. *A name without a unit* is taken for days only where the values look like days; otherwise refused. A doubt where
   they could be weeks as well: nobody of ten patients or more is followed for 1500 days.
5. *Nobody followed for a year*, among ten patients or more: a doubt.
6. *A name that says another unit* than columns.json states: a doubt.
7. *Dates*: numbers that are days since 1900, as Excel has them, are refused before anything else.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

from hcmae.cohort.layouts import ColumnError, TimeColumn, unit_of_name
from hcmae.tables import listed
from hcmae.units import TIME_UNITS

STATED = "stated in columns.json"
_YEAR = 365.25
# Nobody is followed for longer, in days.
_LONGEST = 120 * _YEAR
# No cohort is followed for longer by half of its patients, in days.
_LONG_MEDIAN = 20 * _YEAR
# A cohort whose longest follow-up is below this many days is followed for about a year, or its unit is another.
_DOUBTFUL = 400.0
# Up to this many days a column that says no unit could be one of weeks: 29 years of them.
_AS_WEEKS = 1500.0
# 1954 to 2064 as a spreadsheet counts days. Follow-up that is longer than a life, or nearly.
_SERIAL = (20000.0, 60000.0)
# So many patients make a longest follow-up that tells something; so many, one that is worth a word.
_TELLING, _WORTH_A_WORD = 20, 10


def look_at_times(
    columns: Sequence[TimeColumn], cells: Mapping[str, Mapping[str, float]], *, apart: bool
) -> tuple[dict[str, list[float]], list[str]]:
    """Marks for "unknown" by column, and doubts, one line each.

    cells: by column, the numbers by patient. ``apart``: whether each column is a survival time of its own, or all of
    them are one together (days to death and to the last visit). Raises ColumnError as `check_times`.
    """
    unknown: dict[str, list[float]] = {}
    doubts: list[str] = []
    together: dict[str, float] = {}
    for column in columns:
        times = cells[column.column]
        unknown[column.column] = marks(times, column.unit)
        for mark in unknown[column.column]:
            of = listed([patient for patient, value in times.items() if value == mark], 3)
            doubts.append(
                f"column '{column.column}' is {mark:g} for {of}, taken for a mark of 'unknown' and not for a "
                "follow-up; write NA there, or correct it"
            )
        known = {patient: value for patient, value in times.items() if value not in unknown[column.column]}
        if apart:
            doubts += check_times(known, column)
        together |= {patient: max(value, together.get(patient, value)) for patient, value in known.items()}
    if columns and not apart:
        doubts += check_times(together, replace(columns[0], column="' and '".join(c.column for c in columns)))
    return unknown, doubts


def marks(times: Mapping[str, float], unit: str) -> list[float]:
    """Values among times, by patient in a unit, that stand for "unknown" (rule 1), the smallest first."""
    known = [value for value in times.values() if math.isfinite(value)]
    count = Counter(known)
    found = {value for value in count if value < 0 and _digits(value) in ("1", "9", "99", "999", "9999", "99999")}
    usual = sorted(value for value in count if value >= 0)
    for value in usual:
        others = max((count[v] for v in usual if v != value), default=1)
        if _nines(value, 3) and count[value] >= 3 and count[value] >= 3 * others:
            found.add(value)
    while len(usual) > 1 and (usual[-1] in found or _far_above(usual, count, unit)):
        found.add(usual.pop())
    return sorted(found)


def _far_above(values: Sequence[float], count: Mapping[float, int], unit: str) -> bool:
    """Whether the last of these values, in rising order, is no time but a mark."""
    top, below = values[-1], values[-2]
    patients = sum(count[value] for value in values)
    if below <= 0 or patients < 3:
        return False
    far, often = top / below, count[top]
    if _nines(top, 3):
        return far > (2 if often == 1 else 1.1)
    # Two nines can be a time.
    if _nines(top, 2):
        return far > (5 if often == 1 else 2)
    return top * TIME_UNITS[unit] > _LONG_MEDIAN and ((often >= 3 and far > 2) or (patients >= 10 and far > 5))


def _digits(value: float) -> str:
    return f"{abs(value):g}" if value == round(value) else ""


def _nines(value: float, least: int) -> bool:
    return re.fullmatch(rf"9{{{least},}}(?:\.9+)?", f"{value:.10g}") is not None


def check_times(times: Mapping[str, float], column: TimeColumn) -> list[str]:
    """Doubts about times, by patient in the unit of the column, one line each (rules 2 to 5).

    Marks are to be left out before. Raises ColumnError where the times cannot be in that unit, or nobody says which it
    is: a column without a unit in its name is taken for days only where the longest time is 400 or more, or all are
    whole numbers of fewer than 20 patients.
    """
    known = {patient: value for patient, value in times.items() if math.isfinite(value) and value >= 0}
    if not known:
        return []
    patient, longest = max(known.items(), key=lambda item: item[1])
    unit = TIME_UNITS[column.unit]
    _refuse_serials(known, column)
    state = '{"clinical": {"time_unit": "days"}} (or weeks, months, years)'
    if longest * unit > _LONGEST:
        raise ColumnError(
            f"patient {patient}: column '{column.column}' is {longest:g}, in {column.unit} more than a life "
            f"({column.reason}); state the unit in columns.json, {state}, or correct the value"
        )
    doubts = []
    said = unit_of_name(column.column)
    if column.reason == STATED and said not in (None, column.unit):
        doubts.append(
            f"column '{column.column}' is taken in {column.unit} ({STATED}), and its name says {said}; see which is "
            "right"
        )
    middle = sorted(known.values())[len(known) // 2]
    if len(known) >= 3 and middle * unit > _LONG_MEDIAN:
        told = (
            f"column '{column.column}' is taken in {column.unit} ({column.reason}), and half of the {len(known)} "
            f"patients would be followed for {middle:g} {column.unit}, {middle * unit / _YEAR:.0f} years, or longer"
        )
        if column.reason != STATED:
            raise ColumnError(f"{told}; rename the column or state the unit in columns.json, {state}")
        doubts.append(f"{told}; see if the unit is right")
    _check_unknown(known, column, patient, longest)
    if _could_be_weeks(known, column, longest):
        doubts.append(
            f"column '{column.column}' is taken in days ({column.reason}), and the longest follow-up of {len(known)} "
            f"patients would be {longest / _YEAR:.1f} years (patient {patient}: {longest:g}; in weeks "
            f"{longest * TIME_UNITS['weeks'] / _YEAR:.0f} years); name the column time_days or weeks, or state the "
            f"unit in columns.json, {state}"
        )
    if len(known) >= _WORTH_A_WORD and longest * unit < _YEAR:
        doubts.append(
            f"column '{column.column}' is taken in {column.unit} ({column.reason}), and the longest follow-up of "
            f"{len(known)} patients would be {longest:g} {column.unit}, less than a year (patient {patient}); "
            + (
                "see if the unit is right"
                if column.reason == STATED
                else f"if this is another unit, rename the column or state it in columns.json, {state}"
            )
        )
    return doubts


def _could_be_weeks(known: Mapping[str, float], column: TimeColumn, longest: float) -> bool:
    return not column.known and column.plain and len(known) >= _WORTH_A_WORD and _DOUBTFUL <= longest < _AS_WEEKS


def _refuse_serials(known: Mapping[str, float], column: TimeColumn) -> None:
    """Raise ColumnError where all numbers are dates as a spreadsheet counts them."""
    low, high = _SERIAL
    first, *rest = known.values()
    # Times of one cohort begin near zero; dates lie close together, compared with how far away 1900 is.
    if len(rest) < 2 or not all(low <= value <= high and value == round(value) for value in (first, *rest)):
        return
    days = [date(1899, 12, 30) + timedelta(days=int(value)) for value in (min(first, *rest), max(first, *rest))]
    raise ColumnError(
        f"column '{column.column}' holds {min(first, *rest):g} to {max(first, *rest):g}, which Excel writes for the "
        f"dates {days[0]} to {days[1]}: these are dates and no follow-up; give the days from the diagnosis to death or "
        "to the last contact, the difference of two such numbers"
    )


def _check_unknown(known: Mapping[str, float], column: TimeColumn, patient: str, longest: float) -> None:
    fractional = next((p for p, value in known.items() if value != round(value)), None)
    if column.known or longest >= _DOUBTFUL or (fractional is None and len(known) < _TELLING):
        return
    odd = "" if fractional is None else f" and patient {fractional} has {known[fractional]:g}"
    raise ColumnError(
        f"the unit of column '{column.column}' is unclear: its name says none, the longest time is {longest:g} "
        f"(patient {patient}){odd}, as in a table in months or weeks; state it in "
        'columns.json, {"clinical": {"time_unit": "months"}} (or days, weeks, years), or name the column time_days, '
        "weeks or months"
    )


class OneOutcomeWarning(UserWarning):
    """Everybody in a cohort died, or nobody."""


def warn_of_one_outcome(events: Sequence[int], where: str) -> None:
    """Warn where so many patients have one outcome that it is no chance."""
    deaths = sum(events)
    if len(events) >= _TELLING and deaths in (0, len(events)):
        said = "everybody died" if deaths else "nobody died, so that no model can learn from them"
        warnings.warn(
            f"{where}: of the {len(events)} patients {said}; is the column of events what it is taken for?",
            OneOutcomeWarning,
            stacklevel=4,
        )
