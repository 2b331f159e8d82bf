"""Kept predictions: which change makes them stale, which does not, and that a stale one says why."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
import torch

from hcmae.cohort.splits import make_folds
from hcmae.config import (
    ComparisonSettings,
    Fidelity,
    MethodSettings,
    OmicsSettings,
    Profile,
    Protocol,
    Settings,
    SurvivalSettings,
    load_profile,
)
from hcmae.files import read_json
from hcmae.survival import cross_validate as survival
from hcmae.survival.bags import PackedBags
from hcmae.survival.cross_validate import cross_validate, predictions_key
from hcmae.survival.data import SurvivalData
from hcmae.survival.methods import METHODS, Method, register

DIM, PATIENTS = 12, 24
HONEST = Protocol()


def make_data(omics: Any = None, seed: int = 0) -> SurvivalData:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 5, PATIENTS)

    def bag(dim: int, times: int = 1) -> PackedBags:
        return PackedBags(rng.normal(size=(int(sizes.sum()) * times, dim)).astype(np.float32), sizes * times)

    total = int(sizes.sum())
    bags = {
        **{kind: bag(DIM) for kind in ("region", "region_reg", "region_hipt")},
        "patch": bag(DIM, 4),
        "thumbnail": PackedBags(rng.integers(0, 256, (total, 72, 72, 3)).astype(np.uint8), sizes),
        "positions": PackedBags(rng.integers(0, 9, (total, 2)).astype(np.float32), sizes),
        "handcrafted": PackedBags(rng.normal(size=(PATIENTS, 40)).astype(np.float32), np.ones(PATIENTS, int)),
    }
    return SurvivalData(
        [f"TCGA-AA-{row:04d}" for row in range(PATIENTS)],
        rng.exponential(500, PATIENTS) + 1,
        (rng.random(PATIENTS) < 0.7).astype(int),
        bags,
        rng.normal(size=(PATIENTS, 3, 12)).astype(np.float32) if omics is None else omics,
        pd.DataFrame({"age": rng.normal(60, 9, PATIENTS), "sex": "male", "stage": "Stage II"}),
    )


def tables(genes: int = 30) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(5)
    names = [f"TCGA-AA-{row:04d}" for row in range(PATIENTS)]
    columns = [f"g{number}" for number in range(genes)]
    counts = pd.DataFrame(rng.negative_binomial(5, 0.05, (PATIENTS, genes)).astype(np.float32), names, columns)
    beta = pd.DataFrame(rng.uniform(0.05, 0.95, (PATIENTS, genes)).astype(np.float32), names, columns)
    return {"rna": counts, "methylation": beta.mask(rng.random(beta.shape) < 0.03)}


@pytest.fixture(scope="module")
def profile() -> Profile:
    small = {
        "survival.network": {"dim": 16, "depth": 1, "heads": 2},
        "survival.epochs": 2,
        "survival.ensemble": 1,
        "survival.dropout": 0.0,
        "survival.omics_dropout": 0.0,
        "survival.group": 12,
        "comparisons.hipt_dim": 12,
        "comparisons.mcat_dim": 16,
        "comparisons.clam_dim": 16,
        "comparisons.correlation_epochs": 1,
        "comparisons.gpdbn_features": 4,
        "comparisons.camr_features": 4,
        "omics": {"top_k": 5, "candidates": 10, "trees": 5, "differential": "cox_score"},
        **{f"comparisons.{name}.epochs": 2 for name in own_sections()},
        **{f"comparisons.{name}.dropout": 0.0 for name in ("mcat", "hipt", "clam_sb", "gpdbn", "camr")},
    }
    return load_profile("smoke", small)


def own_sections() -> list[str]:
    return [name for name, field in ComparisonSettings.model_fields.items() if field.annotation is MethodSettings]


# --- which settings -------------------------------------------------------------------------------------------------


def dotted_fields() -> list[str]:
    """Every setting that could concern predictions, to its last field."""
    found = [f"survival.{name}" for name in SurvivalSettings.model_fields if name != "network"]
    found += [f"survival.network.{name}" for name in ("dim", "depth", "heads", "mlp_ratio")]
    found += [f"fidelity.{name}" for name in Fidelity.model_fields]
    found += [f"omics.{name}" for name in OmicsSettings.model_fields]
    for name in ComparisonSettings.model_fields:
        inner = MethodSettings.model_fields if name in own_sections() else None
        found += [f"comparisons.{name}.{field}" for field in inner] if inner else [f"comparisons.{name}"]
    return found


def changed(profile: Profile, dotted: str) -> Profile:
    """The profile with another value of one setting."""
    path = dotted.split(".")
    chain: list[Any] = [profile]
    for name in path[:-1]:
        chain.append(getattr(chain[-1], name))
    value: Any = _other(chain[-1], path[-1])
    for settings, name in zip(reversed(chain), reversed(path), strict=True):
        value = settings.model_copy(update={name: value})
    return value


def _other(settings: Settings, name: str) -> Any:
    value, kind = getattr(settings, name), type(settings).model_fields[name].annotation
    if isinstance(value, bool):
        return not value
    choices = [kind, *(get_args(kind) if get_origin(kind) is not Literal else ())]
    options = next((get_args(choice) for choice in choices if get_origin(choice) is Literal), ())
    if options:
        return next(option for option in options if option != value)
    if isinstance(value, dict):
        return {"rna": "log"}
    if value is None:
        return 0.5 if "float" in str(kind) else 2
    if isinstance(value, int):
        return value * 2 or 3
    return value / 2 if value else 0.25


SECTIONS = {
    "SurvivalSettings": "survival",
    "Network": "survival.network",
    "Fidelity": "fidelity",
    "OmicsSettings": "omics",
    "ComparisonSettings": "comparisons",
    "Protocol": "protocol",
    "Compute": "compute",
}


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[str]]:
    """Call something and give the names of all settings whose value was looked at."""

    def follow(work: Callable[[], Any], own: str = "") -> set[str]:
        seen: set[str] = set()

        def watched(self: Settings, name: str) -> Any:
            kind = type(self)
            if name in kind.__pydantic_fields__:
                section = SECTIONS.get(kind.__name__) or (f"comparisons.{own}" if kind is MethodSettings else None)
                if section is not None:
                    seen.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(Settings, "__getattribute__", watched, raising=False)
            work()
        return seen - {"survival.network", *(f"comparisons.{name}" for name in own_sections())}

    return follow


def fit(name: str, data: SurvivalData, profile: Profile) -> np.ndarray:
    rows = np.arange(PATIENTS)
    inputs = survival.fold_inputs(METHODS[name], data, rows[:18], rows[18:], profile, HONEST, 0)
    return survival.fit_fold(METHODS[name], inputs).risk


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_the_key_holds_the_settings_that_a_fit_reads(name: str, profile: Profile, spy: Any) -> None:
    """Declared settings are read; what is read and not in the key (a builder's common argument) changes no risk."""
    data = make_data()
    read = spy(lambda: fit(name, data, profile), own=name)
    key = predictions_key(name, data, profile, HONEST, 0)
    declared = set(key.settings) - {"seed"}
    assert declared <= read
    risk = fit(name, data, profile)
    for dotted in sorted(read - declared):
        assert not dotted.startswith("protocol."), dotted
        other = changed(profile, dotted)
        try:
            settings = predictions_key(name, data, other, HONEST, 0).settings
            if settings != key.settings:  # acts through a setting of the survival stage
                continue
            found = fit(name, data, other)
        except ValueError as refused:
            assert "dropout is set" in str(refused)  # noqa: PT017
            continue
        # Parts of a group add up in another order; Adam makes rounding a little larger.
        close = 5e-3 if dotted == "survival.micro_batch" else 1e-6
        np.testing.assert_allclose(found, risk, atol=close, err_msg=dotted)


def test_all_settings_of_omics_are_read_by_a_selection(profile: Profile, spy: Any) -> None:
    data, rows = make_data(tables()), np.arange(PATIENTS)
    read: set[str] = set()
    for changes in ({}, {"differential": "deseq2", "candidates": None}):
        settings = profile.model_copy(update={"omics": profile.omics.model_copy(update=changes)})
        read |= spy(lambda s=settings: survival.fold_inputs(METHODS["coxnet_omics"], data, rows, rows, s, HONEST, 0))
    assert read >= {f"omics.{name}" for name in OmicsSettings.model_fields}


STALE = ("hcmae", "trans_mo", "mae_patreg", "mcat", "hipt", "gpdbn", "deepcorrsurv", "coxnet_omics", "cox_clinical")
# Written out once more, so that a slip in a registration is seen.
NETWORK = {
    *(f"survival.{name}" for name in ("learning_rate", "weight_decay", "epochs", "warmup_epochs", "schedule")),
    *(f"survival.{name}" for name in ("group", "clip_norm", "ensemble", "inner_fraction", "patience")),
    "fidelity.drop_last_group",
}
OVER_BAGS = {"survival.region_dropout", "survival.bag_limit"}
OWN_LOSS = {"survival.ties", "fidelity.cox_divisor"}
WIDTH = {f"survival.network.{name}" for name in ("dim", "depth", "heads", "mlp_ratio")}
OMICS = {f"omics.{name}" for name in OmicsSettings.model_fields}


def expected(name: str, profile: Profile) -> set[str]:
    """Settings whose change must make a method's predictions stale, from what it is."""
    found = {
        "hcmae": NETWORK
        | OVER_BAGS
        | OWN_LOSS
        | WIDTH
        | OMICS
        | {"survival.scale_vectors", "survival.dropout", "survival.omics_dropout"}
        | {f"fidelity.{field}" for field in ("slide_positions", "omics_projection", "pooler", "risk_head")},
        "trans_mo": NETWORK
        | OWN_LOSS
        | WIDTH
        | OMICS
        | {"survival.dropout", "survival.omics_dropout", "fidelity.omics_projection", "fidelity.risk_head"},
        "mae_patreg": NETWORK
        | OVER_BAGS
        | OWN_LOSS
        | {"survival.scale_vectors", "survival.dropout", "fidelity.risk_head"},
        "mcat": NETWORK
        | OVER_BAGS
        | OMICS
        | {"survival.scale_vectors", "comparisons.bins", "comparisons.balanced_sampling", "comparisons.mcat_dim"}
        | {"comparisons.mcat.dropout"},
        "hipt": NETWORK
        | OVER_BAGS
        | {"survival.scale_vectors", "comparisons.bins", "comparisons.balanced_sampling", "comparisons.hipt_dim"}
        | {"comparisons.hipt.dropout"},
        "gpdbn": NETWORK | OWN_LOSS | OMICS | {"comparisons.gpdbn_features", "comparisons.gpdbn.dropout"},
        "deepcorrsurv": NETWORK
        | OVER_BAGS
        | OWN_LOSS
        | OMICS
        | {"comparisons.correlation_epochs", "comparisons.correlation_learning_rate", "survival.micro_batch"},
        "coxnet_omics": OMICS | {"survival.inner_fraction"},
        "cox_clinical": {"survival.inner_fraction"},
    }[name]
    if name not in own_sections():
        return found
    # What a publication sets stands before the survival stage's own value.
    own = getattr(profile.comparisons, name)
    for field in ("learning_rate", "weight_decay", "epochs", "group", "schedule"):
        found = found | {f"comparisons.{name}.{field}"}
        if getattr(own, field) is not None:
            found = found - {f"survival.{field}"}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", STALE)
def test_each_setting_makes_exactly_its_predictions_stale(
    name: str, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tables())
    # Settings alone are asked here; the code is the same throughout.
    monkeypatch.setattr(survival, "code_of", lambda *objects: "same")
    before = predictions_key(name, data, profile, HONEST, 0).digest
    stale = set()
    for dotted in dotted_fields():
        if dotted == "comparisons.deepcorrsurv.dropout" and name == "deepcorrsurv":
            with pytest.raises(ValueError, match="no dropout"):
                predictions_key(name, data, changed(profile, dotted), HONEST, 0)
        elif predictions_key(name, data, changed(profile, dotted), HONEST, 0).digest != before:
            stale.add(dotted)
    assert stale == expected(name, profile)


def test_other_stages_and_speed_leave_predictions_alone(profile: Profile) -> None:
    data = make_data()
    before = predictions_key("hcmae", data, profile, HONEST, 0)
    for update in (
        {"network": profile.network.model_copy(update={"depth": 9})},
        {"mae_patch": profile.mae_patch.model_copy(update={"mask_ratio": 0.5})},
        {"compute": profile.compute.model_copy(update={"workers": 7, "compile": True})},
        {"name": "other"},
    ):
        assert predictions_key("hcmae", data, profile.model_copy(update=update), HONEST, 0) == before
    half = profile.model_copy(update={"compute": profile.compute.model_copy(update={"precision": "bf16"})})
    changes = predictions_key("hcmae", data, half, HONEST, 0).changes(before.record())
    assert changes == ["setting compute.precision: auto -> bf16"]


@pytest.mark.slow
def test_a_protocol_counts_where_it_is_used(profile: Profile) -> None:
    data = make_data()

    def key(method: str, **changes: Any) -> str:
        return predictions_key(method, data, profile, Protocol(**changes), 0).digest

    assert key("cox_clinical") == key("cox_clinical", name="x", epoch="last", select_on="all")
    assert key("coxnet_omics") == key("coxnet_omics", epoch="last")
    assert key("coxnet_omics") != key("coxnet_omics", select_on="all")
    assert key("mae_patreg") == key("mae_patreg", select_on="all", name="x")
    assert key("mae_patreg") != key("mae_patreg", epoch="last")
    # Time bins follow the patients that may be learnt from.
    assert key("hipt") != key("hipt", select_on="all")
    waiting = profile.model_copy(update={"survival": profile.survival.model_copy(update={"patience": 4})})
    last = Protocol(epoch="last")
    assert predictions_key("hipt", data, waiting, last, 0) == predictions_key("hipt", data, profile, last, 0)
    # Linear models have inner folds under every protocol, networks where one of them chooses the epoch.
    halves = profile.model_copy(update={"survival": profile.survival.model_copy(update={"inner_fraction": 0.5})})
    for name, same in (("cox_clinical", False), ("hipt", True)):
        keys = [predictions_key(name, data, settings, last, 0) for settings in (profile, halves)]
        assert (keys[0] == keys[1]) == same


# --- which inputs ---------------------------------------------------------------------------------------------------


def test_the_content_of_every_bag_counts_not_its_weights(profile: Profile) -> None:
    data = replace(make_data(), weights={"region": "abc"})
    before = predictions_key("hcmae", data, profile, HONEST, 0).record()

    def reasons(**changes: Any) -> list[str]:
        return predictions_key("hcmae", replace(data, **changes), profile, HONEST, 0).changes(before)

    other = make_data(seed=1)
    sizes = data.sizes("region")
    for kind in ("region", "positions", "thumbnail"):
        values = data.bags[kind].values.clone()
        values[0] += 1
        assert reasons(bags={**data.bags, kind: PackedBags(values, sizes)}) == [f"input {kind}: changed"]
    # The same numbers elsewhere in memory, and vectors that the method does not read, change nothing.
    copy = PackedBags(data.bags["region"].values.clone(), sizes)
    assert reasons(bags={**data.bags, "region": copy, "region_reg": other.bags["region_reg"]}) == []
    assert reasons(weights={"region": "xyz"}) == []
    assert reasons(omics=other.omics) == ["input omics: changed"]
    assert reasons(time=data.time + 1) == ["input outcome: changed"]
    assert reasons(clinical=None) == []
    shuffled = PackedBags(data.bags["region"].values, sizes[::-1].copy())
    assert shuffled.content() != data.bags["region"].content()


def test_a_bag_written_into_is_another_bag() -> None:
    bag = PackedBags(torch.zeros(4, 2), [2, 2])
    before = bag.content()
    assert bag.content() == before
    bag.values[1] += 1
    assert bag.content() != before


def test_names_and_units_of_omics_count(profile: Profile) -> None:
    def key(omics: Any, settings: Profile = profile, normals: Any = None) -> str:
        data = replace(make_data(omics), normals=normals)
        return predictions_key("coxnet_omics", data, settings, HONEST, 0).digest

    renamed, unit = tables(), tables()
    renamed["rna"].columns = ["other", *renamed["rna"].columns[1:]]
    unit["rna"].attrs["values"] = "log"
    assert len({key(tables()), key(renamed), key(unit)}) == 3
    assert key(tables()) == key(tables())
    # Tables of normal tissue count where the contrast reads them.
    normals = {"rna": tables()["rna"].iloc[:4]}
    assert key(tables(), normals=normals) == key(tables())
    contrast = profile.omics.model_copy(update={"contrast": "tumour_normal"})
    against = profile.model_copy(update={"omics": contrast})
    assert key(tables(), against, normals) != key(tables(), against, {"rna": normals["rna"] + 1})


# --- which code -----------------------------------------------------------------------------------------------------

CELL = """
import torch
from hcmae.survival.methods import Method, register

class Mean(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.head = torch.nn.Linear(dim, 1)
    def forward(self, regions, mask):
        divisor = {divisor}
        return self.head((regions * mask[..., None]).sum(1) / divisor).squeeze(1)

method = Method("cell", "Mean", "image", {{"regions": "region"}}, lambda sizes, profile: Mean(sizes.vector_dim))
"""


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Method]]:
    """Run a notebook's cell: a module of the user's own, made anew each time."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(divisor: str) -> Method:
        run.count += 1  # type: ignore[attr-defined]
        name = f"cell_{run.count}"  # type: ignore[attr-defined]
        (tmp_path / f"{name}.py").write_text(CELL.format(divisor=divisor))
        return __import__(name).method

    run.count = 0  # type: ignore[attr-defined]
    yield run
    METHODS.pop("cell", None)


def test_an_edited_network_gives_new_predictions(
    cell: Callable[[str], Method], tmp_path: Path, profile: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data()
    folds = make_folds(data.patients, data.time, data.event, 2, 1, 0)

    def predict() -> pd.DataFrame:
        return cross_validate("cell", data, folds, profile, out_dir=tmp_path / "out", device="cpu")

    register(cell("mask.sum(1, keepdim=True)"))
    first = predict()
    # The same cell again, commented: the same method, nothing is trained.
    register(cell("mask.sum(1, keepdim=True)  # items"), replace=True)
    assert predict().equals(first)
    assert len(list((tmp_path / "out" / "parts").rglob("*.parquet"))) == 2
    with caplog.at_level(logging.INFO, logger="hcmae.survival.cross_validate"):
        register(cell("1"), replace=True)
        second = predict()
    assert "predictions are made again (code method: changed)" in caplog.text
    assert not np.allclose(first["risk"], second["risk"])
    record = read_json(tmp_path / "out" / "cell.key.json")
    assert predictions_key("cell", data, profile, HONEST, 0).changes(record) == []
    assert (tmp_path / "out" / "parts" / f"cell-{record['key']}.json").exists()


def test_a_name_that_is_taken_says_how_to_replace_it() -> None:
    with pytest.raises(ValueError, match=r"register\(\.\.\., replace=True\)"):
        register(METHODS["hcmae"])
    assert register(METHODS["hcmae"], replace=True) is METHODS["hcmae"]


@pytest.mark.slow
def test_keys_are_the_same_in_another_process() -> None:
    """Sets and addresses differ between processes, keys do not."""
    names = ("hcmae", "mcat", "gpdbn", "clam_sb", "coxnet_omics")
    settings, data = load_profile("smoke"), make_data(tables())
    ours = [predictions_key(name, data, settings, HONEST, 0).digest for name in names]
    lines = (
        "import hcmae.survival; from tests.survival.test_predictions_key import *;"
        "settings, data = load_profile('smoke'), make_data(tables());"
        f"print(*[predictions_key(name, data, settings, HONEST, 0).digest for name in {names}])"
    )
    found = subprocess.run(
        [sys.executable, "-c", lines],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ours
    assert len(set(ours)) == len(names)
