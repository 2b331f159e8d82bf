"""Tables as a newcomer has them: an index among the columns, names that a spreadsheet damaged, tables on their side."""

from __future__ import annotations

import math
import random
import warnings
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from hcmae.cohort.annotations import SampleNotes, read_notices
from hcmae.cohort.clinical import ClinicalError, read_clinical
from hcmae.cohort.columns import read_columns
from hcmae.cohort.curate import curate
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.features import dated_genes, row_counters
from hcmae.cohort.local import local_file, table_samples
from hcmae.config import MODALITIES
from hcmae.manifest import load_manifest
from hcmae.omics.readers import OmicsFormatError, read_local_table, read_units
from hcmae.pipeline.check import RULES, Finding
from hcmae.slides.mpp import load_mpp_table
from hcmae.tables import TableDoubt, TableNote, counts_rows, date_of
from tests.support.outcomes import assert_outcomes_can_be_true


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


# --- an index that was written with the table ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("Unnamed: 0\tpatient\tG1\tG2", "{0}\tP{0}\t7\t{1}"),
        ("\tpatient\tG1\tG2", "{0}\tP{0}\t7\t{1}"),
        ("\tpatient\tG1\tG2", "r{0}\tP{0}\t7\t{1}"),
        ("index\tpatient\tG1\tG2", "{1}\tP{0}\t7\t{1}"),
        ("patient\tUnnamed: 0\tUnnamed: 0.1\tG1\tG2", "P{0}\t{0}\t{0}\t7\t{1}"),
        ("patient\tX\tG1\tG2", "P{0}\t{1}\t7\t{1}"),
        ("anything\tpatient\tG1\tG2", "{0}\tP{0}\t7\t{1}"),
        ("level_0\tpatient\tG1\tG2", "{0}\tP{0}\t7\t{1}"),
    ],
)
def test_an_index_is_no_gene_and_it_is_said(header: str, values: str, tmp_path: Path) -> None:
    rows = [values.format(number, number + 1) for number in range(4)]
    path = write(tmp_path / "rna.tsv", header, *rows)
    with pytest.warns(TableNote, match="is an index that was written with the table, no feature"):
        frame = read_local_table(path)
    assert list(frame.columns) == ["G1", "G2"]
    assert list(frame.index) == ["P0", "P1", "P2", "P3"]
    assert frame["G1"].tolist() == [7, 7, 7, 7]


def test_a_counter_among_many_rows_is_no_gene_under_any_name(tmp_path: Path) -> None:
    rows = [f"P{number}\t{number + 1}\t{number * 3 % 7}" for number in range(12)]
    with pytest.warns(TableNote, match="column 'something' is an index"):
        assert list(read_local_table(write(tmp_path / "rna.tsv", "patient\tsomething\tG1", *rows)).columns) == ["G1"]
    with pytest.raises(OmicsFormatError, match="no feature in the table, column 'something' counts the rows"):
        read_local_table(write(tmp_path / "rna.tsv", "patient\tsomething", *(f"P{n}\t{n}" for n in range(12))))


def test_a_gene_that_happens_to_rise_is_kept() -> None:
    values = [[0, 5], [1, 5], [2, 6], [3, 5]]
    assert row_counters(["G1", "G2"], values) == []
    assert row_counters(["G1", "G2"], [[math.nan, 0], [1, 1], [2, 3]]) == []
    assert row_counters(["index", "G2"], values) == ["index"]


def test_an_index_is_no_patient(tmp_path: Path) -> None:
    path = write(tmp_path / "rna.tsv", "\tG1\tG2", *(f"{number}\t7\t{number % 3}" for number in range(4)))
    with pytest.raises(CurationError, match=r"no patient column, and the first one \(''\) counts the rows from 0 on"):
        table_samples(path)
    with pytest.raises(OmicsFormatError, match="counts the rows from 0 on"):
        read_local_table(path)
    named = write(tmp_path / "rna.tsv", "patient\tG1", *(f"{number}\t{number % 3}" for number in range(4)))
    assert list(table_samples(named)) == ["0", "1", "2", "3"]


