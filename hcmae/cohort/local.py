"""Evidence from a folder that a user brings: tables and slides (source ``local``)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hcmae.cohort import clinical
from hcmae.cohort.annotations import SampleNotes
from hcmae.cohort.barcodes import Barcode, composed, dashed, patient_id
from hcmae.cohort.columns import read_columns
from hcmae.cohort.copies import table_given_twice
from hcmae.cohort.evidence import (
    FEATURE_SUFFIXES,
    SLIDE_SUFFIXES,
    Candidate,
    CurationError,
    Evidence,
    barcode_of,
    slide_barcode,
)
from hcmae.cohort.features import index_names
from hcmae.cohort.layouts import PATIENT_NAMES, ColumnError, find_column, normalised
from hcmae.cohort.people import (
    doubts_of_spellings,
    how_names_differ,
    line_of_dots,
    one_name_twice,
    other_spellings,
    spelt_alike,
)
from hcmae.cohort.slide_names import SlideFile, claim_slides, slide_files, store_names
from hcmae.config import MODALITIES
from hcmae.content import files_below, slide_bytes, slide_parts
from hcmae.tables import TableError, check_last_lines, counts_rows, doubt, is_missing, listed, read_head, read_text, say


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
    found = _named_like(root, what)
    exact = [p for p in found if p.name.lower().split(".")[0] == what]
    found = exact or found
    if not found:
        books = _named_like(root, what, (".xlsx", ".xls", ".ods", ".xlsm"))
        book = f" ({books[0].name} is a workbook: save its sheet as text, {what}.tsv or {what}.csv)" if books else ""
        normal = [path.name for path in normal_files(root) if what in path.name.lower()]
        book = book or (f" ({normal[0]} is one of normal tissue, by its name)" if normal else "")
        raise CurationError(f"{root}: no table for {what}{book}; put {what}.tsv there or name it in columns.json")
    if len(found) > 1:
        raise CurationError(
            f"{root}: {found[0].name} and {found[1].name} could both be {what}; name one in columns.json"
        )
    return found[0]


_SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz", ".txt", ".txt.gz")


def _named_like(root: Path, what: str, suffixes: tuple[str, ...] = _SUFFIXES) -> list[Path]:
    """Tables whose names begin with a word, in either case, packed or not; those of normal tissue are none."""
    return sorted(
        path
        for path in (root.iterdir() if root.is_dir() else ())
        if path.name.lower().endswith(suffixes)
        and path.name.lower().split(".")[0].split("_")[0] == what
        and not _of_normal_tissue(path)
    )


def _of_normal_tissue(path: Path) -> bool:
    return bool({"normal", "normals"} & set(re.split(r"[^a-z0-9]+", path.name.lower())))


def normal_file(root: Path, modality: str) -> Path | None:
    """The table of normal tissue of a modality in a user's folder (``normal_rna.tsv``, ``rna_normal.csv.gz`` ...).

    None where there is none. Raises CurationError where there are several.
    """
    found = [path for path in normal_files(root) if modality in re.split(r"[^a-z0-9]+", path.name.lower())]
    if len(found) > 1:
        raise CurationError(
            f"{root}: {found[0].name} and {found[1].name} could both be the table of normal tissue for {modality}; "
            "keep one of them here"
        )
    return found[0] if found else None


def normal_files(root: Path) -> list[Path]:
    """Tables of normal tissue in a folder, by their names."""
    wanted = set(MODALITIES)
    return sorted(
        path
        for path in (root.iterdir() if root.is_dir() else ())
        if path.name.lower().endswith(_SUFFIXES)
        and _of_normal_tissue(path)
        and wanted & set(re.split(r"[^a-z0-9]+", path.name.lower()))
    )


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


def sample_name(cell: str) -> str:
    """What stands in the patient column of a user's table, a patient or the barcode of a sample, as it is kept."""
    return dashed(composed(cell.strip().strip('"')))


