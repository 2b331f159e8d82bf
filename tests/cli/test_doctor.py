"""The doctor: what a machine lacks, and what to do about it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.cli.doctor import examine
from hcmae.config import Profile, load_profile
from hcmae.pretraining.estimate import estimate


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


def test_doctor_estimates_hours_and_says_what_limits_them(tmp_path: Path) -> None:
    base = load_profile("smoke").model_dump()
    base["geometry"] = {"region": 64, "patch": 16, "cell": 4, "thumbnail": 16}
    base["network"] = {"dim": 16, "depth": 1, "heads": 2}
    for name in ("mae_patch", "mae_region"):
        base[name] |= {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
        base[name]["optimisation"] |= {"batch_size": 8, "samples_per_epoch": None}
    base["mae_region"]["reduce"] = 1
    profile = Profile.model_validate(base)
    found = estimate(profile, 1000, seconds=0.1)
    assert [item.stage for item in found] == ["mae_patch", "mae_region"]
    for item, samples, settings in zip(found, (16_000, 1000), (profile.mae_patch, profile.mae_region), strict=True):
        slower = min(item.decoded, item.trained)
        assert item.hours == pytest.approx(samples * settings.optimisation.epochs / slower / 3600)
        assert item.limit == ("decoding" if item.decoded == slower else "training")
    findings = {finding.name: finding for finding in examine(profile, tmp_path, 1000, 0.1)}
    assert "1000 regions" in findings["hours"].text
    assert "hours" not in {finding.name for finding in examine(profile, tmp_path)}
