"""Clinical tables of other makers: six layouts, the unit of time, and what is optional never refuses a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hcmae.cohort.clinical import ClinicalError, ClinicalTable, Outcome, read_clinical, read_clinical_table
from hcmae.tables import TableNote

MONTH = 30.4375


def _read(folder: Path, text: str, name: str = "clinical.tsv", mapping: dict[str, Any] | None = None) -> ClinicalTable:
    (folder / name).write_text(text, encoding="utf-8")
    return read_clinical(folder / name, mapping)


LAYOUTS: dict[str, tuple[str, str, Any]] = {
    "TCGA-CDR": (
        "cdr.tsv",
        "\tbcr_patient_barcode\ttype\tage_at_initial_pathologic_diagnosis\tgender\tajcc_pathologic_tumor_stage\t"
        "histological_grade\tvital_status\tOS\tOS.time\tDSS\tDSS.time\n"
        "1\tTCGA-ZZ-B000\tLIHC\t60\tMALE\tStage II\tG2\tAlive\t0\t1819\t0\t1819\n"
        "2\tTCGA-ZZ-B001\tLIHC\t61\tFEMALE\t[Not Available]\t[Unknown]\tDead\t1\t#N/A\t1\t#N/A\n",
        {
            "TCGA-ZZ-B000": (1819, 0, 60, "male", "Stage II", "G2"),
            "TCGA-ZZ-B001": (None, 1, 61, "female", None, None),
        },
    ),
    "Biotab": (
        "biotab.txt",
        "bcr_patient_uuid\tbcr_patient_barcode\tpatient_id\tgender\tvital_status\tlast_contact_days_to\tdeath_days_to\t"
        "age_at_diagnosis\tajcc_pathologic_tumor_stage\n"
        "bcr_patient_uuid\tbcr_patient_barcode\tpatient_id\tgender\tvital_status\tdays_to_last_followup\tdays_to_death\t"
        "age_at_initial_pathologic_diagnosis\tpathologic_stage\n"
        "CDE_ID:\tCDE_ID:2673794\tCDE_ID:\tCDE_ID:2200604\tCDE_ID:5\tCDE_ID:3008273\tCDE_ID:3165475\tCDE_ID:3008\t"
        "CDE_ID:3203222\n"
        "1-2\tTCGA-ZZ-B000\tB000\tMALE\tAlive\t1819\t[Not Applicable]\t60\tStage II\n"
        "3-4\tTCGA-ZZ-B001\tB001\tFEMALE\tDead\t[Not Available]\t512\t[Not Available]\t[Discrepancy]\n",
        {
            "TCGA-ZZ-B000": (1819, 0, 60, "male", "Stage II", None),
            "TCGA-ZZ-B001": (512, 1, None, "female", None, None),
        },
    ),
    "cBioPortal": (
        "data_clinical_patient.txt",
        "#Patient Identifier\tOverall Survival (Months)\tOverall Survival Status\tSex\tStage\n"
        "#Id\tmonths\tstatus\tsex\tstage\n#STRING\tNUMBER\tSTRING\tSTRING\tSTRING\n#1\t1\t1\t1\t1\n"
        "PATIENT_ID\tOS_MONTHS\tOS_STATUS\tSEX\tAJCC_PATHOLOGIC_TUMOR_STAGE\n"
        "TCGA-ZZ-B000\t59.8\t0:LIVING\tMale\tSTAGE IIIA\nTCGA-ZZ-B001\t\t1:DECEASED\tFemale\t\n",
        {
            "TCGA-ZZ-B000": (59.8 * MONTH, 0, None, "male", "STAGE IIIA", None),
            "TCGA-ZZ-B001": (None, 1, None, "female", None, None),
        },
    ),
    "GDC export": (
        "clinical.tsv",
        "case_id\tcase_submitter_id\tage_at_index\tgender\tvital_status\tdays_to_death\tdays_to_last_follow_up\t"
        "ajcc_pathologic_stage\ttumor_grade\ttreatment_type\n"
        "1-2\tTCGA-ZZ-B000\t60\tmale\tAlive\t'--\t1819\tStage II\tG2\tRadiation\n"
        "1-2\tTCGA-ZZ-B000\t60\tmale\tAlive\t'--\t1819\tStage II\tG2\tPharmaceutical\n"
        "3-4\tTCGA-ZZ-B001\t'--\tfemale\tDead\t512\t'--\t'--\tNot Reported\tRadiation\n",
        {
            "TCGA-ZZ-B000": (1819, 0, 60, "male", "Stage II", "G2"),
            "TCGA-ZZ-B001": (512, 1, None, "female", None, None),
        },
    ),
    "Xena survival": (
        "survival.tsv",
        "sample\tOS\t_PATIENT\tOS.time\nTCGA-ZZ-B000-01A\t0\tTCGA-ZZ-B000\t1819\n"
        "TCGA-ZZ-B000-11A\t0\tTCGA-ZZ-B000\t1819\nTCGA-ZZ-B001-01A\t1\tTCGA-ZZ-B001\t600\n",
        {"TCGA-ZZ-B000": (1819, 0, None, None, None, None), "TCGA-ZZ-B001": (600, 1, None, None, None, None)},
    ),
    "MCAT/PORPOISE": (
        "all.csv",
        ",case_id,slide_id,site,is_female,oncotree_code,age,survival_months,censorship,train,TP53_mut\n"
        "0,TCGA-ZZ-B000,TCGA-ZZ-B000-01Z-00-DX1.x.svs,ZZ,0,LIHC,60,59.8,1.0,1,0\n"
        "1,TCGA-ZZ-B000,TCGA-ZZ-B000-01Z-00-DX2.x.svs,ZZ,0,LIHC,60,59.8,1.0,1,0\n"
        "2,TCGA-ZZ-B001,TCGA-ZZ-B001-01Z-00-DX1.y.svs,ZZ,1,LIHC,61,20,0.0,1,0\n",
        {
            "TCGA-ZZ-B000": (59.8 * MONTH, 0, 60, "male", None, None),
            "TCGA-ZZ-B001": (20 * MONTH, 1, 61, "female", None, None),
        },
    ),
}


def _plain(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.time, outcome.event, outcome.age, outcome.sex, outcome.stage, outcome.grade


@pytest.mark.parametrize("layout", LAYOUTS)
def test_six_layouts_are_recognised_by_their_columns_and_it_is_said(layout: str, tmp_path: Path) -> None:
    name, text, expected = LAYOUTS[layout]
    table = _read(tmp_path, text, name)
    assert table.layout.name == layout
    assert f"{name}: recognised as a table of {layout} (" in table.notes[0]
    assert {patient: _plain(outcome) for patient, outcome in table.outcomes.items()} == {
        patient: tuple(pytest.approx(v) if isinstance(v, float) else v for v in row)
        for patient, row in expected.items()
    }
    with pytest.warns(TableNote, match="recognised as a table of"):
        read_clinical_table(tmp_path / name)


def test_the_export_with_sections_in_its_names(tmp_path: Path) -> None:
    table = _read(
        tmp_path,
        "cases.case_id\tcases.submitter_id\tdemographic.submitter_id\tdemographic.vital_status\tdemographic.days_to_death\t"
        "diagnoses.age_at_diagnosis\tdiagnoses.classification_of_tumor\tdiagnoses.ajcc_pathologic_stage\t"
        "diagnoses.days_to_last_follow_up\tdiagnoses.submitter_id\n"
        "1-2\tTCGA-ZZ-B000\td1\tAlive\t'--\t21915\tmetastasis\tStage IV\t700\tx1\n"
        "1-2\tTCGA-ZZ-B000\td1\tAlive\t'--\t21915\tprimary\tStage I\t1819\tx2\n",
    )
    # The latest day counts, and the stage is the primary tumour's.
    assert _plain(table.outcomes["TCGA-ZZ-B000"]) == (1819, 0, 60, None, "Stage I", None)


def test_a_plain_table_needs_no_word(tmp_path: Path) -> None:
    table = _read(tmp_path, "patient\ttime_days\tevent\tsex\nP1\t100\t1\tf\nP2\t9\t0\tM\n")
    assert table.notes == []
    assert [o.sex for o in table.outcomes.values()] == ["female", "male"]


def test_a_user_of_the_portals_page_names_the_unit_in_brackets(tmp_path: Path) -> None:
    table = _read(
        tmp_path,
        "Study ID\tPatient ID\tSample ID\tDiagnosis Age\tOverall Survival (Months)\tOverall Survival Status\n"
        "s\tP1\tP1-01\t50\t10\t1:DECEASED\n",
    )
    assert _plain(table.outcomes["P1"])[:3] == (10 * MONTH, 1, 50)


# ---------------------------------------------------------------- the unit of time


@pytest.mark.parametrize(
    ("column", "factor"),
    [
        ("time_days", 1), ("days", 1), ("OS_days", 1), ("Overall survival (days)", 1), ("months", MONTH),
        ("OS months", MONTH), ("survival_time_in_months", MONTH), ("Follow-up (months)", MONTH), ("time.years", 365.25),
        ("years", 365.25), ("OS (years)", 365.25),
    ],
)  # fmt: skip
def test_the_unit_of_time_is_in_the_name_of_the_column(column: str, factor: float, tmp_path: Path) -> None:
    assert _read(tmp_path, f"patient\t{column}\tevent\nP1\t7.5\t1\n").outcomes["P1"].time == 7.5 * factor


def test_a_time_without_unit_that_looks_like_months_is_refused(tmp_path: Path) -> None:
    rows = "".join(f"P{i}\t{i * 1.7:.2f}\t{i % 2}\n" for i in range(1, 60))
    with pytest.raises(ClinicalError, match=r"unit of column 'time' is unclear.*100.3 \(patient P59\).*time_unit"):
        _read(tmp_path, f"patient\ttime\tevent\n{rows}")
    # Whole months of many patients look the same; days do not.
    whole = "".join(f"P{i}\t{i * 2}\t{i % 2}\n" for i in range(1, 60))
    with pytest.raises(ClinicalError, match=r"unit of column 'OS\.time' is unclear"):
        _read(tmp_path, f"patient\tOS.time\tOS\n{whole}")
    days = _read(tmp_path, f"patient\ttime\tevent\n{rows}P99\t2204\t1\n")
    assert days.outcomes["P1"].time == 1.7
    assert days.notes == ["clinical.tsv: survival time in days from column 'time', because the name says no other unit"]
    for mapping in ({"time_unit": "months"}, {"time": "time", "time_unit": "months"}, {"months": "time"}):
        stated = _read(tmp_path, f"patient\ttime\tevent\n{rows}", mapping=mapping)
        assert stated.outcomes["P1"].time == 1.7 * MONTH
        assert stated.notes == []
    with pytest.raises(
        ClinicalError, match=r"columns\.json says months = 'time' and time_unit = 'days'; leave one out"
    ):
        _read(tmp_path, f"patient\ttime\tevent\n{rows}", mapping={"months": "time", "time_unit": "days"})


def test_a_time_longer_than_a_life_is_in_another_unit(tmp_path: Path) -> None:
    with pytest.raises(ClinicalError, match="patient P1: column 'months' is 1800, in months more than a life"):
        _read(tmp_path, "patient\tmonths\tevent\nP1\t1800\t1\nP2\t200\t0\n")


# ---------------------------------------------------------------- columns and cells


@pytest.mark.parametrize(
    ("column", "value", "sex"),
    [
        ("IS_FEMALE", "1", "female"), ("is_female", "0.0", "male"), ("male", "True", "male"),
        ("is_male", "0", "female"),
        ("gender", "FEMALE", "female"), ("sex", "m", "male"), ("sex", "[Unknown]", None),
        ("sex", "intersex", "intersex"),
    ],
)  # fmt: skip
def test_sex_under_its_names(column: str, value: str, sex: str | None, tmp_path: Path) -> None:
    assert _read(tmp_path, f"patient\tdays\tevent\t{column}\nP1\t5\t1\t{value}\n").outcomes["P1"].sex == sex


def test_codes_of_sex_are_never_guessed(tmp_path: Path) -> None:
    text = "patient\tdays\tevent\tsex\nP1\t5\t1\t0\nP2\t5\t1\t1\n"
    table = _read(tmp_path, text)
    assert [o.sex for o in table.outcomes.values()] == [None, None]
    assert "column 'sex' holds 0, 1 and does not say which is which: sex is left out" in table.notes[-1]
    assert "left out" in table.outcomes["P1"].note
    stated = _read(tmp_path, text, mapping={"sex_values": {"0": "female", "1": "male"}})
    assert [o.sex for o in stated.outcomes.values()] == ["female", "male"]


@pytest.mark.parametrize(
    ("text", "age", "note"),
    [
        ("61.5", 61.5, ""), (">89", 89, "bound"), ("90+", 90, "bound"), ("≥ 90", 90, "bound"), ("over 89", 89, "bound"),
        ("old", None, "no age in years"), ("21915", None, "no age in years"), ("null", None, ""),
        ("-4", None, "no age"),
    ],
)  # fmt: skip
def test_an_age_that_cannot_be_read_refuses_no_table(text: str, age: float | None, note: str, tmp_path: Path) -> None:
    outcome = _read(tmp_path, f"patient\tdays\tevent\tage\nP1\t5\t1\t{text}\n").outcomes["P1"]
    assert (outcome.time, outcome.event, outcome.age) == (5, 1, age)
    assert note in outcome.note
    assert bool(note) == bool(outcome.note)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient\tOS time\tOS.time\tevent\nP1\t1\t2\t1\n", "columns 'OS time' and 'OS.time' could both be meant"),
        ("patient\tdays\tevent\nP1\t5\t0.5\n", "patient P1: event '0.5' is neither"),
        ("patient\tdays\tevent\nP1\t5\t1:LIVING\n", "patient P1: event '1:LIVING' is neither"),
        ("patient\tvital_status\tdays_to_death\nP1\tDead\t5\n", "without days to the last follow-up"),
        (
            "patient\tdays\tevent\tslide\nP1\t5\t1\ta\nP1\t6\t1\tb\n",
            "P1 comes twice with different outcomes \\(survival time 5 and 6\\)",
        ),
        ("patient\tdays\tevent\nP1\t5\t1\nP1\t5\t0\n", "P1 comes twice with different outcomes \\(event 1 and 0\\)"),
        ("patient;days;event\nP1;5;1\n", "not a readable table: its cells are separated by semicolons"),
    ],
)
def test_what_cannot_be_decided_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ClinicalError, match=message) as caught:
        _read(tmp_path, text)
    assert "clinical.tsv" in str(caught.value)


def test_one_row_per_slide(tmp_path: Path) -> None:
    table = _read(
        tmp_path, "patient\tdays\tevent\tslide\tage\nP1\t5\t1\ta.svs\t\nP1\t5\t1\tb.svs\t60\nP2\t6\t0\tNA\t61\n"
    )
    assert table.slides == {"P1": ["a.svs", "b.svs"], "P2": []}
    assert table.outcomes["P1"].age == 60
    assert _read(tmp_path, "patient\tdays\tevent\nP1\t5\t1\n").slides == {}
    with pytest.raises(ClinicalError, match=r"P1 comes twice with slide 'a\.svs'"):
        _read(tmp_path, "patient\tdays\tevent\tslide\nP1\t5\t1\ta.svs\nP1\t5\t1\ta.svs\n")
    odd = _read(tmp_path, "patient\tdays\tevent\tslide\tage\nP1\t5\t1\ta.svs\t59\nP1\t5\t1\tb.svs\t60\n")
    assert odd.outcomes["P1"].note == "rows of this patient disagree (age 59, 60); the first is kept"
