"""Barcodes and clinical records: every rule by name, properties over generated input, documented errors only."""

from __future__ import annotations

import json
import math
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmae.cohort.barcodes import (
    Barcode,
    BarcodeError,
    choose_aliquot,
    parse,
    parse_slide_name,
    patient_id,
)
from hcmae.cohort.cells import stage_number
from hcmae.cohort.clinical import (
    ClinicalError,
    parse_clinical_json,
    primary_diagnosis,
    read_clinical,
    read_clinical_json,
    read_clinical_table,
    read_hits,
    read_outcome,
)

UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALNUM = UPPER + "0123456789"


@st.composite
def barcodes(draw: st.DrawFn) -> Barcode:
    def text(alphabet: str, n: int) -> str:
        return draw(st.text(alphabet, min_size=n, max_size=n))

    made: dict[str, Any] = {"site": text(ALNUM, 2), "participant": text(ALNUM, 4)}
    depth = draw(st.integers(0, 5))
    if depth >= 1:
        made["sample_type"] = text("0123456789", 2)
        made["vial"] = draw(st.none() | st.sampled_from(UPPER)) if depth == 1 else text(UPPER, 1)
    if depth >= 2:
        made["portion"] = text("0123456789", 2)
        if draw(st.booleans()):
            made["slide_kind"] = draw(st.sampled_from(["DX", "TS", "BS", "MS"]))
            made["slide_number"] = draw(st.sampled_from(["1", "17", "A", "F", "10"]))
            return Barcode(**made)
    if depth >= 3:
        made["analyte"] = text(UPPER, 1)
    if depth >= 4:
        made["plate"] = text(ALNUM, 4)
    if depth >= 5:
        made["centre"] = text("0123456789", 2)
    return Barcode(**made)


@given(barcodes())
@settings(max_examples=150, deadline=None)
def test_a_barcode_survives_being_written_and_read(code: Barcode) -> None:
    text = str(code)
    assert parse(text) == code
    assert parse(f" {text.lower()}\n") == code
    assert patient_id(text) == code.patient == text[:12]
    assert code.is_tumour == (code.sample_type is not None and 1 <= int(code.sample_type) <= 9)


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_other_text_is_refused_with_the_documented_error(text: str) -> None:
    for read in (parse, parse_slide_name):
        with suppress(BarcodeError):
            assert str(read(text)) in text.upper()
    assert patient_id(text) == text.strip() or patient_id(text).startswith("TCGA-")


def test_ten_thousand_damaged_barcodes() -> None:
    rng = random.Random(3)
    refused = 0
    for _ in range(10_000):
        letters = list("TCGA-A4-8098-01Z-00-DX1.0E030BAC.svs")
        for _ in range(rng.randint(1, 4)):
            position = rng.randrange(len(letters))
            if rng.random() < 0.5:
                letters.pop(position)
            else:
                letters.insert(position, chr(rng.randrange(1, 300)))
        try:
            parse_slide_name("".join(letters))
        except BarcodeError:
            refused += 1
    assert refused > 5000


@pytest.mark.parametrize(
    ("name", "kind", "number", "sample_type"),
    [
        ("TCGA-A4-8098-01Z-00-DX1.0aa2d0a4-1a2b-4c3d-8e9f-001122334455.svs", "DX", "1", "01"),
        ("TCGA-A4-8098-01A-01-TS1.0AA2D0A4.svs", "TS", "1", "01"),
        ("TCGA-BH-A0EA-01A-01-MSA.svs", "MS", "A", "01"),
        ("TCGA-E2-A1B0-06Z-00-DX1.x.svs", "DX", "1", "06"),
        ("TCGA-DU-6404-02Z-00-DX17.x.svs", "DX", "17", "02"),
        ("TCGA-HT-7483-01Z-00-DXF.x.svs", "DX", "F", "01"),
        ("TCGA-A7-A0DA-01A-02-DX2.x.svs", "DX", "2", "01"),
        ("tcga-cr-7395-01a-01-ts1.svs", "TS", "1", "01"),
    ],
)
def test_slide_names_met_in_practice(name: str, kind: str, number: str, sample_type: str) -> None:
    code = parse_slide_name(name)
    assert (code.slide_kind, code.slide_number, code.sample_type) == (kind, number, sample_type)


