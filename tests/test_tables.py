"""Delimited text: one reader, one list of words for "missing", and messages that say what to do."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hcmae.cohort.annotations import SampleNotes
from hcmae.cohort.clinical import ClinicalError, read_clinical
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.local import table_samples
from hcmae.omics.readers import OmicsFormatError, read_local_table
from hcmae.slides.mpp import load_mpp_table
from hcmae.tables import (
    MISSING_WORDS,
    TableError,
    first_bad_number,
    is_missing,
    line_of_totals,
    missing_spellings,
    read_head,
    read_rows,
    read_text,
)
from tests.support.outcomes import assert_outcomes_can_be_true

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _write(folder: Path, text: str | bytes, name: str = "table.tsv") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


@pytest.mark.parametrize(
    "word", [*MISSING_WORDS, "#N/A", "[Not Available]", " NULL ", "NaN", "[Unknown]", "None", "N/A"]
)
def test_the_usual_words_are_missing_everywhere(word: str, tmp_path: Path) -> None:
    assert is_missing(word)
    table = _write(tmp_path, f"patient\ta\tb\nP1\t{word.strip()}\t1\n")
    assert math.isnan(read_local_table(table).loc["P1", "a"])
    clinical = read_clinical(_write(tmp_path, f"patient\ttime_days\tevent\tage\nP1\t9\t{word}\t{word}\n"))
    assert (clinical.outcomes["P1"].event, clinical.outcomes["P1"].age) == (None, None)


@pytest.mark.parametrize("word", ["0", "no", "alive", "0.0", "x", "[5]", "5-"])
def test_other_words_are_not_missing(word: str) -> None:
    assert not is_missing(word)
    assert word not in missing_spellings()


def test_the_words_are_listed_in_the_book(repo: Path) -> None:
    text = (repo / "book" / "own_cohort.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([^`]*)`", text.split('## Words for "missing"')[1].split("\n## ")[0]))
    assert {word for word in MISSING_WORDS if word} <= {word.lower() for word in told}


CELL = st.text(string.ascii_letters + string.digits + " .,;\"'#-äß", min_size=1, max_size=6).filter(
    lambda cell: cell.strip() == cell and not cell.startswith("#")
)


@given(st.lists(CELL, min_size=2, max_size=4, unique=True), st.data())
@QUICK
def test_what_python_writes_comes_back(tmp_path: Path, names: list[str], data: st.DataObject) -> None:
    """Quoted commas and quotation marks, both separators, all line endings, packed or not."""
    rows = data.draw(st.lists(st.lists(CELL, min_size=len(names), max_size=len(names)), min_size=1, max_size=4))
    ending = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    name, separator = data.draw(st.sampled_from([("t.csv", ","), ("t.tsv", "\t"), ("t.txt", "\t"), ("T.CSV", ",")]))
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    content = ("\ufeff" * data.draw(st.integers(0, 1)) + out.getvalue()).encode()
    packed = data.draw(st.booleans())
    path = _write(tmp_path, gzip.compress(content) if packed else content, name + (".gz" if packed else ""))
    frame = read_text(path)
    assert list(frame.columns) == names
    assert frame.to_numpy().tolist() == rows


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "patient;a;b\nP1;1,5;2\n",
            "separated by semicolons.*save it with commas between the cells and points",
        ),
        ("a.csv", "patient\ta\nP1\t1\n", "separated by tabs, its name stands for commas: rename it to a.tsv"),
        ("a.tsv.gz", "patient,a\nP1,1\n", "separated by commas, its name stands for tabs: rename it to a.csv"),
        ("a.tsv", "a\tb\nP1\t1\t5\nP2\t1\t3\n", "row 2 has 3 cells, the header has 2; .*R's write.table"),
        ("a.tsv", "patient\ta\nP1\t1\nP2\t1\t3\n", "row 3 has 3 cells, the header has 2; correct it"),
        ("a.tsv", "patient\ta\tb\nP1\t1\n", "row 2 has 2 cells, the header has 3"),
        ("a.tsv", "patient\ta\nP1\t1\t\nP2\t1\n", "row 3 has 2 cells, the header has 3"),
        ("a.tsv", "patient\ta\nP1\t1\t\nP2\t1\tx\n", "row 3 has 3 cells, the header has 2"),
        ("a.tsv", "patient\t\tb\nP1\t5\t6\n", "column 2 has no name"),
        ("a.tsv", "patient\ta\ta\nP1\t5\t6\n", "column 'a' comes twice"),
        ("a.tsv", "#only\n#these\n", "nothing but lines that begin with '#'"),
        ("a.tsv", b"PK\x03\x04\x14\x00", "this is an Excel workbook.*save the sheet as text with tabs, as UTF-8"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", "this is an Excel workbook.*save the sheet as CSV UTF-8"),
        ("a.tsv.gz", gzip.compress(b"PK\x03\x04\x14\x00", mtime=0), "this is an Excel workbook"),
        ("a.tsv", "patient\t\t\tb\nP1\t5\t6\t7\n", "column 2 has no name; .*several lines of header, leave one"),
        ("a.tsv", "", "it is empty"),
        ("a.tsv", "\n\n", "it is empty"),
        ("a.tsv", '"patient\ta\nP1\t1\n', "a quotation mark is left open"),
        ("a.tsv", "patient\ta\nP\t1\n".encode("utf-16"), "UTF-16.*save it as UTF-8"),
        ("a.tsv", b"patient\ta\nP\xe9\t1\n", "not UTF-8 text"),
        ("a.tsv", b"patient\ta\nP1\t1\nP\xe9\t1\n", "UTF8|UTF-8"),
        ("a.tsv", gzip.compress(b"patient\ta\nP1\t1\n" * 99, mtime=0)[:-9], "cannot be read, broken gzip"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(name: str, text: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        read_text(_write(tmp_path, text, name))


@pytest.mark.parametrize(("name", "mark"), [("t.tsv", "\t"), ("t.csv", ","), ("t.tsv.gz", "\t")])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("row", [3, 5])
def test_a_quoted_cell_that_goes_on_in_the_next_row_is_refused(
    name: str, mark: str, ending: str, closed: bool, row: int, tmp_path: Path
) -> None:
    """Left open by mistake, or closed some rows later: rows would vanish into it."""
    rows = [["# made by us"], ["patient", "a", "note"], *([f"P{i}", "1", "x"] for i in range(8))]
    rows[row][2] = '"see notes'
    if closed:
        rows[row + 2][2] = 'end"'
    content = ending.join(mark.join(cells) for cells in rows).encode()
    path = _write(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
    message = rf"row {row + 1}, column 'note': a quotation mark is left open.*remove the quotation mark"
    for read in (read_text, lambda table: read_text(table, ["patient"])):
        with pytest.raises(TableError, match=message):
            read(path)
    # Every reader of tables, also one that looks at the patients only.
    with pytest.raises(OmicsFormatError, match=message):
        read_local_table(path)
    with pytest.raises(CurationError, match=message):
        table_samples(path)
    with pytest.raises(ClinicalError, match=message):
        read_clinical(path)


def test_the_mark_is_found_in_the_header_and_the_first_row_too(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="row 1, column 2: a quotation mark is left open"):
        read_head(_write(tmp_path, 'patient\t"a\nP1\t1\n'))
    with pytest.raises(TableError, match="row 2, column 'a': a quotation mark is left open"):
        read_head(_write(tmp_path, 'patient\ta\nP1\t"x\nP2\t2\n'))


def test_marks_inside_a_cell_and_closed_ones_are_text(tmp_path: Path) -> None:
    cells = ['5" long', '"quoted" and more', '"two ""marks"""', ' "x', '""']
    path = _write(tmp_path, "patient\tnote\n" + "".join(f"P{i}\t{cell}\n" for i, cell in enumerate(cells)))
    assert read_text(path)["note"].tolist() == ['5" long', "quoted and more", 'two "marks"', '"x', ""]


