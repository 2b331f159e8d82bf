"""Every switch of ``Fidelity`` changes what it says it changes, for every model that it claims to cover."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hcmae.config import PROFILES, Fidelity, Profile, Protocol, SlideSettings, load_profile
from hcmae.pipeline.road import ROAD
from hcmae.pipeline.work import starts_warm
from hcmae.pretraining import embed
from hcmae.pretraining.loop import make_optimizer
from hcmae.pretraining.networks import build_mae_patch, build_mae_region, save_weights
from hcmae.pretraining.pretrain import pretrain_patch, pretrain_region
from hcmae.slides.process import process_slide
from hcmae.slides.store import SlideStore, write_vectors
from hcmae.survival import fit, table2
from hcmae.survival.bags import PackedBags, StoredBags
from hcmae.survival.cross_validate import fit_fold
from hcmae.survival.data import SurvivalData, load_inputs
from hcmae.survival.fit import Feeder, group_loss, group_rows, sizes_for
from hcmae.survival.fold import FoldInputs
from hcmae.survival.methods import METHODS
from hcmae_core.losses import cox_loss
from tests.support.twin_slides import paint, write_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*does not say its resolution")

DIM, PATIENTS = 12, 16
# What is fitted on region vectors, thumbnails and omics by HC-MAE's own networks.
NETWORKS = ("hcmae", "mae_pat", "mae_reg", "mae_patreg", "hc_regsli", "hc_patregsli", "hcmae_image", "trans_mo")
RELEASED = ("hc_regsli_release", "hc_patregsli_release")
# HC-MAE's network with region vectors in the place of thumbnails, as in HIPT (Integration).
INTEGRATED = ("hcmae_regions",)
HIERARCHICAL = ("hcmae", "hc_regsli", "hc_patregsli", "hcmae_image")
WITH_COX = (*NETWORKS, *RELEASED, "abmil_patch", "hipt_integration", "deepcorrsurv", "deepcorrsurv_hc", "gpdbn", "camr")


def profile(**fidelity: Any) -> Profile:
    small = {
        "geometry": {"region": 128, "patch": 32, "cell": 8, "thumbnail": 16},
        "network": {"dim": 24, "depth": 3, "heads": 3},
        "mae_patch.optimisation": {"epochs": 1, "batch_size": 16, "samples_per_epoch": 32},
        "mae_region.optimisation": {"epochs": 1, "batch_size": 4},
        "mae_region.reduce": 4,
        "mae_region.warm_epochs": None,
        "survival.network": {"dim": 24, "depth": 1, "heads": 3},
        "survival.epochs": 1,
        "survival.ensemble": 1,
        "survival.dropout": 0.0,
        "survival.omics_dropout": 0.0,
        "comparisons.correlation_epochs": 0,
        "compute": {"precision": "32", "workers": 0},
    }
    plain = Fidelity().model_dump()
    return load_profile("smoke", {**small, "fidelity": {**plain, **fidelity}})


# --- tiny inputs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    slide = write_twin(folder / "one.svs", paint(700, 700, seed=5))
    assert process_slide(slide, folder / "one.h5", profile().geometry, SlideSettings(preset="synthetic")).status == "ok"
    return folder / "one.h5"


@pytest.fixture
def store(cut: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(cut, tmp_path / "one.h5"))


def make_data() -> SurvivalData:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 5, PATIENTS)
    total = int(sizes.sum())
    bags = {
        kind: PackedBags(rng.normal(size=(total * times, DIM)).astype(np.float32), sizes * times)
        for kind, times in (("region", 1), ("region_reg", 1), ("region_hipt", 1), ("patch", 4))
    }
    bags["thumbnail"] = PackedBags(rng.integers(0, 256, (total, 72, 72, 3)).astype(np.uint8), sizes)
    bags["positions"] = PackedBags(rng.integers(0, 9, (total, 2)).astype(np.float32), sizes)
    bags["handcrafted"] = PackedBags(rng.normal(size=(PATIENTS, 40)).astype(np.float32), np.ones(PATIENTS, int))
    return SurvivalData(
        [f"TCGA-AA-{row:04d}" for row in range(PATIENTS)],
        rng.permutation(PATIENTS) * 50.0 + 1,
        (np.arange(PATIENTS) % 3 > 0).astype(int),
        bags,
        rng.normal(size=(PATIENTS, 3, 12)).astype(np.float32),
    )


def inputs(settings: Profile) -> FoldInputs:
    data, rows = make_data(), np.arange(PATIENTS)
    assert isinstance(data.omics, np.ndarray)
    return FoldInputs(data, rows[:12], rows[12:], data.omics, settings, Protocol(epoch="last"), 0)


def network(name: str, settings: Profile) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """An untrained network of a method in Table III, always from the same random numbers, and a batch for it."""
    fold = inputs(settings)
    method = METHODS[name]
    torch.manual_seed(0)
    assert method.build is not None
    return method.build(sizes_for(method, fold), settings).eval(), Feeder(method, fold)(np.arange(8))


def risk(name: str, settings: Profile) -> torch.Tensor:
    model, batch = network(name, settings)
    with torch.no_grad():
        return model(**batch)


def fitted(name: str, settings: Profile) -> np.ndarray:
    return fit_fold(METHODS[name], inputs(settings)).risk


def differ(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.shape != b.shape or not np.allclose(a, b, atol=1e-7)


# --- one proof per switch -------------------------------------------------------------------------------------------


def region_loss(settings: Profile) -> tuple[float, np.ndarray]:
    """Loss of an untrained MAE-Region on fixed pixels, patch vectors and mask, and the vectors it gives."""
    torch.manual_seed(0)
    model = build_mae_region(settings).eval()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), generator=generator, dtype=torch.uint8)
    vectors = torch.randn(3, 16, 24, generator=generator)
    with torch.no_grad():
        loss = model(pixels, vectors, order=torch.rand(3, 16, generator=generator).argsort(1)).loss
        return float(loss), model.encode(pixels, vectors).numpy()


def proves_region_attention(store: Path, tmp_path: Path) -> None:
    found = [region_loss(profile(region_attention=kind)) for kind in ("q_enc_kv_patch", "eq4", "prose", "none")]
    for number, (loss, vectors) in enumerate(found):
        for other_loss, other in found[number + 1 :]:
            assert loss != other_loss
            assert differ(vectors, other)


def proves_region_residual(store: Path, tmp_path: Path) -> None:
    for kind in ("q_enc_kv_patch", "eq4", "prose"):
        without, residual = (region_loss(profile(region_attention=kind, region_residual=on)) for on in (False, True))
        assert without[0] != residual[0], kind
        assert differ(without[1], residual[1]), kind


def proves_region_warm_start(store: Path, tmp_path: Path) -> None:
    for on in (False, True):
        assert starts_warm(profile(region_warm_start=on), "patreg") is on
        assert not starts_warm(profile(region_warm_start=on), "reg")
    write_vectors(store, "patch_vectors", np.zeros((len(SlideStore(store)), 16, 24), np.float16), weights="x")
    first = pretrain_region([store], profile(), tmp_path / "a", 0, variant="reg", progress=False)
    cold, warm = (
        pretrain_region([store], profile(), tmp_path / name, 0, start=start, progress=False)
        for name, start in (("b", None), ("c", first))
    )
    assert cold.read_bytes() != warm.read_bytes()


def patch_vectors(store: Path, tmp_path: Path, **fidelity: Any) -> tuple[np.ndarray, str]:
    path = tmp_path / "mae_patch.safetensors"
    torch.manual_seed(1)
    save_weights(path, build_mae_patch(profile()))
    embed.embed_patches([store], path, profile(**fidelity), progress=False, device="cpu")
    return SlideStore(store).vectors("patch_vectors"), embed.network_of(path, profile(**fidelity))


def proves_extraction(store: Path, tmp_path: Path, **fidelity: Any) -> None:
    plain, key = patch_vectors(store, tmp_path)
    other, other_key = patch_vectors(store, tmp_path, **fidelity)
    assert key != other_key
    assert differ(plain, other)


def proves_extract_depth(store: Path, tmp_path: Path) -> None:
    proves_extraction(store, tmp_path, extract_depth=1)


def proves_extract_norm(store: Path, tmp_path: Path) -> None:
    proves_extraction(store, tmp_path, extract_norm="after_mean")


def proves_extract_augment(store: Path, tmp_path: Path) -> None:
    proves_extraction(store, tmp_path, extract_augment=True)
    found = []
    for on in (False, True):
        settings = profile(extract_augment=on, region_attention="none")
        torch.manual_seed(1)
        weights = save_weights(tmp_path / "mae_region_reg.safetensors", build_mae_region(settings))
        embed.embed_regions([store], weights, settings, "reg", progress=False, device="cpu")
        found.append(SlideStore(store).vectors("region_vectors_reg"))
    assert differ(*found)


def proves_augment(store: Path, tmp_path: Path) -> None:
    """Other pixels, other weights, in both stages of pre-training."""
    found: dict[str, set[bytes]] = {"patch": set(), "region": set()}
    for kind in ("none", "joint", "release"):
        settings = profile(augment=kind)
        out = tmp_path / kind
        found["patch"].add(pretrain_patch([store], settings, out, 0, progress=False).read_bytes())
        found["region"].add(pretrain_region([store], settings, out, 0, variant="reg", progress=False).read_bytes())
    assert {name: len(weights) for name, weights in found.items()} == {"patch": 3, "region": 3}


def proves_adam_decay(store: Path, tmp_path: Path) -> None:
    """Other weights; the literal reading warns, and shrinks a weight whose gradient says nothing."""
    weights, shrunk = {}, {}
    for kind in ("decoupled", "l2"):
        plain = profile(adam_decay=kind)
        adam = plain.mae_patch.optimisation.model_copy(update={"optimizer": "adam", "weight_decay": 0.1})
        stage = plain.mae_patch.model_copy(update={"optimisation": adam})
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            settings = plain.model_copy(update={"mae_patch": stage})
            weights[kind] = pretrain_patch([store], settings, tmp_path / kind, 0, progress=False).read_bytes()
            layer = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.ones_(layer.weight)
            optimizer = make_optimizer(layer, adam, kind)
        assert sum("fidelity.adam_decay is l2" in str(item.message) for item in told) == 2 * (kind == "l2")
        for step in range(100):
            layer.weight.grad = torch.full((1, 1), 1e-4 * (-1) ** step)
            optimizer.step()
        shrunk[kind] = 1 - layer.weight.item()
    assert weights["decoupled"] != weights["l2"]
    assert shrunk["l2"] > 5 * shrunk["decoupled"]
    # The road reads the switch where the optimiser is called Adam, and there only.
    for step in ("mae_patch", "mae_region_reg", "mae_region_patreg"):
        read = {name: "fidelity.adam_decay" in ROAD[step].reads(load_profile(name)).settings for name in PROFILES}
        assert read == {"paper": True, "smoke": False, "workstation": False}, step


def proves_slide_positions(store: Path, tmp_path: Path) -> None:
    for name in HIERARCHICAL:
        assert differ(risk(name, profile()), risk(name, profile(slide_positions=False))), name


def proves_omics_projection(store: Path, tmp_path: Path) -> None:
    for name in ("hcmae", "trans_mo", *INTEGRATED):
        shared, separate = (network(name, profile(omics_projection=kind))[0] for kind in ("shared", "separate"))
        assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in separate.parameters()), name
        # Only a shared map cannot tell two omics apart.
        assert differ(risk(name, profile()), risk(name, profile(omics_projection="separate"))), name


def proves_pooler(store: Path, tmp_path: Path) -> None:
    for name in ("hcmae", *INTEGRATED):
        shared, separate = (network(name, profile(pooler=kind))[0] for kind in ("shared", "separate"))
        assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in separate.parameters()), name
        assert differ(risk(name, profile(pooler="shared")), risk(name, profile())), name


def proves_risk_head(store: Path, tmp_path: Path) -> None:
    for name in (*NETWORKS, *RELEASED, "abmil_patch", *INTEGRATED):
        scaled, sigmoid, linear = (
            risk(name, profile(risk_head=kind)) for kind in ("scaled_sigmoid", "sigmoid", "linear")
        )
        assert differ(scaled, sigmoid), name
        assert differ(sigmoid, linear), name
        assert ((sigmoid > 0) & (sigmoid < 1)).all(), name


def proves_cox_divisor(store: Path, tmp_path: Path) -> None:
    """The mean over deaths becomes one over deaths plus one, for every network that has no likelihood of its own."""
    for name in NETWORKS:
        losses = []
        for divisor in ("events", "events_plus_one"):
            fold = inputs(profile(cox_divisor=divisor))
            output = risk(name, fold.profile)
            losses.append(float(group_loss(METHODS[name], fold, output, fold.data.time[:8], fold.data.event[:8])))
        deaths = make_data().event[:8].sum()
        assert losses[1] == pytest.approx(losses[0] * deaths / (deaths + 1)), name
    for name in WITH_COX:
        for divisor in ("events", "events_plus_one"):
            seen: set[str] = set()

            def loss(*args: Any, seen: set[str] = seen, **settings: Any) -> torch.Tensor:
                seen.add(settings["divisor"])
                return cox_loss(*args, **settings)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fit, "cox_loss", loss)
                patch.setattr(table2, "cox_loss", loss)
                fitted(name, profile(cox_divisor=divisor))
            assert seen == {divisor}, name


def proves_drop_last_group(store: Path, tmp_path: Path) -> None:
    rows = np.arange(12)
    kept, dropped = (group_rows(rows, 5, drop, np.random.default_rng(0)) for drop in (False, True))
    assert (sum(map(len, kept)), sum(map(len, dropped))) == (12, 10)
    for name in (*WITH_COX, "mcat", "hipt", "clam_sb"):
        section = name if hasattr(profile().comparisons, name) else None
        found = [fitted(name, with_groups(profile(drop_last_group=drop), section)) for drop in (False, True)]
        assert differ(*found), name


def with_groups(settings: Profile, section: str | None) -> Profile:
    survival = settings.survival.model_copy(update={"group": 5})
    comparisons = settings.comparisons
    if section is not None:
        own = getattr(comparisons, section).model_copy(update={"group": 5, "epochs": 1})
        comparisons = comparisons.model_copy(update={section: own})
    return settings.model_copy(update={"survival": survival, "comparisons": comparisons})


def proves_max_regions(store: Path, tmp_path: Path) -> None:
    """The darkest regions of a slide, in their order and in every bag alike; slides with fewer lose none."""
    count = len(SlideStore(store))
    assert count > 6
    ids = np.arange(count, dtype=np.float32)
    write_vectors(store, "region_vectors", np.repeat(ids[:, None], 3, 1), weights="w")
    write_vectors(store, "patch_vectors", np.repeat(ids, 16 * 3).reshape(count, 16, 3).astype(np.float16), weights="w")
    write_vectors(store, "handcrafted", np.ones((count, 5), np.float32), weights="w")
    table = pd.DataFrame({"slide": ["one"], "time": [300.0], "event": [1]}, index=["TCGA-AA-0000"])
    kinds = ("region", "patch", "thumbnail", "handcrafted")
    whole = load_inputs(table, store.parent, kinds=kinds)
    few = load_inputs(table, store.parent, kinds=kinds, max_regions=4)
    sums = SlideStore(store).thumbnails.reshape(count, -1).astype(np.int64).sum(1)
    darkest = sorted(np.argsort(sums)[:4].tolist())
    assert few.bags["region"].values[:, 0].tolist() == darkest
    assert few.bags["patch"].values[:, 0].tolist() == np.repeat(darkest, 16).tolist()
    assert torch.equal(few.bags["thumbnail"].values, whole.bags["thumbnail"].values[darkest])
    assert torch.equal(few.bags["positions"].values, whole.bags["positions"].values[darkest])
    assert few.sizes("patch").tolist() == [64]
    assert few.content(kinds) != whole.content(kinds)
    for limit in (count, count + 1, None):
        same = load_inputs(table, store.parent, kinds=kinds, max_regions=limit)
        assert same.content((*kinds, "positions")) == whole.content((*kinds, "positions"))
    # Bags that are too large for memory are cut alike, and are told apart by what they hold.
    left = load_inputs(table, store.parent, kinds=kinds, max_regions=4, memory_bytes=10)
    assert isinstance(left.bags["patch"], StoredBags)
    for kind in ("region", "patch", "thumbnail"):
        assert torch.equal(left.bags[kind].packed(np.array([0])), few.bags[kind].values), kind
    # Where they lie is no part of what they are.
    assert left.content(kinds) == few.content(kinds)
    before = left.bags["patch"].content()
    assert before != load_inputs(table, store.parent, kinds=kinds, memory_bytes=10).bags["patch"].content()
    assert left.bags["patch"].content() == before
    write_vectors(store, "patch_vectors", np.zeros((count, 16, 3), np.float16), weights="w")
    assert (
        load_inputs(table, store.parent, kinds=kinds, max_regions=4, memory_bytes=10).bags["patch"].content() != before
    )


PROOFS: dict[str, Callable[[Path, Path], None]] = {
    name.removeprefix("proves_"): value for name, value in globals().items() if name.startswith("proves_")
}


@pytest.mark.slow
@pytest.mark.parametrize("switch", list(Fidelity.model_fields))
def test_a_switch_changes_what_it_says(switch: str, store: Path, tmp_path: Path) -> None:
    assert switch in PROOFS, f"Fidelity.{switch} needs a proof here: a function proves_{switch}"
    PROOFS[switch](store, tmp_path)
