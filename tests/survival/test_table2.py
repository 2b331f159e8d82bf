"""The compared methods: published sizes, what they do with odd input, the harness, and proof that each can learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from hcmae.config import Profile, Protocol, load_profile
from hcmae.evaluation import tables
from hcmae.evaluation.metrics import concordance
from hcmae.pretraining.checkpoint import CheckpointError, load_resnet
from hcmae.survival import cross_validate as survival
from hcmae.survival import fit as fitting
from hcmae.survival import table2 as comparisons
from hcmae.survival.bags import PackedBags
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS
from hcmae_core.baselines import (
    CAMR,
    CLAMSB,
    GPDBN,
    HIPT,
    MCAT,
    DeepCorrSurv,
    DeepCorrSurvCosine,
    HIPTIntegration,
    correlation_loss,
)
from hcmae_core.baselines.camr import Gate
from hcmae_core.baselines.hipt import vit_patch, vit_region
from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD
from hcmae_core.transformer import Size

COMPARED = ("gpdbn", "camr", "deepcorrsurv", "deepcorrsurv_hc", "mcat", "hipt", "hipt_integration", "clam_sb")


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def make_data(n: int = 40, seed: int = 0, *, regions: int = 2, patches: int = 4, features: int = 12) -> SurvivalData:
    """Patients whose every input carries the log hazard."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=n)
    time = rng.exponential(1000 * np.exp(-1.5 * signal)) + 1
    event = (rng.random(n) < 0.8).astype(int)
    event[:4] = 1
    omics = rng.normal(size=(n, 3, features)).astype(np.float32)
    omics[:, :, 0] += 2 * signal[:, None]
    sizes = np.full(n, regions)

    def bag(dim: int, times: int = 1) -> PackedBags:
        values = rng.normal(size=(n, regions * times, dim)).astype(np.float32)
        values[:, :, 0] += 2 * signal[:, None]
        return PackedBags(values.reshape(-1, dim), sizes * times)

    grey = 128 + 25 * signal[:, None, None, None, None] + rng.normal(0, 8, (n, regions, 32, 32, 3))
    table = rng.normal(size=(n, 50)).astype(np.float32)
    table[:, 0] = rng.integers(1, 50, n)
    table[:, 5] += 2 * signal
    bags = {
        "patch": bag(16, patches),
        "region_hipt": bag(16),
        "thumbnail": PackedBags(grey.clip(0, 255).astype(np.uint8).reshape(-1, 32, 32, 3), sizes),
        "handcrafted": PackedBags(table, np.ones(n, int)),
    }
    return SurvivalData([f"TCGA-AA-{i:04d}" for i in range(n)], time, event, bags, omics)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(
        "smoke", {"survival.epochs": 3, **{f"comparisons.{m}.epochs": 3 for m in COMPARED}, "survival.ensemble": 1}
    )


def test_published_sizes() -> None:
    camr, mcat = CAMR(), MCAT()
    assert count(GPDBN()) == 289_313
    assert sum(p.numel() for p in camr.main_parameters()) == 1_725_929
    assert count(DeepCorrSurv(900).image) == 449_248
    assert count(DeepCorrSurvCosine()) == 353_664
    assert count(mcat) - count(mcat.omics) == 3_227_398
    assert count(mcat.omics) == 428_544
    assert count(vit_region()) == 2_781_504
    assert count(HIPT()) == 595_397
    assert abs(count(vit_patch()) - 21.7e6) < 0.05e6


def test_vision_transformers_take_any_number_of_cells() -> None:
    patch, region = vit_patch(3, 16, Size(32, 1, 4)), vit_region(6, 32, Size(16, 1, 4))
    for cells in (1, 3, 4):
        assert patch(torch.zeros(2, 3, 16 * cells, 16 * cells)).shape == (2, 32)
    for side in (3, 6, 8):
        assert region(torch.zeros(2, 32, side, side)).shape == (2, 16)


@pytest.mark.parametrize("network", [CLAMSB(8, 16, 8), HIPT(8, 12)])
def test_padding_changes_nothing_and_one_item_is_enough(network: torch.nn.Module) -> None:
    network.eval()
    bag = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([bag, torch.full((1, 4, 8), 1e3)], dim=1)
    mask = torch.arange(9)[None] < 5
    torch.testing.assert_close(network(bag), network(padded, mask))
    assert torch.isfinite(network(bag[:, :1])).all()


