"""Source ``features``: files of features, omics and clinical tables through the whole road, without a pixel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hcmae.cohort.evidence import CurationError
from hcmae.config import ConfigError
from hcmae.encoders.importing import MixedFeaturesError
from hcmae.evaluation.tables import FEATURE_ROWS, Score, features_table
from hcmae.pipeline import Run
from hcmae.pipeline.lessons import possible
from hcmae.slides.store import SlideStore
from hcmae.survival import fit
from hcmae.survival.bags import StoredBags
from hcmae.survival.data import SurvivalData, load_inputs
from hcmae.survival.methods import METHODS
from tests.support.feature_cohort import features_run, tissue, write_features, write_trident

pytestmark = pytest.mark.filterwarnings("ignore")

PATIENTS, WIDTH = 12, 1536
QUICK: dict[str, Any] = {
    "survival.epochs": 1, "survival.inner_fraction": 0.5, "comparisons.mcat_dim": 16, "comparisons.clam_dim": 16,
    "comparisons.hipt_dim": 12, "comparisons.mcat.epochs": 2, "comparisons.clam_sb.epochs": 1,
    "comparisons.hipt.epochs": 1,
    "compute.precision": "32",
}  # fmt: skip
# Those that read patch vectors, region tokens and HIPT's vectors; MCAT is below.
METHOD_NAMES = ("clam_sb", "hipt", "hcmae_regions")
FEATURE_METHODS = tuple(key for _, key, group in FEATURE_ROWS if group != "No image")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole road before survival: a fake TRIDENT run of UNI2-h, one of whose files is of another slide."""
    folder = tmp_path_factory.mktemp("features")
    root = write_features(folder, patients=PATIENTS, width=WIDTH, cells=5)
    write_trident(
        root / "features" / "features_uni_v2" / "P003.h5", tissue(3), np.zeros((len(tissue(3)), WIDTH)), name="P009"
    )
    run = features_run(folder, **QUICK)
    run.curate()
    run.make_slides(progress=False)
    run.load_omics()
    run.pretrain_region(progress=False)
    run.pretrain_dino(progress=False)
    return run


@pytest.fixture(scope="module")
def data(run: Run) -> SurvivalData:
    return run.survival_data


@pytest.mark.slow
def test_a_cohort_of_features_goes_the_whole_road(run: Run, data: SurvivalData) -> None:
    status = run.status().set_index("step")
    done = ["curate", "omics", "features", "feature_region", "feature_region_vectors", "feature_hipt"]
    assert list(status.loc[done, "state"]) == ["done"] * len(done), status
    assert not {"slides", "mae_patch", "nuclei", "dino_patch"} & set(status.index), (
        "what looks at pixels is no step here"
    )
    assert len(data.patients) == PATIENTS - 1
    assert list(data.exclusions["patient"]) == ["P003"], "the file that says it is another slide's"
    outcome = run.slide_outcomes().set_index("slide").loc["P003"]
    assert (outcome["status"], outcome["reason"]) == ("failed", "wrong_slide")
    assert run.encoder() == data.patch_source == "UNI2-h"
    # Bags hold the patches that are there and no others.
    stores = [SlideStore(path) for path in run.stores()]
    assert list(data.sizes("patch")) == [int(store.patch_mask.sum()) for store in stores]  # type: ignore[union-attr]
    assert data.sizes("patch").sum() < sum(len(store) * 16 for store in stores)
    assert data.bags["patch"].packed(np.array([0])).shape[1] == WIDTH
    assert bool((data.bags["patch"].packed(np.arange(2)) != 0).any(1).all()), "no place without a patch is an item"


@pytest.mark.slow
def test_methods_run_on_any_width_and_the_table_names_the_encoder(run: Run, data: SurvivalData) -> None:
    assert possible(FEATURE_METHODS, data) == list(FEATURE_METHODS)
    assert not possible(["hcmae", "deepcorrsurv", "gpdbn"], data), "what needs thumbnails or nuclei has none"
    scores = {name: {"HCC2": Score(0.6, 0.1)} for name in FEATURE_METHODS}
    for name in METHOD_NAMES:
        predictions = run.evaluate(name)
        assert np.isfinite(predictions["risk"]).all()
        assert sorted(predictions["patient"]) == sorted(data.patients)
    assert run.status().set_index("step").loc["predictions", "state"] == "done"
    table = features_table(scores, run.encoder(), provenance=run.provenance())
    text = table.to_csv()
    for words in ("MCAT on UNI2-h", "MAE-PatReg on UNI2-h, region token", "HC-MAE on UNI2-h, keys from region tokens"):
        assert words in text
    assert "keys are these vectors instead of thumbnails" in table.caption
    assert "source features" in table.caption
    assert len(table.rows) == len(FEATURE_METHODS)


