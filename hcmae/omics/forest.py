"""A random survival forest whose log-rank split search costs what the node costs, not what the cohort costs.

The usual implementation scores every candidate split over all distinct times of the cohort. Here one patient at a time
moves to the left child and two running sums follow him:

* the log-rank numerator changes by ``event - H(time)``, with H the node's own Nelson-Aalen estimate, a constant of the
  patient within the node;
* the variance changes only at the node's own event times up to the patient's time.

A score that comes within rounding of the best so far is recomputed with the textbook sum, so the chosen split is the
one scikit-survival chooses, down to the last bit: the same seed gives the same forest.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from hcmae.outcome import check_events
from hcmae.processes import usable_cores

_RAND_R_MAX = 2147483647
_MAX_SEED = np.iinfo(np.int32).max
# Values closer than this are one value to the split search (scikit-learn's convention for float32 features).
_SAME_VALUE = np.float32(1e-7)
# Running sums lose at most about 1e-11 of their value over one sweep; scores within this margin are recomputed.
_MARGIN = 1.0 - 1e-9


@dataclass(frozen=True)
class ForestArrays:
    """Trees as padded arrays; row t of each is one tree, nodes in depth-first order, feature -1 marks a leaf.

    feature, left, right [T, N] int32; threshold [T, N] float64 (a value <= threshold goes left); value [T, N] float64:
    the node's cumulative hazard summed over the cohort's event times (expected number of events); size [T] int32;
    count [T, N] int32: patients in the node; copies [T, n] uint8: how often each patient is in the tree's bootstrap
    sample (0: out of bag).
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    count: np.ndarray
    size: np.ndarray
    copies: np.ndarray


