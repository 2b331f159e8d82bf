"""The whole road at a tiny size, twice: it ends in predictions, and the second time does nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import yaml
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.config import ConfigError, Profile
from hcmae.pipeline.newcomers import from_folder, one_patient
from hcmae.pipeline.run import Run, all_runs
from hcmae.pretraining.checkpoint import CheckpointError
from hcmae.pretraining.embed import embed_resnet
from hcmae.slides.process import REASONS
from hcmae.slides.store import SlideStore
from hcmae.survival.bundle import read_bundle

pytestmark = pytest.mark.slow

OVERRIDES = {
    "name": "tiny",
    "geometry": {"region": 256, "patch": 64, "cell": 16, "thumbnail": 16},
    "network": {"dim": 32, "depth": 1, "heads": 4},
    "synthetic": {"patient_scale": 0.12, "region_scale": 0.02, "genes": 200, "mirnas": 80, "probes": 150},
    "mae_patch.optimisation.epochs": 1,
    "mae_patch.optimisation.samples_per_epoch": 512,
    "mae_region.optimisation.epochs": 1,
    "omics.top_k": 10,
    "omics.candidates": 40,
    "omics.trees": 20,
    "survival.network": {"dim": 32, "depth": 1, "heads": 4},
    "survival.epochs": 2,
    "survival.repeats": 1,
}

SHORT_DINO = {"epochs": 1, "samples_per_epoch": 64}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("road")
    run = Run("LIHC", "smoke", "synthetic", 0, base / "data", base / "runs", overrides=OVERRIDES)
    run.synthesise(workers=1)
    run.curate()
    run.make_slides(workers=1, progress=False)
    run.load_omics()
    run.pretrain_patch(progress=False)
    for variant in ("patreg", "reg"):
        run.pretrain_region(variant, progress=False)
    return run


def test_curation_loses_nobody_silently(run: Run) -> None:
    cohort = run.cohort()
    assert len(cohort.table) == round(run.manifest.synthetic.patients * run.profile.synthetic.patient_scale)
    flow = cohort.flow
    assert (flow["before"] - flow["excluded"] == flow["after"]).all()
    # Patients who lost one of two samples stay; those who are gone must each be listed.
    assert flow["before"].iloc[0] - flow["after"].iloc[-1] == cohort.exclusions["patient"].nunique()
    assert flow["after"].iloc[-1] == len(cohort.table)
    assert len(run.stores()) == len(cohort.table)


def test_modalities_share_the_order_of_the_cohort(run: Run) -> None:
    data = run.omics()
    for modality in ("rna", "mirna", "methylation"):
        assert list(data[modality].obs_names) == list(run.cohort().table.index)


@pytest.mark.parametrize("method", ["hcmae", "trans_mo", "hc_patregsli", "mae_pat", "coxnet_omics", "cox_clinical"])
def test_predictions_cover_every_patient_once(run: Run, method: str) -> None:
    predictions = run.evaluate(method)
    assert sorted(predictions["patient"]) == sorted(run.cohort().table.index)
    assert np.isfinite(predictions["risk"]).all()
    again = run.evaluate(method)
    pd.testing.assert_frame_equal(predictions.reset_index(drop=True), again.reset_index(drop=True))
    kept = run.kept(method)
    assert kept is not None
    pd.testing.assert_frame_equal(predictions.reset_index(drop=True), kept.reset_index(drop=True))
    # Another setting that the method reads: what lies there does not hold for it.
    if method == "trans_mo":
        changed = {**(run._given["overrides"] or {}), "survival.learning_rate": 0.5}
        other = Run(**{**run._given, "cancer": run.cancer, "overrides": changed})
        assert other.kept(method) is None
    assert run.kept(method, "paper") is None


def test_second_pass_does_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.stores()}
    run.synthesise()
    run.curate()
    run.make_slides()
    run.load_omics()
    run.pretrain_patch()
    run.pretrain_region("patreg")
    assert {p: p.stat().st_mtime_ns for p in run.stores()} == before
    assert "done in" not in capsys.readouterr().out


def test_other_methods_need_the_same_folds(run: Run) -> None:
    assert run.folds().equals(run.folds())
    assert [other.cancer for other in all_runs(run)] == ["LIHC"]


def test_result_carries_provenance(run: Run) -> None:
    run.save_result("check", {"value": np.float32(0.5)})
    stored = run.load_result("check")
    assert stored["value"] == 0.5
    assert stored["provenance"]["profile"] == "tiny"
    with pytest.raises(FileNotFoundError, match="nothing"):
        run.load_result("nothing")


def test_replaced_data_needs_a_label(run: Run) -> None:
    with pytest.raises(ConfigError, match="label"):
        run.evaluate("trans_mo", data=run.survival_data)


def test_normal_tissue_lies_beside_the_raw_data(run: Run) -> None:
    wanted = {**OVERRIDES, "omics.contrast": "tumour_normal"}
    other = Run("LIHC", "smoke", "synthetic", 0, run.data_dir, run.run_dir, overrides=wanted)
    with pytest.raises(ConfigError, match=r"normal_rna\.tsv is missing"):
        _ = other.survival_data
    for modality, table in other.omics().mod.items():
        frame = table.to_df().iloc[:4].rename_axis("patient")
        frame.to_csv(other.root / f"normal_{modality}.tsv", sep="\t")
    normals = other.survival_data.normals
    assert normals is not None
    assert {name: table.shape for name, table in normals.items()} == {
        name: (4, table.n_vars) for name, table in other.omics().mod.items()
    }
    assert run.survival_data.normals is None


def test_slide_that_is_not_a_slide_is_reported_not_swallowed(run: Run, tmp_path: Path, tiny_profile: Profile) -> None:
    from hcmae.slides.batch import process_slides

    bad = tmp_path / "note.svs"
    bad.write_text("this is not a slide")
    good = run.cohort().table.iloc[0]
    jobs = [(str(bad), tmp_path / "bad.h5", "bad"), (good.slide_path, tmp_path / "good.h5", "good")]
    outcomes = process_slides(jobs, run.profile.geometry, run.profile.slides, progress=False)
    outcomes = outcomes.set_index("slide")
    assert outcomes.loc["bad", "status"] != "ok"
    assert outcomes.loc["bad", "reason"]
    assert outcomes.loc["good", "status"] == "ok"
    assert not (tmp_path / "bad.h5").exists()


def test_strict_stops_at_a_bad_slide_and_the_summary_names_it_otherwise(run: Run, tmp_path: Path) -> None:
    profile = tmp_path / "tiny.yaml"
    profile.write_text(yaml.safe_dump(run.profile.model_dump(mode="json")), encoding="utf-8")
    shutil.copytree(run.data_dir, tmp_path / "data")
    places = {"profile": profile, "data_dir": tmp_path / "data", "run_dir": tmp_path / "runs"}
    options = [text for key, value in places.items() for text in (f"--{key.replace('_', '-')}", str(value))]

    def hcmae(*arguments: str) -> Result:
        return CliRunner().invoke(typer_app, ["run", *arguments, *options, "--workers", "1"])

    assert hcmae("curate").exit_code == 0
    copy = Run("LIHC", source="synthetic", **places)
    bad = Path(copy.cohort().table["slide_path"].iloc[0])
    bad.write_text("this is not a slide")

    stopped = hcmae("slides", "--strict")
    assert stopped.exit_code == 1
    assert f"hcmae: {bad}" in stopped.stderr
    assert not (copy.dir / "slides.parquet").exists()

    finished = hcmae("slides")
    assert finished.exit_code == 0, finished.output
    outcomes = pd.read_parquet(copy.dir / "slides.parquet")
    assert (outcomes["status"] == "failed").sum() == 1
    reason = outcomes.set_index("status").loc["failed", "reason"]
    rows = [line.split() for line in finished.stdout.splitlines()]
    assert any(row[:2] == ["failed", reason] for row in rows)
    assert REASONS[reason] in finished.stdout

    # Finished is not clean: a stage that need not run again still ends with an error.
    assert hcmae("slides", "--strict").exit_code == 1


def test_vectors_of_an_imagenet_network(run: Run, tmp_path: Path) -> None:
    """They are used only where every slide has them, so that no method mixes two networks."""
    weights = tmp_path / "resnet50.safetensors"
    save_file(timm.create_model("resnet50", pretrained=False).state_dict(), weights)
    first = run.stores()[:1]
    assert embed_resnet(first, weights, run.profile, progress=False) == 1
    store = SlideStore(first[0])
    assert store.vectors("resnet_vectors").shape == (len(store), run.profile.geometry.patches_per_region, 1024)
    assert embed_resnet(first, weights, run.profile, progress=False) == 0
    fresh = Run("LIHC", "smoke", "synthetic", 0, run.data_dir, run.run_dir, overrides=OVERRIDES)
    assert fresh.survival_data.patch_source == "the frozen MAE-Patch"
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: no such file"):
        run.embed_resnet(tmp_path / "nothing.safetensors")
    result = CliRunner().invoke(typer_app, ["run", "resnet"])
    assert result.exit_code == 2
    assert "needs --weights" in result.stderr


@pytest.mark.slow
def test_cohort_outside_the_pool_gets_every_vector(run: Run) -> None:
    """The null cohort trains nothing, but is read by every network that was trained."""
    small = {f"dino.{stage}.{key}": value for stage in ("patch", "region") for key, value in SHORT_DINO.items()}
    small |= {"dino.region.global_cells": 3, "dino.region.local_cells": 2}
    options = {"overrides": {**OVERRIDES, **small}}
    pool = Run("LIHC", "smoke", "synthetic", 0, run.data_dir, run.run_dir, **options)
    null = Run("NULL", "smoke", "synthetic", 0, run.data_dir, run.run_dir, **options)
    null.synthesise(workers=1)
    null.curate()
    null.make_slides(workers=1, progress=False)
    null.embed()
    store = SlideStore(null.stores()[0])
    assert set(store.vector_weights) == {"patch_vectors", "region_vectors", "region_vectors_reg"}
    pool.pretrain_dino(progress=False)
    null.embed()
    ours, theirs = SlideStore(null.stores()[0]).vector_weights, SlideStore(pool.stores()[0]).vector_weights
    assert set(ours) == {*store.vector_weights, "hipt_patch_vectors", "region_vectors_hipt"}
    assert all(theirs[name] == weights for name, weights in ours.items())


# --- several processes ----------------------------------------------------------------------------------------------


def _started(launcher: str, command: list[str], count: int) -> list[subprocess.Popen[str]]:
    """``count`` processes of a command of this module, started as a launcher does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if launcher == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", port]
        return [subprocess.Popen([sys.executable, *torchrun, *command], env=environment, **options)]
    # What srun says to the processes that it starts, one a task.
    told = {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_TASKS_PER_NODE": str(count), "SLURM_NTASKS": str(count)}
    told |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**environment, **told, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            **options,
        )
        for rank in range(count)
    ]


