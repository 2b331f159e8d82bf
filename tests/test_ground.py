"""The ground: settings, environment files, atomic files, stages, doctor."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hcmae import __version__
from hcmae.config import CANCERS, PROFILES, ConfigError, Fidelity, Geometry, Network, Protocol, load_profile
from hcmae.files import atomic_path, read_json, write_json
from hcmae.manifest import load_manifest
from hcmae.pipeline import stages
from hcmae.pipeline.run import Run


def _requirement_name(text: str) -> str:
    return re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0].lower().replace("_", "-")


def test_paper_profile_holds_the_papers_numbers() -> None:
    paper = load_profile("paper")
    table = {
        "region": (paper.geometry.region, 4096),
        "patch": (paper.geometry.patch, 256),
        "cell": (paper.geometry.cell, 16),
        "thumbnail": (paper.geometry.thumbnail, 256),
        "patches in a region": (paper.geometry.patches_per_region, 256),
        "cells in a patch": (paper.geometry.cells_per_patch, 256),
        "downsampling": (paper.geometry.downsample, 16),
        "width": (paper.network.dim, 384),
        "blocks": (paper.network.depth, 12),
        "heads": (paper.network.heads, 12),
        "masking, patch": (paper.mae_patch.mask_ratio, 0.75),
        "masking, region": (paper.mae_region.mask_ratio, 0.75),
        "optimiser": (paper.mae_patch.optimisation.optimizer, "adam"),
        "rate": (paper.mae_patch.optimisation.learning_rate, 1e-3),
        "decay": (paper.mae_patch.optimisation.weight_decay, 1e-2),
        "batch, patch": (paper.mae_patch.optimisation.batch_size, 500),
        "epochs, patch": (paper.mae_patch.optimisation.epochs, 10),
        "rate, region": (paper.mae_region.optimisation.learning_rate, 1e-3),
        "decay, region": (paper.mae_region.optimisation.weight_decay, 1e-2),
        "batch, region": (paper.mae_region.optimisation.batch_size, 10),
        "accumulation, region": (paper.mae_region.optimisation.accumulation, 50),
        "epochs, region": (paper.mae_region.optimisation.epochs, 10),
        "features": (paper.omics.top_k, 300),
        "survival width": (paper.survival.network.dim, 384),
        "survival blocks": (paper.survival.network.depth, 12),
        "survival heads": (paper.survival.network.heads, 12),
        "survival rate": (paper.survival.learning_rate, 6e-4),
        "survival epochs": (paper.survival.epochs, 80),
        "survival group": (paper.survival.group, 60),
        "folds": (paper.survival.folds, 5),
    }
    assert {k: a for k, (a, _) in table.items()} == {k: b for k, (_, b) in table.items()}


def test_manifests_hold_table_1() -> None:
    rows = {c: load_manifest(c).table1 for c in CANCERS}
    assert sum(row.patients for row in rows.values()) == 2420
    assert sum(row.regions for row in rows.values()) == 365_764
    for row in rows.values():
        assert row.patches_million == pytest.approx(row.regions * 256 / 1e6, abs=0.06)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_load(name: str) -> None:
    assert load_profile(name).name == name


def test_sizes_that_do_not_divide_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"geometry\.patch \(256\).*geometry\.cell \(48\)"):
        Geometry(cell=48)
    with pytest.raises(ValueError, match="heads"):
        Network(dim=96, heads=5)


def test_unknown_keys_are_errors_that_name_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"smoke\.yaml.*\n.*survival\.epoch: unknown key"):
        load_profile("smoke", {"survival.epoch": 3})
    text = Path("data_manifests/LIHC.yaml")
    source = (Path(__file__).parent.parent / text).read_text()
    (tmp_path / "LIHC.yaml").write_text(source.replace("project:", "projcet:"))
    with pytest.raises(ConfigError, match="projcet"):
        load_manifest("LIHC", tmp_path)


def test_unknown_cancer_profile_source_protocol() -> None:
    with pytest.raises(ConfigError, match=r"unknown cancer 'KIRC'.*LIHC"):
        load_manifest("KIRC")
    with pytest.raises(ConfigError, match="unknown profile"):
        load_profile("smokey")
    with pytest.raises(ConfigError, match="unknown source"):
        Run(source="web")
    with pytest.raises(ConfigError, match="unknown protocol"):
        Protocol.preset("fair")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown fidelity"):
        Fidelity.preset("code")  # type: ignore[arg-type]


def test_environment_files_agree(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((repo / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    extras = set(re.search(r"\[(.*)\]", pip[0]).group(1).split(","))  # type: ignore[union-attr]
    assert extras == set(project["optional-dependencies"])
    lock = (repo / "requirements.lock").read_text()
    locked = {m.group(1).lower().replace("_", "-") for m in re.finditer(r"^([A-Za-z0-9._-]+)==", lock, re.M)}
    wanted = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    missing = {_requirement_name(text) for text in wanted} - locked
    assert not missing, f"in pyproject.toml but not in requirements.lock: {sorted(missing)}"
    assert "--hash=sha256:" in lock
    assert "://" not in lock
    assert "--index-url" not in lock
    assert project["version"] == __version__


def test_packages_asked_for_are_declared(repo: Path) -> None:
    text = (repo / "pyproject.toml").read_text()
    asked = "jupyter-book jupytext papermill torch timm openslide-python pydeseq2 scikit-survival lifelines seaborn"
    for name in asked.split():
        assert f'"{name}' in text


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})

    def half_written() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power"):
        half_written()
    assert read_json(target) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    target.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        read_json(target)


def test_stage_runs_once_and_again_when_settings_or_upstream_change(tmp_path: Path) -> None:
    output, calls = tmp_path / "out.txt", []

    def work() -> None:
        calls.append(1)
        output.write_text("done")

    first = stages.Stage(tmp_path, "cut", {"size": 1})
    assert first.run([output], work)
    assert not first.run([output], work)
    assert stages.Stage(tmp_path, "cut", {"size": 2}).run([output], work)
    assert stages.Stage(tmp_path, "cut", {"size": 2}, ("other",)).run([output], work)
    output.unlink()
    assert stages.Stage(tmp_path, "cut", {"size": 2}, ("other",)).run([output], work)
    assert len(calls) == 4


def test_stage_that_writes_nothing_is_an_error_and_is_not_recorded(tmp_path: Path) -> None:
    stage = stages.Stage(tmp_path, "cut", {})
    with pytest.raises(RuntimeError, match="without writing"):
        stage.run([tmp_path / "never"], lambda: None)
    assert stage.record() is None


def test_doctor_reports_and_fails_where_a_gpu_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from hcmae.cli import typer_app

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runner = CliRunner()
    smoke = runner.invoke(typer_app, ["doctor", "--folder", str(tmp_path)])
    assert smoke.exit_code == 0, smoke.output
    for name in ("python", "torch", "timm", "openslide", "disk", "memory", "gpu"):
        assert name in smoke.output
    paper = runner.invoke(typer_app, ["doctor", "--profile", "paper", "--folder", str(tmp_path)])
    assert paper.exit_code == 1
    assert "->" in paper.output
    assert "gpu" in paper.output


def test_doctor_survives_a_broken_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from hcmae.cli.doctor import examine

    monkeypatch.setitem(sys.modules, "openslide", None)
    findings = {finding.name: finding for finding in examine(load_profile("smoke"), tmp_path)}
    assert findings["openslide"].state == "fail"
    assert "pip install" in findings["openslide"].cure


def test_run_without_data_says_which_stage_is_missing(tmp_path: Path) -> None:
    run = Run(data_dir=tmp_path / "data", run_dir=tmp_path / "runs")
    with pytest.raises(ConfigError, match="synthesise"):
        run.curate()
    with pytest.raises(FileNotFoundError, match="curate"):
        run.cohort()
    with pytest.raises(FileNotFoundError, match="load_omics"):
        run.omics()
    with pytest.raises(FileNotFoundError, match="make_slides"):
        run.pool()