def test_an_index_is_nothing_in_a_clinical_table(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.tsv", "Unnamed: 0\tpatient\ttime_days\tevent\tage", "0\tP1\t400\t1\t60")
    assert read_clinical(plain).outcomes["P1"].age == 60
    with pytest.raises(ClinicalError, match="no patient column"):
        read_clinical(write(tmp_path / "b.tsv", "\ttime_days\tevent", "0\t400\t1"))


@pytest.mark.parametrize(("cells", "counts"), [(["0", "1", "2"], True), (["1.0", "2.0"], True), (["0"], False)])
def test_what_counts_rows(cells: list[str], counts: bool) -> None:
    assert counts_rows(cells) == counts
    assert not counts_rows([*cells, "x"])
    assert not counts_rows([*cells, "9"])


# --- names that a spreadsheet damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("1-Mar", (3, 1)), ("2-Sep", (9, 2)), ("Mar-01", (3, 1)), ("SEPT-2", (9, 2)), ("Sep-02", (9, 2)),
        ("2001-03-01", (3, 1)), ("2023-09-02 00:00:00", (9, 2)), ("9/2/2023", (9, 2)), ("1. Mrz", (3, 1)),
        ("02.Sep", (9, 2)), ("1-Dec-23", (12, 1)), ("01.03.2021", (3, 1)), ("1-March", (3, 1)),
        ("MARCH1", None), ("SEPT2", None), ("DEC1", None), ("hsa-mir-21", None), ("hsa-let-7a", None),
        ("cg00000029", None),
        ("ENSG00000000003.15", None), ("HLA-A", None), ("NKX2-1", None), ("1-Foo", None), ("40-Mar", None),
        ("AC1-2", None),
        ("7157", None), ("OCT4", None), ("MT-ND1", None), ("H1-2", None), ("SEP15", None), ("13/13/2020", None),
    ],
)  # fmt: skip
def test_names_that_are_dates(name: str, date: tuple[int, int] | None) -> None:
    assert date_of(name) == date


def test_damaged_genes_are_named_with_where_they_come_from(tmp_path: Path) -> None:
    path = write(tmp_path / "rna.tsv", "patient\t1-Mar\t2-Sep\tTP53", "P1\t5\t6\t8", "P2\t7\t7\t9")
    with pytest.warns(
        TableDoubt, match=r"rna\.tsv: 2 features are named like dates.*'1-Mar' from MARCH1 \(now MARCHF1\)"
    ):
        assert list(read_local_table(path).columns) == ["1-Mar", "2-Sep", "TP53"]
    assert dated_genes(["2-Sep", "TP53", "1-Dec", "5-Jun"]) == [
        "'2-Sep' from SEPT2 (now SEPTIN2)", "'1-Dec' from DEC1 (now DELEC1)", "'5-Jun'",
    ]  # fmt: skip
    twice = write(tmp_path / "rna.tsv", "patient\t1-Mar\t1-Mar", "P1\t5\t6")
    with pytest.raises(CurationError, match=r"'1-Mar' comes twice \(a date, as Excel makes of the names of some genes"):
        table_samples(twice)


# --- tables on their side, with two headers, with other names ------------------------------------------------------


def cohort(root: Path, patients: list[str], rna: list[str]) -> Path:
    root.mkdir()
    write(
        root / "clinical.tsv",
        "patient\ttime_days\tevent",
        *(f"{p}\t{400 + n}\t{n % 2}" for n, p in enumerate(patients)),
    )
    write(root / "rna.tsv", *rna)
    return root


def curated(root: Path) -> None:
    curate(load_manifest("LIHC"), "local", root, seed=0, modalities=("rna",), slides=False)


@pytest.mark.parametrize("corner", ["gene", "", "sample", "index", "patient", "Hugo_Symbol"])
def test_a_table_on_its_side_is_recognised_by_patients_of_any_name(corner: str, tmp_path: Path) -> None:
    rows = ["\t".join([corner, "anna", "bert", "carl"]), "G1\t1\t2\t3", "G2\t4\t5\t6"]
    root = cohort(tmp_path / "LIHC", ["anna", "bert", "carl"], rows)
    with pytest.raises(
        CurationError, match=r"header holds patients \(anna, bert, carl\).*transpose the table, one row per"
    ):
        curated(root)


