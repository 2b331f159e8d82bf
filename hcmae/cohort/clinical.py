"""Clinical records of the GDC, made into time, event and the few covariates of a clinical model.

The day of the last follow-up has lived in ``diagnoses.days_to_last_follow_up``, then (Data Release 42) in
``follow_ups.days_to_follow_up``, then in both: all places are read and the latest day counts. Absent fields, nulls and
empty lists mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.cohort.barcodes import named_patient, patient_id
from hcmae.cohort.cells import age_bound, event_of, plain_number, sex_of
from hcmae.cohort.copies import line_of_equal_patients
from hcmae.cohort.covariates import readable_age, unread
from hcmae.cohort.fields import ClinicalError as ClinicalError
from hcmae.cohort.fields import mapping_of, mappings_of, number_of, text_of
from hcmae.cohort.follow_up import STATED, look_at_times
from hcmae.cohort.layouts import (
    NAMES,
    PATIENT_NAMES,
    WANTED,
    ColumnError,
    Layout,
    TimeColumn,
    check_event_name,
    find_column,
    normalised,
    on_its_side,
    recognise_layout,
    time_columns,
)
from hcmae.cohort.people import line_of_dots
from hcmae.cohort.remarks import read_remarks
from hcmae.cohort.twins import OUTCOME, Comparison, Found, doubts_of, twins
from hcmae.packed import parse_json
from hcmae.tables import (
    TableError,
    check_last_lines,
    doubt,
    is_missing,
    read_head,
    read_text,
    say,
)
from hcmae.units import TIME_UNITS

DAYS_PER_MONTH = TIME_UNITS["months"]
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


@dataclass(frozen=True)
class Outcome:
    """One patient's record, read.

    ``time`` is days from diagnosis to death or to the last day seen alive, None where no such day is known; ``event``
    is 1 for a death, 0 for a patient last seen alive, None where the vital status is unknown. ``reason`` says why one
    of them is None; ``note`` is a remark on a contradiction that did not prevent reading, ``contradiction`` what two
    columns of a table say of the outcome that cannot both be true (time or event is None then).
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
    contradiction: str = ""


def read_outcome(hit: Any) -> Outcome:
    """Outcome and covariates of one ``/cases`` hit.

    Raises ClinicalError for a hit without submitter_id, or with a field that is neither absent nor of its type.
    """
    if not isinstance(hit, dict) or not isinstance(hit.get("submitter_id"), str) or not hit["submitter_id"].strip():
        raise ClinicalError(f"clinical record without submitter_id: {str(hit)[:80]}; fetch the clinical data again")
    patient = patient_id(hit["submitter_id"])
    demographic = mapping_of(hit.get("demographic"), patient, "demographic")
    diagnoses = mappings_of(hit.get("diagnoses"), patient, "diagnoses")
    follow_ups = mappings_of(hit.get("follow_ups"), patient, "follow_ups")
    primary = primary_diagnosis(diagnoses)

    status = (text_of(demographic.get("vital_status"), patient, "demographic.vital_status") or "").lower()
    death = number_of(demographic.get("days_to_death"), patient, "demographic.days_to_death")
    seen = [
        number_of(entry.get("days_to_last_follow_up"), patient, "diagnoses.days_to_last_follow_up")
        for entry in diagnoses
    ] + [number_of(entry.get("days_to_follow_up"), patient, "follow_ups.days_to_follow_up") for entry in follow_ups]
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

    age = number_of(demographic.get("age_at_index"), patient, "demographic.age_at_index")
    if age is None:
        days = number_of(primary.get("age_at_diagnosis"), patient, "diagnoses.age_at_diagnosis")
        age = None if days is None else days / 365.25
    sex = text_of(demographic.get("sex_at_birth"), patient, "demographic.sex_at_birth") or text_of(
        demographic.get("gender"), patient, "demographic.gender"
    )
    return Outcome(
        patient=patient,
        time=time,
        event=event,
        age=age,
        sex=sex.lower() if sex else None,
        stage=text_of(primary.get("ajcc_pathologic_stage"), patient, "diagnoses.ajcc_pathologic_stage"),
        grade=text_of(primary.get("tumor_grade"), patient, "diagnoses.tumor_grade"),
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
        if entry.get("diagnosis_is_primary_disease") not in (False, "false", "False") and is_missing(kind):
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
            f"{where}: not valid JSON, {error}; fetch the clinical data again, or correct it there if it was edited"
        ) from error
    try:
        return read_hits(hits)
    except ClinicalError as error:
        raise ClinicalError(f"{where}: {error}") from None


