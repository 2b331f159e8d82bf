"""Who is in the cohort, who is not, and why: named rules in a fixed order, every loss on record.

A patient stays with a known outcome, one diagnostic slide and one file per modality. Where a patient has several, one
is chosen: a slide at random with the seed, an aliquot by the barcode rules of :mod:`hcmae_core.cohort.barcodes`.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from hcmae_core.cohort import clinical
from hcmae_core.cohort.barcodes import (
    DIAGNOSTIC,
    Barcode,
    BarcodeError,
    choose_aliquot,
    parse,
    parse_slide_name,
    patient_id,
)
from hcmae_core.cohort.clinical import ClinicalError, Outcome
from hcmae_core.config import MODALITIES, Inclusion, Manifest
from hcmae_core.files import read_json

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".dcm")
ANALYTE = {"rna": "RNA", "mirna": "RNA", "methylation": "DNA"}
LOCK_COLUMNS = ("id", "filename", "md5", "size", "state", "sample", "case", "modality", "release")
SOURCES = ("synthetic", "gdc", "local")


class CurationError(ValueError):
    """Raw data from which no cohort can be made; the message names the file or folder and what to do."""


@dataclass(frozen=True)
class Candidate:
    """One file (or column of a matrix) that a patient could contribute."""

    path: str
    sample: str
    size: int
    barcode: Barcode | None


@dataclass(frozen=True)
class Cohort:
    """The outcome of curation.

    ``table``: indexed by patient, in sorted order: time (days, float), event (0 or 1), age (years), sex, stage, grade,
    slide (id: file name without suffix), slide_path, and per modality <m>_path and <m>_sample; note.
    ``exclusions``: patient, rule, reason; one row per excluded patient, the first rule that failed.
    ``flow``: rule, before, excluded, after; one row per rule, in order.
    ``choices``: patient, modality, sample, path, kept; patients who offered more than one file (empty when read back).
    """

    table: pd.DataFrame
    exclusions: pd.DataFrame
    flow: pd.DataFrame
    choices: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass
class Evidence:
    """What the raw data say about everybody, before any rule: outcomes and candidate files by patient."""

    outcomes: dict[str, Outcome]
    candidates: dict[str, dict[str, list[Candidate]]]  # modality or 'slides' -> patient -> candidates
    # TCGA's files without a barcode could be normal tissue; a user's own have none and are taken as they are.
    need_barcode: bool = False

    @property
    def patients(self) -> list[str]:
        names = set(self.outcomes)
        for found in self.candidates.values():
            names |= set(found)
        return sorted(names)


def curate(
    manifest: Manifest,
    source: str,
    root: str | Path,
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    slides: bool = True,
) -> Cohort:
    """Apply the inclusion rules (section III-A) to the raw data at ``root``.

    ``source``: 'gdc' and 'synthetic' read the lock ``files.tsv``, ``clinical.json`` and the files of the lock; 'local'
    reads the tables and slides that a user brings. ``modalities`` and ``slides`` say what a patient must have. The
    synthetic slides are small, so their least size is not asked.

    Raises CurationError (or ClinicalError) for missing or contradictory raw data, and where no patient is left.
    """
    root = Path(root)
    modalities = tuple(m for m in MODALITIES if m in modalities) if _known(modalities) else ()
    inclusion = manifest.inclusion
    if source == "synthetic":
        inclusion = inclusion.model_copy(update={"min_slide_bytes": 0})
    if source == "local":
        evidence = _local_evidence(root, modalities, slides)
    elif source in SOURCES:
        evidence = _lock_evidence(manifest, root, modalities, slides)
    else:
        raise CurationError(f"unknown source '{source}': choose one of {', '.join(SOURCES)}")
    return apply_rules(evidence, inclusion, seed=seed, modalities=modalities, slides=slides, where=str(root))


def apply_rules(
    evidence: Evidence,
    inclusion: Inclusion,
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    slides: bool = True,
    where: str = "the raw data",
) -> Cohort:
    """The rules themselves, on evidence already read. Raises CurationError where nobody is left."""
    chosen: dict[str, dict[str, Candidate]] = {name: {} for name in (*modalities, "slides")}
    choices: list[dict[str, Any]] = []
    remaining = evidence.patients
    exclusions: list[tuple[str, str, str]] = []
    flow: list[tuple[str, int, int, int]] = []
    for rule, judge in _rules(evidence, inclusion, seed, modalities, slides, chosen, choices):
        before = len(remaining)
        kept = []
        for patient in remaining:
            reason = judge(patient)
            if reason:
                exclusions.append((patient, rule, reason))
            else:
                kept.append(patient)
        flow.append((rule, before, before - len(kept), len(kept)))
        remaining = kept
    frame = pd.DataFrame(flow, columns=["rule", "before", "excluded", "after"])
    losses = pd.DataFrame(exclusions, columns=["patient", "rule", "reason"])
    if not remaining:
        raise CurationError(_nobody_left(where, evidence, frame, modalities, slides))
    table = pd.DataFrame(
        [_row(evidence.outcomes[p], chosen, modalities, slides) for p in remaining],
        index=pd.Index(remaining, name="patient"),
    )
    return Cohort(
        table, losses, frame, pd.DataFrame(choices, columns=["patient", "modality", "sample", "path", "kept"])
    )


def _rules(
    evidence: Evidence,
    inclusion: Inclusion,
    seed: int,
    modalities: Sequence[str],
    slides: bool,
    chosen: dict[str, dict[str, Candidate]],
    choices: list[dict[str, Any]],
) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Names of the rules in order, each with a function from patient to reason ('' keeps the patient)."""
    outcomes = evidence.outcomes

    yield "clinical record", lambda p: "" if p in outcomes else "has files, but no clinical record"
    yield "known vital status", lambda p: "" if outcomes[p].event is not None else outcomes[p].reason
    yield "known survival time", lambda p: "" if outcomes[p].time is not None else outcomes[p].reason

    def long_enough(patient: str) -> str:
        days = outcomes[patient].time
        assert days is not None
        return "" if days >= inclusion.min_days else f"followed for {days:.4g} days only"

    yield f"followed for {inclusion.min_days} days or more", long_enough

    if slides:
        pool = {p: list(c) for p, c in evidence.candidates.get("slides", {}).items()}

        def narrowed(keep: Callable[[Candidate], bool], loss: Callable[[list[Candidate]], str]) -> Callable[[str], str]:
            def judge(patient: str) -> str:
                had = pool.get(patient, [])
                pool[patient] = [c for c in had if keep(c)]
                return "" if pool[patient] else loss(had)

            return judge

        losses: tuple[Callable[[list[Candidate]], str], ...] = (
            lambda had: f"frozen sections only ({len(had)})" if had else "no slide",
            lambda had: f"slides of sample type {_types(had)} only",
            lambda had: f"largest slide has {max(c.size for c in had) / 1e6:.3g} MB, too little for a whole section",
        )
        for (name, keep), loss in zip(slide_rules(inclusion), losses, strict=False):
            yield name, narrowed(keep, loss)

        def draw(patient: str) -> str:
            chosen["slides"][patient] = draw_slide(patient, pool[patient], seed)
            _note_choice(choices, patient, "slides", evidence.candidates["slides"][patient], chosen["slides"][patient])
            return ""
    else:

        def draw(patient: str) -> str:
            return ""

    for position, modality in enumerate(modalities):

        def has_file(patient: str, modality: str = modality, first: bool = position == 0) -> str:
            if first:
                draw(patient)
            found = evidence.candidates.get(modality, {}).get(patient, [])
            fitting = [
                c for c in found
                if (not evidence.need_barcode if c.barcode is None else c.barcode.sample_type in inclusion.sample_types)
            ]  # fmt: skip
            if not fitting:
                return f"{modality} of sample type {_types(found)} only" if found else f"no {modality} data"
            chosen[modality][patient] = choose_file(fitting, modality)
            _note_choice(choices, patient, modality, found, chosen[modality][patient])
            return ""

        yield f"{modality} data", has_file

    def fetched(patient: str) -> str:
        if slides and patient not in chosen["slides"]:
            draw(patient)
        missing = [name for name in chosen if patient in chosen[name] and not Path(chosen[name][patient].path).exists()]
        return f"not downloaded: {', '.join(missing)}" if missing else ""

    yield "files on disk", fetched


