"""Files of TRIDENT, CLAM and others are read as they are written; what is not theirs, or not numbers, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hcmae.encoders.feature_files import FEATURE_REASONS, FeatureError, read_features, read_head
from tests.support.feature_cohort import tissue, write_trident

COORDS = tissue(0)


def vectors(width: int = 12, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(COORDS), width)).astype(dtype)


@pytest.mark.parametrize("width", [1024, 1536, 2560])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tridents_file(tmp_path: Path, width: int, dtype: Any) -> None:
    features = vectors(width, dtype)
    path = write_trident(tmp_path / "features_virchow2" / "TCGA-A4-8098-01Z-00-DX1.0e9c.h5", COORDS, features)
    head, found, corners = read_features(path)
    assert (head.count, head.width, head.side, head.mpp, head.size) == (len(COORDS), width, 512, 0.25, (20000, 20000))
    assert head.micrometres == 128
    assert head.encoder == "Virchow2"
    assert np.array_equal(found, features.astype(np.float16))
    assert np.array_equal(corners, COORDS)
    assert read_head(path) == head


def test_clams_files(tmp_path: Path) -> None:
    """patch_size at a level; features in a .pt beside."""
    attrs = {"patch_level": 1, "downsample": np.array([4.0, 4.0]), "patch_size_level0": None, "patch_size": 128,
             "level0_magnification": None, "level0_width": None, "name": "S1"}  # fmt: skip
    for place in ("h5_files/S1.h5", "patches/S1.h5"):
        write_trident(tmp_path / place, COORDS, vectors(), **attrs)
    (tmp_path / "pt_files").mkdir()
    path = tmp_path / "pt_files" / "S1.pt"
    torch.save(torch.from_numpy(vectors()), path)
    head, found, corners = read_features(path)
    assert (head.side, head.coords) == (512, tmp_path / "h5_files" / "S1.h5")
    assert np.isnan(head.mpp)
    assert np.allclose(found, vectors(), atol=1e-2)
    assert np.array_equal(corners, COORDS)
    (tmp_path / "h5_files" / "S1.h5").unlink()
    assert read_head(path).coords == tmp_path / "patches" / "S1.h5"


def test_a_group_with_one_encoder_and_five_columns(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5"
    five = np.concatenate([COORDS, np.full((len(COORDS), 2), 512), np.zeros((len(COORDS), 1), int)], axis=1)
    with h5py.File(path, "w") as file:
        file["features/gigapath"] = vectors()[None]
        file["coords"] = five
    head, found, _ = read_features(path)
    assert (head.side, head.encoder, found.shape) == (512, "Prov-GigaPath", (len(COORDS), 12))


def bad(folder: Path) -> dict[str, tuple[Path, str]]:
    """Reason -> a file that has it, and words of the message."""
    nan = vectors()
    nan[3, 2] = np.nan
    large = vectors()
    large[0, 0] = 1e6
    torch.save({"features": folder}, folder / "S9.pt")
    write_trident(folder / "S9.h5", COORDS, vectors())
    (folder / "torn.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))

    def one(file: str, coords: Any = COORDS, features: Any = None, /, **attrs: Any) -> Path:
        return write_trident(folder / file, coords, vectors() if features is None else features, **attrs)

    return {
        "wrong_slide": (one("S1.h5", name="S2"), "of slide 'S2'"),
        "not_finite": (one("S3.h5", COORDS, nan), "1 of .* patches"),
        "not_finite ": (one("S4.h5", COORDS, large), "in float16"),
        "no_features": (one("S5.h5", COORDS[:0], vectors()[:0]), "no patch"),
        "no_side": (one("S6.h5", patch_size_level0=None, patch_size=None), "neither patch_size_level0"),
        "overlap": (one("S7.h5", overlap=64), "overlap by 64"),
        "unreadable": (one("S8.h5", COORDS, vectors()[:-1]), r"no \[N, D\]"),
        "unreadable ": (folder / "S9.pt", "Weights only load failed|Unsupported|tensor"),
        "unreadable  ": (folder / "torn.h5", "torn"),
        "unreadable   ": (one("S10.h5", patch_size_level0=None, patch_level=2), "whose downsample is not said"),
    }


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    for reason, (path, words) in bad(tmp_path).items():
        with pytest.raises(FeatureError, match=words) as error:
            read_features(path)
        assert error.value.code == reason.strip()
        assert error.value.code in FEATURE_REASONS
        assert path.name in str(error.value)


def test_a_file_that_leads_elsewhere_is_not_read(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "S1.h5", COORDS, vectors())
    with h5py.File(path, "a") as file:
        del file["features"]
        file["features"] = h5py.ExternalLink("other.h5", "/features")
    with pytest.raises(FeatureError, match="link"):
        read_features(path)
