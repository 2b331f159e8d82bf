"""Omics: every hand-written step against the library it replaces, and every kind of bad table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hcmae.config import OmicsSettings, Protocol, load_profile
from hcmae.files import read_json
from hcmae.omics import differential, report, scales
from hcmae.omics.cache import SelectorCache
from hcmae.omics.forest import SurvivalForest, concordance, library_forest
from hcmae.omics.importance import forest_importance, library_importance, permutations
from hcmae.omics.impute import NeighbourImputer, SharedSums, nan_distances
from hcmae.omics.readers import keep_tables_apart
from hcmae.omics.select import OmicsSelector, omics_tables
from hcmae.survival.data import SurvivalData
from hcmae.survival.fold import fold_omics
from hcmae.tables import TableNote

SMALL = OmicsSettings(differential="cox_score", top_k=10, candidates=40, trees=30, importance_repeats=2)


def survival(n: int, seed: int = 0, ties: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, event and the log hazard behind them; ``ties`` days are one day."""
    rng = np.random.default_rng(seed)
    hazard = rng.normal(size=n)
    death = np.ceil(rng.exponential(np.exp(-hazard)) * 1200 / ties) * ties + 30
    last = np.ceil(rng.exponential(1500, n) / ties) * ties + 30
    return np.minimum(death, last), (death <= last).astype(int), hazard


def cohort(n: int = 90, seed: int = 0, genes: int = 150) -> tuple[dict[str, pd.DataFrame], np.ndarray, np.ndarray]:
    """Counts, counts and betas with holes; the first 12 features of each follow the hazard."""
    time, event, hazard = survival(n, seed)
    rng = np.random.default_rng(seed + 1)
    index = [f"TCGA-XX-{i:04d}" for i in range(n)]

    def counts(p: int) -> pd.DataFrame:
        effect = np.zeros(p)
        effect[:12] = 0.6
        mean = rng.lognormal(5, 1, p) * np.exp(np.outer(hazard, effect)) * rng.lognormal(0, 0.4, (n, 1))
        return pd.DataFrame(rng.negative_binomial(6, 6 / (6 + mean)).astype("f4"), index, [f"g{i}" for i in range(p)])

    m = 1.5 * rng.normal(size=genes) + 0.7 * rng.normal(size=(n, genes))
    m[:, :12] += 0.8 * hazard[:, None]
    beta = (1 / (1 + 2.0**-m)).astype("f4")
    beta[rng.random(beta.shape) < 0.03] = np.nan
    tables = {
        "rna": counts(genes),
        "mirna": counts(60),
        "methylation": pd.DataFrame(beta, index, [f"cg{i}" for i in range(genes)]),
    }
    return tables, time, event


# ---------------------------------------------------------------------------------------------------------- forest


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p", "ties"), [(90, 30, 1), (60, 12, 90), (150, 80, 30)])
def test_forest_is_scikit_survivals_node_by_node(n: int, p: int, ties: int) -> None:
    time, event, hazard = survival(n, seed=n, ties=ties)
    X = np.random.default_rng(n).normal(size=(n, p)).astype("f4")
    X[:, 0] += hazard
    X[:, 1] = np.round(X[:, 1])  # tied values
    X[:, 2] = 1.0  # a constant, and one that is constant below the first splits
    X[:, 3] = (X[:, 3] > 1.5).astype("f4")
    ours = SurvivalForest(25, seed=11).fit(X, time, event)
    theirs = library_forest(X, time, event, trees=25, seed=11)
    for t, estimator in enumerate(theirs.estimators_):
        tree = estimator.tree_
        size = ours.arrays.size[t]
        assert size == tree.node_count
        inner = tree.feature >= 0
        np.testing.assert_array_equal(ours.arrays.feature[t, :size], np.where(inner, tree.feature, -1))
        np.testing.assert_array_equal(ours.arrays.threshold[t, :size][inner], tree.threshold[inner])
        np.testing.assert_array_equal(ours.arrays.count[t, :size], tree.n_node_samples)
        np.testing.assert_allclose(ours.arrays.value[t, :size], tree.value[:, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-12)
    assert ours.oob_score() == pytest.approx(theirs.oob_score_, abs=1e-12)


def test_every_feature_searched_equals_one_survival_tree() -> None:
    from sksurv.tree import SurvivalTree
    from sksurv.util import Surv

    time, event, _ = survival(120, seed=5, ties=60)
    X = np.random.default_rng(1).normal(size=(120, 15)).astype("f4")
    ours = SurvivalForest(1, max_features=None, bootstrap=False, seed=3).fit(X, time, event)
    # The seed a forest of seed 3 gives its first tree: it decides between splits that are exact ties.
    seed = int(np.random.RandomState(3).randint(np.iinfo(np.int32).max))
    tree = SurvivalTree(low_memory=True, random_state=seed).fit(X, Surv.from_arrays(event.astype(bool), time)).tree_
    size = ours.arrays.size[0]
    assert size == tree.node_count
    np.testing.assert_array_equal(ours.arrays.feature[0, :size], np.where(tree.feature >= 0, tree.feature, -1))
    np.testing.assert_allclose(ours.arrays.value[0, :size], tree.value[:, 0, 0], rtol=1e-12)


def test_forest_does_not_depend_on_the_number_of_threads() -> None:
    time, event, _ = survival(80)
    X = np.random.default_rng(2).normal(size=(80, 20)).astype("f4")
    one, two = (SurvivalForest(12, seed=4, workers=w).fit(X, time, event) for w in (1, 2))
    np.testing.assert_array_equal(one.predict(X), two.predict(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, t, e: (np.where(X > 2, np.nan, X), t, e), "impute"),
        (lambda X, t, e: (X, t, np.zeros_like(e)), "no patient has an event"),
        (lambda X, t, e: (X, t[:-1], e), "time"),
        (lambda X, t, e: (X[:, :0], t, e), "at least two patients and one feature"),
    ],
)
def test_forest_refuses_what_it_cannot_use(change, message: str) -> None:
    time, event, _ = survival(40)
    X = np.random.default_rng(0).normal(size=(40, 30))
    with pytest.raises(ValueError, match=message):
        SurvivalForest(2).fit(*change(X, time, event))


