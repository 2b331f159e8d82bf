"""``hcmae run`` and ``hcmae status``: what they refuse, and that status computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.cli.run import methods_asked
from hcmae.cohort.curate import other_readings
from hcmae.cohort.evidence import CurationError
from hcmae.config import ConfigError, load_profile
from hcmae.evaluation import tables
from hcmae.pipeline import Run, lessons
from hcmae.pipeline.road import STEPS, VERBS, steps_for
from hcmae.survival.bags import PackedBags
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS
from tests.support.local_cohort import OVERRIDES, write_manifest, write_tables


def test_status_of_nothing_lists_every_step_and_writes_nothing(tmp_path: Path) -> None:
    places = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(typer_app, ["status", *places])
    assert result.exit_code == 0, result.output
    lines = [line.split()[:2] for line in result.stdout.splitlines()]
    assert lines == [[step.name, "missing"] for step in STEPS if not step.on_request and "synthetic" in step.sources]
    assert not list(tmp_path.iterdir())


def test_a_cancer_of_ones_own_is_curated_from_the_command_line(tmp_path: Path) -> None:
    """Folders with a blank and an umlaut, a manifest in a folder of its own, a digit in the name."""
    home = tmp_path / "meine Läufe"
    write_manifest(home / "manifests", "HCC2")
    write_tables(home / "data" / "local" / "HCC2", [f"P{number}" for number in range(8)])
    (home / "data" / "local" / "HCC2" / "slides").mkdir()
    for number in range(8):
        (home / "data" / "local" / "HCC2" / "slides" / f"P{number}.svs").write_bytes(b"slide %d" % number)
    options = [
        "--cancer", "HCC2", "--source", "local", "--manifest-dir", str(home / "manifests"),
        "--data-dir", str(home / "data"), "--run-dir", str(home / "runs"),
    ]  # fmt: skip
    done = CliRunner().invoke(typer_app, ["run", "curate", *options])
    assert done.exit_code == 0, done.output
    states = CliRunner().invoke(typer_app, ["status", *options]).stdout.splitlines()
    assert [line.split()[:2] for line in states if line.startswith("curate")] == [["curate", "done"]]


def test_an_unknown_stage_names_the_known_ones() -> None:
    result = CliRunner().invoke(typer_app, ["run", "everything"])
    assert result.exit_code == 2
    assert f"choose one of {', '.join(VERBS)}" in result.stderr


def test_numbers_and_stages_that_cannot_be_meant_are_refused() -> None:
    nobody = CliRunner().invoke(typer_app, ["run", "slides", "--workers", "0"])
    assert nobody.exit_code == 2
    assert "--workers" in nobody.stderr
    again = CliRunner().invoke(typer_app, ["run", "mae_patch", "--force"])
    assert again.exit_code == 2
    assert "--force does curate, slides, omics again, not mae_patch" in again.stderr


@pytest.mark.slow
def test_tables_without_slides_go_from_the_folder_to_table_2(tmp_path: Path) -> None:
    """Two omics, no slide: every stage that needs no pixels runs from the command line, status asks for no other."""
    root = tmp_path / "data" / "local" / "LIHC"
    write_tables(root, [f"P{number:03d}" for number in range(24)])
    (root / "methylation.tsv").unlink()
    profile = tmp_path / "tiny.yaml"
    profile.write_text(yaml.safe_dump(load_profile("smoke", OVERRIDES).model_dump(mode="json")), encoding="utf-8")
    options = [
        "--source", "local", "--profile", str(profile), "--data-dir", str(tmp_path / "data"),
        "--run-dir", str(tmp_path / "runs"), "--no-slides", "--modalities", "rna,mirna",
    ]  # fmt: skip
    for stage in (["curate"], ["omics"], ["survival", "--method", "coxnet_omics,trans_mo", "--workers", "1"]):
        done = CliRunner().invoke(typer_app, ["run", *stage, *options])
        assert done.exit_code == 0, (stage, done.output)
    states = [line.split()[:2] for line in CliRunner().invoke(typer_app, ["status", *options]).stdout.splitlines()]
    assert states == [["curate", "done"], ["omics", "done"], ["folds", "done"], ["predictions", "done"]]

    run = Run("LIHC", profile, "local", 0, tmp_path / "data", tmp_path / "runs", modalities="rna,mirna", slides=False)
    data = run.survival_data
    assert list(data.omics.mod) == ["rna", "mirna"]
    assert not data.bags
    assert lessons.main_method(data) == "trans_mo"
    scores = {name: {"LIHC": tables.score(run.evaluate(name))} for name in ("coxnet_omics", "trans_mo")}
    kept = run.save_result("survival", {"auc": np.float64("nan"), "more": [float("inf"), 0.5]})
    assert json.loads(kept.read_text(encoding="utf-8"))["more"] == [None, 0.5]
    cells = tables.table2(scores, cancers=("LIHC",)).cells
    assert sum(line[1] != tables.NOT_RUN for line in cells) == 2


def test_images_only_need_no_omics_and_neither_is_refused(tmp_path: Path) -> None:
    places = {"data_dir": tmp_path / "data", "run_dir": tmp_path / "runs"}
    images = Run("LIHC", source="local", modalities="none", **places)
    names = [step.name for step in steps_for(images)]
    assert "omics" not in names
    assert {"slides", "mae_patch", "nuclei"} <= set(names)
    tables_only = Run("LIHC", source="local", slides=False, **places)
    assert [step.name for step in steps_for(tables_only)] == ["curate", "omics", "folds", "predictions"]
    assert tables_only.sibling("BRCA").slides is False
    with pytest.raises(ConfigError, match="neither slides nor omics"):
        Run("LIHC", modalities="none", slides=False)
    with pytest.raises(ConfigError, match="unknown modality 'proteins': choose among rna, mirna, methylation"):
        Run("LIHC", modalities="rna,proteins")
    assert Run("LIHC", modalities=("mirna", "rna")).modalities == ("rna", "mirna")


def test_a_folder_of_images_alone_is_curated_and_shown(tmp_path: Path) -> None:
    """Manifest, command and status with --modalities none; the lessons' main method is the image stream."""
    root = tmp_path / "data" / "local" / "HCC2"
    write_tables(root, [f"P{number}" for number in range(8)])
    for name in ("rna", "mirna", "methylation"):
        (root / f"{name}.tsv").unlink()
    (root / "slides").mkdir()
    for number in range(8):
        (root / "slides" / f"P{number}.svs").write_bytes(b"slide %d" % number)
    manifests = write_manifest(tmp_path / "manifests", "HCC2")
    places = {"data_dir": tmp_path / "data", "run_dir": tmp_path / "runs", "manifest_dir": manifests}
    options = ["--cancer", "HCC2", "--source", "local", "--modalities", "none"]
    options += [word for name, place in places.items() for word in (f"--{name.replace('_', '-')}", str(place))]
    done = CliRunner().invoke(typer_app, ["run", "curate", *options])
    assert done.exit_code == 0, done.output
    states = [line.split()[:2] for line in CliRunner().invoke(typer_app, ["status", *options]).stdout.splitlines()]
    assert states[0] == ["curate", "done"]
    assert "omics" not in [name for name, _ in states]
    run = Run("HCC2", source="local", modalities="", **places)
    assert run.modalities == ()
    readings = other_readings(run.manifest, "local", run.root, seed=0, modalities=run.modalities, slides=run.slides)
    assert readings["patients"].tolist() == [8, 8, 8]
    bags = {name: PackedBags.from_list([np.ones((2, 4), np.float32)] * 8) for name in ("region", "positions")}
    bags["thumbnail"] = PackedBags.from_list([np.zeros((2, 32, 32, 3), np.uint8)] * 8)
    table = run.cohort().table
    data = SurvivalData(list(table.index), table["time"].to_numpy(), table["event"].to_numpy(), bags)
    assert lessons.main_method(data) == "hcmae_image"
    assert not {"hcmae", "trans_mo", "coxnet_omics"} & set(lessons.possible(METHODS, data))


