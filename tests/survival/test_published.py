"""What is declared of the compared methods: complete, true of the registry, and what it leaves out reaches them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hcmae.config import Fidelity, MethodSettings, Profile, Protocol, load_profile
from hcmae.survival import cross_validate as survival
from hcmae.survival import differences, published
from hcmae.survival.fit import Feeder, sizes_for
from hcmae.survival.methods import METHODS
from hcmae.survival.table3 import PAPER_STAGE, paper_stage
from tests.survival.test_predictions_key import make_data, own_sections

SMALL = {
    "survival.network": {"dim": 16, "depth": 1, "heads": 2},
    "survival.epochs": 1,
    "survival.ensemble": 1,
    "survival.dropout": 0.0,
}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("smoke", SMALL)


# --- publication | code | here ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", own_sections())
def test_the_paper_profile_trains_as_published_or_says_why_not(name: str) -> None:
    entry = published.PUBLISHED[name]
    here = published.effective(name, load_profile("paper"))
    assert set(entry.loop) <= set(MethodSettings.model_fields)
    other = {setting for setting, value in entry.loop.items() if here[setting] != value}
    assert other == set(entry.differs)
    assert all(entry.differs.values())


@pytest.mark.parametrize("name", own_sections())
def test_the_dropout_that_is_printed_is_that_of_the_network(name: str, profile: Profile) -> None:
    said = published.effective(name, profile)["dropout"]
    method, data, rows = METHODS[name], make_data(), np.arange(24)
    short = {f"comparisons.{name}": {"epochs": 1}, "comparisons.correlation_epochs": 0, "survival.omics_dropout": 0.0}
    settings = load_profile("smoke", {**SMALL, **short})
    inputs = survival.fold_inputs(method, data, rows[:18], rows[18:], settings, Protocol(epoch="last"), 0)
    kinds = (torch.nn.Dropout, torch.nn.AlphaDropout)
    found = {m.p for m in survival.fit_fold(method, inputs).models[0].modules() if isinstance(m, kinds)} - {0.0}
    assert found == ({said} if said else set())


@pytest.mark.parametrize("name", own_sections())
def test_a_method_table_has_every_aspect_and_this_runs_numbers(name: str, profile: Profile) -> None:
    table = published.method_table(name, profile).set_index("aspect")
    assert list(table.columns) == ["publication", "its code", "here"]
    assert (table != "").all(axis=None)
    own = published.effective(name, profile)
    assert table.loc["learning rate", "here"].startswith(f"{own['learning_rate']:g}")
    assert table.loc["schedule", "here"].startswith(own["schedule"])
    assert {"optimiser", "sampling", "clipping", "which epoch", "networks per fold"} <= set(table.index)


# --- switches that are not about the image ----------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "fidelity.omics_projection": "shared",
    "fidelity.pooler": "shared",
    "fidelity.risk_head": "linear",
    "survival.omics_dropout": 0.25,
    "survival.scale_vectors": False,
    "survival.ensemble": 2,
}


@pytest.mark.parametrize("switch", list(published.NOT_REACHED))
def test_a_switch_reaches_every_method_that_has_the_part_or_is_declared(switch: str, profile: Profile) -> None:
    other = load_profile("smoke", {**SMALL, switch: OTHER[switch]})
    concerned = {name for name, method in METHODS.items() if published.has_part(switch, method)}
    missed = {name for name in concerned if not published.reaches(switch, METHODS[name], profile, other)}
    assert missed == set(published.NOT_REACHED[switch])
    assert all(published.NOT_REACHED[switch].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hipt_integration", "hcmae_regions"])
@pytest.mark.parametrize("switch", list(published.NOT_REACHED))
def test_hipt_integration_has_hc_maes_handling_of_omics(name: str, switch: str, profile: Profile) -> None:
    data, rows = make_data(), np.arange(24)
    risks = []
    for settings in (profile, load_profile("smoke", {**SMALL, switch: OTHER[switch]})):
        inputs = survival.fold_inputs(METHODS[name], data, rows[:18], rows[18:], settings, Protocol(epoch="last"), 0)
        risks.append(survival.fit_fold(METHODS[name], inputs).risk)
    assert not np.allclose(*risks, atol=1e-6)


@pytest.mark.parametrize("name", ["hcmae", "hipt_integration", "hcmae_regions", "mcat"])
def test_the_three_omics_are_told_apart_where_each_has_a_map(name: str, profile: Profile) -> None:
    """With one shared map no network of this kind can: its tokens are a set."""
    data, rows = make_data(), np.arange(24)
    inputs = survival.fold_inputs(METHODS[name], data, rows[:18], rows[18:], profile, Protocol(epoch="last"), 0)
    assert inputs.omics is not None
    model = survival.fit_fold(METHODS[name], inputs).models[0]
    moved = replace(inputs, omics=inputs.omics[:, [1, 2, 0]])
    fed = replace(METHODS["hcmae"], inputs=_fed(name))
    with torch.no_grad():
        plain, permuted = (model(**Feeder(fed, item)(rows)) for item in (inputs, moved))
    assert float((plain - permuted).abs().max()) > 1e-3


def _fed(name: str) -> dict[str, str]:
    if name == "hcmae":
        return dict(METHODS[name].inputs)
    bag = {"hipt_integration": "region_hipt", "hcmae_regions": "region", "mcat": "patch_features"}[name]
    return {"vectors" if name == "mcat" else "regions": bag, "omics": "omics"}


# --- which HC-MAE -----------------------------------------------------------------------------------------------------


def test_the_papers_reading_has_the_papers_survival_stage_whatever_the_profile(profile: Profile) -> None:
    own = paper_stage(profile)
    paper = load_profile("paper")
    for dotted, value in PAPER_STAGE.items():
        section, name = dotted.split(".")
        assert getattr(getattr(own, section), name) == value == getattr(getattr(paper, section), name), dotted
    assert own.survival.epochs == profile.survival.epochs
    assert own.fidelity.region_residual == profile.fidelity.region_residual
    data, rows = make_data(), np.arange(24)
    many = load_profile("smoke", {**SMALL, "survival.ensemble": 3})
    inputs = survival.fold_inputs(METHODS["hcmae_paper"], data, rows[:18], rows[18:], many, Protocol(epoch="last"), 0)
    output = survival.fit_fold(METHODS["hcmae_paper"], inputs)
    assert len(output.models) == 1
    # The same network as HC-MAE under the paper's settings.
    build = METHODS["hcmae"].build
    assert build is not None
    whole = build(sizes_for(METHODS["hcmae"], inputs), own)
    assert [tuple(p.shape) for p in whole.parameters()] == [tuple(p.shape) for p in output.models[0].parameters()]


def test_a_caption_names_the_variant() -> None:
    smoke, paper = load_profile("smoke"), load_profile("paper")
    note = differences.variant_note(smoke)
    for part in ("region_residual true", "region_warm_start true", "omics_projection separate", "ensemble 3"):
        assert part in note
    assert differences.variant_note(paper) == ""
    assert differences.variant(paper) == ({}, {})
    vectors, stage = differences.variant(load_profile("smoke", {"fidelity": Fidelity.preset("release").model_dump()}))
    assert {"region_warm_start", "extract_depth", "extract_augment", "augment"} <= set(vectors)
    assert {"pooler", "slide_positions", "cox_divisor", "drop_last_group"} <= set(stage)


def test_neighbours_of_table_three_say_in_what_they_differ(profile: Profile) -> None:
    pairs = [("mae_patreg", "mae_pat"), ("hcmae", "hc_patregsli"), ("hcmae", "hcmae_regions"), ("hcmae", "hcmae_paper")]
    table = differences.neighbour_table(pairs, load_profile("smoke"), {"mae_pat": 10, "mae_patreg": 10, "hcmae": 2000})
    assert table["differ in"].tolist() == [2, 3, 2, 3]
    assert table["thumbnails"].tolist() == ["none", "keys | queries", "keys | none", "keys"]
    assert table["vectors"].tolist() == ["region | patch", "region", "region", "region"]
    assert table["parameters"].tolist() == ["10", "2,000 | n/a", "2,000 | n/a", "2,000 | n/a"]
    assert table["networks"].tolist() == ["3", "3", "3", "3 | 1"]
    assert table.loc[0, "epochs of pre-training"] == "MAE-Patch 5, MAE-Reg 12 + MAE-PatReg 8 | MAE-Patch 5"