def table_samples(path: Path, named: str | None = None, patients: Collection[str] = ()) -> dict[str, list[str]]:
    """Patients of a user's table and what they are called there, in its order, without reading the values.

    A patient has one row, or rows of several samples, told apart by TCGA barcodes that say the sample's type.
    ``patients``: those of the clinical table, by which a table that lies on its side is recognised. Raises
    CurationError for such a table and one without patient column, with an empty patient, or with one that comes twice.
    """
    try:
        head = read_head(path)
        across = [name for name in head.names if name and patient_id(sample_name(name)) in patients]
        column = head.names[_label_column(head.names, path, named, across)]
        cells = read_text(path, [column], head)[column]
        check_last_lines(list(cells), 2 + len(head.comments))
    except TableError as error:
        raise CurationError(f"{path}: {error}") from error
    if len(across) > 1 and not any(patient_id(sample_name(cell)) in patients for cell in cells):
        raise _on_its_side(path, across)
    check_labels(path, column, list(cells))
    if dots := line_of_dots(list(cells)):
        say(f"{path}: {dots}")
    found: dict[str, list[str]] = {}
    for number, cell in enumerate(cells, start=2 + len(head.comments)):
        if is_missing(cell) or (number == 2 + len(head.comments) and normalised(cell) in PATIENT_NAMES):
            also = ", a second line of header too" if number == 2 + len(head.comments) else ""
            raise CurationError(f"{path}: line {number} has no patient; fill it in or remove it{also}")
        sample = sample_name(cell)
        found.setdefault(patient_id(sample), []).append(sample)
    for patient, samples in found.items():
        codes = {sample_barcode(sample) for sample in samples}
        if len(samples) > 1 and (None in codes or len(codes) < len(samples)):
            raise CurationError(
                f"{path}: patient {patient} comes twice; keep one row per patient, or one per sample under its barcode"
            )
    return found


def table_features(path: Path, named: str | None = None) -> list[str]:
    """Names of the features of a user's table whose patients `table_samples` has read."""
    names = list(read_head(path).names)
    label = patient_column(names, path, named)
    index = set(index_names(names))
    return [name for number, name in enumerate(names) if number != label and name not in index]


def _label_column(header: Sequence[str], path: Path, named: str | None, across: Sequence[str]) -> int:
    try:
        return patient_column(header, path, named)
    except CurationError:
        if named is None and len(across) > 1:
            raise _on_its_side(path, across) from None
        raise


def _on_its_side(path: Path, across: Sequence[str]) -> CurationError:
    return CurationError(
        f"{path}: its header holds patients ({listed(across, 3)}), its rows do not: the table lies on its side; "
        "transpose the table, one row per patient"
    )


def check_labels(path: Path, column: str, cells: Sequence[str]) -> None:
    """Raise CurationError where a column that was taken for the patients' by its place only counts the rows."""
    if normalised(column) in ("", "index", "unnamed_0") and counts_rows(cells):
        raise CurationError(
            f"{path}: no patient column, and the first one ('{column}') counts the rows from {cells[0]} on, as an "
            "index that was written with the table; name the column of patients 'patient', also if this is it"
        )


def sample_barcode(sample: str) -> Barcode | None:
    """The barcode of a sample or aliquot; None for a name of another kind, and for a patient's alone."""
    code = barcode_of(sample)
    return code if code is not None and code.sample_type is not None else None


def local_evidence(
    root: Path,
    modalities: Sequence[str],
    slides: bool,
    *,
    mapping: Mapping[str, Any] | None = None,
    notes: SampleNotes | None = None,
    people: tuple[dict[str, clinical.Outcome], dict[str, list[str]]] | None = None,
    of_features: bool = False,
) -> Evidence:
    """What a user's tables and slides say. Raises CurationError, ClinicalError.

    ``mapping``, ``notes`` and ``people`` (outcomes and named slides) stand for ``columns.json``, the tables of remarks
    and the clinical table, where a caller has read them. ``of_features``: the slides are files of features, below
    ``features/`` instead of ``slides/``.
    """
    mapping = local_mapping(root) if mapping is None else mapping
    notes = sample_notes(root, mapping) if notes is None else notes
    if people is None:
        table = local_file(root, "clinical", mapping)
        read = clinical.read_clinical_aloud(table, mapping.get("clinical"))
        people = read.outcomes, read.slides
        for patient, texts in read.notices.items():
            notes.add_remarks(patient, texts)
        tables = {"clinical": table}
    else:
        table, tables = root, {}
    outcomes, named = people
    candidates: dict[str, dict[str, list[Candidate]]] = {}
    features: dict[str, tuple[Path, list[str]]] = {}
    for modality in modalities:
        path = local_file(root, modality, mapping)
        label = mapping.get(modality, {}).get("patient")
        found = table_samples(path, label, outcomes)
        features[modality] = path, table_features(path, label)
        size = path.stat().st_size

        candidates[modality] = {
            patient: [
                Candidate(
                    str(path.absolute()), sample, size, sample_barcode(sample),
                    preservation=notes.preservation(sample), annotations=notes.annotations(patient, sample),
                    stated_type=notes.sample_type(sample),
                )
                for sample in samples
            ]
            for patient, samples in found.items()
        }  # fmt: skip
    if given_twice := table_given_twice(features):
        raise CurationError(given_twice)
    evidence = Evidence(outcomes, candidates)
    _look_at_names(evidence, tables | {what: path for what, (path, _) in features.items()})
    if slides:
        _add_slides(evidence, root / ("features" if of_features else "slides"), named, notes, str(table), of_features)
    _say_unmatched(notes, evidence)
    normal = [path.name for path in normal_files(root)]
    if normal:
        say(f"{root}: of normal tissue by name, and opened for omics.contrast = tumour_normal alone: {listed(normal)}")
    return evidence