def test_tables_beside_a_run_are_judged_by_the_manifest_of_their_folders_name(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifests", "HCC2", min_days=300)
    write_manifest(tmp_path / "manifests", "LIHC")
    for name in ("HCC2", "others"):
        write_tables(tmp_path / name, [f"P{number:03d}" for number in range(8)])
        (tmp_path / name / "mirna.tsv").unlink()
    run = Run("LIHC", manifest_dir=tmp_path / "manifests")
    own, others = (lessons.real_tables(run, tmp_path / name) for name in ("HCC2", "others"))
    assert own is not None
    assert others is not None
    assert (own.label, others.label) == ("HCC2 (rules of HCC2)", "others (rules of LIHC)")
    assert own.modalities == others.modalities == ("rna", "methylation")
    assert len(own.data.patients) < len(others.data.patients) == 8
    with pytest.raises(ConfigError, match="no table for rna, mirna, methylation"):
        lessons.real_tables(run, tmp_path)
    # Two tables for one modality are no reason to leave it out in silence.
    for name in ("rna_a.tsv", "rna_b.tsv"):
        (tmp_path / "others" / name).write_bytes((tmp_path / "others" / "rna.tsv").read_bytes())
    (tmp_path / "others" / "rna.tsv").unlink()
    with pytest.raises(CurationError, match=r"rna_a\.tsv and rna_b\.tsv could both be rna"):
        lessons.real_tables(run, tmp_path / "others")


def test_the_name_of_a_table_stands_for_its_rows_that_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    class Data:
        def has(self, need: str) -> bool:
            return need in ("omics", "clinical")

    run = SimpleNamespace(cancer="HCC2", survival_data=Data())
    asked = methods_asked(run, "hcmae, table2 ,")  # type: ignore[arg-type]
    assert asked[0] == "hcmae", "a method asked for by name is run, or says itself what it lacks"
    assert {"coxnet_omics", "trans_mo", "cox_clinical"} <= set(asked)
    assert not {"mcat", "hipt", "gpdbn"} & set(asked)
    assert "mcat" in capsys.readouterr().out
