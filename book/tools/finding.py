"""The book's finding, in one sentence and one figure, from the results file of lesson 11 (``results/leaks.json``).

The first page of the book and the README say it with the same words, each with the numbers of its own run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.plots import style
from hcmae.plots.survival import plot_finding

# Protocols of lesson 11 between which nothing but the two leaks differs.
HONEST, LEAKY = "no leak", "both"
NULL = "NULL"


@dataclass(frozen=True)
class Pair:
    """C-index of one cohort with shuffled labels: without a leak, and with both; each (mean, low, high)."""

    cohort: str
    honest: tuple[float, float, float]
    leaky: tuple[float, float, float]


def pairs(found: Mapping[str, Any]) -> list[Pair]:
    """What a leaks.json holds of shuffled labels, the run's own cohort first; none without both protocols."""
    own, synthetic = found["provenance"]["cancer"], found["provenance"]["source"] == "synthetic"
    rows = {
        (row["cohort"], row["protocol"]): (row["mean"], row["low"], row["high"])
        for row in found["rows"]
        # The null cohort is shown with a method of its own: another network, so another comparison.
        if row["labels"] == "permuted" and row["cohort"] != NULL and row["mean"] is not None
    }
    cohorts = sorted({cohort for cohort, _ in rows}, key=lambda name: (name != own, name))
    return [
        Pair(_named(name, own, synthetic), rows[name, HONEST], rows[name, LEAKY])
        for name in cohorts
        if (name, HONEST) in rows and (name, LEAKY) in rows
    ]


def _named(cohort: str, own: str, synthetic: bool) -> str:
    if cohort == own:
        return f"synthetic {cohort} cohort" if synthetic else f"{cohort} cohort"
    return f"tables of `{cohort.split(' (')[0]}`"


def sentence(found: Mapping[str, Any]) -> str:
    """The finding as Markdown; raises ValueError for a results file without shuffled labels under both protocols."""
    known = pairs(found)
    if not known:
        raise ValueError("leaks.json has no cohort with shuffled labels under both protocols: run lesson 11 again")
    first = known[0]
    text = (
        "Shuffle who lived how long, and nothing is left to predict. The network's C-index on the "
        f"{first.cohort} is then **{_shown(first.honest)}**; choose the features on all patients and stop where it "
        f"suits the test patients, and it is **{_shown(first.leaky)}**, with the same shuffled labels."
    )
    rest = [
        f"the {other.cohort}, shuffled as well, **{_shown(other.honest)}** and **{_shown(other.leaky)}**"
        for other in known[1:]
    ]
    return text + (f" The same two habits give {'; '.join(rest)}, with a network on omics alone." if rest else "")


def _shown(value: tuple[float, float, float]) -> str:
    mean, low, high = value
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def draw(found: Mapping[str, Any], target: Path, *, dark: bool = False) -> None:
    """Draw the finding as an SVG, for a dark page with a clear ground and light ink."""
    rows = [
        {"cohort": pair.cohort.replace("`", ""), "protocol": name, "mean": mean, "low": low, "high": high}
        for pair in pairs(found)
        for name, (mean, low, high) in (("nothing leaks", pair.honest), ("two leaks", pair.leaky))
    ]
    style.apply()
    style.save(plot_finding(pd.DataFrame(rows)), target, dark=dark)
