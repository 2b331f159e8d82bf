"""Tables and sentences of the lessons on survival, comparison, leaks and omics, from invented predictions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hcmae.config import load_profile
from hcmae.evaluation import compare, metrics, tables
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.pipeline import leaks, page_omics, page_tables
from tests.support.predictions import predictions


def data_with(*kinds: str, regions: tuple[int, ...] = (3, 12)) -> Any:
    return SimpleNamespace(
        patients=["A", "B"],
        event=np.array([1, 0]),
        has=lambda kind: kind in kinds,
        sizes=lambda kind: np.array(regions),
    )


def test_a_cohort_in_words_names_regions_where_there_are_some() -> None:
    assert page_tables.size_in_words(data_with("region")) == "2 patients, 1 deaths, 15 regions (3 to 12 per slide)."
    assert page_tables.size_in_words(data_with()) == "2 patients, 1 deaths."


def test_a_stand_in_says_what_is_missing() -> None:
    assert page_tables.stand_in(data_with("omics", "region", "thumbnail")) == ""
    assert page_tables.stand_in(data_with("omics")).endswith("this run has no slides.")
    assert page_tables.stand_in(data_with("region", "thumbnail")).endswith("this run has no omics.")


def test_a_method_without_a_printed_value_has_none() -> None:
    own = {"hcmae": tables.Score(0.7, 0.1, 0.6, 0.8), "trans_mo": tables.Score(0.6, 0.1, 0.5, 0.7)}
    frame = page_tables.score_frame(own, page_tables.paper_scores("LIHC"))
    assert frame.loc["hcmae", "paper"] == pytest.approx(0.737)
    assert np.isnan(frame.loc["trans_mo", "paper"])
    assert list(frame.columns) == ["mean", "low", "high", "paper"]


def test_neighbours_are_adjusted_together_and_none_is_an_empty_table() -> None:
    made = {name: predictions(noise=noise) for name, noise in (("mae_pat", 3.0), ("mae_reg", 2.0), ("mae_patreg", 0.5))}
    pairs = [("mae_patreg", "mae_pat"), ("mae_patreg", "mae_reg")]
    rows = page_tables.neighbour_differences(made, pairs)
    assert list(zip(rows["first"], rows["second"], strict=True)) == pairs
    np.testing.assert_allclose(rows["p_holm"], compare.holm(rows["p"]))
    assert page_tables.neighbour_differences(made, []).empty


def test_only_cancers_with_every_method_are_ranked() -> None:
    run: Any = SimpleNamespace(cancer="LIHC")
    score = tables.Score(0.7, 0.1)
    scores = {"hcmae": {"LIHC": score, "BRCA": score}, "trans_mo": {"LIHC": score}}
    assert list(page_tables.complete_means(run, scores).index) == ["LIHC"]


def test_ranks_in_words_name_those_that_are_told_apart() -> None:
    names = ("hcmae", "mcat", "trans_mo", "coxnet_omics", "gpdbn", "camr", "hipt", "clam_sb")
    cancers = [f"C{number}" for number in range(12)]
    means = pd.DataFrame([np.linspace(0.8, 0.5, len(names))] * 12, cancers, names)
    said = page_tables.ranks_in_words(compare.rank_methods(means), cancers, "hcmae")
    assert said.startswith("8 methods on 12 cancers (C0, ")
    assert "HC-MAE, mean rank 1.0, is told apart from" in said
    assert "CLAM-SB" in said.split("apart from")[1]
    assert "MCAT" not in said.split("apart from")[1]
    level = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 8)), cancers[:4], names)
    assert page_tables.ranks_in_words(compare.rank_methods(level), cancers[:4], "hcmae").endswith("from none.")


def test_both_cut_offs_split_the_same_patients() -> None:
    made = predictions(repeats=1)
    shown = page_tables.cut_offs(made)
    assert list(shown.index) == ["training_median", "pooled_median"]
    assert shown.loc["pooled_median", "high-risk patients"] == "60 of 120"
    kept = page_tables.figure2_numbers({"hcmae": risk_groups(made)})["hcmae"]
    assert kept["p_permuted"] is None
    assert 0 < float(kept["p_naive"] or 0) < 1


def test_a_leak_is_a_row_and_what_both_add_is_paired() -> None:
    honest, leaky = predictions(repeats=1, noise=3.0), predictions(repeats=1, noise=0.2)
    made = {"no leak": honest, "both": leaky}
    rows = leaks.protocol_rows("LIHC", "permuted", made, 0.03, 0)
    assert list(rows["protocol"]) == ["no leak", "both"]
    assert rows["mean"].iloc[1] == pytest.approx(metrics.mean_concordance(leaky)[0])
    gain = leaks.leaks_add("LIHC", "permuted", "trans_mo", {**made, "both": honest}, 0)
    assert (gain["both leaks add"], gain["low"], gain["high"]) == (0, 0, 0)
    assert leaks.over_the_band(rows.assign(mean=[0.5, 0.9])) == ["LIHC, both (0.900)"]
    assert leaks.over_the_band(rows.assign(mean=0.9, labels="true")) == []
    kept = leaks.records([rows, rows.assign(method="x")])
    assert [row["method"] for row in kept] == [None, None, "x", "x"]


def test_protocols_differ_in_one_leak_each() -> None:
    known = {name: (protocol.select_on, protocol.epoch) for name, protocol in leaks.PROTOCOLS.items()}
    assert known["no leak"] == ("train", "last")
    assert known["select on all"] == ("all", "last")
    assert known["best test epoch"] == ("train", "best_test")
    assert known["both"] == ("all", "best_test")


def test_planted_genes_are_counted_among_as_many_smallest_p() -> None:
    genes = [f"G{number}" for number in range(10)]
    tests = {"good": np.arange(10) / 10, "bad": 1 - np.arange(10) / 10}
    tables_of_p = {name: pd.DataFrame({"p": p}, genes) for name, p in tests.items()}
    found = page_omics.planted_first(tables_of_p, ["G0", "G1", "not tested"])
    assert found.loc["good"].to_dict() == {"planted genes tested": 2, "share found": 1.0}
    assert found.loc["bad", "share found"] == 0.0


def test_tables_are_described_and_groups_counted() -> None:
    table: Any = SimpleNamespace(X=np.array([[0.1, np.nan], [0.5, 0.9]], np.float32), declared="beta")
    row = page_omics.described({"methylation": table}).loc["methylation"]
    assert (row["patients"], row["features"], row["unit"], row["missing"]) == (2, 2, "beta", "25.00%")
    said = page_omics.groups_in_words(np.array([1, 1, 0, -1]), 365)
    assert said.startswith("2 patients died within 365 days, 1 are known")
    assert page_omics.paper_test({}, None, load_profile("smoke").omics) is None


def test_hidden_values_are_filled_better_by_neighbours_where_profiles_are_alike() -> None:
    rng = np.random.default_rng(0)
    profile = rng.normal(size=(40, 1)) @ rng.normal(size=(1, 60))
    table: Any = SimpleNamespace(X=(profile + 0.01 * rng.normal(size=profile.shape)).astype(np.float32))
    errors = page_omics.filling_errors(table, load_profile("smoke").omics, 0, share=0.05)
    assert errors["nearest neighbours"] < errors["mean of the probe"] / 2