def draw_slide(patient: str, candidates: Sequence[Candidate], seed: int) -> Candidate:
    """One of a patient's slides at random; the choice depends on seed and patient, not on who else is in the cohort."""
    found = sorted(candidates, key=lambda c: Path(c.path).name)
    rng = np.random.default_rng([seed, zlib.crc32(patient.encode())])
    return found[int(rng.integers(len(found)))]


def drawn_slides(lock: pd.DataFrame, inclusion: Inclusion, seed: int) -> set[str]:
    """Ids of the slides that curation draws from a lock, one per patient who has an eligible one."""
    pool: dict[str, list[Candidate]] = {}
    for row in lock[lock["modality"] == "slides"].itertuples():
        barcode = slide_barcode(str(row.filename), str(row.sample))
        candidate = Candidate(f"{row.id}/{row.filename}", str(row.sample), int(str(row.size)), barcode)
        if all(keep(candidate) for _, keep in slide_rules(inclusion)):
            pool.setdefault(str(row.case), []).append(candidate)
    return {draw_slide(case, found, seed).path.split("/")[0] for case, found in pool.items()}


def slide_rules(inclusion: Inclusion) -> list[tuple[str, Callable[[Candidate], bool]]]:
    """The rules for slides in order: name, and what a slide must be. Slides without barcode (of other origin) pass."""
    diagnostic = inclusion.slide_kind == "diagnostic"
    types = inclusion.sample_types
    rules: list[tuple[str, Callable[[Candidate], bool]]] = [
        (
            "diagnostic slide" if diagnostic else "slide",
            lambda c: not diagnostic or c.barcode is None or c.barcode.slide_kind == DIAGNOSTIC,
        ),
        (f"slide of sample type {', '.join(types)}", lambda c: c.barcode is None or c.barcode.sample_type in types),
    ]
    if inclusion.min_slide_bytes:
        megabytes = inclusion.min_slide_bytes / 1e6
        rules.append((f"slide of {megabytes:g} MB or more", lambda c: c.size >= inclusion.min_slide_bytes))
    return rules


