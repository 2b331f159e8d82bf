"""Tables as people bring them: one reader of delimited text and one list of the words for "missing".

Errors name what is wrong and what to do, not the file: who asked for the file puts its path in front.
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from hcmae.packed import open_packed, unpacked

# Words that stand for "no value", in lower case; book/own_cohort.md lists them. Square brackets around a word count as
# well (Biotab: "[Not Available]").
MISSING_WORDS = (
    "", "na", "n/a", "n.a.", "<na>", "#n/a", "#na", "#n/a n/a", "nan", "-nan", "null", "none", "nil", "missing", ".",
    "-", "--", "'--", "?", "not available", "not applicable", "not reported", "not evaluated", "not allowed to collect",
    "not provided", "not recorded", "not known", "unknown", "unspecified", "pending", "discrepancy", "completed",
)  # fmt: skip
_MISSING = frozenset(MISSING_WORDS) | {f"[{word}]" for word in MISSING_WORDS if word[:1].isalpha()}

# A row may straddle two blocks, not three: this leaves room for the longest rows of methylation arrays.
_BLOCK = 1 << 26
_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError, pa.ArrowCapacityError)
_SEPARATOR_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons"}
# How a workbook begins: .xlsx and .ods are ZIP archives, .xls is an OLE compound file.
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")


class TableError(ValueError):
    """A table that cannot be read; the message says what is wrong and what to do."""


class TableNote(UserWarning):
    """What was recognised in a table rather than stated by the user, and what was left out of it."""


class TableDoubt(UserWarning):
    """What is read as it stands and is probably not meant so: a person should look at it."""


def say(text: str) -> None:
    """Tell the user what was recognised: a warning of the category `TableNote`."""
    warnings.warn(text, TableNote, stacklevel=3)


def doubt(text: str) -> None:
    """Tell the user what looks wrong: a warning of the category `TableDoubt`."""
    warnings.warn(text, TableDoubt, stacklevel=3)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: the first ones, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def is_missing(text: str | None) -> bool:
    """Whether a cell holds nothing or one of the usual words for that, in letters of either case."""
    return text is None or text.strip().lower() in _MISSING


def missing_spellings() -> list[str]:
    """The words for "missing" in the spellings that tables of numbers use."""
    found = {spelt for word in _MISSING for spelt in (word, word.upper(), word.capitalize(), word.title())}
    return sorted(found | {"NaN", "-NaN", "#n/a N/A"})


def open_plain(path: Path) -> IO[bytes]:
    """A file for reading bytes, unpacked within bounds if it is gzip, whatever its name.

    Raises TableError for a workbook, which is no text under any name.
    """
    with open(path, "rb") as raw:
        begins = raw.read(8)
    _check_workbook(begins, path.name)
    return cast("IO[bytes]", open_packed(path) if begins.startswith(b"\x1f\x8b") else open(path, "rb"))


def read_plain(path: Path) -> bytes:
    """The bytes of a text file, unpacked if it is gzip. Raises TableError."""
    try:
        content = unpacked(path)
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(_unreadable(error)) from error
    _check_workbook(content, path.name)
    return content


def _check_workbook(begins: bytes, name: str) -> None:
    if begins.startswith(_WORKBOOKS):
        wanted = "CSV UTF-8" if separator_of(Path(name)) == "," else "text with tabs, as UTF-8"
        raise TableError(
            "this is an Excel workbook (or another archive), whatever its name says; open it and save the sheet as "
            f"{wanted}, under the same name"
        )


@dataclass(frozen=True)
class Head:
    """How a table begins: ``names`` of its columns, ``comments`` (leading lines with '#'), and where its rows begin.

    ``padding`` is the number of columns without name at the right end, which trailing separators make.
    """

    names: tuple[str, ...]
    separator: str
    comments: tuple[str, ...]
    start: int
    padding: int

    @property
    def columns(self) -> list[str]:
        """Names of all columns of the file, those of the padding made up."""
        return [*self.names, *(f"\x00{number}" for number in range(self.padding))]


def separator_of(path: Path) -> str:
    """Comma for ``.csv``, tab for any other name; ``.gz`` behind it does not count."""
    return "," if path.name.lower().removesuffix(".gz").endswith(".csv") else "\t"


def read_head(path: Path, *, unique: bool = True) -> Head:
    """How a table begins; reads two lines behind the comments.

    Raises TableError for an empty or unreadable file, for cells separated by something else than the file's name says,
    for a quotation mark that is left open in a line, for a header that is shorter than its rows, and for a name that is
    empty or (``unique``) comes twice.
    """
    separator = separator_of(path)
    comments: list[str] = []
    header, first, start = None, None, 0
    try:
        with open_plain(path) as handle:
            for end, line in _lines(handle):
                if header is None:
                    _check_workbook(line, path.name)
                text = _decoded(line)
                if not text.strip():
                    continue
                if header is not None:
                    first = text
                    break
                if text.lstrip('"').startswith("#"):
                    comments.append(text.strip())
                else:
                    header, start = text, end
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(_unreadable(error)) from error
    if header is None:
        raise TableError("it is empty" if not comments else "it holds nothing but lines that begin with '#'")
    if first is not None:
        _check_title(header, first, separator, 1 + len(comments))
    _check_separator(header, separator, path)
    if (column := open_cell(header, separator)) is not None:
        raise TableError(open_quotation(1 + len(comments), column))
    cells = _cells(header, separator)
    if first is not None and (column := open_cell(first, separator)) is not None:
        raise TableError(open_quotation(2 + len(comments), column, cells))
    names = [name.strip() for name in cells]
    while len(names) > 1 and not names[-1]:
        names.pop()
    width = len(cells) if first is None else max(len(cells), len(_cells(first, separator)))
    if first is not None and width > len(cells) and any(c.strip() for c in _cells(first, separator)[len(cells) :]):
        hint = ""
        if width == len(names) + 1:
            hint = (
                "; if every row has one more, the name of the first column is missing (R's write.table leaves it out, "
                "its col.names=NA keeps the place): put 'patient' and a separator in front of the header"
            )
        raise TableError(_ragged(2 + len(comments), width, len(names)) + hint)
    nameless = [number for number, name in enumerate(names[1:], start=2) if not name]
    if nameless:
        flat = "; if the table has several lines of header, leave one" if len(nameless) > 1 else ""
        raise TableError(f"column {nameless[0]} has no name; give it one{flat}")
    if unique and len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        date = " (a date, as Excel makes of the names of some genes: take them from the original file)"
        places = listed([str(number) for number, name in enumerate(names, start=1) if name == twice])
        raise TableError(
            f"column '{twice}' comes twice{date if date_of(twice) else ''}, as columns {places} of the file; rename "
            "one, or remove it if they hold the same"
        )
    return Head(tuple(names), separator, tuple(comments), start, width - len(names))


def read_rows(
    path: Path,
    head: Head,
    types: Mapping[str, pa.DataType],
    *,
    missing: Sequence[str] = (),
    wanted: Sequence[str] | None = None,
) -> pa.Table:
    """The rows of a table as columns of these types; only the columns ``wanted`` if given, and no padding.

    Raises TableError for a row with more or fewer cells than the header, a line break inside a quoted cell, a cell that
    is not of its type, and text that is not UTF-8. Blanks around a cell do not count.
    """
    try:
        return _parsed_rows(path, head, types, missing, wanted)
    except _NumberError as error:
        # The fast reader knows a word for "missing" without blanks only.
        texts = {name: pa.string() for name in types}
        table = _parsed_rows(path, head, texts, (), wanted)
        for number, name in enumerate(table.column_names):
            cells = pc.utf8_trim_whitespace(table[name])
            if types[name] != pa.string():
                cells = pc.if_else(pc.is_in(cells, pa.array(list(missing), pa.string())), None, cells)
            try:
                table = table.set_column(number, name, cells.cast(types[name]))
            except _ARROW_ERRORS:
                raise error from None
        return table


class _NumberError(TableError):
    """A cell that is not of its column's type."""


