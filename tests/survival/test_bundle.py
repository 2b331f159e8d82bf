"""A model that is handed over: the same risks after the way over the disk, no patient in it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcmae.config import Profile, Protocol
from hcmae.omics.rules import OtherFeaturesError
from hcmae.survival.bags import PackedBags
from hcmae.survival.bundle import BundleError, read_bundle, write_bundle
from hcmae.survival.cross_validate import fit_fold, fold_inputs
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS, Method, get_method, register
from hcmae.survival.trained import HandOverError, Trained, check_hand_over, train

DIM, SIDE = 8, 4
HANDED = ["trans_mo", "hcmae", "cox_clinical", "coxnet_omics", "mcat"]


def cohort(n: int, seed: int, first: int = 0) -> SurvivalData:
    """One factor moves genes, vectors, stage and hazard; a few betas are missing."""
    rng, names = np.random.default_rng(seed), [f"P{first + number:03d}" for number in range(n)]
    factor = rng.normal(size=n)
    effect = np.random.default_rng(99).normal(size=40)

    def table(values: np.ndarray, prefix: str, unit: str) -> pd.DataFrame:
        columns = [f"{prefix}{number}" for number in range(values.shape[1])]
        frame = pd.DataFrame(values, index=pd.Index(names, dtype=object), columns=columns)
        frame.attrs["unit"] = unit
        return frame

    betas = 1 / (1 + np.exp(-(factor[:, None] * effect * 0.5 + rng.normal(size=(n, 40)))))
    betas[rng.random(betas.shape) < 0.02] = np.nan
    omics = {
        "rna": table(rng.poisson(np.exp(5 + 0.4 * factor[:, None] * effect)), "G", "counts"),
        "mirna": table(rng.poisson(50, (n, 30)), "mir-", "counts"),
        "methylation": table(betas, "cg", "beta"),
    }
    sizes = rng.integers(1, 4, n)
    total = int(sizes.sum())
    bags = {
        "region": PackedBags(rng.normal(size=(total, DIM)).astype(np.float32), sizes),
        "patch": PackedBags(rng.normal(size=(4 * total, DIM)).astype(np.float16), 4 * sizes),
        "thumbnail": PackedBags(rng.integers(0, 256, (total, SIDE, SIDE, 3)).astype(np.uint8), sizes),
        "positions": PackedBags(rng.integers(0, 5, (total, 2)).astype(np.float32), sizes),
    }
    time = rng.exponential(600 * np.exp(-1.5 * factor)) + 30
    stage = np.array(["Stage I", "Stage II", "Stage III"])[np.digitize(factor, [-0.5, 0.5])]
    clinical = pd.DataFrame({"age": rng.normal(60, 9, n), "sex": rng.choice(["male", "female"], n), "stage": stage})
    return SurvivalData(names, np.minimum(time, 2000), (time < 2000).astype(int), bags, omics, clinical)


@pytest.fixture(scope="module")
def data() -> SurvivalData:
    return cohort(48, 0)


@pytest.fixture(scope="module")
def later() -> SurvivalData:
    return cohort(12, 1, first=500)


@pytest.fixture(scope="module")
def profile(tiny_profile: Profile) -> Profile:
    survival = tiny_profile.survival.model_copy(
        update={"epochs": 2, "ensemble": 2, "inner_fraction": 0.5, "network": tiny_profile.network}
    )
    omics = tiny_profile.omics.model_copy(update={"top_k": 6, "candidates": 12, "trees": 5, "min_count": 1})
    return tiny_profile.model_copy(update={"survival": survival, "omics": omics})


@pytest.fixture(scope="module")
def models(data: SurvivalData, profile: Profile) -> dict[str, Trained]:
    return {name: train(name, data, profile) for name in HANDED}


@pytest.mark.slow
@pytest.mark.parametrize("method", HANDED)
def test_a_bundle_says_what_the_model_says_bit_for_bit(
    method: str, models: dict[str, Trained], later: SurvivalData, tmp_path: Path
) -> None:
    here = models[method].predict(later)
    bundle = read_bundle(write_bundle(tmp_path / "bundle", models[method]))
    pd.testing.assert_frame_equal(bundle.trained.predict(later), here, check_exact=True)
    assert not bundle.notes
    curves = here.filter(like="S@").to_numpy()
    assert len(curves) == len(later.patients)
    assert (np.diff(curves, axis=1) <= 0).all()
    assert not any(file.suffix in (".pkl", ".pt", ".pickle") for file in bundle.path.rglob("*"))


def test_no_patient_is_in_a_bundle(models: dict[str, Trained], data: SurvivalData, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", models["hcmae"])
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(patient.encode() in content for patient in data.patients), file


def test_the_model_of_everybody_is_that_of_a_fold_with_everybody(data: SurvivalData, profile: Profile) -> None:
    """A fold that is trained on the same patients gives its test patients the same risks."""
    rows, others = np.arange(36), np.arange(36, 48)
    omics = {name: table.iloc[rows] for name, table in data.omics.items()}
    full = data.omics["methylation"].notna().all(axis=1).to_numpy()[others]
    part = SurvivalData([data.patients[row] for row in rows], data.time[rows], data.event[rows], omics=omics)
    rest = SurvivalData(
        [data.patients[row] for row in others], data.time[others], data.event[others],
        omics={name: table.iloc[others] for name, table in data.omics.items()},
    )  # fmt: skip
    method = get_method("trans_mo")
    tested = fit_fold(method, fold_inputs(method, data, rows, others, profile, Protocol(), 0)).risk
    found = train("trans_mo", part, profile).predict(rest)["risk"].to_numpy()
    assert full.any()
    assert np.allclose(found[full], tested[full], atol=1e-6)
    # Who misses a beta had it from neighbours there, and has the mean of the training patients here.
    assert np.corrcoef(found, tested)[0, 1] > 0.95


def test_what_stands_for_a_missing_feature_is_named(models: dict[str, Trained], later: SurvivalData) -> None:
    chosen = models["coxnet_omics"].selections[0]
    name = chosen["rna"].names[0]
    omics = dict(later.omics)
    omics["rna"] = later.omics["rna"].drop(columns=name)
    omics["rna"].attrs = later.omics["rna"].attrs
    found = models["coxnet_omics"].predict(SurvivalData(later.patients, later.time, later.event, omics=omics))
    assert all(f"rna {name}" in text for text in found["filled"])
    clinical = later.clinical.assign(age=np.nan)
    old = models["cox_clinical"].predict(SurvivalData(later.patients, later.time, later.event, clinical=clinical))
    assert set(old["filled"]) == {"age"}
    nobody = clinical.assign(sex=None, stage=None)
    with pytest.raises(HandOverError, match="P500: neither age nor sex nor stage"):
        models["cox_clinical"].predict(SurvivalData(later.patients, later.time, later.event, clinical=nobody))


def with_omics(later: SurvivalData, **tables: pd.DataFrame) -> SurvivalData:
    return SurvivalData(later.patients, later.time, later.event, later.bags, {**later.omics, **tables})


def test_tables_of_another_kind_are_refused(models: dict[str, Trained], later: SurvivalData) -> None:
    model = models["trans_mo"]
    foreign = later.omics["rna"].rename(columns=lambda name: f"X{name}")
    foreign.attrs["unit"] = "counts"
    with pytest.raises(OtherFeaturesError, match="rna: 6 of 6 features that the model reads are not in this table"):
        model.predict(with_omics(later, rna=foreign))
    rpm = later.omics["rna"] / later.omics["rna"].sum(axis=1).to_numpy()[:, None] * 1e6
    rpm.attrs["unit"] = "rpm"
    with pytest.raises(OtherFeaturesError, match="these are rpm, and the model was trained on counts"):
        model.predict(with_omics(later, rna=rpm))
    rpm.attrs = {}
    with pytest.raises(OtherFeaturesError, match="rna"):
        model.predict(with_omics(later, rna=rpm))
    rpm.attrs["unit"] = "counts"
    with pytest.raises(ValueError, match=r"fractions|whole"):
        model.predict(with_omics(later, rna=rpm))


def test_a_whole_modality_is_never_made_up(models: dict[str, Trained], later: SurvivalData) -> None:
    without = {name: table for name, table in later.omics.items() if name != "mirna"}
    with pytest.raises(OtherFeaturesError, match="there is no mirna"):
        models["trans_mo"].predict(SurvivalData(later.patients, later.time, later.event, omics=without))
    with pytest.raises(HandOverError, match="have no"):
        models["hcmae"].predict(SurvivalData(later.patients, later.time, later.event, omics=later.omics))


def test_a_bundle_that_is_not_whole_is_refused(models: dict[str, Trained], tmp_path: Path) -> None:
    whole = write_bundle(tmp_path / "whole", models["trans_mo"])

    def damaged(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        return folder

    cut = damaged("cut")
    content = (cut / "members.safetensors").read_bytes()
    (cut / "members.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"members\.safetensors: cut short or changed"):
        read_bundle(cut)
    lost = damaged("lost")
    (lost / "arrays.safetensors").unlink()
    with pytest.raises(BundleError, match=r"arrays\.safetensors is missing"):
        read_bundle(lost)
    half = damaged("half")
    text = (half / "bundle.json").read_text()
    (half / "bundle.json").write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match="cut short"):
        read_bundle(half)
    with pytest.raises(BundleError, match="no bundle"):
        read_bundle(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(BundleError, match="something else"):
        write_bundle(tmp_path / "mine", models["trans_mo"])


def test_a_bundle_of_another_version_is_refused(models: dict[str, Trained], tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", models["trans_mo"])
    record = json.loads((folder / "bundle.json").read_text())

    def say(**changes: object) -> None:
        (folder / "bundle.json").write_text(json.dumps({**record, **changes}))

    say(format=99)
    with pytest.raises(BundleError, match="format 99"):
        read_bundle(folder)
    say(method="unheard_of")
    with pytest.raises(BundleError, match="not registered"):
        read_bundle(folder)
    # Same format, but the networks of this version compute something else from the same weights.
    say(answers=[[risk + 1 for risk in line] for line in record["answers"]])
    with pytest.raises(BundleError, match="computes other risks"):
        read_bundle(folder)
    say(code={**record["code"], "hcmae.omics.rules": "another"}, library={**record["library"], "torch": "1.0"})
    notes = read_bundle(folder).notes
    assert "hcmae.omics.rules" in notes[0]
    assert "torch was 1.0" in notes[1]


def test_methods_without_a_rule_for_later_patients_are_refused(data: SurvivalData, profile: Profile) -> None:
    for name in ("gpdbn", "camr"):
        with pytest.raises(HandOverError, match="features of its own"):
            check_hand_over(METHODS[name])
    with pytest.raises(HandOverError, match="needs 'region_hipt'"):
        train("hipt", data, profile)
    register(Method("told", "Told", "clinical", fit=METHODS["cox_clinical"].fit, needs=frozenset({"clinical"})))
    try:
        assert train("told", data, profile).members
    finally:
        del METHODS["told"]
