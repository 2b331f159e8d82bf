"""Omics files into one MuData: STAR counts, miRNA quantification, SeSAMe betas, Xena matrices, a user's own tables.

Each file is read once, as two columns; values go straight into the row of their patient, so that memory is the matrix
and little more. Every malformed file raises OmicsFormatError with its path.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import ArrayLike

from hcmae.cohort.barcodes import named_patient
from hcmae.cohort.copies import line_of_equal_rows
from hcmae.cohort.evidence import CurationError, open_text
from hcmae.cohort.features import (
    doubts_of_names,
    index_names,
    no_molecules,
    outcome_names,
    outcome_values,
    row_counters,
)
from hcmae.cohort.local import check_labels, local_mapping, patient_column, sample_name
from hcmae.config import MODALITIES
from hcmae.content import Contents, content_id
from hcmae.omics.gdc_files import (
    MISSING,
    OmicsFormatError,
    Reading,
    read_mirna_counts,
    read_sesame_betas,
    read_star_counts,
)
from hcmae.omics.recognise import Recognition, UnitError, converted, recognise
from hcmae.tables import (
    TableError,
    check_last_lines,
    doubt,
    first_bad_number,
    open_plain,
    read_head,
    read_rows,
    say,
    why_no_number,
)
from hcmae.units import unit_in_name

if TYPE_CHECKING:
    import anndata
    import mudata

    from hcmae.cohort.curate import Cohort


def read_omics(cohort: Cohort, source: str, root: str | Path) -> mudata.MuData:
    """The omics of a cohort as MuData; modalities in the order rna, mirna, methylation, those the cohort has.

    Every modality holds the patients of ``cohort.table`` in its order. X [patients, features]: rna and mirna integer
    counts as float32 (exact up to 2^24, 16,777,216), methylation betas float32 with NaN. ``uns['unit']`` of a
    modality says what the numbers are, one of `hcmae.units.UNITS`: 'counts', 'beta', 'rpm' for Xena's miRNA, and for a
    user's table what columns.json states or what was recognised (``uns['read_as']`` has the reason, and a `TableNote`
    says it).
    rna.var, named by gene id with version: ensembl (the id without version), gene_name, gene_type. Genotype probes
    (``rs...``) are left out of methylation.

    Raises OmicsFormatError for a malformed or missing file.
    """
    import mudata

    table = cohort.table
    parts: dict[str, anndata.AnnData] = {}
    for modality in MODALITIES:
        column = f"{modality}_path"
        if column not in table.columns or table[column].isna().all():
            continue
        if table[column].isna().any():
            raise OmicsFormatError(
                f"{modality}: patient {table.index[table[column].isna()][0]} has no file; curate the cohort again"
            )
        paths = [_locate(Path(p), Path(root)) for p in table[column]]
        samples = list(table.get(f"{modality}_sample", pd.Series(table.index, index=table.index)))
        if source == "local":
            parts[modality] = _from_local_table(paths[0], modality, table, samples, Path(root))
        elif paths[0].parent.name == "xena":
            parts[modality] = _from_xena(paths[0], modality, list(table.index), samples)
        else:
            parts[modality] = _FROM_FILES[modality](paths, list(table.index))
    if not parts:
        raise OmicsFormatError("the cohort names no omics file; curate it with at least one modality")
    keep_tables_apart()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mudata.MuData(parts)


def keep_tables_apart() -> None:
    """Keep MuData from copying the columns of its tables into its own: version 0.3 must be told, later ones do not."""
    import mudata

    if hasattr(mudata, "set_options"):
        mudata.set_options(pull_on_update=False)


def omics_inputs(cohort: Cohort, source: str, root: str | Path, contents: Contents) -> dict[str, str]:
    """What :func:`read_omics` reads -> hash of it: the patients and their samples in order, and every file's content.

    'missing' stands for a modality with a file that is not there: reading it says which.
    """
    table, base = cohort.table, Path(root)
    found = {"patients": content_id([str(patient) for patient in table.index])}
    if source == "local" and (base / "columns.json").exists():
        found["columns.json"] = contents.file(base / "columns.json")
    for modality in MODALITIES:
        column = f"{modality}_path"
        if column not in table.columns or table[column].isna().all():
            continue
        samples = table.get(f"{modality}_sample", pd.Series(table.index, index=table.index))
        try:
            paths = [_locate(Path(path), base) for path in table[column].dropna()]
            hashes = {path: contents.file(path) for path in dict.fromkeys(paths)}
        except (OmicsFormatError, OSError):
            found[modality] = "missing"
            continue
        read = [[hashes[path] for path in paths], [str(sample) for sample in samples]]
        # The name of a user's file may state the unit of what is in it.
        named = unit_in_name(paths[0].name, modality) if source == "local" and paths else None
        found[modality] = content_id(read if named is None else [*read, named.name])
    return found


def _locate(path: Path, root: Path) -> Path:
    """The file itself, or the same file below ``root`` after the data folder has moved."""
    if not path.is_absolute() and (root / path).exists():
        return root / path
    if path.exists():
        return path
    for depth in (3, 2, 1):
        moved = root.joinpath(*path.parts[-depth:])
        if moved.exists():
            return moved
    raise OmicsFormatError(f"{path} is missing: fetch it again, or curate again if the data folder has moved")


# ---------------------------------------------------------------- a cohort's files


def _stack_counts(paths: Sequence[Path], patients: list[str], read: Any) -> tuple[np.ndarray, Reading]:
    """Counts [patients, features] of files that hold the same features, in whatever order."""
    first: Reading = read(paths[0])
    _unique(first.names, paths[0])
    matrix = np.empty((len(paths), len(first.names)), dtype=np.float32)
    matrix[0] = first.values
    for row, path in enumerate(paths[1:], start=1):
        reading = read(path)
        if reading.names.equals(first.names):
            matrix[row] = reading.values
            continue
        where = pc.index_in(first.names, value_set=reading.names)
        if len(reading.names) != len(first.names) or where.null_count:
            lacking = first.names.filter(pc.is_null(where))
            example = lacking[0].as_py() if len(lacking) else "none"
            raise OmicsFormatError(
                f"{path}: has {len(reading.names)} features, {paths[0].name} has {len(first.names)} "
                f"(lacking {example}); different releases, or one is cut short: resolve and fetch again"
            )
        matrix[row] = reading.values[where.to_numpy()]
    return matrix, first


def _unique(names: pa.Array, path: Path) -> None:
    if len(pc.unique(names)) < len(names):
        counts = names.value_counts()
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise OmicsFormatError(f"{path}: feature {twice} comes twice; fetch it again")


def _rna(paths: Sequence[Path], patients: list[str]) -> anndata.AnnData:
    matrix, first = _stack_counts(paths, patients, lambda p: read_star_counts(p, annotation=p == paths[0]))
    assert first.annotation is not None
    var = first.annotation
    var.index = pd.Index(first.names.to_pandas().to_numpy(), dtype=object)
    return _anndata(matrix, patients, var, "counts")


def _mirna(paths: Sequence[Path], patients: list[str]) -> anndata.AnnData:
    matrix, first = _stack_counts(paths, patients, read_mirna_counts)
    return _anndata(matrix, patients, pd.DataFrame(index=first.names.to_pandas().to_numpy()), "counts")


def _methylation(paths: Sequence[Path], patients: list[str]) -> anndata.AnnData:
    matrix, names = stack_betas(paths)
    # Genotype probes (rs...) are on the arrays to recognise people; they are no methylation.
    keep = ~names.str.startswith("rs")
    if not keep.all():
        # Column by column would copy the matrix; moving the kept ones to the front needs one row at a time.
        order = np.flatnonzero(keep)
        for row in matrix:
            row[: len(order)] = row[order]
        matrix, names = matrix[:, : len(order)], names[keep]
    return _anndata(matrix, patients, pd.DataFrame(index=names), "beta")


def stack_betas(paths: Sequence[Path]) -> tuple[np.ndarray, pd.Index]:
    """Betas [files, probes] float32 of any mixture of array versions, merged by probe; NaN where an array lacks one.

    Reads each file once; the memory is that of the result where the first files seen cover all probes, which holds
    because one file of each size class (27k, 450k, EPIC) is looked at first. Raises OmicsFormatError.
    """
    union = _probe_union(paths)
    _unique(union, paths[0])
    matrix = np.empty((len(paths), len(union)), dtype=np.float32)
    cache: list[tuple[pa.Array, np.ndarray | None]] = [(union, None)]
    for row, path in enumerate(paths):
        reading = read_sesame_betas(path)
        # Most files have the very probes of an earlier one: comparing is much faster than looking each up.
        known = next((where for names, where in cache if names.equals(reading.names)), False)
        if known is False:
            _unique(reading.names, path)
            where = pc.index_in(reading.names, value_set=union)
            if where.null_count:
                fresh = reading.names.filter(pc.is_null(where))
                union = pa.concat_arrays([union, fresh])
                wider = np.full((len(paths), len(union)), np.nan, dtype=np.float32)
                wider[:row, : matrix.shape[1]] = matrix[:row]
                matrix = wider
                where = pc.index_in(reading.names, value_set=union)
            known = where.to_numpy()
            cache = [*cache[1:], (reading.names, known)] if len(cache) > 8 else [*cache, (reading.names, known)]
        if known is None:
            matrix[row, : len(reading.values)] = reading.values
            matrix[row, len(reading.values) :] = np.nan
        else:
            matrix[row] = np.nan
            matrix[row, known] = reading.values
    return matrix, pd.Index(union.to_pandas().to_numpy(), dtype=object)


def _probe_union(paths: Sequence[Path]) -> pa.Array:
    """Probes of one file of each size class, the largest class first."""
    classes: dict[int, Path] = {}
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise OmicsFormatError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
        classes.setdefault(int(np.log2(max(size, 1)) * 4), path)
    union: pa.Array | None = None
    for key in sorted(classes, reverse=True):
        names = read_sesame_betas(classes[key]).names
        if union is None:
            union = names
        elif not names.equals(union):
            fresh = names.filter(pc.is_null(pc.index_in(names, value_set=union)))
            union = pa.concat_arrays([union, fresh])
    assert union is not None
    return union


_FROM_FILES = {"rna": _rna, "mirna": _mirna, "methylation": _methylation}


# ---------------------------------------------------------------- matrices


def _from_xena(path: Path, modality: str, patients: list[str], samples: list[str]) -> anndata.AnnData:
    """One Xena matrix, features in rows: log2(count + 1), log2(RPM + 1) or betas; reads the cohort's columns only."""
    # The logarithm of a large count has no room in single precision: 5,000,000 would come back three off.
    matrix, names = read_xena_matrix(path, samples, dtype=np.float64 if modality == "rna" else np.float32)
    unit = "beta"
    with np.errstate(invalid="ignore"):
        # log2(x + 1) of a count or of reads per million is not negative but by rounding.
        odd = (matrix < 0) | (matrix > 1) if modality == "methylation" else matrix < -1e-3
    if odd.any():
        row, column = (int(k[0]) for k in np.nonzero(odd))
        what = "betas outside 0..1" if modality == "methylation" else "negative values, which log2(x + 1) has none of"
        raise OmicsFormatError(
            f"{path}: {what}: sample {samples[row]}, feature {names[column]}: {matrix[row, column]:g}; this is another "
            f"kind of matrix than {modality} needs"
        )
    if modality == "rna":
        np.exp2(matrix, out=matrix)
        matrix -= 1
        whole = np.rint(matrix)
        # Value by value: one huge count must not excuse the fractions of small ones.
        fractions = np.abs(matrix - whole) > np.maximum(0.01, 1e-5 * np.abs(whole))
        # Replicates of a few patients are averaged; where most patients have mostly fractions, these were no counts.
        mostly = fractions.sum(axis=1) > 0.5 * (whole > 0).sum(axis=1)
        if len(mostly) >= 5 and mostly.mean() > 0.5:
            raise OmicsFormatError(
                f"{path}: 2^value - 1 is no whole number for most genes of {int(mostly.sum())} patients (first: "
                f"{samples[int(np.argmax(mostly))]}): these are no log2(counts + 1); take Xena's matrix of STAR counts"
            )
        if fractions.any():
            warnings.warn(
                f"{path}: some values are no log2 of whole counts (replicates were averaged); rounded", stacklevel=2
            )
        matrix, unit = whole.astype(np.float32), "counts"
    elif modality == "mirna":
        np.exp2(matrix, out=matrix)
        matrix -= 1
        np.maximum(matrix, 0, out=matrix)
        unit = "rpm"
    if modality != "methylation" and np.isnan(matrix).any():
        raise OmicsFormatError(f"{path}: has missing values; fetch it again")
    if modality == "methylation":
        keep = ~names.str.startswith("rs")
        matrix, names = np.ascontiguousarray(matrix[:, keep]), names[keep]
    return _anndata(matrix, patients, pd.DataFrame(index=names), unit)