def test_concordance_is_scikit_survivals_with_every_kind_of_tie() -> None:
    from sksurv.metrics import concordance_index_censored

    rng = np.random.default_rng(9)
    for ties in (1, 200, 700):
        time, event, hazard = survival(70, seed=ties, ties=ties)
        risk = np.round(hazard + rng.normal(size=70), 1)
        risk[3] = risk[4] + 5e-9  # within the library's tolerance: tied
        expected = concordance_index_censored(event.astype(bool), time, risk)[0]
        assert concordance(time, event, risk) == pytest.approx(expected, abs=1e-15)


# ------------------------------------------------------------------------------------------------------ importance


@pytest.mark.slow
@pytest.mark.parametrize("ties", [1, 120])
def test_importance_equals_scikit_learns_on_the_same_permutations(ties: int) -> None:
    time, event, hazard = survival(70, seed=ties, ties=ties)
    X = np.random.default_rng(3).normal(size=(70, 9)).astype("f4")
    X[:, 0] += hazard
    X[:, 1] = np.round(X[:, 1])
    forest = SurvivalForest(30, seed=2).fit(X, time, event)
    theirs = library_importance(library_forest(X, time, event, trees=30, seed=2), X, time, event, repeats=3, seed=8)
    ours = forest_importance(forest, X, time, event, kind="permutation", repeats=3, seed=8)
    np.testing.assert_array_equal(ours.raw, theirs.raw)
    assert ours.baseline == theirs.baseline


def test_out_of_bag_importance_equals_the_plain_computation() -> None:
    time, event, hazard = survival(60, seed=9)
    X = np.random.default_rng(4).normal(size=(60, 8)).astype("f4")
    X[:, 0] += 3 * hazard
    forest = SurvivalForest(25, seed=5).fit(X, time, event)
    found = forest_importance(forest, X, time, event, kind="oob", repeats=2, seed=6)
    assert found.baseline == forest.oob_score()
    for r, order in enumerate(permutations(60, 2, 6)):
        for j in range(8):
            shuffled = X.copy()
            shuffled[:, j] = X[order, j]
            total, votes = np.zeros(60), np.zeros(60)
            for t in range(25):  # each tree votes for its out-of-bag patients on the permuted table
                a = forest.arrays
                for i in np.flatnonzero(a.copies[t] == 0):
                    node = 0
                    while a.feature[t, node] >= 0:
                        left = shuffled[i, a.feature[t, node]] <= a.threshold[t, node]
                        node = a.left[t, node] if left else a.right[t, node]
                    total[i] += a.value[t, node]
                    votes[i] += 1
            expected = forest.oob_score() - concordance(time, event, total / np.maximum(votes, 1))
            assert found.raw[j, r] == pytest.approx(expected, abs=1e-12)
    assert found.mean.argmax() == 0


def test_out_of_bag_importance_needs_the_forests_own_patients() -> None:
    time, event, _ = survival(40)
    X = np.random.default_rng(0).normal(size=(40, 5)).astype("f4")
    forest = SurvivalForest(5).fit(X, time, event)
    with pytest.raises(ValueError, match="very patients"):
        forest_importance(forest, X[::-1], time, event)
    with pytest.raises(ValueError, match="choose 'oob' or 'permutation'"):
        forest_importance(forest, X, time, event, kind="gini")


# ------------------------------------------------------------------------------------------------------ imputation


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p", "missing"), [(50, 120, 0.05), (30, 25, 0.45), (12, 9000, 0.01)])
def test_imputer_equals_scikit_learns(n: int, p: int, missing: float) -> None:
    from sklearn.impute import KNNImputer

    rng = np.random.default_rng(p)
    X, Z = (rng.normal(size=(rows, p)) for rows in (n, 14))
    X[rng.random(X.shape) < missing] = np.nan
    Z[rng.random(Z.shape) < missing] = np.nan
    X[:, np.isnan(X).all(axis=0)] = 0.0
    library, ours = KNNImputer(n_neighbors=5).fit(X), NeighbourImputer(5).fit(X)
    np.testing.assert_allclose(ours.transform(X), library.transform(X), atol=1e-10)
    np.testing.assert_allclose(ours.transform(Z), library.transform(Z), atol=1e-10)
    columns = np.array([1, 4, p - 1])
    np.testing.assert_array_equal(ours.transform(Z, columns), ours.transform(Z)[:, columns])


def test_patient_without_any_value_gets_the_mean_and_few_donors_are_enough() -> None:
    from sklearn.impute import KNNImputer

    X = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, 4.0], [5.0, 7.0, 9.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(NeighbourImputer(5).fit_transform(X), KNNImputer(n_neighbors=5).fit_transform(X))


def test_imputer_names_a_column_that_is_missing_everywhere() -> None:
    X = np.ones((5, 3))
    X[:, 1] = np.nan
    with pytest.raises(ValueError, match=r"column 1\): drop them first"):
        NeighbourImputer().fit(X)


def test_folds_share_the_sums_of_all_patients() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 80)).astype("f4")
    X[rng.random(X.shape) < 0.1] = np.nan
    kept = rng.random(80) < 0.8
    rows = np.arange(0, 30, 2)
    direct = X[rows][:, kept]
    np.testing.assert_allclose(SharedSums.of(X).take(rows).distances(kept), nan_distances(direct, direct), atol=1e-9)


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("ties", [1, 100])
def test_cox_score_is_the_derivative_of_the_partial_likelihood(ties: int) -> None:
    time, event, hazard = survival(60, seed=1, ties=ties)
    X = np.random.default_rng(0).normal(size=(60, 4)) + hazard[:, None] * [1, 0.5, 0, -1]

    def log_likelihood(x: np.ndarray, b: float) -> float:
        return sum(
            b * x[i] - np.log(np.exp(b * x[time >= time[i]]).sum()) for i in np.flatnonzero(event)
        )  # Breslow: every death has the whole risk set

    table = differential.cox_score(X, time, event, list("abcd"))
    h = 1e-4
    for j in range(4):
        low, middle, high = (log_likelihood(X[:, j], b) for b in (-h, 0.0, h))
        first, second = (high - low) / (2 * h), (high - 2 * middle + low) / h**2
        assert table["statistic"].iloc[j] == pytest.approx(first / np.sqrt(-second), rel=1e-4)
    assert table.index.tolist() == list("abcd")