def choose_file(candidates: Sequence[Candidate], modality: str) -> Candidate:
    """One of a patient's omics files: by barcode rules, and for methylation the larger array first.

    Candidates without a barcode: the first by sample name. Raises nothing for a non-empty list.
    """
    if modality == "methylation":
        # A 27k file has a sixteenth of the probes of a 450k file of the same patient.
        largest = max(c.size for c in candidates)
        candidates = [c for c in candidates if c.size * 2 > largest] or list(candidates)
    coded = {c.sample: c for c in sorted(candidates, key=lambda c: c.path) if c.barcode is not None}
    if not coded:
        return min(candidates, key=lambda c: (c.sample, c.path))
    return coded[choose_aliquot(coded, ANALYTE[modality])]


def table1_comparison(manifest: Manifest, cohort: Cohort) -> pd.DataFrame:
    """The paper's Table I beside this cohort: quantity, paper, here, difference.

    ``regions`` and ``patches`` are known after the slides are cut and are left out here.
    """
    here = len(cohort.table)
    paper = manifest.table1.patients
    return pd.DataFrame([("patients", paper, here, here - paper)], columns=["quantity", "paper", "here", "difference"])


def other_readings(
    manifest: Manifest,
    source: str,
    root: str | Path,
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    slides: bool = True,
) -> pd.DataFrame:
    """How many patients the cohort would have under other readings of the paper: reading, patients, deaths, difference.

    One rule is changed at a time; ``difference`` is to Table I's number, so that what explains it can be seen. Raises
    what :func:`curate` raises.
    """

    def counted(name: str, *, kept: Sequence[str] = modalities, **change: Any) -> tuple[str, int, int, int]:
        changed = manifest.model_copy(update={"inclusion": manifest.inclusion.model_copy(update=change)})
        table = curate(changed, source, root, seed=seed, modalities=kept, slides=slides).table
        return name, len(table), int(table["event"].sum()), len(table) - manifest.table1.patients

    rows = [counted("as curated"), counted("without the least time", min_days=0)]
    if slides:
        rows.append(counted("slides of any size and kind", min_slide_bytes=0, slide_kind="any"))
    if len(modalities) > 1:
        rows += [counted(f"without asking for {m}", kept=[k for k in modalities if k != m]) for m in modalities]
    return pd.DataFrame(rows, columns=["reading", "patients", "deaths", "difference"])