def test_features_that_are_called_like_patients_do_not_turn_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "rna.tsv", "patient\tanna\tbert", "anna\t1\t2", "bert\t3\t4")
    assert list(table_samples(path, None, ["anna", "bert"])) == ["anna", "bert"]


def test_a_clinical_table_on_its_side_is_recognised(tmp_path: Path) -> None:
    for corner in ("patient", "", "field"):
        path = write(tmp_path / "clinical.tsv", f"{corner}\tP1\tP2", "time_days\t400\t500", "event\t1\t0")
        with pytest.raises(ClinicalError, match=r"first column holds time_days, event: the table lies on its side"):
            read_clinical(path)


@pytest.mark.parametrize("cell", ["", "patient", "NaN", "Patient ID"])
def test_a_second_line_of_header_is_called_one(cell: str, tmp_path: Path) -> None:
    rna = write(tmp_path / "rna.tsv", "patient\trna\trna.1", f"{cell}\tG1\tG2", "P1\t5\t6")
    with pytest.raises(
        CurationError, match="line 2 has no patient; fill it in or remove it, a second line of header too"
    ):
        table_samples(rna)
    clinical = write(tmp_path / "clinical.tsv", "patient\ttime_days\tevent", f"{cell}\tdays\t0/1", "P1\t400\t1")
    with pytest.raises(ClinicalError, match="a row without patient, which may be a second line of header"):
        read_clinical(clinical)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["('P1', 'T')", "('P2', 'T')"], "those of rna are of several levels in one, as where an index of pandas"),
        (["P1_rna_T", "P2_rna_T"], "those of rna hold more than the patient's name"),
        (["rna.P1", "rna.P2"], "those of rna hold more than the patient's name"),
        (["p1", "p2"], "they differ in capital letters"),
        (["P-01", "P-02"], "they differ in marks between the letters, or in leading zeros"),
        (["0", "1"], "those of rna count the rows"),
        (["x", "y"], r"\(for example P1 and x\); write the patients' names in the same way in both"),
    ],
)
def test_nobody_left_says_how_the_names_differ(names: list[str], why: str, tmp_path: Path) -> None:
    root = cohort(tmp_path / "LIHC", ["P1", "P2"], ["patient\tG1\tG2", *(f"{name}\t7\t3" for name in names)])
    with pytest.raises(CurationError, match=f"clinical and rna share no patient.*{why}"):
        curated(root)


@pytest.mark.parametrize(
    "name", ["patient_comments", "subject_notes", "case_description", "patient comment", "subjects"]
)
def test_a_column_of_prose_is_no_column_of_patients(name: str, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="no patient column"):
        table_samples(write(tmp_path / "rna.tsv", f"G0\t{name}\tG1", "1\ta patient\t3"))
    path = write(tmp_path / "clinical.tsv", f"{name}\tpatient\ttime_days\tevent", "the patient was well\tP1\t400\t1")
    assert list(read_clinical(path).outcomes) == ["P1"]


@pytest.mark.parametrize(
    ("message", "subject"),
    [
        ("f: patient P001: event '2' is neither", "patient P001"),
        ("f: no patient is left after the rule 'x'", ""),
        ("f: no patient column among ['patient_comments']", ""),
        ("f: the column of patients is empty", ""),
        ("f: column 'patient_comments' holds text", "column patient_comments"),
        ("f: column 'Overall Survival (Months)' is odd", "column Overall Survival (Months)"),
        ("f: line 7 has no patient", "line 7"),
    ],
)
def test_what_a_finding_is_about_is_a_name_and_no_word_of_the_sentence(message: str, subject: str) -> None:
    assert Finding.of("fault", "rule", "g", message).subject == subject


