"""Settings: the paper's numbers, profiles, and errors that name file and key."""

from __future__ import annotations

import pytest

from hcmae.config import (
    CANCERS,
    MODALITIES,
    PROFILES,
    ConfigError,
    Fidelity,
    Geometry,
    Network,
    Protocol,
    load_profile,
)
from hcmae.manifest import load_manifest


def test_paper_profile_holds_the_papers_numbers() -> None:
    paper = load_profile("paper")
    table = {
        "region": (paper.geometry.region, 4096),
        "patch": (paper.geometry.patch, 256),
        "cell": (paper.geometry.cell, 16),
        "thumbnail": (paper.geometry.thumbnail, 256),
        "patches in a region": (paper.geometry.patches_per_region, 256),
        "cells in a patch": (paper.geometry.cells_per_patch, 256),
        "downsampling": (paper.geometry.downsample, 16),
        "width": (paper.network.dim, 384),
        "blocks": (paper.network.depth, 12),
        "heads": (paper.network.heads, 12),
        "masking, patch": (paper.mae_patch.mask_ratio, 0.75),
        "masking, region": (paper.mae_region.mask_ratio, 0.75),
        "optimiser": (paper.mae_patch.optimisation.optimizer, "adam"),
        "rate": (paper.mae_patch.optimisation.learning_rate, 1e-3),
        "decay": (paper.mae_patch.optimisation.weight_decay, 1e-2),
        "batch, patch": (paper.mae_patch.optimisation.batch_size, 500),
        "epochs, patch": (paper.mae_patch.optimisation.epochs, 10),
        "rate, region": (paper.mae_region.optimisation.learning_rate, 1e-3),
        "decay, region": (paper.mae_region.optimisation.weight_decay, 1e-2),
        "batch, region": (paper.mae_region.optimisation.batch_size, 10),
        "accumulation, region": (paper.mae_region.optimisation.accumulation, 50),
        "epochs, region": (paper.mae_region.optimisation.epochs, 10),
        "features": (paper.omics.top_k, 300),
        "ranked by the forest alone": (paper.omics.rank, "importance"),
        "differential test": (paper.omics.differential, "deseq2"),
        "optimiser, region": (paper.mae_region.optimisation.optimizer, "adam"),
        "decay outside the gradient": (paper.fidelity.adam_decay, "decoupled"),
        "accumulation, patch": (paper.mae_patch.optimisation.accumulation, 1),
        "regions enter whole": (paper.mae_region.reduce, 1),
        "days of follow-up": ({load_manifest(name).inclusion.min_days for name in CANCERS}, {30}),
        "omics": (len(MODALITIES), 3),
        "survival width": (paper.survival.network.dim, 384),
        "survival blocks": (paper.survival.network.depth, 12),
        "survival heads": (paper.survival.network.heads, 12),
        "survival rate": (paper.survival.learning_rate, 6e-4),
        "survival epochs": (paper.survival.epochs, 80),
        "survival group": (paper.survival.group, 60),
        "folds": (paper.survival.folds, 5),
        # What the paper does not name it does not have.
        "networks averaged": (paper.survival.ensemble, 1),
        "dropout": (paper.survival.dropout, 0.0),
        "omics dropped": (paper.survival.omics_dropout, 0.0),
        "regions dropped": (paper.survival.region_dropout, 0.0),
        "vectors standardised": (paper.survival.scale_vectors, False),
        "bags cut": (paper.survival.bag_limit, None),
        "readings": (paper.fidelity, Fidelity.preset("paper")),
    }
    assert {k: a for k, (a, _) in table.items()} == {k: b for k, (_, b) in table.items()}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_load(name: str) -> None:
    assert load_profile(name).name == name


def test_sizes_that_do_not_divide_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"geometry\.patch \(256\).*geometry\.cell \(48\)"):
        Geometry(cell=48)
    with pytest.raises(ValueError, match="heads"):
        Network(dim=96, heads=5)


def test_unknown_setting_is_an_error_that_names_file_and_key() -> None:
    with pytest.raises(ConfigError, match=r"smoke\.yaml.*\n.*survival\.epoch: unknown key"):
        load_profile("smoke", {"survival.epoch": 3})


def test_unknown_profile_protocol_and_fidelity_are_errors() -> None:
    with pytest.raises(ConfigError, match="unknown profile"):
        load_profile("smokey")
    with pytest.raises(ConfigError, match="unknown protocol"):
        Protocol.preset("fair")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown fidelity"):
        Fidelity.preset("code")  # type: ignore[arg-type]
