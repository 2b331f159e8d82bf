"""Patients whom a bundle has never seen: from their files to what its method reads, by the bundle's own settings.

Slides are cut and embedded with the bundle's networks; tables are read as those of a cohort. Outcomes are read only
where they are asked for (``with_outcomes``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hcmae.cohort import clinical
from hcmae.cohort.barcodes import BarcodeError, parse_slide_name
from hcmae.cohort.clinical import ClinicalError, Outcome
from hcmae.cohort.covariates import readable_age
from hcmae.cohort.curate import Cohort, CurationError, curate, judged
from hcmae.cohort.follow_up import OneOutcomeWarning
from hcmae.cohort.layouts import NAMES, find_column
from hcmae.cohort.local import local_evidence, local_file, local_mapping, table_samples
from hcmae.cohort.lock import lock_evidence
from hcmae.config import CANCERS
from hcmae.manifest import Manifest
from hcmae.omics.gdc_files import read_mirna_counts, read_sesame_betas, read_star_counts
from hcmae.omics.readers import OmicsFormatError, by_patient, read_omics, read_units
from hcmae.omics.recognise import converted
from hcmae.pretraining.dino import embed_hipt_patches, embed_hipt_regions
from hcmae.pretraining.embed import embed_patches, embed_regions
from hcmae.slides.batch import process_slides
from hcmae.slides.errors import SlideError
from hcmae.slides.process import REASONS
from hcmae.survival.bags import VARIANTS
from hcmae.survival.bundle import Bundle
from hcmae.survival.data import SurvivalData, load_inputs
from hcmae.tables import is_missing, read_text, say


@dataclass(frozen=True)
class Newcomers:
    """Patients ready for a bundle, and who is not: table [patient, reason]."""

    data: SurvivalData
    refused: pd.DataFrame


def needs_of(bundle: Bundle) -> tuple[tuple[str, ...], bool]:
    """The modalities and whether there must be slides, for a bundle's method."""
    trained = bundle.trained
    modalities = tuple(trained.selections[0]) if trained.selections else ()
    return modalities, bool({*VARIANTS, "thumbnail", "positions"} & set(trained.method.kinds))


# --- many patients --------------------------------------------------------------------------------------------------


