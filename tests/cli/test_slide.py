"""One slide alone: from a file to regions, vectors and a picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.config import load_profile
from hcmae.pretraining.networks import build_mae_patch, save_weights
from hcmae.slides.store import SlideStore
from tests.support.local_cohort import OVERRIDES, write_slide
from tests.support.twin_slides import write_twin


@pytest.mark.filterwarnings("ignore")
def test_one_slide_gives_regions_vectors_masks_and_a_picture(tmp_path: Path) -> None:
    profile = tmp_path / "tiny.yaml"
    settings = load_profile("smoke", OVERRIDES)
    profile.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    slide, out = write_slide(tmp_path / "X.svs", seed=1), tmp_path / "out"
    torch.manual_seed(0)
    save_weights(tmp_path / "pretrain" / "mae_patch.safetensors", build_mae_patch(settings))
    words = ["slide", str(slide), "--out", str(out), "--profile", str(profile)]
    done = CliRunner().invoke(typer_app, [*words, "--weights-from", str(tmp_path / "pretrain")])
    assert done.exit_code == 0, done.output
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {"X.h5", "X.tissue.geojson", "X.regions.geojson", "X.regions.png"}
    store = SlideStore(out / "X.h5")
    assert store.vectors("patch_vectors").shape == (len(store), 16, 16)
    assert cv2.imread(str(out / "X.regions.png")) is not None
    lost = CliRunner().invoke(typer_app, [*words, "--weights-from", str(tmp_path)])
    assert (lost.exit_code, "mae_patch.safetensors is missing" in lost.stderr) == (2, True)
    blank = write_twin(tmp_path / "blank.svs", np.full((640, 640, 3), 245, np.uint8))
    empty = CliRunner().invoke(typer_app, ["slide", str(blank), "--out", str(out), "--profile", str(profile)])
    assert (empty.exit_code, "no_tissue" in empty.stdout) == (1, True)