def test_samples_and_resolutions_have_no_open_quotation_marks(tmp_path: Path) -> None:
    samples = _write(tmp_path, 'sample,is_ffpe,note\nP1,yes,"see\nP2,yes,x"\n', "samples.csv")
    with pytest.raises(CurationError, match=r"samples\.csv.*row 2, column 3: a quotation mark is left open"):
        SampleNotes().add(samples)
    mpp = _write(tmp_path, 'slide,mpp,note\na.svs,0.5,"see\nb.svs,0.25,x"\n', "mpp.csv")
    with pytest.raises(ValueError, match=r"mpp\.csv: row 2, column note: a quotation mark is left open"):
        load_mpp_table(mpp)


def test_leading_comments_and_trailing_separators_are_skipped(tmp_path: Path) -> None:
    path = _write(tmp_path, "#made by\tus\n#twice\npatient\ta\t\nP1\t1\t\n\nP2\t2\t\n")
    head = read_head(path)
    assert (head.names, head.comments, head.padding) == (("patient", "a"), ("#made by\tus", "#twice"), 1)
    assert read_text(path).to_numpy().tolist() == [["P1", "1"], ["P2", "2"]]
    # Rows alone end in one.
    assert read_local_table(_write(tmp_path, "patient\ta\nP1\t1\t\nP2\t2\t\n"))["a"].tolist() == [1, 2]


def test_one_column_is_read_without_the_values_of_the_others(tmp_path: Path) -> None:
    path = _write(tmp_path, 'patient,"a,b"\n"P,1",x\nP2,y\n', "t.csv")
    assert read_text(path, ["patient"])["patient"].tolist() == ["P,1", "P2"]
    numbers = _write(tmp_path, "patient,a\nP1,none\nP2,2\n", "n.csv")
    table = read_rows(numbers, read_head(numbers), {"patient": pa.string(), "a": pa.float32()}, missing=["none"])
    assert table["a"].to_pylist() == [None, 2]


