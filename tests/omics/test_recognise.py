"""The unit of a table is stated or recognised with a reason; what does not fit is named and never flips a table."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hcmae.cohort.curate import Cohort
from hcmae.omics.kept import read_normals
from hcmae.omics.readers import OmicsFormatError, read_omics, read_units
from hcmae.omics.recognise import UnitError, converted, recognise
from hcmae.tables import TableNote
from hcmae.units import UNITS

PATIENTS = [f"P{i:02d}" for i in range(40)]
FEATURES = [f"G{i}" for i in range(120)]


def _values(kind: str, seed: int = 0) -> np.ndarray:
    """A table [40, 120] of one unit, with libraries of different depth."""
    rng = np.random.default_rng(seed)
    shape = (len(PATIENTS), len(FEATURES))
    counts = rng.poisson(rng.lognormal(0, 0.5, (shape[0], 1)) * rng.lognormal(4, 1.5, (1, shape[1]))).astype(float)
    million = counts / counts.sum(axis=1, keepdims=True) * 1e6
    share = rng.beta(0.6, 0.8, shape)
    return {
        "counts": counts,
        "expected_counts": np.where(rng.random(shape) < 0.4, counts + rng.uniform(0, 1, shape), counts),
        "ambiguous": counts + rng.uniform(0.01, 0.99, shape),
        "rpm": million,
        "log2_counts": np.round(np.log2(counts + 1), 4),
        "log2_rpm": np.round(np.log2(million + 1), 4),
        "log2": np.round(np.log2(million * 0.3 + 1), 4),
        "log2_centred": np.log2(counts + 1) - np.log2(counts + 1).mean(),
        "z_score": (np.log2(counts + 1) - np.log2(counts + 1).mean(0)) / np.log2(counts + 1).std(0),
        "beta": share,
        "beta_percent": share * 100,
        "m_value": np.log2(np.clip(share, 0.01, 0.99) / (1 - np.clip(share, 0.01, 0.99))),
    }[kind].astype(np.float32)


def _unit(values: np.ndarray, modality: str = "rna", **more: Any) -> str:
    return recognise(values, modality, PATIENTS, FEATURES, f"{modality}.tsv", **more).unit.name


@pytest.mark.parametrize(
    ("kind", "modality", "unit"),
    [
        ("counts", "rna", "counts"),
        ("expected_counts", "rna", "expected_counts"),
        ("rpm", "mirna", "rpm"),
        ("rpm", "rna", "tpm"),
        ("log2_counts", "rna", "log2_counts"),
        ("log2_rpm", "mirna", "log2_rpm"),
        ("log2_rpm", "rna", "log2_tpm"),
        ("log2", "rna", "log2"),
        ("log2_centred", "rna", "log2"),
        ("z_score", "mirna", "z_score"),
        ("beta", "methylation", "beta"),
        ("beta_percent", "methylation", "beta_percent"),
        ("m_value", "methylation", "m_value"),
    ],
)
def test_plain_tables_are_recognised_with_a_reason(kind: str, modality: str, unit: str) -> None:
    found = recognise(_values(kind), modality, PATIENTS, FEATURES, "x")
    assert found.unit.name == unit
    assert found.reason.startswith("because ")
    assert not found.stated


@pytest.mark.parametrize(
    ("kind", "modality", "value", "message"),
    [
        ("counts", "rna", 2.5, r"patient P03, feature G7: 2\.5 is no whole number, while nearly all others are"),
        ("counts", "rna", -1, "patient P03, feature G7: -1 is negative, while nearly all others are not"),
        ("rpm", "rna", -0.5, "patient P03, feature G7: -0.5 is negative"),
        ("log2_counts", "rna", -4, "patient P03, feature G7: -4 is negative"),
        ("beta", "methylation", -0.1, "patient P03, feature G7: -0.1 is no share between 0 and 1, while nearly all"),
        ("beta", "methylation", 50, "patient P03, feature G7: 50 is no share between 0 and 1"),
        ("counts", "rna", np.nan, "patient P03, feature G7: the value is missing; counts have no missing values"),
        ("expected_counts", "rna", np.nan, "patient P03, feature G7: the value is missing"),
    ],
)
def test_one_odd_value_is_named_and_never_changes_the_unit(
    kind: str, modality: str, value: float, message: str
) -> None:
    values = _values(kind)
    values[3, 7] = value
    with pytest.raises(UnitError, match=rf"^table\.tsv: {message}") as caught:
        recognise(values, modality, PATIENTS, FEATURES, "table.tsv")
    assert f'{{"units": {{"{modality}": ...}}}}' in str(caught.value)


@given(st.integers(0, 39), st.integers(0, 119), st.integers(0, 3), st.floats(-50, 50, width=32).map(lambda x: x + 0.25))
@settings(max_examples=60, deadline=None)
def test_whichever_value_is_odd_the_table_keeps_its_unit_or_is_refused(
    row: int, column: int, which: int, odd: float
) -> None:
    kind, modality = (("counts", "rna"), ("beta", "methylation"), ("rpm", "mirna"), ("m_value", "methylation"))[which]
    values = _values(kind)
    values[row, column] = odd
    found = message = ""
    try:
        found = _unit(values, modality)
    except UnitError as error:
        message = str(error)
    assert found == kind or f"patient P{row:02d}, feature G{column}: {odd:g} " in message


@pytest.mark.parametrize(
    ("values", "modality", "message"),
    [
        (_values("ambiguous"), "rna", "RPM, TPM, FPKM and expected counts look like this"),
        (np.rint(_values("rpm")), "rna", "add up to a million, as rounded RPM or TPM do"),
        (_values("beta"), "rna", "between 0 and 1, as no expression does"),
        (_values("z_score") * 1000, "rna", "as neither logarithms nor z-scores do"),
        (_values("beta") * 8, "methylation", "not in per cent either"),
        (_values("counts") * np.nan, "rna", "no value at all"),
    ],
)
def test_what_is_not_plain_is_refused_until_it_is_stated(values: np.ndarray, modality: str, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        _unit(values, modality)


def _half(kind: str, other: str) -> np.ndarray:
    """A table whose second half of patients is in another unit."""
    values = _values(kind)
    values[20:] = _values(other)[20:]
    return values


def _marked(kind: str, *marks: float) -> np.ndarray:
    """A table with marks for missing values strewn over it."""
    values = _values(kind)
    for number, mark in enumerate(marks):
        values[number :: len(marks) + 2, ::3] = mark
    return values


@pytest.mark.parametrize(
    ("values", "modality", "message"),
    [
        (_half("counts", "log2_counts"), "rna", "no value of patient P20 is above .* holds two units"),
        (_half("log2_rpm", "rpm"), "mirna", "no value of patient P00 is above .* holds two units"),
        (_half("beta", "beta_percent"), "methylation", "no value of patient P00 is above .* holds two units"),
        (_marked("beta", -1), "methylation", "patient P00, feature G0: -1 is the only negative value"),
        (_marked("rpm", -9), "mirna", "patient P00, feature G0: -9 is the only negative value"),
        (_marked("counts", -1, -9), "rna", "patient P00, feature G0: -1 is one of few that are negative"),
        (np.minimum(_values("counts"), 9999) / 1000, "rna", "if the point separates thousands"),
    ],
)
def test_two_units_marks_and_thousands_in_a_table_are_no_unit(values: np.ndarray, modality: str, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        _unit(values, modality)


@pytest.mark.parametrize(
    ("kind", "stated", "modality", "message"),
    [
        ("ambiguous", "counts", "rna", "patient P00, feature G0: .* is no whole number, as counts are"),
        ("z_score", "tpm", "rna", "is no value of the unit tpm"),
        ("counts", "log2_counts", "rna", "is no value of the unit log2_counts"),
        ("rpm", "log2", "rna", r"is no value of the unit log2 \("),
        ("beta_percent", "beta", "methylation", "is no value of the unit beta"),
        ("beta", "beta_percent", "methylation", "these are shares, not per cent"),
        ("beta", "m_value", "methylation", r"these are shares \(beta\), not M-values"),
        ("counts", "z_score", "rna", "no value is negative"),
        ("counts", "beta", "rna", "unit 'beta' is none of a table of rna"),
    ],
)
def test_a_stated_unit_that_the_values_contradict_is_refused(
    kind: str, stated: str, modality: str, message: str
) -> None:
    with pytest.raises(UnitError, match=message):
        _unit(_values(kind), modality, stated=stated)


def test_statements_come_before_names_of_files_and_those_before_guesses() -> None:
    assert _unit(_values("ambiguous"), stated="fpkm", file_name="rna_tpm.tsv") == "fpkm"
    with pytest.warns(UserWarning, match="as the name of the file says; but .*right for a panel"):
        assert _unit(_values("ambiguous"), file_name="rna_tpm.tsv") == "tpm"
    with pytest.raises(UnitError, match="is no whole number"):
        _unit(_values("log2_counts"), file_name="rna_counts.tsv")


@pytest.mark.parametrize("how", ["stated", "file_name"])
@pytest.mark.parametrize(
    ("kind", "factor", "claim", "modality", "seen"),
    [
        ("log2_rpm", 1, "tpm", "rna", r"largest value is [\d.]+ \(patient P\d+, feature G\d+; .*look like logarithms"),
        ("log2_rpm", 1, "rpm", "mirna", "look like logarithms"),
        ("log2_counts", 1, "fpkm", "rna", "look like logarithms"),
        ("log2_counts", 1, "expected_counts", "rna", "look like logarithms"),
        ("counts", 500, "tpm", "rna", r"patient P\d+ add up to [\d,]+: these look like counts"),
        ("counts", 500, "rpm", "mirna", "look like counts"),
        ("counts", 500, "fpkm", "rna", "look like counts"),
        ("rpm", 20, "tpm", "rna", r"patient P\d+, feature G\d+: .* is more than a million: no value of the unit tpm"),
        ("rpm", 1, "log2_tpm", "rna", r"patient P\d+, feature G\d+: .* is no value of the unit log2_tpm"),
    ],
)
def test_no_unit_is_believed_against_the_numbers(
    kind: str, factor: int, claim: str, modality: str, seen: str, how: str
) -> None:
    values = _values(kind) * np.float32(factor)
    given = {how: claim if how == "stated" else f"{modality}_{claim}.tsv"}
    with pytest.raises(UnitError, match=rf"^{modality}\.tsv: .*{seen}") as caught:
        _unit(values, modality, **given)
    assert "columns.json" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "claim", "seen"),
    [
        (
            _values("rpm")[:, :60] / 20,
            "tpm",
            r"for patient P00 the values add up to [\d,]+, where a million.*panel",
        ),
        (_values("counts"), "tpm", "all are whole numbers, as counts are; this is right for a panel"),
        (_values("counts") * 50, "tpm", "all values are whole numbers, as counts are"),
        (_values("log2_counts"), "log2_tpm", r"the numbers 2\^value - 1 add up to [\d,]+, where a million"),
        (np.rint(_values("rpm")), "counts", "all patients add up to a million, as RPM or TPM do"),
    ],
)
def test_an_unlikely_unit_is_taken_and_warned_of(values: np.ndarray, claim: str, seen: str) -> None:
    with pytest.warns(UserWarning, match=rf"^rna\.tsv: {claim} \(.*\), as stated; but .*{seen}"):
        assert recognise(values, "rna", PATIENTS, FEATURES, "rna.tsv", stated=claim).unit.name == claim


def test_a_true_statement_is_taken_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, claim in (
            ("rpm", "tpm"), ("log2_rpm", "log2_tpm"), ("counts", "counts"), ("expected_counts", "expected_counts"),
            ("log2", "log2"), ("log2_counts", "log2_counts"), ("z_score", "z_score"), ("ambiguous", "fpkm"),
        ):  # fmt: skip
            assert _unit(_values(kind), stated=claim) == claim
        # Rounded, as some tables are.
        assert _unit(np.rint(_values("rpm")), file_name="rna_tpm.tsv") == "tpm"


def test_only_expected_counts_and_per_cent_are_converted() -> None:
    for name, unit in UNITS.items():
        values = _values("beta_percent")
        after, now = converted(values, unit)
        if name == "expected_counts":
            np.testing.assert_array_equal(after, np.rint(values))
        elif name == "beta_percent":
            np.testing.assert_allclose(after, values / 100, rtol=1e-6)
        else:
            assert after is values
        assert now.name == {"expected_counts": "counts", "beta_percent": "beta"}.get(name, name)


@given(
    arrays.arrays(np.float32, (4, 3), elements=st.floats(-200, 2**20, width=32) | st.just(np.nan) | st.integers(0, 9)),
    st.sampled_from(["rna", "mirna", "methylation"]),
    st.none() | st.sampled_from(sorted(UNITS)),
)
@settings(max_examples=100, deadline=None)
def test_any_numbers_end_in_a_unit_that_allows_them_or_in_the_documented_error(
    values: np.ndarray, modality: str, stated: str | None
) -> None:
    try:
        found = recognise(values, modality, PATIENTS[:4], FEATURES[:3], "x", stated=stated)
    except UnitError:
        return
    low, high = found.unit.bounds
    assert ((values >= low) & (values <= high) | np.isnan(values)).all()
    assert modality in found.unit.modalities


# ---------------------------------------------------------------- a user's folder


def _folder(folder: Path, kind: str, modality: str = "rna", **columns: Any) -> Path:
    frame = pd.DataFrame(_values(kind), PATIENTS, FEATURES)
    frame.to_csv(folder / f"{modality}.tsv", sep="\t", index_label="patient")
    if columns:
        (folder / "columns.json").write_text(json.dumps(columns))
    return folder


def _read(folder: Path, modality: str = "rna") -> Any:
    some = PATIENTS[:30]
    table = pd.DataFrame({f"{modality}_path": str(folder / f"{modality}.tsv"), "time": range(30), "event": 0}, some)
    return read_omics(Cohort(table, pd.DataFrame(), pd.DataFrame()), "local", folder)[modality]


def test_logarithms_stay_as_they_are_and_it_is_said(tmp_path: Path) -> None:
    with pytest.warns(TableNote, match=r"^rna\.tsv: log2_counts \(log2\(counts \+ 1\)\), because no value is above"):
        part = _read(_folder(tmp_path, "log2_counts"))
    np.testing.assert_allclose(part.X, _values("log2_counts")[:30], rtol=1e-5)
    assert part.uns["unit"] == "log2_counts"


def test_expected_counts_are_rounded_and_it_is_said(tmp_path: Path) -> None:
    with pytest.warns(TableNote, match="expected_counts.*; rounded to whole counts"):
        part = _read(_folder(tmp_path, "expected_counts"))
    np.testing.assert_array_equal(part.X, np.rint(_values("expected_counts")[:30]))
    assert (part.uns["unit"], "rounded" in part.uns["read_as"]) == ("counts", True)


def test_a_stated_unit_is_taken_without_a_word(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "ambiguous", units={"rna": "expected counts"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", TableNote)
        assert _read(folder).uns["unit"] == "counts"
    _folder(tmp_path, "ambiguous", units={"rna": "FPKM"})
    assert _read(tmp_path).uns["unit"] == "fpkm"
    _folder(tmp_path, "ambiguous", units={"rna": "counts"})
    with pytest.raises(OmicsFormatError, match=r"rna\.tsv: patient P00, feature G0.*as counts are"):
        _read(tmp_path)


def test_a_file_whose_name_says_tpm_and_that_holds_logarithms_is_refused(tmp_path: Path) -> None:
    path = _folder(tmp_path, "log2_rpm") / "rna.tsv"
    path = path.rename(tmp_path / "rna_tpm.tsv")
    with pytest.raises(OmicsFormatError, match=r"rna_tpm\.tsv: tpm .*, as the name of the file says; but the largest"):
        read_units(path, "rna", tmp_path)
    (tmp_path / "columns.json").write_text(json.dumps({"units": {"rna": "log2_tpm"}}))
    assert read_units(path, "rna", tmp_path)[1].unit.name == "log2_tpm"


def test_per_cent_become_shares(tmp_path: Path) -> None:
    with pytest.warns(TableNote, match="beta_percent.*; divided by 100"):
        part = _read(_folder(tmp_path, "beta_percent", "methylation"), "methylation")
    np.testing.assert_allclose(part.X, _values("beta_percent")[:30] / 100, rtol=1e-5)
    assert part.uns["unit"] == "beta"


def test_normal_tissue_is_read_in_its_unit(tmp_path: Path) -> None:
    _folder(tmp_path, "expected_counts", "normal_rna", units={"rna": "expected_counts"})
    normal = read_normals(tmp_path, ["rna"])["rna"]
    np.testing.assert_array_equal(normal.to_numpy(), np.rint(_values("expected_counts")))
    assert normal.attrs["unit"] == "counts"


def test_the_real_tables_say_what_they_are(shared_data: Path) -> None:
    root = shared_data / "lihc_real"
    for name, modality, unit in (("rna_zscore", "rna", "z_score"), ("mirna_rpm", "mirna", "rpm")):
        frame, found = read_units(root / f"{name}.tsv.gz", modality, root)
        assert (found.unit.name, found.reason) == (unit, "as the name of the file says")
        if modality == "mirna":
            assert recognise(frame.to_numpy(), modality, frame.index, frame.columns, "x").unit.name == "rpm"
