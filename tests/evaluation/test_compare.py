"""Comparisons of methods against their formulas, statsmodels and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hcmae.evaluation import compare
from tests.support.predictions import predictions


def test_nadeau_bengio_by_hand() -> None:
    d = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    mean, error, p = compare.nadeau_bengio(d, 0.2)
    expected = np.sqrt((1 / 5 + 0.25) * d.var(ddof=1))
    assert (mean, error) == (pytest.approx(0.026), pytest.approx(expected))
    assert p == pytest.approx(2 * stats.t.sf(0.026 / expected, 4))
    # More careful than the plain paired test.
    assert p > stats.ttest_1samp(d, 0).pvalue
    assert compare.nadeau_bengio([0.0, 0.0], 0.2)[2] == 1.0
    with pytest.raises(ValueError, match="two folds"):
        compare.nadeau_bengio([0.1, np.nan], 0.2)
    with pytest.raises(ValueError, match="share"):
        compare.nadeau_bengio(d, 1.0)


def test_corrected_interval_and_p_value_agree() -> None:
    d = np.array([0.02, 0.05, -0.01, 0.04, 0.03, 0.06, 0.01, 0.02, 0.05, np.nan])
    interval = compare.corrected_interval(d, 0.2)
    mean, error, p = compare.nadeau_bengio(d, 0.2)
    assert interval.value == mean == pytest.approx(np.nanmean(d))
    assert interval.high - mean == pytest.approx(stats.t.ppf(0.975, 8) * error)
    assert (interval.low > 0) == (p < 0.05)
    exact = compare.corrected_interval(d, 0.2, level=1 - p)
    assert exact.low == pytest.approx(0, abs=1e-12)


def test_corrected_test_keeps_its_level_where_the_plain_one_does_not() -> None:
    """Two equal methods whose folds share training noise: correlation 1/k, what Nadeau and Bengio assume."""
    rng = np.random.default_rng(0)
    corrected = plain = 0
    for _ in range(600):
        d = np.sqrt(0.2) * rng.normal() + np.sqrt(0.8) * rng.normal(size=10)
        corrected += compare.nadeau_bengio(d, 0.2)[2] < 0.05
        plain += stats.ttest_1samp(d, 0).pvalue < 0.05
    assert plain / 600 > 0.15
    assert 0.02 < corrected / 600 < 0.08


def test_holm_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(11) ** 3
    assert compare.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_by_hand() -> None:
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.9, 0.8]).max() == 1.0


def test_compare_finds_the_better_method_and_not_a_difference_of_nothing() -> None:
    # Same folds, so only the risks differ.
    good = predictions(noise=0.2)
    bad = good.assign(risk=good["risk"] + np.random.default_rng(1).normal(size=len(good)) * 2)
    table = compare.compare({"good": good, "bad": bad, "same": good.copy()}, "good", draws=200).set_index("second")
    assert table.loc["bad", "low"] > 0
    assert table.loc["bad", "p_holm"] >= table.loc["bad", "p"]
    assert table.loc["bad", "nb_low"] < table.loc["bad", "difference"] < table.loc["bad", "nb_high"]
    assert (table.loc["bad", "nb_low"] > 0) == (table.loc["bad", "p"] < 0.05)
    assert table.loc["same", "difference"] == 0
    assert table.loc["same", "p"] == 1
    assert len(compare.compare({"a": good, "b": bad, "c": good}, draws=20)) == 3
    with pytest.raises(KeyError, match="no predictions"):
        compare.compare({"good": good}, "other")


def test_comparison_needs_the_same_folds() -> None:
    frame = predictions()
    other = frame.assign(fold=(frame["fold"] + 1) % 5)
    with pytest.raises(ValueError, match="same folds"):
        compare.paired_folds(frame, other)
    with pytest.raises(ValueError, match="different outcomes"):
        compare.paired_folds(frame, frame.assign(event=1 - frame["event"]))


@pytest.mark.parametrize(
    ("methods", "q"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_difference_has_the_published_quantiles(methods: int, q: float) -> None:
    # Table 5a of Demsar 2006; its last digit is off by one at 3 and 7 methods.
    difference = compare.nemenyi_difference(methods, 14)
    assert difference == pytest.approx(q * np.sqrt(methods * (methods + 1) / 84), abs=0.0011)


def test_ranks_by_hand() -> None:
    scores = pd.DataFrame(
        {"a": [0.9, 0.8, 0.7, np.nan], "b": [0.8, 0.8, 0.6, 0.5], "c": [0.5, 0.6, 0.5, 0.6]},
        index=["LIHC", "BRCA", "LUAD", "COAD"],
    )
    ranks = compare.rank_methods(scores)
    # LIHC 1 2 3, BRCA 1.5 1.5 3, LUAD 1 2 3; COAD lacks a method.
    assert ranks.mean.to_dict() == pytest.approx({"a": 3.5 / 3, "b": 5.5 / 3, "c": 3.0})
    assert list(ranks.mean.index) == ["a", "b", "c"]
    assert ranks.cancers == ("LIHC", "BRCA", "LUAD")
    assert ranks.left_out == ("COAD",)
    # 2 * (2.5^2 + 0.5^2 + 3^2) / (2 + 1.5 + 2)
    assert ranks.statistic == pytest.approx(2 * 15.5 / 5.5)
    assert ranks.p == pytest.approx(np.exp(-ranks.statistic / 2))
    assert ranks.critical_difference == pytest.approx(2.344 * np.sqrt(12 / 18), abs=1e-3)
    assert ranks.groups == (("a", "b", "c"),)


def test_friedman_equals_scipy_with_and_without_ties() -> None:
    rng = np.random.default_rng(3)
    for digits in (6, 1):
        values = rng.normal(size=(6, 5)).round(digits)
        ranks = compare.rank_methods(pd.DataFrame(values, columns=list("abcde")))
        expected = stats.friedmanchisquare(*values.T)
        assert ranks.statistic == pytest.approx(expected.statistic)
        assert ranks.p == pytest.approx(expected.pvalue)


def test_bars_join_what_cannot_be_told_apart() -> None:
    # Twenty cancers that agree: ranks 1 to 5 exactly, and a critical difference of 1.36.
    same = pd.DataFrame(np.tile([0.9, 0.8, 0.7, 0.6, 0.5], (20, 1)), columns=list("abcde"))
    ranks = compare.rank_methods(same)
    assert ranks.critical_difference == pytest.approx(2.728 * np.sqrt(30 / 120), abs=1e-3)
    assert ranks.groups == (("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))
    # Sixty: 0.79, so that no two ranks are alike and there is no bar.
    assert compare.rank_methods(pd.concat([same] * 3, ignore_index=True)).groups == ()
    none = compare.rank_methods(pd.DataFrame(np.ones((3, 2)), columns=["a", "b"]))
    assert (none.statistic, none.p, none.groups) == (0.0, 1.0, (("a", "b"),))


def test_ranks_need_two_methods_and_two_cancers() -> None:
    for scores in (
        pd.DataFrame({"a": [0.5, 0.6]}),
        pd.DataFrame({"a": [0.5], "b": [0.6]}),
        pd.DataFrame({"a": [0.5, np.nan], "b": [0.6, 0.7]}),
    ):
        with pytest.raises(ValueError, match="at least two of each"):
            compare.rank_methods(scores)
