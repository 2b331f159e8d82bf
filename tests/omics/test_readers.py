"""Readers of omics files: real files, odd files, malformed files; one documented error; memory that stays small."""

from __future__ import annotations

import dataclasses
import gzip
import os
import random
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hcmae.cohort.curate import Cohort
from hcmae.content import Contents
from hcmae.omics.readers import (
    OmicsFormatError,
    keep_tables_apart,
    omics_inputs,
    read_local_table,
    read_mirna_counts,
    read_omics,
    read_sesame_betas,
    read_star_counts,
    read_xena_matrix,
    stack_betas,
)

STAR_HEAD = (
    "# gene-model: GENCODE v36\n"
    "gene_id\tgene_name\tgene_type\tunstranded\tstranded_first\tstranded_second"
    "\ttpm_unstranded\tfpkm_unstranded\tfpkm_uq_unstranded\n"
    + "".join(f"N_{n}\t\t\t9\t9\t9\t\t\t\n" for n in ("unmapped", "multimapping", "noFeature", "ambiguous"))
)
MIRNA_HEAD = "miRNA_ID\tread_count\treads_per_million_miRNA_mapped\tcross-mapped\n"


def _star(genes: dict[str, int]) -> str:
    return STAR_HEAD + "".join(
        f"{g}\tN{i}\tlncRNA\t{c}\t1\t2\t0.1\t0.2\t0.3\n" for i, (g, c) in enumerate(genes.items())
    )


def _write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _cohort(**paths: list[Path]) -> Cohort:
    count = len(next(iter(paths.values())))
    table = pd.DataFrame(index=pd.Index([f"TCGA-AA-{i:04d}" for i in range(count)], name="patient"))
    for modality, files in paths.items():
        table[f"{modality}_path"] = [str(f) for f in files]
    return Cohort(table, pd.DataFrame(), pd.DataFrame())


# ---------------------------------------------------------------- STAR


def test_star_keeps_raw_counts_and_ids(tmp_path: Path) -> None:
    genes = {"ENSG00000000003.15": 3231, "ENSG00000182378.14": 7, "ENSG00000182378.14_PAR_Y": 0}
    reading = read_star_counts(_write(tmp_path / "a.tsv", _star(genes)))
    assert reading.names.to_pylist() == list(genes)
    assert reading.values.tolist() == [3231, 7, 0]
    assert reading.annotation is not None
    assert reading.annotation["ensembl"].tolist() == [
        "ENSG00000000003", "ENSG00000182378", "ENSG00000182378_PAR_Y"
    ]  # fmt: skip
    assert reading.annotation["gene_name"].tolist() == ["N0", "N1", "N2"]
    packed = _write(tmp_path / "a.tsv.gz", gzip.compress(_star(genes).encode()))
    assert read_star_counts(packed).values.tolist() == [3231, 7, 0]


def test_files_in_another_order_are_put_in_order(tmp_path: Path) -> None:
    genes = {f"ENSG{i:011d}.1": i * 10 for i in range(6)}
    turned = dict(reversed(genes.items()))
    files = [_write(tmp_path / "a.tsv", _star(genes)), _write(tmp_path / "b.tsv", _star(turned))]
    data = read_omics(_cohort(rna=files), "gdc", tmp_path)
    assert data["rna"].X[0].tolist() == data["rna"].X[1].tolist() == list(genes.values())
    assert data["rna"].uns["unit"] == "counts"


@pytest.mark.parametrize("other", [{"ENSG1.1": 1}, {"ENSG1.1": 1, "ENSG3.1": 2}, {"ENSG1.1": 1, "ENSG2.2": 3}])
def test_files_of_different_releases_are_refused(other: dict[str, int], tmp_path: Path) -> None:
    files = [_write(tmp_path / "a.tsv", _star({"ENSG1.1": 5, "ENSG2.1": 6})), _write(tmp_path / "b.tsv", _star(other))]
    with pytest.raises(OmicsFormatError, match=r"b\.tsv.*lacking ENSG2\.1"):
        read_omics(_cohort(rna=files), "gdc", tmp_path)


# ---------------------------------------------------------------- miRNA