def test_a_protein_portion_has_no_analyte() -> None:
    code = parse("TCGA-BH-A0EA-01A-21-A13C-20")
    assert (code.portion, code.analyte, code.plate, code.centre) == ("21", None, "A13C", "20")


@pytest.mark.parametrize(
    ("analyte", "offered", "kept"),
    [
        ("RNA", ["TCGA-AA-0001-01A-11T-A100-13", "TCGA-AA-0001-01A-11R-A000-13"], 1),  # T yields to R
        ("RNA", ["TCGA-AA-0001-01A-11H-A000-13", "TCGA-AA-0001-01A-11R-A900-13"], 0),  # H before R
        ("RNA", ["TCGA-AA-0001-01A-11R-A100-07", "TCGA-AA-0001-01A-11R-A200-07"], 1),  # later plate
        ("RNA", ["TCGA-AA-0001-01A-11R-A100-07", "TCGA-AA-0001-01B-11R-A200-07"], 0),  # vial A before B
        ("DNA", ["TCGA-AA-0001-01A-11D-A100-05", "TCGA-AA-0001-01A-11W-A100-05"], 0),  # native DNA
        ("DNA", ["TCGA-AA-0001-01A-11D-A100-05", "TCGA-AA-0001-01A-11G-A200-05"], 1),  # unless a later plate
        ("DNA", ["TCGA-AA-0001-01A-11D-A100-05", "TCGA-AA-0001-01A-12D-A100-05"], 1),  # highest barcode
    ],
)
def test_aliquot_rules(analyte: str, offered: list[str], kept: int) -> None:
    assert choose_aliquot(offered, analyte) == offered[kept]
    assert choose_aliquot(reversed(offered), analyte) == offered[kept]


def test_aliquot_rules_refuse() -> None:
    for offered, analyte in (([], "RNA"), (["nonsense"], "RNA"), (["TCGA-AA-0001-01A"], "protein")):
        with pytest.raises(BarcodeError):
            choose_aliquot(offered, analyte)


# ---------------------------------------------------------------- records


def _hit(status: str | None = "Alive", death: Any = None, diagnoses: Any = (), follow_ups: Any = ()) -> dict[str, Any]:
    hit: dict[str, Any] = {"submitter_id": "TCGA-AA-0001", "demographic": {}}
    if status is not None:
        hit["demographic"]["vital_status"] = status
    if death is not None:
        hit["demographic"]["days_to_death"] = death
    hit["diagnoses"] = [{"days_to_last_follow_up": d} for d in diagnoses]
    hit["follow_ups"] = [{"days_to_follow_up": d} for d in follow_ups]
    return hit


@pytest.mark.parametrize(
    ("hit", "time", "event", "reason"),
    [
        (_hit(diagnoses=[100]), 100, 0, ""),  # before DR42, and since DR43
        (_hit(follow_ups=[50, 300, 120]), 300, 0, ""),  # DR42
        (_hit(diagnoses=[400], follow_ups=[50, 300]), 400, 0, ""),  # both
        (_hit(diagnoses=[None], follow_ups=[None, 7]), 7, 0, ""),
        (_hit("Dead", 512, diagnoses=[100]), 512, 1, ""),
        (_hit("dead", 512), 512, 1, ""),
        (_hit("Dead", diagnoses=[100]), None, 1, "day of death is missing"),
        (_hit("Alive"), None, 0, "no day of follow-up"),
        (_hit("Alive", follow_ups=[-7]), None, 0, "before the diagnosis"),
        (_hit("Dead", -3), None, 1, "before the diagnosis"),
        (_hit("Not Reported", diagnoses=[100]), None, None, "vital status is 'Not Reported'"),
        (_hit("Unknown"), None, None, "vital status is 'Unknown'"),
        (_hit(None), None, None, "vital status is 'missing'"),
        ({"submitter_id": "TCGA-AA-0001"}, None, None, "missing"),
        ({"submitter_id": "TCGA-AA-0001", "demographic": None, "diagnoses": None, "follow_ups": None}, None, None, ""),
    ],
)
def test_outcome_rules(hit: dict[str, Any], time: float | None, event: int | None, reason: str) -> None:
    outcome = read_outcome(hit)
    assert (outcome.time, outcome.event) == (time, event)
    assert reason in outcome.reason
    assert bool(outcome.reason) == (time is None)