# ---------------------------------------------------------------- tables of other makers


@dataclass(frozen=True)
class ClinicalTable:
    """A clinical table that a user brings, read.

    ``outcomes`` by patient; ``slides``: those that a patient's rows name, in their order, an empty list where none, and
    no patient at all without a column of slides; ``layout``: the maker's, if it was recognised; ``notes``: one line for
    everything that was recognised rather than stated, or left out; ``doubts``: what is probably not meant so;
    ``notices``: remarks by patient that say not to use him.
    """

    outcomes: dict[str, Outcome]
    slides: dict[str, list[str]]
    layout: Layout
    notes: list[str]
    doubts: list[str] = field(default_factory=list)
    notices: dict[str, list[str]] = field(default_factory=dict)


def read_clinical_table(
    path: str | Path, mapping: Mapping[str, Any] | None = None
) -> tuple[dict[str, Outcome], dict[str, list[str]]]:
    """Outcomes by patient and the slides that the table names, of `read_clinical`, whose notes are said.

    A table with a column of slides has an entry for every patient, empty where it names none, and may have one row per
    slide. Raises ClinicalError.
    """
    table = read_clinical_aloud(path, mapping)
    return table.outcomes, table.slides


def read_clinical_aloud(path: str | Path, mapping: Mapping[str, Any] | None = None) -> ClinicalTable:
    """The table of `read_clinical`, its notes and doubts told to the user. Raises ClinicalError."""
    table = read_clinical(path, mapping)
    for note in table.notes:
        say(note)
    for line in table.doubts:
        doubt(line)
    return table


def read_clinical(path: str | Path, mapping: Mapping[str, Any] | None = None) -> ClinicalTable:
    """A table of outcomes that a user brings: tab or comma separated, gzip allowed.

    Columns: patient; a time with its unit in the name (``time_days``, ``OS_MONTHS`` ...), or days to death and to the
    last follow-up beside a vital status; event (1, Dead, DECEASED ... or 0, Alive, LIVING ...) or censored; optional
    slide, age (years), sex, stage, grade. Usual names and six layouts are recognised (:mod:`hcmae.cohort.layouts`);
    ``mapping``, the section "clinical" of columns.json, names columns outright and states the unit of time. Rows of one
    patient are merged where they agree. What is optional never refuses a table: an age or sex that cannot be read is
    left out and noted. Columns that say the same thing are compared (:mod:`hcmae.cohort.twins`): a patient whose time
    or event they contradict has none and a ``contradiction``, other values that differ are left out.

    Raises ClinicalError naming file, patient and column.
    """
    path = Path(path)
    frame, comments = _read(path)
    columns = [str(name) for name in frame.columns]
    first = [str(cell) for cell in frame.iloc[:, 0]] if len(columns) else []
    try:
        layout = recognise_layout(columns, comments, frame)
        reader = _Rows(path, columns, dict(mapping or {}), layout)
    except ColumnError as error:
        raise ClinicalError(f"{path}: {error}{on_its_side(first)}") from None
    try:
        check_last_lines(list(frame[reader.column["patient"]]), 2 + len(comments))
    except TableError as error:
        raise ClinicalError(f"{path}: {error}") from None
    reader.dots = line_of_dots(list(frame[reader.column["patient"]]))
    rows: dict[str, list[dict[str, str]]] = {}
    skipped = 2 if layout.name == "Biotab" else 0
    for number, cells in enumerate(frame.iloc[skipped:].to_numpy().tolist()):
        row = dict(zip(columns, cells, strict=True))
        name = row[str(reader.column["patient"])]
        patient = "" if is_missing(name) else named_patient(name)
        header = (
            number == 0 and len(frame) > 1 + skipped and (not patient or normalised(name) in ("id", *PATIENT_NAMES))
        )
        if not patient or header:
            also = ", which may be a second line of header" if header else ""
            raise ClinicalError(f"{path}: a row without patient{also}: {str(row)[:80]}; fill it in or remove it")
        rows.setdefault(patient, []).append(row)
    try:
        reader.look_at(rows)
    except ColumnError as error:
        for note in reader.layout_notes():
            say(note)  # it may explain why the times or events were read as they were
        raise ClinicalError(f"{path}: {error}") from None
    outcomes = {patient: reader.outcome(patient, found) for patient, found in rows.items()}
    slides = reader.slides(rows)
    remarks = read_remarks(rows, reader.parts(), {patient: outcome.event for patient, outcome in outcomes.items()})
    notes, doubts = ([f"{path.name}: {line}" for line in lines] for lines in (remarks.notes, remarks.doubts))
    return ClinicalTable(
        outcomes, slides, layout, [*reader.table_notes(rows), *notes], [*reader.doubts, *doubts], remarks.notices
    )


