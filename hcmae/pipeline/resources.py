"""What a job of the run graph needs: memory, hours, cores, a GPU. A scheduler holds jobs to it.

Limits, not estimates: memory has room above what was seen, and a job that is stopped at its hours goes on from its last
checkpoint, region or fold when it is tried again, with more of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hcmae.config import Profile

Kind = Literal["page", "prepare", "train", "learn"]
# Regions from this side on are not pre-trained on a CPU.
GPU_REGION = 2048
# Kind of job -> memory in MB and minutes; prepare: memory of the program itself, and of each worker.
_SMALL: dict[Kind, tuple[int, int]] = {
    "page": (3000, 60),
    "prepare": (3000, 60),
    "train": (4000, 120),
    "learn": (4000, 120),
}
_LARGE: dict[Kind, tuple[int, int]] = {
    "page": (8000, 240),
    "prepare": (8000, 2880),
    "train": (48000, 2880),
    "learn": (48000, 2880),
}
_WORKER_MB = 2000


@dataclass(frozen=True)
class Needs:
    """Of one job: mem_mb, minutes, threads (cores), gpu (cards)."""

    mem_mb: int
    minutes: int
    threads: int
    gpu: int


def uses_gpu(profile: Profile) -> bool:
    """Whether the profile's networks are made for a GPU."""
    return profile.geometry.region >= GPU_REGION


def needs(kind: Kind, profile: Profile, *, gpus: int = 1, threads: int = 1) -> Needs:
    """Of a job of the run graph: ``prepare`` cuts slides, ``train`` pre-trains, ``learn`` trains on vectors.

    Args:
        gpus: cards of a pre-training; other jobs that train take one. 0: none is used.
        threads: of one pre-training on a CPU.
    """
    if not uses_gpu(profile):
        mem, minutes = _SMALL[kind]
        return Needs(mem, minutes, threads if kind == "train" else 1, 0)
    mem, minutes = _LARGE[kind]
    workers = max(1, profile.compute.workers)
    cards = {"train": gpus, "learn": min(1, gpus)}.get(kind, 0)
    if kind == "prepare":
        return Needs(mem + workers * _WORKER_MB, minutes, workers, 0)
    if kind == "train":
        return Needs(mem, minutes, max(threads, workers * max(1, gpus)), cards)
    return Needs(mem, minutes, 1, cards)
