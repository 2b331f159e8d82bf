"""What jobs of the run graph ask for: limits for every rule, a GPU for what trains, none for the small profile."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hcmae.config import load_profile
from hcmae.pipeline.resources import Needs, needs, uses_gpu

ROOT = Path(__file__).resolve().parents[2]
ON_GPU = {
    "train_mae_patch", "train_mae_reg", "train_mae_patreg", "train_dino", "mae_patch", "mae_region", "survival",
    "survival_in_one_hour", "ablation", "predictions", "comparison", "kaplan_meier", "leaks", "interpretation",
    "null_cohort",
}  # fmt: skip


def test_the_small_profile_asks_for_one_core_and_no_gpu() -> None:
    smoke = load_profile("smoke")
    assert not uses_gpu(smoke)
    for kind in ("page", "prepare", "train", "learn"):
        asked = needs(kind, smoke)  # type: ignore[arg-type]
        assert (asked.threads, asked.gpu) == (1, 0)
    assert needs("train", smoke, threads=4).threads == 4


def test_large_profiles_ask_for_their_workers_and_cards() -> None:
    workstation = load_profile("workstation")
    workers = workstation.compute.workers
    assert needs("train", workstation, gpus=2) == Needs(48000, 2880, 2 * workers, 2)
    assert needs("learn", workstation, gpus=2).gpu == 1
    assert needs("prepare", workstation).mem_mb == 8000 + 2000 * workers
    assert {needs(kind, workstation, gpus=0).gpu for kind in ("train", "learn")} == {0}  # type: ignore[arg-type]


def test_every_rule_that_works_has_limits() -> None:
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    for name, body in re.findall(r"^ *rule (\w+):\n(.*?)(?=^ *(?:rule|def) |\Z)", text, re.MULTILINE | re.DOTALL):
        if "shell:" in body and name != "publish":
            assert '**limits("' in body, name
            assert "retries: RETRIES" in body, name
    assert "os.cpu_count" not in text


def dry(*words: str) -> dict[str, list[dict[str, str]]]:
    """Rule -> what snakemake would ask for, of each of its jobs."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--forceall", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    jobs: dict[str, list[dict[str, str]]] = {}
    for name, body in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", done.stdout + done.stderr, re.MULTILINE):
        found = re.search(r"resources: (.*)", body)
        asked = dict(pair.split("=", 1) for pair in found[1].split(", ")) if found else {}
        output = re.search(r"output: (.*)", body)
        jobs.setdefault(name, []).append(asked | {"output": output[1] if output else ""})
    return jobs


@pytest.mark.slow
def test_under_slurm_every_page_of_every_cancer_is_asked_for_with_its_limits(tmp_path: Path) -> None:
    jobs = dry(
        "--workflow-profile", "profiles/slurm", "notebooks", "--config", "profile=workstation", "source=gdc",
        "cancers=LIHC,BRCA", "partition=cpu", "gpu_partition=cards", "account=lab", f"run_dir={tmp_path}",
        f"data_dir={tmp_path}",
    )  # fmt: skip
    pages = [Path(job["output"]) for asked in jobs.values() for job in asked if "/notebooks/" in job["output"]]
    assert Counter(page.parents[1].name for page in pages) == {"LIHC": 10, "BRCA": 10, "pretrain": 2}
    for name, asked in jobs.items():
        for job in asked:
            if name == "notebooks":
                continue
            assert int(job["mem_mb"]) >= 8000, name
            assert int(job["runtime"]) >= 240, name
            assert (job["gpu"], job["slurm_partition"]) == (("1", "cards") if name in ON_GPU else ("0", "cpu")), name
            assert job["slurm_account"] == "lab"


@pytest.mark.slow
def test_the_papers_book_is_planned_and_its_trainings_share_one_card(tmp_path: Path) -> None:
    jobs = dry(
        "--cores", "8", "book", "--config", "profile=paper", f"run_dir={tmp_path}", f"data_dir={tmp_path}"
    )  # fmt: skip
    assert len(jobs["publish"]) == 12
    # A job on one machine takes all there is: no other one that wants a card runs beside it.
    assert {job["gpu"] for name in ON_GPU for job in jobs.get(name, [])} == {"1"}
    assert {job["gpu"] for job in jobs["prepare"]} == {"0"}
