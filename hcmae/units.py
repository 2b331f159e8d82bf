"""Names of units: of the omics tables that people bring, and of survival times.

A unit says what the numbers of a table are; its scale says what the selection does with them
(:mod:`hcmae.omics.scales`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_EXPRESSION = ("rna", "mirna")
_ANY = ("rna", "mirna", "methylation")


@dataclass(frozen=True)
class Unit:
    """One unit of an omics table.

    ``scale``: what the selection does with it, one of `hcmae.omics.scales.SCALES`; ``modalities``: tables that can have
    it; ``meaning``: in words; ``done``: what the reader does before anybody else sees the numbers; ``bounds``: the
    smallest and the largest value that the unit allows.
    """

    name: str
    scale: str
    modalities: tuple[str, ...]
    meaning: str
    done: str
    bounds: tuple[float, float]


_INF = float("inf")
UNITS: Mapping[str, Unit] = MappingProxyType(
    {
        unit.name: unit
        for unit in (
            Unit("counts", "counts", _EXPRESSION, "reads per gene, whole numbers", "nothing", (0, _INF)),
            Unit(
                "expected_counts",
                "counts",
                _EXPRESSION,
                "estimated reads of RSEM, kallisto or salmon",
                "rounded to whole counts",
                (0, _INF),
            ),
            Unit("rpm", "rpm", _EXPRESSION, "reads per million (CPM)", "nothing", (0, _INF)),
            Unit("tpm", "rpm", ("rna",), "transcripts per million", "nothing", (0, _INF)),
            Unit("fpkm", "rpm", ("rna",), "fragments per kilobase and million (RPKM)", "nothing", (0, _INF)),
            # 2^40 reads are more than any sequencer gives.
            Unit("log2_counts", "log", _EXPRESSION, "log2(counts + 1)", "nothing", (0, 40)),
            Unit("log2_rpm", "log", _EXPRESSION, "log2(RPM + 1)", "nothing", (0, 40)),
            Unit("log2_tpm", "log", ("rna",), "log2(TPM + 1)", "nothing", (0, 40)),
            Unit("log2_fpkm", "log", ("rna",), "log2(FPKM + 1)", "nothing", (0, 40)),
            Unit("log2", "log", _EXPRESSION, "a logarithm of another kind", "nothing", (-64, 40)),
            Unit("z_score", "log", _ANY, "standard deviations from a mean", "nothing", (-_INF, _INF)),
            Unit("beta", "beta", ("methylation",), "share of methylated copies, 0 to 1", "nothing", (0, 1)),
            Unit("beta_percent", "beta", ("methylation",), "the same, 0 to 100", "divided by 100", (0, 100)),
            Unit("m_value", "mvalue", ("methylation",), "log2(beta / (1 - beta))", "nothing", (-64, 64)),
        )
    }
)

# Other spellings, without anything but letters and digits.
_SPELT = {
    "count": "counts", "rawcounts": "counts", "readcounts": "counts", "expectedcount": "expected_counts",
    "cpm": "rpm", "rpkm": "fpkm", "log2counts1": "log2_counts", "log2count1": "log2_counts", "log2count": "log2_counts",
    "log2rpm1": "log2_rpm", "log2cpm": "log2_rpm", "log2cpm1": "log2_rpm", "log2tpm1": "log2_tpm",
    "log2fpkm1": "log2_fpkm", "log2rpkm": "log2_fpkm", "log2rpkm1": "log2_fpkm", "log": "log2", "betas": "beta",
    "betavalue": "beta", "betavalues": "beta", "percent": "beta_percent", "percentage": "beta_percent",
    "mvalues": "m_value", "m": "m_value", "z": "z_score", "zscores": "z_score", "rsem": "expected_counts",
}  # fmt: skip
_BY_LETTERS = {name.replace("_", ""): name for name in UNITS} | _SPELT

# Words in the name of a file that state a unit ("mirna_rpm.tsv.gz"); the longest that fits counts.
_IN_FILE_NAMES = (
    "expected_counts", "expected_count", "counts", "count", "rpm", "cpm", "tpm", "fpkm", "rpkm", "zscore", "zscores",
    "z_score", "z_scores", "beta", "betas", "mvalue", "mvalues", "m_value", "m_values",
)  # fmt: skip

TIME_UNITS: Mapping[str, float] = MappingProxyType({"days": 1.0, "weeks": 7.0, "months": 30.4375, "years": 365.25})


def unit_named(text: object, modality: str) -> Unit:
    """The unit that a user writes for a modality; other usual spellings are understood ('log2(TPM + 1)', 'z-score').

    Raises ValueError that lists the units of the modality.
    """
    letters = re.sub(r"[^a-z0-9]", "", str(text).lower())
    unit = UNITS.get(_BY_LETTERS.get(letters, ""))
    if unit is None or modality not in unit.modalities:
        known = ", ".join(name for name, unit in UNITS.items() if modality in unit.modalities)
        raise ValueError(f"unit '{text}' is none of a table of {modality}: choose one of {known}")
    return unit


def unit_in_name(file_name: str, modality: str) -> Unit | None:
    """The unit that a file's name states as a word of its own ('rna_tpm.tsv'), with 'log2' if that stands there too."""
    words = "_" + re.sub(r"[^a-z0-9]+", "_", file_name.lower()) + "_"
    found = [word for word in _IN_FILE_NAMES if f"_{word}_" in words]
    if not found:
        return None
    word = max(found, key=len)
    log = "log2_" if re.search(r"_log2?_", words) else ""
    unit = UNITS.get(_BY_LETTERS.get((log + word).replace("_", ""), ""))
    return unit if unit is not None and modality in unit.modalities else None
