"""Patients who come after the model: read by its own rules; what is missing is named, what does not fit refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.cohort.curate import CurationError
from hcmae.config import ConfigError, Profile
from hcmae.manifest import load_manifest
from hcmae.omics.readers import OmicsFormatError
from hcmae.omics.rules import OtherFeaturesError
from hcmae.pipeline import Run
from hcmae.pipeline.hand_over import hand_over
from hcmae.pipeline.newcomers import from_folder, one_patient
from hcmae.slides.errors import SlideError
from hcmae.survival.bags import PackedBags
from hcmae.survival.bundle import Bundle, read_bundle, write_bundle
from hcmae.survival.data import SurvivalData, load_tables
from hcmae.survival.trained import train
from tests.support.local_cohort import write_tables
from tests.support.twin_slides import write_twin

NAMES = [f"P{number:03d}" for number in range(24)]
LATER = [f"N{number:03d}" for number in range(12)]


@pytest.fixture(scope="module")
def profile(tiny_profile: Profile) -> Profile:
    survival = tiny_profile.survival.model_copy(update={"epochs": 1, "ensemble": 1, "inner_fraction": 0.5})
    omics = tiny_profile.omics.model_copy(update={"top_k": 5, "candidates": 8, "trees": 3})
    return tiny_profile.model_copy(update={"survival": survival, "omics": omics})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> Bundle:
    """An elastic net on three omics tables of a user's folder."""
    folder = tmp_path_factory.mktemp("trained")
    write_tables(folder / "home", NAMES)
    manifest = load_manifest("LIHC")
    data = load_tables(folder / "home", manifest, ("rna", "mirna", "methylation"))
    about = {"cancer": "LIHC", "manifest": manifest.model_dump(mode="json")}
    return read_bundle(write_bundle(folder / "bundle", train("coxnet_omics", data, profile), about=about))


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """Tables of patients of another house."""
    write_tables(tmp_path / "later", LATER, seed=1)
    return tmp_path / "later"


def rated(bundle: Bundle, root: Path, **options: bool) -> pd.DataFrame:
    found = from_folder(bundle, root, "local", root / "work", with_outcomes=options.get("with_outcomes", False))
    return bundle.trained.predict(found.data).set_index("patient")


def row_of(folder: Path, modality: str, patient: str) -> Path:
    """A table with this patient alone."""
    frame = pd.read_csv(folder / f"{modality}.tsv", sep="\t", dtype=str)
    path = folder / f"{modality}_of_{patient}.txt"
    frame[frame["patient"] == patient].to_csv(path, sep="\t", index=False)
    return path


MODALITIES = ("rna", "mirna", "methylation")