# ---------------------------------------------------------------- evidence: lock


def read_lock(path: str | Path) -> pd.DataFrame:
    """The lock of a cohort: one row per file, columns by name (more are allowed), size as int.

    Raises CurationError naming the file, and the column or row that cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise CurationError(f"{path} is missing: resolve and fetch first (hcmae manifest resolve, hcmae fetch)")
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
    except (ValueError, pd.errors.ParserError) as error:
        raise CurationError(f"{path}: not a tab-separated lock ({error}); resolve the manifest again") from error
    missing = [name for name in LOCK_COLUMNS if name not in frame.columns]
    if missing:
        raise CurationError(f"{path}: column '{missing[0]}' is missing; resolve the manifest again")
    if not frame["size"].str.fullmatch(r"[0-9]{1,18}").all():
        row = frame[~frame["size"].str.fullmatch(r"[0-9]{1,18}")].iloc[0]
        raise CurationError(f"{path}: file {row['id']}: size '{row['size']}' is no number; resolve the manifest again")
    frame["size"] = frame["size"].astype("int64")
    if frame["id"].duplicated().any():
        twice = frame.loc[frame["id"].duplicated(), "id"].iloc[0]
        raise CurationError(f"{path}: file {twice} is listed twice; resolve the manifest again")
    for name in ("id", "filename"):
        bad = frame[~frame[name].map(safe_name)]
        if len(bad):
            raise CurationError(
                f"{path}: {name} '{bad[name].iloc[0]}' cannot be a file name; resolve the manifest again"
            )
    known = {"slides", *MODALITIES}
    if not set(frame["modality"]) <= known:
        strange = sorted(set(frame["modality"]) - known)[0]
        raise CurationError(f"{path}: modality '{strange}' is not one of {sorted(known)}; resolve the manifest again")
    return frame


def safe_name(name: str) -> bool:
    """Whether text from elsewhere can be one component of a path: no separator, no drive, nothing hidden or special."""
    return (
        0 < len(name) <= 200
        and not name.startswith((".", "~", "-", " "))
        and not name.endswith((".", " "))
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
    )


def _lock_evidence(manifest: Manifest, root: Path, modalities: Sequence[str], slides: bool) -> Evidence:
    from_xena = [m for m in modalities if m in manifest.files and manifest.files[m].source == "xena"]
    wanted = {*modalities, *(["slides"] if slides else [])} - set(from_xena)
    candidates: dict[str, dict[str, list[Candidate]]] = {name: {} for name in wanted}
    if wanted:
        lock = read_lock(root / "files.tsv")
        base = root.resolve()
        for file_id, name, size, sample, case, modality in lock[
            ["id", "filename", "size", "sample", "case", "modality"]
        ].itertuples(index=False):
            if modality not in wanted:
                continue
            path = str(base / modality / file_id / name)
            barcode = slide_barcode(name, sample) if modality == "slides" else _barcode(sample)
            if barcode is not None and barcode.patient != case:
                raise CurationError(
                    f"{root / 'files.tsv'}: file {file_id} belongs to case {case}, but its sample is {sample}; "
                    "resolve the manifest again"
                )
            candidates[modality].setdefault(case, []).append(Candidate(path, sample, size, barcode))
    for modality in from_xena:
        candidates[modality] = _xena_candidates(root, manifest, modality)
    return Evidence(clinical.read_clinical_json(root / "clinical.json"), candidates, need_barcode=True)


def _xena_candidates(root: Path, manifest: Manifest, modality: str) -> dict[str, list[Candidate]]:
    dataset = manifest.files[modality].xena_dataset
    if not dataset or not safe_name(dataset):
        raise CurationError(f"manifest {manifest.cancer}: files.{modality} has source xena but no usable xena_dataset")
    path = next((p for p in (root / "xena" / f"{dataset}.gz", root / "xena" / dataset) if p.exists()), None)
    if path is None:
        raise CurationError(f"{root / 'xena' / dataset}[.gz] is missing: run hcmae fetch {manifest.cancer} first")
    with open_text(path) as handle:
        header = handle.readline().rstrip("\r\n").split("\t")[1:]
    found: dict[str, list[Candidate]] = {}
    for sample in header:
        found.setdefault(patient_id(sample), []).append(Candidate(str(path.resolve()), sample, 0, _barcode(sample)))
    return found


# ---------------------------------------------------------------- evidence: a user's own folder


def local_mapping(root: Path) -> dict[str, Any]:
    """``columns.json`` of a user's folder: {"files": {"rna": name}, "clinical": {...}, "rna": {"patient": column}}."""
    path = root / "columns.json"
    if not path.exists():
        return {}
    try:
        mapping = read_json(path)
    except ValueError as error:
        raise CurationError(str(error)) from error
    known = {"files", "clinical", *MODALITIES}
    if not isinstance(mapping, dict) or not all(isinstance(v, dict) for v in mapping.values()) or set(mapping) - known:
        raise CurationError(f"{path}: expected an object with some of the keys {sorted(known)}, each an object")
    return mapping


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


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file, unpacked if gzip; undecodable bytes are kept as marks, so that checks report them."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    if packed:
        with gzip.open(path, "rb") as handle, io.TextIOWrapper(handle, "utf-8-sig", errors="replace") as text:  # type: ignore[type-var,arg-type]
            yield text
    else:
        with open(path, encoding="utf-8-sig", errors="replace") as text:
            yield text