def read_xena_matrix(
    path: str | Path, samples: Sequence[str], *, dtype: type[np.float32] | type[np.float64] = np.float32
) -> tuple[np.ndarray, pd.Index]:
    """Columns ``samples`` of a Xena matrix as [samples, features] of ``dtype`` and the feature names.

    Raises OmicsFormatError for a sample that is not in the header and for a malformed matrix.
    """
    path = Path(path)
    with _as_format_error(path), open_text(path) as text:
        header = text.readline().rstrip("\r\n").split("\t")
    missing = sorted(set(samples) - set(header[1:]))
    if missing:
        raise OmicsFormatError(f"{path}: sample {missing[0]} is not in the matrix; curate the cohort again")
    if len(set(header)) < len(header):
        raise OmicsFormatError(f"{path}: a sample stands in the header twice; fetch it again")
    wanted = list(dict.fromkeys(samples))
    try:
        names: list[pa.Array] = []
        blocks: list[np.ndarray] = []
        with open_plain(path) as handle:
            reader = pacsv.open_csv(
                handle,
                read_options=pacsv.ReadOptions(use_threads=False, block_size=1 << 24),
                parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
                convert_options=pacsv.ConvertOptions(
                    column_types={header[0]: pa.string(), **{name: pa.from_numpy_dtype(dtype) for name in wanted}},
                    include_columns=[header[0], *wanted],
                    null_values=MISSING,
                    strings_can_be_null=False,
                ),
            )
            for batch in reader:
                names.append(batch.column(0))
                block = np.empty((len(wanted), batch.num_rows), dtype=dtype)
                for i in range(len(wanted)):
                    block[i] = batch.column(i + 1).to_numpy(zero_copy_only=False)
                blocks.append(block)
    except (
        pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError, TableError, OSError, EOFError, zlib.error
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise OmicsFormatError(f"{path}: not a Xena matrix ({reason}); fetch it again") from error
    features = pa.chunked_array(names, pa.string()).combine_chunks() if names else pa.array([], pa.string())
    if not len(features):
        raise OmicsFormatError(f"{path}: a matrix without rows; fetch it again")
    matrix = np.empty((len(wanted), len(features)), dtype=dtype)
    start = 0
    for i, block in enumerate(blocks):
        matrix[:, start : start + block.shape[1]] = block
        start += block.shape[1]
        blocks[i] = np.empty((0, 0), dtype=dtype)  # freed as we go: the peak stays below twice the matrix
    if np.isinf(matrix).any():
        raise OmicsFormatError(f"{path}: has infinite values; fetch it again")
    _unique(features, path)
    order = [wanted.index(s) for s in samples] if len(wanted) < len(samples) else slice(None)
    return matrix[order], pd.Index(features.to_pandas().to_numpy(), dtype=object)


def _from_local_table(
    path: Path, modality: str, table: pd.DataFrame, samples: Sequence[str], root: Path
) -> anndata.AnnData:
    rows = read_local_rows(path, modality, root)
    frame = by_patient(rows, path, samples)
    patients = list(table.index)
    missing = sorted(set(patients) - set(frame.index))
    if missing:
        raise OmicsFormatError(f"{path}: patient {missing[0]} is not in the table; curate the cohort again")
    frame = frame.loc[patients]
    refuse_outcome(path, frame, table["time"], table["event"])
    # The unit is the whole table's: it does not depend on who is in the cohort.
    found = unit_of(rows, path, modality, root)
    if not found.stated:
        say(found.line(path.name))
    matrix, unit = converted(frame.to_numpy(dtype=np.float32), found.unit)
    part = _anndata(matrix, patients, pd.DataFrame(index=frame.columns.astype(object)), unit.name)
    part.uns["read_as"] = found.line(path.name)
    return part


def refuse_outcome(path: Path, frame: pd.DataFrame, time: ArrayLike, event: ArrayLike) -> None:
    """Raise OmicsFormatError where a feature holds what the features are to predict.

    ``time`` in days and ``event`` are those of the rows of ``frame``, in its order.
    """
    same = outcome_values(list(frame.columns), frame.to_numpy(), time, event)
    if same:
        raise OmicsFormatError(
            f"{path}: column {_named(same)} equals the survival time or the event of every patient, as it is or "
            "transformed; remove it from the features"
        )


def _named(columns: Sequence[str], most: int = 5) -> str:
    """The first one, and the others in brackets: all of them are to be removed at once."""
    others = ", ".join(f"'{name}'" for name in columns[1:most])
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return f"'{columns[0]}'" + (f" (also {others}{more})" if others else "")


def read_units(path: Path, modality: str, root: Path) -> tuple[pd.DataFrame, Recognition]:
    """The rows of `read_local_rows` and the unit of `unit_of`, of one table."""
    rows = read_local_rows(path, modality, root)
    return rows, unit_of(rows, path, modality, root)


def read_local_rows(path: Path, modality: str, root: Path, mapping: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """All rows of a user's table under the names of its patient column, which may be samples' barcodes.

    ``mapping`` stands for columns.json where a caller has read it. Raises OmicsFormatError for a table that cannot be
    read.
    """
    mapping = _mapping(root) if mapping is None else mapping
    return _read_rows(path, mapping.get(modality, {}).get("patient"))


def unit_of(
    rows: pd.DataFrame, path: Path, modality: str, root: Path, mapping: Mapping[str, Any] | None = None
) -> Recognition:
    """What the numbers of a user's table are: stated in columns.json (or ``mapping``), or recognised and why.

    Raises OmicsFormatError for values that fit no unit or not the stated one.
    """
    mapping = _mapping(root) if mapping is None else mapping
    stated = mapping.get("units", {}).get(modality)
    try:
        return recognise(
            rows.to_numpy(),
            modality,
            list(rows.index),
            list(rows.columns),
            str(path),
            stated=stated,
            file_name=path.name,
        )
    except UnitError as error:
        raise OmicsFormatError(str(error)) from error


def _mapping(root: Path) -> dict[str, Any]:
    try:
        return local_mapping(root)
    except CurationError as error:
        raise OmicsFormatError(str(error)) from error


def read_local_table(
    path: str | Path, patient: str | None = None, samples: Sequence[str] | None = None
) -> pd.DataFrame:
    """A user's table: one row per patient, one numeric column per feature; NaN where a word for "missing" stands.

    ``patient`` names the patient column where its name is unusual; ``samples``: the rows to keep, as that column calls
    them. Raises OmicsFormatError naming file, and patient and column where there is one.
    """
    return by_patient(_read_rows(Path(path), patient), Path(path), samples)


def by_patient(rows: pd.DataFrame, path: Path, samples: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows by patient instead of by sample; only those of ``samples`` if given.

    Raises OmicsFormatError for a patient who is left with two rows, or none of whom is named.
    """
    if samples is not None:
        kept = rows.index.isin(samples)
        rows = rows if kept.all() else rows[kept]
    index = pd.Index([named_patient(name) for name in rows.index], name="patient", dtype=object)
    if index.has_duplicates or "" in index:
        bad = index[index.duplicated()][0] if index.has_duplicates else "(empty)"
        raise OmicsFormatError(f"{path}: patient {bad} comes twice or is empty; keep one row per patient")
    return rows.set_axis(index, axis="index")


def _read_rows(path: Path, patient: str | None) -> pd.DataFrame:
    try:
        head = read_head(path)
        names = list(head.names)
        label = names[patient_column(names, path, patient)]
        left_out = [name for name in index_names(names) if name != label]
        features = [name for name in names if name != label and name not in left_out]
        outcome = outcome_names(features)
        if outcome:
            raise OmicsFormatError(
                f"{path}: column {_named(outcome)} is of the outcome, which features must not hold; remove it from "
                "this table"
            )
        others = no_molecules(features)
        if others:
            raise OmicsFormatError(
                f"{path}: column {_named(others)} is no molecule by its name, but of the patients or of how their "
                "samples were processed; remove it from this table (age, sex, stage and grade belong in the clinical "
                "one)"
            )
        types = {label: pa.string(), **dict.fromkeys(features, pa.float32())}
        table = read_rows(path, head, types, missing=MISSING, wanted=[n for n in names if n not in left_out])
        labels = table[label].to_pylist()
        check_labels(path, label, labels)
        check_last_lines(labels, 2 + len(head.comments))
    except CurationError as error:
        raise OmicsFormatError(str(error)) from error
    except TableError as error:
        raise OmicsFormatError(f"{path}: not a table of numbers: {_bad_cell(path, patient) or error}") from error
    if not table.num_rows or not features:
        raise OmicsFormatError(f"{path}: no patient or no feature in the table")
    rows = [sample_name(cell) for cell in labels]
    values = np.empty((table.num_rows, len(features)), dtype=np.float32)
    for i, name in enumerate(features):
        values[:, i] = table[name].to_numpy()
    if np.isinf(values).any():
        row, column = (int(k[0]) for k in np.nonzero(np.isinf(values)))
        raise OmicsFormatError(
            f"{path}: patient {rows[row]}, column {features[column]} has an infinite value; correct that cell"
        )
    frame = pd.DataFrame(values, index=pd.Index(rows, dtype=object), columns=features)
    if equal := line_of_equal_rows(rows, values):
        doubt(f"{path}: {equal}")
    counters = row_counters(features, values, names[0])
    _say_of_names(path, [*left_out, *counters], features)
    if len(counters) == len(features):
        raise OmicsFormatError(f"{path}: no feature in the table, column '{counters[0]}' counts the rows")
    return frame.drop(columns=counters) if counters else frame


def _say_of_names(path: Path, left_out: Sequence[str], features: Sequence[str]) -> None:
    if left_out:
        say(f"{path}: column {_named(left_out)} is an index that was written with the table, no feature; left out")
    for line in doubts_of_names(features):
        doubt(f"{path}: {line}")


def _bad_cell(path: Path, patient: str | None) -> str:
    """The first cell that keeps a table from being one of numbers, in words; '' where it is something else."""
    try:
        head = read_head(path)
        label = head.names[patient_column(head.names, path, patient)]
        found = first_bad_number(path, head, label)
    except (TableError, CurationError):
        return ""
    if found is None:
        return ""
    who, column, cell = found
    why = why_no_number(cell)
    return f"patient {who}, column {column}: '{cell[:40]}' is no number; correct that cell{': ' * bool(why)}{why}"


class _as_format_error:  # noqa: N801  (used like a function)
    """Reading problems of a text file as OmicsFormatError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | EOFError | zlib.error):
            raise OmicsFormatError(f"{self.path}: cannot be read ({error}); fetch it again") from error


def _anndata(matrix: np.ndarray, patients: Iterable[str], var: pd.DataFrame, unit: str) -> anndata.AnnData:
    import anndata

    part = anndata.AnnData(X=matrix, obs=pd.DataFrame(index=pd.Index(list(patients), dtype=object)), var=var)
    part.uns["unit"] = unit
    return part
