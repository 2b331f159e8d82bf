"""Make a whole cohort on disk: draw the patients, then write slides, omics, clinical records, lock and truth."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from hcmae.config import MODALITIES, Profile
from hcmae.files import atomic_path, file_hash, read_json, write_json, write_text
from hcmae.manifest import Manifest
from hcmae.processes import worker_pool
from hcmae.synthetic import omics_files
from hcmae.synthetic.clinical_files import case_record
from hcmae.synthetic.latent import (
    Patient,
    cohort_seed,
    draw_patients,
    oracle_c_index,
    patient_rng,
    stable_uuid,
)
from hcmae.synthetic.slide_writer import plan_slide, write_slide

# Raise it when the generator writes something else: stored cohorts of an older version are then made anew.
VERSION = 3
LOCK_COLUMNS = ("id", "filename", "md5", "size", "state", "sample", "case", "modality", "release")
RELEASE = "synthetic"
SUFFIX = {
    "rna": "rna_seq.augmented_star_gene_counts.tsv",
    "mirna": "mirbase21.mirnas.quantification.txt",
    "methylation": "methylation_array.sesame.level3betas.txt",
}
ANALYTE = {"rna": "R", "mirna": "R", "methylation": "D"}
_PARTS = ".parts"


@dataclass(frozen=True)
class _Context:
    """What a worker needs to write any patient."""

    out_dir: Path
    profile: Profile
    seed: int  # of the cohort
    catalogue: omics_files.Catalogue


@dataclass(frozen=True)
class _PlannedFile:
    modality: str
    id: str
    filename: str
    sample: str
    copy: int  # 0 the first file of this modality, 1 the second
    signal: bool  # False: normal tissue, which carries no programme


def generate_cohort(
    manifest: Manifest,
    profile: Profile,
    out_dir: Path,
    seed: int,
    *,
    null: bool = False,
    workers: int = 2,
    progress: bool = True,
    key: str | None = None,
) -> Path:
    """Write the synthetic twin of a cancer in the raw layout of downloaded data, and its truth beside it.

    ``null``: the same pictures and omics, but a hazard that depends on nothing. Same seed and settings give the same
    bytes, whatever the number of workers; an interrupted call continues with the patients that are not written yet, and
    a finished one returns at once. ``key``: of all that the bytes depend on beside the settings (the source of this
    package); a cohort of another key is written anew. Returns ``out_dir``. Raises ValueError when ``out_dir`` holds
    something else.
    """
    out_dir = Path(out_dir)
    settings = _settings(manifest, profile, seed, null)
    if key is not None:
        settings["key"] = key
    if _finished(out_dir, settings):
        return out_dir
    _prepare(out_dir, settings)
    patients, truth = draw_patients(manifest, profile, seed, null=null)
    own_seed = cohort_seed(seed, settings["cancer"])
    context = _Context(out_dir, profile, own_seed, omics_files.draw_catalogue(profile.synthetic, seed))
    todo = [patient for patient in patients if not _written(out_dir, patient)]
    bar = tqdm(
        total=len(patients),
        initial=len(patients) - len(todo),
        desc=f"{'NULL' if null else manifest.cancer} synthetic patients",
        unit="patient",
        disable=not progress,
    )
    with bar:
        for _ in _run(todo, context, workers):
            bar.update()

    rows: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    for patient in patients:
        part = read_json(out_dir / _PARTS / f"{patient.barcode}.json")
        rows += part["files"]
        regions += part["regions"]
    hits = [case_record(p, manifest, own_seed) for p in patients if p.exclusion != "no_clinical"]
    write_json(out_dir / "clinical.json", hits)
    _write_truth(out_dir, manifest, settings, patients, truth, regions, context.catalogue, null)
    lock = ["\t".join(LOCK_COLUMNS)]
    lock += ["\t".join(str(row[name]) for name in LOCK_COLUMNS) for row in rows]
    write_text(out_dir / "files.tsv", "\n".join(lock) + "\n")
    shutil.rmtree(out_dir / _PARTS)
    return out_dir


# ---------------------------------------------------------------- what to do


def _settings(manifest: Manifest, profile: Profile, seed: int, null: bool) -> dict[str, Any]:
    """Everything that decides the bytes written."""
    return {
        "version": VERSION,
        "cancer": "NULL" if null else manifest.cancer,
        "twin_of": manifest.cancer,
        "seed": seed,
        "geometry": profile.geometry.model_dump(mode="json"),
        "sizes": profile.synthetic.model_dump(mode="json"),
        "twin": manifest.synthetic.model_dump(mode="json"),
        "regions_per_slide": manifest.regions_per_slide,
        "min_days": manifest.inclusion.min_days,
    }


def _fingerprint(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _finished(out_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether this very cohort lies there, with every file of its lock in full size."""
    if not (out_dir / "truth.json").exists() or not (out_dir / "files.tsv").exists():
        return False
    if read_json(out_dir / "truth.json").get("fingerprint") != _fingerprint(settings):
        return False
    return not missing_files(out_dir)


