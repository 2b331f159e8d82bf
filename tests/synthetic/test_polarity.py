"""The cell factor is where nuclei lie: whoever sees places reads it, colour and single nuclei do not."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
import simplejpeg
from numpy.typing import NDArray

from hcmae.interpretation.controls import colour_statistics
from hcmae.interpretation.probe import linear_probe
from hcmae.slides.regions import split_patches
from hcmae.synthetic import histology

PATCH, SIDE = 64, 4
GRAIN, FIBRES = histology.textures()
LEVELS = (-2.2, 0.0, 2.2)
NUCLEUS = 50  # haematoxylin above this is a nucleus


def stains(cell: float, seed: int, side: int = SIDE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Haematoxylin and eosin of a square of nests."""
    h = np.zeros((side * PATCH, side * PATCH), np.uint8)
    e = np.zeros_like(h)
    kinds = np.full((side, side), histology.NEST, np.int8)
    ground = histology.draw_ground(np.random.default_rng(seed))
    histology.paint_region(h, e, 0, 0, 0, PATCH, kinds, cell, ground, GRAIN, FIBRES, np.uint64(seed))
    return h, e


@pytest.fixture(scope="module")
def nests() -> dict[float, NDArray[np.uint8]]:
    """Haematoxylin [side, side] of many nests for the lowest, the middle and the highest value of the factor."""
    return {cell: np.stack([stains(cell, seed, 10)[0] for seed in (1, 2, 3)]) for cell in LEVELS}


def _profile(h: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of nucleus at each distance from the centre of a patch, in four rings of about equal width."""
    across = np.arange(h.shape[-1]) % PATCH - (PATCH - 1) / 2
    down = np.arange(h.shape[-2]) % PATCH - (PATCH - 1) / 2
    ring = np.minimum(np.hypot(down[:, None], across[None, :]) // 8, 3).astype(int)
    return np.array([(h[..., ring == number] > NUCLEUS).mean() for number in range(4)])


def test_the_cell_factor_changes_no_shade_of_a_nest(nests: dict[float, NDArray[np.uint8]]) -> None:
    """Before JPEG: covered area, mean and deviation of the stain, every decile of the shades of nuclei."""
    found = []
    for h in nests.values():
        deciles = np.quantile(h[h > NUCLEUS], np.arange(0.1, 1, 0.1))
        found.append([(h > NUCLEUS).mean(), h.mean() / 100, h.std() / 100, *(deciles / 100)])
    assert np.ptp(found, axis=0).max() < 0.01, np.round(found, 3)


def test_nuclei_are_as_many_and_as_large_whatever_the_factor(nests: dict[float, NDArray[np.uint8]]) -> None:
    counts, areas = [], []
    for h in nests.values():
        parts = [cv2.connectedComponentsWithStats((image > NUCLEUS).astype(np.uint8))[2][1:] for image in h]
        sizes = np.concatenate([part[:, cv2.CC_STAT_AREA] for part in parts])
        counts.append(len(sizes))
        areas.append(np.quantile(sizes, [0.1, 0.5, 0.9, 0.99]))
    assert counts[0] > 3000
    assert np.ptp(counts) < 0.02 * counts[0], counts
    assert np.ptp(areas, axis=0).max() <= 2, areas


def test_the_cell_factor_moves_nuclei_from_the_rim_to_the_middle(nests: dict[float, NDArray[np.uint8]]) -> None:
    low, middle, high = (_profile(h) for h in nests.values())
    assert low[:2].mean() < 0.4 * middle[:2].mean()
    assert middle[:2].mean() < 0.9 * high[:2].mean()
    assert low[3] > middle[3] > high[3]


@pytest.mark.slow
def test_colour_is_at_chance_where_places_tell_the_cell_factor() -> None:
    """After JPEG with chroma at half resolution, each patient with a stain of their own."""
    rng = np.random.default_rng(0)
    cell = pd.DataFrame({"cell": np.clip(rng.normal(size=80), -2.2, 2.2)})
    colour, quarters, sixteenths = [], [], []
    for number, value in enumerate(cell["cell"]):
        h, e = stains(value, number + 1)
        image = np.empty((*h.shape, 3), np.uint8)
        histology.to_colour(h, e, histology.stain_table(np.random.default_rng([7, number])), image)
        code = simplejpeg.encode_jpeg(image, quality=85, colorspace="RGB", colorsubsampling="420")
        patches = split_patches(np.asarray(simplejpeg.decode_jpeg(code)), PATCH)
        colour.append(colour_statistics(patches).mean(axis=0))
        mean = patches.astype(np.float64).mean(axis=0)
        # Mean colours of the quarters of a patch, and of its sixteenths, as in a thumbnail of the small profile.
        quarters.append(mean.reshape(2, PATCH // 2, 2, PATCH // 2, 3).mean(axis=(1, 3)).ravel())
        sixteenths.append(mean.reshape(4, PATCH // 4, 4, PATCH // 4, 3).mean(axis=(1, 3)).ravel())
    found = {
        name: linear_probe(pd.DataFrame(features), cell, names=("cell",))["cell"].mean()
        for name, features in (("colour", colour), ("quarters", quarters), ("sixteenths", sixteenths))
    }
    assert found["colour"] < 0.1, found
    assert found["quarters"] < 0.1, found
    assert found["sixteenths"] > 0.6, found