def test_contradictions_are_noted() -> None:
    alive = read_outcome(_hit("Alive", 90, follow_ups=[100]))
    assert (alive.time, alive.event) == (100, 0)
    assert "yet with a day of death" in alive.note
    dead = read_outcome(_hit("Dead", 90, follow_ups=[100]))
    assert (dead.time, dead.event) == (90, 1)
    assert "after the day of death" in dead.note


def test_primary_diagnosis_and_covariates() -> None:
    metastasis = {
        "diagnosis_is_primary_disease": False,
        "ajcc_pathologic_stage": "Stage IV",
        "age_at_diagnosis": 20_000,
    }
    primary = {"diagnosis_is_primary_disease": True, "ajcc_pathologic_stage": "Stage II", "age_at_diagnosis": 21_915}
    classified = {"classification_of_tumor": "primary", "ajcc_pathologic_stage": "Stage I"}
    prior = {"classification_of_tumor": "Prior primary", "ajcc_pathologic_stage": "Stage III"}
    assert primary_diagnosis([metastasis, primary]) is primary
    assert primary_diagnosis([prior, classified]) is classified
    assert primary_diagnosis([prior, {"age_at_diagnosis": 5}]) == {"age_at_diagnosis": 5}
    assert primary_diagnosis([prior, metastasis]) == {}
    outcome = read_outcome({**_hit(), "diagnoses": [metastasis, primary]})
    assert (outcome.age, outcome.stage) == (60.0, "Stage II")
    old = read_outcome({**_hit(), "demographic": {"gender": "FEMALE", "age_at_index": 44}})
    assert (old.sex, old.age) == ("female", 44)
    new = read_outcome({**_hit(), "demographic": {"gender": "male", "sex_at_birth": "female"}})
    assert new.sex == "female"
    assert read_outcome({**_hit(), "diagnoses": [{"ajcc_pathologic_stage": "Not Reported"}]}).stage is None


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        *[("Stage I", 1), ("Stage IIIC1", 3), ("stage iva", 4), ("IIB", 2), ("Stage 0", 0), ("2", 2), ("3.0", 3)],
        *[("Stage X", None), (None, None), ("5", None), ("Stage IS", None), ("nan", None), ("Stage I/II NOS", None)],
        *[
            ("Indeterminate", None),
            ("[Discrepancy]", None),
            ("3A", 3),
            ("Stage IA3", 1),
            ("Stage Tis", None),
            ("0.0", 0),
        ],
    ],
)
def test_stage_number(stage: str | None, number: float | None) -> None:
    assert stage_number(stage) == number or (number is None and math.isnan(stage_number(stage)))


DAYS = st.none() | st.integers(-400, 9000)


@given(
    st.sampled_from(["Alive", "Dead", "Not Reported", None]),
    DAYS,
    st.lists(DAYS, max_size=4),
    st.lists(DAYS, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_outcome_properties(status: str | None, death: int | None, a: list[int | None], b: list[int | None]) -> None:
    outcome = read_outcome(_hit(status, death, a, b))
    assert outcome.event in (0, 1, None)
    assert (outcome.event is None) == (status in ("Not Reported", None))
    # A time is never invented and never negative; without one there is always a reason.
    if outcome.time is None:
        assert outcome.reason
    else:
        assert outcome.time >= 0
        assert outcome.time in ([death] if status == "Dead" else [*a, *b])
    if status == "Alive" and any(d is not None and d >= 0 for d in [*a, *b]):
        assert outcome.time == max(d for d in [*a, *b] if d is not None)
    # The order of visits does not matter.
    turned = read_outcome(_hit(status, death, a[::-1], b[::-1]))
    assert (turned.time, turned.event) == (outcome.time, outcome.event)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["submitter_id", "demographic", "diagnoses", "follow_ups", "vital_status", "days_to_death",
             "days_to_follow_up", "days_to_last_follow_up", "age_at_index", "ajcc_pathologic_stage"]
        ),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JUNK)
