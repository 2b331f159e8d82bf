"""Columns of an omics table that are no molecules, names that R has changed, and tables of normal tissue."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from hcmae.cohort.curate import curate
from hcmae.cohort.evidence import CurationError
from hcmae.cohort.features import names_of_r, no_molecules
from hcmae.cohort.local import local_file, normal_file
from hcmae.config import ConfigError
from hcmae.manifest import load_manifest
from hcmae.omics.kept import normal_tables
from hcmae.omics.readers import OmicsFormatError, read_local_table
from hcmae.tables import TableDoubt, TableNote


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name",
    ["age", "Sex", "gender", "AJCC_PATHOLOGIC_TUMOR_STAGE", "tumour grade", "batch", "Batch ID", "plate", "site", "TSS",
     "centre", "batch_2", "sex_male", "stage_iii", "Tissue.Source.Site", "race", "BMI"],
)  # fmt: skip
def test_what_is_no_molecule_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    for cells in (("1", "0"), ("male", "female")):
        path = write(tmp_path / "rna.tsv", f"patient\tG1\t{name}", *(f"P{n}\t{n + 5}\t{cells[n]}" for n in range(2)))
        with pytest.raises(OmicsFormatError, match=f"column '{name}' is no molecule by its name.*remove it from this"):
            read_local_table(path)


@pytest.mark.parametrize(
    "name",
    ["AGER", "PLAT", "BATF", "SEX1A", "RACK1", "BACE1", "STAG2", "SITEX", "T", "MET", "KIT", "CENPA", "GRADD",
     "hsa-mir-21", "cg00000029", "BATCH_EFFECT_GENE", "SEC61A1", "stagex9"],
)  # fmt: skip
def test_genes_are_molecules(name: str) -> None:
    assert no_molecules([name]) == []


def test_several_columns_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(OmicsFormatError, match=r"column 'age' \(also 'batch', 'site'\) is no molecule"):
        read_local_table(write(tmp_path / "rna.tsv", "patient\tage\tG1\tbatch\tsite", "P1\t60\t3\t1\t2"))


@pytest.mark.parametrize(
    ("names", "changed"),
    [
        (["hsa.mir.21", "hsa-mir-22"], ["hsa.mir.21"]), (["X1007_s_at", "TP53"], ["X1007_s_at"]),
        (["HLA.A", "MT.ND1", "RP11.34P13.7"], ["HLA.A", "MT.ND1", "RP11.34P13.7"]), (["X1", "X2", "X3"], []),
        (["XIST", "XAB2", "RP11-34P13.7", "HLA-A", "ENSG00000000003.15", "AC000003.1", "NKX2-1", "cg1.2"], []),
    ],
)  # fmt: skip
def test_names_that_r_has_changed(names: list[str], changed: list[str], tmp_path: Path) -> None:
    assert names_of_r(names) == changed
    path = write(tmp_path / "rna.tsv", "\t".join(["patient", *names]), "\t".join(["P1", *("7" for _ in names)]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert list(read_local_table(path).columns) == names
    lines = [str(warning.message) for warning in told if issubclass(warning.category, TableDoubt)]
    assert [f"{len(changed)} of {len(names)} features are named as R" in line for line in lines] == [True] * bool(
        changed
    )


# --- normal tissue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["normal_rna.tsv", "normal_rna.csv", "rna_normal.tsv", "RNA_normal_counts.txt", "normal.rna.tsv"]
)
def test_a_table_of_normal_tissue_is_no_tumours_and_is_said(name: str, tmp_path: Path) -> None:
    root = tmp_path / "LIHC"
    root.mkdir()
    mark = "," if name.endswith(".csv") else "\t"
    write(root / name, mark.join(("patient", "G1")), mark.join(("N1", "5")))
    assert normal_file(root, "rna") == root / name
    assert normal_tables(root, ["rna"]) == {"rna": root / name}
    with pytest.raises(ConfigError, match=r"normal_mirna\.tsv is missing"):
        normal_tables(root, ["mirna"])
    with pytest.raises(CurationError, match=rf"no table for rna \({name} is one of normal tissue, by its name\)"):
        local_file(root, "rna", {})
    write(root / "clinical.tsv", "patient\ttime_days\tevent", "P1\t400\t1", "P2\t500\t0")
    tumours = write(root / "rna_counts.tsv", "patient\tG1\tG2", "P1\t5\t3", "P2\t6\t1")
    assert local_file(root, "rna", {}) == tumours
    with pytest.warns(TableNote, match=rf"opened for omics\.contrast = tumour_normal alone: {name}"):
        curate(load_manifest("LIHC"), "local", root, seed=0, modalities=("rna",), slides=False)
    write(root / "normal_rna.txt.gz", "x")
    with pytest.raises(ConfigError, match="could both be the table of normal tissue for rna; keep one"):
        normal_tables(root, ["rna"])


def test_normalised_values_are_no_normal_tissue(tmp_path: Path) -> None:
    path = write(tmp_path / "rna_normalized.tsv", "patient\tG1", "P1\t5")
    assert local_file(tmp_path, "rna", {}) == path
    assert normal_file(tmp_path, "rna") is None
