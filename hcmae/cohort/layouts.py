"""Clinical tables of other makers: under which names their columns run, and how six known layouts are told apart.

Names are compared in lower case, with everything but letters and digits as one underscore: 'OS.time', 'OS time' and
'os_time' are one name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

# A barcode comes before other names: of several columns it is what the other tables have.
PATIENT_NAMES = (
    "patient", "bcr_patient_barcode", "case_submitter_id", "submitter_id", "patient_id", "patientid", "patient_barcode",
    "patient_identifier", "case", "case_id", "caseid", "subject", "subject_id",
)  # fmt: skip

_UNIT_WORDS = {
    "days": ("days", "day"), "weeks": ("weeks", "week", "wks", "wk"), "months": ("months", "month", "mo"),
    "years": ("years", "year", "yrs"),
}  # fmt: skip
# Names of a time that say no unit by themselves.
_BARE_TIMES = (
    "time", "os_time", "survival_time", "overall_survival_time", "follow_up_time", "followup_time", "time_to_event",
    "time_to_death_or_last_follow_up",
)  # fmt: skip
_TIME_STEMS = (*_BARE_TIMES, "os", "survival", "overall_survival", "follow_up", "followup")

NAMES: dict[str, tuple[str, ...]] = {
    "patient": PATIENT_NAMES,
    "event": (
        "event", "dead", "death", "deceased", "os", "os_event", "os_status", "overall_survival_status", "vital_status",
        "status", "event_observed",
    ),
    "censored": ("censored", "censorship", "censor", "is_censored"),
    "days_to_death": ("days_to_death", "death_days_to"),
    "days_to_last": (
        "days_to_last_follow_up", "days_to_last_followup", "last_contact_days_to", "days_to_last_known_alive",
        "days_to_follow_up",
    ),
    "slide": ("slide", "slide_id", "slide_name", "slide_file", "wsi"),
    "age": (
        "age", "age_at_index", "age_years", "age_at_diagnosis_years", "age_at_initial_pathologic_diagnosis",
        "diagnosis_age", "age_at_diagnosis",
    ),
    "sex": ("sex", "gender", "sex_at_birth", "is_female", "female", "is_male", "male"),
    "stage": (
        "stage", "ajcc_pathologic_stage", "ajcc_pathologic_tumor_stage", "ajcc_stage", "pathologic_stage",
        "pathological_stage", "tumor_stage", "tumour_stage", "stage_event_pathologic_stage",
        "neoplasm_disease_stage_american_joint_committee_on_cancer_code",
    ),
    "grade": (
        "grade", "tumor_grade", "tumour_grade", "histologic_grade", "histological_grade", "neoplasm_histologic_grade",
    ),
}  # fmt: skip
# Hospitals. 'site' alone may be where the tumour is.
SITE_NAMES = ("tissue_source_site", "tss", "hospital", "source_site", "centre", "center", "institution")
# What columns.json may name; 'time' goes with 'time_unit'.
WANTED = (*NAMES, "site", "time", "time_days", "weeks", "months", "years")
# Prefixes in the GDC's export since 2024 ("demographic.vital_status").
_SECTIONS = ("cases.", "demographic.", "diagnoses.", "follow_ups.")


def normalised(name: str) -> str:
    """A column's name for comparison: 'Overall Survival (Months)' is overall_survival_months."""
    text = name.strip().lower()
    for section in _SECTIONS:
        # Every section has a submitter_id of its own; the patient's is that of the case.
        if text.startswith(section) and (section == "cases." or not text.endswith(".submitter_id")):
            text = text.removeprefix(section)
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")


class ColumnError(ValueError):
    """Columns that cannot be told apart, or are not what is needed; the message names them."""


def find_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has the first of these names that occurs. Raises ColumnError where two columns have it."""
    plain: dict[str, list[str]] = {}
    for column in columns:
        plain.setdefault(normalised(column), []).append(column)
    for name in names:
        found = plain.get(name, [])
        if len(found) > 1:
            raise ColumnError(
                f"columns '{found[0]}' and '{found[1]}' could both be meant; rename one or say which in columns.json"
            )
        if found:
            return found[0]
    return None


# Names of columns in which 1 or yes is no death.
_LIVING = ("alive", "is_alive", "living", "survived", "survivor")


def check_event_name(name: str | None) -> None:
    """Raise ColumnError where columns.json says event of a column whose name says the opposite: 1 would be a death."""
    plain = normalised(name) if name is not None else ""
    if plain in NAMES["censored"]:
        raise ColumnError(
            f"columns.json says event = '{name}', and in a column of that name 1 means no death: write 'censored' "
            f"instead of 'event' as the key"
        )
    if plain in _LIVING:
        raise ColumnError(
            f"columns.json says event = '{name}', and in a column of that name 1 means alive: it would be read as a "
            "death. Give a column in which 1 is a death, or say 'censored' instead of 'event' as the key"
        )


def on_its_side(first: Sequence[str]) -> str:
    """What to do where the ``first`` column of a table holds what should be names of columns; '' where it does not."""
    known = {name for names in NAMES.values() for name in names} | {"time_days", "os_time", "os_months", *_BARE_TIMES}
    found = [cell for cell in first if normalised(cell) in known]
    if len(found) < 2:
        return ""
    return (
        f"; the first column holds {', '.join(found[:4])}: the table lies on its side, with patients in columns; "
        "transpose it, one row per patient"
    )


# ---------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Layout:
    """``name`` of a maker's layout and the ``reason`` for recognising it; '' for a plain table."""

    name: str = ""
    reason: str = ""