def _read(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    if not path.exists():
        raise ClinicalError(f"{path} is missing: put the clinical table there")
    try:
        head = read_head(path)
        return read_text(path, head=head), head.comments
    except TableError as error:
        raise ClinicalError(f"{path}: not a readable table: {error}") from error


class _Rows:
    """Rows of one table made into outcomes, by the columns that were found in it."""

    def __init__(self, path: Path, columns: list[str], mapping: dict[str, Any], layout: Layout) -> None:
        self.path, self.layout, self.mapping = path, layout, mapping
        for wanted, name in mapping.items():
            if wanted in WANTED and name not in columns:
                raise ColumnError(f"columns.json says {wanted} = '{name}', but the columns are {columns[:12]}")
        check_event_name(mapping.get("event"))
        self.column = {wanted: mapping.get(wanted) or find_column(columns, names) for wanted, names in NAMES.items()}
        self.vacated = self._vacate()
        self.times = time_columns(columns, mapping, layout)
        # Days to death and to the last visit are two columns; which of them counts, the vital status says.
        self.by_status = not self.times and self.column["days_to_death"] is not None
        self.age_in_days = None
        if layout.name == "GDC export":
            self.age_in_days = find_column(columns, ("age_at_diagnosis",))
            self.column["age"] = mapping.get("age") or find_column(columns, ("age_at_index", "age"))
        self.kind = find_column(columns, ("classification_of_tumor",))
        self.primary = find_column(columns, ("diagnosis_is_primary_disease",))
        self.codes: set[str] = set()
        self.dots = ""  # what there is to say of barcodes without dashes
        self.columns = columns
        self.doubts: list[str] = []
        self.marks: dict[str, list[float]] = {}  # column -> numbers that stand for "unknown"
        self.twins: list[Comparison] = []
        self._check(columns)

    def _check(self, columns: list[str]) -> None:
        if self.column["patient"] is None:
            raise ColumnError(
                f"no patient column among {columns[:12]}; name one 'patient' or say which in columns.json"
            )
        if not self.times and not self.by_status:
            raise ColumnError(
                f"no survival time among {columns[:12]}; name a column 'time_days', 'weeks', 'months' or 'years', "
                "bring days_to_death and days_to_last_follow_up, or say in columns.json which column it is"
            )
        if self.column["event"] is None and (self.column["censored"] is None or self.by_status):
            raise ColumnError(f"no event among {columns[:12]}; name a column 'event' (1 dead, 0 alive)")
        if self.by_status and self.column["days_to_last"] is None:
            raise ColumnError(
                f"days to death ('{self.column['days_to_death']}') without days to the last follow-up of those alive; "
                "add a column days_to_last_follow_up"
            )

    def _vacate(self) -> list[str]:
        """Take from a column that columns.json names every part that it would have by its name; a line for each."""
        lines = []
        for wanted, column in self.column.items():
            stated = next((key for key in WANTED if key != wanted and self.mapping.get(key) == column), None)
            if column is None or stated is None or wanted in self.mapping or {stated, wanted} == {"patient", "slide"}:
                continue
            self.column[wanted] = None
            lines.append(f"column '{column}' is read as {stated}, as columns.json says, and not as {wanted}")
        return lines

    def parts(self) -> set[str | None]:
        """Columns that are read for something, or compared with one that is."""
        compared = (name for twin in self.twins for name in (twin.first, twin.second))
        return {*self.column.values(), *(time.column for time in self.times), self.age_in_days, self.kind, self.primary,
                *compared}  # fmt: skip

    def texts(self, rows: Sequence[Mapping[str, str]], wanted: str) -> list[str]:
        """What the rows of one patient hold in a column, each once, without what is missing."""
        column = self.column[wanted]
        if column is None:
            return []
        return list(dict.fromkeys(row[column] for row in rows if not is_missing(row[column])))

    def slides(self, rows: Mapping[str, Sequence[Mapping[str, str]]]) -> dict[str, list[str]]:
        """Slides by patient. Raises ClinicalError where two rows of a patient name one slide."""
        column = self.column["slide"]
        if column is None:
            return {}
        for patient, found in rows.items():
            named = [row[column] for row in found if not is_missing(row[column])]
            if len(set(named)) < len(named):
                twice = next(name for name in named if named.count(name) > 1)
                raise ClinicalError(
                    f"{self.path}: patient {patient} comes twice with slide '{twice}'; keep one row per slide"
                )
        return {patient: self.texts(found, "slide") for patient, found in rows.items()}

    def outcome(self, patient: str, rows: Sequence[Mapping[str, str]]) -> Outcome:
        """One patient's outcome from all of his rows. Raises ClinicalError where they disagree."""
        notes: list[str] = []
        odd = {twin.what: twin for twin in self.twins if patient in twin.differ}
        age = self._age(rows, notes)
        sex = self._sex(rows, notes)
        read = (self._by_status if self.by_status else self._by_time)(patient, rows)
        notes += [f"{what} left out: {odd[what].told(patient)}" for what in odd if what not in OUTCOME]
        read = replace(
            read,
            age=None if "age" in odd else age,
            sex=None if "sex" in odd else sex,
            stage=None if "stage" in odd else read.stage,
            grade=None if "grade" in odd else read.grade,
            note="; ".join(filter(None, [read.note, *notes])),
        )
        told = "; ".join(odd[what].told(patient) for what in OUTCOME if what in odd)
        if not told:
            return read
        return replace(
            read, contradiction=told, reason=told,
            time=None if "survival time" in odd else read.time, event=None if "event" in odd else read.event,
        )  # fmt: skip

    def _by_time(self, patient: str, rows: Sequence[Mapping[str, str]]) -> Outcome:
        days = self._agreed(patient, "survival time", [self._days(patient, row) for row in rows])
        event = self._agreed(patient, "event", [self._event(patient, row) for row in rows])
        reason = ""
        if event is None:
            reason = "the event is missing"
        elif days is None:
            reason = "the survival time is missing"
        elif days < 0:
            reason, days = f"the survival time is negative ({days:g} days)", None
        stage, grade = self.texts(rows, "stage"), self.texts(rows, "grade")
        covariates = (stage[0] if stage else None, grade[0] if grade else None)
        odd = [f"{name} {', '.join(self.texts(rows, name))}" for name in ("age", "sex", "stage", "grade")
               if len(self.texts(rows, name)) > 1]  # fmt: skip
        note = f"rows of this patient disagree ({'; '.join(odd)}); the first is kept" if odd else ""
        return Outcome(patient, days, event, None, None, *covariates, reason, note)

    def _by_status(self, patient: str, rows: Sequence[Mapping[str, str]]) -> Outcome:
        """The rules for records of the GDC, applied to a table with the same columns."""

        def cell(row: Mapping[str, str], column: str | None) -> str | None:
            return None if column is None or is_missing(row[column]) else row[column]

        def number(row: Mapping[str, str], wanted: str) -> float | None:
            return self._number(patient, row, str(self.column[wanted]))

        status = self._agreed(patient, "event", [self._event(patient, row) for row in rows])
        death = self._agreed(patient, "day of death", [number(row, "days_to_death") for row in rows])
        diagnoses = [
            {
                "days_to_last_follow_up": number(row, "days_to_last"),
                "ajcc_pathologic_stage": cell(row, self.column["stage"]),
                "tumor_grade": cell(row, self.column["grade"]),
                "classification_of_tumor": cell(row, self.kind),
                "diagnosis_is_primary_disease": (cell(row, self.primary) or "").capitalize() or None,
            }
            for row in rows
        ]
        words = {0: "Alive", 1: "Dead", None: None}
        demographic = {"vital_status": words[status], "days_to_death": death}
        return read_outcome({"submitter_id": patient, "demographic": demographic, "diagnoses": diagnoses})

    def _agreed(self, patient: str, what: str, values: Sequence[Any]) -> Any:
        known = list(dict.fromkeys(value for value in values if value is not None))
        if len(known) > 1:
            raise ClinicalError(
                f"{self.path}: patient {patient} comes twice with different outcomes ({what} {known[0]:g} and "
                f"{known[1]:g}): correct one of the rows"
            )
        return known[0] if known else None

    def _days(self, patient: str, row: Mapping[str, str]) -> float | None:
        for time in self.times:
            value = self._number(patient, row, time.column)
            if value is not None:
                return value * TIME_UNITS[time.unit]
        return None

    def _number(self, patient: str, row: Mapping[str, str], column: str) -> float | None:
        """A number of a column, None where it is missing or a mark for that."""
        value = number_of(row[column], patient, f"column {column} of {self.path}")
        return None if value in self.marks.get(column, ()) else value

    def _event(self, patient: str, row: Mapping[str, str]) -> int | None:
        wanted = "event" if self.column["event"] is not None else "censored"
        column = self.column[wanted]
        if column is None or is_missing(row[column]):
            return None
        event = event_of(row[column], censored=wanted == "censored")
        if event is None:
            one = "a death" if wanted == "event" else "censored"
            raise ClinicalError(
                f"{self.path}: patient {patient}: event '{row[column]}' is neither 0/alive nor 1/dead; in column "
                f"'{column}' 1 stands for {one} and 0 for the opposite, and dead, deceased, alive, living, true, "
                "false, yes, no, event and censored are understood: write one of them (where 1 is alive and 2 is dead, "
                "subtract 1)"
            )
        return event

    def _age(self, rows: Sequence[Mapping[str, str]], notes: list[str]) -> float | None:
        found = self.texts(rows, "age")
        if not found:
            days = [row[self.age_in_days] for row in rows if self.age_in_days and not is_missing(row[self.age_in_days])]
            found = [f"{plain_number(text) / 365.25}" for text in days[:1]]
        if not found:
            return None
        text = found[0]
        bound = age_bound(text)
        if bound is not None:
            notes.append(f"age '{text}' is a bound; taken as {bound:g}")
            return bound
        if readable_age(text):
            return plain_number(text)
        notes.append(f"age '{text}' is no age in years; left out")
        return None

    def _sex(self, rows: Sequence[Mapping[str, str]], notes: list[str]) -> str | None:
        found = self.texts(rows, "sex")
        if not found:
            return None
        stated = {code.strip().lower(): sex for code, sex in self.mapping.get("sex_values", {}).items()}
        sex = sex_of(found[0], self.column["sex"] or "", stated)
        if sex is None:
            self.codes.add(found[0].lower().removesuffix(".0"))
            notes.append(f"sex '{found[0]}' is a number without a meaning; left out")
        return sex

    def look_at(self, rows: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """Set marks for "unknown" among the times apart; see whether the others can be in their unit, and whether
        columns that say the same agree.

        Raises ColumnError where times cannot be in their unit, or nobody says which it is, and where most outcomes
        disagree.
        """
        timed = self.times or [
            TimeColumn(column, "days", True, f"as the name of the column '{column}' says")
            for wanted in ("days_to_death", "days_to_last")
            if (column := self.column[wanted]) is not None
        ]
        cells = {
            time.column: {
                patient: number
                for patient, found in rows.items()
                for row in found
                if not math.isnan(number := plain_number(row[time.column]))
            }
            for time in timed
        }
        self.marks, doubts = look_at_times(timed, cells, apart=bool(self.times))
        found = Found(self.columns, self.column, self.times, self.layout, self.mapping, self.marks)
        self.twins = twins(found, rows)
        copies = line_of_equal_patients(rows, (self.column["patient"], self.column["slide"]))
        self.doubts = [f"{self.path.name}: {line}" for line in (*doubts, *doubts_of(self.twins), *copies)]

    def layout_notes(self) -> list[str]:
        """Whose layout was recognised, in a line; no line for a plain table."""
        layout = self.layout
        return [f"{self.path.name}: recognised as a table of {layout.name} ({layout.reason})"] if layout.name else []

    def table_notes(self, rows: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
        """What was recognised or left out, one line each."""
        name, notes = self.path.name, self.layout_notes()
        for time in self.times:
            if time.reason != STATED and time.column not in ("time_days", "weeks", "months", "years"):
                notes.append(f"{name}: survival time in {time.unit} from column '{time.column}', {time.reason}")
        if self.by_status:
            death, last = self.column["days_to_death"], self.column["days_to_last"]
            notes.append(f"{name}: survival time in days from columns '{death}' of the dead and '{last}' of others")
        notes += [f"{name}: {twin.line()}" for twin in self.twins if not twin.differ]
        notes += [f"{name}: {line}" for line in unread(rows, self.column, self.mapping.get("sex_values", {}))]
        notes += [f"{name}: {line}" for line in (self.dots, *self.vacated) if line]
        several = [patient for patient, found in rows.items() if len(found) > 1]
        if several:
            notes.append(f"{name}: {len(several)} patients have several rows that agree ({several[0]} first); merged")
        if self.codes:
            codes = ", ".join(sorted(self.codes))
            notes.append(
                f"{name}: column '{self.column['sex']}' holds {codes} and does not say which is which: sex is left "
                'out; state it in columns.json, {"clinical": {"sex_values": {"1": "male", "2": "female"}}}'
            )
        return notes