def test_real_mirna_files(shared_data: Path) -> None:
    files = sorted((shared_data / "mirna_gdc").glob("*/*.quantification.txt"))
    assert len(files) == 9
    data = read_omics(_cohort(mirna=files), "gdc", shared_data)
    matrix = data["mirna"].X
    assert matrix.shape == (9, 1881)
    assert (matrix == np.rint(matrix)).all()
    first = pd.read_csv(files[0], sep="\t")
    assert data["mirna"].var_names.tolist() == first["miRNA_ID"].tolist()
    assert matrix[0].tolist() == first["read_count"].tolist()


# ---------------------------------------------------------------- betas


def test_betas_missing_and_array_versions(tmp_path: Path) -> None:
    small = _write(tmp_path / "27k.txt", "cg2\t0.25\ncg9\t0.5\n")
    large = _write(
        tmp_path / "450k.txt", "".join(f"cg{i}\t{i / 10}\n" for i in range(1, 8)) + "rs1\t0.5\nch.1.2F\tN/A\n"
    )
    epic = _write(tmp_path / "epic2.txt", "cg1_TC11\t0.2\ncg1_BC12\t0.4\ncg2_TC21\tNA\nrs1\t1\n" + "cg7\t0\n" * 1)
    matrix, names = stack_betas([small, large, epic])
    frame = pd.DataFrame(matrix, columns=names)
    assert set(names) == {*(f"cg{i}" for i in (1, 2, 3, 4, 5, 6, 7, 9)), "rs1", "ch.1.2F"}
    assert frame["cg2"].tolist()[:2] == [np.float32(0.25), np.float32(0.2)]
    assert np.isnan(frame["cg2"][2])
    assert frame["cg1"][2] == np.float32(0.3)  # replicates of one probe are averaged
    assert np.isnan(frame["cg9"][1])
    assert frame["cg7"].isna().tolist() == [True, False, False]
    data = read_omics(_cohort(methylation=[small, large, epic]), "gdc", tmp_path)
    assert "rs1" not in data["methylation"].var_names
    assert data["methylation"].X.dtype == np.float32
    data.write(tmp_path / "m.h5mu")


