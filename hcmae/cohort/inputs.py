"""What curation reads, as hashes: the inputs of its key."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from hcmae.cohort.evidence import CurationError
from hcmae.cohort.local import local_file, local_mapping, local_slides
from hcmae.cohort.lock import from_xena, read_lock, xena_header, xena_matrix
from hcmae.config import MODALITIES
from hcmae.content import Contents, content_id, slide_bytes
from hcmae.manifest import Manifest

# Stands for what is not there, or cannot be used: curation says what is wrong with it.
MISSING = "missing"


def curate_inputs(
    source: str,
    root: str | Path,
    modalities: Sequence[str],
    slides: bool,
    manifest: Manifest,
    contents: Contents,
) -> dict[str, str]:
    """What curation reads -> hash of it; 'missing' where it is not there or cannot be used.

    The content of tables, records and locks; of slides, which are not read, the names and sizes; of the files of a lock
    which of them are there; of a Xena matrix the header. Takes what :func:`hcmae.cohort.curate.curate` takes.
    """
    root = Path(root)
    chosen = [m for m in MODALITIES if m in modalities]
    if source == "local":
        return _local_inputs(root, chosen, slides, contents)
    return _lock_inputs(root, chosen, slides, manifest, contents)


def _local_inputs(root: Path, modalities: Sequence[str], slides: bool, contents: Contents) -> dict[str, str]:
    found = {}
    if (root / "columns.json").exists():
        found["columns.json"] = _tried(lambda: contents.file(root / "columns.json"))
    for what in ("clinical", *modalities):
        found[what] = _tried(lambda what=what: contents.file(local_file(root, what, local_mapping(root))))  # type: ignore[misc]
    if slides:
        found["slides"] = _tried(
            lambda: content_id(
                {path.relative_to(root).as_posix(): slide_bytes(path) for path in local_slides(root / "slides")}
            )
        )
    return found


def _lock_inputs(
    root: Path, modalities: Sequence[str], slides: bool, manifest: Manifest, contents: Contents
) -> dict[str, str]:
    found = {"clinical.json": _tried(lambda: contents.file(root / "clinical.json"))}
    matrices = from_xena(manifest, modalities)
    wanted = [m for m in (*(["slides"] if slides else []), *modalities) if m not in matrices]
    if wanted:
        found["files.tsv"] = _tried(lambda: contents.file(root / "files.tsv"))
        found |= _presence(root, wanted)
    for modality in matrices:
        found[f"header of {modality}"] = _tried(
            lambda modality=modality: content_id(xena_header(xena_matrix(root, manifest, modality)))  # type: ignore[misc]
        )
    return found


def _presence(root: Path, wanted: Sequence[str]) -> dict[str, str]:
    """By modality, which files of the lock are there."""
    try:
        lock = read_lock(root / "files.tsv")
    except CurationError:
        return {}
    there: dict[str, list[str]] = {name: [] for name in wanted}
    for file_id, name, modality in lock[["id", "filename", "modality"]].itertuples(index=False):
        if modality in there and (root / modality / file_id / name).exists():
            there[modality].append(file_id)
    return {f"files of {name}": content_id(sorted(ids)) for name, ids in there.items()}


def _tried(read: Callable[[], str]) -> str:
    try:
        return read()
    except (CurationError, OSError, EOFError, zlib.error):
        return MISSING
