"""Evidence from a folder that a user brings: tables and slides (source ``local``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hcmae.cohort import clinical
from hcmae.cohort.barcodes import (
    patient_id,
)
from hcmae.cohort.columns import read_columns
from hcmae.cohort.evidence import SLIDE_SUFFIXES, Candidate, CurationError, Evidence, slide_barcode
from hcmae.cohort.layouts import PATIENT_NAMES, ColumnError, find_column, normalised
from hcmae.content import files_below, slide_bytes
from hcmae.tables import TableError, read_head, read_text


def local_mapping(root: Path) -> dict[str, Any]:
    """``columns.json`` of a user's folder, checked: :func:`hcmae.cohort.columns.read_columns`."""
    return read_columns(root)


def local_file(root: Path, what: str, mapping: Mapping[str, Any]) -> Path:
    """The table of a modality (or 'clinical') in a user's folder: ``rna.tsv``, ``rna_counts.tsv.gz``, ``rna.csv`` ...

    Raises CurationError where there is none, or more than one.
    """
    named = mapping.get("files", {}).get(what)
    if named is not None:
        if not (root / str(named)).is_file():
            raise CurationError(
                f"{root / 'columns.json'}: files.{what} is '{named}', but {root / str(named)} is missing"
            )
        return root / str(named)
    suffixes = (".tsv", ".tsv.gz", ".csv", ".csv.gz", ".txt", ".txt.gz")
    found = sorted(
        p
        for p in (root.iterdir() if root.is_dir() else ())
        if p.name.lower().endswith(suffixes) and p.name.lower().split(".")[0].split("_")[0] == what
    )
    exact = [p for p in found if p.name.lower().split(".")[0] == what]
    found = exact or found
    if not found:
        raise CurationError(f"{root}: no table for {what}; put {what}.tsv there or name it in columns.json")
    if len(found) > 1:
        raise CurationError(
            f"{root}: {found[0].name} and {found[1].name} could both be {what}; name one in columns.json"
        )
    return found[0]


def patient_column(header: Sequence[str], path: Path, named: str | None = None) -> int:
    """Position of the patient column in a table of a user. Raises CurationError where there is none."""
    if named is not None:
        if named not in header:
            raise CurationError(f"{path}: columns.json names the patient column '{named}', which is not in the table")
        return list(header).index(named)
    try:
        column = find_column(header, PATIENT_NAMES)
    except ColumnError as error:
        raise CurationError(f"{path}: {error}") from None
    if column is not None:
        return list(header).index(column)
    if header and normalised(header[0]) in ("", "sample", "sample_id", "index", "unnamed_0"):
        return 0
    transposed = sum(patient_id(name) != name.strip() or len(name) == 12 for name in header if name.startswith("TCGA-"))
    hint = "patients stand in the header: transpose the table" if transposed > 1 else "name the first column 'patient'"
    raise CurationError(f"{path}: no patient column among {[n[:20] for n in header[:6]]}; {hint}, or use columns.json")


def table_patients(path: Path, named: str | None = None) -> list[str]:
    """Patients of a user's table, in its order, without reading the values.

    Raises CurationError for a table without patient column, with an empty patient, or with one that comes twice.
    """
    try:
        head = read_head(path)
        column = head.names[patient_column(head.names, path, named)]
        cells = read_text(path, [column], head)[column]
    except TableError as error:
        raise CurationError(f"{path}: {error}") from error
    for number, cell in enumerate(cells, start=2 + len(head.comments)):
        if not cell:
            raise CurationError(f"{path}: line {number} has no patient; fill it in or remove it")
    patients = [patient_id(cell) for cell in cells]
    if len(set(patients)) < len(patients):
        twice = next(p for i, p in enumerate(patients) if p in set(patients[:i]))
        raise CurationError(f"{path}: patient {twice} comes twice; keep one row per patient")
    return patients


def local_evidence(root: Path, modalities: Sequence[str], slides: bool) -> Evidence:
    mapping = local_mapping(root)
    outcomes, named = clinical.read_clinical_table(local_file(root, "clinical", mapping), mapping.get("clinical"))
    named_slides = {patient: names[0] for patient, names in named.items() if names}
    candidates: dict[str, dict[str, list[Candidate]]] = {}
    for modality in modalities:
        path = local_file(root, modality, mapping)
        patients = table_patients(path, mapping.get(modality, {}).get("patient"))
        size = path.stat().st_size
        candidates[modality] = {p: [Candidate(str(path.absolute()), p, size, None)] for p in patients}
    if slides:
        candidates["slides"] = _local_candidates(root / "slides", outcomes, named_slides)
    return Evidence(outcomes, candidates)


def local_slides(folder: Path) -> list[Path]:
    """The slides below a folder, behind links too, sorted. Raises CurationError where there is no folder or slide."""
    if not folder.is_dir():
        raise CurationError(f"{folder} is missing: put the slides there, or curate with slides=False")
    files = sorted(path for path in files_below(folder) if path.suffix.lower() in SLIDE_SUFFIXES)
    if not files:
        raise CurationError(f"{folder}: no slide with one of the suffixes {', '.join(SLIDE_SUFFIXES)}")
    return files


def _local_candidates(folder: Path, patients: Iterable[str], named: Mapping[str, str]) -> dict[str, list[Candidate]]:
    """Slides by patient: the one the clinical table names, else files whose names begin with the patient's."""
    files = local_slides(folder)
    by_name = {p.name: p for p in files} | {p.stem: p for p in files}
    by_patient: dict[str, list[Path]] = {}
    known = set(patients)
    for path in files:
        owner = patient_id(path.name)
        if owner not in known:
            # Names of other origin: the longest patient that starts the file name and ends at a separator.
            fits = [p for p in known if path.name.startswith(p) and not path.name[len(p) : len(p) + 1].isalnum()]
            owner = max(fits, key=len, default="")
        by_patient.setdefault(owner, []).append(path)
    found: dict[str, list[Candidate]] = {}
    for patient in sorted(known):
        paths = [by_name[named[patient]]] if named.get(patient) in by_name else by_patient.get(patient, [])
        if named.get(patient) and named[patient] not in by_name:
            paths = []
        if paths:
            found[patient] = [
                Candidate(str(p.absolute()), p.stem, slide_bytes(p), slide_barcode(p.name, "")) for p in paths
            ]
    return found
