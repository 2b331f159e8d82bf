"""Permutation importance of a survival forest, sending down the trees only whom a permuted feature can move.

A feature splits in a few dozen of a thousand trees, and in such a tree only the patients that reach one of its nodes
can change leaf. Everyone else keeps the prediction he has, so one permutation costs a few hundred short walks instead
of a prediction by the whole forest; the values are those of the full computation.

Two questions are answered:

* ``oob``: how much does the out-of-bag concordance fall? Each tree speaks only for patients it did not see; unbiased.
* ``permutation``: how much does the concordance on the training patients fall (what scikit-learn's function returns)?
  The forest knows these patients by heart, so the answer saturates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from hcmae.omics.forest import ComparablePairs, ForestArrays, SurvivalForest, count_pairs, in_threads
from hcmae.outcome import check_events


@dataclass(frozen=True)
class Importance:
    """mean and sd [p] over repeats of the fall in concordance; raw [p, repeats]; baseline concordance."""

    mean: np.ndarray
    sd: np.ndarray
    raw: np.ndarray
    baseline: float


def permutations(n: int, repeats: int, seed: int) -> np.ndarray:
    """The orders scikit-learn's permutation_importance gives to every column, [repeats, n].

    It shuffles one index vector again and again and applies it to the already shuffled column; the composition is
    returned, so ``X[order[r], j]`` is the column of repeat r.
    """
    first = np.random.RandomState(seed)
    generator = np.random.RandomState(first.randint(np.iinfo(np.int32).max + 1))
    shuffle, order = np.arange(n), np.arange(n)
    out = np.empty((repeats, n), dtype=np.int64)
    for r in range(repeats):
        generator.shuffle(shuffle)
        order = order[shuffle]
        out[r] = order
    return out


def forest_importance(
    forest: SurvivalForest,
    X: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    kind: str = "oob",
    repeats: int = 5,
    seed: int = 0,
    workers: int = 1,
) -> Importance:
    """Fall in Harrell's C when a feature is permuted, for all features.

    X [n, p], time, event: the patients the forest was grown on (for ``kind="permutation"`` any patients).
    Source: Breiman 2001 (permutation), Ishwaran et al. 2008 (out-of-bag VIMP for survival).
    Raises ValueError for an unknown kind, or when "oob" gets other patients than the forest's.
    """
    X32 = np.ascontiguousarray(X, dtype=np.float32)
    n, p = X32.shape
    trees: ForestArrays = forest.arrays
    if kind == "oob":
        if n != trees.copies.shape[1] or not np.array_equal(X32, forest.X_):
            raise ValueError("out-of-bag importance needs the very patients the forest was grown on, in their order")
        skip = trees.copies
    elif kind == "permutation":
        skip = np.zeros((forest.trees, n), dtype=np.uint8)
    else:
        raise ValueError(f"importance '{kind}': choose 'oob' or 'permutation'")
    if p != forest.n_features_:
        raise ValueError(f"X has {p} features; the forest was grown on {forest.n_features_}")

    pairs = ComparablePairs(time, event)
    total, votes, members, begin, end, leaf_value = _place_patients(
        X32, trees.feature, trees.threshold, trees.left, trees.right, trees.value, trees.size, skip
    )
    divisor = np.maximum(votes, 1.0)
    baseline = pairs.score(total / divisor)
    columns = np.ascontiguousarray(X32.T)
    offsets, tree_of, node_of, deeper = _nodes_by_feature(
        trees.feature, trees.left, trees.right, trees.size, begin, end, p
    )
    first, gain = _other_leaves(
        columns, tree_of, node_of, trees.feature, trees.threshold, trees.left, trees.right, trees.value, trees.size,
        members, begin, end, leaf_value,
    )  # fmt: skip
    orders = permutations(n, repeats, seed)
    scores = np.empty((p, repeats))

    def work(rows: np.ndarray) -> None:
        _permuted_scores(
            rows, X32, columns, orders, total, divisor, leaf_value, members, begin, end,
            trees.feature, trees.threshold, trees.left, trees.right, trees.value,
            offsets, tree_of, node_of, deeper, first, gain, pairs.order, pairs.events, pairs.first_later,
            pairs.comparable, scores,
        )  # fmt: skip

    in_threads(work, p, workers)
    raw = baseline - scores
    return Importance(raw.mean(axis=1), raw.std(axis=1), raw, baseline)


def library_importance(
    forest: Any, X: np.ndarray, time: np.ndarray, event: np.ndarray, *, repeats: int = 5, seed: int = 0
) -> Importance:
    """scikit-learn's permutation_importance of a scikit-survival forest (``importance: permutation`` by the
    library)."""
    from sklearn.inspection import permutation_importance
    from sksurv.util import Surv

    y = Surv.from_arrays(check_events(event), time)
    found = permutation_importance(forest, np.asarray(X, dtype=np.float32), y, n_repeats=repeats, random_state=seed)
    score = forest.score(np.asarray(X, dtype=np.float32), y)
    return Importance(found.importances_mean, found.importances_std, found.importances, score)


@njit(cache=True, nogil=True)
def _place_patients(
    X: np.ndarray, feature: np.ndarray, threshold: np.ndarray, left: np.ndarray, right: np.ndarray, value: np.ndarray,
    size: np.ndarray, skip: np.ndarray,
) -> tuple[np.ndarray, ...]:  # pragma: no cover - compiled  # fmt: skip
    # Per tree, a list of its patients in which every node owns one contiguous stretch [begin, end).
    trees, nodes = feature.shape
    n = X.shape[0]
    total = np.zeros(n)
    votes = np.zeros(n)
    members = np.zeros((trees, n), np.int32)
    begin = np.zeros((trees, nodes), np.int32)
    end = np.zeros((trees, nodes), np.int32)
    leaf_value = np.zeros((trees, n))
    spare = np.empty(n, np.int32)
    for t in range(trees):
        m = 0
        for i in range(n):
            if skip[t, i] == 0:
                members[t, m] = i
                m += 1
        begin[t, 0] = 0
        end[t, 0] = m
        # Nodes are stored parent first, so one pass down the list places everybody.
        for node in range(size[t]):
            a, b = begin[t, node], end[t, node]
            f = feature[t, node]
            if f < 0:
                for k in range(a, b):
                    i = members[t, k]
                    leaf_value[t, i] = value[t, node]
                    total[i] += value[t, node]
                    votes[i] += 1.0
                continue
            low = a
            high = 0
            for k in range(a, b):
                i = members[t, k]
                if X[i, f] <= threshold[t, node]:
                    members[t, low] = i
                    low += 1
                else:
                    spare[high] = i
                    high += 1
            for k in range(high):
                members[t, low + k] = spare[k]
            begin[t, left[t, node]], end[t, left[t, node]] = a, low
            begin[t, right[t, node]], end[t, right[t, node]] = low, b
    return total, votes, members, begin, end, leaf_value


@njit(cache=True, nogil=True)
def _nodes_by_feature(
    feature: np.ndarray, left: np.ndarray, right: np.ndarray, size: np.ndarray, begin: np.ndarray, end: np.ndarray,
    p: int,
) -> tuple[np.ndarray, ...]:  # pragma: no cover - compiled  # fmt: skip
    # For every feature its uppermost nodes (no ancestor splits on it), and whether it splits again below them.
    trees, nodes = feature.shape
    parent = np.full(nodes, np.int32(-1))
    top = np.zeros((trees, nodes), np.bool_)
    again = np.zeros((trees, nodes), np.bool_)
    counts = np.zeros(p + 1, np.int64)
    for t in range(trees):
        parent[0] = -1
        for node in range(size[t]):
            f = feature[t, node]
            if f < 0:
                continue
            parent[left[t, node]] = node
            parent[right[t, node]] = node
            uppermost = node
            up = parent[node]
            while up >= 0:
                if feature[t, up] == f:
                    uppermost = up
                up = parent[up]
            if uppermost == node:
                if end[t, node] > begin[t, node]:
                    top[t, node] = True
                    counts[f + 1] += 1
            else:
                again[t, uppermost] = True
    offsets = np.cumsum(counts)
    tree_of = np.empty(offsets[p], np.int32)
    node_of = np.empty(offsets[p], np.int32)
    deeper = np.empty(offsets[p], np.bool_)
    cursor = offsets[:-1].copy()
    for t in range(trees):
        for node in range(size[t]):
            if top[t, node]:
                f = feature[t, node]
                tree_of[cursor[f]] = t
                node_of[cursor[f]] = node
                deeper[cursor[f]] = again[t, node]
                cursor[f] += 1
    return offsets, tree_of, node_of, deeper


@njit(cache=True, nogil=True)
def _other_leaves(
    columns: np.ndarray, tree_of: np.ndarray, node_of: np.ndarray, feature: np.ndarray, threshold: np.ndarray,
    left: np.ndarray, right: np.ndarray, value: np.ndarray, size: np.ndarray, members: np.ndarray, begin: np.ndarray,
    end: np.ndarray, leaf_value: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled  # fmt: skip
    # For every uppermost node and every patient who reaches it: what he gains by taking the other branch there. That
    # does not depend on the permuted value itself, so all permutations share it (where the feature splits once on the
    # way).
    trees, nodes = feature.shape
    n = columns.shape[1]
    entries = tree_of.shape[0]
    first = np.zeros(entries + 1, np.int64)
    for k in range(entries):
        first[k + 1] = first[k] + end[tree_of[k], node_of[k]] - begin[tree_of[k], node_of[k]]
    gain = np.empty(first[entries])
    entry = np.full((trees, nodes), np.int64(-1))
    for k in range(entries):
        entry[tree_of[k], node_of[k]] = k
    goes_left = np.empty((nodes, n), np.bool_)
    for t in range(trees):
        for node in range(size[t]):
            f = feature[t, node]
            if f >= 0:
                cut = threshold[t, node]
                for i in range(n):
                    goes_left[node, i] = columns[f, i] <= cut
        for top in range(size[t]):
            k = entry[t, top]
            if k < 0:
                continue
            at = first[k]
            for q in range(begin[t, top], end[t, top]):
                i = members[t, q]
                node = right[t, top] if goes_left[top, i] else left[t, top]
                while feature[t, node] >= 0:
                    node = left[t, node] if goes_left[node, i] else right[t, node]
                gain[at] = value[t, node] - leaf_value[t, i]
                at += 1
    return first, gain


@njit(cache=True, nogil=True)
def _permuted_scores(
    rows: np.ndarray, X: np.ndarray, columns: np.ndarray, orders: np.ndarray, total: np.ndarray, divisor: np.ndarray,
    leaf_value: np.ndarray, members: np.ndarray, begin: np.ndarray, end: np.ndarray, feature: np.ndarray,
    threshold: np.ndarray, left: np.ndarray, right: np.ndarray, value: np.ndarray, offsets: np.ndarray,
    tree_of: np.ndarray, node_of: np.ndarray, deeper: np.ndarray, first: np.ndarray, gain: np.ndarray,
    pair_order: np.ndarray, events: np.ndarray, first_later: np.ndarray, comparable: int, scores: np.ndarray,
) -> None:  # pragma: no cover - compiled  # fmt: skip
    n = X.shape[0]
    repeats = orders.shape[0]
    change = np.empty((n, repeats))
    new = np.empty((n, repeats), np.float32)
    risk = np.empty(n)
    for f in rows:
        for i in range(n):
            for r in range(repeats):
                change[i, r] = 0.0
                new[i, r] = columns[f, orders[r, i]]
        for k in range(offsets[f], offsets[f + 1]):
            t, top = tree_of[k], node_of[k]
            cut = threshold[t, top]
            if not deeper[k]:
                at = first[k]
                for q in range(begin[t, top], end[t, top]):
                    i = members[t, q]
                    was_left = columns[f, i] <= cut
                    other = gain[at]
                    at += 1
                    for r in range(repeats):
                        change[i, r] += other if (new[i, r] <= cut) != was_left else 0.0
                continue
            for q in range(begin[t, top], end[t, top]):
                i = members[t, q]
                for r in range(repeats):
                    node = top
                    while feature[t, node] >= 0:
                        g = feature[t, node]
                        x = new[i, r] if g == f else X[i, g]
                        node = left[t, node] if x <= threshold[t, node] else right[t, node]
                    change[i, r] += value[t, node] - leaf_value[t, i]
        for r in range(repeats):
            for i in range(n):
                j = pair_order[i]
                risk[i] = (total[j] + change[j, r]) / divisor[j]
            concordant, tied = count_pairs(risk, events, first_later)
            scores[f, r] = (concordant + 0.5 * tied) / comparable