class SurvivalForest:
    """Random survival forest: log-rank splits, bootstrap, expected number of events as risk.

    Parameters follow scikit-survival's: ``min_samples_split`` 6, ``min_samples_leaf`` 3, ``max_features`` "sqrt", None
    (all) or a number. ``seed`` may be an int; an equal seed gives scikit-survival's very trees.
    Source: Ishwaran et al. 2008 (Annals of Applied Statistics 2:841); split rule LeBlanc and Crowley 1993.
    """

    def __init__(
        self,
        trees: int = 1000,
        *,
        min_samples_split: int = 6,
        min_samples_leaf: int = 3,
        max_features: str | int | None = "sqrt",
        bootstrap: bool = True,
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.trees = trees
        self.min_samples_split = min_samples_split
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.bootstrap = bootstrap
        self.seed = seed
        self.workers = workers

    def fit(self, X: np.ndarray, time: np.ndarray, event: np.ndarray) -> SurvivalForest:
        """Grow the trees.

        X [n, p] finite values (compared in float32, as the library does), time [n] days, event [n] of {0, 1}.
        Raises ValueError for shapes that disagree, values that are not finite, fewer than two patients or no event.
        """
        X32, time64, event8 = _check(X, time, event)
        n, p = X32.shape
        features = _feature_count(self.max_features, p)
        columns = np.ascontiguousarray(X32.T)
        order = np.argsort(columns, axis=1, kind="stable").astype(np.int32)
        ordered = np.take_along_axis(columns, order, axis=1)
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(n, dtype=np.int32)[None, :], axis=1)
        distinct, rank = np.unique(time64, return_inverse=True)
        event_times = np.zeros(distinct.size, dtype=np.bool_)
        event_times[rank[event8 == 1]] = True
        # value of a node = sum over its events of d/N times the number of cohort event times still to come.
        remaining = np.cumsum(event_times[::-1])[::-1].astype(np.float64)

        generator = np.random.RandomState(self.seed)
        seeds = [int(generator.randint(_MAX_SEED)) for _ in range(self.trees)]
        copies = np.ones((self.trees, n), dtype=np.uint8)
        split_seed = np.empty(self.trees, dtype=np.uint32)
        for t, tree_seed in enumerate(seeds):
            if self.bootstrap:
                copies[t] = np.bincount(np.random.RandomState(tree_seed).randint(0, n, n), minlength=n)
            split_seed[t] = np.random.RandomState(tree_seed).randint(0, _RAND_R_MAX)

        min_split = max(self.min_samples_split, 2 * self.min_samples_leaf)
        nodes = 2 * max(1, n // self.min_samples_leaf) + 1
        shape = (self.trees, nodes)
        feature = np.full(shape, -1, dtype=np.int32)
        left = np.full(shape, -1, dtype=np.int32)
        right = np.full(shape, -1, dtype=np.int32)
        threshold = np.zeros(shape)
        value = np.zeros(shape)
        count = np.zeros(shape, dtype=np.int32)
        size = np.zeros(self.trees, dtype=np.int32)

        def grow(rows: np.ndarray) -> None:
            for t in rows:
                size[t] = _grow_tree(
                    columns, order, ordered, place, rank.astype(np.int32), event8, remaining, copies[t], split_seed[t],
                    features, min_split, self.min_samples_leaf,
                    feature[t], threshold[t], left[t], right[t], value[t], count[t],
                )  # fmt: skip

        in_threads(grow, self.trees, self.workers)
        used = int(size.max())
        self.arrays = ForestArrays(
            feature[:, :used].copy(),
            threshold[:, :used].copy(),
            left[:, :used].copy(),
            right[:, :used].copy(),
            value[:, :used].copy(),
            count[:, :used].copy(),
            size,
            copies,
        )
        self.time_, self.event_ = time64, event8
        self.n_features_ = p
        self.X_ = X32
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Risk [m]: expected number of events, the mean over all trees. X [m, p]."""
        X32 = np.ascontiguousarray(X, dtype=np.float32)
        if X32.ndim != 2 or X32.shape[1] != self.n_features_:
            raise ValueError(f"X has shape {X32.shape}; the forest was grown on {self.n_features_} features")
        a = self.arrays
        everyone = np.zeros((self.trees, X32.shape[0]), dtype=np.uint8)
        total, _ = _sum_predictions(X32, a.feature, a.threshold, a.left, a.right, a.value, everyone)
        return total / self.trees

    def oob_prediction(self) -> np.ndarray:
        """Risk [n] of each training patient from the trees that did not see him; 0 where every tree did."""
        a = self.arrays
        total, votes = _sum_predictions(self.X_, a.feature, a.threshold, a.left, a.right, a.value, a.copies)
        return total / np.maximum(votes, 1)

    def oob_score(self) -> float:
        """Harrell's concordance of the out-of-bag risks."""
        return concordance(self.time_, self.event_, self.oob_prediction())


def library_forest(
    X: np.ndarray, time: np.ndarray, event: np.ndarray, *, trees: int, seed: int, workers: int = 1
) -> Any:
    """scikit-survival's forest with the same parameters and seed: the switch for whoever prefers the library."""
    from sksurv.ensemble import RandomSurvivalForest
    from sksurv.util import Surv

    forest = RandomSurvivalForest(
        n_estimators=trees, max_features="sqrt", random_state=seed, n_jobs=workers, low_memory=True, oob_score=True
    )
    return forest.fit(np.asarray(X, dtype=np.float32), Surv.from_arrays(np.asarray(event, dtype=bool), time))


def concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C with scikit-survival's conventions: risks within 1e-8 are tied and count one half.

    An event is comparable with everyone who outlives it and with patients censored at the same time.
    Raises ValueError when no pair is comparable.
    """
    pairs = ComparablePairs(time, event)
    return pairs.score(np.asarray(risk, dtype=np.float64))


class ComparablePairs:
    """The pairs Harrell's C compares, laid out once so that thousands of risk vectors are scored quickly."""

    def __init__(self, time: np.ndarray, event: np.ndarray) -> None:
        time = np.asarray(time, dtype=np.float64)
        dead = check_events(event)
        # Events before the censored of the same time: then everyone comparable with an event follows it.
        self.order = np.lexsort((~dead, time)).astype(np.int64)
        t, d = time[self.order], dead[self.order]
        self.events = np.flatnonzero(d).astype(np.int64)
        first_later = np.empty(self.events.size, dtype=np.int64)
        for k, i in enumerate(self.events):
            j = i
            while j < t.size and t[j] == t[i] and d[j]:
                j += 1
            first_later[k] = j
        self.first_later = first_later
        self.comparable = int((t.size - first_later).sum())
        if self.comparable == 0:
            raise ValueError("no pair of patients is comparable: no event is followed by a longer time")

    def score(self, risk: np.ndarray) -> float:
        """C of one risk vector [n] in the order of the constructor's arguments."""
        concordant, tied = count_pairs(risk[self.order], self.events, self.first_later)
        return (concordant + 0.5 * tied) / self.comparable


def _check(X: np.ndarray, time: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X32 = np.ascontiguousarray(X, dtype=np.float32)
    time64 = np.asarray(time, dtype=np.float64)
    event8 = np.asarray(event).astype(np.uint8)
    if X32.ndim != 2 or X32.shape[0] < 2 or X32.shape[1] < 1:
        raise ValueError(f"X must be [patients, features] with at least two patients and one feature, not {X32.shape}")
    if time64.shape != (X32.shape[0],) or event8.shape != time64.shape:
        raise ValueError(f"X has {X32.shape[0]} patients, time {time64.shape} and event {event8.shape}")
    if not np.isfinite(X32).all():
        raise ValueError("X has values that are not finite: impute before the forest")
    if not np.isfinite(time64).all() or not np.isin(np.asarray(event), (0, 1)).all():
        raise ValueError("time must be finite and event 0 or 1")
    if event8.sum() == 0:
        raise ValueError("no patient has an event: a survival forest has nothing to split on")
    return X32, time64, event8


def _feature_count(max_features: str | int | None, p: int) -> int:
    if max_features is None:
        return p
    if max_features == "sqrt":
        return max(1, int(np.sqrt(p)))
    if isinstance(max_features, int) and 0 < max_features <= p:
        return max_features
    raise ValueError(f"max_features={max_features!r}: choose 'sqrt', None or a number from 1 to {p}")


def in_threads(work: Callable[[np.ndarray], None], rows: int, workers: int) -> None:
    """Run ``work`` on interleaved rows; the compiled code releases the interpreter lock."""
    workers = max(1, min(workers, rows, usable_cores()))
    if workers == 1:
        work(np.arange(rows))
        return
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work, np.arange(k, rows, workers)) for k in range(workers)]:
            future.result()


