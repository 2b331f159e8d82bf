"""What is said about a sample beside its barcode: how its tissue was preserved, and notices such as 'do not use'.

The GDC says both in the metadata of a file (kept in the lock) and packs ``annotations.txt`` beside files that have
notices; a user says them in ``samples.tsv`` and ``annotations.tsv``, which the GDC's own exports can be.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hcmae.cohort.barcodes import dashed
from hcmae.cohort.evidence import Annotation, CurationError
from hcmae.cohort.notices import NO, NOT_USED, USED, YES, notice_kind, says_not_used
from hcmae.tables import (
    TableError,
    check_encoding,
    doubt,
    is_missing,
    open_cell,
    open_quotation,
    read_plain,
    separator_of,
)

NOTICES = "annotations.txt"
# A notice is a line or two.
MOST_BYTES = 1 << 20
FFPE = "FFPE"
NOT_FFPE = "not FFPE"  # where the server says no more than that
# Withdrawn by who wrote it.
_VOID = {"rescinded"}
_SPLIT = " | "
# So many rows about nobody get a word on whom they may mean.
_HINTS = 5


def preservation(method: Any, is_ffpe: Any = None) -> str:
    """'FFPE', another method as it is written, or '' where nothing is known.

    ``method``: such as 'FFPE', 'Frozen', 'OCT'; ``is_ffpe``: the older yes or no.
    """
    flag = str(is_ffpe).strip().lower() if is_ffpe is not None else ""
    text = _clean(method) if isinstance(method, str) else ""
    denied = re.search(r"\bnon?t?[- ]*(?:ffpe|formalin|paraffin)|\bno ffpe\b", text.lower()) is not None
    if flag in YES or (not denied and re.search("ffpe|formalin|paraffin", text.lower())):
        return FFPE
    if denied:
        return NOT_FFPE
    if not is_missing(text):
        return text
    return NOT_FFPE if flag in NO else ""


def annotation(values: Mapping[str, Any]) -> Annotation | None:
    """A notice from a record with category, classification, entity_type and status; None for none, or one withdrawn."""
    texts = {name: _clean(values.get(name)) for name in ("entity_type", "classification", "category", "status")}
    if texts["status"].lower() in _VOID or not (texts["category"] or texts["classification"]):
        return None
    return Annotation(texts["entity_type"].lower(), texts["classification"], texts["category"])


def written(annotations: Iterable[Annotation]) -> str:
    """Notices as one cell of a lock."""
    return _SPLIT.join(": ".join((a.entity, a.classification, a.category)) for a in sorted(set(annotations), key=str))


def parsed(cell: str) -> tuple[Annotation, ...]:
    """Notices from a cell of a lock; the other way round of :func:`written`."""
    found = []
    for text in cell.split(_SPLIT):
        parts = [part.strip() for part in text.split(":")]
        if len(parts) == 3 and (parts[1] or parts[2]):
            found.append(Annotation(*parts))
    return tuple(found)


def read_notices(path: Path) -> tuple[Annotation, ...]:
    """The notices of an ``annotations.txt``. Raises CurationError for a file that is no such table."""
    header, rows = _rows(path)
    if header and "category" not in header:
        raise CurationError(f"{path}: neither notices nor a column 'category' among {header[:8]}; correct or remove it")
    return tuple(found for _, row in rows if (found := annotation(row)) is not None)


def matching(annotations: Iterable[Annotation], names: Iterable[str]) -> list[Annotation]:
    """Those whose category or classification is one of ``names``, in either case or in other words (`notice_kind`)."""
    wanted = {name.strip().lower() for name in names}
    kinds = {kind for name in wanted if (kind := notice_kind(name))}

    def said(text: str) -> bool:
        return text.lower() in wanted or notice_kind(text) in kinds

    return [a for a in annotations if said(a.category) or said(a.classification)]


def described(annotations: Iterable[Annotation]) -> str:
    """Notices as people read them: 'Item flagged DNU, Prior malignancy'."""
    return ", ".join(sorted({a.category or a.classification for a in annotations}))


# ---------------------------------------------------------------- what a user says

# Codes of sample types as the GDC has them, by its names and by words of other tables.
_SAMPLE_TYPES = {
    "01": ("primary tumor", "primary solid tumor", "primary", "primary cancer"),
    "02": ("recurrent tumor", "recurrent solid tumor", "recurrent", "recurrence", "relapse"),
    "03": ("primary blood derived cancer peripheral blood",),
    "04": ("recurrent blood derived cancer bone marrow",),
    "05": ("additional new primary",),
    "06": ("metastatic", "metastasis", "metastatic tumor"),
    "07": ("additional metastatic",),
    "08": ("human tumor original cells",),
    "09": ("primary blood derived cancer bone marrow",),
    "10": ("blood derived normal", "blood", "normal blood", "germline"),
    "11": ("solid tissue normal", "normal", "normal tissue", "adjacent normal", "adjacent normal tissue",
           "tumor adjacent normal", "normal adjacent", "normal adjacent tissue", "nat", "non tumor", "healthy"),
    "12": ("buccal cell normal",),
    "13": ("ebv immortalized normal",),
    "14": ("bone marrow normal",),
    "20": ("control analyte", "control", "cell line control"),
    "40": ("recurrent blood derived cancer peripheral blood",),
    "50": ("cell lines", "cell line"),
    "60": ("primary xenograft tissue", "xenograft"),
    "61": ("cell line derived xenograft tissue",),
}  # fmt: skip
_TYPE_OF = {word: code for code, words in _SAMPLE_TYPES.items() for word in words}
# A tumour, and no more is said: taken like a sample of which nothing is said.
_TUMOUR = {"tumor", "cancer", "malignant", "carcinoma"}
# Methods that are known, none of them FFPE.
_METHODS = re.compile(r"\b(?:frozen|freez\w*|oct|cryo\w*|fresh|rnalater|paxgene|edta|nitrogen|ethanol|not ffpe)\b")


def sample_type(text: str) -> str | None:
    """Code of a sample type ('11' for 'Solid Tissue Normal'), '' for nothing or just 'tumour'; None if not readable."""
    if is_missing(text):
        return ""
    plain = " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower().replace("tumour", "tumor")).split())
    if plain in _TUMOUR:
        return ""
    code = plain.removesuffix(" 0").zfill(2)
    return code if code in _SAMPLE_TYPES else _TYPE_OF.get(plain)


@dataclass(frozen=True)
class _Said:
    """One thing that a row says: of whom, what it is about, the value, and where."""

    name: str
    value: str
    where: str


class SampleNotes:
    """Sample types, preservation and notices by patient or barcode; what is said of a sample holds for its aliquots."""

    def __init__(self) -> None:
        self._types: dict[str, _Said] = {}
        self._preservation: dict[str, str] = {}
        self._notices: dict[str, list[Annotation]] = {}
        self._rows: list[_Said] = []

    def preservation(self, sample: str) -> str:
        """How a sample was preserved; the longest name that it begins with counts."""
        names = [name for name in _beginnings(sample) if name in self._preservation]
        return self._preservation[names[0]] if names else ""

    def sample_type(self, sample: str) -> str:
        """Code of a sample's type as the tables state it, '' where they do not.

        Raises CurationError where a barcode says another one.
        """
        said = next((self._types[name] for name in _beginnings(sample) if name in self._types), None)
        if said is None:
            return ""
        code = _type_code(_plain(sample))
        if code and code != said.value:
            raise CurationError(
                f"{said.where}: sample {sample} is of type {code} by its barcode and {said.value} here; correct it"
            )
        return said.value

    def annotations(self, patient: str, sample: str) -> tuple[Annotation, ...]:
        """All notices about a sample, and about its patient: what stands under a patient's name is of the case."""
        person = _plain(patient)
        own = [a for name in _beginnings(sample) if name != person for a in self._notices.get(name, ())]
        return (*own, *(replace(a, entity="case") for a in self._notices.get(person, ())))

    def add(self, path: Path) -> None:
        """Take over a table with a column of samples, barcodes or patients, and what it says of them: ``sample_type``,
        ``preservation_method`` or ``is_ffpe``, ``category`` and ``classification``, and notices in any other column.

        Warns of values that cannot be read. Raises CurationError for a table that says nothing of the kind, for rows
        that contradict each other, and for a row with a notice and without a name.
        """
        header, rows = _rows(path)
        column = next((c for c in _NAME_COLUMNS if c in header), None)
        if column is None:
            raise CurationError(f"{path}: none of the columns {', '.join(_NAME_COLUMNS)} is there; name one 'sample'")
        said = False
        for number, row in rows:
            name, where = _plain(row[column]), f"{path}: row {number}"
            facts = {
                "sample type": self._add_type(name, row, where),
                "preservation": self._add_preservation(name, row, where),
                "notice": self._add_notices(name, row, where),
            }
            told = ", ".join(f"{what} '{value}'" for what, value in facts.items() if value)
            said = said or bool(told)
            if told and not name:
                raise CurationError(f"{where}: {told}, but column '{column}' is empty; say of whom it is")
            if name:
                self._rows.append(_Said(name, told or _first(row, column), where))
        if rows and not said and not set(header) & _TELLING_COLUMNS:
            raise CurationError(
                f"{path}: neither notices (a column 'category', or words such as 'do not use') nor preservation (a "
                f"column 'preservation_method' or 'is_ffpe') nor 'sample_type' among {header[:8]}; correct or remove it"
            )

    def add_remarks(self, patient: str, texts: Iterable[str]) -> None:
        """Take over remarks about a patient that say not to use him, from a clinical table."""
        own = self._notices.setdefault(_plain(patient), [])
        own += [found for text in texts if (found := Annotation("case", "", _clean(text)[:120])) not in own]

    def unmatched(self, patients: Iterable[str], samples: Iterable[str]) -> list[str]:
        """One line for every row that is about nobody: neither about one of the patients nor one of the samples."""
        known = {_plain(patient) for patient in patients}
        known |= {name for sample in samples for name in _beginnings(sample)}
        lines: list[str] = []
        for row in self._rows:
            # Other samples of a patient who is known are none of the cohort's tables.
            if row.name in known or (row.name.startswith("TCGA-") and row.name[:12] in known):
                continue
            # Of many such rows the first ones are read.
            near = _near(row.name, known) if len(lines) < _HINTS else ""
            hint = f" (did you mean '{near}'?)" if near else ""
            lines.append(f"{row.where}: '{row.name}' ({row.value}) is no patient and no sample of the tables{hint}")
        return lines

    def _add_type(self, name: str, row: Mapping[str, str], where: str) -> str:
        found: list[tuple[str, str]] = []
        for column in (c for c in (*_TYPE_COLUMNS, *_LOOSE_TYPE_COLUMNS) if row.get(c)):
            code = sample_type(row[column])
            if code is None and column in _LOOSE_TYPE_COLUMNS:
                continue
            if code is None:
                doubt(
                    f"{where}, '{name}': {column} '{row[column]}' is no sample type that is known (Primary Tumor, "
                    "Solid Tissue Normal, Metastatic ..., or 01, 11, 06); the sample is taken as if it said nothing"
                )
            elif code:
                found.append((code, row[column]))
        if not found or not name:
            return found[0][1] if found else ""
        code, text = found[0]
        other = next((said for said in found if (said[0] < "10") != (code < "10")), None)
        if other is not None:
            raise CurationError(f"{where}: sample {name} is '{text}' and '{other[1]}' in one row; correct it")
        before = self._types.setdefault(name, _Said(name, code, where))
        if before.value != code:
            raise CurationError(
                f"{where}: sample {name} is of type {code} here and {before.value} in {before.where}; correct it"
            )
        return text

    def _add_preservation(self, name: str, row: Mapping[str, str], where: str) -> str:
        method = next((row[c] for c in _METHOD_COLUMNS if row.get(c)), "")
        column = next((c for c in _FFPE_COLUMNS if row.get(c)), _FFPE_COLUMNS[0])
        flag = row.get(column, "").lower()
        if flag and flag not in YES | NO and not is_missing(flag):
            if method and not is_missing(method):
                doubt(f"{where}, '{name}': {column} '{row[column]}' is neither yes nor no; '{method}' counts")
            else:
                method = row[column]
            flag = ""
        said = preservation(method or None, flag or None)
        if said not in ("", FFPE, NOT_FFPE) and not _METHODS.search(said.lower()):
            doubt(
                f"{where}, '{name}': preservation '{said}' is no method that is known (FFPE, Frozen, OCT ...); the "
                "sample is taken as one that is not of FFPE tissue"
            )
        if said == FFPE and (flag in NO or (flag in YES and method and preservation(method) != FFPE)):
            doubt(f"{where}, '{name}': preservation '{method}' and {column} '{row[column]}' disagree; taken as FFPE")
        if name and said:
            before = self._preservation.setdefault(name, said)
            if (before == FFPE) != (said == FFPE):
                raise CurationError(f"{where}: sample {name} is {before} in one row and {said} in another; correct it")
        return said

    def _add_notices(self, name: str, row: Mapping[str, str], where: str) -> str:
        if row.get("status", "").lower() in _VOID:
            return ""
        found = annotation(row)
        notices = [] if found is None else [found]
        if not any(notice_kind(a.category) or notice_kind(a.classification) for a in notices):
            notices += _in_other_columns(name, row, where)
        if name and notices:
            self._notices.setdefault(name, []).extend(notices)
        return described(notices)


