"""Tissue, grid, keep rules, views of a region, and masks that go to QuPath and back."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hcmae.config import Geometry, SlideSettings
from hcmae.slides import regions, tissue
from hcmae.slides.tissue import Contour, SegmentationPreset, Tissue

SMALL = SegmentationPreset(threshold=15, blur=5, close=3, min_tissue_area=0.05, min_hole_area=0.01, max_holes=10)


def pink_disc(side: int = 200, radius: int = 70, hole: int = 20) -> NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side] - side // 2
    image = np.full((side, side, 3), 245, np.uint8)
    image[x**2 + y**2 < radius**2] = (210, 120, 170)
    image[x**2 + y**2 < hole**2] = 245
    return image


def test_segmentation_finds_the_disc_and_its_hole() -> None:
    found = tissue.segment(pink_disc(), 8, SMALL)
    assert len(found.contours) == 1
    assert len(found.contours[0].holes) == 1
    truth = np.pi * (70**2 - 20**2)
    assert abs(found.mask.sum() - truth) < 0.05 * truth
    assert found.counts["contours_kept"] == 1


def test_area_filters_count_level0_squares() -> None:
    image = pink_disc(hole=0)
    # A disc of radius 70 at downsample 8 covers 985,000 level-0 pixels, 3.76 squares of 512.
    keep = tissue.segment(image, 8, SegmentationPreset(threshold=15, min_tissue_area=3.5))
    drop = tissue.segment(image, 8, SegmentationPreset(threshold=15, min_tissue_area=4.0))
    assert (len(keep.contours), len(drop.contours)) == (1, 0)
    assert drop.counts["contours_too_small"] == 1
    assert not drop.mask.any()


def test_otsu_and_unknown_preset() -> None:
    found = tissue.segment(pink_disc(), 8, SegmentationPreset(otsu=True, min_tissue_area=0.05, min_hole_area=0.01))
    assert 0.2 < found.share < 0.5
    with pytest.raises(ValueError, match="unknown segmentation preset 'fine': choose one of default, tcga"):
        tissue.segment(pink_disc(), 8, "fine")


def test_pen_and_border_are_not_tissue() -> None:
    image = pink_disc(hole=0)
    image[10:30, 20:120] = (20, 130, 90)  # green ink
    image[170:190, 20:120] = (40, 70, 200)  # blue ink
    image[:, :6] = 5  # black border
    marks = tissue.pen_marks(image)
    assert marks[15:25, 30:110].all()
    assert marks[175:185, 30:110].all()
    assert marks[:, 1:5].all()
    with_pen = tissue.segment(image, 8, SMALL, remove_pen=False)
    without = tissue.segment(image, 8, SMALL)
    assert with_pen.mask[20, 60]
    assert not without.mask[20, 60]
    assert without.counts["pen"] > 1000
    purple = np.full((50, 50, 3), (110, 70, 150), np.uint8)  # haematoxylin
    assert not tissue.pen_marks(purple).any()


@pytest.mark.parametrize("ink", [(200, 30, 40), (190, 20, 30), (230, 90, 100)])
def test_red_ink_on_glass_is_no_tissue_and_leaves_the_tissue_in_its_ring_alone(ink: tuple[int, int, int]) -> None:
    y, x = np.mgrid[:260, :260] - 130
    clean = np.full((260, 260, 3), 245, np.uint8)
    clean[x**2 + y**2 < 60**2] = (215, 130, 175)
    marked = clean.copy()
    marked[(x**2 + y**2 > 95**2) & (x**2 + y**2 < 103**2)] = ink
    marked[5:30, 20:80] = ink
    clean, marked = (cv2.GaussianBlur(image, (0, 0), 1.2) for image in (clean, marked))
    without = tissue.segment(marked, 8, SMALL)
    np.testing.assert_array_equal(without.mask, tissue.segment(clean, 8, SMALL).mask)
    assert without.counts["pen"] > 1000
    assert tissue.segment(marked, 8, SMALL, remove_pen=False).mask[15, 50]


def test_red_in_tissue_and_stained_tissue_are_no_ink() -> None:
    blood = pink_disc(hole=0)
    blood[90:110, 80:120] = (190, 50, 60)
    assert not tissue.red_ink(blood).any()
    for stain in ((210, 120, 170), (200, 80, 140), (225, 130, 150), (110, 70, 150)):  # eosin to haematoxylin
        image = np.full((50, 50, 3), 245, np.uint8)
        image[10:40, 10:40] = stain
        assert not tissue.red_ink(image).any()


def test_fractions_are_area_shares() -> None:
    mask = np.zeros((16, 16), bool)
    mask[:8, :4] = True
    found = Tissue(mask, 4, ())
    corners = np.array([[0, 0], [32, 0], [0, 32], [8, 16]])
    np.testing.assert_allclose(found.fractions(corners, 32), [0.5, 0, 0, 0.125])


def test_grid_and_keep_rules() -> None:
    geometry = Geometry(region=64, patch=16, cell=4, thumbnail=16)
    found = tissue.segment(pink_disc(), 2, SMALL)  # 400 x 400 level-0 pixels
    plan = regions.plan_regions((400, 400), found, geometry, SlideSettings(min_tissue=0.5), 0.5)
    assert len(plan.corners) == 36  # partial squares at the edges are not regions
    assert plan.corners[1].tolist() == [64, 0]
    assert (plan.fractions[plan.kept] >= 0.5).all()
    assert (plan.fractions[~plan.kept] < 0.5).all()
    easy = regions.plan_regions((400, 400), found, geometry, SlideSettings(keep_rule="four_point"), 0.5)
    assert easy.kept.sum() > plan.kept.sum()
    padded = regions.plan_regions((400, 400), found, geometry, SlideSettings(pad_edges=True), 0.5)
    assert len(padded.corners) == 49
    fixed = regions.plan_regions((400, 400), found, geometry, SlideSettings(target_mpp=1.0), 0.5)
    assert fixed.side == 128


def test_four_point_rule_by_hand() -> None:
    square = np.array([[100, 100], [300, 100], [300, 300], [100, 300]])
    hole = np.array([[180, 180], [220, 180], [220, 220], [180, 220]])
    contours = (Contour(square, (hole,)),)
    side = 80  # points at centre +- 20
    corners = np.array(
        [
            [100, 100],  # inside
            [30, 30],  # centre (70, 70), nearest point (90, 90): outside
            [45, 45],  # point (105, 105): inside
            [160, 160],  # centre (200, 200) in the hole
            [100, 160],  # centre (140, 200) beside the hole
        ]
    )
    assert regions.four_point(corners, side, contours).tolist() == [True, False, True, False, True]


def test_clam_grid_starts_at_the_contour_and_runs_down_columns() -> None:
    square = np.array([[100, 50], [299, 50], [299, 249], [100, 249]])
    grid = regions.clam_grid((1000, 1000), (Contour(square),), 100)
    assert grid.tolist() == [[100, 50], [100, 150], [200, 50], [200, 150]]


def test_patches_and_cells_are_row_major() -> None:
    region = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    patches = regions.split_patches(region, 4)
    assert patches.shape == (4, 4, 4, 3)
    assert patches.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(patches[1], region[:4, 4:])
    np.testing.assert_array_equal(patches[2], region[4:, :4])
    np.testing.assert_array_equal(regions.split_patches(patches[3], 2)[1], region[4:6, 6:8])
    with pytest.raises(ValueError, match="patch 3 does not divide"):
        regions.split_patches(region, 3)


def test_thumbnail_is_the_block_mean() -> None:
    region = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    exact = region.reshape(16, 16, 16, 16, 3).mean(axis=(1, 3))
    assert np.abs(regions.thumbnail(region, 16) - exact).max() <= 0.5 + 1e-6
    with pytest.raises(ValueError, match="does not divide"):
        regions.thumbnail(region, 48)


def test_geojson_round_trip_and_edits(tmp_path: Path) -> None:
    found = tissue.segment(pink_disc(), 8, SMALL)
    path = tmp_path / "a.tissue.geojson"
    tissue.write_geojson(found, path, name="a")
    assert not tissue.is_edited(path)
    document = json.loads(path.read_text())
    first = document["features"][0]
    assert document["type"] == "FeatureCollection"
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"]["name"] == "Tissue"
    assert all(ring[0] == ring[-1] for ring in first["geometry"]["coordinates"])
    assert len(first["geometry"]["coordinates"]) == 2
    again = tissue.read_geojson(path, found.mask.shape, 8)
    np.testing.assert_array_equal(again.mask, found.mask)
    # A person draws an artefact and QuPath saves the file without our key.
    ring = [[0, 0], [800, 0], [800, 1600], [0, 1600], [0, 0]]
    document["features"].append(
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": "Ignore*"}},
        }
    )
    path.write_text(json.dumps(document))
    assert tissue.is_edited(path)
    edited = tissue.read_geojson(path, found.mask.shape, 8)
    assert edited.source == "edited"
    assert not edited.mask[:, :100].any()
    np.testing.assert_array_equal(edited.mask[:, 102:], found.mask[:, 102:])
    path.write_text("{not json")
    with pytest.raises(ValueError, match=r"a\.tissue\.geojson: not valid GeoJSON"):
        tissue.is_edited(path)


def test_geojson_multipolygon_and_wrong_geometry(tmp_path: Path) -> None:
    path = tmp_path / "m.geojson"
    ring = [[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]
    shape = {"type": "MultiPolygon", "coordinates": [[ring], [[[x + 80, y] for x, y in ring]]]}
    path.write_text(json.dumps([{"type": "Feature", "geometry": shape, "properties": {}}]))
    found = tissue.read_geojson(path, (32, 32), 4)
    assert len(found.contours) == 2
    path.write_text(json.dumps([{"type": "Feature", "geometry": {"type": "Circle"}, "properties": {}}]))
    with pytest.raises(ValueError, match="feature 0 has geometry 'Circle'"):
        tissue.read_geojson(path, (32, 32), 4)
