"""Nearest-neighbour imputation whose cost is one matrix product, exact against scikit-learn's.

Distance between two patients: root mean square over the features both have, times the number of features (Troyanskaya
et al. 2001; scikit-learn's nan-Euclidean). The sums over shared features are the sums over all features, taken by one
product of the zero-filled table, minus what the few missing cells add; and every missing cell then walks its patient's
donors, sorted once, until it has met k that know the feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

_BLOCK = 8192
# Distances that differ by less than this share of the largest count as equal. The sums of a hundred thousand features
# are exact to about 1e-13.
_ROUNDING = 1e-11


class NeighbourImputer:
    """Fill missing values with the mean of the k nearest fitted patients that have the feature.

    Same result as ``sklearn.impute.KNNImputer(n_neighbors=k, weights="uniform")`` on tables without an all-missing
    column (equidistant donors apart: the library does not say which of them it takes, here the first).
    """

    def __init__(self, neighbours: int = 5) -> None:
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {neighbours}")
        self.neighbours = neighbours

    def fit(self, X: np.ndarray) -> NeighbourImputer:
        """Remember the donors. X [n, p] float with NaN. Raises ValueError when a column has no value at all."""
        donors = _as_float(X)
        missing = np.isnan(donors)
        empty = np.flatnonzero(missing.all(axis=0))
        if empty.size:
            raise ValueError(
                f"{empty.size} feature(s) are missing in every fitted patient "
                f"(first: column {empty[0]}): drop them first"
            )
        self.donors_ = donors
        # Distances do not change when a constant is taken off a column, but their rounding improves.
        self.centre_ = np.asarray(np.nanmean(donors, axis=0, dtype=np.float64))
        return self

    def transform(
        self, X: np.ndarray, columns: np.ndarray | None = None, distances: np.ndarray | None = None
    ) -> np.ndarray:
        """Imputed copy of X [m, p], same dtype; with ``columns``, only these are filled and returned, [m,
        len(columns)].

        Distances always use all p features; ``distances`` [m, n] to the fitted patients, if they are known already.
        They are passed over where two donors lie so close together that rounding would decide who comes first.
        """
        X = _as_float(X)
        if X.ndim != 2 or X.shape[1] != self.donors_.shape[1]:
            raise ValueError(
                f"the table has shape {X.shape}; the imputer was fitted on {self.donors_.shape[1]} features"
            )
        wanted = X if columns is None else X[:, columns]
        filled = np.array(wanted, order="C", copy=True)
        rows = np.flatnonzero(np.isnan(filled).any(axis=1))
        if rows.size == 0:
            return filled
        itself = X is self.donors_ and rows.size == X.shape[0]
        if distances is not None and not _nearly_tied(distances[rows]):
            distance = distances[rows].copy()
        else:
            distance = nan_distances(X if itself else X[rows], self.donors_, self.centre_)
        distance[np.isnan(distance)] = np.inf
        order = np.argsort(distance, axis=1, kind="stable").astype(np.int32)
        usable = np.isfinite(distance).sum(axis=1).astype(np.int32)
        donors = self.donors_ if columns is None else np.ascontiguousarray(self.donors_[:, columns])
        centre = self.centre_ if columns is None else self.centre_[columns]
        _fill(filled, rows, donors, order, usable, centre, self.neighbours)
        return filled

    def fit_transform(self, X: np.ndarray) -> np.ndarray:
        """Fit on X and fill it."""
        X = _as_float(X)
        return self.fit(X).transform(X)


def _nearly_tied(distances: np.ndarray) -> bool:
    """Whether sums taken in another order could sort the donors of some patient otherwise."""
    ordered = np.sort(np.where(np.isfinite(distances), distances, np.nan), axis=1)
    largest = np.fmax.reduce(ordered, axis=1, keepdims=True)
    return bool((np.diff(ordered, axis=1) <= _ROUNDING * largest).any())


def nan_distances(X: np.ndarray, Y: np.ndarray, centre: np.ndarray | None = None) -> np.ndarray:
    """Squared nan-Euclidean distances [m, n] float64 between the rows of X [m, p] and Y [n, p].

    NaN where two patients share no feature. Work is done in blocks of columns: a few megabytes beyond the inputs.
    """
    if centre is None:
        centre = np.nan_to_num(np.nanmean(Y, axis=0, dtype=np.float64))
    squares, shared = pair_sums(X, Y, centre)
    return _finish(squares, shared, X.shape[1], X is Y)


@dataclass(frozen=True)
class SharedSums:
    """Pairwise sums over all features of a table, taken once and reused by every fold.

    squares, shared [n, n]: sum of squared differences and number of features both patients have; X [n, p] the table,
    centre [p] what was taken off its columns; rows: positions of the fold's patients.
    """

    X: np.ndarray
    centre: np.ndarray
    squares: np.ndarray
    shared: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> SharedSums:
        """Sums between all rows of X [n, p]; features that nobody has count for nothing."""
        present = (~np.isnan(X)).sum(axis=0)
        centre = np.nansum(X, axis=0, dtype=np.float64) / np.maximum(present, 1)
        squares, shared = pair_sums(X, X, centre)
        return cls(X, centre, squares, shared, np.arange(X.shape[0]))

    def take(self, rows: np.ndarray) -> SharedSums:
        """The same sums for a fold's patients."""
        return SharedSums(self.X, self.centre, self.squares, self.shared, np.asarray(rows))

    def distances(self, kept: np.ndarray) -> np.ndarray:
        """Squared nan-Euclidean distances [m, m] between the fold's patients over the features in mask ``kept`` [p]."""
        part = np.ix_(self.rows, self.rows)
        dropped = np.flatnonzero(~kept)
        squares, shared = self.squares[part].copy(), self.shared[part].copy()
        if dropped.size:
            lost = self.X[np.ix_(self.rows, dropped)]
            less, fewer = pair_sums(lost, lost, self.centre[dropped])
            squares -= less
            shared -= fewer
        return _finish(squares, shared, int(kept.sum()), True)


