"""What single cells of a clinical table say: events, sex, ages, stages, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from hcmae.cohort.layouts import normalised

_DEAD_WORDS, _ALIVE_WORDS = {"dead", "deceased"}, {"alive", "living"}
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
DEAD = {*_YES, *_DEAD_WORDS, "event", "uncensored"}
ALIVE = {*_NO, *_ALIVE_WORDS, "censored"}
_MALE, _FEMALE = {"m", "male", "man"}, {"f", "female", "woman"}
# "over 89", as records are made anonymous: the number is the least age it can be.
_AGE_BOUND = re.compile(
    r"(?:(?:>=?|≥|over|above)\s*(\d{2,3})|(\d{2,3})\s*(?:\+|(?:years? )?or (?:older|over|above|more)))"
)
_STAGE = re.compile(r"(0|IV|I{1,3}|[1-4])(?:\.0)?\s*(?:[ABCD][0-9]?)?")
_ROMAN = {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}


def plain_number(text: str) -> float:
    """A number as written, NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def event_of(text: str, *, censored: bool = False) -> int | None:
    """1 for a death, 0 for a patient last seen alive, None for other words; ``censored``: 1 and 'yes' are turned round.

    Codes with their meaning are known ('1:DECEASED'), and words keep it in a column of either kind.
    """
    code, _, word = text.lower().rpartition(":")
    value = word.strip()
    if value not in DEAD | ALIVE or (code and (code.strip() in DEAD) != (value in DEAD)):
        return None
    if value in _YES | _NO:
        return int((value in _YES) != censored)
    return int(value in DEAD)


def sex_word(text: str) -> str | None:
    """'male' or 'female' for the usual words and letters, None for anything else."""
    word = text.strip().lower()
    return "male" if word in _MALE else "female" if word in _FEMALE else None


def sex_of(text: str, column: str, stated: Mapping[str, str]) -> str | None:
    """'male' or 'female'; another word as it is; None for a number that neither its column nor ``stated`` explains.

    ``column``: a name such as 'is_female' says what 1 means; ``stated``: code -> sex, in lower case.
    """
    plain = text.strip().lower()
    code = plain.removesuffix(".0")
    if plain in stated or code in stated:
        return stated.get(plain, stated.get(code))
    name = normalised(column).removeprefix("is_")
    if name in ("female", "male") and code in ("0", "1", "false", "true", "no", "yes"):
        other = {"female": "male", "male": "female"}[name]
        return name if code in ("1", "true", "yes") else other
    if (word := sex_word(plain)) is not None:
        return word
    return plain if math.isnan(plain_number(plain)) else None


def age_bound(text: str) -> float | None:
    """The least age of a bound such as '>89' or '90 or older', None for other text."""
    found = _AGE_BOUND.fullmatch(text.strip().lower())
    return None if found is None else float(found[1] or found[2])


def stage_number(stage: str | None) -> float:
    """1 to 4 for AJCC stages ('Stage IIIA' is 3, so are '3' and '3A'), 0 for stage 0, NaN for anything else.

    'Stage X', 'Stage IS', 'I/II NOS' and 'Indeterminate' are something else: no stage, rather than stage 1.
    """
    found = _STAGE.fullmatch((stage or "").strip().upper().removeprefix("STAGE").strip())
    if found is None:
        return math.nan
    return _ROMAN.get(found[1]) or float(found[1])


def grade_number(grade: str) -> float:
    """1 to 4 for 'G2', 'Grade 2' and '2', NaN for anything else."""
    found = re.fullmatch(r"(?:g|grade)?\s*([1-4])(?:\.0)?", grade.strip().lower())
    return math.nan if found is None else float(found[1])