_NAME_COLUMNS = (
    "entity_submitter_id", "sample_submitter_id", "sample", "sample_id", "barcode", "aliquot", "aliquot_id",
    "aliquot_submitter_id", "slide", "slide_id", "patient", "patient_id", "case_submitter_id", "case_id", "case",
)  # fmt: skip
_TYPE_COLUMNS = ("sample_type", "tissue_type", "tumor_descriptor", "tumor_or_normal")
# Names that stand for other things as well, an organ for example: read where the cell is a type of sample.
_LOOSE_TYPE_COLUMNS = ("tissue", "type", "group", "condition")
_METHOD_COLUMNS = ("preservation_method", "preservation", "fixation")
_FFPE_COLUMNS = ("is_ffpe", "ffpe")
_TELLING_COLUMNS = {"category", "classification", *_FFPE_COLUMNS, *_METHOD_COLUMNS, *_TYPE_COLUMNS, *NOT_USED, *USED}


def _in_other_columns(name: str, row: Mapping[str, str], where: str) -> list[Annotation]:
    """Notices that stand outside category and classification: as words of a remark, or as a column of yes and no."""
    entity = row.get("entity_type", "").lower()
    for column, cell in row.items():
        if column in _NAME_COLUMNS or is_missing(cell):
            continue
        if says_not_used(column, cell.lower()):
            return [Annotation(entity, "", f"do not use (column {column}, {_clean(cell)[:60]})")]
        if notice_kind(column.replace("_", " ")):
            if cell.lower() in YES or notice_kind(cell):
                return [Annotation(entity, "", _clean(column.replace("_", " ")))]
            if cell.lower() not in NO:
                doubt(f"{where}, '{name}': {column} '{cell[:60]}' is neither yes nor no; taken as no notice")
        elif notice_kind(cell):
            return [Annotation(entity, "", _clean(cell)[:120])]
    return []


