"""Folds: everybody once, deaths and times spread evenly, the same every time, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmae.cohort.splits import FewEventsWarning, inner_folds, inner_split, make_folds
from hcmae.outcome import check_outcome


def outcome(n: int = 130, rate: float = 0.3, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return [f"P{i:03d}" for i in range(n)], rng.exponential(900, n), (rng.random(n) < rate).astype(int)


def test_everybody_is_tested_once_per_repeat() -> None:
    patients, time, event = outcome()
    folds = make_folds(patients, time, event, 5, 3, seed=1)
    for _, part in folds.groupby("repeat"):
        assert sorted(part["patient"]) == patients
        assert part.groupby("fold").size().max() - part.groupby("fold").size().min() <= 1
    first, second = (folds.loc[folds["repeat"] == r, "fold"].to_numpy() for r in (0, 1))
    assert (first != second).any()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(40, 200), rate=st.floats(0.2, 0.9), seed=st.integers(0, 1000))
def test_deaths_are_spread(n: int, rate: float, seed: int) -> None:
    patients, time, event = outcome(n, rate, seed)
    if event.sum() < 25:
        return
    folds = make_folds(patients, time, event, 5, 1, seed=seed)
    deaths = [event[folds["fold"] == k].sum() for k in range(5)]
    assert max(deaths) - min(deaths) <= 1


def test_times_are_spread() -> None:
    patients, time, event = outcome(400, 0.5)
    fold = make_folds(patients, time, event, 5, 1, seed=3)["fold"].to_numpy()
    dead = event == 1
    middle = [np.median(time[dead & (fold == k)]) for k in range(5)]
    # At random the medians of five folds of 40 differ by several times this.
    assert np.ptp(middle) < 0.15 * np.median(time[dead])


def test_same_seed_same_folds() -> None:
    data = outcome()
    assert make_folds(*data, 5, 2, seed=4).equals(make_folds(*data, 5, 2, seed=4))
    assert not make_folds(*data, 5, 2, seed=4).equals(make_folds(*data, 5, 2, seed=5))


def test_inner_split_is_stratified() -> None:
    _, time, event = outcome(100, 0.3)
    held = inner_split(time, event, 0.2, seed=2)
    assert held.sum() == pytest.approx(20, abs=1)
    assert event[held].sum() == pytest.approx(event.sum() / 5, abs=1)
    assert np.bincount(inner_folds(time, event, 5, 2)).min() >= 19


def test_few_events_warn() -> None:
    patients, time, event = outcome(60, 0.1)
    event[:6] = 1
    with pytest.warns(FewEventsWarning, match="deaths"):
        make_folds(patients, time, event, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t, e: (p, t, np.zeros_like(e)), "no patient has an event"),
        (lambda p, t, e: ([p[0], *p[:-1]], t, e), "more than once"),
        (lambda p, t, e: (p, np.where(np.arange(len(t)) == 3, np.nan, t), e), "row 3"),
        (lambda p, t, e: (p, -t, e), "not negative"),
        (lambda p, t, e: (p, t, e + 1), "use 1 for an observed death"),
        (lambda p, t, e: (p[:3], t[:3], e[:3]), "folds"),
        (lambda p, t, e: (p[:-1], t, e), "patients but"),
    ],
)
def test_bad_input(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_folds(*change(*outcome()), 5)


def test_bad_fraction_and_lengths() -> None:
    _, time, event = outcome()
    with pytest.raises(ValueError, match="fraction"):
        inner_split(time, event, 0.0)
    with pytest.raises(ValueError, match="too few"):
        inner_folds(time[:5], event[:5], 5)
    with pytest.raises(ValueError, match="equally long"):
        check_outcome(time, event[:-1])