@pytest.mark.slow
def test_the_lines_of_the_page_run(
    run: Run, repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (repo / "book" / "own_encoder.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr("hcmae.pipeline.Run", lambda *_, **__: run)
    exec(compile(code, "own_encoder.md", "exec"), {})
    said = capsys.readouterr().out
    assert "wrong_slide" in said
    assert "MCAT on UNI2-h" in said


@pytest.mark.slow
def test_bags_in_the_stores_give_what_bags_in_memory_give(
    run: Run, data: SurvivalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standardised in parts, a group in parts: the same risks, whatever fits into memory."""
    stored = load_inputs(run.cohort().table, run.store_dir, run.omics(), usable=set(run.stores()), memory_bytes=0)
    assert isinstance(stored.bags["patch"], StoredBags)
    assert list(stored.sizes("patch")) == list(data.sizes("patch"))
    monkeypatch.setattr(fit, "PART_BYTES", 3 * 25 * WIDTH * 2)
    monkeypatch.setattr(fit, "PADDED_ITEMS", 50)
    monkeypatch.setattr(fit, "RESIDENT_BYTES", 0)
    survival = run.profile.survival.model_copy(update={"micro_batch": 3})
    monkeypatch.setattr(run, "profile", run.profile.model_copy(update={"survival": survival}))
    reads: list[int] = []
    plain = StoredBags.packed

    def packed(self: StoredBags, rows: np.ndarray) -> torch.Tensor:
        if self.field == "patch_vectors":
            reads.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(StoredBags, "packed", packed)
    one = run.evaluate("mcat", data=data, label="memory")
    two = run.evaluate("mcat", data=stored, label="stores")
    assert np.allclose(one["risk"], two["risk"], atol=2e-3)
    assert max(reads) <= 4, "never the bags of a whole group"


def test_pixels_are_not_asked_of_features(run: Run) -> None:
    with pytest.raises(ConfigError, match="no pixels to train on"):
        run.pretrain_patch()
    local = Run("LIHC", "smoke", "local", data_dir=run.data_dir, run_dir=run.run_dir)
    for verb in (local.bring_features, local.pretrain_feature_region):
        with pytest.raises(ConfigError, match="source is 'local'"):
            verb()


def test_new_features_make_stale_what_rests_on_them(run: Run) -> None:
    path = run.root / "features" / "features_uni_v2" / "P001.h5"
    before = path.read_bytes()
    try:
        write_trident(path, tissue(1, cells=5), np.ones((len(tissue(1, cells=5)), WIDTH), np.float32))
        found = run.status().set_index("step")
        assert found.loc["features", "state"] == "stale"
        assert "P001" in found.loc["features", "why"]
        assert found.loc["feature_region", "state"] in ("waits", "stale")
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("width", [1024, 2560])
def test_other_widths_are_brought_and_mixed_ones_refused(tmp_path: Path, width: int) -> None:
    root = write_features(tmp_path, patients=3, width=width, encoder="virchow2", cells=3)
    run = features_run(tmp_path)
    run.curate()
    assert set(run.bring_features(progress=False)["status"]) == {"ok"}
    assert SlideStore(run.stores()[0]).vectors("patch_vectors").shape[-1] == width
    coords = tissue(1)
    write_trident(root / "features" / "features_virchow2" / "P001.h5", coords, np.ones((len(coords), 99)))
    with pytest.raises(MixedFeaturesError, match=f"more than one width .*{width:,} numbers.*99 numbers"):
        run.bring_features(progress=False)


def test_folders_of_two_encoders_and_of_none_are_refused(tmp_path: Path) -> None:
    root = write_features(tmp_path, patients=3, width=8, cells=3)
    run = features_run(tmp_path)
    write_trident(root / "features" / "features_virchow2" / "P000.h5", tissue(0), np.ones((len(tissue(0)), 8)))
    with pytest.raises(CurationError, match="folders of 2 encoders"):
        run.curate()
    for path in (root / "features").rglob("*.h5"):
        path.unlink()
    with pytest.raises(CurationError, match="no file of features"):
        run.curate()


def test_published_names_find_their_patients(tmp_path: Path) -> None:
    """<barcode>.<uuid>.h5, as the published sets of TCGA name them, coordinates of TRIDENT beside."""
    root = write_features(tmp_path, patients=3, width=8, cells=3)
    names = [f"TCGA-DD-A1E{number}" for number in range(3)]
    table = (root / "clinical.tsv").read_text()
    for number, name in enumerate(names):
        table = table.replace(f"P00{number}", name)
        old = root / "features" / "features_uni_v2" / f"P00{number}.h5"
        new = f"{name}-01Z-00-DX1.0e9c{number}1ab-11aa-4cbb-9ae7-000000000000.h5"
        write_trident(old.with_name(new), tissue(number, cells=3), np.ones((len(tissue(number, cells=3)), 8)))
        write_trident(root / "features" / "patches" / new, tissue(number, cells=3), np.ones((1, 1)))
        old.unlink()
    (root / "clinical.tsv").write_text(table)
    run = Run("HCC2", "smoke", "features", 0, tmp_path / "data", tmp_path / "runs", modalities="none",
              manifest_dir=tmp_path / "manifests")  # fmt: skip
    assert list(run.curate().table.index) == names
    assert all("features_uni_v2" in path for path in run.cohort().table["slide_path"])


def test_every_method_of_the_table_is_registered() -> None:
    assert {key for _, key, _ in FEATURE_ROWS} <= set(METHODS)