def test_cox_score_agrees_with_a_fitted_cox_model() -> None:
    from lifelines import CoxPHFitter

    time, event, hazard = survival(300, seed=2)
    x = np.random.default_rng(1).normal(size=300) + 0.15 * hazard
    fitted = CoxPHFitter().fit(pd.DataFrame({"x": x, "t": time, "e": event}), "t", "e").summary["z"].iloc[0]
    assert differential.cox_score(x[:, None], time, event, ["x"])["statistic"].iloc[0] == pytest.approx(
        fitted, rel=0.03
    )


def test_moderated_t_by_hand() -> None:
    """Six patients, four features; variances, prior and t worked out step by step from Smyth's formulas."""
    X = np.array(
        [
            [1.0, 5.0, 2.0, 0.10],
            [2.0, 5.5, 2.2, 0.40],
            [3.0, 6.0, 2.7, 0.10],
            [4.0, 5.1, 9.0, 0.60],
            [5.0, 5.4, 9.1, 0.90],
            [6.0, 6.6, 9.5, 0.60],
        ]
    )
    group = np.array([0, 0, 0, 1, 1, 1])
    # Residual sums of squares by hand: (1+0+1)+(1+0+1) = 4, 0.5+1.26 = 1.76, 0.26+0.14 = 0.40, 0.06+0.06 = 0.12; df 4.
    variance = np.array([4.0, 1.76, 0.40, 0.12]) / 4
    np.testing.assert_allclose(variance, [1.0, 0.44, 0.1, 0.03])
    # e = log s2 - digamma(2) + log(2), digamma(2) = 0.4227843351; mean and spread of e, trigamma(2) = 0.6449340668.
    e = np.log(variance) - 0.4227843351 + np.log(2)
    spread = e.var(ddof=1) - 0.6449340668
    table = differential.moderated_t(X, group, ["f1", "f2", "f3", "f4"])
    d0, s0 = table.attrs["prior_df"], table.attrs["prior_variance"]
    from scipy.special import digamma, polygamma

    assert polygamma(1, d0 / 2) == pytest.approx(spread, rel=1e-6)
    assert np.log(s0) == pytest.approx(e.mean() + digamma(d0 / 2) - np.log(d0 / 2), rel=1e-6)
    posterior = (4 * variance + d0 * s0) / (4 + d0)
    effect = np.array([3.0, 0.2, 6.9, 0.5])
    np.testing.assert_allclose(table["effect"], effect, atol=1e-12)
    np.testing.assert_allclose(table["statistic"], effect / np.sqrt(posterior * (1 / 3 + 1 / 3)), rtol=1e-9)
    np.testing.assert_allclose(table["p"], 2 * stats.t.sf(np.abs(table["statistic"]), 4 + d0), rtol=1e-9)


def test_moderated_t_without_extra_scatter_shares_one_variance() -> None:
    # Equal variances: the prior is certain, every feature gets the common variance.
    base = np.array([-1.0, 0.0, 1.0, -1.0, 0.0, 1.0])[:, None]
    X = base + np.array([[0, 0, 0, 1, 1, 1]]).T * np.array([[0.0, 1.0, 2.0]])
    table = differential.moderated_t(X, np.array([0, 0, 0, 1, 1, 1]), list("abc"))
    assert np.isinf(table.attrs["prior_df"])
    assert table["statistic"].iloc[0] == 0.0
    assert table["statistic"].iloc[2] == pytest.approx(2 * table["statistic"].iloc[1])
    # Variance 4/4 of every feature, two groups of three: t = 1 / sqrt(1 * (1/3 + 1/3)).
    assert table.attrs["prior_variance"] == pytest.approx(1.0)
    assert table["statistic"].iloc[1] == pytest.approx(1 / np.sqrt(2 / 3))


def test_certain_prior_is_the_pooled_variance() -> None:
    # Nearly equal variances scatter less than 4 degrees of freedom would make them; limma then pools (mean of s2).
    variance = np.array([1.0, 1.1, 0.9, 1.05])
    prior_df, prior = differential.fit_variance_prior(variance, 4)
    assert np.isinf(prior_df)
    assert prior == pytest.approx(variance.mean())


def test_contrasts_under_unequal_follow_up() -> None:
    """Two centres, one watched for less; 300 features mark the centre, none has to do with survival."""
    shares: dict[str, list[float]] = {"event": [], "horizon": [], "horizon, long follow-up": [], "cox_score": []}
    for seed in range(6):
        for follow, names in (((700, 3000), ("event", "horizon", "cox_score")), ((2500, 5000), ("horizon",))):
            rng = np.random.default_rng(seed)
            centre = rng.integers(0, 2, 323)
            death = rng.exponential(1500, 323)
            last = rng.uniform(0.5, 1.0, 323) * np.where(centre == 1, follow[1], follow[0])
            time, event = np.ceil(np.minimum(death, last)), (death <= last).astype(int)
            X = rng.normal(size=(323, 300)) + centre[:, None]
            for name in names:
                if name == "cox_score":
                    table = differential.cox_score(X, time, event, range(300))
                else:
                    table = differential.moderated_t(X, differential.two_groups(time, event, name, 1095), range(300))
                shares[name if follow[0] < 1095 else "horizon, long follow-up"].append((table["p"] < 0.05).mean())
    found = {name: float(np.mean(values)) for name, values in shares.items()}
    # Every call is false. The Cox score keeps its level; dead against alive does not; nor does the horizon where a
    # centre was watched for less than the horizon.
    assert found["cox_score"] < 0.1
    assert found["event"] > 0.5
    assert 0.2 < found["horizon"] < found["event"]
    assert found["horizon, long follow-up"] < 0.15


