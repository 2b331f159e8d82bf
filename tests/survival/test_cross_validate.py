"""Cross-validation: it learns, it leaks nothing, it resumes, it repeats, and it refuses what it cannot use."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from hcmae.cohort.splits import make_folds
from hcmae.config import Profile, Protocol
from hcmae.evaluation import metrics
from hcmae.interpretation import interpret
from hcmae.survival import cross_validate as survival
from hcmae.survival import fit as fitting
from hcmae.survival.bags import PackedBags, pad, places_left, thin
from hcmae.survival.cross_validate import cross_validate, train_models
from hcmae.survival.data import SurvivalData, load_tables
from hcmae.survival.fold import fold_omics
from hcmae.survival.linear import numeric_clinical
from hcmae.survival.methods import METHODS, Method, register

DIM, SIDE = 16, 8
HONEST, LAST = Protocol(), Protocol(name="last", epoch="last")


def cohort(n: int = 60, seed: int = 0, strength: float = 1.5) -> SurvivalData:
    """One latent factor moves regions, patches, omics, stage and the hazard."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=n)
    death = rng.exponential(np.exp(-strength * factor))
    censor = rng.exponential(2.0, n)
    sizes = rng.integers(1, 5, n)
    direction = rng.normal(size=DIM)
    bags = {
        kind: PackedBags.from_list(
            [(factor[i] * direction + rng.normal(size=(sizes[i] * times, DIM))).astype(dtype) for i in range(n)]
        )
        for kind, times, dtype in (("region", 1, np.float32), ("region_reg", 1, np.float32), ("patch", 4, np.float16))
    }
    bags["thumbnail"] = PackedBags.from_list(
        [rng.integers(0, 256, (size, SIDE, SIDE, 3)).astype(np.uint8) for size in sizes]
    )
    bags["positions"] = PackedBags.from_list([rng.integers(0, 5, (size, 2)).astype(np.float32) for size in sizes])
    omics = (factor[:, None, None] * rng.normal(size=(1, 3, 6)) + rng.normal(size=(n, 3, 6))).astype(np.float32)
    stages = np.array(["Stage I", "Stage II", "Stage IIIA", "Stage IV"])[np.digitize(factor, [-1, 0, 1])]
    clinical = pd.DataFrame({"age": rng.normal(60, 9, n), "sex": "male", "stage": stages})
    return SurvivalData(
        [f"TCGA-AA-{i:04d}" for i in range(n)],
        np.minimum(death, censor) * 1000 + 1,
        (death <= censor).astype(int),
        bags,
        omics,
        clinical,
    )


@pytest.fixture(scope="module")
def data() -> SurvivalData:
    return cohort()


@pytest.fixture(scope="module")
def folds(data: SurvivalData) -> pd.DataFrame:
    return make_folds(data.patients, data.time, data.event, 3, 1, seed=0)


@pytest.fixture
def profile(tiny_profile: Profile) -> Profile:
    settings = tiny_profile.survival.model_copy(
        update={"epochs": 6, "learning_rate": 3e-3, "ensemble": 1, "group": None, "network": tiny_profile.network}
    )
    return tiny_profile.model_copy(update={"survival": settings})


def changed(profile: Profile, **settings) -> Profile:
    return profile.model_copy(update={"survival": profile.survival.model_copy(update=settings)})


BOOK = [
    "hcmae",
    "mae_pat",
    "mae_reg",
    "mae_patreg",
    "hc_regsli",
    "hc_patregsli",
    "trans_mo",
    "abmil_patch",
    "cox_clinical",
    "coxnet_omics",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOOK)
def test_every_method_learns_a_strong_signal(
    name: str, data: SurvivalData, folds: pd.DataFrame, profile: Profile
) -> None:
    predictions = cross_validate(name, data, folds, changed(profile, epochs=20, group=20), LAST, device="cpu")
    assert sorted(predictions["patient"]) == data.patients
    # Without omics the questions come from thumbnails, which are random here.
    assert metrics.mean_concordance(predictions)[0] > (0.55 if name.startswith("hc_") else 0.6)
    curves = predictions.filter(like="S@").to_numpy()
    assert ((curves >= 0) & (curves <= 1)).all()
    assert (np.diff(curves, axis=1) <= 1e-12).all()