def missing_files(out_dir: Path) -> list[str]:
    """Files of a written cohort that are gone or cut short: those of its lock, its clinical records, its truth."""
    lock = pd.read_csv(out_dir / "files.tsv", sep="\t", dtype=str)
    beside = ("clinical.json", "truth.parquet", "truth_regions.parquet")
    gone = [name for name in beside if not (out_dir / name).exists()]
    for modality, file_id, filename, size in lock[["modality", "id", "filename", "size"]].itertuples(index=False):
        path = out_dir / modality / file_id / filename
        if not path.exists() or path.stat().st_size != int(size):
            gone.append(f"{modality}/{file_id}/{filename}")
    return gone


def _prepare(out_dir: Path, settings: dict[str, Any]) -> None:
    """Continue an interrupted cohort of the same settings; clear away a synthetic cohort of other ones."""
    marker = out_dir / _PARTS / "fingerprint.json"
    ours = {"fingerprint": _fingerprint(settings)}
    if marker.exists() and read_json(marker) == ours:
        return
    present = sorted(path.name for path in out_dir.iterdir()) if out_dir.exists() else []
    if present and not (marker.exists() or (out_dir / "truth.json").exists()):
        raise ValueError(
            f"{out_dir}: holds {', '.join(present[:3])} but no synthetic cohort; nothing touched, give an empty folder"
        )
    for name in ("slides", *MODALITIES, _PARTS):
        shutil.rmtree(out_dir / name, ignore_errors=True)
    for name in ("files.tsv", "clinical.json", "truth.json", "truth.parquet", "truth_regions.parquet"):
        (out_dir / name).unlink(missing_ok=True)
    write_json(marker, ours)


def _written(out_dir: Path, patient: Patient) -> bool:
    """A patient's part file is written last, so its presence means that all files of the patient are whole."""
    part = out_dir / _PARTS / f"{patient.barcode}.json"
    if not part.exists():
        return False
    files = read_json(part)["files"]
    paths = [(out_dir / row["modality"] / row["id"] / row["filename"], row["size"]) for row in files]
    return all(path.exists() and path.stat().st_size == size for path, size in paths)


# ---------------------------------------------------------------- one patient

_context: _Context | None = None


def _start_worker(context: _Context) -> None:
    global _context
    _context = context


def _work(patient: Patient) -> None:
    assert _context is not None
    try:
        _write_patient(patient, _context)
    except Exception as error:
        error.add_note(f"while writing synthetic patient {patient.barcode} to {_context.out_dir}")
        raise


