"""Columns of one table that say the same thing are compared: nothing is resolved in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hcmae.cohort.clinical import ClinicalError, ClinicalTable, read_clinical, read_clinical_table
from hcmae.cohort.curate import apply_rules, curate
from hcmae.cohort.evidence import Evidence
from hcmae.manifest import Inclusion, load_manifest
from hcmae.tables import TableDoubt


def read(folder: Path, header: str, rows: list[str], mapping: dict[str, Any] | None = None) -> ClinicalTable:
    lines = [header, *(f"P{number}\t{row}" for number, row in enumerate(rows))]
    (folder / "clinical.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_clinical(folder / "clinical.tsv", mapping)


# What counts first, the other column; cells that agree; cells that do not.
OUTCOMES = {
    "event and vital status": ("time_days\tevent\tvital_status", "400\t{}", ["1\tDead", "0\tAlive"], ["1\tAlive"]),
    "event and censored": ("time_days\tevent\tcensored", "400\t{}", ["1\t0", "0\t1"], ["0\t0", "1\tyes"]),
    "event and its code": (
        "time_days\tevent\tOS_STATUS", "400\t{}", ["1\t1:DECEASED", "0\t0:LIVING"], ["0\t1:DECEASED"],
    ),
    "event and a day of death": ("time_days\tevent\tdays_to_death", "400\t{}", ["1\t400", "0\tNA", "1\t"], ["0\t400"]),
    "days and months": (
        "time_days\tevent\tOS_MONTHS", "{}", ["400\t1\t13.14", "1000\t0\t32.9"], ["400\t1\t14", "9\t1\t9"],
    ),
    "days and whole months": ("time_days\tevent\tmonths", "{}", ["400\t1\t13", "745\t0\t24"], ["400\t1\t15"]),
    "days and years": ("time_days\tevent\tyears", "{}", ["400\t1\t1.1", "745\t0\t2.0"], ["400\t1\t1.3"]),
    "days and no unit": ("time_days\tevent\tOS.time", "{}", ["400\t1\t400", "745\t0\t745"], ["400\t1\t401"]),
    "days and days to death": (
        "time_days\tevent\tdays_to_death\tdays_to_last_follow_up", "{}",
        ["400\t1\t400\t300", "745\t0\tNA\t745"], ["400\t1\t410\t300", "700\t0\tNA\t745"],
    ),
    "two columns of days": ("time_days\tevent\tOS_days", "{}", ["400\t1\t400"], ["400\t1\t401"]),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTCOMES)
def test_outcomes_that_agree_are_said_to(case: str, tmp_path: Path) -> None:
    header, form, same, _ = OUTCOMES[case]
    table = read(tmp_path, f"patient\t{header}", [form.format(row) for row in same])
    assert not any(outcome.contradiction for outcome in table.outcomes.values())
    columns = header.split("\t")
    assert any("says the same of all who have both" in note and f"'{columns[2]}'" in note for note in table.notes)


@pytest.mark.parametrize("case", OUTCOMES)
def test_outcomes_that_disagree_are_left_out_by_a_named_rule(case: str, tmp_path: Path) -> None:
    header, form, same, other = OUTCOMES[case]
    rows = [form.format(row) for row in (same * 4)[:4] + other]
    table = read(tmp_path, f"patient\t{header}", rows)
    odd = [f"P{number}" for number in range(4, len(rows))]
    assert [p for p, outcome in table.outcomes.items() if outcome.contradiction] == odd
    cohort = apply_rules(Evidence(table.outcomes, {}), Inclusion(), seed=0, modalities=(), slides=False)
    assert cohort.exclusions[["patient", "rule"]].values.tolist() == [[patient, "columns agree"] for patient in odd]
    assert all("disagree ('" in reason for reason in cohort.exclusions["reason"])
    assert any("disagree on the" in line and f"({odd[0]}: " in line for line in table.doubts)
    with pytest.warns(TableDoubt, match="disagree on the"):
        read_clinical_table(tmp_path / "clinical.tsv")


def test_a_rule_that_nothing_asks_for_is_not_in_the_flow(tmp_path: Path) -> None:
    table = read(tmp_path, "patient\ttime_days\tevent\tvital_status", ["400\t1\tDead", "500\t0\tAlive"])
    cohort = apply_rules(Evidence(table.outcomes, {}), Inclusion(), seed=0, modalities=(), slides=False)
    assert "columns agree" not in set(cohort.flow["rule"])


def test_where_most_disagree_the_table_is_refused(tmp_path: Path) -> None:
    # Months under a name for days, beside true months.
    rows = [f"{number}\t1\t{number}" for number in range(12, 40)]
    with pytest.raises(
        ClinicalError, match=r"'time_days' and 'OS_MONTHS' disagree on the survival time of 28 patients \(P0"
    ):
        read(tmp_path, "patient\ttime_days\tevent\tOS_MONTHS", rows)


def test_what_columns_json_names_is_not_compared(tmp_path: Path) -> None:
    rows = ["400\t1\tAlive", "500\t0\tAlive"]
    table = read(tmp_path, "patient\ttime_days\tevent\tvital_status", rows, {"event": "event"})
    assert [outcome.event for outcome in table.outcomes.values()] == [1, 0]
    assert table.doubts == []


def test_a_last_visit_before_the_death_contradicts_nothing(tmp_path: Path) -> None:
    header = "patient\tOS_days\tevent\tfollow_up_days"
    table = read(tmp_path, header, ["400\t1\t300", "500\t0\t500", "600\t1\t600"])
    assert table.doubts == []
    assert "disagree" in read(tmp_path, header, ["400\t1\t300", "500\t0\t490", "600\t0\t600"]).doubts[0]


def test_a_stated_unit_does_not_excuse_two_times(tmp_path: Path) -> None:
    rows = ["400\t1\t13.1", "500\t0\t16.4", "700\t0\t40"]
    table = read(tmp_path, "patient\tOS.time\tevent\tOS_MONTHS", rows, {"time_unit": "days"})
    assert [outcome.time for outcome in table.outcomes.values()] == [400, 500, None]


def test_an_unreadable_second_column_contradicts_nothing(tmp_path: Path) -> None:
    table = read(tmp_path, "patient\ttime_days\tevent\tstatus", ["400\t1\tApproved", "500\t0\tWith tumour"])
    assert [outcome.event for outcome in table.outcomes.values()] == [1, 0]
    assert (table.doubts, table.notes) == ([], [])


COVARIATES = {
    "sex": ("sex\tis_female", ["male\t0", "female\t1", "\t1"], "male\t1"),
    "gender and sex at birth": ("sex_at_birth\tgender", ["male\tM", "female\tF"], "male\tFemale"),
    "age": ("age\tage_at_index", ["60\t60", "60.4\t61", "61\t"], "60\t70"),
    "age in days": ("age\tage_at_diagnosis", ["60\t21915", "60\t22000"], "60\t29000"),
    "stage": ("stage\tajcc_pathologic_stage", ["2\tStage IIB", "IV\tStage IV", "III\tStage X"], "2\tStage III"),
    "grade": ("grade\ttumor_grade", ["2\tG2", "Grade 3\tG3"], "1\tG3"),
}


@pytest.mark.parametrize("case", COVARIATES)
def test_covariates_that_disagree_are_left_out_and_listed(case: str, tmp_path: Path) -> None:
    header, same, other = COVARIATES[case]
    table = read(tmp_path, f"patient\ttime_days\tevent\t{header}", [f"400\t1\t{row}" for row in [*same, other]])
    what = {"gender and sex at birth": "sex", "age in days": "age"}.get(case, case)
    *agreeing, odd = table.outcomes.values()
    assert getattr(odd, what) is None
    assert f"{what} left out: columns '" in odd.note
    assert (odd.time, odd.event, odd.contradiction) == (400, 1, "")
    assert all(getattr(outcome, what) is not None for outcome in agreeing if outcome.patient != "P2")
    assert any(f"disagree on the {what} of 1 patient (P{len(same)}: " in line for line in table.doubts)
    alone = read(tmp_path, f"patient\ttime_days\tevent\t{header}", [f"400\t1\t{row}" for row in same])
    assert alone.doubts == []
    assert any(f"{what} from column '" in note and "says the same" in note for note in alone.notes)


def test_words_keep_their_meaning_in_a_column_of_either_kind(tmp_path: Path) -> None:
    table = read(tmp_path, "patient\ttime_days\tcensored", ["400\tdead", "500\tAlive", "600\t1", "700\tno"])
    assert [outcome.event for outcome in table.outcomes.values()] == [1, 0, 0, 1]


def test_the_rule_holds_on_the_whole_road(tmp_path: Path) -> None:
    root = tmp_path / "LIHC"
    root.mkdir()
    read(root, "patient\ttime_days\tevent\tvital_status", [f"{400 + n}\t1\tDead" for n in range(6)] + ["400\t0\tDead"])
    rows = [f"P{number}\t{number}\t{2 * number}" for number in range(7)]
    (root / "rna.tsv").write_text("\n".join(["patient\tG1\tG2", *rows]) + "\n")
    with pytest.warns(TableDoubt, match="disagree on the event of 1 patient"):
        cohort = curate(load_manifest("LIHC"), "local", root, seed=0, modalities=("rna",), slides=False)
    assert cohort.exclusions[["patient", "rule"]].values.tolist() == [["P6", "columns agree"]]