@pytest.mark.slow
@given(
    st.lists(
        st.dictionaries(st.integers(0, 30), st.none() | st.floats(0, 1, width=32), min_size=1), min_size=1, max_size=5
    )
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mixture_of_arrays_merges_by_probe(tmp_path: Path, arrays: list[dict[int, float | None]]) -> None:
    paths = []
    for i, array in enumerate(arrays):
        rows = "".join(f"cg{p:08d}\t{'NA' if b is None else repr(b)}\n" for p, b in array.items())
        paths.append(_write(tmp_path / f"{i}.txt", rows))
    matrix, names = stack_betas(paths)
    assert sorted(names) == sorted({f"cg{p:08d}" for array in arrays for p in array})
    for row, array in zip(matrix, arrays, strict=True):
        for name, value in zip(names, row, strict=True):
            expected = array.get(int(name[2:]))
            assert np.isnan(value) if expected is None else value == np.float32(expected)


@pytest.mark.slow
def test_memory_is_that_of_the_matrix(tmp_path: Path) -> None:
    """120 files of 450,000 rows: a matrix of 0.2 GiB, and little above it."""
    rows = "".join(f"cg{i:08d}\t{(i % 1000) / 1000}\n" for i in range(450_000))
    first = _write(tmp_path / "source", rows)
    for i in range(120):
        (tmp_path / f"{i}.txt").hardlink_to(first)
    code = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from hcmae.omics.readers import stack_betas
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        matrix, names = stack_betas(sorted(Path(sys.argv[1]).glob("*.txt")))
        print(matrix.nbytes, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
        """
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    matrix, grown = map(int, out.stdout.split())
    assert matrix == 120 * 450_000 * 4
    assert grown < matrix + 300e6


# ---------------------------------------------------------------- matrices


def test_xena_matrix_reads_the_asked_columns(tmp_path: Path) -> None:
    text = "Ensembl_ID\tA-01A\tB-01A\tC-01A\nENSG1.1\t3\t0\t1.5\nENSG2.1\t\t1\t2\n"
    for path in (_write(tmp_path / "m.tsv", text), _write(tmp_path / "m.tsv.gz", gzip.compress(text.encode()))):
        matrix, names = read_xena_matrix(path, ["C-01A", "A-01A"])
        assert names.tolist() == ["ENSG1.1", "ENSG2.1"]
        assert matrix[0].tolist() == [1.5, 2]
        assert np.isnan(matrix[1, 1])
        with pytest.raises(OmicsFormatError, match="sample D-01A"):
            read_xena_matrix(path, ["D-01A"])


def test_xena_counts_come_back_as_integers(tmp_path: Path) -> None:
    (tmp_path / "xena").mkdir()
    counts = np.array([0, 1, 17, 3231, 250_000, 5_000_003, 16_777_216])
    rows = "".join(f"ENSG{i}.1\t{np.log2(c + 1):.16g}\t0\n" for i, c in enumerate(counts))
    path = _write(tmp_path / "xena" / "TCGA-X.star_counts.tsv", "Ensembl_ID\tTCGA-AA-0000-01A\tother\n" + rows)
    cohort = _cohort(rna=[path])
    cohort.table["rna_sample"] = ["TCGA-AA-0000-01A"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_omics(cohort, "gdc", tmp_path)
    assert data["rna"].X[0].tolist() == counts.tolist()
    averaged = _write(path, "Ensembl_ID\tTCGA-AA-0000-01A\nENSG1.1\t1.3\n")
    assert averaged == path
    with pytest.warns(UserWarning, match="averaged"):
        read_omics(cohort, "gdc", tmp_path)
    # A huge count elsewhere does not hide that small ones are averages.
    _write(path, f"Ensembl_ID\tTCGA-AA-0000-01A\nENSG1.1\t{np.log2(3.5):.16g}\nENSG2.1\t{np.log2(9_000_001):.16g}\n")
    with pytest.warns(UserWarning, match="averaged"):
        assert read_omics(cohort, "gdc", tmp_path)["rna"].X[0, 1] == 9_000_000


def test_a_matrix_of_another_kind_is_no_matrix_of_counts(tmp_path: Path) -> None:
    (tmp_path / "xena").mkdir()
    path, samples = tmp_path / "xena" / "TCGA-X.star_counts.tsv", [f"TCGA-AA-{i:04d}-01A" for i in range(6)]
    cohort = _cohort(rna=[path] * 6)
    cohort.table["rna_sample"] = samples
    rng = np.random.default_rng(0)

    def write(values: np.ndarray) -> None:
        pd.DataFrame(values, [f"ENSG{i}.1" for i in range(len(values))], samples).to_csv(path, sep="\t")

    write(np.log2(rng.uniform(0, 50, (20, 6)) + 1))  # TPM
    with pytest.raises(OmicsFormatError, match=r"no whole number for most genes of 6 patients.*0000-01A"):
        read_omics(cohort, "gdc", tmp_path)
    values = np.log2(rng.integers(0, 50, (20, 6)) + 1.0)
    values[3, 1] = -9.97
    write(values)
    with pytest.raises(OmicsFormatError, match=r"negative values.*TCGA-AA-0001-01A, feature ENSG3\.1: -9\.97"):
        read_omics(cohort, "gdc", tmp_path)


NAMES = st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9.|_-]{0,12}", fullmatch=True), min_size=1, max_size=6, unique=True)


@pytest.mark.slow
@given(NAMES, st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_survive_being_written_and_read(tmp_path: Path, names: list[str], data: st.DataObject) -> None:
    """Any names and counts: STAR and miRNA files give back what was written, but for the N_ rows."""
    drawn = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(names), max_size=len(names)))
    text = MIRNA_HEAD + "".join(f"{n}\t{c}\t1.0\tN\n" for n, c in zip(names, drawn, strict=True))
    mirna = read_mirna_counts(_write(tmp_path / "m.txt", text))
    assert dict(zip(mirna.names.to_pylist(), mirna.values.tolist(), strict=True)) == dict(
        zip(names, drawn, strict=True)
    )
    genes = {f"ENSG{n}": c for n, c in zip(names, drawn, strict=True)}
    star = read_star_counts(_write(tmp_path / "s.tsv", _star(genes)))
    assert dict(zip(star.names.to_pylist(), star.values.tolist(), strict=True)) == genes


@pytest.mark.slow
@given(NAMES, st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matrices_survive_being_written_and_read(tmp_path: Path, names: list[str], data: st.DataObject) -> None:
    """Any values, missing ones too: a Xena matrix and a user's table give back what was written, in the order asked."""
    value = st.none() | st.floats(-1e6, 1e6, width=32)
    rows = data.draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=len(names), max_size=len(names)))
    cells = [["" if v is None else repr(v) for v in row] for row in rows]
    text = "id\tA\tB\tC\n" + "".join("\t".join([n, *c]) + "\n" for n, c in zip(names, cells, strict=True))
    matrix, features = read_xena_matrix(_write(tmp_path / "x.tsv", text), ["C", "A"])
    assert features.tolist() == names
    expected = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(matrix, expected[:, [2, 0]].T)
    if len({n.upper() for n in names}) == len(names):
        frame = read_local_table(_write(tmp_path / "t.tsv", text.replace("id\t", "patient\t", 1)))
        np.testing.assert_array_equal(frame.to_numpy(), expected)