def _ended(processes: list[subprocess.Popen[str]]) -> tuple[str, str, int]:
    """Everything that they said, and the largest exit status."""
    said = [process.communicate(timeout=240) for process in processes]
    status = max(process.returncode for process in processes)
    return "".join(out for out, _ in said), "".join(err for _, err in said), status


def test_two_processes_of_a_launcher_train_once_and_what_one_does_in_two_parts(run: Run, tmp_path: Path) -> None:
    profile = tmp_path / "tiny.yaml"
    profile.write_text(yaml.safe_dump(run.profile.model_dump(mode="json")), encoding="utf-8")

    def cut_already(name: str) -> Path:
        runs = tmp_path / name
        shutil.copytree(run.dir.parent, runs / "tiny", ignore=shutil.ignore_patterns("pretrain", "notebooks"))
        return runs

    def train(launcher: str, count: int) -> dict[str, Any]:
        runs = cut_already(launcher)
        where = ["--data-dir", str(run.root.parent.parent), "--run-dir", str(runs)]
        command = ["-m", "hcmae", "run", "mae_patch", "--profile", str(profile), *where, "--shards", "2"]
        out, err, status = _ended(_started(launcher, command, count))
        assert status == 0, err[-3000:]
        # Each step says once that it is done.
        done = [line.split(":")[0] for line in out.splitlines() if ": done in " in line]
        assert done == ["mae_patch", "patch_vectors"], out
        log = (runs / "tiny" / "pretrain" / "patch" / "mae_patch.jsonl").read_text(encoding="utf-8")
        steps = [json.loads(line)["step"] for line in log.splitlines()]
        assert steps == sorted(set(steps)), "two trainings wrote one log"
        return load_file(runs / "tiny" / "pretrain" / "mae_patch.safetensors")

    single = Run("LIHC", profile, "synthetic", 0, run.root.parent.parent, cut_already("alone"))
    single.pretrain_patch(progress=False, shards=2)
    alone = load_file(single.patch_weights)
    for launcher in ("torchrun", "srun"):
        together = train(launcher, 2)
        # Sums of two halves round otherwise, and Adam makes full steps of small gradients; halves of their own would
        # be a hundred times as far apart.
        apart = sum(float((together[name] - tensor).square().sum()) for name, tensor in alone.items())
        size = sum(float(tensor.square().sum()) for tensor in alone.values())
        assert (apart / size) ** 0.5 < 1e-4


