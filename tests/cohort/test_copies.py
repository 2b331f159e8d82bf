"""Two patients with one row, and one table given as two modalities: said with both names."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcmae.cohort.clinical import read_clinical
from hcmae.cohort.copies import equal_patients, equal_rows
from hcmae.cohort.curate import curate
from hcmae.cohort.evidence import CurationError
from hcmae.manifest import load_manifest
from hcmae.omics.readers import read_local_table
from hcmae.tables import TableDoubt
from tests.support.local_cohort import write_tables

NAMES = [f"P{number:03d}" for number in range(30)]


def test_rows_of_an_omics_table_that_are_equal_are_named(tmp_path: Path) -> None:
    write_tables(tmp_path, NAMES)
    frame = pd.read_csv(tmp_path / "rna.tsv", sep="\t")
    frame.iloc[7, 1:] = frame.iloc[3, 1:]
    frame.to_csv(tmp_path / "rna.tsv", sep="\t", index=False)
    with pytest.warns(TableDoubt, match=r"rna\.tsv: P003 and P007 have the same value in every feature"):
        assert len(read_local_table(tmp_path / "rna.tsv")) == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_local_table(tmp_path / "mirna.tsv")


def test_rows_that_say_little_are_equal_by_chance() -> None:
    rng = np.random.default_rng(0)
    assert equal_rows(NAMES, rng.integers(0, 2, (30, 3)).astype(np.float32)) == []
    assert equal_rows(NAMES, np.zeros((30, 50), dtype=np.float32)) == []
    assert equal_rows(NAMES, np.ones((30, 50), dtype=np.float32)) == []
    values = rng.normal(size=(30, 50)).astype(np.float32)
    values[4, 7] = values[9, 7] = np.nan
    values[9], values[12] = values[4], values[4]
    assert equal_rows(NAMES, values) == [["P004", "P009", "P012"]]
    values[9, 0] += 1
    assert equal_rows(NAMES, values) == [["P004", "P012"]]


def clinical(count: int, seed: int = 0, **columns: object) -> dict[str, list[dict[str, str]]]:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "patient": [f"P{number}" for number in range(count)],
            "time_days": rng.integers(30, 3000, count),
            "event": rng.integers(0, 2, count),
            "age": rng.integers(35, 85, count),
            "sex": rng.choice(["male", "female"], count),
            "stage": rng.choice(["I", "II", "III"], count),
            **columns,
        }
    )
    return {str(row["patient"]): [{k: str(v) for k, v in row.items()}] for row in frame.to_dict("records")}


def test_two_patients_with_one_clinical_row_are_named(tmp_path: Path) -> None:
    rows = clinical(60)
    rows["P9"] = [{**rows["P4"][0], "patient": "P9"}]
    assert equal_patients(rows, ["patient"]) == [("P4", "P9")]
    frame = pd.DataFrame([row for own in rows.values() for row in own])
    frame.to_csv(tmp_path / "clinical.tsv", sep="\t", index=False)
    table = read_clinical(tmp_path / "clinical.tsv")
    assert ["P4 and P9 say the same in every column" in line for line in table.doubts] == [True]
    # A slide of one's own does not make another person of it.
    frame["slide"] = [f"{name}.svs" for name in frame["patient"]]
    frame.to_csv(tmp_path / "clinical.tsv", sep="\t", index=False)
    assert len(read_clinical(tmp_path / "clinical.tsv").doubts) == 1


def test_patients_who_are_alike_by_chance_are_not_doubted() -> None:
    for seed in range(5):
        rows = clinical(300, seed)
        rough = {
            patient: [{"patient": patient, "months": str(int(row["time_days"]) // 30), "event": row["event"]}]
            for patient, (row,) in rows.items()
        }
        assert len({(row["months"], row["event"]) for (row,) in rough.values()}) < 300
        assert equal_patients(rough, ["patient"]) == []
        assert equal_patients(rows, ["patient"]) == []
    assert equal_patients({}, ["patient"]) == []


# --- one table, two modalities ----------------------------------------------------------------------------------------


def curated(root: Path, modalities: tuple[str, ...] = ("rna", "mirna", "methylation")) -> None:
    curate(load_manifest("LIHC"), "local", root, seed=0, modalities=modalities, slides=False)


@pytest.mark.parametrize("other", ["mirna.tsv", "mirna.csv", "methylation.tsv"])
def test_one_table_is_not_two_modalities(other: str, tmp_path: Path) -> None:
    root = tmp_path / "LIHC"
    write_tables(root, NAMES)
    curated(root)
    modality = other.split(".")[0]
    (root / f"{modality}.tsv").unlink()
    table = pd.read_csv(root / "rna.tsv", sep="\t")
    table.to_csv(root / other, sep="," if other.endswith("csv") else "\t", index=False)
    message = rf"rna\.tsv: 20 of its 20 features are those of {other} \(G0, G1, G10 .*\): one table is given as"
    with pytest.raises(CurationError, match=f"{message} rna and as {modality}"):
        curated(root)
    curated(root, ("rna",))
    # Methylation by gene has the names of genes; miRNA has not.
    table = table.set_index("patient").div(2000).reset_index()
    table.to_csv(root / other, sep="," if other.endswith("csv") else "\t", index=False)
    if modality == "methylation":
        curated(root)
    else:
        with pytest.raises(CurationError, match="one table is given as rna and as mirna"):
            curated(root)