def _near(name: str, known: Iterable[str]) -> str:
    """The known name that one differs from in its capital letters only, or begins with; '' where there is none."""
    begun = ""
    for other in known:
        if other.casefold() == name.casefold():
            return other
        if name.startswith(other) and len(other) > len(begun) and not name[len(other)].isalnum():
            begun = other
    return begun


def _first(row: Mapping[str, str], column: str) -> str:
    """The first thing that a row says beside its name."""
    return next((f"{name} '{cell[:40]}'" for name, cell in row.items() if name != column and cell), "nothing")


def _type_code(name: str) -> str:
    found = re.match(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-([0-9]{2})", name)
    return found[1] if found else ""


def _plain(name: str) -> str:
    text = dashed(unicodedata.normalize("NFC", name).strip())
    return text.upper() if text.upper().startswith("TCGA-") else text


def _beginnings(sample: str) -> list[str]:
    """The name and, of a barcode, all beginnings that end at a part (vials count as parts), the longest first."""
    text = _plain(sample)
    if not text.startswith("TCGA-"):
        return [text]
    parts = text.split("-")
    found = ["-".join(parts[:end]) for end in range(len(parts), 2, -1)]
    if len(parts) > 3 and len(parts[3]) == 3:
        found.insert(len(found) - 1, "-".join([*parts[:3], parts[3][:2]]))
    return found


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Names of columns in lower case with underscores, and the rows with their numbers, of a small table.

    Tab-separated, .csv: comma-separated. Raises CurationError for a file that cannot be read.
    """
    try:
        if path.stat().st_size > (MOST_BYTES if path.name == NOTICES else 64 * MOST_BYTES):
            raise CurationError(f"{path}: far larger than such a table is; look at what it holds")
        content = read_plain(path)
        check_encoding(content[:1000])
        text = content.decode("utf-8-sig", errors="replace")
        # Not read as other tables are: a lone quote in a note must not swallow the rows behind it.
        if separator_of(path) == ",":
            for number, line in enumerate(io.StringIO(text, newline=None), start=1):
                if (column := open_cell(line.rstrip("\n"), ",")) is not None:
                    raise TableError(open_quotation(number, column))
            reader = csv.reader(io.StringIO(text))
        else:
            reader = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [(reader.line_num, [cell.strip().strip('"') for cell in row]) for row in reader if row]
    except (OSError, TableError, csv.Error) as error:
        raise CurationError(f"{path}: cannot be read ({error}); correct or remove it") from error
    if not rows:
        return [], []
    header = ["_".join(re.sub(r"[\W_]+", " ", name.lower()).split()) for name in rows[0][1]]
    # A note may hold tabs and line ends: what is too much is cut, what is missing is empty.
    empty = dict.fromkeys(header, "")
    return header, [(number, empty | dict(zip(header, row, strict=False))) for number, row in rows[1:]]


def _clean(value: Any) -> str:
    """Text of one line without the marks that separate notices in a lock."""
    text = "" if value is None else " ".join(re.sub(r"[:|\"]", " ", str(value)).split())
    return "" if is_missing(text) else text