def _look_at_names(evidence: Evidence, paths: Mapping[str, Path]) -> None:
    """Note who is spelt in two ways in the tables of a folder, and tell the user.

    Raises CurationError where one table has two names that differ in capital letters or blanks alone.
    """
    if not paths:
        return
    tables = {path.name: evidence.outcomes if what == "clinical" else evidence.candidates[what]
              for what, path in paths.items()}  # fmt: skip
    for what, path in paths.items():
        names = list(tables[path.name])
        for one, other in one_name_twice(names):
            raise CurationError(
                f"{path}: patients '{one}' and '{other}' are one name but for {how_names_differ(one, other)}: the same "
                "person twice could be in training and in test; keep one of them, or give them names that differ"
            )
        alike = spelt_alike(names)
        # What is said of the clinical table need not be said of every other one.
        if alike and (what == "clinical" or not set(alike) <= set(spelt_alike(list(evidence.outcomes)))):
            pairs = [f"'{one}' and '{other}'" for one, other in alike]
            doubt(
                f"{path}: {listed(pairs, 3)} may be one patient under two names, which differ in "
                f"{how_names_differ(*alike[0])}; if so, keep one of them"
            )
    evidence.spellings = other_spellings(tables)
    for line in doubts_of_spellings(tables, evidence.spellings):
        doubt(f"{next(iter(paths.values())).parent}: {line}")


def sample_notes(root: Path, mapping: Mapping[str, Any]) -> SampleNotes:
    """What ``samples.tsv`` and ``annotations.tsv`` of a user's folder say; nothing where they are not there."""
    notes = SampleNotes()
    for what in ("samples", "annotations"):
        path = remark_file(root, what, mapping)
        if path is not None:
            notes.add(path)
    return notes


def _say_unmatched(notes: SampleNotes, evidence: Evidence) -> None:
    """Warn of rows of ``samples.tsv`` and ``annotations.tsv`` about nobody: a name may be written otherwise."""
    found = [c for own in evidence.candidates.values() for some in own.values() for c in some]
    names = {c.sample for c in (*found, *evidence.unclaimed)}
    names |= {str(c.barcode) for c in (*found, *evidence.unclaimed) if c.barcode is not None}
    lines = notes.unmatched(evidence.patients, names)
    if lines:
        doubt(f"{listed(lines)}; such a row says nothing about the cohort: write the name as the tables do")


def remark_file(root: Path, what: str, mapping: Mapping[str, Any]) -> Path | None:
    """The table of 'samples' or 'annotations' in a user's folder, None where there is none. Raises CurationError."""
    if what not in mapping.get("files", {}) and not _named_like(root, what):
        return None
    return local_file(root, what, mapping)


def local_slides(folder: Path) -> list[Path]:
    """The slides below a folder, behind links too, sorted; what is hidden (snapshots, other systems' notes) is not one.

    Raises CurationError where there is no folder or slide.
    """
    if not folder.is_dir():
        raise CurationError(f"{folder} is missing: put the slides there, or curate with slides=False")
    files = [path for path in _shown(folder) if path.suffix.lower() in SLIDE_SUFFIXES]
    if not files:
        names = [path.relative_to(folder).as_posix() for path in _shown(folder)]
        others = f", only {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names else ", and nothing else"
        raise CurationError(
            f"{folder}: no slide with one of the suffixes {', '.join(SLIDE_SUFFIXES)}{others}; "
            "put the slides there, unpacked"
        )
    return files


