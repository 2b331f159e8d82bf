"""``hcmae check``: every fault of a folder in one report, whatever else is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hcmae.cli import typer_app
from hcmae.cohort.curate import SlideOwnerWarning, curate
from hcmae.manifest import load_manifest
from hcmae.pipeline.check import RULES, check_data, rules_for
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
    said = {
        (found["kind"], Path(found["file"]).name)
        for found in report["findings"]
        if found["rule"] in ("folder", "other files")
    }
    assert said == {("warning", "expression.tsv"), ("warning", "slide"), ("fault", "slides")}
    assert status == 1
    assert any("FFPE" in found["what"] for found in report["findings"]), "a table in other case is read"


def test_what_could_be_meant_is_said(root: Path) -> None:
    (root / "rna.tsv").rename(root / "RNAseq.tsv")
    (root / "methylation (1).tsv").write_text("patient\tcg1\n")
    for name in ("mirna.xlsx", "Columns.json", "sample.tsv", "~$mirna.xlsx", "notes.md"):
        (root / name).write_text("{}")
    (root / "LIHC").mkdir()
    (root / "LIHC" / "clinical.tsv").write_text("")
    found = [found for found in check(root)[1]["findings"] if found["rule"] == "other files"]
    assert {Path(one["file"]).name: one["do"] for one in found} == {
        "RNAseq.tsv": "name one file 'rna.tsv', or name it in columns.json",
        "methylation (1).tsv": "name this one in columns.json if it is the right one",
        "mirna.xlsx": "save it as .tsv or .csv",
        "Columns.json": "name it 'columns.json'",
        "sample.tsv": "name one file 'samples.tsv', or name it in columns.json",
        "notes.md": "rename it, or name it in columns.json, if it is part of the data",
        "LIHC": "check that folder",
    }


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
    assert any(rule == "remarks" and "row 2, 'P001': preservation 'bag 7' is no method" in what for rule, what in found)
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
    assert "1 patient: followed for 12 days only (P000)" in by_rule(report, "left out")["followed for 30 days or more"]


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


def own_rules(folder: Path) -> tuple[str, ...]:
    """Options that judge by a manifest without a least size of slides."""
    return "--cancer", "HCC2", "--manifest-dir", str(write_manifest(folder / "manifests", "HCC2"))


def write_files(root: Path, *names: str) -> None:
    """Files below slides/ with bytes of their own."""
    for name in names:
        path = root / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"pixels of {name}".encode())


def name_slides(root: Path, names: dict[str, str]) -> None:
    """A column of slides in the clinical table."""
    table = pd.read_csv(root / "clinical.tsv", sep="\t", dtype=str)
    table["slide"] = table["patient"].map(names).fillna("NA")
    table.to_csv(root / "clinical.tsv", sep="\t", index=False)


def of_rule(report: dict[str, Any], rule: str, kind: str = "fault") -> list[str]:
    return [found["what"] for found in report["findings"] if (found["rule"], found["kind"]) == (rule, kind)]


def test_all_slides_to_be_decided_are_said_and_who_leaves_as_well(root: Path, tmp_path: Path) -> None:
    """Two names that fit two files, a slide named for two, a copy: four faults; two patients leave for two reasons."""
    both = ("north/1.svs", "south/1.svs", "north/2.svs", "south/2.svs")
    write_files(root, *both, "x.svs", "c.svs", "d.svs", "P006.tif.part")
    (root / "slides" / "d.svs").write_bytes((root / "slides" / "c.svs").read_bytes())
    slides = {"P000": "1.svs", "P001": "2.svs", "P002": "x.svs", "P003": "x.svs", "P004": "c.svs", "P005": "d.svs"}
    name_slides(root, slides)
    status, report = check(root, *own_rules(tmp_path))
    assert status == 1
    faults = of_rule(report, "owner of a slide")
    assert len(faults) == 4
    for one, other in zip(faults, (("P000", "north/1.svs or south/1.svs"), ("P001", "north/2.svs or south/2.svs"),
                                   ("x.svs", "P002 and P003"), ("c.svs (patient P004)", "d.svs (patient P005)")),
                          strict=True):  # fmt: skip
        assert all(part in one for part in other)
    (left,) = [found for found in report["findings"] if found["kind"] == "left out"]
    assert left["rule"] == "diagnostic slide"
    assert left["patients"]["P007"] == "no slide"
    assert left["patients"]["P006"].startswith(
        "no slide: P006.tif.part is not read, for want of a slide's suffix (.svs"
    )
    assert "P007" in left["what"]
    assert "P006.tif.part" in of_rule(report, "beside the slides", "warning")[0]
    assert of_rule(report, "cohort", "note")[0].startswith("6 patients with rna, mirna, methylation, slides")


def test_where_nobody_is_left_all_are_listed(root: Path) -> None:
    write_files(root, *(f"{patient}.svs" for patient in PATIENTS))
    status, report = check(root)
    assert status == 1
    assert "no patient is left after the rule 'slide of 20 MB or more'" in of_rule(report, "cohort")[0]
    (left,) = [found for found in report["findings"] if found["kind"] == "left out"]
    assert (left["rule"], sorted(left["patients"])) == ("slide of 20 MB or more", PATIENTS)


def test_a_broken_columns_json_hides_nothing_else(root: Path, tmp_path: Path) -> None:
    said = {"files": {"rna": "expression.tsv"}, "unit": {}, "units": {"rna": "beta"}, "clinical": {"tme": "t"}}
    (root / "columns.json").write_text(json.dumps(said))
    (root / "rna.tsv").rename(root / "expression.tsv")
    (root / "mirna.tsv").write_text("patient\thsa-mir-1\nP001\tmany\n")
    write_files(root, "P000.svs", "a/P001.svs")
    text = (root / "clinical.tsv").read_text(encoding="utf-8").replace("P002\t", "P002\t12\t").splitlines()
    text = [line if line.count("\t") == 2 else "P002\t12\t1" for line in text]
    (root / "clinical.tsv").write_text("\n".join(text), encoding="utf-8")
    status, report = check(root, "--no-slides")
    assert status == 1
    faults = of_rule(report, "columns.json")
    assert len(faults) == 3
    assert all(word in " ".join(faults) for word in ("unknown key 'unit'", "unit 'beta'", "unknown key 'clinical.tme'"))
    assert len(of_rule(report, "mirna")) == 1
    assert of_rule(report, "rna", "note")[0] == "8 patients, 20 features", "what is sound in columns.json is used"
    assert of_rule(report, "followed for 30 days or more", "left out") == [
        "1 patient: followed for 12 days only (P002)"
    ]
    (root / "columns.json").write_text("{")
    report = check(root, "--no-slides")[1]
    (broken,) = [found for found in report["findings"] if found["rule"] == "columns.json"]
    assert (broken["what"][:14], broken["do"]) == ("not valid JSON", "correct it there")
    assert len(of_rule(report, "mirna")) == 1
    assert of_rule(report, "cohort", "note"), "methylation is sound"


def test_broken_remarks_hide_nothing_else(root: Path) -> None:
    (root / "samples.tsv").write_text("sample\tcolour\nP001\tred\n")
    status, report = check(root)
    assert status == 1
    assert len(of_rule(report, "remarks")) == 1
    assert of_rule(report, "cohort", "note")[0].startswith("8 patients")


def test_an_unreadable_clinical_table_leaves_the_tables_and_slides_to_be_checked(root: Path) -> None:
    (root / "clinical.tsv").write_text("patient\tcolour\nP001\tred\n")
    write_files(root, "P000.svs")
    status, report = check(root)
    assert status == 1
    faults = {found["rule"]: found for found in report["findings"] if found["kind"] == "fault"}
    assert set(faults) == {"clinical", "slides"}
    assert faults["slides"]["what"].startswith("not a slide that can be read (not a TIFF; ")
    assert faults["slides"]["do"] == "see whether a viewer opens it; if not, copy or export it again"
    assert of_rule(report, "rna", "note")[0].startswith("8 patients")
    assert "not known yet" in of_rule(report, "cohort", "warning")[0]


def test_slides_that_bear_another_patients_name_are_a_warning(root: Path, tmp_path: Path) -> None:
    write_files(root, "P000_HE.svs", "P001_HE.svs", *(f"{patient}.svs" for patient in PATIENTS[2:]))
    name_slides(root, {"P000": "P001_HE.svs", "P001": "P000_HE.svs"})
    _, report = check(root, *own_rules(tmp_path))
    (told,) = of_rule(report, "name of a slide", "warning")
    assert "P000 has P001_HE.svs, P001 has P000_HE.svs" in told
    with pytest.warns(SlideOwnerWarning, match="rows look swapped"):
        curate(load_manifest("HCC2", tmp_path / "manifests"), "local", root, seed=0)


def test_rules_of_another_manifest_are_said(root: Path, tmp_path: Path) -> None:
    own = root.rename(root.parent / "lihc")
    (warned,) = [found for found in check(own)[1]["findings"] if found["rule"] == "manifest"]
    assert warned["kind"] == "warning"
    assert "the rules of LIHC stand in" in warned["what"]
    assert warned["do"] == "did you mean --cancer LIHC?"
    assert not of_rule(check(own, "--cancer", "LIHC")[1], "manifest", "warning")
    folder = write_manifest(tmp_path / "manifests", "HCC2")
    (folder / "HCC2.yaml").write_text("cancer: HCC2\n")
    (own / "rna.tsv").write_text("patient\tG1\nP001\t1\nP001\t2\n")
    status, report = check(own, "--cancer", "HCC2", "--manifest-dir", str(folder))
    assert status == 1
    assert len(of_rule(report, "manifest")) == len(of_rule(report, "rna")) == 1
    result = CliRunner().invoke(typer_app, ["check", str(own), "--cancer", "NONE"])
    assert result.exit_code == 2
    assert rules_for(tmp_path / "NULL")[1] == []


def test_images_only(root: Path, tmp_path: Path) -> None:
    write_files(root, *(f"{patient}.svs" for patient in PATIENTS))
    _, report = check(root, "--modalities", "none", *own_rules(tmp_path))
    assert of_rule(report, "cohort", "note")[0].startswith("8 patients with slides")
    for name in ("rna", "mirna", "methylation"):
        (root / f"{name}.tsv").unlink()
    _, report = check(root, *own_rules(tmp_path))
    assert of_rule(report, "cohort", "note")[0].startswith("8 patients with slides")


def test_rules_have_names_of_their_own() -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))


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
        (root / "slides" / f"{patient}.svs").write_bytes(f"slide of {patient}".encode())
    manifest = load_manifest("HCC2", write_manifest(tmp_path / "manifests", "HCC2", min_slide_bytes=10))
    flow = curate(manifest, "local", root, seed=0).flow
    names = {rule.name for rule in RULES}
    for rule in flow["rule"]:
        assert any(rule.startswith(name) or rule.endswith(name) for name in names), rule


def test_normal_tissue_guessed_units_and_slides_of_one_name_are_all_said_at_once(tmp_path: Path) -> None:
    """Each is known to have gone wrong in silence: a profile of other tissue taken for the tumour's, logarithms logged
    again, expected counts without size factors, one slide for two patients.
    """
    root = tmp_path / "LIHC"
    patients = [f"TCGA-ZZ-A{number:03d}" for number in range(12)]
    write_tables(root, patients)
    kinds = {patients[3]: "11A", patients[5]: "06A"}
    aliquots = [f"{patient}-{kinds.get(patient, '01A')}-11R-A123-07" for patient in patients]
    rng = np.random.default_rng(1)
    rna, mirna = (pd.read_csv(root / f"{name}.tsv", sep="\t", index_col=0) for name in ("rna", "mirna"))
    np.log2(rna.set_axis(pd.Index(aliquots, name="sample")) + 1).round(4).to_csv(root / "rna.tsv", sep="\t")
    (mirna + rng.uniform(0, 1, mirna.shape)).round(2).to_csv(root / "mirna.tsv", sep="\t")
    both = ("north/1.svs", "north/2.svs", "south/1.svs", "south/2.svs")
    write_files(root, *both, *(f"{patient}.svs" for patient in patients[4:]))
    name_slides(root, {patients[0]: "1.svs", patients[1]: "2.svs", patients[2]: "1.svs", patients[3]: "2.svs"})
    status, report = check(root, *own_rules(tmp_path))
    assert status == 1
    # Who: both patients, with the reason of each.
    (left,) = [found for found in report["findings"] if (found["kind"], found["rule"]) == ("left out", "rna data")]
    assert left["patients"] == {patients[3]: "rna of sample type 11 only", patients[5]: "rna of sample type 06 only"}
    # In which unit, and why; what is not plain is asked for.
    assert any(what.startswith("log2_counts (log2(counts + 1)), because") for what in of_rule(report, "rna", "note"))
    (unit,) = [found for found in report["findings"] if (found["kind"], found["rule"]) == ("fault", "mirna")]
    assert unit["file"] == str(root / "mirna.tsv")
    assert "expected counts look like this" in unit["what"]
    assert "say in columns.json what the table holds" in unit["do"]
    # Whose slide, which files, and what to do.
    owners = [found for found in report["findings"] if found["rule"] == "owner of a slide"]
    assert [(found["kind"], found["subject"]) for found in owners] == [
        ("fault", f"patient {patient}") for patient in patients[:4]
    ]
    for number, found in enumerate(owners):
        name = number % 2 + 1
        assert f"slide '{name}.svs' could be north/{name}.svs or south/{name}.svs" in found["what"]
        assert found["do"] == "write the path below slides/ in that column"