def recognise_layout(columns: Sequence[str], comments: Sequence[str], frame: pd.DataFrame) -> Layout:
    """Whose layout a table has, by its columns, its leading '#' lines and (Biotab) its third line."""
    names = {normalised(column) for column in columns}
    if len(frame) > 1 and any(str(cell).startswith("CDE_ID") for cell in frame.iloc[1]):
        return Layout("Biotab", "its third line holds CDE_ID numbers")
    if {"bcr_patient_barcode", "os", "os_time"} <= names:
        return Layout("TCGA-CDR", "columns bcr_patient_barcode, OS, OS.time")
    if {"sample", "os", "os_time"} <= names:
        return Layout("Xena survival", "columns sample, OS, OS.time")
    if {"case_id", "survival_months", "censorship"} <= names:
        return Layout("MCAT/PORPOISE", "columns case_id, survival_months, censorship")
    if {"vital_status", "days_to_death"} <= names and names & {"days_to_last_follow_up", "days_to_follow_up"}:
        return Layout("GDC export", "columns vital_status, days_to_death, days_to_last_follow_up")
    if len(comments) > 2:
        return Layout("cBioPortal", f"{len(comments)} leading lines with '#'")
    for status, months in (("os_status", "os_months"), ("overall_survival_status", "overall_survival_months")):
        if {status, months} <= names:
            return Layout("cBioPortal", "columns of overall survival status and months")
    return Layout()


# ---------------------------------------------------------------- the unit of time


@dataclass(frozen=True)
class TimeColumn:
    """Where the survival time stands and in which unit; ``known`` False where its name alone does not say the unit.

    ``plain``: whether no maker's layout says what the column holds.
    """

    column: str
    unit: str
    known: bool
    reason: str
    plain: bool = True


def time_columns(columns: Sequence[str], mapping: dict[str, str], layout: Layout) -> list[TimeColumn]:
    """The columns of survival time in order of preference: days, weeks, months, years, then names without a unit.

    Raises ColumnError where two columns have one name.
    """
    stated = mapping.get("time_unit")
    if "time" in mapping:
        return [_timed(mapping["time"], stated, layout)]
    keys = {"time_days": "days", "weeks": "weeks", "months": "months", "years": "years"}
    named = {key: unit for key, unit in keys.items() if key in mapping}
    for key, unit in named.items():
        if stated not in (None, unit):
            raise ColumnError(f"columns.json says {key} = '{mapping[key]}' and time_unit = '{stated}'; leave one out")
    if named:
        return [TimeColumn(mapping[key], unit, True, "stated in columns.json") for key, unit in named.items()]
    found = []
    for words in _UNIT_WORDS.values():
        names = [f"time_{words[0]}", words[0]] + [
            form for stem in _TIME_STEMS for word in words for form in (f"{stem}_{word}", f"{stem}_in_{word}")
        ]
        column = find_column(columns, names)
        if column is not None:
            found.append(_timed(column, None, layout))
    same = [column for column in found if column.unit == stated]
    # The unit that is stated is that of a column with it in its name, else of one whose name says none.
    bare = None if (same if stated is not None else found) else find_column(columns, _BARE_TIMES)
    if bare is not None:
        found = [_timed(bare, None, layout)]
    if stated is not None and found:
        return [_timed((same or found)[0].column, stated, layout)]
    return found


def all_time_columns(columns: Sequence[str], layout: Layout) -> list[TimeColumn]:
    """Every column whose name is one of a survival time, whichever of them counts."""
    words = {form for forms in _UNIT_WORDS.values() for form in forms}
    named = {f"time_{word}" for word in words} | words
    named |= {form for stem in _TIME_STEMS for word in words for form in (f"{stem}_{word}", f"{stem}_in_{word}")}
    return [_timed(column, None, layout) for column in columns if normalised(column) in named | set(_BARE_TIMES)]


def unit_of_name(column: str) -> str | None:
    """The unit of time that a column's name says in a word of its own, the last such word; None where it says none."""
    for word in reversed(normalised(column).split("_")):
        for unit, forms in _UNIT_WORDS.items():
            if word in forms:
                return unit
    return None


def _timed(column: str, stated: str | None, layout: Layout) -> TimeColumn:
    if stated is not None:
        return TimeColumn(column, stated, True, "stated in columns.json")
    if (unit := unit_of_name(column)) is not None:
        return TimeColumn(column, unit, True, f"as the name of the column '{column}' says")
    reason = f"as in tables of {layout.name}" if layout.name else "because the name says no other unit"
    return TimeColumn(column, "days", False, reason, plain=not layout.name)