def patient_column(header: Sequence[str], path: Path, named: str | None = None) -> int:
    """Position of the patient column in a table of a user. Raises CurationError where there is none."""
    if named is not None:
        if named not in header:
            raise CurationError(f"{path}: columns.json names the patient column '{named}', which is not in the table")
        return list(header).index(named)
    lowered = [name.strip().lower().replace(" ", "_") for name in header]
    for name in clinical.PATIENT_NAMES:
        if name in lowered:
            return lowered.index(name)
    if lowered and lowered[0] in ("", "sample", "sample_id", "index", "unnamed:_0"):
        return 0
    transposed = sum(patient_id(name) != name.strip() or len(name) == 12 for name in header if name.startswith("TCGA-"))
    hint = "patients stand in the header: transpose the table" if transposed > 1 else "name the first column 'patient'"
    raise CurationError(f"{path}: no patient column among {[n[:20] for n in header[:6]]}; {hint}, or use columns.json")


def table_patients(path: Path, named: str | None = None) -> list[str]:
    """Patients of a user's table, in its order, without reading the values.

    Raises CurationError for a table without patient column, with an empty patient, or with one that comes twice.
    """
    separator = "," if ".csv" in path.suffixes else "\t"
    patients: list[str] = []
    try:
        with open_text(path) as handle:
            header = [c.strip().strip('"') for c in handle.readline().rstrip("\r\n").split(separator)]
            column = patient_column(header, path, named)
            for number, line in enumerate(handle, start=2):
                cells = line.rstrip("\r\n").split(separator, column + 1)
                if len(cells) <= column or not cells[column].strip().strip('"'):
                    if not line.strip():
                        continue
                    raise CurationError(f"{path}: line {number} has no patient; fill it in or remove it")
                patients.append(patient_id(cells[column].strip().strip('"')))
    except (OSError, EOFError, zlib.error) as error:
        raise CurationError(f"{path}: cannot be read ({error})") from error
    if len(set(patients)) < len(patients):
        twice = next(p for i, p in enumerate(patients) if p in set(patients[:i]))
        raise CurationError(f"{path}: patient {twice} comes twice; keep one row per patient")
    return patients


def _local_evidence(root: Path, modalities: Sequence[str], slides: bool) -> Evidence:
    mapping = local_mapping(root)
    outcomes, named_slides = clinical.read_clinical_table(
        local_file(root, "clinical", mapping), mapping.get("clinical")
    )
    candidates: dict[str, dict[str, list[Candidate]]] = {}
    for modality in modalities:
        path = local_file(root, modality, mapping)
        patients = table_patients(path, mapping.get(modality, {}).get("patient"))
        size = path.stat().st_size
        candidates[modality] = {p: [Candidate(str(path.resolve()), p, size, None)] for p in patients}
    if slides:
        candidates["slides"] = _local_slides(root / "slides", outcomes, named_slides)
    return Evidence(outcomes, candidates)


