"""``columns.json`` of a user's folder: which file, column and unit is what, where the names do not say it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hcmae.cohort.evidence import CurationError
from hcmae.cohort.layouts import WANTED
from hcmae.config import MODALITIES
from hcmae.packed import parse_json
from hcmae.units import TIME_UNITS, unit_named

_CLINICAL = (*WANTED, "time_unit", "sex_values")


def read_columns(root: Path) -> dict[str, Any]:
    """What ``columns.json`` says, checked; empty where there is none.

    {"files": {"rna": file}, "clinical": {"patient": column, ..., "time_unit": "months", "sex_values": {"1": "male"}},
    "rna": {"patient": column}, "units": {"rna": "tpm"}}

    Raises CurationError naming each key that is unknown or whose value cannot be used.
    """
    mapping, faults = sound_columns(root)
    if faults:
        raise CurationError("\n".join(faults))
    return mapping


def sound_columns(root: Path) -> tuple[dict[str, Any], list[str]]:
    """What can be used of ``columns.json``, and what is wrong with the rest, one message each."""
    path = root / "columns.json"
    if not path.exists():
        return {}, []
    try:
        mapping = parse_json(path.read_bytes(), unique=True)
    except OSError as error:
        return {}, [f"{path}: cannot be read ({error.strerror}); correct it, or remove it"]
    except ValueError as error:
        return {}, [f"{path}: not valid JSON, {error}; correct it there"]
    known = ("files", "clinical", "units", *MODALITIES)
    if not isinstance(mapping, dict):
        return {}, [f"{path}: expected an object with some of the keys {sorted(known)}, each an object"]
    keys: dict[str, Sequence[str]] = {
        "files": ("clinical", *MODALITIES, "samples", "annotations"),
        "clinical": _CLINICAL,
        "units": MODALITIES,
        **dict.fromkeys(MODALITIES, ("patient",)),
    }
    sound: dict[str, Any] = {}
    faults: list[str] = []
    for section, values in mapping.items():
        if fault := _unknown(section, known):
            faults.append(f"{path}: {fault}")
        elif not isinstance(values, dict):
            faults.append(f"{path}: {section} is {values!r}; expected an object")
        else:
            sound[section] = {}
            for key, value in values.items():
                fault = _unknown(f"{section}.{key}", keys[section], key) or _unusable(section, key, value)
                if fault:
                    faults.append(f"{path}: {fault}")
                else:
                    sound[section][key] = value
    for section in ("clinical", "files"):
        faults += [f"{path}: {fault}" for fault in _named_twice(section, sound.get(section, {}))]
    return sound, faults


# A slide may be called like its patient.
_MAY_BE_ONE = {"patient", "slide"}


def _named_twice(section: str, values: dict[str, Any]) -> list[str]:
    """What is wrong where one column or file has two parts; neither stays in ``values``."""
    faults = []
    first: dict[str, str] = {}
    for key, value in list(values.items()):
        if key in ("time_unit", "sex_values"):
            continue
        before = first.setdefault(value, key)
        if before != key and {before, key} != _MAY_BE_ONE:
            what = "column" if section == "clinical" else "file"
            faults.append(
                f"{section}.{before} and {section}.{key} are both '{value}'; a {what} has one part only: name another "
                f"{what} for one of them, or leave it out"
            )
            values.pop(before, None)
            del values[key]
    return faults


def _unknown(named: str, known: Sequence[str], key: str | None = None) -> str:
    """What is wrong with a key; '' for one that is known."""
    key = named if key is None else key
    if key in known:
        return ""
    near = difflib.get_close_matches(key, known, 1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"unknown key '{named}'{hint}; expected some of {', '.join(known)}"


def _unusable(section: str, key: str, value: Any) -> str:
    """What is wrong with a value; '' for one that can be used."""
    if not isinstance(value, dict if key == "sex_values" else str):
        form = 'an object such as {"1": "male", "2": "female"}' if key == "sex_values" else "text"
        return f"{section}.{key} is {value!r}; expected {form}"
    if section == "units":
        try:
            unit_named(value, key)
        except ValueError as error:
            return f"units.{key}: {error}"
    if key == "time_unit" and value not in TIME_UNITS:
        return f"clinical.time_unit is '{value}'; choose one of {', '.join(TIME_UNITS)}"
    if isinstance(value, dict):
        for code, sex in value.items():
            if sex not in ("male", "female"):
                return f"clinical.sex_values: '{code}' is {sex!r}; choose male or female"
    return ""