def test_all_modalities_share_the_order(tmp_path: Path) -> None:
    rna = [_write(tmp_path / f"r{i}.tsv", _star({"ENSG1.1": i})) for i in range(3)]
    mirna = [_write(tmp_path / f"m{i}.txt", MIRNA_HEAD + f"hsa-let-7a-1\t{i}\t1.0\tN\n") for i in range(3)]
    data = read_omics(_cohort(mirna=mirna, rna=rna), "synthetic", tmp_path)
    assert list(data.mod) == ["rna", "mirna"]
    assert data["rna"].obs_names.tolist() == data["mirna"].obs_names.tolist() == [f"TCGA-AA-{i:04d}" for i in range(3)]
    assert data["rna"].X[:, 0].tolist() == data["mirna"].X[:, 0].tolist() == [0, 1, 2]


def test_a_moved_data_folder_is_found_again(tmp_path: Path) -> None:
    new = tmp_path / "new" / "mirna" / "id"
    new.mkdir(parents=True)
    _write(new / "m.txt", MIRNA_HEAD + "a\t4\t1.0\tN\n")
    gone = tmp_path / "old" / "mirna" / "id" / "m.txt"
    assert read_omics(_cohort(mirna=[gone]), "gdc", tmp_path / "new")["mirna"].X[0, 0] == 4
    with pytest.raises(OmicsFormatError, match="is missing"):
        read_omics(_cohort(mirna=[gone]), "gdc", tmp_path)


def test_a_cohort_without_files(tmp_path: Path) -> None:
    empty = _cohort(rna=[tmp_path / "x"])
    empty.table["rna_path"] = None
    with pytest.raises(OmicsFormatError, match="names no omics file"):
        read_omics(empty, "gdc", tmp_path)


# ---------------------------------------------------------------- malformed

