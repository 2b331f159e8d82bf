"""Names of units: every usual spelling means one unit, and a unit belongs to its modalities."""

from __future__ import annotations

import pytest

from hcmae.omics.scales import SCALES
from hcmae.units import UNITS, unit_in_name, unit_named


@pytest.mark.parametrize(
    ("text", "modality", "unit"),
    [
        ("counts", "rna", "counts"),
        ("Expected counts", "rna", "expected_counts"),
        ("log2(count + 1)", "rna", "log2_counts"),
        ("log2(TPM+1)", "rna", "log2_tpm"),
        ("CPM", "mirna", "rpm"),
        ("z-scores", "rna", "z_score"),
        ("M-values", "methylation", "m_value"),
        ("per cent", "methylation", "beta_percent"),
        ("beta", "rna", None),
        ("counts", "methylation", None),
        ("bananas", "rna", None),
        (3, "rna", None),
    ],
)
def test_units_by_name(text: object, modality: str, unit: str | None) -> None:
    if unit is None:
        with pytest.raises(ValueError, match=f"is none of a table of {modality}: choose one of "):
            unit_named(text, modality)
    else:
        assert unit_named(text, modality).name == unit


@pytest.mark.parametrize(
    ("name", "modality", "unit"),
    [
        ("rna_zscore.tsv.gz", "rna", "z_score"),
        ("mirna_rpm.tsv", "mirna", "rpm"),
        ("rna_log2_tpm.csv", "rna", "log2_tpm"),
        ("rna_expected_counts.tsv", "rna", "expected_counts"),
        ("rna_counts.tsv", "rna", "counts"),
        ("mirna_tpm.tsv", "mirna", None),
        ("rna_country.tsv", "rna", None),
        ("rna.tsv", "rna", None),
    ],
)
def test_a_file_name_states_a_unit_as_a_word_of_its_own(name: str, modality: str, unit: str | None) -> None:
    found = unit_in_name(name, modality)
    assert (found.name if found else None) == unit


def test_every_unit_has_a_scale_and_finds_itself() -> None:
    for name, unit in UNITS.items():
        assert unit.scale in SCALES
        for modality in unit.modalities:
            assert unit_named(name, modality) is unit
