"""How many processes of this program a launcher has started, and which of them this one is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

# What each launcher tells its processes: how many there are, which one this is, the same on its host alone. A Slurm job
# of several tasks says so to every program in it; only srun, which starts one process per task, sets the step's count.
_TOLD = {
    "torchrun": ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
    "mpirun": (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
}
# Where the processes meet, if nobody says so: torch's own port, moved by the number of the job.
_PORT, _PORTS = 29500, 10000


class LaunchError(RuntimeError):
    """Processes that were started in a way that they cannot work together in."""


@dataclass(frozen=True)
class World:
    """The processes that work together: their number, this one's, the same on its host; one alone by default."""

    size: int = 1
    rank: int = 0
    local_size: int = 1
    local_rank: int = 0
    launcher: str | None = None

    @property
    def hosts(self) -> int:
        """Hosts, each with as many processes."""
        return self.size // self.local_size


def world(told: Mapping[str, str] | None = None) -> World:
    """What torchrun, srun, mpirun or mpiexec said in the environment (or in ``told``); one process where none did.

    Raises LaunchError for hosts with different numbers of processes, or a launcher that says only half.
    """
    told = os.environ if told is None else told
    for launcher, names in _TOLD.items():
        size = _count(told.get(names[0], "1"))
        if size < 2:
            # torchrun and mpirun stand inside a step of srun, never around one: their word for one process holds.
            if launcher in ("torchrun", "mpirun") and names[0] in told:
                return World()
            continue
        if names[1] not in told:
            raise LaunchError(f"{launcher}: {names[0]} is {size}, but {names[1]} is missing: start all processes alike")
        rank = int(told[names[1]])
        local_size = _count(told.get(names[2], str(size)))
        local_rank = int(told.get(names[3], rank % local_size))
        if size % local_size:
            raise LaunchError(
                f"{launcher}: {size} processes, {local_size} of them on this host: every host must have as many"
            )
        return World(size, rank, local_size, local_rank, launcher)
    return World()


def tell_torch(here: World, told: MutableMapping[str, str] | None = None) -> None:
    """Say what another launcher said in torchrun's words, which torch reads; the place to meet too, unless it is given.

    Raises LaunchError where several hosts were started by a launcher that does not name the first of them.
    """
    told = os.environ if told is None else told
    for name, value in zip(_TOLD["torchrun"], (here.size, here.rank, here.local_size, here.local_rank), strict=True):
        told.setdefault(name, str(value))
    told.setdefault("GROUP_RANK", str(here.rank // here.local_size))
    if "MASTER_ADDR" not in told:
        told["MASTER_ADDR"] = _first_host(here, told)
    told.setdefault("MASTER_PORT", str(_PORT + int(told.get("SLURM_JOB_ID", "0")) % _PORTS))


def _first_host(here: World, told: Mapping[str, str]) -> str:
    if here.hosts == 1:
        return "127.0.0.1"
    nodes = told.get("SLURM_STEP_NODELIST", told.get("SLURM_JOB_NODELIST", ""))
    if not nodes:
        raise LaunchError(
            f"{here.launcher}: {here.hosts} hosts, and none is named: set MASTER_ADDR to the name of the first one"
        )
    # gpu[07-09,12],cpu3 begins with gpu07.
    name, inside = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", nodes).groups()  # type: ignore[union-attr]
    return name + re.split(r"[,-]", inside)[0] if inside else str(name)


def _count(text: str) -> int:
    """A number, or Slurm's list of tasks per host: 2(x3) is two on each of three."""
    counts = {int(part.split("(")[0]) for part in text.split(",")}
    if len(counts) > 1:
        raise LaunchError(f"srun: {text} processes per host: every host must have as many (srun --ntasks-per-node)")
    return counts.pop()
