"""The benchmark over many draws: its tables from known numbers, and both experiments on a small cohort."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import draws
from hcmae.config import load_profile
from hcmae.evaluation import metrics
from hcmae.survival.data import SurvivalData
from tests.support.predictions import predictions


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    """90 patients whose hazard is the first omics feature; few and small networks."""
    rng = np.random.default_rng(0)
    omics = rng.normal(size=(90, 3, 8)).astype(np.float32)
    hazard = 1.5 * omics[:, 0, 0]
    names = [f"TCGA-ZZ-{number:04d}" for number in range(90)]
    clinical = pd.DataFrame({"age": rng.normal(60, 10, 90), "sex": "female", "stage": "Stage II"}, index=names)
    data = SurvivalData(names, rng.exponential(1000 * np.exp(-hazard)) + 1, np.ones(90, int), {}, omics, clinical)
    settings = {"survival.epochs": 2, "survival.ensemble": 1, "survival.folds": 3}
    return SimpleNamespace(
        survival_data=data,
        profile=load_profile("smoke", settings),
        dir=tmp_path,
        seed=0,
        truth=lambda: pd.DataFrame({"log_hazard": hazard}, index=names),
    )


def test_null_tables_are_means_over_draws() -> None:
    rows = pd.DataFrame(
        [
            {
                "draw": draw,
                "protocol": protocol,
                "method": "trans_mo",
                "c_index": value,
                "ibs_excess": np.nan if draw == 2 else 0.01 * (1 + draw / 100) * (1 if protocol == "paper" else 0),
            }
            for protocol, values in (("honest", (0.4, 0.5, 0.6)), ("paper", (0.7, 0.7, 0.8)))
            for draw, value in enumerate(values)
        ]
    )
    tables = draws.summarise_null(rows)
    honest, paper = tables["C-index of labels that mean nothing"]
    assert honest["mean"] == pytest.approx(0.5)
    assert honest["standard_error"] == pytest.approx(0.1 / np.sqrt(3))
    # Student's t with two degrees of freedom.
    assert honest["high"] == pytest.approx(0.5 + 4.302653 * 0.1 / np.sqrt(3))
    assert paper["draws"] == 3
    assert [row["interval holds 0.5"] for row in (honest, paper)] == [True, False]
    # A draw whose follow-up is too short is left out, and counted as left out.
    curves, leaky = tables["integrated Brier score minus Kaplan-Meier's"]
    assert (curves["draws"], curves["mean"], curves["above Kaplan-Meier beyond its interval"]) == (2, 0.0, False)
    assert leaky["mean"] == pytest.approx(0.01005)
    assert leaky["above Kaplan-Meier beyond its interval"]
    (added,) = tables["what the protocol of the paper adds"]
    assert added["mean"] == pytest.approx(np.mean([0.3, 0.2, 0.2]))


@pytest.mark.slow
def test_null_draws_shuffle_the_outcome_and_resume(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "LEAKING", ("trans_mo",))
    methods = ["cox_clinical", "trans_mo"]
    rows = pd.DataFrame(draws.null_draws(run, methods, 2, 1))
    assert len(rows) == 2 * 3  # two methods under the honest protocol, one under the paper's
    clinical = rows.loc[rows["method"] == "cox_clinical", "c_index"]
    assert clinical.nunique() == 2
    assert (clinical - 0.5).abs().max() < 0.25
    assert rows["ibs_excess"].notna().all()
    assert rows["ibs_excess"].abs().max() < 0.2
    monkeypatch.setattr("hcmae.survival.cross_validate.run_fold", lambda *_: pytest.fail("a fold was trained again"))
    pd.testing.assert_frame_equal(rows, pd.DataFrame(draws.null_draws(run, methods, 2, 1)))


@pytest.mark.slow
def test_seeds_repeat_the_folds_of_every_method(run: SimpleNamespace) -> None:
    tables = draws.seed_draws(run, ["coxnet_omics", "cox_clinical"], 2, 1)
    net, clinical = tables["C-index"]
    assert net["mean"] > 0.65 > clinical["mean"]
    # The oracle rates all patients at once, a fold its own: on 90 patients the share may pass 1.
    assert 0.7 < net["share_of_the_way"] < 1.3
    assert (net["repeats"], net["low"] < net["mean"] < net["high"]) == (2, True)
    assert net["IBS minus Kaplan-Meier's"] < 0
    assert "HC-MAE minus the method" not in tables


def test_curves_that_tell_everybody_the_same_have_no_excess() -> None:
    frame = predictions()
    own, everybody = metrics.integrated_brier(frame)
    assert draws.brier_excess(frame) == pytest.approx(own - everybody)
    assert np.isnan(draws.brier_excess(frame.drop(columns=[name for name in frame if name.startswith("S@")])))
