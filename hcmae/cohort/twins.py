"""Columns of one clinical table that say the same thing: whether they agree, patient by patient.

A table often holds an outcome twice (``event`` and ``vital_status``, ``time_days`` and ``OS_MONTHS``). Reading takes
one of them; which one is right where they disagree, a person has to say. What columns.json names is said already: it
is not compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hcmae.cohort.cells import age_bound, event_of, grade_number, plain_number, sex_of, stage_number
from hcmae.cohort.layouts import NAMES, ColumnError, Layout, TimeColumn, all_time_columns, normalised
from hcmae.tables import is_missing, listed
from hcmae.units import TIME_UNITS

Row = Mapping[str, str]
Rows = Mapping[str, Sequence[Row]]  # patient -> rows
Value = Callable[[Row], Any]  # None where the row says nothing that can be read
# Of the rest of two times: months of 28 to 31 days, years of 365.
_SHARE = 0.025
# What two columns may say differently only of patients who are then left out.
OUTCOME = ("survival time", "event")
# A table where more than half of three patients or more disagree is read wrongly, or its columns mean different things.
_MOST, _FEWEST = 0.5, 3


@dataclass
class Comparison:
    """Two columns about one thing: in how many rows they agree, and what they say of patients where they do not."""

    what: str
    first: str
    second: str
    agree: int = 0
    differ: dict[str, str] = field(default_factory=dict)

    @property
    def hopeless(self) -> bool:
        """Whether so many patients disagree that no single one is at fault."""
        return len(self.differ) >= _FEWEST and len(self.differ) > _MOST * (self.agree + len(self.differ))

    def told(self, patient: str) -> str:
        """What the two columns say of one of those on whom they disagree."""
        return f"columns '{self.first}' and '{self.second}' disagree ({self.differ[patient]})"

    def line(self) -> str:
        """What there is to say, '' where no row says anything in both columns."""
        if self.differ:
            cases = listed([f"{patient}: {told}" for patient, told in self.differ.items()], 3)
            return f"columns '{self.first}' and '{self.second}' disagree on the {self.what} of {self._of()} ({cases})"
        if self.agree:
            return f"{self.what} from column '{self.first}'; '{self.second}' says the same of all who have both"
        return ""

    def _of(self) -> str:
        number = len(self.differ)
        return f"{number} patient{'s' if number > 1 else ''}"


def compare(
    what: str, rows: Rows, first: tuple[str, Value], second: tuple[str, Value], same: Callable[[Any, Any], bool]
) -> Comparison:
    """The columns ``first`` and ``second``, each with what it says of a row, in all rows that say something in both."""
    found = Comparison(what, first[0], second[0])
    for patient, own in rows.items():
        for row in own:
            one, other = first[1](row), second[1](row)
            if one is None or other is None:
                continue
            if same(one, other):
                found.agree += 1
            else:
                told = f"'{row[first[0]]}' and '{row[second[0]]}'"
                found.differ.setdefault(patient, told)
    return found


def same_time(rows: Rows, first: tuple[str, str], second: tuple[str, str]) -> Callable[[float, float], bool]:
    """Whether two times in days are the same, as far as their columns, each with its unit, were rounded."""
    rest = max(TIME_UNITS[unit] * 10.0 ** -_decimals(rows, column) for column, unit in (first, second))
    # Of one unit the rounding may differ by half a digit; another unit may have been cut.
    room, share = (0.5 * rest, 0.0) if first[1] == second[1] else (rest, _SHARE)

    def same(one: float, other: float) -> bool:
        return abs(one - other) <= room + share * max(abs(one), abs(other))

    return same


def _decimals(rows: Rows, column: str) -> int:
    """Most digits behind the point in a column."""
    texts = (row[column] for own in rows.values() for row in own if not is_missing(row[column]))
    return max((len(found[1]) for text in texts if (found := re.fullmatch(r"-?\d*\.(\d*?)0*", text))), default=0)


@dataclass(frozen=True)
class Found:
    """What was found of the columns of a table: all ``columns``; ``column`` that counts by what it is about; ``times``
    that count; what columns.json says (``mapping``); numbers of a column that stand for "unknown" (``marks``).
    """

    columns: Sequence[str]
    column: Mapping[str, str | None]
    times: Sequence[TimeColumn]
    layout: Layout
    mapping: Mapping[str, Any]
    marks: Mapping[str, Sequence[float]]

    def number(self, column: str) -> Value:
        """How a number of a column is read; None for text, missing cells and marks."""

        def read(row: Row) -> float | None:
            value = plain_number(row[column])
            return None if math.isnan(value) or value in self.marks.get(column, ()) else value

        return read

    def others(self, what: str) -> list[str]:
        """Columns with one of the names of ``what`` beside the one that counts."""
        if what in self.mapping:
            return []
        return [c for c in self.columns if normalised(c) in NAMES[what] and c != self.column[what]]

    def event(self) -> tuple[str, Value] | None:
        """The column of events that counts and how it is read; None where there is none."""
        for what in ("event", "censored"):
            if (column := self.column[what]) is not None:
                return column, _event_reader(column, what == "censored")
        return None


def twins(found: Found, rows: Rows) -> list[Comparison]:
    """All comparisons of a table: time, event, sex, age, stage, grade; those of which no row says anything left out."""
    made = [*_events(found, rows), *_times(found, rows), *_covariates(found, rows)]
    return [comparison for comparison in made if comparison.agree or comparison.differ]


def doubts_of(found: Sequence[Comparison]) -> list[str]:
    """One line for every comparison with patients on whom it disagrees, and what becomes of them.

    Raises ColumnError where most outcomes disagree: the table is read wrongly, or a column means something else.
    """
    lines = []
    for twin in found:
        if not twin.differ:
            continue
        outcome = twin.what in OUTCOME
        if outcome and twin.hopeless:
            raise ColumnError(f"{twin.line()}; say in columns.json which column counts, or correct the other one")
        left = "they are left out" if outcome else f"their {twin.what} is left out"
        lines.append(f"{twin.line()}: {left}; correct them, or say in columns.json which column counts")
    return lines


def _event_reader(column: str, censored: bool) -> Value:
    return lambda row: None if is_missing(row[column]) else event_of(row[column], censored=censored)


def _events(found: Found, rows: Rows) -> list[Comparison]:
    first = found.event()
    if first is None or {"event", "censored"} & set(found.mapping):
        return []
    pairs = [(c, _event_reader(c, what == "censored")) for what in ("event", "censored") for c in found.columns
             if normalised(c) in NAMES[what] and c != first[0]]  # fmt: skip
    death = found.column["days_to_death"]
    if found.times and death is not None:
        day = found.number(death)
        # Who has a day of death is dead; who has none may be dead of old.
        pairs.append((death, lambda row: 1 if (day(row) or 0) > 0 else None))
    return [compare("event", rows, first, pair, lambda a, b: a == b) for pair in pairs]


def _everybody(row: Row) -> bool:
    return True


def _times(found: Found, rows: Rows) -> list[Comparison]:
    if not found.times:
        return []
    first, made = found.times[0], []
    stated = {"time", "time_days", "months", "years"} & set(found.mapping)
    # Of two columns that columns.json names the first counts.
    others = list(found.times[1:]) if stated else all_time_columns(found.columns, found.layout)
    for other in others:
        if other.column == first.column:
            continue
        units = [other.unit] if other.known else list(TIME_UNITS)
        # The last visit of a patient who died may well be before the death.
        visits = _of_visits(other.column) and not _of_visits(first.column)
        asked = _asked(found, 0) if visits else _everybody
        tried = [_timed(rows, found, first, (other.column, unit), asked) for unit in units]
        made.append(min(tried, key=lambda comparison: len(comparison.differ)))
    if not stated:
        for column, event in ((found.column["days_to_death"], 1), (found.column["days_to_last"], 0)):
            if column is not None and column != first.column:
                made.append(_timed(rows, found, first, (column, "days"), _asked(found, event)))
    return made


def _of_visits(column: str) -> bool:
    return normalised(column).startswith("follow")


def _asked(found: Found, event: int) -> Callable[[Row], bool]:
    """Whether a row is of a patient with this event."""
    column = found.event()
    return lambda row: column is not None and column[1](row) == event


def _timed(
    rows: Rows, found: Found, first: TimeColumn, second: tuple[str, str], asked: Callable[[Row], bool]
) -> Comparison:
    """Comparison of two columns of time, each read in its unit, in the rows that are ``asked``."""

    def days(column: str, unit: str) -> Value:
        number = found.number(column)

        def read(row: Row) -> float | None:
            value = number(row)
            return None if value is None or not asked(row) else value * TIME_UNITS[unit]

        return read

    one = (first.column, first.unit)
    return compare(
        "survival time", rows, (first.column, days(*one)), (second[0], days(*second)), same_time(rows, one, second)
    )


def _covariates(found: Found, rows: Rows) -> list[Comparison]:
    stated = {str(code).strip().lower(): str(sex) for code, sex in found.mapping.get("sex_values", {}).items()}

    def number(read: Callable[[str], float]) -> Callable[[str], Value]:
        def reader(column: str) -> Value:
            return lambda row: None if math.isnan(value := read(row[column])) else value

        return reader

    def sex(column: str) -> Value:
        def read(row: Row) -> str | None:
            said = None if is_missing(row[column]) else sex_of(row[column], column, stated)
            return said if said in ("male", "female") else None

        return read

    readers: dict[str, tuple[Callable[[str], Value], Callable[[Any, Any], bool]]] = {
        "sex": (sex, lambda a, b: a == b),
        # A whole number of years, and one that was counted from a birthday.
        "age": (number(_years), lambda a, b: abs(a - b) <= 1.01),
        "stage": (number(stage_number), lambda a, b: a == b),
        "grade": (number(grade_number), lambda a, b: a == b),
    }
    made = []
    for what, (reader, same) in readers.items():
        first = found.column[what]
        if first is not None:
            made += [compare(what, rows, (first, reader(first)), (c, reader(c)), same) for c in found.others(what)]
    return made


def _years(text: str) -> float:
    """An age in years; what is more than a life is one in days. NaN for a bound, which says no age."""
    value = math.nan if age_bound(text) is not None else plain_number(text)
    if 130 < value < 130 * TIME_UNITS["years"]:
        return value / TIME_UNITS["years"]
    return value if 0 <= value <= 130 else math.nan
