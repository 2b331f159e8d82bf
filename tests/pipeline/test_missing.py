"""A run whose steps have not been done says which one is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hcmae.config import ConfigError
from hcmae.pipeline import Run

REPO = Path(__file__).resolve().parents[2]


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


def test_unknown_source_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown source"):
        Run(source="web")


def test_looking_at_a_run_draws_nothing_and_loads_no_network() -> None:
    """Neither figures nor networks are imported before a verb asks for them."""
    text = "import sys, hcmae.pipeline; print({'matplotlib', 'torch', 'lifelines'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", text], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