STAR_ROW = "ENSG1.1\tA\tlncRNA\t5\t1\t2\t0.1\t0.2\t0.3\n"
MALFORMED: list[tuple[Callable[[Path], Any], bytes, str]] = [
    (read_star_counts, b"", "empty file"),
    (read_star_counts, STAR_HEAD.encode(), "no rows"),
    (read_star_counts, b"<html>404</html>", "not in the expected format|header without rows"),
    (read_star_counts, (STAR_HEAD + "ENSG1.1\tA\tlncRNA\t5.5\t1\t2\t0.1\t0.2\t0.3\n").encode(), "expected format"),
    (read_star_counts, (STAR_HEAD + "ENSG1.1\tA\tlncRNA\t\t1\t2\t0.1\t0.2\t0.3\n").encode(), "expected format|empty"),
    (read_star_counts, (STAR_HEAD + "ENSG1.1\tA\tlncRNA\t-5\t1\t2\t0.1\t0.2\t0.3\n").encode(), "negative"),
    (read_star_counts, (STAR_HEAD + "ENSG1.1\tA\tlncRNA\t99999999999\t1\t2\t0.1\t0.2\t0.3\n").encode(), "too large"),
    (read_star_counts, (STAR_HEAD + "\tA\tlncRNA\t5\t1\t2\t0.1\t0.2\t0.3\n").encode(), "empty name"),
    (read_star_counts, (STAR_HEAD + STAR_ROW + "ENSG2.1\tB\tlnc").encode(), "expected format"),
    (read_star_counts, (STAR_HEAD + STAR_ROW).replace("unstranded", "counts").encode(), "expected format"),
    (read_star_counts, gzip.compress((STAR_HEAD + STAR_ROW).encode(), mtime=0)[:-9], "broken gzip"),
    (read_mirna_counts, (MIRNA_HEAD + "a\t1e3\t1.0\tN\n").encode(), "expected format"),
    (read_mirna_counts, (MIRNA_HEAD + "a\t5\n").encode(), "expected format"),
    (read_mirna_counts, b"\xff\xfe\x00" * 50, "expected format|header without rows"),
    (read_sesame_betas, b"cg1\t1.5\n", "line 1: beta 1.5 is not between 0 and 1"),
    (read_sesame_betas, b"cg0\t0.5\ncg1\t-0.1\n", "line 2"),
    (read_sesame_betas, b"cg1\tinf\n", "not between"),
    (read_sesame_betas, b"cg1\tmany\n", "expected format"),
    (read_sesame_betas, b"cg1\n", "expected format"),
    (read_sesame_betas, b"cg1\t0.5\tx\n", "expected format"),
    (read_sesame_betas, b"\t0.5\n", "empty name"),
    (read_local_table, b"a\tb\n1\t2\n", "no patient column"),
    (read_local_table, b"patient\ta\ta\nP\t1\t2\n", "comes twice"),
    (read_local_table, b"patient\ta\nP\tx\n", "not a table of numbers"),
    (read_local_table, b"patient\ta\nP\tinf\n", "infinite"),
    (read_local_table, b"patient\ta\nP\t1\nP\t2\n", "P comes twice"),
    (read_local_table, b"patient\ta\n", "no patient"),
    (read_local_table, b"patient\nP\n", "no feature"),
    (read_local_table, b"patient\ta\nP\t1\t2\n", "not a table of numbers"),
    (lambda p: read_xena_matrix(p, ["A"]), b"id\tA\nx\tmany\n", "not a Xena matrix"),
    (lambda p: read_xena_matrix(p, ["A"]), b"id\tA\tA\nx\t1\t1\n", "stands in the header twice"),
    (lambda p: read_xena_matrix(p, ["A"]), b"id\tA\nx\t1\nx\t1\n", "x comes twice"),
    (lambda p: read_xena_matrix(p, ["A"]), b"id\tA\n", "without rows"),
    (lambda p: read_xena_matrix(p, ["A"]), b"id\tA\nx\tinf\n", "infinite"),
]


@pytest.mark.parametrize("case", range(len(MALFORMED)))
def test_malformed_files_are_refused_by_name(case: int, tmp_path: Path) -> None:
    read, content, message = MALFORMED[case]
    path = _write(tmp_path / "file.tsv", content)
    with pytest.raises(OmicsFormatError, match=message) as caught:
        read(path)
    assert "file.tsv" in str(caught.value)


def test_doubled_features_are_refused(tmp_path: Path) -> None:
    double = [_write(tmp_path / "m.txt", MIRNA_HEAD + "a\t1\t1.0\tN\na\t2\t1.0\tN\n")]
    with pytest.raises(OmicsFormatError, match="feature a comes twice"):
        read_omics(_cohort(mirna=double), "gdc", tmp_path)
    with pytest.raises(OmicsFormatError, match="feature cg1 comes twice"):
        stack_betas([_write(tmp_path / "b.txt", "cg1\t0.5\ncg1\t0.5\n")])