def _parsed_rows(
    path: Path, head: Head, types: Mapping[str, pa.DataType], missing: Sequence[str], wanted: Sequence[str] | None
) -> pa.Table:
    columns = head.columns
    padding = columns[len(head.names) :]
    ragged: list[tuple[int, int, str]] = []

    def too_long(row: pacsv.InvalidRow) -> str:
        ragged.append((row.number or 0, row.actual_columns, row.text or ""))
        return "error"

    quoted: list[bool] = []
    try:
        with open_plain(path) as handle:
            handle.read(head.start)
            reader = pacsv.open_csv(
                _Watched(handle, quoted),
                read_options=pacsv.ReadOptions(use_threads=False, column_names=columns, block_size=_BLOCK),
                parse_options=pacsv.ParseOptions(delimiter=head.separator, invalid_row_handler=too_long),
                convert_options=pacsv.ConvertOptions(
                    column_types={**{name: pa.string() for name in padding}, **types},
                    include_columns=[*(head.names if wanted is None else wanted), *padding],
                    null_values=list(missing),
                    strings_can_be_null=False,
                ),
            )
            table = reader.read_all()
    except (*_ARROW_ERRORS, UnicodeDecodeError) as error:
        # First, because rows that a quoted cell has swallowed look ragged.
        if quoted:
            _check_quotations(path, head)
        if ragged:
            number, cells, text = ragged[0]
            raise TableError(_ragged(number + 1 + len(head.comments), cells, len(columns), text)) from None
        if "Empty CSV" in str(error):
            names = head.names if wanted is None else wanted
            return pa.table({name: pa.array([], types[name]) for name in names})
        told = " ".join(str(error).split())[:200]
        raise (_NumberError if "conversion error" in told else TableError)(told) from error
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(_unreadable(error)) from error
    if quoted:
        _check_quotations(path, head)
    for name in padding:
        for number, cell in enumerate(table[name].to_pylist()):
            if cell.strip():
                raise TableError(_ragged(number + 2 + len(head.comments), len(columns), len(head.names)))
    return table.drop_columns(padding) if padding else table


