"""Manifests: per cancer, what to fetch, whom to keep, what the paper counted, and the synthetic twin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hcmae.config import MODALITIES, ConfigError, PositiveInt, Settings, read_yaml, validated


class Table1Row(Settings):
    """The paper's Table I."""

    patients: PositiveInt
    regions: PositiveInt
    patches_million: Annotated[float, Field(gt=0)]


class FileQuery(Settings):
    """What one modality is on the GDC: equality filters on /files, all of them open access."""

    filters: dict[str, str | list[str]]
    source: Literal["gdc", "xena"] = "gdc"
    xena_dataset: str | None = None


class Inclusion(Settings):
    """Who enters the cohort (section III-A).

    ``ffpe_aliquots``: whether an omics aliquot of formalin-fixed, paraffin-embedded tissue is taken; slides are not
    asked, diagnostic ones always are of such tissue. ``exclude_annotations``: categories or classifications of notices
    that leave out what they are about, a patient, a slide or an aliquot; other notices are notes.
    """

    min_days: Annotated[int, Field(ge=0)] = 30
    sample_types: list[str] = ["01"]
    slide_kind: Literal["diagnostic", "any"] = "diagnostic"
    min_slide_bytes: Annotated[int, Field(ge=0)] = 20_000_000
    methylation_platforms: list[str] = ["Illumina Human Methylation 450"]
    ffpe_aliquots: Literal["exclude", "include"] = "exclude"
    exclude_annotations: list[str] = ["Redaction", "Item flagged DNU"]


class HazardMix(Settings):
    """Weights of the standardised latent factors in the synthetic log hazard (standard deviation about 1.95)."""

    cell: float = 0.75
    architecture: float = 0.8
    burden: float = 0.6
    shared: float = 0.7
    omics: float = 1.0


class SyntheticTwin(Settings):
    """Numbers of the synthetic twin before the profile scales them."""

    patients: PositiveInt
    event_rate: Annotated[float, Field(gt=0, lt=1)]
    median_days: PositiveInt = 1500
    hazard: HazardMix = HazardMix()


class Manifest(Settings):
    """One cancer: what to fetch, whom to keep, what the paper counted, and its synthetic twin."""

    cancer: str
    title: str
    project: str
    files: dict[str, FileQuery]
    inclusion: Inclusion = Inclusion()
    table1: Table1Row
    synthetic: SyntheticTwin

    @model_validator(mode="after")
    def _known_modalities(self) -> Self:
        known = {"slides", "clinical", *MODALITIES}
        unknown = sorted(set(self.files) - known)
        if unknown:
            raise ValueError(f"files.{unknown[0]}: not a modality; choose from {sorted(known)}")
        return self

    @property
    def regions_per_slide(self) -> float:
        return self.table1.regions / self.table1.patients


def load_manifest(cancer: str, directory: str | Path | None = None) -> Manifest:
    """Read ``<directory>/<CANCER>.yaml`` (default: data_manifests beside the package or below the current folder).

    Raises ConfigError for an unknown cancer, a missing file, an unknown key or a bad value.
    """
    folder = Path(directory) if directory is not None else default_manifest_dir()
    path = folder / f"{cancer}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise ConfigError(f"unknown cancer '{cancer}': {folder} has {', '.join(known) or 'no manifest at all'}")
    manifest = validated(Manifest, read_yaml(path), path)
    if manifest.cancer != path.stem:
        raise ConfigError(
            f"{path}: key 'cancer' says '{manifest.cancer}', but the file is named {path.name}; make them agree"
        )
    return manifest


def manifest_names(directory: str | Path | None = None) -> set[str]:
    """Cancers that have a manifest in ``directory`` (default: as ``load_manifest``)."""
    folder = Path(directory) if directory is not None else default_manifest_dir()
    return {path.stem for path in folder.glob("*.yaml")}


def default_manifest_dir() -> Path:
    for base in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (base / "data_manifests").is_dir():
            return base / "data_manifests"
    raise ConfigError("no folder data_manifests here or above: run from the repository, or pass its path")
