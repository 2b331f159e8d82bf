"""``hcmae doctor``: is this machine ready for this profile, and if not, what to do."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import psutil
import typer

from hcmae.config import Profile, load_profile
from hcmae.processes import usable_cores

GIB = 2**30
# Disk that a run of the profile wants beside the environment (slides of one cancer; of six for paper), and memory it
# was seen to need, in GiB. Slides that are streamed take what they are given.
DISK_GIB = {"smoke": 4.0, "workstation": 450.0, "paper": 3000.0}
MEMORY_GIB = {"smoke": 6.0, "workstation": 32.0, "paper": 64.0}


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``state`` is ok, warn or fail; ``cure`` says what to do where it is not ok."""

    name: str
    state: str
    text: str
    cure: str = ""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("doctor")
    def command(
        profile: Annotated[str, typer.Option(help="Profile to check against: smoke, workstation, paper.")] = "smoke",
        folder: Annotated[Path, typer.Option(help="Where data and runs will lie.")] = Path("."),
        regions: Annotated[int, typer.Option(help="Regions of the pool: estimate hours for them (0: do not).")] = 0,
    ) -> None:
        """Check Python, torch, timm, OpenSlide, disk, memory and GPU against a profile; --regions: measure hours."""
        findings = examine(load_profile(profile), folder, regions)
        marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
        for finding in findings:
            print(f"[{marks[finding.state]}] {finding.name:<12} {finding.text}")
            if finding.cure:
                print(f"{'':>7}{'':<12} -> {finding.cure}")
        failed = [finding.name for finding in findings if finding.state == "fail"]
        print(f"{len(failed)} problem(s)" + (f": {', '.join(failed)}" if failed else f", ready for profile {profile}"))
        raise typer.Exit(1 if failed else 0)


def examine(profile: Profile, folder: Path, regions: int = 0, seconds: float = 20.0) -> list[Finding]:
    """Run every check; a check that itself breaks is reported as a failure, never raised.

    regions: estimate the hours of pre-training on so many from ``seconds`` of measuring (0: not).
    """
    checks: list[Callable[[], Finding]] = [
        _python,
        _torch,
        _vision_pair,
        _openslide,
        lambda: _disk(profile, folder),
        lambda: _memory(profile),
        lambda: _gpu(profile),
    ]
    if regions:
        checks.append(lambda: _hours(profile, regions, seconds))
    findings = []
    for check in checks:
        try:
            findings.append(check())
        except Exception as error:
            name = getattr(check, "__name__", "check").strip("_<>")
            findings.append(Finding(name, "fail", f"{type(error).__name__}: {error}", "install the locked environment"))
    return findings


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("python", "ok", text)
    return Finding("python", "fail", text, "use Python 3.11, 3.12 or 3.13")


def _torch() -> Finding:
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    text = f"{torch.__version__} on {device}, {torch.get_num_threads()} threads"
    if (major, minor) >= (2, 11):
        return Finding("torch", "ok", text)
    return Finding("torch", "fail", text, "install torch 2.11 or newer together with the matching torchvision")


def _vision_pair() -> Finding:
    try:
        versions = f"timm {version('timm')}, torchvision {version('torchvision')}"
    except PackageNotFoundError as error:
        return Finding("timm", "fail", f"{error.name} is not installed", "pip install torch torchvision timm together")
    try:
        importlib.import_module("torchvision.ops")
        importlib.import_module("timm")
    except Exception as error:
        cure = "torch and torchvision do not match: pip install --force-reinstall torch torchvision timm in one command"
        return Finding("timm", "fail", f"{versions}: {type(error).__name__}: {error}", cure)
    return Finding("timm", "ok", versions)


def _openslide() -> Finding:
    try:
        import openslide
    except Exception as error:
        return Finding(
            "openslide", "fail", f"{type(error).__name__}: {error}", "pip install openslide-python openslide-bin"
        )
    return Finding("openslide", "ok", f"library {openslide.__library_version__}, Python {openslide.__version__}")


def _disk(profile: Profile, folder: Path) -> Finding:
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / GIB
    wanted = DISK_GIB.get(profile.name, 10.0)
    text = f"{free:.0f} GiB free, profile {profile.name} wants {wanted:.0f}"
    if free >= wanted:
        return Finding("disk", "ok", text)
    cure = "free some space, or give --folder on a larger disk"
    if profile.name != "smoke":
        cure += "; with trained networks 'hcmae stream CANCER --disk 100G' holds no more than that of slides"
    return Finding("disk", "fail", text, cure)


def _memory(profile: Profile) -> Finding:
    total = psutil.virtual_memory().total / GIB
    wanted = MEMORY_GIB.get(profile.name, 8.0)
    text = f"{total:.0f} GiB, profile {profile.name} wants {wanted:.0f}"
    return Finding(
        "memory", "ok" if total >= wanted else "warn", text, "" if total >= wanted else "close other programs"
    )


def _gpu(profile: Profile) -> Finding:
    import torch

    if not torch.cuda.is_available():
        if profile.name == "smoke":
            return Finding("gpu", "ok", "none, and the smoke profile needs none")
        cure = "use a machine with a CUDA device, or --profile smoke"
        return Finding("gpu", "fail", f"none, but profile {profile.name} is made for one", cure)
    free, total = (value / GIB for value in torch.cuda.mem_get_info())
    wanted = 20.0 if profile.geometry.region >= 4096 else 2.0
    text = f"{torch.cuda.get_device_name()}: {free:.0f} of {total:.0f} GiB free, profile wants {wanted:.0f}"
    if free >= wanted:
        return Finding("gpu", "ok", text)
    return Finding("gpu", "warn", text, "lower batch_size and raise accumulation in the profile, by the same factor")


def _hours(profile: Profile, regions: int, seconds: float) -> Finding:
    from hcmae.pretraining.estimate import estimate

    found = estimate(profile, regions, seconds)
    text = "; ".join(f"{item.stage} about {item.hours:.1f} h, {item.limit} is the limit" for item in found)
    slow = [item for item in found if item.limit == "decoding" and item.hours > 1]
    spare = usable_cores() - profile.compute.workers
    cure = f"raise compute.workers by {spare - 1}" if slow and spare > 1 else ""
    return Finding("hours", "warn" if cure else "ok", f"{text} ({regions} regions)", cure)
