"""Which ages, sexes and stages of a clinical table cannot be read: they count as missing, and that is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from hcmae.cohort.cells import age_bound, plain_number, sex_of, stage_number
from hcmae.tables import is_missing, why_no_number

# Stages that say themselves that there is none.
_NO_STAGE = ("x", "stage x", "indeterminate", "i/ii nos", "is", "stage is")


def readable_age(text: str) -> bool:
    """Whether a cell is an age in years, or a bound such as '>89'."""
    return age_bound(text) is not None or 0 <= plain_number(text) <= 130


def _what_to_do(what: str, texts: Sequence[str]) -> str:
    """What is plainly wrong with unread cells, all of one kind."""
    if what == "age" and all("," in text and why_no_number(text) for text in texts):
        return "; write numbers with a point for decimals"
    if what == "age" and all(1850 <= plain_number(text) <= 2100 for text in texts):
        return "; these look like years of birth: give the age at diagnosis"
    return ""


def unread(
    rows: Mapping[str, Sequence[Mapping[str, str]]], columns: Mapping[str, str | None], sexes: Mapping[str, str]
) -> list[str]:
    """One line for each covariate of which cells cannot be read: how many, the first one and whose it is.

    rows: by patient; columns: 'age', 'sex', 'stage' -> name of the column or None; sexes: stated code -> sex.
    """
    stated = {code.strip().lower(): sex for code, sex in sexes.items()}
    readable: dict[str, Callable[[str, str], bool]] = {
        "age": lambda text, column: readable_age(text),
        "sex": lambda text, column: sex_of(text, column, stated) in ("male", "female", None),
        "stage": lambda text, column: not math.isnan(stage_number(text)) or text.strip().lower() in _NO_STAGE,
    }
    lines = []
    for what, reads in readable.items():
        column = columns.get(what)
        if column is None:
            continue
        cells = [(patient, found[0][column]) for patient, found in rows.items() if not is_missing(found[0][column])]
        bad = [(patient, text) for patient, text in cells if not reads(text, column)]
        if bad:
            lines.append(
                f"column '{column}': {len(bad):,} of {len(cells):,} values say no {what} ('{bad[0][1]}' of patient "
                f"{bad[0][0]} first) and count as missing" + _what_to_do(what, [text for _, text in bad])
            )
    return lines
