"""The first page's finding: said and drawn from a results file of lesson 11, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from book.tools import finding


def row(cohort: str, protocol: str, mean: float | None, labels: str = "permuted") -> dict[str, Any]:
    low, high = (None, None) if mean is None else (mean - 0.05, mean + 0.05)
    return {
        "cohort": cohort,
        "labels": labels,
        "protocol": protocol,
        "mean": mean,
        "low": low,
        "high": high,
    }


@pytest.fixture
def found() -> dict[str, Any]:
    return {
        "rows": [
            row("tables (rules of LIHC)", "no leak", 0.53),
            row("tables (rules of LIHC)", "both", 0.71),
            row("LIHC", "no leak", 0.51),
            row("LIHC", "select on all", 0.78),
            row("LIHC", "both", 0.84),
            row("LIHC", "both", 0.9, labels="true"),
            row("NULL", "no leak", 0.5),
            row("NULL", "both", 0.86),
        ],
        "provenance": {"cancer": "LIHC", "source": "synthetic", "profile": "smoke", "seed": 0, "commit": "abc"},
    }


def test_shuffled_labels_of_the_run_come_first_and_other_networks_not_at_all(found: dict[str, Any]) -> None:
    assert [(pair.cohort, pair.honest[0], pair.leaky[0]) for pair in finding.pairs(found)] == [
        ("synthetic LIHC cohort", 0.51, 0.84),
        ("tables of `tables`", 0.53, 0.71),
    ]


def test_the_sentence_holds_the_numbers_of_the_file(found: dict[str, Any]) -> None:
    said = finding.sentence(found)
    for number in ("0.51 (0.46 to 0.56)", "0.84 (0.79 to 0.89)", "0.53 (0.48 to 0.58)", "0.71 (0.66 to 0.76)"):
        assert f"**{number}**" in said
    assert "0.90" not in said
    assert "0.86" not in said


def test_a_cohort_without_both_protocols_or_without_an_estimate_is_not_named(found: dict[str, Any]) -> None:
    found["rows"] = [row("LIHC", "no leak", 0.51), row("LIHC", "both", 0.84), row("other", "no leak", 0.5)]
    assert [pair.cohort for pair in finding.pairs(found)] == ["synthetic LIHC cohort"]
    found["rows"] = [row("LIHC", "no leak", None), row("LIHC", "both", 0.84)]
    with pytest.raises(ValueError, match="run lesson 11 again"):
        finding.sentence(found)


def test_a_real_cohort_is_not_called_synthetic(found: dict[str, Any]) -> None:
    found["provenance"]["source"] = "gdc"
    assert finding.pairs(found)[0].cohort == "LIHC cohort"


def test_the_figure_has_a_light_and_a_dark_side(found: dict[str, Any], tmp_path: Path) -> None:
    finding.draw(found, tmp_path / "light.svg")
    finding.draw(found, tmp_path / "dark.svg", dark=True)
    light, dark = ((tmp_path / f"{name}.svg").read_text(encoding="utf-8") for name in ("light", "dark"))
    assert "#ffffff" in light
    assert "#ffffff" not in dark
    assert "#22272e" not in dark
    with pytest.raises(ValueError, match="only an SVG"):
        finding.draw(found, tmp_path / "dark.png", dark=True)