def _local_slides(folder: Path, patients: Iterable[str], named: Mapping[str, str]) -> dict[str, list[Candidate]]:
    """Slides by patient: the one the clinical table names, else files whose names begin with the patient's."""
    if not folder.is_dir():
        raise CurationError(f"{folder} is missing: put the slides there, or curate with slides=False")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in SLIDE_SUFFIXES)
    if not files:
        raise CurationError(f"{folder}: no slide with one of the suffixes {', '.join(SLIDE_SUFFIXES)}")
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
                Candidate(str(p.resolve()), p.stem, p.stat().st_size, slide_barcode(p.name, "")) for p in paths
            ]
    return found


# ---------------------------------------------------------------- small parts


def _known(modalities: Iterable[str]) -> bool:
    unknown = sorted(set(modalities) - set(MODALITIES))
    if unknown:
        raise CurationError(f"unknown modality '{unknown[0]}': choose among {', '.join(MODALITIES)}")
    return True


def _barcode(text: str) -> Barcode | None:
    try:
        return parse(text)
    except BarcodeError:
        return None


def slide_barcode(name: str, sample: str) -> Barcode | None:
    """Barcode of a slide: from its file name, else from its sample; None where neither is one of a slide."""
    try:
        return parse_slide_name(name)
    except BarcodeError:
        code = _barcode(sample)
        return code if code is not None and code.is_slide else None


def _types(candidates: Iterable[Candidate]) -> str:
    return ", ".join(sorted({(c.barcode.sample_type if c.barcode else None) or "unknown" for c in candidates}))


def _note_choice(
    choices: list[dict[str, Any]], patient: str, modality: str, found: Sequence[Candidate], kept: Candidate
) -> None:
    if len(found) > 1:
        for c in found:
            choices.append(
                {"patient": patient, "modality": modality, "sample": c.sample, "path": c.path, "kept": c is kept}
            )


def _row(
    outcome: Outcome, chosen: Mapping[str, Mapping[str, Candidate]], modalities: Sequence[str], slides: bool
) -> dict[str, Any]:
    assert outcome.time is not None
    assert outcome.event is not None
    slide = chosen["slides"].get(outcome.patient) if slides else None
    row: dict[str, Any] = {
        "time": float(outcome.time),
        "event": int(outcome.event),
        "age": outcome.age if outcome.age is not None else np.nan,
        "sex": outcome.sex,
        "stage": outcome.stage,
        "grade": outcome.grade,
        "slide": _slide_id(slide.path) if slide else None,
        "slide_path": slide.path if slide else None,
    }
    for modality in MODALITIES:
        file = chosen[modality].get(outcome.patient) if modality in modalities else None
        row[f"{modality}_path"] = file.path if file else None
        row[f"{modality}_sample"] = file.sample if file else None
    row["note"] = outcome.note
    return row


def _slide_id(path: str) -> str:
    name = Path(path).name
    suffix = Path(path).suffix
    return name[: -len(suffix)] if suffix.lower() in SLIDE_SUFFIXES else name


def _nobody_left(where: str, evidence: Evidence, flow: pd.DataFrame, modalities: Sequence[str], slides: bool) -> str:
    worst = flow[flow["before"] > 0].iloc[-1] if (flow["before"] > 0).any() else None
    if worst is None:
        return f"{where}: no patient at all; check that the data are there"
    sets = {"clinical": set(evidence.outcomes)}
    sets |= {m: set(evidence.candidates.get(m, {})) for m in modalities}
    if slides:
        sets["slides"] = set(evidence.candidates.get("slides", {}))
    names = sorted(sets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if sets[a] and sets[b] and not sets[a] & sets[b]:
                return (
                    f"{where}: {a} and {b} share no patient (for example {min(sets[a])} and {min(sets[b])}); "
                    "write the patients' names in the same way in both"
                )
    return (
        f"{where}: no patient is left after the rule '{worst['rule']}' "
        f"({worst['before']} before it); see the flow:\n{flow.to_string(index=False)}"
    )


__all__ = [
    "Candidate",
    "ClinicalError",
    "Cohort",
    "CurationError",
    "Evidence",
    "apply_rules",
    "choose_file",
    "curate",
    "read_lock",
    "table1_comparison",
]
