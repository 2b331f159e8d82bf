"""The doctor: what a machine lacks, and what to do about it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.cli.doctor import examine
from hcmae.config import load_profile


def test_doctor_reports_and_fails_where_a_gpu_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    monkeypatch.setitem(sys.modules, "openslide", None)
    findings = {finding.name: finding for finding in examine(load_profile("smoke"), tmp_path)}
    assert findings["openslide"].state == "fail"
    assert "pip install" in findings["openslide"].cure