def test_the_rule_of_agreeing_columns_is_in_the_printed_table() -> None:
    assert [rule.does for rule in RULES if rule.name == "columns agree"] == ["leaves out and lists"]


def test_a_workbook_beside_is_named(tmp_path: Path) -> None:
    (tmp_path / "clinical.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        CurationError, match=r"no table for clinical \(clinical\.xlsx is a workbook: save its sheet as text"
    ):
        local_file(tmp_path, "clinical", {})


@pytest.mark.parametrize("value", ["2", "maybe", "-1", "0.5", "lost"])
def test_an_event_of_another_kind_is_told_what_is_understood(value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "clinical.tsv", "patient\ttime_days\tstatus", "P1\t400\t1", f"P2\t500\t{value}")
    with pytest.raises(
        ClinicalError, match=rf"patient P2: event '{value}' is neither.*column 'status' 1 stands for a death"
    ):
        read_clinical(path)


# --- any table ------------------------------------------------------------------------------------------------------

WORDS = [
    "patient", "sample", "time_days", "OS_MONTHS", "time", "event", "vital_status", "censored", "age", "sex",
    "is_female",
    "stage", "days_to_death", "days_to_last_follow_up", "sample_type", "preservation", "category", "classification",
    "is_ffpe", "", "Unnamed: 0", "index", "G1", "1-Mar", "P1", "P2", "P3", "TCGA-AA-0001", "TCGA-AA-0001-11A", "0", "1",
    "2", "3", "400", "9999", "-1", "12.5", "1e9", "1e999", "NA", "#N/A", "Dead", "Alive", "1:DECEASED", "male", "FFPE",
    "do not use", "withdrawn", "Solid Tissue Normal", "yes", ">89", "Stage II", '"', "'", "é", "\x00", "a,b", "nan",
    "inf",
]  # fmt: skip


def some_table(rng: random.Random) -> tuple[str, bytes]:
    """A table that has often the columns that are looked for, and cells of every kind."""
    name, mark = rng.choice([("t.tsv", "\t"), ("t.csv", ","), ("t.txt", "\t")])
    header = rng.sample(WORDS[:24], rng.randint(1, 6))
    kind = rng.random()
    if kind < 0.3:
        header = ["patient", *rng.sample(["G1", "G2", "1-Mar", "Unnamed: 0", "index", "TP53", "hsa-mir-21"], 3)]
    elif kind < 0.8:
        header = ["patient", rng.choice(["time_days", "time", "OS_MONTHS"]), "event", *header]
        header = list(dict.fromkeys(header)) if rng.random() < 0.9 else header
    elif kind > 0.88:
        header = ["slide", "mpp", *header[:1]]
    usual = {
        "mpp": ["0.25", "0.5"],
        "event": ["0", "1"],
        "time_days": ["400", "731", "90"],
        "time": ["400", "800"],
        "OS_MONTHS": ["13.1", "24"],
    }
    plain = [str(value) for value in range(3000)]
    if rng.random() < 0.3:
        plain = [f"{value / 1000:g}" for value in range(1, 1000)]  # betas
    # Nearly half of the tables are sound in their cells: what comes behind the parser is to be reached too.
    sound = rng.random() < 0.45
    usuals = [usual.get(name, plain) for name in header]
    kinds = usuals if sound else [rng.choice([WORDS, WORDS[24:], words, words]) for words in usuals]
    rows = [[rng.choice(kind) for kind in kinds] for _ in range(rng.randint(0, 12))]
    if header[0] == "patient" and rng.random() < 0.9:
        for number, row in enumerate(rows):
            row[0] = f"P{number}" if rng.random() < 0.98 else rng.choice(WORDS)
    lines = [header, *rows]
    if rng.random() < 0.1:
        lines = [list(line) for line in zip(*lines, strict=True)]
    text = ("\ufeff" if rng.random() < 0.05 else "") + rng.choice(["\n", "\r\n"]).join(
        mark.join(line) for line in lines
    )
    content = text.encode()
    if rng.random() < 0.05:
        content = rng.choice([b"PK\x03\x04", b"\xff\xfe", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\x1f\x8b"]) + content
    return name, content


def read_by_all(path: Path, patients: list[str], counts: dict[str, int]) -> None:
    """Every reader ends in a value that can be true, or in its documented error."""

    def counted(reader: str) -> None:
        counts[reader] = counts.get(reader, 0) + 1

    with suppress(ClinicalError):
        assert_outcomes_can_be_true(read_clinical(path))
        counted("clinical")
    with suppress(CurationError):
        assert all(table_samples(path, None, patients).values())
        counted("samples of a table")
    with suppress(OmicsFormatError):
        frame = read_local_table(path)
        assert not frame.index.has_duplicates
        assert not {"", "Unnamed: 0", "event", "time_days"} & set(frame.columns)
        counted("omics")
    for modality in MODALITIES:
        with suppress(OmicsFormatError):
            frame, unit = read_units(path, modality, path.parent)
            assert isinstance(frame, pd.DataFrame)
            assert unit.reason
            counted(f"{modality} with unit")
    with suppress(ValueError):
        assert all(isinstance(mpp, float) for mpp in load_mpp_table(path).values())
        counted("resolutions")
    with suppress(CurationError):
        assert all(str(notice) for notice in read_notices(path))
        counted("notices")
    with suppress(CurationError):
        notes = SampleNotes()
        notes.add(path)
        for name in ("P1", "TCGA-AA-0001-11A"):
            with suppress(CurationError):
                notes.sample_type(name)
            notes.annotations("P1", name)
        notes.unmatched(patients, patients)
        counted("remarks")


def some_json(rng: random.Random) -> bytes:
    """The JSON of a folder, a little damaged."""
    letters = list(
        '{"files": {"rna": "x.tsv"}, "clinical": {"time": "t", "time_unit": "months"}, "units": {"rna": "tpm"}}'
    )
    for _ in range(rng.randint(0, 3)):
        letters[rng.randrange(len(letters))] = rng.choice(["", ",", '"', "}", "{", "'", "1", "é", "\n", "[", "null"])
    return rng.choice([b"", b"\xef\xbb\xbf", b"\xff"] if rng.random() < 0.2 else [b""]) + "".join(letters).encode()


def read_many(folder: Path, seed: int, number: int) -> dict[str, int]:
    """How many of so many random tables each reader took; the others ended in the documented errors."""
    rng, counts = random.Random(seed), dict[str, int]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(number):
            name, content = some_table(rng)
            (folder / name).write_bytes(content)
            read_by_all(folder / name, [f"P{number}" for number in range(4)], counts)
            (folder / "columns.json").write_bytes(some_json(rng))
            with suppress(CurationError):
                read_columns(folder)
                counts["columns.json"] = counts.get("columns.json", 0) + 1
            (folder / "columns.json").unlink()
    return counts


def test_any_table_ends_in_a_value_or_in_the_documented_error_of_each_reader(tmp_path: Path) -> None:
    counts = read_many(tmp_path, 0, 60)
    # Each reader takes some and refuses some: a generator that none takes would show nothing.
    assert set(counts) == {
        "clinical", "samples of a table", "omics", "rna with unit", "mirna with unit", "methylation with unit",
        "remarks", "resolutions", "notices", "columns.json",
    }  # fmt: skip
    assert all(1 <= count < 60 for count in counts.values())


# --- an event that is none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Alive", "is_alive", "Survived", "censored", "Censorship"])
def test_a_column_that_means_the_opposite_is_no_event(name: str, tmp_path: Path) -> None:
    rows = [f"P{number:02d}\t{100 + number}\t{number % 2}" for number in range(12)]
    path = write(tmp_path / "clinical.tsv", f"patient\ttime_days\t{name}", *rows)
    with pytest.raises(ClinicalError, match=rf"event = '{name}'.*'censored'"):
        read_clinical(path, {"event": name})
    # What the message advises turns it round.
    table = read_clinical(path, {"censored": name})
    assert [outcome.event for outcome in table.outcomes.values()] == [1 - number % 2 for number in range(12)]