def from_folder(
    bundle: Bundle,
    root: str | Path,
    source: str,
    work: str | Path,
    *,
    with_outcomes: bool,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> Newcomers:
    """The patients of a folder of raw data, by the inclusion rules of the cohort that the bundle was trained on.

    with_outcomes: patients need an outcome and the training cohort's least follow-up; without, nobody's outcome is
    read. work: folder for regions and vectors. Raises CurationError for a folder of another cancer, OmicsFormatError,
    SlideError and what curation raises.
    """
    folder, (modalities, slides) = Path(root), needs_of(bundle)
    about = bundle.about["about"]
    named = folder.resolve().name
    if named in CANCERS and about.get("cancer") in CANCERS and named != about["cancer"]:
        raise CurationError(f"{folder}: these are patients of {named}, and the bundle is a model of {about['cancer']}")
    manifest = Manifest.model_validate(about["manifest"])
    if with_outcomes:
        cohort = curate(manifest, source, folder, seed=seed, modalities=modalities, slides=slides)
    else:
        cohort = _without_outcomes(manifest, source, folder, seed, modalities, slides)
    refused = cohort.exclusions[["patient", "reason"]]
    omics = read_omics(cohort, source, folder) if modalities else None
    data = _gathered(bundle, cohort.table, omics, Path(work), workers, progress)
    return Newcomers(data, pd.concat([refused, data.exclusions], ignore_index=True))


def _without_outcomes(
    manifest: Manifest, source: str, root: Path, seed: int, modalities: Sequence[str], slides: bool
) -> Cohort:
    """Curation of patients whose outcome nobody knows yet."""
    if source == "local":
        evidence = local_evidence(root, modalities, slides, people=_people(root, modalities))
    else:
        evidence = lock_evidence(manifest, root, modalities, slides)
        evidence.outcomes = {name: _without_outcome(found) for name, found in evidence.outcomes.items()}
    if evidence.faults:
        raise CurationError("\n".join(evidence.faults))
    anytime = manifest.model_copy(update={"inclusion": manifest.inclusion.model_copy(update={"min_days": 0})})
    with warnings.catch_warnings():
        # Nobody's death is known, which is no news here.
        warnings.simplefilter("ignore", OneOutcomeWarning)
        return judged(evidence, anytime, source, root, seed=seed, modalities=modalities, slides=slides)


def _without_outcome(found: Outcome) -> Outcome:
    """The record with a stand-in for the outcome, which nobody reads."""
    return replace(found, time=0.0, event=0, reason="", note="", contradiction="")


def _people(root: Path, modalities: Sequence[str]) -> tuple[dict[str, Outcome], dict[str, list[str]]]:
    """Everybody in a user's folder with age, sex and stage where a clinical table has them, and the slides it names."""
    mapping = local_mapping(root)
    people: dict[str, Outcome] = {}
    slides: dict[str, list[str]] = {}
    try:
        path: Path | None = local_file(root, "clinical", mapping)
    except CurationError:
        path = None  # a later patient needs no clinical table
    if path is not None:
        try:
            people, slides = clinical.read_clinical_table(path, mapping.get("clinical"))
        except ClinicalError as error:
            people, slides = _covariates(path, mapping.get("clinical", {}))
            say(f"{path}: read without outcomes ({error})")
    for modality in modalities:
        table = local_file(root, modality, mapping)
        for patient in table_samples(table, mapping.get(modality, {}).get("patient"), people):
            people.setdefault(patient, Outcome(patient, 0.0, 0, None, None, None, None))
    return {name: _without_outcome(found) for name, found in people.items()}, slides


def _covariates(path: Path, named: Mapping[str, str]) -> tuple[dict[str, Outcome], dict[str, list[str]]]:
    """Patients, ages in years, sexes, stages and slides of a table that holds no outcome."""
    frame = read_text(path)
    column = {what: named.get(what) or find_column(list(frame.columns), NAMES[what]) for what in NAMES}
    if column["patient"] is None:
        raise ClinicalError(f"{path}: no column of patients; name the first column 'patient'")
    people: dict[str, Outcome] = {}
    slides: dict[str, list[str]] = {}
    for row in frame.to_dict("records"):
        patient = str(row[column["patient"]])
        if is_missing(patient) or patient in people:
            raise ClinicalError(f"{path}: patient '{patient}' comes twice or is empty; keep one row per patient")
        said = {what: str(row[name]) for what, name in column.items() if name is not None}
        known = {what: None if is_missing(said.get(what)) else said[what] for what in ("age", "sex", "stage", "grade")}
        age = known["age"]
        if age is not None and not readable_age(age):
            raise ClinicalError(f"{path}: patient {patient}: '{age}' is no age in years")
        years = None if age is None else float(age.lstrip("<>="))
        people[patient] = Outcome(patient, 0.0, 0, years, known["sex"], known["stage"], known["grade"])
        if column["slide"] is not None:
            slides[patient] = [said["slide"]]
    return people, slides


# --- one patient ----------------------------------------------------------------------------------------------------


def one_patient(
    bundle: Bundle,
    work: str | Path,
    *,
    patient: str | None = None,
    slide: str | Path | None = None,
    omics: Mapping[str, str | Path] | None = None,
    covariates: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Newcomers:
    """One patient from single files: a slide, a file or table of each modality, age, sex and stage.

    patient: their name, which picks a row where a table has several. A table of one row may call them otherwise only
    where ``patient`` is not given and all files agree. work: as for ``from_folder``.
    Raises ValueError where something that the method reads is not given or files are of different patients,
    OmicsFormatError for a table that cannot be read, SlideError for a slide without a usable region.
    """
    modalities, slides = needs_of(bundle)
    given = {name: Path(path) for name, path in (omics or {}).items() if name in modalities}
    lacking = [name for name in modalities if name not in given] + (["slide"] if slides and slide is None else [])
    if lacking:
        raise ValueError(
            f"{bundle.trained.method.label} reads {', '.join((*modalities, *(['slide'] if slides else [])))}, and no "
            f"{lacking[0]} is given: nothing stands for it; use a bundle of a method that does without"
        )
    read = {name: _one_row(path, name, patient) for name, path in given.items()}
    names = {name: frame.index[0] for name, frame in read.items() if frame.index[0] is not None}
    if slides and slide is not None and (owner := _slide_owner(Path(slide))) is not None:
        names["slide"] = owner
    who = {patient} if patient is not None else set(names.values()) or {"the patient"}
    strangers = {name: owner for name, owner in names.items() if owner not in who}
    if len(who) > 1 or strangers:
        found = ", ".join(f"{owner} ({name})" for name, owner in (strangers or names).items())
        raise ValueError(f"the files are of different patients: {found}; name one with --patient, or correct the files")
    name = str(next(iter(who)))
    tables = {modality: _renamed(frame, name) for modality, frame in read.items()}
    row = {"time": 0.0, "event": 0, "age": np.nan, "sex": None, "stage": None, **(covariates or {})}
    if slides:
        row |= {"slide": "slide", "slide_path": str(slide)}
    table = pd.DataFrame([row], index=pd.Index([name], name="patient"))
    data = _gathered(bundle, table, tables or None, Path(work), workers, progress, strict=True)
    return Newcomers(data, data.exclusions)


def _slide_owner(path: Path) -> str | None:
    try:
        return parse_slide_name(path.name).patient
    except BarcodeError:
        return None


def _renamed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    renamed = frame.set_axis(pd.Index([name], dtype=object), axis="index")
    renamed.attrs = dict(frame.attrs)
    return renamed


def _one_row(path: Path, modality: str, patient: str | None) -> pd.DataFrame:
    """One patient's features [1, p] with their unit; the index is None where the file names nobody (GDC's files)."""
    if not path.is_file():
        raise OmicsFormatError(f"{path} is missing")
    single = _of_the_gdc(path, modality)
    if single is not None:
        return single
    rows, found = read_units(path, modality, path.parent)
    frame = by_patient(rows, path)
    if patient is not None:
        if patient not in frame.index:
            raise OmicsFormatError(f"{path}: patient {patient} is not in the table")
        frame = frame.loc[[patient]]
    elif len(frame) > 1:
        raise OmicsFormatError(f"{path}: {len(frame)} patients; name one with --patient, or give --cohort their folder")
    values, unit = converted(frame.to_numpy(dtype=np.float32), found.unit)
    frame = pd.DataFrame(values, index=frame.index, columns=frame.columns)
    frame.attrs["unit"] = unit.name
    return frame


def _of_the_gdc(path: Path, modality: str) -> pd.DataFrame | None:
    """The features of a file of the GDC, which holds one sample; None for a table of another kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reading, unit = None, "counts"
        try:
            if modality == "rna":
                reading = read_star_counts(path, annotation=False)
            elif modality == "mirna":
                reading = read_mirna_counts(path)
            elif path.name.endswith(("betas.txt", "betas.txt.gz")):
                reading, unit = read_sesame_betas(path), "beta"
        except OmicsFormatError:
            return None
    if reading is None:
        return None
    frame = pd.DataFrame(
        reading.values.astype(np.float32)[None, :],
        index=pd.Index([None], dtype=object),
        columns=reading.names.to_pandas().to_numpy(),
    )
    frame.attrs["unit"] = unit
    return frame


# --- what both have in common ---------------------------------------------------------------------------------------


def _gathered(
    bundle: Bundle,
    table: pd.DataFrame,
    omics: Any,
    work: Path,
    workers: int,
    progress: bool,
    *,
    strict: bool = False,
) -> SurvivalData:
    """Survival data of curated patients; slides are cut and embedded below ``work``. strict: a slide without regions
    raises SlideError instead of leaving its patient out."""
    trained = bundle.trained
    if not needs_of(bundle)[1]:
        return load_inputs(table, work, omics, kinds=())
    jobs = [
        (str(path), work / f"{slide}.h5", str(slide))
        for slide, path in zip(table["slide"], table["slide_path"], strict=True)
    ]
    settings = (trained.profile.geometry, trained.profile.slides)
    outcomes = process_slides(jobs, *settings, workers=workers, progress=progress)
    usable = [
        work / f"{row['slide']}.h5"
        for row in outcomes.to_dict("records")
        if row["status"] in ("ok", "skipped") and row["regions"] > 0
    ]
    if strict and not usable:
        first = outcomes.iloc[0]
        detail = str(first["detail"] or REASONS.get(first["reason"], "no region with enough tissue"))
        raise SlideError(str(first["reason"]), jobs[0][0], detail.removeprefix(f"{jobs[0][0]}: "))
    if usable:
        _embed(bundle, usable, progress)
    kinds = tuple(kind for kind in (*VARIANTS, "thumbnail") if kind in trained.method.kinds)
    limit = trained.profile.fidelity.max_regions
    return load_inputs(table, work, omics, kinds=kinds, max_regions=limit, usable=set(usable))


def _embed(bundle: Bundle, stores: Sequence[Path], progress: bool) -> None:
    """Vectors of all kinds that the method reads, by the bundle's own networks."""
    kinds, profile = set(bundle.trained.method.kinds), bundle.trained.profile
    more: dict[str, Any] = {"key": str(bundle.about["about"].get("key", "bundle")), "progress": progress}
    if kinds & {"patch", "patch_features", "region"}:
        embed_patches(stores, bundle.image("mae_patch"), profile, **more)
    if "region" in kinds:
        embed_regions(stores, bundle.image("mae_region_patreg"), profile, "patreg", **more)
    if "region_reg" in kinds:
        embed_regions(stores, bundle.image("mae_region_reg"), profile, "reg", **more)
    if "region_hipt" in kinds:
        embed_hipt_patches(stores, bundle.image("hipt_patch"), profile, **more)
        embed_hipt_regions(stores, bundle.image("hipt_region"), profile, **more)
    if "handcrafted" in kinds:
        from hcmae.slides.handcrafted import measure_slides

        measure_slides(stores, profile, seed=0, progress=progress)