def test_deseq2_gives_rs_numbers_on_its_example(repo: Path) -> None:
    """PyDESeq2's example counts, condition B against A; the numbers are those of R's DESeq2."""
    counts = pd.read_csv(repo / "tests" / "data" / "deseq2_counts.csv", comment="#", header=None, index_col=0)
    table = differential.deseq2(counts.T.to_numpy(), np.repeat([0, 1], 50), counts.index)
    fold = [0.632812, 0.538552, -0.632832, -0.412102, 0.582066, 0.001457, 0.134336, -0.270656, -0.212715, 0.386011]
    wald = [2.188877, 3.591234, -2.143584, -3.473903, 3.761809, 0.004696, 0.895650, -1.984256, -1.596431, 1.578222]
    np.testing.assert_allclose(table["effect"], fold, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(table["statistic"], wald, rtol=1e-3, atol=1e-5)
    assert table.loc["gene1", "base_mean"] == pytest.approx(8.541317, rel=1e-6)
    assert table.loc["gene4", "p"] == pytest.approx(0.000512947, rel=2e-3)


def test_deseq2_finds_what_was_planted() -> None:
    tables, _, _ = cohort(40, genes=30)
    counts = tables["rna"].to_numpy()
    group = np.repeat([0, 1], 20)
    counts[20:, :5] *= 6
    table = differential.deseq2(counts, group, tables["rna"].columns)
    assert set(table.sort_values("p").index[:5]) == {f"g{i}" for i in range(5)}
    assert (table["effect"].iloc[:5] > 1).all()
    assert table["p"].notna().all()


def test_benjamini_hochberg_by_hand() -> None:
    q = differential.benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(q, [0.02, 0.04, 0.04, 0.02])


def test_groups_of_the_two_contrasts() -> None:
    time, event = np.array([100, 400, 2000, 50, 1500, 300, 1200, 99]), np.array([1, 1, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(differential.two_groups(time, event, "horizon", 1000), [1, 1, 0, -1, 0, 1, 0, -1])
    np.testing.assert_array_equal(differential.two_groups(time, event, "event"), event)
    with pytest.raises(ValueError, match=r"three in each are needed: set omics\.horizon_days"):
        differential.two_groups(time, event, "horizon", 120)


# ---------------------------------------------------------------------------------------------------------- scales


def test_size_factors_undo_the_depth_of_a_library() -> None:
    tables, _, _ = cohort()
    counts = tables["rna"].to_numpy() + 1
    deep = counts.copy()
    deep[0] *= 8
    reference = scales.SizeFactors.fit(counts)
    assert reference(deep)[0] == pytest.approx(8 * reference(counts)[0])
    np.testing.assert_allclose(
        scales.log_expression(deep, reference(deep))[0], scales.log_expression(counts, reference(counts))[0], atol=1e-5
    )


def test_sparse_tables_fall_back_to_the_library() -> None:
    counts = np.random.default_rng(0).poisson(0.5, (30, 40)).astype("f4")
    counts[:, 0] += 1
    expected = counts.sum(axis=1) / np.median(counts.sum(axis=1))
    np.testing.assert_allclose(scales.SizeFactors.fit(counts)(counts), expected)


def test_m_values() -> None:
    np.testing.assert_allclose(scales.m_values(np.array([[0.5, 0.8, 0.0]], "f4"))[0, :2], [0.0, 2.0], atol=1e-6)
    assert np.isfinite(scales.m_values(np.array([[0.0, 1.0]], "f4"))).all()


# -------------------------------------------------------------------------------------------------------- selector


def as_mudata(tables: dict[str, pd.DataFrame]) -> mudata.MuData:
    keep_tables_apart()
    return mudata.MuData({name: anndata.AnnData(table) for name, table in tables.items()})


def test_selector_shapes_scaling_and_mudata() -> None:
    tables, time, event = cohort()
    selector = OmicsSelector(SMALL, seed=1).fit(tables, time, event)
    matrix = selector.transform(tables)
    assert matrix.shape == (90, 3, 10)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.mean(axis=0), 0.0, atol=0.05)
    assert 0.8 < matrix.std(axis=0).min() <= matrix.std(axis=0).max() < 1.01
    again = OmicsSelector(SMALL, seed=1).fit(as_mudata(tables), time, event).transform(as_mudata(tables))
    np.testing.assert_array_equal(matrix, again)
    assert list(selector.chosen) == ["rna", "mirna", "methylation"]
    assert selector.chosen["rna"]["rank"].tolist() == list(range(1, 11))
    only = OmicsSelector(SMALL, seed=1).fit({"mirna": tables["mirna"]}, time, event)
    np.testing.assert_array_equal(only.transform(tables)[:, 0], matrix[:, 1])


def test_what_other_patients_do_changes_nothing_that_was_fitted() -> None:
    """The leak test: values and labels of held-out patients never reach the selection or the training matrix."""
    tables, time, event = cohort()
    train = np.arange(60)
    part = {name: table.iloc[train] for name, table in tables.items()}
    fitted = OmicsSelector(SMALL).fit(part, time[train], event[train])
    changed = {name: table.copy() for name, table in tables.items()}
    changed["rna"].iloc[60:] = changed["rna"].iloc[60:].sample(frac=1, axis=1, random_state=0).to_numpy()
    changed["methylation"].iloc[60:] = 0.5
    np.testing.assert_array_equal(fitted.transform(tables)[:60], fitted.transform(changed)[:60])
    np.testing.assert_array_equal(fitted.transform(tables)[:60], fitted.transform(part))
    # One patient alone gets the values he gets in company.
    alone = {name: table.iloc[[70]] for name, table in tables.items()}
    np.testing.assert_allclose(fitted.transform(alone)[0], fitted.transform(tables)[70], atol=1e-6)


def test_selector_finds_the_planted_features() -> None:
    tables, time, event = cohort(160, seed=3)
    settings = SMALL.model_copy(update={"top_k": 30, "candidates": 60})
    selector = OmicsSelector(settings).fit(tables, time, event)
    for name, prefix in (("rna", "g"), ("mirna", "g"), ("methylation", "cg")):
        assert report.recovered(selector.chosen[name].index, [f"{prefix}{i}" for i in range(12)]) >= 0.8


@pytest.mark.slow
def test_paper_contrast_runs_on_counts_and_m_values() -> None:
    tables, time, event = cohort(50, genes=30)
    tables["mirna"] = tables["mirna"].iloc[:, :20]
    settings = SMALL.model_copy(update={"differential": "deseq2", "horizon_days": 600, "candidates": None})
    selector = OmicsSelector(settings).fit(tables, time, event)
    assert "base_mean" in selector.tested["rna"]
    assert "prior_df" in selector.tested["methylation"].attrs
    literal = settings.model_copy(update={"methylation_test": "deseq2"})
    only = {"methylation": tables["methylation"]}
    assert "base_mean" in OmicsSelector(literal).fit(only, time, event).tested["methylation"]


@pytest.mark.slow
def test_tumour_against_normal_needs_normals(tmp_path: Path) -> None:
    tables, time, event = cohort(50, genes=30)
    settings = SMALL.model_copy(update={"differential": "deseq2", "contrast": "tumour_normal"})
    only = {"rna": tables["rna"]}
    with pytest.raises(ValueError, match="normal tissue for rna"):
        OmicsSelector(settings).fit(only, time, event)
    normals = tables["rna"].iloc[:10].copy()
    normals.iloc[:, :4] = np.rint(normals.iloc[:, :4] / 20)
    tested = OmicsSelector(settings).fit(only, time, event, normals={"rna": normals}).tested["rna"]
    assert set(tested.sort_values("p").index[:4]) == {"g0", "g1", "g2", "g3"}
    # Folds pass them on, another column order is the same table, and other normals are other work.
    folder = tmp_path / "cache"
    turned = normals.iloc[:, ::-1]
    chosen = SelectorCache(only, settings, folder, normals={"rna": turned}).select(np.arange(50), time, event)
    assert chosen.chosen["rna"].index.isin(tested.index).all()
    np.testing.assert_allclose(chosen.chosen["rna"]["p"], tested.loc[chosen.chosen["rna"].index, "p"])
    assert SelectorCache(only, settings, folder, normals={"rna": turned}).select(np.arange(50), time, event).cached
    other = SelectorCache(only, settings, folder, normals={"rna": normals.iloc[1:]})
    assert not other.select(np.arange(50), time, event).cached
    with pytest.raises(ValueError, match=r"normal tissue lacks 1 features.*g9"):
        OmicsSelector(settings).fit(only, time, event, normals={"rna": normals.drop(columns="g9")})
    with pytest.raises(ValueError, match=r"rna, normal tissue: fractional value 0\.5 for TCGA-XX-0000"):
        OmicsSelector(settings).fit(only, time, event, normals={"rna": normals.replace(normals.iloc[0, 0], 0.5)})


@pytest.mark.slow
def test_folds_of_the_survival_stage_pass_normals_on() -> None:
    tables, time, event = cohort(50, genes=30)
    only = {"rna": tables["rna"]}
    smoke = load_profile("smoke")
    wanted = SMALL.model_copy(update={"differential": "deseq2", "contrast": "tumour_normal"})
    profile = smoke.model_copy(update={"omics": wanted})
    data = SurvivalData(list(tables["rna"].index), time, event, omics=only)
    memory: dict = {}
    with pytest.raises(ValueError, match="normal tissue for rna"):
        fold_omics(data, np.arange(40), profile, Protocol.preset("honest"), 0, memory)
    normals = tables["rna"].iloc[:10].copy()
    normals.iloc[:, :4] = np.rint(normals.iloc[:, :4] / 20)
    rows = np.arange(40)
    for table in (normals, normals.iloc[2:]):
        given = replace(data, normals={"rna": table})
        _, chosen = fold_omics(given, rows, profile, Protocol.preset("honest"), 0, memory)
        direct = OmicsSelector(wanted, 0).fit(
            {"rna": tables["rna"].iloc[rows]}, time[rows], event[rows], normals={"rna": table}
        )
        assert chosen["rna"] == list(direct.chosen["rna"].index)
    assert len(memory) == 2  # other normals are other work


def test_tumour_against_normal_on_methylation_uses_m_values() -> None:
    tables, time, event = cohort(50, genes=30)
    settings = SMALL.model_copy(update={"differential": "deseq2", "contrast": "tumour_normal"})
    only = {"methylation": tables["methylation"]}
    normals = tables["methylation"].iloc[:12].copy()
    normals.iloc[:, :3] = 0.02
    tested = OmicsSelector(settings).fit(only, time, event, normals={"methylation": normals}).tested["methylation"]
    assert set(tested.sort_values("p").index[:3]) == {"cg0", "cg1", "cg2"}
    assert (tested["effect"].iloc[:3] > 1).all()


def test_library_switch_chooses_the_same_features() -> None:
    tables, time, event = cohort(60, genes=30)
    only = {"rna": tables["rna"]}
    own = SMALL.model_copy(update={"importance": "permutation", "candidates": 14, "trees": 15})
    library = own.model_copy(update={"forest": "library"})
    a, b = (OmicsSelector(s, 2).fit(only, time, event).chosen["rna"] for s in (own, library))
    pd.testing.assert_frame_equal(a, b)


def test_local_tables_declare_their_scale() -> None:
    tables, time, event = cohort()
    z = (np.log1p(tables["rna"]) - np.log1p(tables["rna"]).mean()) / np.log1p(tables["rna"]).std()
    z.iloc[5, 0] = 14000.0
    rpm = tables["mirna"].div(tables["mirna"].sum(axis=1), axis=0) * 1e6
    settings = SMALL.model_copy(update={"values": {"rna": "log", "mirna": "rpm"}})
    matrix = OmicsSelector(settings).fit_transform({"rna": z, "mirna": rpm}, time, event)
    assert matrix.shape == (90, 2, 10)
    assert np.abs(matrix).max() <= settings.clip
    z.attrs["values"], rpm.attrs["values"] = "auto", "auto"
    np.testing.assert_array_equal(OmicsSelector(SMALL).fit_transform({"rna": z, "mirna": rpm}, time, event), matrix)


def bad(name: str) -> tuple[dict[str, pd.DataFrame], np.ndarray, np.ndarray]:
    tables, time, event = cohort()
    rna, mirna = tables["rna"], tables["mirna"]
    if name == "negative":
        rna.iloc[3, 7] = -2
    elif name == "fraction":
        rna.iloc[4, 7] = 2.5
    elif name == "empty library":
        mirna.iloc[6] = 0
    elif name == "missing count":
        rna.iloc[2, 2] = np.nan
    elif name == "patient gone":
        tables["methylation"] = tables["methylation"].drop(index="TCGA-XX-0011")
    elif name == "other order":
        tables["mirna"] = mirna.iloc[::-1]
    elif name == "patient twice":
        tables["rna"] = rna.rename(index={"TCGA-XX-0001": "TCGA-XX-0000"})
    elif name == "few features":
        tables["mirna"] = mirna.iloc[:, :9]
    elif name == "not a share":
        tables["methylation"].iloc[1, 1] = 1.2
    elif name == "time":
        time = time.copy()
        time[8] = np.nan
    elif name == "event":
        event = np.where(np.arange(90) == 9, 2, event)
    elif name == "labels":
        time = time[:-1]
    return tables, time, event


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("negative", "rna: negative value -2 for TCGA-XX-0003"),
        ("fraction", "rna: fractional value 2.5 for TCGA-XX-0004.*omics.values to rpm"),
        ("empty library", "mirna: TCGA-XX-0006 has a library of zero"),
        ("missing count", "rna: missing or infinite count for TCGA-XX-0002"),
        ("patient gone", "do not have the same patients.*first TCGA-XX-0011"),
        ("other order", "mirna and rna do not have the same patients in the same order"),
        ("patient twice", "patient TCGA-XX-0000 has two rows"),
        ("few features", r"mirna: 9 usable features of 9 measured, but omics\.top_k is 10"),
        ("not a share", "methylation: value outside .* for TCGA-XX-0001"),
        ("time", "survival time of TCGA-XX-0008"),
        ("event", "event of TCGA-XX-0009 is 2"),
        ("labels", "90 patients, but time has shape"),
    ],
)
def test_bad_input_is_named(name: str, message: str) -> None:
    tables, time, event = bad(name)
    with pytest.raises(ValueError, match=message):
        OmicsSelector(SMALL).fit(tables, time, event)


