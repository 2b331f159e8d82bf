"""Which processes work together: what torchrun, srun and mpirun say, and what a program alone hears of a scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hcmae.config import Compute
from hcmae.pretraining.devices import make_fabric
from hcmae.pretraining.launched import LaunchError, World, tell_torch, world

SRUN = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_LOCALID": "0"}


def test_nobody_said_anything() -> None:
    assert world({}) == World()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"},
            World(4, 3, 2, 1, "torchrun"),
        ),
        (SRUN, World(6, 4, 2, 0, "srun")),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            },
            World(2, 1, 2, 1, "mpirun"),
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, World(2, 1, 2, 1, "mpiexec")),
    ],
)
def test_each_launcher_is_understood(told: dict[str, str], expected: World) -> None:
    assert world(told) == expected


@pytest.mark.parametrize(
    "told",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # inside sbatch, without srun
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun -n 1
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {**SRUN, "WORLD_SIZE": "1", "RANK": "0"},  # a torchrun of its own in each task of srun
    ],
)
def test_one_process_in_a_larger_allocation_is_alone(told: dict[str, str]) -> None:
    assert world(told).size == 1


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,2"}, "every host must have as many"),
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"WORLD_SIZE": "3", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "every host must have as many"),
    ],
)
def test_what_cannot_work_together_is_refused(told: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        world(told)


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[07-09,12],cpu3", "gpu07"), ("a1,b2", "a1"), ("node3", "node3"), ("n[1,5]", "n1")]
)
def test_processes_of_slurm_meet_at_the_first_host(nodes: str, first: str) -> None:
    told: dict[str, Any] = {**SRUN, "SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "123456"}
    tell_torch(world(told), told)
    assert (told["MASTER_ADDR"], told["RANK"], told["GROUP_RANK"]) == (first, "4", "2")
    assert 29500 <= int(told["MASTER_PORT"]) < 39500


def test_a_place_to_meet_that_is_given_is_kept() -> None:
    told = {**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    tell_torch(world(told), told)
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("10.0.0.1", "1234")


def test_hosts_without_a_name_cannot_meet() -> None:
    told = {"PMI_SIZE": "4", "PMI_RANK": "0", "MPI_LOCALNRANKS": "2"}
    with pytest.raises(LaunchError, match="set MASTER_ADDR"):
        tell_torch(world(told), told)


def test_processes_that_do_not_see_all_gpus_are_told_how_to_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LaunchError, match=r"has started 4 processes .* each sees 1 GPU\(s\): .*--gpus-per-node"):
        make_fabric(Compute())
