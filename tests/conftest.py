"""Shared fixtures: real input where the checkout has it, a tiny profile."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from hcmae.config import Profile, load_profile

REPO = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the tests import stays to the end: looking through it for garbage, time and again, would be in vain."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the many quick ones level out at the end what the workers have left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real input; set HCMAE_SHARED_DATA or place it beside the checkout as shared/data."""
    candidates = [os.environ.get("HCMAE_SHARED_DATA"), REPO.parent / "shared" / "data"]
    for candidate in candidates:
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real test data: set HCMAE_SHARED_DATA to the folder that holds slides/, mirna_gdc/, lihc_real/")


@pytest.fixture(scope="session")
def tiny_profile() -> Profile:
    """Smaller than smoke: seconds for a whole road."""
    return load_profile(
        "smoke",
        {
            "name": "tiny",
            "geometry": {"region": 256, "patch": 64, "cell": 16, "thumbnail": 16},
            "network": {"dim": 32, "depth": 1, "heads": 4},
            "synthetic": {"patient_scale": 0.05, "region_scale": 0.02, "genes": 200, "mirnas": 60, "probes": 150},
            "omics.top_k": 10,
            "omics.candidates": 40,
            "omics.trees": 20,
            "survival.network": {"dim": 32, "depth": 1, "heads": 4},
            "survival.epochs": 2,
        },
    )