def test_columns_without_values_or_variance_are_dropped() -> None:
    tables, time, event = cohort()
    tables["methylation"].iloc[:, 20] = np.nan
    tables["methylation"].iloc[:40, 21] = np.nan
    tables["rna"].iloc[:, 22] = 100.0
    tables["rna"].iloc[:, 23] = 0.0
    selector = OmicsSelector(SMALL).fit(tables, time, event)
    assert "cg20" not in selector.tested["methylation"].index
    assert "cg21" not in selector.tested["methylation"].index
    assert "g23" not in selector.tested["rna"].index
    assert selector.losses.loc["methylation", "few missing"] == 148


def test_duplicate_genes_become_one() -> None:
    tables, time, event = cohort()
    rna = tables["rna"].rename(columns={"g31": "g30"})
    table = omics_tables({"rna": rna})["rna"]
    assert len(table.features) == 149
    np.testing.assert_array_equal(table.X[:, 30], tables["rna"]["g30"] + tables["rna"]["g31"])
    z = rna / 3 - 20
    np.testing.assert_allclose(omics_tables({"rna": z})["rna"].X[:, 30], z.iloc[:, [30, 31]].mean(axis=1), rtol=1e-5)
    OmicsSelector(SMALL).fit({"rna": rna}, time, event)