@njit(cache=True, nogil=True, inline="always")
def _next_random(state: np.uint32) -> np.uint32:  # pragma: no cover - compiled
    # The 32-bit xorshift by which scikit-learn draws the features of a node: same draws, same trees.
    if state == np.uint32(0):
        state = np.uint32(1)
    state ^= np.uint32(state << np.uint32(13))
    state ^= np.uint32(state >> np.uint32(17))
    state ^= np.uint32(state << np.uint32(5))
    return state


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _move_left(
    slope: np.ndarray, curvature: np.ndarray, upto: int, weight: float,
) -> float:  # pragma: no cover - compiled  # fmt: skip
    # Slope of the variance at the first ``upto`` event times before a patient of this weight joins the left, updated.
    gain = 0.0
    for t in range(upto):
        gain += slope[t]
        slope[t] -= weight * curvature[t]
    return gain


@njit(cache=True, nogil=True)
def _exact_score(
    local: np.ndarray, upto: np.ndarray, total_risk: np.ndarray, total_events: np.ndarray, left_deaths: np.ndarray,
    left_leave: np.ndarray, weight: np.ndarray, death: np.ndarray, k: int, n_times: int,
) -> float:  # fmt: skip
    # The textbook log-rank statistic of patients local[:k] against the rest, in scikit-survival's order of operations.
    for t in range(n_times + 1):
        left_deaths[t] = 0.0
        left_leave[t] = 0.0
    at_risk = 0.0
    for i in range(k):
        j = local[i]
        at_risk += weight[j]
        left_leave[upto[j]] += weight[j]
        if death[j]:
            left_deaths[upto[j] - 1] += weight[j]
    # Patients whose time is before the first event time leave before it.
    at_risk -= left_leave[0]
    numerator = 0.0
    variance = 0.0
    for t in range(n_times):
        ratio = at_risk / total_risk[t]
        numerator += left_deaths[t] - total_events[t] * ratio
        if total_risk[t] > 1.0:
            v = (total_risk[t] - total_events[t]) / (total_risk[t] - 1.0) * total_events[t]
            variance += ratio * (1.0 - ratio) * v
        at_risk -= left_leave[t + 1]
    if variance != 0.0:
        return abs(numerator / np.sqrt(variance))
    return -np.inf


