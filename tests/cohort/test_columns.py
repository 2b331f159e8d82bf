"""columns.json: an unknown key or value is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hcmae.cohort.columns import read_columns
from hcmae.cohort.evidence import CurationError


def test_what_it_may_say(tmp_path: Path) -> None:
    assert read_columns(tmp_path) == {}
    said = {
        "files": {"rna": "x.tsv", "clinical": "y.tsv"},
        "clinical": {"patient": "PID", "time": "t", "time_unit": "months", "sex_values": {"1": "male", "2": "female"}},
        "methylation": {"patient": "PID"},
        "units": {"rna": "log2(TPM + 1)", "methylation": "percent"},
    }
    (tmp_path / "columns.json").write_text(json.dumps(said))
    assert read_columns(tmp_path) == said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"unit": {"rna": "tpm"}}, r"unknown key 'unit' \(did you mean 'units'\?\)"),
        ({"clinical": {"times": "t"}}, r"unknown key 'clinical\.times' \(did you mean 'time'\?\)"),
        ({"clinical": {"pateint": "t"}}, r"unknown key 'clinical\.pateint' \(did you mean 'patient'\?\)"),
        ({"files": {"protein": "t"}}, r"unknown key 'files\.protein'; expected some of clinical, rna"),
        ({"rna": {"unit": "tpm"}}, r"unknown key 'rna\.unit'"),
        ({"units": {"clinical": "days"}}, r"unknown key 'units\.clinical'"),
        ({"units": {"rna": "beta"}}, r"units\.rna: unit 'beta' is none of a table of rna: choose one of counts"),
        ({"units": {"rna": 3}}, r"units\.rna is 3; expected text"),
        ({"clinical": {"time_unit": "weeks"}}, r"clinical\.time_unit is 'weeks'; choose one of days, months, years"),
        ({"clinical": {"sex_values": "1=male"}}, r"clinical\.sex_values is '1=male'; expected an object"),
        ({"clinical": {"sex_values": {"1": "m"}}}, r"clinical\.sex_values: '1' is 'm'; choose male or female"),
        ([], "expected an object"),
        ({"rna": "x"}, "rna is 'x'; expected an object"),
    ],
)
def test_what_it_may_not_say(said: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "columns.json").write_text(json.dumps(said))
    with pytest.raises(CurationError, match=rf"columns\.json: {message}"):
        read_columns(tmp_path)