def test_a_missing_copy_of_a_doubled_feature_is_left_out() -> None:
    names = ["a", "b", "a"]
    counts = pd.DataFrame([[1.0, 2.0, 4.0], [3.0, 5.0, np.nan]], columns=names)
    counts.attrs["unit"] = "counts"
    np.testing.assert_array_equal(omics_tables({"rna": counts})["rna"].X, [[5, 2], [3, 5]])
    betas = pd.DataFrame([[0.2, 0.5, 0.4], [np.nan, 0.5, 0.6], [np.nan, 0.5, np.nan]], columns=names)
    np.testing.assert_allclose(
        omics_tables({"methylation": betas})["methylation"].X, [[0.3, 0.5], [0.6, 0.5], [np.nan, 0.5]], rtol=1e-6
    )


def test_rare_features_of_reads_per_million_and_of_their_logarithms_are_left_out() -> None:
    tables, time, event = cohort()
    rpm = tables["mirna"].astype(float) + 2.0
    rpm.iloc[:, 40:60] = np.random.default_rng(0).uniform(0, 0.9, (90, 20))
    rpm.iloc[:8, 40] = 50.0  # in fewer than a tenth of the patients
    rpm.iloc[:9, 41] = 50.0
    for unit, values in (("rpm", rpm), ("log2_rpm", np.log2(rpm + 1))):
        values = values.astype(np.float32)
        values.attrs["unit"] = unit
        selector = OmicsSelector(SMALL).fit({"mirna": values}, time, event)
        kept = selector.tested["mirna"].index
        assert "g41" in kept, unit
        assert not {f"g{i}" for i in range(40, 60) if i != 41} & set(kept), unit
        assert selector.losses.loc["mirna", "expressed"] == values.shape[1] - 19
        loose = SMALL.model_copy(update={"min_rpm": 0.0})
        assert "g45" in OmicsSelector(loose).fit({"mirna": values}, time, event).tested["mirna"].index
    # z-scores say nothing about how much there was.
    z = (rpm - rpm.mean()) / rpm.std()
    z.attrs["unit"] = "z_score"
    assert "g45" in OmicsSelector(SMALL).fit({"mirna": z}, time, event).tested["mirna"].index


def test_declared_units_decide_what_is_done() -> None:
    tables, time, event = cohort()
    counts = tables["rna"]
    expected = counts + np.random.default_rng(0).uniform(-0.4, 0.4, counts.shape) * (counts > 0)
    expected.attrs["unit"] = "expected_counts"
    matrix = OmicsSelector(SMALL).fit_transform({"rna": counts}, time, event)
    np.testing.assert_array_equal(OmicsSelector(SMALL).fit_transform({"rna": expected}, time, event), matrix)
    percent = tables["methylation"] * 100
    percent.attrs["unit"] = "beta_percent"
    table = omics_tables({"methylation": percent})["methylation"]
    np.testing.assert_allclose(table.X, tables["methylation"], rtol=1e-5)
    assert table.declared == "beta"
    log = np.log2(counts + 1)
    log.attrs["unit"] = "log2_counts"
    fitted = OmicsSelector(SMALL).fit({"rna": log}, time, event)
    kept = fitted.tested["rna"].index
    values = log[kept].to_numpy(np.float32)
    # The logarithms themselves, but for outliers that are pulled in, and not their logarithms.
    for used, share in ((values, 0.7), (np.log2(values + 1), 0.0)):
        alike = np.isclose(
            fitted.tested["rna"]["statistic"], differential.cox_score(used, time, event, kept)["statistic"]
        )
        assert (alike.mean() > share) == (share > 0)
    with pytest.warns(TableNote, match="taken as 'rpm', as omics.values says, although the table says log2_counts"):
        OmicsSelector(SMALL.model_copy(update={"values": {"rna": "rpm"}})).fit({"rna": log}, time, event)
    expected.attrs["unit"] = "auto"
    with pytest.raises(ValueError, match="expected counts look like this"):
        OmicsSelector(SMALL).fit({"rna": expected}, time, event)
    normals = counts.iloc[:10].copy()
    normals.attrs["unit"] = "log2_counts"
    contrast = SMALL.model_copy(update={"differential": "deseq2", "contrast": "tumour_normal"})
    with pytest.raises(ValueError, match="normal tissue holds log2_counts, that of the tumours is used as 'counts'"):
        OmicsSelector(contrast).fit({"rna": counts}, time, event, normals={"rna": normals})