def test_mcat_padding_attention_and_missing_modality() -> None:
    network = MCAT(8, (5, 5, 5), 16, feedforward=32).eval()
    bag, omics = torch.randn(2, 6, 8), [torch.randn(2, 5) for _ in range(3)]
    padded = torch.cat([bag, torch.full((2, 3, 8), 50.0)], dim=1)
    mask = (torch.arange(9) < 6).expand(2, 9)
    logits, attention = network.with_attention(padded, omics, mask)
    torch.testing.assert_close(logits, network(bag, omics))
    assert attention is not None
    assert attention.shape == (2, 3, 9)
    assert float(attention[:, :, 6:].abs().max()) == 0
    with pytest.raises(ValueError, match="3 omics groups, got 2"):
        network(bag, omics[:2])


def test_odd_input_is_named() -> None:
    with pytest.raises(ValueError, match="pathology is missing"):
        GPDBN(4)(torch.zeros(2, 4), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \[2, 2, 80\]"):
        CAMR()(torch.zeros(2, 2, 80))
    with pytest.raises(ValueError, match="is empty"):
        HIPT(8)(torch.zeros(1, 0, 8))
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        HIPT(8)(torch.zeros(2, 3, 8), torch.tensor([[True, True, True], [False, False, False]]))
    with pytest.raises(ValueError, match="omics has shape"):
        HIPTIntegration(8, 5, transformer=Size(16, 1, 2))(torch.zeros(2, 3, 8), torch.zeros(2, 2, 5))
    with pytest.raises(ValueError, match="at least 2"):
        correlation_loss(torch.zeros(1, 4), torch.zeros(1, 4))


def test_correlation_loss_is_pearson() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    expected = -sum(np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3))
    assert float(correlation_loss(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, abs=1e-6)
    assert float(correlation_loss(torch.ones(5, 2), torch.ones(5, 2))) == 0.0


def test_camr_gate_is_the_bilinear_map_of_torch() -> None:
    gate = Gate(5, 2, 0.0)
    code, others = torch.randn(7, 5), torch.randn(7, 10)
    torch.testing.assert_close(gate._bilinear(code, others), gate.bilinear(code, others))


def test_camr_reverses_the_gradient_of_the_shared_encoder_only() -> None:
    x = torch.randn(8, 3, 10, generator=torch.Generator().manual_seed(1))
    grads = {}
    for aligned in (True, False):
        torch.manual_seed(0)
        network = CAMR(10, aligned=aligned).eval()
        network.with_losses(x)[1]["adversarial"].backward()
        shared = network.shared[0].get_parameter("weight").grad
        judge = network.discriminator[0].get_parameter("weight").grad
        grads[aligned] = (shared, judge)
    torch.testing.assert_close(grads[True][0], -grads[False][0])
    torch.testing.assert_close(grads[True][1], grads[False][1])


def test_clam_instances() -> None:
    network = CLAMSB(4, 8, 4, instances=2)
    codes, weights = torch.randn(2, 6, 8), torch.rand(2, 6)
    bins = torch.tensor([1, 2])
    censored = network.instance_loss(weights, codes, bins, torch.tensor([0, 0]))
    assert float(censored) == 0.0
    both = network.instance_loss(weights, codes, bins, torch.tensor([1, 0]))
    assert float(both.detach()) > 0
    assert float(network.instance_loss(weights[:, :1], codes[:, :1], bins, torch.tensor([1, 1]))) == 0.0


def test_time_bins_come_from_deaths() -> None:
    time = np.array([10.0, 20, 30, 40, 1000, 2000])
    event = np.array([1, 1, 1, 1, 0, 0])
    edges = comparisons.time_edges(time, event, 4)
    assert edges.tolist() == [17.5, 25.0, 32.5]
    assert comparisons.to_bins(torch.tensor([1.0, 17.5, 26, 5000]), edges).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at least one death"):
        comparisons.time_edges(time, 0 * event, 4)


def test_cox_scores_equal_the_score_test_of_the_loss() -> None:
    from hcmae_core.losses import cox_loss

    rng = np.random.default_rng(3)
    x, time, event = rng.normal(size=(30, 4)), rng.integers(1, 12, 30).astype(float), rng.integers(0, 2, 30)
    beta = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    def loss(b: torch.Tensor) -> torch.Tensor:
        return cox_loss(torch.tensor(x) @ b, torch.tensor(time), torch.tensor(event), divisor="none")

    slope = torch.autograd.grad(loss(beta), beta)[0].numpy()
    curvature = np.diag(torch.autograd.functional.hessian(loss, beta.detach()).numpy())
    scores = comparisons.cox_scores(np.c_[x, np.ones(30)], time, event)
    np.testing.assert_allclose(scores[:4], -slope / np.sqrt(curvature), rtol=1e-6)
    assert scores[4] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_every_method_runs_a_fold(name: str, profile: Profile) -> None:
    data = make_data()
    rows = np.arange(40)
    method = METHODS[name]
    inputs = survival.fold_inputs(method, data, rows[:30], rows[30:], profile, Protocol.preset("honest"), 0)
    first = survival.fit_fold(method, inputs)
    assert first.risk.shape == (10,)
    assert np.isfinite(first.risk).all()
    assert np.ptp(first.risk) > 0
    np.testing.assert_array_equal(first.risk, survival.fit_fold(method, inputs).risk)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_test_patients_teach_nothing(name: str, profile: Profile) -> None:
    rows = np.arange(40)
    risks = []
    for seed in (None, 5):
        data = make_data()
        if seed is not None:
            rng = np.random.default_rng(seed)
            data.time[30:], data.event[30:] = rng.exponential(500, 10), rng.integers(0, 2, 10)
        inputs = survival.fold_inputs(METHODS[name], data, rows[:30], rows[30:], profile, Protocol.preset("honest"), 0)
        risks.append(survival.fit_fold(METHODS[name], inputs).risk)
    np.testing.assert_array_equal(risks[0], risks[1])


@pytest.mark.parametrize("name", ["gpdbn", "camr", "mcat"])
def test_equal_omics_and_bags_of_one(name: str, profile: Profile) -> None:
    data = make_data(regions=1, patches=1)
    data.omics[:] = 1.0
    rows = np.arange(40)
    inputs = survival.fold_inputs(METHODS[name], data, rows[:30], rows[30:], profile, Protocol.preset("honest"), 0)
    assert np.isfinite(survival.fit_fold(METHODS[name], inputs).risk).all()


def test_missing_input_is_named(profile: Profile) -> None:
    import pandas as pd

    data = make_data()
    del data.bags["handcrafted"]
    folds = pd.DataFrame({"patient": data.patients, "repeat": 0, "fold": np.arange(40) % 2})
    with pytest.raises(ValueError, match="needs 'handcrafted'"):
        survival.cross_validate("gpdbn", data, folds, profile)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_every_method_can_overfit(name: str) -> None:
    long = {"learning_rate": 2e-3, "weight_decay": 0.0, "epochs": 200, "group": 0}
    if not name.startswith("deepcorrsurv"):  # its networks have none
        long["dropout"] = 0.0
    settings = {
        "survival.dropout": 0.0,
        f"comparisons.{name}": long,
        # Four bins say nothing about the order within a bin, which the C-index asks for.
        "comparisons.bins": 20,
        "comparisons.correlation_epochs": 5,
        "survival.ensemble": 1,
    }
    profile = load_profile("smoke", settings)
    # The cosine lies between 0 and 1 and saturates at both ends, so this variant cannot rank everybody.
    least = 0.85 if name == "deepcorrsurv_hc" else 0.95
    data = make_data(31)
    rows = np.arange(31)
    protocol = Protocol(name="overfit", epoch="last")
    inputs = survival.fold_inputs(METHODS[name], data, rows[:30], rows[30:], profile, protocol, 0)
    output = survival.fit_fold(METHODS[name], inputs)
    assert concordance(data.time[:30], data.event[:30], output.train_risk) >= least


@pytest.mark.slow
def test_resnet_equals_torchvisions_first_three_stages(tmp_path: Path) -> None:
    """The file may be torchvision's or timm's; the last stage and the classifier are not read."""
    theirs = torchvision.models.resnet50(weights=None).eval()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    path = tmp_path / "resnet50.safetensors"
    save_file(theirs.state_dict(), path)
    network = load_resnet(path)
    patches = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    pixels = patches.permute(0, 3, 1, 2).float() / 255
    pixels = torchvision.transforms.functional.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
    with torch.inference_mode():
        expected = theirs.layer3(theirs.layer2(theirs.layer1(x))).mean(dim=(2, 3))
        torch.testing.assert_close(network(patches), expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    other = {name: tensor for name, tensor in theirs.state_dict().items() if name != "layer2.0.conv1.weight"}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors.*layer2\.0\.conv1\.weight"):
        load_resnet(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_resnet(tmp_path / "text.safetensors")


def test_patch_vectors_of_mcat_and_clam_are_imagenets_where_given(profile: Profile) -> None:
    data = make_data()
    assert data.bags["patch_features"] is data.bags["patch"]
    assert data.patch_source == "the frozen MAE-Patch"
    sizes = data.sizes("patch")
    wide = PackedBags(np.random.default_rng(0).normal(size=(sizes.sum(), 10)).astype(np.float16), sizes)
    given = replace(data, bags={**data.bags, "patch_features": wide})
    assert given.patch_source == "a ResNet-50 trained on ImageNet"
    rows = np.arange(40)
    for name in ("mcat", "clam_sb"):
        inputs = survival.fold_inputs(METHODS[name], given, rows[:30], rows[30:], profile, Protocol.preset("honest"), 0)
        assert np.isfinite(survival.fit_fold(METHODS[name], inputs).risk).all()
        assert given.content(METHODS[name].needs) != data.content(METHODS[name].needs)
    note = tables.table2({}, note=f"MCAT and CLAM-SB read patch vectors of {given.patch_source}.")
    assert "ResNet-50 trained on ImageNet. Bold: the first of a column. A synthetic" in note.caption


LAST = Protocol(epoch="last")


def spied_fit(name: str, settings: Profile, data: SurvivalData, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Fit the first 30 patients; learning rates and groups of patients of every update, in order."""
    seen: dict[str, list] = {"rates": [], "groups": []}
    step, feed = torch.optim.AdamW.step, fitting.Feeder.__call__

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        seen["rates"].append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    def fed(self: Any, rows: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            seen["groups"].append(np.asarray(rows))
        return feed(self, rows, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    monkeypatch.setattr(fitting.Feeder, "__call__", fed)
    rows = np.arange(40)
    survival.fit_fold(METHODS[name], survival.fold_inputs(METHODS[name], data, rows[:30], rows[30:], settings, LAST, 0))
    return seen


@pytest.mark.parametrize("name", ["gpdbn", "camr"])
def test_the_rate_of_gpdbn_and_camr_falls_linearly_as_published(
    name: str, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = compared(profile, name, epochs=5)
    top = getattr(settings.comparisons, name).learning_rate
    rates = spied_fit(name, settings, make_data(), monkeypatch)["rates"]
    # One update an epoch; the publications' code multiplies by 1 - (t + 1) / (epochs + 1).
    assert rates == pytest.approx([top * (1 - (epoch + 1) / 6) for epoch in range(5)])


@pytest.mark.parametrize("name", ["mcat", "hipt"])
def test_classes_of_time_and_event_come_equally_often(
    name: str, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rows = make_data(), np.arange(30)
    data.event[:] = (np.arange(40) % 8 == 0).astype(int)  # 4 of the first 30 have died
    settings = compared(profile, name, epochs=1)
    inputs = survival.fold_inputs(METHODS["mcat"], data, rows, rows, settings, LAST, 0)
    weights = comparisons.balanced_weights(inputs, rows)
    assert weights is not None
    edges = comparisons.time_edges(data.time[:30], data.event[:30], settings.comparisons.bins)
    bins = comparisons.to_bins(torch.from_numpy(data.time[:30]), edges).numpy()
    classes = {(b, e) for b, e in zip(bins, data.event[:30], strict=True)}
    for b, e in classes:
        assert weights[(bins == b) & (data.event[:30] == e)].sum() == pytest.approx(1.0)
    drawn = np.concatenate(spied_fit(name, settings, data, monkeypatch)["groups"])
    assert len(drawn) == 30 > len(set(drawn.tolist()))
    off = settings.comparisons.model_copy(update={"balanced_sampling": False})
    plain = spied_fit(name, settings.model_copy(update={"comparisons": off}), data, monkeypatch)["groups"]
    assert sorted(np.concatenate(plain).tolist()) == list(range(30))


def test_a_group_without_a_death_teaches_methods_with_a_likelihood_in_bins(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLAM updates after every patient: its censored patients would else never be seen."""
    data = make_data()
    settings = compared(profile, "clam_sb", epochs=1, group=1)
    groups = spied_fit("clam_sb", settings, data, monkeypatch)["groups"]
    assert sorted(np.concatenate(groups).tolist()) == list(range(30))
    assert not data.event[:30].all()


def compared(profile: Profile, name: str, **own: Any) -> Profile:
    """The profile with other settings of one compared method."""
    section = getattr(profile.comparisons, name).model_copy(update=own)
    return profile.model_copy(update={"comparisons": profile.comparisons.model_copy(update={name: section})})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mcat", "hipt", "clam_sb", "gpdbn", "camr", "hipt_integration"])
def test_dropout_of_a_compared_method_acts(name: str, profile: Profile) -> None:
    data, rows = make_data(), np.arange(40)
    found = []
    for dropout in (0.0, 0.6):
        settings = compared(profile, name, dropout=dropout)
        inputs = survival.fold_inputs(METHODS[name], data, rows[:30], rows[30:], settings, LAST, 0)
        output = survival.fit_fold(METHODS[name], inputs)
        found.append(output.risk)
        kinds = (torch.nn.Dropout, torch.nn.AlphaDropout)
        shares = {m.p for model in output.models for m in model.modules() if isinstance(m, kinds)}
        # HIPT (Integration) drops omics inputs too, by the survival stage's own share.
        assert shares - ({settings.survival.omics_dropout} if name == "hipt_integration" else set()) == {dropout}
    assert not np.allclose(*found)


@pytest.mark.parametrize("name", ["deepcorrsurv", "deepcorrsurv_hc"])
def test_dropout_is_refused_where_a_network_has_none(name: str, profile: Profile) -> None:
    rows = np.arange(40)
    settings = compared(profile, name, dropout=0.1)
    inputs = survival.fold_inputs(METHODS[name], make_data(), rows[:30], rows[30:], settings, LAST, 0)
    with pytest.raises(ValueError, match=rf"comparisons\.{name}\.dropout is set"):
        survival.fit_fold(METHODS[name], inputs)


def test_micro_batches_act_under_every_loss(profile: Profile) -> None:
    rows, data = np.arange(40), make_data()

    def fit(name: str, part: int | None, **own: Any) -> np.ndarray:
        settings = compared(profile, name, dropout=0.0, epochs=1, **own)
        settings = settings.model_copy(
            update={"survival": settings.survival.model_copy(update={"micro_batch": part, "bag_limit": None})}
        )
        inputs = survival.fold_inputs(METHODS[name], data, rows[:30], rows[30:], settings, LAST, 0)
        return survival.fit_fold(METHODS[name], inputs).risk

    real = fitting.Feeder.__call__
    # CLAM's loss reads the codes of all patches, and has weights of its own.
    for name, own in (("mcat", {}), ("hipt", {}), ("clam_sb", {"group": 15})):
        largest: list[int] = []

        def counted(self: Any, rows: Any, largest: list[int] = largest, **options: Any) -> Any:
            if options:  # training; prediction thins nothing
                largest.append(len(rows))
            return real(self, rows, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitting.Feeder, "__call__", counted)
            parts = fit(name, 7, **own)
        assert max(largest) <= 7
        np.testing.assert_allclose(parts, fit(name, None, **own), atol=2e-3)


def test_example_of_the_book_is_a_method(repo: Path, profile: Profile) -> None:
    page = (repo / "book" / "own_model.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    try:
        exec(compile(code, "own_model.md", "exec"), {})
        data = make_data()
        data.bags["region"] = data.bags.pop("region_hipt")
        rows = np.arange(40)
        method = METHODS["mean_pool"]
        inputs = survival.fold_inputs(method, data, rows[:30], rows[30:], profile, Protocol.preset("honest"), 0)
        assert np.isfinite(survival.fit_fold(method, inputs).risk).all()
    finally:
        METHODS.pop("mean_pool", None)
