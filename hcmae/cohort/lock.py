"""Evidence from a lock: the list of files that was resolved from the GDC (sources ``gdc`` and ``synthetic``)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hcmae.cohort import clinical
from hcmae.cohort.annotations import NOTICES, parsed, read_notices
from hcmae.cohort.barcodes import patient_id
from hcmae.cohort.evidence import Annotation, Candidate, CurationError, Evidence, barcode_of, open_text, slide_barcode
from hcmae.cohort.slide_names import store_names
from hcmae.config import MODALITIES
from hcmae.manifest import Manifest

LOCK_COLUMNS = ("id", "filename", "md5", "size", "state", "sample", "case", "modality", "release")
# Only in a lock of which the server says them: how the tissue was preserved, and notices.
LOCK_REMARKS = ("preservation", "annotations")

# Beside a slide that is fetched, used and deleted (``hcmae stream``): it counts as present.
STREAMED = "streamed.json"


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


def lock_evidence(manifest: Manifest, root: Path, modalities: Sequence[str], slides: bool) -> Evidence:
    """What a lock, its files' notices and the clinical records say. Raises CurationError, ClinicalError."""
    matrices = from_xena(manifest, modalities)
    wanted = {*modalities, *(["slides"] if slides else [])} - set(matrices)
    candidates: dict[str, dict[str, list[Candidate]]] = {name: {} for name in wanted}
    if wanted:
        lock = read_lock(root / "files.tsv")
        base = root.absolute()  # links stay: a data folder that moves takes them along
        names = dict(zip(*_named_slides(lock), strict=True))
        for file_id, name, size, sample, case, modality, kept, notices in lock.reindex(
            columns=["id", "filename", "size", "sample", "case", "modality", *LOCK_REMARKS], fill_value=""
        ).itertuples(index=False):
            if modality not in wanted:
                continue
            path = str(base / modality / file_id / name)
            barcode = slide_barcode(name, sample) if modality == "slides" else barcode_of(sample)
            if barcode is not None and barcode.patient != case:
                raise CurationError(
                    f"{root / 'files.tsv'}: file {file_id} belongs to case {case}, but its sample is {sample}; "
                    "resolve the manifest again"
                )
            annotations = tuple(dict.fromkeys((*parsed(notices), *notices_beside(base / modality / file_id))))
            candidates[modality].setdefault(case, []).append(
                Candidate(path, sample, size, barcode, names.get(file_id, ""), "", kept, annotations)
            )
    for modality in matrices:
        candidates[modality] = _xena_candidates(root, manifest, modality)
    evidence = Evidence(clinical.read_clinical_json(root / "clinical.json"), candidates, need_barcode=True)
    if "slides" in wanted:
        evidence.faults = _same_bytes(lock[lock["modality"] == "slides"], root / "files.tsv")
    return evidence


def _same_bytes(slides: pd.DataFrame, path: Path) -> list[str]:
    """Slides of a lock that are two cases' by their md5."""
    faults = []
    known = slides[slides["md5"].str.fullmatch("[0-9a-fA-F]{32}") & (slides["size"] > 0)]
    for _, copies in known.groupby([known["md5"].str.lower(), "size"], sort=False):
        if copies["case"].nunique() > 1:
            named = ", ".join(f"{file_id} (case {case})" for file_id, case in copies[["id", "case"]].to_numpy()[:5])
            faults.append(
                f"{path}: slides {named} hold the same bytes, by their md5; a slide is one patient's: take the wrong "
                "one out of the lock"
            )
    return faults


def is_there(path: Path) -> bool:
    """Whether a file of a lock is there, or was and has given what is needed of it (``STREAMED``)."""
    return path.exists() or (path.parent / STREAMED).is_file()


def notices_beside(folder: Path) -> tuple[Annotation, ...]:
    """What the GDC packed beside a file of a lock, in the file's own folder. Raises CurationError."""
    path = folder / NOTICES
    return read_notices(path) if path.is_file() else ()


def _named_slides(lock: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Ids of a lock's slides and the names of their stores."""
    slides = lock[lock["modality"] == "slides"]
    ids = [str(file_id) for file_id in slides["id"]]
    return ids, store_names([f"{file_id}/{name}" for file_id, name in zip(ids, slides["filename"], strict=True)])


def from_xena(manifest: Manifest, modalities: Sequence[str]) -> list[str]:
    """The modalities that a manifest takes from a matrix of the Xena hub."""
    return [m for m in modalities if m in manifest.files and manifest.files[m].source == "xena"]


def xena_matrix(root: Path, manifest: Manifest, modality: str) -> Path:
    """The matrix of a modality. Raises CurationError where the manifest names none, or it has not been fetched."""
    dataset = manifest.files[modality].xena_dataset
    if not dataset or not safe_name(dataset):
        raise CurationError(f"manifest {manifest.cancer}: files.{modality} has source xena but no usable xena_dataset")
    path = next((p for p in (root / "xena" / f"{dataset}.gz", root / "xena" / dataset) if p.exists()), None)
    if path is None:
        raise CurationError(f"{root / 'xena' / dataset}[.gz] is missing: run hcmae fetch {manifest.cancer} first")
    return path


def xena_header(path: Path) -> list[str]:
    """First line of a matrix: its samples are all that curation reads of it. Raises CurationError for a damaged one."""
    try:
        with open_text(path) as handle:
            return handle.readline().rstrip("\r\n").split("\t")
    except (OSError, EOFError, zlib.error) as error:
        raise CurationError(f"{path}: cannot be read ({error}); delete it and fetch it again") from error


def _xena_candidates(root: Path, manifest: Manifest, modality: str) -> dict[str, list[Candidate]]:
    path = xena_matrix(root, manifest, modality)
    header = xena_header(path)[1:]
    found: dict[str, list[Candidate]] = {}
    for sample in header:
        found.setdefault(patient_id(sample), []).append(Candidate(str(path.absolute()), sample, 0, barcode_of(sample)))
    return found