def test_half_a_death_is_refused() -> None:
    tables, time, event = cohort()
    halved = event.astype(float)
    halved[3] = 0.5
    for use in (
        lambda: SelectorCache(tables, SMALL).select(np.arange(60), time, halved),
        lambda: differential.two_groups(time, halved),
        lambda: differential.cox_score(tables["rna"].to_numpy(), time, halved, range(150)),
        lambda: concordance(time, halved, time),
    ):
        with pytest.raises(ValueError, match=r"event of row 3 is .*0\.5"):
            use()


def test_transform_reorders_features_and_names_lost_ones() -> None:
    tables, time, event = cohort()
    selector = OmicsSelector(SMALL).fit(tables, time, event)
    turned = {name: table.iloc[:, ::-1] for name, table in tables.items()}
    np.testing.assert_array_equal(selector.transform(turned), selector.transform(tables))
    with pytest.raises(ValueError, match="1 fitted feature"):
        selector.transform({**tables, "rna": tables["rna"].drop(columns="g5")})
    with pytest.raises(ValueError, match="modality methylation was fitted"):
        selector.transform({"rna": tables["rna"], "mirna": tables["mirna"]})
    with pytest.raises(ValueError, match="call fit first"):
        OmicsSelector(SMALL).transform(tables)


# --------------------------------------------------------------------------------------------------- cache, report


def test_cache_reads_what_it_wrote_and_notices_every_change(tmp_path) -> None:
    tables, time, event = cohort()
    cache = SelectorCache(tables, SMALL, tmp_path)
    train = np.arange(70)
    first = cache.select(train, time, event)
    assert not first.cached
    direct = OmicsSelector(SMALL).fit({k: v.iloc[train] for k, v in tables.items()}, time[train], event[train])
    np.testing.assert_allclose(first.matrix, direct.transform(tables), atol=1e-5)
    second = SelectorCache(tables, SMALL, tmp_path).select(train, time, event)
    assert second.cached
    np.testing.assert_array_equal(first.matrix, second.matrix)
    pd.testing.assert_frame_equal(first.chosen["rna"], second.chosen["rna"], check_freq=False)
    # Labels outside the training part do not matter; data, labels inside it, fold, seed and settings do.
    other = event.copy()
    other[70:] = 0
    assert cache.select(train, time, other).cached
    flipped = event.copy()
    flipped[0] = 1 - flipped[0]
    assert not cache.select(train, time, flipped).cached
    assert not cache.select(np.arange(1, 71), time, event).cached
    assert not cache.select(train, time, event, seed=1).cached
    assert not SelectorCache(tables, SMALL.model_copy(update={"trees": 31}), tmp_path).select(train, time, event).cached
    tables["rna"].iloc[80, 0] += 1
    assert not SelectorCache(tables, SMALL, tmp_path).select(train, time, event).cached


def test_a_kept_record_says_what_a_selection_was_made_of(tmp_path) -> None:
    tables, time, event = cohort()
    cache = SelectorCache(tables, SMALL, tmp_path)
    cache.select(np.arange(70), time, event)
    (record,) = tmp_path.glob("*.json")
    kept = read_json(record)
    assert cache.key(np.arange(70), time, event).changes(kept) == []
    assert cache.key(np.arange(70), time, event, seed=1).changes(kept) == ["setting seed: 0 -> 1"]
    assert cache.key(np.arange(69), time, event).changes(kept) == ["input outcome: changed", "input patients: changed"]
    tables["rna"].columns = ["other", *tables["rna"].columns[1:]]
    assert SelectorCache(tables, SMALL).key(np.arange(70), time, event).changes(kept) == ["input omics rna: changed"]
    tables["rna"].columns = ["g0", *tables["rna"].columns[1:]]
    tables["mirna"].attrs["values"] = "rpm"
    assert SelectorCache(tables, SMALL).key(np.arange(70), time, event).changes(kept) == ["input omics mirna: changed"]


@pytest.mark.parametrize("kind", ["plain", "rounded", "twins"])
def test_shared_sums_choose_the_very_features_of_a_direct_fit(kind: str) -> None:
    """Rounded values and equal patients make donors equally near: there rounding must not decide who comes first."""
    settings = SMALL.model_copy(update={"top_k": 8, "trees": 8, "candidates": 20, "differential": "cox_score"})
    rng = np.random.default_rng([3, len(kind)])
    X = rng.normal(size=(60, 120))
    if kind == "rounded":
        X = np.round(X)
    if kind == "twins":
        X[30:40] = X[:10]
    X[rng.random(X.shape) < 0.05] = np.nan
    table = pd.DataFrame(X.astype("f4"), [f"P{i}" for i in range(60)], [f"g{j}" for j in range(120)])
    table.attrs["values"] = "log"
    time, event = rng.exponential(500, 60), (rng.random(60) < 0.6).astype(int)
    cache = SelectorCache({"rna": table}, settings)
    for fold in range(4):
        train = np.flatnonzero(np.arange(60) % 4 != fold)
        shared = cache.select(train, time, event)
        direct = OmicsSelector(settings).fit({"rna": table.iloc[train]}, time[train], event[train])
        np.testing.assert_array_equal(shared.matrix, direct.transform({"rna": table}))
        assert list(shared.chosen["rna"].index) == list(direct.chosen["rna"].index)


def test_selections_are_kept_in_memory_too() -> None:
    tables, time, event = cohort()
    memory: dict = {}
    first = SelectorCache(tables, SMALL, memory).select(np.arange(70), time, event)
    again = SelectorCache(tables, SMALL, memory).select(np.arange(70), time, event)
    assert (first.cached, again.cached) == (False, True)
    assert again.matrix is first.matrix


