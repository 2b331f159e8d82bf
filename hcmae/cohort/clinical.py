"""Clinical records of the GDC, made into time, event and the few covariates of a clinical model.

The day of the last follow-up has lived in ``diagnoses.days_to_last_follow_up``, then (Data Release 42) in
``follow_ups.days_to_follow_up``, then in both: all places are read and the latest day counts. Absent fields, nulls and
empty lists mean the same.
"""

from __future__ import annotations

import csv
import io
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.cohort.barcodes import named_patient, patient_id
from hcmae.packed import parse_json, unpacked

DAYS_PER_MONTH = 30.4375
# What the query for clinical data asks for; some of these names exist in some releases only.
FIELDS = (
    "submitter_id",
    "case_id",
    "project.project_id",
    "lost_to_followup",
    "demographic.vital_status",
    "demographic.days_to_death",
    "demographic.sex_at_birth",
    "demographic.gender",
    "demographic.age_at_index",
    "diagnoses.days_to_last_follow_up",
    "diagnoses.diagnosis_is_primary_disease",
    "diagnoses.classification_of_tumor",
    "diagnoses.age_at_diagnosis",
    "diagnoses.ajcc_pathologic_stage",
    "diagnoses.tumor_grade",
    "follow_ups.days_to_follow_up",
)
_UNKNOWN = {"", "not reported", "unknown", "not available", "not allowed to collect", "unspecified", "--", "'--"}


class ClinicalError(ValueError):
    """A clinical record or table that cannot be understood; the message names patient and field."""


@dataclass(frozen=True)
class Outcome:
    """One patient's record, read.

    ``time`` is days from diagnosis to death or to the last day seen alive, None where no such day is known; ``event``
    is 1 for a death, 0 for a patient last seen alive, None where the vital status is unknown. ``reason`` says why one
    of them is None; ``note`` is a remark on a contradiction that did not prevent reading.
    """

    patient: str
    time: float | None
    event: int | None
    age: float | None
    sex: str | None
    stage: str | None
    grade: str | None
    reason: str = ""
    note: str = ""


def read_outcome(hit: Any) -> Outcome:
    """Outcome and covariates of one ``/cases`` hit.

    Raises ClinicalError for a hit without submitter_id, or with a field that is neither absent nor of its type.
    """
    if not isinstance(hit, dict) or not isinstance(hit.get("submitter_id"), str) or not hit["submitter_id"].strip():
        raise ClinicalError(f"clinical record without submitter_id: {str(hit)[:80]}; fetch the clinical data again")
    patient = patient_id(hit["submitter_id"])
    demographic = _mapping(hit.get("demographic"), patient, "demographic")
    diagnoses = _mappings(hit.get("diagnoses"), patient, "diagnoses")
    follow_ups = _mappings(hit.get("follow_ups"), patient, "follow_ups")
    primary = primary_diagnosis(diagnoses)

    status = (_text(demographic.get("vital_status"), patient, "demographic.vital_status") or "").lower()
    death = _number(demographic.get("days_to_death"), patient, "demographic.days_to_death")
    seen = [
        _number(entry.get("days_to_last_follow_up"), patient, "diagnoses.days_to_last_follow_up") for entry in diagnoses
    ] + [_number(entry.get("days_to_follow_up"), patient, "follow_ups.days_to_follow_up") for entry in follow_ups]
    last = max((day for day in seen if day is not None), default=None)

    event: int | None = None
    time: float | None = None
    reason = note = ""
    if status == "dead":
        event, time = 1, death
        if death is None:
            reason = "dead, but the day of death is missing"
        elif last is not None and last > death:
            note = f"seen on day {last:g}, after the day of death {death:g}; the day of death is kept"
    elif status == "alive":
        event, time = 0, last
        if last is None:
            reason = "alive, but no day of follow-up is recorded"
        if death is not None:
            note = f"alive, yet with a day of death ({death:g}); taken as alive on the last day of follow-up"
    else:
        reason = f"vital status is '{demographic.get('vital_status') or 'missing'}'"
    if time is not None and time < 0:
        reason, time = f"the last day is before the diagnosis ({time:g} days)", None

    age = _number(demographic.get("age_at_index"), patient, "demographic.age_at_index")
    if age is None:
        days = _number(primary.get("age_at_diagnosis"), patient, "diagnoses.age_at_diagnosis")
        age = None if days is None else days / 365.25
    sex = _text(demographic.get("sex_at_birth"), patient, "demographic.sex_at_birth") or _text(
        demographic.get("gender"), patient, "demographic.gender"
    )
    return Outcome(
        patient=patient,
        time=time,
        event=event,
        age=age,
        sex=sex.lower() if sex else None,
        stage=_text(primary.get("ajcc_pathologic_stage"), patient, "diagnoses.ajcc_pathologic_stage"),
        grade=_text(primary.get("tumor_grade"), patient, "diagnoses.tumor_grade"),
        reason=reason,
        note=note,
    )


