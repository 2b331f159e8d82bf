"""Ranking of regions by attention: finds the regions that decide, and never sees an outcome it must not see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hcmae.config import Geometry, Profile, SlideSettings
from hcmae.interpretation.ranking import keep_regions, rank_regions_by_attention, write_region_scores
from hcmae.slides.process import process_slide
from hcmae.slides.store import SlideStore, verify_store
from hcmae.survival.bags import PackedBags
from hcmae.survival.data import SurvivalData
from tests.support.twin_slides import paint, write_twin

PATCHES = 16


@pytest.fixture(scope="module")
def profile(tiny_profile: Profile) -> Profile:
    settings = tiny_profile.comparisons
    clam = settings.clam_sb.model_copy(update={"epochs": 40, "learning_rate": 3e-3, "group": 16})
    return tiny_profile.model_copy(
        update={
            "comparisons": settings.model_copy(update={"clam_sb": clam, "clam_dim": 32, "bins": 2}),
            "survival": tiny_profile.survival.model_copy(update={"ensemble": 1}),
        }
    )


@pytest.fixture(scope="module")
def data() -> SurvivalData:
    """Region 2 of six carries the risk: its patches are marked, and their strength is the hazard.

    The others vary as much in the same feature, by chance, so that a plain mean over all patches does not do.
    """
    rng = np.random.default_rng(3)
    n = 60
    hazard = rng.standard_normal(n)
    bags, regions = [], []
    for patient in range(n):
        vectors = rng.standard_normal((6, PATCHES, 8)) * 0.3
        vectors[:, :, 1] += 2.0 * rng.standard_normal((6, 1))
        vectors[2, :, 0] += 3.0
        vectors[2, :, 1] = 2.0 * hazard[patient] + 0.3 * rng.standard_normal(PATCHES)
        bags.append(vectors.reshape(-1, 8).astype(np.float32))
        regions.append(vectors.mean(axis=1).astype(np.float32))
    time = rng.exponential(1000 * np.exp(-1.5 * hazard)) + 1
    event = (rng.random(n) < 0.8).astype(np.int64)
    return SurvivalData(
        [f"P{i:02d}" for i in range(n)],
        time,
        event,
        {"patch": PackedBags.from_list(bags), "region": PackedBags.from_list(regions)},
    )


def test_the_deciding_region_comes_first_for_patients_never_seen(data: SurvivalData, profile: Profile) -> None:
    ranking = rank_regions_by_attention(data, np.arange(40), profile, seed=1)
    assert len(ranking) == 60 * 6
    assert ranking.groupby("patient")["score"].mean().to_numpy() == pytest.approx(1.0)
    unseen = ranking[ranking["patient"] >= "P40"]
    best = unseen.loc[unseen["rank"] == 0, "region"]
    assert (best == 2).mean() > 0.8  # one in six by chance
    kept = keep_regions(data, ranking, 2, per_region=PATCHES)
    assert kept.sizes("region").tolist() == [2] * 60
    assert kept.sizes("patch").tolist() == [2 * PATCHES] * 60
    first = np.sort(ranking.loc[(ranking["patient"] == "P07") & (ranking["rank"] < 2), "region"])
    row = np.array([7])
    np.testing.assert_array_equal(kept.bags["region"].packed(row), data.bags["region"].packed(row)[first])
    whole = data.bags["patch"].packed(row).reshape(6, PATCHES, 8)
    np.testing.assert_array_equal(kept.bags["patch"].packed(row), whole[first].reshape(-1, 8))
    # MCAT and CLAM read the same patches, or those of another network cut alike.
    assert kept.bags["patch_features"] is kept.bags["patch"]
    assert kept.patch_source == data.patch_source
    wide = PackedBags(np.repeat(data.bags["patch"].values.numpy(), 2, axis=1), data.sizes("patch"))
    other = keep_regions(
        replace(data, bags={**data.bags, "patch_features": wide}, weights={"patch": "abc"}),
        ranking,
        2,
        per_region=PATCHES,
    )
    np.testing.assert_array_equal(
        other.bags["patch_features"].packed(row), np.repeat(whole[first].reshape(-1, 8).numpy(), 2, axis=1)
    )
    # Folds of cut bags are not those of whole bags of the same network.
    worst = ranking.assign(rank=5 - ranking["rank"])
    last = keep_regions(replace(data, weights={"patch": "abc"}), worst, 2, per_region=PATCHES)
    assert last.sizes("patch").tolist() == other.sizes("patch").tolist()
    assert last.content({"patch"}) != other.content({"patch"})


def test_outcomes_outside_the_training_part_change_nothing(data: SurvivalData, profile: Profile) -> None:
    train = np.arange(40)
    time, event = data.time.copy(), data.event.copy()
    time[40:] = time[40:][::-1] * 7
    event[40:] = 1 - event[40:]
    first = rank_regions_by_attention(data, train, profile, seed=1)
    other = rank_regions_by_attention(replace(data, time=time, event=event), train, profile, seed=1)
    np.testing.assert_array_equal(first["score"], other["score"])
    # A training outcome does matter, so the comparison above is not empty.
    time = data.time.copy()
    time[:40] = time[:40][::-1]
    changed = rank_regions_by_attention(replace(data, time=time), train, profile, seed=1)
    assert not np.array_equal(first["score"], changed["score"])


def test_wrong_input_is_named(data: SurvivalData, profile: Profile) -> None:
    with pytest.raises(ValueError, match="different patients out of 60"):
        rank_regions_by_attention(data, [1, 1], profile)
    with pytest.raises(ValueError, match="no patch vectors"):
        rank_regions_by_attention(replace(data, bags={"region": data.bags["region"]}), [0, 1], profile)
    odd = PackedBags(data.bags["patch"].packed(np.arange(60)), [6 * PATCHES - 1, 6 * PATCHES + 1, *[6 * PATCHES] * 58])
    with pytest.raises(ValueError, match="P00: the bag does not split into regions of 16"):
        rank_regions_by_attention(replace(data, bags={"patch": odd}), [0, 1], profile)
    ranking = rank_regions_by_attention(data, np.arange(40), profile)
    with pytest.raises(ValueError, match="at least 1"):
        keep_regions(data, ranking, 0, per_region=PATCHES)


def test_scores_lie_beside_the_vectors(data: SurvivalData, profile: Profile, tmp_path: Path) -> None:
    slide = write_twin(tmp_path / "a.svs", paint(600, 800, seed=5))
    settings = SlideSettings(preset="synthetic", min_tissue=0.3)
    geometry = Geometry(region=256, patch=64, cell=16, thumbnail=16)
    assert process_slide(slide, tmp_path / "a.h5", geometry, settings).regions == 6
    ranking = rank_regions_by_attention(data, np.arange(40), profile)
    write_region_scores(ranking, {"P03": tmp_path / "a.h5"}, fold="r0f1")
    stored = SlideStore(tmp_path / "a.h5").vectors("diagnostic_value_r0f1")
    np.testing.assert_allclose(stored, ranking.loc[ranking["patient"] == "P03", "score"], rtol=1e-6)
    assert verify_store(tmp_path / "a.h5") == []
