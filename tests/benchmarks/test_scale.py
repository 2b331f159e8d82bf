"""Costs beyond this machine are products of what was measured, what the manifests say and what is assumed."""

from __future__ import annotations

import pytest

from benchmarks import scale


def test_costs_follow_from_rates_and_prices() -> None:
    rates = scale.Rates(
        cut=10.0, train_patches=2560.0, embed_patches=2560.0, train_regions=20.0, omics_minutes=60.0, card="a card"
    )
    prices = scale.options(["--gpu-hour", "2", "--core-hour", "1", "--tb-month", "0", "--slide-gb", "2"])
    found = scale.cost(1000, 36_000, 1, rates, prices)
    assert found["slides on disk, TB"] == 2.0
    assert found["cutting, core hours"] == 2.0
    # 256 patches a region: an hour of embedding, ten of MAE-Patch, ten for both MAE-Regions.
    assert found["embedding, GPU hours"] == 1.0
    assert found["pre-training, GPU hours"] == 20.0
    assert found["money, streamed"] == 21 * 2 + 2
    twice = scale.cost(2000, 72_000, 1, rates, prices)
    assert twice["pre-training, GPU hours"] == 40.0


def test_rates_and_studies_come_from_files_that_are_there() -> None:
    rates, studies = scale.measured(), scale.studies()
    assert min(rates.cut, rates.train_patches, rates.embed_patches, rates.train_regions, rates.omics_minutes) > 0
    assert studies["six cancers"][1] == pytest.approx(365_764)
    assert studies["33 cancers of TCGA"][0] == 30_072