def primary_diagnosis(diagnoses: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of the disease itself among those of metastases and earlier tumours; empty where there is none.

    A record marked as primary disease wins, then one classified 'primary', then the only or first one that is not
    classified as something else.
    """
    for entry in diagnoses:
        if entry.get("diagnosis_is_primary_disease") in (True, "true", "True"):
            return entry
    for entry in diagnoses:
        if str(entry.get("classification_of_tumor") or "").lower() == "primary":
            return entry
    for entry in diagnoses:
        kind = str(entry.get("classification_of_tumor") or "").lower()
        if entry.get("diagnosis_is_primary_disease") not in (False, "false", "False") and kind in _UNKNOWN:
            return entry
    return {}


def read_hits(hits: Any) -> dict[str, Outcome]:
    """Outcomes by patient. Raises ClinicalError where ``hits`` is no list of records or a patient comes twice."""
    if isinstance(hits, dict):
        data = hits.get("data")
        hits = data.get("hits") if isinstance(data, dict) else None
    if not isinstance(hits, list):
        raise ClinicalError("clinical records: expected a list of /cases hits; fetch the clinical data again")
    outcomes: dict[str, Outcome] = {}
    for hit in hits:
        outcome = read_outcome(hit)
        if outcome.patient in outcomes:
            raise ClinicalError(f"patient {outcome.patient} has two clinical records; fetch the clinical data again")
        outcomes[outcome.patient] = outcome
    return outcomes


def read_clinical_json(path: str | Path) -> dict[str, Outcome]:
    """Outcomes by patient from ``clinical.json`` as ``hcmae fetch`` leaves it. Raises ClinicalError with the path."""
    path = Path(path)
    if not path.exists():
        raise ClinicalError(f"{path} is missing: fetch the clinical data first (hcmae fetch CANCER --what clinical)")
    return parse_clinical_json(path.read_bytes(), str(path))


def parse_clinical_json(content: bytes, where: str) -> dict[str, Outcome]:
    """The same from bytes; ``where`` is named in errors. Raises ClinicalError."""
    try:
        hits = parse_json(content)
    except ValueError as error:
        raise ClinicalError(
            f"{where}: not valid JSON ({error}); delete it and fetch the clinical data again"
        ) from error
    try:
        return read_hits(hits)
    except ClinicalError as error:
        raise ClinicalError(f"{where}: {error}") from None


# Names under which tables of other origin carry these columns; compared in lower case without blanks and dots.
PATIENT_NAMES = (
    "patient", "patient_id", "patientid", "case", "case_id", "caseid", "submitter_id", "case_submitter_id",
    "bcr_patient_barcode", "_patient", "subject", "subject_id",
)  # fmt: skip
_COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "patient": PATIENT_NAMES,
    "time_days": (
        "time_days",
        "days",
        "survival_days",
        "os_days",
        "os_time",
        "os.time",
        "time",
        "overall_survival_days",
    ),
    "months": ("months", "time_months", "survival_months", "os_months", "overall_survival_months"),
    "event": ("event", "dead", "death", "os", "os_event", "os_status", "vital_status", "status"),
    "censored": ("censored", "censorship", "censor"),
    "slide": ("slide", "slide_id", "slide_name", "slide_file", "wsi"),
    "age": ("age", "age_at_index", "age_years", "age_at_diagnosis_years"),
    "sex": ("sex", "gender", "sex_at_birth", "is_female"),
    "stage": ("stage", "ajcc_pathologic_stage", "pathologic_stage", "tumor_stage"),
    "grade": ("grade", "tumor_grade", "histologic_grade"),
}
_DEAD = {"1", "1.0", "dead", "deceased", "true", "1:deceased", "yes"}
_ALIVE = {"0", "0.0", "alive", "living", "false", "0:living", "no"}


def find_column(columns: list[str], wanted: str, mapping: dict[str, str] | None = None) -> str | None:
    """The column of a table that carries ``wanted`` ('patient', 'time_days', ...), by mapping or by its usual names.

    Raises ClinicalError where the mapping names a column that is not there.
    """
    if mapping and wanted in mapping:
        if mapping[wanted] not in columns:
            raise ClinicalError(f"columns.json says {wanted} = '{mapping[wanted]}', but the columns are {columns[:12]}")
        return mapping[wanted]
    lowered = {str(name).strip().lower().replace(" ", "_"): name for name in reversed(columns)}
    return next((lowered[name] for name in _COLUMN_NAMES[wanted] if name in lowered), None)


def read_clinical_table(
    path: str | Path, mapping: dict[str, str] | None = None
) -> tuple[dict[str, Outcome], dict[str, list[str]]]:
    """Outcomes by patient, and the slides that the table names, from a table that a user brings.

    A table with a column of slides has an entry for every patient, empty where it names none, and may have one row per
    slide: rows of one patient are merged where their outcomes agree.

    Tab or comma separated, gzip allowed. Columns: patient; time_days or months; event (1, Dead, DECEASED ... or 0,
    Alive, LIVING ...) or censored; optional slide, age (years), sex, stage, grade. Other usual names are recognised
    (``case_id``, ``OS.time``, ``vital_status`` ...); ``mapping`` names columns outright.

    Raises ClinicalError naming file, patient and column.
    """
    path = Path(path)
    frame = read_table(path)
    columns = [str(name) for name in frame.columns]
    found = {wanted: find_column(columns, wanted, mapping) for wanted in _COLUMN_NAMES}
    if found["patient"] is None:
        raise ClinicalError(
            f"{path}: no patient column among {columns[:12]}; name one 'patient' or say which in columns.json"
        )
    if found["time_days"] is None and found["months"] is None:
        raise ClinicalError(f"{path}: no survival time among {columns[:12]}; name a column 'time_days' or 'months'")
    if found["event"] is None and found["censored"] is None:
        raise ClinicalError(f"{path}: no event among {columns[:12]}; name a column 'event' (1 dead, 0 alive)")
    outcomes: dict[str, Outcome] = {}
    slides: dict[str, list[str]] = {}
    for row in frame.to_dict("records"):
        patient = named_patient(row[found["patient"]])
        if not patient:
            raise ClinicalError(f"{path}: a row without patient: {str(row)[:80]}; fill it in or remove it")

        def cell(name: str, row: dict[Any, str] = row) -> str | None:
            column = found[name]
            return _text(row[column], "", name) if column is not None else None

        def number(name: str, patient: str = patient, cell: Any = cell) -> float | None:
            text = cell(name)
            if text is None or text.lower() in ("na", "nan"):
                return None
            return _number(text, patient, f"{path.name} column {found[name]}")

        days = number("time_days") if found["time_days"] else None
        if days is None and found["months"]:
            months = number("months")
            days = None if months is None else months * DAYS_PER_MONTH
        event = _event(cell("event") if found["event"] else None, cell("censored"), patient, path)
        reason = ""
        if event is None:
            reason = "the event is missing"
        elif days is None:
            reason = "the survival time is missing"
        elif days < 0:
            reason, days = f"the survival time is negative ({days:g} days)", None
        sex = cell("sex")
        if found["sex"] == "is_female" and sex is not None:
            sex = "female" if sex in ("1", "1.0") else "male"
        slide = cell("slide")
        outcome = Outcome(
            patient, days, event, number("age"), sex.lower() if sex else None, cell("stage"), cell("grade"), reason
        )
        if patient in outcomes:
            if slide is None or slide in slides[patient]:
                raise ClinicalError(f"{path}: patient {patient} comes twice; keep one row per patient, or per slide")
            outcome = merged_outcome(outcomes[patient], outcome, path)
        outcomes[patient] = outcome
        if found["slide"] is not None:
            slides.setdefault(patient, []).extend([slide] if slide else [])
    return outcomes, slides


def merged_outcome(first: Outcome, second: Outcome, path: Path) -> Outcome:
    """One outcome of two rows of a patient (one row per slide); what the first row leaves open the second may say.

    Where they disagree on a covariate, that is noted and the first row's kept. Raises ClinicalError where time or event
    differ.
    """
    if (first.time, first.event) != (second.time, second.event):
        raise ClinicalError(
            f"{path}: patient {first.patient} comes twice with different outcomes (time {first.time}, event "
            f"{first.event}; time {second.time}, event {second.event}): correct one of the rows"
        )
    covariates = {name: (getattr(first, name), getattr(second, name)) for name in ("age", "sex", "stage", "grade")}
    odd = [f"{name} {a} and {b}" for name, (a, b) in covariates.items() if None not in (a, b) and a != b]
    note = f"rows of this patient disagree ({', '.join(odd)}); the first is kept" if odd else ""
    return replace(
        first,
        **{name: b if a is None else a for name, (a, b) in covariates.items()},
        note="; ".join(dict.fromkeys(text for text in (first.note, note) if text)),
    )


def read_table(path: Path) -> pd.DataFrame:
    """A tab- or comma-separated table as text, empty cells as ''. Raises ClinicalError with the path."""
    if not path.exists():
        raise ClinicalError(f"{path} is missing: put the clinical table there")
    separator = "," if ".csv" in path.suffixes else "\t"
    try:
        text = unpacked(path).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if row]
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise ClinicalError(f"{path}: not a readable table ({error}); expected tab-separated text") from error
    if not rows:
        raise ClinicalError(f"{path}: not a readable table (it is empty); expected tab-separated text")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ClinicalError(f"{path}: column '{twice}' comes twice; rename one")
    for number, row in enumerate(rows[1:], start=2):
        # A row with one cell too many would shift every value behind it.
        if len(row) != len(header):
            raise ClinicalError(f"{path}: row {number} has {len(row)} cells, the header has {len(header)}; correct it")
    return pd.DataFrame(rows[1:], columns=header, dtype=object)


def stage_number(stage: str | None) -> float:
    """1 to 4 for AJCC stages ('Stage IIIA' is 3, so is '3'), 0 for stage 0, NaN for anything else."""
    text = (stage or "").strip().upper().removeprefix("STAGE").strip()
    try:
        number = float(text)
    except ValueError:
        roman = text.rstrip("ABC0123456789")
        return {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}.get(roman, math.nan)
    return number if number in (0.0, 1.0, 2.0, 3.0, 4.0) else math.nan


def _event(event: str | None, censored: str | None, patient: str, path: Path) -> int | None:
    text = event if event is not None else censored
    if text is None or text.lower() in ("na", "nan"):
        return None
    value = text.lower()
    if value not in _DEAD | _ALIVE:
        raise ClinicalError(f"{path}: patient {patient}: event '{text}' is neither 0/alive nor 1/dead")
    happened = value in _DEAD
    return int(happened if event is not None else not happened)


def _mapping(value: Any, patient: str, field: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ClinicalError(f"patient {patient}: {field} is {type(value).__name__}, expected an object")
    return value


def _mappings(value: Any, patient: str, field: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ClinicalError(f"patient {patient}: {field} is {type(value).__name__}, expected a list")
    return [_mapping(entry, patient, field) for entry in value]


def _number(value: Any, patient: str, field: str) -> float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in _UNKNOWN):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ClinicalError(f"patient {patient}: {field} is {value!r}, expected a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ClinicalError(f"patient {patient}: {field} is '{value}', expected a number") from None
    if not math.isfinite(number):
        raise ClinicalError(f"patient {patient}: {field} is {value}, expected a finite number")
    return number


def _text(value: Any, patient: str, field: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ClinicalError(f"patient {patient}: {field} is {value!r}, expected text")
    return None if value.strip().lower() in _UNKNOWN else value.strip()
