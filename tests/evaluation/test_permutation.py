"""The permutation test of a whole procedure: its p-value, its resuming, and what it says where nothing is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hcmae.evaluation.kaplan_meier import compare_groups, log_rank_statistic, risk_groups
from hcmae.evaluation.optimism import group_statistic, null_p_values
from hcmae.evaluation.permutation import PermutationTest, permutation_test
from tests.support.predictions import outcome, predictions


def ranked_groups(x: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two-fold groups by features weighted with their covariance with rank: nothing but numpy, microseconds."""
    rank = stats.rankdata(time)
    high = np.zeros(len(time), bool)
    for number in range(2):
        train, test = np.arange(len(time)) % 2 != number, np.arange(len(time)) % 2 == number
        weights = x[train].T @ (rank[train].mean() - rank[train])
        high[test] = x[test] @ weights > np.median(x[train] @ weights)
    return rank, high


def rank_statistic(found: tuple[np.ndarray, np.ndarray]) -> float:
    """Chi-square of the rank-sum test of the groups."""
    rank, high = found
    n, m = len(rank), int(high.sum())
    if m in (0, n):
        return 0.0
    return float((rank[high].sum() - m * (n + 1) / 2) ** 2 / (m * (n - m) * (n + 1) / 12))


def null_draw(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 3])
    return rng.normal(size=(n, 3)), rng.exponential(1000, n), np.ones(n, int)


def test_p_counts_the_orders_that_reach_the_truth() -> None:
    test = PermutationTest(3.0, (1.0, 3.0, 4.0, 0.5))
    assert test.p == 3 / 5
    assert test.naive_p == pytest.approx(stats.chi2.sf(3.0, 1))
    assert test.naive_null.shape == (4,)
    assert test.text() == "p = 0.6 (4 permutations)"
    assert PermutationTest(9.0, (1.0,) * 19).text() == "p = 0.05, the least that 19 permutations can give"


def test_the_naive_statistic_is_that_of_the_risk_groups() -> None:
    frame = predictions()
    assert stats.chi2.sf(log_rank_statistic(frame), 1) == pytest.approx(risk_groups(frame).log_rank_p)
    assert log_rank_statistic(frame.assign(high=True)) == 0
    assert log_rank_statistic(frame.assign(event=0)) == 0


def test_a_true_effect_is_found() -> None:
    x, _, event = null_draw(1, 80)
    time = np.random.default_rng(0).exponential(np.exp(-3 * x[:, 0])) * 500
    test = permutation_test(lambda t, _: ranked_groups(x, t), rank_statistic, time, event, permutations=39)
    assert test.p == 1 / 40


def test_permuted_p_values_are_uniform_where_naive_ones_are_not() -> None:
    permuted, naive = [], []
    for seed in range(200):
        x, time, event = null_draw(seed)
        test = permutation_test(
            lambda t, _, x=x: ranked_groups(x, t), rank_statistic, time, event, permutations=9, seed=seed
        )
        permuted.append(test.randomised_p(np.random.default_rng([seed, 4])))
        naive.append(test.naive_p)
    assert stats.kstest(permuted, "uniform").pvalue > 0.01
    assert stats.kstest(naive, "uniform").pvalue < 0.01
    assert np.mean(np.array(naive) < 0.05) > 0.08


def test_the_experiment_of_the_lesson_in_small() -> None:
    """Cox scores, censoring and five folds; at full size it is benchmarks/permutation.py."""
    table = null_p_values(12, patients=40, permutations=9)
    assert stats.kstest(table["permuted"], "uniform").pvalue > 0.01
    assert table["naive"].between(0, 1).all()
    pd.testing.assert_frame_equal(table.head(3), null_p_values(3, patients=40, permutations=9))


def test_the_score_statistic_is_the_log_rank_statistic() -> None:
    time, event, risk = outcome(60)
    groups = compare_groups(time, event, risk > 0)
    assert stats.chi2.sf(group_statistic(time, event, risk > 0), 1) == pytest.approx(groups.log_rank_p)
    assert group_statistic(time, event, risk > 100) == 0


def test_finished_permutations_are_kept_and_added_to(tmp_path: Path) -> None:
    x, time, event = null_draw(2)
    calls = []

    def procedure(t: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        return ranked_groups(x, t)

    kept = {"kept": tmp_path / "p.json", "key": "one"}
    first = permutation_test(procedure, rank_statistic, time, event, permutations=4, **kept)
    assert len(calls) == 5
    assert permutation_test(procedure, rank_statistic, time, event, permutations=4, **kept) == first
    assert len(calls) == 5
    more = permutation_test(procedure, rank_statistic, time, event, permutations=6, **kept)
    assert (len(calls), more.null[:4]) == (7, first.null)
    # Fewer than are kept are the first ones, as if no more had been asked for.
    assert permutation_test(procedure, rank_statistic, time, event, permutations=4, **kept) == first
    permutation_test(procedure, rank_statistic, time, event, permutations=1, **{**kept, "key": "another"})
    assert len(calls) == 9


def test_what_cannot_be_permuted_is_refused(tmp_path: Path) -> None:
    x, time, event = null_draw(2)
    with pytest.raises(ValueError, match="0 permutations"):
        permutation_test(lambda *_: x, rank_statistic, time, event, permutations=0)
    with pytest.raises(ValueError, match="without a key"):
        permutation_test(lambda *_: x, rank_statistic, time, event, kept=tmp_path / "p.json")
    with pytest.raises(ValueError, match="permutation 0: the statistic is nan"):
        permutation_test(lambda *_: x, lambda _: float("nan"), time, event)