@pytest.mark.slow
def test_test_labels_are_never_used(data: SurvivalData, folds: pd.DataFrame, profile: Profile) -> None:
    """Wrong outcomes of the test patients of a fold leave that fold's risks untouched under the honest protocol."""
    tested = set(folds.loc[folds["fold"] == 0, "patient"])
    rows = np.array([p in tested for p in data.patients])
    time, event = data.time.copy(), data.event.copy()
    time[rows], event[rows] = time[rows][::-1], 1 - event[rows]
    other = SurvivalData(data.patients, time, event, data.bags, data.omics, data.clinical)
    for name in ("hcmae", "coxnet_omics", "cox_clinical"):
        for protocol in (HONEST, LAST):
            first, second = (
                cross_validate(name, d, folds, changed(profile, epochs=2), protocol, device="cpu")
                for d in (data, other)
            )
            same = first["fold"] == 0
            assert np.allclose(first.loc[same, "risk"], second.loc[same, "risk"], atol=1e-6), (name, protocol.name)


@pytest.mark.parametrize(("patience", "epochs"), [(None, 20), (2, 5), (0.25, 8)])
def test_patience_is_a_number_of_epochs_or_a_share_of_them(
    patience: float | None, epochs: int, data: SurvivalData, folds: pd.DataFrame, profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scores: list[float] = []

    def falling(*_: object) -> float:
        scores.append(1.0 - len(scores) / 100)
        return scores[-1]

    monkeypatch.setattr(fitting, "_inner_score", falling)
    tested = set(folds.loc[folds["fold"] == 0, "patient"])
    test = np.array([row for row, name in enumerate(data.patients) if name in tested])
    train = np.setdiff1d(np.arange(len(data.patients)), test)
    waiting = changed(profile, epochs=20, ensemble=1, patience=patience)
    inputs = survival.fold_inputs(METHODS["trans_mo"], data, train, test, waiting, Protocol.preset("honest"), 0)
    fitting.fit_network(METHODS["trans_mo"], inputs)
    # The best of three epochs that are averaged is the third, the first that counts.
    assert len(scores) == epochs


def test_paper_protocol_takes_the_best_test_epoch(data: SurvivalData, folds: pd.DataFrame, profile: Profile) -> None:
    task_rows = np.array([i for i, p in enumerate(data.patients) if p in set(folds.loc[folds["fold"] == 0, "patient"])])
    train = np.setdiff1d(np.arange(len(data.patients)), task_rows)
    leaky = Protocol(name="leak", epoch="best_test")
    inputs = survival.fold_inputs(METHODS["trans_mo"], data, train, task_rows, profile, leaky, 0)
    output = fitting.fit_network(METHODS["trans_mo"], inputs)
    curve = output.info["test_curve"]
    assert len(curve) == profile.survival.epochs
    reported = metrics.concordance(data.time[task_rows], data.event[task_rows], output.risk)
    assert reported == pytest.approx(max(curve))


@pytest.mark.slow
def test_same_seed_same_risks_and_state_of_torch_is_kept(
    data: SurvivalData, folds: pd.DataFrame, profile: Profile
) -> None:
    noisy = changed(profile, epochs=2, dropout=0.3, region_dropout=0.3, omics_dropout=0.2, ensemble=2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = cross_validate("hcmae", data, folds, noisy, seed=1, device="cpu")
    assert torch.rand(1) == expected
    second = cross_validate("hcmae", data, folds, noisy, seed=1, device="cpu")
    third = cross_validate("hcmae", data, folds, noisy, seed=2, device="cpu")
    assert first["risk"].equals(second["risk"])
    assert not np.allclose(first["risk"], third["risk"])


def test_folds_note_what_they_cost(tmp_path, data: SurvivalData, folds: pd.DataFrame, profile: Profile) -> None:
    fast = changed(profile, epochs=1, ensemble=2)
    cross_validate("trans_mo", data, folds, fast, out_dir=tmp_path, device="cpu")
    costs = survival.fold_costs(tmp_path, "trans_mo")
    assert list(costs["fold"]) == [0, 1, 2]
    assert (costs["seconds"] > 0).all()
    assert (costs["networks"] == 2).all()
    models, _ = train_models("trans_mo", data, np.arange(len(data.patients)), fast)
    assert (costs["parameters"] == sum(p.numel() for p in models[0].parameters())).all()
    assert costs["gpu_mib"].isna().all()
    # A fold of an earlier version has no note: it is not trained again, and says nothing.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.parquet")}
    sorted((tmp_path / "parts").rglob("*.json"))[0].unlink()
    cross_validate("trans_mo", data, folds, fast, out_dir=tmp_path, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert survival.fold_costs(tmp_path, "trans_mo")["seconds"].isna().tolist() == [True, False, False]
    assert survival.fold_costs(tmp_path, "hcmae").empty


def test_resume_skips_finished_folds(
    tmp_path, data: SurvivalData, folds: pd.DataFrame, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = changed(profile, epochs=1)
    whole = cross_validate("trans_mo", data, folds, fast, out_dir=tmp_path, device="cpu")
    parts = sorted((tmp_path / "parts").rglob("*.parquet"))
    assert len(parts) == 3
    parts[1].unlink()
    calls = []
    real = survival.fit_fold
    monkeypatch.setattr(survival, "fit_fold", lambda *a: calls.append(1) or real(*a))
    again = cross_validate("trans_mo", data, folds, fast, out_dir=tmp_path, device="cpu")
    assert len(calls) == 1
    assert np.allclose(whole["risk"], again["risk"])
    assert (tmp_path / "trans_mo.parquet").exists()
    # Other settings are other work.
    cross_validate("trans_mo", data, folds, changed(profile, epochs=2), out_dir=tmp_path, device="cpu")
    assert len(calls) == 4


def test_parallel_folds_give_the_same(data: SurvivalData, folds: pd.DataFrame, profile: Profile) -> None:
    fast = changed(profile, epochs=1)
    one = cross_validate("mae_patreg", data, folds, fast, device="cpu")
    two = cross_validate("mae_patreg", data, folds, fast, workers=2, device="cpu")
    assert np.allclose(one["risk"], two["risk"])


def test_micro_batches_give_the_gradient_of_the_group(data: SurvivalData, profile: Profile) -> None:
    method = METHODS["hcmae"]
    rows = np.arange(24)
    gradients = []
    for part in (None, 5):
        # Dropout is drawn anew for every part: only without it can the two be equal.
        settings = changed(profile, micro_batch=part, dropout=0.0, omics_dropout=0.0)
        inputs = survival.fold_inputs(method, data, rows, np.arange(24, 60), settings, LAST, 0)
        torch.manual_seed(0)
        model = method.build(fitting.sizes_for(method, inputs), settings)
        fitting._group_gradient(
            method, inputs, fitting.Feeder(method, inputs), model, rows, torch.Generator().manual_seed(0)
        )
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_bags_that_fit_nowhere_at_once_give_the_same_numbers(
    data: SurvivalData, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some kinds on the device, vectors in parts, patients predicted one by one: what is fed stays the same."""
    method, rows = METHODS["hcmae"], np.arange(40)
    inputs = survival.fold_inputs(method, data, rows, np.arange(40, 60), profile, LAST, 0)
    usual = fitting.Feeder(method, inputs)
    assert set(usual.resident) == set(usual.kinds.values())
    small = min(usual.bytes_of.values()) * int(data.sizes("region").max()) * len(data.patients)
    batches, vectors = [], []
    for resident, part in ((fitting.RESIDENT_BYTES, fitting.PART_BYTES), (small, 2000), (0, 2000)):
        monkeypatch.setattr(fitting, "RESIDENT_BYTES", resident)
        monkeypatch.setattr(fitting, "PART_BYTES", part)
        feeder = fitting.Feeder(method, inputs)
        batches.append(feeder(rows[5:11]))
        vectors.append(list(feeder.vectors(rows)))
    assert [len(found) > 1 for found in vectors] == [False, True, True]
    for batch, found in zip(batches, vectors, strict=True):
        assert all(torch.equal(batch[name], value) for name, value in batches[0].items())
        assert torch.equal(torch.cat(found), vectors[0][0])
    places = list(fitting._alike(usual, rows, 256))
    assert len(places) == 1
    monkeypatch.setattr(fitting, "PADDED_BYTES", usual.item_bytes * int(data.sizes("region").max()) * 2)
    places = list(fitting._alike(usual, rows, 256))
    assert sorted(np.concatenate(places)) == list(rows)
    assert all(
        len(some) * data.sizes("region")[rows[some]].max() * usual.item_bytes <= fitting.PADDED_BYTES for some in places
    )
    torch.manual_seed(0)
    model = method.build(fitting.sizes_for(method, inputs), profile)
    in_parts = fitting.predict(method, model, usual, rows)
    monkeypatch.setattr(fitting, "PADDED_BYTES", 512 << 20)
    assert np.allclose(in_parts, fitting.predict(method, model, usual, rows), atol=1e-6)


def test_nobody_is_dropped_unless_asked() -> None:
    rng = np.random.default_rng(0)
    rows = np.arange(130)
    groups = fitting.group_rows(rows, 60, False, rng)
    assert sorted(np.concatenate(groups)) == list(rows)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    dropped = fitting.group_rows(rows, 60, True, rng)
    assert [len(g) for g in dropped] == [60, 60]
    assert fitting.group_rows(rows, None, False, rng)[0] is rows


def test_bags() -> None:
    bags = PackedBags.from_list([np.full((size, 2), size, dtype=np.float32) for size in (3, 1, 4)])
    padded = pad(bags.packed(np.array([2, 1])), bags.sizes[[2, 1]])
    assert padded.mask.sum(1).tolist() == [4, 1]
    assert padded.values[1, 1:].abs().sum() == 0
    g = torch.Generator().manual_seed(0)
    assert torch.equal(thin(padded.mask, drop=0.0, limit=None, generator=g), padded.mask)
    for _ in range(20):
        kept = thin(padded.mask, drop=0.9, limit=2, generator=g)
        assert not (kept & ~padded.mask).any()
        assert kept.sum(1).min() >= 1
        assert kept.sum(1).max() <= 2
        places, mask = places_left(kept)
        values = padded.values[torch.arange(len(kept))[:, None], places]
        assert torch.equal(mask.sum(1), kept.sum(1))
        assert values[mask].tolist() == padded.values[kept].tolist()
    with pytest.raises(ValueError, match="sum to"):
        PackedBags(np.zeros((5, 2)), [2, 2])
    with pytest.raises(ValueError, match="share"):
        thin(padded.mask, drop=1.0, limit=None, generator=g)


def test_bag_limit_trains(data: SurvivalData, folds: pd.DataFrame, profile: Profile) -> None:
    out = cross_validate("abmil_patch", data, folds, changed(profile, bag_limit=3, epochs=2), LAST, device="cpu")
    assert np.isfinite(out["risk"]).all()


def broken(data: SurvivalData, **changes) -> SurvivalData:
    fields = {
        "patients": data.patients,
        "time": data.time,
        "event": data.event,
        "bags": data.bags,
        "omics": data.omics,
        "clinical": data.clinical,
    }
    return SurvivalData(**{**fields, **changes})


def test_data_are_checked(data: SurvivalData) -> None:
    holed = PackedBags(np.zeros((59, 4), np.float32), np.r_[1, 1, 0, np.ones(57, int)])
    with pytest.raises(ValueError, match=r"TCGA-AA-0002 has no item in its bag of 'region'"):
        broken(data, bags={"region": holed})
    with pytest.raises(ValueError, match="patients but"):
        broken(data, patients=data.patients[:-1])
    with pytest.raises(ValueError, match="row 0"):
        broken(data, time=np.r_[np.nan, data.time[1:]])
    with pytest.raises(ValueError, match="chosen omics"):
        broken(data, omics=np.zeros((3, 3, 3)))
    tables = {m: pd.DataFrame(np.zeros((60, 2)), index=data.patients) for m in ("methylation", "rna", "mirna")}
    assert list(broken(data, omics=tables).omics) == ["rna", "mirna", "methylation"]
    with pytest.raises(ValueError, match="unknown omics modality 'protein'"):
        broken(data, omics={**tables, "protein": tables["rna"]})
    with pytest.raises(ValueError, match="first difference at TCGA-AA-0059"):
        broken(data, omics={**tables, "rna": tables["rna"].iloc[::-1]})


def test_what_cannot_be_run_says_why(data: SurvivalData, folds: pd.DataFrame, profile: Profile) -> None:
    with pytest.raises(KeyError, match="choose from hcmae"):
        cross_validate("nonsense", data, folds, profile)
    with pytest.raises(ValueError, match="needs 'omics'"):
        cross_validate("trans_mo", broken(data, omics=None), folds, profile)
    with pytest.raises(ValueError, match="in no fold"):
        cross_validate("cox_clinical", data, folds.iloc[1:], profile)
    lonely = data.event.copy()
    lonely[[p not in set(folds.loc[folds["fold"] == 1, "patient"]) for p in data.patients]] = 0
    with pytest.raises(ValueError, match="no event"):
        cross_validate("trans_mo", broken(data, event=lonely), folds, profile, device="cpu")
    bad = data.omics.copy()
    bad[5] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        cross_validate("trans_mo", broken(data, omics=bad), folds, changed(profile, epochs=1), LAST, device="cpu")


def test_a_test_fold_without_events_is_predicted_and_scored_nan(data: SurvivalData, profile: Profile) -> None:
    calm = np.flatnonzero(data.event == 0)[:8]
    fold = 1 + np.arange(60) % 2
    fold[calm] = 0
    folds = pd.DataFrame({"patient": data.patients, "repeat": 0, "fold": fold})
    out = cross_validate("cox_clinical", data, folds, profile)
    with pytest.warns(UserWarning, match="fewer than"):
        table = metrics.fold_concordance(out)
    assert np.isnan(table.loc[table["fold"] == 0, "c_index"]).all()
    assert np.isfinite(table.loc[table["fold"] > 0, "c_index"]).all()


def test_registry() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register(METHODS["hcmae"])
    with pytest.raises(ValueError, match="either build"):
        Method("x", "X", "image")
    with pytest.raises(ValueError, match="needs 'pixels'"):
        Method("x", "X", "image", {"x": "pixels"}, lambda sizes, profile: torch.nn.Identity())
    assert METHODS["hcmae"].needs == {"region", "thumbnail", "omics"}


def test_clinical_columns_as_numbers() -> None:
    table = pd.DataFrame(
        {
            "stage": ["Stage IIIB", "IV", "2", "not reported", None],
            "sex": ["Male", "female", "F", "", None],
            "age": [61, "70", None, "x", 3.5],
        }
    )
    assert np.array_equal(numeric_clinical(table, "stage"), [3, 4, 2, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(numeric_clinical(table, "sex"), [1, 0, 0, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(numeric_clinical(table, "age"), [61, 70, np.nan, np.nan, 3.5], equal_nan=True)
    assert np.isnan(numeric_clinical(table.drop(columns="age"), "age")).all()


def test_selection_sees_training_rows_only(profile: Profile) -> None:
    """Of pure noise, features chosen on everybody score well above chance, features chosen in training do not."""
    rng = np.random.default_rng(0)
    n = 90
    names = [f"TCGA-AA-{i:04d}" for i in range(n)]
    tables = {
        m: pd.DataFrame(rng.normal(size=(n, 150)), index=names, columns=[f"{m}{j}" for j in range(150)])
        for m in ("rna", "mirna")
    }
    for table in tables.values():
        table.attrs["values"] = "log"
    data = SurvivalData(names, rng.exponential(500, n), (rng.random(n) < 0.6).astype(int), omics=tables)
    settings = profile.model_copy(
        update={"omics": profile.omics.model_copy(update={"differential": "cox_score", "trees": 5, "candidates": 30})}
    )
    folds = make_folds(names, data.time, data.event, 3, 1, seed=0)
    cache: dict = {}
    scores = {
        select: metrics.mean_concordance(
            cross_validate("coxnet_omics", data, folds, settings, Protocol(select_on=select), omics_cache=cache)
        )[0]
        for select in ("all", "train")
    }
    # Everybody's selection is made once, the others once per fold and once per inner fold of each.
    assert len(cache) == 1 + 3 * (1 + 5)
    assert scores["all"] > 0.6 > scores["train"]
    values, chosen = fold_omics(data, np.arange(60), settings, HONEST, 0, cache)
    assert values.shape == (90, 2, settings.omics.top_k)
    assert set(chosen) == {"rna", "mirna"}
    assert abs(values[:60].mean()) < 0.05


def test_a_network_may_be_trained_on_everybody(data: SurvivalData, profile: Profile) -> None:
    everyone = np.arange(len(data.patients))
    models, inputs = train_models("hcmae", data, everyone, changed(profile, epochs=1, ensemble=1), LAST)
    assert len(models) == 1
    assert len(inputs[0].test) == 0


def test_interpretation(data: SurvivalData, profile: Profile) -> None:
    rows = np.arange(40)
    models, inputs = train_models("hcmae", data, rows, changed(profile, epochs=1, ensemble=2), LAST)
    attention = interpret.region_attention(models, inputs, np.array([40, 41]))
    for number, item in enumerate(attention):
        assert item.weights.shape == (3, data.sizes("region")[40 + number])
        assert np.allclose(item.weights.sum(1), 1, atol=1e-5)
    effect = interpret.region_importance(models, inputs, 41)
    assert effect.shape == (data.sizes("region")[41],)
    gradients = interpret.omics_gradients(models, inputs, np.array([40, 41]), steps=24)
    # Completeness: the attributions add up to the change of the log hazard from the baseline.
    batch = fitting.Feeder(METHODS["hcmae"], inputs[0])(np.array([40]))
    zero = {**batch, "omics": torch.zeros_like(batch["omics"])}
    with torch.no_grad():
        change = np.mean([(m(**batch) - m(**zero)).item() for m in models])
    assert gradients[0].sum() == pytest.approx(change, abs=2e-3)
    with pytest.raises(TypeError, match="omics-guided"):
        interpret.region_attention([torch.nn.Identity()], inputs[:1], np.array([40]))


def test_load_tables_reads_real_lihc(shared_data) -> None:
    from hcmae.manifest import load_manifest

    data = load_tables(shared_data / "lihc_real", load_manifest("LIHC"))
    assert len(data.patients) == 307
    assert data.has("omics")
    assert data.time.min() >= 30


@pytest.mark.slow
def test_permuted_labels_score_half(data: SurvivalData, profile: Profile) -> None:
    """The one test that catches both leaks: the whole road with labels that mean nothing."""
    scores = []
    for seed in range(6):
        nothing = cohort(80, 3).permuted(seed)
        folds = make_folds(nothing.patients, nothing.time, nothing.event, 4, 1, seed)
        out = cross_validate("hcmae", nothing, folds, changed(profile, epochs=4), HONEST, seed=seed, device="cpu")
        scores.append(metrics.mean_concordance(out)[0])
    assert abs(np.mean(scores) - 0.5) < 3 * 0.05 / np.sqrt(6) + 0.01
