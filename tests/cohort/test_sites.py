"""Hospitals of patients, and folds that keep them whole."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcmae.cohort.evidence import CurationError
from hcmae.cohort.sites import UnevenFoldsWarning, imbalance, make_site_folds, site_of, sites_of
from hcmae.cohort.splits import FewEventsWarning


def cohort(sizes: list[int], seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    site = np.repeat([f"S{number}" for number in range(len(sizes))], sizes)
    count = len(site)
    return [f"P{n}" for n in range(count)], rng.exponential(800, count), rng.random(count) < 0.5, site


def shares(folds: pd.DataFrame, time: np.ndarray, event: np.ndarray, n_folds: int) -> np.ndarray:
    fold, early = folds["fold"].to_numpy(), event & (time <= np.median(time[event]))
    counted = [np.bincount(fold, weights=rows, minlength=n_folds) for rows in (np.ones(len(time)), event, early)]
    return np.array([line / line.sum() for line in counted])


def test_no_site_is_in_two_folds_and_deaths_are_balanced() -> None:
    patients, time, event, site = cohort([30, 25, 20, 18, 15, 12, 10, 9, 8, 7, 6, 5])
    folds = make_site_folds(patients, time, event, site, 3, 2, seed=3)
    assert (folds.groupby(["repeat", "site"])["fold"].nunique() == 1).all()
    assert folds.groupby("repeat")["patient"].nunique().tolist() == [len(patients)] * 2
    for _, part in folds.groupby("repeat"):
        assert np.abs(shares(part, time, event, 3) - 1 / 3).max() < 0.04
    first, second = (part.set_index("patient")["fold"] for _, part in folds.groupby("repeat"))
    # Other sites together, not only other numbers of the same folds.
    assert len(pd.crosstab(first, second).stack().loc[lambda count: count > 0]) > 3
    assert folds.equals(make_site_folds(patients, time, event, site, 3, 2, seed=3))


def test_balance_is_the_best_of_all_assignments() -> None:
    """Six sites have 3^6 ways into three folds: none is better by more than the solver's gap."""
    patients, time, event, site = cohort([14, 11, 9, 8, 5, 3], seed=4)
    labels, of_site = np.unique(site, return_inverse=True)
    found = make_site_folds(patients, time, event, site, 3, seed=0)
    ways = (np.array(way) for way in itertools.product(range(3), repeat=len(labels)) if len(set(way)) == 3)
    best = min(imbalance(shares(pd.DataFrame({"fold": way[of_site]}), time, event, 3)) for way in ways)
    assert imbalance(shares(found, time, event, 3)) <= best + 0.02 * (1 + best) + 1e-9


def test_what_cannot_be_had_is_said_with_the_largest_site() -> None:
    patients, time, event, site = cohort([30, 5, 5])
    with pytest.raises(ValueError, match=r"3 sites cannot fill 5 folds.*S0, has 30 of 40"):
        make_site_folds(patients, time, event, site, 5)
    with pytest.warns((UnevenFoldsWarning, FewEventsWarning), match="whole sites ha"):
        make_site_folds(patients, time, event, site, 3)
    alone = event & (site == "S0")
    with pytest.raises(ValueError, match="without a death"):
        make_site_folds(patients, time, alone, site, 3)
    with pytest.raises(ValueError, match="nobody twice"):
        make_site_folds([patients[0], *patients[:-1]], time, event, site, 3)


def test_site_stands_in_the_barcode_or_in_a_column(tmp_path: Path) -> None:
    assert site_of("TCGA-DD-A1EB") == "DD"
    assert site_of("P001") is None
    assert sites_of(["TCGA-DD-A1EB", "TCGA-2Y-A9GS"], "gdc", tmp_path).tolist() == ["DD", "2Y"]
    table = pd.DataFrame(
        {"patient": ["P1", "P2"], "time_days": [400, 500], "event": [1, 0], "Hospital": ["Kiel", "Ulm"]}
    )
    table.to_csv(tmp_path / "clinical.tsv", sep="\t", index=False)
    assert sites_of(["P2", "P1"], "local", tmp_path).to_dict() == {"P2": "Ulm", "P1": "Kiel"}
    table.rename(columns={"Hospital": "ward"}).to_csv(tmp_path / "clinical.tsv", sep="\t", index=False)
    with pytest.raises(CurationError, match="which hospital patient P2 is from"):
        sites_of(["P2", "P1"], "local", tmp_path)
    (tmp_path / "columns.json").write_text(json.dumps({"clinical": {"site": "ward"}}))
    assert sites_of(["P1"], "local", tmp_path).tolist() == ["Kiel"]
    twice = pd.concat([table, table.assign(Hospital="Bonn")]).rename(columns={"Hospital": "ward"})
    twice.to_csv(tmp_path / "clinical.tsv", sep="\t", index=False)
    with pytest.raises(CurationError, match="P1 is from 'Kiel' and from 'Bonn'"):
        sites_of(["P1"], "local", tmp_path)
