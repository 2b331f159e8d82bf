"""Single files of the GDC, read and checked: STAR counts, miRNA quantification, SeSAMe betas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from hcmae.tables import TableError, missing_spellings, read_plain

STAR_COLUMNS = ["gene_id", "gene_name", "gene_type", "unstranded"]
MIRNA_COLUMNS = ["miRNA_ID", "read_count"]
MISSING = missing_spellings()


class OmicsFormatError(ValueError):
    """An omics file that is not what it should be; the message names file, line or column, and what to do."""


@dataclass(frozen=True)
class Reading:
    """One file: feature names and values; NaN where missing (betas only)."""

    names: pa.Array  # [F] string
    values: np.ndarray  # [F] int64 counts or float32 betas
    annotation: pd.DataFrame | None = None


def read_star_counts(path: str | Path, *, annotation: bool = True) -> Reading:
    """STAR gene counts of the GDC (GENCODE v36): raw unstranded counts of all genes.

    The four N_ rows are dropped. Names are the ids of the file, which are unique; the annotation has them without
    version too (``ENSG00000000003.15`` -> ``ENSG00000000003``), where pseudo-autosomal copies keep their mark
    (``ENSG00000182378_PAR_Y``). Raises OmicsFormatError.
    """
    path = Path(path)
    data = _bytes(path)
    skip = 1 if data.startswith(b"#") else 0
    columns = STAR_COLUMNS if annotation else ["gene_id", "unstranded"]
    types = {name: pa.string() for name in STAR_COLUMNS} | {"unstranded": pa.int64()}
    table = _parse(path, data, columns, types, skip=skip)
    ids, counts = table["gene_id"].combine_chunks(), table["unstranded"]
    keep = pc.invert(pc.starts_with(ids, "N_"))
    table, ids, counts = table.filter(keep), ids.filter(keep), counts.filter(keep)
    values = _counts(counts, path, "unstranded")
    _check_names(ids, path, "gene_id")
    notes = None
    if annotation:
        notes = pd.DataFrame(
            {
                "ensembl": _strip_versions(ids).to_pandas().to_numpy(),
                "gene_name": table["gene_name"].to_pandas().to_numpy(),
                "gene_type": table["gene_type"].to_pandas().to_numpy(),
            }
        )
    return Reading(ids, values, notes)


def read_mirna_counts(path: str | Path) -> Reading:
    """miRNA quantification of the GDC (miRBase v21 stem-loops): raw read counts. Raises OmicsFormatError."""
    path = Path(path)
    types = {"miRNA_ID": pa.string(), "read_count": pa.int64()}
    table = _parse(path, _bytes(path), MIRNA_COLUMNS, types)
    names = table["miRNA_ID"].combine_chunks()
    _check_names(names, path, "miRNA_ID")
    return Reading(names, _counts(table["read_count"], path, "read_count"))


def read_sesame_betas(path: str | Path) -> Reading:
    """SeSAMe betas of the GDC: probe and beta without header, 'NA' where masked; float32 with NaN.

    Replicate suffixes of EPIC v2 (``cg00000029_TC21``) are cut and replicates averaged, so that arrays merge by probe.
    Raises OmicsFormatError.
    """
    path = Path(path)
    data = _bytes(path)
    types = {"probe": pa.string(), "beta": pa.float64()}
    table = _parse(path, data, ["probe", "beta"], types, header=["probe", "beta"], missing=MISSING)
    names = table["probe"].combine_chunks()
    values = table["beta"].to_numpy(zero_copy_only=False)
    if not len(values):
        raise OmicsFormatError(f"{path}: holds no probe; fetch it again")
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    if low < 0 or high > 1 or np.isinf(values).any():
        row = int(np.flatnonzero((values < 0) | (values > 1))[0])
        raise OmicsFormatError(
            f"{path}: line {row + 1}: beta {values[row]:g} is not between 0 and 1; fetch the file again"
        )
    if len(names) and pc.any(pc.match_substring_regex(names.slice(0, 2000), "^c[gh][^_]*_[TB][CO]")).as_py():
        names, values = _average_replicates(names, values)
    _check_names(names, path, "probe")
    return Reading(names, values.astype(np.float32))


def _average_replicates(names: pa.Array, values: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    base = pc.replace_substring_regex(names, "_[TB][CO][0-9]+$", "")
    grouped = pd.Series(values).groupby(base.to_pandas().to_numpy(), sort=False).mean()
    return pa.array(grouped.index.to_numpy(), pa.string()), grouped.to_numpy()


def _bytes(path: Path) -> bytes:
    try:
        data = read_plain(path)
    except TableError as error:
        raise OmicsFormatError(f"{path}: {error}; fetch it again") from error
    if not data.strip():
        raise OmicsFormatError(f"{path}: empty file; fetch it again")
    return data


def _parse(
    path: Path,
    data: bytes,
    columns: Sequence[str],
    types: dict[str, Any],
    *,
    skip: int = 0,
    header: Sequence[str] | None = None,
    missing: Sequence[str] = (),
) -> pa.Table:
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(
                use_threads=False, skip_rows=skip, column_names=list(header) if header else None, block_size=1 << 25
            ),
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                include_columns=list(columns),
                null_values=list(missing),
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError, pa.ArrowCapacityError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OmicsFormatError(f"{path}: not in the expected format ({reason}); fetch it again") from error
    if not table.num_rows:
        raise OmicsFormatError(f"{path}: a header without rows; fetch it again")
    return table


def _counts(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    if column.null_count:
        raise OmicsFormatError(f"{path}: column {name} has an empty cell; fetch it again")
    values = column.to_numpy()
    if not len(values):
        raise OmicsFormatError(f"{path}: column {name} has no rows; fetch it again")
    if values.min() < 0:
        raise OmicsFormatError(f"{path}: column {name} has a negative count ({values.min()}); fetch it again")
    if values.max() >= 1 << 31:
        raise OmicsFormatError(
            f"{path}: column {name} has a count of {values.max()}, too large to be one; fetch it again"
        )
    return values


def _strip_versions(ids: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(ids, r"\.[0-9]+(_PAR_Y)?$", r"\1")


def _check_names(names: pa.Array, path: Path, column: str) -> None:
    if pc.any(pc.equal(names, "")).as_py():
        raise OmicsFormatError(f"{path}: column {column} has an empty name; fetch it again")