def test_outcomes_are_not_needed_and_not_read(bundle: Bundle, later: Path) -> None:
    known = rated(bundle, later, with_outcomes=True)
    frame = pd.read_csv(later / "clinical.tsv", sep="\t")
    frame.drop(columns=["time_days", "event"]).assign(age=61).to_csv(later / "clinical.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(rated(bundle, later), known)
    (later / "clinical.tsv").unlink()
    pd.testing.assert_frame_equal(rated(bundle, later), known)
    with pytest.raises(CurationError, match="clinical"):
        rated(bundle, later, with_outcomes=True)


def test_one_patient_is_rated_as_among_many(bundle: Bundle, later: Path, tmp_path: Path) -> None:
    many = rated(bundle, later)
    omics = {name: row_of(later, name, "N003") for name in MODALITIES}
    for patient in ("N003", None):
        found = one_patient(bundle, tmp_path, patient=patient, omics=omics)
        one = bundle.trained.predict(found.data).set_index("patient")
        pd.testing.assert_frame_equal(one, many.loc[["N003"]])
    whole = one_patient(bundle, tmp_path, patient="N003", omics={name: later / f"{name}.tsv" for name in MODALITIES})
    assert bundle.trained.predict(whole.data)["risk"].to_numpy() == many.loc[["N003"], "risk"].to_numpy()
    with pytest.raises(OmicsFormatError, match="12 patients; name one with --patient"):
        one_patient(bundle, tmp_path, omics={name: later / f"{name}.tsv" for name in MODALITIES})
    with pytest.raises(ValueError, match="no mirna is given"):
        one_patient(bundle, tmp_path, omics={name: omics[name] for name in ("rna", "methylation")})
    with pytest.raises(ValueError, match="different patients"):
        one_patient(bundle, tmp_path, omics={**omics, "rna": row_of(later, "rna", "N004")})


def test_a_patient_without_one_omics_is_listed_not_made_up(bundle: Bundle, later: Path) -> None:
    frame = pd.read_csv(later / "mirna.tsv", sep="\t")
    frame[frame["patient"] != "N005"].to_csv(later / "mirna.tsv", sep="\t", index=False)
    found = from_folder(bundle, later, "local", later / "work", with_outcomes=False)
    assert "N005" not in found.data.patients
    assert found.refused["patient"].tolist() == ["N005"]
    assert "mirna" in found.refused["reason"][0]
    (later / "mirna.tsv").unlink()
    with pytest.raises(CurationError, match="no table for mirna"):
        rated(bundle, later)


def test_tables_in_another_unit_or_of_another_model_are_refused(bundle: Bundle, later: Path) -> None:
    frame = pd.read_csv(later / "rna.tsv", sep="\t", index_col="patient")
    rpm = frame.div(frame.sum(axis=1), axis=0) * 1e6
    (later / "rna.tsv").unlink()
    rpm.to_csv(later / "rna_rpm.tsv", sep="\t")
    with pytest.raises(OtherFeaturesError, match="rna: these are rpm, and the model was trained on counts"):
        rated(bundle, later)
    (later / "rna_rpm.tsv").unlink()
    frame.rename(columns=lambda name: f"ENSG{name}").to_csv(later / "rna.tsv", sep="\t")
    with pytest.raises(OtherFeaturesError, match="are not in this table"):
        rated(bundle, later)
    stad = later.rename(later.with_name("STAD"))
    with pytest.raises(CurationError, match="patients of STAD, and the bundle is a model of LIHC"):
        rated(bundle, stad)


def test_a_slide_without_tissue_is_refused(profile: Profile, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bags = {"region": PackedBags(rng.normal(size=(24, 32)).astype(np.float32), [1] * 24)}
    time, event = rng.exponential(500, 24) + 1, np.ones(24, dtype=np.int64)
    trained = train("mae_patreg", SurvivalData(NAMES, time, event, bags), profile)
    bundle = read_bundle(write_bundle(tmp_path / "bundle", trained))
    empty = write_twin(tmp_path / "empty.svs", np.full((640, 640, 3), 243, np.uint8))
    with pytest.raises(SlideError, match="tissue"):
        one_patient(bundle, tmp_path / "work", slide=empty, progress=False)
    with pytest.raises(ValueError, match="no slide is given"):
        one_patient(bundle, tmp_path / "work", progress=False)


def test_vectors_of_an_encoder_that_was_not_trained_here_are_not_handed_over(tmp_path: Path) -> None:
    bags = {"patch": PackedBags(np.zeros((24, 8), np.float32), [1] * 24)}
    data = SurvivalData(NAMES, np.arange(24) + 1.0, np.ones(24, dtype=np.int64), bags)
    run = Run("LIHC", "smoke", "features", 0, tmp_path / "data", tmp_path / "runs")
    with pytest.raises(ConfigError, match="vectors of patch of this run were brought along"):
        hand_over(run, "mae_pat", data)


def test_commands_write_tables_and_name_what_they_lack(bundle: Bundle, later: Path, tmp_path: Path) -> None:
    chosen = bundle.trained.selections[0]["methylation"].names[0]
    betas = pd.read_csv(later / "methylation.tsv", sep="\t")
    betas.loc[0, chosen] = np.nan
    betas.to_csv(later / "methylation.tsv", sep="\t", index=False)
    out = tmp_path / "risks.tsv"
    said = CliRunner().invoke(
        typer_app, ["predict", str(bundle.path), "--cohort", str(later), "--out", str(out)], catch_exceptions=False
    )
    assert said.exit_code == 0, said.output
    assert f"N000: the training patients' mean stands for methylation {chosen}" in said.stderr
    table = pd.read_csv(out, sep="\t")
    assert table["patient"].tolist() == LATER
    assert set(table["group"]) <= {"high", "low"}
    report = tmp_path / "report.json"
    words = ["validate", str(bundle.path), "--cohort", str(later), "--out", str(report), "--draws", "20"]
    said = CliRunner().invoke(typer_app, words, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    assert "calibration slope" in said.output
    record = json.loads(report.read_text())
    assert record["patients"] == 12
    assert record["bundle"]["cancer"] == "LIHC"
    both = CliRunner().invoke(typer_app, ["predict", str(bundle.path), "--cohort", str(later), "--patient", "N001"])
    assert both.exit_code == 2
