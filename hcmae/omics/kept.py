"""Omics that lie in a run folder: the MuData that was read from the raw tables, and tables of normal tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from hcmae.cohort.evidence import CurationError
from hcmae.cohort.local import normal_file, sample_barcode
from hcmae.config import ConfigError
from hcmae.omics.readers import by_patient, keep_tables_apart, read_units
from hcmae.omics.recognise import converted

if TYPE_CHECKING:
    import mudata


def read_h5mu(path: str | Path) -> mudata.MuData:
    """A MuData from disk, its modalities left as they were written."""
    import mudata

    keep_tables_apart()
    return mudata.read_h5mu(path)


def normal_tables(root: Path, modalities: Sequence[str]) -> dict[str, Path]:
    """Tables of normal tissue, ``normal_rna.tsv`` and so on, beside the raw data.

    Raises ConfigError naming the first that is not there, or of which there are two.
    """
    found = {}
    for modality in modalities:
        try:
            path = normal_file(root, modality)
        except CurationError as error:
            raise ConfigError(str(error)) from None
        if path is None:
            missing = root / f"normal_{modality}.tsv"
            raise ConfigError(
                f"omics.contrast is tumour_normal, but {missing} is missing: put a table of normal tissue there "
                "(rows samples, columns the features of the tumours) or choose contrast horizon"
            )
        found[modality] = path
    return found


def read_normals(root: Path, modalities: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The tables of normal tissue themselves, in the unit that ``attrs['unit']`` names.

    Raises ConfigError as ``normal_tables``, and where a row is a tumour's by its barcode; OmicsFormatError for a table
    that cannot be read or whose unit is unclear.
    """
    tables = {}
    for modality, path in normal_tables(root, modalities).items():
        rows, found = read_units(path, modality, root)
        tumours = [name for name in rows.index if (code := sample_barcode(name)) is not None and code.is_tumour]
        if tumours:
            raise ConfigError(f"{path}: {tumours[0]} is a tumour by its barcode; keep normal tissue only here")
        frame = by_patient(rows, path)
        values, unit = converted(frame.to_numpy(), found.unit)
        tables[modality] = pd.DataFrame(values, index=frame.index, columns=frame.columns)
        tables[modality].attrs["unit"] = unit.name
    return tables