def _run(patients: list[Patient], context: _Context, workers: int) -> Iterator[None]:
    if workers <= 1 or len(patients) <= 2:
        for patient in patients:
            _write_patient(patient, context)
            yield
        return
    pool = worker_pool(workers, _start_worker, (context,))
    try:
        for _ in pool.map(_work, patients, chunksize=max(1, min(8, len(patients) // (4 * workers)))):
            yield
    finally:
        # After an error or Ctrl-C nothing that still waits is started.
        pool.shutdown(wait=True, cancel_futures=True)


def _write_patient(patient: Patient, context: _Context) -> None:
    """Write all files of one patient, then the part file with their lock rows and the truth of the regions."""
    rows, regions = [], []
    for file in _plan_files(patient, context.seed):
        path = context.out_dir / file.modality / file.id / file.filename
        if file.modality == "slides":
            regions += _write_slide(path, file, patient, context)
        else:
            _write_omics(path, file, patient, context)
        rows.append(
            {
                "id": file.id,
                "filename": file.filename,
                "md5": file_hash(path, algorithm="md5"),
                "size": path.stat().st_size,
                "state": "released",
                "sample": file.sample,
                "case": patient.barcode,
                "modality": file.modality,
                "release": RELEASE,
            }
        )
    write_json(context.out_dir / _PARTS / f"{patient.barcode}.json", {"files": rows, "regions": regions})


def _plan_files(patient: Patient, seed: int) -> list[_PlannedFile]:
    """Which files a patient has: usually one per modality."""
    kind = "06" if patient.exclusion == "metastasis_only" else "01"
    files = []

    def add(modality: str, sample: str, copy: int = 0, signal: bool = True) -> None:
        file_id = stable_uuid(seed, sample, modality)
        if modality == "slides":
            name = f"{sample}.{stable_uuid(seed, sample, 'slide name')}.svs"
        else:
            name = f"{stable_uuid(seed, sample, modality, 'name')}.{SUFFIX[modality]}"
        files.append(_PlannedFile(modality, file_id, name, sample, copy, signal))

    for number in (1, 2) if patient.extra_slide else (1,):
        if patient.exclusion != "no_slide":
            add("slides", f"{patient.barcode}-{kind}Z-00-DX{number}", number - 1)
    for modality in MODALITIES:
        if patient.exclusion == f"no_{modality}":
            continue
        letter = ANALYTE[modality]
        centre = {"rna": "07", "mirna": "13", "methylation": "05"}[modality]
        add(modality, f"{patient.barcode}-{kind}A-11{letter}-A10{MODALITIES.index(modality)}-{centre}")
        if modality == "rna" and patient.extra_rna:
            add(modality, f"{patient.barcode}-{kind}A-11{letter}-A20{MODALITIES.index(modality)}-{centre}", 1)
        if modality == "rna" and patient.normal_rna:
            add(modality, f"{patient.barcode}-11A-11{letter}-A100-{centre}", 1, signal=False)
    return files


def _write_slide(path: Path, file: _PlannedFile, patient: Patient, context: _Context) -> list[dict[str, Any]]:
    rng = patient_rng(context.seed, patient.index, 10 + file.copy)
    geometry = context.profile.geometry
    # A band of regions is held in memory, so large regions make tall slides rather than wide ones.
    plan = plan_slide(patient.regions, patient.tumour_regions, rng, widest=max(2, 32768 // geometry.region))
    write_slide(
        path,
        plan,
        geometry,
        cell=patient.cell,
        architecture=patient.architecture,
        seed=[context.seed, patient.index, 20 + file.copy],
        quality=context.profile.synthetic.jpeg_quality,
        barcode=file.sample,
    )
    corners = plan.corners(geometry.region)
    return [
        {"patient": patient.barcode, "slide": file.filename.removesuffix(".svs"), "x": x, "y": y, "tumour": tumour}
        for (x, y), tumour in zip(corners, plan.tumour, strict=True)
    ]


def _write_omics(path: Path, file: _PlannedFile, patient: Patient, context: _Context) -> None:
    # Values of the distractor programmes are the same in the three modalities, as those of the planted ones.
    distractors = patient_rng(context.seed, patient.index, 2).normal(size=omics_files.DISTRACTORS)
    programmes = np.array([patient.shared, patient.omics, *distractors])
    if not file.signal:
        programmes = np.zeros_like(programmes)
    rng = patient_rng(context.seed, patient.index, 30 + 4 * MODALITIES.index(file.modality) + file.copy)
    writers = {
        "rna": omics_files.write_rna,
        "mirna": omics_files.write_mirna,
        "methylation": omics_files.write_methylation,
    }
    writers[file.modality](path, getattr(context.catalogue, file.modality), programmes, rng)


# ---------------------------------------------------------------- the truth


def _write_truth(
    out_dir: Path,
    manifest: Manifest,
    settings: dict[str, Any],
    patients: list[Patient],
    truth: pd.DataFrame,
    regions: list[dict[str, Any]],
    catalogue: omics_files.Catalogue,
    null: bool,
) -> None:
    with atomic_path(out_dir / "truth.parquet") as temporary:
        truth.to_parquet(temporary)
    with atomic_path(out_dir / "truth_regions.parquet") as temporary:
        pd.DataFrame(regions).to_parquet(temporary, index=False)
    record = {
        "fingerprint": _fingerprint(settings),
        "oracle_c_index": oracle_c_index(truth),
        "event_rate": float(truth["event"].mean()),
        "patients": len(truth),
        "hazard": {name: 0.0 if null else value for name, value in manifest.synthetic.hazard.model_dump().items()},
        "log_hazard_sd": float(truth["log_hazard"].std(ddof=0)),
        "planted": {modality: getattr(catalogue, modality).planted() for modality in MODALITIES},
        "exclusions": {p.barcode: p.exclusion for p in patients if p.exclusion},
        "duplicates": {
            "slides": sorted(p.barcode for p in patients if p.extra_slide),
            "rna": sorted(p.barcode for p in patients if p.extra_rna),
            "normal_rna": sorted(p.barcode for p in patients if p.normal_rna),
        },
        "settings": settings,
    }
    write_json(out_dir / "truth.json", record)
