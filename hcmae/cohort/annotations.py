"""What is said about a sample beside its barcode: how its tissue was preserved, and notices such as 'do not use'.

The GDC says both in the metadata of a file (kept in the lock) and packs ``annotations.txt`` beside files that have
notices; a user says them in ``samples.tsv`` and ``annotations.tsv``, which the GDC's own exports can be.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hcmae.cohort.evidence import Annotation, CurationError
from hcmae.tables import TableError, is_missing, open_cell, open_quotation, read_plain, separator_of

NOTICES = "annotations.txt"
# A notice is a line or two.
MOST_BYTES = 1 << 20
FFPE = "FFPE"
NOT_FFPE = "not FFPE"  # where the server says no more than that
_YES, _NO = {"true", "yes", "1", "1.0", "y"}, {"false", "no", "0", "0.0", "n"}
# Withdrawn by who wrote it.
_VOID = {"rescinded"}
_SPLIT = " | "


def preservation(method: Any, is_ffpe: Any = None) -> str:
    """'FFPE', another method as it is written, or '' where nothing is known.

    ``method``: such as 'FFPE', 'Frozen', 'OCT'; ``is_ffpe``: the older yes or no.
    """
    flag = str(is_ffpe).strip().lower() if is_ffpe is not None else ""
    text = _clean(method) if isinstance(method, str) else ""
    if flag in _YES or "ffpe" in text.lower() or "formalin" in text.lower() or "paraffin" in text.lower():
        return FFPE
    if not is_missing(text):
        return text
    return NOT_FFPE if flag in _NO else ""


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
    return tuple(found for row in _rows(path) if (found := annotation(row)) is not None)


def matching(annotations: Iterable[Annotation], names: Iterable[str]) -> list[Annotation]:
    """Those whose category or classification is one of ``names``, in either case."""
    wanted = {name.strip().lower() for name in names}
    return [a for a in annotations if {a.category.lower(), a.classification.lower()} & wanted]


def described(annotations: Iterable[Annotation]) -> str:
    """Notices as people read them: 'Item flagged DNU, Prior malignancy'."""
    return ", ".join(sorted({a.category or a.classification for a in annotations}))


# ---------------------------------------------------------------- what a user says


class SampleNotes:
    """Preservation and notices by patient or barcode; what is said of a sample holds for its aliquots too."""

    def __init__(self) -> None:
        self._preservation: dict[str, str] = {}
        self._notices: dict[str, list[Annotation]] = {}

    def preservation(self, sample: str) -> str:
        """How a sample was preserved; the longest name that it begins with counts."""
        names = [name for name in _beginnings(sample) if name in self._preservation]
        return self._preservation[names[0]] if names else ""

    def annotations(self, patient: str, sample: str) -> tuple[Annotation, ...]:
        """All notices about a sample, and about its patient: what stands under a patient's name is of the case."""
        person = _plain(patient)
        own = [a for name in _beginnings(sample) if name != person for a in self._notices.get(name, ())]
        return (*own, *(replace(a, entity="case") for a in self._notices.get(person, ())))

    def add_samples(self, path: Path) -> None:
        """Take over a table with a column of samples, and preservation_method or is_ffpe. Raises CurationError."""
        for row in _rows(path):
            name = _name(row, _SAMPLE_COLUMNS, path)
            said = preservation(
                next((row[c] for c in ("preservation_method", "preservation") if row.get(c)), None), row.get("is_ffpe")
            )
            if name and said:
                before = self._preservation.setdefault(name, said)
                if (before == FFPE) != (said == FFPE):
                    raise CurationError(
                        f"{path}: sample {name} is {before} in one row and {said} in another; correct it"
                    )

    def add_notices(self, path: Path) -> None:
        """Take over a table with a column of barcodes or patients, category, classification. Raises CurationError."""
        for row in _rows(path):
            name, found = _name(row, _ENTITY_COLUMNS, path), annotation(row)
            if name and found is not None:
                self._notices.setdefault(name, []).append(found)


_SAMPLE_COLUMNS = ("sample_submitter_id", "sample", "sample_id", "barcode", "aliquot", "patient", "case_submitter_id")
_ENTITY_COLUMNS = ("entity_submitter_id", "barcode", "sample", "sample_id", "patient", "case_submitter_id")


def _name(row: Mapping[str, str], columns: Sequence[str], path: Path) -> str:
    column = next((c for c in columns if c in row), None)
    if column is None:
        raise CurationError(f"{path}: none of the columns {', '.join(columns)} is there; name one 'sample'")
    return _plain(row.get(column, ""))


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFC", name).strip()
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


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of a small tab-separated (.csv: comma-separated) table, columns in lower case with underscores."""
    try:
        if path.stat().st_size > (MOST_BYTES if path.name == NOTICES else 64 * MOST_BYTES):
            raise CurationError(f"{path}: far larger than such a table is; look at what it holds")
        text = read_plain(path).decode("utf-8-sig", errors="replace")
        # Not read as other tables are: a lone quote in a note must not swallow the rows behind it.
        if separator_of(path) == ",":
            for number, line in enumerate(io.StringIO(text, newline=None), start=1):
                if (column := open_cell(line.rstrip("\n"), ",")) is not None:
                    raise TableError(open_quotation(number, column))
            reader = csv.reader(io.StringIO(text))
        else:
            reader = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [row for row in reader if row]
    except (OSError, TableError, csv.Error) as error:
        raise CurationError(f"{path}: cannot be read ({error}); correct or remove it") from error
    if not rows:
        return []
    header = ["_".join(name.strip().lower().replace("_", " ").split()) for name in rows[0]]
    if "category" not in header and not set(header) & {"is_ffpe", "preservation_method", "preservation"}:
        raise CurationError(
            f"{path}: neither notices (a column 'category') nor preservation (a column 'preservation_method' or "
            f"'is_ffpe') among {header[:8]}; correct or remove it"
        )
    # A note may hold tabs and line ends: what is too much is cut, what is missing is empty.
    empty = dict.fromkeys(header, "")
    return [empty | dict(zip(header, (cell.strip().strip('"') for cell in row), strict=False)) for row in rows[1:]]


def _clean(value: Any) -> str:
    """Text of one line without the marks that separate notices in a lock."""
    text = "" if value is None else " ".join(re.sub(r"[:|\"]", " ", str(value)).split())
    return "" if is_missing(text) else text