def test_a_stage_that_cannot_be_shared_is_refused_to_several_processes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(typer_app, ["run", "dino"])
    assert result.exit_code == 2
    assert "torchrun has started 2" in result.output


def test_a_model_that_left_the_house_rates_patients_from_raw_files(run: Run, tmp_path: Path) -> None:
    """The bundle's networks give the same vectors from the same slides, so the same patients have the same risks."""
    bundle = read_bundle(run.train("hcmae", tmp_path / "bundle"))
    before = (bundle.path / "bundle.json").stat().st_mtime_ns
    assert run.train("hcmae", tmp_path / "bundle") == bundle.path
    assert (bundle.path / "bundle.json").stat().st_mtime_ns == before
    at_home = bundle.trained.predict(run.survival_data).set_index("patient")
    found = from_folder(bundle, run.root, "synthetic", tmp_path / "work", with_outcomes=False, progress=False)
    away = bundle.trained.predict(found.data).set_index("patient").loc[at_home.index]
    pd.testing.assert_frame_equal(away, at_home, rtol=1e-5)
    row = run.cohort().table.iloc[0]
    omics = {name: row[f"{name}_path"] for name in run.modalities}
    own = one_patient(bundle, tmp_path / "one", slide=row["slide_path"], omics=omics, progress=False)
    assert own.data.patients == [row.name]
    one = bundle.trained.predict(own.data).set_index("patient")
    pd.testing.assert_frame_equal(one, at_home.loc[[row.name]], rtol=1e-5)
    with pytest.raises(ValueError, match="different patients"):
        one_patient(bundle, tmp_path / "one", patient="TCGA-XX-0000", slide=row["slide_path"], omics=omics)