def pair_sums(X: np.ndarray, Y: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of squared differences over the features both rows have, and their number, both [m, n] float64."""
    same = X is Y
    m, p = X.shape
    n = Y.shape[0]
    products = np.zeros((m, n))
    # Sums of squares over the features the other patient has: everything minus his missing cells.
    squares_x, squares_y = np.zeros((m, 1)), np.zeros((1, n))
    lost_x, lost_y = np.zeros((n, m)), np.zeros((m, n))
    both_missing = np.zeros((m, n))
    missing_x, missing_y = np.zeros((m, 1)), np.zeros((1, n))
    for start in range(0, p, _BLOCK):
        stop = min(start + _BLOCK, p)
        # Features in rows: what a missing cell takes off lies side by side.
        at, hole_a = _centred(X, start, stop, centre)
        bt, hole_b = (at, hole_a) if same else _centred(Y, start, stop, centre)
        products += at.T @ bt
        squares_x += np.einsum("ij,ij->j", at, at)[:, None]
        squares_y += np.einsum("ij,ij->j", bt, bt)[None, :]
        missing_x += hole_a.sum(axis=0)[:, None]
        missing_y += hole_b.sum(axis=0)[None, :]
        col_a, row_a = np.nonzero(hole_a)
        col_b, row_b = (col_a, row_a) if same else np.nonzero(hole_b)
        _lost_squares(at, col_b, row_b, lost_x)
        if not same:
            _lost_squares(bt, col_a, row_a, lost_y)
        _both_missing(col_a, row_a, col_b, row_b, both_missing)
    if same:
        lost_y = lost_x
    squares = (squares_x - lost_x.T) + (squares_y - lost_y) - 2.0 * products
    return squares, p - missing_x - missing_y + both_missing


def _centred(X: np.ndarray, start: int, stop: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    block = np.subtract(X[:, start:stop].T, centre[start:stop, None], dtype=np.float64, order="C")
    hole = np.isnan(block)
    block[hole] = 0.0
    return block, hole


def _finish(squares: np.ndarray, shared: np.ndarray, p: int, same: bool) -> np.ndarray:
    np.maximum(squares, 0.0, out=squares)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares *= p / shared
    squares[shared == 0] = np.nan
    if same:
        np.fill_diagonal(squares, 0.0)
    return squares


def _as_float(X: np.ndarray) -> np.ndarray:
    X = np.asarray(X)
    return X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)


@njit(cache=True, nogil=True)
def _lost_squares(
    at: np.ndarray, columns: np.ndarray, rows: np.ndarray, lost: np.ndarray,
) -> None:  # pragma: no cover - compiled  # fmt: skip
    # at [cols, m]; a hole of patient y in column c takes at[c, :]**2 off everybody's sum with y. lost [n, m].
    m = at.shape[1]
    for k in range(columns.shape[0]):
        c, y = columns[k], rows[k]
        for x in range(m):
            lost[y, x] += at[c, x] * at[c, x]


@njit(cache=True, nogil=True)
def _both_missing(
    col_a: np.ndarray, row_a: np.ndarray, col_b: np.ndarray, row_b: np.ndarray, count: np.ndarray,
) -> None:  # pragma: no cover - compiled  # fmt: skip
    start = 0
    for k in range(col_a.shape[0]):
        while start < col_b.shape[0] and col_b[start] < col_a[k]:
            start += 1
        j = start
        while j < col_b.shape[0] and col_b[j] == col_a[k]:
            count[row_a[k], row_b[j]] += 1.0
            j += 1


@njit(cache=True, nogil=True)
def _fill(
    filled: np.ndarray, rows: np.ndarray, donors: np.ndarray, order: np.ndarray, usable: np.ndarray,
    centre: np.ndarray, neighbours: int,
) -> None:  # pragma: no cover - compiled  # fmt: skip
    for r in range(rows.shape[0]):
        i = rows[r]
        for c in range(filled.shape[1]):
            if not np.isnan(filled[i, c]):
                continue
            total = 0.0
            met = 0
            for k in range(usable[r]):
                value = donors[order[r, k], c]
                if not np.isnan(value):
                    total += value
                    met += 1
                    if met == neighbours:
                        break
            # No donor shares a feature with this patient: the mean of the fitted patients.
            filled[i, c] = total / met if met > 0 else centre[c]