def local_features(folder: Path) -> list[Path]:
    """The files of features below a folder, sorted: one per slide, of one encoder.

    Coordinates alone (``patches/``) and features of whole slides (``slide_features_...``) are not among them; a ``.pt``
    counts where no ``.h5`` of its name holds the same. Raises CurationError where there is no folder or file, or where
    there are folders of two encoders.
    """
    if not folder.is_dir():
        raise CurationError(f"{folder} is missing: put the files of features there, or curate with slides=False")

    def is_one(path: Path) -> bool:
        above = path.relative_to(folder).parts[:-1]
        other = any(part == "patches" or part.startswith("slide_features") for part in above)
        return path.suffix.lower() in FEATURE_SUFFIXES and not other

    files = [path for path in _shown(folder) if is_one(path)]
    if not files:
        raise CurationError(
            f"{folder}: no file of features ({', '.join(FEATURE_SUFFIXES)}); put them there, one a slide"
        )
    encoders = {part for path in files for part in path.relative_to(folder).parts[:-1] if part.startswith("features_")}
    if len(encoders) > 1:
        raise CurationError(
            f"{folder}: folders of {len(encoders)} encoders ({listed(sorted(encoders))}); leave one of them"
        )
    whole = {path.stem for path in files if path.suffix.lower() == ".h5"}
    return [path for path in files if path.suffix.lower() == ".h5" or path.stem not in whole]


def _shown(folder: Path) -> list[Path]:
    """Files below a folder, sorted, without what is hidden."""
    return sorted(
        path for path in files_below(folder) if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def unread_files(folder: Path) -> list[str]:
    """Files below ``slides/`` that are neither slides nor parts of one, by their paths below it."""
    shown = _shown(folder)
    parts = {part for path in shown if path.suffix.lower() in (".mrxs", ".vms") for part in slide_parts(path)}
    rest = [path for path in shown if path.suffix.lower() not in SLIDE_SUFFIXES and path not in parts]
    return [path.relative_to(folder).as_posix() for path in rest]


def broken_links(folder: Path) -> list[str]:
    """Slides that are links to where nothing lies, a share that is not there for example, by their paths."""
    found = []
    for place, _, names in os.walk(folder):
        paths = (Path(place) / name for name in names if Path(name).suffix.lower() in SLIDE_SUFFIXES)
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_symlink() and not path.exists()]
    return sorted(found)


def _add_slides(
    evidence: Evidence,
    folder: Path,
    named: Mapping[str, Sequence[str]],
    notes: SampleNotes,
    table: str,
    features: bool = False,
) -> None:
    """Slides by patient, as :mod:`hcmae.cohort.slide_names` finds them, and what has to be said of them."""
    found_there = local_features(folder) if features else local_slides(folder)
    files = slide_files(folder, found_there, evidence.outcomes)
    beside = ([], []) if features else (broken_links(folder), unread_files(folder))
    claims = claim_slides(files, evidence.outcomes, named, table, *beside)
    stores = dict(zip(files, store_names([file.relative for file in files]), strict=True))

    def candidate(file: SlideFile, how: str, patient: str = "") -> Candidate:
        code = slide_barcode(file.name, "")
        notices = notes.annotations(patient, str(code) if code else file.stem)
        path = file.path
        return Candidate(
            str(path.absolute()), file.stem, slide_bytes(path), code, stores[file], how, annotations=notices,
            stated_type=notes.sample_type(str(code) if code else file.stem),
        )  # fmt: skip

    evidence.candidates["slides"] = {
        patient: [candidate(file, how, patient) for file, how in found] for patient, found in claims.slides.items()
    }
    evidence.unclaimed = [candidate(file, "taken for no patient") for file in claims.unclaimed]
    evidence.lost, evidence.notes = claims.lost, claims.notes
    evidence.faults, evidence.doubts = claims.faults, [*claims.doubts, *_odd_names(claims.slides)]


# What lies beside slides under their suffixes, other stains, and words of people who looked at them.
_ODD_WORDS = re.compile(
    r"\b(mask|thumb|thumbnail|macro|overview|heat ?map|annotations?|segmentation|ihc|ki ?67|her2|pd ?l1|masson"
    r"|trichrome|do ?not ?use|dnu|exclude|failed|blurr?y|blurred|out of focus)\b"
)


def _odd_names(slides: Mapping[str, Sequence[tuple[SlideFile, str]]]) -> list[str]:
    """A line for each slide whose name says that it may be none to be used, with the patient it was taken for."""
    lines = []
    for patient, files in slides.items():
        for file, _ in files:
            found = _ODD_WORDS.search(" ".join(re.sub(r"[^a-z0-9]+", " ", file.stem.lower()).split()))
            if found:
                lines.append(
                    f"{file.relative}: taken for {patient}; its name says '{found[0]}': see if it is to be used"
                )
    return lines
