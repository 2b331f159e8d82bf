"""Sentences that compare, written from numbers: which is larger, and whether an interval tells the two apart.

A lesson prints its comparisons with these, so that another run, cohort or method cannot make them false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hcmae.evaluation.metrics import Interval


def compared(
    first: str, a: float, second: str, b: float, *, margin: float = 0.0, form: str = ".3f", better: str | None = None
) -> str:
    """'MAE-Reg (0.412) is above MAE-Pat (0.377)', 'below' or 'level with' (within ``margin``), without a full stop.

    better: "high" or "low" adds which of the two is the better one. Raises ValueError for another word.
    """
    if better not in (None, "high", "low"):
        raise ValueError(f"better={better!r}: high, low or None")
    names = f"{first} ({a:{form}})", f"{second} ({b:{form}})"
    if not (np.isfinite(a) and np.isfinite(b)):
        return f"{names[0]} and {names[1]} cannot be compared"
    if abs(a - b) <= margin or f"{a:{form}}" == f"{b:{form}}":
        return f"{names[0]} is level with {names[1]}"
    word = "above" if a > b else "below"
    if better is not None:
        word += ", so better than" if (a > b) == (better == "high") else ", so worse than"
    return f"{names[0]} is {word} {names[1]}"


def told_apart(first: str, second: str, difference: Interval, *, form: str = "+.3f") -> str:
    """'HC-MAE minus MCAT: +0.034 (+0.010 to +0.058), above 0', or that the interval holds 0; no full stop."""
    shown = f"{difference.value:{form}} ({difference.low:{form}} to {difference.high:{form}})"
    if not np.isfinite([difference.low, difference.high]).all():
        verdict = "no interval"
    elif difference.low > 0:
        verdict = "above 0"
    elif difference.high < 0:
        verdict = "below 0"
    else:
        verdict = "not told apart: the interval holds 0"
    return f"{first} minus {second}: {shown}, {verdict}"


def largest(values: Mapping[str, float], *, form: str = ".3f", what: str = "largest", most: bool = True) -> str:
    """'largest: HC-MAE (0.741), before MCAT (0.702)'; ``most`` False takes the smallest. Ties are all named.

    Raises ValueError where no value is finite.
    """
    known = {name: value for name, value in values.items() if np.isfinite(value)}
    if not known:
        raise ValueError(f"no value of {', '.join(values) or 'nothing'} is known")
    ordered = sorted(known, key=lambda name: known[name], reverse=most)
    shown = {name: f"{value:{form}}" for name, value in known.items()}
    top = [name for name in ordered if shown[name] == shown[ordered[0]]]
    rest = [name for name in ordered if name not in top]
    text = f"{what}: {joined(top)} ({shown[top[0]]})"
    return f"{text}, before {rest[0]} ({shown[rest[0]]})" if rest else text


def trend(values: Sequence[float], *, margin: float = 0.0) -> str:
    """'rises', 'falls', 'stays level' or 'goes up and down', from the steps of a sequence; ``margin`` is no step."""
    steps = np.diff(np.asarray(values, dtype=float))
    up, down = bool((steps > margin).any()), bool((steps < -margin).any())
    return {(True, False): "rises", (False, True): "falls", (False, False): "stays level"}.get(
        (up, down), "goes up and down"
    )


def joined(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def calibrated(when: str, table: pd.DataFrame) -> str:
    """Which groups of a ``metrics.calibration`` lie off the diagonal: predicted outside the interval of the observed.

    No full stop. Groups are counted from 1, the group of the worst predicted survival.
    """
    off = [
        f"group {int(row['group']) + 1} (predicted {row['predicted']:.0%}, observed {row['observed']:.0%}, "
        f"{row['low']:.0%} to {row['high']:.0%})"
        for row in table.to_dict("records")
        if not row["low"] <= row["predicted"] <= row["high"]
    ]
    if not off:
        return f"{when} every group's interval holds the predicted survival"
    return f"{when} the interval leaves out the predicted survival of {joined(off)}"


def days_above(name: str, table: pd.DataFrame) -> str:
    """When a Brier curve [day, model, kaplan_meier] (``metrics.brier``) is above Kaplan-Meier's; no full stop.

    Raises ValueError for an empty table.
    """
    if table.empty:
        raise ValueError(f"{name}: no day with a Brier score")
    years = table["day"].to_numpy(float) / 365.25
    above = table["model"].to_numpy(float) > table["kaplan_meier"].to_numpy(float)
    if not above.any():
        return f"{name} is below Kaplan-Meier at every day"
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(int)))
    spans = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        start, end = f"{years[first]:.1f}", f"{years[last - 1]:.1f}"
        spans.append(f"at {start}" if start == end else f"from {start} to {end}")
    return f"{name} is above Kaplan-Meier, so worse than it, {joined(spans)} years"