@njit(cache=True, nogil=True)
def _grow_tree(
    columns: np.ndarray, order: np.ndarray, ordered: np.ndarray, place_of: np.ndarray, rank: np.ndarray,
    event: np.ndarray, remaining: np.ndarray, copies: np.ndarray, seed: int, max_features: int, min_split: int,
    min_leaf: int, out_feature: np.ndarray, out_threshold: np.ndarray, out_left: np.ndarray, out_right: np.ndarray,
    out_value: np.ndarray, out_count: np.ndarray,
) -> int:  # pragma: no cover - compiled  # fmt: skip
    p, n = columns.shape
    n_ranks = remaining.shape[0]
    state = np.uint32(seed)

    samples = np.empty(n, np.int32)
    m_all = 0
    for i in range(n):
        if copies[i] > 0:
            samples[m_all] = i
            m_all += 1

    features = np.arange(p).astype(np.int32)
    constant = np.empty(p, np.int32)
    place = np.full(n, np.int32(-1))  # local index of a patient in the current node
    local = np.empty(n + 1, np.int32)
    sorted_values = np.empty(n + 1, np.float32)
    keys = np.empty(n, np.int64)
    squares = np.empty(n + 1, np.float64)
    variances = np.empty(n + 1, np.float64)
    upto = np.empty(n, np.int32)  # event times of the node up to the patient's time
    death = np.empty(n, np.bool_)
    weight = np.empty(n, np.float64)  # copies of the patient in the bootstrap sample
    step = np.empty(n, np.float64)  # what the patient adds to the numerator
    risk_count = np.empty(n_ranks + 1, np.int32)
    death_count = np.empty(n_ranks + 1, np.int32)
    times_before = np.empty(n_ranks + 1, np.int32)
    total_risk = np.empty(n_ranks, np.float64)
    total_events = np.empty(n_ranks, np.float64)
    hazard = np.empty(n_ranks + 1, np.float64)
    curvature = np.empty(n_ranks, np.float64)
    curvature_sum = np.empty(n_ranks + 1, np.float64)
    start_slope = np.empty(n_ranks, np.float64)
    slope = np.empty(n_ranks, np.float64)
    work_a = np.empty(n_ranks + 1, np.float64)
    work_b = np.empty(n_ranks + 1, np.float64)
    spare = np.empty(n, np.int32)

    # stack: start, end, parent, is_left, known constants
    stack = np.empty((out_feature.shape[0] + 2, 5), np.int64)
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3], stack[0, 4] = 0, m_all, -1, 0, 0
    depth = 1
    n_nodes = 0

    while depth > 0:
        depth -= 1
        start, end, parent, is_left, known = (
            stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3], stack[depth, 4],
        )  # fmt: skip
        m = end - start

        # Risk sets of the node, at its own times.
        for t in range(n_ranks):
            risk_count[t] = 0
            death_count[t] = 0
        at_risk = 0
        for i in range(m):
            s = samples[start + i]
            at_risk += copies[s]
            risk_count[rank[s]] += copies[s]
            if event[s]:
                death_count[rank[s]] += copies[s]
        n_times = 0
        total = 0.0
        running = 0.0
        hazard[0] = 0.0
        for t in range(n_ranks):
            if death_count[t] > 0:
                ratio = death_count[t] / at_risk
                total_risk[n_times] = at_risk
                total_events[n_times] = death_count[t]
                total += ratio * remaining[t]
                running += ratio
                n_times += 1
                hazard[n_times] = running
            times_before[t] = n_times
            at_risk -= risk_count[t]

        node = n_nodes
        n_nodes += 1
        if parent >= 0:
            if is_left:
                out_left[parent] = node
            else:
                out_right[parent] = node
        out_value[node] = total
        out_count[node] = m
        out_feature[node] = -1
        if m < min_split:
            continue

        curvature_sum[0] = 0.0
        for t in range(n_times):
            v = 0.0
            if total_risk[t] > 1.0:
                v = (total_risk[t] - total_events[t]) / (total_risk[t] - 1.0) * total_events[t]
            a = v / (total_risk[t] * total_risk[t])
            curvature[t] = 2.0 * a
            curvature_sum[t + 1] = curvature_sum[t] + a
            start_slope[t] = a * total_risk[t]
        for i in range(m):
            s = samples[start + i]
            place[s] = i
            upto[i] = times_before[rank[s]]
            death[i] = event[s] == 1
            weight[i] = copies[s]
            step[i] = weight[i] * ((1.0 if death[i] else 0.0) - hazard[upto[i]])

        best_score = -np.inf
        best_feature = -1
        best_threshold = 0.0
        last = p
        visited = 0
        found = 0
        drawn = 0
        total_constant = known
        # Draw features without replacement until enough were seen and at least one of them varies in the node.
        while last > total_constant and (visited < max_features or visited <= found + drawn):
            visited += 1
            state = _next_random(state)
            draw = drawn + np.int64(np.uint32(state) % np.uint32(2147483648)) % (last - found - drawn)
            if draw < known:
                features[drawn], features[draw] = features[draw], features[drawn]
                drawn += 1
                continue
            draw += found
            f = features[draw]

            if 9 * m > n:
                # Large node: walk the cohort's order and keep the members, without a branch.
                c = 0
                for k in range(n):
                    i = place[order[f, k]]
                    local[c] = i
                    sorted_values[c] = ordered[f, k]
                    c += 1 if i >= 0 else 0
            else:
                for i in range(m):
                    key = (np.int64(place_of[f, samples[start + i]]) << 32) | np.int64(i)
                    k = i - 1
                    while k >= 0 and keys[k] > key:
                        keys[k + 1] = keys[k]
                        k -= 1
                    keys[k + 1] = key
                for k in range(m):
                    i = keys[k] & 0xFFFFFFFF
                    local[k] = i
                    sorted_values[k] = columns[f, samples[start + i]]

            if sorted_values[m - 1] <= sorted_values[0] + _SAME_VALUE:
                features[draw], features[total_constant] = features[total_constant], features[draw]
                found += 1
                total_constant += 1
                continue
            last -= 1
            features[last], features[draw] = features[draw], features[last]
            if n_times == 0:
                continue

            for t in range(n_times):
                slope[t] = start_slope[t]
            numerator = 0.0
            variance = 0.0
            top_numerator, top_variance = -1.0, 1.0  # best of this feature: squares compared crosswise, no division
            for k in range(1, m - min_leaf + 1):
                i = local[k - 1]
                w = weight[i]
                numerator += step[i]
                # a(L+w)(N-L-w) - aL(N-L) = w a(N-2L) - w^2 a, summed over the event times the patient is at risk.
                variance += w * _move_left(slope, curvature, upto[i], w) - w * w * curvature_sum[upto[i]]
                square = numerator * numerator
                if k < min_leaf or sorted_values[k] <= sorted_values[k - 1] + _SAME_VALUE or variance < 1e-9:
                    square = -1.0
                squares[k] = square
                variances[k] = variance
                if square * top_variance > top_numerator * variance:
                    top_numerator, top_variance = square, variance
            if top_numerator < 0.0 or (
                best_score > 0.0 and top_numerator < best_score * best_score * _MARGIN * top_variance
            ):
                continue
            for k in range(min_leaf, m - min_leaf + 1):
                if squares[k] >= 0.0 and squares[k] * top_variance >= top_numerator * variances[k] * _MARGIN:
                    score = _exact_score(
                        local, upto, total_risk, total_events, work_a, work_b, weight, death, k, n_times
                    )
                    if score > best_score:
                        best_score = score
                        best_feature = f
                        best_threshold = sorted_values[k - 1] / 2.0 + sorted_values[k] / 2.0

        for i in range(m):
            place[samples[start + i]] = -1
        # Constants known to the parent keep their order; new ones are remembered for the children.
        for i in range(known):
            features[i] = constant[i]
        for i in range(found):
            constant[known + i] = features[known + i]

        if best_feature < 0:
            continue
        out_feature[node] = best_feature
        out_threshold[node] = best_threshold
        low = start
        high = 0
        for i in range(start, end):
            s = samples[i]
            if columns[best_feature, s] <= best_threshold:
                samples[low] = s
                low += 1
            else:
                spare[high] = s
                high += 1
        for i in range(high):
            samples[low + i] = spare[i]
        stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = low, end, node, 0
        stack[depth, 4] = total_constant
        depth += 1
        stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = start, low, node, 1
        stack[depth, 4] = total_constant
        depth += 1
    return n_nodes


@njit(cache=True, nogil=True)
def _sum_predictions(
    X: np.ndarray, feature: np.ndarray, threshold: np.ndarray, left: np.ndarray, right: np.ndarray, value: np.ndarray,
    skip: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled  # fmt: skip
    trees = feature.shape[0]
    n = X.shape[0]
    total = np.zeros(n)
    votes = np.zeros(n)
    for t in range(trees):
        for i in range(n):
            if skip[t, i] > 0:
                continue
            node = 0
            while feature[t, node] >= 0:
                node = left[t, node] if X[i, feature[t, node]] <= threshold[t, node] else right[t, node]
            total[i] += value[t, node]
            votes[i] += 1.0
    return total, votes


@njit(cache=True, nogil=True)
def count_pairs(
    risk: np.ndarray, events: np.ndarray, first_later: np.ndarray,
) -> tuple[int, int]:  # pragma: no cover - compiled  # fmt: skip
    concordant = 0
    tied = 0
    n = risk.shape[0]
    for k in range(events.shape[0]):
        r = risk[events[k]]
        for j in range(first_later[k], n):
            d = r - risk[j]
            concordant += d > 1e-8
            tied += abs(d) <= 1e-8
    return concordant, tied