def test_a_damaged_entry_is_fitted_again(tmp_path) -> None:
    tables, time, event = cohort()
    SelectorCache(tables, SMALL, tmp_path).select(np.arange(70), time, event)
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(b"broken")
    assert not SelectorCache(tables, SMALL, tmp_path).select(np.arange(70), time, event).cached


def test_frequency_and_gene_report() -> None:
    one = pd.DataFrame({"gene": ["A", "B"], "rank": [1, 2]}, index=["a", "b"])
    two = pd.DataFrame({"gene": ["A", "C"], "rank": [2, 1]}, index=["a", "c"])
    table = report.selection_frequency([{"rna": one}, {"rna": two}])["rna"]
    assert table.loc["a", ["times", "frequency", "mean_rank"]].tolist() == [2, 1.0, 1.5]
    assert table.loc["c", "frequency"] == 0.5
    whole = report.gene_report({"rna": one}, {"rna": table})
    assert whole["frequency"].tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="no selection"):
        report.selection_frequency([])


def test_stability_is_one_for_a_clear_signal_and_near_chance_for_noise() -> None:
    time, event, hazard = survival(120, seed=1)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(120, 40)).astype("f4")
    clear = noise.copy()
    clear[:, :4] += 2 * hazard[:, None]
    kwargs = {"trees": (60,), "seeds": 2, "top_k": 4, "repeats": 2}
    assert report.forest_stability(clear, time, event, **kwargs)["shared"].iloc[0] >= 0.75
    loose = report.forest_stability(noise, time, event, **kwargs).iloc[0]
    assert loose["shared"] < 0.75
    assert loose["chance"] == pytest.approx(0.1)


@pytest.mark.slow
def test_selection_on_everybody_inflates_permuted_labels_and_selection_inside_the_fold_does_not() -> None:
    """The leak in one number: the truth is 0.5."""
    rng = np.random.default_rng(0)
    time, event, _ = survival(100, seed=2)
    index = [f"TCGA-XX-{i:04d}" for i in range(100)]
    noise = pd.DataFrame(rng.normal(size=(100, 1500)), index, [f"g{i}" for i in range(1500)])
    settings = SMALL.model_copy(update={"values": {"rna": "log"}, "top_k": 20, "candidates": 30, "trees": 20})
    scores = {
        on: np.mean(
            [
                report.leak_experiment({"rna": noise}, time, event, settings, select_on=on, permute=True, seed=seed)[
                    "c_index"
                ].mean()
                for seed in range(3)
            ]
        )
        for on in ("train", "all")
    }
    assert scores["all"] > 0.65
    assert abs(scores["train"] - 0.5) < 0.08


@pytest.mark.slow
def test_paper_protocol_inflates_real_lihc_with_permuted_labels(shared_data) -> None:
    """307 real patients, RNA and miRNA, elastic net on 2 x 300 features: permuted labels, so the truth is 0.5."""
    from hcmae.manifest import load_manifest
    from hcmae.survival.data import load_tables

    data = load_tables(shared_data / "lihc_real", load_manifest("LIHC"))
    settings = OmicsSettings(differential="cox_score", trees=100, importance_repeats=2)
    scores = {
        on: np.array(
            [
                report.leak_experiment(
                    data.omics, data.time, data.event, settings, select_on=on, permute=True, seed=seed
                )["c_index"].mean()
                for seed in range(4)
            ]
        )
        for on in ("train", "all")
    }
    assert abs(scores["train"].mean() - 0.5) < 0.05
    # On every permutation the same patients and folds; only who was asked for the features differs.
    assert (scores["all"] > scores["train"]).all()
    assert scores["all"].mean() > scores["train"].mean() + 0.05
    assert scores["all"].mean() > 0.55


@pytest.mark.slow
def test_selector_recovers_the_synthetic_cohorts_planted_features(tmp_path: Path) -> None:
    """The book's own synthetic files at the size of the LIHC twin: at least 80 % of the planted among the top 300."""
    from hcmae.config import load_profile
    from hcmae.manifest import load_manifest
    from hcmae.omics import readers
    from hcmae.synthetic import generate, latent, omics_files

    profile = load_profile(
        "smoke",
        {"synthetic": {"patient_scale": 1.0, "region_scale": 0.03, "genes": 4000, "mirnas": 1000, "probes": 4000}},
    )
    patients, truth = latent.draw_patients(load_manifest("LIHC"), profile, 0)
    catalogue = omics_files.draw_catalogue(profile.synthetic, 0)
    kept = {p.barcode: p for p in patients if p.barcode in truth.index}
    writers = {
        "rna": omics_files.write_rna,
        "mirna": omics_files.write_mirna,
        "methylation": omics_files.write_methylation,
    }
    read = {
        "rna": lambda path: readers.read_star_counts(path, annotation=False),
        "mirna": readers.read_mirna_counts,
        "methylation": readers.read_sesame_betas,
    }
    tables, planted = {}, {}
    for number, (name, write) in enumerate(writers.items()):
        features = getattr(catalogue, name)
        rows, columns = [], None
        for barcode in truth.index:
            patient = kept[barcode]
            distractors = generate.patient_rng(0, patient.index, 2).normal(size=omics_files.DISTRACTORS)
            path = tmp_path / "one.txt"
            write(
                path,
                features,
                np.array([patient.shared, patient.omics, *distractors]),
                np.random.default_rng([patient.index, number]),
            )
            found = read[name](path)
            rows.append(found.values)
            columns = found.names.to_pylist()
        tables[name] = pd.DataFrame(np.stack(rows).astype("f4"), truth.index, columns)
        where = {label.split(".")[0]: label for label in columns}
        parts = features.planted()
        planted[name] = [
            where[gene.split(".")[0]] for part in ("shared", "omics") for side in parts[part].values() for gene in side
        ]
    settings = OmicsSettings(differential="cox_score", candidates=1000, trees=300)
    selector = OmicsSelector(settings).fit(tables, truth["time"].to_numpy(), truth["event"].to_numpy())
    for name in tables:
        assert len(selector.chosen[name]) == 300 < selector.losses.loc[name, "varies"]
        assert report.recovered(selector.chosen[name].index, planted[name]) >= 0.8, name