def test_the_first_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, 'patient,a,b\nP1,1,NA\nP2,2,"1,5"\n', "t.csv")
    assert first_bad_number(path, read_head(path), "patient") == ("P2", "b", "1,5")
    with pytest.raises(OmicsFormatError, match=r"patient P2, column b: '1,5' is no number.*with a point"):
        read_local_table(path)


WORDS = st.sampled_from(
    [
        "patient", "time_days", "OS.time", "event", "OS", "months", "age", "sex", "P1", "P2", "TCGA-AA-0001", "1",
        "0.5", "-3", "1e9", "1e999", "NA", "#N/A", "", "dead", "Alive", ">89", "#", '"', "'--", "[Not Available]",
        "days_to_death", "vital_status", "days_to_last_follow_up", "x\x00y", "é", "inf", "_PATIENT", "stage",
        "bcr_patient_barcode", "CDE_ID:1", "slide_id",
    ]
)  # fmt: skip


@given(st.lists(st.lists(WORDS, min_size=1, max_size=7), max_size=6), st.sampled_from(["\t", ",", ";"]))
@QUICK
def test_any_table_ends_in_a_value_or_in_the_documented_error(
    tmp_path: Path, rows: list[list[str]], separator: str
) -> None:
    path = _write(tmp_path, "\n".join(separator.join(row) for row in rows), "t.csv" if separator == "," else "t.tsv")
    with suppress(ClinicalError):
        assert_outcomes_can_be_true(read_clinical(path))
    with suppress(OmicsFormatError):
        frame = read_local_table(path)
        assert not frame.index.has_duplicates
        assert not frame.columns.has_duplicates


# --- what people leave around a table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.tsv", "Expression of our cohort, 2024\npatient\ta\tb\nP1\t1\t2\n", "line 1 holds nothing but 'Expr"),
        ("t.csv", "Cohort,,\npatient,a,b\nP1,1,2\n", "line 2 has 3 cells: a title above the header; remove it"),
        ("t.tsv", "# kept\nTitle\n\npatient\ta\tb\nP1\t1\t2\n", "line 2 holds nothing but 'Title', and line 3 has 3"),
        ("t.tsv", "Title\nof two lines\npatient\ta\tb\nP1\t1\t2\n", "remove the lines above the names of columns if"),
        ("t.tsv", "patient\ta\tb\nP1\t1\t2\n* as of 2020\n", r"row 3 has 1 cell, .*\('\* as of 2020'\); remove it if"),
        ("t.tsv", "patient\ta\tb\ta\nP1\t1\t2\t3\n", "column 'a' comes twice, as columns 2, 4 of the file; rename"),
    ],
)  # fmt: skip
def test_titles_footnotes_and_names_that_come_twice_are_called_what_they_are(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match=said):
        read_text(path)


@pytest.mark.parametrize("text", ["G1\nP1\t5\n", "G1\nP1\n", "patient\ta\nP1\t1\n"])
def test_a_short_table_has_no_title(text: str, tmp_path: Path) -> None:
    said = ""
    try:
        read_text(_write(tmp_path, text))
    except TableError as error:
        said = str(error)
    assert "title above" not in said


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_said_with_its_mark_and_without(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes("patient\ta\nP1\t1\n".encode(encoding))
    with pytest.raises(TableError, match=r"UTF-16 text.*save it as UTF-8"):
        read_text(path)


def test_a_word_for_missing_may_have_blanks_around_it(tmp_path: Path) -> None:
    rows = "".join(f"P{number}\t{number}.5\t 0.25 \n" for number in range(3))
    path = _write(tmp_path, f"patient\ta\tb\n{rows}P7\t NA\t\xa0\nP8\t  n/a  \t0.5\n")
    frame = read_local_table(path)
    assert list(frame.index) == ["P0", "P1", "P2", "P7", "P8"]
    assert frame["a"].isna().tolist() == [False, False, False, True, True]
    assert frame["b"].isna().tolist() == [False, False, False, True, False]
    assert frame["b"].dropna().tolist() == [0.25, 0.25, 0.25, 0.5]


def test_a_wrong_number_beside_blanks_is_still_named(tmp_path: Path) -> None:
    with pytest.raises(OmicsFormatError, match=r"patient P2, column a: '1,5' is no number.*with a point"):
        read_local_table(_write(tmp_path, "patient\ta\nP1\t NA\nP2\t1,5\n"))


@pytest.mark.parametrize(
    ("cells", "where"),
    [
        (["P1", "P2", "Total"], 2), (["P1", "Mean", "SD"], 1), (["P1", "P2", "Grand total:"], 2), (["Total"], None),
        (["Total", "P1", "P2", "P3", "P4"], None), (["Max", "Sam", "Norma"], None), (["P1", ""], None), ([], None),
    ],
)  # fmt: skip
def test_lines_of_totals(cells: list[str], where: int | None) -> None:
    assert line_of_totals(cells) == where
