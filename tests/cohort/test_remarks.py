"""Remarks in a clinical table: who is not to be used leaves and is listed, what may matter is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from hcmae.cohort.clinical import ClinicalTable, read_clinical
from hcmae.cohort.curate import curate
from hcmae.manifest import load_manifest


def table(folder: Path, column: str, cells: dict[int, str], *, event: int = 0, patients: int = 20) -> Path:
    rows = [f"P{n:02d}\t{400 + 37 * n}\t{event}\t{cells.get(n, '')}" for n in range(patients)]
    folder.mkdir(exist_ok=True)
    path = folder / "clinical.tsv"
    path.write_text("\n".join([f"patient\ttime_days\tevent\t{column}", *rows]) + "\n", encoding="utf-8")
    return path


def read(folder: Path, column: str, cells: dict[int, str], **more: int) -> ClinicalTable:
    return read_clinical(table(folder, column, cells, **more))


NOTICES = [
    ("comments", "do not use"), ("Remarks", "DO NOT USE - wrong block"), ("comment", "patient withdrew consent"),
    ("notes", "consent withdrawn"), ("status note", "Redacted"), ("Redaction", "Redacted"), ("anything", "DNU"),
    ("exclude", "yes"), ("excluded", "1"), ("usable", "no"), ("withdrawn", "yes"), ("bemerkung", "must not be used"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "cell"), NOTICES)
def test_who_is_not_to_be_used_leaves_by_a_named_rule(column: str, cell: str, tmp_path: Path) -> None:
    root = tmp_path / "LIHC"
    table(root, column, {3: cell}, event=1)
    (root / "rna.tsv").write_text("\n".join(["patient\tG1", *(f"P{n:02d}\t{n % 7}" for n in range(20))]) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cohort = curate(load_manifest("LIHC"), "local", root, seed=0, modalities=("rna",), slides=False)
    assert cohort.exclusions["patient"].tolist() == ["P03"]
    assert cohort.exclusions["rule"].tolist() == ["patient not flagged"]
    assert f"column {column}" in cohort.exclusions["reason"][0]
    assert cell in cohort.exclusions["reason"][0]
    notes = read_clinical(root / "clinical.tsv").notes
    assert [f"column '{column}': P03 '{cell}'; a notice not to use the patient" in note for note in notes] == [True]


@pytest.mark.parametrize(
    "cell",
    ["duplicate of P01", "Duplicate", "same patient as P07", "possible sample swap", "mislabelled", "wrong patient",
     "Please remove", "not eligible", "sample was contaminated", "withdrew from the study", "excluded from analysis"],
)  # fmt: skip
def test_what_may_matter_is_a_doubt_with_the_patient(cell: str, tmp_path: Path) -> None:
    read_so = read(tmp_path, "comments", {3: cell})
    assert read_so.notices == {}
    assert [f"column 'comments': P03 '{cell}'; this decides nothing here" in line for line in read_so.doubts] == [True]


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("alcohol", "does not use alcohol"), ("smoking", "does not use tobacco"), ("comments", "nipple retracted"),
        ("comments", "retracted nipple, 2 cm"), ("therapy", "withdrawn from chemotherapy"), ("city", "redacted"),
        ("tumor_removed", "yes"), ("failed", "yes"), ("quality", "poor"), ("comments", "consent given"),
        ("comments", "not redacted"), ("informed_consent_verified", "YES"), ("comments", "margin free, node removed"),
        ("exclude", "no"), ("usable", "yes"), ("lost_to_follow_up", "yes"), ("comments", "metastasis excluded"),
        ("organ", "duplicated ureter"), ("site", "Mixed"), ("withdrawn", "no"), ("comments", "patient died at home"),
    ],
)  # fmt: skip
def test_ordinary_cells_say_nothing(column: str, cell: str, tmp_path: Path) -> None:
    read_so = read(tmp_path, column, {3: cell})
    assert (read_so.notices, read_so.doubts, read_so.notes) == ({}, [], [])


def test_lost_to_follow_up_is_censored_and_said_and_no_death(tmp_path: Path) -> None:
    alive = read(tmp_path, "comments", {3: "lost to follow-up", 5: "Lost to follow up 2018"})
    assert alive.notices == {}
    assert alive.doubts == []
    assert "P03 'lost to follow-up', P05 'Lost to follow up 2018'; censored at the last day" in alive.notes[0]
    dead = read(tmp_path, "comments", {3: "lost to follow-up"}, event=1)
    assert "P03 'lost to follow-up', yet the event is a death; correct one of them" in dead.doubts[0]


def test_a_word_that_stands_everywhere_is_about_the_column(tmp_path: Path) -> None:
    read_so = read(tmp_path, "note", dict.fromkeys(range(12), "Redacted"))
    assert read_so.notices == {}
    assert "12 of 20 patients have remarks such as P00 'Redacted'" in read_so.doubts[0]


def test_columns_with_a_part_of_their_own_are_no_remarks(tmp_path: Path) -> None:
    path = tmp_path / "clinical.tsv"
    path.write_text("patient\ttime_days\tevent\tslide\tgrade\nP1\t400\t1\tdo not use.svs\tDNU\nP2\t500\t0\ta.svs\tG2\n")
    assert read_clinical(path).notices == {}
