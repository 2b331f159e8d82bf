"""Times that cannot be in their unit, and numbers that stand for "unknown"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmae.cohort.clinical import ClinicalError, ClinicalTable, read_clinical
from hcmae.cohort.follow_up import marks

MONTH = 30.4375


def read(folder: Path, column: str, times: list[Any], mapping: dict[str, Any] | None = None) -> ClinicalTable:
    rows = [f"P{number}\t{time}\t{number % 2}" for number, time in enumerate(times)]
    (folder / "clinical.tsv").write_text("\n".join([f"patient\t{column}\tevent", *rows]) + "\n")
    return read_clinical(folder / "clinical.tsv", mapping)


DAYS = [120 + 67 * number for number in range(20)]


@pytest.mark.parametrize(
    ("column", "times", "message"),
    [
        ("months", DAYS, r"column 'months' is taken in months.*half of the 20 patients.*790 months, 66 years"),
        ("OS_MONTHS", [200, 300, 400], "half of the 3 patients would be followed for 300 months, 25 years"),
        ("years", [12, 25, 40, 33, 28, 51], "half of the 6 patients would be followed for 33 years, 33 years"),
        ("time_days", [7400, 8000, 9000], "8000 days, 22 years"),
    ],
)
def test_a_unit_in_which_half_are_followed_for_twenty_years_is_refused(
    column: str, times: list[float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ClinicalError, match=rf"{message}.*state the unit in columns\.json"):
        read(tmp_path, column, times)
    # Who states the unit is believed, and told.
    unit = {"months": "months", "OS_MONTHS": "months", "years": "years", "time_days": "days"}[column]
    stated = read(tmp_path, column, times, {"time_unit": unit})
    assert "see if the unit is right" in stated.doubts[0]
    assert stated.outcomes["P0"].time == times[0] * {"days": 1, "months": MONTH, "years": 365.25}[unit]


@pytest.mark.parametrize(
    ("column", "times", "doubt"),
    [
        ("time_days", [2 + 5 * n for n in range(20)], "the longest follow-up of 20 patients would be 97 days.*P19"),
        ("months", [n / 2 for n in range(1, 21)], "10 months, less than a year"),
        ("years", [n / 30 for n in range(1, 21)], "0.666667 years, less than a year"),
    ],
)
def test_a_cohort_that_nobody_watches_for_a_year_is_a_doubt(
    column: str, times: list[float], doubt: str, tmp_path: Path
) -> None:
    table = read(tmp_path, column, times)
    assert len(table.doubts) == 1
    with pytest.raises(AssertionError, match=doubt):
        raise AssertionError(table.doubts[0])
    assert read(tmp_path, column, times[:5]).doubts == []


def test_days_to_death_and_to_the_last_visit_are_looked_at_together(tmp_path: Path) -> None:
    rows = [f"P{n}\tDead\t{5 + n}\tNA" if n % 2 else f"P{n}\tAlive\tNA\t{20 + n}" for n in range(12)]
    text = "\n".join(["patient\tvital_status\tdays_to_death\tdays_to_last_follow_up", *rows]) + "\n"
    (tmp_path / "clinical.tsv").write_text(text)
    assert (
        "column 'days_to_death' and 'days_to_last_follow_up' is taken in days"
        in read_clinical(tmp_path / "clinical.tsv").doubts[0]
    )
    (tmp_path / "clinical.tsv").write_text(text.replace("\t5\tNA", "\t9999\tNA").replace("\t6\tNA", "\t9999\tNA"))
    table = read_clinical(tmp_path / "clinical.tsv")
    assert (table.outcomes["P1"].time, table.outcomes["P1"].reason) == (None, "dead, but the day of death is missing")
    assert "column 'days_to_death' is 9999 for P1, taken for a mark of 'unknown'" in table.doubts[0]


@pytest.mark.parametrize(
    ("column", "times", "mark", "patients"),
    [
        ("months", [3, 14, 22.5, 60, 9999], 9999, ["P4"]),
        ("months", [3, 14, 22.5, 60, 999], 999, ["P4"]),
        ("time_days", [*DAYS, 9999], 9999, ["P20"]),
        ("time_days", [*DAYS, 99999], 99999, ["P20"]),
        ("time_days", [300, 200, 400, 800, 999, 999, 999], 999, ["P4", "P5", "P6"]),
        ("time_days", [300, 200, 400, -1], -1, ["P3"]),
        ("time_days", [300, -999, 400, -999], -999, ["P1", "P3"]),
        ("time_days", [*DAYS, 40000], 40000, ["P20"]),
        ("time", [*DAYS, 8888, 8888, 8888], 8888, ["P20", "P21", "P22"]),
    ],
)
def test_a_mark_for_unknown_is_no_follow_up_and_is_said(
    column: str, times: list[float], mark: float, patients: list[str], tmp_path: Path
) -> None:
    table = read(tmp_path, column, times)
    assert [p for p, outcome in table.outcomes.items() if outcome.time is None] == patients
    assert f"column '{column}' is {mark:g} for {', '.join(patients)}, taken for a mark" in table.doubts[0]
    assert all(
        outcome.reason == "the survival time is missing" for p, outcome in table.outcomes.items() if p in patients
    )


def test_a_mark_does_not_decide_the_unit(tmp_path: Path) -> None:
    months = [n * 1.7 for n in range(1, 30)]
    for mark in (999, 9999, 99999):
        with pytest.raises(ClinicalError, match=r"the unit of column 'time' is unclear.*the longest time is 49.3"):
            read(tmp_path, "time", [*months, mark])


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([99, 45, 60, 12], "months"), ([999, 800, 1200, 30], "days"), ([999, 999, 2400, 30], "days"),
        # Everybody alive is seen at the end of the study.
        ([60, 60, 60, 60, 3, 5, 7, 2, 9, 11], "months"), ([1825] * 9 + [100, 200, 300], "days"),
        ([3000, 400, 200], "days"), ([-4, 100, 200], "days"), ([0, 0, 999], "days"), ([999], "days"), ([], "days"),
        ([5] * 12, "days"),
    ],
)  # fmt: skip
def test_times_that_could_be_true_are_no_marks(times: list[float], unit: str) -> None:
    assert marks({str(number): time for number, time in enumerate(times)}, unit) == []


@given(
    st.lists(st.floats(1, 3000).map(lambda value: round(value, 1)), min_size=3, max_size=40),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_what_is_no_mark_is_kept_with_one_beside_it(times: list[float], often: int) -> None:
    def named(values: list[float]) -> dict[str, float]:
        return {str(number): value for number, value in enumerate(values)}

    found = marks(named([*times, *[99999.0] * often]), "days")
    assert 99999.0 in found
    assert set(found) - {99999.0} == set(marks(named(times), "days"))


# --- weeks and dates --------------------------------------------------------------------------------------------------

WEEKS = [20 + 29 * number for number in range(20)]


@pytest.mark.parametrize(
    ("column", "mapping"),
    [
        ("weeks", None), ("OS_weeks", None), ("time_weeks", None), ("follow-up (weeks)", None), ("t", {"weeks": "t"}),
        ("t", {"time": "t", "time_unit": "weeks"}), ("time", {"time_unit": "weeks"}), ("fu_wk", {"time": "fu_wk"}),
        ("weeks seen", {"time": "weeks seen"}),
    ],
)  # fmt: skip
def test_weeks_are_weeks(column: str, mapping: dict[str, Any] | None, tmp_path: Path) -> None:
    table = read(tmp_path, column, WEEKS, mapping)
    assert [table.outcomes[f"P{number}"].time for number in range(20)] == [7 * time for time in WEEKS]
    assert table.doubts == []


def test_a_name_without_a_unit_that_could_be_weeks_is_a_doubt(tmp_path: Path) -> None:
    table = read(tmp_path, "time", WEEKS)
    assert table.outcomes["P0"].time == 20
    with pytest.raises(AssertionError, match=r"1\.6 years \(patient P19: 571; in weeks 11 years\); name"):
        raise AssertionError(table.doubts[0])
    for column, times, mapping in (
        ("time", DAYS[:9], None),
        ("time", [*DAYS, 1800], None),
        ("time_days", WEEKS, None),
        ("time", WEEKS, {"time_unit": "days"}),
    ):
        assert read(tmp_path, column, times, mapping).doubts == []


def test_a_name_that_says_another_unit_than_is_stated_is_a_doubt(tmp_path: Path) -> None:
    table = read(tmp_path, "OS_MONTHS", WEEKS, {"weeks": "OS_MONTHS"})
    assert table.outcomes["P0"].time == 140
    assert table.doubts[0].endswith(
        "taken in weeks (stated in columns.json), and its name says months; see which is right"
    )


def test_dates_as_a_spreadsheet_counts_them_are_no_follow_up(tmp_path: Path) -> None:
    with pytest.raises(ClinicalError, match=r"writes for the dates 2014-02-11 to 2017-08-07: these are dates and no"):
        read(tmp_path, "time_days", [41561 + day for day in DAYS])
    with pytest.raises(ClinicalError, match=r"'2019-03-01', expected a number; give the days from the "):
        read(tmp_path, "time_days", ["2019-03-01", *DAYS])
    with pytest.raises(ClinicalError, match=r"'120,5', expected a number; write numbers with a point for decimals"):
        read(tmp_path, "time_days", ["120,5", *DAYS])
