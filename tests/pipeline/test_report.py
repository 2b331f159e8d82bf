"""The report of a run: what was computed stands in it, what was not is said, and no patient's name leaves with it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcmae.pipeline import Run
from hcmae.pipeline.reporting_items import ITEMS
from tests.support.local_cohort import OVERRIDES, write_manifest, write_tables

NAMES = [f"KH-{number:03d}" for number in range(48)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    root = folder / "data" / "local" / "HCC2"
    write_manifest(folder / "manifests", "HCC2")
    write_tables(root, NAMES)
    rng = np.random.default_rng(0)
    frame = pd.read_csv(root / "clinical.tsv", sep="\t")
    frame["age"], frame["sex"] = rng.integers(40, 80, 48), rng.choice(["male", "female"], 48)
    frame["stage"], frame["hospital"] = rng.choice(["Stage I", "Stage III"], 48), np.repeat([*"ABCDEF"], 8)
    frame.to_csv(root / "clinical.tsv", sep="\t", index=False)
    settings = {**OVERRIDES, "survival.fold_kind": "site_preserved", "survival.folds": 3}
    run = Run(
        "HCC2", "smoke", "local", 0, folder / "data", folder / "runs",
        overrides=settings, slides=False, manifest_dir=folder / "manifests",
    )  # fmt: skip
    run.curate()
    run.load_omics()
    return run


def test_folds_of_a_run_keep_its_hospitals_whole(run: Run) -> None:
    folds = run.folds(repeats=1)
    assert (folds.groupby("site")["fold"].nunique() == 1).all()
    assert folds["site"].nunique() == 6
    plain = Run(**{**run._given, "cancer": "HCC2", "overrides": {**OVERRIDES, "survival.folds": 3}})
    assert "site" not in plain.folds(repeats=1)


@pytest.mark.slow
def test_report_says_what_there_is_and_what_is_missing(run: Run, tmp_path: Path) -> None:
    run.evaluate("cox_clinical", repeats=1)
    path = run.report(tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert "<td>cox_clinical</td>" in page
    assert "6 sites; folds are site_preserved" in page
    assert "No model was handed over" in page
    assert page.count("<svg") == 3
    for title in ("Provenance", "Cohort", "Subgroups", "Proportional hazards", "Questions of TRIPOD+AI"):
        assert f"<h2>{title}" in page
    assert page.count("for the researcher</td>") == sum(not item.answered for item in ITEMS)
    assert not any(name in page for name in NAMES)
    # Each part that answers a question is there.
    titles = set(re.findall(r"<h2>([^<]+)</h2>", page))
    assert {re.split(r"[;(]", item.answered)[0].strip() for item in ITEMS if item.answered} <= titles
    # Names of vocabularies are no addresses that a page asks.
    assert not re.findall(r"(?:src|href)=[\"']?https?:", page)
