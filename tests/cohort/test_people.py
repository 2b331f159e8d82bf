"""One person under two spellings, and barcodes as R writes them: never made one in silence, never lost in silence."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmae.cohort.barcodes import dashed, named_patient
from hcmae.cohort.curate import Cohort, curate
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.local import table_samples
from hcmae.cohort.people import how_names_differ, one_name_twice, other_spellings, spelling_key, spelt_alike
from hcmae.manifest import load_manifest
from hcmae.tables import TableDoubt, TableNote

PATIENTS = [f"P{number:03d}" for number in range(1, 13)]


def folder(root: Path, clinical: list[str], rna: list[str]) -> Path:
    root.mkdir()
    rows = [f"{name}\t{400 + 13 * number}\t{number % 2}" for number, name in enumerate(clinical)]
    (root / "clinical.tsv").write_text("\n".join(["patient\ttime_days\tevent", *rows]) + "\n", encoding="utf-8")
    rows = [f"{name}\t{7 + number}\t{3 + number * number}" for number, name in enumerate(rna)]
    (root / "rna.tsv").write_text("\n".join(["patient\tG1\tG2", *rows]) + "\n", encoding="utf-8")
    return root


def curated(root: Path) -> tuple[Cohort, list[str]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cohort = curate(load_manifest("LIHC"), "local", root, seed=0, modalities=("rna",), slides=False)
    return cohort, [str(warning.message) for warning in told if issubclass(warning.category, TableDoubt)]


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("pat01", "PAT01", "capital letters"), ("P 1", "P1", "blanks"), ("P001", "P1", "leading zeros"),
        ("7", "7.0", "a '.0' at the end"), ("1001", "X1001", "an X before the number"),
        ("P-1", "P_1", "marks between letters"), ("p-01", "P1", "marks between the letters, or in leading zeros"),
    ],
)  # fmt: skip
def test_how_two_spellings_differ(one: str, other: str, how: str) -> None:
    assert spelling_key(one) == spelling_key(other)
    assert how_names_differ(one, other) == how_names_differ(other, one) == how


@pytest.mark.parametrize(
    ("one", "other"),
    [("P1", "P10"), ("1-11", "11-1"), ("P1-1", "P11"), ("X1", "Y1"), ("10", "100"), ("1.5", "15"), ("0", "00.1")],
)
def test_other_names_are_other_people(one: str, other: str) -> None:
    assert spelling_key(one) != spelling_key(other)
    assert spelt_alike([one, other]) == []


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_names_are_compared(names: list[str]) -> None:
    found = other_spellings({"a": names[:3], "b": names[3:]})
    assert all(spelling_key(name) == spelling_key(spelling.other) for name, spelling in found.items())
    assert all(one != other for one, other in (*one_name_twice(names), *spelt_alike(names)))


def test_who_is_spelt_otherwise_in_another_table_is_named_with_the_other_spelling(tmp_path: Path) -> None:
    rna = [name.lower() if number < 3 else name for number, name in enumerate(PATIENTS)]
    cohort, doubts = curated(folder(tmp_path / "LIHC", PATIENTS, rna))
    assert list(cohort.table.index) == PATIENTS[3:]
    assert len(doubts) == 1
    assert "rna.tsv: 3 names are written otherwise than in clinical.tsv ('p001' for 'P001'" in doubts[0]
    reasons = cohort.exclusions.set_index("patient")["reason"]
    assert reasons["p001"] == (
        "has files, but no clinical record (clinical.tsv has 'P001'; they differ in capital letters)"
    )
    assert reasons["P001"] == "no rna data (rna.tsv has 'p001'; they differ in capital letters)"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("{0:d}", "leading zeros, which a spreadsheet drops from numbers: write the column as text"),
        ("X{0:03d}", "an X before the number, as R puts there: write the table with check.names=FALSE"),
    ],
)
def test_zeros_that_are_lost_and_the_x_of_r_are_said(written: str, why: str, tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(1, 13)]
    some = [written.format(int(name)) if number < 4 else name for number, name in enumerate(names)]
    _, doubts = curated(folder(tmp_path / "LIHC", names, some))
    assert why in doubts[0]
    whole = folder(tmp_path / "all", names, [written.format(int(name)) for name in names])
    with pytest.raises(CurationError, match="share no patient") as told:
        curated(whole)
    assert why.split(":")[0].split(",")[0] in str(told.value)


def test_one_name_twice_in_a_table_but_for_capitals_is_refused(tmp_path: Path) -> None:
    names = [*PATIENTS, "p001"]
    with pytest.raises(CurationError, match=r"clinical\.tsv: patients 'P001' and 'p001' are one name but for capital"):
        curated(folder(tmp_path / "LIHC", names, names))
    with pytest.raises(CurationError, match=r"rna\.tsv: patients 'P001' and 'P 001' are one name but for blanks"):
        curated(folder(tmp_path / "b", PATIENTS, [*PATIENTS, "P 001"]))


def test_a_name_with_and_without_zeros_in_one_table_is_a_doubt_said_once(tmp_path: Path) -> None:
    names = [*PATIENTS, "P1"]
    cohort, doubts = curated(folder(tmp_path / "LIHC", names, names))
    assert len(cohort.table) == 13
    assert len(doubts) == 1
    assert "clinical.tsv: 'P001' and 'P1' may be one patient under two names, which differ in" in doubts[0]


def test_ordinary_names_are_not_doubted(tmp_path: Path) -> None:
    for number, names in enumerate((PATIENTS, ["1-1", "11", "1-11", "11-1"], ["a", "b", "ab"], ["X1", "Y1"])):
        _, doubts = curated(folder(tmp_path / str(number), names, names[::-1]))
        assert doubts == []


# --- barcodes as R writes them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "barcode"),
    [
        ("TCGA.AA.0001", "TCGA-AA-0001"), ("TCGA.AA.0001.01A", "TCGA-AA-0001-01A"), ("tcga_aa_0001", "tcga-aa-0001"),
        ("TCGA.AA.0001.01A.11R.A123.07", "TCGA-AA-0001-01A-11R-A123-07"), ("TCGA AA 0001", "TCGA-AA-0001"),
        ("TCGA-AA-0001", "TCGA-AA-0001"), ("TCGA.AA.0001_rna", "TCGA-AA-0001_rna"), ("P.1", "P.1"),
        ("TCGA.AA.00011", "TCGA.AA.00011"), ("XTCGA.AA.0001", "XTCGA.AA.0001"),
    ],
)  # fmt: skip
def test_barcodes_without_dashes(text: str, barcode: str) -> None:
    assert dashed(text) == barcode
    assert named_patient(text) == named_patient(barcode)


def test_barcodes_with_dots_are_read_and_it_is_said(tmp_path: Path) -> None:
    names = [f"TCGA-AA-{number:04d}" for number in range(1, 9)]
    dotted = [name.replace("-", ".") + ".01A" if number < 5 else name for number, name in enumerate(names)]
    root = folder(tmp_path / "LIHC", names, dotted)
    cohort, _ = curated(root)
    assert list(cohort.table.index) == names
    with pytest.warns(TableNote, match=r"rna\.tsv: 5 barcodes are written .*'TCGA\.AA\.0001\.01A' is read as"):
        table_samples(root / "rna.tsv")
    with pytest.raises(CurationError, match="patient TCGA-AA-0001 comes twice"):
        table_samples(folder(tmp_path / "b", names, [names[0], "TCGA.AA.0001"]) / "rna.tsv")


def test_a_table_on_its_side_is_recognised_by_barcodes_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "rna.tsv"
    path.write_text("gene\tTCGA.AA.0001\tTCGA.AA.0002\nG1\t1\t2\n")
    with pytest.raises(CurationError, match="the table lies on its side"):
        table_samples(path, None, ["TCGA-AA-0001", "TCGA-AA-0002"])
