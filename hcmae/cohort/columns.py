"""``columns.json`` of a user's folder: which file, column and unit is what, where the names do not say it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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

    Raises CurationError naming the key that is unknown or whose value cannot be used.
    """
    path = root / "columns.json"
    if not path.exists():
        return {}
    try:
        mapping = parse_json(path.read_bytes(), unique=True)
    except OSError as error:
        raise CurationError(f"{path}: cannot be read ({error.strerror}); correct or remove it") from error
    except ValueError as error:
        raise CurationError(f"{path}: not valid JSON, {error}; correct it there") from error
    known = ("files", "clinical", "units", *MODALITIES)
    if not isinstance(mapping, dict) or not all(isinstance(value, dict) for value in mapping.values()):
        raise CurationError(f"{path}: expected an object with some of the keys {sorted(known)}, each an object")
    _check_keys(path, "", mapping, known)
    _check_keys(path, "files.", mapping.get("files", {}), ("clinical", *MODALITIES, "samples", "annotations"))
    _check_keys(path, "clinical.", mapping.get("clinical", {}), _CLINICAL)
    _check_keys(path, "units.", mapping.get("units", {}), MODALITIES)
    for modality in MODALITIES:
        _check_keys(path, f"{modality}.", mapping.get(modality, {}), ("patient",))
    for section, values in mapping.items():
        for key, value in values.items():
            if not isinstance(value, dict if key == "sex_values" else str):
                raise CurationError(
                    f"{path}: {section}.{key} is {value!r}; expected "
                    + ('an object such as {"1": "male", "2": "female"}' if key == "sex_values" else "text")
                )
    _check_values(path, mapping)
    return mapping


def _check_keys(path: Path, section: str, found: Iterable[str], known: Iterable[str]) -> None:
    choices = list(known)
    for key in found:
        if key not in choices:
            near = difflib.get_close_matches(key, choices, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise CurationError(f"{path}: unknown key '{section}{key}'{hint}; expected some of {', '.join(choices)}")


def _check_values(path: Path, mapping: dict[str, Any]) -> None:
    for modality, unit in mapping.get("units", {}).items():
        try:
            unit_named(unit, modality)
        except ValueError as error:
            raise CurationError(f"{path}: units.{modality}: {error}") from None
    clinical = mapping.get("clinical", {})
    unit = clinical.get("time_unit", "days")
    if unit not in TIME_UNITS:
        raise CurationError(f"{path}: clinical.time_unit is '{unit}'; choose one of {', '.join(TIME_UNITS)}")
    for code, sex in clinical.get("sex_values", {}).items():
        if sex not in ("male", "female"):
            raise CurationError(f"{path}: clinical.sex_values: '{code}' is {sex!r}; choose male or female")
