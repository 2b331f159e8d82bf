"""Hand-crafted features: segmentation, agreement with scikit-image, empty patches, what is kept of a slide."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import regionprops_table

from hcmae.config import HandcraftedSettings
from hcmae.slides.handcrafted import (
    aggregate,
    describe_patches,
    feature_names,
    mark_undefined,
    measure_objects,
    measure_patches,
    segment_nuclei,
    settings_key,
    unmix,
)

SETTINGS = HandcraftedSettings(channels=("hematoxylin",), grey_levels=16, min_area=20, min_distance=3)


def tile(centres: list[tuple[int, int]], side: int = 64, radius: float = 6) -> np.ndarray:
    """A pink patch with round blue nuclei."""
    yy, xx = np.mgrid[:side, :side]
    image = np.full((side, side, 3), (225, 180, 205), float)
    for y, x in centres:
        image[(yy - y) ** 2 + (xx - x) ** 2 < radius**2] = (95, 60, 140)
    return (image + np.random.default_rng(0).normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def test_nuclei_are_found_split_and_numbered() -> None:
    labels = segment_nuclei(unmix(tile([(16, 16), (16, 48), (44, 20), (44, 30)]))["hematoxylin"], min_distance=3)
    assert labels.max() == 4
    assert np.unique(labels).tolist() == [0, 1, 2, 3, 4]
    area = np.bincount(labels.ravel())[1:]
    assert np.abs(area[0] - np.pi * 36) < 30


def test_border_small_and_blank() -> None:
    assert segment_nuclei(unmix(tile([(0, 30)]))["hematoxylin"]).max() == 0
    assert segment_nuclei(unmix(tile([(30, 30)], radius=2))["hematoxylin"]).max() == 0
    for level in (0, 128, 240, 255):
        assert segment_nuclei(unmix(np.full((64, 64, 3), level, np.uint8))["hematoxylin"]).max() == 0


def test_seams_of_a_mosaic_cut_nothing_together() -> None:
    whole = np.concatenate([tile([(30, 62), (30, 20)]), tile([(30, 2), (30, 40)])], axis=1)
    labels = segment_nuclei(unmix(whole)["hematoxylin"], tile=64)
    assert labels.max() == 2
    assert not labels[:, 60:68].any()


def test_area_perimeter_and_intensity_equal_scikit_image() -> None:
    channels = unmix(tile([(16, 16), (16, 48), (44, 20), (44, 46)]))
    labels = segment_nuclei(channels["hematoxylin"])
    table = measure_objects(labels, {"hematoxylin": channels["hematoxylin"]}, grey_levels=16)
    oracle = regionprops_table(
        labels, channels["hematoxylin"], properties=("area", "perimeter", "mean_intensity", "eccentricity", "solidity")
    )
    for ours, theirs in (
        ("Area", "area"),
        ("Perimeter", "perimeter"),
        ("hematoxylin.Intensity_MeanIntensity", "mean_intensity"),
        ("Eccentricity", "eccentricity"),
        ("Solidity", "solidity"),
    ):
        np.testing.assert_allclose(table[ours], oracle[theirs], rtol=1e-5, atol=1e-8, err_msg=ours)


def test_acceleration_changes_no_feature() -> None:
    channels = {"grey": unmix(tile([(16, 16), (40, 44)]))["grey"]}
    labels = segment_nuclei(unmix(tile([(16, 16), (40, 44)]))["hematoxylin"])
    fast, plain = (measure_objects(labels, channels, grey_levels=16, accelerate=a) for a in (True, False))
    assert list(fast.columns) == list(plain.columns)
    np.testing.assert_allclose(fast.to_numpy(), plain.to_numpy(), rtol=1e-3, atol=1e-6)


def test_names_match_values_and_positions_are_left_out() -> None:
    names = feature_names(SETTINGS)
    assert len(set(names)) == len(names)
    assert names[0] == "Nuclei_Count.mean"
    assert not any("Center_" in name or "Location_" in name or "Orientation" in name for name in names)
    patches = np.stack([tile([(20, 20), (40, 40)]), tile([(30, 30)])])
    row = dict(zip(names, measure_patches(patches, SETTINGS), strict=True))
    assert row["Nuclei_Count.mean"] == pytest.approx(1.5)
    nuclei, tiles = describe_patches(patches, SETTINGS)
    assert len(nuclei) == 3
    assert row["Area.mean"] == pytest.approx(nuclei["Area"].mean(), rel=1e-5)
    assert row["Area.iqr"] == pytest.approx(float(np.subtract(*np.percentile(nuclei["Area"], [75, 25]))), rel=1e-4)
    assert len(aggregate(nuclei, tiles)) == len(names)


def test_full_settings_give_about_as_many_features_as_the_publication() -> None:
    assert 2000 < len(feature_names(HandcraftedSettings())) < 3000


def test_no_patch_no_nucleus_wrong_type() -> None:
    empty = measure_patches(np.full((3, 64, 64, 3), 240, np.uint8), SETTINGS)
    assert empty[0] == 0
    assert np.isnan(empty[feature_names(SETTINGS).index("Area.mean")])
    assert np.isnan(measure_patches(np.zeros((0, 64, 64, 3), np.uint8), SETTINGS)).all()
    stored = np.nan_to_num(np.stack([empty, measure_patches(tile([(30, 30)])[None], SETTINGS)]))
    marked = mark_undefined(stored)
    assert np.isnan(marked[0, 1:]).all()
    assert np.isfinite(marked[1]).all()
    with pytest.raises(ValueError, match="uint8"):
        measure_patches(np.zeros((1, 64, 64, 3)), SETTINGS)
    with pytest.raises(ValueError, match="labels have"):
        measure_objects(np.zeros((4, 4), int), {"grey": np.zeros((5, 5))})


def test_one_nucleus_alone_has_the_same_features() -> None:
    channels = unmix(tile([(30, 30)]))
    labels = segment_nuclei(channels["hematoxylin"])
    assert labels.max() == 1
    two = unmix(tile([(16, 16), (44, 44)]))
    one = measure_objects(labels, {"grey": channels["grey"]}, grey_levels=16)
    both = measure_objects(segment_nuclei(two["hematoxylin"]), {"grey": two["grey"]}, grey_levels=16)
    assert list(one.columns) == list(both.columns)
    assert one["Neighbors_NumberOfNeighbors_Expanded"].tolist() == [0]


def test_key_follows_settings_and_seed() -> None:
    assert settings_key(SETTINGS, 0) == settings_key(SETTINGS, 0)
    assert settings_key(SETTINGS, 0) != settings_key(SETTINGS, 1)
    assert settings_key(SETTINGS, 0) != settings_key(SETTINGS.model_copy(update={"patches": 7}), 0)
