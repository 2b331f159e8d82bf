"""Inner folds: whom a model leaves out teaches it nothing, and what is said about these patients is held out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from hcmae.config import Profile, Protocol, load_profile
from hcmae.evaluation import metrics
from hcmae.survival import cross_validate as survival
from hcmae.survival import linear
from hcmae.survival.bags import PackedBags
from hcmae.survival.data import SurvivalData
from hcmae.survival.fold import FoldInputs, FoldOutput
from hcmae.survival.methods import METHODS, Method

PATIENTS, TRAIN, DIM, GENES = 45, 40, 12, 12
HONEST = Protocol()
COMPARED = ("gpdbn", "camr", "deepcorrsurv", "deepcorrsurv_hc", "mcat", "hipt", "hipt_integration", "clam_sb")


@pytest.fixture(scope="module")
def profile() -> Profile:
    """Two epochs: too few for an inner fold to choose one, so that a risk rests on what was learnt and nothing else."""
    return load_profile(
        "smoke",
        {
            "survival.network": {"dim": 16, "depth": 1, "heads": 2},
            "survival.epochs": 2,
            "survival.ensemble": 1,
            "survival.group": None,
            "survival.inner_fraction": 0.5,
            "comparisons.hipt_dim": 12,
            "comparisons.mcat_dim": 16,
            "comparisons.clam_dim": 16,
            "comparisons.correlation_epochs": 1,
            "comparisons.gpdbn_features": 3,
            "comparisons.camr_features": 3,
            "omics": {"top_k": 3, "candidates": 3, "trees": 3, "differential": "cox_score"},
            **{f"comparisons.{name}.epochs": 2 for name in COMPARED},
        },
    )


def make_data(seed: int = 0) -> SurvivalData:
    """Noise, with a marker gene (the last of each omics) that is nearly constant."""
    rng = np.random.default_rng(seed)
    names = [f"TCGA-AA-{row:04d}" for row in range(PATIENTS)]
    tables = {}
    for kind in ("rna", "mirna", "methylation"):
        values = rng.normal(size=(PATIENTS, GENES))
        values[:, -1] *= 0.01
        tables[kind] = pd.DataFrame(values, names, [f"{kind}{number}" for number in range(GENES)])
        tables[kind].attrs["values"] = "mvalue"  # outliers of logarithms would be cut
    sizes = np.full(PATIENTS, 2)

    def bag(dim: int, times: int = 1) -> PackedBags:
        return PackedBags(rng.normal(size=(PATIENTS * 2 * times, dim)).astype(np.float32), sizes * times)

    bags = {
        **{kind: bag(DIM) for kind in ("region", "region_reg", "region_hipt")},
        "patch": bag(DIM, 2),
        "thumbnail": PackedBags(rng.integers(0, 256, (PATIENTS * 2, 72, 72, 3)).astype(np.uint8), sizes),
        "positions": PackedBags(rng.integers(0, 9, (PATIENTS * 2, 2)).astype(np.float32), sizes),
        "handcrafted": PackedBags(rng.normal(size=(PATIENTS, 20)).astype(np.float32), np.ones(PATIENTS, int)),
    }
    clinical = pd.DataFrame({"age": rng.normal(60, 9, PATIENTS), "sex": "male", "stage": "Stage II"})
    time, event = rng.exponential(500, PATIENTS) + 1, (rng.random(PATIENTS) < 0.7).astype(int)
    return SurvivalData(names, time, event, bags, tables, clinical)


def inputs_of(method: Method, data: SurvivalData, profile: Profile, protocol: Protocol = HONEST) -> FoldInputs:
    rows = np.arange(PATIENTS)
    return survival.fold_inputs(method, data, rows[:TRAIN], rows[TRAIN:], profile, protocol, 0)


def rewritten(data: SurvivalData, rows: np.ndarray) -> SurvivalData:
    """The same cohort where these patients carry a marker of their outcome in every input, and nobody else does.

    Their outcomes change places among those with the same event, which leaves the inner folds as they are.
    """
    time = data.time.copy()
    for event in (0, 1):
        some = rows[data.event[rows] == event]
        time[some] = time[np.roll(some, 1)]
    marker = np.zeros(PATIENTS)
    marker[rows] = 50.0 * (1 - 2 * (pd.Series(time[rows]).rank(pct=True).to_numpy()))
    tables = {}
    for kind, table in data.omics.items():
        tables[kind] = table.copy()
        tables[kind].attrs = dict(table.attrs)
        tables[kind].iloc[:, -1] += marker
    bags = {}
    for kind, old in data.bags.items():
        values = old.values.clone()
        which = torch.from_numpy(np.repeat(marker, old.sizes))
        if kind == "thumbnail":
            values[which != 0] = 255 - values[which != 0]
        elif kind != "positions":
            values[:, -1] += which.to(values.dtype)
        bags[kind] = PackedBags(values, old.sizes)
    clinical = data.clinical.assign(age=data.clinical["age"] + marker)
    return replace(data, time=time, bags=bags, omics=tables, clinical=clinical)


def held_out_risk(name: str, data: SurvivalData, profile: Profile, patient: int, protocol: Protocol = HONEST) -> float:
    output = survival.fit_fold(METHODS[name], inputs_of(METHODS[name], data, profile, protocol))
    assert output.held_out
    return float(output.train_risk[patient])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_an_inner_fold_chooses_nothing_for_the_model_that_leaves_it_out(
    name: str, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patients of inner fold 0 but one get a marker gene and other outcomes: the one left is rated as before."""
    # One penalty for all: its choice may look at all held-out risks.
    monkeypatch.setattr(linear, "best_penalty", lambda held_out, time, event: held_out.shape[1] // 2)
    data = make_data()
    before = inputs_of(METHODS[name], data, profile)
    patient, *others = before.train[before.inner == 0]
    marked = rewritten(data, np.array(others))
    after = inputs_of(METHODS[name], marked, profile)
    assert np.array_equal(before.inner, after.inner)
    first, second = (held_out_risk(name, cohort, profile, patient) for cohort in (data, marked))
    assert second == pytest.approx(first, abs=1e-5)
    if "omics" in METHODS[name].needs:
        # The whole training part does choose the marker, and who chose on everybody is found out.
        assert any(f"{kind}{GENES - 1}" in chosen for kind, chosen in after.names.items())
        leak = Protocol(select_on="all")
        first, second = (held_out_risk(name, cohort, profile, patient, leak) for cohort in (data, marked))
        assert second != pytest.approx(first, abs=1e-5)


def test_parts_share_folds_between_methods_and_selections_between_members(profile: Profile) -> None:
    data, cache = make_data(), {}
    rows = np.arange(PATIENTS)
    found = []
    for name in ("trans_mo", "coxnet_omics"):
        inputs = survival.fold_inputs(METHODS[name], data, rows[:TRAIN], rows[TRAIN:], profile, HONEST, 0, cache)
        found.append(inputs.inner)
        for number in range(inputs.inner_count):
            part = inputs.part(number)
            assert set(part.train) | set(part.left_out) == set(inputs.train)
            assert not set(part.train) & set(part.left_out)
            known = part.omics[part.train]
            assert np.abs(known.mean(0)).max() < 0.2
    assert np.array_equal(*found)
    assert len(cache) == 1 + inputs.inner_count
    everyone = inputs_of(METHODS["trans_mo"], data, profile, Protocol(select_on="all"))
    assert np.array_equal(everyone.part(0).omics, everyone.omics)


def test_training_risks_are_held_out_or_missing_never_in_sample(profile: Profile) -> None:
    """Two members of five inner folds rate two fifths of the training patients; the others count for nothing."""
    settings = profile.survival.model_copy(update={"ensemble": 2, "inner_fraction": 0.2})
    two = profile.model_copy(update={"survival": settings})
    data = make_data()
    inputs = inputs_of(METHODS["trans_mo"], data, two)
    output = survival.fit_fold(METHODS["trans_mo"], inputs)
    assert np.array_equal(np.isfinite(output.train_risk), inputs.inner < 2)
    grid = survival.survival_grid(data.time)
    task = (0, 0, inputs.train, inputs.test)
    table = survival.predictions_table(data, task, output, grid, said="log hazard")
    known = output.train_risk[inputs.inner < 2]
    assert np.array_equal(table["high"], output.risk > np.median(known))
    assert np.allclose(table["risk_z"], (output.risk - known.mean()) / known.std())
    # What the others' outcomes are does not matter to the curves.
    time, event = data.time[inputs.train], data.event[inputs.train]
    other = np.where(inputs.inner < 2, time, time[::-1])
    same = [survival.survival_curves(output, days, event, grid) for days in (time, other)]
    assert np.array_equal(*same)
    assert np.allclose(table.filter(like="S@"), same[0])


def test_a_part_without_a_death_says_so(profile: Profile) -> None:
    data = make_data()
    data.event[:] = 0
    data.event[3] = 1
    inputs = inputs_of(METHODS["mae_patreg"], data, profile)
    with pytest.raises(ValueError, match="takes the only death of 40 training patients"):
        inputs.part(int(inputs.inner[3]))


# --- what a method says ---------------------------------------------------------------------------------------------


def test_every_method_says_what_its_output_is() -> None:
    said = {name: method.output for name, method in METHODS.items()}
    assert {name for name, output in said.items() if output == "hazards in bins"} == {"mcat", "hipt", "clam_sb"}
    assert set(said.values()) == {"log hazard", "hazards in bins"}

    def build(sizes: object, profile: object) -> torch.nn.Module:
        return torch.nn.Identity()

    assert Method("x", "X", "image", build=build).output == "log hazard"
    # Of a loss or a fit of one's own nothing is known but the order.
    assert Method("x", "X", "image", build=build, loss=lambda *_: torch.zeros(())).output == "score"
    assert Method("x", "X", "image", fit=lambda inputs: FoldOutput(np.empty(0), np.empty(0))).output == "score"
    with pytest.raises(ValueError, match="hazards in bins come with bins"):
        Method("x", "X", "image", build=build, output="hazards in bins")


@pytest.mark.slow
@pytest.mark.parametrize("epoch", ["inner", "last", "best_test"])
def test_curves_of_hazards_in_bins_are_the_networks_own(epoch: str, profile: Profile) -> None:
    data, method = make_data(), METHODS["mcat"]
    evenly = profile.comparisons.model_copy(update={"balanced_sampling": False})
    settings = profile.survival.model_copy(update={"ensemble": 2})
    two = profile.model_copy(update={"survival": settings, "comparisons": evenly})
    inputs = inputs_of(method, data, two, Protocol(epoch=epoch))
    output = survival.fit_fold(method, inputs)
    assert len(output.binned) == 2
    for item, part in zip(output.binned, output.parts, strict=True):
        rows = part.train[data.event[part.train] > 0]
        assert item.ends[-1] == data.time[rows].max()
    ends = output.binned[0].ends
    curves = survival.survival_curves(
        replace(output, binned=output.binned[:1]), data.time[inputs.train], data.event[inputs.train], ends
    )
    assert np.allclose(curves, np.cumprod(1 - output.binned[0].hazards, axis=1))
    if epoch != "inner":
        # The risk is minus the sum of the curve over the bins, in the mean over members.
        total = [np.cumprod(1 - item.hazards, axis=1).sum(1) for item in output.binned]
        assert np.allclose(output.risk, -np.mean(total, 0), atol=1e-5)


def test_hazards_learnt_from_patients_drawn_by_weight_are_no_curve(profile: Profile) -> None:
    assert profile.comparisons.balanced_sampling
    assert survival.fit_fold(METHODS["mcat"], inputs_of(METHODS["mcat"], make_data(), profile)).binned == []
    # CLAM's own code draws nobody by weight.
    assert survival.fit_fold(METHODS["clam_sb"], inputs_of(METHODS["clam_sb"], make_data(), profile)).binned


def test_a_score_has_curves_in_no_unit_of_its_own() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    time = rng.exponential(np.exp(-x)) * 500 + 1
    event = (rng.random(200) < 0.8).astype(int)
    grid = np.array([100.0, 400.0])
    found = []
    for unit in (1.0, 40.0):
        output = FoldOutput(unit * x[:20], unit * x, held_out=True)
        found.append(survival.survival_curves(output, time, event, grid, said="score"))
        found.append(survival.survival_curves(replace(output, held_out=False), time, event, grid, said="score"))
    for curve in found[1:]:
        assert np.allclose(curve, found[0], atol=1e-6)
    # Risks that order the deaths the wrong way round say nothing: everybody has one curve.
    wrong = survival.survival_curves(FoldOutput(-x[:20], -x, held_out=True), time, event, grid)
    assert np.ptp(wrong, axis=0).max() < 1e-12
    # A log hazard of a protocol without inner folds stays as it is.
    plain = survival.survival_curves(FoldOutput(2 * x[:20], 2 * x), time, event, grid)
    assert np.allclose(plain, metrics.breslow_survival(2 * x, time, event, 2 * x[:20], grid))


@pytest.mark.slow
def test_noise_is_no_worse_than_one_curve_for_all(profile: Profile) -> None:
    """Labels that mean nothing: the integrated Brier score of each fold stays near Kaplan-Meier's."""
    above = []
    for seed in range(4):
        # Chosen beforehand, by nobody: 45 columns of noise.
        data = replace(make_data(seed), omics=np.random.default_rng(seed).normal(size=(PATIENTS, 3, 15)))
        fold = pd.DataFrame({"patient": data.patients, "repeat": 0, "fold": np.arange(PATIENTS) % 3})
        for name in ("coxnet_omics", "cox_clinical"):
            own, kaplan_meier = metrics.integrated_brier(survival.cross_validate(name, data, fold, profile))
            above.append(own - kaplan_meier)
    assert np.mean(above) < 0.02