def read_text(path: Path, wanted: Sequence[str] | None = None, head: Head | None = None) -> pd.DataFrame:
    """A table as text without blanks around the cells, empty cells as ''; only the columns ``wanted`` if given.

    Raises TableError as `read_head` and `read_rows`.
    """
    head = read_head(path) if head is None else head
    table = read_rows(path, head, {name: pa.string() for name in head.names}, wanted=wanted)
    cells = {name: [cell.strip() for cell in table[name].to_pylist()] for name in table.column_names}
    return pd.DataFrame(cells, columns=table.column_names, dtype=object)


_MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan january", "feb february", "mar march mrz märz", "apr april", "may mai", "jun june", "jul july",
         "aug august", "sep sept september", "oct october okt", "nov november", "dec december dez"), start=1,
    )
    for name in names.split()
}  # fmt: skip
_DATES = (
    re.compile(r"(?P<day>\d{1,2})[-./ ]+(?P<name>[a-zä]{3,9})\.?(?:[-./ ]+\d{2,4})?"),
    re.compile(r"(?P<name>[a-zä]{3,9})[-./ ]+(?P<day>\d{1,2})(?:[-./ ]+\d{2,4})?"),
    re.compile(r"\d{4}-(?P<month>\d{2})-(?P<day>\d{2})(?:[ t]00:00(?::00(?:\.0+)?)?)?"),
    re.compile(r"(?P<month>\d{1,2})/(?P<day>\d{1,2})/\d{2,4}"),
    re.compile(r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.\d{2,4}"),
)


def date_of(text: str) -> tuple[int, int] | None:
    """Month and day of a name that reads as a date ('1-Mar', 'Sep-02', '2001-03-01'), None for any other."""
    for pattern in _DATES:
        found = pattern.fullmatch(text.strip().lower())
        if found is None:
            continue
        parts = found.groupdict()
        month, day = _MONTHS.get(parts.get("name") or "", int(parts.get("month") or 0)), int(parts["day"])
        if 1 <= month <= 12 and 1 <= day <= 31:
            return month, day
    return None


def why_no_number(text: str) -> str:
    """What to do about a cell that is no number, where its form says it: a decimal comma, a date; '' otherwise."""
    if re.fullmatch(r"[-+]?\d+(?:[.,]\d{3})*,\d+(?:[eE][-+]?\d+)?", text.strip()):
        return "write numbers with a point for decimals and no mark between thousands"
    if date_of(text) is not None:
        return "this is a date, which a spreadsheet may have made of a number: take it from the original file"
    return ""


def counts_rows(cells: Sequence[object]) -> bool:
    """Whether cells are the numbers of their rows, from 0 or 1 on, as an index that was written with the table."""
    try:
        numbers = [float(str(cell)) for cell in cells]
    except ValueError:
        return False
    return len(numbers) > 1 and numbers[0] in (0, 1) and numbers == [numbers[0] + row for row in range(len(numbers))]


def first_bad_number(path: Path, head: Head, label: str) -> tuple[str, str, str] | None:
    """Label of the row, column and text of the first cell that is neither a number nor missing; None if all are.

    For the message of an error: it reads the whole table as text. Raises TableError as `read_rows`.
    """
    table = read_rows(path, head, {name: pa.string() for name in head.names})
    for name in table.column_names:
        if name == label:
            continue
        for row, cell in enumerate(table[name].to_pylist()):
            if not is_missing(cell) and not _is_number(cell):
                return table[label][row].as_py().strip(), name, cell
    return None


def open_cell(line: str, separator: str) -> int | None:
    """Number, from 0, of the cell whose quotation mark is left open at the end of a line; None if there is none.

    A mark opens a cell as its first character only, and two of them inside stand for one.
    """
    column = position = 0
    while position >= 0:
        if line.startswith('"', position):
            position += 1
            while (end := line.find('"', position)) >= 0 and line.startswith('"', end + 1):
                position = end + 2
            if end < 0:
                return column
            position = end + 1
        position = line.find(separator, position)
        if position >= 0:
            position += 1
            column += 1
    return None


def open_quotation(row: int, column: int, names: Sequence[str] = ()) -> str:
    """What is wrong with a row, the header being the first, that `open_cell` finds, and what to do."""
    name = names[column].strip() if column < len(names) else ""
    where = f"column '{name}'" if name else f"column {column + 1}"
    return (
        f"row {row}, {where}: a quotation mark is left open at the end of the line, and would make one cell of it and "
        "the rows that follow; remove the quotation mark, or the line break if it is meant"
    )


class _Watched(io.RawIOBase):
    """A file that notes in a list whether what was read of it has quotation marks."""

    def __init__(self, handle: IO[bytes], quoted: list[bool]) -> None:
        self._handle = handle
        self._quoted = quoted

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._handle.read(size)
        if not self._quoted and b'"' in data:
            self._quoted.append(True)
        return data


def _check_quotations(path: Path, head: Head) -> None:
    """Raise TableError for the first quoted cell that does not end in its line: the reader of rows would read on."""
    row = 1 + len(head.comments)
    with open_plain(path) as handle:
        handle.read(head.start)
        for _, line in _lines(handle):
            if not line.strip():
                continue
            row += 1
            if b'"' in line:
                column = open_cell(line.decode("utf-8", errors="replace").rstrip("\r\n"), head.separator)
                if column is not None:
                    raise TableError(open_quotation(row, column, head.names))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _lines(handle: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines of any of the three endings, each with the position behind it."""
    end = 0
    while raw := handle.readline():
        for line in raw.splitlines(keepends=True):
            end += len(line)
            yield end, line


def check_encoding(begins: bytes) -> None:
    """Raise TableError where the beginning of a text is in UTF-16, with its mark or without."""
    if begins.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TableError("it is UTF-16 text (Excel's 'Unicode text'); save it as UTF-8")
    if b"\x00" in begins:
        raise TableError("it holds bytes of zero, as UTF-16 text does and no UTF-8 text; save it as UTF-8")


def _decoded(line: bytes) -> str:
    check_encoding(line)
    try:
        return line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise TableError(f"it is not UTF-8 text (byte {line[error.start]:#04x}); save it as UTF-8") from None


def _cells(line: str, separator: str) -> list[str]:
    if '"' not in line:
        return line.split(separator)
    types = {f"f{number}": pa.string() for number in range(line.count(separator) + 1)}
    raw = line.encode() + b"\n"
    try:
        table = pacsv.read_csv(
            pa.BufferReader(raw),
            read_options=pacsv.ReadOptions(
                use_threads=False, autogenerate_column_names=True, block_size=len(raw) + (1 << 20)
            ),
            parse_options=pacsv.ParseOptions(delimiter=separator),
            convert_options=pacsv.ConvertOptions(column_types=types, strings_can_be_null=False, null_values=[]),
        )
    except _ARROW_ERRORS as error:
        # One line without a line break inside a cell: what cannot be parsed is a quotation mark that is left open.
        raise TableError("a quotation mark is left open in its first lines; close it") from error
    return [str(column[0].as_py()) for column in table.columns]


def _check_title(header: str, first: str, separator: str, row: int) -> None:
    """Raise TableError where the first line holds one cell and the next one several: a title, no header."""
    told = [cell.strip() for cell in header.split(separator) if cell.strip()]
    below = [cell.strip() for cell in first.split(separator) if cell.strip()]
    # R's short header of a table with one column has one cell as well.
    if len(told) == 1 and (len(below) > 2 or (len(below) == 2 and " " in told[0])):
        raise TableError(
            f"line {row} holds nothing but '{told[0][:60]}', and line {row + 1} has {len(below)} cells: a title above "
            "the header; remove it, so that the names of columns come first"
        )


def _check_separator(header: str, separator: str, path: Path) -> None:
    if separator in header:
        return
    other = next((mark for mark in _SEPARATOR_NAMES if mark in header), None)
    if other is None:
        return
    plain = re.sub(r"\.(csv|tsv|txt)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    advice = {
        "\t": f"rename it to {plain}.tsv",
        ",": f"rename it to {plain}.csv",
        ";": f"save it with {_SEPARATOR_NAMES[separator]} between the cells and points in the numbers",
    }[other]
    raise TableError(
        f"its cells are separated by {_SEPARATOR_NAMES[other]}, its name stands for {_SEPARATOR_NAMES[separator]}: "
        f"{advice}"
    )


def _ragged(row: int, cells: int, width: int, text: str = "") -> str:
    told = f"row {row} has {cells} cell{'s' if cells > 1 else ''}, the header has {width}"
    if width == 1:
        return f"{told}; correct it, or remove the lines above the names of columns if they are a title"
    if cells == 1 and text.strip():
        return f"{told} ('{text.strip()[:40]}'); remove it if it is a note below the table, otherwise correct it"
    return f"{told}; correct it"


_TOTALS = frozenset(
    ("total", "totals", "grand total", "subtotal", "sum", "sums", "mean", "average", "median", "sd", "std", "count",
     "gesamt", "summe", "mittelwert")
)  # fmt: skip


def check_last_lines(cells: Sequence[str], first: int) -> None:
    """Raise TableError where a column of patients ends with a line of totals; its first cell is in line ``first``."""
    position = line_of_totals(cells)
    if position is not None:
        raise TableError(
            f"line {first + position} ('{cells[position].strip()}') is a line of totals below the patients, and no "
            "patient; remove it"
        )


def line_of_totals(cells: Sequence[str]) -> int | None:
    """Position of a line of totals ('Total', 'Mean' ...) among the last three of a column of names; None without."""
    for position in range(max(1, len(cells) - 3), len(cells)):
        if " ".join(re.sub(r"[^a-zA-Z]+", " ", cells[position]).lower().split()) in _TOTALS:
            return position
    return None


def _unreadable(error: BaseException) -> str:
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return f"cannot be read, broken gzip: {error}"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"