@settings(max_examples=150, deadline=None)
def test_junk_records_give_the_documented_error_only(junk: Any) -> None:
    for value in (junk, [junk], [{"submitter_id": "TCGA-AA-0001", "demographic": junk, "diagnoses": [junk]}]):
        with suppress(ClinicalError):
            assert all(name.strip() for name in read_hits(value))


def test_ten_thousand_damaged_records() -> None:
    rng = random.Random(1)
    text = json.dumps([_hit("Dead", 512, [100], [50, 60])])
    messages = []
    for _ in range(10_000):
        letters = list(text)
        for _ in range(rng.randint(1, 6)):
            letters[rng.randrange(len(letters))] = chr(rng.choice([rng.randrange(32, 127), 0, 10, 0xE9, 0x2028]))
        try:
            parse_clinical_json("".join(letters).encode(), "clinical.json")
        except ClinicalError as error:
            messages.append(str(error))
    assert 5000 < len(messages) < 10_000
    assert all(message.startswith("clinical.json: ") for message in messages)


def test_a_clinical_json_with_a_mistake_is_named_by_its_place_and_one_with_a_mark_is_read() -> None:
    text = json.dumps([_hit("Dead", 512)])
    assert parse_clinical_json(b"\xef\xbb\xbf" + text.encode(), "clinical.json")["TCGA-AA-0001"].time == 512
    with pytest.raises(
        ClinicalError, match=rf"line 1, column {len(text) + 1}: .*a comma behind the last entry"
    ) as told:
        parse_clinical_json(f"{text[:-1]},]".encode(), "clinical.json")
    assert "delete" not in str(told.value)


def test_clinical_json_that_is_missing_or_doubled(tmp_path: Path) -> None:
    with pytest.raises(ClinicalError, match="is missing"):
        read_clinical_json(tmp_path / "clinical.json")
    with pytest.raises(ClinicalError, match="two clinical records"):
        read_hits([_hit(), _hit()])
    assert list(read_hits({"data": {"hits": [_hit()]}})) == ["TCGA-AA-0001"]


# ---------------------------------------------------------------- a user's table