FUZZED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "star": (read_star_counts, _star({f"ENSG{i:011d}.1": i for i in range(6)})),
    "mirna": (read_mirna_counts, MIRNA_HEAD + "".join(f"hsa-mir-{i}\t{i}\t{i}.5\tN\n" for i in range(8))),
    "betas": (read_sesame_betas, "".join(f"cg{i:08d}\t0.{i}123\n" for i in range(1, 10)) + "cg9\tNA\n"),
    "table": (read_local_table, "patient\ta\tb\n" + "".join(f"P{i}\t{i}\t0.5\n" for i in range(8))),
    "xena": (
        lambda p: read_xena_matrix(p, ["S1", "S2"]),
        "id\tS1\tS2\n" + "".join(f"g{i}\t{i}\t1.5\n" for i in range(8)),
    ),
}
BYTES = [
    b"\t",
    b"\n",
    b"\r",
    b"\x00",
    b'"',
    b"-",
    b"x",
    b"1e999",
    b"\xff",
    b"\xc3\xa9",
    b"",
    b"NA",
    b".",
    b",",
    b"#",
    b"9" * 30,
]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FUZZED))
def test_ten_thousand_malformed_lines(name: str, tmp_path: Path) -> None:
    """Files with ten damaged lines each, a thousand of them: a result that is sound, or the documented error."""
    read, text = FUZZED[name]
    rng = random.Random(name)
    path = tmp_path / "file.tsv"
    lines = text.encode().splitlines(keepends=True)
    refused = 0
    for _ in range(1000):
        damaged = list(lines)
        # From one to all: light damage reaches the later checks, heavy damage the parser.
        for _ in range(rng.choice([1, 10, 29])):
            row = rng.randrange(len(damaged))
            line = damaged[row]
            at = rng.randrange(len(line) + 1)
            damaged[row] = line[:at] + rng.choice(BYTES) + line[at + rng.randint(0, 2) :]
        path.write_bytes(b"".join(damaged))
        try:
            result = read(path)
        except OmicsFormatError:
            refused += 1
            continue
        if name == "star" or name == "mirna":
            assert len(result.names) == len(result.values) > 0
            assert result.values.min() >= 0
        elif name == "betas":
            known = result.values[~np.isnan(result.values)]
            assert ((known >= 0) & (known <= 1)).all()
        else:
            values = result[0] if name == "xena" else result.to_numpy()
            assert not np.isinf(values).any()
    assert refused > 300


@pytest.mark.parametrize("version", ["0.3", "0.4"])
def test_tables_are_kept_apart_with_either_mudata(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.3 copies columns unless told not to; 0.4 has no such option, and asking for it would be an AttributeError."""
    asked: list[dict[str, bool]] = []
    if version == "0.3":
        monkeypatch.setattr("mudata.set_options", lambda **options: asked.append(options), raising=False)
    else:
        monkeypatch.delattr("mudata.set_options", raising=False)
    keep_tables_apart()
    assert asked == ([{"pull_on_update": False}] if version == "0.3" else [])


# --- what is read, as hashes ----------------------------------------------------------------------------------------


def test_inputs_follow_the_content_the_patients_and_their_order(tmp_path: Path) -> None:
    places = [tmp_path / "rna" / f"id{i}" for i in range(3)]
    for place in places:
        place.mkdir(parents=True)
    files = [_write(place / f"{i}.tsv", _star({"ENSG1.1": i})) for i, place in enumerate(places)]
    cohort = _cohort(rna=files)

    def inputs(chosen: Cohort = cohort) -> dict[str, str]:
        return omics_inputs(chosen, "gdc", tmp_path, Contents())

    first = inputs()
    assert set(first) == {"patients", "rna"}
    os.utime(files[0], (1, 1))
    assert inputs() == first
    turned = dataclasses.replace(cohort, table=cohort.table.iloc[::-1])
    assert {name for name in first if inputs(turned)[name] != first[name]} == {"patients", "rna"}
    swapped = cohort.table.assign(rna_path=cohort.table["rna_path"].tolist()[::-1])
    assert inputs(dataclasses.replace(cohort, table=swapped))["rna"] != first["rna"]
    relative = cohort.table.assign(rna_path=[f"rna/id{i}/{i}.tsv" for i in range(3)])
    assert inputs(dataclasses.replace(cohort, table=relative)) == first
    assert read_omics(dataclasses.replace(cohort, table=relative), "gdc", tmp_path)["rna"].X[2, 0] == 2
    _write(files[1], _star({"ENSG1.1": 7}))  # the same size
    assert inputs()["rna"] != first["rna"]
    files[1].unlink()
    assert inputs()["rna"] == "missing"


def test_inputs_of_a_users_tables_are_those_tables_and_their_mapping(tmp_path: Path) -> None:
    table = _write(tmp_path / "mirna.tsv", "patient\ta\nP0\t1\nP1\t2\n")
    cohort = _cohort(mirna=[table, table])
    first = omics_inputs(cohort, "local", tmp_path, Contents())
    assert set(first) == {"patients", "mirna"}
    _write(tmp_path / "columns.json", '{"mirna": {"patient": "patient"}}')
    assert set(omics_inputs(cohort, "local", tmp_path, Contents())) == {"patients", "mirna", "columns.json"}
    _write(table, "patient\ta\nP0\t1\nP1\t3\n")
    assert omics_inputs(cohort, "local", tmp_path, Contents())["mirna"] != first["mirna"]
