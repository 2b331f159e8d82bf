"""Lessons on other profiles than the book's: the code of notebooks as it stands, on a grid of 4 x 4 patches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from sklearn.linear_model import Ridge

from hcmae.config import CANCERS, PROFILES, load_profile
from hcmae.interpretation import probe
from hcmae.interpretation.probe import MIN_PATIENTS
from hcmae.manifest import load_manifest
from hcmae.pipeline import Run
from tests.support.twin_slides import write_twin

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = {
    "name": "grid4",
    "geometry": {"region": 128, "patch": 32, "cell": 8, "thumbnail": 16},
    "network": {"dim": 16, "depth": 1, "heads": 2},
    "synthetic": {"patient_scale": 0.075, "region_scale": 0.01, "genes": 40, "mirnas": 20, "probes": 30},
    **{f"mae_{level}.{name}": size for level in ("patch", "region") for name, size in
       {"decoder_dim": 8, "decoder_heads": 2, "optimisation.epochs": 1, "optimisation.samples_per_epoch": 64,
        "optimisation.batch_size": 32}.items()},
    "mae_region.reduce": 4,
    "mae_region.warm_epochs": 1,
}  # fmt: skip


def test_every_profiles_smallest_twin_can_be_probed() -> None:
    for profile in PROFILES:
        scale = load_profile(profile).synthetic.patient_scale
        for cancer in CANCERS:
            assert round(load_manifest(cancer).synthetic.patients * scale) >= MIN_PATIENTS, (profile, cancer)


def lesson(page: str, **parameters: Any) -> dict[str, Any]:
    """Run the code of a lesson with other parameters; its variables."""
    text = (ROOT / "notebooks" / f"{page}.py").read_text(encoding="utf-8")
    head, cell, rest = re.split(r'(?m)(?<=^# %% tags=\["parameters"\]\n)((?:\w+ = .*\n)+)', text, maxsplit=1)
    own = "".join(f"{name} = {value!r}\n" for name, value in parameters.items())
    made: dict[str, Any] = {}
    exec(compile(head + cell + own + rest, f"{page}.py", "exec"), made)
    plt.close("all")
    return made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lessons_3_5_and_6_show_a_grid_of_16_patches_and_a_slide_without_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a probe finds is tested elsewhere; the search for its penalty would take most of the time.
    monkeypatch.setattr(probe, "RidgeCV", lambda penalties: Ridge())
    profile = tmp_path / "grid4.yaml"
    profile.write_text(yaml.safe_dump(load_profile("smoke", OVERRIDES).model_dump(mode="json")), encoding="utf-8")
    places = {"profile": str(profile), "data_dir": str(tmp_path / "data"), "run_dir": str(tmp_path / "runs")}
    run = Run("LIHC", **places)
    run.synthesise(workers=1)
    table = run.curate().table
    blank = Path(table["slide_path"].iloc[0])
    write_twin(blank, np.full((400, 400, 3), 245, np.uint8))
    lesson("03_slides", **places)
    assert run.slide_outcomes().set_index("slide").loc[table["slide"].iloc[0], "reason"] == "no_tissue"
    assert len(run.stores()) == len(table) - 1 >= MIN_PATIENTS
    lesson("05_mae_patch", **places)
    made = lesson("06_mae_region", **places)
    assert made["side"] == 4
    for name in ("probe_patch", "probe_region", "readings"):
        assert json.loads((run.dir / "results" / f"{name}.json").read_text(encoding="utf-8"))
