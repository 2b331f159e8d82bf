"""columns.json: an unknown key or value is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hcmae.cohort.clinical import read_clinical
from hcmae.cohort.columns import read_columns, sound_columns
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
        (
            {"clinical": {"time_unit": "hours"}},
            r"clinical\.time_unit is 'hours'; choose one of days, weeks, months, years",
        ),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{\n "units": {"rna": "tpm",}\n}',
            "line 2, column 25: .*a comma behind the last entry: remove it.*correct it",
        ),
        ('{"files": {"rna": "x.tsv"},\n}', "line 2, column 1: .*a comma behind the last entry"),
        ("{'units': {}}", "line 1, column 2: .*write double quotation marks"),
        ('{"units": {} "files": {}}', "line 1, column 14: Expecting ',' delimiter; correct it there"),
        ('{"units": {"rna": "tpm", "rna": "rpm"}}', "key 'rna' comes twice"),
        ("", "line 1, column 1"),
    ],
)
def test_a_mistake_is_named_by_its_place_and_nobody_is_told_to_delete_the_file(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "columns.json").write_text(text)
    with pytest.raises(CurationError, match=rf"columns\.json: not valid JSON, {message}") as caught:
        read_columns(tmp_path)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_as_editors_of_windows_write_it_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "columns.json").write_text('{"units": {"rna": "tpm"}}', encoding=encoding)
    assert read_columns(tmp_path) == {"units": {"rna": "tpm"}}


# --- one part for each column -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"clinical": {"time_days": "t", "event": "t"}}, r"clinical\.time_days and clinical\.event are both 't'; a"),
        ({"clinical": {"age": "x", "time": "t", "stage": "x"}}, r"clinical\.age and clinical\.stage are both 'x'"),
        ({"files": {"rna": "a.tsv", "mirna": "a.tsv"}}, r"files\.rna and files\.mirna are both 'a\.tsv'; a"),
        ({"files": {"clinical": "a.tsv", "rna": "a.tsv"}}, r"files\.clinical and files\.rna are both"),
    ],
)  # fmt: skip
def test_one_column_or_file_has_one_part(said: dict[str, Any], fault: str, tmp_path: Path) -> None:
    (tmp_path / "columns.json").write_text(json.dumps(said))
    with pytest.raises(CurationError, match=fault):
        read_columns(tmp_path)
    sound, faults = sound_columns(tmp_path)
    assert len(faults) == 1
    values = list(next(iter(sound.values())).values())
    assert len(set(values)) == len(values)


def test_a_slide_may_be_called_like_its_patient(tmp_path: Path) -> None:
    said = {"clinical": {"patient": "id", "slide": "id", "time": "t", "time_unit": "days"}, "rna": {"patient": "id"}}
    (tmp_path / "columns.json").write_text(json.dumps(said))
    assert read_columns(tmp_path) == said


def test_a_column_that_is_named_for_one_part_has_no_other(tmp_path: Path) -> None:
    path = tmp_path / "clinical.tsv"
    path.write_text("patient\ttime_days\tevent\tstage\tage\nP1\t400\t1\tG2\t60\nP2\t500\t0\tG3\t61\n")
    table = read_clinical(path, {"grade": "stage"})
    assert (table.outcomes["P1"].grade, table.outcomes["P1"].stage) == ("G2", None)
    assert [
        "column 'stage' is read as grade, as columns.json says, and not as stage" in note for note in table.notes
    ] == [True]
    assert not any("is read as" in note for note in read_clinical(path).notes)
