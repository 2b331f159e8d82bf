"""One person under several spellings: capital letters, blanks, leading zeros, marks, the X that R puts before a number.

Names are never made equal by guessing: within a table two spellings of one name are refused or doubted, across tables
the other spelling is named beside everybody who is left out for want of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from hcmae.cohort.barcodes import dashed
from hcmae.tables import counts_rows, listed


@dataclass(frozen=True)
class Spelling:
    """A name that another table writes otherwise: ``other`` in ``table``, and how the two differ."""

    other: str
    table: str
    how: str

    def told(self) -> str:
        """For a reason to be left out."""
        return f" ({self.table} has '{self.other}'; they differ in {self.how})"


def folded(name: str) -> str:
    """A name without regard to capital letters and blanks."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", name)).casefold()


def spelling_key(name: str) -> str:
    """What all spellings of a name have in common: 'P-001', 'p1' and 'P 1' are one, 'P1-1' and 'P11' are not.

    Marks count between two numbers only, so that numbers of a site and of a patient stay apart.
    """
    text = re.sub(r"(?<=\d)\.0$", "", folded(name)) if re.fullmatch(r"\d+\.0", name.strip()) else folded(name)
    text = re.sub(r"[\W_]+", "_", text).strip("_")
    text = re.sub(r"(?<!\d)_|_(?!\d)", "", text)
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"^x(?=\d)", "", text))


def how_names_differ(one: str, other: str) -> str:
    """In words what keeps two spellings of a name apart."""
    plain = [unicodedata.normalize("NFKC", name) for name in (one, other)]
    tries = {
        "capital letters": [name.casefold() for name in plain],
        "blanks": [re.sub(r"\s+", "", name) for name in plain],
        "leading zeros": [re.sub(r"(?<!\d)0+(?=\d)", "", name) for name in plain],
        "a '.0' at the end": [name.removesuffix(".0") for name in plain],
        "an X before the number": [re.sub(r"^[Xx](?=\d)", "", name) for name in plain],
        "marks between letters": [re.sub(r"[\W_]+", "_", name) for name in plain],
    }
    for how, (first, second) in tries.items():
        if first == second:
            return how
    return "marks between the letters, or in leading zeros"


# Where a difference comes from that is nobody's choice.
_BECAUSE = {
    "leading zeros": ", which a spreadsheet drops from numbers: write the column as text",
    "a '.0' at the end": ", as where numbers were read as fractions",
    "an X before the number": ", as R puts there: write the table with check.names=FALSE",
}


def one_name_twice(names: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of names of one table that differ in capital letters or blanks alone."""
    return _pairs(names, folded)


def spelt_alike(names: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of names of one table that are probably one: leading zeros, marks, R's X."""
    return [pair for pair in _pairs(names, spelling_key) if folded(pair[0]) != folded(pair[1])]


def _pairs(names: Collection[str], key: Callable[[str], str]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    found = []
    for name in names:
        before = first.setdefault(key(name), name)
        if before != name:
            found.append((before, name))
    return found


def other_spellings(tables: Mapping[str, Collection[str]]) -> dict[str, Spelling]:
    """Names that are in some tables only, while others have one other spelling of them.

    ``tables``: names by table, the one whose spelling counts first.
    """
    where: dict[str, dict[str, list[str]]] = {}  # key -> name -> tables
    for table, names in tables.items():
        for name in dict.fromkeys(names):
            where.setdefault(spelling_key(name), {}).setdefault(name, []).append(table)
    found = {}
    for spelt in where.values():
        if len(spelt) != 2:
            continue
        (one, ones), (other, others) = spelt.items()
        if not set(ones) & set(others):
            how = how_names_differ(one, other)
            found[one], found[other] = Spelling(other, others[0], how), Spelling(one, ones[0], how)
    return found


def doubts_of_spellings(tables: Mapping[str, Collection[str]], found: Mapping[str, Spelling]) -> list[str]:
    """One line for each table and kind of difference, about names that a table before it writes otherwise."""
    lines = []
    before: set[str] = set()
    for table, names in tables.items():
        kinds: dict[tuple[str, str], list[str]] = {}
        for name in dict.fromkeys(names):
            spelling = found.get(name)
            if spelling is not None and spelling.other in before and name not in before:
                kinds.setdefault((spelling.table, spelling.how), []).append(f"'{name}' for '{spelling.other}'")
        for (other, how), pairs in kinds.items():
            lines.append(
                f"{table}: {len(pairs)} name{'s are' if len(pairs) > 1 else ' is'} written otherwise than in {other} "
                f"({listed(pairs, 3)}; they differ in {how}{_BECAUSE.get(how, '')}): they are taken for other people, "
                "who leave the cohort; write every name in one way in all tables"
            )
        before |= set(names)
    return lines


def line_of_dots(cells: Sequence[str]) -> str:
    """What to say of barcodes that are written with dots, as R writes names of columns; '' where none are."""
    dotted = [cell.strip() for cell in cells if dashed(cell.strip()) != cell.strip()]
    if not dotted:
        return ""
    return (
        f"{len(dotted)} barcode{'s are' if len(dotted) > 1 else ' is'} written with other marks than dashes, as R "
        f"does: '{dotted[0]}' is read as '{dashed(dotted[0])}'"
    )


def why_no_name_is_shared(a: str, one: Collection[str], b: str, other: Collection[str]) -> str:
    """In words what keeps the names of two tables apart that share none, '' where it is not plain."""
    keys = {spelling_key(text): text for text in sorted(one, reverse=True)}
    for text in sorted(other):
        if (same := keys.get(spelling_key(text))) is not None:
            how = how_names_differ(same, text)
            return f": they differ in {how} ('{same}' and '{text}'){_BECAUSE.get(how, '')}"
    tables: dict[str, Collection[str]] = {a: one, b: other}
    for name, found in tables.items():
        by_length: list[str] = sorted(sorted(found), key=len)
        if counts_rows(by_length):
            return f": those of {name} count the rows, as an index that was written with the table"
        if all(re.fullmatch(r"[(\[].*,.*[)\]]", text) for text in found):
            return f": those of {name} are of several levels in one, as where an index of pandas was made flat"
    whole = [{text.casefold() for text in found} for found in (one, other)]
    for name, short, long in ((b, whole[0], whole[1]), (a, whole[1], whole[0])):
        parts = {text for found in long for text in re.split(r"[^0-9a-z]+", found)}
        begun = {found[: match.start()] for found in long for match in re.finditer(r"[^0-9a-z]", found)}
        if short & (parts | begun):
            return f": those of {name} hold more than the patient's name, as where levels of a table were made one"
    return ""
