"""Fields of a clinical record, or cells of a table, of the type that they must have; what is absent is no error.

``field`` names the place in the message of an error.
"""

from __future__ import annotations

import math
from typing import Any

from hcmae.tables import is_missing, why_no_number


class ClinicalError(ValueError):
    """A clinical record or table that cannot be understood; the message names patient and field."""


def mapping_of(value: Any, patient: str, field: str) -> dict[str, Any]:
    """An object of a record, empty where it is absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ClinicalError(f"patient {patient}: {field} is {type(value).__name__}, expected an object")
    return value


def mappings_of(value: Any, patient: str, field: str) -> list[dict[str, Any]]:
    """A list of objects, empty where it is absent."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ClinicalError(f"patient {patient}: {field} is {type(value).__name__}, expected a list")
    return [mapping_of(entry, patient, field) for entry in value]


def number_of(value: Any, patient: str, field: str) -> float | None:
    """A number, None where it is missing."""
    if value is None or (isinstance(value, str) and is_missing(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ClinicalError(f"patient {patient}: {field} is {value!r}, expected a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        why = why_no_number(str(value)) or "correct it"
        if "date" in why:
            why = "give the days from the diagnosis to that date"
        raise ClinicalError(f"patient {patient}: {field} is '{value}', expected a number; {why}") from None
    if not math.isfinite(number):
        raise ClinicalError(f"patient {patient}: {field} is {value}, expected a finite number")
    return number


def text_of(value: Any, patient: str, field: str) -> str | None:
    """A text without blanks around it, None where it is missing."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ClinicalError(f"patient {patient}: {field} is {value!r}, expected text")
    return None if is_missing(value) else value.strip()
