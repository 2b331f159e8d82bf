"""Who enters, and as what: sample types, preservation and notices are rules of the flow for every source."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcmae.cohort.annotations import (
    FFPE,
    NOT_FFPE,
    SampleNotes,
    matching,
    notice_kind,
    parsed,
    preservation,
    read_notices,
    sample_type,
    written,
)
from hcmae.cohort.curate import HeavyLossWarning, UnknownPreservationWarning, apply_rules, curate
from hcmae.cohort.evidence import Annotation, CurationError
from hcmae.cohort.features import outcome_names, outcome_values
from hcmae.cohort.follow_up import OneOutcomeWarning
from hcmae.cohort.inputs import curate_inputs
from hcmae.cohort.lock import LOCK_COLUMNS
from hcmae.config import MODALITIES, ConfigError
from hcmae.content import Contents
from hcmae.manifest import Inclusion, Manifest, load_manifest
from hcmae.omics.kept import read_normals
from hcmae.omics.readers import OmicsFormatError, read_omics
from hcmae.tables import TableDoubt
from tests.cohort.test_curate import P, _evidence, _outcome

Q = [f"TCGA-ZZ-A{i:03d}" for i in range(8)]
DNU = Annotation("aliquot", "CenterNotification", "Item flagged DNU")
PRIOR = Annotation("case", "Notification", "Prior malignancy")
REDACTED = Annotation("case", "Redaction", "Subject withdrew consent")


@pytest.fixture
def manifest() -> Manifest:
    lihc = load_manifest("LIHC")
    return lihc.model_copy(update={"inclusion": lihc.inclusion.model_copy(update={"min_slide_bytes": 0})})


def tables(root: Path, rna: dict[str, int]) -> Path:
    """Clinical records of the patients of Q and an RNA table: what stands in its first column -> count."""
    root.mkdir(parents=True)
    rows = [f"{patient}\t{300 + 7 * i}\t{i % 2}" for i, patient in enumerate(Q)]
    (root / "clinical.tsv").write_text("\n".join(["patient\ttime_days\tevent", *rows]) + "\n")
    rows = [f"{sample}\t{count}\t{count * 3}" for sample, count in rna.items()]
    (root / "rna.tsv").write_text("\n".join(["sample\tG1\tG2", *rows]) + "\n")
    return root


def curated(root: Path, manifest: Manifest, **inclusion: object) -> tuple[pd.DataFrame, dict[str, str]]:
    changed = manifest.model_copy(update={"inclusion": manifest.inclusion.model_copy(update=inclusion)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeavyLossWarning)
        cohort = curate(changed, "local", root, seed=0, modalities=("rna",), slides=False)
    return cohort.table, dict(zip(cohort.exclusions["patient"], cohort.exclusions["reason"], strict=True))


# --- sample types ---------------------------------------------------------------------------------------------------


def test_a_local_table_is_asked_for_the_type_of_its_samples(tmp_path: Path, manifest: Manifest) -> None:
    types = dict.fromkeys(Q, "01A") | {Q[3]: "11A", Q[5]: "06A"}
    root = tables(tmp_path / "LIHC", {f"{p}-{types[p]}-11R-A123-07": i for i, p in enumerate(Q)})
    table, lost = curated(root, manifest)
    assert lost == {Q[3]: "rna of sample type 11 only", Q[5]: "rna of sample type 06 only"}
    assert table.loc[Q[0], "rna_sample"] == f"{Q[0]}-01A-11R-A123-07"
    table, lost = curated(root, manifest, sample_types=["01", "06"])
    assert set(lost) == {Q[3]}


def test_of_several_samples_of_a_patient_the_tumours_row_is_read(tmp_path: Path, manifest: Manifest) -> None:
    rows = {f"{Q[0]}-11A": 900, f"{Q[0]}-01A": 5, f"{Q[1]}-01B": 901, f"{Q[1]}-01A": 6, Q[2]: 7, f" {Q[3]}-01 ": 8}
    root = tables(tmp_path / "LIHC", rows)
    changed = curate(manifest, "local", root, seed=0, modalities=("rna",), slides=False)
    assert list(changed.table.index) == Q[:4]
    assert read_omics(changed, "local", root)["rna"].X[:, 0].tolist() == [5, 6, 7, 8]
    kept = changed.choices.set_index("sample")["kept"]
    assert kept.to_dict() == {f"{Q[0]}-11A": False, f"{Q[0]}-01A": True, f"{Q[1]}-01B": False, f"{Q[1]}-01A": True}
    for twice in ({Q[0]: 1, f"{Q[0]}-01A": 2}, {f"{Q[0]}-01A": 1, f"{Q[0]}-01a": 2}):
        with pytest.raises(CurationError, match=f"patient {Q[0]} comes twice"):
            curated(tables(tmp_path / str(len(list(tmp_path.iterdir()))), twice), manifest)


def test_a_table_of_normal_tissue_holds_no_tumour(tmp_path: Path) -> None:
    path = tables(tmp_path / "LIHC", {f"{Q[0]}-11A": 1, f"{Q[1]}-11A": 2}) / "normal_rna.tsv"
    (tmp_path / "LIHC" / "rna.tsv").rename(path)
    assert read_normals(tmp_path / "LIHC", ["rna"])["rna"]["G1"].tolist() == [1, 2]
    path.write_text(path.read_text().replace("11A", "01A", 1))
    with pytest.raises(ConfigError, match=f"{Q[0]}-01A is a tumour by its barcode"):
        read_normals(tmp_path / "LIHC", ["rna"])


# --- preservation and notices ---------------------------------------------------------------------------------------


def test_words_for_preservation() -> None:
    assert [preservation(m) for m in ("FFPE", "Formalin fixed paraffin embedded (FFPE)", "Frozen", "OCT")] == [
        FFPE, FFPE, "Frozen", "OCT",
    ]  # fmt: skip
    assert [preservation(m) for m in (None, "Unknown", "Not Reported", "", "'--")] == [""] * 5
    assert [preservation(None, flag) for flag in (True, "true", "YES", 1)] == [FFPE] * 4
    assert [preservation(None, flag) for flag in (False, "no", 0)] == [NOT_FFPE] * 3
    assert preservation("Frozen", True) == FFPE


def test_each_notice_and_preservation_has_its_rule(tmp_path: Path) -> None:
    cases = {
        "mirna not of FFPE tissue": ({"preservation": FFPE}, "mirna of FFPE tissue only"),
        "mirna not flagged": ({"annotations": (DNU, PRIOR)}, "mirna is flagged: Item flagged DNU"),
        "patient not flagged": ({"annotations": (REDACTED,)}, "the patient is flagged: Subject withdrew consent"),
    }
    for rule, (change, reason) in cases.items():
        evidence = _evidence(tmp_path)
        evidence.candidates["mirna"][P] = [replace(c, **change) for c in evidence.candidates["mirna"][P]]
        with pytest.warns(HeavyLossWarning, match=f"the rule '{rule}' leaves out 1 of 2 patients"):
            cohort = apply_rules(evidence, Inclusion(), seed=0)
        assert cohort.exclusions["patient"].tolist() == [P]
        assert cohort.exclusions["rule"].tolist() == [rule]
        assert reason in cohort.exclusions["reason"].iloc[0]
        everybody = Inclusion(ffpe_aliquots="include", exclude_annotations=[])
        assert apply_rules(evidence, everybody, seed=0).exclusions.empty
    evidence = _evidence(tmp_path)
    evidence.candidates["slides"][P] = [replace(c, annotations=(DNU,)) for c in evidence.candidates["slides"][P]]
    with pytest.warns(HeavyLossWarning):
        assert apply_rules(evidence, Inclusion(), seed=0).exclusions["rule"].tolist() == ["slide not flagged"]


def test_another_aliquot_is_taken_and_other_notices_are_notes(tmp_path: Path) -> None:
    evidence = _evidence(tmp_path)
    sound = replace(evidence.candidates["rna"][P][0], annotations=(PRIOR,))
    spoiled = replace(sound, sample=f"{P}-01A-11R-A999-07", preservation=FFPE)
    evidence.candidates["rna"][P] = [spoiled, sound]
    table = apply_rules(evidence, Inclusion(), seed=0).table
    assert table.loc[P, ["rna_sample", "note"]].tolist() == [sound.sample, "annotated: Prior malignancy"]
    # What nobody says anything about has no rule in the flow.
    assert not [rule for rule in apply_rules(_evidence(tmp_path), Inclusion(), seed=0).flow["rule"] if "flag" in rule]


def test_a_user_says_both_in_two_tables(tmp_path: Path, manifest: Manifest) -> None:
    root = tables(tmp_path / "LIHC", {f"{p}-01A-11R-A123-07": i for i, p in enumerate(Q)})
    before = curate_inputs("local", root, ("rna",), False, manifest, Contents())
    samples = [f"{Q[0]}-01A\tFFPE", f"{Q[1]}-01A\tFrozen", f"{Q[2]}-01Z\tFFPE"]
    (root / "samples.tsv").write_text("\n".join(["Sample ID\tPreservation Method", *samples]) + "\n")
    notices = [
        f"1\t{Q[3]}-01A-11R-A123-07\taliquot\tCenterNotification\tItem flagged DNU\tApproved\tdo not use",
        f"2\t{Q[4]}\tcase\tRedaction\tGenotype mismatch\tApproved\t",
        f"3\t{Q[5]}\tcase\tRedaction\tGenotype mismatch\tRescinded\t",
        f'4\t{Q[6]}-01A\tsample\tObservation\tGeneral\tApproved\ta note with a lone " in it',
    ]
    head = "annotation_id\tentity_submitter_id\tentity_type\tclassification\tcategory\tstatus\tnotes"
    (root / "annotations.tsv").write_text("\n".join([head, *notices]) + "\n")
    table, lost = curated(root, manifest)
    assert lost == {
        Q[0]: f"rna of FFPE tissue only ({Q[0]}-01A-11R-A123-07)",
        Q[3]: "rna is flagged: Item flagged DNU",
        Q[4]: "the patient is flagged: Genotype mismatch",
    }
    assert table.loc[Q[6], "note"] == "annotated: General"
    after = curate_inputs("local", root, ("rna",), False, manifest, Contents())
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {"samples", "annotations"}
    (root / "samples.tsv").write_text("who\tis_ffpe\nx\tno\n")
    with pytest.raises(CurationError, match="name one 'sample'"):
        curated(root, manifest)


def test_notices_beside_a_file_of_a_lock_are_read(tmp_path: Path, manifest: Manifest) -> None:
    root, rows = tmp_path / "LIHC", []
    for i, patient in enumerate(Q[:5]):
        path = root / "rna" / f"id{i}" / "rna.tsv"
        path.parent.mkdir(parents=True)
        path.write_text("x")
        rows.append([f"id{i}", "rna.tsv", "0" * 32, 1, "released", f"{patient}-01A-11R-A100-07", patient, "rna", "R 1"])
    pd.DataFrame(rows, columns=list(LOCK_COLUMNS)).to_csv(root / "files.tsv", sep="\t", index=False)
    records = [{"submitter_id": p, "demographic": {"vital_status": "Dead", "days_to_death": 500}} for p in Q[:5]]
    (root / "clinical.json").write_text(json.dumps(records))
    before = curate_inputs("gdc", root, ("rna",), False, manifest, Contents())
    note = root / "rna" / "id2" / "annotations.txt"
    note.write_text(
        "id\tsubmitter_id\tentity_type\tcategory\tclassification\tnotes\n"
        "x\t1\taliquot\tItem flagged DNU\tNotification\tdo not use\n"
    )
    with pytest.warns(UnknownPreservationWarning, match="rna was preserved"):
        cohort = curate(manifest, "gdc", root, seed=0, modalities=("rna",), slides=False)
    assert cohort.exclusions[["patient", "rule"]].values.tolist() == [[Q[2], "rna not flagged"]]
    after = curate_inputs("gdc", root, ("rna",), False, manifest, Contents())
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} == {"notices of rna"}
    note.write_bytes(b"\xff what is this")
    with pytest.raises(CurationError, match=r"annotations\.txt: neither notices"):
        curate(manifest, "gdc", root, seed=0, modalities=("rna",), slides=False)


def test_notices_survive_a_lock() -> None:
    assert set(parsed(written([DNU, PRIOR, DNU]))) == {DNU, PRIOR}
    assert parsed("") == parsed("nonsense | a: b") == ()
    assert '"' not in written([DNU])


def test_the_notices_of_real_bundles(shared_data: Path) -> None:
    files = sorted((shared_data / "mirna_gdc").rglob("annotations.txt"))
    categories = {a.category for path in files for a in read_notices(path)}
    assert "Prior malignancy" in categories
    assert not categories & {"Item flagged DNU"}


def test_what_is_said_of_a_sample_holds_for_its_aliquots(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text(f'sample,is_ffpe\n{Q[0]}-01,yes\n"{Q[0]}-01B",no\nP1,yes\n')
    notes = SampleNotes()
    notes.add(tmp_path / "samples.csv")
    assert notes.preservation(f"{Q[0]}-01A-11R-A100-07") == FFPE
    assert notes.preservation(f"{Q[0].lower()}-01b-11R") == NOT_FFPE
    assert [notes.preservation(name) for name in (Q[0], f"{Q[0]}-11A", "P1", "P10")] == ["", "", FFPE, ""]


# --- notices in other words, and what nobody can read ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *[(text, "item flagged dnu") for text in (
            "do not use", "DNU", "Do Not Use", "DO_NOT_USE!", "item flagged DNU", "don\u2019t use", "must not be used",
            "sample is DNU (mix-up)", "not to be used", "cannot be used", "unusable",
        )],
        *[(text, "redaction") for text in (
            "Redaction", "redacted", "withdrawn", "Withdrawn.", "sample withdrawn", "patient withdrew consent",
            "Subject withdrew consent", "consent withdrawn", "consent was revoked", "case has been withdrawn",
        )],
        *[(text, "") for text in (
            "", "use", "ok", "not redacted", "no redaction", "has not been withdrawn", "not flagged as DNU",
            "patient withdrew from physiotherapy", "Prior malignancy", "general", "unredacted", "dnumber",
        )],
    ],
)  # fmt: skip
def test_notices_in_other_words_are_one_rule(text: str, kind: str) -> None:
    assert notice_kind(text) == kind
    found = matching([Annotation("aliquot", "", text)], ["Redaction", "Item flagged DNU"])
    assert bool(found) == bool(kind)
    # Who takes redacted data leaves out what is not to be used all the same.
    assert bool(matching([Annotation("aliquot", "", text)], ["DNU"])) == (kind == "item flagged dnu")


@pytest.mark.parametrize("file", ["samples.tsv", "annotations.tsv"])
def test_a_notice_is_seen_in_either_table_and_in_whichever_column(
    file: str, tmp_path: Path, manifest: Manifest
) -> None:
    root = tables(tmp_path / "LIHC", {p: i for i, p in enumerate(Q)})
    rows = [
        f"{Q[0]}\tDNU\t\t", f"{Q[1]}\tGeneral\tdo not use\t", f"{Q[2]}\tGeneral\tnot redacted\tno",
        f"{Q[3]}\t\t\tyes", f"{Q[4]}\tRedacted\t\tno", f"{Q[5]}\tPrior malignancy\tfine\tno",
    ]  # fmt: skip
    (root / file).write_text("\n".join(["sample\tcategory\tremark\tItem flagged DNU", *rows]) + "\n")
    table, lost = curated(root, manifest)
    assert lost == {
        Q[0]: "the patient is flagged: DNU", Q[1]: "the patient is flagged: do not use",
        Q[3]: "the patient is flagged: item flagged dnu", Q[4]: "the patient is flagged: Redacted",
    }  # fmt: skip
    assert table.loc[Q[5], "note"] == "annotated: Prior malignancy"


@pytest.mark.parametrize(
    ("column", "cell", "away"),
    [
        ("exclude", "yes", True), ("Exclude", "no", False), ("usable", "no", True), ("usable", "yes", False),
        ("QC status", "FAIL", True), ("qc", "pass", False), ("keep", "0", True), ("outlier", "1", True),
    ],
)  # fmt: skip
def test_a_column_that_says_whether_a_sample_is_to_be_used_is_read(
    column: str, cell: str, away: bool, tmp_path: Path, manifest: Manifest
) -> None:
    root = tables(tmp_path / "LIHC", {p: i for i, p in enumerate(Q)})
    (root / "samples.tsv").write_text(f"sample\t{column}\n{Q[0]}\t{cell}\n")
    table, lost = curated(root, manifest)
    assert (Q[0] in lost) is away
    assert set(table.index) == set(Q) - ({Q[0]} if away else set())


@pytest.mark.parametrize(("column", "cell"), [("FFPE", "yes"), ("ffpe", "FFPE block"), ("fixation", "formalin")])
def test_other_names_for_preservation_are_read(column: str, cell: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    path.write_text(f"sample\t{column}\nP1\t{cell}\n")
    notes = SampleNotes()
    notes.add(path)
    assert notes.preservation("P1") == "FFPE"


def test_a_column_that_can_name_an_organ_is_a_sample_type_where_it_says_one(tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    path.write_text("sample\ttissue\tsample_type\nP1\tNormal\t\nP2\tLiver\tPrimary Tumor\n")
    notes = SampleNotes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes.add(path)
    assert (notes.sample_type("P1"), notes.sample_type("P2")) == ("11", "01")


def test_everybody_dead_or_nobody_is_a_doubt(tmp_path: Path) -> None:
    def said(events: list[int]) -> list[str]:
        evidence = _evidence(tmp_path)
        evidence.outcomes.clear()
        for number, event in enumerate(events):
            evidence.outcomes[f"P{number:02d}"] = _outcome(f"P{number:02d}", time=400 + number, event=event)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            apply_rules(evidence, Inclusion(), seed=0, modalities=(), slides=False)
        return [str(w.message) for w in seen if issubclass(w.category, OneOutcomeWarning)]

    assert "of the 20 patients nobody died" in said([0] * 20)[0]
    assert "of the 20 patients everybody died" in said([1] * 20)[0]
    assert said([0] * 19 + [1]) == said([1] * 5) == []


def test_a_table_of_remarks_alone_is_read_where_it_holds_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    path.write_text("sample\tcomment\nP1\tDo not use\nP2\tfine\n")
    notes = SampleNotes()
    notes.add(path)
    assert [a.category for a in notes.annotations("P1", "P1")] == ["Do not use"]
    assert notes.annotations("P2", "P2") == ()
    path.write_text("sample\tcomment\nP1\tgood\nP2\tfine\n")
    with pytest.raises(CurationError, match="neither notices"):
        SampleNotes().add(path)
    path.write_text("sample\tcomment\n\tDo not use\n")
    with pytest.raises(CurationError, match="row 2: notice 'Do not use', but column 'sample' is empty; say of whom"):
        SampleNotes().add(path)


def test_rows_about_nobody_are_said_with_row_and_value(tmp_path: Path, manifest: Manifest) -> None:
    root = tables(tmp_path / "LIHC", {p: i for i, p in enumerate(Q)})
    rows = [f"{Q[0]}-11A\tFrozen", "TCGA-YY-0000\tFFPE", f"{Q[1]}\tFrozen", "p7\tFFPE"]
    (root / "samples.tsv").write_text("\n".join(["sample\tpreservation", *rows]) + "\n")
    with pytest.warns(TableDoubt) as told:
        curated(root, manifest)
    text = next(str(w.message) for w in told if issubclass(w.category, TableDoubt))
    assert "samples.tsv: row 3: 'TCGA-YY-0000' (preservation 'FFPE') is no patient and no sample of the tables" in text
    assert "row 5: 'p7' (preservation 'FFPE')" in text
    assert "row 2" not in text
    assert "row 4" not in text


def test_a_name_that_is_nearly_right_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "samples.tsv").write_text("sample\tis_ffpe\np1\tno\nP1_T\tno\nP10\tno\n")
    notes = SampleNotes()
    notes.add(tmp_path / "samples.tsv")
    assert [line.rpartition("(")[2] for line in notes.unmatched(["P1"], [])] == [
        "did you mean 'P1'?)", "did you mean 'P1'?)",
        "preservation 'not FFPE') is no patient and no sample of the tables",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "cells", "message"),
    [
        ("preservation", "bag 7", "preservation 'bag 7' is no method that is known.*not of FFPE tissue"),
        ("is_ffpe", "maybe", "preservation 'maybe' is no method"),
        ("sample_type", "left lobe", "sample_type 'left lobe' is no sample type that is known"),
        ("preservation\tis_ffpe", "Frozen\tyes", "preservation 'Frozen' and is_ffpe 'yes' disagree; taken as FFPE"),
        ("preservation\tis_ffpe", "Frozen\tperhaps", "is_ffpe 'perhaps' is neither yes nor no; 'Frozen' counts"),
        ("category\tDNU", "General\tperhaps", "dnu 'perhaps' is neither yes nor no; taken as no notice"),
    ],
)
def test_values_that_cannot_be_read_are_said_with_row_and_value(
    header: str, cells: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.tsv"
    path.write_text(f"sample\t{header}\nP1\t{cells}\n")
    with pytest.warns(TableDoubt, match=rf"samples\.tsv: row 2, 'P1': {message}"):
        SampleNotes().add(path)


@pytest.mark.parametrize("words", [("FFPE", "Frozen"), ("OCT", "snap frozen"), ("not FFPE", "Unknown"), ("Fresh", "")])
def test_values_that_can_be_read_need_no_word(words: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    path.write_text(f"sample\tpreservation\tsample_type\nP1\t{words[0]}\tPrimary Tumor\nP2\t{words[1]}\tTumour\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = SampleNotes()
        notes.add(path)
    assert notes.preservation("P1") == words[0]
    assert [notes.sample_type(name) for name in ("P1", "P2", "P3")] == ["01", "", ""]


def test_a_stated_sample_type_is_asked_like_that_of_a_barcode(tmp_path: Path, manifest: Manifest) -> None:
    root = tables(tmp_path / "LIHC", {f"H{i}": i for i in range(4)})
    rows = [f"H{i}\t{300 + i}\t1" for i in range(4)]
    (root / "clinical.tsv").write_text("\n".join(["patient\ttime_days\tevent", *rows]) + "\n")
    (root / "samples.tsv").write_text(
        "sample\tSample Type\nH0\tPrimary Tumor\nH1\tSolid Tissue Normal\nH2\tmetastasis\n"
    )
    table, lost = curated(root, manifest)
    assert list(table.index) == ["H0", "H3"]
    assert lost == {"H1": "rna of sample type 11 only", "H2": "rna of sample type 06 only"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("P1\tPrimary Tumor\nP1\tMetastatic\n", "row 3: sample P1 is of type 06 here and 01 in .*row 2"),
        (f"{Q[0]}-01A\tSolid Tissue Normal\n", f"sample {Q[0]}-01A is of type 01 by its barcode and 11 here"),
    ],
)
def test_sample_types_that_contradict_each_other_are_refused(rows: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.tsv"
    path.write_text(f"sample\tsample_type\n{rows}")

    def ask() -> None:
        notes = SampleNotes()
        notes.add(path)
        notes.sample_type(f"{Q[0]}-01A")

    with pytest.raises(CurationError, match=message):
        ask()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Primary Tumor", "01"), ("primary tumour", "01"), ("Solid Tissue Normal", "11"), ("1", "01"), ("11", "11"),
        ("06", "06"), ("Blood Derived Normal", "10"), ("Tumor", ""), ("", ""), ("Not Reported", ""), ("99", None),
        ("Adjacent normal", "11"), ("1.0", "01"), ("what", None),
    ],
)  # fmt: skip
def test_words_for_sample_types(text: str, code: str | None) -> None:
    assert sample_type(text) == code


# --- the outcome among the features ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["time_days", "OS.time", "OS_MONTHS", "censorship", "Vital status", "PFI"])
def test_a_column_of_the_outcome_is_no_feature(name: str, tmp_path: Path, manifest: Manifest) -> None:
    root = tables(tmp_path / "LIHC", {p: i for i, p in enumerate(Q)})
    (root / "rna.tsv").write_text((root / "rna.tsv").read_text().replace("G2", name))
    cohort = curate(manifest, "local", root, seed=0, modalities=("rna",), slides=False)
    with pytest.raises(OmicsFormatError, match=rf"rna\.tsv: column '{name}' is of the outcome"):
        read_omics(cohort, "local", root)


@pytest.mark.parametrize("unit", [1, 30.4375, 365.25])
def test_a_feature_that_equals_the_time_is_refused_in_any_unit(unit: float, tmp_path: Path, manifest: Manifest) -> None:
    root = tables(tmp_path / "LIHC", {p: i for i, p in enumerate(Q)})
    rows = [f"{p}\t{i % 3}\t{(300 + 7 * i) / unit:.2f}" for i, p in enumerate(Q)]
    (root / "rna.tsv").write_text("\n".join(["patient\tG1\tG2", *rows]) + "\n")
    cohort = curate(manifest, "local", root, seed=0, modalities=("rna",), slides=False)
    with pytest.raises(OmicsFormatError, match=r"column 'G2' equals the survival time or the event"):
        read_omics(cohort, "local", root)


@pytest.mark.parametrize("gap", [False, True], ids=["whole", "one cell missing"])
@pytest.mark.parametrize("form", ["log2", "z-score", "years", "falling", "event", "event as 1 and 2", "event z-scored"])
def test_a_transformed_outcome_is_found_and_a_gene_is_not(form: str, gap: bool) -> None:
    rng = np.random.default_rng(3)
    time, event = rng.exponential(900, 40) + 31, (rng.random(40) < 0.4).astype(float)
    z = {name: (values - values.mean()) / values.std() for name, values in (("time", time), ("event", event))}
    leak = {
        "log2": np.log2(time + 1), "z-score": z["time"], "years": time / 365.25, "falling": -(time**0.5),
        "event": event, "event as 1 and 2": event + 1, "event z-scored": z["event"],
    }[form]  # fmt: skip
    genes = rng.normal(size=(40, 3000))
    genes[:, 7] = time + rng.normal(scale=300, size=40)  # goes with time, as a good marker does
    genes[:, 8] = (event + (rng.random(40) < 0.1)) % 2  # a mutation that is nearly the event
    matrix = np.column_stack([genes, leak]).astype(np.float32)
    if gap:
        matrix[5] = np.nan
    assert outcome_values([f"G{i}" for i in range(3000)] + ["leak"], matrix, time, event) == ["leak"]


def test_genes_are_no_outcome() -> None:
    assert outcome_names(["EFS", "OS9", "DEAD1", "TIMELESS", "CENPA", "hsa-mir-21", "cg00000029", "DAYSLEEPER"]) == []


# --- losses ---------------------------------------------------------------------------------------------------------


def test_a_rule_that_leaves_out_more_than_a_quarter_warns_and_asks_for_the_unit(tmp_path: Path) -> None:
    def losing(short: int) -> list[str]:
        evidence = _evidence(tmp_path)
        for i in range(6):
            patient = f"TCGA-BB-{i:04d}"
            evidence.outcomes[patient] = _outcome(patient, time=12 if i < short else 400)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            apply_rules(evidence, Inclusion(), seed=0, modalities=(), slides=False)
        return [str(w.message) for w in seen if issubclass(w.category, HeavyLossWarning)]

    assert losing(2) == []
    assert "'followed for 30 days or more' leaves out 3 of 8 patients; are the times in days" in losing(3)[0]


def test_modalities_without_remarks_have_todays_flow(tmp_path: Path) -> None:
    flow = apply_rules(_evidence(tmp_path), Inclusion(), seed=0).flow["rule"].tolist()
    assert flow == [
        "clinical record", "known vital status", "known survival time", "followed for 30 days or more",
        "diagnostic slide", "slide of sample type 01", "slide of 20 MB or more",
        *(f"{modality} data" for modality in MODALITIES), "files on disk",
    ]  # fmt: skip
