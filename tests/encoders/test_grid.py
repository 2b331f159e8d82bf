"""Patches of others in regions: each once, at its place, whatever the origins of the grids; the rest is refused."""

from __future__ import annotations

import numpy as np
import pytest

from hcmae.encoders.grid import GridError, regions_of
from tests.support.feature_cohort import tissue

SIDE, N = 512, 4


def places(coords: np.ndarray) -> np.ndarray:
    """Where ``regions_of`` says each patch lies: its corner, from its region's corner and its place there."""
    found = regions_of(coords, SIDE, N)
    out = np.full((len(coords), 2), -1)
    for corner, rows in zip(found.corners, found.rows, strict=True):
        for place, row in enumerate(rows):
            if row >= 0:
                out[row] = corner + np.array([place % N, place // N]) * SIDE
    return out


def test_every_patch_is_at_its_place_once() -> None:
    coords = tissue(0, SIDE, 9)[np.random.default_rng(1).permutation(len(tissue(0, SIDE, 9)))]
    assert np.array_equal(places(coords), coords)
    found = regions_of(coords, SIDE, N)
    assert len(found.corners) == 9
    assert sorted(found.rows[found.mask]) == list(range(len(coords)))
    assert found.mask.shape == (9, N * N)
    assert found.mask.sum() == len(coords) < found.mask.size, "incomplete regions have places without a patch"


def test_pieces_of_tissue_have_grids_of_their_own() -> None:
    two = np.concatenate([tissue(0, SIDE, 5, origin=(100, 37)), tissue(1, SIDE, 5, origin=(8011, 9000))])
    found = regions_of(two, SIDE, N)
    assert found.grids == 2
    assert np.array_equal(places(two), two)


def test_a_pixel_beside_the_grid_is_on_it() -> None:
    coords = tissue(0, SIDE, 6, share=1.0, origin=(512, 512))
    off = coords + np.random.default_rng(0).integers(-1, 2, coords.shape)
    off[:20] = coords[:20]
    found = regions_of(off, SIDE, N)
    assert found.grids == 1
    assert np.abs(places(off) - off).max() <= 2


def test_coordinates_on_no_grid_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(GridError, match="60 patches lie on no grid of 512 pixels") as error:
        regions_of(np.arange(60)[:, None] * 3000 + rng.integers(0, 512, (60, 2)), SIDE, N)
    assert error.value.code == "off_grid"
    with pytest.raises(GridError, match="no places on a slide"):
        regions_of(np.array([[-512, 0], [0, 0]]), SIDE, N)


def test_patches_on_each_other_are_refused() -> None:
    coords = tissue(0, SIDE, 6, share=1.0)
    with pytest.raises(GridError, match="patches of 512 pixels lie on another one") as error:
        regions_of(np.concatenate([coords, coords + 256]), SIDE, N)
    assert error.value.code == "overlap"
    with pytest.raises(GridError, match="lie"):
        regions_of(np.concatenate([coords, coords[:1]]), SIDE, N)
    few = np.concatenate([tissue(0, SIDE, 12, share=1.0), [[250, 250]]])
    assert regions_of(few, SIDE, N).overlapping == 5, "a few where grids meet are told and kept"
