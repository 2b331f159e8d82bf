"""Features of others in our stores: at their places, with a mask, done once; one encoder per cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from hcmae.config import Geometry
from hcmae.content import Contents
from hcmae.encoders.importing import MixedFeaturesError, encoder_of, import_slide, import_slides, why_waiting
from hcmae.slides.errors import SlideError
from hcmae.slides.store import SlideStore, export_features, verify_store
from tests.support.feature_cohort import tissue, write_trident

GEOMETRY = Geometry(region=256, patch=64, cell=16, thumbnail=16)
NOTHING = pd.DataFrame()


def one(
    folder: Path, slide: str = "S1", /, *, width: int = 8, seed: int = 0, encoder: str = "uni_v2", **attrs: Any
) -> Path:
    coords = tissue(seed)
    features = np.random.default_rng(seed).normal(size=(len(coords), width)).astype(np.float32)
    return write_trident(folder / f"features_{encoder}" / f"{slide}.h5", coords, features, **attrs)


def jobs(folder: Path, *paths: Path) -> list[tuple[Path, Path, str]]:
    return [(path, folder / "stores" / f"{path.stem}.h5", path.stem) for path in paths]


def bring(folder: Path, *paths: Path, before: pd.DataFrame = NOTHING) -> pd.DataFrame:
    return import_slides(jobs(folder, *paths), before, GEOMETRY, progress=False)


def test_each_vector_lies_at_its_place(tmp_path: Path) -> None:
    path = one(tmp_path)
    outcome = import_slide(path, tmp_path / "S1.h5", GEOMETRY)
    assert (outcome.status, outcome.reason) == ("ok", "")
    store = SlideStore(tmp_path / "S1.h5")
    assert verify_store(store.path) == []
    vectors, mask = store.vectors("patch_vectors"), store.patch_mask
    assert mask is not None
    assert vectors.shape == (*mask.shape, 8) == (outcome.regions, 16, 8)
    with h5py.File(path) as file:
        wanted = {tuple(corner): row for corner, row in zip(file["coords"][:], file["features"][:], strict=True)}
    assert mask.sum() == len(wanted)
    assert not vectors[~mask].any()
    for region, place in zip(*np.nonzero(mask), strict=True):
        corner = store.coords[region] + np.array([place % 4, place // 4]) * 512
        assert np.allclose(vectors[region, place], wanted[tuple(corner)], atol=1e-2)
    assert (store.side, store.attrs["mpp"], encoder_of([store.path])) == (2048, 0.25, "UNI2-h")
    assert np.allclose(store.tissue_fraction, mask.mean(1))
    with pytest.raises(SlideError, match="holds features and no pixels"):
        store.open_slide()


def test_equal_files_give_equal_stores_and_other_features_other_content(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        import_slide(one(tmp_path / name, seed=seed), tmp_path / f"{name}.h5", GEOMETRY, slide_id="S1")
    a, b, c = (SlideStore(tmp_path / f"{name}.h5") for name in "abc")
    assert a.content == b.content != c.content
    assert a.vector_content == b.vector_content != c.vector_content


def test_what_has_been_brought_is_left_alone(tmp_path: Path) -> None:
    first, second = one(tmp_path, "S1"), one(tmp_path, "S2", seed=1)
    outcomes = bring(tmp_path, first, second)
    assert list(outcomes["status"]) == ["ok", "ok"]
    plan = jobs(tmp_path, first, second)
    stat = plan[0][1].stat()
    assert why_waiting(plan, outcomes, GEOMETRY, Contents()) == {}
    one(tmp_path, "S2", seed=2)
    assert set(why_waiting(plan, outcomes, GEOMETRY, Contents())) == {"S2"}
    again = bring(tmp_path, first, second, before=outcomes)
    assert plan[0][1].stat().st_mtime_ns == stat.st_mtime_ns
    assert why_waiting(plan, again, GEOMETRY, Contents()) == {}
    plan[0][1].unlink()
    assert why_waiting(plan, again, GEOMETRY, Contents()) == {"S1": ["the store is missing"]}


def test_a_bad_file_is_a_listed_slide_and_leaves_no_store(tmp_path: Path) -> None:
    good, bad = one(tmp_path, "S1"), one(tmp_path, "S2", seed=1)
    first = bring(tmp_path, good, bad)
    one(tmp_path, "S2", seed=1, name="S7")
    outcomes = bring(tmp_path, good, bad, before=first).set_index("slide")
    assert list(outcomes["status"]) == ["ok", "failed"]
    assert outcomes.loc["S2", "reason"] == "wrong_slide"
    assert "of slide 'S7'" in outcomes.loc["S2", "detail"]
    assert not (tmp_path / "stores" / "S2.h5").exists(), "of features that are gone"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 12}, r"more than one width .*8 numbers: 1 file\(s\), S1.h5 .*12 numbers: 1 file\(s\), S2.h5"),
        ({"encoder": "virchow2"}, "more than one encoder .*UNI2-h.*Virchow2"),
        ({"patch_size_level0": 1024}, "more than one scale .*128 um a side.*256 um a side"),
    ],
)
def test_one_cohort_has_one_encoder_at_one_scale(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    first, second = one(tmp_path, "S1"), one(tmp_path, "S2", **change)
    with pytest.raises(MixedFeaturesError, match=message):
        bring(tmp_path, first, second)
    assert not (tmp_path / "stores").exists(), "nothing is written before all are looked at"


def test_what_we_export_can_be_brought_back(tmp_path: Path) -> None:
    import_slide(one(tmp_path), tmp_path / "S1.h5", GEOMETRY)
    export_features(tmp_path / "S1.h5", tmp_path / "out" / "S1.h5", "patch_vectors")
    outcome = import_slide(tmp_path / "out" / "S1.h5", tmp_path / "back.h5", GEOMETRY, slide_id="S1")
    assert outcome.status == "ok", outcome.detail
    assert encoder_of([tmp_path / "back.h5"]) == "UNI2-h"
    first, back = SlideStore(tmp_path / "S1.h5"), SlideStore(tmp_path / "back.h5")
    assert np.array_equal(first.vectors("patch_vectors"), back.vectors("patch_vectors"))
    assert np.array_equal(first.patch_mask, back.patch_mask)