def _table(tmp_path: Path, text: str, name: str = "clinical.tsv") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_tables_of_many_makers(tmp_path: Path) -> None:
    cases = {
        "patient\ttime_days\tevent\nP1\t100\t1\n": (100.0, 1),
        "case_id\tslide_id\tmonths\tevent\nP1\ts.svs\t2\t0\n": (2 * 30.4375, 0),
        "Patient ID\tOS.time\tOS\nP1\t100\t1.0\n": (100.0, 1),
        "PATIENT_ID\tOS_MONTHS\tOS_STATUS\nP1\t1\t1:DECEASED\n": (30.4375, 1),
        "submitter_id\tdays\tvital_status\nP1\t5\tAlive\n": (5.0, 0),
        "patient\tmonths\tcensorship\nP1\t1\t1\n": (30.4375, 0),
        "patient\tdays\tevent\nP1\tNA\t1\n": (None, 1),
        "patient\tdays\tevent\nP1\t4\t\n": (4.0, None),
        "patient\tdays\tevent\nP1\t-4\t1\n": (None, 1),
    }
    for text, expected in cases.items():
        outcomes, _ = read_clinical_table(_table(tmp_path, text))
        assert (outcomes["P1"].time, outcomes["P1"].event) == expected, text
    csv = _table(tmp_path, "patient,days,event,is_female,age\nTCGA-AA-0001-01A,9,0,1.0,61.5\n", "clinical.csv")
    outcome = read_clinical_table(csv)[0]["TCGA-AA-0001"]
    assert (outcome.sex, outcome.age) == ("female", 61.5)
    odd = _table(tmp_path, "who\twhen\twhat\nP1\t3\tdead\n")
    named = {"patient": "who", "time_days": "when", "event": "what"}
    assert read_clinical_table(odd, named)[0]["P1"].event == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nx\ty\n", "no patient column"),
        ("patient\tevent\nP1\t1\n", "no survival time"),
        ("patient\tdays\nP1\t1\n", "no event"),
        ("patient\tdays\tevent\nP1\t1\t2\n", "patient P1: event '2'"),
        ("patient\tdays\tevent\nP1\tlong\t1\n", "patient P1.*column days"),
        ("patient\tdays\tevent\nP1\tinf\t1\n", "finite"),
        ("patient\tdays\tevent\nP1\t1\t1\nP1\t2\t0\n", "comes twice"),
        ("patient\tdays\tevent\n\t1\t1\n", "without patient"),
        ("", "not a readable table"),
        ("patient\tdays\tevent\nP1\t1\t1\t1\t1\n", "row 2 has 5 cells"),
    ],
)
def test_tables_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ClinicalError, match=message) as caught:
        read_clinical_table(_table(tmp_path, text))
    assert "clinical.tsv" in str(caught.value)


def test_a_mapping_to_a_missing_column(tmp_path: Path) -> None:
    path = _table(tmp_path, "patient\tdays\tevent\nP1\t1\t1\n")
    with pytest.raises(ClinicalError, match=r"columns\.json says patient = 'who'"):
        read_clinical_table(path, {"patient": "who"})


@pytest.mark.slow
def test_ten_thousand_damaged_tables(tmp_path: Path) -> None:
    rng = random.Random(5)
    lines = ["patient\tdays\tevent\tage"] + [f"P{i}\t{30 + i}\t{i % 2}\t{40 + i}" for i in range(6)]
    path = tmp_path / "clinical.tsv"
    refused = 0
    for _ in range(1500):
        damaged = list(lines)
        for _ in range(7):  # seven malformed lines a table: 10,500 in all
            letters = list(damaged[rng.randrange(len(damaged))])
            letters[rng.randrange(len(letters))] = rng.choice(["\t", "x", "\x00", '"', "-", "é", "", "\n", "1e999"])
            damaged[rng.randrange(len(damaged))] = "".join(letters)
        path.write_text("\n".join(damaged), encoding="utf-8")
        try:
            read_clinical_table(path)
        except ClinicalError:
            refused += 1
    assert refused > 100


def test_the_real_table_is_read(shared_data: Path) -> None:
    outcomes, slides = read_clinical_table(shared_data / "lihc_real" / "clinical.tsv")
    assert len(outcomes) == len(slides) == 329
    assert sum(o.event or 0 for o in outcomes.values()) == 112
    assert sum(o.time is not None and o.time < 30 for o in outcomes.values()) == 22


def test_covariates_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "clinical.tsv"
    rows = ["P1\t400\t1\t61\tmale\tStage II", "P2\t500\t0\t999\tw\tpT2N0", "P3\t600\t1\tNA\tf\tStage X"]
    path.write_text("\n".join(["patient\ttime_days\tevent\tage\tsex\tstage", *rows]) + "\n")
    notes = "\n".join(read_clinical(path).notes)
    assert "column 'age': 1 of 2 values say no age ('999' of patient P2 first) and count as missing" in notes
    assert "column 'sex': 1 of 3 values say no sex ('w' of patient P2 first)" in notes
    assert "column 'stage': 1 of 3 values say no stage ('pT2N0' of patient P2 first)" in notes
    path.write_text("\n".join(["patient\ttime_days\tevent\tage\tsex\tstage", rows[0]]) + "\n")
    assert not [note for note in read_clinical(path).notes if "say no" in note]
