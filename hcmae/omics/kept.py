"""Omics that lie in a run folder: the MuData that was read from the raw tables, and tables of normal tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from hcmae.cohort.local import sample_barcode, table_samples
from hcmae.config import ConfigError
from hcmae.omics.readers import keep_tables_apart, read_local_table

if TYPE_CHECKING:
    import mudata


def read_h5mu(path: str | Path) -> mudata.MuData:
    """A MuData from disk, its modalities left as they were written."""
    import mudata

    keep_tables_apart()
    return mudata.read_h5mu(path)


def normal_tables(root: Path, modalities: Sequence[str]) -> dict[str, Path]:
    """Tables of normal tissue, ``normal_rna.tsv`` and so on, beside the raw data.

    Raises ConfigError naming the first that is not there.
    """
    found = {}
    for modality in modalities:
        path = root / f"normal_{modality}.tsv"
        if not path.exists():
            raise ConfigError(
                f"omics.contrast is tumour_normal, but {path} is missing: put a table of normal tissue there "
                "(rows samples, columns the features of the tumours) or choose contrast horizon"
            )
        found[modality] = path
    return found


def read_normals(root: Path, modalities: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The tables of normal tissue themselves, raw.

    Raises ConfigError as ``normal_tables``, and where a row is a tumour's by its barcode; CurationError or
    OmicsFormatError for a table that cannot be read.
    """
    found = normal_tables(root, modalities)
    for path in found.values():
        samples = [sample for own in table_samples(path).values() for sample in own]
        tumours = [s for s in samples if (code := sample_barcode(s)) is not None and code.is_tumour]
        if tumours:
            raise ConfigError(f"{path}: {tumours[0]} is a tumour by its barcode; keep normal tissue only here")
    return {modality: read_local_table(path) for modality, path in found.items()}
