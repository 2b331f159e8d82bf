"""``hcmae check``: every fault of a folder in one report, whatever else is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.cohort.curate import curate
from hcmae.manifest import load_manifest
from hcmae.pipeline.check import RULES, check_data
from tests.support.local_cohort import write_manifest, write_slide, write_tables

PATIENTS = [f"P{number:03d}" for number in range(8)]


def check(root: Path, *options: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(typer_app, ["check", str(root), "--json", *options])
    return result.exit_code, json.loads(result.stdout)


def by_rule(report: dict[str, Any], kind: str) -> dict[str, str]:
    return {found["rule"]: f"{found['file']}: {found['what']}" for found in report["findings"] if found["kind"] == kind}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "meine Läufe" / "LIHC"
    write_tables(folder, PATIENTS)
    return folder


def test_a_sound_folder_without_slides_has_no_fault_and_nothing_is_written(root: Path) -> None:
    before = sorted(root.rglob("*"))
    status, report = check(root)
    assert status == 0
    assert report["faults"] == 0
    assert "8 patients with rna, mirna, methylation" in by_rule(report, "note")["cohort"]
    assert sorted(root.rglob("*")) == before


def test_one_fault_does_not_hide_the_next(root: Path) -> None:
    (root / "rna.tsv").write_text("patient\tG1\nP001\t1\nP001\t2\n")
    (root / "mirna.tsv").write_text("patient\thsa-mir-1\nP001\tmany\n")
    (root / "slides").mkdir()
    (root / "slides" / "P001.svs").write_bytes(b"II*\0 this is no slide")
    (root / "slides" / "P002.svs").touch()
    status, report = check(root)
    faults = [found for found in report["findings"] if found["kind"] == "fault"]
    assert status == 1
    assert [(found["rule"], Path(found["file"]).name) for found in faults if found["rule"] != "cohort"] == [
        ("rna", "rna.tsv"), ("mirna", "mirna.tsv"), ("slides", "P001.svs"), ("slides", "P002.svs"),
    ]  # fmt: skip
    assert faults[0]["subject"] == "patient P001"
    assert faults[0]["do"] == "keep one row per patient, or one per sample under its barcode"
    assert faults[1]["do"] == "correct that cell"
    text = CliRunner().invoke(typer_app, ["check", str(root)])
    assert text.exit_code == 1
    assert f"[FAULT] rna: {root / 'rna.tsv'}: patient P001 comes twice" in text.stdout
    assert "-> keep one row per patient" in text.stdout


def test_the_same_fault_in_two_tables_is_two_faults(root: Path) -> None:
    for name in ("rna", "mirna"):
        (root / f"{name}.tsv").write_text(f"patient\tX{name}\nP001\t1\nP001\t2\n")
    faults = [Path(found["file"]).name for found in check(root)[1]["findings"] if found["kind"] == "fault"]
    assert {"rna.tsv", "mirna.tsv"} <= set(faults)
    assert len(set(faults)) == len(faults), "and each is said once"


def test_what_nobody_reads_is_said(root: Path) -> None:
    (root / "expression.tsv").write_text("patient\tG1\n")
    (root / "slide").mkdir()
    (root / "slides").symlink_to(root / "not mounted")
    (root / "Samples.tsv").write_text("sample\tis_ffpe\nP001\ttrue\n")
    status, report = check(root)
    said = {(found["kind"], Path(found["file"]).name) for found in report["findings"] if found["rule"] == "folder"}
    assert said == {("warning", "expression.tsv"), ("warning", "slide"), ("fault", "slides")}
    assert status == 1
    assert any("FFPE" in found["what"] for found in report["findings"]), "a table in other case is read"


def test_what_is_recognised_is_said(root: Path) -> None:
    def known(rule: str) -> list[str]:
        findings = check(root)[1]["findings"]
        return [found["what"] for found in findings if (found["rule"], found["kind"]) == (rule, "note")]

    said = {rule: " | ".join(known(rule)) for rule in ("clinical", "rna", "methylation")}
    assert "counts (reads per gene, whole numbers), because all values are whole numbers" in said["rna"]
    assert "beta (share of methylated copies, 0 to 1), because all values lie between 0 and 1" in said["methylation"]
    (root / "columns.json").write_text('{"units": {"rna": "expected_counts"}}')
    assert "expected_counts (estimated reads of RSEM, kallisto or salmon), as stated" in known("rna")[1]
    text = (root / "clinical.tsv").read_text(encoding="utf-8")
    (root / "clinical.tsv").write_text(text.replace("time_days", "OS.time").replace("event", "OS"), encoding="utf-8")
    assert any("survival time in days from column 'OS.time'" in what for what in known("clinical"))
    (root / "clinical.tsv").write_text(text.replace("time_days", "OS_MONTHS").replace("event", "OS_STATUS"))
    assert any("recognised as a table of cBioPortal" in what for what in known("clinical"))


def test_what_samples_and_clinical_tables_say_amiss_is_a_warning_with_row_and_value(root: Path) -> None:
    (root / "samples.tsv").write_text("sample\tpreservation\nP001\tbag 7\nQ1\tFrozen\n")
    text = (root / "clinical.tsv").read_text(encoding="utf-8")
    rows = [f"{line}\t{'vital_status' if n == 0 else 'Alive' if line.endswith('0') else 'Dead'}" for n, line in
            enumerate(text.splitlines())]  # fmt: skip
    rows[2] = rows[2].replace("Dead", "Alive")
    (root / "clinical.tsv").write_text("\n".join(rows) + "\n")
    status, report = check(root)
    assert status == 0
    found = [(f["rule"], f["what"]) for f in report["findings"] if f["kind"] == "warning"]
    assert any(rule == "samples" and "row 2, 'P001': preservation 'bag 7' is no method" in what for rule, what in found)
    assert any("row 3: 'Q1' (preservation 'Frozen') is no patient" in what for _, what in found)
    assert any(rule == "clinical" and "disagree on the event of 1 patient (P001: '1' and 'Alive')" in what
               for rule, what in found)  # fmt: skip
    assert by_rule(report, "left out").keys() == {"columns agree"}


def test_the_outcome_among_the_features_is_a_fault(root: Path) -> None:
    clinical = pd.read_csv(root / "clinical.tsv", sep="\t")
    table = pd.read_csv(root / "rna.tsv", sep="\t")
    table["G1"] = clinical["time_days"]
    table.to_csv(root / "rna.tsv", sep="\t", index=False)
    status, report = check(root)
    assert status == 1
    assert "column 'G1' equals the survival time" in by_rule(report, "fault")["rna"]


def test_who_would_be_left_out_is_listed_by_rule(root: Path) -> None:
    text = (root / "clinical.tsv").read_text(encoding="utf-8").replace("P000\t200", "P000\t12")
    (root / "clinical.tsv").write_text(text, encoding="utf-8")
    status, report = check(root)
    assert status == 0
    assert "1 patients (P000)" in by_rule(report, "left out")["followed for 30 days or more"]


def test_a_slide_that_can_be_opened_is_and_no_pixel_is_read(root: Path) -> None:
    write_slide(root / "slides" / "P001.svs", seed=1)
    status, report = check(root, "--modalities", "rna")
    assert "1 of 1 slides can be opened" in by_rule(report, "note")["slides"]
    # The manifest of LIHC asks for slides of 20 MB, and nobody else has one.
    assert status == 1
    assert "no patient is left" in by_rule(report, "fault")["cohort"]


def test_what_was_asked_for_must_be_there(root: Path) -> None:
    (root / "mirna.tsv").unlink()
    assert check(root)[0] == 0
    status, report = check(root, "--modalities", "rna,mirna", "--slides")
    assert status == 1
    assert {"mirna", "slides"} <= set(by_rule(report, "fault"))
    assert check(root / "nowhere")[0] == 1


def test_every_finding_stands_in_the_table_of_checks(root: Path) -> None:
    (root / "columns.json").write_text('{"nonsense": {}}')
    (root / "clinical.tsv").unlink()
    report = check_data(load_manifest("LIHC"), "local", root, slides=True)
    names = {rule.name for rule in RULES}
    assert {finding.rule for finding in report.findings} <= names
    assert {"columns.json", "clinical", "slides"} <= {finding.rule for finding in report.faults}


def test_fetched_data_without_a_lock_say_what_to_run(tmp_path: Path) -> None:
    status, report = check(tmp_path, "--source", "gdc")
    assert status == 1
    assert {"clinical", "lock"} <= set(by_rule(report, "fault"))


def test_every_rule_of_the_road_stands_in_the_table_of_checks(root: Path, tmp_path: Path) -> None:
    """A new rule of curation is a new row of RULES, or the page What is checked says less than is done."""
    for patient in PATIENTS:
        (root / "slides").mkdir(exist_ok=True)
        (root / "slides" / f"{patient}.svs").write_bytes(b"not read by curation")
    manifest = load_manifest("HCC2", write_manifest(tmp_path / "manifests", "HCC2", min_slide_bytes=10))
    flow = curate(manifest, "local", root, seed=0).flow
    names = {rule.name for rule in RULES}
    for rule in flow["rule"]:
        assert any(rule.startswith(name) or rule.endswith(name) for name in names), rule
